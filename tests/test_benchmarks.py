"Benchmarks that this machine cannot run in full: their smallest case, and what they count, against another count."
import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from trainer_toys import load_benchmark

from scclm.dataset import collate
from scclm.model import build_model, model_config
from scclm.planner import ProbeCfg
from scclm.trainer import TrainCfg, chunked_loss, seq2seq_loss, start_run

pytestmark = pytest.mark.usefixtures('one_thread')

FOLDER = Path(__file__).resolve().parents[1]/'benchmarks'
SCRIPTS = sorted(FOLDER.glob('*.py'))


@pytest.fixture(scope='module')
def gpu(): return load_benchmark('gpu')


def results(): return {p.name: p.read_bytes() for p in (FOLDER/'results').iterdir() if p.is_file()}


@pytest.mark.parametrize('path', SCRIPTS, ids=[p.stem for p in SCRIPTS])
def test_importing_a_script_does_no_work(path, monkeypatch, capfd):
    "A `main` that ran would stop at a flag that it does not know; a measurement would print or write."
    monkeypatch.setattr(sys, 'argv', [str(path), '--no-such-flag'])
    before, n = results(), torch.get_num_threads()
    module = load_benchmark(path.stem)
    assert capfd.readouterr().out == '' and results() == before and torch.get_num_threads() == n
    if path.stem in ('report', 'ngram'): return # what other scripts import
    assert callable(module.main) and module.__doc__, 'a script says what it measures'


# The planner's peaks


def test_memory_rows_are_named_once():
    "Rows are merged by name: two runs of one name would hide each other."
    memory = load_benchmark('memory')
    names = [memory.name(cfg) for cfg in memory.RUNS]
    assert len(set(names)) == len(names) and set(memory.LOOSE) <= set(memory.RUNS)
    assert memory.name(ProbeCfg('mini', 8000, (8, 128, 64), 'muon', 'bf16', True, 2)) == \
        'mini, 8 x (128 + 64), muon, bf16, checkpointing, accum 2'
    held = json.loads((FOLDER/'results'/'memory.json').read_text(encoding='utf-8'))['rows']
    assert {r['what'] for r in held} == {*names, *(f'{memory.name(cfg)}, allocator' for cfg in memory.LOOSE)}


def test_a_known_peak_is_not_measured_again(capsys):
    memory = load_benchmark('memory')
    cfg = ProbeCfg('tiny', 50, (2, 8, 8))
    found = memory.measured(cfg, True, {memory.name(cfg): 7.})
    assert found['baseline'] == 7. and found['baseline_name'] == 'measured peak'
    assert found['ratio'] == pytest.approx(found['ours']/7) and memory.name(cfg) in capsys.readouterr().out


def test_recipes_change_only_what_they_say():
    recipe = load_benchmark('recipe')
    words = dict(optimizer='Adafactor', checkpointing='checkpointing', loss_chunk='chunks', weights='bf16')
    for name, change in recipe.RECIPES.items():
        assert change.keys() <= asdict(ProbeCfg()).keys()
        if 'all savings' in name: assert change.keys() == words.keys()
        else: assert change.keys() == {field for field, word in words.items() if word in name}, name


def test_phases_make_a_row_each():
    phases = load_benchmark('phases')
    def run(forward, save, seconds): return dict.fromkeys(phases.PHASES, .1) | dict(forward=forward, save=save,
                                                                                    seconds=seconds, tok=100)
    ours, theirs = [run(.5, .1, 2.), run(.7, .1, 4.)], [run(.4, .3, 4.)]*2
    *shares, speed = phases.make_rows('tiny', ours, theirs)
    assert [r['what'] for r in shares] == [f'tiny: {k}' for k in phases.PHASES]
    forward, save = shares[0], shares[-1]
    assert (forward['ours'], forward['baseline']) == (pytest.approx(.6), .4)
    assert save['ratio'] == pytest.approx(3.), 'in the background it takes a third'
    assert (speed['ours'], speed['baseline'], speed['ratio']) == (37.5, 25., pytest.approx(1.5))


# The GPU script


def test_every_switch_of_the_gpu_script_runs():
    command = [sys.executable, str(FOLDER/'gpu.py'), '--smoke']
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS='1'))
    assert done.returncode == 0, done.stderr
    for what in ('adamw, fp32', 'adamw, fp32, packing', 'adamw, fp32, act_ckpt', 'adafactor, fp32', 'muon, fp32',
                 'adamw, fp32, compile', 'adamw, compile, packing'):
        assert f'tiny, {what}: budget' in done.stdout, done.stdout


def test_without_a_gpu_the_script_says_so():
    if torch.cuda.is_available(): return
    done = subprocess.run([sys.executable, str(FOLDER/'gpu.py')], capture_output=True, text=True)
    assert done.returncode == 1 and 'no GPU here: `--smoke`' in done.stderr


@pytest.mark.parametrize('shape', [dict(), dict(num_heads=4, num_layers=3, d_ff=640)], ids=['tiny', 'other'])
@pytest.mark.parametrize('s, t', [(40, 24), (16, 96)])
def test_flops_are_those_that_torch_counts(gpu, s, t, shape):
    config = model_config('tiny', 500, dropout_rate=0., **shape)
    lens = np.array([(s, t)]*3)
    model, batch = build_model(config), collate(gpu.make_pairs(lens, 500))
    model.set_attn_implementation('eager') # torch does not see all products inside the fused kernel
    with FlopCounterMode(display=False) as counter: seq2seq_loss(model, batch).backward()
    assert gpu.pair_flops(config, lens) == counter.get_total_flops()


def test_packed_gradients_are_those_of_the_pairs_one_by_one(gpu):
    model = build_model(model_config('tiny', 200, dropout_rate=0.), seed=0)
    pairs = gpu.make_pairs(gpu.lengths(9, longest=30), 200)
    batch = gpu.packed(pairs, 64)
    assert len(batch['input_ids']) < len(pairs), 'several pairs share a row'
    gpu.packed_loss(model, batch).backward()
    packed = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    for p in pairs: seq2seq_loss(model, collate([p])).backward()
    for n, p in model.named_parameters():
        room = 1e-3 * p.grad.abs().max().item() + 1e-6
        assert torch.allclose(packed[n], p.grad, rtol=1e-3, atol=room), n


def test_packed_rows_train_in_bf16_also_where_answers_end_before_the_prompts(gpu, tmp_path):
    model = build_model(model_config('tiny', 200, dropout_rate=0.), seed=0)
    run = start_run(model, gpu.Unplaced(), TrainCfg(steps=1, precision='bf16'), tmp_path)
    pairs = gpu.make_pairs(np.array([(32, 10), (32, 12), (32, 14), (32, 28), (32, 30), (32, 30)]), 200)
    batch, seen = gpu.packed(pairs, 64), []
    assert batch['target'].eq(0).any() and batch['source'].gt(0).all(), 'padding that has no padding to look at'
    def note(module, args, out): seen.append(out.dtype)
    run.model.encoder.block[0].layer[0].SelfAttention.q.register_forward_hook(note)
    packed = gpu.in_autocast(run, gpu.packed_loss)(run.model, batch)
    padded = gpu.in_autocast(run, seq2seq_loss)(run.model, collate(pairs))
    packed.backward()
    assert seen == [torch.bfloat16]*2 and packed.item() == pytest.approx(padded.item(), rel=1e-2)
    assert all(p.grad.isfinite().all() for p in run.model.parameters())


@pytest.mark.parametrize('packing', [False, True])
def test_compile_reaches_both_stacks(gpu, packing):
    graphs = []
    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward
    args = argparse.Namespace(optimizer='adamw', act_ckpt=False, precision='fp32', compile=True, packing=packing,
                              graph=False, backend=backend, warm_up=1)
    pairs = gpu.make_pairs(np.array([(9, 5), (7, 8)]), 200)
    batch = gpu.packed(pairs, 64) if packing else collate(pairs)
    assert len(gpu.step_times(args, model_config('tiny', 200, dropout_rate=0.), [batch]*2)) == 1
    crosses = {any('EncDecAttention' in str(n.meta.get('nn_module_stack')) for n in g.graph.nodes) for g in graphs}
    assert crosses == {False, True}, 'the encoder, and the decoder'


def test_recorded_steps_get_rows_of_one_shape_and_the_same_loss(gpu):
    args = gpu.make_parser().parse_args('--packing --graph --steps 2 --warm-up 1 --width 40'.split())
    groups, batches = gpu.make_batches(args, 512, gpu.make_pairs(gpu.lengths(60, 40), 200))
    assert len(batches) == 3 and len({b['labels'].shape for b in batches}) == 1
    model = build_model(model_config('tiny', 200, dropout_rate=0.), seed=0).eval()
    with torch.no_grad():
        for group, batch in zip(groups, batches):
            alone = sum(seq2seq_loss(model, collate([p])).item() for p in group)
            assert gpu.packed_loss(model, batch).item() == pytest.approx(alone, rel=1e-4)
            assert gpu.padded_loss(model, collate(group)).item() == pytest.approx(alone, rel=1e-4)


def test_the_curve_of_a_gpu_run_is_thinned_and_keeps_its_evaluations():
    log = [dict(step=s, loss=1/s, real_tok=100*s, real_tok_per_s=5.) for s in range(1, 301)]
    points = load_benchmark('gpu_mini').curve(log + [dict(step=300, loss_valid=2., bleu4=1.)])
    assert len(points) == 60 and points[-1] == dict(step=300, real_tok=30_000, loss=1/300, real_tok_per_s=5.,
                                                    loss_valid=2., bleu4=1.)


def test_no_packed_row_is_too_wide_and_no_pair_is_lost(gpu):
    pairs = gpu.make_pairs(gpu.lengths(50, longest=30), 200)
    room = gpu.row_room(pairs, 64)
    rows = gpu.fill_rows(pairs, room)
    assert all(sum(len(p[k]) for p in row) <= room[k] for row in rows for k in (0, 1)) and max(room) == 96
    assert sorted(map(id, (p for row in rows for p in row))) == sorted(map(id, pairs))


def test_logits_in_chunks_give_the_same_loss_and_gradients(gpu):
    model = build_model(model_config('tiny', 200, dropout_rate=0.), seed=0)
    batch = collate(gpu.make_pairs(np.array([(20, 50), (30, 41)]), 200))
    def chunked(m, b): return chunked_loss(m, b, size=16)
    grads, losses = [], []
    for loss in (seq2seq_loss, chunked):
        model.zero_grad()
        total = loss(model, batch)
        total.backward()
        losses.append(total.item())
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert np.isclose(*losses, rtol=1e-6) and torch.allclose(*grads, rtol=1e-3, atol=1e-4)


# Copying


def test_a_run_that_never_copies_counts_as_the_limit():
    copying = load_benchmark('copying')
    def curve(*shares): return [dict(step=50*i, known=k, new=n, loss=1.) for i, (k, n) in enumerate(shares)]
    curves = dict(mimetic=curve((0, 0), (.95, .5), (1., .9)), stock=curve((0, 0), (.1, 0), (.5, 0), (.9, 0)))
    known, new = copying.make_rows(curves, .9)
    assert (known['ours'], known['baseline'], known['ratio']) == (50, 150, 3)
    assert (new['ours'], new['baseline'], new['ratio']) == (100, 150, 1.5)
    assert known['reached'] == dict(mimetic=True, stock=True) and new['reached'] == dict(mimetic=True, stock=False)


# Cleaning at scale


SPIKE = '''
import sys, time
block = bytearray(300*2**20)
del block
print('done', flush=True)
sys.stdin.read()
'''

def test_a_short_peak_of_a_worker_is_counted():
    "300 MiB for a moment: what the process holds afterwards is little, what it held at most is not."
    scale = load_benchmark('scale')
    with subprocess.Popen([sys.executable, '-c', SPIKE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        p = scale.psutil.Process(child.pid)
        assert scale.shared_out(p) < 100*2**20 < 300*2**20 < scale.most_held(p) < 400*2**20
        child.stdin.close()
    assert scale.most_held(p) == scale.shared_out(p) == 0


def test_the_smallest_scale(tmp_path):
    "600 rows made of 400: every part is timed, and the bound is no less than what was seen."
    scale = load_benchmark('scale')
    table = pa.table(dict(prompt=[f'第 {i} 个问题：山上的花什么时候开？' for i in range(400)],
                          response=[f'第 {i} 个回答：山下的花四月开，山上的花要到六月才开。' * 2 for i in range(400)]))
    found = scale.measured(table, 600, tmp_path)
    assert found['rows_in'] == 600 and found['parts'].keys() == found['bound'].keys() == set(scale.PARTS)
    assert sum(found['parts'].values()) <= found['seconds']
    peaks = scale.peaks_of(found)
    assert 30 < peaks['peak memory, bound, streaming parts'] <= peaks['peak memory, bound']
    assert len({r['what'] for r in scale.rows_of({'600': found})}) == 5


def test_copies_are_the_rows_in_other_characters():
    scale = load_benchmark('scale')
    texts = [f'{i} 春眠不觉晓，处处闻啼鸟。' for i in range(50)]
    table = pa.table(dict(prompt=texts, response=texts))
    made = pa.concat_tables(scale.copies(table, 120))['prompt'].to_pylist()
    assert made[:50] == texts and len(made) == 120 and not set(made[50:]) & set(texts)
    assert [len(t) for t in made[50:100]] == [len(t) for t in texts]
    han = [sorted(t for t in text if t > '\u4dff') for text in (made[50], made[100])]
    assert han[0] != han[1]


# The stream


def test_a_shuffle_buffer_brings_every_row_once():
    stream = load_benchmark('stream')
    order = stream.buffered(1000, 50, 0)
    assert sorted(order) == list(range(1000)) and (order - np.arange(1000)).min() >= -1000
    assert all(row <= place + 50 for place, row in enumerate(order))      # none before it is in the buffer
    assert stream.cut(25, 10) == [10, 10, 5] and stream.cut(20, 10) == [10, 10]
