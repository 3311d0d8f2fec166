"One meaning of a text: special names are text everywhere; rows that are too long; broken models; sentences that help."
import ast
import json
import os
import re
import shutil
import threading
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from chat_toys import SPECIALS, char_tok, toy_model
from raw_toys import put_pairs
from safetensors.torch import load_file, save_file

from scclm.adapters import MergeCfg, merge, weights_key
from scclm.chat import ChatBot, Decoding
from scclm.data_cleaning import clean_cfg
from scclm.dataset import (TOO_LONG, LongRows, PairStream, encode, encode_pairs, hf_dataset, length_index, long_rows,
    read_pairs)
from scclm.dpo import DpoCfg, add_lora, dpo_cfg, finish_dpo
from scclm.evaluation import EvaluateCfg, evaluate, score_rows
from scclm.ie_finetune import extract, ie_cfg, mix_in
from scclm.model import first_not_finite, load_model, save_model
from scclm.pref_files import Pref
from scclm.pref_stream import encode_prefs, fit_prefs
from scclm.pretrain import pretrain_cfg
from scclm.runlog import read_log
from scclm.runs import STAGES, read_json
from scclm.scores import bits_per_char, greedy_answers, pair_eval
from scclm.sft import length_filter, say_left_out, sft, sft_cfg
from scclm.stage import long_figures, read_samples, say_long, stage_stream
from scclm.terminal import ChatCfg, chat_terminal, pick_device
from scclm.trainer import (TrainCfg, fit, load_weights, named_weights, newest_good, save_weights,
    write_manifest)
from scclm.triple_files import ie_prompt

pytestmark = pytest.mark.usefixtures('one_thread')
ROOT = Path(__file__).resolve().parents[1]
HAN = ''.join(map(chr, range(0x4e00, 0x4e40)))
put = partial(put_pairs, size=4)
CHARS = HAN + ''.join(sorted(set(''.join(SPECIALS) + ''.join(SPECIALS).lower()))) + '，。？：请抽取出给定句子中的所有三元组'

@pytest.fixture
def tok(): return char_tok(CHARS)

@pytest.fixture
def bot(tok): return ChatBot(toy_model(len(tok), seed=1, spread=.5), tok, Decoding(max_new_tok=5))

def own_ids(tok, text):
    "Ids by hand: one token a character, then the end mark."
    vocab = json.loads(tok.backend_tokenizer.to_str())['model']['vocab']
    return [*(vocab[c] for c in text), 1]

# Names of special tokens are text, for everyone who reads a text

def heard(model, ask):
    "The prompts, without padding, that the encoder reads while `ask` runs."
    seen = []
    def note(module, args, kwargs):
        ids = kwargs.get('input_ids', args[0] if args else None)
        mask = kwargs['attention_mask']
        seen.extend([i for i, real in zip(row, keep) if real] for row, keep in zip(ids.tolist(), mask.tolist()))
    hook = model.get_encoder().register_forward_pre_hook(note, with_kwargs=True)
    try: ask()
    finally: hook.remove()
    return seen

def by_answer(bot, text): bot.answer([text])
def by_beam(bot, text): bot.answer([text], Decoding('beam', 4, num_beams=2))
def by_stream(bot, text): list(bot.stream(text))
def by_greedy(bot, text): greedy_answers(bot.model, bot.tok, [text], 4)
def by_scores(bot, text): score_rows(bot.model, bot.tok, [(text, text)], EvaluateCfg(max_new_tok=4))
def by_loss(bot, text): pair_eval([(text, text)], bot.tok, n_bleu=0)(bot.model)

@pytest.mark.parametrize('way', [by_answer, by_beam, by_stream, by_greedy, by_scores, by_loss])
@pytest.mark.parametrize('name', SPECIALS)
def test_everyone_reads_a_special_name_as_its_characters(bot, way, name):
    text = f'{HAN[:2]}{name}{HAN[5]}'
    said = heard(bot.model, lambda: way(bot, text))
    assert said and all(ids[:len(text) + 1] == own_ids(bot.tok, text) for ids in said), said

@pytest.mark.parametrize('name', SPECIALS)
def test_extraction_and_training_read_it_so_too(bot, name, tmp_path):
    text = f'{HAN[:2]}{name}{HAN[5]}'
    prompt = ie_prompt(text)
    assert heard(bot.model, lambda: extract(bot.model, bot.tok, [text], max_new_tok=4)) == [own_ids(bot.tok, prompt)]
    stream = PairStream(put(tmp_path/'a.parquet', [text], [text]), bot.tok, index_dir=tmp_path, n_epochs=1)
    batch, = stream
    assert batch['input_ids'].tolist() == batch['labels'].tolist() == [own_ids(bot.tok, text)]
    pref = Pref('reward', 'f', 1, text, text, text, False)
    assert [ids.tolist() for ids in encode_prefs([pref], bot.tok, 64)[0]] == [own_ids(bot.tok, text)] * 3

def test_a_chat_leaves_the_tokenizer_as_it_was(bot):
    text, before = '天[EOS]'.replace('天', HAN[0]), bot.tok.backend_tokenizer.to_str()
    first = encode([text], bot.tok)
    bot.answer([text])
    list(bot.stream(text))
    assert encode([text], bot.tok) == first == [own_ids(bot.tok, text)]
    assert bot.tok.backend_tokenizer.to_str() == before and bot.tok(text).input_ids[-1] == 1

def test_a_thread_that_truncates_changes_no_answer(bot):
    texts = [HAN[i:i + 3 + i % 9] + '[EOS]' for i in range(40)]
    wanted = bot.answer(texts), greedy_answers(bot.model, bot.tok, texts, 5)
    stop = threading.Event()
    def disturb():
        n = 1
        while not stop.is_set():
            bot.tok(texts, truncation=True, padding=True, max_length=n, split_special_tokens=n % 2 == 0)
            n = n % 7 + 1
    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(8):
            assert (bot.answer(texts), greedy_answers(bot.model, bot.tok, texts, 5)) == wanted
            assert [''.join(bot.stream(t)) for t in texts[:5]] == wanted[0][:5]
    finally:
        stop.set()
        thread.join()

# Rows that are longer than max_len

TEXTS = [(HAN[:p], HAN[-r:]) for p in (1, 6, 7, 8, 15) for r in (1, 6, 7, 8, 15)]
LIMIT = 8 # tokens: seven characters and the end mark fit

def treated(tok, prompt, response, how):
    "By hand: what training shall see of a row, or None."
    p, r = own_ids(tok, prompt), own_ids(tok, response)
    if how == 'drop' and max(len(p), len(r)) > LIMIT: return None
    short = p if len(p) <= LIMIT else [*p[:LIMIT - 1], 1]
    if len(r) <= LIMIT: return short, r
    return short, [*r[:LIMIT - 1], 1] if how == 'close' else r[:LIMIT]

def wanted_rows(tok, how):
    rows = (treated(tok, p, r, how) for p, r in TEXTS)
    return [row for row in rows if row]

@pytest.mark.parametrize('how', TOO_LONG)
def test_encode_pairs_does_what_it_is_told(tok, how):
    assert [tuple(p) for p in encode_pairs(*map(list, zip(*TEXTS)), tok, LIMIT, how)] == wanted_rows(tok, how)

@pytest.mark.parametrize('how', TOO_LONG)
@pytest.mark.parametrize('window', [1, 9, 1000])
def test_a_stream_gives_every_row_as_told_in_every_epoch(tok, tmp_path, how, window):
    path = put(tmp_path/'a.parquet', *map(list, zip(*TEXTS)), size=3)
    stream = PairStream(path, tok, budget_tok=60, max_len=LIMIT, window=window, index_dir=tmp_path, n_epochs=3,
                        too_long=how)
    got, batches = [], 0
    for batch in stream:
        for ids, keep, labels in zip(*(batch[k].tolist() for k in ('input_ids', 'attention_mask', 'labels'))):
            got.append(([i for i, real in zip(ids, keep) if real], [i for i in labels if i != -100]))
        batches += 1
    assert sorted(got) == sorted(wanted_rows(tok, how) * 3)
    assert batches == sum(map(stream.n_batches, range(3)))
    assert stream.long == LongRows(25, 10, 10, 16)

@pytest.mark.parametrize('how', TOO_LONG)
def test_a_stream_resumes_at_every_batch(tok, tmp_path, how):
    path = put(tmp_path/'a.parquet', *map(list, zip(*TEXTS)), size=3)
    def new():
        return PairStream(path, tok, budget_tok=60, max_len=LIMIT, window=4, index_dir=tmp_path, n_epochs=2,
                          too_long=how)
    stream, states = new(), []
    states.append(json.dumps(stream.state_dict()))
    whole = []
    for batch in stream:
        whole.append(batch['labels'].tolist())
        states.append(json.dumps(stream.state_dict()))
    for i, state in enumerate(states[:-1]):
        again = new()
        again.load_state_dict(json.loads(state))
        assert [b['labels'].tolist() for b in again] == whole[i:], i

def test_a_state_speaks_of_long_rows_only_where_there_are_some(tok, tmp_path):
    path = put(tmp_path/'a.parquet', *map(list, zip(*TEXTS)))
    def state(how, max_len): return PairStream(path, tok, max_len=max_len, index_dir=tmp_path, too_long=how)
    assert {how: state(how, 99).own for how in TOO_LONG} == {how: state('close', 99).own for how in TOO_LONG}
    for how in TOO_LONG: state(how, 99).load_state_dict(state('close', 99).state_dict()) # an old state goes on
    assert 'too_long' not in state('close', LIMIT).state_dict()
    for old in TOO_LONG:
        for new in TOO_LONG:
            saved = state(old, LIMIT).state_dict()
            if old == new:
                state(new, LIMIT).load_state_dict(saved)
                continue
            words = f"saved with too_long='{old}', but this stream has too_long='{new}'"
            with pytest.raises(ValueError, match=words): state(new, LIMIT).load_state_dict(saved)

def test_dials_and_files_that_leave_nothing_are_named(tok, tmp_path):
    path = put(tmp_path/'a.parquet', [HAN] * 3, [HAN] * 3)
    with pytest.raises(ValueError, match=r'no row of .*a\.parquet fits into max_len=8 tokens: expected a larger'):
        PairStream(path, tok, max_len=LIMIT, index_dir=tmp_path, too_long='drop')
    with pytest.raises(ValueError, match='too_long=shorten must be one of cut, drop, close'):
        PairStream(path, tok, max_len=LIMIT, index_dir=tmp_path, too_long='shorten')
    with pytest.raises(ValueError, match="too_long='shorten': expected one of cut"): DpoCfg(too_long='shorten')

@pytest.mark.parametrize('seed', range(5))
def test_long_rows_are_counted_from_the_lengths(seed):
    rng = np.random.default_rng(seed)
    files = [rng.integers(0, 40, (n, 2)).astype(np.uint16) for n in (7, 1, 30)]
    rows = [(p + 1, r + 1) for f in files for p, r in f.tolist()]
    for limit in (2, 17, 40, 41):
        wanted = (len(rows), sum(p > limit for p, _ in rows), sum(r > limit for _, r in rows),
                  sum(max(row) > limit for row in rows))
        assert long_rows(files, limit) == wanted, f'seed {seed}'

@pytest.mark.parametrize('how', TOO_LONG)
def test_the_other_trainer_sees_the_same_rows(tok, tmp_path, how):
    path = put(tmp_path/'a.parquet', *map(list, zip(*TEXTS)))
    data = hf_dataset(path, tok, LIMIT, tmp_path/'hf', how)
    assert [(o['input_ids'], o['labels']) for o in data] == wanted_rows(tok, how)

@pytest.mark.parametrize('how', TOO_LONG)
def test_preference_pairs_are_cut_or_leave(tok, how):
    rows = [Pref('reward', 'f', i, p, r, r[::-1], False) for i, (p, r) in enumerate(TEXTS)]
    prefs, _, long = fit_prefs(rows, tok, LIMIT, how)
    assert long == LongRows(25, 10, 10, 16) and len(prefs) == (9 if how == 'drop' else 25)
    for pref, ids in zip(prefs, encode_prefs(prefs, tok, LIMIT, how)):
        assert (ids.prompt.tolist(), ids.chosen.tolist()) == treated(tok, pref.prompt, pref.chosen, how)
        assert (ids.prompt.tolist(), ids.rejected.tolist()) == treated(tok, pref.prompt, pref.rejected, how)

def test_a_cut_answer_is_scored_as_it_is_trained(tok):
    "Loss and bits per character of the pieces, by the library's own loss."
    model, nats, tokens, chars = toy_model(len(tok), seed=3, spread=.3), 0., 0, 0
    for prompt, response in TEXTS:
        p, r = treated(tok, prompt, response, 'cut')
        with torch.no_grad(): loss = model(input_ids=torch.tensor([p]), labels=torch.tensor([r])).loss.item()
        nats += loss * len(r)
        tokens += len(r)
        chars += len(r) # one token a character, and the end where there is one
    assert pair_eval(TEXTS, tok, LIMIT, 0, 'cut')(model)['loss_valid'] == pytest.approx(nats / tokens, rel=1e-5)
    assert bits_per_char(model, tok, TEXTS, LIMIT, 'cut') == pytest.approx(nats / chars / np.log(2), rel=1e-5)

@dataclass(frozen=True)
class Cfg(TrainCfg):
    "A small stage."
    steps:int=2
    precision:str='fp32'
    budget_tok:int=120
    max_len:int=LIMIT
    window:int=64
    too_long:str='cut'

def test_a_stage_says_how_many_rows_are_too_long(tok, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path))
    path = put(tmp_path/'a.parquet', *map(list, zip(*TEXTS)))
    stream = stage_stream([path], tok, Cfg())
    said = '16 of 25 rows are longer than max_len=8 tokens (prompt 10, answer 10): too_long=cut, a longer answer is cut'
    assert said in capsys.readouterr().out
    figures = long_figures(stream.long, 8, 'cut')
    assert figures == dict(too_long=dict(how='cut', max_len=8, rows=25, prompt=10, response=10, either=16))
    stage_stream([path], tok, replace(Cfg(), max_len=99))
    say_long(LongRows(5, 0, 0, 0), 8, 'drop')
    assert capsys.readouterr().out == ''

def forget_too_long(ckpt):
    "Make a checkpoint what a version without the field would have left."
    state = json.loads((ckpt/'state.json').read_text())
    assert state['cfg'].pop('too_long') == 'close' and 'too_long' not in state['pos']
    (ckpt/'state.json').write_text(json.dumps(state))
    (ckpt/'manifest.json').unlink()
    write_manifest(ckpt)

@pytest.mark.parametrize('max_len', [99, LIMIT])
def test_an_older_run_goes_on_where_nothing_is_cut_and_is_asked_where_something_is(tok, tmp_path, monkeypatch, max_len):
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path))
    path, out = put(tmp_path/'a.parquet', *map(list, zip(*TEXTS))), tmp_path/'run'
    def train(how):
        cfg = replace(Cfg(), max_len=max_len, too_long=how)
        return fit(toy_model(len(tok)), stage_stream([path], tok, cfg), cfg, out, progress=False)
    train('close')
    forget_too_long(newest_good(out))
    assert train('close').began == 2
    if max_len == 99: assert train('cut').began == 2
    else:
        with pytest.raises(ValueError, match="saved with too_long='close'"): train('cut')

@pytest.mark.parametrize('scale, real', [
    ('tiny', True), ('small', False), ('small', True), ('mini', False), ('mini', True),
    ('base', False), ('base', True)])
def test_limits_agree(scale, real, monkeypatch):
    """A token is a character or more, and an end mark follows: what is one longer than the characters cuts nothing.
    At tiny the limits are those of the shipped sample, which is measured where it is cleaned."""
    monkeypatch.delenv('SCCLM_RAW', raising=False)
    if real: monkeypatch.setenv('SCCLM_RAW', 'somewhere')
    clean = clean_cfg(scale)
    longest = max(clean.max_prompt, clean.max_response, clean.wiki_chars)
    stages = [pretrain_cfg(scale), sft_cfg(scale), dpo_cfg(scale), dpo_cfg(scale, lora=True), ie_cfg(scale)]
    assert {cfg.too_long for cfg in stages} == {'cut'}
    for cfg in stages:
        assert cfg.max_len > longest, cfg
        if hasattr(cfg, 'max_char'): assert cfg.max_char >= longest and cfg.max_len > cfg.max_char, cfg

# Weights that are not finite

@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('name', ['shared.weight', 'decoder.block.1.layer.1.EncDecAttention.k.weight'])
def test_a_broken_model_is_refused_with_the_tensors_name(tok, tmp_path, value, name):
    model = toy_model(len(tok))
    save_model(model, tok, tmp_path/'good')
    assert first_not_finite(load_model(tmp_path/'good')[0].named_parameters()) is None
    dict(model.named_parameters())[name].data.view(-1)[-1] = value
    save_model(model, tok, tmp_path/'bad')
    words = rf'bad: tensor {re.escape(name)} holds numbers that are not finite'
    chat = ChatCfg(model=str(tmp_path/'bad'))
    pairs = put(tmp_path/'pairs.parquet', ['一'], ['丁'])
    score = EvaluateCfg(model=str(tmp_path/'bad'), data=(str(pairs),), out=str(tmp_path/'eval'))
    tune = replace(sft_cfg('tiny'), base=str(tmp_path/'bad'), files=(str(pairs),), out=str(tmp_path/'sft'))
    for use in (lambda: load_model(tmp_path/'bad'), lambda: load_model(tmp_path/'bad', foreign=True),
                lambda: chat_terminal(chat), lambda: evaluate(score), lambda: sft(tune, progress=False)):
        with pytest.raises(ValueError, match=words): use()
    save_weights(named_weights(model), tmp_path/'best.safetensors')
    with pytest.raises(ValueError, match=rf'best.safetensors: tensor {re.escape(name)} holds numbers'):
        load_weights(toy_model(len(tok)), tmp_path/'best.safetensors')

def test_finite_numbers_with_an_endless_sum_are_no_fault():
    large = torch.full((10,), 3e38)
    assert first_not_finite([('a', large), ('b', torch.tensor([1, 2])), ('c', torch.zeros(0))]) is None
    assert first_not_finite([('a', large), ('b', torch.tensor([float('inf'), -float('inf')]))]) == 'b'

def test_numbers_too_large_for_the_dtype_are_refused(tok, tmp_path):
    model = toy_model(len(tok))
    model.shared.weight.data[3, 0] = 1e5 # half precision ends at 65504
    save_model(model, tok, tmp_path/'m')
    load_model(tmp_path/'m', torch.bfloat16)
    with pytest.raises(ValueError, match='shared.weight holds numbers that are not finite as float16'):
        load_model(tmp_path/'m', torch.float16)

# Adapters and their models

@pytest.fixture
def adapter(tok, tmp_path, monkeypatch):
    "A scale with a fine-tuned model and an adapter of it, as `dpo` leaves them."
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path/'runs'))
    monkeypatch.delenv('SCCLM_SCALE', raising=False)
    tiny = tmp_path/'runs'/'tiny'
    save_model(toy_model(len(tok), seed=1), tok, tiny/'sft'/'model')
    model = add_lora(load_model(tiny/'sft'/'model')[0], DpoCfg(lora_r=4))
    for name, p in model.named_parameters():
        if 'lora_' in name: p.data.normal_(generator=torch.Generator().manual_seed(0))
    acc = SimpleNamespace(is_main_process=True, unwrap_model=lambda m: m)
    run = SimpleNamespace(model=model, acc=acc, cfg=DpoCfg(lora_r=4), out=tiny/'dpo_lora', done=True)
    finish_dpo(run, tok, {})
    return tiny/'dpo_lora'/'adapter'

def merged_weights(**kw): return load_model(merge(MergeCfg(**kw)))[0].state_dict()

def same(a, b): return all(torch.equal(a[k], b[k]) for k in a.keys() | b.keys())

def test_an_adapter_knows_its_weights(adapter):
    note = read_json(adapter/'base.json')
    base, _ = load_model(adapter.parent.parent/'sft'/'model')
    assert note == dict(weights=weights_key(base), base='../../sft/model')
    other = add_lora(load_model(adapter.parent.parent/'sft'/'model')[0], DpoCfg(lora_r=2))
    assert weights_key(other) == note['weights'], 'the adapter itself does not count'
    base.shared.weight.data[0, 0] += 1e-6
    assert weights_key(base) != note['weights']

def test_merge_refuses_other_weights(adapter, tok, tmp_path):
    good = merged_weights()
    save_model(toy_model(len(tok), seed=2), tok, tmp_path/'other')
    words = 'belongs to other weights than those in .*other: name its model with --base'
    with pytest.raises(ValueError, match=words): merge(MergeCfg(base=str(tmp_path/'other')))
    shutil.move(adapter.parent.parent/'sft'/'model', tmp_path/'kept')
    save_model(toy_model(len(tok), seed=2), tok, adapter.parent.parent/'sft'/'model') # fine-tuned again
    with pytest.raises(ValueError, match='belongs to other weights'): merge()
    assert same(merged_weights(base=str(tmp_path/'kept'), out=str(tmp_path/'again')), good)

def test_merge_finds_the_model_of_a_moved_runs_folder(adapter, tmp_path, monkeypatch, tok):
    good = merged_weights()
    shutil.move(tmp_path/'runs', tmp_path/'elsewhere')
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path/'elsewhere'))
    assert same(merged_weights(), good)
    save_model(toy_model(len(tok), seed=5), tok, tmp_path/'runs'/'tiny'/'sft'/'model') # a new course at the old place
    assert same(merged_weights(), good)

def test_a_model_that_is_nowhere_is_looked_for_aloud(adapter):
    shutil.rmtree(adapter.parent.parent/'sft')
    with pytest.raises(FileNotFoundError, match='looked in .*sft.model; name it with --base'): merge()

def test_an_older_adapter_still_merges_and_says_so(adapter, capsys, tmp_path, monkeypatch):
    good = merged_weights()
    (adapter/'base.json').unlink()
    assert same(merged_weights(), good)
    assert 'does not say which weights it belongs to: taking' in capsys.readouterr().out
    shutil.move(tmp_path/'runs', tmp_path/'elsewhere')
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path/'elsewhere'))
    assert same(merged_weights(), good)

def change_json(path, **kw): path.write_text(json.dumps(json.loads(path.read_text()) | kw))
def cut_file(a): os.truncate(a/'adapter_model.safetensors', 1000)
def empty_file(a): (a/'adapter_model.safetensors').write_bytes(b'')
def no_file(a): (a/'adapter_model.safetensors').unlink()
def no_json(a): (a/'adapter_config.json').write_text('{"r": 4')
def other_rank(a): change_json(a/'adapter_config.json', r=8)
def other_layers(a): change_json(a/'adapter_config.json', target_modules=['nothing'])
def fewer_layers(a): change_json(a/'adapter_config.json', target_modules=['q'])
def other_kind(a): change_json(a/'adapter_config.json', peft_type='MAGIC')
def list_json(a): (a/'adapter_config.json').write_text('[]')
def lost_tensor(a):
    saved = load_file(a/'adapter_model.safetensors')
    save_file(dict(list(saved.items())[1:]), a/'adapter_model.safetensors')
def nan_tensor(a):
    saved = load_file(a/'adapter_model.safetensors')
    saved[min(saved)][0, 0] = float('nan')
    save_file(saved, a/'adapter_model.safetensors')

@pytest.mark.parametrize('harm, words', [
    (cut_file, 'adapter_model.safetensors is not a readable safetensors file'),
    (empty_file, 'adapter_model.safetensors is not a readable safetensors file'),
    (no_file, 'adapter_model.safetensors is missing'),
    (no_json, 'adapter_config.json, line 1'), (list_json, 'adapter_config.json: holds a list'),
    (other_rank, r'has shape \(4, 32\), expected \(8, 32\)'),
    (other_layers, 'adapter_config.json does not describe an adapter'),
    (other_kind, 'adapter_config.json does not describe an adapter'),
    (fewer_layers, 'expected None'), (lost_tensor, 'has shape None, expected'),
    (nan_tensor, 'holds numbers that are not finite')], ids=lambda x: getattr(x, '__name__', ''))
def test_a_broken_adapter_is_one_sentence(adapter, harm, words):
    harm(adapter)
    with pytest.raises((ValueError, FileNotFoundError), match=words) as e: merge()
    assert '\n' not in str(e.value)
    assert not (adapter.parent/'model').exists()

# One sentence

@pytest.mark.parametrize('name', ['cuda', 'cuda:99', 'mps', 'gpu', '', 'meta'])
def test_a_device_that_is_not_there(name):
    if name == 'cuda' and torch.cuda.is_available() or name == 'mps' and torch.backends.mps.is_available():
        assert pick_device(name) == name
        return
    with pytest.raises(ValueError, match=f'device={name!r} cannot be used on this machine: expected auto'):
        pick_device(name)

def test_devices_that_are_there():
    assert pick_device('cpu') == 'cpu' and torch.ones(1, device=pick_device()).item() == 1

def test_pairs_that_cannot_be_read_are_named(tmp_path, tok):
    pq.write_table(pa.table(dict(question=['天'], response=['地'])), tmp_path/'other.parquet')
    (tmp_path/'text.parquet').write_text('prompt,response\n' * 9)
    put(tmp_path/'null.parquet', ['天', '地', None], ['玄', '黄', '宇'])
    put(tmp_path/'empty.parquet', pa.array([], 'string'), pa.array([], 'string'))
    for name, words in dict(other="no column 'prompt'", text='not a parquet', gone='is missing',
                            null="row 2, column 'prompt' is None: expected text").items():
        path = tmp_path/f'{name}.parquet'
        for read in (read_pairs, lambda p: mix_in([('a', 'b')], .5, [p])):
            with pytest.raises((ValueError, FileNotFoundError), match=f'{name}.parquet.*{words}') as e: read(path)
            assert '\n' not in str(e.value)
    assert read_pairs(tmp_path/'null.parquet', 2) == [('天', '玄'), ('地', '黄')]
    assert read_pairs(str(tmp_path/'empty.parquet')) == []

def test_files_of_fine_tuning(tmp_path, capsys):
    pq.write_table(pa.table(dict(question=['天'], response=['地'])), tmp_path/'other.parquet')
    with pytest.raises(ValueError, match="other.parquet: no column 'prompt'"):
        length_filter([tmp_path/'other.parquet'], 9, tmp_path/'out.parquet')
    with pytest.raises(FileNotFoundError, match='gone.parquet is missing'):
        length_filter([tmp_path/'gone.parquet'], 9, tmp_path/'out.parquet')
    path = put(tmp_path/'a.parquet', ['天', None, None, '地', '玄' * 10], ['天', '地', None, None, '黄'], size=2)
    n = length_filter([path], 9, tmp_path/'out.parquet')
    assert n == dict(rows=5, kept=1, null=3) and read_pairs(tmp_path/'out.parquet') == [('天', '天')]
    say_left_out(n, 9)
    said = '4 of 5 rows are left out: 3 with a null cell, 1 longer than max_char=9 characters'
    assert capsys.readouterr().out.strip() == said
    say_left_out(dict(rows=5, kept=5), 9)
    assert capsys.readouterr().out == ''
    nothing = put(tmp_path/'nothing.parquet', pa.array([None], 'string'), pa.array(['天'], 'string'))
    with pytest.raises(ValueError, match='no row of .*nothing.parquet'):
        length_filter([nothing], 9, tmp_path/'o.parquet')

BREAKS = ['\u2028', '\u2029', '\x85', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\r', '\r\n']

@pytest.mark.parametrize('mark', BREAKS, ids=ascii)
def test_samples_and_logs_with_every_line_break(tmp_path, mark):
    answers = {f'问{mark}题': f'天{mark}地'}
    lines = [json.dumps(dict(step=s, answers=answers), ensure_ascii=False) for s in (1, 2)]
    (tmp_path/'samples.jsonl').write_bytes('\n'.join([*lines, '{"step": 3, "ans']).encode())
    assert read_samples(tmp_path/'samples.jsonl') == {1: answers, 2: answers}
    assert [e['answers'] for e in read_log(tmp_path/'samples.jsonl')] == [answers] * 2

def test_a_line_that_a_crash_cut_short_costs_only_itself(tmp_path):
    (tmp_path/'s.jsonl').write_text('{"step": 1, "answers": {}}\n{"step": 2, "an{"step": 2, "answers": {}}\n'
                                    '{"step": 3, "answers": {}}\n')
    assert read_samples(tmp_path/'s.jsonl') == {1: {}, 3: {}}

def test_no_json_lines_are_split_at_other_breaks():
    "`str.splitlines` knows ten line ends; JSON Lines know one."
    for path in sorted((ROOT/'scclm').glob('*.py')):
        source = path.read_text(encoding='utf-8')
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, (ast.For, ast.comprehension)): continue
            part = ast.get_source_segment(source, node.iter) or ''
            assert not re.search(r'read_text\(.*splitlines', part), f'{path.name}: {part}'

def test_a_damaged_index_is_built_again(tok, tmp_path):
    path = put(tmp_path/'a.parquet', *map(list, zip(*TEXTS)))
    wanted = np.array(length_index(path, tok, tmp_path/'idx')[0])
    index, = (tmp_path/'idx').iterdir()
    for damage in (b'', b'no index', index.read_bytes()[:-9], index.read_bytes()[:200] + b'\xff' * 40):
        index.write_bytes(damage)
        assert np.array_equal(PairStream(path, tok, index_dir=tmp_path/'idx').planner.lens[0], wanted)

# Sentences name what exists

def test_the_newest_checkpoint_is_the_newest(tok, tmp_path):
    cfg = TrainCfg(steps=4, save_every=2, precision='fp32')
    path = put(tmp_path/'a.parquet', *map(list, zip(*TEXTS)))
    stream = PairStream(path, tok, budget_tok=120, index_dir=tmp_path)
    fit(toy_model(len(tok)), stream, cfg, tmp_path/'run', progress=False)
    for step in (2, 4): (tmp_path/'run'/'checkpoints'/f'step-{step:08d}'/'optim.pt').unlink()
    with pytest.raises(RuntimeError) as e: newest_good(tmp_path/'run')
    said = str(e.value)
    assert re.search(r'the newest: \S*step-00000004\S*optim.pt is missing', said) and 'step-00000002' not in said
    assert f"start over: delete {tmp_path/'run'/'checkpoints'}, or give another --out" in said
    shutil.rmtree(tmp_path/'run'/'checkpoints') # what the sentence says works
    assert fit(toy_model(len(tok)), stream, cfg, tmp_path/'run', progress=False).done

def test_another_configuration_says_what_to_delete(tok, tmp_path):
    cfg = TrainCfg(steps=2, precision='fp32')
    path = put(tmp_path/'a.parquet', *map(list, zip(*TEXTS)))
    def train(cfg):
        stream = PairStream(path, tok, budget_tok=120, index_dir=tmp_path)
        return fit(toy_model(len(tok)), stream, cfg, tmp_path/'run', progress=False)
    train(cfg)
    words = re.escape(f"delete {tmp_path/'run'/'checkpoints'}, or give another --out")
    with pytest.raises(ValueError, match='lr was 0.001, is 0.1.*' + words): train(replace(cfg, lr=.1))

def said_by(module):
    "Every piece of text in the error sentences and prints of a module; functions that sentences call count too."
    tree = ast.parse((ROOT/'scclm'/f'{module}.py').read_text(encoding='utf-8'))
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Raise)]
    nodes += [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, 'id', '') == 'print']
    called = {c.func.id for n in nodes for c in ast.walk(n) if isinstance(c, ast.Call) and isinstance(c.func, ast.Name)}
    nodes += [r for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and f.name in called
              for r in ast.walk(f) if isinstance(r, ast.Return)]
    return [c.value for n in nodes for c in ast.walk(n) if isinstance(c, ast.Constant) and isinstance(c.value, str)]

MODULES = sorted(p.stem for p in (ROOT/'scclm').glob('*.py') if not p.stem.startswith('_'))
FOREIGN = {'json', 'help', 'head'} # WikiExtractor's; every command's; Ray's

def options(stage):
    "Fields of what a stage's command line takes."
    return {f.name for f in fields(getattr(import_module(f'scclm.{stage.module}'), stage.preset)())}

@pytest.mark.parametrize('module', MODULES)
def test_options_in_error_sentences_exist(module):
    named = {o for text in said_by(module) for o in re.findall(r'(?<![\w-])--([a-z][a-z-]*)', text)} - FOREIGN
    stages = [s for s in STAGES.values() if s.module == module]
    if not stages: # shared by the stages that train
        known = set.intersection(*(options(s) for s in STAGES.values() if s.folders))
    else: known = set.union(*map(options, stages))
    assert {o.replace('-', '_') for o in named} <= known, module

@pytest.mark.parametrize('module', MODULES)
def test_commands_and_files_in_error_sentences_exist(module):
    makefile = (ROOT/'Makefile').read_text(encoding='utf-8')
    for text in said_by(module):
        for stage in re.findall(r'`scclm ([a-z]\w*)', text): assert stage in STAGES, text
        for target in re.findall(r'`make ([a-z]\w*)', text): assert f'\n{target}:' in makefile, text
        for file in re.findall(r'\b((?:nbs|configs|benchmarks)/[\w/]+\.\w+)', text): assert (ROOT/file).exists(), text
        assert 'resume=False' not in text or 'in a notebook' in text, text
