"What the trainer's tests share: a toy world, and processes that end with the test that started them."
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from processes import MARK, default_sigint, gone_afterwards

from scclm.dataset import PairStream
from scclm.model import build_model, model_config
from scclm.trainer import TrainCfg, named_weights

ROOT = Path(__file__).resolve().parents[1]
CFG = TrainCfg(steps=12, accum=2, lr=1e-3, precision='fp32', log_every=1, save_every=4, seed=1)
SIZES = dict(d_model=32, num_heads=2, d_ff=64, dropout_rate=0.)

def load_benchmark(name:str):
    "A script of benchmarks/ as a module; scripts import their neighbour `report` by its bare name."
    folder = ROOT/'benchmarks'
    spec = importlib.util.spec_from_file_location(f'benchmark_{name}', folder/f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))
    try: spec.loader.exec_module(module)
    finally: sys.path.remove(str(folder))
    return module

kill = load_benchmark('kill')

def model(tok, **kw):
    "Always the same small model."
    return build_model(model_config('tiny', len(tok), **(SIZES | kw)), seed=1)

def stream(home:Path, tok, **kw)->PairStream:
    "Always the same batches."
    files = [home/'data'/'train.parquet']
    return PairStream(files, tok, budget_tok=256, max_len=64, seed=1, index_dir=home/'lengths', **kw)

def same(a, b)->bool:
    "Whether two models are equal, bit for bit."
    return all(torch.equal(x, y) for x, y in zip(named_weights(a).values(), named_weights(b).values()))

def make_course_runs(home:Path, runs:Path)->Path:
    "A runs folder with data and tokenizer, as the command line expects it."
    tiny = runs/'tiny'
    for d in ('data', 'tokenizer'): shutil.copytree(home/d, tiny/d)
    shutil.copy(home/'data'/'valid.parquet', tiny/'data'/'test.parquet')
    return runs

# ---- processes

def at_step(n:int, signum:int):
    "A callback that sends a signal to its own process after step `n`."
    def callback(run):
        if run.step == n: signal.raise_signal(signum)
    return callback

@contextmanager
def started(cmd:list, env:dict=os.environ, **kw)->Iterator[subprocess.Popen]:
    "A process of its own session that hears Ctrl-C, output through pipes; gone, with all it started, after the block."
    with gone_afterwards() as mark:
        env = dict(env, OMP_NUM_THREADS='1', PYTHONUTF8='1') | {MARK: mark}
        with default_sigint():
            p = subprocess.Popen(cmd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                 start_new_session=True, **kw)
        with p: # closes the pipes, waits
            try: yield p
            finally: p.kill()

def finished(cmd:list, env:dict=os.environ, timeout:float=240, **kw)->subprocess.CompletedProcess:
    "Run a command to its end."
    with started(cmd, env, **kw) as p:
        out, err = p.communicate(timeout=timeout)
        return subprocess.CompletedProcess(cmd, p.returncode, out, err)

def scclm_command(runs:Path, *args:str)->dict:
    "Keyword arguments of `started` and `finished` for the command line."
    env = {**os.environ, 'SCCLM_RUNS': str(runs), 'SCCLM_SCALE': 'tiny'}
    return dict(cmd=[sys.executable, '-m', 'scclm.cli', *args], env=env)
