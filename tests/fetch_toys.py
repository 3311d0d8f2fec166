"""A server with moods, for the downloads: it breaks off, lies, trickles, forgets ranges. It stands in for the
Hugging Face hub too. Nothing leaves this machine."""
import hashlib
import json
import re
import threading
import time
from contextlib import contextmanager
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import unquote, urlsplit


class Mood(NamedTuple):
    "How one request is answered."
    status:int=200 # another one is sent without the file
    body:bytes|None=None # instead of the file, for that status or for the file
    stop:int|None=None # break off after so many bytes
    length:int|None=None # claim this Content-Length
    framed:bool=True # say how long the body is
    chunked:bool=False # in chunks
    ranges:bool=True # give the part that is asked for
    judge:bool=True # look at If-Range
    shift:int=0 # start so many bytes later than asked
    etag:str|None='by content' # None: no such header
    modified:str='' # Last-Modified
    pause_s:float=0 # between pieces of one byte
    headers:tuple[tuple[str, str], ...]=() # further ones


@dataclass
class Shop:
    "What a server has, how it feels, what it was asked."
    files:dict[str, bytes]=field(default_factory=dict) # path -> content
    moods:dict[str, list[Mood]]=field(default_factory=dict) # path -> one for each request, the last for the others
    log:list[tuple[str, dict]]=field(default_factory=list) # path and headers of every GET
    repos:dict[str, dict[str, bytes]]=field(default_factory=dict) # on the hub: name -> file -> content
    url:str='' # of the server

    def mood(self, path:str)->Mood:
        "The next one."
        left = self.moods.get(path) or [Mood()]
        return left.pop(0) if len(left) > 1 else left[0]

    def ranges(self, path:str)->list[str]:
        "The ranges that were asked for, '' for the whole."
        return [headers.get('range', '') for asked, headers in self.log if asked == path]


def sha(data:bytes)->str:
    "A name for a content."
    return hashlib.sha256(data).hexdigest()


def blob_id(data:bytes)->str:
    "The number that git gives a file."
    return hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()


def commit_of(repo:dict[str, bytes])->str:
    "A commit number: another content is another commit."
    return hashlib.sha1(repr(sorted((name, sha(data)) for name, data in repo.items())).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    "Answers as the shop feels."
    protocol_version = 'HTTP/1.1'
    shop:Shop

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.shop.log.append((path, {k.lower(): v for k, v in self.headers.items()}))
        self.answer(path, self.shop.mood(path))

    def do_HEAD(self):
        path = unquote(urlsplit(self.path).path)
        mood = (self.shop.moods.get(path) or [Mood()])[0] # the GET to come uses it up
        self.answer(path, Mood() if mood.status == 200 else mood, head=True)

    def answer(self, path:str, mood:Mood, head:bool=False):
        "Status, headers, body."
        data, extra = self.content(path)
        if data is None: mood = Mood(404, b'no such file')
        if mood.status != 200: return self.send(mood.status, mood.body or b'', mood, {})
        data = mood.body if mood.body is not None else data
        etag = f'"{sha(data)[:12]}"' if mood.etag == 'by content' else mood.etag
        tags = {k: v for k, v in (('ETag', etag), ('Last-Modified', mood.modified)) if v} | extra
        asked = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', ''))
        condition = self.headers.get('If-Range')
        if not asked or not mood.ranges or (mood.judge and condition and condition not in (etag, mood.modified)):
            return self.send(200, data, mood, tags, head)
        start = int(asked[1]) + mood.shift
        if start >= len(data): return self.send(416, b'', mood, {'Content-Range': f'bytes */{len(data)}'})
        part = {'Content-Range': f'bytes {start}-{len(data) - 1}/{len(data)}'}
        return self.send(206, data[start:], mood, tags | part, head)

    def content(self, path:str)->tuple[bytes|None, dict]:
        "A file of the shop or of the hub, and the headers that go with it."
        if path.startswith('/api/datasets/'): return self.info('/'.join(path.split('/')[3:5])), {}
        found = re.fullmatch(r'/datasets/([^/]+/[^/]+)/resolve/[^/]+/(.+)', path)
        if not found: return self.shop.files.get(path), {}
        repo = self.shop.repos.get(found[1], {})
        data = repo.get(found[2])
        return data, {'X-Repo-Commit': commit_of(repo), 'ETag': f'"{sha(data)}"'} if data is not None else {}

    def info(self, name:str)->bytes|None:
        "What the hub says about a repository: even names are large files, with a sha256 of their own."
        repo = self.shop.repos.get(name)
        if repo is None: return None
        siblings = [dict(rfilename=path, size=len(data), blobId=blob_id(data),
            **(dict(lfs=dict(sha256=sha(data), size=len(data), pointerSize=130)) if len(path) % 2 == 0 else {}))
            for path, data in repo.items()]
        return json.dumps(dict(id=name, sha=commit_of(repo), siblings=siblings)).encode()

    def send(self, status:int, body:bytes, mood:Mood, headers:dict, head:bool=False):
        "Write it out, as far as the mood goes."
        self.send_response(status)
        framing = {'Transfer-Encoding': 'chunked'} if mood.chunked else {
            'Content-Length': str(len(body) if mood.length is None else mood.length)}
        if not mood.framed: framing = {'Connection': 'close'}
        for k, v in (headers | framing | dict(mood.headers)).items(): self.send_header(k, v)
        self.end_headers()
        broken = mood.stop is not None or mood.length is not None or not mood.framed
        if broken: self.close_connection = True
        if not head: self.write(body[:mood.stop], mood)

    def write(self, body:bytes, mood:Mood):
        "The body; who hangs up early is let go."
        try:
            if mood.pause_s:
                for k in range(len(body)):
                    self.wfile.write(body[k:k + 1])
                    time.sleep(mood.pause_s)
            elif mood.chunked:
                if body: self.wfile.write(b'%x\r\n%s\r\n' % (len(body), body)) # one of size 0 is the end
                if mood.stop is None: self.wfile.write(b'0\r\n\r\n')
            else: self.wfile.write(body)
        except OSError: self.close_connection = True

    def log_message(self, *args): pass


@contextmanager
def shop_open()->Iterator[Shop]:
    "A shop on 127.0.0.1."
    shop = Shop()
    server = ThreadingHTTPServer(('127.0.0.1', 0), type('Bound', (Handler,), dict(shop=shop)))
    server.daemon_threads = True
    shop.url = f'http://127.0.0.1:{server.server_port}'
    threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.02), daemon=True).start()
    try: yield shop
    finally:
        server.shutdown()
        server.server_close()
