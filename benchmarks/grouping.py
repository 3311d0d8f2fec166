"""What sorting batches by length costs, and why: rows of one length are alike where texts come from templates.

    python benchmarks/grouping.py [--real PAIRS.parquet] [--steps 300] [--seeds 3]

Needs the data of `make course`. With `--real` it takes 30,000 rows of a file of real pairs instead, with a tokenizer of
their own, and adds them to the result. Ways to make a step: one batch of rows of similar length (the course), as many
random rows, four sorted batches of a quarter each (`accum=4`), which come from four lengths and need no more padding,
and, if asked for, half as many random rows. The loss is taken on held-out rows at equal steps. The gradients are taken
on the weights that the first sorted run has at each point, 64 batches a way unless `--batches` says otherwise:
the cosine of two rows of a batch, and the variance of the batch gradient, from which follows how many random rows a
batch is worth.
"""
import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from report import row, write
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from scclm.dataset import PairIds, PairStream, collate, columns, encode_pairs, pair_batches, read_pairs, real_share
from scclm.model import build_model, load_model, model_config
from scclm.planner import Unplaced
from scclm.pretrain import PretrainCfg, pretrain_cfg, rows_per_batch
from scclm.runs import require, run_path
from scclm.scores import eval_loss
from scclm.tokenizer import load_tokenizer, tokenizer_cfg, train_tokenizer
from scclm.trainer import Run, fit, seq2seq_loss

POINTS = (0, 60, 300) # steps at which the gradients are looked at
WAYS = ('sorted', 'random', 'four lengths', 'half as many random')

class Corpus(NamedTuple):
    "One text to train on."
    name:str                     # sample or real
    file:Path                    # parquet with prompt and response
    tok:PreTrainedTokenizerBase  # trained on it
    train:list[PairIds]          # its rows as ids
    valid:list[dict]             # batches of held-out rows
    cfg:PretrainCfg              # one sorted batch a step
    home:Path                    # a folder that is thrown away

    def stream(self, cfg:PretrainCfg)->PairStream:
        "Batches of rows of similar length."
        return PairStream([self.file], self.tok, cfg.budget_tok, cfg.max_len, seed=cfg.seed,
                          index_dir=self.home/'lengths', too_long=cfg.too_long)

    def n_rows(self)->int:
        "Rows of a random batch: as many as the sorted ones have on average."
        return rows_per_batch(self.stream(self.cfg), len(self.train))

class Random(Unplaced):
    "Shuffled batches of one number of rows, without end."
    def __init__(self, data:list[PairIds], n:int, seed:int):
        "Rows, rows of a batch, the seed of their order."
        self.data, self.n, self.seed = data, n, seed

    def __iter__(self)->Iterator[dict]:
        "Batch after batch, epoch after epoch."
        for rows in shuffled(len(self.data), self.n, self.seed): yield collate([self.data[i] for i in rows])

def shuffled(n_rows:int, n:int, seed:int)->Iterator[list[int]]:
    "Row numbers of random batches, without end."
    g = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(n_rows, generator=g).split(n): yield rows.tolist()

def batches_of(c:Corpus, way:str, n:int)->list[list[PairIds]]:
    "The first batches of an epoch, as rows: sorted or random."
    if way == 'sorted': picked = [b for window in c.stream(c.cfg).plan(0) for b in window]
    else: picked = [rows for rows, _ in zip(shuffled(len(c.train), c.n_rows(), 7), range(n))]
    return [[c.train[i] for i in rows] for rows in picked[:n]]

# Gradients

def gradient(model:nn.Module, rows:list[PairIds])->Tensor:
    "The gradient of the mean loss per token, all parameters in one vector."
    batch = collate(rows)
    model.zero_grad()
    (seq2seq_loss(model, batch) / batch['labels'].ne(-100).sum()).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])

def mean_cosine(model:nn.Module, rows:list[PairIds])->float:
    "Mean cosine of the gradients of two different rows: the square of the sum holds every pair twice."
    total, n = 0., len(rows)
    for r in rows: total = total + nn.functional.normalize(gradient(model, [r]), dim=0)
    return ((total @ total).item() - n) / (n*(n - 1))

def variance(model:nn.Module, batches:list[list[PairIds]])->float:
    "Of the batch gradient, summed over all parameters."
    total, squares, n = 0., 0., len(batches)
    for rows in batches:
        g = gradient(model, rows)
        total, squares = total + g, squares + (g @ g).item()
    return (squares - (total @ total).item()/n) / (n - 1)

def look(c:Corpus, model:nn.Module, n_batches:int, n_cosine:int)->dict[str, tuple[float, float]]:
    "Sorted and random on the same weights: cosine in a batch, variance of its gradient."
    model.eval()
    found = {}
    for way in ('sorted', 'random'):
        batches = batches_of(c, way, n_batches)
        several = [b for b in batches if len(b) > 1][:n_cosine]
        cosines = [mean_cosine(model, b) for b in several]
        found[way] = sum(cosines)/len(cosines), variance(model, batches)
    model.zero_grad()
    model.train()
    return found

def gradient_rows(c:Corpus, step:int, found:dict[str, tuple[float, float]])->list[dict]:
    "Two rows of the result: the cosines, and what a sorted batch is worth in random rows."
    (near, spread), (far, even) = found['sorted'], found['random']
    n = c.n_rows()
    at = f'{c.name}, step {step}'
    return [row(f'{at}: cosine of two rows of a batch', [near], [far], 'random rows', 'cosine'),
            row(f'{at}: random rows that a batch is worth', [n*even/spread], [float(n)], 'random rows', 'rows')]

# Training

@dataclass
class Trial:
    "Callback: held-out loss along the way and, if wanted, a look at the gradients."
    c:Corpus            # trained on
    every:int           # steps between losses
    sizes:tuple=()    # batches looked at, and how many of them for cosines; none: no look
    losses:dict=field(default_factory=dict)   # step -> nats per token
    looks:list=field(default_factory=list)    # rows of the result

    def __call__(self, run:Run):
        "After a step."
        if run.step % self.every == 0:
            self.losses[run.step] = eval_loss(run.model.eval(), self.c.valid)
            run.model.train()
        if self.sizes and run.step in POINTS:
            self.looks += gradient_rows(self.c, run.step, look(self.c, run.model, *self.sizes))

def quarters(cfg:PretrainCfg)->PretrainCfg:
    "The same tokens a step, in four batches."
    return replace(cfg, accum=4, budget_tok=cfg.budget_tok//4)

def train(c:Corpus, way:str, seed:int, trial:Trial):
    "One way of making batches."
    cfg = replace(c.cfg, seed=seed)
    if way == 'four lengths': cfg = quarters(cfg)
    random = {'random': c.n_rows(), 'half as many random': c.n_rows()//2}
    loader = Random(c.train, random[way], seed) if way in random else c.stream(cfg)
    model = build_model(model_config('tiny', len(c.tok)), init='mimetic', seed=seed)
    if trial.sizes: trial.looks += gradient_rows(c, 0, look(c, model, *trial.sizes))
    fit(model, loader, cfg, c.home/c.name, callbacks=[trial], resume=False, progress=False)

def real_tokens(c:Corpus, way:str)->float:
    "Share of the cells of a way's batches that are not padding."
    lens = np.array([(len(pair.prompt), len(pair.response)) for pair in c.train])
    n = c.n_rows()
    sizes = {'random': n, 'half as many random': n//2}
    if way in sizes: batches = [np.array(rows) for rows, _ in zip(shuffled(len(lens), sizes[way], 7), range(500))]
    else:
        cfg = quarters(c.cfg) if way == 'four lengths' else c.cfg
        batches = [b for window in c.stream(cfg).plan(0) for b in window]
    return real_share(lens, batches)

def loss_rows(c:Corpus, ways:list[str], seeds:int, sizes:tuple[int, int])->list[dict]:
    "Every way on every seed: held-out losses; the first sorted run is looked at."
    losses, looks = {way: [] for way in ways}, []
    for seed in range(seeds):
        for way in ways:
            trial = Trial(c, 60, sizes if way == 'sorted' and seed == 0 else ())
            train(c, way, seed, trial)
            losses[way].append(trial.losses)
            looks += trial.looks
            print(c.name, way, seed, trial.losses, flush=True)
    rows = []
    for way in [way for way in ways if way != 'sorted']:
        for step in losses[way][0]:
            pair = [[found[step] for found in losses[name]] for name in (way, 'sorted')]
            rows.append(row(f'{c.name}, step {step}: held-out loss, {way}', *pair, 'sorted', 'nats/token', False))
        rows.append(row(f'{c.name}: cells that are not padding, {way}', [real_tokens(c, way)],
                        [real_tokens(c, 'sorted')], 'sorted', 'share'))
    return looks + rows

# Corpora

def encoded(file:Path, tok:PreTrainedTokenizerBase, cfg:PretrainCfg)->list[PairIds]:
    "Every row of a file, as the stream gives it."
    return encode_pairs(*columns(read_pairs(file)), tok, cfg.max_len, cfg.too_long)

def sample(steps:int, home:Path)->Corpus:
    "The corpus of the course."
    cfg = replace(pretrain_cfg('tiny'), steps=steps, eval_every=0, save_every=10**9)
    tok, file = load_tokenizer(), require(run_path('data', 'train.parquet'), 'clean')
    valid = pair_batches(encoded(run_path('data', 'test.parquet'), tok, cfg)[:500], 8192)
    return Corpus('sample', file, tok, encoded(file, tok, cfg), valid, cfg, home)

def real(path:Path, steps:int, home:Path)->Corpus:
    "30,000 rows of a file of real pairs; 500 more are held out. A batch is larger, for the texts are longer."
    cfg = replace(pretrain_cfg('tiny'), steps=steps, eval_every=0, save_every=10**9, budget_tok=1024)
    table = pq.read_table(path, columns=['prompt', 'response']).drop_null()
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0)).numpy()
    parts = dict(train=order[:30_000], valid=order[30_000:30_500])
    for name, rows in parts.items(): pq.write_table(table.take(rows), home/f'{name}.parquet', row_group_size=4096)
    tok = train_tokenizer(replace(tokenizer_cfg('tiny'), files=(home/'train.parquet',), out=home/'tok'))
    train, valid = (encoded(home/f'{name}.parquet', tok, cfg) for name in parts)
    return Corpus('real', home/'train.parquet', tok, train, pair_batches(valid, 8192), cfg, home)

def trained_rows(c:Corpus, sizes:tuple[int, int])->list[dict]:
    "The pretrained model of the course, if there is one."
    folder = run_path('pretrain', 'model')
    if not folder.exists(): return []
    return gradient_rows(c, pretrain_cfg('tiny').steps, look(c, load_model(folder)[0], *sizes))

def main():
    "Measure, print, add to results/grouping.json."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--real', type=Path, help='parquet of real pairs with prompt and response, instead of the sample')
    p.add_argument('--steps', type=int, default=300, help='optimiser steps of each run')
    p.add_argument('--seeds', type=int, default=3, help='runs of each way')
    p.add_argument('--ways', nargs='+', default=WAYS[:3], choices=WAYS, help='what is compared; sorted is one of them')
    p.add_argument('--batches', type=int, nargs=2, default=(64, 6), help='batches looked at, and for cosines')
    a = p.parse_args()
    sizes = tuple(a.batches)
    with tempfile.TemporaryDirectory() as d:
        c = real(a.real, a.steps, Path(d)) if a.real else sample(a.steps, Path(d))
        looks = [] if a.real else trained_rows(c, sizes)
        rows = looks + loss_rows(c, a.ways, a.seeds, sizes)
        config = dict(steps=a.steps, seeds=a.seeds, budget_tok=c.cfg.budget_tok, rows=c.n_rows(), vocab=len(c.tok))
    write('grouping', {c.name: config}, rows, merge=True)

if __name__ == '__main__': main()
