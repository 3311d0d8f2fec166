"""Evaluation against independent computations: intervals, likelihoods, prompts, archives; what is wrong is named; a killed run goes on."""
import csv, io, json, math, os, random, subprocess, sys, tarfile, time, zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import matplotlib
matplotlib.use('Agg')
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BartConfig, BartForConditionalGeneration, GPT2Config, PreTrainedTokenizerFast

from chat_toys import char_tok, save_toy, toy_model
from scclm.evaluation import (EvaluateCfg, Question, answer_logp, bleu_of, bleu_stats, bootstrap, distinct, encode_texts, end_id, evaluate, fit_prompts,
    greedy_texts, letter_ids, letter_logp, open_model, pair_scores, plot_measures, plot_subjects, read_exam, read_questions,
    read_rows, repeats, score_rows, score_table, wilson)
from scclm.evaluation import CHUNK
from scclm.pretrain import bits_per_char, heldout_exact
from scclm.trainer import bleu4, greedy_answers

CHARS = 'ABCD.：。\n ' + ''.join(chr(0x4e00 + i) for i in range(60)) + ''.join(sorted(set('以下是单项选择题，请直接给出正确答案的选项。题目：中国考试其中')))
HAN = CHARS[9:69]

def text(rng, low, high): return ''.join(rng.choice(HAN) for _ in range(rng.randint(low, high)))

def make_pairs(n, seed=0):
    rng = random.Random(seed)
    return [(text(rng, 3, 20), text(rng, 1, 15)) for _ in range(n)]

def bart_parts():
    "A model whose special ids are not T5's: bos 0, pad 1, eos 2, decoder start 2; its tokenizer writes <s> … </s>."
    core = Tokenizer(models.BPE({t: i for i, t in enumerate(['<s>', '<pad>', '</s>', '<unk>', *sorted(set(CHARS))])}, [], unk_token='<unk>'))
    core.decoder, core.post_processor = decoders.Fuse(), processors.TemplateProcessing('<s> $A </s>', None, [('<s>', 0), ('</s>', 2)])
    tok = PreTrainedTokenizerFast(tokenizer_object=core, bos_token='<s>', pad_token='<pad>', eos_token='</s>', unk_token='<unk>')
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BartForConditionalGeneration(BartConfig(vocab_size=len(tok) + 5, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=512, init_std=.5))
    return tok, model.eval()

@pytest.fixture(scope='module')
def t5(tmp_path_factory):
    tok = char_tok(CHARS)
    return save_toy(tmp_path_factory.mktemp('t5'), tok, toy_model(len(tok), seed=1, spread=.5))

@pytest.fixture(scope='module')
def bart(tmp_path_factory):
    return save_toy(tmp_path_factory.mktemp('bart'), *bart_parts())

@pytest.fixture(scope='module')
def spaced(tmp_path_factory):
    "Like a published T5: every text starts with a piece of its own, so a letter takes two tokens; fewer ids than embedding rows."
    core = Tokenizer(models.Unigram([(t, 0. if i < 3 else -1.) for i, t in enumerate(['<pad>', '</s>', '<unk>', '▁', *sorted(set(CHARS) - {' '})])], unk_id=2))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    core.post_processor = processors.TemplateProcessing('$A </s>', None, [('</s>', 1)])
    tok = PreTrainedTokenizerFast(tokenizer_object=core, pad_token='<pad>', eos_token='</s>', unk_token='<unk>')
    assert tok.tokenize('A') == ['▁', 'A']
    return save_toy(tmp_path_factory.mktemp('spaced'), tok, toy_model(len(tok) + 28, seed=2, spread=.5))

@pytest.fixture(params=['t5', 'bart', 'spaced'])
def opened(request): return open_model(request.getfixturevalue(request.param))

# Intervals

@pytest.mark.parametrize('right,n', [(0, 1), (1, 1), (0, 20), (7, 20), (20, 20), (2900, 11582)])
def test_wilson_solves_its_equation(right, n):
    "Bisection on |right/n - p| = z sqrt(p (1-p) / n), below and above the share."
    z, share = 1.959963984540054, right/n
    def solve(a, b):
        "a: inside, b: outside."
        for _ in range(200):
            m = (a + b) / 2
            a, b = (m, b) if abs(share - m) <= z*math.sqrt(m*(1 - m)/n) else (a, m)
        return a
    low, high = wilson(right, n)
    assert low == pytest.approx(0 if right == 0 else solve(share, 0), abs=1e-9)
    assert high == pytest.approx(1 if right == n else solve(share, 1), abs=1e-9)

@pytest.mark.parametrize('p', [.05, .25, .6])
def test_wilson_covers_what_it_promises(p, n=150):
    "Exactly, by the binomial distribution: no sampling."
    chance = sum(math.comb(n, k) * p**k * (1 - p)**(n - k) for k in range(n + 1) if wilson(k, n)[0] <= p <= wilson(k, n)[1])
    assert .93 < chance < .97

def test_bootstrap_is_what_a_loop_gives():
    stats, rng = np.random.default_rng(1).random((40, 2)), np.random.default_rng(0)
    drawn = sorted((lambda rows: sum(r[0] for r in rows) / sum(r[1] for r in rows))([stats[i] for i in rng.integers(0, 40, 40)]) for _ in range(500))
    low, high = bootstrap(stats, lambda s: s[0] / s[1], n_boot=500, seed=0)
    assert sum(d < low for d in drawn) == pytest.approx(12.5, abs=1) and sum(d > high for d in drawn) == pytest.approx(12.5, abs=1)

def test_bootstrap_of_a_mean_agrees_with_the_normal_interval():
    x = np.random.default_rng(2).normal(5, 2, 800)
    low, high = bootstrap(np.stack([x, np.ones(800)], 1), lambda s: s[0] / s[1])
    half = 1.96 * x.std() / math.sqrt(800)
    assert low == pytest.approx(x.mean() - half, abs=.03) and high == pytest.approx(x.mean() + half, abs=.03)
    assert (low, high) == bootstrap(np.stack([x, np.ones(800)], 1), lambda s: s[0] / s[1]), 'the same seed gives the same interval'

def test_bleu_from_counts_and_its_interval():
    from sacrebleu.metrics import BLEU
    rng = random.Random(0)
    refs = [text(rng, 5, 20) for _ in range(60)]
    said = [r if rng.random() < .5 else r[:len(r)//2] + text(rng, 2, 6) for r in refs]
    stats = bleu_stats(said, refs)
    assert bleu_of(stats.sum(0)) == pytest.approx(bleu4(said, refs), abs=1e-9)
    theirs = BLEU(tokenize='zh').corpus_score(said, [refs], n_bootstrap=1000)
    low, high = bootstrap(stats, bleu_of)
    assert (low + high) / 2 == pytest.approx(theirs._mean, abs=1.5) and (high - low) / 2 == pytest.approx(theirs._ci, rel=.2)

# Shape of the answers

def test_repeats_and_distinct_by_brute_force():
    rng = random.Random(3)
    texts = [''.join(rng.choice('天地玄') for _ in range(rng.randint(0, 25))) for _ in range(30)]
    for t in texts:
        again = sum(any(t[j:j+4] == t[i:i+4] for j in range(i)) for i in range(max(0, len(t) - 3)))
        assert repeats(t) == (again, max(0, len(t) - 3))
    pieces = Counter(t[i:i+2] for t in texts for i in range(len(t) - 1))
    assert distinct(texts, 2) == len(pieces) / pieces.total()
    assert distinct(['', '天'], 2) is None

# Likelihood

def slow_logp(model, prompt, answer):
    "One pair, one token at a time, without batch, padding or label shift."
    said, total = [model.config.decoder_start_token_id], 0.
    for i in answer:
        logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([said])).logits[0, -1]
        total, said = total + logits.log_softmax(-1)[i].item(), [*said, i]
    return total

@pytest.mark.parametrize('budget', [1, 60, 8192])
def test_answer_logp_token_by_token(opened, budget):
    model, tok = opened
    eos = end_id(model, tok)
    pairs = [tuple(encode_texts(tok, list(p), eos)) for p in make_pairs(12)]
    with torch.no_grad(): slow = [slow_logp(model, *p) for p in pairs]
    ticks = []
    assert answer_logp(model, pairs, budget, ticks.append) == pytest.approx(slow, abs=1e-4)
    assert sum(ticks) == 12

def test_answers_are_those_of_generate(opened):
    model, tok = opened
    prompts = encode_texts(tok, [p for p, _ in make_pairs(9)], end_id(model, tok))
    ours = greedy_texts(model, tok, prompts, EvaluateCfg(max_new_tok=10, budget_tok=40))
    for ids, a in zip(prompts, ours):
        out = model.generate(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False, num_beams=1,
                             max_new_tokens=10, forced_eos_token_id=None)
        assert a == tok.decode(out[0], skip_special_tokens=True)

def test_own_model_gives_the_course_s_figures(t5):
    model, tok = open_model(t5)
    pairs = make_pairs(40)
    for max_len in (256, 8):                # 8: most answers are cut
        rows = score_rows(model, tok, pairs, EvaluateCfg(max_len=max_len, max_new_tok=12))
        scores = pair_scores(rows)
        assert scores['bits_per_char']['value'] == pytest.approx(bits_per_char(model, tok, pairs, max_len), rel=1e-5)
        assert scores['loss']['value'] == pytest.approx(sum(r['nats'] for r in rows) / sum(r['n_tok'] for r in rows))
        assert [r['answer'] for r in rows] == greedy_answers(model, tok, [p for p, _ in pairs], max_new_tok=12, max_len=max_len)

def test_pair_scores_by_hand():
    row = dict(prompt='问', n_unk=0)
    rows = [row | dict(answer='天地天地天', reference='天地', nats=2., n_tok=3, n_char=3), row | dict(answer='天地', reference='天地 ', nats=1., n_tok=3, n_char=3, n_unk=1)]
    s = pair_scores(rows)
    assert s['loss']['value'] == .5 and s['bits_per_char']['value'] == pytest.approx(.5 / math.log(2))
    assert s['exact'] == dict(value=.5, ci95=list(wilson(1, 2)))
    assert s['repetition']['value'] == 0 and 'repetition_reference' not in s     # no reference has four characters: absent, not zero
    assert s['length_ratio']['value'] == 7/5 and s['distinct1']['value'] == 2/7 and s['unknown']['value'] == pytest.approx(1/6)

# Choices

def test_letters_fast_and_slow_agree(opened):
    model, tok = opened
    eos = end_id(model, tok)
    prompts, letters = encode_texts(tok, [p for p, _ in make_pairs(7)], eos), letter_ids(tok, eos)
    with torch.no_grad(): slow = [[slow_logp(model, p, l) for l in letters] for p in prompts]
    assert letter_logp(model, prompts, letters, 100) == pytest.approx(np.array(slow), abs=1e-4)
    uneven = [letters[0], letters[1], letters[2] + letters[0], letters[3]]       # no common beginning: scored as sequences
    with torch.no_grad(): slow = [[slow_logp(model, p, l) for l in uneven] for p in prompts]
    assert letter_logp(model, prompts, uneven) == pytest.approx(np.array(slow), abs=1e-4)

def test_letters_a_tokenizer_lacks():
    with pytest.raises(ValueError, match='does not know the letters'): letter_ids(char_tok('天地'), 1)

def test_prompts_keep_as_many_examples_as_fit(opened):
    model, tok = opened
    rng, eos = random.Random(0), end_id(model, tok)
    head, solved, asks = '天\n', [text(rng, 5, 30) + '\n' for _ in range(5)], [text(rng, 5, 90) for _ in range(30)]
    prompts, used, n_cut = fit_prompts(tok, (head, solved, asks), eos, 80)
    size = lambda t: len(encode_texts(tok, [t], eos)[0])
    for ids, k, ask in zip(prompts, used, asks):
        fits = [j for j in range(6) if size(head + ''.join(solved[5-j:]) + ask) <= 80]
        assert k == max(fits, default=0)
        whole, = encode_texts(tok, [head + ''.join(solved[5-k:]) + ask], eos)
        assert ids == whole[-80:]
    assert n_cut == sum(size(head + ask) > 80 for ask in asks) > 0
    assert len(set(used)) > 2

# Files

CMMLU, CEVAL = ['', 'Question', 'A', 'B', 'C', 'D', 'Answer'], ['id', 'question', 'A', 'B', 'C', 'D', 'answer', 'explanation']

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
            path = folder/part/f'subject{s}{tail and "_" + part}.csv'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(csv_bytes(head, [r + [''] * (len(head) - 7) for r in rows]))
    return folder

def pack(folder, path):
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob('*.csv')}
    if path.suffix == '.zip':
        with zipfile.ZipFile(path, 'w') as z: [z.write(p, f'ceval/{n}') for n, p in files.items()]
    else:
        with tarfile.open(path, 'w:' + path.suffix[1:]) as t: [t.add(p, f'./{n}') for n, p in files.items()]
    return path

@pytest.mark.parametrize('name', ['e.zip', 'e.tar.gz', 'e.tar.xz'])
def test_archives_read_as_their_folder(tmp_path, name):
    folder = write_exam(tmp_path/'exam')
    assert read_exam(pack(folder, tmp_path/name), 'test') == read_exam(folder, 'test')

def test_members_that_would_escape_touch_nothing(tmp_path):
    "Names with .., absolute names, links and devices: read as subjects or passed over, never written anywhere."
    raw, path = csv_bytes(CMMLU, questions(3, 0)), tmp_path/'in'/'evil.tar'
    path.parent.mkdir()
    with tarfile.open(path, 'w') as t:
        for name in ('../../test/up.csv', str(tmp_path/'test'/'absolute.csv'), 'test/fine.csv'):
            info = tarfile.TarInfo(name); info.size = len(raw)
            t.addfile(info, io.BytesIO(raw))
        for kind, name in ((tarfile.SYMTYPE, 'test/link.csv'), (tarfile.FIFOTYPE, 'test/pipe.csv')):
            info = tarfile.TarInfo(name); info.type, info.linkname = kind, '/etc/passwd'
            t.addfile(info)
    before = sorted(tmp_path.rglob('*'))
    assert set(read_exam(path, 'test')) == {'up', 'absolute', 'fine'}
    assert sorted(tmp_path.rglob('*')) == before

def test_subject_names_cannot_leave_the_results(t5, tmp_path):
    raw, path = csv_bytes(CMMLU, questions(3, 0)), tmp_path/'evil.zip'
    with zipfile.ZipFile(path, 'w') as z:
        for name in ('test/a b$c.csv', 'x\\test\\up..%2f..%2f.csv', 'test/..csv', 'test/....csv'): z.writestr(name, raw)
    evaluate(EvaluateCfg(model=str(t5), pairs=False, cmmlu=str(path), shots=(0,), out=str(tmp_path/'out')))
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob('*') if p.is_file()} == {
        'evil.zip', 'out/scores.json', *(f'out/parts/cmmlu-letter-0/{n}.json' for n in ('a_b_c', 'up___2f___2f'))}

@pytest.mark.parametrize('how,says', [('missing', 'is missing: expected a folder or an archive'), ('text', 'not a readable folder, zip or tar archive'),
    ('cut', 'not a readable folder, zip or tar archive'), ('empty zip', 'holds no CSV file in dev/, val/ or test/'), ('empty folder', 'holds no CSV file'),
    ('dev only', 'has no test/ folder'), ('twice', 'are the same subject')])
def test_archives_that_cannot_be_used(tmp_path, how, says):
    path = tmp_path/how
    if how == 'text': path.write_text('hello')
    if how == 'cut': whole = pack(write_exam(tmp_path/'x'), tmp_path/'w.tar.gz').read_bytes(); path.write_bytes(whole[:len(whole)//2])
    if how == 'empty zip': zipfile.ZipFile(path, 'w').close()
    if how == 'empty folder': path.mkdir()
    if how == 'dev only': write_exam(path, split='dev')
    if how == 'twice':
        with zipfile.ZipFile(path, 'w') as z:
            for name in ('a/test/s.csv', 'b/test/s.csv'): z.writestr(name, csv_bytes(CMMLU, questions(2, 0)))
    with pytest.raises((ValueError, FileNotFoundError), match=says) as e: read_exam(path, 'test')
    assert str(path) in str(e.value) and '\n' not in str(e.value)

def test_a_member_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr('scclm.evaluation.MAX_MEMBER', 100)
    with pytest.raises(ValueError, match='expected at most 100'): read_exam(pack(write_exam(tmp_path/'x'), tmp_path/'x.zip'), 'test')

GOOD = [[0, '天地', '玄', '黄', '宇', '宙', 'A'], [1, '洪荒，“日”月\n盈昃', '辰', '宿', '列', '张', 'd']]

@pytest.mark.parametrize('head', [CMMLU, CEVAL])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'gb18030'])
def test_official_formats(head, encoding):
    rows = [r + [''] * (len(head) - 7) for r in GOOD]
    assert read_questions('f', csv_bytes(head, rows, encoding)) == [Question('天地', ('玄', '黄', '宇', '宙'), 'A'), Question('洪荒，“日”月\n盈昃', ('辰', '宿', '列', '张'), 'D')]

@pytest.mark.parametrize('raw,says', [
    (csv_bytes(CMMLU[:-1], [r[:-1] for r in GOOD]), "f.csv, line 1: no column 'answer' among"),
    (csv_bytes([*CMMLU[:3], *CMMLU[4:]], [r[:6] for r in GOOD]), "f.csv, line 1: no column 'b'"),
    (csv_bytes(CMMLU, [*GOOD, [2, '天', 1, 2, 3, 4, 'E']]), "f.csv, line 5, field 'answer' is 'E': expected one of A, B, C, D"),
    (csv_bytes(CMMLU, [*GOOD, [2, '天', 1, 2, 3, 4, 'AB']]), "line 5, field 'answer' is 'AB'"),
    (csv_bytes(CMMLU, [[0, '天', 1, ' ', 3, 4, 'A']]), "f.csv, line 2, field 'b' is blank"),
    (csv_bytes(CMMLU, [[0, '天', 1, 2]]), "f.csv, line 2, field 'c' is blank"),
    (csv_bytes(CMMLU, []), 'f.csv has no questions'), (b'', "f.csv, line 1: no column 'question' among none"),
    (csv_bytes(CMMLU, GOOD[:1]) + b'1,\xff\xff\xff,1,2,3,4,A\n', 'f.csv, line 3: the bytes are neither UTF-8 nor GB18030'),
    (csv_bytes(CMMLU, GOOD, 'utf-16'), 'f.csv, line 1: the bytes are neither'),
    (csv_bytes(CMMLU, GOOD[:1]) + b'1,"ab"c,1,2,3,4,A\n', 'f.csv: not a CSV file')])
def test_bad_questions_are_named(raw, says):
    with pytest.raises(ValueError) as e: read_questions('f.csv', raw)
    assert says in str(e.value)

# Exams

@pytest.mark.parametrize('shots', [0, 2])
def test_an_exam_question_by_question(t5, tmp_path, shots):
    "Prompts written out here, the library's model called on one question at a time."
    path = write_exam(tmp_path/'exam')
    got = evaluate(EvaluateCfg(model=str(t5), pairs=False, cmmlu=str(path), shots=(shots,), out=str(tmp_path/'out')))['cmmlu'][f'{shots}-shot']
    model, tok = open_model(t5)
    ask = lambda r: f'题目：{r[1]}\nA. {r[2]}\nB. {r[3]}\nC. {r[4]}\nD. {r[5]}\n答案是：'
    letters, right, picked = [tok.convert_tokens_to_ids(l) for l in 'ABCD'], {}, Counter()
    for s in range(3):
        dev, rows = questions(5, 1000 + s)[:shots], questions(12, s)
        for r in rows:
            prompt = '以下是单项选择题，请直接给出正确答案的选项。\n\n' + ''.join(f'{ask(d)}{d[6]}\n\n' for d in dev) + ask(r)
            logits = model(input_ids=torch.tensor([tok(prompt).input_ids + [1]]), decoder_input_ids=torch.tensor([[0]])).logits[0, 0, letters]
            pick = 'ABCD'[logits.argmax()]
            picked[pick] += 1; right[s] = right.get(s, 0) + (pick == r[6])
    assert {k: v['accuracy'] for k, v in got['subjects'].items()} == {f'subject{s}': n/12 for s, n in right.items()}
    assert got['accuracy'] == pytest.approx(sum(right.values()) / 36) and got['ci95'] == list(wilson(sum(right.values()), 36))
    assert got['picked'] == {l: picked[l]/36 for l in 'ABCD'} and (got['shots_used'], got['n'], got['chance'], got['cut']) == (shots, 36, .25, 0)
    assert got['constant'] == max(Counter(r[6] for s in range(3) for r in questions(12, s)).values()) / 36
    assert got['contains_chance'] == (got['ci95'][0] <= .25 <= got['ci95'][1])

def test_option_texts_are_compared_per_character(t5, tmp_path):
    path = write_exam(tmp_path/'exam', subjects=1)
    evaluate(EvaluateCfg(model=str(t5), pairs=False, cmmlu=str(path), answer='text', shots=(0,), out=str(tmp_path/'out')))
    saved = json.loads((tmp_path/'out'/'parts'/'cmmlu-text-0'/'subject0.json').read_text(encoding='utf-8'))['result']
    model, tok = open_model(t5)
    ids = lambda t: tok(t).input_ids + [1]
    with torch.no_grad(): best = [np.argmax([slow_logp(model, ids(r[1]), ids(o)) / (len(o) + 1) for o in r[2:6]]) for r in questions(12, 0)]
    assert saved['picked'] == ''.join('ABCD'[i] for i in best)

def test_ceval_is_scored_on_val(t5, tmp_path):
    folder = write_exam(tmp_path/'ceval', split='val', head=CEVAL, tail='_')
    (folder/'test').mkdir()
    (folder/'test'/'subject0_test.csv').write_bytes(csv_bytes(CEVAL[:6], [r[:6] for r in questions(4, 9)])) # official: no answers
    got = evaluate(EvaluateCfg(model=str(t5), pairs=False, ceval=str(pack(folder, tmp_path/'c.zip')), shots=(5, 0), limit_exam=7, out=str(tmp_path/'out')))['ceval']
    assert list(got) == ['5-shot', '0-shot'] and set(got['0-shot']['subjects']) == {'subject0', 'subject1', 'subject2'}
    assert all(s['n'] == 7 for e in got.values() for s in e['subjects'].values())

def test_shots_without_examples(t5, tmp_path):
    path = write_exam(tmp_path/'exam')
    (path/'dev'/'subject1.csv').unlink()
    with pytest.raises(ValueError, match='has no dev/subject1.csv: 5-shot needs solved examples'):
        evaluate(EvaluateCfg(model=str(t5), pairs=False, cmmlu=str(path), out=str(tmp_path/'out')))

# Models that cannot be opened

@pytest.mark.parametrize('how,says', [('no folder', 'config.json is missing'), ('no tokenizer', 'has no tokenizer'), ('no weights', 'cannot be loaded'),
    ('decoder only', 'has no encoder'), ('cut weights', 'cannot be loaded'), ('bad json', 'cannot be read'), ('fewer rows', 'ids but the model has'), ('lost tensor', 'lack 1 tensors')])
def test_bad_model_folders(tmp_path, how, says):
    path, tok = tmp_path/'m', char_tok(CHARS)
    if how != 'no folder': save_toy(path, tok, toy_model(len(tok) - 3 if how == 'fewer rows' else len(tok)))
    if how == 'no tokenizer': [p.unlink() for p in path.iterdir() if 'token' in p.name]
    if how == 'no weights': (path/'model.safetensors').unlink()
    if how == 'decoder only': GPT2Config().save_pretrained(path)
    if how == 'cut weights': os.truncate(path/'model.safetensors', 1000)
    if how == 'bad json': (path/'config.json').write_text('{')
    if how == 'lost tensor':
        from safetensors.torch import load_file, save_file
        weights = load_file(path/'model.safetensors')
        weights.pop('decoder.final_layer_norm.weight')
        save_file(weights, path/'model.safetensors', metadata=dict(format='pt'))
    with pytest.raises((ValueError, FileNotFoundError), match=says) as e: open_model(path)
    assert str(path) in str(e.value) and '\n' not in str(e.value)

def test_scores_that_are_not_finite_are_refused(t5):
    model, tok = open_model(t5)
    model.decoder.final_layer_norm.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match='not finite in torch.float32'): answer_logp(model, [([8, 1], [9, 1])])

# The whole

def write_pairs(path, pairs, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    prompts, responses = map(list, zip(*pairs))
    pq.write_table(pa.table(dict(prompt=prompts, response=responses, **more)), path)
    return path

@pytest.mark.parametrize('pairs,says', [([('问', '答'), ('问', None)], "row 1, column 'response' is None"), ([('问', '答'), (' ', '答')], "row 1, column 'prompt' is ' '")])
def test_bad_rows_are_named(tmp_path, pairs, says):
    path = write_pairs(tmp_path/'d.parquet', pairs)
    with pytest.raises(ValueError) as e: read_rows(path)
    assert says in str(e.value) and str(path) in str(e.value)

def test_defaults_of_a_scale(t5, tmp_path, monkeypatch):
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path))
    run, (model, tok) = tmp_path/'tiny', open_model(t5)
    with pytest.raises(FileNotFoundError, match='no model in'): evaluate(EvaluateCfg())
    save_toy(run/'sft'/'model', tok, model)
    with pytest.raises(FileNotFoundError, match='test.parquet'): evaluate(EvaluateCfg())
    write_pairs(run/'data'/'test.parquet', make_pairs(30))
    prompts = [p for p, _ in make_pairs(20, 5)]
    answers = greedy_answers(model, tok, prompts, max_new_tok=8)
    held = [(p, a.strip() if i % 3 and a.strip() else '天') for i, (p, a) in enumerate(zip(prompts, answers))]
    write_pairs(run/'data'/'heldout.parquet', held, kind=['phrasing', 'template'] * 10)
    cfg = EvaluateCfg(limit=25, max_new_tok=64)
    scores = evaluate(cfg)
    assert scores['pairs']['test']['rows'] == 25 and scores['heldout']['rows'] == 20
    for kind, share in heldout_exact(model, tok).items():
        got = scores['heldout']['exact'] if kind == 'all' else scores['heldout']['kinds'][kind]
        assert got['value'] == pytest.approx(share)
    card = json.loads((run/'eval'/'scores.json').read_text(encoding='utf-8'))
    assert card == json.loads((run/'eval'/'sft'/'scores.json').read_text(encoding='utf-8')) == json.loads(json.dumps(scores))
    # a later call on the same model adds its section; a foreign model leaves the scale's scores alone
    exam = write_exam(tmp_path/'exam')
    evaluate(replace(cfg, pairs=False, cmmlu=str(exam), shots=(0,)))
    card = json.loads((run/'eval'/'scores.json').read_text(encoding='utf-8'))
    assert set(card) >= {'pairs', 'heldout', 'cmmlu'} and card['cmmlu']['0-shot']['n'] == 36
    evaluate(replace(cfg, pairs=False, cmmlu=str(exam), shots=(1,)))
    card = json.loads((run/'eval'/'scores.json').read_text(encoding='utf-8'))
    assert list(card['cmmlu']) == ['0-shot', '1-shot']
    other = save_toy(tmp_path/'other', tok, toy_model(len(tok), seed=9))
    evaluate(replace(cfg, model=str(other)))
    assert (run/'eval'/'other'/'scores.json').exists() and card == json.loads((run/'eval'/'scores.json').read_text(encoding='utf-8'))
    table = score_table(card)
    assert table.loc[('cmmlu', 'accuracy 0-shot'), 'value'] == card['cmmlu']['0-shot']['accuracy']
    assert table.loc[('heldout', 'exact phrasing'), 'value'] == card['heldout']['kinds']['phrasing']['value']
    assert plot_subjects(card['cmmlu']['0-shot']).get_ylabel() == 'accuracy' and plot_measures(card['pairs']).containers

def without_seconds(x):
    if isinstance(x, dict): return {k: without_seconds(v) for k, v in x.items() if k not in ('seconds', 'config')}
    return x

def parts(out): return {p: p.stat().st_mtime_ns for p in Path(out).rglob('parts/*/*.json')}

def test_what_has_changed_is_computed_again(t5, tmp_path):
    exam, data, out = write_exam(tmp_path/'exam'), write_pairs(tmp_path/'d.parquet', make_pairs(CHUNK + 10)), tmp_path/'out'
    cfg = EvaluateCfg(model=str(t5), data=(str(data),), heldout=False, cmmlu=str(exam), shots=(0,), max_new_tok=4, out=str(out))
    first = evaluate(cfg)
    before = parts(out)
    assert len(before) == 2 + 3
    assert without_seconds(evaluate(cfg)) == without_seconds(first) and parts(out) == before
    changed = lambda: {p.stem for p, t in parts(out).items() if before.get(p) != t}
    (exam/'test'/'subject1.csv').write_bytes(csv_bytes(CMMLU, questions(9, 77)))
    assert evaluate(cfg)['cmmlu']['0-shot']['n'] == 33 and changed() == {'subject1'}
    before = parts(out)
    evaluate(replace(cfg, max_new_tok=5)); assert changed() == {'00000000', f'{CHUNK:08}'}
    before = parts(out)
    evaluate(replace(cfg, max_new_tok=5, dtype='bfloat16')); assert len(changed()) == 5
    before = parts(out)
    model, tok = open_model(t5)
    evaluate(replace(cfg, max_new_tok=5, dtype='bfloat16', model=str(save_toy(tmp_path/'m2', tok, toy_model(len(tok), seed=3))))); assert len(changed()) == 5

RUN = 'import sys; from scclm.evaluation import *; print("ready", flush=True); evaluate(EvaluateCfg(**eval(sys.argv[1])))'

def test_killed_and_continued(t5, tmp_path):
    "SIGKILL twice, in the middle; no part is lost, doubled or computed twice, and the scores are those of an uninterrupted run."
    exam, data = write_exam(tmp_path/'exam', subjects=40, n=25), write_pairs(tmp_path/'d.parquet', make_pairs(2 * CHUNK))
    cfg = dict(model=str(t5), data=(str(data),), heldout=False, cmmlu=str(exam), shots=(2,), max_new_tok=4, out=str(tmp_path/'out'))
    seen = {}
    for n in (1, 15):
        threads = str(torch.get_num_threads()) # as here: another number would round sums differently
        p = subprocess.Popen([sys.executable, '-c', RUN, repr(cfg)], stdout=subprocess.PIPE, env=os.environ | dict(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads))
        while len(parts(tmp_path/'out')) < n and p.poll() is None: time.sleep(.002)
        p.kill()
        assert p.wait() != 0, 'finished before it could be killed'
        p.stdout.close()
        now = parts(tmp_path/'out')
        assert n <= len(now) < 42 and seen.items() <= now.items()
        seen = now
    scores = evaluate(EvaluateCfg(**cfg))
    now = parts(tmp_path/'out')
    assert seen.items() <= now.items() and len(now) == 2 + 40
    assert without_seconds(scores) == without_seconds(evaluate(EvaluateCfg(**dict(cfg, out=str(tmp_path/'whole')))))
    assert scores['cmmlu']['2-shot']['n'] == 40 * 25 and scores['pairs']['d']['rows'] == 2 * CHUNK

@pytest.mark.parametrize('field,value', [('shots', ()), ('shots', (5, -1)), ('limit', -1), ('max_len', 1), ('budget_tok', 0), ('answer', 'word')])
def test_bad_settings_are_named(field, value):
    with pytest.raises(ValueError, match=f'{field}='): EvaluateCfg(**{field: value})

@pytest.mark.parametrize('n', [1, 3, 39, 98, 235, 1426])
def test_wilson_always_holds_the_share(n):
    for right in {0, 1, n // 2, n - 1, n}:
        low, high = wilson(right, n)
        assert 0 <= low <= right / n <= high <= 1
