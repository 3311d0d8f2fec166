"Pieces of the training stages, called directly: freezing, length filter, the other trainer, floors, the ending."
import json
import math
import random
from collections import Counter
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from chat_toys import CHARS, SPECIALS, said_alone, toy_model
from raw_toys import put_pairs

from scclm import pretrain as pretraining
from scclm import sft as fine_tuning
from scclm.dataset import read_pairs
from scclm.model import build_model, load_model, model_config, save_model
from scclm.pretrain import CharBigram, baseline_bits, hf_fit, one_table_, pretrain_cfg, rows_per_batch
from scclm.runlog import read_log
from scclm.runs import read_json
from scclm.sft import freeze, length_filter, sft_cfg
from scclm.stage import (Watch, finish_stage, heldout_eval, heldout_sample, last_eval, read_samples, run_costs,
    stage_eval, stage_figures, stage_stream, watch_callbacks)
from scclm.tokenizer import bpe_tokenizer, save_tokenizer, wrap_tokenizer
from scclm.trainer import TrainCfg, fit

pytestmark = pytest.mark.usefixtures('one_thread')

@dataclass(frozen=True)
class Cfg(TrainCfg):
    "What a stage needs to know, small."
    steps:int=6
    lr:float=1e-3
    precision:str='fp32'
    log_every:int=1
    save_every:int=100
    seed:int=1
    budget_tok:int=120
    max_len:int=24
    window:int=64
    too_long:str='cut'

@pytest.fixture(scope='module')
def tok(): return wrap_tokenizer(bpe_tokenizer([*SPECIALS, *sorted(set(CHARS))], []))

def toy(tok, seed=0, **overrides):
    "A T5 of a few thousand parameters."
    small = dict(d_model=16, num_heads=2, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1, dropout_rate=0.)
    return build_model(model_config('tiny', len(tok), **small | overrides), seed=seed)

def speaking(tok, seed=1):
    "A random T5 that says something: an untrained one of ours repeats the start token, which is not shown."
    return toy_model(len(tok), seed=seed, spread=.5)

def rows(n, seed):
    "Random questions and answers."
    rng = random.Random(seed)
    return [tuple(''.join(rng.choices(CHARS, k=rng.randint(2, 9))) for _ in range(2)) for _ in range(n)]

def put(path, pairs, **more):
    "A parquet of pairs, in row groups of three."
    return put_pairs(path, *map(list, zip(*pairs)), 3, **more)

HELDOUT = rows(7, 13)

@pytest.fixture
def home(tmp_path, monkeypatch):
    "A scale's folder with data."
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path))
    monkeypatch.setenv('SCCLM_SCALE', 'tiny')
    monkeypatch.delenv('SCCLM_RAW', raising=False)
    data = tmp_path/'tiny'/'data'
    for seed, name in enumerate(('train', 'valid', 'test')): put(data/f'{name}.parquet', rows(20, seed))
    put(data/'heldout.parquet', HELDOUT, kind=['phrasing', 'template'] * 3 + ['phrasing'])
    return tmp_path/'tiny'

def weights(model): return {n: p.detach().clone() for n, p in model.named_parameters()}

# Presets

def test_presets_follow_scale_and_raw_files(home, monkeypatch):
    for scale in ('tiny', 'small', 'mini', 'base'):
        assert (pretrain_cfg(scale).scale, sft_cfg(scale).scale) == (scale, scale)
    assert pretrain_cfg() == pretraining.PRESETS['tiny'] and sft_cfg() == fine_tuning.PRESETS['tiny']
    monkeypatch.setenv('SCCLM_RAW', 'somewhere')
    real, sample = asdict(pretrain_cfg('tiny')), asdict(pretraining.PRESETS['tiny'])
    assert {k: v for k, v in real.items() if v != sample[k]} == pretraining.TINY_REAL
    assert pretrain_cfg('base') == pretraining.PRESETS['base'], 'only tiny is meant for the sample corpus'
    words = "'huge' is not known: expected one of tiny, small, mini, base"
    with pytest.raises(ValueError, match=words): sft_cfg('huge')

# Freezing

@pytest.mark.parametrize('patterns, starts', [
    ((), ()), (('encoder.*',), ('encoder.',)), (('shared.*', 'encoder.*'), ('shared.', 'encoder.')),
    (('decoder.block.0.*', 'decoder.*norm*'), ('decoder.',))])
def test_freeze_by_name(tok, patterns, starts):
    model = toy(tok)
    freeze(model, ('decoder.*',)) # an earlier choice must not linger
    frozen = freeze(model, patterns)
    assert set(frozen) == {n for n, _ in model.named_parameters() if starts and n.startswith(starts)}
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == set(frozen)

@pytest.mark.parametrize('patterns, words', [
    (('encodr.*',), r"freeze='encodr\.\*' matches no parameter: expected a pattern such as 'encoder\.block"),
    (('encoder.*', 'nothing'), "freeze='nothing' matches no parameter"),
    (('*',), r"freeze=\('\*',\) leaves nothing to train")])
def test_a_wrong_pattern_is_named_and_changes_nothing(tok, patterns, words):
    model = toy(tok)
    freeze(model, ('shared.*',))
    before = {n: p.requires_grad for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match=words): freeze(model, patterns)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == before

@pytest.mark.parametrize('trainer', ['fit', 'hf_fit'])
def test_what_is_frozen_does_not_move_in_training(tok, home, trainer):
    model, files = toy(tok), [home/'data'/'train.parquet']
    frozen, before = freeze(model, ('shared.*', 'encoder.*')), weights(model)
    if trainer == 'fit': fit(model, stage_stream(files, tok, Cfg()), Cfg(), home/'run', progress=False)
    else: hf_fit(model, tok, files, Cfg(), home/'hf', batch_size=4)
    moved = {n for n, p in weights(model).items() if not torch.equal(p, before[n])}
    assert moved == before.keys() - set(frozen)
    assert torch.equal(model.lm_head.weight, before['shared.weight']), 'the output layer is the same table'

@pytest.mark.parametrize('name', ['test', 'valid'])
@pytest.mark.parametrize('stage', ['pretrain', 'sft'])
def test_a_split_without_rows_is_said_before_training(tok, home, name, stage):
    save_tokenizer(tok, home/'tokenizer')
    pq.write_table(pq.read_table(home/'data'/'train.parquet').slice(0, 0), home/'data'/f'{name}.parquet')
    put(home/'data'/'sft_train.parquet', rows(20, 3))
    save_model(toy(tok), tok, home/'pretrain'/'model')
    with pytest.raises(ValueError, match=rf'{name}\.parquet holds no row: expected at least one to measure on'):
        if stage == 'pretrain': pretraining.pretrain(pretrain_cfg())
        else: fine_tuning.sft(sft_cfg())
    assert not (home/'pretrain'/'log.jsonl').exists() and not (home/'sft').exists()

# Length filter

@pytest.mark.parametrize('seed', range(4))
def test_length_filter_keeps_what_pandas_keeps(tmp_path, seed):
    rng = random.Random(seed)
    alphabet = '天地a 。\n😀é'
    files, tables = [], []
    for i in range(3):
        pairs = [tuple(''.join(rng.choices(alphabet, k=rng.randint(0, 12))) for _ in range(2)) for _ in range(11)]
        files.append(put(tmp_path/f'{i}.parquet', pairs, kind=['x'] * 11))
        tables.append(pd.DataFrame(pairs, columns=['prompt', 'response']))
    whole = pd.concat(tables)
    short = whole[(whole.prompt.str.len() <= 8) & (whole.response.str.len() <= 8)]
    n = length_filter(files, 8, tmp_path/'out.parquet')
    assert n == dict(rows=33, kept=len(short), null=0) and 0 < len(short) < 33, f'seed {seed}'
    assert read_pairs(tmp_path/'out.parquet') == list(short.itertuples(index=False, name=None)), f'seed {seed}'
    assert pq.read_schema(tmp_path/'out.parquet').names == ['prompt', 'response']

def test_length_filter_takes_every_text_type_and_leaves_nulls(tmp_path):
    for name, kind in dict(large=pa.large_string(), coded=pa.dictionary(pa.int32(), pa.string())).items():
        prompts, responses = pa.array(['天', '地', None]), pa.array(['玄', '黄' * 9, '宇'])
        table = pa.table(dict(prompt=prompts.cast(kind), response=responses.cast(kind)))
        pq.write_table(table, tmp_path/f'{name}.parquet')
        n = length_filter([tmp_path/f'{name}.parquet'], 8, tmp_path/'out.parquet')
        assert n == dict(rows=3, kept=1, null=1), name
        assert read_pairs(tmp_path/'out.parquet') == [('天', '玄')]

def test_length_filter_takes_columns_in_any_order(tmp_path):
    pq.write_table(pa.table(dict(response=['玄'], more=[1], prompt=['天'])), tmp_path/'a.parquet')
    assert length_filter([tmp_path/'a.parquet'], 8, tmp_path/'out.parquet') == dict(rows=1, kept=1, null=0)
    assert read_pairs(tmp_path/'out.parquet') == [('天', '玄')]

def test_length_filter_without_rows_left_keeps_the_old_file(tmp_path):
    file = put(tmp_path/'a.parquet', [('天地玄黄', '宇')])
    out = put(tmp_path/'out.parquet', [('旧', '旧')])
    words = r'no row of .*a\.parquet has prompt and response of at most max_char=3 characters'
    with pytest.raises(ValueError, match=words): length_filter([file], 3, out)
    assert read_pairs(out) == [('旧', '旧')] and {p.name for p in tmp_path.iterdir()} == {'a.parquet', 'out.parquet'}

# The other trainer

@pytest.mark.parametrize('optimizer, emb_lr', [('adamw', 1.), ('adamw', 6.), ('adafactor', 1.)])
def test_hf_fit_goes_the_way_of_fit_step_for_step(tok, home, optimizer, emb_lr):
    "Eight rows: every batch of either is all of them. The losses of all steps and the last weights agree."
    file = put(home/'eight.parquet', rows(8, 21))
    cfg = replace(Cfg(), steps=4, budget_tok=10**6, optimizer=optimizer, emb_lr=emb_lr)
    ours, theirs, start = (toy(tok) for _ in range(3))
    fit(ours, stage_stream([file], tok, cfg), cfg, home/'run', progress=False)
    log = hf_fit(theirs, tok, [file], cfg, home/'hf', batch_size=8)
    assert [e['step'] for e in log] == [1, 2, 3, 4]
    assert [e['loss'] for e in log] == pytest.approx([e['loss'] for e in read_log(home/'run'/'log.jsonl')], abs=2e-3)
    assert log[-1]['loss'] < log[0]['loss']
    before, after = weights(start), weights(theirs)
    for name, p in weights(ours).items():
        gap, way = (p - after[name]).abs().mean(), (p - before[name]).abs().mean()
        assert gap < 1e-3 * way, name

def test_hf_fit_resumes_from_its_own_checkpoint(tok, home):
    file, cfg = put(home/'eight.parquet', rows(8, 21)), replace(Cfg(), steps=4, save_every=2, budget_tok=10**6)
    whole, model = toy(tok), toy(tok)
    hf_fit(whole, tok, [file], cfg, home/'whole', batch_size=8)
    model.register_forward_pre_hook(stop_at_call(4))
    with pytest.raises(KeyboardInterrupt): hf_fit(model, tok, [file], cfg, home/'hf', batch_size=8)
    again = toy(tok, seed=9)
    log = hf_fit(again, tok, [file], cfg, home/'hf', batch_size=8, resume=True)
    assert [e['step'] for e in log] == [1, 2, 3, 4], 'the log of the first two steps is in the checkpoint'
    for name, p in weights(again).items(): assert torch.allclose(p, weights(whole)[name], atol=1e-5), name

def stop_at_call(n):
    "A hook that presses stop in forward pass number `n`."
    calls = []
    def hook(*args):
        "Count, and stop in time."
        calls.append(1)
        if len(calls) == n: raise KeyboardInterrupt
    return hook

def test_hf_fit_refuses_two_optimisers(tok, home):
    with pytest.raises(ValueError, match="optimizer='muon' is two optimisers"):
        hf_fit(toy(tok), tok, [home/'data'/'train.parquet'], replace(Cfg(), optimizer='muon'), home/'hf', batch_size=8)

def test_arguments_of_the_library_can_be_overridden(tok, home):
    file = put(home/'eight.parquet', rows(8, 21))
    log = hf_fit(toy(tok), tok, file, Cfg(), home/'hf', batch_size=8, max_steps=2, logging_steps=2)
    assert [e['step'] for e in log] == [2]

def test_one_table_is_the_same_model(tok):
    model, ids = toy(tok), torch.tensor([[7, 8, 9, 1]])
    before = model(input_ids=ids, decoder_input_ids=ids).logits
    assert one_table_(model) is model and torch.equal(model(input_ids=ids, decoder_input_ids=ids).logits, before)
    assert model.encoder.embed_tokens is model.shared and model.decoder.embed_tokens is model.shared

def test_rows_per_batch_is_the_mean(tok, home):
    stream = stage_stream([home/'data'/'train.parquet'], tok, Cfg())
    sizes = [len(batch) for window in stream.plan(0) for batch in window]
    assert sum(sizes) == 20 and len(sizes) > 2
    assert rows_per_batch(stream, 20) == round(sum(sizes) / len(sizes))
    assert rows_per_batch(SimpleNamespace(n_batches=lambda epoch: 50), 20) == 1, 'at least one row'

# The floors

def brute_prob(texts, prev, char, order, weight=.8):
    "Jelinek-Mercer by its formula, counted anew for each question: '' before the first character and after the last."
    ends = [c for t in texts for c in [*t, '']]
    unigram = (ends.count(char) + 1) / (len(ends) + len(set(ends)) + 1)
    steps = [(a, b) for t in texts for a, b in zip(['', *t], [*t, ''])]
    left = [a for a, _ in steps].count(prev)
    if order == 1 or not left: return unigram
    return weight * steps.count((prev, char)) / left + (1 - weight) * unigram

@pytest.mark.parametrize('order', [1, 2])
@pytest.mark.parametrize('seed', range(3))
def test_bigram_by_its_formula(order, seed):
    rng = random.Random(seed)
    def some(n, letters): return [''.join(rng.choices(letters, k=rng.randint(0, 6))) for _ in range(n)]
    train, scored = some(12, '天地玄'), some(5, '天地玄黄')
    model = CharBigram(train, order=order)
    for prev in ['', *'天地玄黄']:
        for char in ['', *'天地玄黄']:
            wanted = brute_prob(train, prev, char, order)
            assert model.prob(prev, char) == pytest.approx(wanted, rel=1e-12), f'seed {seed}: {prev!r}, {char!r}'
        total = sum(model.prob(prev, c) for c in {*''.join(train), '', '黄'}) # one more stands for all unseen ones
        assert total == pytest.approx(1, rel=1e-12), f'seed {seed}: after {prev!r}'
    bits = [-math.log2(brute_prob(train, a, b, order)) for t in scored for a, b in zip(['', *t], [*t, ''])]
    assert model.bits(scored) == pytest.approx(sum(bits) / len(bits), rel=1e-12), f'seed {seed}'

def test_baselines_read_the_answers_only():
    train, test = [('问', '天地天地'), ('玄', '地天')], [('黄', '天地')]
    floors = baseline_bits(train, test)
    answers = ['天地天地', '地天']
    for name, order in dict(unigram=1, bigram=2).items():
        steps = [('', '天'), ('天', '地'), ('地', '')]
        wanted = -sum(math.log2(brute_prob(answers, a, b, order)) for a, b in steps) / 3
        assert floors[f'bits_per_char_{name}'] == pytest.approx(wanted, rel=1e-12)
    assert floors['bits_per_char_bigram'] < floors['bits_per_char_unigram']

# Watching

def fake_run(model, out, main=True):
    "What `Watch` looks at."
    acc = SimpleNamespace(is_main_process=main, unwrap_model=lambda m: m)
    return SimpleNamespace(step=0, done=False, acc=acc, model=model, out=out)

def test_watch_writes_what_generate_answers_when_it_is_due(tok, tmp_path):
    model, asked = speaking(tok).train(), ['天地', '玄黄宇宙']
    run, watch = fake_run(model, tmp_path), Watch(tok, asked, every=3)
    for run.step in range(1, 8):
        run.done = run.step == 7
        watch(run)
    assert model.training
    wanted = {p: said_alone(model.eval(), tok, p) for p in asked}
    assert all(wanted.values())
    lines = [json.loads(x) for x in (tmp_path/'samples.jsonl').read_text(encoding='utf-8').splitlines()]
    assert lines == [dict(step=step, answers=wanted) for step in (3, 6, 7)], 'every third step and the last'
    assert read_samples(tmp_path/'samples.jsonl') == {step: wanted for step in (3, 6, 7)}

def test_only_the_main_process_writes(tok, tmp_path):
    run = fake_run(toy(tok), tmp_path, main=False)
    run.step = 3
    Watch(tok, ['天'], every=3)(run)
    assert list(tmp_path.iterdir()) == []

def test_watching_does_not_change_the_training(tok, home):
    "With dropout, whose coins a stray draw would move."
    files, trained = [home/'data'/'train.parquet'], []
    for name, asked in dict(seen=('天地', '玄'), unseen=()).items():
        model = toy(tok, dropout_rate=.2)
        callbacks = watch_callbacks(tok, asked, Cfg().steps)
        fit(model, stage_stream(files, tok, Cfg()), Cfg(), home/name, callbacks=callbacks, progress=False)
        trained.append(weights(model))
    assert list(read_samples(home/'seen'/'samples.jsonl')) == [1, 2, 3, 4, 5, 6]
    assert not (home/'unseen'/'samples.jsonl').exists()
    for name, p in trained[0].items(): assert torch.equal(p, trained[1][name]), name

@pytest.mark.parametrize('steps, every', [(3, 1), (19, 1), (20, 2), (3200, 320)])
def test_ten_answers_along_the_way(tok, steps, every):
    watch, = watch_callbacks(tok, ('天',), steps)
    assert watch.every == every and watch_callbacks(tok, (), steps) == []

def test_the_newest_answer_of_a_step_counts(tmp_path):
    entries = [(4, 'a'), (2, 'old'), (6, 'c'), (2, 'new')] # a resumed run has walked again
    lines = [json.dumps(dict(step=s, answers=dict(q=a))) for s, a in entries]
    (tmp_path/'s.jsonl').write_text('\n'.join(lines), encoding='utf-8')
    assert list(read_samples(tmp_path/'s.jsonl').items()) == [(2, dict(q='new')), (4, dict(q='a')), (6, dict(q='c'))]

# Evaluation during training

@pytest.mark.parametrize('n, kept', [
    (1, [0]), (2, [0, 3]), (3, [0, 2, 4]), (4, [0, 1, 2, 3]), (7, range(7)), (50, range(7))])
def test_heldout_sample_is_spread_over_the_file(home, n, kept):
    assert heldout_sample(n) == [HELDOUT[i] for i in kept]

def test_real_data_has_no_heldout_questions(tok, home):
    (home/'data'/'heldout.parquet').unlink()
    assert heldout_sample(5) == [] and heldout_eval(tok, 5)(toy(tok).eval()) == {}
    assert stage_eval(tok, 24)(toy(tok).eval()).keys() == {'loss_valid', 'bleu4'}

def own_answers(model, tok, pairs, wrong):
    "The pairs with the model's own answers; a few of them are made wrong."
    said = [said_alone(model, tok, p).strip() for p, _ in pairs]
    assert len(set(said)) > 1, 'a model that always says the same tests little'
    return [(p, a + '错' if i in wrong else a) for i, ((p, _), a) in enumerate(zip(pairs, said))]

def test_stage_eval_measures_validation_rows_and_heldout_questions(tok, home):
    model = speaking(tok)
    put(home/'data'/'heldout.parquet', own_answers(model, tok, HELDOUT, wrong={1, 5}), kind=['x'] * 7)
    figures = stage_eval(tok, 24, n_valid=5)(model)
    assert figures['exact_heldout'] == 5 / 7
    *_, loss = library_nats(model, tok, rows(20, 1)[:5])
    assert figures['loss_valid'] == pytest.approx(loss, rel=1e-5)
    mine = put(home/'mine.parquet', rows(3, 30))
    *_, loss = library_nats(model, tok, rows(3, 30))
    assert stage_eval(tok, 24, mine)(model)['loss_valid'] == pytest.approx(loss, rel=1e-5)

def test_missing_validation_rows_are_named(tok, home):
    (home/'data'/'valid.parquet').unlink()
    words = r'valid\.parquet is missing: run nbs/00_data_cleaning\.ipynb or `scclm clean`'
    with pytest.raises(FileNotFoundError, match=words): stage_eval(tok, 24)

def library_nats(model, tok, pairs):
    "Nats, characters with one end each, nats per token: the library's loss, row by row; a character is a token."
    nats = chars = 0
    for prompt, answer in pairs:
        ids, labels = (torch.tensor([[*map(tok.get_vocab().get, t), 1]]) for t in (prompt, answer))
        with torch.no_grad(): mean = model(input_ids=ids, labels=labels).loss.item()
        nats, chars = nats + mean * labels.numel(), chars + labels.numel()
    return nats, chars, nats / chars

# The ending

@pytest.fixture
def run(tok, home):
    "A finished run of six steps, evaluated twice."
    cfg = replace(Cfg(), eval_every=3)
    stream = stage_stream([home/'data'/'train.parquet'], tok, cfg)
    return fit(speaking(tok), stream, cfg, home/'stage', eval_fn=stage_eval(tok, cfg.max_len), progress=False)

def test_stage_figures_one_by_one(tok, home, run):
    model, kinds = run.model.eval(), ['phrasing', 'template'] * 3 + ['phrasing']
    put(home/'data'/'heldout.parquet', own_answers(model, tok, HELDOUT, wrong={1, 2, 3}), kind=kinds)
    figures = stage_figures(run, tok, max_len=24, n_test=12)
    for name, seed in dict(bits_per_char=2, bits_per_char_valid=1).items():
        nats, chars, _ = library_nats(model, tok, rows(20, seed)[:12])
        assert figures[name] == pytest.approx(nats / chars / math.log(2), rel=1e-4), name
    assert figures['exact_heldout'] == dict(all=4/7, phrasing=3/4, template=1/3)
    assert figures['n_heldout'] == dict(all=7, phrasing=4, template=3)
    assert figures['answers'] == {p: said_alone(model, tok, p) for p, _ in rows(20, 2)[:3]}
    newest = [e for e in read_log(run.out/'log.jsonl') if 'bleu4' in e][-1]
    assert newest['step'] == 6 and last_eval(run) == newest
    assert {k: figures[k] for k in ('loss_valid', 'bleu4')} == {k: newest[k] for k in ('loss_valid', 'bleu4')}
    assert (figures['steps'], figures['real_tok'], figures['seconds']) == (6, run.real_tok, run.seconds)
    assert figures['real_tok_per_s'] == pytest.approx(run.real_tok / run.seconds)

def test_costs_count_real_tokens(tok, home, run):
    "Six batches of the plan, without padding; every text has one end mark."
    texts = rows(20, 0)
    stream = stage_stream([home/'data'/'train.parquet'], tok, run.cfg)
    batches = [b for epoch in range(6) for window in stream.plan(epoch) for b in window][:6]
    assert run_costs(run)['real_tok'] == sum(len(texts[i][0]) + len(texts[i][1]) + 2 for b in batches for i in b)

def test_a_finished_stage_leaves_model_and_figures(tok, run):
    assert finish_stage(run, tok, dict(loss_valid=1.5, 中文='好')) is run
    assert read_json(run.out/'figures.json') == dict(loss_valid=1.5, 中文='好')
    saved = read_json(run.out/'config.json')
    assert saved == json.loads(json.dumps(asdict(run.cfg)))
    reopened, tok2 = load_model(run.out/'model')
    assert weights(reopened).keys() == weights(run.model).keys()
    for name, p in weights(reopened).items(): assert torch.equal(p, weights(run.model)[name]), name
    assert tok2.get_vocab() == tok.get_vocab()
    finish_stage(run, tok)
    assert json.loads((run.out/'figures.json').read_text(encoding='utf-8')) == {}

def test_an_interrupted_stage_leaves_its_configuration_only(tok, run, tmp_path, capsys):
    half = replace(run, step=4, stopped='SIGTERM', out=tmp_path/'half')
    half.out.mkdir()
    assert finish_stage(half, tok) is half
    assert [p.name for p in half.out.iterdir()] == ['config.json']
    assert 'stopped by SIGTERM at step 4 of 6; the same call goes on from here' in capsys.readouterr().out
    ended = replace(half, ended='loss is low enough')
    finish_stage(ended, tok, dict(a=1))
    assert {p.name for p in half.out.iterdir()} == {'config.json', 'figures.json', 'model'}, 'ended by a callback: done'

def test_other_processes_write_nothing(tok, run, tmp_path):
    other = replace(run, acc=SimpleNamespace(is_main_process=False), out=tmp_path/'other')
    assert finish_stage(other, tok, dict(a=1)) is other and not other.out.exists()

def test_a_stream_shares_rows_among_processes(tok, home, monkeypatch):
    "As `accelerate launch` would have it: each process takes its rows of the same batches."
    from scclm import stage
    files = [home/'data'/'train.parquet']
    whole = next(iter(stage_stream(files, tok, Cfg())))
    shares = []
    for i in range(2):
        state = SimpleNamespace(process_index=i, num_processes=2)
        monkeypatch.setattr(stage, 'processes', lambda state=state: state)
        shares.append(next(iter(stage_stream(files, tok, Cfg()))))
    def texts(batch): return Counter(tuple(t for t in row if t > 0) for row in batch['input_ids'].tolist())
    assert texts(shares[0]) + texts(shares[1]) == texts(whole) and texts(shares[0]) != texts(shares[1])
