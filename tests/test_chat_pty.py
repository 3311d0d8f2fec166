"The chat in a real terminal, with keys typed into it (POSIX only: a pseudo-terminal)."
import codecs
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from contextlib import contextmanager, suppress

import pytest
from chat_toys import CHARS, char_tok, chat_command, save_toy, toy_model
from processes import default_sigint, gone_afterwards

from scclm.chat import ChatBot, Decoding


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    tok = char_tok(CHARS)
    return save_toy(tmp_path_factory.mktemp('chat')/'model', tok, toy_model(len(tok), endless=True))


class Pty:
    "A terminal with a program in it; Ctrl-C is typed, as a person would. `close` ends both."
    def __init__(self, cmd):
        env = dict(os.environ, TERM='xterm', PYTHONIOENCODING='utf-8')
        with default_sigint():
            self.pid, self.fd = pty.fork()
            if self.pid == 0: self.become(cmd, env)
        self.code = None # exit code, once it has ended
        self.seen = ''
        self.utf8 = codecs.getincrementaldecoder('utf-8')('replace')
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))

    @staticmethod
    def become(cmd, env):
        "In the child: be the program, or nothing at all; never a second pytest."
        try: os.execvpe(cmd[0], cmd, env)
        finally: os._exit(127)

    def until(self, text, seconds=60):
        end = time.monotonic() + seconds
        while text not in self.seen:
            if time.monotonic() > end: raise AssertionError(f"{text!r} not seen in {self.seen[-2000:]!r}")
            if not select.select([self.fd], [], [], .2)[0]: continue
            try: new = os.read(self.fd, 65536)
            except OSError: raise AssertionError(f"ended before {text!r}: {self.seen[-2000:]!r}") from None
            if b'\x1b[6n' in new: os.write(self.fd, b'\x1b[1;1R') # where is the cursor?
            self.seen += self.utf8.decode(new)
        head, self.seen = self.seen.split(text, 1)
        return head

    def type(self, text): os.write(self.fd, text.encode())

    def end(self):
        for _ in range(300):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
                return self.code
            if select.select([self.fd], [], [], .1)[0]:
                try: os.read(self.fd, 65536)
                except OSError: time.sleep(.1)
        raise AssertionError(f'did not end: {self.seen[-2000:]!r}')

    def close(self):
        "End the program if it still runs, and its whole group; give the terminal back."
        if self.code is None:
            with suppress(ProcessLookupError): os.killpg(self.pid, signal.SIGKILL) # pty.fork made it a leader
            os.waitpid(self.pid, 0)
        os.close(self.fd)


@contextmanager
def terminals():
    "Gives what opens a terminal; they and what runs in them are gone afterwards."
    opened = []
    def start(cmd):
        opened.append(Pty(cmd))
        return opened[-1]
    with gone_afterwards():
        try: yield start
        finally:
            for term in opened: term.close()

@pytest.fixture
def terminal():
    with terminals() as start: yield start


@pytest.mark.parametrize('strategy,leave', [('greedy', 'exit\r'), ('beam', '\x04')]) # Ctrl-D
def test_terminal_ctrl_c(folder, terminal, strategy, leave):
    knobs = dict(max_new_tok=50_000, strategy=strategy, repetition_penalty=1.2, loop_copies=0)
    term = terminal(chat_command(model=folder, **knobs))
    term.until('你>', 90)
    term.type('你好\r')
    term.until('你好')
    start, = ChatBot.from_dir(folder).answer(['你好'], Decoding(max_new_tok=8, repetition_penalty=1.2))
    if strategy == 'greedy': term.until(start, 30)
    else:
        term.until('\x1b[?2004l') # the prompt has ended; beam search shows nothing before its end
        time.sleep(1)
    term.type('\x03') # during an answer: the answer ends
    term.until('（已停止）', 15)
    term.until('你>')
    term.type('\x03') # at the prompt: how to leave
    term.until('要退出请输入 exit')
    term.until('你>')
    term.type('cls\r')
    term.until('\x1b[2J')
    term.until('你>')
    term.type(leave)
    assert term.end() == 0


STUBBORN = """
import signal
for s in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM): signal.signal(s, signal.SIG_IGN)
print('here', flush=True)
signal.pause()
"""

def test_a_failure_leaves_neither_program_nor_terminal():
    with pytest.raises(ZeroDivisionError), terminals() as start:
        term = start([sys.executable, '-c', STUBBORN])
        term.until('here')
        raise ZeroDivisionError
    with pytest.raises(ProcessLookupError): os.kill(term.pid, 0)
    with pytest.raises(OSError): os.fstat(term.fd)
