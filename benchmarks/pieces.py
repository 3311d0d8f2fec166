"""Characters or words: the same corpus and the same number of steps, one model with each vocabulary.

    python benchmarks/pieces.py [--steps 4000]

Needs the data of `make course`. `ours` is the word vocabulary that the course uses, `baseline` the characters alone.
"""
import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from report import row, write

from scclm.dataset import read_pairs
from scclm.model import build_model, default_init, model_config
from scclm.pretrain import PretrainCfg, pretrain_cfg
from scclm.runs import require, run_path
from scclm.scores import bits_per_char, heldout_exact
from scclm.stage import stage_stream
from scclm.tokenizer import tokenizer_cfg, train_tokenizer
from scclm.trainer import fit

def trained(words:bool, cfg:PretrainCfg)->dict:
    "Figures of a model trained with words, or with characters only."
    files = [require(run_path('data', 'train.parquet'), 'clean')]
    test = read_pairs(run_path('data', 'test.parquet'), 2000)
    with tempfile.TemporaryDirectory() as d:
        tok = train_tokenizer(replace(tokenizer_cfg('tiny', words=words), out=Path(d)/'tok'))
        model = build_model(model_config('tiny', len(tok)), init=default_init('tiny'), seed=0)
        run = fit(model, stage_stream(files, tok, cfg), cfg, Path(d)/'run')
    return dict(exact=heldout_exact(model, tok), bits=bits_per_char(model, tok, test),
                vocab=len(tok), seconds=run.seconds)

def table(words:dict, chars:dict)->list[dict]:
    "The figures of both, side by side: the course's words against characters."
    than = 'characters'
    rows = [row(f'held-out exact match, {kind}', [words['exact'][kind]], [chars['exact'][kind]], than, 'share')
            for kind in ('all', 'phrasing', 'template')]
    bits = row('bits per character, test', [words['bits']], [chars['bits']], than, 'bits', higher_is_better=False)
    size = row('vocabulary', [words['vocab']], [chars['vocab']], than, 'tokens', higher_is_better=False)
    return [*rows, bits, size]

def main():
    "Train both, print and write the comparison."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--steps', type=int, default=pretrain_cfg('tiny').steps, help='optimiser steps of each model')
    a = p.parse_args()
    cfg = replace(pretrain_cfg('tiny'), steps=a.steps, eval_every=0, save_every=10**9)
    found = {}
    for name, words in [('characters', False), ('words', True)]:
        found[name] = trained(words, cfg)
        print(name, json.dumps(found[name]), flush=True)
    write('pieces', dict(scale='tiny', steps=a.steps, seed=0), table(found['words'], found['characters']))

if __name__ == '__main__': main()
