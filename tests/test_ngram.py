"The n-gram baseline against a slow one written from the formula, and against what probabilities must be."
import math
import random
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]/'benchmarks'))
import ngram
from ngram import CharNgram


def slow_probability(texts, order, kinds):
    "Interpolated Kneser-Ney, a dictionary a table, straight from Chen and Goodman's formula."
    rows = [('^',) * (order - 1) + tuple(t) + ('$',) for t in texts]
    def grams(n):
        return [row[k - n + 1:k + 1] for row in rows for k in range(order - 1, len(row))]
    tables = {order: Counter(grams(order))}
    for n in range(order - 1, 0, -1):
        often = Counter(grams(n))
        befores = Counter(g[1:] for g in tables[n + 1])
        tables[n] = {g: often[g] if n > 1 and g[0] == '^' else befores[g] for g in often}
    def discount(n):
        once, twice = (sum(c == k for c in tables[n].values()) for k in (1, 2))
        return once / (once + 2*twice) if once else .5
    discounts = {n: discount(n) for n in tables}
    def prob(history, char):
        p = 1 / kinds
        for n in range(1, order + 1):
            before = tuple(history[len(history) - n + 1:]) if n > 1 else ()
            follow = {g[-1]: c for g, c in tables[n].items() if g[:-1] == before}
            if not follow: continue
            own = max(follow.get(char, 0) - discounts[n], 0)
            p = (own + discounts[n]*len(follow)*p) / sum(follow.values())
        return p
    return prob


def toy(n, seed):
    rng = random.Random(seed)
    return [''.join(rng.choices('天地人大小', (5, 3, 2, 1, 1), k=rng.randint(0, 9))) for _ in range(n)]


@pytest.mark.parametrize('order', [1, 2, 3, 5])
def test_equals_the_formula(order):
    train, test = toy(40, 1), toy(15, 2)
    model = CharNgram(train, order)
    prob = slow_probability(train, order, model.n_kinds)
    want = []
    for t in test:
        row = ('^',) * (order - 1) + tuple(t) + ('$',)
        want += [math.log2(prob(row[:k], row[k])) for k in range(order - 1, len(row))]
    assert model.logp(test) == pytest.approx(want)


def test_probabilities_add_up_to_one():
    model = CharNgram(toy(60, 3), 4)
    for before in ('', '天', '天地', '人人人', '小大小大'):
        after = {c: sum(model.logp([before + c])[:len(before) + 1]) for c in '天地人大小鑫'}
        end = model.logp([before]).sum()
        said = sum(model.logp([before])[:-1])
        assert sum(2**(a - said) for a in [*after.values(), end]) == pytest.approx(1)


def test_rare_characters_share_what_one_number_has(monkeypatch):
    monkeypatch.setattr(ngram, 'LARGEST', 2)
    model = CharNgram(['天地天地天人', '天大'], 2)
    assert model.n_rare == 3 # 人, 大 and all that was never seen
    assert model.logp(['人'])[0] == model.logp(['鑫'])[0]


def test_longer_memory_helps_on_text_that_has_some():
    train = ['春眠不觉晓处处闻啼鸟', '夜来风雨声花落知多少'] * 3
    bits = [CharNgram(train, n).bits(['春眠不觉晓处处闻啼鸟']) for n in (1, 2, 5)]
    assert bits[0] > bits[1] > bits[2]


def test_a_length_that_fits_no_number_is_refused():
    with pytest.raises(ValueError, match='order=6: expected 1 to 5'): CharNgram(['天'], 6)
