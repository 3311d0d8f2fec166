"Readers: what stands in a file is what comes out as a row; what cannot be read is counted and named."
import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_toys import BYTE_NAMES, LINKS, gbk, json_lines, link, put, run

from scclm import readers
from scclm.readers import (Row, Schema, Source, as_text, decode_as, encoding_of, explain, file_parts,
    members,
    one_exchange, open_raw, read_csv, read_docs, read_file, read_jsonl, read_list, read_turns, shown_name, sniff,
    walk_files)
from scclm.sources import SCHEMAS

PAIR = Schema('pair', ('prompt', 'response'))
PROSE = '这是一个很普通的句子，说的是今天的天气和我们要去的地方，他们都来了。'

def rows_of(path:Path, *schemas:Schema)->list[Row]:
    "Every row of a file, sniffed first."
    return list(read_file(Source(path, *sniff(path, schemas or SCHEMAS))))

def table(text:str)->list[tuple]:
    "Line, values and rule of every CSV record."
    rows = read_csv(io.BytesIO(text.encode()))
    return [(r.line, list(r.record.values()) if r.record else None, r.rule) for r in rows]

# CSV

@pytest.mark.parametrize('mark', ['\u2028', '\u2029', '\x85', '\x0b', '\x0c', '\x1c', '\x1e', '\r'])
def test_only_line_ends_end_a_record(mark):
    text = f'title,ask,answer\n头痛,"怎么,办",多{mark}休息\n牙痛,怎{mark}么办,看牙医\r\n'
    assert table(text) == [(2, ['头痛', '怎么,办', f'多{mark}休息'], ''), (3, ['牙痛', f'怎{mark}么办', '看牙医'], '')]

@pytest.mark.parametrize('n', [70, 3000])
def test_a_quoted_answer_may_be_long_and_look_like_rows(n):
    recipe = '\n'.join(f'材料{k},用量{k}克,把它们拌匀' for k in range(n))
    text = f'title,ask,answer\n汤,怎么做,"{recipe}"\n茶,怎么泡,水开再放\n'
    assert table(text) == [(2, ['汤', '怎么做', recipe], ''), (2 + n, ['茶', '怎么泡', '水开再放'], '')]

@pytest.mark.parametrize('broken, more', [
    ('"没闭合,y,z', 0), ('x,"没闭合,z', 0), ('x,y,"没闭合', 0), ('x,"内有"引号",z', 0), ('x,y,"没闭合\n下一行没有逗号', 1)])
@pytest.mark.parametrize('quoted', [False, True])
def test_a_broken_quote_costs_its_record_only(broken, more, quoted):
    after = '牙痛,"怎么,办",看牙医' if quoted else '牙痛,怎么办,看牙医'
    text = f'title,ask,answer\n头痛,怎么办,多休息\n{broken}\n{after}\n腰痛,怎么办,多躺\n'
    got = table(text)
    assert [(line, rule) for line, _, rule in got] == [(2, ''), (3, 'broken_csv'), (4 + more, ''), (5 + more, '')]

def test_a_file_cut_inside_a_quoted_answer_loses_that_record_only():
    text = 'title,ask,answer\n头痛,怎么办,多休息\n汤,怎么做,"先,放盐\n再放\n很多,水,煮,开，别'
    assert [(line, rule) for line, _, rule in table(text)] == [(2, ''), (3, 'broken_csv')]

@pytest.mark.parametrize('delimiter', [',', ';', '\t'])
@pytest.mark.parametrize('start', ['', '\ufeff', '\n\n', ' \r\n\n', '\ufeff\n', '{d}{d}\n', 'sep={d}\n'])
@pytest.mark.parametrize('extra', ['', '{d}', '{d}{d}'])
def test_headers_as_excel_writes_them(delimiter, start, extra):
    start, extra = (x.format(d=delimiter) for x in (start, extra))
    header = delimiter.join(['title', ' ask ', '"answer"']) + extra
    rows = [delimiter.join(['头痛', '怎么办', '多休息']) + extra, delimiter.join(['牙痛', f'"a{delimiter}b"', '看牙医'])]
    text = start + '\r\n'.join([header, *rows]) + '\r\n'
    line = text.count('\n') - 1
    assert table(text) == [(line, ['头痛', '怎么办', '多休息'], ''), (line + 1, ['牙痛', f'a{delimiter}b', '看牙医'], '')]

def test_extra_fields_that_hold_something_are_no_row():
    assert [r for *_, r in table('a,b\n1,2,\n1,2,3\n1\n,\n')] == ['', 'field_count', 'field_count', '']

@pytest.mark.parametrize('seed', range(20))
def test_csv_as_the_csv_module_writes_it(seed):
    rng = random.Random(seed)
    bits = ['好', '"', ',', '\n', '\r\n', ';', '\t', ' ', '\u2028', '\x0b', 'x', '""', '",', ',"']
    rows = [[''.join(rng.choices(bits, k=rng.randrange(8))) for _ in range(3)] for _ in range(60)]
    rows = [r for r in rows if any(x.strip() for x in r)]
    out = io.StringIO()
    csv.writer(out, quoting=rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])).writerows([['a', 'b', 'c'], *rows])
    assert [values for _, values, _ in table(out.getvalue())] == rows, seed

def test_a_field_over_the_limit_of_the_csv_module():
    long = '长"，\n'*60_000
    got = table('a,b\n"' + long.replace('"', '""') + '",2\n')
    assert got == [(2, [long, '2'], '')]

# JSON lists

def items(n:int)->list[dict]:
    "Rows of an instruction set."
    return [dict(instruction=f'问{k}', input='', output='答'*(k % 7 + 1)) for k in range(n)]

@pytest.mark.parametrize('ascii_only', [True, False])
def test_a_list_on_one_line_of_any_size(tmp_path, ascii_only):
    rows = items(4000)
    path = put(tmp_path/'a.json', json.dumps(rows, ensure_ascii=ascii_only))
    assert path.stat().st_size > 2**18
    assert [r.record for r in rows_of(path)] == rows

@pytest.mark.parametrize('lines', [False, True])
def test_a_first_object_of_a_megabyte(tmp_path, lines):
    rows = [dict(instruction='长', output='很长的话'*100_000), dict(instruction='短', output='话')]
    path = put(tmp_path/'a.json', json_lines(rows) if lines else json.dumps(rows, ensure_ascii=False))
    assert [r.record for r in rows_of(path)] == rows

BREAKS = dict(
    bare=lambda s: s.replace('"问', '问', 1),
    comma=lambda s: s.replace(', ', ' ', 1),
    quote=lambda s: s.replace('", ', ', ', 1),
    cut=lambda s: s[:-9],
    brace=lambda s: s[:-1],
    single=lambda s: s.replace('"', "'"),
    newline=lambda s: s.replace('问', '问\n', 1))

@pytest.mark.parametrize('how', BREAKS)
@pytest.mark.parametrize('at', [(0,), (7,), (19,), (0, 1), (4, 5, 6), (3, 19)])
@pytest.mark.parametrize('gap', [', ', ',\n', '\n,\n  '])
def test_every_broken_object_is_one_reject(tmp_path, how, at, gap):
    texts = [json.dumps(r, ensure_ascii=False) for r in items(20)]
    for k in at: texts[k] = BREAKS[how](texts[k])
    path = put(tmp_path/'a.json', '[' + gap.join(texts) + ']')
    got = list(read_list([path.read_bytes()], schemas=[Schema('x', ('instruction', 'output'))]))
    assert [bool(r.rule) for r in got] == [k in at for k in range(20)]
    assert [r.record for r in got if not r.rule] == [r for k, r in enumerate(items(20)) if k not in at]
    assert [r.rule for r in rows_of(path)] == [r.rule for r in got]

def test_inner_objects_of_a_broken_one_are_no_rows():
    turn = [{'from': 'human', 'value': '问'}, {'from': 'gpt', 'value': '答'}]
    rows = [json.dumps(dict(id=k, conversations=turn), ensure_ascii=False) for k in range(5)]
    rows[2] = rows[2].replace('"id"', '"id')
    got = list(read_list([('[' + ', '.join(rows) + ']').encode()], schemas=[Schema('x', ('conversations',))]))
    assert [r.rule for r in got] == ['', '', 'broken_json', '', '']

@pytest.mark.parametrize('size', [50, 200, 5000])
def test_pieces_do_not_matter(size):
    texts = [json.dumps(r, ensure_ascii=False) for r in items(300)]
    texts[100] = texts[100].replace('": "', '": ', 1)
    data = ('[' + ', '.join(texts) + ']').encode()
    pieces = []
    while data:
        cut = data.find(b'"', size) + 1 or len(data)
        pieces.append(data[:cut])
        data = data[cut:]
    got = list(read_list(pieces))
    assert [k for k, r in enumerate(got) if r.rule] == [100] and len(got) == 300

def test_one_object_in_another_encoding_costs_itself_only():
    parts = [json.dumps(r, ensure_ascii=False).encode() for r in items(9)]
    parts[4] = parts[4].decode().encode('gb18030')
    got = list(read_list([b'[' + b', '.join(parts) + b']']))
    assert [r.rule for r in got] == ['']*4 + ['encoding'] + ['']*4

def test_halves_of_characters_go(tmp_path):
    path = put(tmp_path/'a', r'{"title": "甲", "text": "一\ud83d二\u597d\ud83d\ude00"}')
    assert rows_of(path)[0].record['text'] == '一二好😀'
    path = put(tmp_path/'b', r'[{"title": "甲\udc00", "text": "一"}]')
    assert rows_of(path)[0].record['title'] == '甲'

SIZES = (3, 5000) # rows: a file of less than 256 KB, and one of more
LONG = '这是一个足够长的回答，用来把文件撑大。'

def pairs(n:int)->list[dict]:
    "Pairs whose responses differ."
    return [dict(prompt=f'问{k}', response=f'{LONG}{k}') for k in range(n)]

def dumped(value:object, indent:int|None=None)->str:
    "JSON with Chinese as it is."
    return json.dumps(value, ensure_ascii=False, indent=indent)

def by_line(head:str, rows:list[dict], tail:str)->str:
    "A list that is written row by row."
    return head + ',\n'.join(map(dumped, rows)) + tail

def wrapped(shape:str, rows:list[dict])->str:
    "Rows inside an object."
    first, rest = dumped(dict(page=1, data=rows[:2])), dumped(dict(page=2, data=rows[2:]))
    tail = dict(total=3, tags=['一', '二', 5, None], done=True, note='a "b": {c}')
    numbered = dict(enumerate(rows))
    return dict(data=dumped(dict(data=rows)), pretty=dumped(dict(data=rows), 2), tail=dumped(dict(data=rows) | tail),
                head=dumped(dict(title='对话集', tags=['一', '二'], author=dict(name='某人'), size=3, data=rows)),
                two=dumped(dict(train=rows[:2], valid=rows[2:])), pages=f'{first}\n{rest}\n',
                numbers=dumped(numbered), numbers_pretty=dumped(numbered, 1),
                lines=by_line('{\n"data": [\n', rows, '\n]\n}\n'), short=by_line('{"data": [', rows, ']}'))[shape]

WRAPPERS = ('data', 'pretty', 'tail', 'head', 'two', 'pages', 'numbers', 'numbers_pretty', 'lines', 'short')

@pytest.mark.parametrize('shape', WRAPPERS)
@pytest.mark.parametrize('n', SIZES)
def test_wrappers_are_stepped_into(tmp_path, shape, n):
    path = put(tmp_path/'a.json', wrapped(shape, pairs(n)))
    assert (path.stat().st_size > 2**18) == (n == SIZES[1])
    got = rows_of(path)
    assert [r.record for r in got] == pairs(n) and not any(r.rule for r in got)
    assert sniff(path, SCHEMAS)[0] == 'list'

@pytest.mark.parametrize('shape', ['data', 'numbers', 'lines'])
@pytest.mark.parametrize('n', SIZES)
def test_a_broken_row_in_a_wrapper_costs_itself_only(tmp_path, shape, n):
    text = wrapped(shape, pairs(n)).replace('"问1"', '"问1', 1)
    got = rows_of(put(tmp_path/'a.json', text))
    assert [r.rule for r in got] == ['', 'broken_json', *['']*(n - 2)]

@pytest.mark.parametrize('n', SIZES)
def test_conversations_are_no_wrapper(tmp_path, n):
    talk = said(('human', LONG), ('gpt', LONG), new=False)
    rows = [dict(id=k, meta=dict(prompt='甲', response='乙'), conversations=talk) for k in range(n)]
    for k, text in enumerate([json_lines(rows), dumped(rows), '\n'.join(dumped(r, 1) for r in rows)]):
        got = rows_of(put(tmp_path/f'{k}', text))
        assert [r.record for r in got] == rows

@pytest.mark.parametrize('n', SIZES)
@pytest.mark.parametrize('wrap', [lambda rows: dict(rows=[dict(row=r) for r in rows]),
    lambda rows: dict(a=dict(b=rows)), lambda rows: dict(data=[list(r.values()) for r in rows])])
def test_deeper_wrappers_are_named_at_every_size(tmp_path, runs, n, wrap):
    put(tmp_path/'raw'/'a.json', dumped(wrap(pairs(n))))
    put(tmp_path/'raw'/'b.jsonl', json_lines(pairs(3)))
    report = run(tmp_path/'raw')
    key = next(iter(wrap([])))
    remedy = f'its keys are {key}: rename them, or write the rows inside as JSON Lines'
    assert remedy in report['files']['a.json']['note']
    assert report['rules'] == dict(unknown_format=1)

@pytest.mark.parametrize('text', [
    '{0},\n{1},\n{2},\n', '{0},\n{1},\n{2}\n', '[\n{0},\n{1},\n{2}\n]\n', '{0},\n{1},\n{2}\n]',
    '{0} ,\r\n{1}\t,\r\n{2}', '{0}\n,{1}\n,{2}', '{0}\n]\n[\n{1}\n,\n{2}', '[{0}]\n[{1}]\n[{2}]\n'])
@pytest.mark.parametrize('n', [1, 900])
def test_lines_with_the_commas_of_a_list(tmp_path, text, n):
    rows = pairs(3*n)
    parts = [text.replace('{0}', dumped(a)).replace('{1}', dumped(b)).replace('{2}', dumped(c))
             for a, b, c in zip(rows[::3], rows[1::3], rows[2::3])]
    got = rows_of(put(tmp_path/'a.jsonl', '\n'.join(parts)))
    assert [r.record for r in got] == rows and not any(r.rule for r in got)

def test_brackets_do_not_mend_a_line():
    lines = ['{"a": 1]', '{"a": [1}', '"a",', '[1, 2]', '[{"a": 1}, {"a": 2}]', '{"a": 1}x', '{"a": 1},,']
    assert [r.rule for r in read_jsonl('\n'.join(lines).encode())] == ['broken_json']*6 + ['']

# Encodings

TRADITIONAL = '臺灣的首都在哪裡？這個問題應該這樣回答：臺北是臺灣的首都，也是最大的城市之一。'

@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32', 'utf-32-le',
    'utf-32-be', 'gbk', 'gb18030', 'big5', 'big5hkscs'])
@pytest.mark.parametrize('shape', ['lines', 'list', 'csv', 'doc'])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_encodings_and_line_ends(tmp_path, encoding, shape, end):
    texts = [TRADITIONAL, '請問今天的天氣好不好？', '功', '許功蓋的學問', 'plain ASCII']
    texts = texts if encoding != 'gbk' else [*texts, '耄耋之年', '鼹鼠']
    rows = [dict(title=f'題目{k}', text=t) for k, t in enumerate(texts)]
    lines = [json.dumps(r, ensure_ascii=False) for r in rows]
    data = dict(lines=end.join(lines) + end, list='[' + f',{end}'.join(lines) + ']',
                csv=end.join(['title,text', *(f"{r['title']},{r['text']}" for r in rows)]) + end,
                doc=end.join(f'<doc id="1" title="{r["title"]}">{end}{r["text"]}</doc>' for r in rows))[shape]
    got = rows_of(put(tmp_path/'f', data.encode(encoding)))
    assert [{k: v.strip() for k, v in r.record.items()} for r in got] == rows
    assert not any(r.rule for r in got)

@pytest.mark.parametrize('encoding', ['gb18030', 'gbk'])
def test_rare_characters_are_no_reason_in_a_gbk_file(tmp_path, encoding):
    words = ['耄耋', '鼹鼠', '饕餮', '魑魅魍魉', '龃龉', '目', '皿', '臺灣', '鬱', '囍']
    rows = [dict(prompt=w, response=w) for w in words] + [dict(prompt=PROSE, response=PROSE)]*3
    got = rows_of(put(tmp_path/'f', json_lines(rows).encode(encoding)))
    assert [r.record for r in got] == rows

def test_encodings_mixed_by_line(tmp_path):
    rows = [dict(prompt=f'问题{k}：{PROSE}', response='好的') for k in range(6)]
    lines = [json.dumps(r, ensure_ascii=False).encode('gbk' if k % 2 else 'utf-8') for k, r in enumerate(rows)]
    broken = lines[0][:40] + b'\xff' + lines[0][40:]
    got = rows_of(put(tmp_path/'f', b'\n'.join([*lines, broken])))
    assert [r.record for r in got[:6]] == rows and got[6].rule == 'encoding'

@pytest.mark.parametrize('encoding', ['shift_jis', 'euc-jp', 'euc-kr', 'cp1251', 'latin-1'])
def test_other_encodings_are_never_mojibake(tmp_path, encoding):
    text = dict(cp1251='Сегодня хорошая погода, мы идем гулять в парк. ', latin1='é à ü ö ß ñ ç î ô ')
    text |= {'shift_jis': 'こんにちは、きょうはいいてんきです。', 'euc-jp': 'こんにちは、きょうはいいてんきです。',
             'euc-kr': '오늘은 날씨가 좋습니다. 우리는 공원에 갑니다. ', 'latin-1': 'été à la façon où ça brûle '}
    rows = [dict(prompt=text[encoding]*6, response=text[encoding]*5)]*40
    path = put(tmp_path/'f', json_lines(rows).encode(encoding))
    kind = sniff(path, [PAIR])
    assert not kind or all(r.rule == 'encoding' for r in read_file(Source(path, *kind)))
    assert 'iconv -f' in explain(path)

def test_big5_is_recognised_not_read_as_gb18030():
    lines = [TRADITIONAL.encode('big5'), '今天下雨，我們不去學校。'.encode('big5')]
    assert encoding_of(lines) == 'big5hkscs' and encoding_of([TRADITIONAL.encode('gbk')]) == 'gb18030'
    assert decode_as(lines[1], 'big5hkscs') == '今天下雨，我們不去學校。'

def test_text_without_a_bom_that_begins_like_one(tmp_path):
    path = put(tmp_path/'f', b'\xff\xfe\x00' + b'{"prompt": "a", "response": "b"}\n'*3)
    assert [r.rule for r in rows_of(path)] == ['encoding', '', '']

# Conversations

def said(*turns:tuple[str, str], new:bool=True)->list[dict]:
    "Turns in one of the two ways."
    return [dict(role=r, content=t) if new else {'from': r, 'value': t} for r, t in turns]

@pytest.mark.parametrize('new', [True, False])
@pytest.mark.parametrize('turns, want', [
    ([('user', '问'), ('assistant', '答')], ('问', '答', '')), ([('human', '问'), ('gpt', '答')], ('问', '答', '')),
    ([('system', '规矩'), ('human', '问'), ('gpt', '答')], ('问', '答', '')),
    ([('Human', '问'), ('Assistant', '答')], ('问', '答', '')),
    ([('system', '规矩'), ('human', '问')], ('', '', 'no_answer')),
    ([('human', '一'), ('human', '二')], ('', '', 'no_answer')),
    ([('gpt', '你好'), ('human', '问')], ('', '', 'no_answer')),
    ([('gpt', '你好'), ('human', '问'), ('gpt', '答')], ('', '', 'multi_turn')),
    ([('human', '一'), ('gpt', '二')]*2, ('', '', 'multi_turn')),
    ([('user', '问'), ('tool', '3'), ('assistant', '答')], ('', '', 'tool_turn')),
    ([('human', '问'), ('function_call', '{}')], ('', '', 'tool_turn')),
    ([('system', '规矩'), ('assistant', '答')], ('', '', 'no_question')),
    ([('甲', '问'), ('乙', '答')], ('', '', 'unknown_role')), ([], ('', '', 'no_question'))])
def test_roles_decide(turns, want, new):
    assert one_exchange(read_turns(said(*turns, new=new))) == want
    assert one_exchange(read_turns(json.dumps(said(*turns, new=new)))) == want

@pytest.mark.parametrize('value', [None, 3, 'text', ['a', 'b'], [None], float('nan')])
def test_what_is_no_conversation(value):
    assert one_exchange(read_turns(value)).rule == 'bad_value'

def test_contents_of_parts_and_calls():
    ask = dict(role='user', content=[dict(type='text', text='看'), dict(type='text', text='这里')])
    assert one_exchange(read_turns([ask, dict(role='assistant', content='好')])) == ('看这里', '好', '')
    image = dict(role='user', content=[dict(type='image_url', image_url='x')])
    assert one_exchange(read_turns([image, dict(role='assistant', content='好')])).rule == 'bad_value'
    call = dict(role='assistant', content=None, tool_calls=[dict(id=1)])
    assert one_exchange(read_turns([dict(role='user', content='问'), call])).rule == 'tool_turn'

def test_messages_from_file_to_training_rows(tmp_path, runs):
    "What clean() makes of a file of `messages`: pairs for fine-tuning, and one reject for everything else."
    good = [[('user', '天上的星星为什么会闪？'), ('assistant', '因为星光穿过了流动的空气，方向不断地变。')],
            [('system', '说得短些。'), ('human', '海水为什么是咸的？'), ('gpt', '河水把石头里的盐带进了海里，一直留在那里。')]]
    bad = dict(multi_turn=good[0]*2, no_answer=good[0][:1], no_question=good[0][1:],
               tool_turn=[*good[0], ('tool', '3')], unknown_role=[('甲', '问'), ('乙', '答')])
    lines = [dict(id=k, messages=said(*turns)) for k, turns in enumerate([*good, *bad.values()])]
    put(tmp_path/'raw'/'m.jsonl', json_lines([*lines, dict(messages='不是对话'), dict(id=9)]))
    report = run(tmp_path/'raw')
    assert report['files']['m.jsonl'] == dict(source='chat', format='jsonl', rows_in=9, kept=2, rejected=7)
    rejects = pd.read_parquet(runs/'rejects.parquet')
    assert list(zip(rejects.line, rejects.rule)) == [*enumerate(bad, 3), (8, 'bad_value'), (9, 'missing_column')]
    assert set(trained(runs)) == {tuple(text for role, text in turns if role != 'system') for turns in good}

# Articles

@pytest.mark.parametrize('head, title', [
    ('id="1" title="数学家"高斯"传"', '数学家"高斯"传'), ('subtitle="副题" title="正题"', '正题'),
    ('title="正题" subtitle="副题"', '正题'), ('title=""', ''), ('id="1" url="http://a/?title=x" title="A&amp;B"', 'A&B'),
    ('title=""引"与"号""', '"引"与"号"'), ('title="5 > 3"', '5 > 3'), ('id="1"', None), ('subtitle="副题"', None)])
def test_titles(head, title):
    row, = read_docs(f'<doc {head}>\n正文\n</doc>\n'.encode())
    assert (row.record or {}).get('title') == title and row.rule == ('' if title is not None else 'broken_doc')
    if title is not None: assert row.record['text'] == '\n正文\n'

# Values

def test_what_is_text():
    assert [as_text(x) for x in ('', '好', None, 0, 12, 1.5)] == ['', '好', '', '0', '12', '1.5']
    for x in (float('nan'), float('-inf'), True, b'x', [], {}, pd.Timestamp(0)): assert as_text(x) is None, x

def trained(runs:Path)->Iterator[tuple[str, str]]:
    "Every prompt and response of the output."
    for name in ('train', 'test', 'valid', 'sft_train', 'sft_valid'):
        frame = pd.read_parquet(runs/f'{name}.parquet')
        yield from zip(frame.prompt, frame.response)

def test_values_that_are_no_text(tmp_path, runs):
    lines = ['{"instruction": "问一", "input": NaN, "output": "这是一个足够长的回答，没有问题。"}',
             '{"instruction": "问二", "input": "", "output": NaN}',
             '{"instruction": Infinity, "output": "这是一个很长的回答。"}',
             '{"instruction": "问四", "input": true, "output": "这是另一个足够长的回答，不会短。"}',
             '{"instruction": "问五", "output": false}', '{"instruction": 6, "output": "这是第六个足够长的回答，真的长。"}']
    put(tmp_path/'raw'/'a.jsonl', '\n'.join(lines))
    cells = dict(prompt=['甲', '乙'], response=pa.array([b'bytes', None], pa.binary()))
    pq.write_table(pa.table(cells), tmp_path/'raw'/'b.parquet')
    report = run(tmp_path/'raw')
    rejects = pd.read_parquet(runs/'rejects.parquet')
    assert rejects[['file', 'line', 'rule']].values.tolist() == [
        *(['a.jsonl', line, 'bad_value'] for line in (2, 3, 4, 5)),
        ['b.parquet', 1, 'bad_value'], ['b.parquet', 2, 'response_short']]
    assert {p for p, _ in trained(runs)} == {'问一', '6'} and report['kept'] == 2

def test_an_input_that_is_no_text_rejects_the_row(tmp_path, runs):
    "Dropping it would leave an instruction without what it speaks of; only null and the like are no input."
    answer = '这是一个足够长的回答，没有问题。'
    inputs = ['["甲", "乙"]', '{"a": 1}', 'true', 'false', '[]', 'null', 'NaN', '-Infinity', '5', '"丙"', '""']
    lines = [f'{{"instruction": "问{k}", "input": {x}, "output": "{answer}{k}"}}' for k, x in enumerate(inputs)]
    put(tmp_path/'raw'/'a.jsonl', '\n'.join(lines))
    cells = dict(instruction=['问甲', '问乙'], input=pa.array([b'bytes', None], pa.binary()),
                 output=[answer + '甲', answer + '乙'])
    pq.write_table(pa.table(cells), tmp_path/'raw'/'b.parquet')
    cells = dict(instruction=['问丙', '问丁'], input=pa.array([['甲'], None]), output=[answer + '丙', answer + '丁'])
    pq.write_table(pa.table(cells), tmp_path/'raw'/'c.parquet')
    run(tmp_path/'raw')
    rejects = pd.read_parquet(runs/'rejects.parquet')
    assert rejects[['file', 'line', 'rule']].values.tolist() == [
        *(['a.jsonl', line, 'bad_value'] for line in range(1, 6)),
        ['b.parquet', 1, 'bad_value'], ['c.parquet', 1, 'bad_value']]
    assert {p for p, _ in trained(runs)} == {'问5', '问6', '问7', '问8\n5', '问9\n丙', '问10', '问乙', '问丁'}

# Folders

GOOD = json_lines([dict(prompt=f'问题{k}', response=f'回答{k}') for k in range(3)])

def test_every_file_is_in_the_report(tmp_path, runs):
    raw = tmp_path/'raw'
    put(raw/'a.jsonl', GOOD)
    put(raw/'header.csv', 'title,ask,answer\n')
    put(raw/'cr.txt', '第一行\r第二行\r第三行')
    put(raw/'paper.pdf', b'%PDF-1.4\r' + bytes(range(256))*40)
    put(raw/'empty', b'')
    put(raw/'.DS_Store', b'x')
    put(raw/'prefs'/'p.json', '[]')
    put(raw/'book.tar', b'x'*257 + b'ustar' + b'x'*500)
    none = pa.array([], pa.string())
    pq.write_table(pa.table(dict(prompt=none, response=none)), raw/'none.parquet')
    put(tmp_path/'else'/'linked.jsonl', GOOD.replace('问题', '别的问题'))
    link(raw/'link', tmp_path/'else')
    if LINKS:
        (raw/'loop').symlink_to(raw)
        (raw/'broken').symlink_to(tmp_path/'nowhere')
        os.mkfifo(raw/'pipe')
    report = run(raw)
    files = report['files']
    assert files['a.jsonl'] == dict(source='pair', format='jsonl', rows_in=3, kept=3, rejected=0)
    assert files['link/linked.jsonl']['kept'] == 3
    assert files['header.csv'] == dict(source='medical', format='csv', rows_in=0, kept=0, rejected=0)
    assert files['none.parquet']['rows_in'] == 0
    words = {'cr.txt': 'no known form', 'paper.pdf': 'PDF', 'empty': 'empty file', '.DS_Store': 'hidden',
             'book.tar': 'tar -xf', 'prefs/p.json': 'another chapter'}
    if LINKS: words |= dict(loop='folder', broken='link', pipe='no regular file')
    for name, word in words.items(): assert word in files[name]['note'], (name, files[name])
    assert files.keys() == words.keys() | {'a.jsonl', 'link/linked.jsonl', 'header.csv', 'none.parquet'}

PACK = dict(gz=gzip.compress, bz2=partial(bz2.compress, compresslevel=1), xz=lzma.compress) # bz2: in small blocks

@pytest.mark.parametrize('how', PACK)
@pytest.mark.parametrize('shape', ['lines', 'list', 'csv'])
def test_packed_files_are_read(tmp_path, how, shape):
    rng = random.Random(0)
    rows = [dict(prompt=f'问题{k}', response=''.join(rng.choices(PROSE, k=60))) for k in range(3000)]
    body = ''.join(f"{r['prompt']},{r['response']}\n" for r in rows)
    text = dict(lines=json_lines(rows), list=json.dumps(rows), csv='prompt,response\n' + body)[shape]
    path = put(tmp_path/f'a.{how}', PACK[how](text.encode('utf-16' if shape == 'lines' else 'utf-8')))
    assert [r.record for r in rows_of(path)] == rows
    path.write_bytes(path.read_bytes()[:-30])
    *before, end = rows_of(path)
    good = [r.record for r in before if not r.rule]
    assert end.rule == 'broken_file' and good == rows[:len(good)]
    assert len(good) >= len(before) - 1 > 1000, 'all before the break, but for the row that is cut'

@pytest.mark.parametrize('how', PACK)
@pytest.mark.parametrize('at', [0.5, 0.9])
def test_a_damaged_byte_in_a_packed_file_is_noticed(tmp_path, how, at):
    "Its check sum is wrong: something is read, or nothing, but the report says so."
    rng = random.Random(1)
    rows = [dict(prompt=f'问题{k}', response=''.join(rng.choices(PROSE, k=60))) for k in range(3000)]
    data = bytearray(PACK[how](json_lines(rows).encode()))
    data[int(at*len(data))] ^= 0xff
    path = put(tmp_path/f'a.{how}', bytes(data))
    assert rows_of(path)[-1].rule == 'broken_file'

@pytest.mark.parametrize('how', PACK)
def test_a_packed_file_of_which_nothing_is_left(tmp_path, how):
    path = put(tmp_path/f'a.{how}', PACK[how](GOOD.encode())[:20])
    assert sniff(path, [PAIR]) is None and ('cannot be opened: EOFError' if how != 'gz' else 'damaged') in explain(path)

def test_zip_archives_are_read_by_member(tmp_path, runs):
    raw = tmp_path/'raw'
    raw.mkdir()
    with zipfile.ZipFile(raw/'all.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        z.writestr('一/a.jsonl', GOOD)
        z.writestr('heldout/h.jsonl', GOOD.replace('问题', '考题'))
        z.writestr('notes.txt', '没有列')
        z.writestr('__MACOSX/._a', 'x')
        z.writestr('b.json.gz', gzip.compress(GOOD.replace('问题', '压缩').encode()))
        z.writestr('inner.zip', b'PK\x03\x04' + bytes(50))
    with zipfile.ZipFile(raw/'book.xlsx', 'w') as z: z.writestr('[Content_Types].xml', '<x/>')
    with zipfile.ZipFile(raw/'photos.zip', 'w') as z: z.writestr('a.png', b'\x89PNG')
    put(raw/'cut.zip', (raw/'all.zip').read_bytes()[:-40])
    files = run(raw)['files']
    assert files['all.zip/一/a.jsonl']['kept'] == files['all.zip/b.json.gz']['kept'] == 3
    assert files['all.zip/heldout/h.jsonl']['kept'] == 3
    assert 'no known form' in files['all.zip/notes.txt']['note']
    assert 'archive inside an archive' in files['all.zip/inner.zip']['note']
    assert 'save it as CSV' in files['book.xlsx']['note'] and 'none of them readable' in files['photos.zip']['note']
    assert 'note' in files['cut.zip']

@pytest.mark.parametrize('known', [True, False])
def test_the_list_of_an_archive_is_read_once(tmp_path, runs, monkeypatch, known):
    "Not once per file in it, which is quadratic: neither when the files are looked for, read, nor explained."
    raw = tmp_path/'raw'
    put(raw/'a.jsonl', GOOD)
    n = 40
    with zipfile.ZipFile(raw/'z.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        z.writestr('first.jsonl', GOOD.replace('问题', '第一'))
        for k in range(n): z.writestr(f'{k}.jsonl', GOOD.replace('问题', f'第{k}题') if known else f'没有列{k}')
    count = Counter()
    def counted(name, f):
        def call(*a):
            count[name] += 1
            return f(*a)
        return call
    monkeypatch.setattr(zipfile.ZipFile, '_RealGetContents', counted('list', zipfile.ZipFile._RealGetContents))
    monkeypatch.setattr(readers, 'coding_of', counted('coding', readers.coding_of))
    report = run(raw)
    assert report['kept'] == 6 + 3*n*known and report['rules'] == ({} if known else dict(unknown_format=n))
    assert count == dict(list=1, coding=n + 2 if known else 2*n + 2), 'the coding: once to sniff, once to explain'

def test_a_changed_archive_is_read_anew(tmp_path):
    for k, names in enumerate((['a', 'b'], ['c', 'd', 'e'])):
        with zipfile.ZipFile(tmp_path/'z.zip', 'w') as z:
            for name in names: z.writestr(name, GOOD)
        os.utime(tmp_path/'z.zip', (k, k))
        assert [part.name for part in file_parts(tmp_path/'z.zip')] == names
        assert [m.read() for m in members(tmp_path/'z.zip')] == [GOOD.encode()]*len(names)

def test_two_files_of_an_archive_are_open_at_once(tmp_path):
    texts = [json_lines(pairs(3000)), json_lines(pairs(3000)[::-1])]
    with zipfile.ZipFile(tmp_path/'z.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        for k, text in enumerate(texts): z.writestr(f'{k}', text)
    with open_raw(tmp_path/'z.zip', 0) as a, open_raw(tmp_path/'z.zip', 1) as b:
        both = list(zip(a, b, strict=True))
    assert [b''.join(side).decode() for side in zip(*both)] == texts

def exam_folder(root:Path)->Path:
    "A folder of exam papers, two of them behind a link, one with a name in GBK."
    put(root/'real'/'dev'/'law_dev.csv', 'x')
    put(root/'real'/'dev'/gbk('法律_dev.csv'), 'y')
    (root/'exam').mkdir()
    link(root/'exam'/'papers', root/'real')
    put(root/'exam'/'val'/'law_val.csv', 'z')
    return root/'exam'

@pytest.mark.parametrize('kind', ['folder', 'link', 'zip', 'tar'])
def test_members_have_the_names_that_files_have(tmp_path, kind):
    "Folders behind links are read, and names in GBK, wherever the files lie."
    path = exam_folder(tmp_path)
    if kind == 'link': link(tmp_path/'exam.link', path)
    if kind == 'tar':
        with tarfile.open(tmp_path/'exam.tar', 'w', dereference=True) as tar: tar.add(path, '')
    if kind == 'zip':
        with zipfile.ZipFile(tmp_path/'exam.zip', 'w') as z:
            for p in walk_files(path): z.write(p, shown_name(p.relative_to(path)).replace('法律', 'xxxx'))
            z.writestr('__MACOSX/val/._law_val.csv', b'')
        put(tmp_path/'exam.zip', (tmp_path/'exam.zip').read_bytes().replace(b'xxxx', '法律'.encode('gbk')))
    got = {m.name: m.read() for m in members(path if kind == 'folder' else tmp_path/f'exam.{kind}')}
    assert got == {'papers/dev/law_dev.csv': b'x', 'papers/dev/法律_dev.csv': b'y', 'val/law_val.csv': b'z'}

def test_names_in_gbk_and_halves_in_rejects(tmp_path, runs):
    raw = tmp_path/'raw'
    raw.mkdir()
    (raw/gbk('问答.jsonl')).write_text(GOOD + '{"prompt": "坏', encoding='utf-8')
    (raw/(os.fsdecode(b'\xff\xfe.txt') if BYTE_NAMES else 'odd.txt')).write_bytes(b'?')
    put(raw/'wiki', r'{"title": "甲", "text": "这是一个条目，说的是甲这个字的来历。\ud83d"}' + '\n' + r'{"title": "乙\ud83d"}')
    report = run(raw)
    assert report['files']['问答.jsonl'] == dict(source='pair', format='jsonl', rows_in=4, kept=3, rejected=1)
    assert (r'\xff\xfe.txt' if BYTE_NAMES else 'odd.txt') in report['files'] and report['kept'] == 4
    assert shown_name('平常.txt') == '平常.txt'
    assert shown_name(Path('子')/gbk('问答')) == '子/问答'

def test_names_inside_archives_of_chinese_windows(tmp_path):
    with zipfile.ZipFile(tmp_path/'z.zip', 'w') as z: z.writestr('wenda/xxxx.jsonl', GOOD)
    data = (tmp_path/'z.zip').read_bytes().replace(b'xxxx', '问答'.encode('gbk'))
    (tmp_path/'z.zip').write_bytes(data)
    assert [part.name for part in file_parts(tmp_path/'z.zip')] == ['wenda/问答.jsonl']
    assert len(rows_of(tmp_path/'z.zip')) == 3

def test_a_parquet_file_with_a_name_in_gbk(tmp_path):
    name = gbk('问答.parquet')
    with open(tmp_path/name, 'wb') as f: pq.write_table(pa.table(dict(prompt=['问'], response=['答'])), f)
    assert [r.record for r in rows_of(tmp_path/name)] == [dict(prompt='问', response='答')]

def test_only_a_header_is_no_error(tmp_path, runs):
    put(tmp_path/'raw'/'a.csv', 'title,ask,answer\n')
    assert run(tmp_path/'raw')['files']['a.csv']['rows_in'] == 0

@pytest.mark.skipif(not LINKS, reason='Windows lets only administrators make links')
def test_a_folder_is_read_once(tmp_path):
    put(tmp_path/'raw'/'real'/'a', 'x')
    for k in range(3): (tmp_path/'raw'/f'link{k}').symlink_to(tmp_path/'raw'/'real')
    assert sum(p.name == 'a' for p in walk_files(tmp_path/'raw')) == 1
    assert len(walk_files(tmp_path/'raw')) == 4

def test_a_parquet_text_that_is_no_utf8_costs_one_row(tmp_path):
    offsets = pa.py_buffer(b''.join(k.to_bytes(4, 'little') for k in range(4)))
    broken = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b'a\xffc')])
    pq.write_table(pa.table(dict(prompt=broken, response=['1', '2', '3'])), tmp_path/'a')
    assert [(r.line, r.rule) for r in rows_of(tmp_path/'a')] == [(1, ''), (2, 'encoding'), (3, '')]

def test_a_pretty_printed_object_after_another(tmp_path):
    rows = [dict(prompt=f'问{k}', response='答') for k in range(3)]
    path = put(tmp_path/'a', '\n'.join(json.dumps(r, ensure_ascii=False, indent=2) for r in rows))
    assert [r.record for r in rows_of(path)] == rows

def test_memory_stays_bounded(tmp_path):
    "One megabyte pieces of a long line, read through gzip; `tracemalloc` sees what Python holds."
    import tracemalloc
    rows = [dict(instruction=f'问{k}', output='很长的回答'*20) for k in range(60_000)]
    path = put(tmp_path/'a.gz', gzip.compress(json.dumps(rows).encode(), 1))
    del rows
    source = Source(path, *sniff(path, SCHEMAS))
    tracemalloc.start()
    n = sum(not r.rule for r in read_file(source))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == 60_000 and peak < 30*2**20, peak
