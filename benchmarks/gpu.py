"""How much of the chip training reaches: FLOPs of real tokens per second over the measured peak of a matrix product, for `base` in bf16.

    python benchmarks/gpu.py [--budgets 4096 8192 16384 32768] [--optimizer adamw] [--compile] [--packing] [--act-ckpt] [--data PAIRS.parquet]
    python benchmarks/gpu.py --smoke          # the smallest case of every switch, on the CPU, nothing written

Padded tokens count as waste: FLOPs are those of the real tokens alone. Every budget (padded tokens a batch) is tried and the best is the row's figure; the
baseline is the measured peak. `--packing` puts several pairs into one row with block-diagonal masks; T5's relative positions need no change, because
distances inside a pair stay what they were. Also measured: peak memory of batch 1 x 320."""
import argparse, gc, tempfile, time
from pathlib import Path

import numpy as np
import torch

from scclm.dataset import plan_window
from scclm.model import build_model, meta_model, model_config
from scclm.planner import Unplaced
from scclm.trainer import StopSignals, TrainCfg, count_labels, lm_loss, seq2seq_loss, shift_right, start, train_step

# ---- the work

def token_params(config)->tuple[int, int]:
    "Matrix parameters that a prompt token and an answer token meet. Keys and values of cross-attention are made from the prompt; the tied output layer is the decoder's."
    met = {True: 0, False: config.d_model * config.vocab_size}
    for name, p in meta_model(config).named_parameters():
        if p.ndim == 2 and 'shared' not in name and 'relative' not in name:
            met[name.startswith('encoder') or '.EncDecAttention.k.' in name or '.EncDecAttention.v.' in name] += p.numel()
    return met[True], met[False]

def pair_flops(config, s, t)->float:
    """Forward and backward FLOPs of pairs with s prompt and t answer tokens: 6 a parameter and token; a score and its use cost 12 a channel.
    Scores of the future count, as is usual; what activation checkpointing computes again does not."""
    s, t = np.asarray(s, float), np.asarray(t, float)
    prompt, answer = token_params(config)
    scores = config.num_layers * s * s + config.num_decoder_layers * (t * t + s * t)
    return float((6 * (s * prompt + t * answer) + 12 * scores * config.num_heads * config.d_kv).sum())

def lengths(n:int, seed:int=0, longest:int=320, data:str|None=None)->np.ndarray:
    "(n, 2) prompt and answer tokens: of a parquet file, a character a token, or long-tailed made-up ones."
    if data:
        import pyarrow.parquet as pq
        table = pq.read_table(data, columns=['prompt', 'response']).slice(0, n)
        return np.array([(min(len(p) + 1, longest), min(len(r) + 1, longest)) for p, r in zip(*(table[k].to_pylist() for k in table.column_names))])
    return np.clip(np.random.default_rng(seed).lognormal((3.2, 4.2), (.6, .9), (n, 2)).astype(int), 4, longest)

def make_pairs(lens, vocab:int, seed:int=0)->list:
    "Random ids of these lengths."
    g = np.random.default_rng(seed)
    return [(g.integers(7, vocab, s), g.integers(7, vocab, t)) for s, t in lens]

def padded(pairs:list)->dict:
    "The usual batch."
    s, t = (max(len(p[k]) for p in pairs) for k in (0, 1))
    ids, labels = torch.zeros(len(pairs), s, dtype=torch.long), torch.full((len(pairs), t), -100)
    for i, (a, b) in enumerate(pairs): ids[i, :len(a)], labels[i, :len(b)] = torch.tensor(a), torch.tensor(b)
    mask = torch.tensor([[1] * len(a) + [0] * (s - len(a)) for a, _ in pairs])
    return dict(input_ids=ids, attention_mask=mask, labels=labels)

# ---- packing

def row_room(pairs:list, width:int)->tuple[int, int]:
    "Prompt and answer tokens a row holds: the longer side of these pairs gets 1.5 x `width`, the other in proportion and 15 % more, none less than its longest text."
    total, longest = (f([(len(p), len(r)) for p, r in pairs], 0) for f in (np.sum, np.max))
    return tuple(int(n) for n in np.maximum(longest, np.minimum(1.5 * width, np.ceil(1.725 * width * total / total.max()))))

def fill_rows(pairs:list, room:tuple[int, int])->list[list]:
    "First fit, the pair that needs the largest share of a row first: no row has more prompt or answer tokens than `room`."
    rows, left = [], []
    for p in sorted(pairs, key=lambda p: -max(len(p[0]) / room[0], len(p[1]) / room[1])):
        at = next((i for i, (s, t) in enumerate(left) if s >= len(p[0]) and t >= len(p[1])), None)
        if at is None: at = len(rows); rows.append([]); left.append(room)
        rows[at].append(p); left[at] = left[at][0] - len(p[0]), left[at][1] - len(p[1])
    return rows

def packed(pairs:list, width:int)->dict:
    "A batch with several pairs a row; `source` and `target` number the pair a token belongs to, 0 is padding."
    rows = [[np.concatenate([p[k] for p in r]) for k in (0, 1)] + [np.repeat(np.arange(1, len(r) + 1), [len(p[k]) for p in r]) for k in (0, 1)]
            for r in fill_rows(pairs, row_room(pairs, width))]
    ids, labels, source, target = (torch.nn.utils.rnn.pad_sequence([torch.tensor(r[i]) for r in rows], batch_first=True, padding_value=-100 if i == 1 else 0) for i in range(4))
    return dict(input_ids=ids, attention_mask=source.gt(0).long(), labels=labels, source=source, target=target)

def may_see(of, what, causal:bool=False)->torch.Tensor:
    "(B, 1, Q, K) True inside a pair. Booleans, because the lowest number of fp32 is -inf in bf16, and a row of -inf is NaN."
    same = of[:, :, None] == what[:, None, :]
    return (same.tril() if causal else same)[:, None]

def packed_loss(model, batch:dict):
    """`seq2seq_loss` of packed rows: the same sum as of the pairs one by one. Encoder and decoder are called one after the other, because the whole
    model takes one mask for the prompt and for cross-attention."""
    source, target = batch['source'], batch['target']
    inputs = shift_right(batch['labels']).masked_fill(target != torch.nn.functional.pad(target, (1, 0))[:, :-1], 0)
    encoded = model.encoder(input_ids=batch['input_ids'], attention_mask=may_see(source, source)).last_hidden_state
    hidden = model.decoder(input_ids=inputs, attention_mask=may_see(target, target, causal=True), encoder_hidden_states=encoded,
                           encoder_attention_mask=may_see(target, source), use_cache=False).last_hidden_state
    return lm_loss(model.lm_head(hidden * model.config.d_model**-.5), batch['labels'])

# ---- measuring

def wait():
    if torch.cuda.is_available(): torch.cuda.synchronize()

def matrix_peak(n:int, dtype, rounds:int=20)->float:
    "FLOP/s of an n x n product."
    a = torch.randn(n, n, dtype=dtype, device='cuda' if torch.cuda.is_available() else 'cpu')
    times = []
    for _ in range(rounds): wait(); t = time.perf_counter(); a @ a; wait(); times.append(time.perf_counter() - t)
    return 2 * n**3 / min(times)

def speed(a, budget:int, config, pairs:list)->dict:
    "FLOP/s on real tokens, real tokens a second, share of real tokens, peak bytes, of a few steps at one budget."
    lens = np.array([(len(p), len(r)) for p, r in pairs])
    plans = plan_window(lens, budget, key=(0,)) if not a.packing else np.array_split(np.arange(len(pairs)), max(1, round(lens.sum() / budget)))
    groups = [[pairs[i] for i in plan] for plan in plans][:a.steps + a.warm_up]
    batches = [packed(g, a.width) if a.packing else padded(g) for g in groups]
    stamps = step_times(a, config, batches)
    done = [(len(p), len(r)) for g in groups[a.warm_up:] for p, r in g]
    seconds, cells = sum(stamps), sum(b['input_ids'].numel() + b['labels'].numel() for b in batches[a.warm_up:])
    tok = sum(map(sum, done))
    return dict(flops=pair_flops(config, *np.array(done).T) / seconds, tok_per_s=tok / seconds, real=tok / cells,
                peak=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)

def in_autocast(run, loss_fn):
    "accelerate casts inside the whole model's forward pass only; packed rows call encoder and decoder."
    def loss(model, batch):
        with run.acc.autocast(): return loss_fn(model, batch)
    return loss

def fresh():
    "Forget the last run: its memory, and what was compiled for it."
    torch.compiler.reset(); gc.collect()
    if torch.cuda.is_available(): torch.cuda.empty_cache(); torch.cuda.reset_peak_memory_stats()

def step_times(a, config, batches)->list[float]:
    "Seconds of every step after the warm-up, through the trainer's own `train_step`."
    cfg = TrainCfg(steps=len(batches), optimizer=a.optimizer, act_ckpt=a.act_ckpt, precision=a.precision)
    fresh()
    with tempfile.TemporaryDirectory() as out, StopSignals() as stop:
        run, times = start(build_model(config), Unplaced(), cfg, Path(out)), []
        run.model.train()
        for stack in (run.model.encoder, run.model.decoder) if a.compile else (): stack.compile(dynamic=True, backend=a.backend)
        loss_fn = in_autocast(run, packed_loss if a.packing else seq2seq_loss)
        for run.step, batch in enumerate(batches):
            wait(); t = time.perf_counter()
            train_step(run, [batch], loss_fn, count_labels, stop)
            wait(); times.append(time.perf_counter() - t)
    return times[a.warm_up:]

def fitting(a, config, pairs:list)->dict:
    "budget -> `speed`, for the budgets that fit into memory."
    found = {}
    for b in a.budgets:
        try: found[b] = speed(a, b, config, pairs)
        except torch.OutOfMemoryError: print(f'budget {b}: out of memory')
    if not found: raise SystemExit('no budget fits into memory: give smaller --budgets')
    return found

def table(a)->list[dict]:
    "All rows of one set of switches."
    from report import row
    config = model_config(a.scale, a.vocab)
    pairs = make_pairs(lengths(a.rows, longest=a.width, data=a.data), a.vocab)
    peak = matrix_peak(a.matrix, torch.bfloat16 if a.precision == 'bf16' else torch.float32)
    found = fitting(a, config, pairs)
    best = max(found, key=lambda b: found[b]['flops'])
    what = ', '.join([a.scale, a.optimizer] + ['fp32'] * (a.precision == 'fp32') + [k for k in ('compile', 'packing', 'act_ckpt') if getattr(a, k)])
    rows = [row(f'{what}: budget {b}', [f['flops'] / 1e12], [peak / 1e12], 'matrix product', 'TFLOP/s') | {k: f[k] for k in ('tok_per_s', 'real', 'peak')} for b, f in found.items()]
    print(f"best: {best} padded tokens, {found[best]['flops'] / peak:.1%} of the measured peak, {found[best]['tok_per_s']:,.0f} real tokens/s")
    one = speed(argparse.Namespace(**vars(a) | dict(packing=False, warm_up=1, steps=2)), 2 * a.width, config, make_pairs([(a.width, a.width)] * 3, a.vocab))
    return rows + [row(f'{what}: batch 1 x {a.width}, peak memory', [one['peak'] / 2**20], [4096], 'the 4 GB asked for', 'MiB', higher_is_better=False)] if one['peak'] else rows

def check_packing(scale:str='tiny', vocab:int=200)->float:
    "Relative difference between the summed loss of packed rows and of the pairs one by one."
    model, pairs = build_model(model_config(scale, vocab, dropout_rate=0.), seed=0).eval(), make_pairs(lengths(12, longest=40), vocab)
    with torch.no_grad():
        alone = sum(seq2seq_loss(model, padded([p])).item() for p in pairs)
        return abs(packed_loss(model, packed(pairs, 64)).item() / alone - 1)

def smoke(a):
    "Every switch once."
    off = check_packing()
    print(f'packing: relative difference of the summed loss {off:.1e}')
    if off > 1e-4: raise SystemExit('packing changes the loss')
    small = dict(scale='tiny', vocab=200, width=40, rows=60, matrix=256, budgets=[256], steps=2, warm_up=1, precision='fp32', backend='aot_eager')
    from report import RESULTS # noqa: F401  found beside this file
    for switch in (dict(), dict(packing=True), dict(act_ckpt=True), dict(optimizer='adafactor'), dict(optimizer='muon'), dict(compile=True), dict(compile=True, packing=True, precision='bf16', backend='eager')):
        for r in table(argparse.Namespace(**vars(a) | small | switch)): print(f"{r['what']:<44} {r['ours']:.4f} of {r['baseline']:.4f} {r['unit']}, real share {r['real']:.2f}")

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--scale', default='base'); p.add_argument('--vocab', type=int, default=29298); p.add_argument('--width', type=int, default=320, help='longest prompt or answer; packed rows are 1.5 times as wide')
    p.add_argument('--budgets', type=int, nargs='+', default=[4096, 8192, 16384, 32768, 65536]); p.add_argument('--steps', type=int, default=20); p.add_argument('--warm-up', type=int, default=5)
    p.add_argument('--rows', type=int, default=20_000, help='pairs planned'); p.add_argument('--data', help='parquet with prompt and response: its lengths, a character a token')
    p.add_argument('--optimizer', default='adamw', choices=['adamw', 'adafactor', 'muon']); p.add_argument('--precision', default='bf16', choices=['bf16', 'fp32']); p.add_argument('--matrix', type=int, default=8192)
    for flag in ('compile', 'packing', 'act-ckpt', 'smoke'): p.add_argument(f'--{flag}', action='store_true')
    p.add_argument('--backend', default='inductor', help='of torch.compile')
    a = p.parse_args()
    if a.smoke: return smoke(a)
    if not torch.cuda.is_available(): raise SystemExit('no GPU here: `--smoke` runs the smallest case of every switch on the CPU')
    from report import write
    write('gpu', dict(width=a.width, steps=a.steps, rows=a.rows, data=bool(a.data)), table(a), merge=True)

if __name__ == '__main__': main()
