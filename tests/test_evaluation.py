"""Evaluation against independent computations: likelihoods, prompts, archives.
What is wrong is named; a killed run goes on."""
import csv
import io
import json
import math
import os
import random
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from chat_toys import char_tok, save_toy, toy_model
from raw_toys import put_pairs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BartConfig, BartForConditionalGeneration, GPT2Config, PreTrainedTokenizerFast

from scclm.dataset import decode, encode
from scclm.evaluation import (CHUNK, SHOWN, EvaluateCfg, Question, bleu_of, bleu_stats, cached_part, distinct, end_id,
    evaluate, exam_scores, fit_prompts, letter_ids, letter_logp, pair_scores, plot_measures, plot_subjects, read_exam,
    read_questions, read_rows, repeats, score_rows, score_table)
from scclm.model import load_model
from scclm.runs import read_json
from scclm.scores import (answer_logp, bits_per_char, bleu4, bootstrap, greedy_answers, greedy_ids, heldout_exact,
    wilson)

matplotlib.use('Agg')

PHRASES = '以下是单项选择题，请直接给出正确答案的选项。题目：中国考试其中'
CHARS = 'ABCD.：。\n ' + ''.join(chr(0x4e00 + i) for i in range(60)) + ''.join(sorted(set(PHRASES)))
HAN = CHARS[9:69]

def text(rng, low, high):
    return ''.join(rng.choice(HAN) for _ in range(rng.randint(low, high)))

def make_pairs(n, seed=0):
    rng = random.Random(seed)
    return [(text(rng, 3, 20), text(rng, 1, 15)) for _ in range(n)]

# Toy models: the course's T5, a BART, and a T5 with a tokenizer as published ones have it

def bart_tok():
    "Writes <s> … </s>; its special ids are not T5's: bos 0, pad 1, eos 2."
    vocab = {t: i for i, t in enumerate(['<s>', '<pad>', '</s>', '<unk>', *sorted(set(CHARS))])}
    core = Tokenizer(models.BPE(vocab, [], unk_token='<unk>'))
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing('<s> $A </s>', None, [('<s>', 0), ('</s>', 2)])
    special = dict(bos_token='<s>', pad_token='<pad>', eos_token='</s>', unk_token='<unk>')
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)

def bart_model(vocab_size):
    "Decoding starts with id 2, the end mark."
    cfg = BartConfig(vocab_size=vocab_size, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=512, init_std=.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BartForConditionalGeneration(cfg).eval()

def spaced_tok():
    "Like a published T5: every text starts with a piece of its own, so a letter takes two tokens."
    pieces = ['<pad>', '</s>', '<unk>', '▁', *sorted(set(CHARS) - {' '})]
    core = Tokenizer(models.Unigram([(t, 0. if i < 3 else -1.) for i, t in enumerate(pieces)], unk_id=2))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.post_processor = processors.TemplateProcessing('$A </s>', None, [('</s>', 1)])
    special = dict(pad_token='<pad>', eos_token='</s>', unk_token='<unk>')
    tok = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    assert tok.tokenize('A') == ['▁', 'A']
    return tok

@pytest.fixture(scope='module')
def t5(tmp_path_factory):
    tok = char_tok(CHARS)
    return save_toy(tmp_path_factory.mktemp('t5'), tok, toy_model(len(tok), seed=1, spread=.5))

@pytest.fixture(scope='module')
def bart(tmp_path_factory):
    tok = bart_tok()
    return save_toy(tmp_path_factory.mktemp('bart'), tok, bart_model(len(tok) + 5))

@pytest.fixture(scope='module')
def spaced(tmp_path_factory):
    "Fewer ids than embedding rows."
    tok = spaced_tok()
    return save_toy(tmp_path_factory.mktemp('spaced'), tok, toy_model(len(tok) + 28, seed=2, spread=.5))

@pytest.fixture(params=['t5', 'bart', 'spaced'])
def opened(request):
    return load_model(request.getfixturevalue(request.param), foreign=True)

# Text to ids

def ids_of(tok, t, eos, max_len=None):
    "By the tokenizer's own call: the end mark added if it is missing, long texts cut, the mark put back."
    ids = list(tok(t, verbose=False).input_ids)
    if not ids or ids[-1] != eos: ids = [*ids, eos]
    return ids if max_len is None or len(ids) <= max_len else [*ids[:max_len - 1], eos]

@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('max_len', [None, 2, 3, 8, 9, 256])
def test_encode_keeps_what_the_tokenizer_puts_around_a_text(opened, seed, max_len):
    model, tok = opened
    rng, eos = random.Random(seed), end_id(model, tok)
    texts = ['', ' ', 'A', '天', *(text(rng, 0, 20) + rng.choice(['', ' ', '\n', 'B 。']) for _ in range(30))]
    assert encode(texts, tok, max_len, eos) == [ids_of(tok, t, eos, max_len) for t in texts]

def test_encode_of_foreign_tokenizers_by_hand():
    han = [bart_tok().convert_tokens_to_ids(c) for c in HAN[:3]]
    assert encode([HAN[:3], ''], bart_tok(), eos=2) == [[0, *han, 2], [0, 2]]
    assert encode([HAN[:3]], bart_tok(), 3, 2) == [[0, han[0], 2]]
    pieces = [spaced_tok().convert_tokens_to_ids(c) for c in ('▁', *HAN[:3])]
    assert encode([HAN[:3], ''], spaced_tok(), eos=1) == [[*pieces, 1], [1]]
    assert encode([HAN[:3]], spaced_tok(), 3, 1) == [[*pieces[:2], 1]]

@pytest.mark.parametrize('name', ['t5', 'bart'])
def test_a_typed_end_mark_is_plain_text(request, name):
    model, tok = load_model(request.getfixturevalue(name), foreign=True)
    eos = end_id(model, tok)
    for typed in (tok.eos_token, f'天{tok.eos_token}地', f'天{tok.pad_token}{tok.eos_token}'):
        ids, = encode([typed], tok, None, eos)
        assert ids[-1] == eos
        assert not {eos, tok.pad_token_id} & set(ids[:-1]), typed

def test_a_text_does_not_change_with_what_the_tokenizer_was_last_asked(opened):
    "Padding and cutting switched on by a call leave traces in the backend; `encode` does not see them."
    model, tok = opened
    eos = end_id(model, tok)
    texts = [p for p, _ in make_pairs(6)]
    before = encode(texts, tok, None, eos)
    tok(texts, padding='max_length', truncation=True, max_length=4)
    assert encode(texts, tok, None, eos) == before

# Intervals

Z95 = 1.959963984540054

def last_inside(share, n, inside, outside):
    "Bisection for the p where |share - p| = z sqrt(p (1-p) / n)."
    for _ in range(200):
        middle = (inside + outside) / 2
        if abs(share - middle) <= Z95 * math.sqrt(middle * (1 - middle) / n): inside = middle
        else: outside = middle
    return inside

@pytest.mark.parametrize('right,n', [(0, 1), (1, 1), (0, 20), (7, 20), (20, 20), (2900, 11582)])
def test_wilson_solves_its_equation(right, n):
    share = right / n
    low, high = wilson(right, n)
    assert low == pytest.approx(0 if right == 0 else last_inside(share, n, share, 0), abs=1e-9)
    assert high == pytest.approx(1 if right == n else last_inside(share, n, share, 1), abs=1e-9)

@pytest.mark.parametrize('p', [.05, .25, .6])
def test_wilson_covers_what_it_promises(p, n=150):
    "Exactly, by the binomial distribution: no sampling."
    intervals = [wilson(k, n) for k in range(n + 1)]
    held = [k for k, (low, high) in enumerate(intervals) if low <= p <= high]
    assert .93 < sum(math.comb(n, k) * p**k * (1 - p)**(n - k) for k in held) < .97

@pytest.mark.parametrize('n', [1, 3, 39, 98, 235, 1426])
def test_wilson_always_holds_the_share(n):
    for right in {0, 1, n // 2, n - 1, n}:
        low, high = wilson(right, n)
        assert 0 <= low <= right / n <= high <= 1

def ratio(sums):
    return sums[0] / sums[1]

def test_bootstrap_is_what_a_loop_gives():
    stats = np.random.default_rng(1).random((40, 2))
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(500):
        rows = [stats[i] for i in rng.integers(0, 40, 40)]
        drawn.append(sum(r[0] for r in rows) / sum(r[1] for r in rows))
    low, high = bootstrap(stats, ratio, n_boot=500, seed=0)
    assert sum(d < low for d in drawn) == pytest.approx(12.5, abs=1)
    assert sum(d > high for d in drawn) == pytest.approx(12.5, abs=1)

def test_bootstrap_of_a_mean_agrees_with_the_normal_interval():
    x = np.random.default_rng(2).normal(5, 2, 800)
    stats = np.stack([x, np.ones(800)], 1)
    low, high = bootstrap(stats, ratio)
    half = 1.96 * x.std() / math.sqrt(800)
    assert low == pytest.approx(x.mean() - half, abs=.03)
    assert high == pytest.approx(x.mean() + half, abs=.03)
    assert (low, high) == bootstrap(stats, ratio), 'the same seed gives the same interval'

@pytest.mark.parametrize('seed', range(3))
def test_bleu_from_counts_and_its_interval(seed):
    from sacrebleu.metrics import BLEU
    rng = random.Random(seed)
    refs = [text(rng, 5, 20) for _ in range(60)]
    said = [r if rng.random() < .5 else r[:len(r)//2] + text(rng, 2, 6) for r in refs]
    stats = bleu_stats(said, refs)
    assert bleu_of(stats.sum(0)) == pytest.approx(bleu4(said, refs), abs=1e-9)
    theirs = BLEU(tokenize='zh').corpus_score(said, [refs], n_bootstrap=1000)
    low, high = bootstrap(stats, bleu_of)
    assert (low + high) / 2 == pytest.approx(theirs._mean, abs=1.5)
    assert (high - low) / 2 == pytest.approx(theirs._ci, rel=.2)

# Shape of the answers

@pytest.mark.parametrize('seed', [3, 4, 5])
def test_repeats_and_distinct_by_brute_force(seed):
    rng = random.Random(seed)
    texts = [''.join(rng.choice('天地玄') for _ in range(rng.randint(0, 25))) for _ in range(30)]
    for t in texts:
        again = sum(any(t[j:j+4] == t[i:i+4] for j in range(i)) for i in range(max(0, len(t) - 3)))
        assert repeats(t) == (again, max(0, len(t) - 3)), t
    pieces = Counter(t[i:i+2] for t in texts for i in range(len(t) - 1))
    assert distinct(texts, 2) == len(pieces) / pieces.total()
    assert distinct(['', '天'], 2) is None

# Likelihood

@torch.no_grad()
def slow_logp(model, prompt, answer):
    "One pair, one token at a time, without batch, padding or label shift."
    said = [model.config.decoder_start_token_id]
    total = 0.
    for i in answer:
        logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([said])).logits[0, -1]
        total += logits.log_softmax(-1)[i].item()
        said.append(i)
    return total

@pytest.mark.parametrize('budget', [1, 60, 8192])
def test_answer_logp_token_by_token(opened, budget):
    model, tok = opened
    eos = end_id(model, tok)
    pairs = [tuple(encode(list(p), tok, None, eos)) for p in make_pairs(12)]
    slow = [slow_logp(model, *p) for p in pairs]
    ticks = []
    assert answer_logp(model, pairs, budget, ticks.append) == pytest.approx(slow, rel=1e-5, abs=1e-4)
    assert sum(ticks) == 12

def test_answers_are_those_of_generate(opened):
    model, tok = opened
    prompts = encode([p for p, _ in make_pairs(9)], tok, None, end_id(model, tok))
    ours = greedy_ids(model, prompts, 10, 160)
    for ids, answer in zip(prompts, ours):
        mask = torch.ones(1, len(ids), dtype=torch.long)
        out = model.generate(input_ids=torch.tensor([ids]), attention_mask=mask, do_sample=False, num_beams=1,
            max_new_tokens=10, forced_eos_token_id=None)[0].tolist()
        assert decode(tok, answer) == tok.decode(out, skip_special_tokens=True)
        assert [i for i in answer if i != model.config.pad_token_id] == out[1:]

@pytest.mark.parametrize('max_len', [256, 8]) # 8: most answers are cut
def test_own_model_gives_the_course_s_figures(t5, max_len):
    model, tok = load_model(t5)
    pairs = make_pairs(40)
    rows = score_rows(model, tok, pairs, EvaluateCfg(max_len=max_len, max_new_tok=12))
    scores = pair_scores(rows)
    assert scores['bits_per_char']['value'] == pytest.approx(bits_per_char(model, tok, pairs, max_len), rel=1e-5)
    assert scores['loss']['value'] == pytest.approx(sum(r['nats'] for r in rows) / sum(r['n_tok'] for r in rows))
    asked = [p for p, _ in pairs]
    assert [r['answer'] for r in rows] == greedy_answers(model, tok, asked, max_new_tok=12, max_len=max_len)

def test_questions_are_read_as_typed_or_as_the_chat_reads_them(t5):
    model, tok = load_model(t5)
    typed, plain = (f'{HAN[0]}\u200b{HAN[1]}', HAN[2]), (HAN[:2], HAN[2])
    cfg = EvaluateCfg(max_new_tok=5)
    as_chat, = score_rows(model, tok, [typed], replace(cfg, chat_form=True))
    (as_typed, as_plain) = (score_rows(model, tok, [p], cfg)[0] for p in (typed, plain))
    assert as_chat == as_plain | dict(prompt=typed[0]) and as_typed['nats'] != as_plain['nats']

def test_rows_hold_what_a_foreign_model_says(opened):
    "Every field of a row by its own plain computation."
    model, tok = opened
    eos, pairs = end_id(model, tok), make_pairs(6, seed=8)
    ticks = []
    rows = score_rows(model, tok, pairs, EvaluateCfg(max_len=9, max_new_tok=5), ticks.append)
    assert sum(ticks) == 6
    for (prompt, reference), row in zip(pairs, rows, strict=True):
        asked, wanted = ids_of(tok, prompt, eos, 9), ids_of(tok, reference, eos, 9)
        said = model.generate(input_ids=torch.tensor([asked]), do_sample=False, num_beams=1, max_new_tokens=5,
            attention_mask=torch.ones(1, len(asked), dtype=torch.long), forced_eos_token_id=None)[0]
        scored_text = reference if len(wanted) < 9 else tok.decode(wanted, skip_special_tokens=True)
        assert row == dict(prompt=prompt, reference=reference, answer=tok.decode(said, skip_special_tokens=True),
            nats=pytest.approx(-slow_logp(model, asked, wanted), abs=1e-4), n_tok=len(wanted),
            n_char=len(scored_text) + 1, n_unk=sum(i == tok.unk_token_id for i in wanted))

def test_pair_scores_by_hand():
    row = dict(prompt='问', n_unk=0)
    rows = [row | dict(answer='天地天地天', reference='天地', nats=2., n_tok=3, n_char=3),
            row | dict(answer='天地', reference='天地 ', nats=1., n_tok=3, n_char=3, n_unk=1)]
    s = pair_scores(rows)
    assert s['loss']['value'] == .5
    assert s['bits_per_char']['value'] == pytest.approx(.5 / math.log(2))
    assert s['exact'] == dict(value=.5, ci95=list(wilson(1, 2)))
    assert s['repetition']['value'] == 0
    assert 'repetition_reference' not in s       # no reference has four characters: absent, not zero
    assert s['length_ratio']['value'] == 7/5
    assert s['distinct1']['value'] == 2/7
    assert s['unknown']['value'] == pytest.approx(1/6)

# Choices

def test_letters_fast_and_slow_agree(opened):
    model, tok = opened
    eos = end_id(model, tok)
    prompts = encode([p for p, _ in make_pairs(7)], tok, None, eos)
    letters = letter_ids(tok, eos)
    slow = np.array([[slow_logp(model, p, letter) for letter in letters] for p in prompts])
    assert letter_logp(model, prompts, letters, 100) == pytest.approx(slow, abs=1e-4)
    uneven = [letters[0], letters[1], letters[2] + letters[0], letters[3]] # no common beginning: scored as sequences
    slow = np.array([[slow_logp(model, p, letter) for letter in uneven] for p in prompts])
    assert letter_logp(model, prompts, uneven) == pytest.approx(slow, abs=1e-4)

def test_letters_a_tokenizer_lacks():
    with pytest.raises(ValueError, match='does not know the letters'): letter_ids(char_tok('天地'), 1)

@pytest.mark.parametrize('seed', range(3))
def test_prompts_keep_as_many_examples_as_fit(opened, seed):
    model, tok = opened
    rng, eos = random.Random(seed), end_id(model, tok)
    head = '天\n'
    solved = [text(rng, 5, 30) + '\n' for _ in range(5)]
    asks = [text(rng, 5, 90) for _ in range(30)]
    prompts, used, n_cut = fit_prompts(tok, (head, solved, asks), eos, 80)
    def whole(k, ask):
        "The prompt with the last k examples."
        return ids_of(tok, head + ''.join(solved[5 - k:]) + ask, eos)
    for ids, k, ask in zip(prompts, used, asks, strict=True):
        assert k == max((j for j in range(6) if len(whole(j, ask)) <= 80), default=0)
        assert ids == whole(k, ask)[-80:]
    assert n_cut == sum(len(whole(0, ask)) > 80 for ask in asks) > 0
    assert len(set(used)) > 2

def test_exam_scores_by_hand():
    one = dict(n=4, right=3, picked='ABCD', gold='ABCA', shots_used=8, cut=1, unknown=2, prompt_tok=40, seconds=1.)
    two = dict(n=2, right=0, picked='AA', gold='BB', shots_used=2, cut=0, unknown=1, prompt_tok=20, seconds=2.)
    assert exam_scores(dict(one=one, two=two)) == dict(accuracy=.5, ci95=list(wilson(3, 6)), n=6, chance=.25,
        contains_chance=True, macro=.375, constant=.5, picked=dict(A=3/6, B=1/6, C=1/6, D=1/6), shots_used=10/6, cut=1,
        unknown=3/60, seconds=3., subjects=dict(
            one=dict(accuracy=.75, ci95=list(wilson(3, 4)), n=4, shots_used=2.),
            two=dict(accuracy=0., ci95=list(wilson(0, 2)), n=2, shots_used=1.)))

# Files

CMMLU = ['', 'Question', 'A', 'B', 'C', 'D', 'Answer']
CEVAL = ['id', 'question', 'A', 'B', 'C', 'D', 'answer', 'explanation']

def csv_bytes(head, rows, encoding='utf-8'):
    f = io.StringIO(newline='')
    csv.writer(f).writerows([head, *rows])
    return f.getvalue().encode(encoding)

def questions(n, seed):
    rng = random.Random(seed)
    return [[i, text(rng, 4, 15), *(text(rng, 1, 4) for _ in 'ABCD'), rng.choice('ABCD')] for i in range(n)]

def write_exam(folder, subjects=3, n=12, split='test', head=CMMLU, tail=''):
    for s in range(subjects):
        for part, rows in (('dev', questions(5, 1000 + s)), (split, questions(n, s))):
            name = f'subject{s}_{part}' if tail else f'subject{s}'
            path = folder/part/f'{name}.csv'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(csv_bytes(head, [r + [''] * (len(head) - 7) for r in rows]))
    return folder

def pack(folder, path):
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob('*.csv')}
    if path.suffix == '.zip':
        with zipfile.ZipFile(path, 'w') as z:
            for name, p in files.items(): z.write(p, f'ceval/{name}')
    else:
        with tarfile.open(path, 'w:' + path.suffix[1:]) as t:
            for name, p in files.items(): t.add(p, f'./{name}')
    return path

@pytest.mark.parametrize('name', ['e.zip', 'e.tar.gz', 'e.tar.xz'])
def test_archives_read_as_their_folder(tmp_path, name):
    folder = write_exam(tmp_path/'exam')
    assert read_exam(pack(folder, tmp_path/name), 'test') == read_exam(folder, 'test')

def test_members_that_would_escape_touch_nothing(tmp_path):
    "Names with .., absolute names, links and devices: read as subjects or passed over, never written anywhere."
    raw = csv_bytes(CMMLU, questions(3, 0))
    path = tmp_path/'in'/'evil.tar'
    path.parent.mkdir()
    with tarfile.open(path, 'w') as t:
        for name in ('../../test/up.csv', str(tmp_path/'test'/'absolute.csv'), 'test/fine.csv'):
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            t.addfile(info, io.BytesIO(raw))
        for kind, name in ((tarfile.SYMTYPE, 'test/link.csv'), (tarfile.FIFOTYPE, 'test/pipe.csv')):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, '/etc/passwd'
            t.addfile(info)
    before = sorted(tmp_path.rglob('*'))
    assert set(read_exam(path, 'test')) == {'up', 'absolute', 'fine'}
    assert sorted(tmp_path.rglob('*')) == before

def test_subject_names_cannot_leave_the_results(t5, tmp_path):
    raw = csv_bytes(CMMLU, questions(3, 0))
    path, out = tmp_path/'evil.zip', tmp_path/'out'
    with zipfile.ZipFile(path, 'w') as z:
        for name in ('test/a b$c.csv', 'x\\test\\up..%2f..%2f.csv', 'test/..csv', 'test/....csv'): z.writestr(name, raw)
    evaluate(EvaluateCfg(model=str(t5), pairs=False, cmmlu=str(path), shots=(0,), out=str(out)))
    found = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob('*') if p.is_file()}
    subjects = {f'out/parts/cmmlu-letter-0/{name}.json' for name in ('a_b_c', 'up___2f___2f')}
    assert found == {'evil.zip', 'out/scores.json', *subjects}

@pytest.mark.parametrize('how,says', [('missing', 'is missing: expected a folder or an archive'),
    ('text', 'not a readable folder, zip or tar archive'), ('cut', 'not a readable folder, zip or tar archive'),
    ('empty zip', 'holds no CSV file in dev/, val/ or test/'), ('empty folder', 'holds no CSV file'),
    ('dev only', 'has no test/ folder'), ('twice', 'are the same subject')])
def test_archives_that_cannot_be_used(tmp_path, how, says):
    path = tmp_path/how
    if how == 'text': path.write_text('hello')
    if how == 'cut':
        whole = pack(write_exam(tmp_path/'x'), tmp_path/'w.tar.gz').read_bytes()
        path.write_bytes(whole[:len(whole)//2])
    if how == 'empty zip': zipfile.ZipFile(path, 'w').close()
    if how == 'empty folder': path.mkdir()
    if how == 'dev only': write_exam(path, split='dev')
    if how == 'twice':
        with zipfile.ZipFile(path, 'w') as z:
            for name in ('a/test/s.csv', 'b/test/s.csv'): z.writestr(name, csv_bytes(CMMLU, questions(2, 0)))
    with pytest.raises((ValueError, FileNotFoundError), match=says) as e: read_exam(path, 'test')
    assert str(path) in str(e.value)
    assert '\n' not in str(e.value)

def test_a_member_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr('scclm.evaluation.MAX_MEMBER', 100)
    path = pack(write_exam(tmp_path/'x'), tmp_path/'x.zip')
    with pytest.raises(ValueError, match='expected at most 100'): read_exam(path, 'test')

GOOD = [[0, '天地', '玄', '黄', '宇', '宙', 'A'], [1, '洪荒，“日”月\n盈昃', '辰', '宿', '列', '张', 'd']]

@pytest.mark.parametrize('head', [CMMLU, CEVAL])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'gb18030'])
def test_official_formats(head, encoding):
    rows = [r + [''] * (len(head) - 7) for r in GOOD]
    assert read_questions('f', csv_bytes(head, rows, encoding)) == [
        Question('天地', ('玄', '黄', '宇', '宙'), 'A'),
        Question('洪荒，“日”月\n盈昃', ('辰', '宿', '列', '张'), 'D')]

@pytest.mark.parametrize('raw,says', [
    (csv_bytes(CMMLU[:-1], [r[:-1] for r in GOOD]), "f.csv, line 1: no column 'answer' among"),
    (csv_bytes([*CMMLU[:3], *CMMLU[4:]], [r[:6] for r in GOOD]), "f.csv, line 1: no column 'b'"),
    (csv_bytes(CMMLU, [*GOOD, [2, '天', 1, 2, 3, 4, 'E']]),
     "f.csv, line 5, field 'answer' is 'E': expected one of A, B, C, D"),
    (csv_bytes(CMMLU, [*GOOD, [2, '天', 1, 2, 3, 4, 'AB']]), "line 5, field 'answer' is 'AB'"),
    (csv_bytes(CMMLU, [[0, '天', 1, ' ', 3, 4, 'A']]), "f.csv, line 2, field 'b' is blank"),
    (csv_bytes(CMMLU, [[0, '天', 1, 2]]), "f.csv, line 2, field 'c' is blank"),
    (csv_bytes(CMMLU, []), 'f.csv has no questions'),
    (b'', "f.csv, line 1: no column 'question' among none"),
    (csv_bytes(CMMLU, GOOD[:1]) + b'1,\xff\xff\xff,1,2,3,4,A\n',
     'f.csv, line 3: the bytes are neither UTF-8 nor GB18030'),
    (csv_bytes(CMMLU, GOOD, 'utf-16'), 'f.csv, line 1: the bytes are neither'),
    (csv_bytes(CMMLU, GOOD[:1]) + b'1,"ab"c,1,2,3,4,A\n', 'f.csv: not a CSV file')])
def test_bad_questions_are_named(raw, says):
    with pytest.raises(ValueError) as e: read_questions('f.csv', raw)
    assert says in str(e.value)

# Exams

def written_out(row):
    "A question as the official CMMLU prompt has it."
    return f'题目：{row[1]}\nA. {row[2]}\nB. {row[3]}\nC. {row[4]}\nD. {row[5]}\n答案是：'

@torch.no_grad()
def picked_letter(model, tok, prompt):
    "The letter with the highest score after the decoder's start: one question, no batch."
    letters = [tok.convert_tokens_to_ids(letter) for letter in 'ABCD']
    ids = torch.tensor([tok(prompt).input_ids + [1]])
    logits = model(input_ids=ids, decoder_input_ids=torch.tensor([[0]])).logits[0, 0, letters]
    return 'ABCD'[logits.argmax()]

@pytest.mark.parametrize('shots', [0, 2])
def test_an_exam_question_by_question(t5, tmp_path, shots):
    "Prompts written out here, the library's model called on one question at a time."
    path, out = write_exam(tmp_path/'exam'), tmp_path/'out'
    cfg = EvaluateCfg(model=str(t5), pairs=False, cmmlu=str(path), shots=(shots,), out=str(out))
    got = evaluate(cfg)['cmmlu'][f'{shots}-shot']
    model, tok = load_model(t5)
    right, picked = Counter(), Counter()
    for s in range(3):
        examples = ''.join(f'{written_out(d)}{d[6]}\n\n' for d in questions(5, 1000 + s)[:shots])
        for row in questions(12, s):
            prompt = '以下是单项选择题，请直接给出正确答案的选项。\n\n' + examples + written_out(row)
            letter = picked_letter(model, tok, prompt)
            picked[letter] += 1
            right[f'subject{s}'] += letter == row[6]
    assert {k: v['accuracy'] for k, v in got['subjects'].items()} == {s: n/12 for s, n in right.items()}
    assert got['accuracy'] == pytest.approx(right.total() / 36)
    assert got['ci95'] == list(wilson(right.total(), 36))
    assert got['picked'] == {letter: picked[letter]/36 for letter in 'ABCD'}
    assert (got['shots_used'], got['n'], got['chance'], got['cut']) == (shots, 36, .25, 0)
    assert got['constant'] == max(Counter(r[6] for s in range(3) for r in questions(12, s)).values()) / 36
    assert got['contains_chance'] == (got['ci95'][0] <= .25 <= got['ci95'][1])

def test_option_texts_are_compared_per_character(t5, tmp_path):
    path, out = write_exam(tmp_path/'exam', subjects=1), tmp_path/'out'
    evaluate(EvaluateCfg(model=str(t5), pairs=False, cmmlu=str(path), answer='text', shots=(0,), out=str(out)))
    saved = read_json(out/'parts'/'cmmlu-text-0'/'subject0.json')['result']
    model, tok = load_model(t5)
    best = ''
    for row in questions(12, 0):
        asked = ids_of(tok, row[1], 1)
        per_char = [slow_logp(model, asked, ids_of(tok, o, 1)) / (len(o) + 1) for o in row[2:6]]
        best += 'ABCD'[np.argmax(per_char)]
    assert saved['picked'] == best

def test_ceval_is_scored_on_val(t5, tmp_path):
    folder = write_exam(tmp_path/'ceval', split='val', head=CEVAL, tail='_')
    (folder/'test').mkdir()
    without_answers = csv_bytes(CEVAL[:6], [r[:6] for r in questions(4, 9)]) # as the official files are
    (folder/'test'/'subject0_test.csv').write_bytes(without_answers)
    path = pack(folder, tmp_path/'c.zip')
    cfg = EvaluateCfg(model=str(t5), pairs=False, ceval=str(path), shots=(5, 0), limit_exam=7, out=str(tmp_path/'out'))
    got = evaluate(cfg)['ceval']
    assert list(got) == ['5-shot', '0-shot']
    assert set(got['0-shot']['subjects']) == {'subject0', 'subject1', 'subject2'}
    assert all(s['n'] == 7 for exam in got.values() for s in exam['subjects'].values())

def test_shots_without_examples(t5, tmp_path):
    path = write_exam(tmp_path/'exam')
    (path/'dev'/'subject1.csv').unlink()
    cfg = EvaluateCfg(model=str(t5), pairs=False, cmmlu=str(path), out=str(tmp_path/'out'))
    with pytest.raises(ValueError, match='has no dev/subject1.csv: 5-shot needs solved examples'): evaluate(cfg)

# Models that cannot be opened

def lose_a_tensor(file):
    from safetensors.torch import load_file, save_file
    weights = load_file(file)
    weights.pop('decoder.final_layer_norm.weight')
    save_file(weights, file, metadata=dict(format='pt'))

@pytest.mark.parametrize('how,says', [('no folder', 'config.json is missing'), ('no tokenizer', 'has no tokenizer'),
    ('no weights', 'cannot be loaded'), ('decoder only', 'has no encoder'), ('cut weights', 'cannot be loaded'),
    ('bad json', 'cannot be read'), ('fewer rows', 'ids but the model has'),
    ('lost tensor', 'does not fit config.json: 1 tensors are missing')])
def test_bad_model_folders(tmp_path, how, says):
    path, tok = tmp_path/'m', char_tok(CHARS)
    if how != 'no folder': save_toy(path, tok, toy_model(len(tok) - 3 if how == 'fewer rows' else len(tok)))
    if how == 'no tokenizer':
        for p in list(path.iterdir()):
            if 'token' in p.name: p.unlink()
    if how == 'no weights': (path/'model.safetensors').unlink()
    if how == 'decoder only': GPT2Config().save_pretrained(path)
    if how == 'cut weights': os.truncate(path/'model.safetensors', 1000)
    if how == 'bad json': (path/'config.json').write_text('{')
    if how == 'lost tensor': lose_a_tensor(path/'model.safetensors')
    with pytest.raises((ValueError, FileNotFoundError), match=says) as e: load_model(path, foreign=True)
    assert str(path) in str(e.value)
    assert '\n' not in str(e.value)

def test_scores_that_are_not_finite_are_refused(t5):
    model, tok = load_model(t5)
    model.decoder.final_layer_norm.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match='not finite in torch.float32'): answer_logp(model, [([8, 1], [9, 1])])
    with pytest.raises(ValueError, match='not finite in torch.float32'):
        letter_logp(model, [[8, 1]], letter_ids(tok, 1))

# The whole

def write_pairs(path, pairs, **more):
    return put_pairs(path, *map(list, zip(*pairs)), **more)

@pytest.mark.parametrize('pairs,says', [([('问', '答'), ('问', None)], "row 1, column 'response' is None"),
    ([('问', '答'), (' ', '答')], "row 1, column 'prompt' is ' '")])
def test_bad_rows_are_named(tmp_path, pairs, says):
    path = write_pairs(tmp_path/'d.parquet', pairs)
    with pytest.raises(ValueError) as e: read_rows(path)
    assert says in str(e.value)
    assert str(path) in str(e.value)

@pytest.fixture
def scale(t5, tmp_path, monkeypatch):
    "A scale with a model, a test set and held-out questions, some of them answered right."
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path))
    run = tmp_path/'tiny'
    model, tok = load_model(t5)
    save_toy(run/'sft'/'model', tok, model)
    write_pairs(run/'data'/'test.parquet', make_pairs(30))
    prompts = [p for p, _ in make_pairs(20, 5)]
    held = []
    for i, (prompt, answer) in enumerate(zip(prompts, greedy_answers(model, tok, prompts, max_new_tok=8))):
        right = answer.strip() if i % 3 else ''
        held.append((prompt, right or '天'))
    write_pairs(run/'data'/'heldout.parquet', held, kind=['phrasing', 'template'] * 10)
    return run

def test_what_is_missing_in_a_scale_is_named(t5, tmp_path, monkeypatch):
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path))
    with pytest.raises(FileNotFoundError, match='no model in'): evaluate(EvaluateCfg())
    model, tok = load_model(t5)
    save_toy(tmp_path/'tiny'/'sft'/'model', tok, model)
    with pytest.raises(FileNotFoundError, match='test.parquet'): evaluate(EvaluateCfg())

def test_defaults_of_a_scale(scale):
    scores = evaluate(EvaluateCfg(limit=25, max_new_tok=64))
    assert scores['pairs']['test']['rows'] == 25
    assert scores['heldout']['rows'] == 20
    model, tok = load_model(scale/'sft'/'model')
    shares = heldout_exact(model, tok)
    assert set(shares) == {'all', 'phrasing', 'template'}
    for kind, share in shares.items():
        got = scores['heldout']['exact'] if kind == 'all' else scores['heldout']['kinds'][kind]
        assert got['value'] == pytest.approx(share)
    saved = json.loads(json.dumps(scores))
    assert read_json(scale/'eval'/'scores.json') == read_json(scale/'eval'/'sft'/'scores.json') == saved

def test_later_calls_add_their_sections(scale, tmp_path):
    "On the same model; a foreign model leaves the scale's scores alone."
    cfg = EvaluateCfg(limit=5, max_new_tok=8)
    card = scale/'eval'/'scores.json'
    exam = write_exam(tmp_path/'exam')
    evaluate(cfg)
    evaluate(replace(cfg, pairs=False, cmmlu=str(exam), shots=(0,)))
    assert set(read_json(card)) >= {'pairs', 'heldout', 'cmmlu'}
    assert read_json(card)['cmmlu']['0-shot']['n'] == 36
    evaluate(replace(cfg, pairs=False, cmmlu=str(exam), shots=(1,)))
    assert list(read_json(card)['cmmlu']) == ['0-shot', '1-shot']
    before = card.read_bytes()
    tok = char_tok(CHARS)
    other = save_toy(tmp_path/'other', tok, toy_model(len(tok), seed=9))
    evaluate(replace(cfg, model=str(other)))
    assert (scale/'eval'/'other'/'scores.json').exists()
    assert card.read_bytes() == before

@pytest.mark.parametrize('damage', ['', '{"fingerprint": ', '[1, 2]', '"text"', '\ufeff'])
def test_damaged_scores_are_written_anew(scale, damage):
    cfg = EvaluateCfg(limit=3, max_new_tok=4, heldout=False)
    whole = without_seconds(evaluate(cfg))
    (scale/'eval'/'scores.json').write_text(damage, encoding='utf-8')
    (scale/'eval'/'sft'/'scores.json').write_text(damage, encoding='utf-8')
    assert without_seconds(evaluate(cfg)) == whole
    assert without_seconds(read_json(scale/'eval'/'scores.json')) == json.loads(json.dumps(whole))

@pytest.mark.parametrize('damage', [b'', b'{"key": "k", "resu', b'{"key": "k"}', b'{"key": "old", "result": 1}', b'[1]',
    b'"k"', b'\xff\xfe', b'null'])
def test_a_part_is_read_only_if_it_is_whole_and_its_own(tmp_path, damage):
    path = tmp_path/'parts'/'p.json'
    path.parent.mkdir()
    path.write_bytes(damage)
    assert cached_part(path, 'k', lambda: ['新']) == (['新'], False)
    assert cached_part(path, 'k', lambda: ['not called']) == (['新'], True)
    assert [p.name for p in path.parent.iterdir()] == ['p.json']

# Tables and plots

SHARES = dict(rows=9, loss=dict(value=2.5, ci95=[2., 3.]), exact=dict(value=.5, ci95=[.2, .8]),
    bleu4=dict(value=40., ci95=[10., 90.]), distinct1=dict(value=.3),
    kinds=dict(phrasing=dict(value=.6, ci95=[.1, .9])))
EXAM = dict(accuracy=.5, ci95=[.2, .8], n=6, chance=.25, subjects=dict(s0=dict(accuracy=.8, ci95=[.4, .8], n=2),
    s1=dict(accuracy=.2, ci95=[.1, .2], n=2), s2=dict(accuracy=.5, ci95=[.25, .5], n=2)))

def test_every_figure_is_in_the_table():
    scores = dict(pairs=dict(test=SHARES), heldout=SHARES, cmmlu={'0-shot': EXAM}, ceval_text={'5-shot': EXAM})
    table = score_table(scores)
    rows = [(*names, *values) for names, values in zip(table.index, table.replace(np.nan, None).values.tolist())]
    lines = [('loss', 2.5, 2., 3., 9), ('exact', .5, .2, .8, 9), ('bleu4', 40., 10., 90., 9),
             ('distinct1', .3, None, None, 9), ('exact phrasing', .6, .1, .9, None)]
    exams = [('cmmlu', 'accuracy 0-shot', .5, .2, .8, 6), ('ceval_text', 'accuracy 5-shot', .5, .2, .8, 6)]
    assert rows == [('test', *line) for line in lines] + [('heldout', *line) for line in lines] + exams

def whiskers(ax):
    "(x, low, high) of every interval drawn."
    drawn = [c for c in ax.containers if c.__class__.__name__ == 'ErrorbarContainer']
    return [(x[0], x[1], y[1]) for c in drawn for x, y in c.lines[2][0].get_segments()]

def test_measures_as_they_are_drawn():
    ax = plot_measures(dict(a=SHARES, b=SHARES))
    bars = [c for c in ax.containers if c.__class__.__name__ == 'BarContainer']
    places = [SHOWN.index(m) for m in ('exact', 'bleu4', 'distinct1')]
    for i, container in enumerate(bars):
        x = [bar.get_x() + bar.get_width()/2 for bar in container]
        assert x == pytest.approx([p + (i - .5)*.4 for p in places])
        assert [bar.get_height() for bar in container] == pytest.approx([.5, .4, .3])
    drawn = [(p + shift, low, high) for shift in (-.2, .2) for p, low, high in ((0, .2, .8), (1, .1, .9))]
    assert np.array(whiskers(ax)) == pytest.approx(np.array(drawn))

def test_subjects_as_they_are_drawn():
    ax = plot_subjects(EXAM, title='quiz')
    assert ax.lines[0].get_ydata() == pytest.approx([.2, .5, .8])
    assert [t.get_text() for t in ax.get_xticklabels()] == ['s1', 's2', 's0']
    assert np.array(whiskers(ax)) == pytest.approx(np.array([(0, .1, .2), (1, .25, .5), (2, .4, .8)]))
    assert (ax.get_ylabel(), ax.get_title()) == ('准确率', 'quiz')
    assert {line.get_label(): line.get_ydata()[0] for line in ax.lines if line.get_label()[0] != '_'} == dict(
        瞎猜=.25, 总平均=.5)

# Stop and go on

def without_seconds(x):
    if not isinstance(x, dict): return x
    return {k: without_seconds(v) for k, v in x.items() if k not in ('seconds', 'config')}

def parts(out):
    return {p: p.stat().st_mtime_ns for p in Path(out).rglob('parts/*/*.json')}

def test_what_has_changed_is_computed_again(t5, tmp_path):
    exam, out = write_exam(tmp_path/'exam'), tmp_path/'out'
    data = write_pairs(tmp_path/'d.parquet', make_pairs(CHUNK + 10))
    chunks = {'00000000', f'{CHUNK:08}'}
    cfg = EvaluateCfg(model=str(t5), data=(str(data),), heldout=False, cmmlu=str(exam), shots=(0,), max_new_tok=4,
        out=str(out))
    def changed(cfg):
        "Evaluate; the names of the parts that were written."
        before = parts(out)
        evaluate(cfg)
        return sorted(p.stem for p, t in parts(out).items() if before.get(p) != t)
    first = evaluate(cfg)
    subjects = {'subject0', 'subject1', 'subject2'}
    assert {p.stem for p in parts(out)} == chunks | subjects
    assert changed(cfg) == []
    assert without_seconds(evaluate(cfg)) == without_seconds(first)
    (exam/'test'/'subject1.csv').write_bytes(csv_bytes(CMMLU, questions(9, 77)))
    assert changed(cfg) == ['subject1']
    assert evaluate(cfg)['cmmlu']['0-shot']['n'] == 33
    cfg = replace(cfg, max_new_tok=5)
    assert changed(cfg) == sorted(chunks)
    cfg = replace(cfg, dtype='bfloat16')
    assert changed(cfg) == sorted(chunks | subjects)
    tok = char_tok(CHARS)
    cfg = replace(cfg, model=str(save_toy(tmp_path/'m2', tok, toy_model(len(tok), seed=3))))
    assert changed(cfg) == sorted(chunks | subjects)

RUN = '''
import sys
from scclm.evaluation import EvaluateCfg, evaluate
evaluate(EvaluateCfg(**eval(sys.argv[1])))
'''

def test_killed_and_continued(t5, tmp_path):
    "SIGKILL twice; no part is lost, doubled or computed twice, and the scores are those of a whole run."
    exam, out = write_exam(tmp_path/'exam', subjects=40, n=25), tmp_path/'out'
    data = write_pairs(tmp_path/'d.parquet', make_pairs(2 * CHUNK))
    cfg = dict(model=str(t5), data=(str(data),), heldout=False, cmmlu=str(exam), shots=(2,), max_new_tok=4,
        out=str(out))
    threads = str(torch.get_num_threads()) # as here: another number would round sums differently
    env = os.environ | dict(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
    seen = {}
    for n in (1, 15):
        p = subprocess.Popen([sys.executable, '-c', RUN, repr(cfg)], stdout=subprocess.PIPE, env=env)
        while len(parts(out)) < n and p.poll() is None: time.sleep(.002)
        p.kill()
        assert p.wait() != 0, 'finished before it could be killed'
        p.stdout.close()
        now = parts(out)
        assert n <= len(now) < 42
        assert seen.items() <= now.items()
        seen = now
    scores = evaluate(EvaluateCfg(**cfg))
    now = parts(out)
    assert seen.items() <= now.items()
    assert len(now) == 2 + 40
    whole = evaluate(EvaluateCfg(**dict(cfg, out=str(tmp_path/'whole'))))
    assert without_seconds(scores) == without_seconds(whole)
    assert scores['cmmlu']['2-shot']['n'] == 40 * 25
    assert scores['pairs']['d']['rows'] == 2 * CHUNK

@pytest.mark.parametrize('field,value', [('shots', ()), ('shots', (5, -1)), ('limit', -1), ('max_len', 1),
    ('budget_tok', 0), ('answer', 'word')])
def test_bad_settings_are_named(field, value):
    with pytest.raises(ValueError, match=f'{field}='): EvaluateCfg(**{field: value})
