"""Memory of the small recipe: `base`, batch 1, 320 + 320 tokens, on the CPU, and what each saving gives.

    python benchmarks/recipe.py [--scale base] [--only NAME ...]

Peak resident memory of three steps of the trainer's own `train_step` above what was resident before the model was built, each recipe in a fresh process
with one thread and an allocator that gives freed blocks back at once. The baseline of every row is plain AdamW in fp32. Losses are printed too:
weights in bf16 lose small updates (eight bits of mantissa), all others compute the same."""
import argparse, json, os, subprocess, sys, tempfile
from pathlib import Path

import torch
from torch.utils.checkpoint import checkpoint

from scclm.model import build_model, model_config
from scclm.planner import EXACT_MALLOC, Shape, fixed_batch
from scclm.trainer import StopSignals, TrainCfg, count_labels, lm_loss, seq2seq_loss, shift_right, start, train_step

RECIPES = { # name: (TrainCfg fields, logits in chunks, weights and states in bf16)
    'AdamW': (dict(), False, False),
    'AdamW, activation checkpointing': (dict(act_ckpt=True), False, False),
    'AdamW, logits in chunks': (dict(), True, False),
    'Adafactor': (dict(optimizer='adafactor'), False, False),
    'Adafactor, activation checkpointing': (dict(optimizer='adafactor', act_ckpt=True), False, False),
    'Adafactor, activation checkpointing, logits in chunks': (dict(optimizer='adafactor', act_ckpt=True), True, False),
    'AdamW, weights and states in bf16': (dict(), False, True),
    'Adafactor, all savings, weights and states in bf16': (dict(optimizer='adafactor', act_ckpt=True), True, True)}

def chunked_loss(model, batch, size:int=64):
    "`seq2seq_loss` with the logits of `size` positions at a time, computed again on the way back."
    labels, mask = batch['labels'], batch['attention_mask']
    encoded = model.encoder(input_ids=batch['input_ids'], attention_mask=mask).last_hidden_state
    hidden = model.decoder(input_ids=shift_right(labels), encoder_hidden_states=encoded, encoder_attention_mask=mask, use_cache=False).last_hidden_state
    part = lambda h, l: lm_loss(model.lm_head(h * model.config.d_model**-.5), l)
    return sum(checkpoint(part, h, l, use_reentrant=False) for h, l in zip(hidden.split(size, 1), labels.split(size, 1)))

class Same:
    "A loader without a position."
    def state_dict(self): return {}

def memory()->tuple[int, int]:
    "Resident bytes now, and the high-water mark (Linux)."
    fields = dict(line.split(':') for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('Vm'))
    return tuple(1024 * int(fields[k].split()[0]) for k in ('VmRSS', 'VmHWM'))

def train(scale:str, recipe:str, steps:int=3, n:int=320)->list[float]:
    "Three steps; the losses per token."
    fields, chunks, bf16 = RECIPES[recipe]
    config = model_config(scale, 29298); torch.manual_seed(0)
    model, batch, losses = build_model(config), fixed_batch(config, Shape(1, n, n)), []
    if bf16: model.to(torch.bfloat16)
    def loss_fn(model, batch): loss = (chunked_loss if chunks else seq2seq_loss)(model, batch); losses.append(loss.item() / n); return loss
    with tempfile.TemporaryDirectory() as out, StopSignals() as stop:
        run = start(model, Same(), TrainCfg(steps=steps, precision='fp32', **fields), Path(out))
        run.model.train()
        for run.step in range(steps): train_step(run, [batch], loss_fn, count_labels, stop)
    return losses

def one(scale:str, recipe:str):
    "In the fresh process: warm up on the smallest model, then measure."
    train('tiny', recipe, n=8)
    before, _ = memory()
    losses = train(scale, recipe)
    print(json.dumps(dict(peak=memory()[1] - before, losses=losses)))

def measured(scale:str, recipe:str)->dict:
    "`one` in a fresh process."
    env = os.environ | dict(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', PYTHONWARNINGS='ignore', CUDA_VISIBLE_DEVICES='') | EXACT_MALLOC
    done = subprocess.run([sys.executable, __file__, '--scale', scale, '--one', recipe], env=env, capture_output=True, text=True)
    if done.returncode: raise RuntimeError(f'{recipe}: {done.stderr.strip()[-500:]}')
    return json.loads(done.stdout.splitlines()[-1])

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--scale', default='base', choices=['tiny', 'mini', 'base'])
    p.add_argument('--only', nargs='+', default=list(RECIPES), choices=list(RECIPES))
    p.add_argument('--one', help='measure one recipe in this process')
    a = p.parse_args()
    if a.one: return one(a.scale, a.one)
    from report import row, write
    found = {name: measured(a.scale, name) for name in dict.fromkeys(['AdamW', *a.only])}
    plain = found['AdamW']['peak'] / 2**20
    rows = [row(name, [f['peak'] / 2**20], [plain], 'AdamW', 'MiB', higher_is_better=False) | dict(losses=f['losses']) for name, f in found.items()]
    write('recipe', dict(scale=a.scale, shape='1 x (320 + 320)', threads=1, allocator=EXACT_MALLOC), rows)
    for name, f in found.items(): print(f"{name:<55} losses {' '.join(f'{x:.4f}' for x in f['losses'])}")

if __name__ == '__main__': main()
