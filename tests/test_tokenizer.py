"""Chapter 01 against independent truths: jieba with a Counter, a BPE simulator written here, a folder reopened by
plain AutoTokenizer."""
import json
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import jieba
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scclm.runs import folder_aside
from scclm.tokenizer import (
    ALWAYS, SPECIALS, SpillCounter, TokenizerCfg, build_tokenizer, close_pieces, compare_tokenizers, count_words,
    coverage, cut, fit_pieces, load_tokenizer, piece_merges, retrain, sample_texts, save_tokenizer, tokenizer_cfg,
    train_bpe, train_tokenizer)

jieba.setLogLevel('ERROR')
LINES = (Path(jieba.__file__).parent/'dict.txt').read_text(encoding='utf-8').splitlines()
DICT = {w: int(n) for w, n, *_ in map(str.split, LINES)}

ODD = ['\n', '\r\n', '\r', '\0', '\t', ' ', '   ', '🙂', '👨‍👩‍👧', '2024', '3.14', 'hello world', 'GPT-4',
       '，', '。', '……', '𰻝', '㐀', 'é']

@pytest.fixture(scope='module', params=[0], ids='texts of seed {}'.format)
def texts(request):
    "Word salad of the dictionary with the characters that break things."
    rng = random.Random(request.param)
    common = sorted(DICT, key=DICT.get)[-6000:]
    def word(): return rng.choice(ODD) if rng.random() < .25 else rng.choice(common)
    return [''.join(word() for _ in range(rng.randint(1, 40))) for _ in range(1200)]

@pytest.fixture(scope='module')
def corpus(tmp_path_factory, texts):
    "Two files, 600 rows, small row groups, some empty cells and nulls."
    folder = tmp_path_factory.mktemp('corpus')
    for k in (0, 1):
        prompts = [*texts[k*300:k*300 + 300], None, '']
        responses = [*texts[600 + k*300:900 + k*300], '', None]
        table = pa.table({'response': responses, 'other': [0]*302, 'prompt': prompts})
        pq.write_table(table, folder/f'{k}.parquet', row_group_size=37)
    return [folder/'0.parquet', folder/'1.parquet']

@pytest.fixture(scope='module')
def tok(corpus, tmp_path_factory):
    "Words seen twice, all characters."
    out = tmp_path_factory.mktemp('tok')/'t'
    return train_tokenizer(TokenizerCfg(files=tuple(corpus), min_count=2, min_char_count=1, out=out))

# --- counting
def test_cut_is_jieba(texts):
    for t in texts: assert cut(t) == list(jieba.cut(t, HMM=False))

def test_counts_equal_brute_force_for_any_workers_and_any_limit(corpus, texts):
    words = Counter(w for t in texts for w in jieba.cut(t, HMM=False))
    truth = (dict(words), Counter(''.join(texts)), len(texts))
    for workers, limit in [(1, 10**6), (2, 10**6), (3, 300), (1, 50)]:
        assert count_words(corpus, workers=workers, limit=limit) == truth, (workers, limit)

def test_min_count_only_drops_words(corpus, texts):
    words = Counter(w for t in texts for w in jieba.cut(t, HMM=False))
    found, chars, _ = count_words(corpus, min_count=3, workers=2, limit=100)
    assert found == {w: n for w, n in words.items() if n >= 3} and chars == Counter(''.join(texts))

def test_a_counter_that_holds_nothing_spills_nothing(tmp_path):
    "The last words may have been spilled already when a shard ends."
    counter = SpillCounter(tmp_path, 'x', 2)
    counter.add('abc')
    counter.spill()
    assert len(counter.runs) == 1 and dict(counter.items()) == dict(a=1, b=1, c=1)

@pytest.mark.parametrize('limit', range(1, 40))
def test_any_limit_counts_the_same(corpus, texts, limit):
    assert count_words(corpus, workers=1, limit=limit)[0] == Counter(w for t in texts for w in jieba.cut(t, HMM=False))

@pytest.mark.parametrize('seed', [1, 2])
def test_spilling_bounds_what_is_held(tmp_path, seed):
    counter = SpillCounter(tmp_path, 'x', 100)
    truth = Counter()
    rng = random.Random(seed)
    for _ in range(200):
        words = [str(rng.randrange(2000)) for _ in range(50)]
        counter.add(words)
        truth.update(words)
        assert len(counter.counts) <= 100
    assert len(counter.runs) > 10 and dict(counter.items()) == truth

# --- the vocabulary
def simulate(text, merges):
    "BPE as the papers define it: while any known pair is present, join the leftmost occurrence of the best one."
    rank, parts = {m: r for r, m in enumerate(merges)}, list(text)
    while known := [p for p in zip(parts, parts[1:]) if p in rank]:
        best = min(known, key=rank.get)
        i = next(i for i, p in enumerate(zip(parts, parts[1:])) if p == best)
        parts = parts[:i] + [''.join(best)] + parts[i+2:]
    return parts

def test_library_does_what_the_simulator_does(tok, texts):
    merges = [tuple(m) for m in json.loads(tok.backend_tokenizer.to_str())['model']['merges']]
    for t in texts[::10]:
        if coverage(tok, [t])['unknown'] == 0: assert tok.tokenize(t) == simulate(t, merges)

def one_script(word):
    "Chinese characters only, or Latin letters only."
    return word.isascii() and word.isalpha() or all('一' <= c <= '鿿' for c in word)

def test_every_kept_word_is_kept_and_encodes_to_itself(tok, corpus):
    words, _, _ = count_words(corpus, workers=1)
    asked = [w for w, n in words.items() if n >= 2 and 1 < len(w) <= 10 and one_script(w)]
    assert len(asked) > 1000
    for w in asked: assert tok.convert_ids_to_tokens(tok(w).input_ids) == [w]

@pytest.mark.parametrize('order', ['by count', 'upside down', 'shuffled by seed 0'])
def test_thirty_thousand_dictionary_words_encode_to_themselves(order):
    chinese = [w for w in DICT if 1 < len(w) <= 10 and all('一' <= c <= '鿿' for c in w)]
    words = sorted(chinese, key=lambda w: (-DICT[w], w))[:30_000]
    counts = {w: DICT[w] for w in words}
    if order == 'upside down': counts = {w: 10**7 - n for w, n in counts.items()}
    if order.startswith('shuffled'): counts = dict(zip(words, random.Random(0).sample(range(1, 10**6), len(words))))
    cfg = TokenizerCfg(min_count=1, min_char_count=1, max_vocab=60_000)
    t = build_tokenizer(counts, Counter(''.join(words)), cfg)
    assert all(t.convert_ids_to_tokens(x) == [w] for w, x in zip(words, t(words).input_ids))

def grow(n):
    "Every string of length `n` over three characters."
    return [a + b for a in grow(n - 1) for b in '甲乙丙'] if n else ['']

def adversarial_words(rng):
    "Every string of length 2 to 5 over three characters, a random third of them kept with random counts."
    return {w: rng.randrange(1, 50) for n in (2, 3, 4, 5) for w in grow(n) if rng.random() < .3}

def merges_of(pieces):
    "The merge list of pieces with these counts, the most frequent first."
    return piece_merges([*'甲乙丙', *sorted(pieces, key=lambda w: (-pieces[w], w))])

@pytest.mark.parametrize('seed', range(20))
def test_bridges_mend_adversarial_words(seed):
    words = adversarial_words(random.Random(seed))
    pieces = close_pieces(iter('甲乙丙'), words)
    merges = merges_of(pieces)
    assert all(simulate(p, merges) == [p] for p in pieces) and words.keys() <= pieces.keys()
    assert all(any(p in w for w in words) for p in pieces)

@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('room', [1, 7, 40])
def test_words_and_bridges_fit_the_room(seed, room):
    words = adversarial_words(random.Random(seed))
    words = {w: words[w] for w in sorted(words, key=lambda w: (-words[w], w))}
    pieces = fit_pieces(list('甲乙丙'), words, room)
    merges = merges_of(pieces)
    assert len(pieces) <= room and all(simulate(p, merges) == [p] for p in pieces)
    first = list(takewhile(pieces.__contains__, words))         # the most frequent ones
    later = [p for p in pieces if not any(p in w for w in first)]
    assert all(p in words and len(p) == 2 for p in later)       # and nothing but parts of them, and words of two
    assert first or room < 40
    two = {w for w in words if len(w) == 2}
    assert len(pieces) == room or two <= pieces.keys() or not later # room is left only when these have run out

def test_same_folder_whatever_the_workers(corpus, tmp_path):
    for n in (1, 3):
        cfg = TokenizerCfg(files=tuple(corpus), min_count=2, min_char_count=1, workers=n, limit=400)
        train_tokenizer(replace(cfg, out=tmp_path/str(n)))
    for f in ('tokenizer.json', 'tokenizer_config.json'):
        assert (tmp_path/'1'/f).read_bytes() == (tmp_path/'3'/f).read_bytes()

@pytest.mark.parametrize('cap', [400, 2000, 3000])
def test_vocabulary_cap(corpus, cap):
    words, chars, _ = count_words(corpus, workers=1)
    chars = Counter(dict(chars.most_common(150)))
    t = build_tokenizer(words, chars, TokenizerCfg(min_count=1, min_char_count=1, max_vocab=cap))
    assert len(t) <= cap and sorted(t.get_vocab().values()) == list(range(len(t)))

# --- text in, text out
def test_round_trip_loses_nothing(tok, texts):
    spaced = [ALWAYS, ALWAYS[::-1], ' ', '\n\n\n', '  a  ', '中 文 之 间', "don't , stop .", '']
    for t in [*texts, *spaced]: assert tok.decode(tok(t).input_ids) == t

def test_unknown_characters_are_counted_and_alone(tok):
    text = '我龘龘爱\U0002A6D6中国'
    missing = Counter({'龘': 4, '\U0002A6D6': 2})
    assert coverage(tok, [text, text]) == {'chars': 14, 'unknown': 6, 'coverage': 1 - 6/14, 'missing': missing}
    assert tok.decode(tok(text).input_ids) == text.replace('龘', '[UNK]').replace('\U0002A6D6', '[UNK]')
    assert coverage(tok, []) == {'chars': 0, 'unknown': 0, 'coverage': 1.0, 'missing': Counter()}

def test_ids_of_special_tokens_and_nothing_added(tok):
    assert tok.convert_ids_to_tokens(list(range(9))) == [*SPECIALS, '\t', '\n']
    names = ('pad', 'eos', 'sep', 'bos', 'cls', 'mask', 'unk')
    assert tuple(getattr(tok, f'{n}_token') for n in names) == SPECIALS
    assert tok('你').input_ids == tok('你', add_special_tokens=False).input_ids and len(tok('你').input_ids) == 1
    assert tok.decode([0, *tok('你 好').input_ids, 1], skip_special_tokens=True) == '你 好'

# --- the folder
def test_plain_autotokenizer_in_another_process(tok, tmp_path):
    save_tokenizer(tok, tmp_path/'t')
    cfg = json.loads((tmp_path/'t/tokenizer_config.json').read_text(encoding='utf-8'))
    assert cfg['tokenizer_class'] == 'PreTrainedTokenizerFast' and cfg['padding_side'] == 'right'
    assert not cfg['clean_up_tokenization_spaces']
    text = '中国人民\n hello  .'
    code = ("import sys, json; from transformers import AutoTokenizer; t = AutoTokenizer.from_pretrained(sys.argv[1]);"
            "x = t(sys.argv[2]); print(json.dumps([dict(x), t.decode(x['input_ids'])]))")
    command = [sys.executable, '-c', code, str(tmp_path/'t'), text]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    got, back = json.loads(done.stdout.strip().split('\n')[-1])
    ids = tok(text).input_ids
    assert back == text and got == {'input_ids': ids, 'attention_mask': [1]*len(ids)}

def test_failed_write_leaves_the_old_folder(tmp_path):
    (tmp_path/'t').mkdir()
    (tmp_path/'t/old').write_text('old')
    with pytest.raises(RuntimeError):
        with folder_aside(tmp_path/'t') as p:
            (p/'new').write_text('new')
            raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ['t'] and (tmp_path/'t/old').read_text() == 'old'
    with folder_aside(tmp_path/'t') as p: (p/'new').write_text('new')
    assert [p.name for p in tmp_path.iterdir()] == ['t'] and [p.name for p in (tmp_path/'t').iterdir()] == ['new']

def test_load_says_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path))
    say = 'run nbs/01_tokenizer.ipynb or `scclm tokenizer` first'
    with pytest.raises(FileNotFoundError, match=say): load_tokenizer()
    (tmp_path/'half').mkdir()
    with pytest.raises(FileNotFoundError, match=f'tokenizer.json is missing: {say}'): load_tokenizer(tmp_path/'half')
    bad = train_bpe(['你好'], 300)
    spec = json.loads(bad.backend_tokenizer.to_str())
    save_tokenizer(bad, tmp_path/'t')
    spec['model']['vocab'].update({'[EOS]': 2, '[SEP]': 1})
    for t in spec['added_tokens']: t['id'] = spec['model']['vocab'][t['content']]
    (tmp_path/'t/tokenizer.json').write_text(json.dumps(spec), encoding='utf-8')
    with pytest.raises(ValueError, match=r'\[EOS\] is 2, expected 1; \[SEP\] is 1, expected 2'):
        load_tokenizer(tmp_path/'t')

# --- stock BPE
def test_stock_bpe_and_retraining(tok, texts):
    char = train_bpe(texts, 3000)
    byte = train_bpe(texts, 3000, 'byte')
    new = retrain(tok, texts, 3000)
    for t in (char, byte, new): assert [t.get_vocab()[s] for s in SPECIALS] == list(range(7))
    assert tok.backend_tokenizer.pre_tokenizer is None and len(byte) == 3000 and new.get_vocab() != tok.get_vocab()
    table = compare_tokenizers({'ours': tok, 'char': char, 'byte': byte, 'new': new}, [*texts, '龘'])
    rows = {r['tokenizer']: r for r in table}
    assert rows['byte']['round_trip'] == 1 and rows['byte']['unknown'] == 0
    for k in ('ours', 'char', 'new'):
        assert rows[k]['unknown'] == 1 and rows[k]['round_trip'] == len(texts)/(len(texts) + 1), k
    n_tokens = sum(len(byte(t).input_ids) for t in [*texts, '龘'])
    assert rows['byte']['chars_per_token'] == (sum(map(len, texts)) + 1)/n_tokens

def test_sample_is_of_the_corpus(corpus, texts):
    got = sample_texts(corpus, 100, seed=3)
    assert len(got) == 100 and not Counter(got) - Counter(texts)
    assert got == sample_texts(corpus, 100, seed=3) != sample_texts(corpus, 100, seed=4)
    assert len(sample_texts(corpus, 10**6)) == len(texts)

# --- bad input
@pytest.mark.parametrize('cfg, message', [
    (dict(min_count=10**9), 'min_count=1000000000 leaves no word'),
    (dict(min_char_count=10**9), 'min_char_count=1000000000 leaves no character'),
    (dict(max_vocab=100), 'max_vocab must be >='),
    (dict(max_vocab=138), 'leaves no room for words'),
    (dict(max_word_len=0), 'max_word_len=0 must be >= 1')])
def test_limits_that_leave_nothing(corpus, tmp_path, cfg, message):
    good = TokenizerCfg(files=tuple(corpus), min_count=2, min_char_count=1, workers=1, out=tmp_path/'t')
    with pytest.raises(ValueError, match=message): train_tokenizer(replace(good, **cfg))
    assert not (tmp_path/'t').exists()

def test_bad_files(tmp_path, monkeypatch):
    pq.write_table(pa.table({'prompt': ['a'], 'answer': ['b']}), tmp_path/'column.parquet')
    nothing = pa.array([], pa.string())
    pq.write_table(pa.table({'prompt': nothing, 'response': nothing}), tmp_path/'empty.parquet')
    (tmp_path/'text.parquet').write_text('not parquet')
    faults = [
        ('column', ValueError, "column.parquet has no column 'response': found prompt, answer"),
        ('empty', ValueError, 'no text in'),
        ('text', ValueError, 'text.parquet is not a parquet file'),
        ('none', FileNotFoundError, 'none.parquet is missing: expected a parquet file with columns prompt, response')]
    for name, error, message in faults:
        cfg = TokenizerCfg(files=(tmp_path/f'{name}.parquet',), out=tmp_path/'t')
        with pytest.raises(error, match=message): train_tokenizer(cfg)
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path))
    with pytest.raises(FileNotFoundError, match='00_data_cleaning'): train_tokenizer(TokenizerCfg())

def test_presets(monkeypatch, tmp_path):
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path))
    monkeypatch.setenv('SCCLM_SCALE', 'tiny')
    assert tokenizer_cfg().max_word_len > 1 and tokenizer_cfg().out is None
    chars = tokenizer_cfg(words=False)
    assert chars.out == tmp_path/'tiny'/'tokenizer_chars' and chars.max_word_len == 1
    base = tokenizer_cfg('base')
    assert (base.min_count, base.max_vocab, base.out) == (1500, 29298, None) and base.max_word_len > 1
    with pytest.raises(ValueError, match='SCCLM_SCALE'): tokenizer_cfg('huge')
