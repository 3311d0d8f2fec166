"Continuous batching: every answer as if it were alone, whoever joins, leaves, cancels or fails beside it."
import asyncio
import math
import random
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from chat_toys import CHARS, SPECIALS, byte_tok, char_tok, save_toy, toy_model
from serve_toys import wait_until
from transformers import BartConfig, BartForConditionalGeneration

from scclm.batching import Batch, Closed, Engine, QueueFull, Ticket, Writer, admit, new_row
from scclm.chat import ChatBot, Decoding, answer_ids, text_pieces
from scclm.dataset import decode
from scclm.model import end_ids

WAIT_S = 120 # nothing here takes that long: a test that waits so long has failed
GREEDY = Decoding(max_new_tok=24)
SAMPLE = Decoding(strategy='sampling', max_new_tok=30, temperature=1.5, top_p=.9, seed=3)
BEAM = replace(GREEDY, strategy='beam', num_beams=3)
KNOBS = [GREEDY, SAMPLE, replace(SAMPLE, seed=7, top_p=1., top_k=5, no_repeat_ngram=3),
    replace(GREEDY, repetition_penalty=1.3, no_repeat_ngram=2, max_new_tok=60), replace(GREEDY, loop_copies=2),
    replace(GREEDY, loop_copies=0, max_new_tok=100), replace(SAMPLE, repetition_penalty=1.2, temperature=.7)]
LONG = replace(GREEDY, max_new_tok=3000, loop_copies=0)


@pytest.fixture(scope='module')
def chars(): return char_tok(CHARS)

@pytest.fixture(scope='module')
def bot(chars): return ChatBot(toy_model(len(chars), seed=1), chars, GREEDY)

@pytest.fixture(scope='module')
def bytes_bot():
    tok = byte_tok()
    return ChatBot(toy_model(len(tok)), tok, GREEDY)

@pytest.fixture
def endless(chars):
    "A bot of this test alone, for hooks on its model; its answers are as long as may be."
    return ChatBot(toy_model(len(chars), endless=True), chars, LONG, batch_tok=200_000)


def question(rnd, most=30): return ''.join(rnd.choices(CHARS[:32], k=rnd.randint(1, most)))

@lru_cache(None)
def alone(bot, text, dec):
    "Ids of the chapter's own loop, one question at a time."
    prompt, = bot.encode([text])
    return answer_ids(bot.model, [prompt], dec, bot.tok)[0]


class Gate:
    "Lets the decoder of a model pass step by step, and notes how many rows came each time."
    def __init__(self, model):
        self.rows = []
        self.arrived, self.passes = threading.Semaphore(0), threading.Semaphore(0)
        self.open = False
        self.hook = model.decoder.register_forward_pre_hook(self.wait, with_kwargs=True)

    def wait(self, module, args, kwargs):
        self.rows.append(len(kwargs['input_ids']))
        self.arrived.release()
        if not self.open: assert self.passes.acquire(timeout=WAIT_S)

    def come(self): assert self.arrived.acquire(timeout=WAIT_S)

    def step(self):
        "Let the step that waits go, and wait for the next one to come."
        self.passes.release()
        self.come()

    def free(self):
        self.open = True
        self.passes.release(1000)
        self.hook.remove()

@contextmanager
def gated(bot):
    gate = Gate(bot.model)
    try: yield gate
    finally: gate.free()


# ---- a batch whose rows come and go

@pytest.mark.parametrize('name,seed', [('bot', 0), ('bot', 1), ('bytes_bot', 2)])
def test_rows_that_come_and_go_are_as_alone(name, seed, request):
    "Dozens of random questions join in random company, some are taken out early: token by token what each says alone."
    bot, rnd = request.getfixturevalue(name), random.Random(seed)
    batch, todo, seen = Batch(bot.model, bot.tok), 36, []
    while todo or batch.rows:
        if todo and rnd.random() < .4:
            asks = [(question(rnd), rnd.choice(KNOBS)) for _ in range(min(todo, rnd.randint(1, 5)))]
            todo -= len(asks)
            rows = {new_row(bot.encode([text])[0], dec, bot.model): (text, dec) for text, dec in asks}
            seen += rows.items()
            batch.join(list(rows))
        if batch.rows: batch.step()
        over = {row for row in batch.rows
            if row.said[-1] in end_ids(bot.model) or len(row.said) > row.dec.max_new_tok or rnd.random() < .02}
        batch.leave(over)
    assert len(batch.seats) == 0
    for row, (text, dec) in seen:
        said = row.said[1:]
        assert said == alone(bot, text, dec)[:len(said)]
    whole = sum(row.said[1:] == alone(bot, text, dec) for row, (text, dec) in seen)
    assert 10 < whole < 36 # some were whole, some taken out


def test_a_question_of_one_token(bot):
    "Nothing but the end mark, which no person can type: one column of keys is a cache too."
    batch = Batch(bot.model, bot.tok)
    row = new_row([1], GREEDY, bot.model)
    batch.join([row])
    while row.said[-1] != 1 and len(row.said) <= 24: batch.step()
    assert row.said[1:] == answer_ids(bot.model, [[1]], GREEDY, bot.tok)[0]


def test_seats_move_as_little_as_can_be(bot):
    "The rooms are made for what is needed: a few columns more than the longest row, seats in eights."
    batch = Batch(bot.model, bot.tok)
    row = new_row(bot.encode(['你好'])[0], KNOBS[5], bot.model)
    batch.join([row])
    rooms = []
    for _ in range(99):
        batch.step()
        if not rooms or rooms[-1] is not batch.seats.written: rooms.append(batch.seats.written)
        assert batch.seats.written.shape[1] == 8
        assert batch.seats.written.shape[3] <= len(row.said) + 64
    assert len(rooms) <= 4
    late = new_row(bot.encode(['好'*100])[0], GREEDY, bot.model)
    batch.join([late])
    batch.leave({row})
    batch.step()
    assert batch.seats.parts()[0].shape[3] == 1 # what the long row left on the left is not looked at any more


# ---- the engine

def expected(bot, text, dec, stop=()):
    "The whole text of an answer by the chapter's ChatBot, cut at the first stop string."
    text = decode(bot.tok, alone(bot, text, dec))
    if not text.strip(): return bot.fallback
    return text[:min([at for s in stop if (at := text.find(s)) >= 0], default=len(text))]

@pytest.mark.parametrize('name', ['bot', 'bytes_bot'])
def test_many_threads_get_what_chatbot_answers(name, request):
    bot = request.getfixturevalue(name)
    got, lock = {}, threading.Lock()
    with Engine(bot, max_rows=7, prefill_tok=90) as engine:
        def ask(seed):
            rnd = random.Random(seed)
            for n in range(4):
                text, dec = question(rnd), rnd.choice(KNOBS)
                ticket = engine.submit(text, dec)
                if rnd.random() < .2: ticket.cancel()
                pieces = list(ticket)
                with lock: got[seed, n] = text, dec, ticket, pieces
        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(12)]
        for thread in threads: thread.start()
        for thread in threads: thread.join(WAIT_S)
    assert len(got) == 48 and (engine.running, engine.waiting) == (0, 0)
    for text, dec, ticket, pieces in got.values():
        assert ticket.result() == ''.join(pieces) and all(pieces)
        if ticket.finish == 'cancelled':
            assert expected(bot, text, dec).startswith(ticket.result())
            continue
        ids = alone(bot, text, dec)
        assert ticket.result() == expected(bot, text, dec)
        assert ticket.finish == ('stop' if ids[-1] in end_ids(bot.model) else 'length')
        assert ticket.n_answer == len(ids) - (ticket.finish == 'stop')
        assert ticket.n_prompt == len(bot.encode([text])[0])
    assert sum(ticket.finish != 'cancelled' for *_, ticket, _ in got.values()) > 30


def test_fewer_steps_than_one_at_a_time(bot):
    rnd = random.Random(4)
    texts = [question(rnd) for _ in range(32)]
    with Engine(bot, prefill_tok=2000) as engine:
        answers = [t.result(WAIT_S) for t in [engine.submit(q) for q in texts]]
    assert answers == bot.answer(texts)
    assert engine.n_steps <= sum(len(alone(bot, q, GREEDY)) for q in texts)/5


def test_a_short_question_passes_a_long_answer(endless):
    "It joins between two tokens and is done while the long one goes on: no more steps than its own tokens."
    with Engine(endless) as engine, gated(endless) as gate:
        long = engine.submit('你好')
        gate.come() # the long one's first step stands at the gate
        for _ in range(3): gate.step()
        short = engine.submit('你是谁？', Decoding(max_new_tok=4))
        for _ in range(5): gate.step()
        assert short.finish == 'length' and long.finish is None
        assert gate.rows == [1, 1, 1, 1, 2, 2, 2, 2, 1] # four steps with both
        long.cancel()
        gate.free()
    assert short.result() == expected(endless, '你是谁？', Decoding(max_new_tok=4))


def test_cancelled_within_a_step(endless):
    with Engine(endless) as engine, gated(endless) as gate:
        tickets = [engine.submit(q) for q in ('你好', '秋')]
        gate.come()
        while gate.rows[-1] < 2: gate.step()
        tickets[0].cancel()
        gate.step() # the step that stood at the gate ends; the next one has a row less
        assert gate.rows[-1] == 1 and tickets[0].finish == 'cancelled'
        written = tickets[0].n_answer
        gate.step()
        assert tickets[0].n_answer == written
        tickets[1].cancel()
        gate.free()
        assert tickets[1].result(WAIT_S) and tickets[1].finish == 'cancelled'
        n = engine.n_steps
        assert engine.submit('好', Decoding(max_new_tok=1)).result(WAIT_S)
        assert engine.n_steps == n + 1 # nothing ran in between


def test_who_waits_can_be_cancelled_and_time_out(endless):
    with Engine(endless, max_rows=1) as engine, gated(endless) as gate:
        running = engine.submit('你好')
        gate.come()
        waiting = [engine.submit('秋'), engine.submit('秋'), engine.submit('秋', deadline_s=1e-3)]
        assert (engine.running, engine.waiting) == (1, 3)
        waiting[0].cancel()
        while not waiting[2].given_up(): pass
        gate.step()
        assert [t.finish for t in waiting] == ['cancelled', None, 'deadline']
        assert engine.waiting == 1 and list(waiting[0]) == [] and waiting[2].result() == ''
        running.cancel()
        waiting[1].cancel()
        gate.free()


def test_deadline_of_a_running_answer(endless):
    with Engine(endless) as engine:
        for seconds in (.2, 1., 5.): # on a busy machine the first token may come late
            ticket = engine.submit('你好', replace(LONG, max_new_tok=100_000), deadline_s=seconds)
            text = ticket.result(WAIT_S)
            assert ticket.finish == 'deadline'
            if ticket.n_answer: break
        assert ticket.n_answer > 0
    assert expected(endless, '你好', replace(LONG, max_new_tok=ticket.n_answer)) == text


def test_queue_full(endless):
    with Engine(endless, max_rows=1, max_queue=3) as engine, gated(endless) as gate:
        running = engine.submit('你好')
        gate.come()
        waiting = [engine.submit('秋') for _ in range(3)]
        with pytest.raises(QueueFull, match='^3 questions wait: expected fewer than max_queue=3$'): engine.submit('秋')
        waiting[1].cancel() # room at once, not only after the step
        waiting.append(engine.submit('秋'))
        with pytest.raises(QueueFull): engine.submit('秋', Decoding(strategy='beam'))
        for ticket in (running, *waiting): ticket.cancel()
        gate.free()


def test_close_finishes_what_was_accepted(bot):
    engine = Engine(bot, max_rows=2)
    tickets = [engine.submit('你是谁？', dec) for dec in KNOBS]
    assert engine.close(WAIT_S) is True
    assert [t.finish in ('stop', 'length') for t in tickets] == [True]*len(KNOBS)
    with pytest.raises(RuntimeError, match='closing'): engine.submit('你好')
    assert engine.close(0) is True # again does no harm
    assert not [t for t in threading.enumerate() if t.name.startswith('engine-') and t in engine._threads]


@pytest.mark.parametrize('n', [1, 40])
def test_close_cancels_what_does_not_end(endless, n):
    engine = Engine(endless, max_rows=8)
    tickets = [engine.submit('你好') for _ in range(n)] + [engine.submit('你好', replace(LONG, strategy='beam',
        max_new_tok=2000))]
    assert engine.close(.1) is False
    assert {t.finish for t in tickets} == {'cancelled'}
    assert (engine.running, engine.waiting) == (0, 0)
    for bad in (-1, float('nan')):
        with pytest.raises(ValueError, match=f'timeout_s={bad}'): engine.close(bad)


def test_leaving_the_context_by_an_exception_cancels(endless):
    with pytest.raises(KeyError), Engine(endless) as engine:
        ticket = engine.submit('你好')
        raise KeyError('x')
    assert ticket.finish == 'cancelled'


def test_beam_search_holds_nobody(endless):
    "The search runs in its own thread: while it stands at the gate, the batch goes on."
    beam = Decoding(strategy='beam', num_beams=3, max_new_tok=12)
    stopped, go = threading.Event(), threading.Event()
    def wait(module, args, kwargs):
        if threading.current_thread().name == 'engine-beside' and not go.is_set():
            stopped.set()
            assert go.wait(WAIT_S)
    hook = endless.model.decoder.register_forward_pre_hook(wait, with_kwargs=True)
    with Engine(endless, max_beside=1) as engine:
        tickets = [engine.submit(q, beam) for q in ('你是谁？', '秋')]
        assert stopped.wait(WAIT_S)
        assert engine.submit('你好', GREEDY).result(WAIT_S) == expected(endless, '你好', GREEDY)
        assert (engine.running, engine.waiting) == (1, 1)
        go.set()
        answers = [t.result(WAIT_S) for t in tickets]
    hook.remove()
    assert answers == endless.answer(['你是谁？', '秋'], beam)
    ends = [alone(endless, q, beam)[-1] in end_ids(endless.model) for q in ('你是谁？', '秋')]
    assert [t.finish for t in tickets] == ['stop' if end else 'length' for end in ends]


# ---- limits

@pytest.mark.parametrize('seed', range(3))
def test_what_is_run_stays_within_its_limits(chars, seed):
    "What reaches encoder and decoder: few enough rows and padded tokens, unless it is one question alone."
    bot, rnd = ChatBot(toy_model(len(chars), seed=1), chars, GREEDY, batch_tok=220), random.Random(seed)
    read, run = [], []
    def look(module, args, kwargs): read.append(kwargs['attention_mask'].shape)
    def look_too(module, args, kwargs):
        run.append((*kwargs['encoder_attention_mask'].shape, kwargs['attention_mask'].shape[1]))
    hooks = [bot.model.encoder.register_forward_pre_hook(look, with_kwargs=True),
        bot.model.decoder.register_forward_pre_hook(look_too, with_kwargs=True)]
    asks = [(question(rnd), Decoding(max_new_tok=rnd.randint(1, 40))) for _ in range(30)]
    with Engine(bot, max_rows=6, prefill_tok=50) as engine:
        answers = [t.result(WAIT_S) for t in [engine.submit(*ask) for ask in asks]]
    for hook in hooks: hook.remove()
    assert answers == [expected(bot, *ask) for ask in asks]
    assert max(rows for rows, _ in read) > 1 and all(rows == 1 or rows*width <= 50 for rows, width in read)
    assert 1 < max(rows for rows, *_ in run) <= 6
    assert all(rows == 1 or rows*(asked + written) <= 220 for rows, asked, written in run)


@pytest.mark.parametrize('seed', range(20))
def test_admission_against_its_rule(bot, seed):
    "The longest prefix that fits, looked for by brute force; whoever is first gets in once nobody runs."
    rnd = random.Random(seed)
    def rows(n): return [new_row([5]*rnd.randint(1, 40), Decoding(max_new_tok=rnd.randint(1, 60)), bot.model)
        for _ in range(n)]
    running, waiting = rows(rnd.choice([0, 0, 1, 3])), rows(rnd.randint(1, 8))
    max_rows, batch_tok, prefill_tok = rnd.randint(1, 8), rnd.choice([100, 200, 500]), rnd.choice([10, 60, 200])
    def fits(n):
        every, new = running + waiting[:n], [len(row.prompt) for row in waiting[:n]]
        cells = len(every)*(max(len(r.prompt) for r in every) + max(r.dec.max_new_tok for r in every))
        held = len(every) == 1 or len(every) <= max_rows and cells <= batch_tok
        return held and (n == 1 or n*max(new) <= prefill_tok)
    want = max((n for n in range(1, len(waiting) + 1) if all(fits(k) for k in range(1, n + 1))), default=0)
    assert admit(running, waiting, max_rows, batch_tok, prefill_tok) == want
    if not running: assert want >= 1


def test_first_come_first_served(endless):
    "All five wait and are listened to before the first of them may join; they take turns on two or three seats."
    order, dec = [], Decoding(max_new_tok=3)
    with Engine(endless, max_rows=3) as engine, gated(endless) as gate:
        first = engine.submit('你好', Decoding(max_new_tok=7))
        gate.come()
        tickets = [engine.submit('秋'*n, dec) for n in (1, 30, 2, 25, 3)]
        for n, ticket in enumerate(tickets): ticket.listen(lambda piece, n=n: order.append(n))
        assert engine.waiting == 5 and not order
        gate.free()
        for ticket in (first, *tickets): ticket.result(WAIT_S)
    assert list(dict.fromkeys(order)) == [0, 1, 2, 3, 4]


BAD = [(dict(question=' '), 'not blank'), (dict(question='\ud800'), 'surrogate'), (dict(question=7), 'not blank'),
    (dict(question='好'*600), 'max_prompt_tok=512'), (dict(stop='。'), "stop='。'"), (dict(stop=('',)), 'not empty'),
    (dict(stop=(1,)), 'not empty'), (dict(stop=None), 'stop=None'), (dict(deadline_s=0), 'deadline_s=0'),
    (dict(deadline_s=-1.), 'deadline_s=-1'), (dict(deadline_s=float('nan')), 'deadline_s=nan'),
    (dict(deadline_s=True), 'deadline_s=True'), (dict(deadline_s='1'), "deadline_s='1'"),
    (dict(dec=Decoding(max_new_tok=20_000)), 'max_new_tok=20000.*batch_tok=16384'),
    (dict(dec=Decoding(strategy='beam', num_beams=100)), '100 x .*batch_tok=16384')]

@pytest.mark.parametrize('how,words', BAD)
def test_bad_questions_are_refused_by_name(bot, how, words):
    with Engine(bot) as engine:
        with pytest.raises(ValueError, match=words): engine.submit(**(dict(question='你好') | how))
        assert (engine.waiting, engine.running) == (0, 0)
        assert engine.submit('你好').result(WAIT_S) == bot.answer(['你好'])[0]

@pytest.mark.parametrize('how', [dict(max_rows=0), dict(max_queue=0), dict(prefill_tok=True), dict(max_rows=1.5),
    dict(max_beside=None), dict(pause_s=-.1), dict(pause_s=True), dict(pause_s=math.nan), dict(pause_s=math.inf)])
def test_bad_limits_are_refused_by_name(bot, how):
    (name, value), = how.items()
    with pytest.raises(ValueError, match=f'{name}={value}'): Engine(bot, **how)

def test_one_alone_is_not_held_up_by_rests(endless):
    "With a rest of an hour for every other row, a row that is alone writes all its tokens."
    with Engine(endless, pause_s=3600.) as engine:
        assert engine.submit('你好', Decoding(max_new_tok=20, loop_copies=0)).result(WAIT_S)

def test_several_rest_after_every_step(endless):
    "Two rows that write ten tokens each, side by side: at least nine rests; and what they say is as alone."
    dec, pause_s = Decoding(max_new_tok=10, loop_copies=0), .05
    with Engine(endless, pause_s=pause_s, prefill_tok=2000) as engine:
        with engine._lock: tickets = [engine.submit(q, dec) for q in ('你好', '秋')] # both wait before the first step
        began = time.monotonic()
        said = [t.result(WAIT_S) for t in tickets]
        assert time.monotonic() - began >= 9*pause_s
    assert said == endless.answer(['你好', '秋'], dec)

def test_closing_ends_a_rest(endless):
    "The engine would rest for an hour after the first step of two rows."
    engine = Engine(endless, pause_s=3600., prefill_tok=2000)
    with engine._lock: tickets = [engine.submit(q, Decoding(max_new_tok=200, loop_copies=0)) for q in ('你好', '秋')]
    assert next(iter(tickets[0])), 'the first step is done'
    closing = threading.Thread(target=engine.close, args=[0.])
    closing.start()
    closing.join(WAIT_S)
    assert not closing.is_alive() and all(t.finish == 'cancelled' for t in tickets)

def test_what_is_no_t5_is_answered_beside(chars):
    "Its positions are counted, not distances: one by one, as ChatBot does."
    cfg = BartConfig(vocab_size=len(chars), d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
        decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2)
    cfg.pad_token_id, cfg.eos_token_id, cfg.decoder_start_token_id = 0, 1, 0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bot = ChatBot(BartForConditionalGeneration(cfg), chars, GREEDY)
    with Engine(bot, max_beside=3) as engine: tickets = [engine.submit(q, SAMPLE) for q in ('你好', '秋', '你是谁？')*2]
    assert [t.result() for t in tickets] == bot.answer(['你好', '秋', '你是谁？']*2, SAMPLE)
    assert engine.n_steps == 0


# ---- what goes wrong for one must not go wrong for others

def untied(chars):
    "A model whose output does not share the embedding."
    model = toy_model(len(chars), seed=1)
    model.lm_head.weight = torch.nn.Parameter(model.shared.weight.detach().clone())
    return model

@pytest.mark.parametrize('poison', [float('nan'), float('inf')])
def test_a_row_of_nan_fails_alone(chars, poison):
    "One character's embedding is broken: whoever asks with it fails, the others and the seat's next owner do not."
    model, rnd = untied(chars), random.Random(0)
    model.shared.weight.data[chars.get_vocab()['谁']] = poison
    bot = ChatBot(model, chars, GREEDY)
    fine = [q for q in (question(rnd, 12) for _ in range(40)) if '谁' not in q + expected(bot, q, GREEDY)][:10]
    with Engine(bot, max_rows=4) as engine:
        tickets = [engine.submit('你是谁？' if n % 4 == 0 else fine[n % 10]) for n in range(40)]
        for ticket in tickets: list(ticket)
    bad = [ticket for n, ticket in enumerate(tickets) if n % 4 == 0]
    assert {ticket.finish for ticket in bad} == {'error'}
    with pytest.raises(RuntimeError, match='not finite'): bad[0].result()
    good = [(ticket.result(), fine[n % 10]) for n, ticket in enumerate(tickets) if n % 4]
    assert all(said == expected(bot, q, GREEDY) for said, q in good)


def test_an_id_that_the_tokenizer_does_not_know(chars):
    "A vocabulary padded to a round number: such a token ends its answer as an error."
    model = toy_model(len(chars) + 4, seed=1)
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.shared.weight))
    model.lm_head.weight.data[-2:] = torch.tensor([[1.], [-1.]]) # one of the two is above 0
    with Engine(ChatBot(model, chars, GREEDY)) as engine: tickets = [engine.submit(q) for q in ('你好', '秋')]
    assert [t.finish for t in tickets] == ['error', 'error']


def test_a_step_that_fails(endless):
    "The rows of that step fail; the engine answers the next ones."
    def fail(module, args, kwargs):
        if len(kwargs['input_ids']) == 3: raise MemoryError('no room')
    hook = endless.model.decoder.register_forward_pre_hook(fail, with_kwargs=True)
    with Engine(endless, prefill_tok=1) as engine:
        tickets = [engine.submit('你好') for _ in range(3)]
        for ticket in tickets: list(ticket)
        assert {t.finish for t in tickets} == {'error'}
        assert isinstance(tickets[0].error, MemoryError)
        with pytest.raises(RuntimeError, match='no room'): tickets[0].result()
        hook.remove()
        assert engine.running == 0
        again = [engine.submit('你好', GREEDY) for _ in range(3)]
        assert {t.result(WAIT_S) for t in again} == {expected(endless, '你好', GREEDY)}


def test_who_waits_behind_a_search_times_out(endless):
    "Nobody else runs: the search looks after those who wait."
    beam = Decoding(strategy='beam', num_beams=2, max_new_tok=3000, loop_copies=0)
    with Engine(endless, max_beside=1) as engine, gated(endless) as gate:
        long = engine.submit('你好', beam)
        gate.come()
        late, unwanted, next_one = (engine.submit('秋', beam, deadline_s=s) for s in (1e-3, None, None))
        unwanted.cancel()
        while not late.given_up(): pass
        for _ in range(2): gate.step()
        assert [t.finish for t in (long, late, unwanted, next_one)] == [None, 'deadline', 'cancelled', None]
        for ticket in (long, next_one): ticket.cancel()
        gate.free()
    assert {long.finish, next_one.finish} == {'cancelled'}


def test_newcomers_that_cannot_be_read(endless):
    "A question that fails while it is read does not touch those who run."
    def fail(module, args, kwargs):
        if kwargs['input_ids'].shape[1] > 20: raise RuntimeError('too long')
    hook = endless.model.encoder.register_forward_pre_hook(fail, with_kwargs=True)
    with Engine(endless) as engine:
        running = engine.submit('你好', replace(LONG, max_new_tok=200))
        for _ in running: break
        bad = engine.submit('好'*40)
        assert list(bad) == [] and bad.finish == 'error'
        assert running.result(WAIT_S) == expected(endless, '你好', replace(LONG, max_new_tok=200))
    hook.remove()


def test_a_blank_answer_is_the_fallback(chars):
    "Nothing but padding: said as ChatBot says it; not after a stop string, not when cancelled."
    model = toy_model(len(chars), seed=1)
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.shared.weight))
    bot = ChatBot(model, chars, GREEDY)
    with Engine(bot) as engine:
        ticket = engine.submit('你好')
        assert ticket.result(WAIT_S) == bot.answer(['你好'])[0] == bot.fallback
        assert list(ticket) == [bot.fallback] and ticket.finish == 'length'
        cut = engine.submit('你好', deadline_s=1e-9)
        assert cut.result(WAIT_S) == '' and cut.finish == 'deadline'


@pytest.mark.parametrize('text', ['靨', 'Привет', '《靨》？'])
@pytest.mark.parametrize('dec', [GREEDY, SAMPLE, BEAM], ids=['greedy', 'sampling', 'beam'])
def test_a_question_of_unknown_characters_is_answered_as_chatbot_does(bot, text, dec):
    "At once: no row is written, and the ticket names the characters."
    with Engine(bot) as engine:
        ticket, other = engine.submit(text, dec), engine.submit('你好', dec)
        assert list(ticket) == [bot.fallback] == bot.answer([text], dec)
        assert (ticket.finish, ticket.n_answer, ticket.unknown_chars) == ('stop', 0, bot.unknown_chars(text))
        assert other.result(WAIT_S) == bot.answer(['你好'], dec)[0] and other.unknown_chars == ''
        assert engine.submit('靨好').unknown_chars == '靨'

@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
@pytest.mark.parametrize('name', ['_turn', '_turn_beside'])
def test_a_dead_thread_is_not_a_closing(bot, monkeypatch, name):
    "Whoever waits is told, newcomers are turned away, and the engine says why."
    def broken(engine): raise KeyError('a mistake of ours')
    monkeypatch.setattr(Engine, name, broken)
    engine = Engine(bot)
    wait_until(lambda: engine.failed)
    for text in ('你好', '靨'):
        with pytest.raises(Closed, match='has failed'): engine.submit(text)
    assert engine.close()
    monkeypatch.undo()
    with Engine(bot) as engine: pass
    with pytest.raises(Closed, match='is closing'): engine.submit('你好')
    assert not engine.failed


# ---- text

@pytest.mark.parametrize('name', ['bot', 'bytes_bot'])
def test_stop_strings_against_find(name, request):
    "Random stop strings, cut out of the answer or not: the text up to the first, never a letter of it, no later piece."
    bot, rnd = request.getfixturevalue(name), random.Random(1)
    dec = replace(GREEDY, max_new_tok=40, loop_copies=0)
    texts = [question(rnd) for _ in range(12)]
    whole = {q: expected(bot, q, dec) for q in texts}
    def pick_stop(text):
        at = rnd.randrange(len(text))
        return rnd.choice([text[at:at + rnd.randint(1, 6)], text[at:at + 2] + '#', '龘', text[-1]])
    asks = [(q, tuple(pick_stop(whole[q]) for _ in range(rnd.randint(1, 4)))) for q in texts for _ in range(3)]
    with Engine(bot, max_rows=9) as engine:
        tickets = [engine.submit(q, dec, stop) for q, stop in asks]
        for ticket, (q, stop) in zip(tickets, asks):
            assert ticket.result(WAIT_S) == expected(bot, q, dec, stop)
            if any(s in whole[q] for s in stop): assert ticket.finish == 'stop'
    assert len({t.finish for t in tickets}) == 2


@pytest.mark.parametrize('name', ['chars', 'bytes'])
def test_writer_gives_out_what_text_pieces_does(name):
    "Without stop strings the same pieces; random bytes, halves of characters and special tokens too."
    tok, rnd = char_tok(CHARS) if name == 'chars' else byte_tok(), random.Random(2)
    for _ in range(40):
        ids = [rnd.randrange(len(tok)) for _ in range(rnd.randint(0, 20))]
        writer = Writer(tok)
        pieces = [*map(writer.add, ids), writer.rest()]
        assert [p for p in pieces if p] == list(text_pieces(ids, tok))


def test_stop_string_ends_early(chars, endless):
    "It ends the work as well: tokens after it are not written."
    text = expected(endless, '你好', GREEDY)
    with Engine(endless) as engine: ticket = engine.submit('你好', stop=(text[5],))
    assert ticket.n_answer == text.index(text[5]) + 1 and ticket.finish == 'stop'


# ---- tickets

def test_several_readers_of_one_ticket(bot):
    with Engine(bot) as engine:
        ticket = engine.submit('你是谁？')
        got = [[] for _ in range(4)]
        threads = [threading.Thread(target=lambda out: out.extend(ticket), args=(out,)) for out in got]
        for thread in threads: thread.start()
        for thread in threads: thread.join(WAIT_S)
    assert all(''.join(out) == ticket.result() for out in got) and list(ticket) == got[0]

def test_result_times_out(endless):
    with Engine(endless) as engine, gated(endless) as gate:
        ticket = engine.submit('你好')
        with pytest.raises(TimeoutError, match='timeout_s=0.01'): ticket.result(.01)
        ticket.cancel()
        gate.free()

def test_an_event_loop_listens(bot):
    "As an asynchronous server reads it, without a thread per answer."
    async def read(engine, text):
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue()
        def hear(piece): loop.call_soon_threadsafe(pieces.put_nowait, piece)
        engine.submit(text).listen(hear)
        out = []
        while (piece := await asyncio.wait_for(pieces.get(), WAIT_S)) is not None: out.append(piece)
        return ''.join(out)
    async def main(engine): return await asyncio.gather(*(read(engine, q) for q in ('你好', '秋', '你是谁？')*5))
    with Engine(bot) as engine: answers = asyncio.run(main(engine))
    assert answers == bot.answer(['你好', '秋', '你是谁？'])*5

def test_a_listener_that_fails_cancels(endless):
    def fail(piece): raise OSError('the client has left')
    with Engine(endless) as engine:
        ticket = engine.submit('你好')
        for _ in ticket: break
        heard = []
        ticket.listen(heard.append)
        with pytest.raises(OSError): ticket.listen(fail) # at once, for the pieces that are there
        later = engine.submit('秋')
        with gated(endless) as gate:
            gate.come()
            late = Ticket(1)
            late.listen(fail)
            late.write('秋')
            assert late.given_up() == 'cancelled'
            for each in (ticket, later): each.cancel()
            gate.free()
        ticket.result(WAIT_S)
    assert heard[-1] is None and ''.join(heard[:-1]) == ticket.result()


# ---- processes

LEFT_OPEN = """
import sys
from scclm.batching import Engine
from scclm.chat import ChatBot, Decoding
engine = Engine(ChatBot.from_dir(sys.argv[1]))
ticket = engine.submit('你好', Decoding(max_new_tok=10_000, loop_copies=0))
print(next(iter(ticket)) != '')
"""

def test_python_ends_although_nobody_closed(tmp_path, chars):
    folder = save_toy(tmp_path/'model', chars, toy_model(len(chars), endless=True))
    command = [sys.executable, '-c', LEFT_OPEN, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S)
    assert (done.returncode, done.stdout) == (0, 'True\n') and 'Error' not in done.stderr


def test_half_precision_runs(bot):
    "In bfloat16 ties are common, so the text may differ from alone; the work is the same."
    half = ChatBot(toy_model(len(bot.tok), seed=1).bfloat16(), bot.tok, GREEDY)
    with Engine(half, max_rows=1) as engine: one = [t.result() for t in [engine.submit(q) for q in ('你好', '秋')]]
    assert one == half.answer(['你好']) + half.answer(['秋'])
    with Engine(half) as engine: tickets = [engine.submit(q, dec) for dec in KNOBS for q in ('你好', '你是谁？')]
    assert {t.finish for t in tickets} <= {'stop', 'length'} and len(SPECIALS) == 7
