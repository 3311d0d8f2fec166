"""Kill training runs at random instants and at chosen points inside a save, resume them, and compare every final byte with an uninterrupted run.

    python benchmarks/kill.py --kills 1000

Five stages, each through the course's own function at toy size: pretrain, sft (frozen parts), dpo, lora, ie. A kill is one of `WAYS` (SIGKILL, SIGTERM,
SIGINT, a scheduler's SIGTERM with SIGKILL after it, an impatient SIGINT twice) at a random instant, or SIGKILL at a point of `POINTS`, such as a
half-written optimiser or between the rename and the cleanup. Each killed run is resumed, killed again, and finally left to end. Compared are the last
checkpoint (weights, optimiser, state), the best weights, the log, the answers along the way, the figures, the model folder, the names of all files, and
the batches of every step, those of the steps that a kill undid too; wall-clock fields aside. A process that had ended before the signal came is no kill.
Exits 0 only if all are identical and every point was reached; the last line is `N kills, N identical`. The parent imports everything once and forks, so
that a kill costs a training run and not an import (POSIX only)."""
import argparse, hashlib, json, os, random, re, shutil, signal, sys, tempfile, time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

import scclm.data_cleaning, scclm.model, scclm.pretrain, scclm.trainer as trainer
from scclm.dpo import dpo, dpo_cfg
from scclm.ie_finetune import ie, ie_cfg
from scclm.pretrain import pretrain, pretrain_cfg, read_samples
from scclm.sft import sft, sft_cfg
from scclm.tokenizer import TokenizerCfg, train_tokenizer
from scclm.trainer import checkpoints, newest_good, read_log

KILL = getattr(signal, 'SIGKILL', signal.SIGTERM) # Windows has none: there this file is only imported
WAYS = {'SIGKILL': [KILL], 'SIGTERM': [signal.SIGTERM], 'SIGINT': [signal.SIGINT],
        'SIGTERM, then SIGKILL': [signal.SIGTERM, KILL], 'SIGINT twice': [signal.SIGINT, signal.SIGINT]}
CLOCKS = ('seconds', 'real_tok_per_s')
SMALL = dict(d_model=32, num_heads=2, d_kv=16, d_ff=64, num_layers=1, num_decoder_layers=1, dropout_rate=.1) # with dropout, so that its randomness is tested too
DIALS = dict(steps=24, lr=1e-3, accum=3, budget_tok=192, save_every=3, eval_every=6, log_every=2, seed=1, keep_last=2)

# ---- the toy world

WORDS = ['春眠不觉晓', '处处闻啼鸟', '夜来风雨声', '花落知多少', '床前明月光', '疑是地上霜']

def prepare(home:Path, rows:int=600):
    "A small text set and its tokenizer."
    rng = random.Random(0)
    prompts = [f'{rng.choice(WORDS)}的下一句是什么，第{i}问？' for i in range(rows)]
    responses = [''.join(rng.choices(WORDS, k=rng.randint(1, 3))) + '。' for _ in prompts]
    (home / 'data').mkdir(parents=True)
    table = pa.table(dict(prompt=prompts, response=responses))
    pq.write_table(table, home / 'data/train.parquet', row_group_size=100)
    pq.write_table(table.slice(0, 40), home / 'data/valid.parquet')
    train_tokenizer(TokenizerCfg(files=(str(home / 'data/train.parquet'),), out=str(home / 'tokenizer'), min_char_count=1, max_word_len=1, workers=1))

def _lines(path:Path, rows:list):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in rows), encoding='utf-8')

def furnish(home:Path):
    "What the later stages need: instruction rows, held-out questions, preferences (half without a rejected answer) and triples."
    tiny = home / 'tiny'
    prepare(tiny)
    table = pq.read_table(tiny / 'data/train.parquet')
    for name, part in dict(test=table.slice(40, 8), sft_train=table.slice(0, 200), sft_valid=table.slice(200, 16)).items(): pq.write_table(part, tiny / f'data/{name}.parquet')
    pq.write_table(table.slice(60, 8).append_column('kind', [['phrasing'] * 8]), tiny / 'data/heldout.parquet')
    rows = table.slice(0, 120).to_pylist()
    _lines(home / 'prefs/a.jsonl', [dict(prompt=r['prompt'], chosen=r['response']) | (dict(rejected='不知道。') if i % 2 else {}) for i, r in enumerate(rows)])
    triples = lambda some: [dict(text=f'{a}写{b}', spo_list=[dict(subject=b, predicate='作者', object=a, subject_type='书', object_type='人')]) for a, b in some]
    pairs = [(a, b) for a in ''.join(WORDS)[:14] for b in ''.join(WORDS)[14:26] if a != b]
    _lines(home / 'duie/duie_train.json', triples(pairs[:120])); _lines(home / 'duie/duie_valid.json', triples(pairs[120:136]))
    _lines(home / 'duie/duie_schema.json', [dict(subject_type='书', predicate='作者', object_type='人')])

def stages(home:Path)->dict:
    "name -> function of the folder; each is one session of a stage, from wherever it stands to its end."
    data, quiet = dict(precision='fp32', **DIALS), dict(progress=False)
    pref = lambda out, **kw: replace(dpo_cfg('tiny'), **data | kw, data=(str(home / 'prefs'),), pairs=str(out), out=str(out), max_len=64, answer_tok=8, valid_share=.2)
    return dict(
        pretrain=lambda out: pretrain(replace(pretrain_cfg('tiny'), **data, max_len=64, window=200, out=str(out)), (WORDS[0],), **quiet),
        sft=lambda out: sft(replace(sft_cfg('tiny'), **data, max_len=64, window=100, out=str(out)), **quiet),
        dpo=lambda out: dpo(pref(out), **quiet),
        lora=lambda out: dpo(pref(out, lora_r=4, lr=3e-3), **quiet),
        ie=lambda out: ie(replace(ie_cfg('tiny'), **data, data=(str(home / 'duie'),), out=str(out), max_len=64, max_new_tok=12, n_watch=2, replay_files=()), **quiet))

# ---- kills at chosen points: a real SIGKILL of the own process, before, after or in the middle of a call

POINTS = { # name: (where, attribute, when[, pattern: only calls with an argument that is a file of such a name, or a log entry of such a key])
    'before the log is trimmed': (trainer, 'trim_log', 'before'), 'trimmed log half written': (Path, 'write_text', 'half', r'\.log'), 'after the log is trimmed': (trainer, 'trim_log', 'after'),
    'before a log line': (trainer, 'append_log', 'before', 'loss'), 'log line half written': (trainer, 'append_log', 'line'), 'after a log line': (trainer, 'append_log', 'after', 'loss'),
    'snapshot taken': (trainer, 'snapshot', 'after'), 'weights half written': (trainer, 'save_file', 'half', 'model'), 'amid the weights': (trainer, 'save_file', 'amid', 'model'), 'weights written': (trainer, 'save_file', 'after', 'model'),
    'optimiser half written': (torch, 'save', 'half'), 'optimiser written': (torch, 'save', 'after'), 'state half written': (Path, 'write_text', 'half', 'state.json'),
    'before the manifest': (trainer, 'write_manifest', 'before'), 'manifest half written': (Path, 'write_text', 'half', 'manifest.json'), 'after the manifest': (trainer, 'write_manifest', 'after'),
    'before the rename': (os, 'rename', 'before', r'\.step'), 'after the rename': (os, 'rename', 'after', r'\.step'), 'after the restore': (trainer, 'restore', 'after'),
    'before an evaluation': (trainer, 'evaluate', 'before'), 'in an evaluation': (trainer, 'evaluate', 'inside'), 'before its log line': (trainer, 'append_log', 'before', 'loss_valid'),
    'after an evaluation': (trainer, 'evaluate', 'after'), 'before the best weights': (trainer, '_write_best', 'before'), 'best weights half written': (trainer, 'save_file', 'half', r'\.best'),
    'amid the best weights': (trainer, 'save_file', 'amid', r'\.best'),
    'before the best weights are swapped': (os, 'replace', 'before', r'\.best'), 'after the best weights': (trainer, '_write_best', 'after'),
    'before the cleanup': (trainer, '_drop', 'before'), 'between its rename and the removal': (shutil, 'rmtree', 'before', r'\.gone'), 'in the removal': (shutil, 'rmtree', 'part', r'\.gone'),
    'after the cleanup': (trainer, '_drop', 'after'), 'before the model folder': (os, 'rename', 'before', r'\.(model|adapter)'), 'after the model folder': (os, 'rename', 'after', r'\.(model|adapter)'),
    'before the figures': (os, 'replace', 'before', r'\.figures'), 'after the figures': (os, 'replace', 'after', r'\.figures')}

RESUMED = ('trimmed log half written', 'after the restore') # an uninterrupted run passes these never

def _die(*_): os.kill(os.getpid(), KILL); time.sleep(60)

def _file(args)->Path: return Path(next(a for a in args if isinstance(a, (str, Path))))

def _fits(args, pattern:str)->bool:
    "Whether a call is about such a file, or logs such a figure."
    return any(re.match(pattern, Path(a).name) if isinstance(a, (str, Path)) else isinstance(a, dict) and pattern in a for a in args)

def _cut(args): os.truncate(_file(args), os.path.getsize(_file(args)) // 2); _die()

def _torn(args):
    with open(args[0].out / 'log.jsonl', 'a') as f: f.write('{"step": 1')
    _die()

def _soon(args):
    "Die in the second forward pass from now."
    passes = iter(range(10**9))
    args[0].model.register_forward_pre_hook(lambda *_: _die() if next(passes) else None)

def _amid(*_):
    "Files may not grow beyond 1000 bytes: the kernel kills who tries (the library that writes weights is not Python)."
    import resource # POSIX only
    for what, size in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 1000)): resource.setrlimit(what, (size, size))

FIRST = dict(before=_die, amid=_amid, line=_torn, part=lambda args: (next(_file(args).iterdir()).unlink(), _die()), inside=_soon)
THEN = dict(amid=_die, after=_die, half=_cut, inside=_die)

def set_trap(point:str, nth:int, seen:Counter):
    "Let the nth call of a function be the last thing this process does; 0: only count the calls."
    (where, name, when), pattern = POINTS[point][:3], POINTS[point][3:]
    real, calls = getattr(where, name), iter(range(1, 10**9))
    if nth and when == 'amid': signal.signal(signal.SIGXFSZ, signal.SIG_DFL) # Python ignores it
    def trapped(*args, **kwargs):
        if pattern and not _fits(args, *pattern): return real(*args, **kwargs)
        seen[point] = n = next(calls)
        if n == nth and when in FIRST: FIRST[when](args)
        result = real(*args, **kwargs)
        if n == nth: THEN[when](args)
        return result
    setattr(where, name, trapped)

# ---- sessions

def _record(out:Path)->Path: return out.with_name(f'{out.name}.batches') # beside it: a full disk is the run's trouble, not ours

def note_batches(out:Path):
    "Write a hash of the batches of every step done: an independent record of the order."
    real = trainer.train_step
    def noted(run, group, *args):
        norm = real(run, group, *args)
        ids = b''.join(t.numpy().tobytes() for b in group for _, t in sorted(b.items()))
        if norm is not None:
            with open(_record(out), 'a') as f: f.write(json.dumps([run.step, hashlib.sha256(ids).hexdigest()]) + '\n')
        return norm
    trainer.train_step = noted

def train(home:Path, stage:str, out:Path, trap:tuple=(), count:bool=False):
    "One session, in a fork. `count` notes how often each point is passed."
    os.environ.update(SCCLM_RUNS=str(home), SCCLM_SCALE='tiny'); os.environ.pop('SCCLM_RAW', None)
    torch.set_num_threads(1) # so small a model gains nothing from two, and they would wait for each other on a busy machine
    scclm.model.PRESETS['tiny'].update(SMALL)
    out.mkdir(parents=True, exist_ok=True)
    note_batches(out)
    seen = Counter()
    for point, nth in [(p, 0) for p in POINTS] if count else [trap] if trap else []: set_trap(point, nth, seen)
    run = stages(home)[stage](out)
    if count: (home / f'{stage}.json').write_text(json.dumps(seen))
    return run

def _forked(fn, args):
    "In the fork: run fn; the exit status says whether it ended, was stopped in good order, was interrupted, or failed."
    code = 1
    sys.stdout = open(os.devnull, 'w')
    try: code = 0 if getattr(fn(*args), 'done', True) else 3
    except KeyboardInterrupt: code = 130
    except BaseException:
        import traceback; traceback.print_exc()
    finally: sys.stderr.flush(); os._exit(code)

def _wait(pid:int, seconds:float)->int|None:
    "Exit status of a fork, or None if it still runs after so many seconds."
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done: return status
        if time.monotonic() >= end: return None
        time.sleep(.002)

def session(fn, args, kill_after:float=300., signals=(KILL,), gap:float=.02)->bool:
    "Run fn in a fork; send it `signals` after so many seconds, `gap` seconds apart. True if it was killed, by us or by itself; RuntimeError if it failed or hung."
    if not (pid := os.fork()): _forked(fn, args)
    status = _wait(pid, kill_after)
    if hung := status is None and kill_after >= 300: os.kill(pid, KILL)
    for s in () if status is not None or hung else signals:
        os.kill(pid, s)
        if (status := _wait(pid, gap)) is not None: break
    if status is None: status = _wait(pid, 300)
    if status is None: os.kill(pid, KILL); hung = True
    if hung or status >> 8 not in (0, 3, 130): raise RuntimeError('the training process hung' if hung else f'the training process failed with status {status >> 8}')
    return bool(status)

# ---- what must be identical

def _timeless(x):
    "Without wall-clock fields, at any depth."
    if isinstance(x, dict): return {k: _timeless(v) for k, v in x.items() if k not in CLOCKS}
    return [_timeless(v) for v in x] if isinstance(x, list) else x

def _plain(x):
    "Tensors as bytes, so that a structure can be compared and hashed."
    if torch.is_tensor(x): return hashlib.sha256(x.numpy().tobytes()).hexdigest()
    if isinstance(x, dict): return {str(k): _plain(v) for k, v in x.items()}
    return [_plain(v) for v in x] if isinstance(x, (list, tuple)) else x

def _names(out:Path)->list[str]:
    "All files. A run that was asked to stop keeps the checkpoint of that step, which may take the place of an older one: those are numbered, not named."
    older = {p.name: f'older-{i}' for i, p in enumerate(checkpoints(out)[:-1])}
    return sorted('/'.join(older.get(part, part) for part in p.relative_to(out).parts) for p in out.rglob('*'))

def outcome(out:Path)->dict:
    "All that a run leaves and that does not depend on the clock."
    path = newest_good(out)
    state = json.loads((path / 'state.json').read_text())
    state['cfg'] = {k: v for k, v in state['cfg'].items() if k not in ('out', 'pairs')}
    model = next(p for p in (out / 'adapter', out / 'model') if p.exists())
    return dict(weights=(path / 'model.safetensors').read_bytes(), optimiser=_plain(torch.load(path / 'optim.pt', weights_only=True)), state=_timeless(state),
                best=(out / 'checkpoints/best.safetensors').read_bytes(), log=_timeless(read_log(out / 'log.jsonl')),
                figures=_timeless(json.loads((out / 'figures.json').read_text())),
                model={p.name: _plain(load_file(p)) if p.suffix == '.safetensors' else p.read_bytes() for p in sorted(model.iterdir()) if p.name != 'README.md'},
                batches={tuple(json.loads(line)) for line in _record(out).read_text().splitlines()}, # also of steps done twice
                samples=read_samples(out / 'samples.jsonl') if (out / 'samples.jsonl').exists() else None,
                files=_names(out), # nothing half-written is left
                answers=sorted((out / 'answers.jsonl').read_text().splitlines()) if (out / 'answers.jsonl').exists() else None)

def differences(a:dict, b:dict)->list[str]:
    "Names of the parts that differ."
    return [k for k in a if a[k] != b[k]]

# ---- the harness

class Harness:
    "Uninterrupted runs of the stages, and what kills did to others."
    def __init__(self, home:Path, names=('pretrain', 'sft', 'dpo', 'lora', 'ie')):
        self.home, self.length, self.want, self.passed, self.kills = home, {}, {}, {}, Counter() # kills: (stage, how) -> how many
        session(furnish, (home,))
        for name in ('pretrain', 'sft'): session(train, (home, name, home / 'tiny' / name)) # where the later stages start
        for name in names:
            t = time.monotonic(); session(train, (home, name, home / 'whole' / name, (), True)); self.length[name] = time.monotonic() - t
            self.want[name], self.passed[name] = outcome(home / 'whole' / name), json.loads((home / f'{name}.json').read_text())

    def count(self, name:str|None=None, how:str|None=None)->int:
        "Kills so far, of one stage, of one kind."
        return sum(n for (s, h), n in self.kills.items() if name in (None, s) and how in (None, h))

    def run(self, name:str, kills:list)->list[str]:
        "Let a run be killed in these ways, then end; parts that differ from the uninterrupted run. A kill is (way, share of a run's time) or (point, nth call)."
        out = self.home / 'killed' / name
        shutil.rmtree(out, ignore_errors=True); _record(out).unlink(missing_ok=True)
        for how, when in kills:
            if how in POINTS: killed = session(train, (self.home, name, out, (how, when)))
            else: killed = session(train, (self.home, name, out), when * self.length[name], WAYS[how], random.uniform(0, .05))
            if not killed: break
            self.kills[name, how] += 1
        if not kills or killed: session(train, (self.home, name, out))
        return differences(self.want[name], outcome(out))

    def draw(self, name:str, rng:random.Random)->tuple:
        "A way at a random instant, or a point this stage passes; from the half that was least used so far."
        some = list(WAYS) if rng.random() < .5 else [p for p in POINTS if p in self.passed[name] or p in RESUMED]
        how = rng.choice(sorted(some, key=lambda h: (self.count(name, h), rng.random()))[:len(some) // 2 + 1])
        return how, rng.uniform(.02, .9) if how in WAYS else rng.randint(1, max(1, self.passed[name].get(how, 0) // 2))

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--kills', type=int, default=50, help='kills in all')
    p.add_argument('--per-run', type=int, default=6, help='kills of one run before it is left to end')
    p.add_argument('--seed', type=int, default=0, help='of the instants')
    p.add_argument('--stages', nargs='+', default=['pretrain', 'sft', 'dpo', 'lora', 'ie'], help='which')
    a = p.parse_args()
    rng, began, identical = random.Random(a.seed), time.monotonic(), Counter()
    with tempfile.TemporaryDirectory() as tmp:
        h = Harness(Path(tmp), a.stages)
        print(f"uninterrupted: {', '.join(f'{k} {v:.1f} s' for k, v in h.length.items())}", flush=True)
        while (total := h.count()) < a.kills:
            name, before = min(a.stages, key=h.count), h.kills.copy()
            drawn = [h.draw(name, rng) for _ in range(min(a.per_run, a.kills - total))]
            wrong, here = h.run(name, drawn), h.kills - before
            if not wrong: identical += here
            if 'files' in wrong: print('files:', set(_names(h.home / 'killed' / name)) ^ set(h.want[name]['files']))
            print(f"{name}: {here.total()} kills, {'identical' if not wrong else f'DIFFERENT: {wrong} after {drawn}'} ({h.count()} of {a.kills})", flush=True)
    return report(h, a, identical, round(time.monotonic() - began))

def report(h:Harness, a, identical:Counter, seconds:int)->int:
    "A table per stage and per kind, the result file, the last line, the exit code."
    from report import write # here, because tests load this file from elsewhere
    def row(what, ours, kills): return dict(what=f'{what}, kills', ours=ours, baseline=kills, baseline_name='kills', unit='identical', ratio=ours / kills if kills else None, runs=dict(ours=[ours], baseline=[kills]))
    def both(of): return sum(n for k, n in identical.items() if of in k), sum(n for k, n in h.kills.items() if of in k)
    missed = [k for k in (*WAYS, *POINTS) if not h.count(how=k)]
    points = {p: f'{got} of {asked} identical' for p in POINTS for got, asked in [both(p)]}
    chosen = row(f'at {len(POINTS)} chosen points', *map(sum, zip(*map(both, POINTS))))
    write('kill', dict(seed=a.seed, seconds=seconds, missed=missed, points=points), [*(row(of, *both(of)) for of in (*a.stages, *WAYS) if of not in missed), chosen])
    if missed: print('never reached:', ', '.join(missed))
    print(f'{h.count()} kills, {identical.total()} identical')
    return 0 if identical.total() == h.count() and not missed else 1

if __name__ == '__main__': sys.exit(main())
