"""Word counting against jieba in one process, encoding speed, and peak memory at a chosen size.

    python benchmarks/words.py [--data data.parquet] [--rows 5000000] [--check 4000]

Both sides read parquet, cut with jieba's dictionary mode and count; the baseline reads every k-th row of the same
file. `--rows` counts a file of that many rows as well, each with a number of its own, so that distinct words grow
with the rows; memory is what all processes hold together, shared pages divided among them. The repeated rows do not
help: a process cuts no more than a few megabytes of neighbouring rows at once, in which no row comes twice.

`--check` rows are cut by jieba and block by block. Where they differ, the two cuts must be equally likely in jieba's
dictionary, in whole numbers; anything else stops the benchmark.
"""
import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from math import prod
from pathlib import Path

import jieba
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerFast

from report import row, write
from scclm.blocks import code_points, cut_blocks
from scclm.dataset import encode
from scclm.runs import require, run_path
from scclm.tokenizer import TokenizerCfg, _heaps, _jieba_joins, _word_runs, build_tokenizer, count_words, cut

def thin(file:Path, n:int, out:Path)->Path:
    "Every k-th row of `file`, about `n` rows."
    table = pq.read_table(file, columns=['prompt', 'response'])
    step = max(1, len(table)//n)
    pq.write_table(table.take(pa.array(range(0, len(table), step))), out, row_group_size=4096)
    return out

def repeat(file:Path, n:int, out:Path)->Path:
    "The rows of `file` over and over, `n` in all, in row groups of 4096, each prompt followed by its row number."
    table = pq.read_table(file, columns=['prompt', 'response'])
    done = 0
    with pq.ParquetWriter(out, table.schema) as w:
        while done < n:
            part = table.slice(0, n - done)
            ids = pc.cast(pa.array(range(done, done + len(part))), pa.string())
            prompts = pc.binary_join_element_wise(part['prompt'].combine_chunks(), ids, ' ')
            w.write_table(part.set_column(0, 'prompt', prompts), row_group_size=4096)
            done += len(part)
    return out

def jieba_count(file:Path)->Counter:
    "The baseline: one process, one text at a time."
    counts = Counter()
    for b in pq.ParquetFile(file).iter_batches(4096, columns=['prompt', 'response']):
        for col in b.columns:
            for text in col.to_pylist(): counts.update(jieba.cut(text or '', HMM=False))
    return counts

def block_words(text:str)->list[str]:
    "The words of a text, each block cut alone: what `count_words` counts."
    last = cut_blocks(code_points(text), np.array([len(text)]), _jieba_joins()).last
    ends = np.flatnonzero(last) + 1
    return [word for start, end in pairwise([0, *ends.tolist()]) for word in cut(text[start:end])]

def equally_likely(a:list[str], b:list[str])->bool:
    "Do two cuts of a text have the same probability, in whole numbers?"
    times = [prod(jieba.dt.FREQ.get(word) or 1 for word in words) for words in (a, b)]
    return times[0]*jieba.dt.total**len(b) == times[1]*jieba.dt.total**len(a)

def parts_that_differ(a:list[str], b:list[str])->tuple[list[str], list[str]]:
    "The words of two cuts of a text without those that both have at the same place."
    places = [[0, *np.cumsum([len(word) for word in words]).tolist()] for words in (a, b)]
    spans = [dict(zip(pairwise(ends), words)) for ends, words in zip(places, (a, b))]
    return tuple([word for span, word in mine.items() if span not in other] for mine, other in (spans, spans[::-1]))

def compare_cuts(file:Path)->dict:
    "How many texts of `file` jieba cuts otherwise than block by block. Every one must be a tie."
    table = pq.read_table(file, columns=['prompt', 'response'])
    texts = [text for column in table.columns for text in column.to_pylist() if text]
    cuts = ((text, block_words(text), list(jieba.cut(text, HMM=False))) for text in texts)
    differ = [(text, *parts_that_differ(ours, theirs)) for text, ours, theirs in cuts if ours != theirs]
    wrong = [(ours, theirs) for _, ours, theirs in differ if not equally_likely(ours, theirs)]
    if wrong: raise SystemExit(f'{len(wrong)} texts are cut otherwise, and not for a tie: {wrong[:3]}')
    return row('texts that jieba cuts otherwise, all ties', [len(differ)], [len(texts)], 'texts compared', 'texts',
               higher_is_better=False)

def block_share(file:Path)->dict:
    "How much of `file` is left to cut when every distinct block of a heap is cut once, in the heaps that are counted."
    table = pq.read_table(file, columns=['prompt', 'response'])
    columns = (column for batch in table.to_batches(4096) for column in batch.columns)
    arrays = (column.cast(pa.large_string()).drop_null() for column in columns)
    left = whole = 0
    for texts in _heaps(arrays):
        points = code_points(''.join(texts.to_pylist()))
        longer = cut_blocks(points, np.cumsum(pc.utf8_length(texts).to_numpy()), _jieba_joins()).longer
        left += pc.sum(pc.utf8_length(pc.unique(longer))).as_py()
        whole += len(points)
    name = f'characters of {len(table):,} rows'
    return row('characters in distinct blocks', [left], [whole], name, 'characters', higher_is_better=False)

def rows_per_s(count:Callable[[Path], object], file:Path)->float:
    "Rows of `file` that `count` takes a second."
    t = time.perf_counter()
    count(file)
    return pq.ParquetFile(file).metadata.num_rows/(time.perf_counter() - t)

COUNT = """
import sys, time
from scclm.tokenizer import count_words
t = time.perf_counter()
count_words([sys.argv[1]], 20)
print(time.perf_counter() - t)
"""

def count_apart(file:Path)->tuple[float, float]:
    """Count in a process of its own: seconds, and the most that it and its children hold together, in MB (shared
    pages divided among them)."""
    child = subprocess.Popen([sys.executable, '-c', COUNT, str(file)], stdout=subprocess.PIPE, text=True)
    me = psutil.Process(child.pid)
    peak = 0
    while child.poll() is None:
        try: held = sum(p.memory_full_info().pss for p in [me, *me.children(recursive=True)])
        except psutil.Error: held = 0 # one has just ended
        peak = max(peak, held)
        time.sleep(.2)
    if child.returncode: raise SystemExit(f'counting {file} failed')
    return float(child.stdout.read()), peak/2**20

def chars_per_s(tok:PreTrainedTokenizerFast, texts:list[str])->float:
    "Characters that a tokenizer encodes a second, one text at a time."
    t = time.perf_counter()
    for text in texts: tok(text)
    return sum(map(len, texts))/(time.perf_counter() - t)

def encoding(file:Path, runs:int)->dict:
    "Characters a second on texts of 300 characters: as built, and with a pre-tokeniser that changes no id."
    words, chars, _ = count_words([file])
    ours = build_tokenizer(words, chars, TokenizerCfg(min_count=20, min_char_count=1))
    other = build_tokenizer(words, chars, TokenizerCfg(min_count=20, min_char_count=1))
    other.backend_tokenizer.pre_tokenizer = _word_runs()
    answers = pq.read_table(file, columns=['response']).column(0).to_pylist()[:8000]
    text = ''.join(t for t in answers if t)
    texts = [text[i:i + 300] for i in range(0, len(text) - 300, 300)]
    assert ours(texts, verbose=False).input_ids == other(texts, verbose=False).input_ids
    pairs = [(chars_per_s(ours, texts), chars_per_s(other, texts)) for _ in range(runs)]
    built = [a for a, _ in pairs]
    split = [b for _, b in pairs]
    return row('encoding', built, split, 'with a pre-tokeniser', 'characters/s')

def in_batches(file:Path, runs:int)->dict:
    "Rows a second through `encode`, 4096 at a time in this process, against the library's own batches."
    words, chars, _ = count_words([file])
    tok = build_tokenizer(words, chars, TokenizerCfg(min_count=5, min_char_count=2))
    table = pq.read_table(file, columns=['prompt', 'response'])
    batches = [[t or '' for column in b.columns for t in column.to_pylist()] for b in table.to_batches(4096)]
    backend = tok.backend_tokenizer
    ends = [tok.eos_token_id]
    def library()->Iterator[list[list[int]]]:
        "What `encode` gives, by the library."
        for texts in batches: yield [e.ids + ends for e in backend.encode_batch_fast(texts)]
    def ours()->Iterator[list[list[int]]]:
        "Each batch through `encode`."
        for texts in batches: yield encode(texts, tok)
    def use_up(batches:Callable[[], Iterator])->Callable[[], object]:
        "One batch after the other, none kept."
        return lambda: deque(batches(), maxlen=0)
    assert all(a == b for a, b in zip(ours(), library(), strict=True))
    pairs = [(seconds(use_up(ours)), seconds(use_up(library))) for _ in range(runs)]
    mine = [len(table)/s for s, _ in pairs]
    theirs = [len(table)/s for _, s in pairs]
    return row('encoding, batches of 4096 rows', mine, theirs, "the library's batches", 'rows/s')

def seconds(f:Callable[[], object])->float:
    "How long it takes."
    t = time.perf_counter()
    f()
    return time.perf_counter() - t

def big(file:Path, n:int, out:Path, jieba_rows_per_s:float)->list[dict]:
    "Speed and peak memory at `n` rows."
    seconds, peak = count_apart(repeat(file, n, out))
    return [row(f'word counting, {n:,} rows', [n/seconds], [jieba_rows_per_s], 'jieba, one process', 'rows/s'),
            row(f'peak memory, {n:,} rows', [peak], [1024], 'limit of 1 GB', 'MB', higher_is_better=False)]

def counting(file:Path, few:Path, runs:int)->tuple[list[float], list[float]]:
    "Rows a second of every run: ours on `file`, jieba on `few` of its rows."
    def ours(path:Path)->object:
        "Count on all cores."
        return count_words([path])
    pairs = [(rows_per_s(ours, file), rows_per_s(jieba_count, few)) for _ in range(runs)]
    return [mine for mine, _ in pairs], [theirs for _, theirs in pairs]

def options()->argparse.Namespace:
    "The command line."
    p = argparse.ArgumentParser()
    p.add_argument('--data', type=Path, help='parquet with prompt and response; default: train.parquet of this scale')
    p.add_argument('--rows', type=int, default=0, help='also measure time and peak memory at this many rows')
    p.add_argument('--check', type=int, default=4000, help='cut about this many rows by jieba too')
    p.add_argument('--runs', type=int, default=3)
    return p.parse_args()

def main():
    "Measure, and add the rows to results/data.json."
    args = options()
    file = args.data or require(run_path('data', 'train.parquet'), 'clean')
    with tempfile.TemporaryDirectory() as tmp:
        some = thin(file, 30_000, Path(tmp)/'some.parquet')
        batches = in_batches(some, args.runs) # before jieba's dictionary fills the caches
        jieba.setLogLevel('ERROR')
        jieba.initialize()
        few = thin(file, 4000, Path(tmp)/'few.parquet')
        all_rows = thin(file, 10**9, Path(tmp)/'all.parquet')
        ours, theirs = counting(all_rows, few, args.runs)
        rows = [row('word counting', ours, theirs, 'jieba, one process', 'rows/s'), encoding(few, args.runs),
                batches, block_share(some), compare_cuts(thin(file, args.check, Path(tmp)/'check.parquet'))]
        if args.rows: rows += big(all_rows, args.rows, Path(tmp)/'big.parquet', theirs[-1])
    n_rows = pq.ParquetFile(file).metadata.num_rows
    config = dict(words_file=file.name, words_rows=n_rows, big_rows=args.rows, checked_rows=args.check)
    write('data', config, rows, merge=True)

if __name__ == '__main__': main()
