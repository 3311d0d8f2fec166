"""Chapter 09's control once more, made even: nothing differs but the first weights and the learning rate.

    python benchmarks/ie_control.py

Needs a finished `make course` at tiny. The chapter's control from new weights reads other old answers than the chat
model and knows nothing of half-width brackets. Here new weights get both: the same training rows, and `twin_marks_`.
`ours` is the chat model of `ie/`, `baseline` this control; the configuration holds the difference on the same sentences
with its 95 % interval."""
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from report import row, write

from scclm.ie_finetune import ie, ie_cfg, scores, start_model, tallies, twin_marks_
from scclm.runs import read_json, require, run_path
from scclm.tokenizer import save_tokenizer
from scclm.triple_files import parse_triples


def fresh_start(folder:Path)->Path:
    "New weights with twin marks, and the tokenizer, as a model folder."
    model, tok = start_model(replace(ie_cfg('tiny'), start='scratch'))
    twin_marks_(model, tok).save_pretrained(folder)
    save_tokenizer(tok, folder)
    return folder

def counts(stage:Path, test:str)->np.ndarray:
    "Per sentence: right, extracted, stated."
    table = pq.read_table(stage/'extracted.parquet').to_pandas()
    rows = table[table.test == test]
    return tallies(*([parse_triples(line)[0] for line in rows[c]] for c in ('extracted', 'stated')))

def paired(a:np.ndarray, b:np.ndarray, n_boot:int=2000)->list[float]:
    "The 95 % interval of the difference of two F1s on the same sentences."
    draws = np.random.default_rng(0).multinomial(len(a), np.full(len(a), 1 / len(a)), size=n_boot)
    return np.quantile(scores(draws @ a)[2] - scores(draws @ b)[2], (.025, .975)).tolist()


def main():
    "Train the control and write results/ie_control.json."
    chat = require(run_path('ie', 'extracted.parquet'), 'ie').parent
    cfg = ie_cfg('tiny')
    start = fresh_start(run_path('ie_control_start'))
    even = replace(cfg, start=str(start), lr=cfg.lr_scratch, twins=False, out=str(run_path('ie_control')))
    run = ie(even, progress=False)
    if not run.done: sys.exit(f'stopped by {run.stopped}; the same command goes on from here')
    if (run.out/'train.parquet').read_bytes() != (chat/'train.parquet').read_bytes():
        raise ValueError('the two runs read different rows: make the course again')
    ours, control = (read_json(folder/'figures.json') for folder in (chat, run.out))
    tests = [k.removesuffix('_ci95') for k in ours if k.endswith('_ci95')]
    rows = [row(test, [ours[test]], [control[test]], 'new weights, same rows and marks', 'share') for test in tests]
    differ = {test: paired(*(counts(stage, test.removeprefix('f1_')) for stage in (chat, run.out))) for test in tests}
    config = dict(scale='tiny', steps=run.cfg.steps, lr=run.cfg.lr, seed=run.cfg.seed, difference_ci95=differ,
                  control_ci95={test: control[f'{test}_ci95'] for test in tests},
                  control_exact_heldout=control['exact_heldout_after'])
    write('ie_control', config, rows)


if __name__ == '__main__': main()
