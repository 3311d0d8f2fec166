"""A character n-gram model with interpolated Kneser-Ney smoothing: what counting alone can know of a text.

Kneser and Ney 1995, in the interpolated form of Chen and Goodman 1999: one discount an order, from the counts.
An n-gram is a number of 12 bits a character, a table of n-grams a sorted array: 40 million characters fit in memory."""
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

BITS = 12 # of one character
START, END, RARE = 0, 1, 2 # before a text, after it, a character without a number of its own
LARGEST = 2**BITS - 3 # characters that get a number

class Order(NamedTuple):
    "All n-grams of one length, sorted, and what follows each history."
    grams:np.ndarray # (n,) uint64
    counts:np.ndarray # (n,) how often; below the highest order: after how many different characters
    histories:np.ndarray # (m,) uint64, the grams without their last character
    totals:np.ndarray # (m,) sum of the counts
    kinds:np.ndarray # (m,) different characters that follow
    discount:float # taken off every count

def order_of(
    grams:np.ndarray, # sorted, distinct
    counts:np.ndarray, # of each
)->Order: # with histories and discount
    "Tabulate what follows each history; the discount is n1 / (n1 + 2 n2)."
    before = grams >> np.uint64(BITS)
    first = np.flatnonzero(np.r_[True, before[1:] != before[:-1]])
    once, twice = (counts == 1).sum(), (counts == 2).sum()
    discount = float(once / (once + 2 * twice)) if once else .5
    kinds = np.diff(np.r_[first, len(grams)])
    return Order(grams, counts, before[first], np.add.reduceat(counts, first), kinds, discount)

def looked_up(
    table:np.ndarray, # sorted
    keys:np.ndarray, # wanted
)->tuple[np.ndarray, np.ndarray]: # positions, whether they are there
    "Binary search for all keys at once."
    at = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return at, table[at] == keys

class CharNgram:
    "Interpolated Kneser-Ney over characters; those beyond the 4,093 commonest share one number and its probability."
    def __init__(self,
        texts:Iterable[str], # to count
        order:int=5, # longest n-gram, at most 5
    ):
        "Count the n-grams of all orders."
        if not 1 <= order <= 64 // BITS: raise ValueError(f'order={order}: expected 1 to {64 // BITS}')
        texts = list(texts)
        seen = Counter()
        for t in texts: seen.update(t)
        common = [c for c, _ in seen.most_common(LARGEST)]
        self.order, self.number = order, {c: k for k, c in enumerate(common, 3)}
        self.n_rare = len(seen) - len(common) + 1 # one more for all that was never seen
        self.n_kinds = len(common) + 2 # with the end and the rare one
        self.orders = self._count(self._numbers(texts))

    def _numbers(self, texts:list[str])->np.ndarray:
        "All texts in a row: start marks, characters, an end mark."
        number, pad = self.number, [START] * (self.order - 1)
        rows = [np.array([*pad, *(number.get(c, RARE) for c in t), END], np.uint64) for t in texts]
        return np.concatenate(rows)

    def _grams(self, ids:np.ndarray, n:int)->np.ndarray:
        "The n-gram that ends at every position that is no start mark."
        keys = np.zeros(len(ids), np.uint64)
        for back in range(n - 1, -1, -1):
            keys <<= np.uint64(BITS)
            keys[back:] |= ids[:len(ids) - back]
        return keys[ids != START]

    def _count(self, ids:np.ndarray)->list[Order]:
        "The tables of all orders, shortest first."
        orders = [order_of(*np.unique(self._grams(ids, self.order), return_counts=True))]
        for n in range(self.order - 1, 0, -1):
            mask = np.uint64((1 << BITS * n) - 1)
            grams, counts = np.unique(orders[0].grams & mask, return_counts=True)
            if n > 1: # nothing stands before a start mark: such grams count as often as they occur
                raw, often = np.unique(self._grams(ids, n), return_counts=True)
                begins = raw >> np.uint64(BITS * (n - 1)) == START
                counts[np.searchsorted(grams, raw[begins])] = often[begins]
            orders.insert(0, order_of(grams, counts))
        return orders

    def logp(self,
        texts:list[str], # to score
    )->np.ndarray: # log2 probability of every character and every end, in a row
        "Interpolate from the shortest order up."
        ids = self._numbers(texts)
        p = np.full((ids != START).sum(), 1 / self.n_kinds)
        for n, table in enumerate(self.orders, 1):
            keys = self._grams(ids, n)
            at, there = looked_up(table.grams, keys)
            history, known = looked_up(table.histories, keys >> np.uint64(BITS))
            own = np.where(there, table.counts[at] - table.discount, 0)
            left = table.discount * table.kinds[history]
            p = np.where(known, (own + left * p) / table.totals[history], p)
        return np.log2(p) - np.where(ids[ids != START] == RARE, np.log2(self.n_rare), 0)

    def bits(self,
        texts:Iterable[str], # scored texts
    )->float: # bits per character, the end counted as one
        "Cross-entropy of texts under this model."
        return float(-self.logp(list(texts)).mean())
