"The chat in a web page: the same tokens as PyTorch, in a real Chromium, from a server and from a disk."
import base64
import json
import random
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_toys import CHARS, byte_tok, char_tok, save_toy, toy_model
from browser_toys import open_browser
from page_toys import Scripts, answers, opened, served
from playwright.sync_api import expect
from processes import gone_afterwards
from tokenizers import pre_tokenizers
from torch.nn import functional as F
from transformers import T5Config, T5ForConditionalGeneration, TopPLogitsWarper

from scclm.chat import (ChatBot, Decoding, LoopGuard, answer_ids, close_gaps, find_model, loop_closers,
    token_chars)
from scclm.dataset import decode, encode
from scclm.model import load_model
from scclm.page_chat import (SCRIPTS, PageCfg, bpe_table, model_spec, pack, page, page_tensors, position_table,
    put_weights_, quantise_rows, read_part, unpack, write_part)
from scclm.sample_corpus import sft_rows
from scclm.sample_typed import FORMS, typed
from scclm.stage import heldout_sample
from scclm.text_rules import chat_form

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = [question for question, _ in heldout_sample(200)]


@pytest.fixture(scope='module', autouse=True)
def nothing_stays():
    "The browser ends with this file's tests."
    with gone_afterwards(): yield

@pytest.fixture(scope='module')
def browser(one_thread):
    with open_browser() as b: yield b

@pytest.fixture(scope='module')
def js(browser): return Scripts(browser)

@pytest.fixture(scope='module')
def trained(): return load_model(find_model())

@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    "Folder by kind of weights, of the trained model."
    root = tmp_path_factory.mktemp('pages')
    kinds = ('int8', 'float16', 'float32')
    return {kind: page(PageCfg(out=root/kind, weights=kind, max_mb=20)).parent for kind in kinds}

@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    "A small random model, its page, and a page whose answers do not end."
    root = tmp_path_factory.mktemp('toy_page')
    tok = char_tok(CHARS)
    save_toy(root/'model', tok, toy_model(len(tok), endless=True))
    page(PageCfg(model=root/'model', out=root/'page'))
    shutil.copytree(root/'page', root/'endless')
    manifest = read_part(root/'page', 'manifest')
    manifest['limits'] |= dict(loopCopies=0, newTokens=10_000)
    write_part(root/'endless', 'manifest', manifest, manifest['fingerprint'])
    return root

def tensors_of(folder):
    "What PyTorch reads back of an exported folder."
    packed = base64.b64decode(read_part(folder, 'weights'))
    return dict(unpack(packed, read_part(folder, 'manifest')['weights']['tensors']))

def answered(bot, questions):
    "The ids that PyTorch writes for each question; those of one length together, so that nothing is padded."
    prompts, out = bot.encode(questions), {}
    for length in {*map(len, prompts)}:
        rows = [n for n, ids in enumerate(prompts) if len(ids) == length]
        written = answer_ids(bot.model, [prompts[n] for n in rows], bot.decoding, bot.tok)
        out |= {n: ids[:ids.index(1) + 1] if 1 in ids else ids for n, ids in zip(rows, written)}
    return [out[n] for n in range(len(prompts))]

# ---- the same answers

@pytest.mark.parametrize('kind, n', [('int8', 200), ('float16', 20), ('float32', 30)])
def test_200_held_out_questions_are_answered_as_pytorch_answers(browser, pages, trained, kind, n):
    "Token for token: PyTorch computes with the weights of the page; those of float32 are the model's own."
    model, tok = trained
    if kind != 'float32': model = put_weights_(load_model(find_model())[0], tensors_of(pages[kind]))
    bot = ChatBot(model, tok)
    want = answered(bot, QUESTIONS[:n])
    with served(pages[kind]) as url:
        chat = opened(browser.new_page(), f'{url}/index.html')
        got = answers(chat, QUESTIONS[:n])
        chat.close()
    assert [a['ids'] for a in got] == want
    assert [a['text'] for a in got] == [decode(tok, ids) for ids in want]

def test_few_answers_change_by_the_small_weights(trained, pages):
    model, tok = trained
    small = put_weights_(load_model(find_model())[0], tensors_of(pages['int8']))
    asked = QUESTIONS[:60]
    before, after = (ChatBot(m, tok).answer(asked) for m in (model, small))
    assert sum(a == b for a, b in zip(before, after)) >= 57

def test_questions_as_people_type_them(browser, pages, trained):
    "The page reads them itself."
    model = put_weights_(load_model(find_model())[0], tensors_of(pages['int8']))
    asked = [t for form in FORMS for t in typed(QUESTIONS[:2], form)] + ['「詩仙」指的是誰?', '１＋１等于几？']
    asked += ['浙江省的省 会是哪里？', 'print("省 会")', '浙 江 省 的 省 会 是 哪 里 ？']
    asked += ['Привет', 'مرحبا', '👨\u200d👩\u200d👧', '靨？！', '靨好吗？'] # unknown: all, but for marks; some
    chat = opened(browser.new_page(), pages['int8'].joinpath('index.html').as_uri())
    got = answers(chat, asked)
    chat.close()
    assert [a['text'] for a in got] == [ChatBot(model, trained[1]).answer([t])[0] for t in asked]

# ---- a tokenizer that does not name its end

def test_a_nameless_folder_gives_the_same_page(toy, tmp_path):
    "The names come from config.json and tokenizer.json; without an end there is no page."
    copy = Path(shutil.copytree(toy/'model', tmp_path/'model'))
    (copy/'special_tokens_map.json').unlink(missing_ok=True)
    (copy/'tokenizer_config.json').write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    page(PageCfg(model=copy, out=tmp_path/'page'))
    theirs = read_part(toy/'page', 'tables')['tokenizer'] | dict(special=[0, 1, 6])
    assert read_part(tmp_path/'page', 'tables')['tokenizer'] | dict(special=[0, 1, 6]) == theirs
    assert theirs['end'] == 1 and theirs['unknown'] == 6
    assert read_part(tmp_path/'page', 'manifest')['limits'] == read_part(toy/'page', 'manifest')['limits']
    config = json.loads((copy/'config.json').read_text())
    (copy/'config.json').write_text(json.dumps(config | dict(eos_token_id=None)))
    with pytest.raises(ValueError, match='the tokenizer has no eos_token: expected one in tokenizer_config.json'):
        page(PageCfg(model=copy, out=tmp_path/'other'))

# ---- the tokenizer

def test_5000_texts_become_the_same_tokens(js, trained):
    tok = trained[1]
    rows = sft_rows()
    texts = chat_form([r.prompt for r in rows][:2500]) + [r.response for r in rows][:2500]
    rng = random.Random(0)
    vocab = [t for t in tok.get_vocab() if not t.startswith('[')]
    pieces = [*vocab, '靨', '𠀀', '👩', '\x01', '[EOS]', '[UNK]', 'E']
    texts += [''.join(rng.choices(pieces, k=12)) for _ in range(2000)]
    texts = list(dict.fromkeys(texts))
    assert len(texts) > 5000
    table = bpe_table(tok, len(tok))
    code = """(table, texts) => { const t = makeTokenizer(table);
        return texts.map((x) => [t.encode(x), t.decode(t.encode(x))]) }"""
    got = js.call(code, table, texts)
    want = encode(texts, tok)
    assert [ids for ids, _ in got] == want
    assert [text for _, text in got] == [decode(tok, ids) for ids in want]

def test_a_long_text_becomes_the_same_tokens(js, trained):
    tok = trained[1]
    texts = ['浙江省的省会是哪里？'*400, ''.join(r.prompt for r in sft_rows()[:300])[:4000], '']
    got = js.call('(table, texts) => { const t = makeTokenizer(table); return texts.map(t.encode) }',
        bpe_table(tok, len(tok)), texts)
    assert got == encode(texts, tok)

def test_gaps_close_as_in_the_chat(js, trained):
    "Questions with one space, two, and one between all characters; names between spaces; what is no gap."
    tok, rng = trained[1], random.Random(0)
    texts = chat_form(typed(QUESTIONS, 'inner_space') + typed(typed(QUESTIONS, 'inner_space'), 'inner_space'))
    texts += [' '.join(q) for q in QUESTIONS[:50]] + ['张三 李四', '东 西 南 北 哪边冷？', '省 会和空格', '靨 省 会', '𠀀 省会', '']
    pieces = [t for t in tok.get_vocab() if not t.startswith('[')] + [' ']*1000
    texts += [''.join(rng.choices(pieces, k=10)) for _ in range(1000)]
    got = js.call('(table, texts) => { const t = makeTokenizer(table); return texts.map(t.closeGaps) }',
        bpe_table(tok, len(tok)), texts)
    want = [close_gaps(text, tok) for text in texts]
    assert got == want and sum(a != b for a, b in zip(texts, want)) > 200

def test_only_tokenizers_that_the_page_can_read():
    plain = char_tok(CHARS)
    assert bpe_table(plain, len(plain) + 2)['tokens'][-2:] == ['', '']
    with pytest.raises(ValueError, match='pre_tokenizer.*expected a BPE over whole texts'): bpe_table(byte_tok(), 300)
    plain.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match='Whitespace.*expected a BPE'): bpe_table(plain, len(plain))

# ---- the model

def odd_model(seed=0, **fields):
    "A random T5 of uneven sizes: more encoder layers than decoder layers, few buckets."
    torch.manual_seed(seed)
    cfg = dict(vocab_size=50, d_model=24, d_kv=7, d_ff=33, num_layers=3, num_decoder_layers=2, num_heads=3,
        relative_attention_num_buckets=12, relative_attention_max_distance=20, decoder_start_token_id=0, eos_token_id=1,
        pad_token_id=0)
    model = T5ForConditionalGeneration(T5Config(**(cfg | fields))).eval()
    for p in model.parameters():
        if p.ndim == 2: torch.nn.init.normal_(p, std=.35)
        else: torch.nn.init.uniform_(p, .5, 1.5)
    return model

FORWARD = """
async (base64, weights, spec, ids, said) => {
  const model = makeModel(readTensors(bytesOf(base64).buffer, weights), spec), cache = await model.start(ids);
  return said.map((id) => { const { logits, looks } = model.step(cache, id); return { logits: [...logits], looks }; });
}
"""

def forward(js, model, ids, said, kind='float32'):
    packed, tensors = pack(page_tensors(model), kind)
    return js.call(FORWARD, base64.b64encode(packed).decode(), dict(tensors=tensors), model_spec(model), ids, said)

@pytest.mark.parametrize('fields', [{}, dict(tie_word_embeddings=False), dict(num_layers=1, num_decoder_layers=1)])
@pytest.mark.parametrize('length', [1, 5, 45])
@torch.no_grad()
def test_every_score_and_every_look_is_the_librarys(js, fields, length):
    "Longer than the position table reaches, tied or not."
    model = odd_model(**fields)
    model.set_attn_implementation('eager')
    ids, said = torch.randint(2, 50, (length,)), torch.randint(2, 50, (30,))
    want = model(input_ids=ids[None], decoder_input_ids=said[None], output_attentions=True)
    got = forward(js, model, ids.tolist(), said.tolist())
    logits = torch.tensor([step['logits'] for step in got], dtype=torch.float32)
    torch.testing.assert_close(logits, want.logits[0], atol=2e-4, rtol=2e-4)
    looks = torch.tensor([step['looks'] for step in got], dtype=torch.float32) # step, layer and head, question
    attentions = torch.cat([a[0] for a in want.cross_attentions]) # layer and head, step, question
    torch.testing.assert_close(looks.transpose(0, 1), attentions, atol=2e-5, rtol=2e-4)

@pytest.mark.parametrize('reach', [20, 128])
def test_the_position_table_is_the_librarys(reach):
    model = odd_model(relative_attention_max_distance=reach)
    for stack in (model.encoder, model.decoder):
        table, n = position_table(stack), 3*reach
        bias = stack.block[0].layer[0].SelfAttention.compute_bias(n, n)[0] # head, query, key
        query = 2*reach
        offsets = torch.arange(n) - query
        seen = offsets <= 0 if stack is model.decoder else offsets < n
        torch.testing.assert_close(table[offsets.clamp(-reach, reach) + reach][seen], bias[:, query].T[seen])

@pytest.mark.parametrize('fields', [dict(feed_forward_proj='gated-gelu'), dict(feed_forward_proj='gelu')])
def test_another_architecture_is_refused(fields):
    with pytest.raises(ValueError, match="expected t5 with 'relu'"): model_spec(odd_model(**fields))

# ---- the weights

def test_rows_in_bytes():
    w = torch.randn(40, 33) * torch.logspace(-6, 6, 40)[:, None]
    w[3] = 0
    w[4] = 0
    w[4, 0] = 1e-44 # smaller than any scale
    q, scale = quantise_rows(w)
    assert q.dtype == torch.int8 and q.abs().max() == 127 and (scale > 0).all()
    assert ((q * scale[:, None] - w).abs() <= scale[:, None] * .5001).all() and (q[3:5] == 0).all()

@pytest.mark.parametrize('kind', ['int8', 'float16', 'float32'])
def test_page_and_python_unpack_the_same_floats(js, kind):
    tensors = page_tensors(odd_model()) | dict(odd=torch.tensor([[0., -0., 6e-8, 65504, -1.5e-5] + [.1]*20]*3))
    packed, places = pack(tensors, kind)
    code = """(text, tensors) => [...readTensors(bytesOf(text).buffer, { tensors })]
        .map(([name, t]) => [name, [...t.data]])"""
    got = dict(js.call(code, base64.b64encode(packed).decode(), places))
    again = dict(unpack(packed, places))
    assert list(got) == list(tensors) == list(again)
    for name, w in tensors.items():
        ours = np.float32(got[name])
        assert np.array_equal(ours, again[name].numpy().ravel()), name
        if kind == 'float32': assert np.array_equal(ours, w.numpy().ravel())
        matrix = w.ndim == 2 and w.shape[1] > 15
        if kind == 'float16' and matrix: assert np.array_equal(ours, w.half().float().numpy().ravel())

def test_every_half_float(js):
    bits = np.arange(65536, dtype=np.uint16)
    got = js.call('(n) => Array.from({ length: n }, (_, i) => String(fromHalf(i)))', 65536)
    want = bits.view(np.float16).astype(np.float64)
    ours = np.array([float(x.replace('Infinity', 'inf')) for x in got])
    assert np.array_equal(ours, want, equal_nan=True)

def test_another_kind_of_weights_is_refused():
    with pytest.raises(ValueError, match="weights='int4': expected one of int8, float16, float32"): pack({}, 'int4')

# ---- decoding

def test_loops_are_seen_as_in_chapter_08(js):
    rng = random.Random(1)
    chars = [rng.choice([0, .25, .5, 1, 1, 2, 3]) for _ in range(12)]
    rows = [[rng.randrange(2, 5) for _ in range(rng.randint(0, 24))] for _ in range(3000)]
    rows += [[2, 3]*n + [2] for n in range(12)] + [[7]*n for n in range(20)]
    for copies in (2, 3, 4):
        code = '(rows, chars, copies) => rows.map((r) => [...loopClosers(r, chars, copies)].sort((a, b) => a - b))'
        want = [sorted(loop_closers(row, chars, copies)) for row in rows]
        assert js.call(code, rows, chars, copies) == want and any(want)

def test_the_guard_gives_the_score_to_the_end_mark(js):
    tok = char_tok(CHARS)
    guard = LoopGuard(tok, 3)
    said = tok.convert_tokens_to_ids([*'你好吗你好吗你好吗你好'[:8]])
    logits = torch.randn(1, len(tok))
    logits[0, tok.convert_tokens_to_ids('吗')] = 9
    want = guard(torch.tensor([[0, *said]]), logits.clone())[0].tolist()
    got = js.call('(l, said, chars) => [...guardLoops(Float64Array.from(l), said, chars, 1, 3)].map(String)',
        logits[0].double().tolist(), said, token_chars(tok))
    assert [float(x.replace('Infinity', 'inf')) for x in got] == want
    assert js.call('(l, said, chars) => guardLoops(l, said, chars, 1, 0)', [1, 2], [1, 1, 1, 1, 1], [1, 1]) == [1, 2]

@pytest.mark.parametrize('temperature', [0, .3, 1., 1.7])
@pytest.mark.parametrize('top_p', [.05, .4, .9, 1.])
def test_probabilities_and_top_p_are_the_librarys(js, temperature, top_p):
    logits = 3*torch.randn(20, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    code = """(rows, temperature, topP) => rows.map((l) => {
        const probs = probabilities(l, temperature), { order, kept } = likeliest(probs, topP);
        return { probs: [...probs], kept: order.slice(0, kept).sort((a, b) => a - b) }; })"""
    got = js.call(code, logits.tolist(), temperature, top_p)
    scaled = logits / (temperature or 1)
    torch.testing.assert_close(torch.tensor([g['probs'] for g in got], dtype=torch.float64), scaled.softmax(-1))
    left = TopPLogitsWarper(top_p)(None, scaled).isfinite() if top_p < 1 else scaled.isfinite()
    assert [g['kept'] for g in got] == [row.nonzero().flatten().tolist() for row in left]

def test_draws_follow_the_probabilities(js):
    logits = [2., 1., 0., -1., .5]
    code = """(l, topP, n) => { const random = seeded(5), out = l.map(() => 0);
        for (let i = 0; i < n; i++) out[choose(l, { temperature: 1.3, topP }, random).id]++; return out; }"""
    n = 20_000
    for top_p in (1., .7):
        counts = torch.tensor(js.call(code, logits, top_p, n)).double()
        p = (torch.tensor(logits, dtype=torch.float64) / 1.3).softmax(0)
        if top_p < 1: p = TopPLogitsWarper(top_p)(None, p.log()[None])[0].softmax(0)
        seen = p > 0
        assert (counts[~seen] == 0).all()
        assert ((counts - n*p)[seen]**2 / (n*p)[seen]).sum() < 20 # chi-square, 4 degrees of freedom: 1 in 2000
    assert js.call('() => { const a = seeded(9), b = seeded(9); return [a(), a()].join() === [b(), b()].join(); }')

def test_top_five_and_the_choice(js):
    choose = '(l, knobs, x) => choose(l, knobs, () => x)'
    logits = [0, 3, 1, 2, -1, -2, -3]
    greedy = js.call(choose, logits, dict(temperature=0, topP=.5), .99)
    assert greedy['id'] == 1 and [t['id'] for t in greedy['top']] == [1, 3, 2, 0, 4]
    assert [t['kept'] for t in greedy['top']] == [True, False, False, False, False]
    assert greedy['p'] == pytest.approx(F.softmax(torch.tensor(logits).double(), 0)[1].item())
    assert js.call(choose, logits, dict(temperature=1, topP=1), .999999999)['id'] == 6
    assert js.call(choose, logits, dict(temperature=1, topP=1), 0)['id'] == 1
    assert len(js.call(choose, [1, 2], dict(temperature=0, topP=1), 0)['top']) == 2

def test_the_best_five_are_the_first_of_all_in_order(js):
    "With ties: the lower id comes first in both."
    rng = random.Random(3)
    rows = [[rng.choice([0, .1, .2, rng.random()]) for _ in range(rng.randint(1, 40))] for _ in range(500)]
    for n in (1, 5):
        got = js.call('(rows, n) => rows.map((row) => best(row, n))', rows, n)
        assert got == [sorted(range(len(row)), key=lambda i: (-row[i], i))[:n] for row in rows]
        assert got == js.call('(rows, n) => rows.map((row) => inOrder(row).slice(0, n))', rows, n)

# ---- what a person sees

class Person:
    "Somebody at the page, with a keyboard."
    def __init__(self, chat): self.chat = chat
    def role(self, role, name): return self.chat.get_by_role(role, name=name, exact=True)
    def ask(self, text, wait=True):
        self.role('textbox', '问题').fill(text)
        self.chat.keyboard.press('Enter')
        if wait: expect(self.chat.get_by_role('log')).to_have_attribute('aria-busy', 'false', timeout=60_000)

@pytest.fixture
def person(browser, pages):
    "At the trained model's page, opened from the disk."
    context = browser.new_context()
    chat = opened(context.new_page(), pages['int8'].joinpath('index.html').as_uri())
    yield Person(chat)
    context.close()

@pytest.fixture
def toy_person(browser, toy):
    "At the page whose answers do not end."
    context = browser.new_context()
    chat = opened(context.new_page(), toy.joinpath('endless', 'index.html').as_uri())
    yield Person(chat)
    context.close()

SHARES = 'spans => spans.map((s) => Number(s.style.getPropertyValue("--share")))' # how much each lights up

def test_ask_by_keyboard_and_look_at_the_tokens(person, trained, pages):
    chat = person.chat
    person.ask('浙江省的省會是哪裡?')
    model = put_weights_(load_model(find_model())[0], tensors_of(pages['int8']))
    bot = ChatBot(model, trained[1])
    ids = bot.encode(['浙江省的省会是哪里？'])
    answer = answer_ids(model, ids, bot.decoding, trained[1])[0]
    expect(chat.locator('.user')).to_have_text('浙江省的省會是哪裡?')
    expect(chat.locator('.bot')).to_have_text(decode(trained[1], answer))
    tokens = trained[1].convert_ids_to_tokens(answer)
    assert chat.locator('.step b').all_inner_texts() == tokens
    assert chat.locator('.asked span').all_inner_texts() == trained[1].convert_ids_to_tokens(ids[0])
    model.set_attn_implementation('eager')
    with torch.no_grad():
        said = torch.tensor([[0, *answer[:-1]]])
        out = model(input_ids=torch.tensor(ids), decoder_input_ids=said, output_attentions=True)
    looks = torch.stack(out.cross_attentions)[:, 0].mean((0, 1))
    steps = chat.locator('.step')
    for at, (probs, look) in enumerate(zip(out.logits[0].softmax(-1), looks)):
        top = probs.topk(5)
        shown = steps.nth(at).locator('.option').all_inner_texts()
        assert [s.split()[0] for s in shown] == trained[1].convert_ids_to_tokens(top.indices.tolist())
        steps.nth(at).hover()
        shares = chat.locator('.asked span').evaluate_all(SHARES)
        assert shares == pytest.approx(look.tolist(), abs=1e-4)
    assert steps.first.locator('small').inner_text() == steps.first.locator('.option span').nth(1).inner_text() # greedy
    first = f'{100*out.logits[0, 0].softmax(-1).max():.1f}%'
    assert first in steps.first.inner_text() and first in steps.first.get_attribute('aria-label')

def test_arrow_keys_walk_over_the_tokens(person):
    chat = person.chat
    person.ask('浙江省的省会是哪里？')
    steps = chat.locator('.step')
    last = steps.count() - 1
    chat.get_by_role('textbox').press('Shift+Tab') # backwards out of the entry: one stop, not one a token
    expect(steps.first).to_be_focused()
    walk = (('ArrowRight', 1), ('ArrowRight', 2), ('ArrowLeft', 1), ('End', last), ('ArrowRight', last), ('Home', 0))
    for key, at in walk:
        chat.keyboard.press(key)
        expect(steps.nth(at)).to_be_focused()
    assert '看问题：' in chat.locator('.look').inner_text()
    assert re.search('候选：.*%；.*看问题：', steps.first.get_attribute('aria-label'))

def test_sliders_change_how_tokens_are_chosen(person):
    chat = person.chat
    temperature, top_p = person.role('slider', '温度'), person.role('slider', 'top-p')
    assert temperature.get_attribute('aria-valuetext') == '0（贪心）'
    temperature.fill('1')
    top_p.fill('0.05')
    expect(chat.locator('#temperature-value')).to_have_text('1.00')
    person.ask(QUESTIONS[0])
    greedy = answers(chat, QUESTIONS[:1])[0]
    assert chat.locator('.bot').inner_text() == greedy['text'] # only the most likely token is left
    assert chat.locator('.step').first.locator('.cut').count() == 4
    many = {a['text'] for a in answers(chat, QUESTIONS[:1]*12, temperature=2)}
    assert len(many) > 3
    same = answers(chat, QUESTIONS[:1]*2, temperature=2, seed=3)
    assert same[0] == same[1] == answers(chat, QUESTIONS[:1], temperature=2, seed=3)[0]

def test_what_is_typed_is_text_and_nothing_else(person):
    chat = person.chat
    hostile = ('<img src=x onerror="document.title=1">', '</p><script>document.title=1</script>', '${alert(1)}')
    for text in (*hostile, '"); //', '[EOS]'): person.ask(text)
    assert chat.locator('#log img, #log script').count() == 0 and chat.title() == '在网页里和 SCCLM 聊天'
    assert chat.locator('.user').nth(1).inner_text() == '</p><script>document.title=1</script>'

def test_odd_questions(person):
    chat = person.chat
    person.role('textbox', '问题').fill('  ')
    chat.keyboard.press('Enter')
    assert chat.locator('.exchange').count() == 0
    person.ask('靨是什么字？')
    expect(chat.locator('.note')).to_have_text('（我不认识这些字：靨。）')
    person.ask('靨'*512)
    expect(chat.locator('.wrong')).to_have_text('问题太长：513 个词元，最多 512 个。')
    person.ask('\u200b\u0301')
    expect(chat.locator('.wrong').last).to_have_text('问题是空的，请写一句话。')
    person.ask('靨'*511) # the longest that fits
    assert chat.locator('.bot').last.inner_text()
    assert answers(chat, ['好\ud83d'])[0]['failed'] == '问题里有半个字符，请重新输入。'

def longest_question(tok, n):
    "As many of the longest token as there are."
    token = max((t for t in tok.get_vocab() if not t.startswith('[')), key=lambda t: (len(t), t))
    assert [len(ids) for ids in encode([token*n], tok)] == [n + 1]
    return token*n

def test_a_long_paste_is_refused_at_once(person, trained):
    "Before it is split into tokens; what could fit is split, and told to the token."
    start = time.monotonic()
    assert answers(person.chat, ['浙江省的省会是哪里？'*3000])[0]['failed'] == '问题太长：30000 个字，最多 512 个词元。'
    assert answers(person.chat, [longest_question(trained[1], 512)])[0]['failed'] == '问题太长：513 个词元，最多 512 个。'
    assert time.monotonic() - start < 5, 'it took half a minute when every pair was looked up for every merge'

def test_stop_and_clear_while_a_long_question_is_read(person, trained):
    "The longest that fits takes seconds to read: `answer` is still empty."
    chat, longest = person.chat, longest_question(trained[1], 511)
    for button in ('停止', '清空'):
        person.ask(longest, wait=False)
        expect(chat.locator('.asked').last).to_be_attached(timeout=10_000)
        person.role('button', button).click()
        if button == '停止': expect(chat.locator('.bot').last).to_have_text('（已停止）', timeout=2000)
    person.ask('你好', wait=False)
    expect(chat.locator('.step').first).to_be_attached(timeout=4000)
    expect(chat.locator('.exchange')).to_have_count(1)

def test_a_question_of_several_lines(person, trained):
    "Shift+Enter and a paste keep the lines, as every other chat does; Enter sends."
    entry = person.role('textbox', '问题')
    entry.fill('第一行')
    person.chat.keyboard.press('Shift+Enter')
    person.chat.keyboard.insert_text('第二行')
    assert person.chat.locator('.exchange').count() == 0
    person.chat.keyboard.press('Enter')
    expect(person.chat.locator('.user')).to_have_text('第一行\n第二行', use_inner_text=True)
    ids = ChatBot(*trained).encode(['第一行\n第二行'])[0]
    assert person.chat.locator('.asked span').count() == len(ids)
    expect(entry).to_have_value('')

def test_stop_by_button_and_by_escape_then_go_on(toy_person, toy):
    chat = toy_person.chat
    bot = ChatBot.from_dir(toy/'model', decoding=Decoding(max_new_tok=60, loop_copies=0))
    toy_person.ask('你好', wait=False)
    expect(chat.locator('.step').nth(2)).to_be_attached(timeout=60_000)
    toy_person.role('button', '停止').click()
    expect(chat.locator('.bot').first).to_contain_text('（已停止）', timeout=60_000)
    written = chat.locator('.bot').first.inner_text()[:-5]
    assert written[:60] == bot.answer(['你好'])[0][:len(written)]
    expect(toy_person.role('button', '发送')).to_be_enabled()
    toy_person.ask('春天', wait=False)
    expect(chat.locator('.exchange').nth(1).locator('.step').nth(1)).to_be_attached(timeout=60_000)
    chat.keyboard.press('Escape')
    expect(chat.locator('.bot').nth(1)).to_contain_text('（已停止）', timeout=60_000)

def test_clear_during_an_answer(toy_person):
    chat = toy_person.chat
    toy_person.ask('你好', wait=False)
    expect(chat.locator('.step').nth(2)).to_be_attached(timeout=60_000)
    toy_person.role('button', '清空').click()
    assert chat.locator('.exchange').count() == 0
    expect(toy_person.role('textbox', '问题')).to_be_focused()
    toy_person.ask('春天', wait=False)
    expect(chat.locator('.exchange')).to_have_count(1)
    expect(chat.locator('.step').nth(2)).to_be_attached(timeout=60_000)
    chat.keyboard.press('Escape')
    expect(chat.locator('.bot')).to_contain_text('（已停止）', timeout=60_000)
    expect(chat.locator('.bot')).to_have_count(1)

def test_a_loop_ends_and_a_long_answer_says_so(browser, toy):
    "Guarded as in chapter 08, with the same limit."
    chat = opened(browser.new_page(), toy.joinpath('page', 'index.html').as_uri())
    bot = ChatBot.from_dir(toy/'model')
    asked = ['你好', '春天来了', '我是谁', '天地']
    got = answers(chat, asked)
    chat.close()
    assert [a['ids'] for a in got] == answered(bot, asked)

# ---- files

FILES = [*SCRIPTS[:-1], 'manifest.js', 'tables.js', 'weights.js']

def sentence(browser, url, **context):
    "What is read on a page without a chat."
    made = browser.new_context(**context)
    chat = made.new_page()
    chat.goto(url)
    status = chat.get_by_role('status')
    if context.get('java_script_enabled', True): expect(status).not_to_contain_text('正在打开', timeout=60_000)
    assert not chat.locator('#app').is_visible()
    text = status.inner_text()
    made.close()
    return text

@pytest.fixture
def copy(toy, tmp_path):
    "A page's folder to damage."
    return Path(shutil.copytree(toy/'page', tmp_path/'page'))

@pytest.mark.parametrize('name', FILES)
def test_a_missing_file_is_a_sentence(browser, copy, name):
    (copy/name).unlink()
    assert f'读不到 {name}。' in sentence(browser, copy.joinpath('index.html').as_uri())

@pytest.mark.parametrize('name', ['tables', 'weights'])
def test_files_of_two_exports_are_a_sentence(browser, copy, name):
    write_part(copy, name, read_part(copy, name), '0'*16)
    with served(copy) as url: assert f'{name}.js 和 manifest.js 不是同一次做的' in sentence(browser, url + '/index.html')

def test_damaged_weights_are_a_sentence(browser, copy):
    mark = read_part(copy, 'manifest')['fingerprint']
    write_part(copy, 'weights', read_part(copy, 'weights')[:-400], mark)
    assert re.search(r'weights.js: \d+ bytes, expected \d+', sentence(browser, copy.joinpath('index.html').as_uri()))
    (copy/'weights.js').write_text('scclmPart("weights", "AAAA', encoding='utf-8')
    assert 'weights.js 读到了，但内容不对。' in sentence(browser, copy.joinpath('index.html').as_uri())

def test_without_javascript_or_worker_there_is_a_sentence(browser, toy):
    url = toy.joinpath('page', 'index.html').as_uri()
    assert '允许这一页运行 JavaScript' in sentence(browser, url, java_script_enabled=False)
    for code in ('delete window.Worker', 'window.Worker = class { constructor() { throw 1 } }'):
        context = browser.new_context()
        context.add_init_script(code)
        chat = context.new_page()
        chat.goto(url)
        expect(chat.get_by_role('status')).to_contain_text('这里开不了 Web Worker')
        context.close()

def test_a_host_that_forbids_workers_gets_a_sentence(browser, toy):
    "The browser makes the worker and then refuses to run it."
    with served(toy/'page', {'Content-Security-Policy': "worker-src 'none'"}) as url:
        assert '这里开不了 Web Worker' in sentence(browser, f'{url}/index.html')

def test_old_scripts_with_new_weights_are_a_sentence(browser, copy):
    "Browsers keep files, one by one: index.html names the export it is of."
    index = copy/'index.html'
    mark = read_part(copy, 'manifest')['fingerprint']
    text = index.read_text(encoding='utf-8')
    assert text.count(f'?v={mark}"') == len(SCRIPTS) + 1
    index.write_text(text.replace(mark, '0'*16), encoding='utf-8')
    assert 'index.html 和 manifest.js 不是同一次做的' in sentence(browser, index.as_uri())

def test_a_folder_of_other_things_is_left_alone(toy, tmp_path):
    (tmp_path/'home').mkdir()
    (tmp_path/'home'/'letter.txt').write_text('dear')
    with pytest.raises(ValueError, match='home holds something that is no page: expected a new folder'):
        page(PageCfg(model=toy/'model', out=tmp_path/'home'))
    with pytest.raises(ValueError, match='letter.txt holds something that is no page'):
        page(PageCfg(model=toy/'model', out=tmp_path/'home'/'letter.txt'))
    assert (tmp_path/'home'/'letter.txt').read_text() == 'dear'
    (tmp_path/'empty').mkdir()
    assert page(PageCfg(model=toy/'model', out=tmp_path/'empty')).exists()

def test_weights_that_do_not_fit_are_refused():
    for kind, value in (('float16', 7e4), ('int8', torch.nan)):
        weights = dict(w=torch.full((4, 20), value))
        with pytest.raises(ValueError, match=f'w does not fit into {kind}'): pack(weights, kind)

def test_only_its_own_files_are_asked_for(browser, toy):
    context = browser.new_context()
    chat, asked, wrong = context.new_page(), [], []
    chat.on('request', lambda r: asked.append(r.url))
    chat.on('console', lambda m: wrong.append(m.text))
    chat.on('pageerror', lambda e: wrong.append(str(e)))
    with served(toy/'page') as url:
        opened(chat, f'{url}/index.html')
        Person(chat).ask('你好', wait=False)
        expect(chat.locator('.step').first).to_be_attached(timeout=60_000)
        assert asked and all(u.startswith((url, 'blob:' + url, 'data:')) for u in asked)
    context.close()
    assert not wrong
    text = ' '.join(p.read_text(encoding='utf-8') for p in (ROOT/'scclm'/'page').iterdir())
    assert re.findall(r'(?:https?:)?//[a-z][\w-]*\.\w+', text) == []

def test_the_folder_is_small_and_says_what_it_is(pages):
    for kind, folder in pages.items():
        manifest = read_part(folder, 'manifest')
        sizes = {p.name: p.stat().st_size for p in folder.iterdir() if p.name != 'manifest.js'}
        assert manifest['files'] == sizes and manifest['bytes'] == sum(sizes.values()) and manifest['kind'] == kind
    total = sum(p.stat().st_size for p in pages['int8'].iterdir())
    assert total <= 6_000_000
    assert read_part(pages['int8'], 'manifest')['fingerprint'] != read_part(pages['float16'], 'manifest')['fingerprint']
    assert page(PageCfg(out=pages['int8'])).parent == pages['int8'] # again: the same
    assert sum(p.stat().st_size for p in pages['int8'].iterdir()) == total

def test_what_cannot_be_written_leaves_the_old_page(toy, tmp_path):
    cfg = PageCfg(model=toy/'model', out=tmp_path/'page')
    page(cfg)
    before = {p.name: p.read_bytes() for p in (tmp_path/'page').iterdir()}
    with pytest.raises(ValueError, match=r'0\.\d MB: expected at most max_mb=0\.01'): page(replace(cfg, max_mb=.01))
    with pytest.raises(ValueError, match="weights='int4'"): page(replace(cfg, weights='int4'))
    with pytest.raises(FileNotFoundError): page(replace(cfg, model=tmp_path/'nothing'))
    assert {p.name: p.read_bytes() for p in (tmp_path/'page').iterdir()} == before

def test_parts_of_other_files_are_refused(toy, tmp_path):
    with pytest.raises(FileNotFoundError, match='`scclm page` first'): read_part(tmp_path, 'manifest')
    (tmp_path/'manifest.js').write_text('scclmPart("weights","",0);')
    with pytest.raises(ValueError, match=r'expected scclmPart\("manifest",'): read_part(tmp_path, 'manifest')

# ---- in the site

def embed():
    "The block of the notebook that shows the page."
    cells = json.loads((ROOT/'nbs'/'appendix'/'page_chat.ipynb').read_text(encoding='utf-8'))['cells']
    texts = [''.join(c['source']) for c in cells if c['cell_type'] == 'markdown']
    return re.search(r'<div id="scclm-chat">.*?</script>', next(t for t in texts if 'id="scclm-chat"' in t), re.S)[0]

@pytest.mark.parametrize('there', [True, False])
def test_the_site_shows_the_page_or_a_sentence(browser, toy, tmp_path, there):
    at = tmp_path/'nbs'/'appendix'/'page_chat.html'
    at.parent.mkdir(parents=True)
    at.write_text(f'<!doctype html><meta charset="utf-8"><body>{embed()}', encoding='utf-8')
    if there: shutil.copytree(toy/'page', tmp_path/'runs'/'tiny'/'page')
    for made in ('served', 'disk'):
        context = browser.new_context()
        chat = context.new_page()
        with served(tmp_path) as url:
            chat.goto(f'{url}/nbs/appendix/page_chat.html' if made == 'served' else at.as_uri())
            if there: expect(chat.frame_locator('iframe').locator('#app')).to_be_visible(timeout=60_000)
            chat.wait_for_timeout(200)
            expect(chat.locator('iframe')).to_have_count(int(there))
            if not there: expect(chat.locator('#scclm-chat')).to_contain_text('scclm page')
        context.close()
