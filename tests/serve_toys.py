"A server on the loopback address with a small random model, and raw sockets to be rude to it."
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from chat_toys import CHARS, char_tok, toy_model
from fastapi import FastAPI

from scclm.chat import ChatBot
from scclm.serve import ServeCfg, Server, listen_on, make_app, make_server

KEY = 'k3y-of-the-tests'


class Live:
    "A server that runs in a thread."
    def __init__(self, app:FastAPI, server:Server, port:int):
        self.app = app
        self.server = server
        self.port = port
        self.url = f'http://127.0.0.1:{port}'
        self.service = app.state.service
        self.headers = {'Authorization': f'Bearer {KEY}', 'Content-Type': 'application/json'}


def toy_bot(endless:bool=False, max_prompt_tok:int=64)->ChatBot:
    "Random weights; `endless`: no answer ends by itself."
    tok = char_tok(CHARS)
    return ChatBot(toy_model(len(tok), seed=23, endless=endless), tok, max_prompt_tok=max_prompt_tok, batch_tok=10**8)


@contextmanager
def serving(bot:ChatBot, **fields)->Iterator[Live]:
    "A server as `scclm serve` starts it."
    cfg = ServeCfg(**dict(dict(max_new_tok=24, loop_copies=0, batch_tok=10**8), **fields))
    app, listener = make_app(cfg, (KEY,), bot), listen_on('127.0.0.1', 0)
    server = make_server(app)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try: yield Live(app, server, listener.getsockname()[1])
    finally:
        server.drain()
        thread.join(30)
        assert not thread.is_alive()


def wait_until(true, seconds:float=20.):
    "Wait for something to become true. Raises AssertionError."
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, 'it did not happen'
        time.sleep(.01)


def head_of(path:str, body:bytes, key:str=KEY, length:int|None=None)->bytes:
    "The head of a POST request."
    lines = [f'POST {path} HTTP/1.1', 'Host: here', f'Authorization: Bearer {key}', 'Content-Type: application/json',
             f'Content-Length: {len(body) if length is None else length}', '', '']
    return '\r\n'.join(lines).encode()


def connect(live:Live)->socket.socket:
    "A raw connection."
    return socket.create_connection(('127.0.0.1', live.port), timeout=20)


def read_all(s:socket.socket)->bytes:
    "Everything until the other side ends the connection."
    out = b''
    while data := s.recv(65536): out += data
    return out


def read_response(s:socket.socket)->tuple[int, dict]:
    "Status and JSON body of one response."
    out = b''
    while b'\r\n\r\n' not in out: out += s.recv(65536)
    head, _, body = out.partition(b'\r\n\r\n')
    length = next(int(h.split(b':')[1]) for h in head.lower().split(b'\r\n') if h.startswith(b'content-length'))
    while len(body) < length: body += s.recv(65536)
    return int(head.split()[1]), json.loads(body)
