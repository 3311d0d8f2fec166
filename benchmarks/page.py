"""The chat in the page: size of the folder, seconds until it is ready, until its first answer, tokens per second.

`python benchmarks/page.py --runs 5` opens the page of the trained model in a fresh Chromium from a file; in turn,
PyTorch (fp32, one thread) loads the same model and answers the same question.
"""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import report

SHOWS_END = "document.getElementById('log').getAttribute('aria-busy') === 'false'"
IN_PYTHON = """
import sys, time
start = time.perf_counter()
import torch
torch.set_num_threads(1)
from scclm.chat import ChatBot
bot = ChatBot.from_dir(sys.argv[1])
ready = time.perf_counter()
bot.answer([sys.argv[2]])
first = time.perf_counter()
for _ in range(5): answer = bot.answer([sys.argv[2]])
seconds = time.perf_counter() - first
print(ready - start, first - start, 5*len(bot.encode(answer)[0])/seconds)
"""

def chromium()->str|None:
    "The browser's path; None: playwright's own."
    names = ('chromium', 'chromium-browser', 'google-chrome')
    return os.environ.get('SCCLM_CHROMIUM') or next(filter(None, map(shutil.which, names)), None)

def in_browser(index:Path, question:str)->list[float]:
    "Seconds until ready, until the first answer, tokens per second afterwards."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium(), args=['--no-sandbox', '--disable-dev-shm-usage'])
        page = browser.new_page()
        page.goto('about:blank')
        start = time.perf_counter()
        page.goto(index.as_uri())
        page.locator('#app').wait_for()
        ready = time.perf_counter() - start
        def ask()->float:
            "Seconds of one answer."
            page.locator('#question').fill(question)
            begun = time.perf_counter()
            page.keyboard.press('Enter')
            page.wait_for_function(SHOWS_END)
            return time.perf_counter() - begun
        first = ready + ask()
        tokens = page.locator('.step').count()
        speed = 5*tokens/sum(ask() for _ in range(5))
        browser.close()
    return [ready, first, speed]

def in_python(model:Path, question:str)->list[float]:
    "The same of a fresh Python process."
    command = [sys.executable, '-c', IN_PYTHON, model, question]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(x) for x in done.stdout.split()[-3:]]

def main():
    "Page and Python in turn."
    from scclm.chat import find_model
    from scclm.page_chat import PageCfg, page
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--runs', type=int, default=5, help='how often')
    parser.add_argument('--question', default='浙江省的省会是哪里？', help='what is asked')
    args = parser.parse_args()
    model = find_model()
    with tempfile.TemporaryDirectory() as folder:
        index = page(PageCfg(out=Path(folder)/'page'))
        size = sum(p.stat().st_size for p in index.parent.iterdir())/1e6
        pairs = [(in_browser(index, args.question), in_python(model, args.question)) for _ in range(args.runs)]
    ours, theirs = (list(zip(*runs)) for runs in zip(*pairs))
    weights = (model/'model.safetensors').stat().st_size/1e6
    name = 'PyTorch fp32, one thread'
    rows = [report.row('folder', [size], [weights], 'model.safetensors', 'MB', higher_is_better=False),
            report.row('ready', ours[0], theirs[0], name, 's', higher_is_better=False),
            report.row('first answer', ours[1], theirs[1], name, 's', higher_is_better=False),
            report.row('writing', ours[2], theirs[2], name, 'tok/s')]
    report.write('page', dict(runs=args.runs, question=args.question), rows)

if __name__ == '__main__': main()
