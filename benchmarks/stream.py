"""Chapter 02's stream: how well it shuffles by the size of its window, and what it holds over three epochs.

    python benchmarks/stream.py --data FILE.parquet

Shuffling is measured on the plan of an epoch, which needs lengths alone: how much of the file's order is left (rank
correlation), and how far apart in the file rows are that follow each other (1: as after a full shuffle). The baseline
is a shuffle buffer of as many rows, PyTorch's. Rows of the file are divided into row groups of several sizes.
Memory is VmRSS and VmHWM of a fresh process that streams the file three times; the baseline holds its rows as ids.
The tokenizer has words and is trained on the same file, unless `--tokenizer` names one."""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from report import row, write

from scclm.dataset import EpochPlan, PairDataset, PairStream, length_index
from scclm.runs import require, run_path
from scclm.streaming import epoch_order, file_order_kept, neighbours_apart
from scclm.tokenizer import TokenizerCfg, load_tokenizer, train_tokenizer

WINDOWS = (1024, 4096, 16384, 65536)
GROUPS = (1024, 4096, 10_000)
PARTS = ('shuffle', 'memory')


def own_memory(field:str)->float:
    "MiB of this process that the kernel calls VmRSS (now) or VmHWM (the most so far)."
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def cut(rows:int, group:int)->list[int]:
    "Sizes of row groups."
    return [min(group, rows - first) for first in range(0, rows, group)]


def buffered(rows:int, buffer:int, seed:int)->np.ndarray:
    "Row numbers in the order that a shuffle buffer gives."
    from torch.utils.data.datapipes.iter import IterableWrapper, Shuffler
    pipe = Shuffler(IterableWrapper(range(rows)), buffer_size=buffer).set_seed(seed)
    return np.array(list(pipe))


def figures(name:str, window:int, orders:list[np.ndarray])->dict:
    "Medians over the seeds, and the single ones."
    kept, apart = ([figure(o) for o in orders] for figure in (file_order_kept, neighbours_apart))
    return dict(name=name, window=window, kept=statistics.median(kept), apart=statistics.median(apart),
                kept_runs=kept, apart_runs=apart)


def shuffled(lens:np.ndarray, seeds:int)->list[dict]:
    "Both figures for every size of row group and window, and for the buffer."
    found, windows = [], (*WINDOWS, len(lens)) # the last one: the whole file
    for group in GROUPS:
        for window in windows:
            plans = [EpochPlan([lens], [cut(len(lens), group)], window=window, seed=s) for s in range(seeds)]
            found.append(figures(f'数据流，{group} 行一组', window, [epoch_order(p) for p in plans]))
    for window in windows:
        orders = [buffered(len(lens), window, s) for s in range(seeds)]
        found.append(figures('洗牌缓冲区', window, orders))
    return found


def shuffle_rows(found:list[dict])->list[dict]:
    "Rows of the table: the course's row groups against the buffer."
    rows, buffers = [], {f['window']: f for f in found if f['name'] == '洗牌缓冲区'}
    for f in found:
        if '4096' not in f['name']: continue
        base, at = buffers[f['window']], f"window {f['window']:,}"
        rows.append(row(f'order of the file kept, {at}', f['kept_runs'], base['kept_runs'],
                        'a shuffle buffer of as many rows', 'rank correlation', higher_is_better=False))
        rows.append(row(f'neighbours apart, {at}', f['apart_runs'], base['apart_runs'],
                        'a shuffle buffer of as many rows', 'of a full shuffle'))
    return rows


def streamed(job:list)->dict:
    "What the fresh process does: stream so many epochs, and look at its memory after each."
    data, tok_dir, index_dir, epochs = job
    stream = PairStream(data, load_tokenizer(tok_dir), index_dir=Path(index_dir), n_epochs=epochs)
    start, held, epoch = own_memory('VmRSS'), [], 0
    for _ in stream:
        if stream.pos.epoch == epoch: continue
        held.append(own_memory('VmRSS'))
        epoch = stream.pos.epoch
    return dict(start_mib=start, rss_mib=held, peak_mib=own_memory('VmHWM'))


def in_memory(job:list)->dict:
    "What the other fresh process does: hold every row as ids."
    data, tok_dir, index_dir, _ = job
    tok, start = load_tokenizer(tok_dir), own_memory('VmRSS')
    rows = PairDataset.from_parquet(Path(data), tok)
    return dict(start_mib=start, rows=len(rows), rss_mib=own_memory('VmRSS'), peak_mib=own_memory('VmHWM'))


def apart(what:str, job:list)->dict:
    "Run `streamed` or `in_memory` in a process of its own."
    command = [sys.executable, __file__, what, json.dumps(job)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def options()->argparse.Namespace:
    "The command line."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, help='with prompt and response; none: data/train.parquet of the scale')
    p.add_argument('--tokenizer', type=Path, help='folder; none: trained on the file')
    p.add_argument('--seeds', type=int, default=5)
    p.add_argument('--epochs', type=int, default=3)
    p.add_argument('--parts', nargs='*', choices=PARTS, default=PARTS, help='what to measure; the other figures stay')
    p.add_argument('--streamed', help=argparse.SUPPRESS)
    p.add_argument('--in-memory', help=argparse.SUPPRESS)
    args, _ = p.parse_known_args()
    return args


def measure_shuffle(data:Path, tok_dir:Path, index_dir:Path, seeds:int):
    "Both figures of the plan, into the results."
    lens = np.concatenate(length_index(data, load_tokenizer(tok_dir), index_dir))
    found = shuffled(lens, seeds)
    config = dict(file=data.name, rows=len(lens), seeds=seeds, windows=WINDOWS, groups=GROUPS, shuffle=found)
    write('stream', config, shuffle_rows(found), merge=True)


def measure_memory(data:Path, tok_dir:Path, index_dir:Path, epochs:int):
    "What streaming holds, and what holding everything holds, into the results."
    length_index(data, load_tokenizer(tok_dir), index_dir)
    job = [*map(str, (data, tok_dir, index_dir)), epochs]
    memory, held = apart('--streamed', job), apart('--in-memory', job)
    most, whole = (m['peak_mib'] - m['start_mib'] for m in (memory, held))
    rows = [row(f'resident memory, epoch {epochs}', [memory['rss_mib'][-1]], [memory['rss_mib'][0]], 'epoch 1', 'MiB',
                higher_is_better=False),
            row('memory that streaming adds', [most], [whole],
                'all rows as ids in memory', 'MiB', higher_is_better=False)]
    config = dict(file=data.name, rows=held['rows'], epochs=epochs, memory=memory, in_memory=held)
    write('stream', config, rows, merge=True)


def main():
    "Train a tokenizer on the file, then measure; or be a fresh process."
    args = options()
    if args.streamed or args.in_memory:
        found = streamed(json.loads(args.streamed)) if args.streamed else in_memory(json.loads(args.in_memory))
        print(json.dumps(found))
        return
    data = args.data or require(run_path('data', 'train.parquet'), 'clean')
    with tempfile.TemporaryDirectory() as tmp:
        tok_dir = args.tokenizer or Path(tmp)/'tokenizer'
        cfg = TokenizerCfg(files=(data,), out=tok_dir, min_count=20, min_char_count=20)
        if not args.tokenizer: train_tokenizer(cfg)
        given = data, tok_dir, Path(tmp)/'lengths'
        if 'shuffle' in args.parts: measure_shuffle(*given, args.seeds)
        if 'memory' in args.parts: measure_memory(*given, args.epochs)


if __name__ == '__main__': main()
