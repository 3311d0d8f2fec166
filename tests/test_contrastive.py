"Contrastive search against transformers 4 (its last version that had it), a slow written-out reference, and greedy."
import pytest
import torch
from chat_toys import search_model, search_prompts
from torch.nn import functional as F
from transformers import LogitsProcessorList, NoRepeatNGramLogitsProcessor

from scclm.contrastive import contrast, contrastive_tokens, likeness

# What `generate(penalty_alpha=…, top_k=…)` of transformers 4.46.3 says: model's seed, tied, alpha, k, n-gram, answers.
BY_TRANSFORMERS_4 = [
    (0, True, 0.6, 4, 0, [[8, 8, 2, *[7]*17], [3]*20, [19, *[8]*19]]),
    (1, False, 0.5, 50, 0, [
        [4, 14, 9, 12, 3, 2, 9, 5, 10, 13, 14, 9, 18, 3, 8, 9, 9, 9, 0, 10],
        [15, 9, 10, 13, 3, 13, 0, 2, 16, 11, 12, 1],
        [4, 9, 17, 3, 13, 17, 15, 8, 19, 9, 0, 10, 7, 13, 3, 12, 1]]),
    (2, True, 0.9, 5, 0, [
        [5, 19, 13, 18, 19, 4, 5, 8, 0, 2, 0, 10, 9, 7, 5, 0, 5, 5, 17, 18],
        [13, 14, 5, 17, 19, 18, 0, 7, 4, 17, 6, 11, 4, 13, 5, 14, 10, 17, 19, 0],
        [13, 14, 19, 18, 9, 17, 13, 11, 14, 5, 0, 10, 17, 17, 6, 9, 18, 17, 13, 11]]),
    (3, True, 0.3, 8, 2, [
        [9, 12, 12, 4, 4, 11, 11, 4, 3, 4, 14, 4, 9, 11, 3, 3, 11, 14, 3, 14],
        [9, 12, 12, 9, 9, 4, 4, 11, 12, 10, 4, 1],
        [3, 3, 4, 3, 11, 3, 14, 3, 9, 12, 12, 11, 11, 4, 4, 11, 9, 11, 19, 11]]),
    (4, False, 0.7, 3, 3, [[19, 8, 17, 14, 6, 19, 1], [19, 8, 6, 19, 1], [19, 6, 2, 8, 8, 7, 17, 2, 19, 1]])]


def answers(steps):
    "The rows of a batch, what follows the end mark left out."
    rows = [list(row) for row in zip(*[new.tolist() for new in steps])]
    return [row[:row.index(1) + 1] if 1 in row else row for row in rows]


def banned(ngram): return LogitsProcessorList([NoRepeatNGramLogitsProcessor(ngram)] if ngram else [])


@torch.no_grad()
def slow(model, prompt, n, alpha, k, limit):
    "No cache, no batch: every candidate reads everything afresh, every cosine stands alone."
    said, question = [0], torch.tensor([prompt])
    for _ in range(n):
        logits = model(input_ids=question, decoder_input_ids=torch.tensor([said])).logits[:, -1]
        probs = limit(torch.tensor([said]), logits)[0].softmax(-1)
        scores = {}
        for token in sorted(range(len(probs)), key=lambda i: -probs[i].item())[:k]:
            if probs[token] == 0: continue
            heard = model(input_ids=question, decoder_input_ids=torch.tensor([[*said, token]]),
                output_hidden_states=True).decoder_hidden_states[-1][0]
            like = max(F.cosine_similarity(heard[-1], old, dim=0).item() for old in heard[:-1])
            scores[token] = (1 - alpha)*probs[token].item() - alpha*like
        said.append(max(scores, key=scores.get))
        if said[-1] == 1: break
    return said[1:]


@pytest.mark.parametrize('seed,tied,alpha,k,ngram,want', BY_TRANSFORMERS_4)
def test_transformers_4_says_the_same(seed, tied, alpha, k, ngram, want):
    ids, mask = search_prompts(seed)
    steps = contrastive_tokens(search_model(seed, tied), ids, mask, 20, alpha, k, banned(ngram))
    assert answers(steps) == want


@pytest.mark.parametrize('seed', range(5, 8))
@pytest.mark.parametrize('alpha,k,ngram', [(.4, 3, 0), (.6, 8, 2), (1., 4, 1)])
def test_the_slow_reference_says_the_same(seed, alpha, k, ngram):
    model = search_model(seed, tied=seed % 2 == 0)
    ids, mask = search_prompts(seed, 2)
    together = answers(contrastive_tokens(model, ids, mask, 9, alpha, k, banned(ngram)))
    for row, real, ours in zip(ids, mask.bool(), together):
        assert ours == slow(model, row[real].tolist(), 9, alpha, k, banned(ngram))
        assert ours == answers(contrastive_tokens(model, row[real][None], mask[:1, :real.sum()]*0 + 1, 9, alpha, k,
            banned(ngram)))[0]


@pytest.mark.parametrize('alpha,k', [(0., 5), (.7, 1)])
def test_without_penalty_or_choice_it_is_greedy(alpha, k):
    for seed in range(4):
        model, (ids, mask) = search_model(seed, tied=False), search_prompts(seed)
        want = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, num_beams=1)[:, 1:]
        got = torch.stack(list(contrastive_tokens(model, ids, mask, 12, alpha, k)), 1)
        assert torch.equal(got, want)


def test_the_forbidden_is_never_written():
    "With every token a candidate, those without probability would win by being new."
    model, (ids, mask) = search_model(1, tied=False), search_prompts(1)
    for row in answers(contrastive_tokens(model, ids, mask, 18, .9, 50, banned(1))): assert len(set(row)) == len(row)
    probs, like = torch.tensor([.9, 0., .1]), torch.tensor([1., -1., .9])
    assert contrast(probs, like, .99).argmax() == 2 and contrast(probs, like, .99)[1] == -torch.inf


def test_likeness_by_hand():
    new, said = torch.tensor([[[3., 4.], [0., 2.]]]), torch.tensor([[[1., 0.], [0., -5.]]])
    assert torch.allclose(likeness(new, said), torch.tensor([[.6, 0.]]), atol=1e-6)


def test_it_comes_token_by_token_in_half_precision_too():
    model, (ids, mask) = search_model(4, tied=False).bfloat16(), search_prompts(4)
    calls = []
    hook = model.decoder.register_forward_hook(lambda *_: calls.append(1))
    steps = contrastive_tokens(model, ids, mask, 50)
    for n in range(1, 4):
        next(steps)
        assert len(calls) == n + 1                                         # nothing is written ahead
    steps.close()
    hook.remove()
    assert len(calls) == 4
