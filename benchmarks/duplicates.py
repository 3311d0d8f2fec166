"""Near duplicates against brute force on real rows: the S-curve, recall and precision.

    python benchmarks/duplicates.py --data mixed.parquet [--rows 20000]

Blocks of consecutive rows are taken from the file, so that rows which stood together stay together, and a fifth as many
copies with random edits are added, so that every similarity occurs. Brute force compares every row with every other by
the strings of its n-grams and knows nothing of hashes, signatures or bands."""
import argparse
import random
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from report import write

from scclm.duplicates import (BAND_ROWS, BANDS, KEPT_ROW, Chunk, NearCfg, Spool, band_keys, mark_exact, mark_near,
    minhash, new_fates, normal_form, normal_forms, row_keys, settle, write_arrow)
from scclm.readers import Block

BINS = np.round(np.arange(0.2, 1.001, 0.05), 2)
ALIKE, SHORT = NearCfg().near, NearCfg().short


class Row(NamedTuple):
    "A row in normal form."
    ask:str
    answer:str


def blocks_of_rows(path:Path, n:int, block:int=500)->list[tuple[str, str]]:
    "`n` rows of a file in blocks of consecutive ones, evenly spread."
    table = pq.read_table(path, columns=['prompt', 'response'])
    n = min(n, len(table))
    starts = np.linspace(0, len(table) - min(block, n), max(1, n//block)).astype(int)
    at = np.unique((starts[:, None] + np.arange(min(block, n))).ravel())
    rows = table.take(pa.array(at))
    return list(zip(rows['prompt'].to_pylist(), rows['response'].to_pylist()))


def edited(rows:list[tuple[str, str]], n:int, rng:random.Random)->list[tuple[str, str]]:
    "Copies of long rows with some characters of the answer replaced: from one to a third of them."
    long = [(p, r) for p, r in rows if len(r) >= 2*SHORT]
    copies = []
    for p, r in rng.choices(long, k=n):
        chars = list(r)
        for at in rng.sample(range(len(chars)), 1 + int(rng.random()**2*len(chars)/3)): chars[at] = rng.choice('甲乙丙丁戊己')
        copies.append((p, ''.join(chars)))
    return copies


def grams_of(text:str)->set[str]:
    "The n-grams of a text, as strings."
    return {text[i:i + 4] for i in range(max(1, len(text) - 3))}


def similarity(a:str, b:str)->float:
    "Jaccard similarity, from the definition."
    return len(grams_of(a) & grams_of(b))/len(grams_of(a) | grams_of(b))


def say_the_same(a:Row, b:Row)->bool:
    "The rule of the chapter, from its text: equal or, where both are long, alike; for the question and the answer."
    def one(x:str, y:str)->bool:
        "The same of one part."
        return x == y or (min(len(x), len(y)) >= SHORT and similarity(x, y) >= ALIKE)
    return one(a.ask, b.ask) and one(a.answer, b.answer)


def every_similarity(texts:list[str])->Iterator[tuple[int, np.ndarray, np.ndarray]]:
    "For every row the later rows that share an n-gram, and the Jaccard similarity of each, by counting."
    grams = [grams_of(t) for t in texts]
    sizes = np.array([len(g) for g in grams])
    holders = defaultdict(list)
    for k, mine in enumerate(grams):
        for g in mine: holders[g].append(k)
    holders = {g: np.array(rows, np.int32) for g, rows in holders.items() if len(rows) > 1}
    for k, mine in enumerate(grams):
        lists = [holders[g] for g in mine if g in holders]
        shared = np.bincount(np.concatenate(lists) if lists else [], minlength=len(texts)).astype(int)
        later = k + 1 + np.flatnonzero(shared[k + 1:])
        yield k, later, shared[later]/(sizes[k] + sizes[later] - shared[later])


class Truth(NamedTuple):
    "What brute force found."
    pairs:np.ndarray # of the whole rows, per bin of `BINS`
    compared:np.ndarray # those that share a key
    same:list[tuple[int, int]] # rows that say the same


def brute_force(rows:list[Row])->Truth:
    "Every pair of rows."
    texts = [r.ask + r.answer for r in rows]
    keys = band_keys(minhash(texts))
    pairs, compared, same = np.zeros(len(BINS), int), np.zeros(len(BINS), int), []
    for k, later, alike in every_similarity(texts):
        far = alike >= BINS[0]
        later, alike = later[far], alike[far]
        bins = np.digitize(alike, BINS) - 1
        shares = (keys[:, later] == keys[:, [k]]).any(0)
        np.add.at(pairs, bins, 1)
        np.add.at(compared, bins, shares)
        same += [(k, j) for j in later[alike >= ALIKE - .2].tolist() if say_the_same(rows[k], rows[j])]
    return Truth(pairs, compared, same)


def removed_by_definition(n:int, same:list[tuple[int, int]])->set[int]:
    "Row after row: it goes if an earlier row that stays says the same."
    earlier = defaultdict(list)
    for i, j in same: earlier[j].append(i)
    gone = set()
    for j in range(n):
        if any(i not in gone for i in earlier[j]): gone.add(j)
    return gone


def removed_by_library(rows:list[tuple[str, str]])->dict[int, int]:
    "Removed row -> the row that it repeats, by the library's own passes: text is spooled, keys are of normal forms."
    asks, answers = zip(*rows)
    with tempfile.TemporaryDirectory() as d:
        write_arrow(Path(d)/'0.kept', pa.table(dict(prompt=asks, response=answers)))
        row_keys(normal_forms(asks), normal_forms(answers)).tofile(Path(d)/'0.keys')
        spool, fates = Spool(Path(d), [Chunk('0', len(rows))], [Block('', '', None, 'pretrain')]), new_fates(len(rows))
        mark_exact(spool, fates)
        mark_near(spool, fates, NearCfg(progress=False))
    settle(fates)
    return {k: int(fates.repeats[k]) for k in np.flatnonzero(fates.status != KEPT_ROW).tolist()}


def curve(truth:Truth)->list[dict]:
    "A row per similarity: the share of pairs that share a key, and what the formula says of the middle of the bin."
    rows = []
    for low, n, found in zip(BINS, truth.pairs.tolist(), truth.compared.tolist()):
        middle = min(1., float(low) + .025)
        formula = 1 - (1 - middle**BAND_ROWS)**BANDS
        what = f'compared at similarity {low:.2f}'
        if n: rows.append(dict(what=what, ours=round(found/n, 4), baseline=round(formula, 4), baseline_name='formula',
                               unit='share', ratio=None, runs=1, pairs=n))
    return rows


def scores(rows:list[Row], removed:dict[int, int], truth:Truth)->list[dict]:
    """Recall of the rows that should go; precision: removed rows that say the same as the row they name.
    Rows that equal an earlier one are left out: these are easy."""
    first = {}
    for k, row in enumerate(rows): first.setdefault(row, k)
    new = set(first.values())
    should = removed_by_definition(len(rows), truth.same) & new
    gone = {k: repeats for k, repeats in removed.items() if k in new}
    right = sum(say_the_same(rows[i], rows[j]) for j, i in gone.items())
    found = len(should & set(gone))
    def score(what:str, part:int, whole:int)->dict:
        "One share of the rows."
        share = round(part/whole, 5)
        return dict(what=what, ours=share, baseline=1., baseline_name='brute-force Jaccard', unit='share', ratio=share,
                    runs=1, rows=whole)
    return [score('near duplicates, recall', found, len(should)), score('near duplicates, precision', right, len(gone))]


def main():
    "Compare, print, write."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, required=True, help='parquet with prompt and response')
    p.add_argument('--rows', type=int, default=20_000, help='rows of the file')
    args = p.parse_args()
    raw = blocks_of_rows(args.data, args.rows)
    raw += edited(raw, len(raw)//5, random.Random(0))
    rows = [Row(normal_form(p) or p, normal_form(r) or r) for p, r in raw]
    truth = brute_force(rows)
    removed = removed_by_library(raw)
    write('duplicates', dict(data=args.data.name, rows=args.rows, with_edited_copies=len(rows)),
          [*scores(rows, removed, truth), *curve(truth)])


if __name__ == '__main__': main()
