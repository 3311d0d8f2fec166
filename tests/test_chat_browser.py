"The chat widget in a real browser: JupyterLab on localhost, a headless Chromium that types, reads and clicks."
import pytest
from browser_toys import open_browser
from chat_toys import CHARS, char_tok, save_toy, toy_model
from lab_toys import LabChat, jupyterlab, write_notebook
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
    for name, n in dict(short=12, long=100_000).items(): write_notebook(root/f'{name}.ipynb', CELL.format(n=n))
    return root


@pytest.fixture(scope='module')
def lab(folder):
    with jupyterlab(folder) as url: yield url


@pytest.fixture(scope='module')
def browser():
    with open_browser() as b: yield b


@pytest.fixture
def open_page(browser, lab):
    pages = []
    def go(name):
        pages.append(LabChat(browser, f'{lab}/{name}.ipynb'))
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
    chat.button('清空').click()
    expect(chat.bubbles('user')).to_have_count(0)
    chat.entry.fill('秋'*600)
    chat.button('发送').click()
    expect(chat.bubbles('error')).to_have_text(['问题太长：601 个词元，最多 512 个。请删短一些，或分成几句来问。'], timeout=60_000)
    expect(chat.button('发送')).to_be_enabled()


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
