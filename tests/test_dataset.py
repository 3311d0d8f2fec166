"The stream against independent truths: a plain-Python plan, the rows themselves, other libraries, real processes."
import copy
import gc
import json
import pickle
import random
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from raw_toys import put_pairs
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.utils.rnn import pad_sequence
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast

from scclm import dataset
from scclm.dataset import (
    EpochPlan, Pair, PairDataset, PairIds, PairStream, check_files, collate, columns, cut_batches, decode, encode,
    encode_pairs, hf_dataset, length_index, length_order, pad, padding_share, pair_batches, permutation, plan_window,
    prefetched, read_pairs, real_share)
from scclm.tokenizer import ALWAYS, SPECIALS, TokenizerCfg, build_tokenizer, save_tokenizer

CHARS = '春眠不觉晓处闻啼鸟夜来风雨声花落知多少0123456789'

def make_tok(chars=CHARS):
    vocab = {token: i for i, token in enumerate([*SPECIALS, *chars])}
    t = Tokenizer(models.WordLevel(vocab, unk_token='[UNK]'))
    t.pre_tokenizer = pre_tokenizers.Split('', 'isolated')
    return PreTrainedTokenizerFast(tokenizer_object=t, pad_token='[PAD]', eos_token='[EOS]', unk_token='[UNK]')

@pytest.fixture
def tok(): return make_tok()

def texts(n, seed, top=40):
    "n pairs; the prompt begins with the row number, so that every row is different."
    rnd = random.Random(seed)
    def word(): return ''.join(rnd.choices(CHARS[:20], k=int(top ** rnd.random())))
    return [f'{i:04}' + word() for i in range(n)], [word() for _ in range(n)]

@pytest.fixture(params=[0], ids='rows of seed {}'.format)
def two_files(request, tmp_path):
    p, r = texts(230, request.param)
    return [put_pairs(tmp_path/'a.parquet', p[:150], r[:150], 17),
            put_pairs(tmp_path/'b.parquet', p[150:], r[150:], 30)]

@pytest.fixture
def mk(two_files, tok, tmp_path):
    "A small stream; keyword arguments override."
    def f(files=two_files, tok=tok, **kw):
        dials = dict(budget_tok=150, max_len=24, window=60, index_dir=tmp_path/'idx', n_epochs=2)
        return PairStream(files, tok, **(dials | kw))
    return f

def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

def rows_of(batch):
    cols = zip(*[batch[k] for k in ('input_ids', 'attention_mask', 'labels')])
    return [(tuple(p[m == 1].tolist()), tuple(r[r != -100].tolist())) for p, m, r in cols if (r != -100).any()]

def expected_rows(tok, files, max_len):
    "By hand, without `encode_pairs`: one character is one token."
    def ids(s): return tuple([tok.convert_tokens_to_ids(c) for c in s][:max_len-1] + [1])
    return [(ids(o['prompt']), ids(o['response'])) for f in files for o in pq.read_table(f).to_pylist()]


# ---------------------------------------------------------------- text to ids and back

WORDS = {'海水': 90, '上海': 50, '水面': 40, '上海水面': 9, 'EO': 7, 'PA': 5}
SAYINGS = ['上海水面', '海水上面', '', '上海 水面！\n', '他打了[EOS]，又打了[PAD][SEP]', '[MASK]上海[UNK]', '龘上', '水' * 40]

@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "A tokenizer of words and characters, as a folder that nobody writes again."
    folder = tmp_path_factory.mktemp('words')/'tok'
    chars = Counter(''.join(WORDS) + '他打了又，！' + ALWAYS)
    save_tokenizer(build_tokenizer(WORDS, chars, TokenizerCfg(min_count=1, min_char_count=1)), folder)
    return folder

@pytest.fixture
def words_tok(saved): return PreTrainedTokenizerFast.from_pretrained(saved)

def truth(saved, texts, max_len=10**9, added=()):
    "What the Rust tokenizer of the file says, which no Python object has touched."
    fresh = Tokenizer.from_file(str(saved/'tokenizer.json'))
    fresh.add_tokens(list(added))
    fresh.encode_special_tokens = True
    return [fresh.encode(t).ids[:max_len-1] + [1] for t in texts]

@pytest.mark.parametrize('max_len', [None, 1, 2, 5, 100])
def test_encode_is_the_file_and_an_end_mark(saved, words_tok, max_len):
    assert encode(SAYINGS, words_tok, max_len) == truth(saved, SAYINGS, max_len or 10**9)
    assert encode([], words_tok, max_len) == []
    assert [r[-1] for r in encode(SAYINGS, words_tok, max_len, eos=2)] == [2]*len(SAYINGS)

@pytest.mark.parametrize('name', SPECIALS)
def test_a_typed_special_name_is_its_characters(words_tok, name):
    vocab = json.loads(words_tok.backend_tokenizer.to_str())['model']['vocab']
    inner = name[1:-1]
    pieces = [inner[:2], *inner[2:]] if inner[:2] in WORDS else list(inner)      # EO and PA are words
    own = [vocab[t] for t in ['[', *pieces, ']']]
    assert words_tok(name).input_ids == [vocab[name]]                            # a plain call sees the special token
    assert encode([name, f'上海{name}海水'], words_tok) == [own + [1], [vocab['上海'], *own, vocab['海水'], 1]]
    assert encode_pairs([name], [f'{name}{name}'], words_tok, 50) == [PairIds(own + [1], own + own + [1])]
    assert decode(words_tok, [*own, 1, 0, 0]) == name

def cut_short(tok): tok(SAYINGS, truncation=True, padding=True, max_length=3)
def fill_left(tok): tok(SAYINGS, padding='max_length', max_length=64, padding_side='left')
def split_names(tok): tok(SAYINGS, split_special_tokens=True)
def turn_the_backend(tok):
    tok.split_special_tokens = True
    tok.padding_side = tok.truncation_side = 'left'
    tok.backend_tokenizer.enable_padding(length=50)
    tok.backend_tokenizer.enable_truncation(2)
    tok.backend_tokenizer.encode_special_tokens = True

@pytest.mark.parametrize('early', [True, False], ids=['before the first encode', 'after it'])
@pytest.mark.parametrize('disturb', [cut_short, fill_left, split_names, turn_the_backend])
def test_encode_does_not_depend_on_earlier_calls(saved, words_tok, disturb, early):
    want = truth(saved, SAYINGS)
    if not early: assert encode(SAYINGS, words_tok) == want
    disturb(words_tok)
    assert encode(SAYINGS, words_tok) == want
    pairs = encode_pairs(SAYINGS, SAYINGS[::-1], words_tok, 4)
    short = truth(saved, SAYINGS, 4)
    assert pairs == list(zip(short, short[::-1]))

def test_threads_encode_while_another_truncates(saved, words_tok):
    "The first encode of a tokenizer, and many more, with its state changing all the time."
    want = truth(saved, SAYINGS)
    begin = threading.Barrier(4)
    stop = threading.Event()
    wrong = []
    def disturb():
        begin.wait()
        n = 1
        while not stop.is_set():
            words_tok(SAYINGS, truncation=True, padding=True, max_length=n, split_special_tokens=n % 2 == 0)
            n = n % 7 + 1
    def read():
        begin.wait()
        try:
            for _ in range(300):
                got = encode(SAYINGS, words_tok)
                if got != want: wrong.append(got)
        except Exception as e: wrong.append(e)
    readers = [threading.Thread(target=read) for _ in range(3)]
    other = threading.Thread(target=disturb)
    for t in (*readers, other): t.start()
    for t in readers: t.join()
    stop.set()
    other.join()
    assert wrong == []

def test_added_tokens_are_seen_at_once(saved, words_tok):
    text = ['上海水面龘龘上']
    assert encode(text, words_tok) == truth(saved, text)
    words_tok.add_tokens(['龘龘'])                                               # a new entry
    assert encode(text, words_tok) == truth(saved, text, added=['龘龘']) != truth(saved, text)
    size = len(words_tok)
    words_tok.add_tokens(['海水'])                                               # an old entry: now it is cut out first
    both = truth(saved, text, added=['龘龘', '海水'])
    assert encode(text, words_tok) == both != truth(saved, text, added=['龘龘']) and len(words_tok) == size
    words_tok.add_special_tokens({'additional_special_tokens': ['<上>']})
    assert words_tok('<上>').input_ids == [size]                                 # special for a plain call
    assert encode(['<上>'], words_tok) == truth(saved, ['<上>'])                 # text for us

def test_a_copy_is_a_tokenizer_of_its_own(saved, words_tok):
    text = ['龘龘']
    encode(text, words_tok)
    deep, again = copy.deepcopy(words_tok), pickle.loads(pickle.dumps(words_tok))
    deep.add_tokens(text)
    assert encode(text, deep) == [[len(words_tok), 1]]
    assert encode(text, words_tok) == encode(text, again) == truth(saved, text) == [[6, 6, 1]]

def test_dead_tokenizers_are_forgotten(saved):
    gc.collect()
    before = len(dataset._COPIES)
    toks = [PreTrainedTokenizerFast.from_pretrained(saved) for _ in range(5)]
    toks += [copy.deepcopy(o) for o in toks]
    for o in toks: encode(SAYINGS, o)
    dead = [weakref.ref(o) for o in toks]
    assert len(dataset._COPIES) == before + 10
    del o, toks
    gc.collect()
    assert [ref() for ref in dead] == [None]*10 and len(dataset._COPIES) == before

@pytest.mark.parametrize('fill', [0, -100])
@pytest.mark.parametrize('seed', range(5))
def test_pad_equals_torch(seed, fill):
    rnd = random.Random(seed)
    rows = [[rnd.randrange(1, 99) for _ in range(rnd.randrange(1, 12))] for _ in range(rnd.randrange(1, 9))]
    ids, mask = pad(rows, fill)
    theirs = [pad_sequence([torch.tensor(o) for o in lists], batch_first=True, padding_value=value)
              for lists, value in ((rows, fill), ([[1]*len(o) for o in rows], 0))]
    assert ids.dtype == mask.dtype == torch.int64
    assert torch.equal(ids, theirs[0]) and torch.equal(mask, theirs[1])

def test_read_pairs_and_columns(two_files):
    rows = pq.read_table(two_files[0]).to_pylist()
    pairs = read_pairs(two_files[0])
    assert pairs == [Pair(**o) for o in rows] and read_pairs(str(two_files[0]), 20) == pairs[:20]
    assert columns(iter(pairs)) == ([o['prompt'] for o in rows], [o['response'] for o in rows])
    assert columns([]) == ([], [])


# ---------------------------------------------------------------- the plan

def ref_shuffle(n, *key):
    raw = np.random.PCG64([*key, len(key)]).random_raw(n).tolist()
    return sorted(range(n), key=lambda i: raw[i])

def ref_plan(lens, sizes, budget, max_len, window, seed, epoch):
    "The plan in plain Python: [[batch of global row numbers]] per window."
    groups, start = [], 0
    for o in sizes:
        for n in o:
            groups.append(list(range(start, start + n)))
            start += n
    eff = [(min(a + 1, max_len), min(b + 1, max_len)) for o in lens for a, b in o.tolist()]
    wins, cur = [], []
    for g in ref_shuffle(len(groups), seed, epoch):
        cur = cur + groups[g]
        if len(cur) >= window:
            wins.append(cur)
            cur = []
    if cur: wins.append(cur)
    step, res = max(1, round(budget ** 0.5 / 10)), []
    for w, rows in enumerate(wins):
        rows = [rows[i] for i in ref_shuffle(len(rows), seed, epoch, w)]
        def place(i):
            band = eff[i][1] // step
            return band, eff[i][0] * (-1)**band
        batches, b = [], []
        for i in sorted(rows, key=place):
            t = b + [i]
            cells = len(t) * (max(eff[j][0] for j in t) + max(eff[j][1] for j in t))
            if b and cells > budget:
                batches.append(b)
                t = [i]
            b = t
        batches.append(b)
        res.append([batches[i] for i in ref_shuffle(len(batches), seed, epoch, w, 1)])
    return res

@pytest.mark.parametrize('case', range(25), ids='seed {}'.format)
def test_plan_equals_plain_python(case):
    rnd = random.Random(case)
    sizes = [[rnd.randint(1, 40) for _ in range(rnd.randint(1, 8))] for _ in range(rnd.randint(1, 3))]
    gen = np.random.default_rng(case)
    lens = [gen.integers(0, rnd.choice([3, 50, 300]), (sum(o), 2)).astype(np.uint16) for o in sizes]
    budget = rnd.choice([2, 64, 768, 4096])
    max_len = rnd.choice([2, 20, 256])
    window = rnd.choice([1, 33, 1000])
    seed = rnd.randint(0, 9)
    epoch = rnd.randint(0, 3)
    p = EpochPlan(lens, sizes, budget, max_len, window, seed)
    base = np.cumsum([0] + [len(o) for o in lens])
    ours = []
    for w, g in enumerate(p.windows(epoch)):
        rows = [base[f] + a + i for f, _, a, n in g.tolist() for i in range(n)]
        ours.append([[int(rows[i]) for i in b] for b in p.batches(g, epoch, w)])
    assert ours == ref_plan(lens, sizes, budget, max_len, window, seed, epoch)
    assert sorted(i for w in ours for b in w for i in b) == list(range(base[-1]))

def test_permutation_is_pinned():
    "A stream saved today must mean the same order in ten years."
    assert permutation(10, 0, 0).tolist() == [5, 1, 8, 7, 0, 6, 4, 9, 2, 3]
    assert permutation(10, 3, 1, 4).tolist() == [3, 5, 9, 8, 2, 1, 7, 0, 4, 6]
    assert sorted(permutation(1000, 5).tolist()) == list(range(1000))
    assert permutation(50, 1).tolist() != permutation(50, 1, 0).tolist() != permutation(50, 1, 0, 0).tolist()

def test_shuffle_is_even():
    "Every row is as likely in the first half as in the second, whatever its length."
    lens = [np.random.default_rng(0).integers(1, 60, (400, 2)).astype(np.uint16)]
    early = np.zeros(400)
    for e in range(200):
        p = EpochPlan(lens, [[20]*20], 256, 64, 100, seed=1)
        order = []
        for w, g in enumerate(p.windows(e)):
            rows = np.concatenate([first + np.arange(20) for first in g[:, 2]])
            order += [rows[b] for b in p.batches(g, e, w)]
        early[np.concatenate(order)[:200]] += 1
    assert 70 < early.min() and early.max() < 130                  # binomial(200, 1/2): sd 7
    assert abs(np.corrcoef(early, lens[0].sum(1))[0, 1]) < 0.2

@pytest.mark.parametrize('budget', [1, 64, 768])
def test_batches_fill_the_budget(budget):
    lens = np.random.default_rng(budget).integers(1, 70, (500, 2))
    cuts = cut_batches(lens, budget)
    assert cuts[0] == 0 and cuts[-1] == 500
    for a, b in zip(cuts, cuts[1:]):
        assert b - a == 1 or (b - a) * lens[a:b].max(0).sum() <= budget
        assert b == 500 or (b + 1 - a) * lens[a:b+1].max(0).sum() > budget     # the next row did not fit

@pytest.mark.parametrize('budget,least', [(768, 0.96), (4096, 0.92)])
def test_real_share_on_long_tailed_lengths(budget, least):
    g = np.random.default_rng(0)
    lens = np.minimum(np.exp(g.normal([3, 3.6], [0.8, 1.1], (16384, 2))).astype(int) + 1, 256)
    assert real_share(lens, plan_window(lens, budget, (0, 0, 0))) > least
    assert real_share(lens, np.split(permutation(16384, 0), 1024)) < 0.5

def test_row_groups_larger_than_the_window_and_tiny_dials(mk, two_files, tok):
    for kw in (dict(window=1), dict(window=10**6), dict(budget_tok=2), dict(max_len=2)):
        s = mk(n_epochs=1, **kw)
        assert Counter(r for b in s for r in rows_of(b)) == Counter(expected_rows(tok, two_files, s.planner.max_len))
        if kw == dict(budget_tok=2): assert s.n_batches() == 230
    assert len(mk(window=1).plan()) == len(mk().planner.groups) and len(mk(window=10**6).plan()) == 1


# ---------------------------------------------------------------- the stream

def test_every_row_once_an_epoch_and_epochs_differ(mk, two_files, tok):
    s = mk(n_epochs=3)
    out, n = list(s), [s.n_batches(e) for e in range(3)]
    assert len(out) == sum(n)
    epochs = [[r for b in out[sum(n[:e]):sum(n[:e+1])] for r in rows_of(b)] for e in range(3)]
    assert all(Counter(o) == Counter(expected_rows(tok, two_files, 24)) for o in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    flat = [b for e in range(3) for w in s.plan(e) for b in w]
    rows = expected_rows(tok, two_files, 24)
    assert [rows_of(b) for b in out] == [[rows[i] for i in b] for b in flat]        # the text is the plan's text
    assert all(b.keys() == {'input_ids', 'attention_mask', 'labels'} for b in out)

def test_without_shuffle_epochs_are_equal_and_in_file_order(mk):
    s = mk(shuffle=False)
    assert str(s.plan(0)) == str(s.plan(5))
    firsts = [min(int(b.min()) for b in w) for w in s.plan(0)]
    assert firsts == sorted(firsts)

def test_seed_changes_the_order(mk): assert str(mk(seed=1).plan()) != str(mk(seed=2).plan())

@pytest.mark.parametrize('world', [1, 2, 3, 5])
def test_ranks_reunite(mk, world):
    whole = list(mk())
    shares = [list(mk(rank=r, world=world)) for r in range(world)]
    assert {len(o) for o in shares} == {len(whole)}
    for i, b in enumerate(whole):
        rows = rows_of(b)
        for r in range(world): assert rows_of(shares[r][i]) == rows[r::world]
    if world == 5:
        starved = [b for o in shares for b in o if not rows_of(b)]
        assert starved and all(b['input_ids'].tolist() == [[1]] and b['labels'].tolist() == [[-100]] for b in starved)

@pytest.mark.parametrize('prefetch', [0, 3])
def test_resume_at_every_position(mk, prefetch):
    whole, s, states = list(mk(prefetch=0)), mk(prefetch=prefetch), []
    states.append(json.dumps(s.state_dict()))
    for _ in s: states.append(json.dumps(s.state_dict()))
    assert len(states) == len(whole) + 1
    for i, state in enumerate(states):
        t = mk(prefetch=prefetch if i % 7 == 0 else 0)
        t.load_state_dict(json.loads(state))
        assert t.state_dict() == json.loads(state)
        k = None if i % 7 == 0 else 3
        assert all(same(a, b) for a, b in zip(islice(t, k), whole[i:][:k], strict=True))

def test_number_of_ranks_changes_midway(mk, two_files, tok):
    seen, k = [], 11
    first = [mk(rank=r, world=2, n_epochs=1) for r in range(2)]
    for s in first: seen += [r for b in islice(s, k) for r in rows_of(b)]
    assert first[0].state_dict() == first[1].state_dict()
    for r in range(3):
        s = mk(rank=r, world=3, n_epochs=1)
        s.load_state_dict(first[0].state_dict())
        seen += [r for b in s for r in rows_of(b)]
    assert Counter(seen) == Counter(expected_rows(tok, two_files, 24))

def test_a_second_loop_goes_on(mk):
    s, whole = mk(), list(mk())
    for _ in islice(s, 5): pass
    assert same(next(iter(s)), whole[5]) and len(list(s)) == len(whole) - 6 and list(s) == []

def test_forever(mk):
    n = sum(mk().n_batches(e) for e in range(2))
    s = mk(n_epochs=None)
    assert len(list(islice(s, n + 3))) == n + 3 and s.state_dict()['epoch'] == 2

@pytest.mark.parametrize('field,kw', [
    ('seed', dict(seed=1)), ('budget_tok', dict(budget_tok=151)), ('max_len', dict(max_len=25)),
    ('window_rows', dict(window=61)), ('shuffle', dict(shuffle=False))])
def test_state_of_other_dials_is_refused(mk, field, kw):
    with pytest.raises(ValueError, match=f'saved with {field}='): mk(**kw).load_state_dict(mk().state_dict())

def test_state_of_other_files_or_tokenizer_is_refused(mk, two_files):
    state = mk().state_dict()
    with pytest.raises(ValueError, match='saved with fingerprint='): mk(files=two_files[::-1]).load_state_dict(state)
    with pytest.raises(ValueError, match='saved with tokenizer='): mk(tok=make_tok(CHARS[::-1])).load_state_dict(state)
    less = {k: v for k, v in state.items() if k != 'seed'}
    with pytest.raises(ValueError, match="has no 'seed'"): mk().load_state_dict(less)
    with pytest.raises(ValueError, match='three integers'): mk().load_state_dict({**state, 'batch': -1})
    with pytest.raises(ValueError, match='three integers'): mk().load_state_dict({**state, 'window': 'x'})

def test_state_survives_a_copied_file(mk, two_files, tmp_path):
    state = mk().state_dict()
    (tmp_path/'copy').mkdir()
    copies = [tmp_path/'copy'/o.name for o in two_files]
    for a, b in zip(two_files, copies): b.write_bytes(a.read_bytes())
    moved = mk(files=copies)
    moved.load_state_dict(state)
    assert moved.state_dict() == state

def test_position_beyond_the_plan_is_refused(mk):
    with pytest.raises(ValueError, match='beyond'): mk().load_state_dict({**mk().state_dict(), 'window': 10**6})
    with pytest.raises(ValueError, match='beyond'): mk().load_state_dict({**mk().state_dict(), 'batch': 10**6})

def test_the_main_thread_may_use_the_tokenizer(mk, tok):
    "transformers switches padding on inside the shared Rust object; the stream owns a copy."
    whole, out = list(mk()), []
    for b in mk():
        out.append(b)
        tok(['春', '春眠不觉晓'], padding=True, truncation=True, max_length=2)
    assert all(same(a, b) for a, b in zip(out, whole, strict=True))
    assert mk().state_dict() == mk(tok=make_tok()).state_dict()


# ---------------------------------------------------------------- threads

def prefetch_threads(): return [t for t in threading.enumerate() if t.name == 'prefetch']

def test_no_thread_is_left_behind(mk):
    for _ in mk(n_epochs=None): break
    it = iter(mk(n_epochs=None))
    next(it)
    assert prefetch_threads()
    it.close()
    with pytest.raises(RuntimeError, match='stop'):
        for _ in mk(n_epochs=None): raise RuntimeError('stop')
    assert prefetch_threads() == []

def test_error_in_the_thread_reaches_the_consumer(mk, two_files):
    s = mk(window=1)
    it = iter(s)
    next(it)
    two_files[0].unlink()
    with pytest.raises(FileNotFoundError, match='a.parquet has gone'): list(it)
    assert prefetch_threads() == []

def test_file_cut_short_is_named(mk, two_files):
    s = mk()
    two_files[1].write_bytes(two_files[1].read_bytes()[:200])
    with pytest.raises(OSError, match='b.parquet'): list(s)

def test_prefetch_runs_ahead_but_not_far():
    made = []
    def items():
        for i in range(100):
            made.append(i)
            yield i
    def asked_for(n):
        "How many have been asked for, `n` expected, when no more are for a while."
        end = time.monotonic() + 5
        while len(made) < n and time.monotonic() < end: time.sleep(0.01)
        time.sleep(0.3)
        return len(made)
    it = prefetched(items(), 4)
    assert next(it) == 0 and asked_for(7) == 7                   # 1 handed over, 2 ready, 4 in hand
    assert list(islice(it, 3)) == [1, 2, 3] and asked_for(15) == 15       # in all: 3, then 4 + 4 + 4
    assert list(it) == list(range(4, 100))

@pytest.mark.parametrize('n', [0, 1, 3, 8])
def test_prefetch_loses_nothing_before_an_error(n):
    def items():
        yield from range(7)
        raise OSError('gone')
    got = []
    with pytest.raises(OSError, match='gone'):
        for o in prefetched(items(), n): got.append(o)
    assert got == list(range(7)) and prefetch_threads() == []

def test_python_leaves_with_a_stream_open(two_files, tok, tmp_path):
    tok.save_pretrained(tmp_path/'tok')
    code = '''
import sys
from transformers import PreTrainedTokenizerFast
from scclm.dataset import PairStream
folder, index_dir, *files = sys.argv[1:]
it = iter(PairStream(files, PreTrainedTokenizerFast.from_pretrained(folder), index_dir=index_dir))
next(it)
print('read')'''
    command = [sys.executable, '-c', code, *map(str, (tmp_path/'tok', tmp_path/'i', *two_files))]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (out.returncode, out.stdout.strip()) == (0, 'read') and 'Traceback' not in out.stderr


# ---------------------------------------------------------------- the index

def index_files(tmp_path): return sorted((tmp_path/'idx').glob('*.npy'))

def test_index_holds_the_lengths_and_leaves_the_data_folder_alone(mk, two_files, tok, tmp_path):
    data = put_pairs(tmp_path/'data.parquet', ['春', '', '春眠不'], ['x'*70000, '春眠', ''], 2)
    before = sorted(tmp_path.iterdir())
    lens, = length_index(data, tok, tmp_path/'idx')
    assert lens.tolist() == [[1, 65535], [0, 2], [3, 0]] and isinstance(lens, np.memmap)
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path/'idx']) and len(index_files(tmp_path)) == 1

@pytest.mark.parametrize('damage', ['cut', 'flip', 'garbage', 'empty', 'shape', 'dtype', 'pickle'])
def test_damaged_index_is_built_again(two_files, tok, tmp_path, damage):
    good = [o.copy() for o in length_index(two_files, tok, tmp_path/'idx')]
    for path in index_files(tmp_path):
        raw = bytearray(path.read_bytes())
        if damage == 'cut': raw = raw[:-5]
        if damage == 'flip': raw[-30] ^= 4
        if damage == 'garbage': raw = bytearray(b'no index at all' * 9)
        if damage == 'empty': raw = bytearray()
        path.unlink()
        path.write_bytes(raw)
        if damage == 'shape': np.save(path, np.zeros((3, 2), np.uint16))
        if damage == 'dtype': np.save(path, np.zeros((len(good[0]) + 1, 2), np.int32))
        if damage == 'pickle': np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    again = length_index(two_files, tok, tmp_path/'idx')
    assert all(np.array_equal(a, b) for a, b in zip(good, again, strict=True)) and len(index_files(tmp_path)) == 2

def test_another_file_or_tokenizer_gets_another_index(two_files, tok, tmp_path):
    length_index(two_files[0], tok, tmp_path/'idx')
    length_index(two_files[0], make_tok(CHARS[1:]), tmp_path/'idx')
    put_pairs(two_files[0], ['春'], ['眠'], 9)
    assert length_index(two_files[0], tok, tmp_path/'idx')[0].tolist() == [[1, 1]] and len(index_files(tmp_path)) == 3

def test_a_rank_waits_for_the_builder(two_files, tok, tmp_path):
    "Rank 1 builds nothing and returns what rank 0 writes."
    res = []
    def wait(): res.extend(length_index(two_files, tok, tmp_path/'idx', rank=1, patience_s=60))
    t = threading.Thread(target=wait)
    t.start()
    time.sleep(0.5)
    assert t.is_alive() and not index_files(tmp_path)
    built = length_index(two_files, tok, tmp_path/'idx', rank=0)
    t.join(30)
    assert all(np.array_equal(a, b) for a, b in zip(res, built, strict=True))

def test_a_rank_does_not_wait_for_ever(two_files, tok, tmp_path):
    assert len(length_index(two_files, tok, tmp_path/'idx', rank=1, patience_s=0.3)[0]) == 150


# ---------------------------------------------------------------- bad input

def test_bad_files(tok, tmp_path):
    put_pairs(tmp_path/'null.parquet', ['春', None], ['眠', '眠'], 1)
    pq.write_table(pa.table(dict(prompt=['春'])), tmp_path/'half.parquet')
    pq.write_table(pa.table(dict(prompt=[1], response=[2])), tmp_path/'int.parquet')
    put_pairs(tmp_path/'none.parquet', pa.array([], 'string'), pa.array([], 'string'), 1)
    (tmp_path/'zero.parquet').touch()
    (tmp_path/'text.parquet').write_text('prompt,response\n' * 9)
    faults = [
        ('half', ValueError, "half.parquet: no column 'response'"),
        ('int', ValueError, 'int64: expected text'),
        ('none', ValueError, 'has no rows'),
        ('zero', ValueError, 'not a parquet'),
        ('text', ValueError, 'not a parquet'),
        ('gone', FileNotFoundError, 'gone.parquet is missing'),
        ('null', ValueError, 'null.parquet: row group 1')]
    for name, err, words in faults:
        with pytest.raises(err, match=words): PairStream(tmp_path/f'{name}.parquet', tok, index_dir=tmp_path/'idx')
    with pytest.raises(FileNotFoundError, match='is missing'): check_files(tmp_path)
    with pytest.raises(ValueError, match='files is empty'): check_files([])

@pytest.mark.parametrize('kw,words', [
    (dict(max_len=1), 'max_len=1'), (dict(budget_tok=1), 'budget_tok=1'), (dict(window=0), 'window=0'),
    (dict(seed=-1), 'seed=-1'), (dict(rank=2, world=2), 'rank=2'), (dict(rank=-1), 'rank=-1'),
    (dict(prefetch=-1), 'prefetch=-1')])
def test_bad_dials(mk, kw, words):
    with pytest.raises(ValueError, match=words): mk(**kw)

def test_tokenizer_with_other_special_ids(mk, two_files):
    t = Tokenizer(models.WordLevel({'[UNK]': 0, '[PAD]': 1, '[EOS]': 2}, unk_token='[UNK]'))
    bad = PreTrainedTokenizerFast(tokenizer_object=t, pad_token='[PAD]', eos_token='[EOS]', unk_token='[UNK]')
    with pytest.raises(ValueError, match=r'\(1, 2\): expected \(0, 1\)'): next(iter(mk(tok=bad)))

def test_other_column_types_and_extra_columns(tok, tmp_path):
    p, r = texts(50, 3)
    plain = put_pairs(tmp_path/'p.parquet', p, r, 20)
    prompts = pa.array(p).dictionary_encode()
    odd = pa.table(dict(source=range(50), response=pa.array(r, pa.large_string()), prompt=prompts))
    pq.write_table(odd, tmp_path/'o.parquet', row_group_size=20)
    def rows(name):
        stream = PairStream(tmp_path/name, tok, index_dir=tmp_path/'idx', n_epochs=1)
        return [rows_of(x) for x in stream]
    a, b = rows('p.parquet'), rows('o.parquet')
    assert a == b and plain.exists()


# ---------------------------------------------------------------- the other paths

@pytest.mark.parametrize('seed', range(5))
def test_collate_equals_the_library(tok, seed):
    p, r = texts(9, seed)
    pairs = encode_pairs(p, r, tok, 30)
    rows = [dict(input_ids=a, attention_mask=[1]*len(a), labels=b) for a, b in pairs]
    theirs = dict(DataCollatorForSeq2Seq(tok)(rows))
    ours = collate(pairs)
    assert same(ours, theirs) and all(v.dtype == torch.int64 for v in ours.values())
    real = sum(len(a) + len(b) for a, b in pairs)
    cells = 9 * (max(len(a) for a, _ in pairs) + max(len(b) for _, b in pairs))
    assert padding_share(ours) == pytest.approx(1 - real/cells)

def test_memory_and_datasets_paths_hold_the_same_samples(two_files, tok, tmp_path):
    want = expected_rows(tok, two_files, 24)
    mem, hf = PairDataset.from_parquet(two_files, tok, 24), hf_dataset(two_files, tok, 24, tmp_path/'hf')
    assert [tuple(map(tuple, mem[i])) for i in range(len(mem))] == want
    assert tuple(map(tuple, mem[-1])) == want[-1] and isinstance(mem[0], PairIds)
    assert [(tuple(o['input_ids']), tuple(o['labels'])) for o in hf] == want
    assert all(o['length'] == len(o['input_ids']) + len(o['labels']) and set(o['attention_mask']) == {1} for o in hf)
    assert hf_dataset(two_files, tok, 24, tmp_path/'hf').cache_files == hf.cache_files
    assert [len(o['labels']) for o in hf_dataset(two_files, tok, 5, tmp_path/'hf')] == [min(len(r), 5) for _, r in want]
    with pytest.raises(IndexError): mem[230]

def test_evaluation_batches(tok, two_files):
    mem = PairDataset.from_parquet(two_files, tok, 24)
    a, b = pair_batches(mem, 200), pair_batches(list(mem), 200)
    assert all(same(x, y) for x, y in zip(a, b, strict=True))
    assert Counter(r for o in a for r in rows_of(o)) == Counter(expected_rows(tok, two_files, 24))
    assert all(len(o['labels']) == 1 or o['input_ids'].numel() + o['labels'].numel() <= 200 for o in a)
    assert pair_batches([]) == [] and len(PairDataset()) == 0
    order = length_order(np.array([(len(p), len(r)) for p, r in mem]), 200)
    assert [r for o in a for r in rows_of(o)] == [tuple(map(tuple, mem[i])) for i in order]
