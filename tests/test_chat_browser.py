"The chat widget in a real browser: JupyterLab on localhost, a headless Chromium that types, reads and clicks."
import os
import socket
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import urlopen

import nbformat
import pytest
from browser_toys import open_browser
from chat_toys import CHARS, char_tok, save_toy, toy_model
from playwright.sync_api import expect
from processes import gone_afterwards

from scclm.chat import ChatBot, Decoding

CELL = """
from scclm.chat import ChatBot, Decoding, chat_widget
bot = ChatBot.from_dir('model', decoding=Decoding(max_new_tok={n}, loop_copies=0))
view = chat_widget(bot)
view
"""


@pytest.fixture(scope='module', autouse=True)
def nothing_stays():
    "JupyterLab, its kernels and the browser end with this file's tests."
    with gone_afterwards(): yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root, tok = tmp_path_factory.mktemp('lab'), char_tok(CHARS)
    save_toy(root/'model', tok, toy_model(len(tok), endless=True))
    for name, n in dict(short=12, long=100_000).items():
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL.format(n=n).strip())])
        nb.metadata.kernelspec = dict(name='python3', display_name='Python 3', language='python')
        nbformat.write(nb, root/f'{name}.ipynb')
    return root


@pytest.fixture(scope='module')
def lab(folder):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    own = dict(JUPYTER_CONFIG_DIR='config', JUPYTER_RUNTIME_DIR='runtime', JUPYTERLAB_WORKSPACES_DIR='ws',
               JUPYTERLAB_SETTINGS_DIR='settings')
    env = os.environ | {k: str(folder/v) for k, v in own.items()}
    command = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}',
        f'--ServerApp.root_dir={folder}', '--IdentityProvider.token=', '--LabApp.news_url=',
        '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate']
    with open(folder/'lab.log', 'w') as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        _wait_for(f'http://127.0.0.1:{port}/api', server, folder/'lab.log')
        yield f'http://127.0.0.1:{port}/doc/tree'
    finally:
        server.terminate()
        server.wait(60)

def _wait_for(url, server, log, seconds=90):
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try: return urlopen(url, timeout=5).read()
        except (URLError, OSError): time.sleep(.3)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope='module')
def browser():
    with open_browser() as b: yield b


class Page:
    "A notebook with the chat, run and ready."
    def __init__(self, browser, url):
        self.page = browser.new_page(viewport=dict(width=1100, height=900))
        self.page.goto(url)
        self.page.locator('.jp-CodeCell .cm-content').first.click(timeout=120_000)
        expect(self.page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]')).to_be_attached(timeout=120_000)
        self.run_cell()
        self.entry = self.page.get_by_placeholder('输入问题，按 Enter 发送')
        expect(self.entry).to_be_visible(timeout=240_000)

    def run_cell(self):
        "Control+Enter until the cell says that it runs: JupyterLab drops the key while its kernel is still connecting."
        prompt = self.page.locator('.jp-CodeCell .jp-InputPrompt').first
        for _ in range(10):
            self.page.locator('.jp-CodeCell .cm-content').first.click()
            self.page.keyboard.press('Control+Enter')
            self.page.wait_for_timeout(2000)
            if prompt.inner_text().strip() not in ('[ ]:', '[]:', ''): return

    def button(self, name): return self.page.get_by_role('button', name=name, exact=True)
    def bubbles(self, role): return self.page.locator(f'.scclm-{role}')
    def ask(self, text):
        self.entry.click()
        self.page.keyboard.type(text)
        self.page.keyboard.press('Enter')


@pytest.fixture
def open_page(browser, lab):
    pages = []
    def go(name):
        pages.append(Page(browser, f'{lab}/{name}.ipynb'))
        return pages[-1]
    yield go
    for p in pages: p.page.close()


def test_ask_by_enter_and_by_button(open_page, folder):
    chat = open_page('short')
    bot = ChatBot.from_dir(folder/'model', decoding=Decoding(max_new_tok=12, loop_copies=0))
    chat.ask('你是谁？')
    expect(chat.bubbles('user')).to_have_text(['你是谁？'], timeout=60_000)
    expect(chat.bubbles('bot')).to_have_text(bot.answer(['你是谁？']), timeout=60_000)
    expect(chat.entry).to_have_value('')
    left = chat.bubbles('bot').locator('div').bounding_box()
    right = chat.bubbles('user').locator('div').bounding_box()
    assert left['x'] < right['x'] and left['y'] > right['y']
    chat.entry.fill('<b onmouseover=alert(1)>秋</b>')
    chat.button('发送').click()
    expect(chat.bubbles('user').nth(1)).to_have_text('<b onmouseover=alert(1)>秋</b>', timeout=60_000)
    expect(chat.bubbles('bot')).to_have_count(2)
    assert chat.page.locator('.scclm-user b').count() == 0
    if shot := os.environ.get('SCCLM_SHOT'): chat.page.screenshot(path=shot)
    chat.button('清空').click()
    expect(chat.bubbles('user')).to_have_count(0)


def test_streams_and_stops(open_page):
    chat = open_page('long')
    chat.ask('你好')
    expect(chat.button('停止')).to_be_enabled(timeout=60_000)
    answer = chat.bubbles('bot')
    seen = []
    while len(seen) < 4: # the bubble grows while we watch
        if (n := len(answer.inner_text())) > 1 and (not seen or n > seen[-1]): seen.append(n)
        chat.page.wait_for_timeout(50)
    chat.button('停止').click()
    expect(answer).to_contain_text('（已停止）', timeout=60_000)
    stopped = answer.inner_text()
    chat.page.wait_for_timeout(500)
    assert answer.inner_text() == stopped and seen == sorted(seen) and len(stopped) < 100_000
    expect(chat.button('停止')).to_be_disabled()
    expect(chat.button('发送')).to_be_enabled()
