"""Characters or words: the same corpus and the same number of steps, one model with each vocabulary.

    python benchmarks/pieces.py [--steps 4000]

Needs the data of `make course`. The first column is the character vocabulary of chapter 01, the second (`baseline`) the word vocabulary
that the course uses.
"""
import argparse, json, tempfile
from dataclasses import replace
from pathlib import Path

from report import row, write

from scclm.data_cleaning import require, run_path
from scclm.model import build_model, default_init, model_config
from scclm.pretrain import heldout_exact, pretrain_cfg, read_pairs, bits_per_char, stage_stream
from scclm.tokenizer import tokenizer_cfg, train_tokenizer
from scclm.trainer import fit

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--steps', type=int, default=pretrain_cfg('tiny').steps, help='optimiser steps of each model')
    a = p.parse_args()
    files, test = [require(run_path('data', 'train.parquet'), '00_data_cleaning')], read_pairs(run_path('data', 'test.parquet'), 2000)
    cfg = replace(pretrain_cfg('tiny'), steps=a.steps, eval_every=0, save_every=10**9)
    found = {}
    for name, words in [('characters', False), ('words', True)]:
        with tempfile.TemporaryDirectory() as d:
            tok = train_tokenizer(replace(tokenizer_cfg('tiny', words=words), out=Path(d) / 'tok'))
            model = build_model(model_config('tiny', len(tok)), init=default_init('tiny'), seed=0)
            run = fit(model, stage_stream(files, tok, cfg), cfg, Path(d) / 'run')
        found[name] = dict(exact=heldout_exact(model, tok), bits=bits_per_char(model, tok, test), vocab=len(tok), seconds=run.seconds)
        print(name, json.dumps(found[name]), flush=True)
    c, w = found['characters'], found['words']
    rows = [row(f'held-out exact match, {k}', [c['exact'][k]], [w['exact'][k]], 'words', 'share') for k in ('all', 'phrasing', 'template')]
    rows += [row('bits per character, test', [c['bits']], [w['bits']], 'words', 'bits', higher_is_better=False),
             row('vocabulary', [c['vocab']], [w['vocab']], 'words', 'tokens', higher_is_better=False)]
    write('pieces', dict(scale='tiny', steps=a.steps, seed=0), rows)

if __name__ == '__main__': main()
