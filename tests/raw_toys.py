"What the tests of raw files share: small files, and a cleaning whose account must balance."
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scclm.data_cleaning import CleanCfg, clean

LINKS = os.name == 'posix' # Windows lets only administrators make them
BYTE_NAMES = sys.platform == 'linux' # file names are bytes of any kind; elsewhere they are text

def gbk(name:str)->str:
    "A file name in GBK; where names are text, the text."
    return os.fsdecode(name.encode('gbk')) if BYTE_NAMES else name

def link(at:Path, to:Path)->Path:
    "A link to a folder; where none can be made, a copy."
    if LINKS: at.symlink_to(to)
    else: shutil.copytree(to, at)
    return at

def tree(root:Path)->dict[str, str]:
    "Every file below a folder, by name, with its SHA-256."
    files = sorted(p for p in root.rglob('*') if p.is_file())
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

def json_line(record:dict, encoding:str='utf-8')->bytes:
    "A record as one line without its end."
    return json.dumps(record, ensure_ascii=False).encode(encoding)

def json_lines(rows:list[dict])->str:
    "Records as JSON Lines."
    return ''.join(json_line(r).decode() + '\n' for r in rows)

def put(path:Path, data:bytes|str)->Path:
    "Write a file."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path

def put_pairs(path:Path, prompts:list, responses:list, size:int|None=None, **more:list)->Path:
    "Write questions and answers as parquet, `size` rows to a row group; `more` columns."
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(prompt=prompts, response=responses, **more)), path, row_group_size=size)
    return path

def put_lines(path:Path, rows:list[dict])->Path:
    "Write records as JSON Lines."
    return put(path, json_lines(rows))

def run(raw:Path, workers:int=1, **fields)->dict:
    "Clean a raw folder with some fields of the configuration; the report, whose account balances."
    report = clean(CleanCfg(raw=raw, workers=workers, progress=False, **fields))
    assert report['rows_in'] == report['kept'] + report['rejected']
    inside = [f for f in report['files'].values() if 'rows_in' in f]
    assert sum(f['rows_in'] for f in inside) + len(report['unrecognised']) == report['rows_in']
    return report
