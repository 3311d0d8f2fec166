"""Kill training runs at random instants and at chosen points inside a save, resume them, and compare every final byte with an uninterrupted run.

    python benchmarks/kill.py --kills 1000

Five stages, each through the course's own function at toy size: pretrain, sft (frozen parts), dpo, lora, ie. A kill is a signal (SIGKILL, SIGTERM
or SIGINT) at a random instant, or SIGKILL at a point of `POINTS`, such as a half-written optimiser or between the rename and the cleanup. Each killed
run is resumed, killed again, and finally left to end. Compared are the last checkpoint (weights, optimiser, state), the best weights, the log, the
figures, the model folder, and the batches of every step; wall-clock fields aside. Exits 0 only if all are identical; the last line is
`N kills, N identical`. The parent imports everything once and forks, so that a kill costs a training run and not an import (POSIX only)."""
import argparse, hashlib, json, os, random, shutil, signal, sys, tempfile, time
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
from scclm.pretrain import pretrain, pretrain_cfg
from scclm.sft import sft, sft_cfg
from scclm.tokenizer import TokenizerCfg, train_tokenizer
from scclm.trainer import newest_good, read_log

SIGNALS = [getattr(signal, 'SIGKILL', signal.SIGTERM)] * 3 + [signal.SIGTERM, signal.SIGINT]
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
        pretrain=lambda out: pretrain(replace(pretrain_cfg('tiny'), **data, max_len=64, window=200, out=str(out)), **quiet),
        sft=lambda out: sft(replace(sft_cfg('tiny'), **data, max_len=64, window=100, out=str(out)), **quiet),
        dpo=lambda out: dpo(pref(out), **quiet),
        lora=lambda out: dpo(pref(out, lora_r=4, lr=3e-3), **quiet),
        ie=lambda out: ie(replace(ie_cfg('tiny'), **data, data=(str(home / 'duie'),), out=str(out), max_len=64, max_new_tok=12, n_watch=2, replay_files=()), **quiet))

# ---- kills at chosen points: a real SIGKILL of the own process, before, after or in the middle of a call

POINTS = { # name: (module, attribute, when)
    'snapshot taken': (trainer, 'snapshot', 'after'), 'weights half written': (trainer, 'save_file', 'half'), 'weights written': (trainer, 'save_file', 'after'),
    'optimiser half written': (torch, 'save', 'half'), 'optimiser written': (torch, 'save', 'after'), 'before the manifest': (trainer, 'write_manifest', 'before'),
    'after the manifest': (trainer, 'write_manifest', 'after'), 'before the rename': (os, 'rename', 'before'), 'after the rename': (os, 'rename', 'after'),
    'before the cleanup': (trainer, '_drop', 'before'), 'in the cleanup': (trainer.shutil, 'rmtree', 'before'), 'after the cleanup': (trainer, '_drop', 'after'),
    'before the best weights': (trainer, '_write_best', 'before'), 'after the best weights': (trainer, '_write_best', 'after'),
    'before a log line': (trainer, 'append_log', 'before'), 'log line half written': (trainer, 'append_log', 'line'), 'after a log line': (trainer, 'append_log', 'after'),
    'before an evaluation': (trainer, 'evaluate', 'before'), 'after an evaluation': (trainer, 'evaluate', 'after'),
    'before the log is trimmed': (trainer, 'trim_log', 'before'), 'after the log is trimmed': (trainer, 'trim_log', 'after'),
    'after the restore': (trainer, 'restore', 'after'), 'before a file is swapped': (os, 'replace', 'before'), 'after a file is swapped': (os, 'replace', 'after')}

def _die(): os.kill(os.getpid(), signal.SIGKILL); time.sleep(60)

def _halve(args):
    "Cut the file that was just written, as a crash in the middle of writing would."
    path = next(a for a in args if isinstance(a, (str, Path)))
    os.truncate(path, os.path.getsize(path) // 2)

def set_trap(point:str, nth:int):
    "Let the nth call of a function be the last thing this process does."
    module, name, when = POINTS[point]
    real, calls = getattr(module, name), iter(range(1, 10**9))
    def trapped(*args, **kwargs):
        if next(calls) != nth: return real(*args, **kwargs)
        if when == 'before': _die()
        if when == 'line':
            with open(args[0].out / 'log.jsonl', 'a') as f: f.write('{"step": 1')
            _die()
        result = real(*args, **kwargs)
        if when == 'half': _halve(args)
        _die()
        return result
    setattr(module, name, trapped)

# ---- sessions

def note_batches(out:Path):
    "Write a hash of the batches of every step done: an independent record of the order."
    real = trainer.train_step
    def noted(run, group, *args):
        norm = real(run, group, *args)
        ids = b''.join(t.numpy().tobytes() for b in group for _, t in sorted(b.items()))
        if norm is not None:
            with open(out / 'batches.jsonl', 'a') as f: f.write(json.dumps([run.step, hashlib.sha256(ids).hexdigest()]) + '\n')
        return norm
    trainer.train_step = noted

def train(home:Path, stage:str, out:Path, trap:tuple|None=None):
    "One session, in a fork."
    os.environ.update(SCCLM_RUNS=str(home), SCCLM_SCALE='tiny'); os.environ.pop('SCCLM_RAW', None)
    torch.set_num_threads(1) # so small a model gains nothing from two, and they would wait for each other on a busy machine
    scclm.model.PRESETS['tiny'].update(SMALL)
    out.mkdir(parents=True, exist_ok=True)
    note_batches(out)
    if trap: set_trap(*trap)
    stages(home)[stage](out)

def session(fn, args, kill_after:float|None=None, sig=signal.SIGTERM)->bool:
    "Run fn in a fork; send it `sig` after so many seconds. True if it was killed, by us or by itself."
    pid = os.fork()
    if not pid:
        code = 1
        sys.stdout = open(os.devnull, 'w')
        try: fn(*args); code = 0
        except BaseException:
            import traceback; traceback.print_exc()
        finally: sys.stderr.flush(); os._exit(code)
    end = time.monotonic() + (kill_after if kill_after is not None else 1e9)
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            if status and not os.WIFSIGNALED(status): raise RuntimeError(f'the training process failed with status {status}')
            return os.WIFSIGNALED(status)
        time.sleep(.002)
    os.kill(pid, sig); os.waitpid(pid, 0)
    return True

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
                batches=dict(map(json.loads, (out / 'batches.jsonl').read_text().splitlines())),
                answers=sorted((out / 'answers.jsonl').read_text().splitlines()) if (out / 'answers.jsonl').exists() else None)

def differences(a:dict, b:dict)->list[str]:
    "Names of the parts that differ."
    return [k for k in a if a[k] != b[k]]

# ---- the harness

class Harness:
    "Uninterrupted runs of the stages, and what kills did to others."
    def __init__(self, home:Path, names=('pretrain', 'sft', 'dpo', 'lora', 'ie')):
        self.home, self.length, self.want, self.sent, self.kills = home, {}, {}, Counter(), Counter()
        session(furnish, (home,))
        for name in ('pretrain', 'sft'): session(train, (home, name, home / 'tiny' / name)) # where the later stages start
        for name in names:
            t = time.monotonic(); session(train, (home, name, home / 'whole' / name)); self.length[name] = time.monotonic() - t
            self.want[name] = outcome(home / 'whole' / name)

    def run(self, name:str, kills:list)->list[str]:
        "Let a run be killed in these ways, then end; parts that differ from the uninterrupted run. A way is (signal, share of a run's time) or (point, nth call)."
        out = self.home / 'killed' / name
        shutil.rmtree(out, ignore_errors=True)
        for how, when in kills:
            by_point = isinstance(how, str)
            if session(train, (self.home, name, out, (how, when) if by_point else None), None if by_point else when * self.length[name], how):
                self.sent[how if by_point else how.name] += 1; self.kills[name] += 1
            else: break
        session(train, (self.home, name, out))
        return differences(self.want[name], outcome(out))

def random_kill(rng:random.Random):
    "A signal at a random instant, or a point."
    return (rng.choice(list(POINTS)), rng.randint(1, 4)) if rng.random() < .4 else (rng.choice(SIGNALS), rng.uniform(.02, .9))

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
        while (total := sum(h.kills.values())) < a.kills:
            name, before = min(a.stages, key=lambda s: h.kills[s]), dict(h.kills)
            wrong = h.run(name, [random_kill(rng) for _ in range(min(a.per_run, a.kills - total))])
            here = h.kills[name] - before.get(name, 0)
            identical[name] += here * (not wrong)
            print(f"{name}: {here} kills, {'identical' if not wrong else 'DIFFERENT: ' + ', '.join(wrong)} ({sum(h.kills.values())} of {a.kills})", flush=True)
    from report import write # here, because tests load this file from elsewhere
    kills = sum(h.kills.values())
    rows = [dict(what=f'{s}, kills', ours=identical[s], baseline=h.kills[s], baseline_name='kills', unit='identical', ratio=identical[s] / max(1, h.kills[s]), runs=dict(ours=[identical[s]], baseline=[h.kills[s]])) for s in a.stages]
    write('kill', dict(seed=a.seed, seconds=round(time.monotonic() - began), sent=dict(sorted(h.sent.items()))), rows)
    print('sent:', dict(sorted(h.sent.items())))
    print(f'{kills} kills, {sum(identical.values())} identical')
    return 0 if sum(identical.values()) == kills else 1

if __name__ == '__main__': sys.exit(main())
