"""What chapter 09's extraction forgets when no old answers are mixed in, and what mixing them in costs extraction.

    python benchmarks/ie_forget.py

Needs a finished `make course` at tiny. `ours` is the model of `ie/`, `baseline` the same steps on extraction alone;
then a twentieth of the steps on extraction alone, the marks left as they were (`ours`) and made twins (`baseline`).
The configuration holds, for every model, how a sample of the old questions is answered."""
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from report import row, write

from scclm.ie_finetune import IeCfg, ie, ie_cfg
from scclm.model import load_model
from scclm.runs import read_json, require, run_path
from scclm.scores import greedy_answers
from scclm.stage import heldout_sample

MARKS = str.maketrans('', '', ',()[]，（）。“”《》')
WAYS = ('exact', 'marks only', 'did not stop', 'wrong') # how an answer differs

def how(said:str, want:str)->str:
    "In what an answer differs from the one wanted."
    if said == want: return WAYS[0]
    said, want = said.translate(MARKS), want.translate(MARKS)
    if said == want: return WAYS[1]
    return WAYS[2] if said.startswith(want) and not said[len(want)].isdigit() else WAYS[3]

def shares(stage:Path)->dict[str, float]:
    "How the model of a stage answers 200 held-out questions."
    pairs = heldout_sample(200)
    said = greedy_answers(*load_model(stage/'model'), [question for question, _ in pairs])
    found = Counter(how(answer, want) for answer, (_, want) in zip(said, pairs))
    return {way: found[way] / len(pairs) for way in WAYS}

def trained(cfg:IeCfg, name:str)->Path:
    "Train on extraction alone; the stage's folder."
    run = ie(replace(cfg, mix=0., epochs=0., n_watch=0, eval_every=0, out=str(run_path(name))), progress=False)
    if not run.done: sys.exit(f'stopped by {run.stopped}; the same command goes on from here')
    return run.out


def main():
    "Train three times and write results/ie_forget.json."
    mixed = require(run_path('ie', 'figures.json'), 'ie').parent
    cfg = ie_cfg('tiny')
    short = replace(cfg, steps=cfg.steps // 20, max_test=5)
    stages = dict(mixed=mixed, alone=trained(cfg, 'ie_forget'), short=trained(short, 'ie_forget_short'),
                  short_without_twins=trained(replace(short, twins=False), 'ie_forget_short_without_twins'))
    figures = {name: read_json(stage/'figures.json') for name, stage in stages.items()}
    asked = [k.removesuffix('_ci95') for k in figures['mixed'] if k.endswith('_ci95')] + ['exact_heldout_after']
    rows = [row(k, [figures['mixed'][k]], [figures['alone'][k]], 'extraction alone', 'share') for k in asked]
    early = (figures[name]['exact_heldout_after'] for name in ('short_without_twins', 'short'))
    rows.append(row('exact_heldout_after, early, without twins', *([x] for x in early), 'early, twins', 'share'))
    config = dict(scale='tiny', steps=cfg.steps, early_steps=short.steps, lr=cfg.lr, mix=cfg.mix, seed=cfg.seed,
                  n_heldout=figures['mixed']['exact_heldout_n'],
                  before=figures['mixed']['exact_heldout_before'],
                  answers={name: shares(stage) for name, stage in stages.items()})
    write('ie_forget', config, rows)


if __name__ == '__main__': main()
