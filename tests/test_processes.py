"The helper that ends processes, on processes that do their best to stay."
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from processes import default_sigint, gone_afterwards, marked

STUBBORN = """
import os, signal, subprocess, sys, time
for name in ('SIGINT', 'SIGTERM', 'SIGHUP'):
    if hasattr(signal, name): signal.signal(getattr(signal, name), signal.SIG_IGN)
if sys.argv[1:]: subprocess.Popen([sys.executable, *sys.orig_argv[1:-1]], start_new_session=True)
print(os.getpid(), flush=True)
time.sleep(600)
"""


def alive(pid:int)->bool:
    "Whether a process runs; a zombie does not."
    try: return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess: return False


def test_parent_and_orphan_in_its_own_session_go_when_a_test_fails():
    with pytest.raises(ZeroDivisionError), gone_afterwards() as mark:
        command = [sys.executable, '-c', STUBBORN, 'with a child']
        parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(map(alive, pids)) and parent.pid in pids
        parent.kill() # the child is an orphan now, in a session of its own
        parent.wait()
        assert {p.pid for p in marked(mark, time.time() - 60)} == set(pids) - {parent.pid}
        raise ZeroDivisionError
    parent.stdout.close()
    assert not any(map(alive, pids))


def test_marks_nest():
    with gone_afterwards():
        outer = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
        with gone_afterwards():
            inner = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
        assert not alive(inner.pid) and alive(outer.pid)
        for run in (outer, inner): run.stdin.close()
    assert not alive(outer.pid)


if os.name == 'posix':
    def test_ctrl_c_is_heard_though_we_ignore_it():
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with gone_afterwards():
                code = 'print(1, flush=True); import time; time.sleep(600)'
                with default_sigint():
                    run = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                assert run.stdout.readline() == b'1\n'
                run.send_signal(signal.SIGINT)
                _, err = run.communicate(timeout=60)
                assert run.returncode != 0 and b'KeyboardInterrupt' in err
        finally: signal.signal(signal.SIGINT, before)
