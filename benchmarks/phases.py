"""Where the time of training goes: forward, backward, optimiser, waiting for data, logging, saving.

    python benchmarks/phases.py [--scale tiny] [--steps 1000] [--save-every 100] [--rounds 3]

Trains with the loop and the preset of the course on the course's data (`--scale base`: batch 1 x 320 of made-up
tokens). Rows are shares of the whole run: `ours` writes checkpoints in the background, the baseline writes the
same checkpoints in the foreground; alternating, medians."""
import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import torch
from report import row, write
from transformers import T5Config

import scclm.trainer as trainer
from scclm.model import build_model, model_config
from scclm.planner import Shape, Unplaced, fixed_batch
from scclm.pretrain import PretrainCfg, pretrain_cfg
from scclm.runs import require, run_path
from scclm.stage import stage_stream
from scclm.tokenizer import load_tokenizer
from scclm.trainer_options import phase_table

PHASES = ('forward', 'backward', 'optimiser', 'data', 'log', 'save')
ASKED = dict(data=.01, save=.02, log=.005) # largest share of a run


class Same(Unplaced):
    "The same batch again and again: 1 x 320 random tokens."
    def __init__(self,
        config:T5Config, # gives the vocabulary
        n:int=320, # tokens of the prompt and of the answer
    ):
        "Draw the batch."
        self.batch = fixed_batch(config, Shape(1, n, n))

    def __iter__(self)->Iterator[dict]: # without end
        "The batch, for ever."
        return repeat(self.batch)


def in_foreground(
    self:trainer.Writer, # would work in the background
    job:Callable, # writes a checkpoint
    *args:object, # of `job`
):
    "In place of `Writer.__call__`: do the job now."
    job(*args)


def session(
    scale:str, # tiny or base
    cfg:PretrainCfg, # of the run
    background:bool, # where checkpoints are written
)->dict[str, float]: # phase -> share of the run; seconds and real tokens of the whole
    "Train once and say where the time went."
    if scale == 'base':
        config = model_config(scale, 29298)
        stream = Same(config)
    else:
        tok = load_tokenizer()
        config = model_config(scale, len(tok))
        stream = stage_stream([require(run_path('data', 'train.parquet'), 'clean')], tok, cfg)
    model, real = build_model(config, seed=0), trainer.Writer.__call__
    if not background: trainer.Writer.__call__ = in_foreground
    try:
        with tempfile.TemporaryDirectory() as out:
            run = trainer.fit(model, stream, cfg, Path(out), progress=False)
    finally:
        trainer.Writer.__call__ = real
    table = phase_table(run)
    return table.share.to_dict() | dict(seconds=table.seconds.sum(), tok=run.real_tok)


def make_rows(
    scale:str, # of the runs
    ours:list[dict], # of `session`, checkpoints in the background
    theirs:list[dict], # in the foreground
)->list[dict]: # a row a phase, and one for the speed
    "Shares of the phases, and tokens per second."
    against = 'checkpoints in the foreground'
    rows = []
    for k in PHASES:
        shares = [[r.get(k, 0.) for r in runs] for runs in (ours, theirs)]
        rows.append(row(f'{scale}: {k}', *shares, against, 'share of the run', higher_is_better=False))
    speeds = [[r['tok']/r['seconds'] for r in runs] for runs in (ours, theirs)]
    return [*rows, row(f'{scale}: real tokens/s, all included', *speeds, against, 'tokens/s')]


def main():
    "Run both ways in turn and write results/phases.json."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--scale', default='tiny', choices=['tiny', 'base'])
    parser.add_argument('--steps', type=int, default=0, help='0: 1000 at tiny, 12 at base')
    parser.add_argument('--save-every', type=int, default=0, help='0: 100 at tiny, 6 at base')
    parser.add_argument('--rounds', type=int, default=3)
    args = parser.parse_args()
    steps, save_every, log_every = (12, 6, 1) if args.scale == 'base' else (1000, 100, 25)
    cfg = replace(pretrain_cfg(args.scale), steps=args.steps or steps, save_every=args.save_every or save_every,
                  eval_every=0, precision='fp32', accum=1, log_every=log_every)
    ours, theirs = [], []
    for _ in range(args.rounds):
        ours.append(session(args.scale, cfg, background=True))
        theirs.append(session(args.scale, cfg, background=False))
    config = dict(steps=cfg.steps, save_every=cfg.save_every, log_every=cfg.log_every,
                  threads=torch.get_num_threads(), rounds=args.rounds)
    write('phases', {args.scale: config}, make_rows(args.scale, ours, theirs), merge=True)
    for k, most in ASKED.items():
        share = statistics.median(r.get(k, 0.) for r in ours)
        print(f'{k}: {share:.2%} of the run, asked at most {most:.1%}')


if __name__ == '__main__': main()
