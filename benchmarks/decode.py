"""Greedy decoding on a CPU: int8 by CTranslate2 and bf16 by PyTorch against fp32 by PyTorch, speed and memory.

    python benchmarks/decode.py [--scale base] [--tok 64] [--runs 5] [--threads 1] [--name decode_mine]

A model of the scale's size with random weights writes a fixed number of tokens; what it says does not matter.
Every measurement is a process of its own, the kinds take turns, all with the same threads; medians.
`int8` is the engine alone, as the exported folder's ask.py uses it, without PyTorch; `int8 in ChatBot` goes through the
course's loop; `int8, 8 rows` answers eight questions at once, as fp32 then does. Memory is what is resident at the
end, PyTorch's own included; `... loading` is what opening the folder adds at its peak. How much int8 gains depends on
the processor: CTranslate2 multiplies by MKL on Intel's, by oneDNN on AMD's (results/decode_amd.json).
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from report import row, write

from scclm.runs import SCALES

QUESTION = '天地玄黄宇宙洪荒日月盈昃辰宿列张'
KINDS = ('fp32', 'int8', 'int8 in ChatBot', 'bf16', 'fp16')
MANY = 8 # rows of the batch that fp32 and int8 are measured with besides


def resident(
    field:str='VmRSS', # or VmHWM, the highest so far
)->float: # MiB
    "Memory of this process, as Linux counts it."
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))/1024


def make_tokenizer(
    n:int, # tokens
)->object: # a tokenizer of single characters, with the course's special tokens
    "A vocabulary of the size that the scale has."
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from scclm.tokenizer import SPECIALS
    codes = [*range(0x4e00, 0xa000), *range(0x3400, 0x4dc0), *range(0xac00, 0xd7a4)]
    ids = {token: i for i, token in enumerate([*SPECIALS, *map(chr, codes[:n - len(SPECIALS)])])}
    names = {f'{mark[1:-1].lower()}_token': mark for mark in SPECIALS}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(ids, [], unk_token='[UNK]')), **names)


def prepare(
    home:Path, # written to
    scale:str, # tiny, mini or base
    vocab:int, # tokens
):
    "A random model that never says a special token, and its int8 export; this process and its children use AVX-512."
    from scclm.export import ExportCfg, export
    from scclm.model import build_model, model_config, save_model
    from scclm.runtimes import use_wide_units
    from scclm.tokenizer import SPECIALS
    use_wide_units() # as ask.py and ChatBot do
    model = build_model(model_config(scale, vocab))
    model.shared.weight.data[:len(SPECIALS)] = 0 # its logit is 0: another one is larger
    save_model(model, make_tokenizer(vocab), home/'model')
    export(ExportCfg(str(home/'model'), 'ct2', str(home/'int8'), compare=0))


def open_engine(
    home:Path, # from `prepare`
    threads:int, # of the engine
    rows:int, # questions at once
)->Callable[[int], int]: # tokens to write -> tokens written
    "CTranslate2 without PyTorch."
    from ctranslate2 import Translator
    engine = Translator(str(home/'int8'), compute_type='int8', intra_threads=threads)
    asked = [[*QUESTION, '[EOS]']]*rows
    def decode(n:int)->int:
        "One batch."
        found = engine.translate_batch(asked, beam_size=1, min_decoding_length=n, max_decoding_length=n)
        return sum(len(answer.hypotheses[0]) for answer in found)
    return decode


def open_loop(
    home:Path, # from `prepare`
    kind:str, # one of `KINDS`
    rows:int, # questions at once
)->Callable[[int], int]: # tokens to write -> tokens written
    "The course's loop around PyTorch or around the exported folder."
    import torch

    from scclm.dataset import pad
    from scclm.model import load_model, write_tokens
    from scclm.runtimes import open_export
    dtype = dict(bf16=torch.bfloat16, fp16=torch.float16).get(kind, torch.float32)
    model, tok = open_export(home/'int8') if kind.startswith('int8') else load_model(home/'model', dtype)
    ids, mask = pad([[*tok.convert_tokens_to_ids(list(QUESTION)), 1]]*rows)
    def decode(n:int)->int:
        "One batch."
        return rows*len(list(write_tokens(model, ids, mask, n)))
    return decode


def measure(
    kind:str, # one of `KINDS`
    home:Path, # from `prepare`
    args:argparse.Namespace, # tok, threads, rows
)->dict: # tok_per_s, memory_mb, loading_mb
    "This process is the measurement."
    if kind == 'int8': before, decode = resident(), open_engine(home, args.threads, args.rows)
    else:
        import torch

        import scclm.chat # what a chat loads anyhow
        assert scclm.chat
        torch.set_num_threads(args.threads)
        before, decode = resident(), open_loop(home, kind, args.rows)
    loading = resident('VmHWM') - before
    decode(4) # the first call is slower
    start = time.perf_counter()
    n = decode(args.tok)
    seconds = time.perf_counter() - start
    if n != args.tok*args.rows: raise RuntimeError(f'{kind}: {n} tokens, expected {args.tok*args.rows}')
    return dict(tok_per_s=n/seconds, memory_mb=resident(), loading_mb=loading)


def fresh(
    kind:str, # one of `KINDS`
    home:Path, # from `prepare`
    args:argparse.Namespace, # as given
    rows:int=1, # questions at once
)->dict: # of `measure`
    "`measure` in a process of its own."
    command = [sys.executable, __file__, '--measure', kind, '--home', str(home), '--tok', str(args.tok),
               '--threads', str(args.threads), '--rows', str(rows)]
    env = os.environ | dict(OMP_NUM_THREADS=str(args.threads))
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode: raise RuntimeError(f'{kind}: {done.stderr.strip()[-400:]}')
    return json.loads(done.stdout.splitlines()[-1])


def rows_of(
    found:dict[str, list[dict]], # kind -> its measurements, run by run
    many:dict[str, list[dict]], # the same of fp32 and int8 with `MANY` rows
)->list[dict]: # rows of the result
    "Speed, memory and loading of every kind against fp32."
    def column(kind:str, name:str)->list[float]:
        "One figure of all runs."
        return [m[name] for m in found[kind]]
    fast, slow = ([m['tok_per_s'] for m in many[kind]] for kind in ('int8', 'fp32'))
    rows = [row(f'int8, {MANY} rows', fast, slow, f'fp32 PyTorch, {MANY} rows', 'tok/s')]
    for kind in (k for k in KINDS if k in found):
        rows.append(row(kind, column(kind, 'tok_per_s'), column('fp32', 'tok_per_s'), 'fp32 PyTorch', 'tok/s'))
        for what, name in (('memory', 'memory_mb'), ('loading', 'loading_mb')):
            ours, theirs = column(kind, name), column('fp32', name)
            rows.append(row(f'{kind}, {what}', ours, theirs, 'fp32 PyTorch', 'MiB', higher_is_better=False))
    return rows


def main():
    "Measure all kinds in turn and write results/<name>.json."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--scale', default='base', choices=SCALES)
    parser.add_argument('--vocab', type=int, default=29298, help='tokens of the vocabulary')
    parser.add_argument('--tok', type=int, default=64, help='tokens of an answer')
    parser.add_argument('--rows', type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument('--runs', type=int, default=5)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--name', default='decode', help='of the result: results/<name>.json')
    parser.add_argument('--measure', choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument('--home', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.home, args)))
        return
    found, many = {kind: [] for kind in KINDS}, dict(fp32=[], int8=[])
    with tempfile.TemporaryDirectory() as home:
        prepare(Path(home), args.scale, args.vocab)
        for _ in range(args.runs):
            for kind in KINDS: found[kind].append(fresh(kind, Path(home), args))
            for kind in many: many[kind].append(fresh(kind, Path(home), args, MANY))
    config = {k: getattr(args, k) for k in ('scale', 'vocab', 'tok', 'runs', 'threads')}
    write(args.name, config, rows_of(found, many))


if __name__ == '__main__': main()
