"JupyterLab on localhost with notebooks of one cell, and the chat that such a cell shows."
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import nbformat
from playwright.sync_api import Browser, Locator, expect


def write_notebook(path:Path, cell:str)->Path:
    "A notebook of one cell."
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip())])
    nb.metadata.kernelspec = dict(name='python3', display_name='Python 3', language='python')
    nbformat.write(nb, path)
    return path


@contextmanager
def jupyterlab(folder:Path, **more:str)->Iterator[str]:
    "A server of its own for the notebooks of a folder; yields the address under which they open. `more`: environment."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    own = dict(JUPYTER_CONFIG_DIR='config', JUPYTER_RUNTIME_DIR='runtime', JUPYTERLAB_WORKSPACES_DIR='ws',
               JUPYTERLAB_SETTINGS_DIR='settings')
    env = os.environ | {k: str(folder/v) for k, v in own.items()} | more
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


def _wait_for(url:str, server:subprocess.Popen, log:Path, seconds:float=90):
    "Until it answers. Raises AssertionError with what it wrote."
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try: return urlopen(url, timeout=5).read()
        except (URLError, OSError): time.sleep(.3)
    raise AssertionError(f'JupyterLab did not start:\n{log.read_text()[-3000:]}')


class LabChat:
    "A notebook with the chat, run and ready."
    def __init__(self, browser:Browser, url:str, scale:float=1.):
        self.page = browser.new_page(viewport=dict(width=1100, height=900), device_scale_factor=scale)
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

    def button(self, name:str)->Locator: return self.page.get_by_role('button', name=name, exact=True)
    def bubbles(self, role:str)->Locator: return self.page.locator(f'.scclm-{role}')
    def ask(self, text:str):
        self.entry.click()
        self.page.keyboard.type(text)
        self.page.keyboard.press('Enter')
