"A busy machine: what is chosen when, that the user's settings win, who chooses, and the line of advice in a training."
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpecManager
from trainer_toys import CFG, ROOT, load_benchmark, model, same, stream

import scclm.busy
from scclm.busy import SETTINGS, busy_cores, choose_wait, own_cores, point_kernel, threads_wanted, wait_policy
from scclm.course import kernel_env
from scclm.trainer import Pace, fit, newest_good, seq2seq_loss

pytestmark = pytest.mark.usefixtures('one_thread')

LAUNCHER = dict(
    argv=['python', '-Xfrozen_modules=off', '-m', 'ipykernel_launcher', '-f', '{connection_file}'],
    display_name='Python 3', language='python', metadata=dict(debugger=True))


def clean_env(**more):
    "The environment without settings of its own: these tests may themselves run with some."
    kept = {k: v for k, v in os.environ.items() if k not in (*SETTINGS, 'OMP_NUM_THREADS')}
    return kept | dict(PYTHONPATH=str(ROOT)) | more


def more_threads_than_cores():
    "So many threads that every machine is too busy for them, whatever else runs."
    return str(4*os.cpu_count())


@pytest.fixture
def unset(monkeypatch):
    "No settings in this process."
    for name in (*SETTINGS, 'OMP_NUM_THREADS'): monkeypatch.delenv(name, raising=False)


# The decision


@pytest.mark.parametrize('threads, busy, cores, want', [
    ('2', 0., 2, None), ('2', .4, 2, None), ('2', .5, 2, None), ('2', .6, 2, 'PASSIVE'), ('2', 1., 2, 'PASSIVE'),
    ('2', 2., 2, 'PASSIVE'), ('2', 1., 4, None), ('2', 2.4, 4, None), ('2', 2.6, 4, 'PASSIVE'), ('4', .6, 4, 'PASSIVE'),
    ('1', 1., 2, None), ('1', 0., 1, None), ('8', 0., 2, 'PASSIVE'), ('2,4', 1., 2, 'PASSIVE')])
def test_policy(threads, busy, cores, want):
    assert wait_policy(dict(OMP_NUM_THREADS=threads), busy, cores) == want
    assert wait_policy(dict(OMP_NUM_THREADS=threads, OMP_WAIT_POLICY='ACTIVE'), busy, cores) is None


def test_without_a_number_the_threads_are_the_physical_cores_that_we_may_use(monkeypatch):
    monkeypatch.setattr(psutil, 'cpu_count', lambda logical: None if logical else 4)
    assert [threads_wanted({}, cores) for cores in (2, 4, 8)] == [2, 4, 4]
    assert wait_policy({}, 3., 8) is None and wait_policy({}, 5., 8) == 'PASSIVE'
    monkeypatch.setattr(psutil, 'cpu_count', lambda logical: None) # a system that does not tell
    assert threads_wanted({}, 3) == 3
    for odd in ('', 'many', '0', '-1', '2.5'): assert threads_wanted(dict(OMP_NUM_THREADS=odd), 3) == 3


@pytest.mark.parametrize('name', SETTINGS)
def test_the_users_settings_win_and_nothing_is_measured(name, unset, monkeypatch):
    monkeypatch.setattr(scclm.busy, 'busy_cores', pytest.fail)
    env = {name: '7'}
    assert choose_wait(env) is None and choose_wait(env, 99.) is None and env == {name: '7'}
    monkeypatch.setenv(name, '7')
    assert {k: v for k, v in kernel_env().items() if k in SETTINGS} == {name: '7'}


def test_what_is_chosen_and_nothing_else_is_touched(monkeypatch):
    monkeypatch.setattr(scclm.busy, 'own_cores', lambda: {0, 1})
    idle, busy = dict(OMP_NUM_THREADS='2', HOME='h'), dict(OMP_NUM_THREADS='2', HOME='h')
    assert choose_wait(idle, 0.) is None and idle == dict(OMP_NUM_THREADS='2', HOME='h')
    assert choose_wait(busy, 99.) == 'PASSIVE'
    assert busy == dict(OMP_NUM_THREADS='2', HOME='h', OMP_WAIT_POLICY='PASSIVE')


def test_too_late_for_a_process_that_has_torch(unset, monkeypatch):
    "Its children must not inherit what it could not use itself."
    monkeypatch.setattr(scclm.busy, 'busy_cores', pytest.fail)
    assert 'torch' in sys.modules and choose_wait() is None and choose_wait(os.environ, 99.) is None
    assert 'OMP_WAIT_POLICY' not in os.environ


# The measurement


@contextmanager
def spinning():
    "A program that keeps a core busy."
    p = subprocess.Popen([sys.executable, '-c', 'print(flush=True)\nwhile True: pass'], stdout=subprocess.PIPE)
    p.stdout.readline()
    try: yield
    finally:
        p.kill()
        p.communicate()


def test_a_spinning_program_is_seen():
    "Other programs come and go meanwhile, and where no core is free one more cannot be seen: several tries."
    seen = []
    for _ in range(8):
        before = busy_cores()
        with spinning(): beside = busy_cores()
        if before > len(own_cores()) - .6: continue
        seen.append(beside - before)
        if seen[-1] > .4: break
    if not seen: pytest.skip('no core of this machine was free: one more busy program cannot show')
    assert max(seen) > .4, f'a busy program added only {seen} cores'


def test_our_own_work_does_not_count(monkeypatch):
    "Only what the others do while we look."
    def work(seconds):
        "In place of sleeping: keep a core busy ourselves."
        end = time.perf_counter() + seconds
        while time.perf_counter() < end: pass
    looks = []
    for _ in range(8):
        monkeypatch.setattr(time, 'sleep', work)
        ours = busy_cores(.3)
        monkeypatch.undo()
        looks.append(ours - busy_cores(.3))
        if looks[-1] < .4: break
    assert min(looks) < .4, f'our own work added {looks} cores'


def test_the_least_look_counts_and_a_quiet_machine_needs_one(monkeypatch):
    def looking(*found):
        "The result for looks that find these, and how many were left."
        rest = list(found)
        monkeypatch.setattr(scclm.busy, '_busy_now', lambda seconds, cores: rest.pop(0))
        return busy_cores(), len(rest)
    assert looking(1.5, .8, 9.) == (.8, 1) and looking(.2, .9) == (.2, 0)
    assert looking(.05, 9.) == (.05, 1) and looking(-.02, 9.) == (0., 1)


@pytest.mark.parametrize('e', [PermissionError('no'), psutil.AccessDenied(1)])
def test_a_system_that_does_not_tell_is_not_busy(e, monkeypatch):
    def refuse(**kw): raise e
    monkeypatch.setattr(psutil, 'cpu_times', refuse)
    assert busy_cores() == 0.


def test_only_our_cores_are_looked_at(monkeypatch):
    "Idle time does not count, and a system without `nice` is none the worse."
    def times(percpu):
        "Of three cores."
        return [SimpleNamespace(user=n, system=n, idle=9999.) for n in (1., 10., 100.)]
    monkeypatch.setattr(psutil, 'cpu_times', times)
    own = psutil.Process().cpu_times()
    assert scclm.busy._used_by_others({0, 2}) == pytest.approx(202. - own.user - own.system, abs=1.)


# Who chooses


def test_openmp_has_read_what_was_chosen():
    "In a process of its own, and only what is set before torch is imported."
    def spins(*lines):
        "What OpenMP says."
        code = '\n'.join(['from scclm.busy import choose_wait', *lines])
        env = clean_env(OMP_DISPLAY_ENV='verbose', OMP_NUM_THREADS='1') # fits any machine
        return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env).stderr
    if 'GOMP_SPINCOUNT' not in spins('import torch'): pytest.skip('this OpenMP does not tell')
    assert "GOMP_SPINCOUNT = '0'" in spins('choose_wait(busy=99.)', 'import torch')
    assert "GOMP_SPINCOUNT = '0'" not in spins('choose_wait(busy=0.)', 'import torch')
    assert "GOMP_SPINCOUNT = '0'" not in spins('import torch', 'choose_wait(busy=99.)')


def test_the_command_line_chooses_before_torch():
    code = """if True:
        import json, os, sys
        import scclm.busy
        seen = []
        def look():
            seen.append('torch' in sys.modules)
            return 99.
        scclm.busy.busy_cores = look
        from scclm.cli import main
        main(['--help'])
        main(['nonsense'])
        helped = list(seen)
        try: main(['chat', '--help'])
        except SystemExit: pass
        print(json.dumps([helped, seen, os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules]))"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=clean_env())
    assert json.loads(done.stdout.splitlines()[-1]) == [[], [False], 'PASSIVE', True], done.stderr


def test_a_chapter_gets_what_suits_the_moment(unset, monkeypatch):
    for busy, want in ((0., None), (99., 'PASSIVE'), (0., None)):
        monkeypatch.setattr(scclm.busy, 'busy_cores', lambda busy=busy: busy)
        assert kernel_env().get('OMP_WAIT_POLICY') == want
        assert 'OMP_WAIT_POLICY' not in os.environ and 'OMP_NUM_THREADS' not in kernel_env()


def test_the_kernel_file_is_changed_once_and_only_there(tmp_path):
    file = tmp_path/'kernel.json'
    file.write_text(json.dumps(LAUNCHER))
    assert point_kernel(file) and not point_kernel(file)
    spec = json.loads(file.read_text())
    assert spec['argv'] == ['python', '-Xfrozen_modules=off', '-m', 'scclm.busy', '-f', '{connection_file}']
    assert spec | dict(argv=0) == LAUNCHER | dict(argv=0) and [p.name for p in tmp_path.iterdir()] == ['kernel.json']
    assert not point_kernel(tmp_path/'none.json') and not (tmp_path/'none.json').exists()
    file.write_text(json.dumps(dict(argv=['xpython', '{connection_file}'])))
    assert not point_kernel(file)


def asked(folder, env, *code):
    "What a kernel that is started from a pointed kernel.json says to each expression."
    home = folder/'kernels'/'python3'
    home.mkdir(parents=True)
    (home/'kernel.json').write_text(json.dumps(LAUNCHER))
    assert point_kernel(home/'kernel.json')
    specs = KernelSpecManager(kernel_dirs=[str(folder/'kernels')], ensure_native_kernel=False)
    km = KernelManager(kernel_name='python3', kernel_spec_manager=specs)
    km.start_kernel(env=env, cwd=str(folder))
    client = km.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=120)
        said = [client.execute_interactive('', user_expressions=dict(x=x), timeout=60) for x in code]
        return [m['content']['user_expressions']['x']['data']['text/plain'] for m in said]
    finally:
        client.stop_channels()
        km.shutdown_kernel(now=True)


WAIT = "__import__('os').environ.get('OMP_WAIT_POLICY')"

def test_the_kernel_chooses_and_is_a_kernel_like_any_other(tmp_path):
    env = clean_env(OMP_NUM_THREADS=more_threads_than_cores())
    said = asked(tmp_path, env, '1+1', WAIT, '__name__', "'torch' in __import__('sys').modules",
                 "__import__('sys').path.count(__import__('os').getcwd())", '[1]*3')
    assert said == ['2', "'PASSIVE'", "'__main__'", 'False', '0', '[1, 1, 1]']


def test_the_kernel_leaves_the_users_setting(tmp_path):
    env = clean_env(OMP_NUM_THREADS=more_threads_than_cores(), OMP_WAIT_POLICY='ACTIVE')
    assert asked(tmp_path, env, WAIT) == ["'ACTIVE'"]


# The line of advice


def heard(speeds, pace=None, start=0.):
    "What is said over log lines ten seconds apart: (line, text)."
    pace = pace or Pace()
    said = [pace(dict(seconds=start + 10.*i, real_tok_per_s=speed)) for i, speed in enumerate(speeds)]
    return [(i, text) for i, text in enumerate(said) if text]


def test_advice_comes_once_when_the_speed_falls_to_less_than_half():
    (line, text), = heard([5600.]*20 + [1100.]*20 + [5600.]*20 + [1100.]*20)
    assert line == 22 and 'at 1,100 real tok/s' in text and '(5,600)' in text and 'chapter 04' in text
    assert [line for line, _ in heard([5600.]*4 + [1100.]*60)] == [6]
    assert [line for line, _ in heard([5600.]*20 + [1100.]*20, start=1e5)] == [22], 'a resumed run counts on'


@pytest.mark.parametrize('speeds', [
    [5600.]*60, [1100.]*60, [5600.]*20 + [2900.]*40, [5600., 2000.]*30, [5600.]*20 + [1100.]*2 + [5600.]*20, [0.]*60,
    [100.] + [5600.]*30, [5600.]*20 + [1100.]*2, []])
def test_no_advice(speeds): assert heard(speeds) == []


def test_nothing_is_said_of_a_run_of_seconds():
    pace = Pace()
    speeds = [5600.]*10 + [100.]*10
    assert not any(pace(dict(seconds=.1*i, real_tok_per_s=speed)) for i, speed in enumerate(speeds))


def test_a_real_run_says_it_once_and_trains_the_same(home, tok, tmp_path, caplog):
    "Two runs, of which one becomes slow after its eighth step; no bit of weights and checkpoint knows."
    def run(name, waits):
        "A run whose steps wait so long, and what it said."
        waiting = iter(waits)
        def loss(net, batch):
            "The usual loss, later."
            time.sleep(next(waiting))
            return seq2seq_loss(net, batch)
        def impatient(run):
            "Counts the first steps as the first minutes."
            if run.step == 1: run.pace = Pace(first_s=.1, least_s=0.)
        caplog.clear()
        cfg = replace(CFG, steps=len(waits), accum=1, save_every=100)
        net = model(tok)
        fit(net, stream(home, tok), cfg, tmp_path/name, loss_fn=loss, callbacks=[impatient], progress=False)
        return net, [r.message for r in caplog.records if 'training runs at' in r.message]
    even, nothing = run('even', [.1]*14)
    slow, said = run('slow', [.1]*8 + [.6]*6)
    assert nothing == [] and len(said) == 1 and same(even, slow)
    states = [json.loads((newest_good(tmp_path/name)/'state.json').read_text()) for name in ('even', 'slow')]
    assert states[0].keys() == states[1].keys() and 'pace' not in states[0]


def test_a_resumed_run_compares_with_itself(home, tok, tmp_path):
    cfg, kept = replace(CFG, steps=4), []
    for steps in (2, 4):
        def note(run, steps=steps):
            "Keep the pace; end the first session early."
            kept.append(run.pace)
            if run.step == 2 and steps == 2: signal.raise_signal(signal.SIGINT)
        fit(model(tok), stream(home, tok), cfg, tmp_path/'run', callbacks=[note], progress=False)
    assert len(kept) == 4 and kept[0] is kept[1] is not kept[2] is kept[3]
    assert len(kept[3].first) == 2 and kept[3].began > 0


# The benchmark


def test_rows_of_the_benchmark():
    busy = load_benchmark('busy')
    speeds = {busy.Session(job, way, beside): [10., 20.] if beside else [40., 40.]
              for job in busy.JOBS for way in busy.WAYS for beside in (False, True)}
    speeds[busy.Session('training', 'chosen', False)] = [39., 41.]
    rows = {r['what']: r for r in busy.make_rows(speeds)}
    assert len(rows) == 2*(len(busy.WAYS) + 1)
    assert {f'{job}, {what}' for job in busy.JOBS for what in busy.ASKED} <= rows.keys()
    assert rows['training, alone']['ratio'] == 1. and rows['training, default wait, beside']['ratio'] == .375
    beside = rows['decoding, beside a busy process']
    assert (beside['ours'], beside['baseline'], beside['baseline_name']) == (15., 40., 'alone')


def test_the_benchmark_gives_each_way_its_environment(monkeypatch):
    busy = load_benchmark('busy')
    monkeypatch.setenv('OMP_WAIT_POLICY', 'ACTIVE')
    monkeypatch.setenv('OMP_NUM_THREADS', '7')
    monkeypatch.setattr(busy, 'choose_wait', lambda env: env.update(OMP_WAIT_POLICY='PASSIVE'))
    names = (*SETTINGS, 'OMP_NUM_THREADS')
    found = {way: {k: v for k, v in busy.environment(way).items() if k in names} for way in busy.WAYS}
    assert found == {way: settings if settings is not None else dict(OMP_WAIT_POLICY='PASSIVE')
                     for way, settings in busy.WAYS.items()}
