"Streams in the hands of others: workers of a DataLoader, StatefulDataLoader, datasets; every row once for any shape."
import json
import os
import pickle
import random
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager
from itertools import chain, islice, zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.distributed import split_dataset_by_node
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_toys import put_pairs
from test_dataset import CHARS, make_tok, rows_of, same
from torch.utils.data import DataLoader
from torch.utils.data._utils import worker as torch_worker
from torchdata.stateful_dataloader import StatefulDataLoader

from scclm import dataset
from scclm.dataset import EpochPlan, PairDataset, PairStream, encode_files, hf_dataset
from scclm.parquet_pairs import content_key
from scclm.streaming import epoch_order, file_order_kept, hf_stream, neighbours_apart

pytestmark = [pytest.mark.filterwarnings(f'ignore:.*{words}') for words in
              ('fork', 'This DataLoader will create', 'set_vital', 'To copy construct')]

TOK = make_tok()

@contextmanager
def as_worker(k:int, n:int):
    "Inside, PyTorch says that this process is worker k of n; n = 0: of no loader."
    if n: torch_worker._worker_info = torch_worker.WorkerInfo(id=k, num_workers=n, seed=0, dataset=None)
    try: yield
    finally: torch_worker._worker_info = None

def put_files(folder:Path, sizes:list[tuple[int, int]], seed:int=0)->list[Path]:
    "Files of (rows, rows in a row group); the number of a row is its prompt, so that no two are alike."
    rnd = random.Random(seed)
    files, first = [], 0
    for f, (n, group) in enumerate(sizes):
        prompts = [f'{i:05}' for i in range(first, first + n)]
        responses = [''.join(rnd.choices(CHARS[:20], k=rnd.randint(0, 30))) for _ in prompts]
        cols = [pa.array(o, 'string') for o in (prompts, responses)]
        files.append(put_pairs(folder/f'{f}.parquet', *cols, group))
        first += n
    return files

def numbers(batches)->Counter:
    "How often each row came; rows are known by their prompt."
    return Counter(''.join(TOK.convert_ids_to_tokens(list(p[:-1]))) for b in batches for p, _ in rows_of(b))

def once(n:int, times:int=1)->Counter: return Counter({f'{i:05}': times for i in range(n)})

def taken_in_turn(shares:list[list])->list:
    "What a loader makes of its workers' batches."
    return [b for b in chain.from_iterable(zip_longest(*shares)) if b is not None]

@pytest.fixture
def mk(tmp_path):
    "A stream over files of 0, 1, 5 and more rows; keyword arguments override."
    files = put_files(tmp_path, [(0, 1), (90, 13), (1, 1), (5, 2), (0, 1), (60, 60), (31, 7)])
    def f(files=files, **kw):
        return PairStream(files, TOK, **(dict(budget_tok=150, max_len=24, window=40, index_dir=tmp_path/'i',
                                               n_epochs=2) | kw))
    return f


# ---------------------------------------------------------------- every row once an epoch

SIZES = st.lists(st.tuples(st.one_of(st.sampled_from([0, 1, 5]), st.integers(0, 70)), st.integers(1, 25)),
                 min_size=1, max_size=6).filter(lambda sizes: any(n for n, _ in sizes))
DIALS = st.fixed_dictionaries(dict(
    budget_tok=st.integers(2, 400), window=st.integers(1, 120), max_len=st.integers(7, 40), seed=st.integers(0, 5),
    shuffle=st.booleans()))
SOME = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

@SOME
@given(sizes=SIZES, dials=DIALS, world=st.integers(1, 4), workers=st.integers(0, 3))
def test_every_row_once_an_epoch_for_any_shape(sizes, dials, world, workers):
    "Files x ranks x workers, two epochs; and the workers in turn give what no workers give."
    n = sum(rows for rows, _ in sizes)
    with tempfile.TemporaryDirectory() as tmp:
        files = put_files(Path(tmp), sizes)
        def open_one(rank):
            return PairStream(files, TOK, rank=rank, world=world, index_dir=Path(tmp), n_epochs=2, prefetch=0, **dials)
        seen = Counter()
        for rank in range(world):
            alone = list(open_one(rank))
            shares = []
            for k in range(workers or 1):
                with as_worker(k, workers): shares.append(list(open_one(rank)))
            assert all(same(a, b) for a, b in zip(taken_in_turn(shares), alone, strict=True))
            first = open_one(rank).n_batches(0)
            seen += numbers(alone[:first])
            assert len(alone) == first + open_one(rank).n_batches(1)
            seen += numbers(alone[first:])
        assert seen == once(n, 2)

@SOME
@given(sizes=SIZES, dials=DIALS, workers=st.integers(1, 3), world=st.integers(1, 3), new_world=st.integers(1, 3),
       data=st.data())
def test_stopped_anywhere_nothing_is_lost_or_doubled(sizes, dials, workers, world, new_world, data):
    "Every worker stops where a loader would leave it, and goes on in another process, with other ranks."
    with tempfile.TemporaryDirectory() as tmp:
        files = put_files(Path(tmp), sizes)
        def open_one(rank, world):
            return PairStream(files, TOK, rank=rank, world=world, index_dir=Path(tmp), n_epochs=1, prefetch=0, **dials)
        stop = data.draw(st.integers(0, open_one(0, 1).n_batches()))
        states, seen = [], Counter()
        for rank in range(world):
            for k in range(workers):
                with as_worker(k, workers):
                    stream = open_one(rank, world)
                    seen += numbers(islice(stream, len(range(k, stop, workers))))
                    states.append((k, json.dumps(stream.state_dict())))
        for k, state in states[:workers]:
            for rank in range(new_world):
                with as_worker(k, workers):
                    stream = open_one(rank, new_world)
                    stream.load_state_dict(json.loads(state))
                    assert stream.state_dict() == json.loads(state)
                    seen += numbers(stream)
        assert seen == once(sum(rows for rows, _ in sizes))

def test_files_without_rows_stand_among_others(mk, tmp_path):
    stream = mk(n_epochs=1)
    assert numbers(stream) == once(187)
    assert len(list(encode_files(stream.files, TOK, 24))) == len(PairDataset.from_parquet(stream.files, TOK, 24)) == 187
    assert len(hf_dataset(stream.files, TOK, 24, tmp_path/'hf')) == 187
    nothing = [stream.files[0], stream.files[4]]
    with pytest.raises(ValueError, match='0.parquet, .*4.parquet has no rows'): mk(files=nothing)
    untyped = tmp_path/'untyped.parquet'                                     # as pandas writes a frame without rows
    pq.write_table(pa.table(dict(prompt=pa.nulls(0), response=pa.nulls(0))), untyped)
    assert numbers(mk(files=[untyped, *stream.files], n_epochs=1)) == once(187)
    pq.write_table(pa.table(dict(prompt=pa.nulls(2), response=pa.nulls(2))), untyped)
    with pytest.raises(ValueError, match='untyped.parquet: column .prompt. is null'): mk(files=[untyped, *stream.files])

def test_a_hundred_files(tmp_path):
    files = put_files(tmp_path, [(i % 7, 3) for i in range(100)])
    n = sum(i % 7 for i in range(100))
    stream = PairStream(files, TOK, 200, 24, window=50, index_dir=tmp_path/'i', n_epochs=1)
    assert numbers(stream) == once(n)


# ---------------------------------------------------------------- real loaders

@pytest.mark.parametrize('workers', [1, 2, 3])
def test_a_plain_loader_brings_every_batch_in_order(mk, workers):
    whole = list(mk())
    assert all(same(a, b) for a, b in zip(DataLoader(mk(), batch_size=None, num_workers=workers), whole, strict=True))

def test_ranks_times_workers(mk):
    shares = [list(DataLoader(mk(rank=r, world=3), batch_size=None, num_workers=2)) for r in range(3)]
    assert len({len(o) for o in shares}) == 1 and numbers(chain(*shares)) == once(187, 2)

def test_a_stream_is_pickled_whole_or_midway(mk):
    "What spawn and forkserver do with it."
    whole = list(mk())
    stream = mk()
    for _ in islice(stream, 5): pass
    again = pickle.loads(pickle.dumps(stream))
    assert all(same(a, b) for a, b in zip(again, whole[5:], strict=True))
    shares = []
    for k in range(2):
        with as_worker(k, 2): shares.append(list(pickle.loads(pickle.dumps(stream))))
    assert all(same(a, b) for a, b in zip(taken_in_turn(shares), whole[5:], strict=True))

def loaders(stream, workers, of_hf):
    return StatefulDataLoader(hf_stream(stream) if of_hf else stream, batch_size=None, num_workers=workers)

@pytest.mark.parametrize('of_hf', [False, True], ids=['stream', 'datasets'])
@pytest.mark.parametrize('workers', [0, 2])
def test_stateful_loader_resumes_mid_epoch(mk, workers, of_hf):
    whole = list(mk())
    for stop in (0, 1, 2, 7, len(whole) - 1, len(whole)):
        loader = loaders(mk(), workers, of_hf)
        it = iter(loader)
        head = list(islice(it, stop))
        state = json.loads(json.dumps(loader.state_dict()))                  # as a checkpoint keeps it
        del it
        again = loaders(mk(), workers, of_hf)
        again.load_state_dict(state)
        assert all(same(a, b) for a, b in zip([*head, *again], whole, strict=True)), stop

def test_stateful_loader_twice_interrupted(mk):
    whole, got, state = list(mk()), [], None
    for stop in (5, 9, None):
        loader = loaders(mk(), 2, False)
        if state: loader.load_state_dict(state)
        got += islice(loader, stop)
        state = loader.state_dict()
    assert all(same(a, b) for a, b in zip(got, whole, strict=True))

def test_a_loader_goes_on_from_a_plain_state(mk):
    "Saved by a training without workers, loaded into the stream before the loader has it."
    whole, stream = list(mk()), mk()
    for _ in islice(stream, 9): pass
    again = mk()
    again.load_state_dict(stream.state_dict())
    rest = list(DataLoader(again, batch_size=None, num_workers=2))
    assert all(same(a, b) for a, b in zip(rest, whole[9:], strict=True))
    assert all(same(a, b) for a, b in zip(DataLoader(stream, batch_size=None, num_workers=2), whole[9:], strict=True))

def test_state_of_other_workers_is_refused(mk):
    with as_worker(0, 2): state = mk().state_dict()
    assert state['worker'] == [0, 2] and state['skip'] == 0
    with pytest.raises(ValueError, match=r'of DataLoader worker \[0, 2\], but this is \[0, 1\]'):
        mk().load_state_dict(state)
    for k, n in ((1, 2), (0, 3)):
        with as_worker(k, n), pytest.raises(ValueError, match='as many workers'): mk().load_state_dict(state)
    for skip in (-1, 2, None, 'x', 1.0, True):
        with as_worker(0, 2), pytest.raises(ValueError, match='skip='): mk().load_state_dict({**state, 'skip': skip})

def test_an_error_in_a_worker_names_the_file(mk):
    stream = mk(window=1)
    loader = iter(DataLoader(stream, batch_size=None, num_workers=2, prefetch_factor=1))
    next(loader)
    stream.files[1].unlink()
    with pytest.raises(FileNotFoundError, match='1.parquet has gone'): list(loader)


# ---------------------------------------------------------------- datasets

def test_hf_stream_is_the_stream(mk):
    whole = list(mk())
    ds = hf_stream(mk())
    for _ in range(2): assert all(same(a, b) for a, b in zip(ds, whole, strict=True))    # it is not moved by iterating
    rows = [len(b['labels']) for b in whole]
    assert [b['rows'] for b in ds.map(lambda b: dict(rows=len(b['labels']))).skip(3).take(9)] == rows[3:12]
    shapes = [b['input_ids'].shape for b in ds.with_format('torch').take(5)]
    assert shapes == [b['input_ids'].shape for b in whole[:5]]

def test_hf_stream_in_the_hands_of_its_methods(mk):
    "It is shuffled already: another epoch changes nothing, a buffer only the order."
    whole = list(mk(n_epochs=1))
    ds = hf_stream(mk(n_epochs=1))
    ds.set_epoch(3)
    assert all(same(a, b) for a, b in zip(ds, whole, strict=True))
    assert numbers(ds.shuffle(seed=1, buffer_size=5)) == once(187)
    assert [len(b['labels']) for b in ds.filter(lambda b: len(b['labels']) > 9)] == \
        [len(b['labels']) for b in whole if len(b['labels']) > 9]

def test_hf_stream_resumes_through_map(mk):
    def sizes(b): return dict(cells=b['labels'].numel())
    whole = [b['cells'] for b in hf_stream(mk()).map(sizes)]
    for stop in (0, 1, 8, len(whole)):
        ds = hf_stream(mk()).map(sizes)
        head = [b['cells'] for b in islice(ds, stop)]
        state = json.loads(json.dumps(ds.state_dict()))
        again = hf_stream(mk()).map(sizes)
        again.load_state_dict(state)
        assert head + [b['cells'] for b in again] == whole

def test_hf_stream_refuses_what_is_not_its_own(mk):
    ds = hf_stream(mk())
    it = iter(ds)
    next(it)
    other = hf_stream(mk(seed=1))
    other.load_state_dict(ds.state_dict())
    with pytest.raises(ValueError, match='seed'): next(iter(other))

def test_hf_stream_split_by_node(mk):
    "datasets' own division gives each node every other batch; with workers it would divide twice."
    shares = [list(split_dataset_by_node(hf_stream(mk(n_epochs=1)), r, 2)) for r in range(2)]
    assert numbers(chain(*shares)) == once(187)
    split = split_dataset_by_node(hf_stream(mk()), 0, 2)
    with pytest.raises(ValueError, match='split once more'):
        list(DataLoader(split, batch_size=None, num_workers=2))


# ---------------------------------------------------------------- a file that was edited

def edit(path:Path, old:bytes, new:bytes, keep_times:bool=False):
    "Other bytes in place, as many; the footer stays."
    raw, s = path.read_bytes(), path.stat()
    assert raw.count(old) and len(old) == len(new)
    path.write_bytes(raw.replace(old, new, 1))
    if keep_times: os.utime(path, ns=(s.st_atime_ns, s.st_mtime_ns))

@pytest.fixture
def plain_file(tmp_path):
    "Uncompressed, without statistics: its text can be edited in place, and the footer does not tell."
    path = tmp_path/'plain.parquet'
    rows = pa.table(dict(prompt=[f'{i:05}' for i in range(40)], response=['春眠不觉晓'[:i % 5 + 1] for i in range(40)]))
    pq.write_table(rows, path, row_group_size=10, compression='none', use_dictionary=False, write_statistics=False)
    return path

@pytest.mark.parametrize('keep_times', [False, True], ids=['as it comes', 'with its old time'])
def test_same_size_edit_is_noticed_at_resume(mk, plain_file, keep_times):
    stream = mk(files=[plain_file], prefetch=0)
    next(iter(stream))
    state = stream.state_dict()
    for t in (mk(files=[plain_file]), mk(files=[plain_file])): t.load_state_dict(state)
    edit(plain_file, b'00017', b'00071', keep_times)
    again = mk(files=[plain_file])
    assert again.own['fingerprint'] == stream.own['fingerprint']              # the footer says nothing
    with pytest.raises(ValueError, match=r'saved with content=.* of .*plain.parquet, which now has'):
        again.load_state_dict(state)
    edit(plain_file, b'00071', b'00017')
    mk(files=[plain_file]).load_state_dict(state)                             # the old bytes are back

def test_same_size_edit_counts_lengths_again(mk, plain_file):
    before = mk(files=[plain_file]).planner.lens[0].copy()
    edit(plain_file, '春眠不觉晓'.encode(), b'fifteen letters')
    after = mk(files=[plain_file]).planner.lens[0]
    assert before[4].tolist() == [5, 5] and after[4].tolist() == [5, 15] and (before != after).sum() == 1

def test_edit_while_it_streams_is_noticed(mk, plain_file):
    stream = mk(files=[plain_file], window=10, prefetch=0)
    it = iter(stream)
    next(it)
    edit(plain_file, b'00017', b'00071')
    with pytest.raises(OSError, match='plain.parquet has changed since it was opened'): list(it)

def test_edit_while_lengths_are_counted_is_noticed(mk, plain_file, monkeypatch):
    "The lengths of the new text are not kept under the name of the old."
    counted = dataset.token_lengths
    def count_and_edit(path, tok, beat):
        lens = counted(path, tok, beat)
        edit(plain_file, b'00017', b'00071')
        return lens
    monkeypatch.setattr(dataset, 'token_lengths', count_and_edit)
    with pytest.raises(OSError, match='plain.parquet changed while its lengths were counted'): mk(files=[plain_file])
    monkeypatch.undo()
    assert numbers(mk(files=[plain_file], n_epochs=1)) == once(40) - Counter(['00017']) + Counter(['00071'])

def test_a_touched_or_rewritten_file_goes_on(mk, plain_file):
    stream = mk(files=[plain_file], window=10, prefetch=0)
    it = iter(stream)
    first = next(it)
    plain_file.touch()
    raw = plain_file.read_bytes()
    plain_file.unlink()
    plain_file.write_bytes(raw)
    assert numbers([first, *it]) == once(40, 2)

def test_the_edited_one_of_many_is_named(mk):
    stream = mk()
    state = stream.state_dict()
    put_pairs(stream.files[3], ['00091', '00092', '00093', '00094', '00095'], ['春']*5, 2)
    with pytest.raises(ValueError, match=r'saved with \w+=.* of .*3.parquet'): mk().load_state_dict(state)
    for files in (stream.files[:3], [*stream.files, stream.files[1]]):
        with pytest.raises(ValueError, match='saved with fingerprint='): mk(files=files).load_state_dict(state)

def test_a_state_of_before_contents_were_noted_is_taken(mk):
    whole, stream = list(mk()), mk()
    for _ in islice(stream, 4): pass
    old = {k: v for k, v in stream.state_dict().items() if k != 'content'}
    again = mk()
    again.load_state_dict(old)
    assert all(same(a, b) for a, b in zip(again, whole[4:], strict=True))

def test_a_file_dated_in_the_future_is_noted_too(tmp_path, monkeypatch):
    "An edit that is to come gets the time of the edit, which is another one."
    monkeypatch.setattr('scclm.parquet_pairs._SETTLED_NS', -1)
    path = tmp_path/'f.bin'
    path.write_bytes(b'some bytes')
    in_an_hour = path.stat().st_mtime_ns + 3600*10**9
    os.utime(path, ns=(in_an_hour, in_an_hour))
    key = content_key(path, tmp_path/'notes')
    assert len(list((tmp_path/'notes').iterdir())) == 1
    path.write_bytes(b'same bytes')
    assert content_key(path, tmp_path/'notes') != key

def test_notes_save_the_hashing_and_damaged_ones_do_not_matter(tmp_path, monkeypatch):
    path = tmp_path/'f.bin'
    path.write_bytes(b'some bytes')
    hour_ago = path.stat().st_mtime_ns - 3600*10**9
    os.utime(path, ns=(hour_ago, hour_ago))
    key = content_key(path, tmp_path/'notes')
    assert not list(tmp_path.glob('notes/*'))                                 # its entry has changed just now
    monkeypatch.setattr('scclm.parquet_pairs._SETTLED_NS', -1)
    assert content_key(path, tmp_path/'notes') == key
    note, = (tmp_path/'notes').iterdir()
    good = note.read_text()
    path.chmod(0o600)                                                         # a new time of its entry: a new note
    assert content_key(path, tmp_path/'notes') == key and note.read_text() != good
    good = note.read_text()
    for bad in ('', 'x', '[]', '{}', good[:-9], good.replace(key, key[::-1]), good.replace('stamp', 'stemp'), '\0'*40):
        note.write_text(bad)
        assert content_key(path, tmp_path/'notes') == key and note.read_text() == good


# ---------------------------------------------------------------- how well it shuffles

@pytest.mark.parametrize('seed', range(5))
def test_file_order_kept_is_spearman(seed):
    order = np.random.default_rng(seed).permutation(200)
    if seed > 2: order = np.sort(order.reshape(4, 50), axis=1).ravel()
    table = pd.DataFrame(dict(place=np.arange(200), comes=np.argsort(order)))
    assert file_order_kept(order) == pytest.approx(abs(table.corr('spearman').loc['place', 'comes']))

def test_neighbours_of_a_full_shuffle_are_a_third_apart():
    apart = [neighbours_apart(np.random.default_rng(s).permutation(2000)) for s in range(20)]
    assert np.mean(apart) == pytest.approx(1, abs=.02)
    assert neighbours_apart(np.arange(2000)) == pytest.approx(3/2001)

def test_shuffle_gets_better_with_the_window_and_with_small_groups():
    lens = [np.random.default_rng(0).integers(1, 60, (8000, 2)).astype(np.uint16)]
    def apart(group, window):
        return neighbours_apart(epoch_order(EpochPlan(lens, [[group]*(8000//group)], window=window)))
    assert apart(100, 100) < .3 < .6 < apart(100, 1000) < 1.1
    assert apart(1000, 1000) < .3
    assert sorted(epoch_order(EpochPlan(lens, [[100]*80], window=500))) == list(range(8000))


# ---------------------------------------------------------------- memory

FLAT = '''
import sys
import psutil
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from scclm.dataset import PairStream
words = Tokenizer(models.WordLevel({'[PAD]': 0, '[EOS]': 1, '[UNK]': 2}, unk_token='[UNK]'))
tok = PreTrainedTokenizerFast(tokenizer_object=words, pad_token='[PAD]', eos_token='[EOS]', unk_token='[UNK]')
stream, epoch, held = PairStream(sys.argv[2], tok, 4096, window=500, index_dir=sys.argv[1], n_epochs=4), 0, []
for _ in stream:
    if stream.pos.epoch == epoch: continue
    held.append(psutil.Process().memory_info().rss / 2**20)
    epoch = stream.pos.epoch
print(*held)
'''

def test_memory_is_flat_over_epochs(tmp_path):
    "24 MB of text an epoch, one token each: three epochs that kept it would hold 72 MB more than the first."
    n = 8000
    rows = dict(prompt=[f'{i:05}' for i in range(n)], response=['春眠不觉晓' * 200 + CHARS[i % 20] for i in range(n)])
    pq.write_table(pa.table(rows), tmp_path/'long.parquet', row_group_size=200)
    command = [sys.executable, '-c', FLAT, str(tmp_path/'i'), str(tmp_path/'long.parquet')]
    out = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    first, *later = map(float, out.stdout.split())
    assert max(later) - first < 24, (first, later) # allocators keep some pages, now more, now fewer
