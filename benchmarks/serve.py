"""The server under load: `scclm serve` in a process of its own, clients in this one, over the loopback address.

Every client asks held-out questions one after another, streaming, greedy; a table by number of clients: answers and
tokens a second, time to the first piece and to the last, p50, p95, p99. Baselines: one client on the same server, and
as many clients on a server whose engine takes no rest between steps, in alternation.
`--soak MINUTES --clients N`: honest clients among hostile ones; exits 0 only if no honest client saw an error and the
server's resident memory stayed within 5 % of what it was after the first minute."""
import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple

import psutil
from report import row, write

from scclm.chat import ChatBot, find_model
from scclm.serve import ServeCfg
from scclm.stage import heldout_sample

KEY = 'key-of-the-benchmark'
HONEST = [('/api/chat', True), ('/api/chat', False), ('/v1/chat/completions', True), ('/v1/chat/completions', False)]


class Answer(NamedTuple):
    "What one client saw of one answer."
    first_s:float # seconds to the first piece
    seconds:float # to the last
    tokens:int # pieces of text


class Served(NamedTuple):
    "A running server."
    process:subprocess.Popen
    port:int


def start(model:str, *options:str)->Served:
    "Start `scclm serve` and wait until it listens."
    command = [sys.executable, '-m', 'scclm.cli', 'serve', '--model', model, '--port', '0', *options]
    env = os.environ | dict(SCCLM_API_KEY=KEY)
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    first = process.stdout.readline()
    port = re.search(r':(\d+),', first)
    assert port, f'the server did not start: {first!r}'
    return Served(process, int(port[1]))


def stop(served:Served, seconds:float=60)->int:
    "End it in order; its exit code. One that has not ended after some seconds is killed: -9."
    served.process.terminate()
    try: return served.process.wait(seconds)
    except subprocess.TimeoutExpired: served.process.kill()
    return served.process.wait()


def request(path:str, body:bytes, key:str=KEY)->bytes:
    "A request, as bytes: a client that costs little itself."
    return (f'POST {path} HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n'
        f'Content-Length: {len(body)}\r\nConnection: close\r\n\r\n').encode() + body


def question_body(path:str, question:str, stream:bool)->bytes:
    "What to ask in the words of a path."
    if path == '/api/chat': ask = dict(input_txt=question, stream=stream)
    else: ask = dict(model='scclm', messages=[dict(role='user', content=question)], stream=stream)
    return json.dumps(ask).encode()


async def ask(port:int, question:str)->Answer:
    "One streamed answer. Raises AssertionError if it is not whole."
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection('127.0.0.1', port)
    writer.write(request('/api/chat', question_body('/api/chat', question, True)))
    first, pieces, seen = 0., 0, b''
    while data := await reader.read(65_536):
        if not first and b'data: ' in data: first = time.perf_counter() - began
        pieces += data.count(b'data: {')
        seen = (seen + data)[-200:]
    writer.close()
    assert b'[DONE]' in seen, seen
    return Answer(first, time.perf_counter() - began, pieces)


async def client(port:int, questions:list[str], until:float, out:list[Answer]):
    "Ask one question after another until the time is over."
    for question in questions:
        if time.perf_counter() >= until: return
        out.append(await ask(port, question))


async def load(port:int, n:int, questions:list[str], seconds:float)->list[Answer]:
    "Clients that ask at the same time; each has its own order of the questions."
    out, until = [], time.perf_counter() + seconds
    orders = [random.Random(i).sample(questions*20, len(questions)*20) for i in range(n)]
    await asyncio.gather(*(client(port, order, until, out) for order in orders))
    return out


class Load(NamedTuple):
    "What some clients got together."
    tokens_per_s:float
    answers_per_s:float
    first:list[float] # seconds to the first piece: p50, p95, p99
    whole:list[float] # to the last


def percentiles(values:list[float])->list[float]:
    "p50, p95, p99."
    cuts = statistics.quantiles(values, n=100, method='inclusive')
    return [cuts[49], cuts[94], cuts[98]]


def measure(port:int, n:int, questions:list[str], seconds:float)->Load:
    "Load the server with n clients for some seconds."
    began = time.perf_counter()
    answers = asyncio.run(load(port, n, questions, seconds))
    took = time.perf_counter() - began
    return Load(sum(a.tokens for a in answers)/took, len(answers)/took, percentiles([a.first_s for a in answers]),
        percentiles([a.seconds for a in answers]))


def table_line(n:int, m:Load)->str:
    "One line of the table."
    times = '  '.join(f'{1000*x:8.1f}' for x in [*m.first, *m.whole])
    return f'{n:>7} {m.answers_per_s:>10.1f} {m.tokens_per_s:>10.0f}  {times}'


def compared(
    n:int, # clients
    ours:list[Load], # run by run
    other:list[Load], # the same of the baseline
    baseline:str, # its name
    how:str='', # what is told of ours
)->list[dict]: # rows of the result
    "Tokens a second, and seconds to the first piece."
    speed = [[m.tokens_per_s for m in loads] for loads in (ours, other)]
    first = [[m.first[0] for m in loads] for loads in (ours, other)]
    return [row(f'{n} clients{how}', *speed, baseline, 'tokens/s'),
            row(f'first token{how}', *first, baseline, 's', False)]


def throughput(args:argparse.Namespace, questions:list[str]):
    "The table, then the rows: many, one, and many without a rest, in alternation."
    served, other = start(args.model), start(args.model, '--pause-ms', '0')
    try:
        for one in (served, other): measure(one.port, 4, questions, 2)
        by_n = {}
        print('clients  answers/s   tokens/s     first piece p50, p95, p99 (ms)    answer p50, p95, p99 (ms)')
        for n in args.table:
            by_n[n] = measure(served.port, n, questions, args.seconds)
            print(table_line(n, by_n[n]), flush=True)
        alone, many, restless = [], [], []
        for _ in range(args.runs):
            alone.append(measure(served.port, 1, questions, args.seconds))
            many.append(measure(served.port, args.clients, questions, args.seconds))
            restless.append(measure(other.port, args.clients, questions, args.seconds))
    finally: assert stop(served) == stop(other) == 0
    rows = compared(args.clients, many, alone, 'one client')
    rows += compared(args.clients, many, restless, 'without a rest', ', rest')
    config = dict(model=args.name, seconds=args.seconds, questions=len(questions), pause_ms=ServeCfg.pause_ms,
        table={n: m._asdict() for n, m in by_n.items()})
    write('serve', config, rows, merge=True)


# Hostile clients: each does one rude thing, then goes away.

async def talk(port:int, *parts:bytes, pause:float=0., read:int=65_536)->bytes:
    "Send some parts, with pauses; what the server says, or b'' if it hangs up."
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection('127.0.0.1', port), 20)
        try:
            for part in parts:
                writer.write(part)
                await asyncio.wait_for(writer.drain(), 20)
                await asyncio.sleep(pause)
            return await asyncio.wait_for(reader.read(read), 20) if read else b''
        finally: writer.transport.abort()
    except (OSError, asyncio.TimeoutError): return b''


def rude_talks(port:int, question:str)->list[Callable[[], Awaitable[bytes]]]:
    "The rude things."
    good = question_body('/api/chat', question, True)
    whole = request('/api/chat', good)
    long = b'{"input_txt": "' + b'x'*10_000_000 + b'"}'
    bodies = [b'null', b'{"input_txt": null}', b'{"input_txt": "\\ud800"}', b'{"input_txt": NaN}', b'\x00'*100,
              b'['*50_000,
              b'{"input_txt": ' + b'9'*5000 + b'}', b'', b'{}', b'\xff\xfe']
    paths = ('/api/chat', '/v1/chat/completions')
    said = [partial(talk, port, request(path, body)) for body in bodies for path in paths]
    return [*said,
        lambda: talk(port, whole[:-20], pause=2., read=0), # half a body, then gone
        lambda: talk(port, *(bytes([x]) for x in whole), pause=.05), # a byte at a time
        lambda: talk(port, request('/api/chat', long)), # 10 MB
        lambda: talk(port, request('/api/chat', good, 'wrong')), # another key
        lambda: talk(port, whole, read=0), # gone at once
        lambda: talk(port, whole, read=300), # gone after some pieces
        lambda: talk(port, whole, pause=5., read=0), # does not read
        lambda: talk(port, b'GET / HTTP/1.1\r\n' + b'X: y\r\n'*5000), # headers without end
        lambda: talk(port, os.urandom(2000)), # no HTTP
        lambda: talk(port, pause=3.)] # says nothing


class Tally:
    "What happened in a soak."
    def __init__(self):
        "Nothing yet."
        self.good = Counter() # honest answers by kind
        self.bad = [] # what honest clients saw that was none
        self.rude = Counter() # statuses that rude clients saw
        self.rss = [] # (seconds, bytes)


async def honest(port:int, truth:dict[str, str], until:float, tally:Tally, seed:int):
    "Ask in every way until the time is over; each answer is compared with ChatBot's own."
    rng, questions = random.Random(seed), list(truth)
    while time.monotonic() < until:
        path, stream = rng.choice(HONEST)
        question = rng.choice(questions)
        try: said = await asyncio.wait_for(talk_whole(port, request(path, question_body(path, question, stream))), 90)
        except (OSError, asyncio.TimeoutError) as e: said = repr(e).encode()
        text = answer_text(said, path, stream)
        if text != truth[question]: tally.bad.append((path, stream, question, text, said[:200], said[-600:]))
        else: tally.good[path, stream] += 1


async def talk_whole(port:int, data:bytes)->bytes:
    "Send a request and read to the end."
    reader, writer = await asyncio.open_connection('127.0.0.1', port)
    writer.write(data)
    said = await reader.read()
    writer.close()
    return said


def answer_text(said:bytes, path:str, stream:bool)->str|None:
    "The answer in a response; None if it holds none, or half of one."
    head, _, body = said.partition(b'\r\n\r\n')
    if not head.startswith(b'HTTP/1.1 200') or stream and b'data: [DONE]' not in body: return None
    if not stream and path == '/api/chat': return json.loads(body)['response']
    if not stream: return json.loads(body)['choices'][0]['message']['content']
    events = [json.loads(e) for e in re.findall(rb'data: ({.*?})\n\n', body)]
    if path == '/api/chat': return ''.join(e['response'] for e in events)
    return ''.join(e['choices'][0]['delta'].get('content', '') for e in events)


async def rude(port:int, question:str, until:float, tally:Tally, seed:int):
    "One rude thing after another."
    talks, rng = rude_talks(port, question), random.Random(seed)
    while time.monotonic() < until:
        said = await rng.choice(talks)()
        tally.rude[said[9:12].decode(errors='replace') or 'hung up'] += 1


async def watch(pid:int, until:float, tally:Tally):
    "Resident memory, every second."
    process, began = psutil.Process(pid), time.monotonic()
    while time.monotonic() < until:
        tally.rss.append((time.monotonic() - began, process.memory_info().rss))
        await asyncio.sleep(1)


async def soak_clients(served:Served, args:argparse.Namespace, truth:dict[str, str])->Tally:
    "Three honest clients for every hostile one, all at once."
    until, tally = time.monotonic() + 60*args.soak, Tally()
    n_rude = args.clients//4
    await asyncio.gather(watch(served.process.pid, until, tally),
        *(honest(served.port, truth, until, tally, i) for i in range(args.clients - n_rude)),
        *(rude(served.port, next(iter(truth)), until, tally, i) for i in range(n_rude)))
    return tally


def soak(args:argparse.Namespace, questions:list[str]):
    "Run it and say how it went; exits 1 for an error that an honest client saw, or for memory that grew."
    truth = dict(zip(questions, ChatBot.from_dir(args.model).answer(questions), strict=True))
    served = start(args.model)
    try: tally = asyncio.run(soak_clients(served, args, truth))
    finally: code = stop(served, 300)
    settled = [rss for seconds, rss in tally.rss if seconds >= min(60, 30*args.soak)]
    start_mb, end_mb = (statistics.median(part)/2**20 for part in (settled[:10], settled[-10:]))
    good = sum(tally.good.values())
    print(f'{good} honest answers {dict(tally.good)}, {good/args.soak/60:.1f} a second, {len(tally.bad)} errors')
    print(f'rude: {dict(tally.rude)}')
    print(f'resident: {start_mb:.1f} MB after the first minute, {end_mb:.1f} MB at the end, most '
        f'{max(settled)/2**20:.1f} MB; exit code {code}')
    for said in tally.bad[:5]: print('ERROR', said)
    config = dict(soak=dict(minutes=args.soak, clients=args.clients, honest=good,
        errors=len(tally.bad), rude=dict(tally.rude), start_mb=start_mb, end_mb=end_mb, most_mb=max(settled)/2**20))
    write('serve', config, [], merge=True)
    sys.exit(bool(tally.bad) or end_mb > 1.05*start_mb or code != 0)


def options()->argparse.Namespace:
    "The command line."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--model', default=None, help='model folder; default: what 07, 06 or 05 made last')
    p.add_argument('--clients', type=int, default=None, help='default: 32; with --soak 64')
    p.add_argument('--table', type=int, nargs='*', default=[1, 2, 4, 8, 16, 32, 64], help='numbers of clients')
    p.add_argument('--seconds', type=float, default=5., help='of each measurement')
    p.add_argument('--runs', type=int, default=3)
    p.add_argument('--soak', type=float, default=0., help='minutes; 0: measure instead')
    args, _ = p.parse_known_args()
    args.clients = args.clients or (64 if args.soak else 32)
    folder = find_model(args.model)
    args.model, args.name = str(folder), '/'.join(folder.parts[-3:])
    return args


def main():
    "Measure, or soak."
    args = options()
    questions = [prompt for prompt, _ in heldout_sample(200)]
    if args.soak: soak(args, questions)
    else: throughput(args, questions)


if __name__ == '__main__': main()
