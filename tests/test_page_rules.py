"The rules for questions in JavaScript: every pattern, table and step gives what Python gives."
import random
import re
import sys
import unicodedata

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from opencc import OpenCC
from browser_toys import open_browser
from page_toys import Scripts
from processes import gone_afterwards
from test_typed_questions import READ

from scclm.chat import check_typed
from scclm.page_rules import char_class, js_pattern, reading_table
from scclm.sample_corpus import fact_rows, heldout_rows, sft_rows, unknown_rows
from scclm.sample_typed import FORMS, typed
from scclm.text_rules import chat_form, clean_texts, rule_parts, simplify


@pytest.fixture(scope='module', autouse=True)
def nothing_stays():
    "The browser ends with this file's tests."
    with gone_afterwards(): yield

@pytest.fixture(scope='module')
def js():
    with open_browser() as browser:
        scripts = Scripts(browser)
        scripts.call('(table) => { globalThis.reader = makeReader(table) }', reading_table())
        yield scripts

def read(js, texts): return js.call('(texts) => texts.map((t) => reader.read(t))', texts)

def same(js, texts, want):
    "The page reads every text as Python does; what differs is shown."
    bad = [(a, b, c) for a, b, c in zip(texts, want, read(js, texts), strict=True) if b != c]
    assert not bad, '\n'.join(map(ascii, bad[:5]))

# ---- questions

def test_the_cases_of_the_course(js):
    same(js, [asked for asked, _ in READ], [want for _, want in READ])

LATELY = [ # a reader without one of the rules reads it otherwise: the text, and what it is read as
    ('<IMG><ol>', '<IMG><ol>'), ('<H2>好</h2>', '<H2>好</h2>'), ('<h1>好</h2>', '<h1>好</h2>'),
    ('<p>新行：<!-- 3月 --></p>', '新行：<!-- 3月 -->'), ('<p>新行<!-- 3月 --></p>', '新行'), ('甲\n <c', '甲\n <c'),
    ('T F （真）', 'T F （真）'), ('# 【甲】', '# 【甲】'), ('+ “好”', '+ “好”'), ('“好” a', '“好” a'),
    ('甲三.乙说', '甲三.乙说'), ('&amp;lt;甲', '&lt;甲'), ('&amp;#39;你', '&#39;你'), ('简称：，又译甲', '简称：，又译甲'),
    ('1、4、7、？', '1、4、7、？'), ('甲！！=乙', '甲！！=乙'), ('甲\n /  |', '甲\n /  |'), (' \\  /', '\\  /'), ('\\《', '\\《'),
    ('”\\', '”\\'), ('a “\n乙', 'a\n乙'), ('- （\n\n甲', '-\n\n甲'), ('“\n”安排“', '“\n”安排“'),
    ('”' + '𠀀'*20 + '“\n甲', '”' + '𠀀'*20 + '“\n甲'), ('”' + '𠀀'*21 + '“\n甲', '”' + '𠀀'*21 + '“\n甲'),
    ('高拱乾是誰', '高拱乾是谁'), ('冬乾說乾燥', '冬干说干燥'), ('飲む後', '飲む後'), ('說この後，說', '說この後，说'), ('回覆說乾', '回复说乾')]

@pytest.mark.parametrize('text, want', LATELY)
def test_each_change_of_the_rules(js, text, want):
    assert chat_form([text]) == [want]
    same(js, [text], [want])

def test_thousands_of_typed_questions(js):
    held = [h['prompt'] for h in heldout_rows()]
    texts = [t for form in FORMS for t in typed(held, form)]
    texts += [r.prompt for r in fact_rows()[::3] + sft_rows()[::2] + unknown_rows()[::2]]
    texts += [r.response for r in sft_rows()[::7]]
    texts += [*map(OpenCC('s2t').convert, texts[::5])]
    texts = list(dict.fromkeys(texts))
    assert len(texts) > 10_000
    same(js, texts, chat_form(texts))

BITS = """浙江 省會 的 乾 乾隆 乾淨 哪裡 靨 <b> </b> <br> </p> <sup>2</sup> <sub> </sub> &nbsp; &lt; &#128; &#x4e2d;
&amp;lt; &bogus; &hellip; &#0; &#55296; <td> </td> ( ) （ ） 《 》 “ ” " " 【 】 「 」 『 』 ‘ ' , . 。 ， ； ; ： : ! ！ ? ？
、 … …… — ～ · - ------------------------- ===== ~~~~~~~~~~~~~~~~~~~~~~~ 1 2 3.14 a Ab C++ :: print( x=1 ` `a` ```
http://a.com/b?c=d https://x.cn 标点 逗号 括号 繁体 简體 100% ５ Ａ ＋ ￥ ① ² 𝟏 约翰.史密斯 一. 十二. 5!种 ：） ；) !important
{"a":1} # $ || && => İ ſ K ٣ é ß 𠀀 👩 🏻 6.5” ，， 。！ ！？ <H1> </h1> <ref> <img/> 乾坤 乾𠀀 瞭解 著名 看著""".split()
BITS += [' ', '  ', '\t', '\n', '\n\n', '\r\n', '\u3000', '\xa0', '\u200b', '\u200d', '\ufeff', '\x01', '\x02', '\x1c']
BITS += ['\x85', '\ud83d', '\ufffd', '\x00', '\x7f', '\u2028', '<p class="a">', '<!-- x -->', 'x = 1', 'def f(']
BITS += ['import os', 'a, b', 'sudo rm -r', 'git commit -m', 'SELECT a FROM b', '>>> ', '\n  a', '\n> b']
BITS += ['What is this?', 'e.g. ']
BITS += """<img> <IMG> <table> </table> <ul> </ol> <h1> </h2> <!--月--> 注释： a: 标签 &amp;lt; &amp;#39; 三. T F * # \\ / |
”安排“ 隐藏层 甲乙丙丁戊己庚辛壬癸 ：， 、？ ！= 淨 燥 冬 高拱 饼 姜 後 この カナ ー 々 ゝ 飲む 說 回覆 𠀀乾""".split()
BITS += ['\n /', ' \\\n', '\n  |', '\n $a', ' “\n', ' （\n', '- 【\n']

def test_odd_texts(js):
    "Joined at random from what the rules look for; Python reads them one at a time, as a chat does."
    rng = random.Random(15)
    texts = [''.join(rng.choices(BITS, k=rng.randint(1, 14))) for _ in range(800)]
    same(js, texts, [chat_form([t])[0] for t in texts])

def test_long_texts(js):
    "Many lines, brackets and quotes at once."
    rng = random.Random(16)
    texts = [''.join(rng.choices(BITS, k=400)) for _ in range(25)] + ['（'*3000, '“a'*900, '('*500 + '好' + ')'*500]
    same(js, texts, [chat_form([t])[0] for t in texts])

def test_without_the_part_for_questions(js):
    texts = [a for a, _ in READ] + [''.join(random.Random(n).choices(BITS, k=9)) for n in range(200)]
    got = js.call('(texts) => texts.map((t) => reader.cleanText(t))', texts)
    assert got == [clean_texts([t])[0] for t in texts]

# ---- tables

def test_traditional_text_becomes_what_opencc_makes_of_it(js):
    "Random traditional characters, and every phrase of its dictionary between two of them; 乾 may be a name's."
    t2s = OpenCC('t2s').convert
    chars = [c for c, _ in reading_table()['simple'] if c <= '\uf8ff']
    phrases = [phrase for phrase, _ in reading_table()['phrases']]
    rng = random.Random(3)
    texts = [''.join(rng.choices(chars + phrases*9, k=12)) for _ in range(1000)] + [f'說{p}嗎' for p in phrases]
    traditional = rule_parts()['traditional']
    want = [t2s(t) if traditional.search(t) else t for t in texts]
    got = js.call('(texts) => texts.map((t) => reader.simplify(t))', texts)
    assert got == [*map(simplify, texts)]
    assert [g for g, t in zip(got, texts) if '乾' not in t] == [w for w, t in zip(want, texts) if '乾' not in t]

ASKED = dict( # JavaScript, and Python's own question about a character
    alnum=str.isalnum, alpha=str.isalpha, digit=str.isdigit, space_start=str.isspace)

@pytest.mark.parametrize('name', ASKED)
def test_kinds_of_characters(js, name):
    "Over every character that Python's Unicode knows; a newer browser may know more."
    known = [c for c in map(chr, range(0x20000)) if unicodedata.category(c) not in ('Cn', 'Cs', 'Co')]
    code = '(name, chars) => chars.filter((c) => new RegExp(reader_table.patterns[name], "u").test(c))'
    js.call('(table) => { globalThis.reader_table = table }', reading_table())
    assert js.call(code, name, known) == [c for c in known if ASKED[name](c)]

def accepted(text):
    try: return bool(check_typed(text))
    except ValueError: return False

@pytest.mark.parametrize('plane', [0, 1, 2, 3, 14, 15, 16])
def test_blank_means_the_same_for_every_character(js, plane):
    "Unassigned ones too, whatever the browser's Unicode calls them."
    chars = [chr(i) for i in range(plane << 16, (plane + 1) << 16, 1 if plane < 2 else 7)]
    blank = js.call('(texts) => texts.map((t) => reader.isBlank(t))', chars)
    assert [c for c, b in zip(chars, blank) if b == accepted(c)] == []

UNREAD = ['<p></p>', '<br>', '<div><span> </span></div>', '&nbsp;', '&#8203;', '&#x2800;', '<b>\u0301</b>', '&shy;<hr>',
    '<p>&nbsp;</p>\n<td></td>', '<sup></sup>', '\u0378', '\ufffe', '\u20dd', '<i>\U0001ffff</i>', '',
    '\u0301 ', ' \ufe0f\u200d']
READABLE = ['？', '好 ', '<p>好</p>', '&lt;p&gt;', '&lt;p&gt;&lt;/p&gt;', '&bogus;', '`<p></p>`', '<x></x>', '<p>',
    '<!-- a -->', '<a onclick="alert(1);"></a>', '<p title="标签"></p>', '<p title="標籤"></p>', '<br>是什么？', '<sup>2</sup>',
    '<img>', '&amp;nbsp;']

@pytest.mark.parametrize('text', UNREAD + READABLE, ids=ascii)
def test_what_reading_leaves_empty_is_blank(js, text):
    assert accepted(text) == (text in READABLE) != js.call('(text) => reader.isBlank(text)', text)

def test_blank_means_the_same_for_tags_and_entities(js):
    rng = random.Random(17)
    unseen = '<p> </p> <br> <b> </b> <td> &nbsp; &#8203; <hr/> &#x2800; \u20dd \u200b \u0378 \ufffe \x01'.split()
    unseen += [' ', '\n']
    bits = [*unseen, *'&lt; &gt; &bogus; <p_class="a"> <img> <!--a--> 标签 ` 好 ？ < & ;'.replace('_', ' ').split(' ')]
    texts = [''.join(rng.choices(unseen if n % 2 else bits, k=rng.randint(1, 6))) for n in range(2000)]
    blank = js.call('(texts) => texts.map((t) => reader.isBlank(t))', texts)
    assert [t for t, b in zip(texts, blank) if b == accepted(t)] == [] and 100 < sum(blank) < 1900

def test_numbers_that_are_no_characters_of_their_own(js):
    numbers = [*range(0, 300, 7), 128, 150, 159, 0xd800, 0xdfff, 0xfdd0, 0xfffe, 0xffff, 0x1ffff, 0x4e2d, 999_999]
    texts = [f'甲&#{n};乙' for n in numbers] + [f'甲&#x{n:x};乙' for n in numbers if n < 0x100000]
    same(js, texts, [chat_form([t])[0] for t in texts])

# ---- the translator

PATTERNS = [
    r'\w+', r'\d', r'\s', r'\W', r'[^\W汉]', r'[\W汉]', r'[\w-]', r'[\w./-]+', r'[-+]', r'[+-]', r'[]a]', r'[^]a]',
    r'[a[]', r'\bcat\b', r'^a', r'a$', r'(?m:^a$)', r'(?i:[a-c]x)', r'(?i:straſse)', r'(?i:[^a-c])', r'a.b',
    r'(?s:a.b)', r'\Aa|b\Z', r'(?<=a)b', r'(?<!a)b', r'a(?=b)', r'a(?!b)', r'(a)\1', r'a{2,3}', r'a{2}', r'a{b}',
    r'{a}', r'\"\<\-\,', r'\x41', r'\.', '\x01', '\u2028', r'[\x41-\x43]', r'[\d汉]', r'\D', r'\S+',
    r'(?:a|(?i:B)c)+', r'a*?b', r'/', r'a]b', r'[/]', r'\x2ea']
FLAGS = [0, re.I, re.M, re.S, re.A, re.I | re.M]
SAMPLES = [
    '', 'a', 'b', 'aa', 'ab', 'aab', 'b\n', 'a\n', 'x\na\ny', 'cat', '一只cat。', 'Cat', 'bat', 'a\nb', 'a{b}', '{a}',
    '"<-,', 'A', 'ABC', '汉字', '汉1', '٣', 'é', '_', '-', 'a-b', '[', ']', 'a]b', 'STRASSE', 'straſse', 'K', 'İ',
    '\x01', '\u2028', '\x1c', '\ufeff', '\x85', ' ', '\t', 'aaa', 'Bc', 'bc', 'ax', 'CX', 'ſ', '𝟏', '/', 'a/b', '\r',
    'x\ra', '.a']

@pytest.mark.parametrize('flags', FLAGS)
def test_translated_patterns_find_the_same(js, flags):
    code = """(patterns, texts) => patterns.map((p) => texts.map((t) =>
        [...t.matchAll(new RegExp(p, "gu"))].map((m) => [...t.slice(0, m.index)].length + ":" + m[0])))"""
    patterns = [p for p in PATTERNS if r'\1' not in p or not flags & re.I]
    got = js.call(code, [js_pattern(p, flags) for p in patterns], SAMPLES)
    for pattern, found in zip(patterns, got):
        want = [[f'{m.start()}:{m[0]}' for m in re.finditer(pattern, t, flags)] for t in SAMPLES]
        assert found == want, pattern

def test_patterns_of_re2_find_the_same(js):
    patterns = [r'\w', r'\bcat\b', r'\d', r'(?m:^a$)', r'a$', r'(?i:k)', r'(?i:[a-s])', r'\s', r'[^\w]', r'\Aa']
    texts = [t for t in SAMPLES if t]
    code = '(patterns, texts) => patterns.map((p) => texts.map((t) => new RegExp(p, "u").test(t)))'
    got = js.call(code, [js_pattern(p, re2=True) for p in patterns], texts)
    for pattern, found in zip(patterns, got):
        assert found == pc.match_substring_regex(pa.array(texts), pattern).to_pylist(), pattern

ODD = [r'(?P<n>a)', r'(?#no)', r'(?>a)', r'\N{DOT}', r'[\ba]', r'(?i)a', r'\pL', r'\Bat', r'(a)(?(1)b)', r'(?i:(a)\1)']

@pytest.mark.parametrize('pattern', ODD)
def test_what_it_does_not_know_is_an_error(pattern):
    with pytest.raises(ValueError, match='is not known: expected'): js_pattern(pattern)

def test_ranges_of_characters():
    for seed in range(20):
        codes = set(random.Random(seed).choices(range(32, 400), k=60))
        again = re.compile('[' + re.sub(r'\\u\{(\w+)\}', lambda m: rf'\U{m[1]:0>8}', char_class(codes)) + ']')
        assert {i for i in range(sys.maxunicode >> 8) if again.match(chr(i))} == codes
    assert char_class([]) == ''
