"""Form may change, facts may not: every text rule and the whole chain on random text, against benchmarks/facts.py,
an independent checker that shares no code with the rules. The same checker runs on real texts by hand."""
import random

import pytest
from trainer_toys import load_benchmark

from scclm import data_cleaning as dc

facts = load_benchmark('facts')

PIECES = dict(
    han=['甲', '乙丙', '春天来了', '张三', '一', '二十', '第三章', '约翰', '史密斯', '符号', '的', '元'],
    latin=['a', 'b', 'x', 'Ab', 'WHO', 'for', 'print', 'if', 'html', 'p', 'Ｔ', 'ｘ', 'é', 'wq'],
    number=['1', '23', '3.14', '10:30', '1,000', '５', '２．５', '-5', '1/2', '2^10', '5!', '①', '²', '十', '138****5678'],
    operator=['+', '-', '*', '/', '=', '<', '>', '×', '÷', '±', '~', '～', '^', '%', '≤', '≥', '≠', '≈', '＝', '－',
              '！=', '!=', '==',
              '*****', '-----', '=====', '~~', '……………', '.....', '____'],
    mark=['，', '。', '！', '？', '；', '：', '、', '…', ',', ';', ':', '!', '?', '.', '。。', '，，', '？！', '!!!', ',,',
          '?!', '，。', '·', '—'],
    bracket=['（', '）', '“', '”', '《', '》', '【', '】', '(', ')', '[', ']', '"', "'", '「', '」', '（）', '()', '“”',
             '《》', '（，', '、）', '{', '}'],
    listed=['1）', 'a）', '①）', '1) ', '(1)', '（2,3]', '[0,1）', '6.5”', 'D） ', '：）', '；）', '：（', '1. ', '一.', '\n- ',
            '\n  - '],
    space=[' ', '  ', '\t', '\n', '\n\n', '\n \n', '\u3000', '\xa0', '\r\n', '\r', '\x0b', '\x0c', '\u2028',
           '\u2029', '\x85', '\n    ',
           '\n\t', '\x1e', '\u2003', '\x01'],
    invisible=['\u200b', '\xad', '\ufeff', '\u200d', '\x00', '\x07', '\u202e', '\ud83d'],
    tag=['<b>', '</b>', '<p>', '</p>', '<br>', '<br/>', '<td>', '</td>', '<sup>', '</sup>', '<sub>', '</sub>',
         '<span class="a">', '</span>',
         '<a href="x">', '</a>', '<!-- 注1 -->', '<li>', '</li>', '<T5>', '<hr>', '<B>', '</B>',
         '<div style="x:1;">', '</div>'],
    entity=['&nbsp;', '&amp;', '&lt;', '&gt;', '&#20013;', '&quot;', '&times;', '&foo;', '&#8203;', '&', '&#0;',
            '&frac12;'],
    code=['`a,b`', '`x`', '`', '```', 'http://a.cn/x?y=1,2', 'https://b.cn/路', '=IF(A1>6,"甲","乙")', 'for(;;)',
          'x = 1', '-{甲}-', '~/home'])
RULES = facts.rules_to_check()
SEEDS = range(12)

def random_text(rng:random.Random)->str:
    "A few dozen pieces of a few kinds."
    kinds = rng.sample(list(PIECES), rng.randrange(2, 7))
    return ''.join(rng.choice(PIECES[rng.choice(kinds)]) for _ in range(rng.randrange(1, 25)))

def random_texts(seed:int, n:int=2000)->list[str]:
    "Many of them."
    rng = random.Random(seed)
    return [random_text(rng) for _ in range(n)]

@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('name', RULES)
def test_no_fact_changes(name, seed):
    rule, judge = RULES[name]
    texts = [t.replace('\x01', '') for t in random_texts(seed)] # stands between rows
    if name != 'strip_invisible' and name not in ('clean_texts', 'normal_form', 'literal_newlines'):
        texts = dc.on_joined(dc.strip_invisible, texts) # the first rule; the others rely on it
    for before, after in zip(texts, rule(texts)):
        why = judge(before, after)
        assert not why, (seed, name, why, before, after)

@pytest.mark.parametrize('seed', SEEDS)
def test_cleaning_again_changes_nothing(seed):
    texts = random_texts(seed + 100)
    once = dc.clean_texts(texts)
    for raw, first, second in zip(texts, once, dc.clean_texts(once)):
        assert first == second or facts.is_escaped(raw), (seed, raw, first, second)

@pytest.mark.parametrize('seed', SEEDS)
def test_any_row_position_gives_the_same(seed):
    texts = random_texts(seed + 200, 500)
    alone = [dc.clean_texts([t])[0] for t in texts]
    assert dc.clean_texts(texts) == alone, seed
    assert dc.clean_texts(texts[::-1]) == alone[::-1], seed

def test_the_checker_sees_what_the_old_rules_did():
    "What was wrong before, one of each kind: the checker must object."
    wrong = [('1）10毫升', '110毫升', 'clean_texts'), ('3×10<sup>8</sup>', '3×108', 'clean_texts'),
             ('<td>2019</td><td>300</td>', '2019300', 'clean_texts'), ('a<b>c', 'ac', 'clean_texts'),
             ('张三\t李四', '张三李四', 'tidy_spaces'), ('甲\x0b乙', '甲乙', 'strip_invisible'),
             ('，~/home', '/home', 'collapse_runs'), ('10毫升', '1 0毫升', 'tidy_spaces'), ('5毫升', '毫升', 'tidy_spaces'),
             ('甲乙', '乙甲', 'chinese_punct'), ('a/b', 'ab', 'half_width'), ('羅馬（）教廷', '羅馬教廷', 'clean_texts'),
             ('标签 &lt;p&gt;', '标签', 'clean_texts'), ('&amp;lt;甲', '甲', 'clean_texts'), ('a<b', 'a', 'strip_html')]
    for before, after, rule in wrong: assert facts.violation(before, after, rule), (before, after)
    right = [('１０毫升', '10毫升', 'half_width'), ('甲\u200b乙', '甲乙', 'strip_invisible'), ('<b>甲</b>乙', '甲乙', 'strip_html'),
             ('&#20013;国', '中国', 'strip_html'), ('H<sub>2</sub>O', 'H_2O', 'strip_html'), ('好-----', '好---',
             'collapse_runs'),
             ('羅馬（）教廷', '羅馬教廷', 'wiki_brackets'), ('甲,乙', '甲，乙', 'chinese_punct')]
    for before, after, rule in right: assert not facts.violation(before, after, rule), (before, after)
    assert facts.cut_violation('π=3.14', 'π=3.') and facts.number_violation('3~5克', '35克')
