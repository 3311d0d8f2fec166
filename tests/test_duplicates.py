"Near duplicates against truths that know nothing of hashes: sets of strings, every pair, row after row."
import random
from collections import defaultdict
from itertools import combinations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_toys import put_lines, run

from scclm import duplicates
from scclm.duplicates import (EXACT, KEPT_ROW, LEAK, NEAR, Chunk, NearCfg, Spool, band_keys, clusters, jaccard,
    key_pairs, mark_exact, mark_near, minhash, new_fates, ngram_hashes, ngrams, normal_forms, row_keys, same_text,
    same_texts, settle, write_arrow)
from scclm.readers import Block

LETTERS = [chr(c) for c in range(0x4E00, 0x4E00 + 3000)]


def text_of(rng:random.Random, n:int)->str: return ''.join(rng.choices(LETTERS, k=n))


def edited(rng:random.Random, text:str, edits:int)->str:
    "A text with some characters replaced."
    chars = list(text)
    for k in rng.sample(range(len(chars)), min(edits, len(chars))): chars[k] = rng.choice(LETTERS)
    return ''.join(chars)


texts = st.text(st.sampled_from('甲乙丙ab1 😀\U0002a6d6'), max_size=12)


@given(st.lists(texts, max_size=8), st.integers(1, 5))
@settings(deadline=None, max_examples=150)
def test_equal_ngrams_have_equal_numbers(rows, n):
    grams, starts = ngram_hashes(rows, n)
    number_of = {}
    for text, a, b in zip(rows, starts[:-1], starts[1:], strict=True):
        want = [text[i:i + n] for i in range(len(text) - n + 1)] or [text.ljust(n, '\1')]
        assert len(want) == b - a
        for gram, number in zip(want, grams[a:b].tolist()): assert number_of.setdefault(gram, number) == number
    assert len(set(number_of.values())) == len(number_of)


@pytest.mark.parametrize('chars', [4, 5, 12, 60, 700])
@pytest.mark.parametrize('shared', [.3, .8])
def test_slots_are_equal_as_often_as_jaccard_says(chars, shared):
    "Every slot on its own, in short texts, which take every round, and in long ones, which take one."
    rng = random.Random(chars)
    pairs = [(a, a[:round(shared*chars)] + text_of(rng, chars - round(shared*chars)))
             for a in (text_of(rng, chars) for _ in range(400))]
    true = np.mean([jaccard(ngrams(a), ngrams(b)) for a, b in pairs])
    a, b = (minhash([p[k] for p in pairs]) for k in (0, 1))
    by_slot = (a == b).mean(0)
    assert abs(by_slot.mean() - true) < .02 and np.abs(by_slot - true).max() < 5*np.sqrt(true*(1 - true)/400) + .001


@given(st.lists(texts, max_size=8), st.sampled_from([1, 7, 70]))
@settings(deadline=None, max_examples=60)
def test_a_signature_depends_on_the_set_alone(rows, size):
    "Not on its neighbours, nor on how often or in which order an n-gram stands; and no slot is empty."
    sig = minhash(rows, size=size)
    assert sig.shape == (len(rows), size) and not (sig == np.uint64(2**64 - 1)).any()
    for text, row in zip(rows, sig): assert (minhash([text], size=size)[0] == row).all()
    for i, j in combinations(range(len(rows)), 2):
        if ngrams(rows[i]) == ngrams(rows[j]): assert (sig[i] == sig[j]).all()


def test_blocks_do_not_show(monkeypatch):
    rng = random.Random(0)
    rows = [text_of(rng, rng.randint(0, 90)) for _ in range(700)]
    whole = minhash(rows)
    monkeypatch.setattr(duplicates, '_BLOCK', 13)
    assert (minhash(rows) == whole).all()


@given(st.lists(st.text(st.sampled_from('甲乙丙丁'), max_size=40), min_size=1, max_size=8), st.sampled_from([.5, .85]),
       st.integers(0, 36))
@settings(deadline=None, max_examples=100)
def test_many_pairs_as_one_by_one(rows, alike, short):
    every = np.array([(i, j) for i in range(len(rows)) for j in range(len(rows))])
    want = [same_text(rows[i], rows[j], alike, short) for i, j in every.tolist()]
    assert same_texts(rows, every, alike, short).tolist() == want
    assert same_texts(rows, every, np.full(len(every), alike), short).tolist() == want


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40))
@settings(deadline=None, max_examples=200)
def test_clusters_are_connected_components(pairs):
    "Against walking from neighbour to neighbour."
    beside = defaultdict(set)
    for i, j in pairs:
        beside[i].add(j)
        beside[j].add(i)
    rows, heads = clusters(np.array(pairs, np.int64).reshape(-1, 2))
    assert rows.tolist() == sorted(beside)
    for row, head in zip(rows.tolist(), heads.tolist()):
        seen, todo = {row}, [row]
        while todo:
            new = beside[todo.pop()] - seen
            seen |= new
            todo += new
        assert head == min(seen)


def spool_of(folder, groups)->Spool:
    "Chunks of (role, rows) on disk."
    chunks = []
    for name, (_, rows) in enumerate(groups):
        asks, answers = (list(column) for column in zip(*rows))
        write_arrow(folder/f'{name}.kept', pa.table(dict(prompt=asks, response=answers)))
        row_keys(normal_forms(asks), normal_forms(answers)).tofile(folder/f'{name}.keys')
        chunks.append(Chunk(str(name), len(rows)))
    return Spool(folder, chunks, [Block('', '', None, role) for role, _ in groups])


def alike(a, b, bar)->bool:
    "Both parts equal, or long and alike, by sets of strings."
    return all(same_text(x, y, bar) for x, y in zip(normal_forms(a), normal_forms(b)))


def family(rng)->list[tuple[str, str]]:
    "Rows that descend from one, each from the one before: neighbours are alike, the ends need not be."
    ask, answer = text_of(rng, rng.choice((8, 50))), text_of(rng, 90)
    rows = [(ask, answer)]
    for _ in range(rng.randint(1, 8)):
        answer = edited(rng, answer, rng.randint(0, 3))
        rows.append((ask, answer))
    return rows


@pytest.mark.parametrize('seed', range(3))
def test_what_goes_names_a_row_that_stays_and_is_like_it(tmp_path, seed):
    "The rule, from its text: a row goes if an earlier row that stays is like it; held-out rows stay."
    rng = random.Random(seed)
    def rows(n): return [row for _ in range(n) for row in rng.sample(family(rng), 2)]
    train = [row for _ in range(20) for row in family(rng)]
    held = [rng.choice(train) for _ in range(6)] + [(edited(rng, a, 1), edited(rng, b, 1)) for a, b in rows(3)]
    train += [held[0], (held[1][0], text_of(rng, 60))] + [rng.choice(train) for _ in range(10)]
    held.append((text_of(rng, 120), text_of(rng, 120)))
    nearly = edited(rng, held[-1][0], 1), edited(rng, held[-1][1], 1)
    train.append(nearly)
    rng.shuffle(train)
    spool, fates = spool_of(tmp_path, [('heldout', held), ('pretrain', train)]), new_fates(len(held) + len(train))
    mark_exact(spool, fates)
    assert mark_near(spool, fates, NearCfg(progress=False)) == []
    settle(fates)
    every = held + train
    kept = np.flatnonzero(fates.status == KEPT_ROW).tolist()
    assert fates.repeats[kept].tolist() == kept and kept[:len(held)] == list(range(len(held)))
    for k, (status, named) in enumerate(zip(fates.status.tolist(), fates.repeats.tolist())):
        if status == KEPT_ROW: continue
        assert named in kept and named < k
        same_question = normal_forms([every[k][0]]) == normal_forms([every[named][0]])
        if status == LEAK: assert named < len(held) and (same_question or alike(every[k], every[named], .9))
        if status == NEAR: assert named >= len(held) and alike(every[k], every[named], .85)
        if status == EXACT: assert normal_forms(every[k]) == normal_forms(every[named]) or named < len(held) or \
            alike(every[k], every[named], .85)
    stays = [k for k in kept if k >= len(held)]
    assert fates.status[len(held) + train.index(nearly)] == LEAK
    for k in stays:
        for row in held: assert normal_forms([every[k][0]]) != normal_forms([row[0]]) and not alike(every[k], row, .9)
    for i, j in combinations(stays, 2): assert not alike(every[i], every[j], .85), 'two rows that stay say the same'


def test_candidates_that_a_killed_run_left_are_not_looked_at(tmp_path):
    "They may bear numbers of rows that are not there any more."
    rng = random.Random(3)
    rows = [(text_of(rng, 20), text_of(rng, 60)) for _ in range(30)]
    rows += [(rows[k][0], edited(rng, rows[k][1], 1)) for k in range(5)]
    found = []
    for name in ('clean', 'left'):
        (tmp_path/name).mkdir()
        spool = spool_of(tmp_path/name, [('pretrain', rows)])
        if name == 'left': np.array([[7, 10**6]], np.int64).tofile(spool.folder/'9-9.pairs')
        fates = new_fates(spool.starts[-1])
        mark_near(spool, fates, NearCfg(progress=False))
        found.append((fates.status.tolist(), fates.repeats.tolist()))
    assert found[0] == found[1] and found[0][0].count(NEAR) == 5


def test_a_chain_of_small_changes_does_not_pull_far_rows_out(tmp_path):
    "Row after row changes a little; the last is like none that stays, and stays."
    rng = random.Random(3)
    chain = [('问', text_of(rng, 120))]
    for k in range(12):
        answer = list(chain[-1][1])
        answer[k*9] = rng.choice(LETTERS)
        chain.append(('问', ''.join(answer)))
    assert all(alike(a, b, .85) for a, b in zip(chain, chain[1:])) and not alike(chain[0], chain[-1], .85)
    spool, fates = spool_of(tmp_path, [('pretrain', chain)]), new_fates(len(chain))
    mark_near(spool, fates, NearCfg(progress=False))
    settle(fates)
    first_unlike = next(k for k, row in enumerate(chain) if not alike(chain[0], row, .85))
    assert fates.status[first_unlike] == KEPT_ROW and 1 < (fates.status == KEPT_ROW).sum() < len(chain)
    for k in np.flatnonzero(fates.status != KEPT_ROW): assert alike(chain[k], chain[fates.repeats[k]], .85)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from(['{}的电话是多少', '第{}条规定了什么', '我欠他{}元钱']),
       st.sampled_from(['是{}。', '一共{}元，请您记好。', '答案是{}']))
@settings(deadline=None, max_examples=60)
def test_short_texts_that_differ_in_a_number_both_stay(tmp_path_factory, a, b, ask, answer):
    rows = [(ask.format(k), answer.format(k)) for k in dict.fromkeys((a, b))]
    folder = tmp_path_factory.mktemp('s')
    spool, fates = spool_of(folder, [('pretrain', rows)]), new_fates(len(rows))
    mark_exact(spool, fates)
    mark_near(spool, fates, NearCfg(progress=False))
    assert (fates.status == KEPT_ROW).all()


def test_texts_that_are_all_punctuation_are_not_the_same(tmp_path):
    "Their normal form would be empty; each stands for itself."
    rng = random.Random(1)
    long = text_of(rng, 60)
    rows = [('？', long), ('！', edited(rng, long, 1))]
    spool, fates = spool_of(tmp_path, [('pretrain', rows)]), new_fates(2)
    mark_near(spool, fates, NearCfg(progress=False))
    assert (fates.status == KEPT_ROW).all()


def test_key_pairs_are_the_equal_keys():
    keys = np.random.default_rng(0).integers(0, 40, (duplicates.BANDS, 30)).astype(np.uint64)
    want = sorted((i, j) for i, j in combinations(range(30), 2) if (keys[:, i] == keys[:, j]).any())
    assert key_pairs(keys).tolist() == [list(p) for p in want]
    assert key_pairs(band_keys(minhash([]))).shape == (0, 2)


def test_rejects_name_the_file_and_the_line(tmp_path, runs):
    "Through `clean`: a duplicate, a near one and a leak of every kind."
    rng = random.Random(5)
    long = text_of(rng, 80)
    files = {'a.jsonl': [dict(prompt='甲是什么', response='是第一。'), dict(prompt='乙的事', response=long)],
             'b.jsonl': [dict(prompt='甲是什么', response='是，第一'), dict(prompt='丙呢', response='不知道。'),
                         dict(prompt='乙的事', response=edited(rng, long, 1))],
             'heldout/q.jsonl': [dict(prompt='丙呢？', response='在家。', kind='x')]}
    for name, rows in files.items(): put_lines(tmp_path/'raw'/name, rows)
    run(tmp_path/'raw')
    gone = pd.read_parquet(runs/'rejects.parquet').set_index('rule')
    assert gone.repeats.to_dict() == dict(duplicate='a.jsonl:1', near_duplicate='a.jsonl:2', leak='heldout/q.jsonl:1')
    assert gone.file.to_dict() == dict.fromkeys(('duplicate', 'near_duplicate', 'leak'), 'b.jsonl')
