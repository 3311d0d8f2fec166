"""Kill a training run at random instants, resume it until it is done, and compare the final bytes with an uninterrupted run.

    python benchmarks/kill.py --kills 50

Exits 0 only if all are identical; the last line is `N kills, N identical`. A kill is a signal (SIGKILL, SIGTERM or SIGINT) at a random
instant after the run has begun; each killed run is resumed, killed again, and finally left to end. The parent imports everything once
and forks, so that a kill costs a training run and not an import.
"""
import argparse, hashlib, json, os, random, shutil, signal, sys, tempfile, time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from scclm.dataset import PairStream
from scclm.model import build_model, model_config
from scclm.pretrain import stage_eval
from scclm.sft import freeze
from scclm.tokenizer import TokenizerCfg, load_tokenizer, train_tokenizer
from scclm.trainer import TrainCfg, fit, newest_good, read_log

SIGNALS = [getattr(signal, 'SIGKILL', signal.SIGTERM)] * 8 + [signal.SIGTERM, signal.SIGINT] # forks: POSIX only

def prepare(home:Path):
    "A small text set and its tokenizer."
    rng = random.Random(0)
    words = ['春眠不觉晓', '处处闻啼鸟', '夜来风雨声', '花落知多少', '床前明月光', '疑是地上霜']
    prompts = [f'{rng.choice(words)}的下一句是什么，第{i}问？' for i in range(600)]
    responses = [''.join(rng.choices(words, k=rng.randint(1, 3))) + '。' for _ in prompts]
    (home / 'data').mkdir(parents=True)
    table = pa.table(dict(prompt=prompts, response=responses))
    pq.write_table(table, home / 'data/train.parquet', row_group_size=100)
    pq.write_table(table.slice(0, 40), home / 'data/valid.parquet')
    train_tokenizer(TokenizerCfg(files=(str(home / 'data/train.parquet'),), out=str(home / 'tokenizer'), min_char_count=1, max_word_len=1, workers=1))

def train(home:Path, out:Path, cfg:TrainCfg, frozen:tuple[str, ...]):
    "One session of the run: from the newest checkpoint to the end, or until killed. With dropout, so that its randomness is tested too."
    torch.set_num_threads(1) # so small a model gains nothing from two, and they would wait for each other on a busy machine
    tok = load_tokenizer(home / 'tokenizer')
    model = build_model(model_config('tiny', len(tok), dropout_rate=0.1, d_model=64, num_heads=2, d_ff=128), init='stock', seed=1)
    freeze(model, frozen)
    stream = PairStream([home / 'data/train.parquet'], tok, budget_tok=256, max_len=64, window=200, seed=1, index_dir=home / 'lengths')
    fit(model, stream, cfg, out, eval_fn=stage_eval(tok, 64, home / 'data/valid.parquet'), progress=False)

def fingerprint(out:Path)->str:
    "Hash of the final weights, optimiser, position and every logged loss."
    path = newest_good(out)
    h = hashlib.sha256((path / 'model.safetensors').read_bytes())
    for o in torch.load(path / 'optim.pt', weights_only=True)['opts']:
        for _, state in sorted(o['state'].items()):
            for _, v in sorted(state.items()): h.update(v.numpy().tobytes() if torch.is_tensor(v) else repr(v).encode())
    state = json.loads((path / 'state.json').read_text())
    h.update(repr([state[k] for k in ('step', 'pos', 'best', 'real_tok')]).encode())
    h.update(repr([(e['step'], e.get('loss'), e.get('loss_valid'), e.get('grad_norm')) for e in read_log(out / 'log.jsonl')]).encode())
    h.update((out / 'checkpoints/best.safetensors').read_bytes())
    return h.hexdigest()

def session(fn, args, kill_after:float|None=None, sig=signal.SIGTERM)->bool:
    "Run fn in a fork; send it `sig` after so many seconds. True if the signal arrived while it ran."
    pid = os.fork()
    if not pid:
        code = 1
        try: fn(*args); code = 0
        except BaseException:
            import traceback; traceback.print_exc()
        finally: sys.stdout.flush(); sys.stderr.flush(); os._exit(code)
    end = time.monotonic() + (kill_after if kill_after is not None else 1e9)
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            if status: raise RuntimeError(f'the training process failed with status {status}')
            return False
        time.sleep(.002)
    os.kill(pid, sig); os.waitpid(pid, 0)
    return True

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--kills', type=int, default=50, help='signals to send in all')
    p.add_argument('--per-run', type=int, default=5, help='signals to one run before it is left to end')
    p.add_argument('--seed', type=int, default=0, help='of the instants')
    a = p.parse_args()
    rng, cfg = random.Random(a.seed), TrainCfg(steps=60, accum=3, lr=1e-3, precision='fp32', log_every=2, eval_every=10, save_every=3, seed=1)
    variants = dict(pretrain=(), sft=('shared.*', 'encoder.*'))
    with tempfile.TemporaryDirectory() as tmp:
        home = Path(tmp)
        session(prepare, (home,))
        want, length = {}, {}
        for name, frozen in variants.items():
            t = time.monotonic(); session(train, (home, home / name, cfg, frozen)); length[name] = time.monotonic() - t
            want[name] = fingerprint(home / name)
        print(f"uninterrupted: {', '.join(f'{k} {length[k]:.1f} s' for k in length)}", flush=True)
        kills = identical = 0
        sent = Counter()
        while kills < a.kills:
            name = rng.choice(list(variants))
            out, here = home / 'killed', 0
            while here < min(a.per_run, a.kills - kills):
                sig = rng.choice(SIGNALS)
                if not session(train, (home, out, cfg, variants[name]), rng.uniform(0, .6) * length[name], sig): break
                here += 1; sent[sig.name] += 1
            session(train, (home, out, cfg, variants[name]))
            same = fingerprint(out) == want[name]
            kills += here; identical += here * same
            print(f'{name}: {here} kills, {"identical" if same else "DIFFERENT"} ({kills} of {a.kills})', flush=True)
            shutil.rmtree(out)
    print('signals:', dict(sent))
    print(f'{kills} kills, {identical} identical')
    return 0 if identical == kills else 1

if __name__ == '__main__': sys.exit(main())
