"""Form may change, facts may not: every text rule and the whole chain on random text, against benchmarks/facts.py,
an independent checker that shares no code with the rules. The same checker runs on real texts by hand."""
import random

import pytest
from trainer_toys import load_benchmark

from scclm import text_rules

facts = load_benchmark('facts')

PIECES = dict(
    han=['甲', '乙丙', '春天来了', '张三', '一', '二十', '第三章', '约翰', '史密斯', '符号', '的', '元'],
    traditional=['漢語', '電腦', '乾隆皇帝', '頭髮', '皇后', '後天', '軟體', '臺灣', '-{zh-hans:软件;zh-hant:軟體}-', '-{係}-',
                 '-{zh-tw:資訊;zh-hk:資訊}-', '-{H|zh-cn:网络;zh-tw:網路}-', '（，', '（）'],
    backslash=['\\n', '\\n\\n', '\\', '\\r\\n', '\\neq', '\\nabla', 'C:\\new', '\\t', '"\\n"', '[^\\n]', '好\\n- '],
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
        texts = text_rules.on_joined(text_rules.strip_invisible, texts) # the first rule; the others rely on it
    changed = [(before, after) for before, after in zip(texts, rule(texts)) if before != after]
    assert len(changed) > 50, 'too few to tell anything'
    for before, after in changed:
        why = judge(before, after)
        assert not why, (seed, name, why, before, after)

@pytest.mark.parametrize('seed', SEEDS)
def test_cleaning_again_changes_nothing(seed):
    texts = random_texts(seed + 100)
    once = text_rules.clean_texts(texts)
    for raw, first, second in zip(texts, once, text_rules.clean_texts(once)):
        assert first == second, (seed, raw, first, second)

@pytest.mark.parametrize('seed', SEEDS)
def test_any_row_position_gives_the_same(seed):
    texts = random_texts(seed + 200, 500)
    alone = [text_rules.clean_texts([t])[0] for t in texts]
    assert text_rules.clean_texts(texts) == alone, seed
    assert text_rules.clean_texts(texts[::-1]) == alone[::-1], seed

WRONG = [
    # atoms, gaps and tags
    ('1）10毫升', '110毫升', 'clean_texts'), ('3×10<sup>8</sup>', '3×108', 'clean_texts'),
    ('x<sup>2</sup>3', 'x^23', 'strip_html'),
    ('<td>2019</td><td>300</td>', '2019300', 'clean_texts'), ('a<b>c', 'ac', 'clean_texts'), ('a<b', 'a', 'strip_html'),
    ('<p>甲</p><p>乙</p>', '甲 乙', 'strip_html'), ('羅馬（）教廷', '羅馬教廷', 'clean_texts'),
    ('标签 &lt;p&gt;', '标签', 'clean_texts'), ('&amp;lt;甲', '甲', 'clean_texts'),
    ('张三\t李四', '张三李四', 'tidy_spaces'), ('甲\x0b乙', '甲乙', 'strip_invisible'), ('10毫升', '1 0毫升', 'tidy_spaces'),
    ('甲\n乙', '甲 乙', 'tidy_spaces'), ('5毫升', '毫升', 'tidy_spaces'), ('甲乙', '乙甲', 'chinese_punct'),
    # signs
    ('a/b', 'ab', 'half_width'), ('，~/home', '/home', 'collapse_runs'),
    ('i++', 'i+', 'clean_texts'), ('x==y', 'x=y', 'clean_texts'),
    ('**a**', '*a*', 'clean_texts'), ('a--b', 'a-b', 'clean_texts'), ('....', '...', 'clean_texts'),
    ('a\\b', 'a b', 'clean_texts'),
    ('a_b', 'a b', 'clean_texts'), ('甲{}', '甲', 'clean_texts'), ('评分*****，', '评分***，', 'collapse_runs'),
    # marks
    ('3.5克', '3，5克', 'clean_texts'), ('3.5', '3。5', 'clean_texts'), ('1:30', '1.30', 'clean_texts'),
    ('甲，乙', '甲乙', 'clean_texts'),
    ('甲，乙', '甲 乙', 'clean_texts'), ('甲！乙', '甲。乙', 'clean_texts'), ('std：：cout', 'std：cout', 'collapse_runs'),
    ('5!!=x', '5!=x', 'clean_texts'), ('1, 500', '1,500', 'tidy_spaces'), ('、和，的区别', '和，的区别', 'clean_texts'),
    ('标点有，。！？', '标点有！', 'clean_texts'),
    # brackets
    ('f(x)', 'f x', 'clean_texts'), ('[1,2)', '1,2', 'clean_texts'), ('6.5”', '6.5', 'clean_texts'),
    ('选D）', '选D', 'clean_texts'),
    ('（甲）乙', '甲乙', 'clean_texts'), ('《甲》', '甲', 'clean_texts'), ('“甲”、“乙”', '“甲，“乙”', 'clean_texts'),
    ('难过：（', '难过：', 'clean_texts')]
RIGHT = [
    ('１０毫升', '10毫升', 'half_width'), ('甲\u200b乙', '甲乙', 'strip_invisible'), ('<b>甲</b>乙', '甲乙', 'strip_html'),
    ('&#20013;国', '中国', 'strip_html'), ('H<sub>2</sub>O', 'H_2O', 'strip_html'),
    ('x<sup>2</sup>3', 'x^{2}3', 'strip_html'),
    ('好' + '-'*30, '好---', 'collapse_runs'), ('羅馬（）教廷', '羅馬教廷', 'wiki_brackets'), ('甲,乙', '甲，乙', 'chinese_punct'),
    ('好，。对', '好。对', 'collapse_runs'), ('，好', '好', 'collapse_runs'), ('好。（，乙', '好。乙', 'fix_brackets'),
    ('他说"好"', '他说“好”', 'chinese_punct'), ('<p>甲</p><p>乙</p>', '甲\n乙', 'clean_texts'),
    ('甲\\n乙', '甲\n乙', 'literal_newlines')]

@pytest.mark.parametrize('before, after, rule', WRONG)
def test_the_checker_objects(before, after, rule):
    assert facts.violation(before, after, rule)

@pytest.mark.parametrize('before, after, rule', RIGHT)
def test_the_checker_lets_form_change(before, after, rule):
    assert not facts.violation(before, after, rule)

def test_the_other_checkers_object():
    assert facts.cut_violation('π=3.14', 'π=3.') and facts.cut_violation('一句。两句。', '')
    assert facts.cut_violation('一句。两句。三', '一句。')
    assert not facts.cut_violation('一句。两句。三', '一句。两句。') and not facts.cut_violation('字'*600, '')
    for text, form in (('3~5克', '35克'), ('-5', '5'), ('5', '-5'), ('1.5', '1,5'), ('1-1', '1+1')):
        assert facts.number_violation(text, form), text
    assert not facts.number_violation('共-５，', '共-5') and not facts.number_violation('1、2', '1,2')
    variants = '-{zh-tw:資訊;zh-hans:信息}-甲'
    assert facts.variants_violation(variants, '資訊甲') and not facts.variants_violation(variants, '信息甲')
