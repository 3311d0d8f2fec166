"""A busy neighbour: training and decoding alone and beside a busy process, by how idle threads wait.

    python benchmarks/busy.py [--rounds 3] [--steps 120] [--questions 120]

Every session is a fresh process: `tiny`, untrained, on the course's rows; a training of a few steps, or short
answers to the questions of the validation file. The neighbour is a Python loop without end, pinned nowhere.
`chosen` is what `choose_wait` takes when the session starts, as it is alone or beside. Alternating, medians. The
first rows of a job are asked something: alone at least 0.97 of the default wait, beside a busy process at least
0.45 of alone. The others show ways that do not look: how much of their own speed alone is left beside a busy
process.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
from report import row, write

from scclm.busy import SETTINGS, choose_wait
from scclm.chat import ChatBot, Decoding
from scclm.model import build_model, model_config
from scclm.pretrain import pretrain_cfg
from scclm.runs import require, run_path
from scclm.stage import stage_stream
from scclm.tokenizer import load_tokenizer
from scclm.trainer import fit

WAYS = { # name -> variables; None: `choose_wait`
    'default wait': {},
    'chosen': None,
    'GOMP_SPINCOUNT=5000': dict(GOMP_SPINCOUNT='5000'),
    'OMP_WAIT_POLICY=PASSIVE': dict(OMP_WAIT_POLICY='PASSIVE'),
    'one thread': dict(OMP_NUM_THREADS='1')}
ASKED = {'alone': .97, 'beside a busy process': .45} # least ratio of the rows of `chosen`


def training(steps:int)->float:
    "Real tokens per second of a short training."
    tok = load_tokenizer()
    cfg = replace(pretrain_cfg('tiny'), steps=steps, eval_every=0, save_every=steps, precision='fp32')
    stream = stage_stream([require(run_path('data', 'train.parquet'), 'clean')], tok, cfg)
    with tempfile.TemporaryDirectory() as out:
        run = fit(build_model(model_config('tiny', len(tok)), seed=0), stream, cfg, Path(out), progress=False)
    return run.real_tok/run.seconds


def decoding(questions:int)->float:
    "Answers per second of an untrained model, all questions at once; median of three, after a warm-up."
    tok = load_tokenizer()
    bot = ChatBot(build_model(model_config('tiny', len(tok)), seed=0), tok, Decoding(max_new_tok=16))
    texts = pq.read_table(require(run_path('data', 'valid.parquet'), 'clean')).column('prompt').to_pylist()[:questions]
    bot.answer(texts[:8])
    times = []
    for _ in range(3):
        began = time.perf_counter()
        bot.answer(texts)
        times.append(time.perf_counter() - began)
    return len(texts)/statistics.median(times)


class Job(NamedTuple):
    "What is timed."
    run:Callable[[int], float] # amount -> speed
    unit:str # of the speed


JOBS = dict(training=Job(training, 'real tok/s'), decoding=Job(decoding, 'answers/s'))


class Session(NamedTuple):
    "What one process does."
    job:str # of `JOBS`
    way:str # of `WAYS`
    beside:bool # a busy process


@contextmanager
def busy_process()->Iterator[None]:
    "A process that keeps one core busy, while inside."
    p = subprocess.Popen([sys.executable, '-c', 'print(flush=True)\nwhile True: pass'], stdout=subprocess.PIPE)
    p.stdout.readline()
    try: yield
    finally:
        p.kill()
        p.communicate()


def environment(way:str)->dict[str, str]:
    "This process's environment without settings of its own, and with those of the way; `chosen` looks now."
    env = {k: v for k, v in os.environ.items() if k not in (*SETTINGS, 'OMP_NUM_THREADS')}
    if WAYS[way] is None: choose_wait(env)
    else: env.update(WAYS[way])
    return env


def measure(s:Session, amount:int)->tuple[float, str]:
    "Speed of a session in a fresh process, and its OMP_WAIT_POLICY."
    with busy_process() if s.beside else nullcontext():
        env = environment(s.way)
        command = [sys.executable, __file__, '--session', s.job, '--amount', str(amount)]
        said = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
    speed = json.loads(said.splitlines()[-1])
    policy = env.get('OMP_WAIT_POLICY', 'default')
    print(f"{s.job}, {s.way}, {'beside' if s.beside else 'alone'}: {speed:,.1f} {JOBS[s.job].unit} ({policy})",
          flush=True)
    return speed, policy


def make_rows(speeds:dict[Session, list[float]])->list[dict]:
    "Of each job: the choice alone and beside a busy process, and every other way beside one."
    rows = []
    for job, (_, unit) in JOBS.items():
        chosen = speeds[Session(job, 'chosen', False)]
        rows.append(row(f'{job}, alone', chosen, speeds[Session(job, 'default wait', False)], 'default wait', unit))
        beside = speeds[Session(job, 'chosen', True)]
        rows.append(row(f'{job}, beside a busy process', beside, chosen, 'alone', unit))
        for way in (way for way in WAYS if way != 'chosen'):
            there, here = (speeds[Session(job, way, beside)] for beside in (True, False))
            rows.append(row(f'{job}, {way}, beside', there, here, 'alone', unit))
    return rows


def options()->argparse.Namespace:
    "The command line."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--steps', type=int, default=120, help='of a training')
    p.add_argument('--questions', type=int, default=120, help='answered by a decoding')
    p.add_argument('--session', choices=JOBS, help=argparse.SUPPRESS)
    p.add_argument('--amount', type=int, help=argparse.SUPPRESS)
    return p.parse_args()


def compare(args:argparse.Namespace)->list[dict]:
    "All rounds; rows of results/busy.json, which is written."
    amounts = dict(training=args.steps, decoding=args.questions)
    speeds, chosen = defaultdict(list), defaultdict(list)
    for _ in range(args.rounds):
        for s in (Session(job, way, beside) for job in JOBS for way in WAYS for beside in (False, True)):
            speed, policy = measure(s, amounts[s.job])
            speeds[s].append(speed)
            if s.way == 'chosen': chosen['beside' if s.beside else 'alone'].append(policy)
    config = dict(rounds=args.rounds, steps=args.steps, questions=args.questions, chosen=chosen)
    rows = make_rows(speeds)
    write('busy', config, rows)
    return rows


def main():
    "Compare, or be the fresh process of one session."
    args = options()
    if args.session:
        print(json.dumps(JOBS[args.session].run(args.amount)))
        return
    for r in compare(args):
        name = r['what'].split(', ', 1)[1]
        if name in ASKED: print(f"{r['what']}: {r['ratio']:.2f}, asked at least {ASKED[name]}")


if __name__ == '__main__': main()
