"The rule chain against the same chain written from what the rules say, slow and obvious (benchmarks/slow_rules.py)."
import random
import subprocess
import sys

import pytest
from trainer_toys import load_benchmark

from scclm.readers import read_file
from scclm.sample_corpus import make_sample_corpus
from scclm.sources import CleanCfg, find_sources

slow_rules = load_benchmark('slow_rules')
LIMIT = CleanCfg().max_prompt


def compare(pairs:list[tuple[str, str]]):
    "Every row the same."
    prompts, responses = map(list, zip(*pairs))
    for k, slow, fast in slow_rules.differences(prompts, responses): assert fast == slow, pairs[k]


def test_the_sample(tmp_path):
    "Rows of every source, dirt included."
    make_sample_corpus(tmp_path)
    pairs = []
    for source in find_sources(tmp_path)[0]:
        rows = [r.record for r in read_file(source) if r.record]
        texts = [[str(v) for v in record.values()] for record in rows[-60:] + rows[::150]]
        pairs += [(t[0], t[-1]) for t in texts if t]
    assert len(pairs) > 500
    compare(pairs)


PIECES = ['中', '文字', '北京。', '，', '。', '！', '？', '：', '；', '、', '（', '）', '《', '》', '“', '”', '【', '】', '…',
          '—', '·', '~', ',', '.', '!', '?', ':', ';', '(', ')', '[', ']', '"', "'", ' ', '  ', '\n',
          '\n\n', '\t', '\u3000', '\xa0', 'a', 'Ab', 'x1', '1', '3.14', '５', 'Ａ', '「', '」', '\u200b',
          '\r\n', '\r', '\x1c', '\u200d', '😀', '\ufeff', '<br>', '<p>', '</p>', '<b class="x">', '</b>',
          '<sup>2</sup>', '<sub>', '</sub>', '<!-- x -->', '<td>', '</td>', '<', '>', '&nbsp;', '&lt;',
          '&#39;', '&amp', '&', '`x=1`', '`', 'https://a.cn/b?c=1', 'http://', '\\', '/', '=', '-', '--',
          '*', '_', '#', '一.', '十', '约翰', '.史密斯', '……', '。。', '----------------------', '标点', '逗号', '是什么',
          'print(', 'x = 1', 'def f(', '锟斤拷', '\ufffd', '{', '}', '|', '+', '@', '$', '%', '^', '乾', '：）',
          '!important', '::', '\x04', '\x02', '\x03', '\x01']


@pytest.mark.parametrize('seed', range(4))
def test_anything(seed):
    "Rows put together from what the rules look at."
    rng = random.Random(seed)
    def text()->str: return ''.join(rng.choices(PIECES, k=rng.choice((3, 8, 20, 60))))
    compare([(text(), text()) for _ in range(400)])


RUNS = [',', ';', '?', '!', ':', '好', 'a', '&#39;', '&lt;', '“', '”', ' ', '?b=']


@pytest.mark.parametrize('seed', range(4))
def test_runs_of_marks(seed):
    "Few pieces, so that the same mark stands beside itself and beside what changes its meaning."
    rng = random.Random(f'runs:{seed}')
    def text()->str: return ''.join(rng.choices(rng.sample(RUNS, 4), k=rng.randint(1, 9)))
    compare([(text(), text()) for _ in range(600)])


MANY = [',', ';', '?', '!', ':', '.', '"', "'", '(', ')', '<!--', '-->', '<', '<b>', '&#39;', '&', '`', '-', '，', '。',
        ' ', '\n', '1', 'a', '好', 'http://', '“', '《', '|', '*', '\\']


def test_a_long_run_of_anything_comes_to_an_end():
    "Sixty thousand characters, the most that a request may have: where time grows with their square, it takes minutes."
    code = 'import sys; from scclm.text_rules import chat_form, clean_texts; text = sys.stdin.read(); ' \
           'pieces = text.split(chr(0)); chat_form(pieces); clean_texts(pieces)'
    text = '\0'.join(piece * (60_000 // len(piece)) for piece in MANY)
    subprocess.run([sys.executable, '-c', code], input=text, text=True, check=True, timeout=100)


@pytest.mark.parametrize('n', [LIMIT - 1, LIMIT, LIMIT + 1, 127, 128, 129])
def test_lengths(n):
    "At the edges of what fits and of what counts as long."
    texts = ['字'*n, '字'*(n - 1) + '。', '句子。'*(n//3) + '半'*(n % 3), 'a'*n, '字'*(n - 2) + '！”', '一行\n' + '字'*(n - 3)]
    compare([('问', t) for t in texts] + [(t, '答。') for t in texts])
