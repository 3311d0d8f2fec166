"""Which optimiser gets furthest in the same time: validation loss after equal seconds of training at tiny, each with its own full schedule.

    python benchmarks/optimizers.py [--seconds 60] [--seeds 2]

Needs the data and the tokenizer of `make course` (or SCCLM_RUNS pointing at them). The baseline of each row is the optimiser named; ours is
the default of chapter 05. Ratio: its loss over ours, above 1 means the default is better.
"""
import argparse, statistics, tempfile
from dataclasses import replace
from pathlib import Path

from report import row, write

from scclm.data_cleaning import require, run_path
from scclm.model import build_model, default_init, model_config
from scclm.pretrain import pretrain_cfg, stage_eval, stage_stream
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

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--seconds', type=float, default=60, help='training time per run')
    p.add_argument('--seeds', type=int, default=2, help='seeds per optimiser')
    a = p.parse_args()
    tok, files = load_tokenizer(), [require(run_path('data', 'train.parquet'), '00_data_cleaning')]
    base = replace(pretrain_cfg('tiny'), eval_every=0, save_every=10**9)
    figures = stage_eval(tok, base.max_len)
    def train(seed, steps, **kw):
        cfg = replace(base, steps=steps, seed=seed, **kw)
        model = build_model(model_config(cfg.scale, len(tok)), init=default_init(cfg.scale), seed=seed)
        with tempfile.TemporaryDirectory() as d: run = fit(model, stage_stream(files, tok, cfg), cfg, Path(d), progress=False)
        return run.seconds / steps, figures(model)['loss_valid']
    loss, steps = {}, {}
    for name, kw in {'default': {}, **OTHERS}.items():
        steps[name] = round(a.seconds / train(0, 30, **kw)[0])
        loss[name] = [train(seed, steps[name], **kw)[1] for seed in range(a.seeds)]
        print(f'{name:<40} {steps[name]:>6} steps, loss_valid {[round(v, 3) for v in loss[name]]}', flush=True)
    rows = [row(name, loss['default'], loss[name], name, 'nats/token', higher_is_better=False) | dict(steps=steps[name]) for name in OTHERS]
    write('optimizers', dict(seconds=a.seconds, seeds=a.seeds, default=f'{base.optimizer}, lr {base.lr}, emb_lr {base.emb_lr}',
                             steps=steps['default'], loss=statistics.median(loss['default'])), rows)

if __name__ == '__main__': main()
