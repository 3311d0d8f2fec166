"Several processes: the same losses as one, nothing lost or doubled, resume with as many or another number, and a death that is told."
import json, math, os, signal, subprocess, sys, time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from scclm import trainer
from scclm.tokenizer import load_tokenizer
from scclm.trainer import fit, make_accelerator, newest_good, read_log, run_lock
from test_trainer import CFG, course_runs, home, model, stream  # noqa: F401

WORKER = Path(__file__).with_name('rank_worker.py')

def run(world:int, home:Path, out:Path, ok:bool=True, **options)->str: # noqa: F811
    "Train with so many processes; what they printed."
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(world)] if world > 1 else []
    env = os.environ | dict(ACCELERATE_USE_CPU='true', OMP_NUM_THREADS='1', PYTHONUTF8='1')
    p = subprocess.run([sys.executable, *launch, str(WORKER), str(home), str(out), json.dumps(options)], capture_output=True, text=True, env=env, timeout=240)
    assert (p.returncode == 0) == ok, p.stdout + p.stderr
    return p.stdout + p.stderr

def losses(out): return {e['step']: e['loss'] for e in read_log(out/'log.jsonl')}
def weights(out): return (newest_good(out)/'model.safetensors').read_bytes()
def close(a, b): return a.keys() == b.keys() and all(math.isclose(a[k], b[k], abs_tol=1e-5) for k in a)

def seen(out:Path)->dict[int, Counter]:
    "step -> prompts trained on by all processes; a step done again after a resume counts as it was done last."
    steps = {}
    for f in out.glob('seen-*.jsonl'):
        own = dict(json.loads(line) for line in f.read_text().splitlines())
        for step, prompts in own.items(): steps.setdefault(step, Counter()).update(prompts)
    return steps

@pytest.fixture(scope='module')
def one(home, tmp_path_factory): # noqa: F811
    "One process, 30 steps: more than an epoch. Sums are rounded in another order elsewhere, and Adam makes such differences grow with the steps."
    out = tmp_path_factory.mktemp('one')/'run'
    run(1, home, out, steps=30, accum=2, save_every=10, budget_tok=512)
    return out

@pytest.fixture(scope='module')
def two(home, tmp_path_factory): # noqa: F811
    "Two processes with dropout, never stopped."
    out = tmp_path_factory.mktemp('two')/'run'
    run(2, home, out, steps=16, accum=2, save_every=4, dropout=.1)
    return out

def test_two_equal_one_and_share_every_row(home, one, tmp_path): # noqa: F811
    run(2, home, tmp_path/'run', steps=30, accum=2, save_every=10, budget_tok=512)
    assert close(losses(tmp_path/'run'), losses(one))
    assert seen(tmp_path/'run') == seen(one)
    assert [e['real_tok'] for e in read_log(tmp_path/'run'/'log.jsonl')] == [e['real_tok'] for e in read_log(one/'log.jsonl')], 'all processes are counted'
    prompts = Counter(pq.read_table(home/'data/train.parquet')['prompt'].to_pylist())
    epoch, steps = Counter(), seen(one)
    for s in sorted(steps):
        if sum(epoch.values()) + sum(steps[s].values()) > sum(prompts.values()): break
        epoch += steps[s]
    assert s < 30 and epoch <= prompts and sum(prompts.values()) - sum(epoch.values()) < 2 * max(sum(c.values()) for c in steps.values()), 'an epoch doubles no row'

def test_batches_smaller_than_the_number_of_processes(home, tmp_path): # noqa: F811
    "A budget of one or two rows: one process of three has nothing to do in most batches, and still takes the step."
    for world in (1, 3): run(world, home, tmp_path/str(world), steps=6, budget_tok=40)
    assert close(losses(tmp_path/'3'), losses(tmp_path/'1')) and seen(tmp_path/'3') == seen(tmp_path/'1')

def test_stopping_one_stops_all_and_resume_is_bit_for_bit(home, two, tmp_path): # noqa: F811
    said = run(2, home, tmp_path/'run', steps=16, accum=2, save_every=4, dropout=.1, term=[6, 1])
    assert 'rank 1 of 2: step 6, stopped by SIGTERM' in said and 'rank 0 of 2: step 6, stopped by another process' in said, said
    run(2, home, tmp_path/'run', steps=16, accum=2, save_every=4, dropout=.1)
    assert weights(tmp_path/'run') == weights(two) and losses(tmp_path/'run') == losses(two) and seen(tmp_path/'run') == seen(two)

def test_the_command_line_stops_on_all_ranks_when_one_is_asked(course_runs): # noqa: F811
    "The process that nobody asked leaves in good order too."
    cmd = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', '-m', 'scclm.cli', 'pretrain', '--steps', '5000', '--log-every', '1',
           '--save-every', '5000', '--eval-every', '0', '--budget-tok', '256', '--max-len', '64']
    env = os.environ | dict(SCCLM_RUNS=str(course_runs), SCCLM_SCALE='tiny', OMP_NUM_THREADS='1', ACCELERATE_USE_CPU='true')
    p, log = subprocess.Popen(cmd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True), course_runs/'tiny/pretrain/log.jsonl'
    while p.poll() is None and not (log.exists() and log.read_text().count('\n') >= 3): time.sleep(.05)
    ranks = [c for c in psutil.Process(p.pid).children(recursive=True) if c.environ().get('RANK') == '1']
    ranks[0].send_signal(signal.SIGTERM)
    out, _ = p.communicate(timeout=120)
    assert 'stopped by another process at step' in out and 'exitcode  : 143' in out and 'KeyError' not in out, out
    assert newest_good(course_runs/'tiny/pretrain')

def test_one_two_one_follows_the_run_that_never_changed(home, one, tmp_path): # noqa: F811
    out = tmp_path/'run'
    for world, until in ((1, 10), (2, 20), (1, None)):
        run(world, home, out, steps=30, accum=2, save_every=10, budget_tok=512, **(dict(term=[until, 0]) if until else {}))
    assert close(losses(out), losses(one)) and sum(len(f.read_text().splitlines()) for f in out.glob('seen-0.jsonl')) == 30
    # rank 1 worked in steps 11 … 20 only: what it saw, with what rank 0 saw, is what one process saw
    assert seen(out) == seen(one)

def test_a_killed_process_is_told_and_the_run_goes_on(home, two, tmp_path): # noqa: F811
    said = run(2, home, tmp_path/'run', ok=False, steps=16, accum=2, save_every=4, dropout=.1, kill=[6, 1])
    assert 'process 0 of 2: another process is gone or does not answer' in said and 'step-00000004' in said, said
    run(2, home, tmp_path/'run', steps=16, accum=2, save_every=4, dropout=.1)
    assert weights(tmp_path/'run') == weights(two) and losses(tmp_path/'run') == losses(two) and seen(tmp_path/'run') == seen(two)

def test_a_refused_lock_ends_all_processes_and_touches_nothing(home, tmp_path): # noqa: F811
    "Also what the holder is just writing stays: a process that holds no lock must not tidy up."
    half = tmp_path/'run'/'checkpoints'/'.half-step-00000004'
    half.mkdir(parents=True)
    with run_lock(tmp_path/'run'): said = run(2, home, tmp_path/'run', ok=False, steps=4)
    assert said.count(f'RuntimeError: {tmp_path/"run"} is being trained by pid {os.getpid()}') == 2 and half.is_dir(), said

# ---- loss scaling: a scaler on the CPU around fp32, where scaling by powers of two changes no bit

class Scaled(Accelerator):
    "What accelerate makes of fp16 on a GPU, without the fp16."
    def __init__(self, *args):
        AcceleratorState._reset_state()
        super().__init__(mixed_precision='fp16', cpu=True)
        self.scaler = torch.amp.GradScaler('cpu', init_scale=2.**10, growth_interval=3)

    def unscale_gradients(self, optimizer=None): [self.scaler.unscale_(o.optimizer) for o in self._optimizers]

def scaled_fit(home, out, optimizer, bad=(), steps=8, until=None): # noqa: F811
    "Train; the gradient of one matrix is infinite in the steps `bad`. (scale, growth tracker, skipped, embedding) after every step, and the Run."
    tok, seen = load_tokenizer(home/'tokenizer'), []
    m = model(tok)
    matrix = next(p for n, p in m.named_parameters() if n.endswith('q.weight'))
    begun = int(newest_good(out).name[5:]) if (out/'checkpoints').exists() else 0
    matrix.register_hook(lambda g: g * math.inf if len(seen) + begun in bad else g)
    def note(r):
        s = r.acc.scaler
        seen.append((s and s.get_scale(), s and s._get_growth_tracker(), r.skipped, r.model.get_input_embeddings().weight.detach().clone()))
        if r.step == until: os.kill(os.getpid(), signal.SIGTERM)
    r = fit(m, stream(home, tok), replace(CFG, accum=1, steps=steps, optimizer=optimizer), out, callbacks=[note], progress=False)
    return seen, r

@pytest.mark.parametrize('optimizer', ['adamw', 'muon']) # muon: two optimisers share one scaler
def test_scaling_changes_nothing_and_an_overflow_is_one_skipped_step(home, tmp_path, monkeypatch, optimizer): # noqa: F811
    plain, _ = scaled_fit(home, tmp_path/'plain', optimizer)
    monkeypatch.setattr(trainer, 'make_accelerator', Scaled)
    seen, r = scaled_fit(home, tmp_path/'scaled', optimizer)
    assert all(torch.equal(a[3], b[3]) for a, b in zip(plain, seen)) and r.skipped == 0
    assert [s[:2] for s in seen] == [(1024, 1), (1024, 2), (2048, 0), (2048, 1), (2048, 2), (4096, 0), (4096, 1), (4096, 2)]
    seen, r = scaled_fit(home, tmp_path/'bad', optimizer, bad={4})
    assert [s[:3] for s in seen[3:6]] == [(2048, 1, 0), (1024, 0, 1), (1024, 1, 1)], 'the scale halves once'
    assert torch.equal(seen[4][3], seen[3][3]) and not torch.equal(seen[5][3], seen[4][3]), 'no optimiser steps when one overflows'
    scaled_fit(home, tmp_path/'cut', optimizer, bad={4}, until=6)
    again, r2 = scaled_fit(home, tmp_path/'cut', optimizer, bad={4})
    assert len(again) == 2 and again[-1][:3] == seen[-1][:3] and weights(tmp_path/'cut') == weights(tmp_path/'bad') and r2.skipped == 1

def test_fp16_without_a_gpu_is_refused(home, tmp_path, monkeypatch): # noqa: F811
    "accelerate would quietly train in fp32."
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ValueError, match="precision='fp16' needs a GPU"): make_accelerator('fp16', tmp_path)

# ---- the configurations for `accelerate launch`

CONFIGS = sorted((Path(__file__).parents[1]/'configs').glob('*.yaml'))

@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_accelerate_reads_the_configuration(path):
    from accelerate.commands.config.config_args import load_config_from_file
    config = load_config_from_file(str(path))
    want = dict(one_gpu='NO', ddp='MULTI_GPU', fsdp2='FSDP', zero2='DEEPSPEED')
    assert str(config.distributed_type.value if hasattr(config.distributed_type, 'value') else config.distributed_type) == want[path.stem]
    assert config.num_processes == (1 if path.stem == 'one_gpu' else 2)

def test_one_gpu_configuration_launches_the_command_line(course_runs): # noqa: F811
    "As far as a machine without a GPU can: the same launch with --cpu."
    cmd = [sys.executable, '-m', 'accelerate.commands.launch', '--config_file', str(CONFIGS[0].with_name('one_gpu.yaml')), '--cpu', '-m', 'scclm.cli',
           'pretrain', '--steps', '2', '--budget-tok', '256', '--max-len', '64']
    p = subprocess.run(cmd, capture_output=True, text=True, env=os.environ | dict(SCCLM_RUNS=str(course_runs), SCCLM_SCALE='tiny', OMP_NUM_THREADS='1'))
    assert p.returncode == 0 and (course_runs/'tiny/pretrain/model/config.json').exists(), p.stderr

def test_fsdp2_configuration_wraps_the_model():
    "Two processes, each with half of every weight: loss and gradients are those of one process."
    cmd = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', str(Path(__file__).with_name('fsdp_worker.py')),
           str(CONFIGS[0].with_name('fsdp2.yaml'))]
    p = subprocess.run(cmd, capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS='1'), timeout=120)
    assert p.returncode == 0, p.stderr
    got = json.loads(p.stdout.splitlines()[-1])
    assert got['sharded_loss'] == pytest.approx(got['loss'], rel=1e-6) and got['gradients_apart'] < 1e-6 and got['own'] == pytest.approx(.5, abs=.01)

@pytest.mark.parametrize('kind', ['FSDP', 'DEEPSPEED'])
def test_sharded_training_is_refused(home, tmp_path, kind, monkeypatch): # noqa: F811
    monkeypatch.setenv(f'ACCELERATE_USE_{kind}', 'true')
    with pytest.raises(ValueError, match=f'fit does not train with {kind}.*configs/ddp.yaml'): make_accelerator('fp32', tmp_path)
