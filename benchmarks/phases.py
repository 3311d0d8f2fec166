"""Where the time of training goes: forward, backward, optimiser, waiting for data, logging, saving.

    python benchmarks/phases.py [--scale tiny] [--steps 1000] [--save-every 100] [--rounds 3]

Trains with the loop and the preset of the course on the course's data (`--scale base`: batch 1 x 320 of made-up tokens). Rows are shares of the whole
run: `ours` writes checkpoints in the background, the baseline writes the same checkpoints in the foreground; alternating, medians."""
import argparse, statistics, tempfile
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import torch
from report import row, write

import scclm.trainer as trainer
from scclm.data_cleaning import require, run_path
from scclm.model import build_model, model_config
from scclm.planner import Shape, Unplaced, fixed_batch
from scclm.pretrain import pretrain_cfg, stage_stream
from scclm.tokenizer import load_tokenizer

PHASES = ('forward', 'backward', 'optimiser', 'data', 'log', 'save')

class Same(Unplaced):
    "The same batch again and again: 1 x 320 random tokens."
    def __init__(self, config, n:int=320): self.batch = fixed_batch(config, Shape(1, n, n))
    def __iter__(self): return repeat(self.batch)

def in_foreground(self, job, *args): job(*args)

def session(scale:str, cfg, background:bool)->dict:
    "phase -> share of the run, and all seconds, of one run."
    tok = None if scale == 'base' else load_tokenizer()
    vocab = 29298 if scale == 'base' else len(tok)
    stream = Same(model_config(scale, vocab)) if scale == 'base' else stage_stream([require(run_path('data', 'train.parquet'), '00_data_cleaning')], tok, cfg)
    model, real = build_model(model_config(scale, vocab), seed=0), trainer.Writer.__call__
    if not background: trainer.Writer.__call__ = in_foreground
    try:
        with tempfile.TemporaryDirectory() as out: run = trainer.fit(model, stream, cfg, Path(out), progress=False)
    finally: trainer.Writer.__call__ = real
    table = trainer.phase_table(run)
    return table.share.to_dict() | dict(seconds=table.seconds.sum(), tok=run.real_tok)

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--scale', default='tiny', choices=['tiny', 'base'])
    p.add_argument('--steps', type=int, default=0, help='0: 1000 at tiny, 12 at base')
    p.add_argument('--save-every', type=int, default=0, help='0: 100 at tiny, 6 at base')
    p.add_argument('--rounds', type=int, default=3)
    a = p.parse_args()
    few = a.scale == 'base'
    cfg = replace(pretrain_cfg(a.scale), steps=a.steps or (12 if few else 1000), save_every=a.save_every or (6 if few else 100), eval_every=0,
                  precision='fp32', accum=1, log_every=1 if few else 25)
    runs = [[session(a.scale, cfg, background) for background in (True, False)] for _ in range(a.rounds)]
    share = lambda k, who: [r[who].get(k, 0.) for r in runs]
    rows = [row(f'{a.scale}: {k}', share(k, 0), share(k, 1), 'checkpoints in the foreground', 'share of the run', higher_is_better=False) for k in PHASES]
    rows.append(row(f'{a.scale}: real tokens/s, all included', *([r[w]['tok'] / r[w]['seconds'] for r in runs] for w in (0, 1)), 'checkpoints in the foreground', 'tokens/s'))
    write('phases', {a.scale: dict(steps=cfg.steps, save_every=cfg.save_every, log_every=cfg.log_every, threads=torch.get_num_threads(), rounds=a.rounds)}, rows, merge=True)
    for k, most in (('data', .01), ('save', .02), ('log', .005)): print(f"{k}: {statistics.median(share(k, 0)):.2%} of the run, asked at most {most:.1%}")

if __name__ == '__main__': main()
