"The chat page for tests: a Chromium, a static server on loopback, an exported folder of a small random model."
import functools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import Browser, Page

from scclm.page_chat import SCRIPTS, page_source


class Host(SimpleHTTPRequestHandler):
    "A static host that says nothing, with headers of its own."
    def __init__(self, *args, headers:dict[str, str], **kw):
        self.own = headers
        super().__init__(*args, **kw)
    def log_message(self, *args): pass
    def end_headers(self):
        for name, value in self.own.items(): self.send_header(name, value)
        super().end_headers()


@contextmanager
def served(folder:Path, headers:dict[str, str]|None=None)->Iterator[str]:
    "The folder on a port of the loopback address; its URL."
    host = functools.partial(Host, directory=str(folder), headers=headers or {})
    server = ThreadingHTTPServer(('127.0.0.1', 0), host)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try: yield f'http://127.0.0.1:{server.server_port}'
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Scripts:
    "The page's functions without the page."
    def __init__(self, browser:Browser):
        self.page = browser.new_page()
        for name in SCRIPTS[:-1]: self.page.add_script_tag(content=page_source(name))

    def call(self, code:str, *args):
        "What the JavaScript function gives for these arguments; both ways as JSON, so that odd characters survive."
        wrapped = f'async (text) => JSON.stringify(await ({code})(...JSON.parse(text)) ?? null)'
        return json.loads(self.page.evaluate(wrapped, json.dumps(args)))


def opened(page:Page, url:str)->Page:
    "The chat page, ready for a question."
    page.goto(url)
    page.locator('#app').wait_for(timeout=60_000)
    return page


ANSWER = """
async (texts, knobs) => {
  const worker = chat.worker, out = [];
  for (const [i, text] of texts.entries()) {
    out.push(await new Promise((done) => {
      const ids = [], n = 1e6 + i;
      worker.onmessage = ({ data }) => {
        if (data.token?.n === n) ids.push(data.token.id);
        if (data.done?.n === n) done({ ids, text: data.done.text });
        if (data.failed?.n === n) done({ ids, failed: data.failed.why });
      };
      worker.postMessage({ ask: { n, text, temperature: 0, topP: 1, ...knobs } });
    }));
  }
  return out;
}
"""


def answers(page:Page, texts:list[str], **knobs)->list[dict]:
    "Answers of the page's own worker: ids and text of each."
    code = f'async (text) => JSON.stringify(await ({ANSWER})(...JSON.parse(text)))'
    return json.loads(page.evaluate(code, json.dumps([texts, knobs])))
