"""Folders of odd files over the readers of `clean`, `dpo` and `ie`: no traceback, and every row is accounted for.

    python benchmarks/fuzz.py --folders 10000 [--first 0]

A folder is a function of its number. Its files are written here from the definitions of their formats:
JSON Lines, JSON lists, CSV, WikiExtractor text, parquet; in ten encodings, packed or not, with broken rows
among the good ones, or cut and overwritten with random bytes; beside them PDFs, links, archives in archives.
For each file the number of rows is known from the writing and counted again, character by character, from
its bytes; both must be what the reader kept and rejected.
Of a file with random bytes in it only the reader's own account is checked."""
import argparse
import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import os
import random
import shutil
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from scclm.data_cleaning import clean
from scclm.pref_files import pref_files, read_prefs
from scclm.readers import shown_name
from scclm.runs import run_path
from scclm.sources import CleanCfg
from scclm.triple_files import RULES, Rejects, find_duie, read_duie

POOL = ('的一是不在人有我他大中上到和地出道也年得就那要下以生自去之可她里后小心多天能好都然日起成事只作想看文用主行方如前所本面公同三已老'
        '意高把法此理美月明全工己向部正名定女力等最新打便位重走四第次使教西再平真世信北少加化由代入先水')
RARE = '耄耋饕餮魑魅囿皿目'
ENCODINGS = ('utf-8', 'utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32', 'gb18030', 'gbk', 'big5')
PACK = dict(gz=gzip.compress, bz2=bz2.compress, xz=lzma.compress)


class File(NamedTuple):
    "A file that was written."
    name:str # as the report should show it
    rows:int|None # that stand in it, good and bad; None: nobody knows, random bytes are in it


class Text(NamedTuple):
    "Content before it is encoded."
    text:str
    rows:int # that stand in it


def words(rng:random.Random, least:int=18, most:int=50)->str:
    "A sentence of common characters, one in fifty rare."
    n = rng.randint(least, most)
    return ''.join(rng.choice(RARE if rng.random() < 0.02 else POOL) for _ in range(n)) + '。'


# Rows of each reader, and the texts that may come out of them

def clean_row(rng:random.Random, kind:str)->dict:
    "A record of a source of chapter 00."
    ask, answer = words(rng), words(rng)
    if kind == 'belle': return dict(instruction=ask, input='', output=answer)
    if kind == 'medical': return dict(title='', ask=ask, answer=answer)
    if kind == 'pair': return dict(prompt=ask, response=answer)
    if kind == 'wiki': return dict(title=words(rng, 2, 5)[:-1], text=answer)
    role, text = ('role', 'content') if kind == 'messages' else ('from', 'value')
    turns = [{role: 'system', text: words(rng)}] if rng.random() < 0.3 else []
    turns += [{role: 'user', text: ask}, {role: 'assistant', text: answer}]
    return {kind: turns*(2 if rng.random() < 0.1 else 1)}


def dpo_row(rng:random.Random, kind:str)->dict:
    "A preference in one of its ways."
    ask, good, bad = words(rng), words(rng), words(rng)
    turns = [[dict(role='assistant', content=x)] for x in (good, bad)]
    if kind == 'alpaca': return dict(instruction=ask, input='', output=good, rejected=bad)
    if kind == 'outputs': return dict(instruction=ask, input='', output=[good, bad])
    if kind == 'huozi': return dict(prompt=ask, chosen=good, reject=bad)
    if kind == 'turns': return dict(prompt=ask, chosen=turns[0], rejected=turns[1])
    return dict(prompt=ask, chosen=good, rejected=bad)


def ie_row(rng:random.Random, kind:str)->dict:
    "A labelled sentence of DuIE 1.0 or 2.0."
    text = words(rng)
    subject, thing = text[:3], text[4:7]
    slot = {'@value': thing} if kind == 'two' else thing
    label = dict(subject=subject, predicate='是', object=slot, subject_type='甲', object_type='乙')
    return dict(text={'@value': text} if kind == 'table' else text, spo_list=[label])


KINDS = dict(clean=(clean_row, ('belle', 'medical', 'pair', 'wiki', 'messages', 'conversations')),
             dpo=(dpo_row, ('alpaca', 'outputs', 'huozi', 'turns', 'reward')), ie=(ie_row, ('one', 'two', 'table')))


def spoil_record(rng:random.Random, row:dict)->dict:
    "A record with a key missing, or a value that is no text."
    key = rng.choice([*row])
    if rng.random() < 0.4: return {k: v for k, v in row.items() if k != key or len(row) == 1}
    return row | {key: rng.choice([None, float('nan'), float('inf'), True, 3, ['x'], {}, ''])}


def break_json(rng:random.Random, text:str)->str:
    "An object that is no JSON any more, still one object to see."
    at = text.index('": ')
    ways = [text[:-1], text[:at] + text[at + 1:], text[:at + 2] + '坏' + text[at + 2:],
            text.replace('", "', '" "', 1), text.replace('": "', '": ', 1), text.replace('": "', '": "\n', 1),
            text.replace('"', "'"), text[:max(at + 3, len(text)*2//3)]]
    changed = [way for way in ways if way != text]
    return rng.choice(changed)


# Containers

def records(rng:random.Random, reader:str)->tuple[list[dict], str]:
    "Some rows of one kind, a few spoilt, the first of them good."
    make, kinds = KINDS[reader]
    kind = rng.choice(kinds)
    rows = [make(rng, kind) for _ in range(rng.randint(1, 25))]
    return [spoil_record(rng, r) if k and rng.random() < 0.08 else r for k, r in enumerate(rows)], kind


def objects(rng:random.Random, rows:list[dict], one_line:bool)->list[str]:
    "The rows as JSON, a few broken."
    ascii_only = rng.random() < 0.2
    texts = [json.dumps(r, ensure_ascii=ascii_only) for r in rows]
    texts = [break_json(rng, t) if k and rng.random() < 0.08 else t for k, t in enumerate(texts)]
    return [t.replace('\n', ' 坏"') for t in texts] if one_line else texts


def as_lines(rng:random.Random, rows:list[dict], end:str)->Text:
    "JSON Lines, with blank lines."
    lines = objects(rng, rows, True)
    lines = [x for line in lines for x in ([line] if rng.random() < 0.9 else ['', line, '  '])]
    return Text(end.join(lines) + rng.choice(['', end]), len(rows))


def as_list(rng:random.Random, rows:list[dict], end:str)->Text:
    "A JSON list, on one line or on many."
    gap = rng.choice([', ', ',', f',{end}', f'{end},{end} '])
    opening = rng.choice(['[', f'[{end}', f'{end} ['])
    return Text(opening + gap.join(objects(rng, rows, False)) + ']', len(rows))


def as_csv(rng:random.Random, rows:list[dict], end:str)->Text:
    "A table with commas, quotes and line breaks in its fields, and broken records."
    names = [*rows[0]]
    out = io.StringIO()
    delimiter = rng.choice(',,,;\t')
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    writer = csv.writer(out, quoting=quoting, lineterminator=end, delimiter=delimiter)
    empty = ['']*rng.choice([0, 0, 2])
    out.write(end*rng.choice([0, 0, 2]))
    writer.writerow(names + empty)
    inner = '' if end == '\r' else '\n'
    between = f'{inner}第一,二;"三"{inner}\u2028\x0b'
    for k, row in enumerate(rows):
        fields = [str(row.get(name, '')) for name in names]
        dice = rng.random() if k else 1.
        if dice < 0.15 and fields[-1]: fields[-1] = between.join([fields[-1]]*rng.randint(2, 80))
        if 0.15 <= dice < 0.2 and len(fields) > 2: fields = fields[:-1]
        if 0.2 <= dice < 0.25: fields.append('多')
        if 0.25 <= dice < 0.3: out.write(delimiter.join(['"没有闭合', *fields[1:]]) + end)
        else: writer.writerow(fields + empty)
    return Text(out.getvalue(), len(rows))


def as_docs(rng:random.Random, rows:list[dict], end:str)->Text:
    "WikiExtractor text, with quotes in titles and pieces that are no article."
    out, n = [], 0
    for k, row in enumerate(rows):
        title = f'{row["title"]}"引"尾' if rng.random() < 0.2 else row['title']
        head = rng.choice(['id="1" title="{}"', 'subtitle="副" title="{}"', 'title="{}" url="u"']).format(title)
        out.append(f'<doc {head}>{end}{row["text"]}{end}</doc>{end}')
        n += 1
        if k and rng.random() < 0.1:
            out.append(f'没有头尾的一段{end}')
            n += 1
    return Text(''.join(out), n)


def shapes(rows:list[dict], kind:str)->list[Callable]:
    "The containers that can hold the rows."
    flat = {'pair': 2, 'medical': 3, 'belle': 3}.get(kind, 0)
    more = [as_csv, as_csv] if flat and all(isinstance(v, str) for r in rows for v in r.values()) else []
    if kind == 'wiki' and all(set(r) == {'title', 'text'} and r['title'] for r in rows):
        if all(isinstance(v, str) for r in rows for v in r.values()): more += [as_docs, as_docs]
    return [as_lines, as_list, *more]


# The slow count, from the bytes

def count_lines(text:str)->int:
    "JSON Lines: lines that hold something."
    n, filled = 0, False
    for c in text + '\n':
        if c == '\n':
            n += filled
            filled = False
        elif c not in ' \t\r\f\v': filled = True
    return n


def count_docs(text:str)->int:
    "Articles, and stretches between them that hold something."
    n = 0
    while text.strip():
        start = text.find('<doc ')
        if start < 0: return n + 1
        n += bool(text[:start].strip()) + 1
        end = text.find('</doc>', start)
        text = text[end + 6:] if end >= 0 else ''
    return n


def count_list(text:str)->int:
    "Objects of a list without broken ones: braces that open outside of everything."
    n, depth, quoted, escaped = 0, 0, False, False
    for c in text:
        if quoted:
            quoted = c != '"' or escaped
            escaped = c == '\\' and not escaped
        elif c == '"': quoted, escaped = True, False
        elif c == '{':
            n += depth == 0
            depth += 1
        elif c == '}': depth -= 1
    return n


def csv_end(text:str, at:int, delimiter:str)->int:
    "Where the record at `at` ends by the definition of CSV; -1 if a quote is not closed, or something follows it."
    field_start, quoted = True, False
    while at < len(text):
        c = text[at]
        if quoted:
            if c == '"' and text[at + 1:at + 2] == '"': at += 1
            elif c == '"':
                quoted = False
                if text[at + 1:at + 2] not in ('', '\r', '\n', delimiter): return -1
        elif c == '"' and field_start: quoted = True
        elif c == '\n': return at + 1
        field_start = not quoted and c == delimiter
        at += 1
    return -1 if quoted else at


def count_csv(text:str)->int:
    "Records after the header; a broken one ends with its line."
    at, n = 0, -1
    header = text.lstrip('\ufeff\r\n').split('\n', 1)[0]
    delimiter = max(',;\t', key=header.count)
    while at < len(text):
        line_end = text.find('\n', at) + 1 or len(text)
        blank = not text[at:line_end].strip(' \r\n\ufeff')
        end = csv_end(text, at, delimiter)
        at = line_end if blank or end < 0 else end
        n += not blank
    return n


COUNT = dict(as_lines=count_lines, as_docs=count_docs, as_list=count_list, as_csv=count_csv)


def slow_count(data:bytes, encoding:str, shape:str, end:str)->int:
    "Rows of a file by the definition of its format, from its bytes."
    text = data.decode(encoding).removeprefix('\ufeff')
    if end == '\r': text = text.replace('\r', '\n')
    return COUNT[shape](text)


# Files and folders

def encodable(text:str, encoding:str)->bool:
    "Can the encoding write this?"
    with contextlib.suppress(UnicodeEncodeError): return bool(text.encode(encoding)) or True
    return False


def damage(rng:random.Random, data:bytes)->bytes:
    "Cut, overwrite or insert."
    at = rng.randrange(len(data) + 1)
    rubbish = rng.randbytes(rng.randint(1, 60))
    return rng.choice([data[:at], data[:at] + rubbish + data[at + len(rubbish):], data[:at] + rubbish + data[at:],
                       data[:at] + bytes(rng.randint(1, 99)), data*2, data[at:]])


def content(rng:random.Random, reader:str)->tuple[bytes, int|None]:
    "A file's bytes and the rows in it."
    rows, kind = records(rng, reader)
    if reader != 'ie' and rng.random() < 0.06: return parquet(rows, rng)
    shape = rng.choice(shapes(rows, kind))
    end = rng.choice(['\n', '\n', '\n', '\r\n', '\r'])
    made = shape(rng, rows, end)
    encoding = rng.choice(ENCODINGS)
    if not encodable(made.text, encoding): encoding = 'utf-8'
    data = made.text.encode(encoding)
    if rng.random() < 0.25: return damage(rng, data), None
    intact = shape is not as_list or is_json(made.text)
    counted = slow_count(data, encoding, shape.__name__, end) if intact else made.rows
    if counted != made.rows:
        raise AssertionError(f'{shape.__name__} wrote {made.rows} rows, the slow count finds {counted}')
    return data, made.rows


def is_json(text:str)->bool:
    "Is the whole text JSON?"
    with contextlib.suppress(ValueError): return json.loads(text) is not None
    return False


def parquet(rows:list[dict], rng:random.Random)->tuple[bytes, int|None]:
    "A table of the rows whose cells are all text, perhaps of none."
    flat = [r for r in rows if set(r) == set(rows[0]) and all(isinstance(v, str) for v in r.values())]
    columns = {name: pa.array([r[name] for r in flat], pa.string()) for name in rows[0]}
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, row_group_size=rng.choice([3, 1000]))
    known = bool(flat) or all(isinstance(v, str) for v in rows[0].values())
    return (damage(rng, out.getvalue()), None) if rng.random() < 0.3 else (out.getvalue(), len(flat) if known else None)


def put(path:Path, rng:random.Random, reader:str, name:str)->list[File]:
    "Write one file that a reader may know, packed or not."
    data, rows = content(rng, reader)
    how = rng.choice(['', '', '', '', 'gz', 'bz2', 'xz', 'zip'])
    if data[:4] == b'PAR1' and how: rows = None
    if how in PACK: data = PACK[how](data)
    if how in PACK and rng.random() < 0.15: data, rows = damage(rng, data), None
    if how != 'zip':
        in_gbk = rng.random() < 0.1
        (path/(os.fsdecode(name.encode('gbk')) if in_gbk else name)).write_bytes(data)
        return [File(name, rows)]
    box = f'{name}.zip'
    if reader == 'ie': box = f'{name.split(".")[0]}.zip'
    with zipfile.ZipFile(path/box, 'w', zipfile.ZIP_DEFLATED) as z: z.writestr(f'内/{name}', data)
    return [File(box if reader == 'ie' else f'{box}/内/{name}', rows)]


def put_other(path:Path, rng:random.Random, number:int):
    "Write something that is no data."
    way = rng.randrange(9)
    odd = [b'title,ask,answer\n', b'\x1f\x8b\x08\x00', b'PK\x03\x04', b'PAR1PAR1', b'\xff\xfe']
    at = path/f'其他{number}'
    if way == 0: at.write_bytes(rng.randbytes(rng.randint(0, 3000)))
    elif way == 1: at.write_bytes(b'%PDF-1.4\r' + rng.randbytes(500))
    elif way == 2: at.write_text('一段文字\r另一段\r', encoding='utf-8')
    elif way == 3: at.symlink_to(rng.choice([path, path/'nowhere', path.parent]))
    elif way == 4: (path/os.fsdecode(b'\xff%d' % number)).write_bytes(b'')
    elif way == 5: at.write_bytes(rng.choice(odd))
    elif way == 6: at.write_bytes(b'"' + rng.randbytes(40).replace(b'\n', b'') + b'\r')
    elif way == 7: (path/f'.hidden{number}').write_bytes(b'{')
    else:
        inner = io.BytesIO()
        with zipfile.ZipFile(inner, 'w') as z: z.writestr('a.jsonl', '{"prompt": "a", "response": "b"}')
        with zipfile.ZipFile(at, 'w') as z: z.writestr('inner.zip', inner.getvalue())


def make_folder(seed:int, path:Path)->tuple[str, list[File]]:
    "Write folder number `seed`. The reader that it is for, and its files."
    rng = random.Random(seed)
    reader = rng.choice(['clean', 'clean', 'dpo', 'ie'])
    (path/'子').mkdir(parents=True)
    files = []
    for k in range(rng.randint(1, 4)):
        below = rng.choice(['', '子/'])
        name = f'train{k}.json' if reader == 'ie' else f'文件{k}' + rng.choice(['', '.json', '.csv', '.txt'])
        for file in put(path/below, rng, reader, name): files.append(file._replace(name=below + file.name))
    for k in range(rng.randint(0, 3)): put_other(path/rng.choice(['', '子']), rng, k)
    return reader, files


# The account of each reader: file -> rows kept and rejected

def clean_account(folder:Path)->dict[str, int]:
    "Rows that `clean` accounts for, by file; its report and rejects.parquet must agree."
    try:
        report = clean(CleanCfg(raw=folder, workers=1, progress=False))
    except ValueError as e:
        if 'no readable file' in str(e): return {}
        raise
    table = pq.read_table(run_path('data')/'rejects.parquet')
    rejected = Counter(table['file'].to_pylist())
    account = {}
    for name, f in report['files'].items():
        if 'note' in f: continue
        if f['rows_in'] != f['kept'] + rejected[name]: raise AssertionError(f'{name}: {f}, {rejected[name]} in rejects')
        account[name] = f['rows_in']
    if report['rows_in'] != report['kept'] + len(table): raise AssertionError('the report and rejects.parquet differ')
    return account


def dpo_account(folder:Path)->dict[str, int]:
    "Rows that chapter 07 accounts for, by file."
    kept, rejects, count = read_prefs(pref_files((str(folder),)))
    known = [r for r in rejects if r.rule != 'unknown_format']
    account = Counter(p.file for p in kept) + Counter(r.file for r in known)
    read = sum(n for (_, what), n in count.items() if what == 'in')
    if read != account.total(): raise AssertionError('rows were lost')
    return account


def ie_account(folder:Path)->dict[str, int]:
    "Rows that chapter 09 accounts for, by file."
    (folder/'valid.json').write_text(json.dumps(ie_row(random.Random(0), 'one')), encoding='utf-8')
    try: parts, _ = find_duie([folder])
    except ValueError: return {}
    account = {}
    for part, files in parts.items():
        for f in files:
            rejects = Rejects()
            n = len(list(read_duie(f, part, rejects, {})))
            n += sum(r.rule not in RULES for r in rejects.rows)
            read = rejects.report.get(part, {}).get('rows', {}).get('rows', 0)
            if read != n: raise AssertionError(f'{f}: rows were lost')
            account[shown_name(f.relative_to(folder))] = n
    return account


ACCOUNT = dict(clean=clean_account, dpo=dpo_account, ie=ie_account)


class Outcome(NamedTuple):
    "What one folder showed."
    reader:str # clean, dpo or ie
    files:int # written
    rows:int # in files without random bytes
    problems:list[str] # what went wrong


def check_folder(seed:int, root:Path)->Outcome:
    "Make a folder, read it, compare, remove it."
    folder = root/f'{seed}'/'raw'
    os.environ['SCCLM_RUNS'] = str(root/f'{seed}'/'runs')
    problems = []
    reader, files = '', []
    try:
        reader, files = make_folder(seed, folder)
        with contextlib.redirect_stdout(io.StringIO()): account = ACCOUNT[reader](folder)
        for f in files:
            got = account.get(f.name, 0)
            if f.rows is not None and got != f.rows: problems.append(f'{f.name}: {f.rows} rows, {got} accounted for')
    except Exception: # any is a finding
        problems.append(traceback.format_exc())
    if not problems: shutil.rmtree(root/f'{seed}')
    return Outcome(reader, len(files), sum(f.rows or 0 for f in files), problems)


def main():
    "Run the folders, print what went wrong, write the counts."
    from report import RESULTS, write
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--folders', type=int, default=500, help='fewer than in results/fuzz.json leave it as it is')
    p.add_argument('--first', type=int, default=0, help='number of the first folder')
    args = p.parse_args()
    root = Path(tempfile.mkdtemp(prefix='fuzz'))
    began, count, bad = time.time(), Counter(), []
    for seed in range(args.first, args.first + args.folders):
        outcome = check_folder(seed, root)
        count.update({f'folders of {outcome.reader}': 1, 'files': outcome.files, 'rows counted': outcome.rows})
        if outcome.problems:
            bad.append(seed)
            where = f'folder {seed} ({outcome.reader}), kept in {root/str(seed)}:'
            print(where, *outcome.problems, sep='\n  ', flush=True)
    config = dict(vars(args), seconds=round(time.time() - began), bad=bad) | count
    print(json.dumps(config))
    old = RESULTS/'fuzz.json'
    if old.exists() and json.loads(old.read_text(encoding='utf-8'))['config']['folders'] > args.folders: return
    good = args.folders - len(bad)
    write('fuzz', config, [dict(what='odd folders read, every row accounted for', ours=good, baseline=args.folders,
                                baseline_name='folders made', unit='folders', ratio=good/args.folders, runs=1)])



if __name__ == '__main__': main()
