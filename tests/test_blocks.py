"""Blocks against plain loops, jieba itself and the library's own encoding; encoding in other processes."""
import multiprocessing
import pickle
import random
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path

import jieba
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from scclm import dataset
from scclm.blocks import block_encoder, code_points, cut_blocks, distinct_blocks, encode_blocks, joins_of
from scclm.dataset import encode
from scclm.tokenizer import SpillCounter, TokenizerCfg, build_tokenizer, count_words, train_bpe

sys.path.insert(0, str(Path(__file__).parents[1]/'benchmarks'))
from words import block_words, equally_likely

jieba.setLogLevel('ERROR')
ODD = '\0\t\n\r 🙂𰻝é，。Ａ龘'

# --- cutting
def toy_words(rng):
    "Forty words of one to five characters out of seven."
    return [''.join(rng.choices('甲乙丙丁ab𰻝', k=rng.randint(1, 5))) for _ in range(40)]

def toy_texts(rng, n, letters='甲乙丙丁ab𰻝' + ODD):
    "Texts of up to thirty characters, some of them empty."
    return [''.join(rng.choices(letters, k=rng.choice((0, 1, 2, 30)))) for _ in range(n)]

def slow_blocks(text, words):
    "A text cut wherever no word holds the two neighbours."
    blocks = list(text[:1])
    for a, b in pairwise(text):
        if any(a + b in word for word in words): blocks[-1] += b
        else: blocks.append(b)
    return blocks

@pytest.mark.parametrize('seed', range(10))
def test_blocks_are_what_a_plain_loop_finds(seed):
    rng = random.Random(seed)
    words = rng.sample(toy_words(rng), 8)
    texts = toy_texts(rng, 60)
    whole = ''.join(texts)
    blocks = cut_blocks(code_points(whole), np.cumsum([len(t) for t in texts]), joins_of(words))
    truth = [b for t in texts for b in slow_blocks(t, words)]
    assert np.flatnonzero(blocks.last).tolist() == [end - 1 for end in np.cumsum([len(b) for b in truth])]
    assert ''.join(c for c, alone in zip(whole, blocks.single) if alone) == ''.join(b for b in truth if len(b) == 1)
    longer = [b for b in truth if len(b) > 1]
    assert blocks.longer.to_pylist() == longer
    counted = [(times, kind) for times, kinds in distinct_blocks(blocks.longer) for kind in kinds.to_pylist()]
    assert {kind: times for times, kind in counted} == Counter(longer) and len(counted) == len(set(longer))

def test_nothing_to_cut():
    for texts in ([], [''], ['', '']):
        blocks = cut_blocks(code_points(''.join(texts)), np.cumsum([len(t) for t in texts], dtype=int), joins_of([]))
        assert len(blocks.last) == len(blocks.longer) == 0

def test_too_many_characters_are_refused():
    many = [chr(c) + chr(c + 1) for c in range(0x10000, 0x10000 + 65_536)]
    with pytest.raises(ValueError, match='pieces of 65,537 different characters: expected at most 65,535'):
        joins_of(many)

# --- counting
@pytest.mark.parametrize('seed', range(3))
def test_blocks_are_cut_as_jieba_cuts_the_text(seed):
    jieba.initialize()
    rng = random.Random(seed)
    words = rng.sample(sorted(jieba.dt.FREQ), 20_000)
    odd = [*ODD, '\r\n', 'GPT4', '3.14', 'C++', 'a', '7', '-', '%', '細', '㐀']
    for _ in range(400):
        text = ''.join(rng.choice(odd) if rng.random() < .3 else rng.choice(words) for _ in range(12))
        ours, jiebas = block_words(text), list(jieba.cut(text, HMM=False))
        assert ours == jiebas or ''.join(ours) == text and equally_likely(ours, jiebas), text

def test_a_tie_is_one_word_everywhere(tmp_path):
    "jieba cuts it by what follows; the counts must not depend on it, nor on the number of processes."
    tie = '细胞组织细胞'
    rows = [tie, tie + '的', tie + '是身体的一部分，各有各的样子']*20
    pq.write_table(pa.table({'prompt': rows, 'response': rows}), tmp_path/'t.parquet', row_group_size=7)
    found = [count_words([tmp_path/'t.parquet'], workers=n)[0] for n in (1, 2)]
    assert found[0] == found[1] and equally_likely(['细胞组织', '细胞'], ['细胞', '组织细胞'])
    assert {found[0].get('细胞组织', 0), found[0].get('组织细胞', 0)} == {0, 120}
    assert not equally_likely(['研究', '生命'], ['研究生', '命'])

def test_runs_longer_than_a_batch_merge(tmp_path):
    rng = random.Random(0)
    counter = SpillCounter(tmp_path, 'x', 50_000)
    truth = Counter()
    for size in (50_001, 60_000, 3, 40_000):
        some = Counter({str(k): rng.randint(1, 3) for k in rng.sample(range(90_000), size)})
        counter.add(some)
        truth.update(some)
    assert len(counter.runs) > 1
    assert dict(counter.items()) == truth
    assert dict(counter.items(4)) == {word: n for word, n in truth.items() if n >= 4}
    words = [word for word, _ in counter.items()]
    assert len(words) == len(truth)

# --- encoding
def random_bpe(rng):
    "A BPE of forty random merges."
    vocab = {'[UNK]': 0, '\t': 1} | {c: i for i, c in enumerate('甲乙丙丁ab𰻝', 2)}
    merges = []
    while len(merges) < 40:
        pair = tuple(rng.choices(list(vocab)[2:], k=2))
        if ''.join(pair) in vocab: continue
        merges.append(pair)
        vocab[''.join(pair)] = len(vocab)
    return Tokenizer(models.BPE(vocab, merges, unk_token='[UNK]'))

@pytest.mark.parametrize('seed', range(10))
def test_ids_are_the_librarys(seed):
    rng = random.Random(seed)
    backend = random_bpe(rng)
    texts = toy_texts(rng, 500)
    ids, ends = encode_blocks(texts, block_encoder(backend))
    assert [x.tolist() for x in np.split(ids, ends)[:-1]] == [e.ids for e in backend.encode_batch_fast(texts)]

def test_an_unknown_mark_of_one_character_sets_nothing_apart():
    "It stands for every unknown character, so it may be in the middle of a block: the letters of [PAD]."
    vocab = {'?': 0, '甲': 1, '乙': 2, '甲乙': 3, '[PAD]': 4, '丙': 5}
    backend = Tokenizer(models.BPE(vocab, [('甲', '乙')], unk_token='?'))
    texts = ['甲乙[PAD]甲', '', '?', '丙?甲乙']
    encoder = block_encoder(backend)
    ids, ends = encode_blocks(texts, encoder)
    assert encoder.gap == '丙'
    assert [x.tolist() for x in np.split(ids, ends)[:-1]] == [e.ids for e in backend.encode_batch_fast(texts)]
    del vocab['丙']
    assert block_encoder(Tokenizer(models.BPE(vocab, [('甲', '乙')], unk_token='?'))) is None

def plain(): return random_bpe(random.Random(0))

def with_part(part, value):
    "A plain BPE with one part more."
    t = plain()
    setattr(t, part, value)
    return t

def with_added():
    t = plain()
    t.add_tokens(['甲乙丙丁甲'])
    return t

def no_gap():
    "Every character stands in a longer piece."
    return Tokenizer(models.BPE({'[UNK]': 0, '甲': 1, '甲甲': 2}, [('甲', '甲')], unk_token='[UNK]'))

def one_piece(**options):
    "A BPE without merges, with another switch set."
    return Tokenizer(models.BPE({'[UNK]': 0, '甲': 1}, [], **{'unk_token': '[UNK]'} | options))

def with_mark():
    "A mark is put behind each text."
    mark = processors.TemplateProcessing('$A 甲', special_tokens=[('甲', 2)])
    return with_part('post_processor', mark)

def words_only(): return Tokenizer(models.WordLevel({'[UNK]': 0}, '[UNK]'))

OTHERS = dict(
    normalizer=lambda: with_part('normalizer', normalizers.NFKC()),
    splits=partial(with_part, 'pre_tokenizer', pre_tokenizers.Whitespace()),
    mark=with_mark, added=with_added, no_gap=no_gap,
    drops=lambda: one_piece(unk_token=None), dropout=lambda: one_piece(dropout=.5),
    fuses=lambda: one_piece(fuse_unk=True), bytes=lambda: one_piece(byte_fallback=True),
    whole=lambda: one_piece(ignore_merges=True), no_unk=lambda: one_piece(unk_token='[?]'),
    unigram=lambda: Tokenizer(models.Unigram([('甲', 0.)], 0, False)),
    words=words_only)

@pytest.mark.parametrize('make', OTHERS.values(), ids=OTHERS)
def test_what_cannot_be_cut_goes_to_the_library(make):
    assert block_encoder(make()) is None

@pytest.fixture(scope='module')
def tok():
    "A word vocabulary as ours."
    words = {'研究': 9, '研究生': 8, '生命': 7, '北京': 6, '命题': 5}
    return build_tokenizer(words, Counter(''.join(words)), TokenizerCfg(min_count=1, min_char_count=1))

@pytest.fixture(scope='module')
def texts():
    "More than MANY_CHARS characters, with typed names of special tokens and unknown characters."
    rng = random.Random(0)
    some = ['研究生命题', '我在北京', '[EOS]', '[UNK]', '龘', '', '\t\n', 'a b', '，', '生命']
    return [''.join(rng.choices(some, k=rng.randint(0, 20))) for _ in range(4000)]

@pytest.mark.parametrize('eos', [None, '命', '研究生', '[UNK]'])
@pytest.mark.parametrize('max_len', [None, 5])
def test_a_large_batch_is_its_texts_one_by_one(tok, texts, eos, max_len):
    end = eos and tok.convert_tokens_to_ids(eos)
    assert sum(map(len, texts)) > dataset.MANY_CHARS
    assert encode(texts, tok, max_len, end) == [encode([t], tok, max_len, end)[0] for t in texts]

def test_other_tokenizers_give_the_same_in_large_batches(texts):
    byte = train_bpe(texts, 400, 'byte')
    pieces = [('[PAD]', 0.), ('</s>', -1.), ('[UNK]', -9.), ('研究', -1.), ('研', -2.), ('究', -2.)]
    unigram = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram(pieces, 2, False)),
        pad_token='[PAD]', eos_token='</s>', unk_token='[UNK]')
    for t in (byte, unigram):
        assert encode(texts, t) == [encode([text], t)[0] for text in texts]

def test_tokens_added_later_end_the_cutting(tok, texts):
    mine = pickle.loads(pickle.dumps(tok))
    before = encode(texts, mine)
    mine.add_tokens(['研究生命题'])
    after = encode(texts, mine)
    assert after != before and after == [encode([text], mine)[0] for text in texts]

@pytest.mark.parametrize('method', ['fork', 'forkserver', 'spawn'])
def test_other_processes_encode_the_same(tok, texts, method):
    "Pickled there, and after this process has encoded (threads of the library are then running)."
    here = encode(texts, tok)
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        assert pool.submit(encode, texts, tok).result(timeout=300) == here
    assert encode(texts, pickle.loads(pickle.dumps(tok))) == here
