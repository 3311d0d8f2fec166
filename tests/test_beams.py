"Beam search against the library's `generate`, token by token; what is streamed against what is answered."
import math
import random
from dataclasses import replace

import pytest
import torch
from chat_toys import search_model, search_prompts
from test_model import bart_parts
from transformers import (LogitsProcessorList, NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper, TopPLogitsWarper)

from scclm import beams
from scclm.beams import (Beam, BeamCfg, Beams, answer_of, beam_steps, beam_tree, can_win, common_start, plot_tree,
    score, settled, settled_tokens)
from scclm.contrastive import contrastive_tokens


def trimmed(row):
    "An answer of `generate` without what it fills up with."
    return row[:row.index(1) + 1] if 1 in row else row


def search(seed):
    "A model, questions, the knobs of a search and its penalties, all drawn from `seed`."
    draw = random.Random(seed)
    cfg = BeamCfg(draw.randint(2, 6), draw.randint(1, 20), draw.choice([-2., -.5, 0., 1., 2.]), draw.random() < .5)
    penalties = dict(repetition_penalty=draw.choice([1., 1.3]), no_repeat_ngram_size=draw.choice([0, 2]))
    limit = LogitsProcessorList()
    if penalties['repetition_penalty'] > 1: limit.append(RepetitionPenaltyLogitsProcessor(1.3))
    if penalties['no_repeat_ngram_size']: limit.append(NoRepeatNGramLogitsProcessor(2))
    return search_model(seed, tied=seed % 2 == 0), *search_prompts(seed), cfg, limit, penalties


def by_library(model, ids, mask, cfg, **knobs):
    out = model.generate(ids, attention_mask=mask, num_beams=cfg.num_beams, max_new_tokens=cfg.max_new_tok,
        length_penalty=cfg.length_penalty, early_stopping=cfg.early_stopping, **knobs)
    return [trimmed(row) for row in out[:, 1:].tolist()]


@pytest.mark.parametrize('seed', range(14))
def test_beams_are_those_of_generate(seed):
    model, ids, mask, cfg, limit, penalties = search(seed)
    *_, last = beam_steps(model, ids, mask, cfg, limit)
    assert [answer_of(held) for held in last] == by_library(model, ids, mask, cfg, do_sample=False, **penalties)


@pytest.mark.parametrize('seed', range(10))
def test_drawn_beams_are_those_of_generate(seed):
    "With the same stream of random numbers."
    model, ids, mask, cfg, _, _ = search(seed)
    limit = LogitsProcessorList([TopKLogitsWarper(7, min_tokens_to_keep=2), TopPLogitsWarper(.9, min_tokens_to_keep=2)])
    *_, (ours,) = beam_steps(model, ids[:1], mask[:1], cfg, limit, [torch.Generator().manual_seed(seed)])
    torch.manual_seed(seed)
    assert [answer_of(ours)] == by_library(model, ids[:1], mask[:1], cfg, do_sample=True, top_k=7, top_p=.9)


def test_another_encoder_decoder():
    "BART: other special ids, positions that count, a bias on its logits."
    model, _ = bart_parts()
    ids, mask = torch.tensor([[0, 5, 9, 2], [0, 7, 2, 1]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    cfg = BeamCfg(3, 9, 1.)
    *_, last = beam_steps(model, ids, mask, cfg)
    theirs = model.generate(ids, attention_mask=mask, num_beams=3, max_new_tokens=9, do_sample=False)[:, 1:].tolist()
    for held, row in zip(last, theirs): assert answer_of(held) == row[:len(answer_of(held))]
    greedy = model.generate(ids, attention_mask=mask, num_beams=1, max_new_tokens=9, do_sample=False)[:, 1:]
    assert torch.equal(torch.stack(list(contrastive_tokens(model, ids, mask, 9, 0., 3)), 1), greedy)


@pytest.mark.parametrize('drawn', [False, True])
def test_alone_as_in_a_batch(drawn):
    model, ids, mask, cfg, limit, _ = search(3)
    def rngs(n): return [torch.Generator().manual_seed(5) for _ in range(n)] if drawn else None
    *_, together = beam_steps(model, ids, mask, cfg, limit, rngs(len(ids)))
    for i, held in enumerate(together):
        real = mask[i].bool()
        *_, (alone,) = beam_steps(model, ids[i:i+1, real], mask[i:i+1, real], cfg, limit, rngs(1))
        assert answer_of(alone) == answer_of(held) and held.done


@pytest.mark.parametrize('seed', range(20))
def test_what_was_streamed_is_the_answer(seed):
    model, ids, mask, cfg, limit, _ = search(seed)
    steps = [held for held, in beam_steps(model, ids[:1], mask[:1], cfg, limit)]
    answer = answer_of(steps[-1])
    told = [settled(held, cfg) for held in steps]
    for held, now in zip(steps, told):
        assert answer[:len(now)] == now                                    # it did not change
        everyone = [b.ids for b in held.running] + [b.ids for b in held.finished[:1]]
        assert len(now) >= len(common_start(everyone))                     # all that all live beams agree on
    assert told[-1] == answer and steps[-1].done and not any(held.done for held in steps[:-1])
    assert list(settled_tokens(([held] for held in steps), cfg)) == answer


def test_it_speaks_before_the_end():
    "Of many searches, some can say a word before the last step; each tells it as soon as it is settled."
    early = 0
    for seed in range(12):
        model, ids, mask, cfg, limit, _ = search(seed)
        cfg = replace(cfg, num_beams=2, max_new_tok=20)
        seen = []
        def watched(seen=seen, model=model, ids=ids, mask=mask, cfg=cfg, limit=limit):
            for held in beam_steps(model, ids[:1], mask[:1], cfg, limit):
                seen.append(held)
                yield held
        first = next(settled_tokens(watched(), cfg), None)
        early += first is not None and not seen[-1][0].done
    assert early >= 4


def test_who_cannot_win_never_does(monkeypatch):
    "Searched on to the end, no answer below a beam that was given up beats the best of that time."
    monkeypatch.setattr(beams, 'is_over', lambda running, finished, cfg: not running)
    compared = 0
    for seed in range(12):
        model, ids, mask, cfg, limit, _ = search(seed)
        cfg = replace(cfg, num_beams=4, max_new_tok=9, early_stopping=False)
        given_up = []
        for held, in beam_steps(model, ids[:1], mask[:1], cfg, limit):
            below = [(beam, best) for lost, best in given_up for beam in held.finished if beam.ids[:len(lost)] == lost]
            for beam, best in below: assert score(beam, cfg.length_penalty) <= best
            compared += len(below)
            if not held.finished: continue
            best = score(held.finished[0], cfg.length_penalty)
            given_up += [(b.ids, best) for b in held.running if not can_win(b, best, cfg)]
    assert compared > 0


@pytest.mark.parametrize('penalty', [-2., -.5, 0., .5, 1., 3.])
def test_the_bound_is_one(penalty):
    "Every way to go on that loses nothing or something more scores at most what `can_win` grants."
    cfg, draw = BeamCfg(max_new_tok=12, length_penalty=penalty), random.Random(1)
    for _ in range(300):
        beam = Beam([0]*draw.randint(1, 11), -draw.random()*9)
        n = draw.randint(len(beam.ids) + 1, 12)
        later = Beam([0]*n, beam.logp - draw.choice([0., draw.random()]))
        assert can_win(beam, score(later, penalty) - 1e-9, cfg)
        kindest = max(score(Beam([0]*m, beam.logp), penalty) for m in range(len(beam.ids) + 1, 13))
        assert not can_win(beam, kindest, cfg), 'the bound is no larger than the best that can come'


@pytest.mark.parametrize('drawn', [False, True])
def test_everything_forbidden_is_no_answer(drawn):
    model, ids, mask, cfg, _, _ = search(2)
    def forbid(said, logp): return torch.full_like(logp, -math.inf)
    rngs = [torch.Generator().manual_seed(i) for i in range(len(ids))] if drawn else None
    *_, last = beam_steps(model, ids, mask, cfg, forbid, rngs)
    assert [answer_of(held) for held in last] == [[]]*len(ids)
    assert settled(Beams(done=True), cfg) == []


def test_one_encoder_run_and_one_decoder_run_a_step():
    model, ids, mask, cfg, _, _ = search(4)
    calls = dict(encoder=0, decoder=0)
    def count(name): return lambda *_: calls.__setitem__(name, calls[name] + 1)
    hooks = [getattr(model, name).register_forward_hook(count(name)) for name in calls]
    n = len(list(beam_steps(model, ids, mask, cfg)))
    for hook in hooks: hook.remove()
    assert calls == dict(encoder=1, decoder=n)


def test_the_tree_holds_every_way():
    model, ids, mask, cfg, _, _ = search(6)
    cfg = replace(cfg, num_beams=3, max_new_tok=6)
    steps = [held for held, in beam_steps(model, ids[:1], mask[:1], cfg)]
    tree, answer = beam_tree(steps), answer_of(steps[-1])
    assert tuple(answer) in tree and all(node[:-1] in tree for node in tree if node)
    for held in steps:
        for beam in (*held.running, *held.finished): assert tree[tuple(beam.ids)] == beam.logp
    assert all(tree[node] <= tree[node[:-1]] for node in tree if node)
    ax = plot_tree(tree, answer, lambda i: f'词{i}')
    thick = [line for line in ax.lines if line.get_linewidth() > 1]
    assert len(ax.lines) == len(tree) - 1 and len(thick) == len(answer)
    assert len({tuple(text.xy) for text in ax.texts}) == len(ax.texts)      # no word upon another
