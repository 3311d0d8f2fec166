"""Chapter 02: how much of a batch is real tokens, and how long resuming at 90 % of an epoch takes.

Baselines: random batches of 16 rows; transformers' `get_length_grouped_indices` (group_by_length)
on prompt + response, 16 rows; for resuming, a loader without positions, which must replay the epoch up to there.
Rows come from a parquet file with prompt and response (`--data`), else from data/train.parquet of the scale.
The tokenizer has words and is trained on the same file, unless `--tokenizer` names one."""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from report import row, write
from transformers import PreTrainedTokenizerBase
from transformers.trainer_pt_utils import get_length_grouped_indices

from scclm.dataset import PairStream, kept_lengths, padding_share, permutation, plan_window, real_share
from scclm.runs import require, run_path
from scclm.tokenizer import TokenizerCfg, load_tokenizer, train_tokenizer


class Course(NamedTuple):
    "What the streams of this script read."
    data:Path # parquet file with prompt and response
    tok:PreTrainedTokenizerBase
    tok_dir:Path # where the tokenizer lies
    index_dir:Path # where the lengths of the rows are kept
    max_len:int # tokens kept per text
    window:int # rows planned at a time


def open_stream(c:Course, budget_tok:int=768, seed:int=0, rank:int=0, world:int=1)->PairStream:
    "A stream of batches from the beginning of its first epoch."
    return PairStream(c.data, c.tok, budget_tok, c.max_len, c.window, seed, rank, world, index_dir=c.index_dir)


def row_lengths(c:Course)->np.ndarray:
    "(N, 2): tokens of every prompt and response, as they are batched."
    return kept_lengths(np.concatenate(open_stream(c).planner.lens), c.max_len)


def by_16(order:np.ndarray|list[int])->list[np.ndarray]:
    "Batches of 16 rows in the order given."
    return np.array_split(np.asarray(order), range(16, len(order), 16))


def length_grouped(lens:np.ndarray, seed:int)->list[int]:
    "The order of transformers' group_by_length, on prompt + response."
    generator = torch.Generator().manual_seed(seed)
    return get_length_grouped_indices(lens.sum(1).tolist(), 16, generator=generator)


def planned(stream:PairStream)->list[np.ndarray]:
    "Row numbers of every batch of the first epoch."
    return [batch for window in stream.plan(0) for batch in window]


def shares(c:Course, budgets:list[int], runs:int)->list[dict]:
    "Rows of the table: share of real tokens over a whole epoch, one run a seed."
    lens = row_lengths(c)
    random = [real_share(lens, by_16(permutation(len(lens), s))) for s in range(runs)]
    grouped = [real_share(lens, by_16(length_grouped(lens, s))) for s in range(runs)]
    baselines = {'random batches of 16': random, 'group_by_length on the sum, batches of 16': grouped}
    rows = []
    for budget in budgets:
        ours = [real_share(lens, planned(open_stream(c, budget, s))) for s in range(runs)]
        for name, base in baselines.items():
            rows.append(row(f'real tokens, {budget} cells', ours, base, name, 'share'))
    return rows


def check_text(c:Course, n:int=500):
    "The planned share is the share of the batches that really come."
    lens = row_lengths(c)
    stream = open_stream(c)
    for batch, rows in zip(islice(stream, n), planned(stream)):
        assert abs(1 - padding_share(batch) - real_share(lens, [rows])) < 1e-9


def plan_ms(c:Course)->float:
    "Milliseconds to plan 20,000 rows, median of nine."
    lens = row_lengths(c)[:20_000]
    times = []
    for i in range(9):
        start = time.perf_counter()
        plan_window(lens, 768, (0, 0, i))
        times.append(time.perf_counter() - start)
    return statistics.median(times)*1e3


class Resumed(NamedTuple):
    "How a resume went."
    seconds:float # to open the stream, go to the state and hold a batch
    cpu_seconds:float # the same, which other programs do not disturb
    questions:list[list[int]] # ids of that batch's rows, without padding


def questions(batch:dict)->list[list[int]]:
    "Ids of the rows of a batch; the dummy row of a rank without rows is none."
    real = batch['labels'].ne(-100).any(1)
    return [ids[mask == 1].tolist() for ids, mask in zip(batch['input_ids'][real], batch['attention_mask'][real])]


def open_at(c:Course, state:dict, rank:int, world:int)->Resumed:
    "Open a stream in the middle of an epoch and take one batch."
    start, cpu_start = time.perf_counter(), time.process_time()
    stream = open_stream(c, rank=rank, world=world)
    stream.load_state_dict(state)
    it = iter(stream)
    batch = next(it)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    it.close()
    return Resumed(seconds, cpu_seconds, questions(batch))


def resume_apart(c:Course, state:dict, rank:int, world:int)->Resumed:
    "Resume in a fresh process."
    job = json.dumps([*map(str, (c.data, c.tok_dir, c.index_dir)), c.max_len, c.window, state, rank, world])
    command = [sys.executable, __file__, '--resume', job]
    return Resumed(*json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def resume_here(job:str):
    "What the fresh process does: resume and print."
    data, tok_dir, index_dir, max_len, window, state, rank, world = json.loads(job)
    c = Course(Path(data), load_tokenizer(tok_dir), Path(tok_dir), Path(index_dir), max_len, window)
    print(json.dumps(open_at(c, state, rank, world)))


def replayed(c:Course)->tuple[float, dict, list[list[int]]]:
    "Seconds to stream the first 90 % of an epoch, the state there, and the questions of the batch that follows."
    stream = open_stream(c)
    n = int(0.9*stream.n_batches(0))
    start = time.perf_counter()
    it = iter(stream)
    for _ in range(n): next(it)
    state = stream.state_dict()
    want = questions(next(it))
    seconds = time.perf_counter() - start
    it.close()
    return seconds, state, want


def resume(c:Course, runs:int, world:int=4)->tuple[list[dict], list[float]]:
    "Rows of the table, and the CPU seconds of every resume: alone, then each rank of several, one after the other."
    alone, slowest, cpu, replay = [], [], [], []
    for _ in range(runs):
        seconds, state, want = replayed(c)
        replay.append(seconds)
        one = resume_apart(c, state, 0, 1)
        ranks = [resume_apart(c, state, rank, world) for rank in range(world)]
        assert one.questions == want, 'the resumed batch differs'
        for rank, r in enumerate(ranks): assert r.questions == want[rank::world], f'the batch of rank {rank} differs'
        alone.append(one.seconds)
        slowest.append(max(r.seconds for r in ranks))
        cpu += [r.cpu_seconds for r in (one, *ranks)]
    names = {'resume at 90 %': alone, f'resume at 90 %, slowest of {world} ranks': slowest}
    return [row(name, ours, replay, 'replaying from the start', 'seconds', higher_is_better=False)
            for name, ours in names.items()], cpu


def options()->argparse.Namespace:
    "The command line."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, help='file with prompt and response; default: data/train.parquet of the scale')
    p.add_argument('--budget-tok', type=int, nargs='*', default=[768, 4096], help='cells of a batch')
    p.add_argument('--max-len', type=int, default=256)
    p.add_argument('--window', type=int, default=16384)
    p.add_argument('--min-count', type=int, default=20, help='words seen less often are cut into characters')
    p.add_argument('--runs', type=int, default=3)
    p.add_argument('--tokenizer', type=Path, help='folder; none: trained on the file')
    p.add_argument('--resume', help=argparse.SUPPRESS)
    args, _ = p.parse_known_args()
    return args


def measure(c:Course, args:argparse.Namespace):
    "Run everything on one file and write the results."
    start = time.perf_counter()
    stream = open_stream(c)
    index_seconds = time.perf_counter() - start
    config = dict(file=c.data.name, rows=sum(map(len, stream.planner.lens)), vocabulary=len(c.tok), max_len=c.max_len,
                  window=c.window, min_count=args.min_count, index_seconds=index_seconds, plan_20k_rows_ms=plan_ms(c))
    check_text(c)
    last, cpu = resume(c, args.runs)
    config |= dict(resume_cpu_seconds=statistics.median(cpu), resume_cpu_seconds_most=max(cpu))
    write('resume', config, [*shares(c, args.budget_tok, args.runs), *last])


def main():
    "Train a tokenizer on the file, then measure; or be the fresh process that resumes."
    args = options()
    if args.resume:
        resume_here(args.resume)
        return
    data = args.data or require(run_path('data', 'train.parquet'), 'clean')
    with tempfile.TemporaryDirectory() as tmp:
        tok_dir = args.tokenizer or Path(tmp)/'tokenizer'
        counts = dict(min_count=args.min_count, min_char_count=args.min_count)
        if not args.tokenizer: train_tokenizer(TokenizerCfg(files=(data,), out=tok_dir, **counts))
        measure(Course(data, load_tokenizer(tok_dir), tok_dir, Path(tmp)/'lengths', args.max_len, args.window), args)


if __name__ == '__main__': main()
