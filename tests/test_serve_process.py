"`scclm serve` as a process: what it prints, how it ends, a user's mistakes."
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import psutil
import pytest
from chat_toys import CHARS, char_tok, save_toy, toy_model

from scclm.chat import ChatBot, Decoding
from scclm.cli import main
from scclm.export import ExportCfg, export
from scclm.serve import ServeCfg, make_app, place_of

SCCLM = [sys.executable, '-c', 'import sys; from scclm.cli import main; sys.exit(main())', 'serve']


@pytest.fixture(scope='module')
def endless(tmp_path_factory):
    "A model that goes on until it is stopped."
    tok = char_tok(CHARS)
    return save_toy(tmp_path_factory.mktemp('endless')/'model', tok, toy_model(len(tok), seed=23, endless=True))

def started(command, **env):
    "A process, as soon as it says where it listens: process, lines printed, port."
    env = {k: v for k, v in os.environ.items() if k != 'SCCLM_API_KEY'} | dict(OMP_NUM_THREADS='1') | env
    run = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = []
    while not any('chat page' in line for line in lines):
        lines.append(run.stdout.readline())
        assert lines[-1], run.stderr.read()
    return run, lines, int(re.search(r'127\.0\.0\.1:(\d+)', ''.join(lines))[1])

class Reader(threading.Thread):
    "A client that reads a stream to its end."
    def __init__(self, port, key):
        super().__init__(daemon=True)
        self.url, self.key, self.lines, self.begun = f'http://127.0.0.1:{port}/api/chat', key, [], threading.Event()
        self.start()

    def run(self):
        "Ask, then read on."
        headers = dict(Authorization=f'Bearer {self.key}')
        with httpx.stream('POST', self.url, headers=headers, json=dict(input_txt='你好', stream=True), timeout=120) as r:
            for line in r.iter_lines():
                self.lines.append(line)
                self.begun.set()

if os.name == 'posix':
    def test_sigterm_lets_accepted_answers_finish(endless):
        "The random key is printed once; newcomers hear 503; the running answer comes to its end; exit code 0."
        options = ['--model', str(endless), '--port', '0', '--max-new-tok', '400', '--loop-copies', '0',
                   '--drain-s', '120']
        run, lines, port = started([*SCCLM, *options])
        key = re.search('/#key=(\\S+) ', lines[-1])[1]
        assert len(key) >= 32 and ''.join(lines).count(key) == 1
        reader = Reader(port, key)
        assert reader.begun.wait(60)
        run.send_signal(signal.SIGTERM)
        while httpx.get(f'http://127.0.0.1:{port}/healthz').status_code == 200: time.sleep(.01)
        said = httpx.post(f'http://127.0.0.1:{port}/v1/chat/completions', json={})
        assert said.status_code == 503 and 'stopping' in said.json()['error']['message'] and said.headers['retry-after']
        out, err = run.communicate(timeout=90)
        reader.join(30)
        assert run.returncode == 0 and reader.lines[-2] == 'data: [DONE]'
        assert len([line for line in reader.lines if line]) == 401 and key not in out + err
        assert '/api/chat 200: ' in err and '你好' not in err

OURS = """
from scclm.serve import ServeCfg, make_app
def app(): return make_app(ServeCfg(model='model', max_new_tok=300, loop_copies=0))
"""
UVICORN = [sys.executable, '-m', 'uvicorn', 'ours:app', '--factory', '--workers', '2', '--port', '0', '--http',
    'scclm.serve:Protocol', '--no-access-log', '--timeout-graceful-shutdown', '60',
    '--timeout-worker-healthcheck', '120']

@pytest.fixture
def workers(endless):
    "The appendix's `uvicorn --workers 2`: the process, the pids of its workers, its port, the lines it printed."
    (endless.parent/'ours.py').write_text(OURS, encoding='utf-8')
    env = os.environ | dict(OMP_NUM_THREADS='1', SCCLM_API_KEY='one-key-for-all')
    run = subprocess.Popen(UVICORN, env=env, cwd=endless.parent, stderr=subprocess.PIPE, text=True)
    lines = []
    try:
        while sum('startup complete' in line for line in lines) < 2:
            lines.append(run.stderr.readline())
            assert lines[-1] and len(lines) < 100, lines # the supervisor starts a failing worker again and again
        pids = [int(pid) for pid in re.findall(r'Started server process \[(\d+)\]', ''.join(lines))]
        yield run, pids, int(re.search(r'127\.0\.0\.1:(\d+)', ''.join(lines))[1]), lines
    finally:
        for process in (*psutil.Process(run.pid).children(), run) if run.poll() is None else (): process.kill()

if os.name == 'posix':
    def test_two_workers_answer_alike_and_stop_in_order(endless, workers):
        "One key; each answers as ChatBot does while the other is held; SIGTERM lets a running answer finish, exit 0."
        run, pids, port, _ = workers
        asked = ['你好', '天地玄黄', '秋收冬藏？']
        bot = ChatBot.from_dir(endless, decoding=Decoding(max_new_tok=300, loop_copies=0))
        want = bot.answer(asked)
        assert len(set(pids)) == 2 and len(set(want)) == 3
        url, key = f'http://127.0.0.1:{port}/api/chat', dict(Authorization='Bearer one-key-for-all')
        for held in pids:
            os.kill(held, signal.SIGSTOP)
            said = [httpx.post(url, json=dict(input_txt=q), headers=key, timeout=60) for q in asked]
            refused = httpx.post(url, json=dict(input_txt='你好'), headers=dict(Authorization='Bearer another'))
            os.kill(held, signal.SIGCONT)
            assert [r.json()['response'] for r in said] == want and refused.status_code == 401
        reader = Reader(port, 'one-key-for-all')
        assert reader.begun.wait(60)
        run.send_signal(signal.SIGTERM)
        out = run.communicate(timeout=90)[1]
        reader.join(30)
        assert run.returncode == 0 and reader.lines[-2] == 'data: [DONE]' and 'Traceback' not in out
        told = [json.loads(line[6:])['response'] for line in reader.lines if line.startswith('data: {')]
        assert ''.join(told) == want[0]
        assert not any(psutil.pid_exists(pid) for pid in pids)
        with pytest.raises(httpx.ConnectError): httpx.get(f'http://127.0.0.1:{port}/healthz')

    def test_workers_without_a_key_do_not_start(endless):
        "Each would make its own: the application refuses, and uvicorn ends."
        (endless.parent/'ours.py').write_text(OURS, encoding='utf-8')
        env = {k: v for k, v in os.environ.items() if k != 'SCCLM_API_KEY'}
        command = [*UVICORN[:5], *UVICORN[7:]] # one worker: the supervisor of several starts them again and again
        run = subprocess.run(command, env=env, cwd=endless.parent, capture_output=True, text=True, timeout=120)
        assert run.returncode and 'there is no key: expected SCCLM_API_KEY or a key file' in run.stderr

# A user's mistakes

@pytest.mark.parametrize('options, words', [
    (['--port', '70000'], 'port=70000: expected 0 to 65535'), (['--answer-s', '0'], 'answer_s=0.0: expected >= 0.1'),
    (['--key-file', 'nowhere'], 'nowhere'), (['--model', 'nowhere', '--port', '0'], 'nowhere'),
    (['--host', '203.0.113.7', '--model', 'm'], 'cannot listen on 203.0.113.7:8812'),
    (['--max-rows', '0'], 'max_rows=0'), (['--prefill-tok', '0'], 'prefill_tok=0'),
    (['--max-beside', '0'], 'max_beside=0: expected >= 1'), (['--drain-s', 'nan'], 'drain_s=nan: expected >= 0'),
    (['--pause-ms', '-1'], 'pause_ms=-1.0: expected >= 0'),
    (['--max-new-tok', '30000'], 'batch_tok=24576: expected >= 30512'),
    (['--strategy', 'contrastive', '--top-k', '100'], 'batch_tok=24576: expected >= 76800, the rows of'),
    (['--strategy', 'beam', '--num-beams', '40'], 'expected >= 30720, the rows of strategy=beam (40) x (max_')])
def test_mistakes_are_one_sentence(options, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('SCCLM_API_KEY', raising=False)
    try: code = main(['serve', *options])
    except SystemExit as e: code = e.code
    err = capsys.readouterr().err
    assert code == 2 and words in re.sub(r'\s+', ' ', err) and 'Traceback' not in err

def test_a_taken_port(capsys, tmp_path):
    with socket.create_server(('127.0.0.1', 0)) as s:
        port = s.getsockname()[1]
        assert main(['serve', '--model', str(tmp_path), '--port', str(port)]) == 2
    assert f'cannot listen on 127.0.0.1:{port}' in capsys.readouterr().err

@pytest.mark.parametrize('to', ['ct2', 'onnx'])
def test_a_model_that_cannot_do_what_is_wanted_does_not_start(endless, tmp_path, capsys, monkeypatch, to):
    "An exported model gives scores and no states: it has neither beams nor contrastive search."
    folder = export(ExportCfg(str(endless), to, str(tmp_path/to), compare=0))
    why = 'an exported model gives scores and nothing else: expected strategy greedy or sampling'
    for strategy in ('beam', 'contrastive'):
        assert main(['serve', '--model', str(folder), '--port', '0', '--strategy', strategy]) == 2
        err = re.sub(r'\s+', ' ', capsys.readouterr().err)
        assert why in err and err.startswith('scclm serve: ') and 'chat page' not in err and 'Traceback' not in err
        with pytest.raises(ValueError, match=why): make_app(ServeCfg(model=str(folder), strategy=strategy), ('key',))

@pytest.mark.parametrize('to', ['', 'ct2', 'onnx'])
def test_the_start_says_that_an_export_answers_two_at_a_time(endless, tmp_path, capsys, monkeypatch, to):
    "Its answers do not join the batch: long ones hold short ones."
    class Nobody:
        def run(self, sockets): sockets[0].close()
    monkeypatch.setattr('scclm.serve.make_server', lambda app: Nobody())
    folder = export(ExportCfg(str(endless), to, str(tmp_path/to), compare=0)) if to else endless
    assert main(['serve', '--model', str(folder), '--port', '0', '--max-beside', '3']) == 0
    told = capsys.readouterr().out
    assert ('an exported model: 3 answers at a time (--max-beside), others wait\n' in told) == bool(to)
    assert 'chat page: ' in told

def has_ipv6():
    "Whether this machine can listen on its own address of IPv6."
    try: socket.create_server(('::1', 0), family=socket.AF_INET6).close()
    except OSError: return False
    return True

@pytest.mark.skipif(not has_ipv6(), reason='no IPv6 here')
def test_the_printed_address_of_ipv6_can_be_opened(endless, capsys):
    command = [*SCCLM, '--model', str(endless), '--port', '0', '--host', '::1']
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        lines = [run.stdout.readline(), run.stdout.readline()]
        urls = [httpx.URL(url) for line in lines for url in re.findall(r'http://[^\s,;]+', line)]
        assert [url.host for url in urls] == ['::1']*2
        assert httpx.get(urls[0].join('/healthz')).json() == dict(status='ok')
        assert 'SCCLM' in httpx.get(urls[1]).text
        assert main(['serve', '--model', str(endless), '--port', str(urls[0].port), '--host', '::1']) == 2
        assert f'cannot listen on [::1]:{urls[0].port}' in capsys.readouterr().err
    finally:
        run.terminate()
        run.communicate(timeout=60)

@pytest.mark.parametrize('host', ['127.0.0.1', 'localhost', '::', '2001:db8::7', 'example.org'])
def test_a_place_is_read_back_as_it_was_meant(host):
    url = httpx.URL(f'http://{place_of(host, 8812)}')
    assert (url.host, url.port) == (host, 8812)

def test_without_the_extra(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, 'scclm.serve', raising=False)
    monkeypatch.setitem(sys.modules, 'uvicorn', None)
    assert main(['serve']) == 2 and "expected pip install 'scclm[serve]'" in capsys.readouterr().err
