"""Cleaning from a hundred thousand to ten million rows: rows per second and memory, part by part.

    python benchmarks/scale.py --data FILE.parquet [FILE.parquet …] [--rows 100000 300000 1000000 3000000 10000000]

FILEs hold prompt and response. More rows than they have are made by writing them again in other characters: each copy
exchanges the Chinese characters of similar frequency among themselves, so that lengths, marks, exact and near
duplicates stay as they are within a copy and no two copies resemble each other.
`clean()` runs in a process of its own, whose start is not counted. Its memory is told twice, for every part: what the
process and its workers held, shared pages divided among them (PSS, looked at ten times a second: a shorter peak can be
missed); and the sum of what each of them held at most by the kernel's own count (VmHWM, reset when a part begins). That
is a bound: shared pages, and peaks at different times, are added up; only what a worker does in the last tenth of a
second of its life is missed. Sizes that are measured already are kept; results/scale.json is written after each."""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from report import RESULTS, row, write

PARTS = ('fill_spool', 'mark_exact', 'mark_near', 'mark_sft_leaks', 'write_splits', 'write_rejects')
PER_FILE = 250_000 # rows at most
FILES = 8 # at least: files are what the processes share out

STREAMING = ('fill_spool', 'write_splits', 'write_rejects') # read and write row by row

WATCHED = """
import json, sys, time
from pathlib import Path
from scclm import data_cleaning
def tell(**what): print(json.dumps(what), flush=True)
def most():
    lines = Path('/proc/self/status').read_text().splitlines()
    return 1024*next(int(line.split()[1]) for line in lines if line.startswith('VmHWM'))
def timed(name, inner):
    def outer(*args, **named):
        Path('/proc/self/clear_refs').write_text('5') # VmHWM begins anew
        tell(part=name, what='start', at=time.time())
        try: return inner(*args, **named)
        finally: tell(part=name, what='end', at=time.time(), most=most())
    return outer
for name in sys.argv[1].split(): setattr(data_cleaning, name, timed(name, getattr(data_cleaning, name)))
began = time.time()
report = data_cleaning.clean(passes=data_cleaning.Passes(data_cleaning.fill_spool, data_cleaning.mark_near))
tell(report={k: report[k] for k in ('rows_in', 'kept', 'rules')} | dict(seconds=time.time() - began))
"""

def bands(texts:list[str], size:int=64)->list[str]:
    "Chinese characters in groups of similar frequency."
    seen = Counter()
    for t in texts: seen.update(t)
    han = [c for c, _ in seen.most_common() if '\u4e00' <= c <= '\u9fff']
    return [''.join(han[k:k + size]) for k in range(0, len(han), size)]

def exchange(groups:list[str], copy:int)->dict[int, str]:
    "Another order of every group; copy 0 changes nothing."
    rng, table = np.random.default_rng(copy), {}
    for group in groups if copy else []:
        table |= str.maketrans(group, ''.join(rng.permutation(list(group))))
    return table

def copies(table:pa.Table, n:int)->Iterator[pa.Table]:
    "`n` rows in FILES tables or more, none over PER_FILE: the rows themselves, then the same in other characters."
    size = min(PER_FILE, max(1, n // FILES))
    texts = {name: table[name].to_pylist() for name in ('prompt', 'response')}
    groups = bands(texts['response'][:100_000])
    copy = 0
    while n > 0:
        change = exchange(groups, copy)
        for start in range(0, min(n, table.num_rows), size):
            end = min(start + size, n, table.num_rows)
            yield pa.table({name: [t.translate(change) for t in column[start:end]] for name, column in texts.items()})
        n -= table.num_rows
        copy += 1

def most_held(p:psutil.Process)->int:
    "The most bytes that a process has held, by the kernel's count; 0 if it has gone."
    try: lines = Path(f'/proc/{p.pid}/status').read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError): return 0
    return 1024*sum(int(line.split()[1]) for line in lines if line.startswith('VmHWM'))

def shared_out(p:psutil.Process)->int:
    "Bytes that a process holds; a page shared by two counts half in each. 0 if it has gone."
    try: return p.memory_full_info().pss
    except psutil.Error: return 0

class Peaks:
    "The most that a process tree held in each part of its work."
    def __init__(self, pid:int):
        "Begin to look, ten times a second."
        self.part, self.tree, self.workers = 'start', Counter(), Counter()
        self.root = psutil.Process(pid)
        threading.Thread(target=self.look, daemon=True).start()

    def look(self):
        "Until the process is gone."
        while self.root.is_running():
            part = self.part
            try: workers = self.root.children(recursive=True)
            except psutil.Error: return
            held, most = sum(map(shared_out, [self.root, *workers])), sum(map(most_held, workers))
            self.tree[part] = max(self.tree[part], held)
            self.workers[part] = max(self.workers[part], most)
            time.sleep(.1)

def cleaned(raw:Path, runs:Path)->dict:
    "One run of `clean()`, Python's start left out: seconds and peaks of every part, and the report's counts."
    env = os.environ | dict(SCCLM_RAW=str(raw), SCCLM_RUNS=str(runs), SCCLM_SCALE='base')
    command = [sys.executable, '-c', WATCHED, ' '.join(PARTS)]
    child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    peaks, seconds, own, found = Peaks(child.pid), Counter(), Counter(), {}
    for line in child.stdout:
        if not line.startswith('{'): continue
        said = json.loads(line)
        if 'report' in said: found = said['report']
        elif said['what'] == 'start': peaks.part, since = said['part'], said['at']
        else:
            seconds[said['part']] += said['at'] - since
            own[said['part']] = max(own[said['part']], said['most'])
            peaks.part = 'between'
    if child.wait(): sys.exit(f'clean() ended with {child.returncode}')
    if seconds.keys() != set(PARTS): sys.exit(f'{set(PARTS) - seconds.keys()} did not run: the parts have other names')
    bound = {part: own[part] + peaks.workers[part] for part in PARTS}
    return found | dict(parts=dict(seconds), peak=dict(peaks.tree), bound=bound)

def measured(table:pa.Table, n:int, work:Path)->dict:
    "Write `n` rows and clean them, in an empty folder."
    raw, runs = work/'raw', work/'runs'
    raw.mkdir()
    for k, part in enumerate(copies(table, n)): pq.write_table(part, raw/f'{k:03}.parquet')
    size = sum(p.stat().st_size for p in raw.iterdir())
    return cleaned(raw, runs) | dict(raw_bytes=size)

def peaks_of(f:dict)->dict[str, float]:
    "MiB of the whole, of the parts that stream, and the bound of these."
    tree, bound = f['peak'], f['bound']
    return {'peak memory': max(tree.values()) / 2**20,
            'peak memory, streaming parts': max(tree.get(part, 0) for part in STREAMING) / 2**20,
            'peak memory, bound': max(bound.values()) / 2**20,
            'peak memory, bound, streaming parts': max(bound[part] for part in STREAMING) / 2**20}

def rows_of(found:dict[str, dict])->list[dict]:
    "Rows per second and memory of every size, against the smallest."
    least = min(found, key=int)
    speed = {n: f['rows_in'] / f['seconds'] for n, f in found.items()}
    rows, name = [], f'{int(least):,} rows'
    for n in sorted(found, key=int):
        what = f'clean, {int(n):,} rows'
        rows.append(row(what, [speed[n]], [speed[least]], name, 'rows/s'))
        for peak, mib in peaks_of(found[n]).items():
            base = peaks_of(found[least])[peak]
            rows.append(row(f'{what}, {peak}', [mib], [base], name, 'MiB', higher_is_better=False))
    return rows

def main():
    "Measure what is missing."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--data', type=Path, nargs='+', required=True, help='parquet with prompt and response')
    p.add_argument('--rows', type=int, nargs='*', default=[100_000, 300_000, 1_000_000, 3_000_000, 10_000_000])
    p.add_argument('--work', type=Path, help='some 20 GB are wanted here; none: the system\'s folder for such')
    a = p.parse_args()
    path = RESULTS/'scale.json'
    found = json.loads(path.read_text(encoding='utf-8'))['config']['sizes'] if path.exists() else {}
    table = pa.concat_tables([pq.read_table(f, columns=['prompt', 'response']) for f in a.data])
    for n in a.rows:
        if str(n) in found: continue
        with tempfile.TemporaryDirectory(dir=a.work) as work: found[str(n)] = measured(table, n, Path(work))
        write('scale', dict(sizes=found), rows_of(found))

if __name__ == '__main__': main()
