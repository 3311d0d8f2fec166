"Processes of the tests: whatever is started is gone when its test ends, also when it fails, and hears Ctrl-C."
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import uuid4

import psutil

MARK = 'SCCLM_TEST_MARK'


def environment(p:psutil.Process)->dict[str, str]:
    "Its environment; a program that has just been started shows none for a moment, the kernel's own threads never do."
    for _ in range(50):
        found = p.environ()
        if found or 2 in (p.pid, p.ppid()) or time.time() - p.create_time() > 10: break
        time.sleep(.01)
    return found


def marked(
    mark:str, # from `gone_afterwards`
    since:float=0., # seconds of the clock: older processes are left alone, their environment is not looked at
)->list[psutil.Process]:
    "Living processes, this one left out, whose environment carries the mark."
    found = []
    for p in psutil.process_iter():
        with suppress(psutil.Error, OSError): # gone, a zombie, or somebody else's
            if p.pid == os.getpid() or p.create_time() < since: continue
            if environment(p).get(MARK) == mark: found.append(p)
    return found


def kill_marked(mark:str, since:float):
    "Kill them, and what they may have started meanwhile. Raises AssertionError if one does not go."
    for _ in range(20):
        found = marked(mark, since)
        if not found: return
        for p in found:
            with suppress(psutil.Error): p.kill()
        psutil.wait_procs(found, timeout=5)
    raise AssertionError(f'these processes do not go: {found}')


@contextmanager
def gone_afterwards()->Iterator[str]:
    """Kill at the end whatever was started inside, directly or not, in whatever session or process group:
    children inherit the mark in the environment."""
    since = time.time() - 5 # the system's boot time, from which ages are counted, is a little vague
    before = os.environ.get(MARK)
    mark = os.environ[MARK] = uuid4().hex
    try: yield mark
    finally:
        if before is None: del os.environ[MARK]
        else: os.environ[MARK] = before
        kill_marked(mark, since)


@contextmanager
def default_sigint()->Iterator[None]:
    """Programs started inside hear Ctrl-C even if this one was started with SIGINT ignored (`nohup ... &` in a script):
    a program inherits an ignored signal, but not a handler."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try: yield
    finally: signal.signal(signal.SIGINT, before)
