"Runs that are killed, disks that are full, checkpoints that are damaged, folders that two runs want. POSIX: the harness forks."
import json, os, random, resource, signal, time
from dataclasses import replace

import pytest
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from scclm.trainer import Writer, checkpoints, fit, newest_good, read_log, run_lock
from test_trainer import CFG, ROOT, course_runs, home, kill, model, same, scclm, stream, tok  # noqa: F401

STAGES = ('pretrain', 'sft', 'dpo', 'lora', 'ie')

@pytest.fixture(scope='module')
def harness(tmp_path_factory): return kill.Harness(tmp_path_factory.mktemp('kills'), STAGES)

@pytest.mark.parametrize('stage', STAGES)
def test_killed_runs_end_with_the_same_bytes(harness, stage):
    "Every point of the list is hit over the five stages, and random instants besides: nine kills a stage or more."
    points = list(kill.POINTS)[STAGES.index(stage)::len(STAGES)]
    rng = random.Random(time.time())
    instants = [(s, rng.uniform(.05, .6)) for s in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGKILL)]
    before = harness.kills[stage]
    for kills in ([(p, 1) for p in points], instants):
        assert harness.run(stage, kills) == []
    assert all(harness.sent[p] for p in points), 'every point was reached'
    assert harness.kills[stage] - before >= len(points) + 1

def test_enough_kills_of_every_kind(harness):
    if set(harness.kills) != set(STAGES): pytest.fail('run the whole file: this counts what the tests above did')
    while sum(harness.kills.values()) < 40: assert harness.run('sft', [(signal.SIGKILL, .3), (signal.SIGTERM, .3), (signal.SIGINT, .3)]) == []
    assert {'SIGKILL', 'SIGTERM', 'SIGINT'} | set(kill.POINTS) <= set(harness.sent)

# ---- the disk

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
    with pytest.raises(OSError, match='/proc cannot be (made|written) .*give another folder'): # read-only even for root
        fit(model(tok), stream(home, tok), CFG, '/proc', progress=False)

# ---- damaged checkpoints

def _flip(path):
    raw = bytearray(path.read_bytes()); raw[len(raw)//2] ^= 1; path.write_bytes(raw)

HARMS = dict(truncated=lambda p: os.truncate(p, p.stat().st_size//2), flipped=_flip, empty=lambda p: p.write_bytes(b''), gone=lambda p: p.unlink())

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
    for p in (tmp_path/'.log.jsonl.1.tmp', tmp_path/'checkpoints'/'.best.safetensors.1.tmp'): p.write_text('half')
    fit(model(tok), stream(home, tok), CFG, tmp_path, progress=False)
    assert not list(tmp_path.rglob('.*.tmp'))

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

def test_missing_checkpoints_are_said(home, tok, tmp_path, caplog):  # noqa: F811
    import shutil
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

