"""Training speed in real tokens per second: our loop against Seq2SeqTrainer (default, grouped by length) and a loop like the ancestor's.

    python benchmarks/train.py [--data PAIRS.parquet] [--rounds 3] [--steps 20]

Same model (tiny, dropout 0.1, fp32), same data, alternating, medians. Real tokens are prompt and answer tokens; padding does not count.
Dropout has the same rate for all; ours draws its masks from random bits (`bit_dropout_`), the others from PyTorch's.
A step of ours is two batches of half the size (`accum=2`), everyone else's is one: steps hold as many tokens. Two and not one or four was chosen by the
last row's comparison on seeds 0 to 2; the row itself is taken on other seeds.
The bf16 row is measured only where the device is fast in bf16. The last row asks whether sorting by length costs anything: held-out loss after an
equal number of real tokens, ours against random batches of 16, three seeds (3 to 5).
"""
import argparse, tempfile, time
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
import torch
from report import row, write

from scclm.data_cleaning import run_path
from scclm.dataset import PairDataset, PairStream, collate, pair_batches
from scclm.model import build_model, model_config
from scclm.planner import Unplaced
from scclm.pretrain import PretrainCfg, hf_fit
from scclm.tokenizer import TokenizerCfg, train_tokenizer
from scclm.trainer import eval_loss, fit, probe_precision

def fresh(tok): return build_model(model_config('tiny', len(tok), dropout_rate=0.1), init='stock', seed=0)

def timed(fn, model)->float:
    "Real tokens per second between the first and the last forward pass of a training function: set-up is left out for everyone."
    seen, stamps = [], []
    def count(module, args, kwargs):
        stamps.append(time.perf_counter())
        labels = kwargs.get('labels')
        answer = labels.ne(-100).sum() if labels is not None else kwargs['decoder_input_ids'].ne(0).sum() + len(kwargs['decoder_input_ids'])
        seen.append(int(kwargs['attention_mask'].sum() + answer))
    model.register_forward_pre_hook(count, with_kwargs=True)
    fn(model)
    return sum(seen[:-1]) / (stamps[-1] - stamps[0])

def ours(model, home, files, tok, cfg):
    stream = PairStream(files, tok, budget_tok=cfg.budget_tok, max_len=cfg.max_len, seed=0, index_dir=home / 'lengths')
    fit(model, stream, cfg, home / 'ours', resume=False, progress=False)

def theirs(model, home, files, tok, cfg, **overrides):
    hf_fit(model, tok, files, cfg, home / 'hf', batch_size=16, **overrides)

def ancestor(model, home, data, cfg):
    "A plain loop in the ancestor's manner: shuffled batches of 16 padded to their longest, Adafactor with its own steps, loss read every step."
    from transformers.optimization import Adafactor
    loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True, collate_fn=collate)
    opt = Adafactor(model.parameters(), relative_step=True)
    model.train()
    for batch in islice(loader, cfg.steps):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        opt.step(); opt.zero_grad()
        loss.item()

class Random(Unplaced):
    "Shuffled batches of 16, padded to their longest, without end."
    def __init__(self, data, seed:int): self.data, self.seed = data, seed
    def __iter__(self):
        g = torch.Generator().manual_seed(self.seed)
        while True:
            for rows in torch.randperm(len(self.data), generator=g).split(16): yield collate([self.data[i] for i in rows.tolist()])

def loss_after(loader, tok, cfg, out, valid, real_tok:int)->float:
    "Held-out loss, nats per token, after so many real tokens."
    def enough(run):
        if run.real_tok >= real_tok: run.end('enough')
    model = build_model(model_config('tiny', len(tok), dropout_rate=0.1), init='mimetic', seed=cfg.seed)
    fit(model, loader, cfg, out, callbacks=[enough], resume=False, progress=False)
    return eval_loss(model.eval(), valid)

def loss_row(home, files, data, tok, cfg, real_tok:int)->dict:
    "Ours against random batches at equal real tokens; the last 500 rows are held out."
    valid = pair_batches([data[i] for i in range(len(data) - 500, len(data))], 8192)
    train = [data[i] for i in range(len(data) - 500)]
    pq.write_table(pq.read_table(files[0]).slice(0, len(train)), home / 'part.parquet', row_group_size=4096)
    losses = dict(ours=[], random=[])
    for seed in range(3, 6):
        c = replace(cfg, seed=seed, steps=10**6, schedule='constant', warmup=2e-5)
        stream = PairStream([home / 'part.parquet'], tok, budget_tok=c.budget_tok, max_len=c.max_len, seed=seed, index_dir=home / 'lengths')
        for name, loader, accum in (('ours', stream, c.accum), ('random', Random(train, seed), 1)):
            losses[name].append(loss_after(loader, tok, replace(c, accum=accum), home / 'loss', valid, real_tok))
        print(f"seed {seed}: held-out loss {losses['ours'][-1]:.3f} ours, {losses['random'][-1]:.3f} random batches", flush=True)
    return row('loss at equal real tokens', losses['ours'], losses['random'], 'random batches of 16', 'nats/token', higher_is_better=False)

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--data', default=str(run_path('data', 'train.parquet')), help='parquet with prompt and response')
    p.add_argument('--rows', type=int, default=20_000, help='rows used, drawn at random')
    p.add_argument('--rounds', type=int, default=3, help='alternating rounds')
    p.add_argument('--steps', type=int, default=20, help='steps per round')
    p.add_argument('--loss-tok', type=int, default=300_000, help='real tokens of the loss comparison; 0: none')
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        home, files = Path(tmp), [Path(tmp) / 'train.parquet']
        table = pq.read_table(a.data, columns=['prompt', 'response'])
        pq.write_table(table.take(torch.randperm(len(table), generator=torch.Generator().manual_seed(0))[:a.rows].numpy()), files[0], row_group_size=4096)
        tok = train_tokenizer(TokenizerCfg(files=tuple(files), out=home / 'tokenizer', min_count=100, min_char_count=10))
        data = PairDataset.from_parquet(files, tok, 256)
        cells = 16 * sum(map(sum, ((len(p), len(r)) for p, r in data))) / len(data)
        cfg = PretrainCfg(steps=a.steps, precision='fp32', save_every=10**9, log_every=10**9, budget_tok=int(cells / 0.95 / 2), accum=2, max_len=256)
        hf = replace(cfg, accum=1)
        runs = {'ours': partial(ours, home=home, files=files, tok=tok, cfg=cfg), 'default': partial(theirs, home=home, files=files, tok=tok, cfg=hf),
                'grouped': partial(theirs, home=home, files=files, tok=tok, cfg=hf, train_sampling_strategy='group_by_length'),
                'ancestor': partial(ancestor, home=home, data=data, cfg=cfg)}
        if probe_precision() == 'bf16': runs['bf16'] = partial(ours, home=home, files=files, tok=tok, cfg=replace(cfg, precision='bf16'))
        speed = {k: [] for k in runs}
        for i in range(a.rounds + 1):
            for name, fn in runs.items():
                v = timed(fn, fresh(tok))
                if i: speed[name].append(v) # the first round warms up
                print(f'round {i} {name:<9} {v:,.0f} real tok/s', flush=True)
        compared = [loss_row(home, files, data, tok, cfg, a.loss_tok)] if a.loss_tok else []
    names = dict(default='Seq2SeqTrainer default', grouped='Seq2SeqTrainer group_by_length', ancestor="a loop like the ancestor's")
    rows = [row(k, speed['ours'], speed[k], v, 'real tok/s') for k, v in names.items()]
    if 'bf16' in speed: rows.append(row('bf16', speed['bf16'], speed['default'], 'Seq2SeqTrainer default fp32', 'real tok/s'))
    else: print('bf16: not measured, this device is slower in bf16 than in fp32')
    rows += compared
    write('train', dict(model='tiny, dropout 0.1', data=Path(a.data).name, rows=a.rows, steps=a.steps, budget_tok=cfg.budget_tok, accum=cfg.accum, threads=torch.get_num_threads(), loss_tok=a.loss_tok), rows)

if __name__ == '__main__': main()
