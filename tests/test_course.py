"""The course runner on small notebooks of our own: failures, killed kernels, interrupts, going on, fingerprints."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import nbformat
import psutil
import pytest
from processes import default_sigint

import scclm.course
from scclm.course import (CourseCfg, chapter_keys, chapters, course, imported_modules, library_code, read_record,
    run_course, run_notebook)
from scclm.runs import run_path

def write_nb(path, *cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells]), path)
    return path

LOG = """
import os, pathlib
log = pathlib.Path(os.environ['SCCLM_RUNS'], 'log.txt')
log.open('a').write('{} ')"""

@pytest.fixture
def house(tmp_path, monkeypatch):
    "A checkout of its own, with two chapters that note in a log that they ran."
    monkeypatch.chdir(tmp_path)
    for dial in ('SCCLM_RAW', 'SCCLM_SCALE', 'SCCLM_SETUP_SECONDS'): monkeypatch.delenv(dial, raising=False)
    monkeypatch.setenv('SCCLM_RUNS', 'some_runs') # relative: to the checkout
    (tmp_path/'settings.ini').write_text('[DEFAULT]\n')
    (tmp_path/'some_runs').mkdir()
    write_nb(tmp_path/'nbs'/'00_a.ipynb', LOG.format('a'))
    write_nb(tmp_path/'nbs'/'01_b.ipynb', LOG.format('b'), '"the end"')
    return tmp_path

def ran(house): return (house/'some_runs'/'log.txt').read_text().split()
def record(house): return json.loads((house/'some_runs'/'tiny'/'course.json').read_text(encoding='utf-8'))
def copy_of(house, name): return nbformat.read(house/'some_runs'/'tiny'/'notebooks'/name, 4)

def cli(**kw):
    "`python -m scclm.course`, which hears Ctrl-C however these tests were started."
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding='utf-8')
    with default_sigint(): return subprocess.Popen([sys.executable, '-m', 'scclm.course'], **pipes | kw)

def wait_until(ready, limit_s=240):
    end = time.monotonic() + limit_s
    while not ready():
        assert time.monotonic() < end, 'it never came'
        time.sleep(.05)

def test_record_and_copies(house):
    assert run_course(CourseCfg(set_up_seconds=12.5))
    rec = record(house)
    assert rec['set_up_seconds'] == 12.5
    assert [(c['name'], c['ok']) for c in rec['chapters']] == [('00_a', True), ('01_b', True)]
    assert all(c['seconds'] > 0 and c['peak_rss_mb'] > 10 for c in rec['chapters'])
    assert copy_of(house, '01_b.ipynb').cells[1].outputs[0].data['text/plain'] == "'the end'"
    assert nbformat.read(house/'nbs'/'01_b.ipynb', 4).cells[1].outputs == []

def test_the_yardstick_is_read_once_and_kept(house, capsys):
    assert run_course(CourseCfg(reference=True, only=('00',)))
    speed = record(house)['reference_tok_per_s']
    assert speed > 0 and f'{speed:,.0f} real tok/s' in capsys.readouterr().out
    assert run_course(CourseCfg(reference=True)) and record(house)['reference_tok_per_s'] == speed
    assert 'real tok/s' not in capsys.readouterr().out

def test_a_second_run_does_nothing_and_fresh_does_all(house, capsys):
    assert run_course() and run_course()
    assert ran(house) == ['a', 'b']
    assert 'make chat' in capsys.readouterr().out
    (house/'some_runs'/'tiny'/'stale.txt').write_text('old')
    (house/'some_runs'/'mini').mkdir()
    assert run_course(CourseCfg(fresh=True))
    assert ran(house) == ['a', 'b', 'a', 'b']
    assert not (house/'some_runs'/'tiny'/'stale.txt').exists() and (house/'some_runs'/'mini').exists()

def test_failure_is_told_and_the_next_run_goes_on_there(house, capsys):
    write_nb(house/'nbs'/'01_b.ipynb', LOG.format('b'), 'd = {"seat": 1}\nd["poet"]', '"unreached"')
    write_nb(house/'nbs'/'02_c.ipynb', LOG.format('c'))
    assert course(CourseCfg()) == 1
    out = capsys.readouterr().out
    assert '01_b.ipynb, cell 2/3' in out and 'd["poet"]' in out and "KeyError: 'poet'" in out
    assert 'make chat' not in out
    assert [c['ok'] for c in record(house)['chapters']] == [True, False] and ran(house) == ['a', 'b']
    assert copy_of(house, '01_b.ipynb').cells[1].outputs[0].ename == 'KeyError'
    write_nb(house/'nbs'/'01_b.ipynb', LOG.format('b'))
    assert course(CourseCfg()) == 0
    assert ran(house) == ['a', 'b', 'b', 'c']

def test_a_changed_chapter_reruns_it_and_what_follows(house):
    write_nb(house/'nbs'/'02_c.ipynb', LOG.format('c'))
    assert run_course()
    write_nb(house/'nbs'/'01_b.ipynb', LOG.format('b2'))
    assert run_course()
    assert ran(house) == ['a', 'b', 'c', 'b2', 'c']
    (house/'some_runs'/'tiny'/'notebooks'/'02_c.ipynb').unlink() # its copy is gone: not done
    assert run_course()
    assert ran(house)[-2:] == ['c', 'c']

def test_new_raw_data_is_a_new_course(house, monkeypatch):
    (house/'corpus').mkdir()
    monkeypatch.setenv('SCCLM_RAW', 'corpus')
    assert run_course() and run_course()
    assert ran(house) == ['a', 'b']
    (house/'corpus'/'more.json').write_text('{}')
    assert run_course()
    assert ran(house) == ['a', 'b', 'a', 'b']

def test_only_and_other_notebooks(house):
    write_nb(house/'nbs'/'appendix'/'extra.ipynb', LOG.format('extra'))
    assert run_course()
    before = record(house)
    assert run_course(CourseCfg(only=('01',)))
    assert run_course(CourseCfg(notebooks=(house/'nbs'/'appendix'/'extra.ipynb',)))
    assert ran(house) == ['a', 'b', 'b', 'extra']
    assert [c['name'] for c in record(house)['chapters']] == ['00_a', '01_b'] == [c['name'] for c in before['chapters']]
    assert copy_of(house, 'extra.ipynb')

def test_the_kernel_sees_absolute_dials_and_its_own_folder(house, monkeypatch):
    (house/'corpus').mkdir()
    monkeypatch.setenv('SCCLM_RAW', 'corpus')
    tell = "import os, json\nprint(json.dumps([os.getcwd(), os.environ['SCCLM_RUNS'], os.environ['SCCLM_RAW']]))"
    write_nb(house/'nbs'/'00_a.ipynb', tell)
    assert run_course(CourseCfg(only=('00',)))
    cwd, runs, raw = json.loads(copy_of(house, '00_a.ipynb').cells[0].outputs[0].text)
    assert Path(cwd).samefile(house/'nbs') and Path(runs).is_absolute() and Path(runs).samefile(house/'some_runs')
    assert Path(raw).is_absolute() and Path(raw).samefile(house/'corpus')

def test_each_chapter_has_a_fresh_kernel(house):
    write_nb(house/'nbs'/'00_a.ipynb', 'secret = 1')
    write_nb(house/'nbs'/'01_b.ipynb', 'secret')
    assert not run_course()
    assert "name 'secret' is not defined" in record(house)['chapters'][1]['error']

def test_memory_of_children_counts(house):
    child = "b = bytearray(b'x'*150*2**20); import time; time.sleep(3)"
    hog = f'import subprocess, sys; subprocess.run([sys.executable, "-c", {child!r}])'
    small = run_notebook(house/'nbs'/'00_a.ipynb', house/'small.ipynb')
    big = run_notebook(write_nb(house/'hog.ipynb', hog), house/'big.ipynb')
    assert big['peak_rss_mb'] > small['peak_rss_mb'] + 120

def test_a_killed_kernel_is_a_failure(house):
    end_me = 'os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))'
    write_nb(house/'nbs'/'01_b.ipynb', 'import os, signal', end_me)
    assert not run_course()
    entry = record(house)['chapters'][1]
    assert not entry['ok'] and 'cell 2/2' in entry['error'] and 'kernel died' in entry['error']
    assert copy_of(house, '01_b.ipynb').cells[1].outputs[-1].output_type == 'error'

@pytest.mark.parametrize('text', ['[1, 2', '{"chapters": 3}', '{"chapters": [{}]}', '\ud83d'])
def test_a_damaged_record_is_one_clear_sentence(house, capsys, text):
    run_path().mkdir()
    run_path('course.json').write_bytes(text.encode('utf-8', 'surrogatepass'))
    assert course(CourseCfg()) == 2
    assert 'course.json is not a course record' in capsys.readouterr().err

def test_bad_input_is_one_clear_sentence(house, capsys, monkeypatch):
    assert course(CourseCfg(nbs=house/'nowhere')) == 2 and 'holds no chapter' in capsys.readouterr().err
    assert course(CourseCfg(only=('7',))) == 2 and "only='7' is no chapter" in capsys.readouterr().err
    monkeypatch.setenv('SCCLM_RAW', 'some_runs/tiny/raw')
    assert course(CourseCfg(fresh=True)) == 2 and 'FRESH=1 removes' in capsys.readouterr().err
    monkeypatch.setenv('SCCLM_SCALE', 'huge')
    assert course(CourseCfg()) == 2 and "SCCLM_SCALE='huge' is not known" in capsys.readouterr().err

def test_setup_seconds_come_from_the_environment(house, monkeypatch):
    monkeypatch.setenv('SCCLM_SETUP_SECONDS', '61')
    run = cli()
    assert run.wait(240) == 0 and record(house)['set_up_seconds'] == 61
    out = run.stdout.read()
    assert [line.split()[0] for line in out.splitlines()[1:3]] == ['00_a', '01_b']
    assert '\r' not in out and run.stderr.read() == ''

SET_MARK = """
import time, pathlib, os
mark = pathlib.Path(os.environ['SCCLM_RUNS'], 'pid')"""
SLEEP = """
try:
    mark.write_text(str(os.getpid()))
    time.sleep(60)
except KeyboardInterrupt: print('saved')"""
NEVER_STOP = """
mark.write_text(str(os.getpid()))
while True:
    try: time.sleep(60)
    except KeyboardInterrupt: mark.write_text('no')"""

def start(house, *cells):
    "A course whose second chapter sleeps, caught while it does; and the pid of that kernel."
    write_nb(house/'nbs'/'01_b.ipynb', SET_MARK, *cells)
    run = cli()
    mark = house/'some_runs'/'pid'
    wait_until(lambda: mark.exists() and mark.read_text())
    return run, int(mark.read_text())

if os.name == 'posix':
    @pytest.mark.parametrize('sig', [signal.SIGINT, signal.SIGTERM])
    def test_interrupt_lets_the_cell_save_and_stops(house, sig):
        run, kernel = start(house, SLEEP, '"unreached"')
        run.send_signal(sig)
        assert run.wait(120) == 130
        assert 'the same command goes on here' in run.stderr.read() and not psutil.pid_exists(kernel)
        assert [c['ok'] for c in record(house)['chapters']] == [True, False]
        cells = copy_of(house, '01_b.ipynb').cells
        assert cells[1].outputs[0].text == 'saved\n' and cells[2].outputs == []
        write_nb(house/'nbs'/'01_b.ipynb', LOG.format('b'))
        assert run_course() and ran(house) == ['a', 'b']

    def test_a_cell_that_will_not_stop_is_killed_the_second_time(house):
        run, kernel = start(house, NEVER_STOP)
        run.send_signal(signal.SIGINT)
        wait_until(lambda: (house/'some_runs'/'pid').read_text() == 'no')
        run.send_signal(signal.SIGINT)
        assert run.wait(120) == 130 and not psutil.pid_exists(kernel)

    def test_sigkill_of_the_runner_leaves_no_kernel_and_a_record_that_goes_on(house):
        run, kernel = start(house, SLEEP)
        run.kill()
        run.wait()
        wait_until(lambda: ended(kernel))
        assert [c['name'] for c in record(house)['chapters']] == ['00_a']
        write_nb(house/'nbs'/'01_b.ipynb', LOG.format('b'))
        assert run_course() and ran(house) == ['a', 'b']

    def ended(pid):
        "Whether a process is gone, or a zombie that nobody asked for yet."
        try: return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess: return True

    @pytest.fixture
    def terminal():
        "A pseudo-terminal, (our end, the program's end), closed again after the test."
        import pty
        ends = pty.openpty()
        yield ends
        for fd in ends:
            with suppress(OSError): os.close(fd)

    def test_a_terminal_shows_progress(house, terminal):
        ours, theirs = terminal
        write_nb(house/'nbs'/'00_a.ipynb', 'import time; time.sleep(1)')
        run = cli(stdout=theirs, stderr=theirs)
        os.close(theirs)
        shown = b''
        try:
            while part := os.read(ours, 4096): shown += part
        except OSError: pass # Linux's way to say that the other end is closed
        assert run.wait(120) == 0
        assert b'\r00_a' in shown and b'cell 1/1' in shown and b'MB peak' in shown and b'make chat' in shown

# What makes a key change

FORMS = {
    'import scclm.runs': 'runs',
    'import scclm.runs as r': 'runs',
    'import os, scclm.runs, scclm.model as m': 'runs model',
    'from scclm import runs': 'runs',
    'from scclm import runs as r, model': 'runs model',
    'from scclm import (\n    runs, # one\n    model,\n)': 'runs model',
    'from scclm.runs import run_path': 'runs',
    'from scclm.runs import (run_path,\n    raw_dir)': 'runs',
    'from scclm.runs import *': 'runs',
    'from scclm.runs import run_path, raw_dir; import scclm.model': 'runs model',
    'from .runs import run_path': 'runs',
    'from . import runs': 'runs',
    'from . import runs, model as m': 'runs model',
    'from . import (runs,\n    model)': 'runs model',
    'def f():\n    from scclm.runs import run_path\n    return run_path()': 'runs',
    'class A:\n    def f(self):\n        if self: from .runs import run_path': 'runs',
    'try:\n    import scclm.runs\nexcept ImportError: pass': 'runs',
    'import scclm.runs.deeper': 'runs',
    '%matplotlib inline\nfrom scclm.runs import run_path': 'runs',
    'if 1:\n    %matplotlib inline\n    from scclm.runs import run_path': 'runs',
    'files = !ls\nfrom scclm.runs import run_path': 'runs',
    '!echo "import scclm.model"\nimport scclm.runs': 'runs',
    'import scclm.runs\nscclm.runs?': 'runs',
    '%%time\nfrom scclm.runs import run_path': 'runs',
    'x = (7\n  % 4)\nfrom scclm.runs import run_path': 'runs',
    'text = """\n%time\n"""\nimport scclm.runs': 'runs',
    '# import scclm.runs': '',
    'said = "import scclm.runs"': '',
    'said = """\nimport scclm.runs\nfrom .model import x\n"""': '',
    'import scclm': '',
    'from scclm import *': '',
    'import os.path as scclm_runs': '',
    'from scclmx.runs import a': '',
    'from other.scclm import runs': '',
    'from .. import runs': '',
    '%%bash\nimport scclm.runs | wc -l': '',
    'import scclm.runs as': '', # a typing error: the cell imports nothing, and fails when it runs
    '': '',
}

@pytest.mark.parametrize('code', FORMS, ids=lambda code: code[:40].replace('\n', ' ') or 'nothing')
def test_every_form_of_import(code):
    assert imported_modules(code) == set(FORMS[code].split())

def test_what_python_really_loads_is_in_the_library_code():
    "The deepest module, imported in a process of its own: whatever came with it must be reached."
    code = "import sys, scclm.ie_finetune; print(*(m for m in sys.modules if m.startswith('scclm.')))"
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    loaded = {name.split('.')[1] for name in run.stdout.split()}
    assert {'ie_finetune', 'sample_triples', 'model', 'runs'} <= loaded, run.stderr
    assert loaded <= library_code('import scclm.ie_finetune').keys()

KEYS = """
import sys
from pathlib import Path
from scclm.course import chapter_keys, chapters
def keys(): return chapter_keys(chapters(Path(sys.argv[1])))
old = keys()
for name in sys.argv[2:]:
    path = Path(sys.modules['scclm.course'].__file__).with_name(f'{name}.py')
    text = path.read_text(encoding='utf-8')
    path.write_text(text + '\\n# edited', encoding='utf-8')
    new = keys()
    path.write_text(text, encoding='utf-8')
    print(name, *(k for k in old if old[k] != new[k]))
"""

def test_editing_a_module_changes_the_chapters_that_use_it(tmp_path):
    "On a copy of the library. A chapter that changes takes all later ones along."
    library = Path(scclm.course.__file__).parent
    shutil.copytree(library, tmp_path/'scclm', ignore=shutil.ignore_patterns('__pycache__'))
    env = os.environ | dict(PYTHONPATH=str(tmp_path))
    edited = ['sample_triples', 'sample_prefs', 'chat_view', 'website']
    command = [sys.executable, '-c', KEYS, str(library.parent/'nbs'), *edited]
    run = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=240)
    assert run.returncode == 0, run.stderr
    first = {line.split()[0]: line.split()[1:] for line in run.stdout.splitlines()}
    names = [p.stem for p in chapters(library.parent/'nbs')]
    assert first['sample_triples'] == names[names.index('09_ie_finetune'):]
    assert first['chat_view'] == names[names.index('08_chat'):]
    assert first['sample_prefs'] == names[names.index('07_dpo'):]
    assert first['website'] == []

def test_cells_count_one_by_one(tmp_path):
    "A cell that is no Python hides no import of another cell."
    nb = write_nb(tmp_path/'00_a.ipynb', '%%bash\nls', 'import scclm.runs as', 'from scclm.runs import run_path', '1 +')
    other = write_nb(tmp_path/'plain'/'00_a.ipynb', '%%bash\nls', 'import scclm.runs as', '2', '1 +')
    keys = [chapter_keys([p])['00_a'] for p in (nb, other)]
    assert len(set(keys)) == 2 and all(re.fullmatch('[0-9a-f]{16}', k) for k in keys)

def test_a_typing_error_is_a_failed_chapter(house, capsys):
    write_nb(house/'nbs'/'01_b.ipynb', LOG.format('b'), 'total = (1 +')
    assert course(CourseCfg()) == 1
    assert 'SyntaxError' in capsys.readouterr().out and ran(house) == ['a', 'b']
    write_nb(house/'nbs'/'01_b.ipynb', LOG.format('b'), 'total = (1 + 1)')
    assert course(CourseCfg()) == 0
    assert ran(house) == ['a', 'b', 'b']

def test_the_real_course():
    "In CI the course has just run from an empty folder: its record keeps the contract."
    rec = read_record(run_path('course.json'))
    for c in rec['chapters']:
        assert {'name', 'seconds', 'peak_rss_mb', 'ok'} <= c.keys()
        assert c['ok'] and run_path('notebooks', f"{c['name']}.ipynb").exists()
    if 'SCCLM_CI' not in os.environ: return
    assert [c['name'] for c in rec['chapters']] == [p.stem for p in chapters()]
    assert rec['reference_tok_per_s'] > 0
