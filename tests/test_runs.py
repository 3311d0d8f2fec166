"""The ground floor: writing that survives a crash, records, fingerprints, and the one table of stages."""
import hashlib
import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from scclm.runs import (SCALES, STAGES, chat_models, fingerprint, folder_aside, read_json, recover_folder, require,
    run_path, scale_name, stage_of, training_folders, write_aside, write_json, writer_lives)

ROOT = Path(__file__).resolve().parents[1]

def names(folder:Path)->list[str]:
    "What is in a folder, hidden names too."
    return sorted(p.name for p in folder.iterdir())

def dead_pid()->int:
    "The number of a process that has ended."
    child = subprocess.Popen([sys.executable, '-c', ''])
    child.wait()
    return child.pid

def folder(path:Path, content:str)->Path:
    "A folder with one file."
    path.mkdir(parents=True)
    (path/'a').write_text(content, encoding='utf-8')
    return path

# Dials

def test_scale_and_paths_follow_the_dials(monkeypatch, tmp_path):
    monkeypatch.delenv('SCCLM_SCALE', raising=False)
    assert scale_name() == 'tiny' and [scale_name(s) for s in SCALES] == list(SCALES)
    monkeypatch.setenv('SCCLM_SCALE', 'mini')
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path))
    assert run_path('data', 'train.parquet') == tmp_path/'mini'/'data'/'train.parquet'
    monkeypatch.setenv('SCCLM_SCALE', 'large')
    with pytest.raises(ValueError, match="SCCLM_SCALE='large' is not known: expected one of tiny, small, mini, base"):
        run_path('data')

def test_relative_dials_start_at_the_checkout(monkeypatch, tmp_path):
    "From the folder of notebooks and from the checkout itself: one place."
    (tmp_path/'settings.ini').touch()
    (tmp_path/'nbs'/'appendix').mkdir(parents=True)
    monkeypatch.setenv('SCCLM_RUNS', 'out')
    monkeypatch.setenv('SCCLM_SCALE', 'tiny')
    for here in (tmp_path, tmp_path/'nbs', tmp_path/'nbs'/'appendix'):
        monkeypatch.chdir(here)
        assert run_path('x').resolve() == (tmp_path/'out'/'tiny'/'x').resolve()

# Folders: every state that a dead writer may leave

def test_recover_puts_the_old_folder_back(tmp_path):
    "Power was cut between the two renames: the folder is there only under its hidden name."
    folder(tmp_path/f'.data.{dead_pid()}.old', 'old')
    assert recover_folder(tmp_path/'data') == tmp_path/'data'
    assert names(tmp_path) == ['data'] and (tmp_path/'data'/'a').read_text() == 'old'

def test_recover_removes_an_old_folder_whose_successor_is_there(tmp_path):
    folder(tmp_path/f'.data.{dead_pid()}.old', 'old')
    folder(tmp_path/'data', 'new')
    recover_folder(tmp_path/'data')
    assert names(tmp_path) == ['data'] and (tmp_path/'data'/'a').read_text() == 'new'

def test_recover_removes_half_written_folders_of_the_dead_only(tmp_path):
    dead = folder(tmp_path/f'.data.{dead_pid()}.tmp', 'half')
    mine = folder(tmp_path/f'.data.{os.getpid()}.tmp', 'left by an earlier try of this process')
    child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
    try:
        alive = folder(tmp_path/f'.data.{child.pid}.tmp', 'being written')
        recover_folder(tmp_path/'data')
        assert not dead.exists() and not mine.exists() and alive.exists()
    finally:
        child.communicate(b'\n')
    recover_folder(tmp_path/'data')
    assert names(tmp_path) == []

def test_recover_leaves_other_folders_alone(tmp_path):
    "A name that begins alike, a file of the user's, a folder that was never written."
    pid = dead_pid()
    keep = [f'.data2.{pid}.old', f'.other.{pid}.tmp', 'data.old', '.data']
    for name in keep: folder(tmp_path/name, name)
    recover_folder(tmp_path/'data')
    assert names(tmp_path) == sorted(keep)
    assert recover_folder(tmp_path/'nowhere'/'data') == tmp_path/'nowhere'/'data'

def test_the_next_writer_sweeps_first(tmp_path):
    folder(tmp_path/f'.data.{dead_pid()}.tmp', 'half')
    folder(tmp_path/f'.data.{dead_pid()}.old', 'old')
    with folder_aside(tmp_path/'data') as tmp:
        assert (tmp_path/'data'/'a').read_text() == 'old', 'a reader sees the old folder until the new one is whole'
        (tmp/'a').write_text('new')
    assert names(tmp_path) == ['data'] and (tmp_path/'data'/'a').read_text() == 'new'

@pytest.mark.parametrize('when', ['empty', 'half', 'whole'])
def test_a_killed_folder_writer_leaves_the_old_one(tmp_path, when):
    "SIGKILL inside the block: nothing is swapped in, and the rest is swept away by `recover_folder`."
    folder(tmp_path/'data', 'old')
    code = '\n'.join([
        'import sys', 'from pathlib import Path', 'from scclm.runs import folder_aside',
        'with folder_aside(Path(sys.argv[1])) as tmp:',
        '    if sys.argv[2] != "empty": (tmp/"a").write_text("new")',
        '    if sys.argv[2] == "whole": (tmp/"b").write_text("new")',
        '    print("go", flush=True)',
        '    input()'])
    child = subprocess.Popen([sys.executable, '-c', code, str(tmp_path/'data'), when],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert child.stdout.readline().strip() == b'go'
    child.send_signal(signal.SIGTERM if os.name == 'nt' else signal.SIGKILL)
    child.communicate()
    assert names(tmp_path) == [f'.data.{child.pid}.tmp', 'data']
    assert names(recover_folder(tmp_path/'data')) == ['a'] and (tmp_path/'data'/'a').read_text() == 'old'
    assert names(tmp_path) == ['data']

@pytest.mark.parametrize('swap', [True, False], ids=['one step', 'two renames'])
def test_the_new_folder_replaces_the_old_one_whole(tmp_path, monkeypatch, swap):
    "No file of the old folder is left in the new one, whether the system can swap two names or not."
    if not swap: monkeypatch.setattr('scclm.runs._swap_names', lambda a, b: False)
    folder(tmp_path/'data', 'old')
    (tmp_path/'data'/'only in the old').touch()
    with folder_aside(tmp_path/'data') as tmp: (tmp/'b').write_text('new')
    assert names(tmp_path) == ['data'] and names(tmp_path/'data') == ['b']

# Records

def test_json_keeps_chinese_and_surprising_values(tmp_path):
    value = {'模型': '小', '𠮷': ['é', '\u2028', '"\\'], 'n': [1, 2.5, None, True], 'out': Path('runs')}
    write_json(tmp_path/'deep'/'a.json', value)
    text = (tmp_path/'deep'/'a.json').read_bytes().decode('utf-8')
    assert '模型' in text and '𠮷' in text and '\\u6a21' not in text and text.endswith('}\n')
    assert read_json(tmp_path/'deep'/'a.json') == value | {'out': 'runs'} == json.loads(text)

def test_json_keeps_names_that_are_no_text(tmp_path):
    "File names in GBK, as Linux hands them to Python."
    names = [os.fsdecode(name) for name in ('训练.json'.encode('gbk'), b'\\\xd1', b'a\xff\x80')]
    write_json(tmp_path/'a.json', dict.fromkeys(names, 'u\udc80'))
    text = (tmp_path/'a.json').read_bytes().decode('utf-8')
    assert read_json(tmp_path/'a.json') == dict.fromkeys(names, 'u\udc80') == json.loads(text)

@pytest.mark.parametrize('bad, error', [
    pytest.param({('a', 1): 2}, TypeError, id='a key that JSON cannot hold'),
    pytest.param({'a': '\ud800'}, UnicodeEncodeError, id='half of a surrogate pair, seen while writing')])
def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path, bad, error):
    write_json(tmp_path/'a.json', dict(old=1))
    with pytest.raises(error): write_json(tmp_path/'a.json', bad)
    assert read_json(tmp_path/'a.json') == dict(old=1) and names(tmp_path) == ['a.json']

def test_a_killed_record_writer_leaves_the_old_one(tmp_path):
    "The process dies when the new text is written and not yet renamed."
    write_json(tmp_path/'a.json', dict(old=1))
    code = '\n'.join([
        'import os, sys', 'from pathlib import Path', 'import scclm.runs as runs',
        'def die(*names): os._exit(9)',
        'runs.os.replace = die',
        'runs.write_json(Path(sys.argv[1]), dict(new=2))'])
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path/'a.json')], cwd=ROOT)
    assert done.returncode == 9 and read_json(tmp_path/'a.json') == dict(old=1)
    left = [n for n in names(tmp_path) if n != 'a.json']
    assert len(left) == 1 and left[0].startswith('.a.json.'), 'the new text was on disk when the process died'
    write_json(tmp_path/'a.json', dict(new=3))
    assert names(tmp_path) == ['a.json'] and read_json(tmp_path/'a.json') == dict(new=3)

def test_a_text_is_on_disk_before_its_name(tmp_path, monkeypatch):
    "A power cut after the rename must not find a name without its content."
    steps = []
    fsync, replace = os.fsync, os.replace
    def flushed(fd):
        steps.append(('flush', os.fstat(fd).st_size))
        fsync(fd)
    def renamed(a, b):
        steps.append(('rename', Path(b).name))
        replace(a, b)
    monkeypatch.setattr(os, 'fsync', flushed)
    monkeypatch.setattr(os, 'replace', renamed)
    with write_aside(tmp_path/'f') as tmp: tmp.write_bytes(b'x'*12345)
    assert steps[:2] == [('flush', 12345), ('rename', 'f')]
    assert os.name == 'nt' or [what for what, _ in steps] == ['flush', 'rename', 'flush'], 'and the folder after it'

def test_only_the_dead_and_only_this_file_are_swept(tmp_path):
    "What another process writes stays, and so does what belongs to a name that begins alike."
    dead = dead_pid()
    mine = [f'.f.{dead}.tmp', f'.f.{os.getpid()}.tmp']
    child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
    others = [f'.f.{child.pid}.tmp', f'.f.json.{dead}.tmp', f'.ff.{dead}.tmp', 'f.tmp']
    for name in (*mine, *others): (tmp_path/name).touch()
    try:
        with write_aside(tmp_path/'f') as tmp: tmp.write_text('new')
        assert names(tmp_path) == sorted([*others, 'f'])
    finally:
        child.communicate(b'\n')

@pytest.mark.parametrize('name', ['[a].json', 'a*?', 'a.b.c'])
def test_odd_names_are_swept_too(tmp_path, name):
    (tmp_path/f'.{name}.{dead_pid()}.tmp').touch()
    with write_aside(tmp_path/name) as tmp: tmp.write_text('new')
    assert names(tmp_path) == [name]
    folder(tmp_path/f'.d{name}.{dead_pid()}.old', 'old')
    assert (recover_folder(tmp_path/f'd{name}')/'a').read_text() == 'old'

def test_whether_a_writer_lives():
    "Another process that runs; not this one, not a dead one, not a name without a number."
    assert writer_lives(f'.x.json.{os.getppid()}.tmp')
    for middle in (os.getpid(), dead_pid(), 'abc', ''): assert not writer_lives(f'.x.json.{middle}.tmp'), middle
    assert not writer_lives('.tmpab12cd')

def test_write_aside_of_two_writers_never_mixes(tmp_path):
    "Two processes write one file again and again: whoever reads sees one of the two texts, whole."
    code = '\n'.join([
        'import sys', 'from pathlib import Path', 'from scclm.runs import write_aside',
        'for _ in range(60):',
        '    with write_aside(Path(sys.argv[1])) as tmp: tmp.write_text(sys.argv[2]*500_000)'])
    children = [subprocess.Popen([sys.executable, '-c', code, str(tmp_path/'f'), c], cwd=ROOT) for c in 'AB']
    seen = 0
    while any(c.poll() is None for c in children):
        if (tmp_path/'f').exists():
            text = (tmp_path/'f').read_text()
            assert text in ('A'*500_000, 'B'*500_000)
            seen += 1
    assert seen and [c.returncode for c in children] == [0, 0] and names(tmp_path) == ['f']

def test_write_aside_makes_folders_and_leaves_nothing_after_an_error(tmp_path):
    with pytest.raises(KeyError), write_aside(tmp_path/'x'/'f') as tmp:
        tmp.write_text('half')
        raise KeyError('stop')
    assert names(tmp_path/'x') == []

@pytest.mark.parametrize('raw, words', [
    (b'{\n"a": 1,\n"b": }', 'line 3: Expecting value: expected a JSON object'),
    (b'{"a": 1\n', 'line 2: .*: expected a JSON object'),
    (b'', 'line 1: Expecting value: expected a JSON object'),
    (b'[1, 2]', 'holds a list, expected a JSON object'),
    (b'null', 'holds a NoneType, expected a JSON object'),
    (b'{"a": "\xff"}', 'not UTF-8 at byte 7: expected a JSON object')])
def test_what_is_no_record_names_file_and_line(tmp_path, raw, words):
    (tmp_path/'成绩.json').write_bytes(raw)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path/'成绩.json')) + '(, |: )' + words):
        read_json(tmp_path/'成绩.json')

def test_no_record_is_an_empty_one(tmp_path):
    assert read_json(tmp_path/'none.json') == {}

# Fingerprints

def piece(content:bytes)->bytes:
    "A part as it is hashed: its length in 8 bytes, the low one first, then its bytes."
    return bytes((len(content) >> 8*k) & 255 for k in range(8)) + content

def known(*pieces:bytes)->str:
    "The first 16 hexadecimal digits of the SHA-256 of some pieces."
    return hashlib.sha256(b''.join(map(piece, pieces))).hexdigest()[:16]

def test_fingerprint_equals_hashlib(tmp_path):
    "Values by their repr, bytes as they are, a file by its SHA-256, a folder by names and SHA-256 in name order."
    (tmp_path/'b.txt').write_bytes(b'two')
    (tmp_path/'a.txt').write_bytes(b'one')
    one, two = (hashlib.sha256(x).digest() for x in (b'one', b'two'))
    assert fingerprint('a') == '70713bef27926b70' == known(b"'a'")
    assert fingerprint() == hashlib.sha256().hexdigest()[:16]
    assert fingerprint(b'a', 1, 2.5, None, ('x', [1])) == known(b'a', b'1', b'2.5', b'None', b"('x', [1])")
    assert fingerprint('汉') == known("'汉'".encode())
    assert fingerprint(tmp_path/'a.txt') == known(one)
    assert fingerprint(tmp_path, 'x') == known(b'a.txt', one, b'b.txt', two, b"'x'")

def test_fingerprint_changes_with_every_byte(tmp_path):
    raw = bytes(range(40))
    file = tmp_path/'f'
    seen = set()
    for k in range(len(raw)):
        for bit in (1, 128):
            changed = raw[:k] + bytes([raw[k] ^ bit]) + raw[k + 1:]
            file.write_bytes(changed)
            seen |= {fingerprint(changed), fingerprint(file)}
    file.write_bytes(raw)
    assert len(seen) == 4*len(raw) and not seen & {fingerprint(raw), fingerprint(file)}

def test_fingerprint_knows_order_borders_and_kinds(tmp_path):
    (tmp_path/'f').write_bytes(b'a')
    file = tmp_path/'f'
    parts = [('a', 'b'), ('b', 'a'), ('ab',), ('a', 'b', ''), ('', 'a', 'b'),
             (b'a', b'b'), (b'ab',), (b'a', b'', b'b'), (('a', 'b'),), (1, 23), (12, 3), ('1', 23),
             (file,), (file, file), (str(file),)]
    assert len({fingerprint(*p) for p in parts}) == len(parts)

def test_fingerprint_of_a_folder_is_its_visible_files(tmp_path):
    (tmp_path/'a').write_bytes(b'1')
    first = fingerprint(tmp_path)
    (tmp_path/'.hidden').write_bytes(b'x')
    (tmp_path/'inner').mkdir()
    os.utime(tmp_path/'a', (1, 1))
    assert fingerprint(tmp_path) == first, 'hidden files, folders and times do not count'
    (tmp_path/'b').write_bytes(b'')
    with_empty = fingerprint(tmp_path)
    (tmp_path/'b').rename(tmp_path/'c')
    renamed = fingerprint(tmp_path)
    (tmp_path/'c').unlink()
    assert len({first, with_empty, renamed}) == 3 and fingerprint(tmp_path) == first

def test_fingerprint_of_a_folder_sees_its_subfolders(tmp_path):
    (tmp_path/'inner'/'deep').mkdir(parents=True)
    (tmp_path/'inner'/'deep'/'a').write_bytes(b'1')
    (tmp_path/'z').write_bytes(b'2')
    first = fingerprint(tmp_path)
    one, two = (hashlib.sha256(x).digest() for x in (b'1', b'2'))
    assert first == known(b'inner/deep/a', one, b'z', two)
    (tmp_path/'inner'/'deep'/'a').write_bytes(b'3')
    changed = fingerprint(tmp_path)
    (tmp_path/'inner'/'deep'/'a').rename(tmp_path/'inner'/'a')
    moved = fingerprint(tmp_path)
    (tmp_path/'inner'/'.cache').mkdir()
    (tmp_path/'inner'/'.cache'/'b').write_bytes(b'4')
    assert len({first, changed, moved}) == 3 and fingerprint(tmp_path) == moved

def test_fingerprint_is_the_same_in_another_process(tmp_path):
    "It does not depend on the hash seed of the process."
    code = "from scclm.runs import fingerprint; print(fingerprint('a', {'x': 1}, (2, 'b')))"
    for seed in ('1', '2'):
        env = {**os.environ, 'PYTHONHASHSEED': seed}
        done = subprocess.run([sys.executable, '-c', code], env=env, cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.strip() == fingerprint('a', {'x': 1}, (2, 'b'))

# The table of stages

@pytest.mark.parametrize('stage', STAGES.values(), ids=list(STAGES))
def test_what_a_stage_names_exists(stage):
    module = import_module(f'scclm.{stage.module}')
    assert callable(getattr(module, stage.preset)) and callable(getattr(module, stage.run))
    assert not stage.tell or callable(getattr(module, stage.tell))
    assert (ROOT/'nbs'/f'{stage.notebook}.ipynb').is_file() and stage.does and STAGES[stage.name] is stage
    params = list(inspect.signature(getattr(module, stage.run)).parameters.values())
    assert all(p.default is not p.empty for p in params[1:]), f'{stage.run} takes the configuration and nothing else'
    source = (ROOT/'nbs'/f'{stage.notebook}.ipynb').read_text(encoding='utf-8')
    assert f'#| default_exp {stage.module}"' in source or f'#| default_exp {stage.module}\\n' in source

def test_artefacts_and_folders_are_unique():
    made = [s.artefact for s in STAGES.values() if s.artefact]
    folders = [f for s in STAGES.values() for f in s.folders]
    assert len(set(made)) == len(made) and len(set(folders)) == len(folders)
    assert list(training_folders()) == folders and all(f in training_folders()[f].folders for f in folders)

def test_models_are_known_by_their_folder(monkeypatch, tmp_path):
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path))
    monkeypatch.setenv('SCCLM_SCALE', 'base')
    assert chat_models() == [tmp_path/'base'/name/'model' for name in ('dpo', 'sft', 'pretrain')]
    for s in STAGES.values():
        if s.artefact.endswith('/model'): assert stage_of(tmp_path/s.artefact) is s
        for f in s.folders: assert stage_of(tmp_path/f/'model').artefact in (f'{f}/model', s.artefact)
    assert stage_of(tmp_path/'model') is None

def test_a_missing_artefact_names_notebook_and_command(tmp_path):
    (tmp_path/'here').touch()
    assert require(tmp_path/'here', 'clean') == tmp_path/'here'
    want = f'{tmp_path/"gone"} is missing: run nbs/06_sft.ipynb or `scclm sft` first'
    with pytest.raises(FileNotFoundError, match=f'^{re.escape(want)}$'): require(tmp_path/'gone', 'sft')
    with pytest.raises(KeyError): require(tmp_path/'gone', '06_sft')

HELP = '''
import sys
from scclm.cli import main
for name in sys.argv[1:]:
    try: code = main([name, '--help'])
    except SystemExit as e: code = e.code
    print(f'exit {name} {code}', flush=True)
'''

def test_every_hint_names_a_command_that_runs(tmp_path):
    "The command is taken from the sentence that the user reads; the notebook too."
    asked = []
    for name in STAGES:
        with pytest.raises(FileNotFoundError) as e: require(tmp_path/'gone', name)
        notebook, command = re.search(r'run (nbs/\S+\.ipynb) or `([^`]+)` first$', str(e.value)).groups()
        assert (ROOT/notebook).is_file()
        program, *args = shlex.split(command)
        assert program == 'scclm' and len(args) == 1
        asked += args
    assert asked == list(STAGES)
    env = {**os.environ, 'SCCLM_RUNS': str(tmp_path)}
    done = subprocess.run([sys.executable, '-c', HELP, *asked], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.findall(r'^exit (\w+) (\w+)$', done.stdout, re.M) == [(name, '0') for name in asked]
    assert done.stdout.count('usage: scclm ') == len(asked)
