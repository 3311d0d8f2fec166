"Every score against a slow way to get it: one token at a time, one prompt at a time, by hand."
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from chat_toys import CHARS, SPECIALS, char_tok, said_alone, toy_model
from raw_toys import put_pairs

from scclm.dataset import encode_pairs, pair_batches
from scclm.scores import (answer_logp, batch_logp, bits_per_char, bleu4, check_finite, eval_loss, exact_match,
    greedy_answers, greedy_ids, heldout_counts, heldout_exact, pair_eval, ratio_score, scored, scored_chars,
    sequence_logp, share_score)
from scclm.tokenizer import bpe_tokenizer, wrap_tokenizer

pytestmark = pytest.mark.usefixtures('one_thread')

EOS = 1

@pytest.fixture(scope='module')
def tok(): return char_tok(CHARS)

@pytest.fixture(scope='module')
def model(tok): return toy_model(len(tok), seed=1, spread=.5)

def texts(n, seed, longest=9):
    "Random texts of 1 to `longest` known characters."
    rng = random.Random(seed)
    return [''.join(rng.choices(CHARS, k=rng.randint(1, longest))) for _ in range(n)]

def ids_of(tok, text, max_len=None):
    "One id a character and the end mark, looked up one by one."
    vocab = tok.get_vocab()
    return [vocab.get(c, vocab['[UNK]']) for c in text][:None if max_len is None else max_len - 1] + [EOS]

@torch.no_grad()
def slow_logps(model, prompt, answer):
    "Log-probability of each answer token: one pass a token, nothing but the prefix in sight, softmax in float64."
    said, out = [0], []
    for i in answer:
        logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([said])).logits[0, -1]
        scores = np.asarray(logits.tolist())
        top = scores.max()
        out.append(scores[i] - top - math.log(np.exp(scores - top).sum()))
        said.append(i)
    return out

# Decoding

@pytest.mark.parametrize('seed', range(3))
def test_greedy_answers_are_those_of_generate_one_by_one(tok, seed):
    model, prompts = toy_model(len(tok), seed=seed, spread=.5), texts(7, seed)
    wanted = [said_alone(model, tok, p, 12) for p in prompts]
    assert greedy_answers(model, tok, prompts, max_new_tok=12) == wanted
    assert any(wanted), 'a model that says nothing tests nothing'

def test_long_prompts_are_cut_and_end_in_the_mark(model, tok):
    prompt = '天地玄黄宇宙洪荒'
    assert greedy_answers(model, tok, [prompt], max_new_tok=9, max_len=4) == [said_alone(model, tok, prompt[:3], 9)]

@pytest.mark.parametrize('budget', [1, 40, 90, 10**6])
def test_no_budget_changes_an_answer_and_every_row_is_ticked_once(model, tok, budget):
    prompts, ticks = [ids_of(tok, t) for t in texts(9, 5)], []
    answers = greedy_ids(model, prompts, max_new_tok=10, budget_tok=budget, tick=ticks.append)
    alone = [greedy_ids(model, [p], max_new_tok=10)[0] for p in prompts]
    ended = [row[:row.index(EOS) + 1] if EOS in row else row for row in answers]
    assert ended == [row[:row.index(EOS) + 1] if EOS in row else row for row in alone]
    assert sum(ticks) == len(prompts) and (len(ticks) == 1) == (budget == 10**6)
    assert all(set(row[len(end):]) <= {0} for row, end in zip(answers, ended)), 'only padding after the end'
    assert max(map(len, answers)) <= 10

def test_no_prompts_no_answers(model, tok):
    assert greedy_ids(model, []) == [] and greedy_answers(model, tok, []) == []

# Agreement with references

def test_exact_match_by_hand():
    assert exact_match(['甲', ' 乙\n', '丙。', ''], ['甲', '乙', '丙', '']) == .75
    assert exact_match(['甲'], [' 甲 ']) == 1
    for answers, references in [([], []), (['甲'], [])]:
        with pytest.raises(AssertionError): exact_match(answers, references)

def slow_bleu(answers, references):
    "Papineni's formula on characters: clipped n-gram precisions, geometric mean, brevity penalty."
    logs = []
    for n in range(1, 5):
        right = total = 0
        for a, r in zip(answers, references):
            said, wanted = ([t[i:i+n] for i in range(len(t) - n + 1)] for t in (a, r))
            right += sum(min(k, wanted.count(g)) for g, k in Counter(said).items())
            total += len(said)
        logs.append(math.log(right / total))
    ours, theirs = sum(map(len, answers)), sum(map(len, references))
    return 100 * math.exp(sum(logs) / 4 + min(0, 1 - theirs / ours))

def test_bleu_by_its_formula():
    answers = ['天地玄黄宇宙洪荒', '寒来暑往秋收', '日月盈昃辰宿列张列张']
    references = ['天地玄黄宇宙荒洪', '寒来暑往秋收冬藏', '日月盈昃辰宿列张']
    assert bleu4(answers, references) == pytest.approx(slow_bleu(answers, references), rel=1e-9)
    short = [a[:5] for a in answers]
    assert bleu4(short, references) == pytest.approx(slow_bleu(short, references), rel=1e-9), 'brevity counts'

# Likelihood

def test_loss_is_the_library_s_own(model, tok):
    pairs = list(zip(texts(11, 1), texts(11, 2)))
    nats = tokens = 0
    for prompt, answer in pairs:
        labels = torch.tensor([ids_of(tok, answer)])
        with torch.no_grad(): mean = model(input_ids=torch.tensor([ids_of(tok, prompt)]), labels=labels).loss.item()
        nats, tokens = nats + mean * labels.numel(), tokens + labels.numel()
    batches = pair_batches(encode_pairs(*map(list, zip(*pairs)), tok, 64), budget_tok=60)
    assert len(batches) > 1 and eval_loss(model, batches) == pytest.approx(nats / tokens, rel=1e-5)

@pytest.mark.parametrize('max_len', [64, 5])
def test_bits_per_char_one_token_at_a_time(model, tok, max_len):
    "Characters and the end share what the tokens cost; of a cut answer only what is scored counts."
    pairs = list(zip(texts(6, 3), texts(6, 4)))
    nats = chars = 0
    for prompt, answer in pairs:
        nats -= sum(slow_logps(model, ids_of(tok, prompt, max_len), ids_of(tok, answer, max_len)))
        chars += min(len(answer), max_len - 1) + 1
    assert max(len(a) for _, a in pairs) >= 5, 'some answers are cut at 5'
    assert bits_per_char(model, tok, pairs, max_len) == pytest.approx(nats / chars / math.log(2), rel=1e-4)

def test_bits_per_char_counts_unknown_characters(model, tok):
    (prompt, answer), = pairs = [('天地', '玄龘黄')]
    nats = -sum(slow_logps(model, ids_of(tok, prompt), ids_of(tok, answer)))
    assert bits_per_char(model, tok, pairs) == pytest.approx(nats / 4 / math.log(2), rel=1e-4)

def test_a_word_counts_all_its_characters():
    tok = wrap_tokenizer(bpe_tokenizer([*SPECIALS, *'天地玄黄', '天地'], [('天', '地')]))
    whole, cut = (encode_pairs(['玄'], ['天地玄黄'], tok, n)[0].response for n in (9, 3))
    assert (len(whole), len(cut)) == (4, 3)
    assert scored_chars(tok, '天地玄黄', whole, 9) == 5 and scored_chars(tok, '天地玄黄', cut, 3) == 4

def test_sequence_logp_token_by_token():
    g = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(4, 5, 7, generator=g), torch.randint(7, (4, 5), generator=g)
    labels[0, 3:], labels[2, 1:], labels[3] = -100, -100, -100
    for row, (scores, wanted) in enumerate(zip(logits.tolist(), labels.tolist())):
        total = 0.
        for step, label in zip(scores, wanted):
            if label != -100: total += step[label] - math.log(sum(map(math.exp, step)))
        assert sequence_logp(logits, labels)[row].item() == pytest.approx(total, abs=1e-5), f'seed 0, row {row}'

@pytest.mark.parametrize('budget', [1, 30, 10**6])
def test_answer_logp_one_token_at_a_time(model, tok, budget):
    pairs = [(ids_of(tok, p), ids_of(tok, a)) for p, a in zip(texts(8, 6), texts(8, 7))]
    ticks = []
    got = answer_logp(model, pairs, budget, ticks.append)
    assert got == pytest.approx([sum(slow_logps(model, p, a)) for p, a in pairs], rel=1e-4)
    assert sum(ticks) == 8 and (len(ticks) == 1) == (budget == 10**6)

def test_the_decoder_starts_with_the_given_id(model, tok):
    "`start` is the first token that the decoder reads: another one, other scores."
    prompt, answer = ids_of(tok, '天地'), ids_of(tok, '玄黄')
    batch = dict(input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                 labels=torch.tensor([answer]))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[3, *answer[:-1]]])).logits[0]
        got = batch_logp(model, batch, start=3).item()
    wanted = sum(step.log_softmax(-1)[i].item() for step, i in zip(logits, answer))
    assert got == pytest.approx(wanted, rel=1e-5) and got != pytest.approx(batch_logp(model, batch).item(), rel=1e-3)

def test_scores_that_are_not_finite_are_refused(tok):
    broken = toy_model(len(tok), seed=1)
    broken.shared.weight.data[9] = math.inf
    with pytest.raises(ValueError, match=r'1 scores that are not finite in torch.float32: try dtype='):
        answer_logp(broken, [(ids_of(tok, '天'), [9, EOS])])
    with pytest.raises(ValueError, match='2 scores'): check_finite(np.array([math.nan, 0., -math.inf]), broken)

# Held-out questions and `eval_fn`

def test_heldout_by_kind(model, tok, tmp_path, monkeypatch):
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path))
    monkeypatch.setenv('SCCLM_SCALE', 'tiny')
    assert heldout_exact(model, tok) == {} and heldout_counts() == {}, 'real data has no such file'
    prompts = texts(8, 8)
    answers = [said_alone(model, tok, p, 64).strip() for p in prompts]
    wanted = [a if right else a + '错' for a, right in zip(answers, [1, 1, 0, 1, 0, 0, 1, 1])]
    kinds = ['template', 'phrasing'] * 4
    put_pairs(tmp_path/'tiny'/'data'/'heldout.parquet', prompts, wanted, kind=kinds)
    assert heldout_exact(model, tok) == dict(all=5/8, phrasing=3/4, template=2/4)
    assert heldout_counts() == dict(all=8, phrasing=4, template=4)
    put_pairs(tmp_path/'other.parquet', prompts[:1], wanted[:1], kind=['x'])
    assert heldout_exact(model, tok, tmp_path/'other.parquet') == dict(all=1., x=1.)
    assert heldout_counts(tmp_path/'other.parquet') == dict(all=1, x=1)

def test_pair_eval_measures_both(model, tok):
    prompts = texts(6, 9)
    pairs = [(p, said_alone(model, tok, p, 64)[:9] + '天地') for p in prompts]
    figures = pair_eval(pairs, tok, max_len=64, n_bleu=4)(model)
    said = [said_alone(model, tok, p, 64) for p in prompts[:4]]
    assert figures['bleu4'] == pytest.approx(bleu4(said, [r for _, r in pairs[:4]])) and figures['bleu4'] > 0
    nats = -sum(sum(slow_logps(model, ids_of(tok, p), ids_of(tok, r))) for p, r in pairs)
    assert figures['loss_valid'] == pytest.approx(nats / sum(len(r) + 1 for _, r in pairs), rel=1e-4)
    assert pair_eval(pairs, tok, max_len=64, n_bleu=0)(model) == dict(loss_valid=figures['loss_valid'])

# As they are written down

def test_figures_as_they_are_written():
    assert scored(np.float32(2)) == dict(value=2.) and type(scored(np.float32(2))['value']) is float
    assert scored(1, (np.float64(0), 2)) == dict(value=1., ci95=[0., 2.])
    assert share_score(3, 4)['value'] == .75 and share_score(3, 4)['ci95'][0] < .75 < share_score(3, 4)['ci95'][1]

def test_ratio_of_sums_not_mean_of_ratios():
    score = ratio_score([1, 9], [1, 3])
    assert score['value'] == 10 / 4
    assert score['ci95'][0] == 1. and score['ci95'][1] == 3., 'a resample is both rows, or one of them twice'
    assert ratio_score([2, 4, 6], [1, 2, 3]) == dict(value=2., ci95=[2., 2.])
    assert ratio_score([1, 2], [0, 0]) is None
