"""Kill training runs at random instants and inside a save, resume them, compare every byte with an uninterrupted run.

    python benchmarks/kill.py --kills 1000

Five stages, each through the course's own function at toy size: pretrain, sft (frozen parts), dpo, lora, ie. A kill is
one of `WAYS` (SIGKILL, SIGTERM, SIGINT, a scheduler's SIGTERM with SIGKILL after it, an impatient SIGINT twice) at a
random instant, or SIGKILL at a point of `POINTS`, such as a half-written optimiser or between the rename and the
cleanup. Each killed run is resumed, killed again, and finally left to end. Compared are the last checkpoint (weights,
optimiser, state), the best weights, the log, the answers along the way, the figures, the model folder, the names of all
files, and the batches of every step, those of the steps that a kill undid too; wall-clock fields aside. A process that
had ended before the signal came is no kill. Exits 0 only if all are identical and every point was reached; the last
line is `N kills, N identical`. The parent imports everything once and forks, so that a kill costs a training run and
not an import (POSIX only)."""
import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

import scclm.model
import scclm.trainer as trainer
from scclm.dpo import dpo, dpo_cfg
from scclm.ie_finetune import ie, ie_cfg
from scclm.pretrain import pretrain, pretrain_cfg
from scclm.runlog import read_log
from scclm.sft import sft, sft_cfg
from scclm.stage import read_samples
from scclm.tokenizer import TokenizerCfg, train_tokenizer
from scclm.trainer import Run, checkpoints, newest_good

KILL = getattr(signal, 'SIGKILL', signal.SIGTERM) # Windows has none: there this file is only imported
WAYS = {'SIGKILL': [KILL], 'SIGTERM': [signal.SIGTERM], 'SIGINT': [signal.SIGINT],
        'SIGTERM, then SIGKILL': [signal.SIGTERM, KILL], 'SIGINT twice': [signal.SIGINT, signal.SIGINT]}
ALL_STAGES = ('pretrain', 'sft', 'dpo', 'lora', 'ie')
CLOCKS = ('seconds', 'real_tok_per_s')
SMALL = dict(d_model=32, num_heads=2, d_kv=16, d_ff=64, num_layers=1, num_decoder_layers=1,
             dropout_rate=.1) # with dropout, so that its randomness is tested too
DIALS = dict(steps=24, lr=1e-3, accum=3, budget_tok=192, save_every=3, eval_every=6, log_every=2, seed=1, keep_last=2)
HUNG = 300. # seconds: no toy run takes so long

# ---- the toy world

WORDS = ['春眠不觉晓', '处处闻啼鸟', '夜来风雨声', '花落知多少', '床前明月光', '疑是地上霜']

def prepare(home:Path, rows:int=600):
    "A small text set and its tokenizer."
    rng = random.Random(0)
    prompts = [f'{rng.choice(WORDS)}的下一句是什么，第{i}问？' for i in range(rows)]
    responses = [''.join(rng.choices(WORDS, k=rng.randint(1, 3))) + '。' for _ in prompts]
    (home/'data').mkdir(parents=True)
    table = pa.table(dict(prompt=prompts, response=responses))
    train_file = home/'data'/'train.parquet'
    pq.write_table(table, train_file, row_group_size=100)
    pq.write_table(table.slice(0, 40), home/'data'/'valid.parquet')
    train_tokenizer(TokenizerCfg(files=(str(train_file),), out=str(home/'tokenizer'), min_char_count=1,
                                 max_word_len=1, workers=1))

def _write_lines(path:Path, rows:list[dict]):
    "One JSON object a line."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in rows), encoding='utf-8')

def _preference(i:int, row:dict)->dict:
    "Every other one comes with a rejected answer."
    pair = dict(prompt=row['prompt'], chosen=row['response'])
    return pair | dict(rejected='不知道。') if i % 2 else pair

def _sentence(subject:str, thing:str)->dict:
    "A row in the manner of DuIE."
    triple = dict(subject=thing, predicate='作者', object=subject, subject_type='书', object_type='人')
    return dict(text=f'{subject}写{thing}', spo_list=[triple])

def furnish(home:Path):
    "What the later stages need: instruction rows, held-out questions, preferences and triples."
    data = home/'tiny'/'data'
    prepare(home/'tiny')
    table = pq.read_table(data/'train.parquet')
    parts = dict(test=table.slice(40, 8), sft_train=table.slice(0, 200), sft_valid=table.slice(200, 16))
    for name, part in parts.items(): pq.write_table(part, data/f'{name}.parquet')
    pq.write_table(table.slice(60, 8).append_column('kind', [['phrasing'] * 8]), data/'heldout.parquet')
    rows = table.slice(0, 120).to_pylist()
    _write_lines(home/'prefs'/'a.jsonl', [_preference(i, row) for i, row in enumerate(rows)])
    chars = ''.join(WORDS)
    sentences = [_sentence(a, b) for a in chars[:14] for b in chars[14:26] if a != b]
    _write_lines(home/'duie'/'duie_train.json', sentences[:120])
    _write_lines(home/'duie'/'duie_valid.json', sentences[120:136])
    _write_lines(home/'duie'/'duie_schema.json', [dict(subject_type='书', predicate='作者', object_type='人')])

def stages(home:Path)->dict[str, Callable[[Path], Run]]:
    "name -> function of the folder; each is one session of a stage, from wherever it stands to its end."
    shared = dict(precision='fp32', **DIALS)
    def run_pretrain(out:Path)->Run:
        "Pretraining, with one question watched."
        cfg = replace(pretrain_cfg('tiny'), **shared, max_len=64, window=200, out=str(out))
        return pretrain(cfg, (WORDS[0],), progress=False)
    def run_sft(out:Path)->Run:
        "Fine-tuning of what was pretrained."
        return sft(replace(sft_cfg('tiny'), **shared, max_len=64, window=100, out=str(out)), progress=False)
    def run_dpo(out:Path, **dials:object)->Run:
        "Preference optimisation; the pairs are prepared in the same folder."
        cfg = replace(dpo_cfg('tiny'), **(shared | dials), data=(str(home/'prefs'),), pairs=str(out), out=str(out),
                      max_len=64, answer_tok=8, valid_share=.2)
        return dpo(cfg, progress=False)
    def run_lora(out:Path)->Run:
        "The same with an adapter."
        return run_dpo(out, lora_r=4, lr=3e-3)
    def run_ie(out:Path)->Run:
        "Triple extraction."
        cfg = replace(ie_cfg('tiny'), **shared, data=(str(home/'duie'),), out=str(out), max_len=64, max_new_tok=12,
                      n_watch=2, replay_files=())
        return ie(cfg, progress=False)
    return dict(pretrain=run_pretrain, sft=run_sft, dpo=run_dpo, lora=run_lora, ie=run_ie)

# ---- kills at chosen points: a real SIGKILL of the own process, before, after or in the middle of a call

class Point(NamedTuple):
    "A call that is not survived."
    where:object    # module or class that holds the function
    name:str        # of the function
    when:str        # before, after, half (of the file), amid (the writing), line (half a log line), part, inside
    pattern:str='' # only calls with an argument that is a file of such a name, or a log entry of such a key

POINTS = {
    'before the log is trimmed': Point(trainer, 'trim_log', 'before'),
    'trimmed log half written': Point(Path, 'write_text', 'half', r'\.log'),
    'after the log is trimmed': Point(trainer, 'trim_log', 'after'),
    'before a log line': Point(trainer, 'append_log', 'before', 'loss'),
    'log line half written': Point(trainer, 'append_log', 'line'),
    'after a log line': Point(trainer, 'append_log', 'after', 'loss'),
    'snapshot taken': Point(trainer, 'snapshot', 'after'),
    'weights half written': Point(trainer, 'save_file', 'half', 'model'),
    'amid the weights': Point(trainer, 'save_file', 'amid', 'model'),
    'weights written': Point(trainer, 'save_file', 'after', 'model'),
    'optimiser half written': Point(torch, 'save', 'half'),
    'optimiser written': Point(torch, 'save', 'after'),
    'state half written': Point(Path, 'write_text', 'half', 'state.json'),
    'before the manifest': Point(trainer, 'write_manifest', 'before'),
    'manifest half written': Point(Path, 'write_text', 'half', 'manifest.json'),
    'after the manifest': Point(trainer, 'write_manifest', 'after'),
    'before the rename': Point(os, 'rename', 'before', r'\.step'),
    'after the rename': Point(os, 'rename', 'after', r'\.step'),
    'after the restore': Point(trainer, 'restore', 'after'),
    'before an evaluation': Point(trainer, 'log_eval', 'before'),
    'in an evaluation': Point(trainer, 'log_eval', 'inside'),
    'before its log line': Point(trainer, 'append_log', 'before', 'loss_valid'),
    'after an evaluation': Point(trainer, 'log_eval', 'after'),
    'before the best weights': Point(trainer, '_write_best', 'before'),
    'best weights half written': Point(trainer, 'save_file', 'half', r'\.best'),
    'amid the best weights': Point(trainer, 'save_file', 'amid', r'\.best'),
    'before the best weights are swapped': Point(os, 'replace', 'before', r'\.best'),
    'after the best weights': Point(trainer, '_write_best', 'after'),
    'before the cleanup': Point(trainer, '_remove_checkpoint', 'before'),
    'between its rename and the removal': Point(shutil, 'rmtree', 'before', r'\.gone'),
    'in the removal': Point(shutil, 'rmtree', 'part', r'\.gone'),
    'after the cleanup': Point(trainer, '_remove_checkpoint', 'after'),
    'before the model folder': Point(os, 'rename', 'before', r'\.(model|adapter)'),
    'after the model folder': Point(os, 'rename', 'after', r'\.(model|adapter)'),
    'before the figures': Point(os, 'replace', 'before', r'\.figures'),
    'after the figures': Point(os, 'replace', 'after', r'\.figures'),
}
RESUMED = ('trimmed log half written', 'after the restore') # an uninterrupted run passes these never

def _die(*_:object):
    "SIGKILL to oneself; no way back."
    os.kill(os.getpid(), KILL)
    time.sleep(60)

def _file(args:tuple)->Path:
    "The file that a call is about."
    return Path(next(a for a in args if isinstance(a, (str, Path))))

def _fits(args:tuple, pattern:str)->bool:
    "Whether a call is about such a file, or logs such a figure."
    for a in args:
        if isinstance(a, (str, Path)) and re.match(pattern, Path(a).name): return True
        if isinstance(a, dict) and pattern in a: return True
    return False

def _cut(args:tuple):
    "Leave the first half of the file."
    os.truncate(_file(args), os.path.getsize(_file(args)) // 2)
    _die()

def _torn(args:tuple):
    "Leave half a log line."
    with open(args[0].out/'log.jsonl', 'a') as f: f.write('{"step": 1')
    _die()

def _part(args:tuple):
    "Leave a folder with one file less."
    next(_file(args).iterdir()).unlink()
    _die()

def _soon(args:tuple):
    "Die in the second forward pass from now."
    passes = iter(range(10**9))
    def second(*_:object):
        "Counts forward passes."
        if next(passes): _die()
    args[0].model.register_forward_pre_hook(second)

def _amid(*_:object):
    "Files may not grow beyond 1000 bytes: the kernel kills who tries (the library that writes weights is not Python)."
    import resource # POSIX only
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

FIRST = dict(before=_die, amid=_amid, line=_torn, part=_part, inside=_soon)
THEN = dict(amid=_die, after=_die, half=_cut, inside=_die)

def set_trap(point:str, nth:int, seen:Counter):
    "Let the nth call of a function be the last thing this process does; 0: only count the calls."
    where, name, when, pattern = POINTS[point]
    real, calls = getattr(where, name), iter(range(1, 10**9))
    if nth and when == 'amid': signal.signal(signal.SIGXFSZ, signal.SIG_DFL) # Python ignores it
    def trapped(*args:object, **kwargs:object)->object:
        "The function, with the trap before or after it."
        if pattern and not _fits(args, pattern): return real(*args, **kwargs)
        seen[point] = n = next(calls)
        if n == nth and when in FIRST: FIRST[when](args)
        result = real(*args, **kwargs)
        if n == nth: THEN[when](args)
        return result
    setattr(where, name, trapped)

# ---- sessions

def _record(out:Path)->Path:
    "Where the batches of a run are noted: beside it, since a full disk is the run's trouble, not ours."
    return out.with_name(f'{out.name}.batches')

def note_batches(out:Path):
    "Write a hash of the batches of every step done: an independent record of the order."
    real = trainer.train_step
    def noted(run:Run, group:list[dict], *args:object)->float|None:
        "A step, and its line in the record."
        norm = real(run, group, *args)
        ids = b''.join(t.numpy().tobytes() for b in group for _, t in sorted(b.items()))
        if norm is not None:
            line = json.dumps([run.step, hashlib.sha256(ids).hexdigest()])
            with open(_record(out), 'a') as f: f.write(line + '\n')
        return norm
    trainer.train_step = noted

def train(home:Path, stage:str, out:Path, trap:tuple=(), count:bool=False)->Run:
    "One session, in a fork. `trap` is (point, nth call); `count` notes how often each point is passed."
    os.environ.update(SCCLM_RUNS=str(home), SCCLM_SCALE='tiny')
    os.environ.pop('SCCLM_RAW', None)
    torch.set_num_threads(1) # so small a model gains nothing from two, and they would wait for each other
    scclm.model.PRESETS['tiny'].update(SMALL)
    out.mkdir(parents=True, exist_ok=True)
    note_batches(out)
    seen = Counter()
    if count:
        for point in POINTS: set_trap(point, 0, seen)
    elif trap: set_trap(*trap, seen)
    run = stages(home)[stage](out)
    if count: (home/f'{stage}.json').write_text(json.dumps(seen))
    return run

def _forked(fn:Callable, args:tuple):
    "In the fork: run fn; the exit status says whether it ended (0), was stopped (3), was interrupted (130) or failed."
    code = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler) # `nohup` and cron have it ignored
        signal.signal(signal.SIGTERM, signal.SIG_DFL) # a library in the parent may have put its own there
        sys.stdout = open(os.devnull, 'w')
        code = 0 if getattr(fn(*args), 'done', True) else 3
    except KeyboardInterrupt: code = 130
    except BaseException: traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)

def _wait(pid:int, seconds:float)->int|None:
    "Exit status of a fork, or None if it still runs after so many seconds."
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done: return status
        if time.monotonic() >= end: return None
        time.sleep(.002)

def _signalled(pid:int, kill_after:float, signals:tuple|list, gap:float)->int|None:
    "Exit status of a fork that gets these signals; None if it hung."
    status = _wait(pid, kill_after)
    if status is not None or kill_after >= HUNG: return status
    for s in signals:
        os.kill(pid, s)
        status = _wait(pid, gap)
        if status is not None: return status
    return _wait(pid, HUNG)

def _end_group(pid:int):
    "Kill whatever is left of a fork and of what it started."
    try: os.killpg(pid, KILL)
    except (ProcessLookupError, PermissionError): pass # nothing is left
    try: os.waitpid(pid, 0)
    except ChildProcessError: pass # its status was read before

def session(fn:Callable, args:tuple, kill_after:float=HUNG, signals:tuple|list=(KILL,), gap:float=.02)->bool:
    """Run fn in a fork; send it `signals` after so many seconds, `gap` seconds apart. True if it was killed, by us or
    by itself; RuntimeError if it failed or hung. Nothing it started outlives the call."""
    pid = os.fork()
    if not pid: _forked(fn, args)
    try:
        try: os.setpgid(pid, pid) # both sides ask, so that it is done whoever comes first
        except (PermissionError, ProcessLookupError): pass # it has ended
        status = _signalled(pid, kill_after, signals, gap)
    finally: _end_group(pid)
    if status is None: raise RuntimeError('the training process hung')
    code = status >> 8
    if code not in (0, 3, 130): raise RuntimeError(f'the training process failed with status {code}')
    return bool(status)

# ---- what must be identical

def _timeless(x:object)->object:
    "Without wall-clock fields, at any depth."
    if isinstance(x, dict): return {k: _timeless(v) for k, v in x.items() if k not in CLOCKS}
    return [_timeless(v) for v in x] if isinstance(x, list) else x

def _plain(x:object)->object:
    "Tensors as bytes, so that a structure can be compared and hashed."
    if torch.is_tensor(x): return hashlib.sha256(x.numpy().tobytes()).hexdigest()
    if isinstance(x, dict): return {str(k): _plain(v) for k, v in x.items()}
    return [_plain(v) for v in x] if isinstance(x, (list, tuple)) else x

def _names(out:Path)->list[str]:
    """All files. A run that was asked to stop keeps the checkpoint of that step, which may take the place of an older
    one: those are numbered, not named."""
    older = {p.name: f'older-{i}' for i, p in enumerate(checkpoints(out)[:-1])}
    return sorted('/'.join(older.get(part, part) for part in p.relative_to(out).parts) for p in out.rglob('*'))

def _lines(path:Path)->list[str]|None:
    "The lines of a text file; None if there is none."
    return path.read_text().splitlines() if path.exists() else None

def _model_file(path:Path)->object:
    "The content of one file of a model folder; where an adapter's base lies depends on the folder, and is left out."
    if path.suffix == '.safetensors': return _plain(load_file(path))
    if path.name == 'base.json': return json.loads(path.read_text())['weights']
    return path.read_bytes()

def _model_files(folder:Path)->dict[str, object]:
    "name -> content of a model or adapter folder."
    return {p.name: _model_file(p) for p in sorted(folder.iterdir()) if p.name != 'README.md'}

def outcome(out:Path)->dict:
    "All that a run leaves and that does not depend on the clock."
    path = newest_good(out)
    state = json.loads((path/'state.json').read_text())
    state['cfg'] = {k: v for k, v in state['cfg'].items() if k not in ('out', 'pairs')}
    model = next(p for p in (out/'adapter', out/'model') if p.exists())
    samples, answers = out/'samples.jsonl', _lines(out/'answers.jsonl')
    return dict(
        weights=(path/'model.safetensors').read_bytes(),
        optimiser=_plain(torch.load(path/'optim.pt', weights_only=True)),
        state=_timeless(state),
        best=(out/'checkpoints'/'best.safetensors').read_bytes(),
        log=_timeless(read_log(out/'log.jsonl')),
        figures=_timeless(json.loads((out/'figures.json').read_text())),
        model=_model_files(model),
        batches={tuple(json.loads(line)) for line in _lines(_record(out))}, # also of steps done twice
        samples=read_samples(samples) if samples.exists() else None,
        files=_names(out), # nothing half-written is left
        answers=None if answers is None else sorted(answers))

def differences(a:dict, b:dict)->list[str]:
    "Names of the parts that differ."
    return [k for k in a if a[k] != b[k]]

# ---- the harness

class Harness:
    "Uninterrupted runs of the stages, and what kills did to others."
    def __init__(self, home:Path, names:tuple[str, ...]|list[str]=ALL_STAGES):
        "Train every stage once, uninterrupted."
        self.home, self.kills = home, Counter() # kills: (stage, how) -> how many
        self.length, self.want, self.passed = {}, {}, {} # of each stage: seconds, outcome, calls of each point
        session(furnish, (home,))
        for name in ('pretrain', 'sft'): session(train, (home, name, home/'tiny'/name)) # where the later stages start
        for name in names:
            began, out = time.monotonic(), home/'whole'/name
            session(train, (home, name, out, (), True))
            self.length[name] = time.monotonic() - began
            self.want[name] = outcome(out)
            self.passed[name] = json.loads((home/f'{name}.json').read_text())

    def count(self, name:str|None=None, how:str|None=None)->int:
        "Kills so far, of one stage, of one kind."
        return sum(n for (s, h), n in self.kills.items() if name in (None, s) and how in (None, h))

    def run(self, name:str, kills:list[tuple])->list[str]:
        """Let a run be killed in these ways, then end; parts that differ from the uninterrupted run. A kill is (way,
        share of a run's time) or (point, nth call)."""
        out = self.home/'killed'/name
        shutil.rmtree(out, ignore_errors=True)
        _record(out).unlink(missing_ok=True)
        killed = True
        for how, when in kills:
            if how in POINTS: killed = session(train, (self.home, name, out, (how, when)))
            else:
                seconds, gap = when * self.length[name], random.uniform(0, .05)
                killed = session(train, (self.home, name, out), seconds, WAYS[how], gap)
            if not killed: break
            self.kills[name, how] += 1
        if killed: session(train, (self.home, name, out))
        return differences(self.want[name], outcome(out))

    def draw(self, name:str, rng:random.Random)->tuple:
        "A way at a random instant, or a point this stage passes; from the half that was least used so far."
        reached = [p for p in POINTS if p in self.passed[name] or p in RESUMED]
        some = list(WAYS) if rng.random() < .5 else reached
        some.sort(key=lambda how: (self.count(name, how), rng.random()))
        how = rng.choice(some[:len(some) // 2 + 1])
        if how in WAYS: return how, rng.uniform(.02, .9)
        return how, rng.randint(1, max(1, self.passed[name].get(how, 0) // 2))

def parse_args()->argparse.Namespace:
    "What the command line asks for."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--kills', type=int, default=50, help='kills in all')
    p.add_argument('--per-run', type=int, default=6, help='kills of one run before it is left to end')
    p.add_argument('--seed', type=int, default=0, help='of the instants')
    p.add_argument('--stages', nargs='+', default=list(ALL_STAGES), help='which')
    return p.parse_args()

def main()->int:
    "Kill until there are enough; the exit code."
    a = parse_args()
    rng, began, identical = random.Random(a.seed), time.monotonic(), Counter()
    with tempfile.TemporaryDirectory() as tmp:
        h = Harness(Path(tmp), a.stages)
        print(f"uninterrupted: {', '.join(f'{k} {v:.1f} s' for k, v in h.length.items())}", flush=True)
        while h.count() < a.kills:
            name, before = min(a.stages, key=h.count), h.kills.copy()
            drawn = [h.draw(name, rng) for _ in range(min(a.per_run, a.kills - h.count()))]
            wrong = h.run(name, drawn)
            here = h.kills - before
            if not wrong: identical += here
            if 'files' in wrong: print('files:', set(_names(h.home/'killed'/name)) ^ set(h.want[name]['files']))
            found = f'DIFFERENT: {wrong} after {drawn}' if wrong else 'identical'
            print(f'{name}: {here.total()} kills, {found} ({h.count()} of {a.kills})', flush=True)
    return report(h, a, identical, round(time.monotonic() - began))

def _row(what:str, ours:int, kills:int)->dict:
    "A line of the result file: how many of the kills ended identical."
    return dict(what=f'{what}, kills', ours=ours, baseline=kills, baseline_name='kills', unit='identical',
                ratio=ours / kills if kills else None, runs=dict(ours=[ours], baseline=[kills]))

def report(h:Harness, a:argparse.Namespace, identical:Counter, seconds:int)->int:
    "A table per stage and per kind, the result file, the last line, the exit code."
    from report import write # here, because tests load this file from elsewhere
    def both(of:str)->tuple[int, int]:
        "Identical and all kills of a stage or a kind."
        return sum(n for k, n in identical.items() if of in k), sum(n for k, n in h.kills.items() if of in k)
    missed = [k for k in (*WAYS, *POINTS) if not h.count(how=k)]
    at_points = {p: both(p) for p in POINTS}
    points = {p: f'{same} of {asked} identical' for p, (same, asked) in at_points.items()}
    rows = [_row(of, *both(of)) for of in (*a.stages, *WAYS) if of not in missed]
    sums = [sum(column) for column in zip(*at_points.values())]
    rows.append(_row(f'at {len(POINTS)} chosen points', *sums))
    write('kill', dict(seed=a.seed, seconds=seconds, missed=missed, points=points), rows)
    if missed: print('never reached:', ', '.join(missed))
    print(f'{h.count()} kills, {identical.total()} identical')
    return 0 if identical.total() == h.count() and not missed else 1

if __name__ == '__main__': sys.exit(main())
