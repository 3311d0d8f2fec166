"Runs that are killed, disks that are full, checkpoints that are damaged, folders that two runs want. POSIX: the harness forks."
import ctypes, json, os, random, re, resource, shutil, signal, time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from scclm.trainer import Writer, check_folder, checkpoints, fit, newest_good, read_log, run_lock, seq2seq_loss
from test_trainer import CFG, ROOT, course_runs, home, kill, model, same, scclm, stream, tok  # noqa: F401

STAGES = ('pretrain', 'sft', 'dpo', 'lora', 'ie')

@pytest.fixture(scope='module')
def harness(tmp_path_factory): return kill.Harness(tmp_path_factory.mktemp('kills'), STAGES)

@pytest.mark.parametrize('stage', STAGES)
def test_runs_killed_at_chosen_points_end_with_the_same_bytes(harness, stage):
    "Every point of the list is hit over the five stages, in one run of each; the first kill leaves a checkpoint to restore."
    points = ['after the rename', *list(kill.POINTS)[STAGES.index(stage)::len(STAGES)]]
    before = harness.kills.copy()
    assert harness.run(stage, [(p, 1) for p in points]) == []
    assert harness.kills - before == Counter((stage, p) for p in points), 'every point was reached'

@pytest.mark.parametrize('stage', STAGES)
def test_runs_killed_at_random_instants_end_with_the_same_bytes(harness, stage):
    rng = random.Random(time.time())
    missing, at_most = list(kill.WAYS), iter(range(12))
    while missing and next(at_most, None) is not None: # a run on a machine that got faster may end before it is killed
        rng.shuffle(missing)
        assert harness.run(stage, [(way, rng.uniform(.02, .5)) for way in missing]) == [], missing
        missing = [way for way in kill.WAYS if not harness.count(stage, way)]
    assert not missing, 'every way landed'

def test_forty_kills_or_more(harness):
    if {s for s, _ in harness.kills} != set(STAGES): pytest.fail('run the whole file: this counts what the tests above did')
    assert harness.count() >= 40 and all(harness.count(stage) >= 10 for stage in STAGES) and all(harness.count(how=how) for how in (*kill.WAYS, *kill.POINTS))

@pytest.mark.parametrize('stage', ['pretrain', 'lora'])
def test_a_slow_disk_gets_the_step_it_was_given(harness, monkeypatch, stage):
    "Training is steps ahead when the weights are written: they must be a copy."
    real = kill.trainer.save_weights
    monkeypatch.setattr(kill.trainer, 'save_weights', lambda *args: (time.sleep(.1), real(*args)))
    assert harness.run(stage, [('after the rename', 2), ('SIGTERM', .3)]) == []
    assert harness.kills[stage, 'after the rename'] > 0

FORGETS = dict( # what a resume might lose -> the part of the outcome that must show it
    log=lambda run, loader: setattr(run, 'tally', kill.trainer.empty_tally()), state=lambda run, loader: setattr(run, 'real_tok', 0),
    optimiser=lambda run, loader: [o.state.clear() for o in run.opts], batches=lambda run, loader: loader.load_state_dict(loader.state_dict() | dict(batch=0)),
    weights=lambda run, loader: setattr(kill.trainer, 'step_seed', lambda *a: 0))

@pytest.mark.parametrize('part', FORGETS)
def test_the_harness_sees_a_resume_that_forgets(harness, monkeypatch, part):
    real = kill.trainer.restore
    def restore(run, path, loader): real(run, path, loader); FORGETS[part](run, loader)
    monkeypatch.setattr(kill.trainer, 'restore', restore)
    assert part in harness.run('pretrain', [('after the rename', 1)])

def test_a_stop_inside_a_step_leaves_no_gradients(home, tok, tmp_path):  # noqa: F811
    "Asked to stop between two batches of one step; the same model goes on, as in a notebook."
    fit(whole := model(tok), stream(home, tok), CFG, tmp_path/'whole', progress=False)
    calls = []
    def loss(m, batch):
        calls.append(1)
        if len(calls) == 9: signal.raise_signal(signal.SIGTERM)
        return seq2seq_loss(m, batch)
    run = fit(part := model(tok), stream(home, tok), CFG, tmp_path/'part', loss_fn=loss, progress=False)
    assert (run.step, run.stopped, len(calls)) == (4, 'SIGTERM', 9)
    fit(part, stream(home, tok), CFG, tmp_path/'part', progress=False)
    assert same(part, whole)

# ---- the disk

def mount(folder, size, again=False):
    "A disk of so many bytes, seen by this process only; OSError or AttributeError where the system allows none."
    libc, user, space = ctypes.CDLL(None, use_errno=True), 0x10000000, 0x20000
    def must(status):
        if status: raise OSError(ctypes.get_errno(), 'no disk of our own')
    if not again:
        uid, gid = os.getuid(), os.getgid()
        must(libc.unshare(space | user if uid else space))
        for name, text in dict(setgroups='deny', uid_map=f'{uid} {uid} 1', gid_map=f'{gid} {gid} 1').items() if uid else (): Path(f'/proc/self/{name}').write_text(text)
        must(libc.mount(b'none', b'/', None, 0x44000, None))                  # private, all the way down
    must(libc.mount(b'tmpfs', os.fsencode(folder), b'tmpfs', 32 if again else 0, b'size=%d' % size))

def limit(size): signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def full_disk(harness, stage, out, size, note):
    "In a fork: train on a disk that gets full, make room, train to the end; the same bytes as ever."
    out.mkdir(parents=True)
    try: mount(out, size); more = lambda: mount(out, 2**30, again=True)
    except (OSError, AttributeError): limit(size // 8); more = lambda: limit(resource.RLIM_INFINITY) # no file larger than this: the next best thing
    try: kill.train(harness.home, stage, out); told = ''
    except OSError as e: told = str(e)
    for n, line in enumerate(told.splitlines()): note.open('a').write(f'{n} {line}\n')
    if (out/'log.jsonl').exists() and told: assert f'{out}/' in told and 'could not be written' in told, told # else: the rows were being prepared
    assert not told or re.search('No space left|File too large|is the disk full', told), told
    more()
    kill.train(harness.home, stage, out)
    assert kill.differences(harness.want[stage], kill.outcome(out)) == []

@pytest.mark.parametrize('stage', ['sft', 'lora'])
def test_disk_full_at_any_moment(harness, stage, tmp_path):
    "From a disk that holds nothing to one that holds nearly all: always an OSError that names the file, and nothing is lost."
    whole = sum(p.stat().st_size for p in (harness.home/'whole'/stage).rglob('*') if p.is_file())
    note = tmp_path/'told'
    for i in range(6): assert kill.session(full_disk, (harness, stage, tmp_path/f'{i}', max(4096, int(whole * i / 6)), note)) is False
    assert len(note.read_text().splitlines()) >= 5

def test_full_disk_is_told_and_nothing_is_lost(home, tok, tmp_path):  # noqa: F811
    "A limit on the size of files, in a fork: the same OSError as a full disk, without the rights that mounting one takes."
    fit(whole := model(tok), stream(home, tok), CFG, tmp_path/'whole', progress=False)
    fit(model(tok), stream(home, tok), replace(CFG, steps=12), tmp_path/'run', callbacks=[lambda run: run.step == 5 and signal.raise_signal(signal.SIGTERM)], progress=False)
    def starved():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        with pytest.raises(OSError, match='step-00000008 could not be written .*; last good checkpoint: .*step-00000005'):
            fit(model(tok), stream(home, tok), CFG, tmp_path/'run', progress=False)
    assert kill.session(starved, ()) is False, 'the fork ended by itself: the error was the expected one'
    assert [p.name for p in checkpoints(tmp_path/'run')] == ['step-00000004', 'step-00000005'], 'no half folder'
    fit(again := model(tok), stream(home, tok), CFG, tmp_path/'run', progress=False)
    assert same(again, whole)

def test_folder_that_cannot_be_written(home, tok, tmp_path):  # noqa: F811
    (tmp_path/'file').write_text('')
    with pytest.raises(OSError, match='file/run cannot be made .*give another folder'):
        fit(model(tok), stream(home, tok), CFG, tmp_path/'file'/'run', progress=False)
    with pytest.raises(OSError, match='/proc cannot be (written|made) .*give another folder'): # even for root
        fit(model(tok), stream(home, tok), CFG, '/proc', progress=False)

def test_folder_that_cannot_be_written_any_more(home, tok, tmp_path):  # noqa: F811
    "Between two checkpoints a file takes the folder's place, which stops root too; put back, the run goes on."
    fit(whole := model(tok), stream(home, tok), CFG, tmp_path/'whole', progress=False)
    folder, away = tmp_path/'run'/'checkpoints', tmp_path/'away'
    def block(run):
        if run.step == 6: run.writer.check(0); folder.rename(away); folder.write_text('')
    with pytest.raises(OSError, match='step-00000008 could not be written'):
        fit(model(tok), stream(home, tok), CFG, tmp_path/'run', callbacks=[block], progress=False)
    folder.unlink(); away.rename(folder)
    fit(again := model(tok), stream(home, tok), CFG, tmp_path/'run', progress=False)
    assert same(again, whole)

def test_best_weights_that_were_not_written_are_in_no_checkpoint(home, tok, tmp_path, monkeypatch):  # noqa: F811
    "One failed write, the next would succeed: the checkpoint after it must not claim what is not on the disk."
    def go(out): return fit(model(tok), stream(home, tok), replace(CFG, eval_every=4), out, eval_fn=lambda m: dict(loss_valid=next(losses)), progress=False)
    losses = iter([1., 2., 3.]); go(tmp_path/'whole')
    def fails(weights, path): time.sleep(.5); raise OSError(28, 'No space left on device', str(path)) # late: the checkpoint is queued by then
    losses = iter([1., 2., 3.])
    with monkeypatch.context() as m, pytest.raises(OSError, match='best.safetensors could not be written .*; last good checkpoint: none'):
        real = kill.trainer.save_weights
        m.setattr(kill.trainer, 'save_weights', lambda weights, path: fails(weights, path) if 'best' in path.name else real(weights, path))
        go(tmp_path/'run')
    assert checkpoints(tmp_path/'run') == []
    losses = iter([1., 2., 3.]); go(tmp_path/'run')
    best = [(tmp_path/d/'checkpoints/best.safetensors').read_bytes() for d in ('whole', 'run')]
    assert best[0] == best[1]

# ---- damaged checkpoints

def _flip(path):
    raw = bytearray(path.read_bytes()); raw[len(raw)//2] ^= 1; path.write_bytes(raw)

HARMS = dict(truncated=lambda p: os.truncate(p, p.stat().st_size//2), flipped=_flip, empty=lambda p: p.write_bytes(b''), gone=lambda p: p.unlink())

def test_every_bit_counts(home, tok, tmp_path):  # noqa: F811
    "Any one flipped bit is told: all of the manifest's, some of every other file's. Only a manifest that still says the same is taken."
    fit(model(tok), stream(home, tok), replace(CFG, steps=1), tmp_path, progress=False)
    rng, (path,) = random.Random(time.time()), checkpoints(tmp_path)
    for file in sorted(path.iterdir()):
        raw = file.read_bytes()
        bits = range(8 * len(raw)) if file.name == 'manifest.json' else rng.sample(range(8 * len(raw)), 40)
        for bit in bits:
            bad = bytearray(raw); bad[bit // 8] ^= 1 << bit % 8; file.write_bytes(bad)
            assert check_folder(path), f'{file.name}, bit {bit}'
        file.write_bytes(raw)

def test_another_configuration_or_model_is_named(home, tok, tmp_path):  # noqa: F811
    fit(model(tok), stream(home, tok), CFG, tmp_path, progress=False)
    for change, says in ((dict(lr=2e-3), r'lr was 0\.001, is 0\.002'), (dict(accum=1, seed=2), 'accum was 2, is 1; seed was 1, is 2'), (dict(optimizer='muon'), "optimizer was 'adamw', is 'muon'")):
        with pytest.raises(ValueError, match=f'step-00000012 was made with another configuration: {says}'):
            fit(model(tok), stream(home, tok), replace(CFG, **change), tmp_path, progress=False)
    with pytest.raises(ValueError, match=r'holds another model: .* has shape \(64, 32\) in the file, \(96, 32\) in the model'):
        fit(model(tok, d_ff=96), stream(home, tok), CFG, tmp_path, progress=False)

@pytest.mark.parametrize('name', ['model.safetensors', 'optim.pt', 'state.json', 'manifest.json'])
def test_any_damage_falls_back_aloud_and_ends_the_same(home, tok, tmp_path, name, caplog):  # noqa: F811
    fit(whole := model(tok), stream(home, tok), CFG, tmp_path/'whole', progress=False)
    for harm in HARMS:
        out = tmp_path/harm
        fit(model(tok), stream(home, tok), CFG, out, callbacks=[lambda run: run.step == 9 and signal.raise_signal(signal.SIGTERM)], progress=False)
        newest = newest_good(out)
        assert newest.name == 'step-00000009'
        HARMS[harm](newest/name)
        if name == 'manifest.json' and harm == 'flipped' and newest_good(out) == newest: continue # a flipped blank: the manifest still says the same
        caplog.clear()
        fit(again := model(tok), stream(home, tok), CFG, out, progress=False)
        assert 'checkpoint passed over' in caplog.text and 'step-00000009' in caplog.text and same(again, whole), harm

@pytest.mark.parametrize('text', ['null', '[]', '{}', '{"optim.pt": {"cytes": 1, "sha256": ""}}', '{"optim.pt": 3}'])
def test_a_manifest_that_says_something_else_is_damage(home, tok, tmp_path, text):  # noqa: F811
    fit(model(tok), stream(home, tok), CFG, tmp_path, progress=False)
    good, newest = checkpoints(tmp_path)
    (newest/'manifest.json').write_text(text)
    assert newest_good(tmp_path) == good

def test_what_a_killed_run_was_writing_is_cleared(home, tok, tmp_path):  # noqa: F811
    (tmp_path/'checkpoints').mkdir()
    gone, alive = 2**22 + 1, os.getppid()                                     # a number no process has, one that lives
    for p in (tmp_path/f'.log.jsonl.{gone}.tmp', tmp_path/'checkpoints'/f'.best.safetensors.{gone}.tmp', tmp_path/f'.figures.json.{alive}.tmp'): p.write_text('half')
    fit(model(tok), stream(home, tok), CFG, tmp_path, progress=False)
    assert [p.name for p in tmp_path.rglob('.*.tmp')] == [f'.figures.json.{alive}.tmp']

def test_after_a_failed_write_nothing_later_is_written():
    done, writer = [], Writer()
    def fails(): time.sleep(.05); raise OSError(28, 'No space left on device')
    writer(fails); writer(lambda: done.append(1))
    with pytest.raises(OSError, match='No space left'): writer.check(0)
    writer.pool.shutdown()
    assert done == []

def test_all_damaged_is_never_silently_from_zero(home, tok, tmp_path):  # noqa: F811
    fit(model(tok), stream(home, tok), CFG, tmp_path, progress=False)
    for path in checkpoints(tmp_path): _flip(path/'optim.pt')
    with pytest.raises(RuntimeError, match='none of the 2 checkpoints is readable; the newest: .*does not match its checksum'):
        fit(model(tok), stream(home, tok), CFG, tmp_path, progress=False)

def test_a_crash_before_the_last_cleanup_is_made_up_for(home, tok, tmp_path):  # noqa: F811
    fit(model(tok), stream(home, tok), CFG, tmp_path, progress=False)
    *_, newest = checkpoints(tmp_path)
    for step in (2, 3): shutil.copytree(newest, newest.with_name(f'step-{step:08d}'))
    fit(model(tok), stream(home, tok), CFG, tmp_path, progress=False)
    assert [p.name for p in checkpoints(tmp_path)] == ['step-00000008', 'step-00000012']
    _flip(newest/'optim.pt')                                                  # the one before it is now the newest good one, and stays
    def stop(run): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fit(model(tok), stream(home, tok), replace(CFG, keep_last=1), tmp_path, callbacks=[stop], progress=False)
    assert [p.name for p in checkpoints(tmp_path)] == ['step-00000008', 'step-00000012']

def test_missing_checkpoints_are_said(home, tok, tmp_path, caplog):  # noqa: F811
    fit(model(tok), stream(home, tok), CFG, tmp_path, progress=False)
    shutil.rmtree(tmp_path/'checkpoints')
    fit(model(tok), stream(home, tok), CFG, tmp_path, progress=False)
    assert 'there is no checkpoint of this run; starting from step 0' in caplog.text and read_log(tmp_path/'log.jsonl')[0]['step'] == 1

def test_another_vocabulary_of_the_same_size(home, tok, tmp_path):  # noqa: F811
    from transformers import PreTrainedTokenizerFast
    fit(model(tok), stream(home, tok), CFG, tmp_path, progress=False)
    core = json.loads(tok._tokenizer.to_str())
    by_id = {i: t for t, i in core['model']['vocab'].items()}
    a, b = [i for i in by_id if len(by_id[i]) == 1][-2:]
    core['model']['vocab'] |= {by_id[a]: b, by_id[b]: a}                     # two characters change places
    from tokenizers import Tokenizer
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(core)), **{k: str(v) for k, v in tok.special_tokens_map.items()})
    assert len(other) == len(tok)
    with pytest.raises(ValueError, match='tokenizer'): fit(model(other), stream(home, other), CFG, tmp_path, progress=False)

# ---- two runs, one folder

def test_the_second_run_is_refused_and_the_first_unharmed(home, tok, tmp_path):  # noqa: F811
    fit(whole := model(tok), stream(home, tok), CFG, tmp_path/'whole', progress=False)
    refused = []
    def second(run):
        if run.step != 6: return
        def other():
            with pytest.raises(RuntimeError, match=f'is being trained by pid {os.getppid()} on .*: wait for it, stop it, or give another folder'):
                fit(model(tok), stream(home, tok), CFG, tmp_path/'run', resume=False, progress=False)
        refused.append(kill.session(other, ()))
    fit(first := model(tok), stream(home, tok), CFG, tmp_path/'run', callbacks=[second], progress=False)
    assert refused == [False] and same(first, whole) and not (tmp_path/'run'/'run.pid').exists()

@pytest.mark.parametrize('stage', ['sft', 'dpo', 'ie'])
def test_a_refused_stage_prepares_nothing(harness, stage):
    "The rows of a run in progress are not filtered again under its feet."
    out = harness.home/'whole'/stage
    files = lambda: {p: p.read_bytes() for p in out.rglob('*') if p.is_file() and p.name not in ('run.lock', 'run.pid')}
    before = files()
    def other():
        with pytest.raises(RuntimeError, match='is being trained by'): kill.train(harness.home, stage, out)
    with run_lock(out): assert kill.session(other, ()) is False
    assert files() == before

def test_the_lock_of_a_killed_run_is_stale(home, tok, tmp_path, caplog):  # noqa: F811
    def killed(): fit(model(tok), stream(home, tok), CFG, tmp_path, callbacks=[lambda run: run.step == 6 and os.kill(os.getpid(), signal.SIGKILL)], progress=False)
    assert kill.session(killed, ()) is True
    pid = (tmp_path/'run.pid').read_text()
    fit(model(tok), stream(home, tok), CFG, tmp_path, progress=False)
    assert f'stale lock of {pid}, which was killed; taken over' in caplog.text and not (tmp_path/'run.pid').exists()
    with run_lock(tmp_path): pass

# ---- the command line

def test_command_line_stops_on_sigterm_and_goes_on(course_runs):  # noqa: F811
    args = ['pretrain', '--steps', '150', '--save-every', '1000', '--log-every', '1', '--eval-every', '0', '--budget-tok', '256']
    p = scclm(course_runs, *args)
    log = course_runs/'tiny/pretrain/log.jsonl'
    while p.poll() is None and not (log.exists() and log.read_text().count('\n') >= 3): time.sleep(.02)
    p.send_signal(signal.SIGTERM)
    out, err = p.communicate(timeout=60)
    assert p.returncode == 143 and 'stopped by SIGTERM at step' in out, err
    assert newest_good(course_runs/'tiny/pretrain') and not (course_runs/'tiny/pretrain/model').exists()
    p = scclm(course_runs, *args); out, err = p.communicate(timeout=120)
    assert p.returncode == 0, err
    assert json.loads(out[out.index('{'):])['steps'] == 150
    folder = course_runs/'tiny/pretrain/model'
    assert len(AutoTokenizer.from_pretrained(folder)) == AutoModelForSeq2SeqLM.from_pretrained(folder).config.vocab_size

