"""Chapter 00 against its baselines: rows cleaned per second, near duplicates found per second, memory, word counting.

Baseline and ours alternate in the same run on the same rows; the medians count.
Rows come from a parquet file with prompt and response (`--data`), else from the generated sample corpus."""
import argparse
import html
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from report import write
from scclm import data_cleaning as dc

HAN = re.compile('[\u3400-\u4dbf\u4e00-\u9fff]')
CHINESE_OF = dict(zip(',;:!?', '，；：！？'))
ENDS = '。！？!?…'


def is_han(c):
    return '\u4e00' <= c <= '\u9fff' or '\u3400' <= c <= '\u4dbf'


def slow_html(text):
    "Tags and entities, one character at a time."
    if '&' in text: text = html.unescape(text)
    out, i = [], 0
    while i < len(text):
        if text[i] == '<' and (end := text.find('>', i)) > 0 and dc._TAG.fullmatch(text[i:end + 1]):
            if text[i:end + 1].lower().strip('</ >') in ('br', 'p', 'div', 'li', 'tr'): out.append('\n')
            i = end + 1
        else:
            out.append(text[i])
            i += 1
    return ''.join(out)


def slow_chars(text):
    "Invisible characters and full-width forms."
    out = []
    for c in text:
        if c == '\r' or c in '\u200b\u200c\u200d\u2060\ufeff' or (c < ' ' and c not in '\n\t'): continue
        out.append(chr(dc._FORMS[ord(c)]) if isinstance(dc._FORMS.get(ord(c)), int) else c)
    return ''.join(out)


def slow_punct(text):
    "Chinese punctuation next to Chinese characters."
    out = []
    for i, c in enumerate(text):
        before, after = text[i - 1] if i else '', text[i + 1] if i + 1 < len(text) else ''
        touches = (before and (is_han(before) or before in '）》”')), (after and (is_han(after) or after in '《“（'))
        if c in CHINESE_OF and (touches[0] or touches[1]): c = CHINESE_OF[c]
        elif c == '.' and touches[0] and not (after and (after in './' or after.isalnum()) and not is_han(after)): c = '。'
        out.append(c)
    return ''.join(out)


def slow_collapse(text):
    "Runs of punctuation and of spaces."
    out = []
    for i, c in enumerate(text):
        last = out[-1] if out else ''
        if c == last and c in '，、；：。！？~～· ': continue
        if c in '，、；：' and last and last in '。！？': continue
        if c in '。！？' and last and last in '，、；：': out.pop()
        if c == '\t': c = ' '
        if c == ' ' and last and last in '，。！？；：、（）《》“”…': continue
        if c == ' ' and last and is_han(last) and i + 1 < len(text) and is_han(text[i + 1]): continue
        if c in '，。！？；：、（）《》“”…' and last == ' ': out.pop()
        if c == '\n' and last == '\n': continue
        out.append(c)
    return ''.join(out).lstrip('，。、；：！？ \n')


def slow_end(text, limit):
    "Cut an unfinished answer back to its last sentence end, searched character by character."
    if len(text) <= limit and not dc.is_truncated(text): return text
    for k in range(min(limit, len(text)) - 1, -1, -1):
        if text[k] in ENDS: return text[:k + 1]
    return text if len(text) <= limit else ''


def slow_chain(prompts, responses, cfg):
    "The chain of rules, row by row and character by character, as most cleaning scripts are written."
    kept = []
    for p, r in zip(prompts, responses):
        p, r = (dc.balance(slow_collapse(slow_punct(slow_chars(slow_html(t))))).strip() if '```' not in t else t.strip() for t in (p, r))
        r = slow_end(r, cfg.max_response)
        if 1 <= len(p) <= cfg.max_prompt and len(r) >= 1 and '\ufffd' not in p + r and '锟斤拷' not in p + r: kept.append((p, r))
    return kept


def fast_chunk(prompts, responses):
    "One chunk of rows through the library's chain. Runs in a worker."
    p, r, rules = dc.clean_columns('pair', dict(prompt=prompts, response=responses), dc.CleanCfg())
    return [(a, b) for a, b, rule in zip(p, r, rules) if not rule]


def rows_of(path, n):
    "`n` rows of a parquet file in random order, else of the sample corpus, as two lists."
    if path is None:
        with tempfile.TemporaryDirectory() as d:
            from scclm.sample_corpus import make_sample_corpus
            make_sample_corpus(Path(d))
            sources, _ = dc.find_sources(Path(d))
            values = [v[0] for s in sources for b in dc.plan_blocks(s) for r in dc.read_block(b) if r[1] and (v := dc._values(r[1], s.schema))[0]]
        pairs = [(str(v[0]), str(v[1])) for v in values]
    else:
        t = pq.read_table(path, columns=['prompt', 'response'])
        pairs = list(zip(t['prompt'].to_pylist(), t['response'].to_pylist()))
    order = np.random.default_rng(0).permutation(len(pairs))[:n]
    return [pairs[k][0] for k in order], [pairs[k][1] for k in order]


def alternate(ours, baseline, runs):
    "Median seconds of each, taken in turn."
    times = {ours: [], baseline: []}
    for _ in range(runs):
        for f in (baseline, ours):
            start = time.perf_counter()
            f()
            times[f].append(time.perf_counter() - start)
    return statistics.median(times[ours]), statistics.median(times[baseline])


def row(what, n, seconds, baseline_name, unit, runs, **more):
    "One row of the results."
    ours, base = n/seconds[0], n/seconds[1]
    return dict(what=what, ours=round(ours, 1), baseline=round(base, 1), baseline_name=baseline_name, unit=unit, ratio=round(ours/base, 2), runs=runs, **more)


def rule_chain(args):
    "Row `rule chain`: every rule over every row, ours on all cores against per-character Python."
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context
    prompts, responses = rows_of(args.data, args.rows)
    chunks = [(prompts[k:k + 8192], responses[k:k + 8192]) for k in range(0, len(prompts), 8192)]
    cfg, got = dc.CleanCfg(), {}
    with ProcessPoolExecutor(args.workers, get_context('spawn')) as pool:
        list(pool.map(fast_chunk, *zip(*chunks[:args.workers])))  # start the workers
        def ours(): got['ours'] = [r for rows in pool.map(fast_chunk, *zip(*chunks)) for r in rows]
        def baseline(): got['baseline'] = slow_chain(prompts, responses, cfg)
        seconds = alternate(ours, baseline, args.runs)
    same = len(set(got['ours']) & set(got['baseline']))/len(set(got['baseline']))
    return [row('rule chain', len(prompts), seconds, 'per-character Python, one process', 'rows/s', args.runs, workers=args.workers, same_output=round(same, 4))]


def near_pairs_ours(texts):
    "Candidate rows by MinHash and bands, then the true similarity."
    keys, ids = dc.band_keys(dc.minhash(texts)), np.arange(len(texts))
    pairs = []
    for key in keys:
        order = np.argsort(key, kind='stable')
        pairs.append(dc._pairs_in_groups(key[order], ids[order]))
    pairs = set().union(*(map(tuple, p.tolist()) for p in pairs))
    return {(i, j) for i, j in pairs if dc.jaccard(dc.ngrams(texts[i]), dc.ngrams(texts[j])) >= 0.85}


def near_pairs_datasketch(texts):
    "The same with datasketch and 256 permutations."
    from datasketch import MinHash, MinHashLSH
    lsh, pairs = MinHashLSH(threshold=0.85, num_perm=256), set()
    for j, t in enumerate(texts):
        m = MinHash(num_perm=256)
        m.update_batch([g.encode('utf-8') for g in dc.ngrams(t)])
        pairs |= {(i, j) for i in lsh.query(m) if dc.jaccard(dc.ngrams(texts[i]), dc.ngrams(t)) >= 0.85}
        lsh.insert(j, m)
    return pairs


def near_duplicates(args):
    "Row `near duplicates`: pairs of rows that are 0.85 alike in 4-grams, every tenth row planted as a near copy."
    prompts, responses = rows_of(args.data, args.docs)
    texts = [dc.normal_form(f'{p}{r}') for p, r in zip(prompts, responses)]
    texts = [t for t in texts if len(t) >= 40]
    texts += [t[:len(t)//2] + '甲' + t[len(t)//2:] for t in texts[::10]]
    got = {}
    def ours(): got['ours'] = near_pairs_ours(texts)
    def baseline(): got['baseline'] = near_pairs_datasketch(texts)
    seconds = alternate(ours, baseline, args.runs)
    both = len(got['ours'] & got['baseline'])
    return [row('near duplicates', len(texts), seconds, 'datasketch, 256 permutations', 'docs/s', args.runs,
        pairs_ours=len(got['ours']), pairs_baseline=len(got['baseline']), pairs_both=both)]


def _peak_of_clean(rows, folder):
    "Peak resident memory in MB of one process that cleans this many rows."
    raw = folder/f'raw{rows}'
    raw.mkdir()
    rng = np.random.default_rng(rows)
    with open(raw/'pairs.jsonl', 'w', encoding='utf-8') as f:
        for k in range(rows):
            text = ''.join(map(chr, rng.integers(0x4E00, 0x9FA5, 60)))
            f.write(json.dumps(dict(prompt=f'第{k}题：{text[:12]}是什么？', response=f'{text}。'), ensure_ascii=False) + '\n')
    code = ('import resource, sys; from pathlib import Path; from scclm.data_cleaning import CleanCfg, clean\n'
            "clean(CleanCfg(raw=Path(sys.argv[1]), workers=1, progress=False)); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024)")
    env = {**__import__('os').environ, 'SCCLM_RUNS': str(folder/f'runs{rows}')}
    return float(subprocess.run([sys.executable, '-c', code, str(raw)], env=env, capture_output=True, text=True, check=True).stdout)


def memory(args):
    "Row `clean, peak memory`: three times the rows, the same memory."
    with tempfile.TemporaryDirectory() as d:
        big, small = (_peak_of_clean(n, Path(d)) for n in (300_000, 100_000))
    return [dict(what='clean, peak memory', ours=round(big, 1), baseline=round(small, 1), baseline_name='100,000 rows instead of 300,000', unit='MB', ratio=round(big/small, 2), runs=1)]


ROWS = [rule_chain, near_duplicates, memory]


def main():
    "Run the rows asked for, print them, write them."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, help='file with prompt and response; default: the sample corpus')
    p.add_argument('--rows', type=int, default=65536, help='rows of the rule chain')
    p.add_argument('--docs', type=int, default=8000, help='documents of the near duplicates')
    p.add_argument('--workers', type=int, default=2)
    p.add_argument('--runs', type=int, default=3)
    p.add_argument('--only', nargs='*', choices=[f.__name__ for f in ROWS], help='functions to run')
    args = p.parse_args()
    rows = [r for f in ROWS if not args.only or f.__name__ in args.only for r in f(args)]
    config = {k: v for k, v in vars(args).items() if k != 'data'} | dict(data=args.data.name if args.data else 'sample corpus')
    write('data', config, rows, merge=True)


if __name__ == '__main__': main()
