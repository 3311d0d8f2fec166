"""Chapter 00 against its baselines: rows cleaned per second, near duplicates found per second, memory, word counting.

Baseline and ours alternate in the same run on the same rows; the medians count.
Rows come from a parquet file with prompt and response (`--data`), else from the generated sample corpus."""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from report import write
from slow_rules import fast_rows, slow_row

from scclm.duplicates import band_keys, jaccard, key_pairs, minhash, ngrams, normal_form, same_texts
from scclm.readers import read_file
from scclm.sample_corpus import make_sample_corpus
from scclm.sources import _values, find_sources


def sample_pairs()->Iterator[tuple[str, str]]:
    "The first two fields of every readable row of the sample corpus."
    with tempfile.TemporaryDirectory() as d:
        make_sample_corpus(Path(d))
        sources, _ = find_sources(Path(d))
        for s in sources:
            for row in read_file(s):
                fields, _ = _values(row.record, s.schema) if row.record else (None, '')
                if fields: yield fields[0], fields[1]


def rows_of(path:Path|None, n:int)->tuple[list[str], list[str]]:
    "`n` rows of a parquet file in random order, else of the sample corpus, as two lists."
    if path is None:
        pairs = list(sample_pairs())
    else:
        t = pq.read_table(path, columns=['prompt', 'response'])
        pairs = list(zip(t['prompt'].to_pylist(), t['response'].to_pylist()))
    order = np.random.default_rng(0).permutation(len(pairs))[:n]
    return [pairs[k][0] for k in order], [pairs[k][1] for k in order]


class Seconds(NamedTuple):
    "Medians of the runs."
    ours:float
    baseline:float


def alternate(ours:Callable[[], None], baseline:Callable[[], None], runs:int)->Seconds:
    "Median seconds of each, taken in turn."
    times = {ours: [], baseline: []}
    for _ in range(runs):
        for f in (baseline, ours):
            start = time.perf_counter()
            f()
            times[f].append(time.perf_counter() - start)
    return Seconds(statistics.median(times[ours]), statistics.median(times[baseline]))


def row(what:str, n:int, seconds:Seconds, baseline_name:str, unit:str, runs:int, **more:object)->dict:
    "One row of the results: `n` things a run, as a rate."
    ours, base = n/seconds.ours, n/seconds.baseline
    return dict(what=what, ours=round(ours, 1), baseline=round(base, 1), baseline_name=baseline_name,
                unit=unit, ratio=round(ours/base, 2), runs=runs, **more)


def rule_chain(args:argparse.Namespace)->list[dict]:
    """Row `rule chain`: every rule over every row, ours on all cores against per-character Python,
    which does all that the library does, over every eighth row; on these, both must give the same."""
    prompts, responses = rows_of(args.data, args.rows)
    chunks = [(prompts[k:k + 8192], responses[k:k + 8192]) for k in range(0, len(prompts), 8192)]
    some = list(zip(prompts[::8], responses[::8]))
    got = {}
    def baseline():
        "Some rows through per-character Python."
        got['baseline'] = [slow_row(*pair) for pair in some]
    with ProcessPoolExecutor(args.workers, get_context('spawn')) as pool:
        list(pool.map(fast_rows, *zip(*chunks[:args.workers]))) # start the workers
        def ours():
            "Every chunk through the library, on all workers."
            got['ours'] = [r for rows in pool.map(fast_rows, *zip(*chunks)) for r in rows]
        seconds = alternate(ours, baseline, args.runs)
    same = sum(a == b for a, b in zip(got['ours'][::8], got['baseline']))
    whole = Seconds(seconds.ours, seconds.baseline*len(prompts)/len(some))
    return [row('rule chain', len(prompts), whole, 'per-character Python, one process', 'rows/s', args.runs,
                workers=args.workers, same_output=round(same/len(some), 6), compared=len(some))]


def alike(a:str, b:str)->bool:
    "The true similarity of two texts, against the threshold."
    return jaccard(ngrams(a), ngrams(b)) >= 0.85


def keys_of(texts:list[str])->np.ndarray:
    "Signatures and bands of some texts. Runs in a worker."
    return band_keys(minhash(texts))


def holds(texts:list[str], pairs:np.ndarray)->np.ndarray:
    "Which pairs of texts are alike. Runs in a worker."
    return same_texts(texts, pairs)


def near_pairs_ours(texts:list[str], pool:ProcessPoolExecutor, workers:int)->set[tuple[int, int]]:
    "Candidate rows by signatures and bands, then the true similarity; halves go to the workers."
    step = -(-len(texts)//workers)
    keys = pool.map(keys_of, [texts[k:k + step] for k in range(0, len(texts), step)])
    shares = np.array_split(key_pairs(np.concatenate(list(keys), axis=1)), workers)
    tasks = []
    for pairs in shares:
        ids, places = np.unique(pairs, return_inverse=True)
        tasks.append(([texts[k] for k in ids], places.reshape(-1, 2)))
    good = [pairs[held] for pairs, held in zip(shares, pool.map(holds, *zip(*tasks)))]
    return set(map(tuple, np.concatenate(good).tolist()))


def near_pairs_datasketch(texts:list[str], one_by_one:bool=False)->set[tuple[int, int]]:
    "The same with datasketch and 256 permutations; `one_by_one`: n-gram by n-gram, as the ancestor calls it."
    from datasketch import MinHash, MinHashLSH
    lsh = MinHashLSH(threshold=0.85, num_perm=256)
    pairs = set()
    for j, t in enumerate(texts):
        m = MinHash(num_perm=256)
        grams = [g.encode('utf-8') for g in ngrams(t)]
        if one_by_one:
            for g in grams: m.update(g)
        else: m.update_batch(grams)
        pairs |= {(i, j) for i in lsh.query(m) if alike(texts[i], t)}
        lsh.insert(j, m)
    return pairs


def with_near_copies(texts:list[str])->list[str]:
    "The texts, and of every tenth a copy with one character more."
    return texts + [t[:len(t)//2] + '甲' + t[len(t)//2:] for t in texts[::10]]


def near_duplicates(args:argparse.Namespace)->list[dict]:
    """Rows `near duplicates`: pairs of rows that are 0.85 alike in 4-grams, a near copy planted for every tenth row;
    datasketch with one call a text, the faster way, and with one call an n-gram, as the ancestor uses it."""
    prompts, responses = rows_of(args.data, args.docs)
    texts = [normal_form(f'{p}{r}') for p, r in zip(prompts, responses)]
    texts = [t for t in texts if len(t) >= 40]
    list_of = [with_near_copies(texts), with_near_copies(texts[::4])] # one call an n-gram takes four times as long
    with ProcessPoolExecutor(args.workers, get_context('spawn')) as pool:
        list(pool.map(keys_of, [texts[:99]]*args.workers)) # start the workers
        return [near_row(some, slow, pool, args) for some, slow in zip(list_of, (False, True))]


def near_row(texts:list[str], one_by_one:bool, pool:ProcessPoolExecutor, args:argparse.Namespace)->dict:
    "One of the two rows."
    got = {}
    def ours():
        "Pairs found by the library."
        got['ours'] = near_pairs_ours(texts, pool, args.workers)
    def baseline():
        "Pairs found by datasketch."
        got['baseline'] = near_pairs_datasketch(texts, one_by_one)
    seconds = alternate(ours, baseline, args.runs)
    what = 'near duplicates' + ', one call an n-gram'*one_by_one
    return row(what, len(texts), seconds, 'datasketch, 256 permutations', 'docs/s', args.runs,
               workers=args.workers, pairs_ours=len(got['ours']),
               pairs_baseline=len(got['baseline']), pairs_both=len(got['ours'] & got['baseline']))


PEAK = """
import sys
from pathlib import Path
from scclm.data_cleaning import CleanCfg, clean
clean(CleanCfg(raw=Path(sys.argv[1]), workers=1, progress=False))
status = Path('/proc/self/status').read_text() # of this program alone: ru_maxrss begins with the parent's peak
print(int(status.split('VmHWM:')[1].split()[0])/1024)
"""


def _peak_of_clean(rows:int, folder:Path)->float:
    "Peak resident memory in MB of one process that cleans this many rows."
    raw = folder/f'raw{rows}'
    raw.mkdir()
    rng = np.random.default_rng(rows)
    with open(raw/'pairs.jsonl', 'w', encoding='utf-8') as f:
        for k in range(rows):
            text = ''.join(map(chr, rng.integers(0x4E00, 0x9FA5, 60)))
            record = dict(prompt=f'第{k}题：{text[:12]}是什么？', response=f'{text}。')
            f.write(json.dumps(record, ensure_ascii=False) + '\n')
    env = {**os.environ, 'SCCLM_RUNS': str(folder/f'runs{rows}')}
    command = [sys.executable, '-c', PEAK, str(raw)]
    return float(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)


def memory(args:argparse.Namespace)->list[dict]:
    "Row `clean, peak memory`: three times the rows, the same memory."
    with tempfile.TemporaryDirectory() as d:
        big, small = (_peak_of_clean(n, Path(d)) for n in (300_000, 100_000))
    return [dict(what='clean, peak memory', ours=round(big, 1), baseline=round(small, 1),
                 baseline_name='100,000 rows instead of 300,000', unit='MB', ratio=round(small/big, 2), runs=1)]


ROWS = [rule_chain, near_duplicates, memory]


def main():
    "Run the rows asked for, print them, write them."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, help='file with prompt and response; default: the sample corpus')
    p.add_argument('--rows', type=int, default=65536, help='rows of the rule chain')
    p.add_argument('--docs', type=int, default=16000, help='documents of the near duplicates')
    p.add_argument('--workers', type=int, default=2)
    p.add_argument('--runs', type=int, default=3)
    p.add_argument('--only', nargs='*', choices=[f.__name__ for f in ROWS], help='functions to run')
    args = p.parse_args()
    rows = []
    for f in ROWS:
        if not args.only or f.__name__ in args.only: rows += f(args)
    config = {k: v for k, v in vars(args).items() if k != 'data'}
    config['data'] = args.data.name if args.data else 'sample corpus'
    write('data', config, rows, merge=True)


if __name__ == '__main__': main()
