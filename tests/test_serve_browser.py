"The chat page in a real browser: a server on the loopback address, a headless Chromium that types, reads and clicks."
import json
import os
import re

import pytest
from browser_toys import open_browser
from playwright.sync_api import expect
from processes import gone_afterwards
from serve_toys import KEY, serving, toy_bot, wait_until

from scclm.chat import Decoding

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module', autouse=True)
def nothing_stays():
    "The browser ends with this file's tests."
    with gone_afterwards(): yield

@pytest.fixture(scope='module')
def short():
    with serving(toy_bot()) as live: yield live

@pytest.fixture(scope='module')
def endless():
    with serving(toy_bot(endless=True), max_new_tok=100_000) as live: yield live

@pytest.fixture(scope='module')
def chrome():
    with open_browser() as b: yield b


class Chat:
    "The page, open. Every request and every complaint of the browser is kept."
    def __init__(self, chrome, live, key=KEY, **how):
        self.page = chrome.new_page(viewport=dict(width=900, height=700), **how)
        self.requests, self.complaints = [], []
        self.page.on('request', lambda r: self.requests.append(r.url))
        self.page.on('console', self.hear)
        self.page.on('pageerror', lambda e: self.complaints.append(str(e)))
        self.page.goto(f'{live.url}/#key={key}' if key else live.url)
        self.entry = self.page.get_by_label('问题', exact=True)
        self.status = self.page.get_by_role('status')

    def hear(self, message):
        if message.type == 'error': self.complaints.append(message.text)

    def button(self, name): return self.page.get_by_role('button', name=name, exact=True)
    def said(self, kind): return self.page.locator(f'li.{kind} > span:last-child')
    def ask(self, text):
        self.entry.fill(text)
        self.page.keyboard.press('Enter')


@pytest.fixture
def open_page(chrome):
    pages = []
    def go(live, key=KEY, **how):
        pages.append(Chat(chrome, live, key, **how))
        return pages[-1]
    yield go
    for p in pages: p.page.close()

def alone(live, text, **how): return live.service.bot.answer([text], Decoding(max_new_tok=24, loop_copies=0, **how))[0]


def test_ask_by_enter_and_by_button(open_page, short):
    chat = open_page(short)
    assert '#' not in chat.page.url # the key does not stay in the address
    chat.ask('你好吗？')
    expect(chat.said('user')).to_have_text(['你好吗？'])
    expect(chat.said('bot')).to_have_text([alone(short, '你好吗？')], timeout=30_000)
    expect(chat.entry).to_be_focused()
    expect(chat.entry).to_have_value('')
    chat.entry.fill('<b onmouseover=alert(1)>秋</b>')
    chat.button('发送').click()
    expect(chat.said('user').nth(1)).to_have_text('<b onmouseover=alert(1)>秋</b>')
    expect(chat.said('bot')).to_have_count(2, timeout=30_000)
    assert chat.page.locator('li b').count() == 0
    if shot := os.environ.get('SCCLM_SHOT'): chat.page.screenshot(path=shot)
    chat.button('清空').click()
    expect(chat.page.locator('li')).to_have_count(0)
    assert all(url.startswith(short.url) for url in chat.requests) and chat.complaints == []


def test_streams_stops_and_goes_on(open_page, endless):
    chat = open_page(endless)
    chat.ask('你好')
    expect(chat.page.locator('li.bot')).to_have_attribute('aria-busy', 'true')
    expect(chat.button('发送')).to_be_disabled()
    answer, seen = chat.said('bot').first, []
    while len(seen) < 4: # the bubble grows while we watch
        if (n := len(answer.inner_text())) > 1 and (not seen or n > seen[-1]): seen.append(n)
        chat.page.wait_for_timeout(50)
    chat.button('停止').click()
    expect(answer).to_contain_text('（已停止）')
    expect(chat.status).to_have_text('已停止')
    expect(chat.entry).to_be_focused()
    wait_until(lambda: endless.service.engine.running == 0) # the server stopped writing too
    stopped = answer.inner_text()
    chat.ask('天地玄黄')
    expect(chat.said('bot').nth(1)).to_have_text(re.compile('..'))
    chat.page.keyboard.press('Escape')
    expect(chat.said('bot').nth(1)).to_contain_text('（已停止）')
    assert answer.inner_text() == stopped
    chat.ask('你是谁')
    expect(chat.said('bot').nth(2)).to_have_text(re.compile('..'))
    chat.button('清空').click() # in the middle of an answer
    expect(chat.page.locator('li')).to_have_count(0)
    wait_until(lambda: endless.service.engine.running == 0)
    expect(chat.button('发送')).to_be_enabled()
    chat.page.wait_for_timeout(200)
    expect(chat.page.locator('li')).to_have_count(0)


def test_the_knobs_are_sent(open_page, short):
    chat = open_page(short)
    chat.page.get_by_text('钥匙和解码', exact=True).click()
    temperature = chat.page.get_by_label('温度')
    expect(temperature).to_be_disabled()
    chat.page.get_by_label('怎样选词').select_option(label='抽样：按概率抽')
    temperature.fill('1.2')
    chat.page.get_by_label('top-p').fill('0.9')
    chat.page.get_by_label('种子').fill('7')
    chat.page.get_by_label('最多多少词元').fill('9')
    expect(chat.page.locator('#temperature-now')).to_have_text('1.20')
    with chat.page.expect_request('**/v1/chat/completions') as sent: chat.ask('你好吗？')
    asked = sent.value.post_data_json
    assert dict(temperature=1.2, top_p=.9, seed=7, max_tokens=9).items() <= asked.items(), asked
    how = Decoding(strategy='sampling', temperature=1.2, top_p=.9, seed=7, max_new_tok=9, loop_copies=0)
    expect(chat.said('bot')).to_have_text(short.service.bot.answer(['你好吗？'], how), timeout=30_000)
    chat.page.get_by_label('最多多少词元').fill('99999')
    chat.ask('你好吗？')
    expect(chat.said('error')).to_have_text(['答案最多写 24 个词元，请把“最多多少词元”改小。'])
    expect(chat.entry).to_have_value('你好吗？') # not lost


NUMBERS = [('最多多少词元', '1.5'), ('最多多少词元', '-1'), ('最多多少词元', '0'), ('最多多少词元', '9'*20),
           ('种子', '1.5'), ('种子', '-1'), ('种子', '9'*20)]

def test_numbers_that_are_none_are_explained_before_they_are_sent(open_page, short):
    chat = open_page(short)
    chat.page.get_by_text('钥匙和解码', exact=True).click()
    chat.page.get_by_label('怎样选词').select_option(label='抽样：按概率抽')
    for n, (label, value) in enumerate(NUMBERS):
        chat.page.get_by_label(label).fill(value)
        chat.ask('你好吗？')
        expect(chat.said('error').nth(n)).to_contain_text(f'“{label}”要填')
        expect(chat.entry).to_have_value('你好吗？')
        chat.page.get_by_label(label).fill('')
    chat.page.get_by_label('最多多少词元').press_sequentially('1e') # no number at all, so far
    chat.ask('你好吗？')
    expect(chat.said('error').nth(len(NUMBERS))).to_contain_text('“最多多少词元”要填')
    assert not any('completions' in url for url in chat.requests)


def test_unknown_characters_are_named_as_in_the_other_chats(open_page, short):
    chat, bot = open_page(short), short.service.bot
    told = set()
    notes = [bot.unknown_note(q, told) for q in ('靨😀', '你好', '靨好', '靐是谁？')]
    for n, question in enumerate(('靨😀', '你好', '靨好', '靐是谁？'), 1):
        chat.ask(question)
        expect(chat.said('bot')).to_have_count(n)
        expect(chat.said('bot').nth(n - 1)).to_have_text(alone(short, question), timeout=30_000)
        expect(chat.button('发送')).to_be_enabled()
    expect(chat.said('note')).to_have_text([note for note in notes if note])
    expect(chat.said('bot').first).to_have_text(bot.fallback)
    kinds = chat.page.locator('li').evaluate_all('all => all.map(li => li.className)')
    assert kinds == ['user', 'note', 'bot', 'user', 'bot', 'user', 'bot', 'user', 'note', 'bot']
    chat.button('清空').click()
    chat.ask('靨') # a new talk
    expect(chat.said('note')).to_have_text(['（我不认识这些字：靨。）'])


def test_by_keyboard_alone(open_page, short):
    "Every control is reached by Tab, has a name, and shows where the focus is."
    chat = open_page(short, key=None)
    names, page = [], chat.page
    for _ in range(12):
        page.keyboard.press('Tab')
        here = page.locator(':focus')
        if here.count() == 0: continue
        names.append(here.evaluate("e => e.labels && e.labels.length ? e.labels[0].innerText : e.innerText"))
        assert here.evaluate("e => getComputedStyle(e).outlineStyle") == 'solid', names[-1]
    text = '\n'.join(names)
    for name in ('清空', '钥匙和解码', '钥匙', '怎样选词', '最多多少词元', '问题', '发送'): assert name in text, name
    chat.entry.focus()
    page.keyboard.type('你好')
    page.keyboard.press('Shift+Enter')
    page.keyboard.type('吗')
    expect(chat.entry).to_have_value('你好\n吗')
    page.keyboard.press('Enter')
    expect(chat.said('user')).to_have_text(['你好\n吗'])


def test_a_screen_reader_hears_it(open_page, short):
    chat = open_page(short)
    expect(chat.status).to_have_attribute('aria-live', 'polite')
    chat.ask('天地玄黄')
    expect(chat.status).to_have_text(f"回答：{alone(short, '天地玄黄')}", timeout=30_000)
    tree = chat.page.locator('body').aria_snapshot()
    for line in ('heading "SCCLM 聊天"', 'list "对话"', 'textbox "问题"', 'button "发送"', 'button "停止" [disabled]', '你：'):
        assert line in tree, tree


def test_enter_of_an_input_method_does_not_send(open_page, short):
    chat = open_page(short)
    chat.entry.fill('ni hao')
    chat.entry.evaluate("""e => e.dispatchEvent(new KeyboardEvent('keydown',
        {key: 'Enter', isComposing: true, bubbles: true, cancelable: true}))""")
    chat.page.wait_for_timeout(200)
    expect(chat.entry).to_have_value('ni hao')
    expect(chat.page.locator('li')).to_have_count(0)


def luminance(colour):
    "Relative luminance of `rgb(r, g, b)`, as WCAG defines it."
    parts = [int(x)/255 for x in re.findall(r'\d+', colour)[:3]]
    linear = [x/12.92 if x <= .04045 else ((x + .055)/1.055)**2.4 for x in parts]
    return .2126*linear[0] + .7152*linear[1] + .0722*linear[2]

def contrast(element):
    "Between the letters of an element and the ground they stand on."
    letters, ground = element.evaluate("""e => {
        let g = e;
        while (getComputedStyle(g).backgroundColor === 'rgba(0, 0, 0, 0)') g = g.parentElement;
        return [getComputedStyle(e).color, getComputedStyle(g).backgroundColor]; }""")
    light, dark = sorted((luminance(letters), luminance(ground)), reverse=True)
    return (light + .05)/(dark + .05)

@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_light_and_dark_can_be_read(open_page, short, scheme):
    chat = open_page(short, key='wrong', color_scheme=scheme)
    chat.ask('你好')
    expect(chat.said('error')).to_contain_text('钥匙不对')
    chat.page.get_by_label('钥匙', exact=True).fill(KEY)
    chat.ask('你好')
    expect(chat.said('bot')).to_have_text([alone(short, '你好')], timeout=30_000)
    ground = chat.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(ground) > .5) == (scheme == 'light')
    places = ('h1', '#hint', 'li.user', 'li.bot', 'li.error', '#send', '#clear', 'summary', '#entry', '.knobs label')
    for place in places:
        assert contrast(chat.page.locator(place).first) >= 4.5, place
    if shot := os.environ.get('SCCLM_SHOT'): chat.page.screenshot(path=shot.replace('.png', f'_{scheme}.png'))


def test_errors_are_chinese_and_say_what_to_do(open_page, short):
    chat = open_page(short, key='wrong')
    chat.ask('你好')
    expect(chat.said('error')).to_have_text(['钥匙不对。请打开“钥匙和解码”，填上服务启动时印出的钥匙，再发一次。'])
    expect(chat.entry).to_have_value('你好')
    expect(chat.page.locator('#setup')).to_have_attribute('open', '')
    chat.page.get_by_label('钥匙', exact=True).fill('有汉字的钥匙')
    chat.page.keyboard.press('Tab')
    chat.ask('你好')
    expect(chat.said('error').nth(1)).to_contain_text('钥匙不对')
    chat.page.get_by_label('钥匙', exact=True).fill(KEY)
    chat.ask('好'*500)
    expect(chat.said('error').nth(2)).to_have_text('问题太长：501 个词元，最多 64 个。请删短一些，或分成几句来问。')
    chat.ask('好'*30_000)
    expect(chat.said('error').nth(3)).to_contain_text('问题太长')
    chat.page.context.set_offline(True)
    chat.ask('你好')
    expect(chat.said('error').nth(4)).to_contain_text('连不上服务器')
    chat.page.context.set_offline(False)
    chat.ask('你好')
    expect(chat.said('bot')).to_have_text([alone(short, '你好')], timeout=30_000)


ODD = [('a'*600, '问题太长：601 个词元，最多 64 个。请删短一些，或分成几句来问。'), ('\u2800\u3164', '问题是空的，请写一句话。'),
    ('\u00ad', '问题是空的，请写一句话。'), ('<p></p>', '问题是空的，请写一句话。'), ('\u20dd', '问题是空的，请写一句话。'),
    ('好\ud83d', '问题里有半个字符，请重新输入。'), ('\ude00', '问题里有半个字符，请重新输入。')]

def test_a_question_that_cannot_be_read_is_explained_as_in_the_other_chats(open_page, short):
    "Word by word what `ChatBot` says, without a word of English."
    chat, bot = open_page(short), short.service.bot
    for n, (question, why) in enumerate(ODD):
        put = 'text => { document.getElementById("entry").value = JSON.parse(text) }'
        chat.page.evaluate(put, json.dumps(question)) # half a character as well
        chat.button('发送').click()
        expect(chat.said('error').nth(n)).to_have_text(why, timeout=30_000)
        with pytest.raises(ValueError) as e: bot.encode([question])
        assert bot.excuse(e.value) == why
        chat.entry.fill('')


def test_an_answer_that_breaks_off_says_so(open_page):
    with serving(toy_bot(endless=True), max_new_tok=100_000, answer_s=1.) as live:
        chat = open_page(live)
        chat.ask('你好')
        expect(chat.said('error')).to_contain_text('等得太久', timeout=30_000)
        assert len(chat.said('bot').inner_text()) > 1 # what was said stays


def test_the_key_is_remembered_in_this_tab_only(open_page, short):
    chat = open_page(short)
    chat.page.goto(short.url)
    expect(chat.page.get_by_label('钥匙', exact=True)).to_have_value(KEY)
    other = open_page(short, key=None)
    assert other.page.locator('#key').input_value() == '' and other.page.locator('#setup').get_attribute('open') == ''


def test_the_documentation_page_needs_no_other_host(chrome, short):
    page, urls = chrome.new_page(), []
    page.on('request', lambda r: urls.append(r.url))
    page.goto(f'{short.url}/docs')
    expect(page.get_by_text('/v1/chat/completions')).to_be_visible(timeout=30_000)
    assert all(url.startswith((short.url, 'data:')) for url in urls)
    page.close()
