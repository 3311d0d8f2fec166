"""Which shape and vocabulary for `small`? Short runs on real text that all take the same processor time.

    SCCLM_SCALE=small python benchmarks/shapes.py [--seconds 400] [--only NAME …]

Needs `scclm clean` of real text (see real.py). A variant changes one thing of the first. Its steps come from a probe:
as many as fit into the processor time given (both threads counted, so that a busy machine changes little).
Judged by bits per character of the answers of 1,500 held-out rows, the same for words and for characters.
A variant that is there already is not run again."""
import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from report import RESULTS, row, write
from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration

from scclm.dataset import read_pairs
from scclm.model import build_model, model_config, n_params
from scclm.pretrain import pretrain_cfg
from scclm.runs import require, run_path
from scclm.scores import bits_per_char
from scclm.stage import stage_stream
from scclm.tokenizer import load_tokenizer, tokenizer_cfg, train_tokenizer
from scclm.trainer import Run, fit

class Variant(NamedTuple):
    "One thing that is different."
    shape:dict={} # fields of T5Config
    words:dict={} # fields of TokenizerCfg
    recipe:dict={} # fields of PretrainCfg
    init:str='mimetic' # or stock

VARIANTS = {
    'small': Variant(),
    'stock initialisation': Variant(init='stock'),
    'characters only': Variant(words=dict(max_word_len=1)),
    '16,000 pieces': Variant(words=dict(min_count=50, max_vocab=16_000)),
    'd_model 192, 6 + 6 layers': Variant(dict(d_model=192, d_ff=768, num_heads=6, num_layers=6, num_decoder_layers=6)),
    'd_model 320': Variant(dict(d_model=320, d_ff=1280, num_heads=10)),
    '2 + 6 layers': Variant(dict(num_layers=6, num_decoder_layers=2)),
    'lr 2e-3': Variant(recipe=dict(lr=2e-3)),
    'embedding at 1 x lr': Variant(recipe=dict(emb_lr=1.)),
    'batches of 2,048': Variant(recipe=dict(budget_tok=2048)),
}

def vocabulary(v:Variant)->PreTrainedTokenizerBase:
    "The variant's tokenizer, made once."
    name = '_'.join(str(x) for x in v.words.values()) or 'words'
    folder = run_path(f'tokenizer_{name}')
    if not folder.exists(): train_tokenizer(replace(tokenizer_cfg(), **v.words, out=folder))
    return load_tokenizer(folder)

def train(
    v:Variant, # what to train
    tok:PreTrainedTokenizerBase, # its tokenizer
    steps:int, # how long
)->tuple[Run, float]: # the run, processor seconds
    "Train from nothing."
    cfg = replace(pretrain_cfg('small'), steps=steps, eval_every=0, save_every=10_000, **v.recipe)
    model = build_model(model_config('small', len(tok), **v.shape), v.init, seed=cfg.seed)
    stream, start = stage_stream([require(run_path('data', 'train.parquet'), 'clean')], tok, cfg), time.process_time()
    with tempfile.TemporaryDirectory() as out: run = fit(model, stream, cfg, Path(out), progress=False)
    return run, time.process_time() - start

def trial(
    v:Variant, # what to train
    seconds:float, # processor time
    pairs:list, # held-out rows
)->dict: # what it was and what came of it
    "Probe the speed, train for the time given, score."
    tok = vocabulary(v)
    train(v, tok, 3)
    _, spent = train(v, tok, 20)
    run, spent = train(v, tok, round(20 * seconds / spent))
    if not run.done: sys.exit(f'stopped by {run.stopped}: this variant begins anew next time')
    model:T5ForConditionalGeneration = run.acc.unwrap_model(run.model).eval()
    return dict(bits=bits_per_char(model, tok, pairs, 257), parameters=n_params(model), pieces=len(tok), steps=run.step,
                real_tok=run.real_tok, processor_seconds=round(spent))

def stored(seconds:float)->dict[str, dict]:
    "Variants that were run before with as much time."
    path = RESULTS/'shapes.json'
    config = json.loads(path.read_text(encoding='utf-8'))['config'] if path.exists() else {}
    return config['trials'] if config.get('seconds') == seconds else {}

def main():
    "Run what is missing, write results/shapes.json after each."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--seconds', type=float, default=400, help='processor seconds of each variant')
    p.add_argument('--only', nargs='*', default=list(VARIANTS), help='names of variants')
    a = p.parse_args()
    found = stored(a.seconds)
    pairs = read_pairs(require(run_path('data', 'test.parquet'), 'clean'), 1500)
    for name in dict.fromkeys(['small', *a.only]): # the others are compared with the first
        if name in found: continue
        found[name] = trial(VARIANTS[name], a.seconds, pairs)
        first = found['small']['bits']
        rows = [row(k, [t['bits']], [first], 'small', 'bits per character', False) for k, t in found.items()]
        write('shapes', dict(seconds=a.seconds, trials=found), rows)

if __name__ == '__main__': main()
