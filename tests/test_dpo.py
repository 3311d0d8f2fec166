"Preference optimisation against hand computation and TRL, bad files, kills, and resume bit for bit."
import json, math, os, signal, subprocess, sys, time
from collections import Counter, defaultdict
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from chat_toys import char_tok, toy_model
from scclm.dpo import (VARIANTS, DpoCfg, MergeCfg, Pref, PrefStream, add_lora, answer_lens, collate_prefs, count_pairs, dpo, dpo_cfg, dpo_loss, encode_prefs,
                       logp_table, merge, no_dropout_, own_answers, pair_logp, pref_files, pref_scores, read_prefs, reference, sequence_logp, split_prefs)
from scclm.model import build_model, load_model, model_config, save_model
from scclm.trainer import checkpoints, fit, greedy_answers, named_weights, read_log

torch.set_num_threads(1)

CHARS = ''.join(map(chr, range(0x4e00, 0x4e40))) + '，。？！'

@pytest.fixture(scope='module')
def tok(): return char_tok(CHARS)

def prefs(n=40, **kw):
    "Pairs of different lengths over the toy alphabet."
    row = lambda i: dict(prompt=CHARS[i % 60:i % 60 + 2 + i % 5] + '？', chosen=CHARS[(7*i) % 50:(7*i) % 50 + 3 + i % 4], rejected=CHARS[(11*i + 3) % 50:(11*i + 3) % 50 + 2 + i % 7])
    return [Pref('reward', 'f', i, held=False, **row(i) | kw) for i in range(n)]

def model(tok, **kw): return build_model(model_config('tiny', len(tok), **dict(d_model=32, num_heads=2, d_kv=8, d_ff=64) | kw), seed=1).eval()

# The loss

def test_two_token_toy_by_hand():
    "Vocabulary of two; every probability is a fraction."
    logits = torch.tensor([[[0., 0.], [math.log(3), 0.]], [[math.log(3), 0.], [9., -9.]], [[0., math.log(4)], [0., 0.]], [[0., 0.], [0., math.log(7)]]])
    labels = torch.tensor([[0, 0], [0, -100], [1, 1], [1, 0]])                  # chosen, chosen, rejected, rejected
    logp = sequence_logp(logits, labels)
    assert torch.allclose(logp.exp(), torch.tensor([1/2*3/4, 3/4, 4/5*1/2, 1/2*1/8]))
    ref = torch.tensor([1/4, 1/2, 1/2, 1/8]).log()
    h = [math.log((3/8)/(1/4)) - math.log((2/5)/(1/2)), math.log((3/4)/(1/2)) - math.log((1/16)/(1/8))]
    n = labels.ne(-100).sum(1)
    x = pair_logp(logp, ref, n)
    sigmoid = [-math.log(1/(1 + math.exp(-.3*v))) for v in h]
    ipo = [(math.log(3/2)/2 - math.log(4/5)/2 - 1/.6)**2, (math.log(3/2)/1 - math.log(1/2)/2 - 1/.6)**2]
    sft = [s - .5*math.log(p)/k for s, p, k in zip(sigmoid, (3/8, 3/4), (2, 1))]
    for name, want in (('sigmoid', sigmoid), ('ipo', ipo), ('sft', sft)): assert VARIANTS[name](x, .3, .5).tolist() == pytest.approx(want, rel=1e-5), name

def trl_loss(kinds, weights, logp, ref, tokens, beta):
    "DPOTrainer._compute_loss of TRL 1.16 itself; only the model is a stand-in that hands out the given log-probabilities."
    from trl import DPOTrainer
    width = tokens.size(1)
    mask = torch.cat([torch.zeros(len(tokens), 1), tokens], 1).long()           # one prompt token, then the answer
    out = SimpleNamespace(log_probs=logp, entropy=logp, mean_logits=logp, is_top1=logp > 0)
    acc = SimpleNamespace(device='cpu', gather=lambda t: t, gather_for_metrics=lambda t: t)
    me = SimpleNamespace(model=SimpleNamespace(training=False), accelerator=acc, aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True, f_divergence_type='reverse_kl',
                         loss_types=kinds, loss_weights=weights, beta=beta, use_weighting=False, _total_train_tokens=0, _metrics=dict(eval=defaultdict(list)))
    half = len(tokens) // 2
    inputs = dict(input_ids=torch.zeros(len(tokens), width + 1, dtype=torch.long), attention_mask=torch.ones_like(mask), completion_mask=mask, ref_chosen_logps=ref[:half], ref_rejected_logps=ref[half:])
    return DPOTrainer._compute_loss(me, lambda **kw: out, inputs, False)

@pytest.mark.parametrize('variant,kinds,weights', [('sigmoid', ['sigmoid'], [1.]), ('ipo', ['ipo'], [1.]), ('sft', ['sigmoid', 'sft'], [1., .7])])
def test_equals_trl_on_the_same_log_probabilities(variant, kinds, weights):
    torch.manual_seed(3)
    tokens = torch.ones(8, 6) if variant == 'sft' else (torch.arange(6) < torch.randint(1, 7, (8, 1))).float()   # TRL's SFT term is a mean over all tokens, ours over answers
    logp, ref = -torch.rand(8, 6) * 3 * tokens, -torch.rand(8) * 9
    ours = VARIANTS[variant](pair_logp(logp.sum(1), ref, tokens.sum(1)), .2, .7).mean()
    assert ours.item() == pytest.approx(trl_loss(kinds, weights, logp, ref, tokens, .2).item(), rel=1e-5)

def test_log_probabilities_equal_one_answer_at_a_time(tok):
    "Independent truth: the library's own loss on each answer alone, no padding."
    m, rows = model(tok), encode_prefs(prefs(12), tok, 64)
    table = logp_table(m, rows, budget_tok=200)
    for (p, *answers), got in zip(rows, table):
        for ids, lp in zip(answers, got):
            ids = torch.from_numpy(ids).long()[None]
            with torch.no_grad(): want = -m(input_ids=torch.from_numpy(p).long()[None], labels=ids).loss * ids.numel()
            assert lp.item() == pytest.approx(want.item(), rel=1e-4)

def test_step_zero_is_ln2_only_without_dropout(tok):
    rows = encode_prefs(prefs(), tok, 64)
    losses = {}
    for name, quiet in (('on', lambda m: m), ('off', no_dropout_)):
        m = model(tok, dropout_rate=.1)
        ref = logp_table(m, rows)
        b = collate_prefs(rows, ref)
        torch.manual_seed(0)
        losses[name] = dpo_loss(quiet(m).train(), b).item() / count_pairs(b)
    assert losses['off'] == pytest.approx(math.log(2), abs=1e-5) and abs(losses['on'] - math.log(2)) > 1e-3

def test_step_zero_is_ln2_with_lora_and_its_dropout(tok):
    rows = encode_prefs(prefs(), tok, 64)
    m = model(tok, dropout_rate=.1)
    b = collate_prefs(rows, logp_table(m, rows))
    lora = add_lora(no_dropout_(m), replace(dpo_cfg('tiny', lora=True), lora_dropout=.5))
    assert dpo_loss(lora.train(), b).item() / count_pairs(b) == pytest.approx(math.log(2), abs=1e-5)

def test_a_rank_without_pairs_adds_nothing(tok):
    m, empty = model(tok), collate_prefs([], torch.zeros(0, 2))
    for v in VARIANTS:
        loss = dpo_loss(m, empty, v)
        loss.backward()
        assert loss.item() == 0 and count_pairs(empty) == 0
    assert all(p.grad is not None and not p.grad.any() for p in m.parameters())

def test_figures_by_hand():
    logp, ref = torch.tensor([[-1., -2.], [-3., -1.], [-2., -2.]]), torch.tensor([[-2., -2.], [-3., -2.], [-2., -2.]])
    s = pref_scores(logp, ref, torch.ones(3, 2), beta=.5)
    assert (s['pref_acc'], s['reward_acc'], s['margin']) == (pytest.approx(1/3), pytest.approx(.5), pytest.approx(0., abs=1e-6))
    assert s['loss_valid'] == pytest.approx(sum(math.log(1 + math.exp(-.5*h)) for h in (1, -1, 0)) / 3)

# Reading

def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')

def test_formats_are_known_by_content_and_every_row_is_counted(tmp_path):
    J = partial(json.dumps, ensure_ascii=False)
    write(tmp_path/'one.txt', '[' + ',\n'.join([J(dict(instruction='问', input='甲', output='答')), '{"instruction": "断', J(dict(instruction='问'))]) + ']')
    write(tmp_path/'two', '\ufeff' + '\n'.join([J(dict(prompt='问', chosen='好', reject='坏')), '{', J(dict(prompt='问', chosen='好', reject=['坏'])), J(dict(prompt=' ', chosen='好', reject='坏')),
                                     J(dict(prompt='问', chosen='好', reject='坏')), J(dict(prompt='问', chosen='好', reject='好 ')), J(dict(prompt='问', chosen='好'*9, reject='坏'))]))
    pq.write_table(pa.table(dict(prompt=['问', None, '考题'], chosen=['好', '好', '好'], rejected=['差', '坏', '坏'])), tmp_path/'three.json')
    write(tmp_path/'readme.md', 'nothing here')
    kept, rejects, count = read_prefs(pref_files((str(tmp_path),)), 8, frozenset(['考题']))
    assert sorted((p.source, p.prompt, p.chosen, p.rejected) for p in kept) == [('alpaca', '问\n甲', '答', None), ('huozi', '问', '好', '坏'), ('reward', '问', '好', '差')]
    assert sorted((r[1], r[2], r[3]) for r in rejects) == [('one.txt', 2, 'broken_json'), ('one.txt', 3, 'missing_key'), ('readme.md', 0, 'unknown_format'), ('three.json', 2, 'bad_type'),
        ('three.json', 3, 'leak'), ('two', 2, 'broken_json'), ('two', 3, 'bad_type'), ('two', 4, 'empty'), ('two', 5, 'duplicate'), ('two', 6, 'same'), ('two', 7, 'too_long')]
    assert sum(v for (s, what), v in count.items() if what == 'in') == len(kept) + len(rejects) - 1
    assert 'nothing' not in str(kept)

def test_literal_newlines_come_before_the_comparison(tmp_path):
    "Two answers that differ only in how the newline is written are the same answer."
    write(tmp_path/'a.jsonl', '\n'.join(json.dumps(dict(prompt='问', chosen='一\n二', reject=r)) for r in ('一\\n二', '一\\r\\n三')))
    kept, rejects, count = read_prefs(pref_files((str(tmp_path/'a.jsonl'),)))
    assert [p.rejected for p in kept] == ['一\n三'] and [r[3] for r in rejects] == ['same'] and count['huozi', 'literal_newline'] == 2

def test_heldout_prompts_never_train(tmp_path):
    row = lambda p, c: json.dumps(dict(prompt=p, chosen=c, rejected='坏')) + '\n'
    write(tmp_path/'a.jsonl', row('问一', '好') + row('问二', '好'))
    write(tmp_path/'heldout'/'z.jsonl', row('问二', '妙'))
    kept, rejects, _ = read_prefs(pref_files((str(tmp_path),)))
    parts = split_prefs(kept, .5)
    assert [p.prompt for p in parts['train']] == ['问一'] and [p.prompt for p in parts['valid']] == ['问二'] and [r[3] for r in rejects] == ['leak']

def test_one_damaged_parquet_does_not_stop_the_others(tmp_path):
    pq.write_table(pa.table(dict(prompt=['问'] * 3, chosen=['好'] * 3, rejected=['坏'] * 3)), tmp_path/'b.parquet')
    data = (tmp_path/'b.parquet').read_bytes()
    (tmp_path/'a.parquet').write_bytes(data[:20] + bytes(20) + data[40:])
    (tmp_path/'c.parquet').write_bytes(data[:len(data)//2])
    kept, rejects, _ = read_prefs(pref_files((str(tmp_path),)))
    assert len(kept) >= 1 and {r[1] for r in rejects if r[3] in ('broken_file', 'unknown_format')} == {'a.parquet', 'c.parquet'}

def test_errors_name_the_thing(tmp_path):
    with pytest.raises(FileNotFoundError, match="data='no/such' does not exist: expected a preference file or a folder"): pref_files(('no/such',))
    with pytest.raises(ValueError, match='no valid pairs among 1: .*valid_share=0.0'): split_prefs(prefs(1), 0.)
    with pytest.raises(ValueError, match='rows is empty'): PrefStream([], torch.zeros(0, 2))
    with pytest.raises(ValueError, match="variant='dop': expected one of sigmoid, ipo, sft"): DpoCfg(variant='dop')
    with pytest.raises(ValueError, match='beta=0: expected > 0'): DpoCfg(beta=0)
    with pytest.raises(ValueError, match='lora_r=-1: expected >= 0'): DpoCfg(lora_r=-1)
    with pytest.raises(FileNotFoundError, match='07_dpo'): merge(MergeCfg(adapter=str(tmp_path/'none')))

# Own answers

WRITER = '''
import sys, torch
sys.path.insert(0, {tests!r})
from pathlib import Path
from chat_toys import char_tok, toy_model
from scclm.dpo import own_answers
torch.set_num_threads(1)
CHARS = {chars!r}
tok = char_tok(CHARS)
own_answers(toy_model(len(tok), endless=True), tok, [CHARS[i % 60:i % 60 + 1 + i % 4] + CHARS[i // 60] for i in range(240)], Path(sys.argv[1]), 'k', max_new_tok=24, batch_size=8, progress=False)
'''

def answers_of(path): return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()[1:]]

def test_sigkill_loses_and_doubles_no_answer(tmp_path):
    "A real process, killed with SIGKILL again and again, its last line torn by hand too; the end equals an uninterrupted run."
    script = tmp_path/'writer.py'
    script.write_text(WRITER.format(tests=str(Path(__file__).parent), chars=CHARS), encoding='utf-8')
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(Path(__file__).parents[1]))
    subprocess.run([sys.executable, script, tmp_path/'whole.jsonl'], check=True, env=env)
    part, kills = tmp_path/'part.jsonl', 0
    for target in (3, 60, 130):
        child = subprocess.Popen([sys.executable, script, part], env=env)
        while child.poll() is None and (not part.exists() or part.read_bytes().count(b'\n') < target): time.sleep(.002)
        if child.poll() is None: child.send_signal(signal.SIGKILL); kills += 1
        child.wait()
        part.write_bytes(part.read_bytes()[:-7])
    assert kills
    subprocess.run([sys.executable, script, part], check=True, env=env)
    whole, rows = answers_of(tmp_path/'whole.jsonl'), answers_of(part)
    assert len(rows) == len(whole) == len({r['prompt'] for r in rows})
    assert sorted(map(str, rows)) == sorted(map(str, whole))

def test_answers_of_another_model_are_dropped(tok, tmp_path):
    asks, path = [CHARS[i:i + 3] for i in range(9)], tmp_path/'a.jsonl'
    first, other = toy_model(len(tok), seed=0, endless=True), toy_model(len(tok), seed=5, endless=True)
    assert own_answers(first, tok, asks, path, 'first', 8, progress=False) == dict(zip(asks, greedy_answers(first, tok, asks, 8)))
    assert own_answers(other, tok, asks, path, 'other', 8, progress=False) == dict(zip(asks, greedy_answers(other, tok, asks, 8)))
    assert len(answers_of(path)) == len(asks) and json.loads(path.read_text(encoding='utf-8').splitlines()[0])['model'] == 'other'

# Reference and stream

def test_stale_or_damaged_reference_is_computed_again(tok, tmp_path):
    rows, path, m = encode_prefs(prefs(), tok, 64), tmp_path/'ref.safetensors', model(tok)
    table = reference(m, rows, path, 'a')
    assert torch.equal(reference(None, rows, path, 'a'), table)
    other = encode_prefs(prefs(chosen='天'), tok, 64)
    assert not torch.equal(reference(m, other, path, 'a'), table)
    with pytest.raises(AttributeError): reference(None, rows, path, 'a')        # the file now belongs to `other`
    reference(m, rows, path, 'a'); path.write_bytes(path.read_bytes()[:-5])
    assert torch.equal(reference(m, rows, path, 'a'), table)

def test_stream_gives_every_pair_once_and_ranks_share_batches(tok):
    rows = encode_prefs(prefs(60), tok, 64)
    ref = torch.arange(120.).view(60, 2)
    n = len(PrefStream(rows, ref, 300).plan())
    seen = Counter(v for b in islice(iter(PrefStream(rows, ref, 300)), n) for v in b['ref_logp'].tolist())
    assert n > 5 and seen == Counter(range(120))
    whole, shares = islice(iter(PrefStream(rows, ref, 300)), n), [islice(iter(PrefStream(rows, ref, 300, rank=r, world=3)), n) for r in range(3)]
    for b, *parts in zip(whole, *shares):
        assert b['input_ids'].numel() + b['labels'].numel() <= 300 or count_pairs(b) == 1
        assert sorted(v for p in parts if count_pairs(p) for v in p['ref_logp'].tolist()) == sorted(b['ref_logp'].tolist())
    assert PrefStream(rows, ref, 300, seed=1).plan()[0].tolist() != PrefStream(rows, ref, 300).plan()[0].tolist()

def test_labels_and_reference_belong_to_the_same_answer(tok):
    rows = encode_prefs(prefs(30), tok, 64)
    for b in islice(iter(PrefStream(rows, answer_lens(rows).float(), 400)), 8): assert b['labels'].ne(-100).sum(1).tolist() == b['ref_logp'].tolist()

# Resume

@pytest.mark.parametrize('lora', [False, True], ids=['full', 'lora'])
def test_resume_is_bit_for_bit(tok, tmp_path, lora):
    "Stopped by a signal at step 5 of 9, mid-epoch; weights, optimiser, log and position equal those of an uninterrupted run. LoRA with its dropout."
    rows = encode_prefs(prefs(60), tok, 64)
    ref = logp_table(model(tok), rows)
    cfg = replace(dpo_cfg('tiny', lora=lora), steps=9, accum=2, lr=1e-3, log_every=1, save_every=4, eval_every=3, budget_tok=300)
    def run(out, stop=None):
        m = no_dropout_(model(tok))
        if lora: m = add_lora(m, cfg)
        def interrupt(r):
            if r.step == stop: signal.raise_signal(signal.SIGTERM)
        evaluate = lambda m: pref_scores(logp_table(m, rows), ref, answer_lens(rows), 'sft', cfg.beta)
        return fit(m, PrefStream(rows, ref, 300), cfg, out, partial(dpo_loss, variant='sft', beta=cfg.beta), count_pairs, evaluate, callbacks=[interrupt], progress=False)
    whole, part = run(tmp_path/'whole'), run(tmp_path/'part', 5)
    assert (part.step, part.stopped) == (5, 'SIGTERM')
    again = run(tmp_path/'part')
    assert again.done and again.pos == whole.pos
    a, b = (named_weights(r.model) for r in (whole, again))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    files = [checkpoints(tmp_path/o)[-1] for o in ('whole', 'part')]
    for name in ('model.safetensors', 'optim.pt'): assert files[0].joinpath(name).read_bytes() == files[1].joinpath(name).read_bytes()
    drop = lambda log: [{k: v for k, v in e.items() if k not in ('seconds', 'real_tok_per_s')} for e in read_log(log)]
    assert drop(tmp_path/'whole'/'log.jsonl') == drop(tmp_path/'part'/'log.jsonl')
    assert any('pref_acc' in e for e in read_log(tmp_path/'whole'/'log.jsonl'))

# The stage

@pytest.fixture(scope='module')
def home(tok, tmp_path_factory):
    "A small start model and raw preferences."
    home = tmp_path_factory.mktemp('stage')
    save_model(toy_model(len(tok), endless=True), tok, home/'runs/tiny/sft/model')
    rows = prefs(60)
    write(home/'raw/prefs/a.json', json.dumps([dict(instruction=p.prompt, input='', output=p.chosen) for p in rows[:30]]))
    write(home/'raw/prefs/b.jsonl', '\n'.join(json.dumps(dict(prompt=p.prompt, chosen=p.chosen, rejected=p.rejected)) for p in rows[30:]))
    return home

@pytest.fixture
def dials(home, monkeypatch):
    monkeypatch.setenv('SCCLM_RUNS', str(home/'runs')); monkeypatch.setenv('SCCLM_RAW', str(home/'raw')); monkeypatch.delenv('SCCLM_SCALE', raising=False)
    return home

def small(**kw): return replace(dpo_cfg('tiny', lora=kw.pop('lora', False)), **dict(steps=4, eval_every=2, budget_tok=300, answer_tok=8, valid_share=.2) | kw)

def test_stage_writes_its_contract_and_trains(dials):
    run = dpo(small(), progress=False)
    out = dials/'runs/tiny/dpo'
    assert run.done and {'model', 'checkpoints', 'log.jsonl', 'config.json', 'figures.json', 'train.parquet', 'valid.parquet', 'rejects.parquet', 'report.json', 'answers.jsonl'} <= {p.name for p in out.iterdir()}
    f = json.loads((out/'figures.json').read_text(encoding='utf-8'))
    assert {'pref_acc_before', 'pref_acc_after', 'pref_acc_before_n', 'pref_acc_by_source', 'exact_heldout', 'seconds', 'real_tok_per_s'} <= f.keys()
    report = json.loads((out/'report.json').read_text(encoding='utf-8'))
    assert all(r['in'] == r['train'] + r['valid'] + sum(r['rejected'].values()) for r in report.values()) and sum(r['in'] for r in report.values()) == 60
    before, tok = load_model(dials/'runs/tiny/sft/model')
    valid = pq.read_table(out/'valid.parquet').to_pylist()
    table = logp_table(before, encode_prefs([SimpleNamespace(**r) for r in valid], tok, 128))
    assert f['pref_acc_before'] == pytest.approx((table[:, 0] > table[:, 1]).float().mean().item()) and f['pref_acc_before_n'] == len(valid)
    own = [r for r in pq.read_table(out/'train.parquet').to_pylist() if r['source'] == 'alpaca']
    assert [r['rejected'] for r in own] == greedy_answers(before, tok, [r['prompt'] for r in own], 8)
    assert read_log(out/'log.jsonl')[0]['step'] and not torch.equal(load_model(out/'model')[0].shared.weight, before.shared.weight)

def test_merged_equals_adapter_and_opens_plain(dials):
    from transformers import AutoModelForSeq2SeqLM
    run = dpo(small(lora=True, lr=1e-2), progress=False)
    out = dials/'runs/tiny/dpo_lora'
    assert {'adapter_config.json', 'adapter_model.safetensors'} <= {p.name for p in (out/'adapter').iterdir()} and not (out/'model').exists()
    folder = merge()
    assert folder == out/'model'
    plain = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    before, tok = load_model(dials/'runs/tiny/sft/model')
    rows = encode_prefs(prefs(30), tok, 64)
    a, b, c = (logp_table(m, rows) / answer_lens(rows) for m in (plain, run.acc.unwrap_model(run.model), before))
    assert (a - b).abs().max() < 1e-5 and (a - c).abs().max() > 1e-3

def test_epochs_stand_for_steps(dials):
    run = dpo(small(epochs=2., out=str(dials/'epochs')), progress=False)
    rows = pq.read_metadata(dials/'runs/tiny/dpo/train.parquet').num_rows
    seen = sum(e['real_tok'] for e in read_log(dials/'epochs'/'log.jsonl')[-2:] if 'real_tok' in e)
    assert run.pos['epoch'] == 2 and run.pos['batch'] == 0 and run.step == run.cfg.steps and rows and seen
