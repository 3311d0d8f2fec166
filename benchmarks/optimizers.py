"""Which optimiser gets furthest in the same time: loss after equal seconds of training at tiny, each its full schedule.

    python benchmarks/optimizers.py [--seconds 60] [--seeds 2]

Needs the data and the tokenizer of `make course` (or SCCLM_RUNS pointing at them). The baseline of each row is the
optimiser named; ours is the default of chapter 05. Ratio: its loss over ours, above 1 means the default is better.
"""
import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from report import row, write

from scclm.model import build_model, default_init, model_config
from scclm.pretrain import pretrain_cfg
from scclm.runs import require, run_path
from scclm.stage import stage_eval, stage_stream
from scclm.tokenizer import load_tokenizer
from scclm.trainer import fit

OTHERS = {
    'adamw, emb_lr 1': dict(emb_lr=1.),
    'adamw, lr 2e-3': dict(lr=2e-3),
    'muon for matrices, lr 1e-3': dict(optimizer='muon'),
    'muon for matrices, lr 3e-3, emb_lr 2': dict(optimizer='muon', lr=3e-3, emb_lr=2.),
    'adafactor, scheduled': dict(optimizer='adafactor'),
    'adafactor_relative (the ancestor)': dict(optimizer='adafactor_relative'),
}

class Trained(NamedTuple):
    "What a run cost and what it reached."
    seconds_per_step:float # training time
    loss:float             # on the held-out pairs, nats per token

def parse_args()->argparse.Namespace:
    "What the command line asks for."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--seconds', type=float, default=60, help='training time per run')
    p.add_argument('--seeds', type=int, default=2, help='seeds per optimiser')
    return p.parse_args()

def main():
    "Measure, print, write results/optimizers.json."
    a = parse_args()
    tok, files = load_tokenizer(), [require(run_path('data', 'train.parquet'), 'clean')]
    base = replace(pretrain_cfg('tiny'), eval_every=0, save_every=10**9)
    figures = stage_eval(tok, base.max_len)
    def train(seed:int, steps:int, dials:dict)->Trained:
        "One run from nothing."
        cfg = replace(base, steps=steps, seed=seed, **dials)
        model = build_model(model_config(cfg.scale, len(tok)), init=default_init(cfg.scale), seed=seed)
        with tempfile.TemporaryDirectory() as d:
            run = fit(model, stage_stream(files, tok, cfg), cfg, Path(d), progress=False)
        return Trained(run.seconds / steps, figures(model)['loss_valid'])
    loss, steps = {}, {}
    for name, dials in {'default': {}, **OTHERS}.items():
        steps[name] = round(a.seconds / train(0, 30, dials).seconds_per_step)
        loss[name] = [train(seed, steps[name], dials).loss for seed in range(a.seeds)]
        shown = [round(v, 3) for v in loss[name]]
        print(f'{name:<40} {steps[name]:>6} steps, loss_valid {shown}', flush=True)
    rows = []
    for name in OTHERS:
        compared = row(name, loss['default'], loss[name], name, 'nats/token', higher_is_better=False)
        rows.append(compared | dict(steps=steps[name]))
    default = f'{base.optimizer}, lr {base.lr}, emb_lr {base.emb_lr}'
    write('optimizers', dict(seconds=a.seconds, seeds=a.seeds, default=default, steps=steps['default'],
                             loss=statistics.median(loss['default'])), rows)

if __name__ == '__main__': main()
