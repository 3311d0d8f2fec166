"A real browser for the tests of the pages."
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

expect.set_options(timeout=30_000) # a busy machine; where a short wait is meant, it stands there


def chromium()->str:
    "The browser, or a failure that says how to get one."
    names = ('chromium', 'chromium-browser', 'google-chrome')
    places = [os.environ.get('SCCLM_CHROMIUM'), *map(shutil.which, names)]
    for path in places:
        if path: return path
    pytest.fail("no Chromium found: run `apt-get install chromium`, or set SCCLM_CHROMIUM to the program")


@contextmanager
def open_browser()->Iterator[Browser]:
    "A headless Chromium."
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium(), args=['--no-sandbox', '--disable-dev-shm-usage'])
        yield browser
        browser.close()
