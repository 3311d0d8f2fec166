"""How much of the chip training reaches: FLOPs of real tokens over the measured peak of a matrix product.

    python benchmarks/gpu.py [--budgets 4096 8192 16384 32768] [--optimizer adamw] [--compile] [--packing] [--graph]
                             [--act-ckpt] [--vocab 29312] [--data PAIRS.parquet]
    python benchmarks/gpu.py --smoke      # the smallest case of every switch, on the CPU, nothing written

`base` in bf16 unless asked otherwise. Padded tokens count as waste: FLOPs are those of the real tokens alone.
Every budget (padded tokens a batch) is tried and the best is printed; the baseline is the measured peak.
`--packing` puts several pairs into one row with block-diagonal masks; T5's relative positions need no change,
because distances inside a pair stay what they were. `--compile` compiles one block of each kind, which all layers
share, and the output layer with its loss. `--graph` records forward and backward pass of packed rows of one shape as
a CUDA graph, so that Python is never waited for; `fit` has no such mode.
Also measured: peak memory of batch 1 x 320."""
import argparse
import copy
import gc
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from report import row, write
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from scclm.dataset import PairIds, collate, pad, plan_window
from scclm.model import build_model, model_config
from scclm.planner import Unplaced, train_flops
from scclm.trainer import (Run, StopSignals, TrainCfg, count_labels, lm_loss, seq2seq_loss, shift_right,
    start_run, train_step)

LossFn = Callable[[nn.Module, dict], Tensor] # (model, batch) -> summed loss
VOCAB = 29298 # of base, the ancestor's

# ---- the work


def sizes(
    pairs:list[PairIds], # at least one
)->np.ndarray: # (N, 2) prompt and answer tokens
    "How long the texts of pairs are."
    return np.array([(len(p.prompt), len(p.response)) for p in pairs])


def pair_flops(
    config:T5Config, # of the model
    lens:np.ndarray, # (N, 2) prompt and answer tokens
)->float: # forward and backward
    "FLOPs to train on these pairs. What activation checkpointing computes again is no progress and does not count."
    return float(sum(train_flops(config, int(s), int(t)) for s, t in lens))


def lengths(
    n:int, # pairs
    longest:int=320, # longer ones are cut
    data:str|None=None, # parquet with prompt and response, a character a token; None: long-tailed made-up lengths
    seed:int=0, # of made-up lengths
)->np.ndarray: # (n, 2) prompt and answer tokens
    "How long the pairs of the benchmark are."
    if not data:
        drawn = np.random.default_rng(seed).lognormal((3.2, 4.2), (.6, .9), (n, 2))
        return np.clip(drawn.astype(int), 4, longest)
    texts = pq.read_table(data, columns=['prompt', 'response']).slice(0, n)
    chars = [[len(text) + 1 for text in texts[k].to_pylist()] for k in ('prompt', 'response')]
    return np.minimum(np.array(chars).T, longest)


def make_pairs(
    lens:np.ndarray, # (N, 2) prompt and answer tokens
    vocab:int, # ids are below
    seed:int=0, # of the ids
)->list[PairIds]: # arrays of ids
    "Random ids of these lengths."
    g = np.random.default_rng(seed)
    return [PairIds(g.integers(7, vocab, s), g.integers(7, vocab, t)) for s, t in lens]

# ---- packing


def row_room(
    pairs:list[PairIds], # to be packed
    width:int, # longest text, tokens
)->tuple[int, int]: # prompt and answer tokens that a row holds
    """The longer side of these pairs gets 1.5 x `width`, the other in proportion and 15 % more; none gets less
    than its longest text."""
    lens = sizes(pairs)
    total = lens.sum(0)
    wanted = np.ceil(1.725 * width * total / total.max())
    room = np.maximum(lens.max(0), np.minimum(1.5 * width, wanted))
    return int(room[0]), int(room[1])


def fill_rows(
    pairs:list[PairIds], # none larger than `room`
    room:tuple[int, int], # prompt and answer tokens that a row holds
)->list[list[PairIds]]: # the pairs of each row
    "First fit, the pair that needs the largest share of a row first."
    def share(
        pair:PairIds, # to be placed
    )->float: # 0 … 1
        "Of a row, the fuller side."
        return max(len(pair.prompt) / room[0], len(pair.response) / room[1])
    rows, left = [], []
    for pair in sorted(pairs, key=share, reverse=True):
        s, t = len(pair.prompt), len(pair.response)
        at = next((i for i, (free_s, free_t) in enumerate(left) if free_s >= s and free_t >= t), None)
        if at is None:
            at = len(rows)
            rows.append([])
            left.append(room)
        rows[at].append(pair)
        left[at] = left[at][0] - s, left[at][1] - t
    return rows


def _joined(
    texts:list[np.ndarray], # of one row
)->tuple[np.ndarray, np.ndarray]: # ids; the number of the text a token belongs to, from 1
    "Texts one after the other."
    return np.concatenate(texts), np.repeat(np.arange(1, len(texts) + 1), [len(t) for t in texts])


def join_rows(
    rows:list[list[PairIds]], # the pairs of each row
    room:tuple[int, int]=(0, 0), # prompt and answer tokens that a row is padded to, at least
)->dict[str, Tensor]: # a batch; `source` and `target` number the pair a token belongs to, 0 is padding
    "Rows of pairs to a batch."
    ids, source = zip(*[_joined([p.prompt for p in r]) for r in rows])
    labels, target = zip(*[_joined([p.response for p in r]) for r in rows])
    input_ids, mask = pad(ids, 0)
    batch = dict(input_ids=input_ids, attention_mask=mask, labels=pad(labels, -100)[0],
                 source=pad(source, 0)[0], target=pad(target, 0)[0])
    fill = dict(labels=-100)
    width = dict.fromkeys(batch, room[0]) | dict.fromkeys(('labels', 'target'), room[1])
    return {k: F.pad(v, (0, max(0, width[k] - v.shape[1])), value=fill.get(k, 0)) for k, v in batch.items()}


def packed(
    pairs:list[PairIds], # at least one
    width:int, # longest text, tokens
)->dict[str, Tensor]: # of `join_rows`
    "A batch with several pairs a row."
    return join_rows(fill_rows(pairs, row_room(pairs, width)))


def equal_batches(
    args:argparse.Namespace, # the switches
    budget:int, # padded tokens a batch
    pairs:list[PairIds], # to be batched
)->list[list[list[PairIds]]]: # rows of each batch, as many in each
    "Packed rows in batches of one shape, as a recorded step wants them."
    steps = args.steps + args.warm_up
    few = pairs[:round(1.3 * steps * budget * len(pairs) / sizes(pairs).sum())]
    room = even_room(few, args.width)
    rows = fill_rows(few, room)
    n = max(1, budget // sum(room))
    order = np.random.default_rng(0).permutation(len(rows))
    return [[rows[i] for i in order[k:k + n]] for k in range(0, len(rows) - n + 1, n)][:steps]


def even_room(
    pairs:list[PairIds], # to be packed
    width:int, # longest text, tokens
)->tuple[int, int]: # as `row_room`, multiples of 16, which attention likes
    "What a row of `equal_batches` holds."
    s, t = row_room(pairs, width)
    return -(-s // 16) * 16, -(-t // 16) * 16


def may_see(
    of:Tensor, # (B, Q) pair numbers of the queries
    what:Tensor, # (B, K) pair numbers of the keys
    causal:bool=False, # the past only
)->Tensor: # (B, 1, Q, K), True inside a pair
    "A mask of booleans, because the lowest number of fp32 is -inf in bf16, and a row of -inf is NaN."
    same = of[:, :, None] == what[:, None, :]
    return (same.tril() if causal else same)[:, None]


def head_loss(
    hidden:Tensor, # (B, T, d_model), of the decoder
    table:Tensor, # (V, d_model), the embedding, which is the output layer too
    labels:Tensor, # (B, T), -100 is ignored
)->Tensor: # scalar, summed nats
    "Output layer and loss."
    return lm_loss(F.linear(hidden * table.shape[1]**-.5, table), labels)


def packed_loss(
    model:T5ForConditionalGeneration, # possibly wrapped
    batch:dict[str, Tensor], # of `packed`
    head:Callable[[Tensor, Tensor, Tensor], Tensor]=head_loss, # output layer and loss
)->Tensor: # scalar, summed nats
    """`seq2seq_loss` of packed rows: the same sum as of the pairs one by one. Encoder and decoder are called one
    after the other, because the whole model takes one mask for the prompt and for cross-attention."""
    source, target = batch['source'], batch['target']
    starts = target != F.pad(target, (1, 0))[:, :-1]
    inputs = shift_right(batch['labels']).masked_fill(starts, 0)
    encoded = model.encoder(input_ids=batch['input_ids'], attention_mask=may_see(source, source)).last_hidden_state
    hidden = model.decoder(input_ids=inputs, attention_mask=may_see(target, target, causal=True),
                           encoder_hidden_states=encoded, encoder_attention_mask=may_see(target, source),
                           use_cache=False).last_hidden_state
    return head(hidden, model.lm_head.weight, batch['labels'])


def padded_loss(
    model:T5ForConditionalGeneration, # possibly wrapped
    batch:dict[str, Tensor], # of `collate`
    head:Callable[[Tensor, Tensor, Tensor], Tensor]=head_loss, # output layer and loss
)->Tensor: # scalar, summed nats
    "`seq2seq_loss` with an output layer of one's own."
    mask, labels = batch['attention_mask'], batch['labels']
    encoded = model.encoder(input_ids=batch['input_ids'], attention_mask=mask).last_hidden_state
    hidden = model.decoder(input_ids=shift_right(labels), encoder_hidden_states=encoded,
                           encoder_attention_mask=mask, use_cache=False).last_hidden_state
    return head(hidden, model.lm_head.weight, labels)

# ---- measuring


def wait():
    "Until the GPU has done what it was given."
    if torch.cuda.is_available(): torch.cuda.synchronize()


def matrix_peak(
    n:int, # rows and columns
    dtype:torch.dtype, # of the numbers
    rounds:int=20, # the fastest counts
)->float: # FLOP/s
    "Of an n x n product."
    a = torch.randn(n, n, dtype=dtype, device='cuda' if torch.cuda.is_available() else 'cpu')
    times = []
    for _ in range(rounds):
        wait()
        began = time.perf_counter()
        a @ a
        wait()
        times.append(time.perf_counter() - began)
    return 2 * n**3 / min(times)


def launch_us(
    n:int=3000, # kernels
)->float: # microseconds
    "What it costs Python to ask the GPU for one small kernel: with thousands a step, small batches wait for this."
    x = torch.zeros(8, device='cuda' if torch.cuda.is_available() else 'cpu')
    for _ in range(100): x.add_(1)
    wait()
    began = time.perf_counter()
    for _ in range(n): x.add_(1)
    wait()
    return 1e6 * (time.perf_counter() - began) / n


def in_autocast(
    run:Run, # gives the precision
    loss_fn:LossFn, # calls parts of the model
)->LossFn: # the same under autocast
    "accelerate casts inside the whole model's forward pass only; packed rows call encoder and decoder."
    def loss(
        model:nn.Module, # of the run
        batch:dict, # as `loss_fn` takes it
    )->Tensor: # scalar
        "`loss_fn` in the run's precision."
        with run.acc.autocast(): return loss_fn(model, batch)
    return loss


def fresh():
    "Forget the last run: its memory, and what was compiled for it."
    torch.compiler.reset()
    gc.collect()
    if not torch.cuda.is_available(): return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


@lru_cache(1)
def _built(config:str)->T5ForConditionalGeneration:
    "The model of a configuration, made once: drawing the weights of `base` takes seconds."
    return build_model(T5Config.from_dict(json.loads(config)))


def compile_blocks_(
    model:T5ForConditionalGeneration, # changed in place
    backend:str|Callable, # of torch.compile
    dynamic:bool=True, # False: for one shape
)->Callable[[Tensor, Tensor, Tensor], Tensor]: # `head_loss`, compiled
    """Compile each block, not the stacks: layers share the code of their kind. Batches of changing shape still make it
    compile a dozen times (with and without a mask, lengths that are multiples of 8 or not, large and small)."""
    torch._dynamo.config.recompile_limit = 64
    for stack in (model.encoder, model.decoder):
        for block in stack.block: block.compile(dynamic=dynamic, backend=backend)
    return torch.compile(head_loss, dynamic=dynamic, backend=backend)


def loss_of(
    args:argparse.Namespace, # the switches
    run:Run, # its model is compiled here if that is asked for
)->LossFn: # in the run's precision
    "What the switches train with."
    if not args.compile: return in_autocast(run, packed_loss if args.packing else seq2seq_loss)
    head = compile_blocks_(run.acc.unwrap_model(run.model), args.backend, not args.graph)
    return in_autocast(run, partial(packed_loss if args.packing else padded_loss, head=head))


def step_times(
    args:argparse.Namespace, # the switches
    config:T5Config, # of the model
    batches:list[dict], # one a step, the first `warm_up` not timed
)->list[float]: # seconds
    "Seconds of every step after the warm-up, through the trainer's own `train_step`."
    cfg = TrainCfg(steps=len(batches), optimizer=args.optimizer, act_ckpt=args.act_ckpt, precision=args.precision)
    fresh()
    times = []
    with tempfile.TemporaryDirectory() as out, StopSignals() as stop:
        run = start_run(copy.deepcopy(_built(config.to_json_string())), Unplaced(), cfg, Path(out))
        run.model.train()
        loss_fn = loss_of(args, run)
        for run.step, batch in enumerate(batches):
            wait()
            began = time.perf_counter()
            train_step(run, [batch], loss_fn, count_labels, stop)
            wait()
            times.append(time.perf_counter() - began)
    return times[args.warm_up:]


def graph_times(
    args:argparse.Namespace, # the switches
    config:T5Config, # of the model
    batches:list[dict], # one a step, all of one shape, the first `warm_up` not timed
)->list[float]: # seconds
    """As `step_times`, with forward and backward pass recorded once as a CUDA graph and replayed: the GPU no longer
    waits for Python. Clipping and optimiser stay as they are."""
    cfg = TrainCfg(steps=len(batches), optimizer=args.optimizer, precision=args.precision)
    fresh()
    times = []
    with tempfile.TemporaryDirectory() as out, StopSignals() as stop:
        run = start_run(copy.deepcopy(_built(config.to_json_string())), Unplaced(), cfg, Path(out))
        run.model.train()
        loss_fn = loss_of(args, run)
        for run.step in range(3): train_step(run, [batches[0]], loss_fn, count_labels, stop)
        replay = recorded(run, loss_fn, batches[0])
        for batch in batches:
            wait()
            began = time.perf_counter()
            replay(batch)
            norm = run.acc.clip_grad_norm_(run.model.parameters(), cfg.clip).item()
            if np.isfinite(norm):
                for o in run.opts: o.optimizer.step()
            wait()
            times.append(time.perf_counter() - began)
    return times[args.warm_up:]


def recorded(
    run:Run, # warmed up
    loss_fn:LossFn, # (model, batch) -> summed loss
    example:dict, # a batch
)->Callable[[dict], None]: # takes a batch of the same shape, leaves its gradients
    "Forward and backward pass as a CUDA graph."
    static = {k: v.cuda() for k, v in example.items()}
    share = torch.ones((), device='cuda')
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    def passes():
        "Both, without the cache of autocast, which would outlive the recording."
        with torch.autocast('cuda', torch.bfloat16, cache_enabled=False): loss = loss_fn(run.model, static) * share
        loss.backward()
    with torch.cuda.stream(side): passes()
    torch.cuda.current_stream().wait_stream(side)
    run.model.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph): passes()
    def replay(batch:dict):
        "Copy the batch in and run."
        for k, v in batch.items(): static[k].copy_(v)
        share.fill_(1 / max(1, count_labels(batch)))
        graph.replay()
    return replay


def group_pairs(
    args:argparse.Namespace, # the switches
    budget:int, # padded tokens a batch
    pairs:list[PairIds], # to be batched
)->list[list[PairIds]]: # pairs of a batch, as many as there are steps
    "Batches of similar length; packed ones take the pairs as they come."
    lens = sizes(pairs)
    if args.packing:
        n_batches = max(1, round(lens.sum() / budget))
        plans = np.array_split(np.arange(len(pairs)), n_batches)
    else:
        plans = plan_window(lens, budget, key=(0,))
    return [[pairs[i] for i in plan] for plan in plans][:args.steps + args.warm_up]


def make_batches(
    args:argparse.Namespace, # the switches
    budget:int, # padded tokens a batch
    pairs:list[PairIds], # to be trained on
)->tuple[list[list[PairIds]], list[dict]]: # pairs of each batch; the batches
    "As the switches ask."
    if args.graph:
        rows = equal_batches(args, budget, pairs)
        room = tuple(np.array([[sum(len(p[k]) for p in r) for k in (0, 1)] for b in rows for r in b]).max(0))
        room = tuple(int(-(-n // 16) * 16) for n in room)
        return [[p for r in b for p in r] for b in rows], [join_rows(b, room) for b in rows]
    groups = group_pairs(args, budget, pairs)
    return groups, [packed(g, args.width) if args.packing else collate(g) for g in groups]


def speed(
    args:argparse.Namespace, # the switches
    budget:int, # padded tokens a batch
    config:T5Config, # of the model
    pairs:list[PairIds], # to be trained on
)->dict[str, float]: # FLOP/s and tok_per_s of real tokens, their share, slowest step, bytes at most: in use, held
    "A few steps at one budget."
    groups, batches = make_batches(args, budget, pairs)
    times = (graph_times if args.graph else step_times)(args, config, batches)
    seconds = sum(times)
    done = sizes([p for g in groups[args.warm_up:] for p in g])
    cells = sum(b['input_ids'].numel() + b['labels'].numel() for b in batches[args.warm_up:])
    tok = int(done.sum())
    gpu = torch.cuda.is_available()
    return dict(flops=pair_flops(config, done) / seconds, tok_per_s=tok / seconds, real=tok / cells, slowest=max(times),
                peak=torch.cuda.max_memory_allocated() if gpu else 0,
                held=torch.cuda.max_memory_reserved() if gpu else 0)


def fitting(
    args:argparse.Namespace, # the switches
    config:T5Config, # of the model
    pairs:list[PairIds], # to be trained on
)->dict[int, dict]: # budget -> `speed`
    "The budgets that fit into memory. Raises SystemExit if none does."
    found = {}
    for budget in args.budgets:
        try: found[budget] = speed(args, budget, config, pairs)
        except torch.OutOfMemoryError: print(f'budget {budget}: out of memory')
    if not found: raise SystemExit('no budget fits into memory: give smaller --budgets')
    return found


def label(
    args:argparse.Namespace, # the switches
)->str: # such as 'base, adamw, packing'
    "How the rows call a set of switches."
    on = [k for k in ('compile', 'packing', 'graph', 'act_ckpt') if getattr(args, k)]
    if args.vocab != (SMALL['vocab'] if args.smoke else VOCAB): on.append(f'vocabulary {args.vocab}')
    return ', '.join([args.scale, args.optimizer, *(['fp32'] if args.precision == 'fp32' else []), *on])


def one_row(
    args:argparse.Namespace, # the switches
    config:T5Config, # of the model
)->list[dict]: # a row; none without a GPU
    "Peak memory of batch 1 x `width`: what tensors used; `held` is what PyTorch took from the card for them."
    if not torch.cuda.is_available(): return []
    few = argparse.Namespace(**vars(args) | dict(packing=False, compile=False, graph=False, warm_up=1, steps=2))
    found = speed(few, 2 * args.width, config, make_pairs(np.full((3, 2), args.width), args.vocab))
    name = f'{label(few)}: batch 1 x {args.width}, peak memory'
    mib = found['peak'] / 2**20
    return [row(name, [mib], [4096], 'the 4 GB asked for', 'MiB', higher_is_better=False) | dict(held=found['held'])]


def table(
    args:argparse.Namespace, # the switches
)->list[dict]: # rows
    "All rows of one set of switches."
    config = model_config(args.scale, args.vocab)
    pairs = make_pairs(lengths(args.rows, args.width, args.data), args.vocab)
    peak = matrix_peak(args.matrix, torch.bfloat16 if args.precision == 'bf16' else torch.float32)
    found = fitting(args, config, pairs)
    best = max(found, key=lambda budget: found[budget]['flops'])
    print(f"best: {best} padded tokens, {found[best]['flops'] / peak:.1%} of the measured peak, "
          f"{found[best]['tok_per_s']:,.0f} real tokens/s")
    what, rows = label(args), []
    for budget, f in found.items():
        reached = row(f'{what}: budget {budget}', [f['flops'] / 1e12], [peak / 1e12], 'matrix product', 'TFLOP/s')
        rows.append(reached | {k: f[k] for k in ('tok_per_s', 'real', 'slowest', 'peak', 'held')})
    return rows if args.packing or args.compile else rows + one_row(args, config)

# ---- the smallest case of everything


def check_packing(
    scale:str='tiny', # of the model
    vocab:int=200, # of the model
)->float: # relative difference
    "Between the summed loss of packed rows and of the pairs one by one."
    model = build_model(model_config(scale, vocab, dropout_rate=0.), seed=0).eval()
    pairs = make_pairs(lengths(12, 40), vocab)
    with torch.no_grad():
        alone = sum(seq2seq_loss(model, collate([p])).item() for p in pairs)
        return abs(packed_loss(model, packed(pairs, 64)).item() / alone - 1)


SMALL = dict(scale='tiny', vocab=200, width=40, rows=60, matrix=256, budgets=[256], steps=2, warm_up=1,
             precision='fp32', backend='aot_eager')
SWITCHES = [dict(), dict(packing=True), dict(act_ckpt=True), dict(optimizer='adafactor'), dict(optimizer='muon'),
            dict(compile=True), dict(compile=True, packing=True, precision='bf16', backend='eager')]


def smoke(
    args:argparse.Namespace, # the rest of the switches
):
    "Every switch once. Raises SystemExit if packing changes the loss."
    off = check_packing()
    print(f'packing: relative difference of the summed loss {off:.1e}')
    if off > 1e-4: raise SystemExit('packing changes the loss')
    for switch in SWITCHES:
        for r in table(argparse.Namespace(**vars(args) | SMALL | switch)):
            print(f"{r['what']:<44} {r['ours']:.4f} of {r['baseline']:.4f} {r['unit']}, real share {r['real']:.2f}")


def make_parser()->argparse.ArgumentParser: # of this script
    "Its switches."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--scale', default='base')
    p.add_argument('--vocab', type=int, default=VOCAB)
    p.add_argument('--width', type=int, default=320,
                   help='longest prompt or answer; packed rows are 1.5 times as wide')
    p.add_argument('--budgets', type=int, nargs='+', default=[4096, 8192, 16384, 32768, 65536])
    p.add_argument('--steps', type=int, default=20)
    p.add_argument('--warm-up', type=int, default=5)
    p.add_argument('--rows', type=int, default=20_000, help='pairs planned')
    p.add_argument('--data', help='parquet with prompt and response: its lengths, a character a token')
    p.add_argument('--optimizer', default='adamw', choices=['adamw', 'adafactor', 'muon'])
    p.add_argument('--precision', default='bf16', choices=['bf16', 'fp32'])
    p.add_argument('--matrix', type=int, default=8192)
    for flag in ('compile', 'packing', 'graph', 'act-ckpt', 'smoke'):
        p.add_argument(f'--{flag}', action='store_true')
    p.add_argument('--backend', default='inductor', help='of torch.compile')
    return p


def main():
    "Measure on the GPU and write results/gpu.json, or run the smallest cases. Raises SystemExit without a GPU."
    args = make_parser().parse_args()
    if args.graph and not args.packing: raise SystemExit('--graph wants rows of one shape: give --packing too')
    if args.smoke: return smoke(args)
    if not torch.cuda.is_available():
        raise SystemExit('no GPU here: `--smoke` runs the smallest case of every switch on the CPU')
    config = dict(width=args.width, steps=args.steps, rows=args.rows, data=bool(args.data),
                  allocator=os.environ.get('PYTORCH_ALLOC_CONF', ''), launch_us=launch_us())
    write('gpu', config, table(args), merge=True) # rows may be of several cards: each keeps its own machine


if __name__ == '__main__': main()
