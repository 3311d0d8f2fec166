"The chat: decoding against brute force and the library, streams against batches, the widget and the terminal."
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from chat_toys import CHARS, byte_tok, char_tok, chat_command, save_toy, toy_model

from scclm.chat import ChatBot, Decoding, chat_widget, pick, processors, row_rngs, text_pieces, token_steps
from scclm.chat_view import bubble_html, transcript_html
from scclm.dataset import decode
from scclm.terminal import ChatCfg

QUESTIONS = ['你好', '你是谁？', '天地玄黄，宇宙洪荒，日月盈昃，辰宿列张', '秋', '寒来暑往，秋收冬藏。你是谁？', '好'*60]
GREEDY = Decoding(max_new_tok=24)
VARIED = replace(GREEDY, repetition_penalty=1.3, no_repeat_ngram=2)
SAMPLE = replace(GREEDY, strategy='sampling', temperature=1.5, top_p=.9, seed=3)
BEAM = replace(GREEDY, strategy='beam', num_beams=3)
DRAWN = replace(BEAM, beam_sample=True, early_stopping=True, top_k=9, top_p=.95, length_penalty=-2., seed=5)
CONTRAST = replace(VARIED, strategy='contrastive', penalty_alpha=.5, top_k=5)


@pytest.fixture(scope='module')
def chars(): return char_tok(CHARS)

@pytest.fixture(scope='module')
def bot(chars): return ChatBot(toy_model(len(chars), seed=1), chars, GREEDY)

@pytest.fixture(scope='module')
def endless(chars):
    dec = replace(VARIED, no_repeat_ngram=0, max_new_tok=100_000, loop_copies=0)
    return ChatBot(toy_model(len(chars), endless=True), chars, dec)

@pytest.fixture(scope='module')
def bytes_bot():
    tok = byte_tok()
    return ChatBot(toy_model(len(tok)), tok, GREEDY)


# ---- decoding

BAD_KNOBS = [('strategy', 'contrast'), ('max_new_tok', 0), ('num_beams', 1), ('num_beams', 2.5), ('temperature', 0),
    ('temperature', '1'), ('top_k', -1), ('top_k', None), ('top_p', 0), ('top_p', 1.1), ('top_p', True),
    ('repetition_penalty', float('nan')), ('no_repeat_ngram', True), ('seed', -1), ('seed', 1.),
    ('length_penalty', float('inf')), ('early_stopping', 1), ('beam_sample', 'yes'), ('penalty_alpha', 1.01),
    ('penalty_alpha', -.1), ('penalty_alpha', True), ('penalty_alpha', False), ('penalty_alpha', float('nan')),
    ('loop_copies', 1), ('seed', 2**64), ('temperature', 1e-40), ('repetition_penalty', 1e-320)]

@pytest.mark.parametrize('field,value', BAD_KNOBS)
def test_bad_knob_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field}={value!r} is not valid: expected "): Decoding(**{field: value})
    with pytest.raises(ValueError, match=field): ChatCfg(**{field: value})


EDGES = [dict(temperature=2e-6), dict(temperature=1e30), dict(repetition_penalty=.002), dict(repetition_penalty=1000),
         dict(seed=2**64 - 1), dict(loop_copies=2), dict(loop_copies=10**9), dict(top_p=1e-9), dict(top_k=10**30),
         dict(max_new_tok=np.int64(5), temperature=np.float32(.5), seed=np.int64(3))]

@pytest.mark.parametrize('edge', EDGES)
def test_what_is_allowed_at_the_edge_answers(bot, edge):
    dec = replace(SAMPLE, **edge)
    said = bot.answer(['你好', '再见', '你好'], dec)
    assert len(said) == 3 and all(said) and bot.answer(iter(['你好']), dec) == [''.join(bot.stream('你好', dec))]


def kept(probs, temperature, top_k, top_p):
    "By hand: what the three knobs leave of a distribution."
    p = {i: v ** (1/temperature) for i, v in enumerate(probs)}
    p = dict(sorted(p.items(), key=lambda x: -x[1])[:top_k or None])
    total = sum(p.values())
    out = {}
    mass = 0.
    for i, v in p.items():
        if mass >= top_p: break
        out[i] = v
        mass += v/total
    return {i: v/sum(out.values()) for i, v in out.items()}

@pytest.mark.parametrize('temperature,top_k,top_p', list(product((.5, 1., 1.7), (0, 3), (1., .8))))
def test_sampling_follows_the_distribution_by_hand(temperature, top_k, top_p):
    probs, n = [.42, .25, .16, .11, .06], 20_000
    dec = Decoding(strategy='sampling', temperature=temperature, top_k=top_k, top_p=top_p, seed=0)
    want = kept(probs, temperature, top_k, top_p)
    scores = processors(dec)(torch.zeros(n, 1, dtype=torch.long), torch.tensor(probs).log().repeat(n, 1))
    assert torch.allclose(scores[0].softmax(-1), torch.tensor([want.get(i, 0.) for i in range(5)]), atol=1e-5)
    one = row_rngs(dec, 1)*n # the same generator for all rows: n draws in a row
    seen = Counter(pick(scores, one).tolist())
    for i in range(5):
        p = want.get(i, 0.)
        assert abs(seen[i]/n - p) <= 5*(p*(1-p)/n)**.5


@pytest.mark.parametrize('dec', [GREEDY, VARIED])
def test_greedy_is_generate(bot, dec):
    prompts = bot.encode(QUESTIONS)
    batch = bot.tok.pad(dict(input_ids=prompts), return_tensors='pt')
    want = bot.model.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask,
        do_sample=False, num_beams=1, max_new_tokens=24,
        repetition_penalty=dec.repetition_penalty, no_repeat_ngram_size=dec.no_repeat_ngram)[:, 1:]
    assert torch.equal(torch.tensor(list(zip(*token_steps(bot.model, prompts, dec)))), want)


def test_beam_finds_the_best_sequence(chars):
    "With as many beams as sequences, beam search is exhaustive: compare with every sequence of three tokens."
    tok = char_tok('一二')
    model = toy_model(len(tok), seed=5, spread=.5)
    dec = Decoding(strategy='beam', num_beams=9**3, max_new_tok=3, length_penalty=0.)
    prompt = tok('一二一', add_special_tokens=False).input_ids + [1]

    def score(seq):
        out = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[0, *seq[:-1]]]))
        return out.logits[0].log_softmax(-1)[range(len(seq)), list(seq)].sum().item()

    def whole(seq): return 1 not in seq[:-1] and (len(seq) == 3 or seq[-1] == 1)

    every = [seq for n in (1, 2, 3) for seq in product(range(len(tok)), repeat=n) if whole(seq)]
    with torch.no_grad(): best = max(every, key=score)
    assert ChatBot(model, tok, dec, fallback='').answer(['一二一']) == [decode(tok, list(best))]


# ---- one, many, streamed

@pytest.mark.parametrize('dec', [GREEDY, VARIED, SAMPLE, BEAM, DRAWN, CONTRAST],
    ids=['greedy', 'penalties', 'sampling', 'beam', 'drawn beams', 'contrastive'])
@pytest.mark.parametrize('name', ['bot', 'bytes_bot'])
def test_batch_equals_single_equals_stream(name, dec, request):
    bot = request.getfixturevalue(name)
    many = bot.answer(QUESTIONS, dec)
    assert len(set(many)) > 1
    assert many == [bot.answer([q], dec)[0] for q in QUESTIONS]
    assert many == [''.join(bot.stream(q, dec)) for q in QUESTIONS]
    small = ChatBot(bot.model, bot.tok, batch_tok=90) # several batches, shuffled order
    order = [3, 0, 5, 1, 4, 2]
    assert small.answer([QUESTIONS[i] for i in order], dec) == [many[i] for i in order]


def test_seed_and_global_rng(bot):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    a, b, c = (bot.answer(['你好'], replace(SAMPLE, seed=s)) for s in (1, 1, 2))
    assert a == b != c
    assert len({bot.answer(['你好'], replace(SAMPLE, seed=None))[0] for _ in range(3)}) > 1
    assert torch.equal(before, torch.get_rng_state())


def test_half_precision(bot):
    half = ChatBot(toy_model(len(bot.tok), seed=1).bfloat16(), bot.tok, GREEDY)
    for dec in (GREEDY, SAMPLE): assert ''.join(half.stream('你是谁？', dec)) == half.answer(['你是谁？'], dec)[0]
    assert half.model.dtype == torch.bfloat16


@pytest.mark.parametrize('seed', range(3))
def test_batches_stay_within_their_tokens(bot, seed):
    "What reaches the encoder: every question once, no batch above `batch_tok` unless it is one question."
    lens = torch.randint(1, 50, (60,), generator=torch.Generator().manual_seed(seed)).tolist() + [200]
    dec = replace(GREEDY, max_new_tok=8)
    small = ChatBot(bot.model, bot.tok, dec, batch_tok=150)
    seen = []
    def look(module, args, kwargs): seen.append(kwargs['attention_mask'])
    hook = bot.model.encoder.register_forward_pre_hook(look, with_kwargs=True)
    answers = small.answer(['好'*n for n in lens])
    hook.remove()
    assert sorted(n for mask in seen for n in mask.sum(1).tolist()) == sorted(n + 1 for n in lens) # with the end mark
    assert all(len(mask) == 1 or len(mask)*(mask.shape[1] + 8) <= 150 for mask in seen)
    assert len(seen) < len(lens)
    assert answers == [ChatBot(bot.model, bot.tok, dec).answer(['好'*n])[0] for n in lens]


@pytest.mark.parametrize('dec,rows', [(BEAM, 3), (CONTRAST, 5), (GREEDY, 1)], ids=['beam', 'contrastive', 'greedy'])
def test_batches_count_the_rows_of_a_question(bot, dec, rows):
    "What reaches the decoder: no more padded tokens than `batch_tok`, whatever the strategy."
    small, seen = ChatBot(bot.model, bot.tok, batch_tok=600), []
    def look(module, args, kwargs): seen.append(kwargs['encoder_attention_mask'].shape)
    hook = bot.model.decoder.register_forward_pre_hook(look, with_kwargs=True)
    small.answer(['好'*5]*20, dec)
    hook.remove()
    assert max(n*(width + dec.max_new_tok) for n, width in seen) <= 600
    assert max(n for n, _ in seen) >= rows*2 # still batches


# ---- text

TEXTS = ['好🙂的', '👨‍👩‍👧一家人', 'naïve café', '  前面有空格', '换\n行\t格\n', '𠮷野家\ufffd完', '全是' + '\ufffd'*5,
    '🇨🇳', '']

@pytest.mark.parametrize('text', TEXTS)
def test_pieces_are_whole_characters(text):
    tok = byte_tok()
    ids = tok(text, add_special_tokens=False).input_ids
    pieces = list(text_pieces(iter(ids), tok))
    assert ''.join(pieces) == text and all(pieces)
    assert text.count('\ufffd') == sum(p.count('\ufffd') for p in pieces)

def test_pieces_come_as_soon_as_they_are_whole():
    tok = byte_tok()
    it = iter(tok('好🙂', add_special_tokens=False).input_ids)
    used = []
    def feed():
        for i in it:
            used.append(i)
            yield i
    pieces = text_pieces(feed(), tok)
    assert next(pieces) == '好' and len(used) == 3
    assert next(pieces) == '🙂' and len(used) == 7

@pytest.mark.parametrize('seed', range(30))
def test_pieces_of_random_bytes(seed):
    "Broken bytes anywhere: the pieces still join to what decoding all ids at once gives."
    tok = byte_tok()
    ids = torch.randint(2, len(tok), (60,), generator=torch.Generator().manual_seed(seed)).tolist()
    assert ''.join(text_pieces(ids, tok)) == decode(tok, ids)

def test_byte_fallback_tokens():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast
    letters = {'[PAD]': 0, 'A': 1, **{f'<0x{b:02X}>': b+2 for b in range(256)}}
    core = Tokenizer(models.BPE(letters, [], byte_fallback=True))
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tok = PreTrainedTokenizerFast(tokenizer_object=core, pad_token='[PAD]')
    for raw in ('A好🙂A'.encode(), b'A\xe4\xb8A', b'\x41\xe4'):
        ids = [b+2 for b in raw]
        assert ''.join(text_pieces(ids, tok)) == decode(tok, ids)


# ---- bad and empty

@pytest.mark.parametrize('bad', ['', '  \n', None])
def test_blank_question(bot, bad):
    with pytest.raises(ValueError, match=r'prompt 1 is .*expected a text that is not blank'):
        bot.answer(['你好', bad])
    with pytest.raises(ValueError, match='not blank'): bot.stream(bad) # at the call, not at the first piece

UNREAD = ['\u200b', '\u2800\u3164', '\u0301', '\u20dd', '\u0488 ', '\u0378', '\ufffe', '\U0001ffff', '<p></p>',
    '<br/>', '&nbsp;', '&#8203;\n', '<td>&#x3164;</td>', '<div><b>\u20dd</b></div>']

@pytest.mark.parametrize('text', UNREAD, ids=ascii)
def test_what_nobody_can_see_is_blank(bot, text):
    for ask in (bot.encode, bot.answer):
        with pytest.raises(ValueError, match='prompt 1 is .*not blank') as e: ask(['你好', text])
        assert bot.excuse(e.value) == '问题是空的，请写一句话。'

@pytest.mark.parametrize('text', ['？', '<p>好</p>', '&lt;p&gt;&lt;/p&gt;', '`<p></p>`', '<p>', '&amp;nbsp;', '<br>是什么？',
    '\U0001fae9'])
def test_what_somebody_can_see_is_asked(bot, text):
    assert bot.answer([text])[0]

@pytest.mark.parametrize('text', ['靨', '靨😀', 'Привет', '靨靨靨？', '《靨》', ' 靨，靨 ', '<b>靨</b>', '안녕 하세요'])
@pytest.mark.parametrize('dec', [GREEDY, SAMPLE, BEAM], ids=['greedy', 'sampling', 'beam'])
def test_a_question_of_unknown_characters_is_not_guessed_at(bot, text, dec):
    assert bot.answer(['你好', text, '秋'], dec) == [*bot.answer(['你好'], dec), bot.fallback, *bot.answer(['秋'], dec)]
    assert ''.join(bot.stream(text, dec)) == bot.fallback and list(bot.stream(text, dec, stop=lambda: True)) == []

@pytest.mark.parametrize('text', ['靨好', '好', '？', '。。。', '靨是谁？'])
def test_a_letter_that_is_known_is_answered(bot, text):
    prompt, = bot.encode([text])
    assert not bot.sees_none(prompt)
    ids = zip(*token_steps(bot.model, [prompt], GREEDY, bot.tok))
    assert bot.answer([text]) == [decode(bot.tok, list(next(ids))).strip() or bot.fallback]

HALVES = [('\ud83d好', ''), ('靨\ude00靨', '靨'), ('\ud800', ''), ('靨\ufffe\u20dd', '靨')]

@pytest.mark.parametrize('text, want', HALVES, ids=ascii)
def test_half_a_character_is_none_that_is_unknown(bot, text, want):
    assert bot.unknown_chars(text) == want and ('靨' in bot.unknown_note(text, set())) == bool(want)

def test_the_widget_explains_half_a_character(bot):
    view = chat_widget(bot)
    view.submit('靨\ud83d')
    assert view.wait(30) and [m['role'] for m in view.messages] == ['user', 'note', 'error']
    assert view.messages[-1]['text'] == '问题里有半个字符，请重新输入。'

def test_long_question(bot):
    bot = ChatBot(bot.model, bot.tok, max_prompt_tok=10)
    assert len(bot.answer(['好'*9], GREEDY)) == 1
    wanted = 'prompt 0 has 11 tokens with its end mark: expected at most max_prompt_tok=10'
    with pytest.raises(ValueError, match=wanted) as e: bot.answer(['好'*10])
    assert bot.excuse(e.value) == '问题太长：11 个词元，最多 10 个。请删短一些，或分成几句来问。'

def test_whoever_asks_is_told_what_to_do(bot):
    "In Chinese: a question's own note, a word on memory, or what it was and what to try."
    said = {}
    for bad in (' ', '好\ud83d'):
        try: bot.answer([bad])
        except ValueError as e: said[bad] = bot.excuse(e)
    assert said == {' ': '问题是空的，请写一句话。', '好\ud83d': '问题里有半个字符，请重新输入。'}
    for e in (MemoryError(), RuntimeError('CUDA out of memory. Tried to allocate 2 GiB')):
        assert '内存不够' in bot.excuse(e) and 'max_new_tok' in bot.excuse(e)
    assert bot.excuse(KeyError('x')).endswith("（KeyError: 'x'）") and '请再问一次' in bot.excuse(KeyError('x'))

def test_typed_control_marks_are_text(bytes_bot):
    ids, = bytes_bot.encode(['a[EOS]b[PAD]'])
    assert ids.count(1) == 1 and ids[-1] == 1 and 0 not in ids
    assert bytes_bot.encode(['a[EOS]b'])[0][:-1] == [bytes_bot.tok.convert_tokens_to_ids(c) for c in 'a[EOS]b']
    with pytest.raises(ValueError, match='prompt 0 holds half a character'): bytes_bot.answer(['好\ud83d'])

def test_other_errors(bot, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match='expected a list of strings'): bot.answer('你好')
    with pytest.raises(ValueError, match='vocab_size=12'): ChatBot(toy_model(12), bot.tok)
    with pytest.raises(FileNotFoundError, match='none is missing: expected a model folder'):
        ChatBot.from_dir(tmp_path/'none')
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path))
    wanted = 'dpo.model or .*sft.model or .*pretrain.model: run nbs/06_sft.ipynb or `scclm sft` first'
    with pytest.raises(FileNotFoundError, match=wanted): ChatBot.from_dir()
    assert bot.answer([]) == []

def test_fallback(bot):
    silent = toy_model(len(bot.tok))
    silent.shared.weight.data.zero_()
    silent.shared.weight.data[1] = 1. # only the end mark has a logit
    silent.decoder.final_layer_norm.weight.data.fill_(1.)
    bot = ChatBot(silent, bot.tok, fallback='抱歉')
    logit = [ids for ids in token_steps(silent, bot.encode(['你好']), replace(GREEDY, max_new_tok=3))]
    assert bot.answer(['你好', '秋']) == ['抱歉', '抱歉'] and ''.join(bot.stream('你好')) == '抱歉', logit

def test_opens_folder_of_earlier_stage(bot, tmp_path, monkeypatch):
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path))
    monkeypatch.setenv('SCCLM_SCALE', 'tiny')
    save_toy(tmp_path/'tiny'/'pretrain'/'model', bot.tok, bot.model)
    assert ChatBot.from_dir(decoding=GREEDY).answer(QUESTIONS) == bot.answer(QUESTIONS)
    save_toy(tmp_path/'tiny'/'sft'/'model', bot.tok, toy_model(len(bot.tok), seed=9))
    assert ChatBot.from_dir(decoding=GREEDY).answer(QUESTIONS) != bot.answer(QUESTIONS)


# ---- stopping

def count_steps(model):
    calls = []
    hook = model.decoder.register_forward_hook(lambda *_: calls.append(1))
    return calls, hook

@pytest.mark.parametrize('how', ['close', 'stop'])
def test_stream_stops_at_once(endless, how):
    calls, hook = count_steps(endless.model)
    stopped, threads = [], threading.active_count()
    stream = endless.stream('你好', stop=lambda: bool(stopped))
    for _ in range(5): next(stream)
    at = len(calls)
    if how == 'close': stream.close()
    else: stopped.append(1)
    assert list(stream) == [] and len(calls) <= at + 1 and threading.active_count() == threads
    hook.remove()

def test_beam_stops(endless):
    calls, hook = count_steps(endless.model)
    dec = replace(BEAM, max_new_tok=100_000)
    early = ''.join(endless.stream('你好', dec, stop=lambda: len(calls) >= 7))
    assert len(calls) <= 8
    late = ''.join(endless.stream('你好', replace(dec, max_new_tok=40)))
    assert len(early) < 8 and late.startswith(early) # what was said before the stop does not change
    hook.remove()

def test_encoder_runs_once(bot):
    calls = []
    hook = bot.model.encoder.register_forward_hook(lambda *_: calls.append(1))
    assert ''.join(bot.stream('你好')) and len(calls) == 1
    hook.remove()


# ---- widget

def bubbles(view): return [b.value for b in view.bubbles.children]

def test_widget_answers(bot):
    view = chat_widget(bot)
    view.entry.value = '打了字又点到别处' # not sent: nobody pressed Enter
    assert view.messages == []
    view.entry.value = ''
    view.entry._handle_custom_msg(dict(event='submit'), []) # what the browser sends on Enter,
    view.entry.set_state(dict(value='你是谁？')) # and right after it
    assert view.wait(30) and view.entry.value == ''
    assert view.messages == [dict(role='user', text='你是谁？'), dict(role='bot', text=bot.answer(['你是谁？'])[0])]
    assert bubbles(view) == [bubble_html(**m) for m in view.messages]
    view.submit('  ')
    assert len(view.messages) == 2
    view.entry.value = '秋' # the text was here before Enter
    view.entry._handle_custom_msg(dict(event='submit'), [])
    deadline = time.monotonic() + 20
    while not (len(view.messages) == 4 and view.messages[3]['text']) and time.monotonic() < deadline: time.sleep(.01)
    assert view.wait(30)
    assert view.messages[2:] == [dict(role='user', text='秋'), dict(role='bot', text=bot.answer(['秋'])[0])]
    view.clear()
    assert view.messages == [] and bubbles(view) == []

def test_widget_controls(bot):
    view = chat_widget(ChatBot(bot.model, bot.tok, replace(SAMPLE, top_p=1.)))
    assert view.decoding == replace(SAMPLE, top_p=1.) and not view.temperature.disabled
    view.top_p.value, view.repetition.value = .5, 1.2
    view.submit('你好')
    dec = replace(SAMPLE, top_p=.5, repetition_penalty=1.2)
    assert view.wait(30) and view.messages[1]['text'] == bot.answer(['你好'], dec)[0]
    view.strategy.value = 'beam'
    assert view.decoding.strategy == 'beam' and view.temperature.disabled and view.top_p.disabled
    view.strategy.value, view.alpha.value, view.top_k.value = 'contrastive', .4, 6
    assert not view.alpha.disabled and not view.top_k.disabled and view.temperature.disabled
    view.submit('你好')
    dec = replace(dec, strategy='contrastive', penalty_alpha=.4, top_k=6)
    assert view.wait(30) and view.messages[3]['text'] == bot.answer(['你好'], dec)[0]
    drawn = chat_widget(ChatBot(bot.model, bot.tok, DRAWN))
    assert drawn.decoding == DRAWN and not drawn.temperature.disabled

def test_widget_stop(endless):
    view = chat_widget(endless)
    threads = threading.active_count()
    view.submit('你好')
    assert view.writer and view.send_btn.disabled and not view.stop_btn.disabled
    view.submit('第二个') # ignored meanwhile
    deadline = time.monotonic() + 20
    while len(view.messages[-1]['text']) < 5 and time.monotonic() < deadline: time.sleep(.01)
    assert 5 <= len(view.messages[-1]['text']) < 100_000
    view.stop_btn.click()
    assert not view.writer and threading.active_count() == threads and len(view.messages) == 2
    said = view.messages[-1]['text']
    assert said.endswith('（已停止）') and said.removesuffix('（已停止）') in bubbles(view)[-1]
    assert not view.send_btn.disabled and view.stop_btn.disabled
    view.submit('再来')
    view.clear() # during an answer
    assert view.messages == [] and not view.writer and threading.active_count() == threads
    view.submit('又来')
    view.close()
    assert not view.writer and threading.active_count() == threads

def test_widget_shows_errors_and_never_reads_html(bot):
    view = chat_widget(ChatBot(bot.model, bot.tok, max_prompt_tok=30))
    evil = '<script>alert("x")</script>'
    view.submit(evil)
    assert view.wait(30) and evil not in ''.join(bubbles(view)) and '&lt;script&gt;' in bubbles(view)[0]
    view.submit('好'*31)
    want = dict(role='error', text='问题太长：32 个词元，最多 30 个。请删短一些，或分成几句来问。')
    assert view.wait(30) and view.messages[-1] == want
    page = transcript_html([dict(role='user', text=evil), dict(role='bot', text="a\n<img src=x onerror='y'>")])
    assert '<script' not in page and '<img' not in page and page.count('<div') == page.count('</div')


def test_an_enter_without_text_or_during_an_answer_asks_nothing(bot, endless):
    view = chat_widget(bot)
    view.entry._handle_custom_msg(dict(event='submit'), [])
    view.entry._handle_custom_msg(dict(event='something else'), [])
    view.enter()
    view.submit_if_waiting() # what the timer would do
    assert view.messages == []
    busy = chat_widget(endless)
    busy.submit('你好')
    busy.entry._handle_custom_msg(dict(event='submit'), [])
    busy.entry.set_state(dict(value='秋'))
    assert [m['text'] for m in busy.messages if m['role'] == 'user'] == ['你好']
    busy.close()


# ---- what is loaded

LOADED = "import sys, {module}; print(*sorted(sys.modules))"

@pytest.mark.parametrize('module,absent', [
    ('scclm.chat', ['ipywidgets', 'scclm.chat_view', 'scclm.terminal', 'prompt_toolkit.shortcuts']),
    ('scclm.terminal', ['ipywidgets', 'scclm.chat_view', 'prompt_toolkit.shortcuts']),
    ('scclm.chat_view', ['scclm.chat', 'torch', 'transformers'])])
def test_each_face_loads_only_its_own(module, absent):
    "A terminal chat needs no widgets, and the widgets need no PyTorch: the bot is given to them."
    code = LOADED.format(module=module)
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    loaded = run.stdout.split()
    assert run.returncode == 0 and module in loaded, run.stderr
    assert [name for name in absent if name in loaded] == []


# ---- terminal

@pytest.fixture(scope='module')
def folder(tmp_path_factory, bot): return save_toy(tmp_path_factory.mktemp('chat')/'model', bot.tok, bot.model)

def chat(folder, typed):
    "The terminal chat at the end of a pipe."
    return subprocess.run(chat_command(model=folder, max_new_tok=24), input=typed, capture_output=True, timeout=120)

def test_pipe(folder, bot):
    asked = ['你好'.encode(), b'', b'cls', b'\xff\xfe', ('好'*600).encode(), '你是谁？'.encode()]
    run = chat(folder, b'\n'.join([*asked, b'exit', '秋'.encode()]))
    err = run.stderr.decode()
    assert run.returncode == 0, err
    assert run.stdout.decode().splitlines() == bot.answer(['你好', '你是谁？'])
    assert 'line 4 of stdin is not UTF-8' in err and '最多 512 个' in err and 'Traceback' not in err

def test_pipe_ends_without_exit(folder, bot):
    run = chat(folder, '\ufeff秋\r\n你好'.encode()) # a byte order mark is no question
    assert run.stdout.decode().splitlines() == bot.answer(['秋', '你好']) and b'answered 2' in run.stderr

def test_reader_of_the_pipe_goes_away(folder):
    pipe = subprocess.PIPE
    run = subprocess.Popen(chat_command(model=folder, max_new_tok=24), stdin=pipe, stdout=pipe, stderr=pipe)
    run.stdout.close()
    run.stdout = None
    _, err = run.communicate('你好\n秋\n'.encode(), timeout=120)
    assert run.returncode == 0 and b'Traceback' not in err and b'Exception' not in err


# ---- many at once

@pytest.mark.parametrize('dec', [GREEDY, SAMPLE, CONTRAST, BEAM], ids=['greedy', 'sampling', 'contrastive', 'beam'])
def test_sixteen_threads_answer_as_one(bot, dec):
    wanted = [bot.answer([text], dec)[0] for text in QUESTIONS]
    def ask(text): return bot.answer([text], dec)[0]
    with ThreadPoolExecutor(16) as pool: said = list(pool.map(ask, QUESTIONS*8))
    assert said == wanted*8
