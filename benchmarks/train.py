"""Training speed in real tokens per second: our loop, Seq2SeqTrainer (default, grouped by length), the ancestor's loop.

    python benchmarks/train.py [--data PAIRS.parquet] [--rounds 3] [--steps 20]

Same model (tiny, dropout 0.1, fp32), same data, alternating, medians. Real tokens are prompt and answer tokens; padding
does not count. Dropout has the same rate for all; ours draws its masks from random bits (`fast_dropout_`), the others
from PyTorch's. A step of ours is two batches of half the size (`accum=2`), everyone else's is one: steps hold as many
tokens. Two and not one or four was chosen by the last row's comparison on seeds 0 to 2; the row itself is taken on
other seeds. The bf16 row is measured only where the device is fast in bf16. The last row asks whether sorting by length
costs anything: held-out loss after an equal number of real tokens, ours against random batches of 16, three seeds
(3 to 5).
"""
import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import torch
from report import row, write
from torch import nn
from transformers import PreTrainedTokenizerBase

from scclm.dataset import PairDataset, PairStream, collate, pair_batches
from scclm.model import build_model, model_config
from scclm.planner import Unplaced
from scclm.pretrain import PretrainCfg, hf_fit
from scclm.runs import run_path
from scclm.scores import eval_loss
from scclm.tokenizer import TokenizerCfg, train_tokenizer
from scclm.trainer import Run, fit, probe_precision

BASELINES = dict(default='Seq2SeqTrainer default', grouped='Seq2SeqTrainer group_by_length',
                 ancestor="a loop like the ancestor's")

class Setup(NamedTuple):
    "What all compared trainers share."
    home:Path                    # a folder that is thrown away
    files:list[Path]             # parquet with prompt and response
    tok:PreTrainedTokenizerBase  # trained on them
    data:PairDataset             # the same rows as ids
    cfg:PretrainCfg              # of our loop

def fresh(tok:PreTrainedTokenizerBase)->nn.Module:
    "The model that everyone trains."
    return build_model(model_config('tiny', len(tok), dropout_rate=0.1), init='stock', seed=0)

def timed(fn:Callable[[nn.Module], None], model:nn.Module)->float:
    "Real tokens per second between a training function's first and last forward pass: set-up is left out for everyone."
    seen, stamps = [], []
    def count(module:nn.Module, args:tuple, kwargs:dict):
        "Before each forward pass: when, and how many real tokens."
        stamps.append(time.perf_counter())
        labels, inputs = kwargs.get('labels'), kwargs.get('decoder_input_ids')
        if labels is not None: answer = labels.ne(-100).sum()
        else: answer = inputs.ne(0).sum() + len(inputs)
        seen.append(int(kwargs['attention_mask'].sum() + answer))
    model.register_forward_pre_hook(count, with_kwargs=True)
    fn(model)
    return sum(seen[:-1]) / (stamps[-1] - stamps[0])

def ours(model:nn.Module, s:Setup, cfg:PretrainCfg):
    "The loop of the course."
    stream = PairStream(s.files, s.tok, budget_tok=cfg.budget_tok, max_len=cfg.max_len, seed=0,
                        index_dir=s.home/'lengths')
    fit(model, stream, cfg, s.home/'ours', resume=False, progress=False)

def theirs(model:nn.Module, s:Setup, **overrides:object):
    "Seq2SeqTrainer, one batch a step."
    hf_fit(model, s.tok, s.files, replace(s.cfg, accum=1), s.home/'hf', batch_size=16, **overrides)

def ancestor(model:nn.Module, s:Setup):
    """A plain loop in the ancestor's manner: shuffled batches of 16 padded to their longest, Adafactor with its own
    steps, loss read every step."""
    from transformers.optimization import Adafactor
    loader = torch.utils.data.DataLoader(s.data, batch_size=16, shuffle=True, collate_fn=collate)
    opt = Adafactor(model.parameters(), relative_step=True)
    model.train()
    for batch in islice(loader, s.cfg.steps):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        opt.step()
        opt.zero_grad()
        loss.item()

class Random(Unplaced):
    "Shuffled batches of 16, padded to their longest, without end."
    def __init__(self, data:list, seed:int):
        "Pairs of ids, and the seed of their order."
        self.data, self.seed = data, seed

    def __iter__(self)->Iterator[dict]:
        "Batch after batch, epoch after epoch."
        g = torch.Generator().manual_seed(self.seed)
        while True:
            for rows in torch.randperm(len(self.data), generator=g).split(16):
                yield collate([self.data[i] for i in rows.tolist()])

def loss_after(loader:object, s:Setup, cfg:PretrainCfg, valid:list[dict], real_tok:int)->float:
    "Held-out loss, nats per token, after so many real tokens."
    def enough(run:Run):
        "Ends the run."
        if run.real_tok >= real_tok: run.end('enough')
    model = build_model(model_config('tiny', len(s.tok), dropout_rate=0.1), init='mimetic', seed=cfg.seed)
    fit(model, loader, cfg, s.home/'loss', callbacks=[enough], resume=False, progress=False)
    return eval_loss(model.eval(), valid)

def loss_row(s:Setup, real_tok:int)->dict:
    "Ours against random batches at equal real tokens; the last 500 rows are held out."
    n = len(s.data) - 500
    valid = pair_batches([s.data[i] for i in range(n, len(s.data))], 8192)
    train = [s.data[i] for i in range(n)]
    part = s.home/'part.parquet'
    pq.write_table(pq.read_table(s.files[0]).slice(0, n), part, row_group_size=4096)
    sorted_loss, random_loss = [], []
    for seed in range(3, 6):
        cfg = replace(s.cfg, seed=seed, steps=10**6, schedule='constant', warmup=2e-5)
        stream = PairStream([part], s.tok, budget_tok=cfg.budget_tok, max_len=cfg.max_len, seed=seed,
                            index_dir=s.home/'lengths')
        sorted_loss.append(loss_after(stream, s, cfg, valid, real_tok))
        random_loss.append(loss_after(Random(train, seed), s, replace(cfg, accum=1), valid, real_tok))
        print(f'seed {seed}: held-out loss {sorted_loss[-1]:.3f} ours, {random_loss[-1]:.3f} random batches',
              flush=True)
    return row('loss at equal real tokens', sorted_loss, random_loss, 'random batches of 16', 'nats/token',
               higher_is_better=False)

def set_up(home:Path, a:argparse.Namespace)->Setup:
    "Rows drawn at random, a tokenizer of their own, and batches of as many tokens as 16 rows hold."
    files = [home/'train.parquet']
    table = pq.read_table(a.data, columns=['prompt', 'response'])
    drawn = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))[:a.rows].numpy()
    pq.write_table(table.take(drawn), files[0], row_group_size=4096)
    tok = train_tokenizer(TokenizerCfg(files=tuple(files), out=home/'tokenizer', min_count=100, min_char_count=10))
    data = PairDataset.from_parquet(files, tok, 256)
    cells = 16 * sum(len(p) + len(r) for p, r in data) / len(data)
    cfg = PretrainCfg(steps=a.steps, precision='fp32', save_every=10**9, log_every=10**9,
                      budget_tok=int(cells / 0.95 / 2), accum=2, max_len=256)
    return Setup(home, files, tok, data, cfg)

def measure(s:Setup, rounds:int)->dict[str, list[float]]:
    "name -> real tokens per second of every round, trainers alternating; the first round warms up."
    grouped = partial(theirs, s=s, train_sampling_strategy='group_by_length')
    runs = dict(ours=partial(ours, s=s, cfg=s.cfg), default=partial(theirs, s=s), grouped=grouped,
                ancestor=partial(ancestor, s=s))
    if probe_precision() == 'bf16': runs['bf16'] = partial(ours, s=s, cfg=replace(s.cfg, precision='bf16'))
    speed = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, fn in runs.items():
            v = timed(fn, fresh(s.tok))
            if i: speed[name].append(v)
            print(f'round {i} {name:<9} {v:,.0f} real tok/s', flush=True)
    return speed

def parse_args()->argparse.Namespace:
    "What the command line asks for."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--data', default=str(run_path('data', 'train.parquet')), help='parquet with prompt and response')
    p.add_argument('--rows', type=int, default=20_000, help='rows used, drawn at random')
    p.add_argument('--rounds', type=int, default=3, help='alternating rounds')
    p.add_argument('--steps', type=int, default=20, help='steps per round')
    p.add_argument('--loss-tok', type=int, default=300_000, help='real tokens of the loss comparison; 0: none')
    return p.parse_args()

def main():
    "Measure, print, write results/train.json."
    a = parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        s = set_up(Path(tmp), a)
        speed = measure(s, a.rounds)
        compared = [loss_row(s, a.loss_tok)] if a.loss_tok else []
    rows = [row(name, speed['ours'], speed[name], says, 'real tok/s') for name, says in BASELINES.items()]
    if 'bf16' in speed:
        rows.append(row('bf16', speed['bf16'], speed['default'], 'Seq2SeqTrainer default fp32', 'real tok/s'))
    else: print('bf16: not measured, this device is slower in bf16 than in fp32')
    write('train', dict(model='tiny, dropout 0.1', data=Path(a.data).name, rows=a.rows, steps=a.steps,
                        budget_tok=s.cfg.budget_tok, accum=s.cfg.accum, threads=torch.get_num_threads(),
                        loss_tok=a.loss_tok), rows + compared)

if __name__ == '__main__': main()
