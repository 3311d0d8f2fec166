"The chat in a real terminal, with keys typed into it (POSIX only: a pseudo-terminal)."
import codecs, fcntl, os, pty, select, signal, struct, termios, time

import pytest
from chat_toys import CHARS, char_tok, chat_command, save_toy, toy_model

from scclm.chat import ChatBot, Decoding


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    tok = char_tok(CHARS)
    return save_toy(tmp_path_factory.mktemp('chat')/'model', tok, toy_model(len(tok), endless=True))


class Pty:
    "A terminal with a program in it; Ctrl-C is typed, as a person would."
    def __init__(self, cmd):
        pid, self.fd = pty.fork()
        if pid == 0: os.execvpe(cmd[0], cmd, dict(os.environ, TERM='xterm', PYTHONIOENCODING='utf-8'))
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))
        self.pid, self.seen, self.utf8 = pid, '', codecs.getincrementaldecoder('utf-8')('replace')

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
            if pid: return os.waitstatus_to_exitcode(status)
            if select.select([self.fd], [], [], .1)[0]:
                try: os.read(self.fd, 65536)
                except OSError: time.sleep(.1)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError('did not end')

@pytest.mark.parametrize('strategy,leave', [('greedy', 'exit\r'), ('beam', '\x04')]) # Ctrl-D
def test_terminal_ctrl_c(folder, strategy, leave):
    term = Pty(chat_command(model=folder, max_new_tok=50_000, strategy=strategy, repetition_penalty=1.2))
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
