"""The course runner on small notebooks of our own: failures, killed kernels, interrupts, going on, and the record of the real course."""
import json, os, signal, subprocess, sys, time
from pathlib import Path

import nbformat
import psutil
import pytest

from scclm.course import CourseCfg, chapters, course, read_record, run_course, run_notebook
from scclm.data_cleaning import run_path

def write_nb(path, *cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells]), path)
    return path

LOG = "import os, pathlib; log = pathlib.Path(os.environ['SCCLM_RUNS'], 'log.txt'); log.open('a').write('{} ')"

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

def cli(*args, **kw):
    return subprocess.Popen([sys.executable, '-m', 'scclm.course', *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding='utf-8', **kw)

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
    assert '01_b.ipynb, cell 2/3' in out and 'd["poet"]' in out and "KeyError: 'poet'" in out and 'make chat' not in out
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
    write_nb(house/'nbs'/'00_a.ipynb', "import os, json; print(json.dumps([os.getcwd(), os.environ['SCCLM_RUNS'], os.environ['SCCLM_RAW']]))")
    assert run_course(CourseCfg(only=('00',)))
    cwd,runs,raw = json.loads(copy_of(house, '00_a.ipynb').cells[0].outputs[0].text)
    assert Path(cwd).samefile(house/'nbs') and Path(runs).is_absolute() and Path(runs).samefile(house/'some_runs')
    assert Path(raw).is_absolute() and Path(raw).samefile(house/'corpus')

def test_each_chapter_has_a_fresh_kernel(house):
    write_nb(house/'nbs'/'00_a.ipynb', 'secret = 1')
    write_nb(house/'nbs'/'01_b.ipynb', 'secret')
    assert not run_course()
    assert "name 'secret' is not defined" in record(house)['chapters'][1]['error']

def test_memory_of_children_counts(house):
    hog = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'b = bytearray(b\"x\"*150*2**20); import time; time.sleep(3)'])"
    small = run_notebook(house/'nbs'/'00_a.ipynb', house/'small.ipynb')
    big = run_notebook(write_nb(house/'hog.ipynb', hog), house/'big.ipynb')
    assert big['peak_rss_mb'] > small['peak_rss_mb'] + 120

def test_a_killed_kernel_is_a_failure(house):
    write_nb(house/'nbs'/'01_b.ipynb', 'import os, signal', 'os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))')
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
    assert [l.split()[0] for l in out.splitlines()[1:3]] == ['00_a', '01_b'] and '\r' not in out and run.stderr.read() == ''

SLEEPY = ["import time, pathlib, os\nmark = pathlib.Path(os.environ['SCCLM_RUNS'], 'pid')",
          "try:\n    mark.write_text(str(os.getpid()))\n    time.sleep(60)\nexcept KeyboardInterrupt: print('saved')", '"unreached"']

def start_sleepy(house, **kw):
    "A course whose second chapter sleeps, caught while it does."
    write_nb(house/'nbs'/'01_b.ipynb', *SLEEPY)
    run,mark = cli(**kw),house/'some_runs'/'pid'
    wait_until(lambda: mark.exists() and mark.read_text())
    return run, int(mark.read_text())

if os.name == 'posix':
    @pytest.mark.parametrize('sig', [signal.SIGINT, signal.SIGTERM])
    def test_interrupt_lets_the_cell_save_and_stops(house, sig):
        run,kernel = start_sleepy(house)
        run.send_signal(sig)
        assert run.wait(120) == 130
        assert 'the same command goes on here' in run.stderr.read() and not psutil.pid_exists(kernel)
        assert [c['ok'] for c in record(house)['chapters']] == [True, False]
        cells = copy_of(house, '01_b.ipynb').cells
        assert cells[1].outputs[0].text == 'saved\n' and cells[2].outputs == []
        write_nb(house/'nbs'/'01_b.ipynb', LOG.format('b'))
        assert run_course() and ran(house) == ['a', 'b']

    def test_a_cell_that_will_not_stop_is_killed_the_second_time(house):
        write_nb(house/'nbs'/'01_b.ipynb', SLEEPY[0], 'mark.write_text(str(os.getpid()))\nwhile True:\n    try: time.sleep(60)\n    except KeyboardInterrupt: mark.write_text("no")')
        run,mark = cli(),house/'some_runs'/'pid'
        wait_until(lambda: mark.exists() and mark.read_text())
        kernel = int(mark.read_text())
        run.send_signal(signal.SIGINT)
        wait_until(lambda: mark.read_text() == 'no')
        run.send_signal(signal.SIGINT)
        assert run.wait(120) == 130 and not psutil.pid_exists(kernel)

    def test_sigkill_of_the_runner_leaves_no_kernel_and_a_record_that_goes_on(house):
        run,kernel = start_sleepy(house)
        run.kill()
        run.wait()
        wait_until(lambda: not psutil.pid_exists(kernel) or psutil.Process(kernel).status() == psutil.STATUS_ZOMBIE)
        assert [c['name'] for c in record(house)['chapters']] == ['00_a']
        write_nb(house/'nbs'/'01_b.ipynb', LOG.format('b'))
        assert run_course() and ran(house) == ['a', 'b']

    def test_a_terminal_shows_progress(house):
        import pty
        master,slave = pty.openpty()
        write_nb(house/'nbs'/'00_a.ipynb', 'import time; time.sleep(1)')
        run = subprocess.Popen([sys.executable, '-m', 'scclm.course'], stdout=slave, stderr=slave)
        os.close(slave)
        shown = b''
        try:
            while part := os.read(master, 4096): shown += part
        except OSError: pass # Linux's way to say that the other end is closed
        assert run.wait(120) == 0
        os.close(master)
        assert b'\r00_a' in shown and b'cell 1/1' in shown and b'MB peak' in shown and b'make chat' in shown

def test_the_real_course():
    "In CI the course has just run from an empty folder: its record keeps the contract."
    rec = read_record(run_path('course.json'))
    for c in rec['chapters']:
        assert {'name', 'seconds', 'peak_rss_mb', 'ok'} <= c.keys()
        assert c['ok'] and run_path('notebooks', f"{c['name']}.ipynb").exists()
    if 'SCCLM_CI' in os.environ: assert [c['name'] for c in rec['chapters']] == [p.stem for p in chapters()]
