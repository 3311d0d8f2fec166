"Runs that are killed, full disks, damaged checkpoints, folders that two runs want. POSIX: the harness forks."
import ctypes
import json
import os
import random
import re
import resource
import shutil
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from trainer_toys import (CFG, at_step, finished, kill, model, same, scclm_command, started,
    stream)
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerFast

from scclm.runlog import read_log
from scclm.trainer import Writer, check_folder, checkpoints, fit, newest_good, seq2seq_loss
from scclm.trainer_several import run_lock

pytestmark = pytest.mark.usefixtures('one_thread')

STAGES = kill.ALL_STAGES


@pytest.fixture
def train(home, tok):
    "Trains the toy model in a folder, as most tests here do: (folder, configuration, ...) -> model, run."
    def go(out, cfg=CFG, m=None, **kw):
        m = model(tok) if m is None else m
        return m, fit(m, stream(home, tok), cfg, out, progress=False, **kw)
    return go

@pytest.fixture(scope='module')
def harness(tmp_path_factory): return kill.Harness(tmp_path_factory.mktemp('kills'), STAGES)

# ---- kills

@pytest.mark.parametrize('stage', STAGES)
def test_runs_killed_at_chosen_points_end_with_the_same_bytes(harness, stage):
    "Over the five stages every point is hit, in one run of each; the first kill leaves a checkpoint to restore."
    points = ['after the rename', *list(kill.POINTS)[STAGES.index(stage)::len(STAGES)]]
    before = harness.kills.copy()
    assert harness.run(stage, [(p, 1) for p in points]) == []
    assert harness.kills - before == Counter((stage, p) for p in points), 'every point was reached'

@pytest.mark.parametrize('stage', STAGES)
def test_runs_killed_at_random_instants_end_with_the_same_bytes(harness, stage):
    seed = time.time_ns()
    rng = random.Random(seed)
    missing, tries = list(kill.WAYS), 0
    while missing and tries < 12: # a run on a machine that got faster may end before it is killed
        tries += 1
        rng.shuffle(missing)
        kills = [(way, rng.uniform(.02, .5)) for way in missing]
        assert harness.run(stage, kills) == [], f'seed {seed}, kills {kills}'
        missing = [way for way in kill.WAYS if not harness.count(stage, way)]
    assert not missing, f'every way landed; seed {seed}'

def test_forty_kills_or_more(harness):
    assert {s for s, _ in harness.kills} == set(STAGES), 'run the whole file: this counts what the tests above did'
    assert harness.count() >= 40 and all(harness.count(stage) >= 10 for stage in STAGES)
    assert all(harness.count(how=how) for how in (*kill.WAYS, *kill.POINTS))

@pytest.mark.parametrize('stage', ['pretrain', 'lora'])
def test_a_slow_disk_gets_the_step_it_was_given(harness, monkeypatch, stage):
    "Training is steps ahead when the weights are written: they must be a copy."
    real = kill.trainer.save_weights
    def slow(*args):
        time.sleep(.1)
        real(*args)
    monkeypatch.setattr(kill.trainer, 'save_weights', slow)
    assert harness.run(stage, [('after the rename', 2), ('SIGTERM', .3)]) == []
    assert harness.kills[stage, 'after the rename'] > 0

def forget_log(run, loader): run.tally = kill.trainer.empty_tally()
def forget_state(run, loader): run.real_tok = 0
def forget_batches(run, loader): loader.load_state_dict(loader.state_dict() | dict(batch=0))
def forget_seed(run, loader): kill.trainer.step_seed = lambda *args: 0 # in a fork, so for good
def forget_optimiser(run, loader):
    for o in run.opts: o.state.clear()

FORGETS = dict(log=forget_log, state=forget_state, optimiser=forget_optimiser, batches=forget_batches,
               weights=forget_seed) # the part of the outcome that must show it -> what a resume might lose

@pytest.mark.parametrize('part', FORGETS)
def test_the_harness_sees_a_resume_that_forgets(harness, monkeypatch, part):
    real = kill.trainer.restore
    def restore(run, path, loader):
        real(run, path, loader)
        FORGETS[part](run, loader)
    monkeypatch.setattr(kill.trainer, 'restore', restore)
    assert part in harness.run('pretrain', [('after the rename', 1)])

def test_a_session_leaves_nothing_behind(tmp_path):
    "Neither a fork that hangs when its parent gives up, nor what a fork started."
    note = tmp_path/'pid'
    def parent_of_a_sleeper():
        child = os.fork()
        if not child: time.sleep(600)
        note.write_text(str(child))
    assert kill.session(parent_of_a_sleeper, ()) is False
    assert wait_gone(int(note.read_text()))
    note.unlink()
    def sleeper():
        note.write_text(str(os.getpid()))
        time.sleep(600)
    def interrupted(signum, frame): raise InterruptedError
    old = signal.signal(signal.SIGALRM, interrupted)
    signal.setitimer(signal.ITIMER_REAL, 1.)
    try:
        with pytest.raises(InterruptedError): kill.session(sleeper, ())
    finally: signal.signal(signal.SIGALRM, old)
    assert wait_gone(int(note.read_text()))

def test_a_session_has_the_signals_of_a_fresh_process():
    "Whatever its parent does when it is told to end, such as what Ray's driver leaves behind."
    def leave(signum, frame): raise SystemExit(signum)
    before = {s: signal.signal(s, leave) for s in (signal.SIGTERM, signal.SIGINT)}
    try: assert all(kill.session(time.sleep, (600,), 1., [s]) for s in before)
    finally:
        for s, handler in before.items(): signal.signal(s, handler)

def wait_gone(pid, seconds=10):
    "Whether a process ends within so many seconds (one that nobody waits for counts as ended)."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try: state = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0]
        except OSError: return True
        if state == 'Z': return True
        time.sleep(.05)
    return False

def test_a_stop_inside_a_step_leaves_no_gradients(train, tmp_path):
    "Asked to stop between two batches of one step; the same model goes on, as in a notebook."
    whole, _ = train(tmp_path/'whole')
    calls = []
    def loss(m, batch):
        calls.append(1)
        if len(calls) == 9: signal.raise_signal(signal.SIGTERM)
        return seq2seq_loss(m, batch)
    part, run = train(tmp_path/'part', loss_fn=loss)
    assert (run.step, run.stopped, len(calls)) == (4, 'SIGTERM', 9)
    train(tmp_path/'part', m=part)
    assert same(part, whole)

# ---- the disk

CLONE_NEWNS, CLONE_NEWUSER, MS_REC_PRIVATE, MS_REMOUNT = 0x20000, 0x10000000, 0x44000, 32

def own_mounts(libc, must):
    "Let this process mount what no other process sees."
    uid, gid = os.getuid(), os.getgid()
    must(libc.unshare(CLONE_NEWNS | CLONE_NEWUSER if uid else CLONE_NEWNS))
    if uid:
        for name, text in dict(setgroups='deny', uid_map=f'{uid} {uid} 1', gid_map=f'{gid} {gid} 1').items():
            Path(f'/proc/self/{name}').write_text(text)
    must(libc.mount(b'none', b'/', None, MS_REC_PRIVATE, None)) # all the way down

def mount(folder, size, again=False):
    "A disk of so many bytes, seen by this process only; OSError or AttributeError where the system allows none."
    libc = ctypes.CDLL(None, use_errno=True)
    def must(status):
        if status: raise OSError(ctypes.get_errno(), 'no disk of our own')
    if not again: own_mounts(libc, must)
    must(libc.mount(b'tmpfs', os.fsencode(folder), b'tmpfs', MS_REMOUNT if again else 0, b'size=%d' % size))

def limit(size):
    "No file of this process may grow larger."
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def small_disk(out, size):
    "Make the folder a disk of so many bytes; the function that makes room."
    try:
        mount(out, size)
        return lambda: mount(out, 2**30, again=True)
    except (OSError, AttributeError): # no file larger than this: the next best thing
        limit(size // 8)
        return lambda: limit(resource.RLIM_INFINITY)

def full_disk(harness, stage, out, size, note):
    "In a fork: train on a disk that gets full, make room, train to the end; the same bytes as ever."
    out.mkdir(parents=True)
    make_room = small_disk(out, size)
    told = ''
    try: kill.train(harness.home, stage, out)
    except OSError as e: told = str(e)
    with note.open('a') as f: f.write(''.join(f'{n} {line}\n' for n, line in enumerate(told.splitlines())))
    if told and (out/'log.jsonl').exists(): # else: the rows were being prepared
        assert f'{out}/' in told and 'could not be written' in told, told
    assert not told or re.search('No space left|File too large|is the disk full', told), told
    make_room()
    kill.train(harness.home, stage, out)
    assert kill.differences(harness.want[stage], kill.outcome(out)) == []

@pytest.mark.parametrize('stage', ['sft', 'lora'])
def test_disk_full_at_any_moment(harness, stage, tmp_path):
    "From a disk that holds nothing to one that holds nearly all: an OSError that names the file, and nothing is lost."
    whole = sum(p.stat().st_size for p in (harness.home/'whole'/stage).rglob('*') if p.is_file())
    note = tmp_path/'told'
    for i in range(6):
        size = max(4096, int(whole * i / 6))
        assert kill.session(full_disk, (harness, stage, tmp_path/f'{i}', size, note)) is False
    assert len(note.read_text().splitlines()) >= 5

def test_full_disk_is_told_and_nothing_is_lost(train, tmp_path):
    "A limit on the size of files, in a fork: the same OSError as a full disk, without the rights to mount one."
    whole, _ = train(tmp_path/'whole')
    train(tmp_path/'run', callbacks=[at_step(5, signal.SIGTERM)])
    says = 'step-00000008 could not be written .*; last good checkpoint: .*step-00000005'
    def starved():
        limit(20_000)
        with pytest.raises(OSError, match=says): train(tmp_path/'run')
    assert kill.session(starved, ()) is False, 'the fork ended by itself: the error was the expected one'
    assert [p.name for p in checkpoints(tmp_path/'run')] == ['step-00000004', 'step-00000005'], 'no half folder'
    again, _ = train(tmp_path/'run')
    assert same(again, whole)

def test_folder_that_cannot_be_written(train, tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(OSError, match='file/run cannot be made .*give another folder'): train(tmp_path/'file'/'run')
    with pytest.raises(OSError, match='/proc cannot be (written|made) .*give another folder'): # even for root
        train('/proc')

def test_folder_that_cannot_be_written_any_more(train, tmp_path):
    "Between two checkpoints a file takes the folder's place, which stops root too; put back, the run goes on."
    whole, _ = train(tmp_path/'whole')
    folder, away = tmp_path/'run'/'checkpoints', tmp_path/'away'
    def block(run):
        if run.step != 6: return
        run.writer.check(0)
        folder.rename(away)
        folder.write_text('')
    with pytest.raises(OSError, match='step-00000008 could not be written'): train(tmp_path/'run', callbacks=[block])
    folder.unlink()
    away.rename(folder)
    again, _ = train(tmp_path/'run')
    assert same(again, whole)

def test_best_weights_that_were_not_written_are_in_no_checkpoint(train, tmp_path, monkeypatch):
    "One failed write, the next would succeed: the checkpoint after it must not claim what is not on the disk."
    def go(out):
        losses = iter([1., 2., 3.])
        train(out, replace(CFG, eval_every=4), eval_fn=lambda m: dict(loss_valid=next(losses)))
    real = kill.trainer.save_weights
    def no_best(weights, path):
        if 'best' not in path.name: return real(weights, path)
        time.sleep(.5) # late: the checkpoint is queued by then
        raise OSError(28, 'No space left on device', str(path))
    go(tmp_path/'whole')
    says = 'best.safetensors could not be written .*; last good checkpoint: none'
    with monkeypatch.context() as m, pytest.raises(OSError, match=says):
        m.setattr(kill.trainer, 'save_weights', no_best)
        go(tmp_path/'run')
    assert checkpoints(tmp_path/'run') == []
    go(tmp_path/'run')
    best = [(tmp_path/d/'checkpoints/best.safetensors').read_bytes() for d in ('whole', 'run')]
    assert best[0] == best[1]

# ---- damaged checkpoints

def truncate(path): os.truncate(path, path.stat().st_size//2)
def empty(path): path.write_bytes(b'')
def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw)//2] ^= 1
    path.write_bytes(raw)

HARMS = dict(truncated=truncate, flipped=flip, empty=empty, gone=Path.unlink)

def test_every_bit_counts(train, tmp_path):
    "Any one flipped bit is told: all of the manifest's, some of every other file's."
    train(tmp_path, replace(CFG, steps=1))
    seed = time.time_ns()
    rng, (path,) = random.Random(seed), checkpoints(tmp_path)
    for file in sorted(path.iterdir()):
        raw = file.read_bytes()
        bits = range(8 * len(raw)) if file.name == 'manifest.json' else rng.sample(range(8 * len(raw)), 40)
        for bit in bits:
            bad = bytearray(raw)
            bad[bit // 8] ^= 1 << bit % 8
            file.write_bytes(bad)
            assert check_folder(path), f'{file.name}, bit {bit}, seed {seed}'
        file.write_bytes(raw)

def test_another_configuration_or_model_is_named(train, tok, tmp_path):
    train(tmp_path)
    changes = [(dict(lr=2e-3), r'lr was 0\.001, is 0\.002'),
               (dict(accum=1, seed=2), 'accum was 2, is 1; seed was 1, is 2'),
               (dict(optimizer='muon'), "optimizer was 'adamw', is 'muon'")]
    for change, says in changes:
        with pytest.raises(ValueError, match=f'step-00000012 was made with another configuration: {says}'):
            train(tmp_path, replace(CFG, **change))
    says = r'holds another model: .* has shape \(64, 32\) in the file, \(96, 32\) in the model'
    with pytest.raises(ValueError, match=says): train(tmp_path, m=model(tok, d_ff=96))

@pytest.mark.parametrize('name', ['model.safetensors', 'optim.pt', 'state.json', 'manifest.json'])
def test_any_damage_falls_back_aloud_and_ends_the_same(train, tmp_path, name, caplog):
    whole, _ = train(tmp_path/'whole')
    for harm, damage in HARMS.items():
        out = tmp_path/harm
        train(out, callbacks=[at_step(9, signal.SIGTERM)])
        newest = newest_good(out)
        assert newest.name == 'step-00000009'
        damage(newest/name)
        if name == 'manifest.json' and harm == 'flipped' and newest_good(out) == newest: continue # it says the same
        caplog.clear()
        again, _ = train(out)
        assert 'checkpoint passed over' in caplog.text and 'step-00000009' in caplog.text and same(again, whole), harm

@pytest.mark.parametrize('text', ['null', '[]', '{}', '{"optim.pt": {"cytes": 1, "sha256": ""}}', '{"optim.pt": 3}'])
def test_a_manifest_that_says_something_else_is_damage(train, tmp_path, text):
    train(tmp_path)
    good, newest = checkpoints(tmp_path)
    (newest/'manifest.json').write_text(text)
    assert newest_good(tmp_path) == good

def test_what_a_killed_run_was_writing_is_cleared(train, tmp_path):
    folder = tmp_path/'checkpoints'
    folder.mkdir()
    gone, alive = 2**22 + 1, os.getppid() # a number no process has, one that lives
    half = [tmp_path/f'.log.jsonl.{gone}.tmp', folder/f'.best.safetensors.{gone}.tmp', folder/'.tmpAb3_x9']
    kept = tmp_path/f'.figures.json.{alive}.tmp'
    for p in (*half, kept): p.write_text('half')
    left = folder/f'.step-00000004.{gone}.tmp'
    left.mkdir()
    train(tmp_path)
    assert [p.name for p in tmp_path.rglob('.*') if 'tmp' in p.name] == [kept.name]

@pytest.mark.parametrize('what', ['snapshot', '_cpu_copy'])
def test_memory_holds_two_copies_at_most(train, tmp_path, monkeypatch, what):
    "A slow disk, and a checkpoint and better weights after every step: at every copy one job at most is unfinished."
    trainer, unfinished, writers = kill.trainer, [], []
    copy, save, init = getattr(trainer, what), trainer.save_weights, Writer.__init__
    def noted(*args):
        unfinished.append(sum(not job.done() for job in writers[-1].jobs))
        return copy(*args)
    def slow(*args):
        time.sleep(.05)
        save(*args)
    def kept(writer):
        init(writer)
        writers.append(writer)
    monkeypatch.setattr(trainer, what, noted)
    monkeypatch.setattr(trainer, 'save_weights', slow)
    monkeypatch.setattr(Writer, '__init__', kept)
    losses = iter(range(100, 0, -1))
    train(tmp_path, replace(CFG, save_every=1, eval_every=1), eval_fn=lambda model: dict(loss_valid=next(losses)))
    assert len(unfinished) >= CFG.steps and max(unfinished) == 1

def test_after_a_failed_write_nothing_later_is_written():
    done, writer = [], Writer()
    def fails():
        time.sleep(.05)
        raise OSError(28, 'No space left on device')
    writer(fails)
    writer(done.append, 1)
    with pytest.raises(OSError, match='No space left'): writer.check(0)
    writer.pool.shutdown()
    assert done == []

def test_all_damaged_is_never_silently_from_zero(train, tmp_path):
    train(tmp_path)
    for path in checkpoints(tmp_path): flip(path/'optim.pt')
    says = 'none of the 2 checkpoints is readable; the newest: .*does not match its checksum'
    with pytest.raises(RuntimeError, match=says): train(tmp_path)

def test_a_crash_before_the_last_cleanup_is_made_up_for(train, tmp_path):
    train(tmp_path)
    *_, newest = checkpoints(tmp_path)
    for step in (2, 3): shutil.copytree(newest, newest.with_name(f'step-{step:08d}'))
    train(tmp_path)
    assert [p.name for p in checkpoints(tmp_path)] == ['step-00000008', 'step-00000012']
    flip(newest/'optim.pt') # the one before it is now the newest good one, and stays
    def stop(run): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): train(tmp_path, replace(CFG, keep_last=1), callbacks=[stop])
    assert [p.name for p in checkpoints(tmp_path)] == ['step-00000008', 'step-00000012']

def test_missing_checkpoints_are_said(train, tmp_path, caplog):
    train(tmp_path)
    shutil.rmtree(tmp_path/'checkpoints')
    train(tmp_path)
    assert 'there is no checkpoint of this run; starting from step 0' in caplog.text
    assert read_log(tmp_path/'log.jsonl')[0]['step'] == 1

def test_another_vocabulary_of_the_same_size(home, train, tok, tmp_path):
    train(tmp_path)
    core = json.loads(tok._tokenizer.to_str())
    by_id = {i: t for t, i in core['model']['vocab'].items()}
    a, b = [i for i in by_id if len(by_id[i]) == 1][-2:]
    core['model']['vocab'] |= {by_id[a]: b, by_id[b]: a} # two characters change places
    special = {k: str(v) for k, v in tok.special_tokens_map.items()}
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(core)), **special)
    assert len(other) == len(tok)
    with pytest.raises(ValueError, match='tokenizer'):
        fit(model(other), stream(home, other), CFG, tmp_path, progress=False)

# ---- two runs, one folder

def test_the_second_run_is_refused_and_the_first_unharmed(train, tmp_path):
    whole, _ = train(tmp_path/'whole')
    refused = []
    def other():
        says = f'is being trained by pid {os.getppid()} on .*: wait for it, stop it, or give another folder'
        with pytest.raises(RuntimeError, match=says): train(tmp_path/'run', resume=False)
    def second(run):
        if run.step == 6: refused.append(kill.session(other, ()))
    first, _ = train(tmp_path/'run', callbacks=[second])
    assert refused == [False] and same(first, whole) and not (tmp_path/'run'/'run.pid').exists()

@pytest.mark.parametrize('stage', ['sft', 'dpo', 'ie'])
def test_a_refused_stage_prepares_nothing(harness, stage):
    "The rows of a run in progress are not filtered again under its feet."
    out = harness.home/'whole'/stage
    def files():
        found = [p for p in out.rglob('*') if p.is_file() and p.name not in ('run.lock', 'run.pid')]
        return {p: p.read_bytes() for p in found}
    before = files()
    def other():
        with pytest.raises(RuntimeError, match='is being trained by'): kill.train(harness.home, stage, out)
    with run_lock(out): assert kill.session(other, ()) is False
    assert files() == before

def test_the_lock_of_a_killed_run_is_stale(train, tmp_path, caplog):
    def killed(): train(tmp_path, callbacks=[at_step(6, signal.SIGKILL)])
    assert kill.session(killed, ()) is True
    pid = (tmp_path/'run.pid').read_text()
    train(tmp_path)
    assert f'stale lock of {pid}, which was killed; taken over' in caplog.text and not (tmp_path/'run.pid').exists()
    with run_lock(tmp_path): pass

# ---- the command line

STOPS = {signal.SIGTERM: (143, 'stopped by SIGTERM at step'), signal.SIGINT: (130, 'stopped by SIGINT at step')}

@pytest.mark.parametrize('signum', STOPS, ids=lambda s: s.name)
def test_command_line_stops_when_asked_and_goes_on(course_runs, signum):
    "Ctrl-C too, even where the tests run with SIGINT ignored."
    command = scclm_command(course_runs, 'pretrain', '--steps', '150', '--save-every', '1000', '--log-every', '1',
                            '--eval-every', '0', '--budget-tok', '256')
    log, (code, says) = course_runs/'tiny/pretrain/log.jsonl', STOPS[signum]
    with started(**command) as p:
        while p.poll() is None and not (log.exists() and log.read_text().count('\n') >= 3): time.sleep(.02)
        p.send_signal(signum)
        out, err = p.communicate(timeout=60)
    assert p.returncode == code and says in out, err
    folder = course_runs/'tiny/pretrain'
    assert newest_good(folder) and not (folder/'model').exists()
    p = finished(**command)
    assert p.returncode == 0, p.stderr
    assert json.loads(p.stdout[p.stdout.index('{'):])['steps'] == 150
    tok = AutoTokenizer.from_pretrained(folder/'model')
    assert len(tok) == AutoModelForSeq2SeqLM.from_pretrained(folder/'model').config.vocab_size
