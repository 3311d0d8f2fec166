"""Chapter 00 against independent truths: hand-written rows, brute force, other orders of work, rubbish and kills."""
import csv
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_toys import json_line, put_lines, run

from scclm import duplicates, text_rules
from scclm.readers import _cut, read_list
from scclm.runs import scale_name
from scclm.sample_corpus import make_sample_corpus
from scclm.sources import merge_title
from scclm.splits import SPLITS

HAN = [chr(c) for c in range(0x4E00, 0x4E00 + 3000)]

def sentence(rng:random.Random, n:int)->str:
    "So many Chinese characters and a full stop."
    return ''.join(rng.choices(HAN, k=n)) + '。'

def pair(prompt:str, response:str)->dict:
    "A record of the `pair` source."
    return dict(prompt=prompt, response=response)

def task(instruction:str, output:str, input:str='')->dict:
    "A record of the `belle` source."
    return dict(instruction=instruction, input=input, output=output)

def frame(runs:Path, name:str)->pd.DataFrame:
    "One parquet file of the output."
    return pd.read_parquet(runs/f'{name}.parquet')

def pretrain(runs:Path)->pd.DataFrame:
    "Every pretraining row of the output."
    return pd.concat([frame(runs, s) for s in ('train', 'test', 'valid')])

def rows_of(table:pd.DataFrame)->Iterator[tuple[str, str]]:
    "Prompt and response of every row."
    return map(tuple, table[['prompt', 'response']].values)

def digest(folder:Path)->dict[str, str]:
    "File name -> SHA-256."
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}

# Rules: hand-written truth

@pytest.mark.parametrize('rule, raw, want', [
    ('strip_invisible', 'a\r\nb\rc\u200b\x07\ud83d', 'a\nb\nc'),
    ('strip_html', '<div class="x">甲</div>乙<br/>丙&lt;丁&#20013;', '\n甲\n乙\n丙<丁中'),
    ('strip_html', '若 a<b 且 b>c，List<int> 不变', '若 a<b 且 b>c，List<int> 不变'),
    ('strip_html', '<b><IMG src="a.png" /></b>', '<b><IMG src="a.png" /></b>'), # the picture is all there is
    ('strip_html', '<table> </table>', '<table> </table>'), ('strip_html', '<p> </p><br>', '\n'),
    ('strip_html', '补上：<!-- 3月10日 --><b>甲</b><!-- 注 -->', '补上：<!-- 3月10日 -->甲'), # after a colon
    ('strip_html', '<p><img src="a.png">图</p>', '\n图\n'),
    ('half_width', '２０２４年ＡＢｃ％', '2024年ABc%'),
    ('chinese_punct', '是吗?是的!对;好:行,', '是吗？是的！对；好：行，'),
    ('chinese_punct', 'It is 3.14, see class s: ok?', 'It is 3.14, see class s: ok?'),
    ('chinese_punct', '价格1,000元，版本2.0.1，时间12:30', '价格1,000元，版本2.0.1，时间12:30'),
    ('chinese_punct', '访问https://a.cn/x?y=1;z=2', '访问https://a.cn/x?y=1;z=2'),
    ('chinese_punct', '他说"你好".', '他说“你好”。'),
    ('chinese_punct', '鲁迅(周树人)写的', '鲁迅（周树人）写的'),
    ('collapse_runs', '好。。。。真的！！！吗？？', '好。真的！吗？'),
    ('chinese_punct', '&#39;你好&#39;;世界，&lt;中;文', '&#39;你好&#39;；世界，&lt;中；文'),
    ('collapse_runs', '好，。对。，错', '好。对。错'),
    ('collapse_runs', '国语：，英文简称：；又译甲：。乙：，，丙', '国语：，英文简称：；又译甲。乙：，丙'), # empty fields
    ('collapse_runs', '==（等于）、！=（不等于）', '==（等于）、！=（不等于）'),
    ('collapse_runs', '模式：1、4、7、？怎么治、？', '模式：1、4、7、？怎么治？'), # the next number
    ('chinese_punct', '分为:一.甲肝的治疗二. 乙肝的治疗三.丙肝.', '分为：一.甲肝的治疗二. 乙肝的治疗三.丙肝。'),
    ('tidy_spaces', '中 文  and   English 混 排', '中 文 and English 混 排'),
    ('tidy_spaces', '甲\n 乙\n （丙）\n x = 1', '甲\n乙\n（丙）\n x = 1'),
    ('hug_marks', '你好 ， “世界” 。张三 李四', '你好，“世界”。张三 李四'),
    ('hug_marks', '- “甲” 乙\n1. 《丙》 ，丁\n## 【戊】', '- “甲”乙\n1. 《丙》，丁\n## 【戊】'), # lists and headings
    ('hug_marks', '“Self” and “other” ，两个 “字” 的', '“Self” and “other”，两个“字”的'),
    ('hug_marks', 'A B C （A ∨ B ） → C，人工智能 （AI） 好', 'A B C （A ∨ B）→ C，人工智能（AI）好'), # columns
    ('wiki_brackets', '甲（）乙（，1900年）丙《》', '甲乙（1900年）丙'),
    ('fix_brackets', '“没有闭合，（也没有', '没有闭合，也没有'),
    ('fix_brackets', '（甲“乙”丙）', '（甲“乙”丙）'),
    ('fix_brackets', '形如\\（？0\\d{4}？）\\s', '形如\\（？0\\d{4}？）\\s'), # a pattern
    ('fix_brackets', '“甲”和”乙“，每层”丙“，也就是', '“甲”和”乙“，每层”丙“，也就是'),
    ('wiki_variants', '-{zh-hans:软件;zh-hant:軟體}-与-{内存}-', '软件与内存'),
    ('simplify', '臺灣的軟體與頭髮', '台湾的软体与头发'),
    ('simplify', '高拱乾的臺灣府志，乾化二年，乾燥，魚乾', '高拱乾的台湾府志，乾化二年，干燥，鱼干'),
    ('simplify', '請翻譯：この後、私の決定。', '请翻译：この後、私の決定。')])
def test_rule(rule, raw, want):
    fn = getattr(text_rules, rule)
    assert fn(raw) == want
    if rule != 'collapse_runs': # joined or alone, the same
        assert text_rules.on_joined(fn, ['前。', raw, '后。']) == ['前。', want, '后。']

KEPT_FACTS = [
    # unpaired closing marks: list numbers, options, inches, intervals, faces
    '1）10毫升口服；2）5毫克', 'a）口服 b）静滴', '①）甲；②）乙', '（一）甲 二）乙', '选D）', '屏幕6.5”，很亮', '6.5”', '在（2,3]内', '[0,1）',
    '好开心：）', '难过：（', '；）', '区间(2,3]和[0,1)', '他说“好（真的', '函数f（）', '[]', '数组[]和()', '空集{}',
    # what looks like a tag
    'a<b>c', 'x<y且y>z', '若a<b，c>d', 'List<int>', '标签 <p> 表示段落', '用<b>和</b>标签加粗', '<T5>模型', 'i<3 爱你',
    # code without a fence
    'for i in range(3):\n    print(i)', 'if x > 0:\n    y = "正,数"\nelse:\n    y = 0', '=IF(A1>60,"及格","不及格")',
    '=SUM(A1:A3)', 'git commit -m "修改:首页"', 'for(;;)', 'server:\n  port: 80\n  name: "中,文"',
    'int main() {\n    printf("你好,世界");\n}', 'SELECT 姓名,年龄 FROM 学生 WHERE 年龄>18;', 'ls -la "我的,文档"',
    '$ pip install scclm',
    '{"名":"张三","岁":3}', 'x = [1,二,3]', '- 水果\n    - 苹果\n    - 梨', '1. 甲\n   - 乙', '`print("你好,世界")`',
    # separators, lines, verse
    '张三 李四', '春眠不觉晓\n处处闻啼鸟\n\n夜来风雨声', '床前明月光\n    疑是地上霜', '第一段\n\n第二段', '~/home', '：wq 保存退出',
    # numbers, signs, names
    '3~5克', '10:30', '1,000元', '-5度', '5!种排法', 'a != b', '138****5678', '约翰.史密斯', '2^10', '±0.5', '50%~60%',
    'https://a.cn/中?x=1,2',
    # signs that count: stars, Morse code, factorials, C++
    '五星：***** 四星：****', '评分*****，满分', '0是-----，5是.....', 'H的摩尔斯电码是....', 'A是.-，B是-...', 'std：：cout', 'std::字符串',
    'a~~b', '密码是******', '~~删除~~', '2·····3', '求5!!的值', 'OK!!!好',
    # punctuation is what the text is about
    '、和，的区别是什么？', '！和？有什么不同', '，。！？分别是什么', '标点有，。！？', '标点有,.!?', '常用标点：，。？！、；：', '；与：的区别', ',和.的区别',
    '。表示什么', '？！连用对吗', '）和】的区别', '中文逗号是，还是、？', '《》是什么', '修改标点:我喜欢苹果,香蕉', '「」和“”都是引号',
    '常用的有，。！？',
    # code in other languages
    'raise ValueError("错误!")', 'puts "你好, #{name}"', 'MsgBox "你好,世界"', '$a="中,文";', 'println!("你,好")', '@n = "中,文"',
    '$a["键"] = "中,文"',
    # a drawing
    '8\n       /  \\\n      1    10\n     / \\     \\\n    3   6    20', '甲\n /\\\n1  2', '---\n  |     |\n  O     |',
    # brackets that cross
    '【甲《乙】，》丙']

@pytest.mark.parametrize('text', KEPT_FACTS)
def test_what_means_something_stays(text):
    assert text_rules.clean_texts([text]) == [text]

@pytest.mark.parametrize('raw, want', [
    ('D） 40', 'D）40'), ('3×10<sup>8</sup>', '3×10^8'), ('H<sub>2</sub>O', 'H_2O'),
    ('10<sup>-3</sup>mol', '10^{-3}mol'),
    ('x<sup>2</sup>3', 'x^{2}3'), ('C<sub>12</sub>H<sub>22</sub>O<sub>11</sub>', 'C_{12}H_{22}O_11'),
    ('<td>2019</td><td>300</td>', '2019 300'), ('<li>甲</li><li>乙</li>', '甲\n乙'), ('<p>甲</p><p>乙</p>', '甲\n乙'),
    ('<table><tr><td>甲</td><td>1</td></tr><tr><td>乙</td><td>2</td></tr></table>', '甲 1\n乙 2'), ('甲<hr>乙', '甲\n乙'),
    ('标签 &lt;p&gt; 表示段落', '标签 <p> 表示段落'), ('&amp;lt;', '&lt;'), ('a&lt;b&gt;c', 'a<b>c'),
    ('R&amp;D&nbsp;部', 'R&D 部'), ('&foo;', '&foo;'),
    ('甲<!-- 注 -->乙', '甲乙'), ('<a href="x">甲</a>', '甲'), ('张三\t李四', '张三 李四'), ('张三\u3000李四', '张三 李四'),
    ('张三\u2003李四', '张三 李四'),
    ('张三   李四', '张三 李四'), ('张三\x1f李四', '张三 李四'), ('，~/home', '~/home'), ('甲\x0b乙\x0c丙', '甲\n乙\n丙'), ('\u2028甲', '甲'),
    ('甲\u2028乙\u2029丙\x85丁', '甲\n乙\n丙\n丁'), ('甲\n\n\n \n乙', '甲\n\n乙'), ('甲\xad乙', '甲乙'), ('\ufeff甲\u200b乙', '甲乙'),
    ('用`a,b`打印,好吗?', '用`a,b`打印，好吗？'), ('见https://a.cn/x,谢谢!', '见https://a.cn/x，谢谢！'), ('１０～２０', '10～20'),
    ('真的!!!好吗???', '真的！好吗？'), ('他说"你好,世界".', '他说“你好，世界”。'), ('“今天很好。”他说。”', '“今天很好。”他说。'),
    ('来源：<a href="http://a.com" target="_blank">百科</a>5', '来源：百科5'), ('<img src="http://a.com/x.jpg">图', '图'),
    ('<p>http://a.com</p><p>2</p>', 'http://a.com\n2'), ('<p>官网http://a.com</p><p>电话2</p>', '官网http://a.com\n电话2'),
    ('<br>http://a.com<br>2', 'http://a.com\n2'), ('http://x.com&nbsp;后文', 'http://x.com 后文'),
    ('http://a.cn/?x=1&amp;y=2,好', 'http://a.cn/?x=1&y=2，好'), ('http://a.cn/ｘ!!!好', 'http://a.cn/x!!!好'),
    ('标点<b>有</b>Ａ,。', '标点有A,。'), ('鼠标点击,包括号召', '鼠标点击，包括号召'),
    ('“与我们一起,露营”', '“与我们一起，露营”'), ('，与走路,没有关系', '与走路，没有关系'),
    ('gyao!(日本)', 'gyao!（日本）'), ('甲' + '.'*30 + '乙', '甲...乙'), ('好……………吗', '好……吗'),
    ('好的。谢谢.', '好的。谢谢。'), ('- （\n好', '-\n好'), ('需要“安慰”或”理解“时', '需要“安慰”或”理解“时')])
def test_form_changes_and_the_fact_stays(raw, want):
    assert text_rules.clean_texts([raw]) == [want]
    assert text_rules.clean_texts(['前。', raw, '后。']) == ['前。', want, '后。']

def test_a_row_about_marks_leaves_its_neighbours_alone():
    assert text_rules.clean_texts(['你好,世界', '标点有,。', 'x = 1', '，好']) == ['你好，世界', '标点有,。', 'x = 1', '好']

@pytest.mark.parametrize('bit', ['（', '）', '（，', '“\n', '（。', '甲（乙。', '【《', '（ '])
def test_brackets_cost_the_same_in_a_long_text(bit):
    def seconds(n:int)->float:
        start = time.process_time()
        text_rules.fix_brackets(bit*n)
        return time.process_time() - start
    seconds(100)
    assert min(seconds(32_000) for _ in range(3)) < 24*min(seconds(4000) for _ in range(3)) # 8 times as long, not 64

@pytest.mark.parametrize('raw, want', [
    ('-{zh-tw:資訊;zh-hk:資訊}-', '資訊'), ('-{A|zh-cn:软件;zh-tw:軟體}-', '软件'), ('-{H|zh-cn:软件;zh-tw:軟體}-甲', '甲'),
    ('-{T|标题}-', ''), ('-{R|x:y}-', 'x:y'), ('-{zh-tw:資訊; zh-cn:信息;}-', '信息'), ('未闭合-{甲', '未闭合-{甲')])
def test_words_that_differ_by_region(raw, want):
    assert text_rules.wiki_variants(raw) == want

@pytest.mark.parametrize('title, desc, same', [
    ('头痛怎么办', '头痛怎么办？', True), ('血压130/80正常吗', '血压180/30正常吗', False), ('能吃10毫升吗', '能吃100毫升吗', False),
    ('高血压病人每天可以吃党参吗', '高血压病人每天不可以吃党参吗', False)])
def test_a_description_with_other_facts_stays(title, desc, same):
    assert merge_title(title, desc, 0.9) == (title if same else f'{title}\n{desc}')

DIFFERENT = [('3~5克', '35克'), ('(1,23)', '(12,3)'), ('（1，23）', '（12，3）'), ('1-1', '11'), ('1.5', '15'),
             ('10：30', '1030'), ('-5', '5'),
             ('5%', '5'), ('a/b', 'ab'), ('三~五克', '三五克'), ('a != b', 'a = b'), ('1 000', '1000'), ('2（3）', '23'),
             ('1，-5', '1-5'),
             ('第1、2章', '第12章'), ('3！2', '32'), ('1；2', '12'), ('(1,a2)', '(1a,2)')]
SAME = [('共3～5克，好。', '共3~5克好'), ('你好，世界！', '你好 世界'), ('“甲”、《乙》', '甲乙'), ('第1，2章', '第1, 2章'), ('5 mg', '5mg'),
        ('Hello, world', 'hello world'),
        ('10：30到', '10:30，到'), ('甲…', '甲')]

@pytest.mark.parametrize('a, b', DIFFERENT)
def test_other_numbers_are_no_duplicates(a, b):
    assert duplicates.normal_form(a) != duplicates.normal_form(b)

@pytest.mark.parametrize('a, b', SAME)
def test_other_punctuation_is_a_duplicate(a, b):
    assert duplicates.normal_form(a) == duplicates.normal_form(b)

@pytest.mark.parametrize('seed', [0])
def test_joined_chain_equals_one_by_one(seed):
    rng = random.Random(seed)
    bits = ['你好', ',', '。', ' ', '\n', '<b>', '&amp;', '(', ')', '"', '“', '（', '）', '!', '3.14', 'a',
            '\t', '-{', '}-', '……', '\x01', '？', '\u3000']
    rows = [''.join(rng.choices(bits, k=rng.randrange(25))) for _ in range(800)]
    assert text_rules.clean_texts(rows) == [text_rules.clean_texts([r])[0] for r in rows]

def test_rules_in_their_order():
    assert text_rules.clean_texts(['甲， ，乙（），，丙 ?? <br>&nbsp;丁,"戊"。。']) == ['甲，乙（），丙？\n丁，“戊”。']

@pytest.mark.parametrize('text, limit, want', [
    ('南昌市', 99, '南昌市'), ('一句。两句', 99, '一句。两句'), ('一句。两句，', 99, '一句。'),
    ('一句。二句。三句。', 6, '一句。二句。'), ('他说：“好。”然后，', 99, '他说：“好。”'),
    ('没有句号的长文字', 4, ''), ('One. Two. Three words', 12, 'One. Two.'), ('先算。π约为3.14159', 8, '先算。'),
    ('先看。再去 http://a.cn/?x=1', 17, '先看。'), ('好。\n2. 然后', 6, '好。'), ('选吧。\nA. 甲', 6, '选吧。'), ('真的！若a!=b则停', 6, '真的！'),
    ('看吧。配音有乙、《Free!》丙，还有', 17, '看吧。'), ('看吧。看《你好！》这部电影', 12, '看吧。'),
    ('看吧。正确选项是A. 承包，因为它', 16, '看吧。'), ('看吧。见http://a.cn/b?\\_ga=1', 18, '看吧。')])
def test_ends(text, limit, want):
    assert text_rules.mend_end(text, limit) == want

def test_source_rules_by_hand(tmp_path, runs):
    sky = '因为空气散射短波长的蓝光更多。'
    long = '一二三四五六七八九十一二三四五六。'
    put_lines(tmp_path/'raw'/'w', [
        dict(title='为什么天空是蓝的', content=sky, star=5, desc='', topic=''),
        dict(title='星太少', content=sky, star=4),
        dict(title='太短', content='不知道呀。', star=9),
        dict(title='星不是数', content='因为空气散射短波长的光。', star='x')])
    put_lines(tmp_path/'raw'/'b', [
        dict(title='猫为什么打呼噜', desc='猫为什么打呼噜？', answer='猫打呼噜多半表示它感到安全放松。', category='a'),
        dict(title='怎么养花', desc='我家阳台朝北', answer='选耐阴的植物，少浇水，多通风就好。', category='b'),
        dict(title='短', desc='', answer='短答案。', category='c')])
    put_lines(tmp_path/'raw'/'i', [
        task('翻译这句话', long, 'Hi'), task('给我一个表格', long),
        task('写两句话', '春天来了，花开了。燕子飞回来了。', '关于春天'), task('写一句', '太短。')])
    turns = [{'from': 'human', 'value': '单轮问题'},
             {'from': 'assistant', 'value': '这是一个足够长的单轮回答，没问题。'}]
    put_lines(tmp_path/'raw'/'c', [
        dict(id='1', conversations=turns), dict(id='2', conversations=[{'from': 'human', 'value': 'a'}]*4)])
    zhihu = dict(INSTRUCTION=['三个字', '四个字呀'], RESPONSE=['十个字的回答在这里了。']*2,
                 SOURCE=['z']*2, METADATA=['']*2)
    pq.write_table(pa.table(zhihu), tmp_path/'raw'/'z')
    report = run(tmp_path/'raw')
    rules = frame(runs, 'rejects').groupby('source').rule.apply(sorted).to_dict()
    assert rules == dict(
        webtext=['bad_value', 'response_short', 'star'], baike=['response_short'],
        belle=['response_short', 'table', 'translation'], chat=['multi_turn'], zhihu=['prompt_short'])
    asked = set(pretrain(runs).prompt) | set(frame(runs, 'sft_valid').prompt)
    assert asked == {'为什么天空是蓝的', '猫为什么打呼噜', '怎么养花\n我家阳台朝北', '写两句话\n关于春天',
                     '单轮问题', '四个字呀'}
    assert report['rows_in'] == 15 and report['kept'] == 6

def test_numbers_that_only_look_alike_all_stay(tmp_path, runs):
    pairs = [('该吃多少药', '每天3~5克'), ('该吃多少药', '每天35克'), ('选哪一组', '(1,23)'), ('选哪一组', '(12,3)'),
             ('温度是多少', '-5度'), ('温度是多少', '5度'), ('几点', '10:30'), ('几点', '1030'), ('第几章', '第1、2章'),
             ('第几章', '第12章')]
    put_lines(tmp_path/'raw'/'a.jsonl', [pair(p, r) for p, r in pairs])
    report = run(tmp_path/'raw')
    assert report['kept'] == len(pairs) and report['duplicates'] == dict(exact=0, near=0)
    got = pretrain(runs)
    assert sorted(got.response) == sorted(r for _, r in pairs)

def test_gb18030_csv_with_newlines(tmp_path, runs):
    out = io.StringIO()
    csv.writer(out).writerows([
        ['department', 'title', 'ask', 'answer'],
        ['内科', '头痛', '疼了两天,\n"怎么办"?', '多休息,少看手机,多喝温水,注意睡眠。'],
        ['外科', '少一列', 'x'],
        ['骨科', '扭伤', '脚扭了', '先冷敷，再热敷，少走路，抬高患肢。']])
    (tmp_path/'raw').mkdir()
    (tmp_path/'raw'/'x').write_bytes(out.getvalue().encode('gb18030'))
    run(tmp_path/'raw')
    rejects = frame(runs, 'rejects')
    assert rejects[['line', 'rule']].values.tolist() == [[4, 'field_count']]
    assert set(pretrain(runs).prompt) == {'头痛\n疼了两天，\n“怎么办”？', '扭伤\n脚扭了'}

def test_bad_lines_carry_their_number(tmp_path, runs):
    good = json_line(pair('问题', '回答'))
    gb = json_line(pair('这一行是国标编码', '也能读出来'), 'gb18030')
    lines = [b'\xef\xbb\xbf' + good, good[:-2], b'\xff\xfe\x00' + good, gb, b'', b'[1, 2]',
             b'{"prompt": "x"}', b'{"prompt": {"a": 1}, "response": "y"}']
    (tmp_path/'raw').mkdir()
    (tmp_path/'raw'/'a.txt').write_bytes(b'\n'.join(lines))
    run(tmp_path/'raw')
    assert frame(runs, 'rejects')[['line', 'rule']].values.tolist() == [
        [2, 'broken_json'], [3, 'encoding'], [6, 'broken_json'], [7, 'missing_column'], [8, 'bad_value']]
    assert set(pretrain(runs).prompt) == {'问题', '这一行是国标编码'}

def test_list_is_streamed_past_damage():
    rows = [dict(instruction=f'问{k}', output='答'*k) for k in range(500)]
    text = json.dumps(rows, ensure_ascii=False, indent=1).replace('"问100"', '问100').encode()
    got = list(read_list(_cut(io.BytesIO(text), 1000, b'"')))
    assert [r.record for r in got if not r.rule] == rows[:100] + rows[101:]
    assert [(r.line, r.rule) for r in got if r.rule] == [(2 + 4*100, 'broken_json')]

@pytest.mark.parametrize('files, error, words', [
    ({}, ValueError, 'no readable file among the 0'), ({'a.txt': b''}, ValueError, 'a.txt'),
    ({'a.csv': b'x,y\n1,2\n'}, ValueError, 'instruction,output'), (None, FileNotFoundError, 'SCCLM_RAW')])
def test_nothing_to_read_says_what_is_expected(tmp_path, runs, files, error, words):
    if files is not None: (tmp_path/'raw').mkdir()
    for name, data in (files or {}).items(): (tmp_path/'raw'/name).write_bytes(data)
    with pytest.raises(error, match=words): run(tmp_path/'raw')
    assert not runs.exists()

# Duplicates and leaks

def brute_force(rows:list[tuple[str, str]], near:float, n:int, short:int)->list[tuple[str, str]]:
    "Keep a row unless an earlier kept one is like it: every pair compared, sets of n-grams made here."
    def norm(t:str)->str:
        return ''.join(c for c in t.lower() if c not in ' \n\t，。！？；：、“”‘’（）《》…·~～,!?;"')
    def grams(t:str)->set[str]:
        return {t[i:i + n] for i in range(max(1, len(t) - n + 1))}
    def alike(a:str, b:str)->bool:
        if a == b: return True
        A, B = grams(a), grams(b)
        return min(len(a), len(b)) >= short and len(A & B)/len(A | B) >= near
    forms = [(norm(p), norm(r)) for p, r in rows]
    kept = []
    for j, (p, r) in enumerate(forms):
        if not any(alike(forms[i][0], p) and alike(forms[i][1], r) for i in kept): kept.append(j)
    return [rows[k] for k in kept]

@pytest.mark.parametrize('seed', [1])
def test_near_duplicates_equal_brute_force(tmp_path, runs, seed):
    rng = random.Random(seed)
    rows = []
    for k in range(120):
        p, r = sentence(rng, rng.choice((8, 50))), sentence(rng, rng.choice((10, 60, 120)))
        rows.append((p, r))
        for _ in range(rng.randrange(4)):
            q, a = list(p), list(r)
            for _ in range(rng.randrange(5)): a[rng.randrange(len(a) - 1)] = rng.choice(HAN)
            if rng.random() < 0.3: q[rng.randrange(len(q) - 1)] = rng.choice(HAN)
            rows.append((''.join(q), ''.join(a)))
    put_lines(tmp_path/'raw'/'a', [pair(p, r) for p, r in rows])
    report = run(tmp_path/'raw')
    want = brute_force(rows, 0.85, 4, 32)
    assert Counter(rows_of(pretrain(runs))) == Counter(want)
    assert report['duplicates']['near'] > 20 and report['kept'] == len(want)

def test_facts_that_share_a_template_stay(tmp_path, runs):
    capitals = {'江西省': '南昌', '江苏省': '南京', '山东省': '济南', '山西省': '太原'}
    facts = [(f'{a}的省会是哪座城市？', f'{b}市。') for a, b in capitals.items()]
    asks = [('江西的省会在哪里？', '南昌市。'), ('哪座城市是江西省的省会？', '南昌市。')]
    put_lines(tmp_path/'raw'/'a.jsonl', [pair(p, r) for p, r in facts + asks])
    put_lines(tmp_path/'raw'/'heldout'/'q.jsonl', [dict(prompt='江西省的省会是哪座城市', response='南昌市。', kind='fact')])
    report = run(tmp_path/'raw')
    assert set(pretrain(runs).prompt) == {p for p, _ in facts[1:] + asks} and report['leaks'] == 1
    assert frame(runs, 'heldout').values.tolist() == [['江西省的省会是哪座城市', '南昌市。', 'fact']]

def test_leaks_by_near_copy_and_in_sft(tmp_path, runs):
    rng = random.Random(2)
    p, r = sentence(rng, 120), sentence(rng, 80)
    near = p[:60] + '某' + p[61:]
    put_lines(tmp_path/'raw'/'heldout'/'q', [dict(prompt=p, response=r, kind='long')])
    other = sentence(rng, 80)
    body = [pair(sentence(rng, 20), sentence(rng, 20)) for _ in range(400)]
    put_lines(tmp_path/'raw'/'a', [pair(near, r), pair(near, other), *body])
    put_lines(tmp_path/'raw'/'sft'/'b', [*(task(b['prompt'], b['response']) for b in body[:300]), task(near, r)])
    report = run(tmp_path/'raw')
    exam = set(frame(runs, 'test').prompt) | set(frame(runs, 'valid').prompt)
    sft = set(frame(runs, 'sft_train').prompt) | set(frame(runs, 'sft_valid').prompt)
    asked = {b['prompt'] for b in body[:300]}
    assert exam and not exam & sft and sft == asked - exam
    assert report['leaks'] == 2 + len(asked & exam)
    assert (near, other) in set(rows_of(pretrain(runs))) # another answer is another fact

def test_answers_to_one_question_stay_together(tmp_path, runs):
    rng = random.Random(3)
    put_lines(tmp_path/'raw'/'a', [pair(f'问题{k % 300}', sentence(rng, 20)) for k in range(1500)])
    run(tmp_path/'raw')
    parts = [set(frame(runs, s).prompt) for s in ('train', 'test', 'valid')]
    assert all(parts) and not any(a & b for a, b in combinations(parts, 2))

# The whole: nothing lost, the same for any number of workers, shuffled, safe

@pytest.fixture(scope='module')
def sample(tmp_path_factory):
    "The sample corpus, what was planted in it, and its output by one process."
    root = tmp_path_factory.mktemp('sample')
    planted = make_sample_corpus(root/'raw')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('SCCLM_RUNS', str(root/'one'))
        report = run(root/'raw')
    return root, planted, report, root/'one'/scale_name()/'data'

def test_planted_dirt_is_found(sample):
    _, planted, report, _ = sample
    dirt, rules = planted['dirt'], report['rules']
    assert report['duplicates'] == dict(exact=dirt['exact_duplicate'], near=dirt['near_duplicate'])
    assert report['leaks'] == dirt['leak'] + dirt['leak_sft']
    for rule in ('broken_json', 'encoding', 'star', 'translation', 'table', 'field_count'):
        assert rules[rule] == dirt[rule], rule
    assert rules['response_short'] == dirt['short'] and rules['missing_column'] == dirt['missing_key']
    assert report['kept'] == sum(planted['clean'].values()) + planted['heldout']

def test_rows_are_accounted_for(sample):
    root, _, report, out = sample
    rejects = frame(out, 'rejects')
    assert report['rows_in'] == report['kept'] + len(rejects)
    assert Counter(rejects.rule) == report['rules'] and not rejects.isna().any().any()
    assert {s: len(frame(out, s)) for s in SPLITS} == report['splits']
    assert json.loads((out/'report.json').read_text(encoding='utf-8')) == report
    for s in ('train', 'sft_train'):
        f = pq.ParquetFile(out/f'{s}.parquet')
        sizes = [f.metadata.row_group(k).num_rows for k in range(f.num_row_groups)]
        assert f.schema_arrow.names == ['prompt', 'response'] and set(sizes[:-1]) <= {4096} and sizes[-1] <= 4096

def test_any_number_of_workers_gives_the_same_bytes(sample, monkeypatch):
    root, _, _, out = sample
    monkeypatch.setenv('SCCLM_RUNS', str(root/'two'))
    run(root/'raw', workers=2)
    assert digest(root/'two'/scale_name()/'data') == digest(out)

def test_small_parts_give_the_same_bytes(sample, monkeypatch):
    "Keys and pairs taken in many parts, as with millions of rows."
    root, _, _, out = sample
    monkeypatch.setenv('SCCLM_RUNS', str(root/'parts'))
    monkeypatch.setattr(duplicates, 'PART_ROWS', 5000)
    run(root/'raw')
    assert digest(root/'parts'/scale_name()/'data') == digest(out)

def test_small_parts_are_many(monkeypatch):
    "The size that the test above patches is the one that counts."
    spool = duplicates.Spool(Path('nowhere'), [duplicates.Chunk('0', 23_000)], [])
    assert duplicates.n_parts(spool) == 1
    monkeypatch.setattr(duplicates, 'PART_ROWS', 5000)
    assert duplicates.n_parts(spool) == 5

def test_another_seed_keeps_the_rows_and_shuffles_them(sample, monkeypatch):
    root, _, report, out = sample
    monkeypatch.setenv('SCCLM_RUNS', str(root/'seed'))
    other = run(root/'raw', seed=1)
    assert other['kept'] == report['kept']
    a, b = (list(frame(o, 'train').prompt) for o in (out, root/'seed'/scale_name()/'data'))
    assert a != b
    order = frame(out, 'train').prompt.map({p: k for k, p in enumerate(sorted(set(a)))}).to_numpy()
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05 # neighbours have nothing to do with each other

@pytest.mark.parametrize('seed', [4])
def test_rubbish_never_raises(tmp_path, runs, seed):
    rng = random.Random(seed)
    raw = tmp_path/'raw'
    good = json_line(pair('好的问题', '好的回答')) + b'\n'
    heads = [good, b'title,ask,answer\n', b'[{"instruction": "a", "output": "b"},\n',
             '<doc id="1" title="题">\n'.encode(), b'PAR1', b'', b'\x00\x01', b'[', b'"']
    bits = [*(bytes([b]) for b in range(256)), good, b'\n', b'"', b',', b'{', b'}', b'[', b']',
            b'</doc>', b'<doc ', '汉'.encode(), '汉'.encode('gb18030'), b'\\ud800', b'1e999', b'9'*5000, b'['*5000]
    raw.mkdir()
    (raw/'good.jsonl').write_bytes(good)
    for k in range(60):
        rubbish = b''.join(rng.choices(bits, k=rng.randrange(400)))
        (raw/f'f{k}').write_bytes(heads[k % len(heads)] + rubbish)
    report = run(raw)
    rejects = frame(runs, 'rejects')
    assert report['rows_in'] == report['kept'] + len(rejects) and report['kept'] >= 1
    assert set(rejects.file) | {'good.jsonl'} >= {f'f{k}' for k in range(60) if k % len(heads) in (4, 5, 6)}

def test_damaged_parquet_is_one_reject(tmp_path, runs):
    raw = tmp_path/'raw'
    raw.mkdir()
    pq.write_table(pa.table(dict(prompt=['问题一', '问题二'], response=['回答一', '回答二'])), raw/'a.parquet')
    data = bytearray((raw/'a.parquet').read_bytes())
    data[4:60] = b'\xff'*56
    (raw/'b.parquet').write_bytes(data)
    report = run(raw)
    assert report['kept'] == 2 and report['rules'] == dict(broken_file=1)

def test_a_kill_leaves_the_previous_output(tmp_path, monkeypatch):
    rng = random.Random(5)
    raw = tmp_path/'raw'
    put_lines(raw/'a', [pair(sentence(rng, 12), sentence(rng, 30)) for _ in range(3000)])
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path/'runs'))
    out = tmp_path/'runs'/scale_name()/'data'
    run(raw)
    before = digest(out)
    seen = set()
    code = '\n'.join([
        'import sys', 'from pathlib import Path', 'from scclm.data_cleaning import CleanCfg, clean',
        'print("go", flush=True)',
        'clean(CleanCfg(raw=Path(sys.argv[1]), seed=1, workers=1, progress=False))'])
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    for wait in (0.05, 0.2, 0.4, 0.6):
        child = subprocess.Popen([sys.executable, '-c', code, str(raw)], stdout=subprocess.PIPE, env=env)
        child.stdout.readline()
        time.sleep(wait)
        child.send_signal(signal.SIGTERM if os.name == 'nt' else signal.SIGKILL)
        child.wait()
        seen.add(json.loads((out/'report.json').read_text(encoding='utf-8'))['config']['seed'])
        if seen == {0}: assert digest(out) == before
    run(raw)
    assert digest(out) == before
    assert [p.name for p in out.parent.iterdir()] == ['data'] # what the dead left behind is swept away

def test_a_row_is_read_the_same_whatever_stands_beside_it():
    "Signs that switch a rule on in one row leave the rows beside it alone."
    odd = ['::「（《', '浙江,的', '他说:"好".', 'a "b" c', '第一.', '<b>', '(一)', '&lt;', '"', '`x`', '《', '「', '|', '\t']
    alone = [text_rules.chat_form([text])[0] for text in odd]
    for i, text in enumerate(odd):
        for other in odd:
            assert text_rules.chat_form([other, text, other])[1] == alone[i], (text, other)
