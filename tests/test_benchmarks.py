"Benchmarks that this machine cannot run in full: their smallest case, and what they count, against an independent count."
import argparse, importlib.util, os, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scclm.model import build_model, model_config
from scclm.trainer import chunked_loss, TrainCfg, seq2seq_loss, start

FOLDER = Path(__file__).resolve().parents[1]/'benchmarks'

def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER/f'{name}.py')
    module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
    return module

gpu = load('gpu')
torch.set_num_threads(1)

def test_every_switch_of_the_gpu_script_runs():
    done = subprocess.run([sys.executable, str(FOLDER/'gpu.py'), '--smoke'], capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS='1'))
    assert done.returncode == 0, done.stderr
    for what in ('adamw, fp32:', 'adamw, fp32, packing:', 'adamw, fp32, act_ckpt:', 'adafactor, fp32:', 'muon, fp32:', 'adamw, fp32, compile:', 'adamw, compile, packing:'): assert f'tiny, {what} budget' in done.stdout, done.stdout

def test_without_a_gpu_the_script_says_so():
    if torch.cuda.is_available(): return
    done = subprocess.run([sys.executable, str(FOLDER/'gpu.py')], capture_output=True, text=True)
    assert done.returncode == 1 and 'no GPU here: `--smoke`' in done.stderr

@pytest.mark.parametrize('shape', [dict(), dict(num_heads=4, num_layers=3, d_ff=640)])
@pytest.mark.parametrize('s, t', [(40, 24), (16, 96)])
def test_flops_are_those_that_torch_counts(s, t, shape):
    config = model_config('tiny', 500, dropout_rate=0., **shape)
    model, batch = build_model(config), gpu.padded(gpu.make_pairs([(s, t)] * 3, 500))
    model.set_attn_implementation('eager') # torch does not see all products inside the fused kernel
    with FlopCounterMode(display=False) as counter: seq2seq_loss(model, batch).backward()
    assert gpu.pair_flops(config, [s] * 3, [t] * 3) == pytest.approx(counter.get_total_flops(), rel=1e-3)

def test_packed_gradients_are_those_of_the_pairs_one_by_one():
    model = build_model(model_config('tiny', 200, dropout_rate=0.), seed=0)
    pairs = gpu.make_pairs(gpu.lengths(9, longest=30), 200)
    batch = gpu.packed(pairs, 64)
    assert len(batch['input_ids']) < len(pairs), 'several pairs share a row'
    gpu.packed_loss(model, batch).backward()
    packed = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    for p in pairs: seq2seq_loss(model, gpu.padded([p])).backward()
    for n, p in model.named_parameters(): assert torch.allclose(packed[n], p.grad, rtol=1e-3, atol=1e-3 * p.grad.abs().max().item() + 1e-6), n

def test_packed_rows_train_in_bf16_also_where_answers_end_before_the_prompts(tmp_path):
    run = start(build_model(model_config('tiny', 200, dropout_rate=0.), seed=0), gpu.Unplaced(), TrainCfg(steps=1, precision='bf16'), tmp_path)
    pairs, seen = gpu.make_pairs([(32, 10), (32, 12), (32, 14), (32, 28), (32, 30), (32, 30)], 200), []
    batch = gpu.packed(pairs, 64)
    assert batch['target'].eq(0).any() and batch['source'].gt(0).all(), 'padding that has no padding to look at'
    run.model.encoder.block[0].layer[0].SelfAttention.q.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    packed, padded = (gpu.in_autocast(run, fn)(run.model, b) for fn, b in ((gpu.packed_loss, batch), (seq2seq_loss, gpu.padded(pairs))))
    packed.backward()
    assert seen == [torch.bfloat16] * 2 and packed.item() == pytest.approx(padded.item(), rel=1e-2)
    assert all(p.grad.isfinite().all() for p in run.model.parameters())

@pytest.mark.parametrize('packing', [False, True])
def test_compile_reaches_both_stacks(packing):
    graphs = []
    def backend(graph, inputs): graphs.append(graph); return graph.forward
    a = argparse.Namespace(optimizer='adamw', act_ckpt=False, precision='fp32', compile=True, packing=packing, backend=backend, warm_up=1)
    pairs = gpu.make_pairs([(9, 5), (7, 8)], 200)
    assert len(gpu.step_times(a, model_config('tiny', 200, dropout_rate=0.), [gpu.packed(pairs, 64) if packing else gpu.padded(pairs)] * 2)) == 1
    crosses = {any('EncDecAttention' in str(n.meta.get('nn_module_stack')) for n in g.graph.nodes) for g in graphs}
    assert crosses == {False, True}, 'the encoder, and the decoder'

def test_no_packed_row_is_too_wide_and_no_pair_is_lost():
    pairs = gpu.make_pairs(gpu.lengths(50, longest=30), 200)
    room = gpu.row_room(pairs, 64)
    rows = gpu.fill_rows(pairs, room)
    assert all(sum(len(p[k]) for p in row) <= room[k] for row in rows for k in (0, 1)) and max(room) == 96
    assert sorted(map(id, (p for row in rows for p in row))) == sorted(map(id, pairs))

def test_logits_in_chunks_give_the_same_loss_and_gradients():
    model = build_model(model_config('tiny', 200, dropout_rate=0.), seed=0)
    batch = gpu.padded(gpu.make_pairs([(20, 50), (30, 41)], 200))
    grads, losses = [], []
    for loss in (seq2seq_loss, lambda m, b: chunked_loss(m, b, size=16)):
        model.zero_grad(); total = loss(model, batch); total.backward()
        losses.append(total.item()); grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert np.isclose(*losses, rtol=1e-6) and torch.allclose(*grads, rtol=1e-3, atol=1e-4)
