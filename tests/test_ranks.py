"Several processes: the losses of one, nothing lost or doubled, resume with as many or others, a death that is told."
import json
import math
import os
import signal
import socket
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState
from trainer_toys import CFG, ROOT, at_step, finished, model, started, stream

from scclm import trainer
from scclm.runlog import read_log
from scclm.tokenizer import load_tokenizer
from scclm.trainer import fit, make_accelerator, newest_good
from scclm.trainer_several import run_lock

pytestmark = pytest.mark.usefixtures('one_thread')

WORKER = Path(__file__).with_name('rank_worker.py')
CPU = os.environ | dict(ACCELERATE_USE_CPU='true')


def torchrun(world:int)->list[str]:
    "The start of a command line for so many processes."
    return [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(world)]

def run(world:int, home:Path, out:Path, ok:bool=True, **options)->str:
    "Train with so many processes; what they printed."
    launch = torchrun(world) if world > 1 else [sys.executable]
    p = finished([*launch, str(WORKER), str(home), str(out), json.dumps(options)], CPU)
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

LONG = dict(steps=30, accum=2, save_every=10, budget_tok=512)
SHORT = dict(steps=16, accum=2, save_every=4, dropout=.1)

@pytest.fixture(scope='module')
def one(home, tmp_path_factory):
    """One process, 30 steps: more than an epoch. Sums are rounded in another order elsewhere, and Adam makes such
    differences grow with the steps."""
    out = tmp_path_factory.mktemp('one')/'run'
    run(1, home, out, **LONG)
    return out

@pytest.fixture(scope='module')
def two(home, tmp_path_factory):
    "Two processes with dropout, never stopped."
    out = tmp_path_factory.mktemp('two')/'run'
    run(2, home, out, **SHORT)
    return out

def assert_equal(a:Path, b:Path):
    "Two runs are the same, bit for bit, and saw the same rows."
    assert weights(a) == weights(b) and losses(a) == losses(b) and seen(a) == seen(b)

def test_two_equal_one_and_share_every_row(home, one, tmp_path):
    out = tmp_path/'run'
    run(2, home, out, **LONG)
    assert close(losses(out), losses(one))
    assert seen(out) == seen(one)
    counted, want = ([e['real_tok'] for e in read_log(o/'log.jsonl')] for o in (out, one))
    assert counted == want, 'all processes are counted'

def test_an_epoch_doubles_no_row(home, one):
    prompts = Counter(pq.read_table(home/'data/train.parquet')['prompt'].to_pylist())
    epoch, steps = Counter(), seen(one)
    for s in sorted(steps):
        if epoch.total() + steps[s].total() > prompts.total(): break
        epoch += steps[s]
    largest = max(c.total() for c in steps.values())
    assert s < 30 and epoch <= prompts and prompts.total() - epoch.total() < 2 * largest

def test_batches_smaller_than_the_number_of_processes(home, tmp_path):
    "A budget of one or two rows: one process of three has nothing to do in most batches, and still takes the step."
    for world in (1, 3): run(world, home, tmp_path/str(world), steps=6, budget_tok=40)
    assert close(losses(tmp_path/'3'), losses(tmp_path/'1')) and seen(tmp_path/'3') == seen(tmp_path/'1')

def test_stopping_one_stops_all_and_resume_is_bit_for_bit(home, two, tmp_path):
    said = run(2, home, tmp_path/'run', **SHORT, term=[6, 1])
    assert 'rank 1 of 2: step 6, stopped by SIGTERM' in said, said
    assert 'rank 0 of 2: step 6, stopped by another process' in said, said
    run(2, home, tmp_path/'run', **SHORT)
    assert_equal(tmp_path/'run', two)

def test_the_command_line_stops_on_all_ranks_when_one_is_asked(course_runs):
    "The process that nobody asked leaves in good order too."
    cmd = [*torchrun(2), '-m', 'scclm.cli', 'pretrain', '--steps', '5000', '--log-every', '1', '--save-every', '5000',
           '--eval-every', '0', '--budget-tok', '256', '--max-len', '64']
    log = course_runs/'tiny/pretrain/log.jsonl'
    with started(cmd, CPU | dict(SCCLM_RUNS=str(course_runs), SCCLM_SCALE='tiny')) as p:
        while p.poll() is None and not (log.exists() and log.read_text().count('\n') >= 3): time.sleep(.05)
        ranks = [c for c in psutil.Process(p.pid).children(recursive=True) if c.environ().get('RANK') == '1']
        ranks[0].send_signal(signal.SIGTERM)
        out, err = p.communicate(timeout=120)
    said = out + err
    assert 'stopped by another process at step' in said and 'exitcode  : 143' in said and 'KeyError' not in said, said
    assert newest_good(course_runs/'tiny/pretrain')

def test_one_two_one_follows_the_run_that_never_changed(home, one, tmp_path):
    out = tmp_path/'run'
    run(1, home, out, **LONG, term=[10, 0])
    run(2, home, out, **LONG, term=[20, 0])
    run(1, home, out, **LONG)
    assert close(losses(out), losses(one))
    assert len((out/'seen-0.jsonl').read_text().splitlines()) == 30
    # rank 1 worked in steps 11 … 20 only: what it saw, with what rank 0 saw, is what one process saw
    assert seen(out) == seen(one)

def free_port()->int:
    "A port that nobody listens on just now."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def test_a_killed_process_is_told_and_the_run_goes_on(home, two, tmp_path):
    "Two processes without torchrun, which would stop the survivor, at times before it can speak."
    command = [sys.executable, str(WORKER), str(home), str(tmp_path/'run'), json.dumps(SHORT | dict(kill=[6, 1]))]
    both = CPU | dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()))
    with started(command, both | dict(RANK='0', LOCAL_RANK='0')) as survivor:
        dead = finished(command, both | dict(RANK='1', LOCAL_RANK='1'))
        said = survivor.communicate(timeout=240)[1]
    assert dead.returncode == -signal.SIGKILL and survivor.returncode == 1, said
    assert 'process 0 of 2: another process is gone or does not answer' in said and 'step-00000004' in said, said
    run(2, home, tmp_path/'run', **SHORT)
    assert_equal(tmp_path/'run', two)

def test_a_refused_lock_ends_all_processes_and_touches_nothing(home, tmp_path):
    "Also what the holder is just writing stays: a process that holds no lock must not tidy up."
    out = tmp_path/'run'
    half = out/'checkpoints'/'.half-step-00000004'
    half.mkdir(parents=True)
    with run_lock(out): said = run(2, home, out, ok=False, steps=4)
    says = f'RuntimeError: {out} is being trained by pid {os.getpid()}'
    assert said.count(says) == 2 and half.is_dir(), said

# ---- loss scaling: a scaler on the CPU around fp32, where scaling by powers of two changes no bit

class Scaled(Accelerator):
    "What accelerate makes of fp16 on a GPU, without the fp16."
    def __init__(self, *args):
        AcceleratorState._reset_state()
        super().__init__(mixed_precision='fp16', cpu=True)
        self.scaler = torch.amp.GradScaler('cpu', init_scale=2.**10, growth_interval=3)

    def unscale_gradients(self, optimizer=None):
        for o in self._optimizers: self.scaler.unscale_(o.optimizer)

class Step(NamedTuple):
    "How things are after a step."
    scale:float|None       # of the loss; None: no scaler
    growth:int|None        # steps since it changed
    skipped:int            # so far
    embedding:torch.Tensor # a copy

def scaled_fit(home, out, optimizer, bad=(), steps=8, until=None):
    "Train; the gradient of one matrix is infinite in the steps `bad`. A Step after every step, and the Run."
    tok, seen = load_tokenizer(home/'tokenizer'), []
    m = model(tok)
    matrix = next(p for n, p in m.named_parameters() if n.endswith('q.weight'))
    begun = int(newest_good(out).name[5:]) if (out/'checkpoints').exists() else 0
    matrix.register_hook(lambda g: g * math.inf if len(seen) + begun in bad else g)
    def note(r):
        s = r.acc.scaler
        scale, growth = (s.get_scale(), s._get_growth_tracker()) if s else (None, None)
        seen.append(Step(scale, growth, r.skipped, r.model.get_input_embeddings().weight.detach().clone()))
    cfg = replace(CFG, accum=1, steps=steps, optimizer=optimizer)
    r = fit(m, stream(home, tok), cfg, out, callbacks=[note, at_step(until, signal.SIGTERM)], progress=False)
    return seen, r

@pytest.mark.parametrize('optimizer', ['adamw', 'muon']) # muon: two optimisers share one scaler
def test_scaling_changes_nothing_and_an_overflow_is_one_skipped_step(home, tmp_path, monkeypatch, optimizer):
    plain, _ = scaled_fit(home, tmp_path/'plain', optimizer)
    monkeypatch.setattr(trainer, 'make_accelerator', Scaled)
    seen, r = scaled_fit(home, tmp_path/'scaled', optimizer)
    assert all(torch.equal(a.embedding, b.embedding) for a, b in zip(plain, seen)) and r.skipped == 0
    grown = [(1024, 1), (1024, 2), (2048, 0), (2048, 1), (2048, 2), (4096, 0), (4096, 1), (4096, 2)]
    assert [s[:2] for s in seen] == grown
    seen, r = scaled_fit(home, tmp_path/'bad', optimizer, bad={4})
    assert [s[:3] for s in seen[3:6]] == [(2048, 1, 0), (1024, 0, 1), (1024, 1, 1)], 'the scale halves once'
    before, skipped, after = (s.embedding for s in seen[3:6])
    assert torch.equal(skipped, before) and not torch.equal(after, skipped), 'no optimiser steps when one overflows'
    scaled_fit(home, tmp_path/'cut', optimizer, bad={4}, until=6)
    again, r2 = scaled_fit(home, tmp_path/'cut', optimizer, bad={4})
    assert len(again) == 2 and again[-1][:3] == seen[-1][:3] and r2.skipped == 1
    assert weights(tmp_path/'cut') == weights(tmp_path/'bad')

def test_fp16_without_a_gpu_is_refused(tmp_path, monkeypatch):
    "accelerate would quietly train in fp32."
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ValueError, match="precision='fp16' needs a GPU"): make_accelerator('fp16', tmp_path)

# ---- the configurations for `accelerate launch`

CONFIGS = sorted((ROOT/'configs').glob('*.yaml'))
KINDS = dict(one_gpu='NO', ddp='MULTI_GPU', fsdp2='FSDP', zero2='DEEPSPEED')

@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_accelerate_reads_the_configuration(path):
    config = load_config_from_file(str(path))
    kind = config.distributed_type
    assert str(getattr(kind, 'value', kind)) == KINDS[path.stem]
    assert config.num_processes == (1 if path.stem == 'one_gpu' else 2)

def test_one_gpu_configuration_launches_the_command_line(course_runs):
    "As far as a machine without a GPU can: the same launch with --cpu."
    cmd = [sys.executable, '-m', 'accelerate.commands.launch', '--config_file', str(ROOT/'configs'/'one_gpu.yaml'),
           '--cpu', '-m', 'scclm.cli', 'pretrain', '--steps', '2', '--budget-tok', '256', '--max-len', '64']
    p = finished(cmd, os.environ | dict(SCCLM_RUNS=str(course_runs), SCCLM_SCALE='tiny'))
    assert p.returncode == 0 and (course_runs/'tiny/pretrain/model/config.json').exists(), p.stderr

def test_fsdp2_configuration_wraps_the_model():
    "Two processes, each with half of every weight: loss and gradients are those of one process."
    worker, config = Path(__file__).with_name('fsdp_worker.py'), ROOT/'configs'/'fsdp2.yaml'
    p = finished([*torchrun(2), str(worker), str(config)], timeout=120)
    assert p.returncode == 0, p.stderr
    got = json.loads(p.stdout.splitlines()[-1])
    assert got['sharded_loss'] == pytest.approx(got['loss'], rel=1e-6) and got['gradients_apart'] < 1e-6
    assert got['own'] == pytest.approx(.5, abs=.01)

@pytest.mark.parametrize('kind', ['FSDP', 'DEEPSPEED'])
def test_sharded_training_is_refused(tmp_path, kind, monkeypatch):
    monkeypatch.setenv(f'ACCELERATE_USE_{kind}', 'true')
    with pytest.raises(ValueError, match=f'fit does not train with {kind}.*configs/ddp.yaml'):
        make_accelerator('fp32', tmp_path)

# ---- the tests' own tools

def test_what_a_test_starts_ends_with_it_even_if_it_fails():
    "A process of its own group, whose parent is gone too: as torchrun's are."
    code = 'import subprocess, sys; p = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], '
    code += 'start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); print(p.pid, flush=True)'
    with pytest.raises(ZeroDivisionError):
        with started([sys.executable, '-c', code]) as p:
            child = psutil.Process(int(p.stdout.readline()))
            p.wait(60)
            assert child.is_running()
            1 / 0
    _, left = psutil.wait_procs([child], timeout=10)
    assert all(c.status() == psutil.STATUS_ZOMBIE for c in left) # dead, but nobody has asked for its status
