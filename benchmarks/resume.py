"""Chapter 02: how much of a batch is real tokens, and how long resuming at 90 % of an epoch takes.

Baselines: random batches of 16 rows; transformers' `get_length_grouped_indices` (group_by_length) on prompt + response, 16 rows;
for resuming, a loader without positions, which must replay the epoch up to there.
Rows come from a parquet file with prompt and response (`--data`), else from data/train.parquet of the scale. The tokenizer has words and
is trained on the same file."""
import argparse, json, statistics, subprocess, sys, tempfile, time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from report import row, write
from transformers.trainer_pt_utils import get_length_grouped_indices

from scclm.data_cleaning import require, run_path
from scclm.dataset import PairStream, kept_lengths, padding_share, permutation, plan_window, real_share
from scclm.tokenizer import TokenizerCfg, load_tokenizer, train_tokenizer


def by_16(order): return np.array_split(np.asarray(order), range(16, len(order), 16))

def shares(args, tok, index_dir):
    "Rows of the table: share of real tokens over a whole epoch, one run a seed."
    open_ = lambda budget, seed: PairStream(args.data, tok, budget, args.max_len, args.window, seed, index_dir=index_dir)
    lens = kept_lengths(np.concatenate(open_(768, 0).planner.lens), args.max_len)
    sums, seeds, res = lens.sum(1).tolist(), range(args.runs), []
    random = [real_share(lens, by_16(permutation(len(lens), s))) for s in seeds]
    grouped = [real_share(lens, by_16(get_length_grouped_indices(sums, 16, generator=torch.Generator().manual_seed(s)))) for s in seeds]
    for budget in args.budget_tok:
        ours = [real_share(lens, [b for w in open_(budget, s).plan(0) for b in w]) for s in seeds]
        for name, base in [('random batches of 16', random), ('group_by_length on the sum, batches of 16', grouped)]:
            res.append(row(f'real tokens, {budget} cells', ours, base, name, 'share'))
    return res

def check_text(args, tok, index_dir, n=500):
    "The planned share is the share of the batches that really come."
    s = PairStream(args.data, tok, 768, args.max_len, args.window, index_dir=index_dir)
    planned = [b for b in islice((b for w in s.plan(0) for b in w), n)]
    lens = kept_lengths(np.concatenate(s.planner.lens), args.max_len)
    for b, rows in zip(islice(s, n), planned):
        assert abs(1 - padding_share(b) - real_share(lens, [rows])) < 1e-9

def plan_ms(args, tok, index_dir):
    "Milliseconds to plan 20,000 rows, median of nine."
    lens = kept_lengths(np.concatenate(PairStream(args.data, tok, index_dir=index_dir).planner.lens), args.max_len)[:20_000]
    times = []
    for i in range(9): t = time.perf_counter(); plan_window(lens, 768, (0, 0, i)); times.append(time.perf_counter() - t)
    return statistics.median(times) * 1e3

def open_at(parquet, tok, index_dir, max_len, window, state):
    "(seconds to open the stream, go to `state` and hold a batch; CPU seconds, which other programs do not disturb; that batch)."
    t, c = time.perf_counter(), time.process_time()
    s = PairStream(parquet, tok, 768, max_len, window, index_dir=index_dir)
    s.load_state_dict(state)
    it = iter(s); b = next(it); seconds, cpu = time.perf_counter() - t, time.process_time() - c
    it.close()
    return seconds, cpu, b['input_ids'].tolist()

def resume(args, tok, tok_dir, index_dir):
    "Row of the table and CPU seconds: each resume in a fresh process; the replay streams every batch of the first 90 %."
    ours, cpu, replay = [], [], []
    for _ in range(args.runs):
        s = PairStream(args.data, tok, 768, args.max_len, args.window, index_dir=index_dir)
        n = int(0.9 * s.n_batches(0))
        t = time.perf_counter()
        it = iter(s)
        for _ in range(n): next(it)
        state, want = s.state_dict(), next(it)['input_ids'].tolist()
        replay.append(time.perf_counter() - t); it.close()
        job = json.dumps([str(args.data), str(tok_dir), str(index_dir), args.max_len, args.window, state])
        out = json.loads(subprocess.run([sys.executable, __file__, '--resume', job], capture_output=True, text=True, check=True).stdout)
        assert out[2] == want, 'the resumed batch differs'
        ours.append(out[0]); cpu.append(out[1])
    return row('resume at 90 %', ours, replay, 'replaying from the start', 'seconds', higher_is_better=False), statistics.median(cpu)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, help='file with prompt and response; default: data/train.parquet of the scale')
    p.add_argument('--budget-tok', type=int, nargs='*', default=[768, 4096], help='cells of a batch')
    p.add_argument('--max-len', type=int, default=256)
    p.add_argument('--window', type=int, default=16384)
    p.add_argument('--min-count', type=int, default=20, help='words seen less often are cut into characters')
    p.add_argument('--runs', type=int, default=3)
    p.add_argument('--resume', help=argparse.SUPPRESS)
    args, _ = p.parse_known_args()
    if args.resume:
        parquet, tok_dir, index_dir, max_len, window, state = json.loads(args.resume)
        return print(json.dumps(open_at(parquet, load_tokenizer(tok_dir), index_dir, max_len, window, state)))
    args.data = args.data or require(run_path('data', 'train.parquet'), '00_data_cleaning')
    with tempfile.TemporaryDirectory() as tmp:
        tok_dir, index_dir = Path(tmp)/'tokenizer', Path(tmp)/'lengths'
        train_tokenizer(TokenizerCfg(files=(args.data,), min_count=args.min_count, min_char_count=args.min_count, out=tok_dir))
        tok = load_tokenizer(tok_dir)
        t = time.perf_counter(); s = PairStream(args.data, tok, 768, args.max_len, args.window, index_dir=index_dir)
        config = dict(file=args.data.name, rows=sum(map(len, s.planner.lens)), vocabulary=len(tok), max_len=args.max_len, window=args.window, min_count=args.min_count,
                      index_seconds=time.perf_counter() - t, plan_20k_rows_ms=plan_ms(args, tok, index_dir))
        check_text(args, tok, index_dir)
        last, config['resume_cpu_seconds'] = resume(args, tok, tok_dir, index_dir)
        write('resume', config, [*shares(args, tok, index_dir), last])

if __name__ == '__main__': main()
