"""Words or characters: the same corpus and the same number of steps, one model with each vocabulary.

    python benchmarks/pieces.py [--steps 3000]

Needs the data of `make course`. Ours is the word vocabulary of the course, the baseline the character vocabulary of chapter 01. Both
models are then fine-tuned on chapter 09's triples, where names that no vocabulary holds must be copied.
"""
import argparse, json, os, shutil, tempfile
from dataclasses import replace
from pathlib import Path

from report import row, write

from scclm.data_cleaning import require, run_path
from scclm.ie_finetune import ie, ie_cfg
from scclm.pretrain import pretrain, pretrain_cfg
from scclm.tokenizer import tokenizer_cfg, train_tokenizer

def train(words:bool, steps:int)->dict:
    "Vocabulary, pretraining and extraction in the runs folder in force."
    vocab = len(train_tokenizer(replace(tokenizer_cfg('tiny', words=words), out=run_path('tokenizer'))))
    run = pretrain(replace(pretrain_cfg('tiny'), steps=steps, eval_every=0))
    fine = ie(replace(ie_cfg('tiny'), start=str(run.out / 'model'), eval_every=0))
    read = lambda out: json.loads((out / 'figures.json').read_text(encoding='utf-8'))
    return dict(vocab=vocab, seconds=run.seconds) | read(run.out) | {k: v for k, v in read(fine.out).items() if k.startswith('f1_')}

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--steps', type=int, default=pretrain_cfg('tiny').steps, help='optimiser steps of each pretraining')
    a = p.parse_args()
    data, found = [require(run_path(name), '00_data_cleaning') for name in ('data', 'raw')], {}
    for name in ('words', 'characters'):
        with tempfile.TemporaryDirectory() as d:
            for folder in data: shutil.copytree(folder, Path(d) / 'tiny' / folder.name)
            os.environ['SCCLM_RUNS'] = d
            found[name] = train(name == 'words', a.steps)
        print(name, json.dumps({k: v for k, v in found[name].items() if k != 'answers'}, ensure_ascii=False), flush=True)
    w, c = found['words'], found['characters']
    def both(key, *kind): return *([f[key][kind[0]] if kind else f[key]] for f in (w, c)), 'characters'
    rows = [row(f'held-out exact match, {k}', *both('exact_heldout', k), 'share') for k in ('all', 'phrasing', 'template')]
    rows += [row('bits per character, test', *both('bits_per_char'), 'bits', higher_is_better=False),
             row('vocabulary', *both('vocab'), 'tokens', higher_is_better=False),
             row('training time', *both('seconds'), 'seconds', higher_is_better=False)]
    rows += [row(f'triple F1, {k}', *both(f'f1_{k}'), 'F1') for k in ('combination', 'entity')]
    write('pieces', dict(scale='tiny', steps=a.steps, seed=0), rows)

if __name__ == '__main__': main()
