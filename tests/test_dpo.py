"Preference optimisation against hand computation and TRL, bad files, kills, and resume bit for bit."
import gzip
import json
import math
import os
import signal
import subprocess
import sys
import time
import zipfile
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
from raw_toys import gbk, link, put
from scclm.adapters import MergeCfg, merge
from scclm.dpo import (DpoCfg, VARIANTS, add_lora, dpo, dpo_cfg, dpo_loss, final_figures, final_test, no_dropout_,
    pair_logp, pref_scores, prepare_prefs)
from scclm.model import build_model, load_model, model_config, save_model
from scclm.pref_files import (AnswerCfg, Pref, fill_own, literal_newlines, own_answers, pref_files, read_prefs,
    split_prefs)
from scclm.pref_stream import (PrefStream, answer_lens, collate_prefs, count_pairs, encode_prefs, logp_table,
    reference)
from scclm.runlog import read_log
from scclm.runs import read_json
from scclm.sample_prefs import FINAL_KINDS
from scclm.scores import greedy_answers, sequence_logp
from scclm.trainer import checkpoints, fit, named_weights

pytestmark = pytest.mark.usefixtures('one_thread')

CHARS = ''.join(map(chr, range(0x4e00, 0x4e40))) + '，。？！'

@pytest.fixture(scope='module')
def tok(): return char_tok(CHARS)

def piece(start, length): return CHARS[start:start + length]

def prefs(n=40, **kw):
    "Pairs of different lengths over the toy alphabet."
    rows = []
    for i in range(n):
        row = dict(prompt=piece(i % 60, 2 + i % 5) + '？', chosen=piece((7*i) % 50, 3 + i % 4),
                   rejected=piece((11*i + 3) % 50, 2 + i % 7))
        rows.append(Pref('reward', 'f', i, held=False, **row | kw))
    return rows

def model(tok, **kw):
    small = dict(d_model=32, num_heads=2, d_kv=8, d_ff=64) | kw
    return build_model(model_config('tiny', len(tok), **small), seed=1).eval()

# The loss

def test_two_token_toy_by_hand():
    "Vocabulary of two; every probability is a fraction."
    logits = torch.tensor([
        [[0., 0.], [math.log(3), 0.]],
        [[math.log(3), 0.], [9., -9.]],
        [[0., math.log(4)], [0., 0.]],
        [[0., 0.], [0., math.log(7)]]])
    labels = torch.tensor([[0, 0], [0, -100], [1, 1], [1, 0]])                  # chosen, chosen, rejected, rejected
    logp = sequence_logp(logits, labels)
    assert torch.allclose(logp.exp(), torch.tensor([1/2*3/4, 3/4, 4/5*1/2, 1/2*1/8]))
    ref = torch.tensor([1/4, 1/2, 1/2, 1/8]).log()
    gains = [(math.log((3/8)/(1/4)), math.log((2/5)/(1/2))), (math.log((3/4)/(1/2)), math.log((1/16)/(1/8)))]
    x = pair_logp(logp, ref, labels.ne(-100).sum(1))
    sigmoid = [-math.log(1/(1 + math.exp(-.3*(c - r)))) for c, r in gains]
    ipo = [(c/n_c - r/n_r - 1/.6)**2 for (c, r), n_c, n_r in zip(gains, (2, 1), (2, 2))]
    sft = [s - .5*math.log(p)/k for s, p, k in zip(sigmoid, (3/8, 3/4), (2, 1))]
    for name, want in dict(sigmoid=sigmoid, ipo=ipo, sft=sft).items():
        assert VARIANTS[name](x, .3, .5).tolist() == pytest.approx(want, rel=1e-5), name

def trl_loss(kinds, weights, logp, ref, tokens, beta):
    "DPOTrainer._compute_loss of TRL itself; only the model is a stand-in that hands out the given log-probabilities."
    from trl import DPOTrainer
    n, width = tokens.shape
    mask = torch.cat([torch.zeros(n, 1), tokens], 1).long()                     # one prompt token, then the answer
    out = SimpleNamespace(log_probs=logp, entropy=logp, mean_logits=logp, is_top1=logp > 0)
    acc = SimpleNamespace(device='cpu', gather=lambda t: t, gather_for_metrics=lambda t: t)
    me = SimpleNamespace(
        model=SimpleNamespace(training=False), accelerator=acc, aux_loss_enabled=False, ld_alpha=None,
        precompute_ref_logps=True, f_divergence_type='reverse_kl', loss_types=kinds, loss_weights=weights, beta=beta,
        use_weighting=False, _total_train_tokens=0, _metrics=dict(eval=defaultdict(list)))
    inputs = dict(
        input_ids=torch.zeros(n, width + 1, dtype=torch.long), attention_mask=torch.ones_like(mask),
        completion_mask=mask, ref_chosen_logps=ref[:n // 2], ref_rejected_logps=ref[n // 2:])
    return DPOTrainer._compute_loss(me, lambda **kw: out, inputs, False)

AS_TRL = [('sigmoid', ['sigmoid'], [1.]), ('ipo', ['ipo'], [1.]), ('sft', ['sigmoid', 'sft'], [1., .7])]

@pytest.mark.parametrize('variant,kinds,weights', AS_TRL)
@pytest.mark.parametrize('seed', [3, 4, 5])
def test_equals_trl_on_the_same_log_probabilities(variant, kinds, weights, seed):
    torch.manual_seed(seed)
    tokens = (torch.arange(6) < torch.randint(1, 7, (8, 1))).float()
    if variant == 'sft': tokens = torch.ones(8, 6)  # TRL's SFT term is a mean over all tokens, ours over answers
    logp, ref = -torch.rand(8, 6) * 3 * tokens, -torch.rand(8) * 9
    ours = VARIANTS[variant](pair_logp(logp.sum(1), ref, tokens.sum(1)), .2, .7).mean()
    assert ours.item() == pytest.approx(trl_loss(kinds, weights, logp, ref, tokens, .2).item(), rel=1e-5)

def test_log_probabilities_equal_one_answer_at_a_time(tok):
    "Independent truth: the library's own loss on each answer alone, no padding."
    m, rows = model(tok), encode_prefs(prefs(12), tok, 64)
    table = logp_table(m, rows, budget_tok=200)
    for (p, *answers), got in zip(rows, table):
        prompt = torch.from_numpy(p).long()[None]
        for answer, lp in zip(answers, got):
            ids = torch.from_numpy(answer).long()[None]
            with torch.no_grad(): want = -m(input_ids=prompt, labels=ids).loss * ids.numel()
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
    logp = torch.tensor([[-1., -2.], [-3., -1.], [-2., -2.]])
    ref = torch.tensor([[-2., -2.], [-3., -2.], [-2., -2.]])
    s = pref_scores(logp, ref, torch.ones(3, 2), beta=.5)
    assert s['pref_acc'] == pytest.approx(1/3)
    assert s['reward_acc'] == pytest.approx(.5)
    assert s['margin'] == pytest.approx(0., abs=1e-6)
    assert s['loss_valid'] == pytest.approx(sum(math.log(1 + math.exp(-.5*h)) for h in (1, -1, 0)) / 3)
    assert (s['logp_chosen'], s['logp_rejected']) == (pytest.approx(-2), pytest.approx(-5/3))

def test_the_parts_of_the_loss_add_up():
    logp, n = torch.tensor([[-1., -2.], [-3., -1.]]), torch.tensor([[2, 1], [4, 3]])
    ref = torch.tensor([[-2., -2.], [-3., -2.]])
    s = pref_scores(logp, ref, n, 'sft', .5, 8.)
    assert s['loss_valid_sft'] == pytest.approx((1/2 + 3/4) / 2)
    assert s['loss_valid_pref'] == pytest.approx(pref_scores(logp, ref, n, 'sigmoid', .5)['loss_valid'])
    assert s['loss_valid'] == pytest.approx(s['loss_valid_pref'] + 8*s['loss_valid_sft'])
    assert pref_scores(ref, ref, n, 'sft', .5, 8.)['loss_valid_pref'] == pytest.approx(math.log(2))

def test_the_final_test_is_the_samples_alone(tok, tmp_path, monkeypatch):
    for dial in ('SCCLM_RAW', 'SCCLM_SCALE'): monkeypatch.delenv(dial, raising=False)
    m, cfg = model(tok), dpo_cfg('tiny')
    final = final_test(m, tok, cfg)
    got = final_figures(final, m)
    assert got['pref_acc_before_final'] == got['pref_acc_after_final'] and got['pref_acc_after_final_n'] == 400
    assert {k: v['n'] for k, v in got['pref_acc_by_kind_final'].items()} == dict.fromkeys(FINAL_KINDS, 100)
    assert final_test(m, tok, replace(cfg, data=('mine',))) is None and final_figures(None, m) == {}
    (tmp_path/'prefs').mkdir()
    monkeypatch.setenv('SCCLM_RAW', str(tmp_path))
    assert final_test(m, tok, cfg) is None

# Reading

def as_json(**row): return json.dumps(row, ensure_ascii=False)

def test_formats_are_known_by_content_and_every_row_is_counted(tmp_path):
    listed = [as_json(instruction='问', input='甲', output='答'), '{"instruction": "断', as_json(instruction='问')]
    put(tmp_path/'one.txt', '[' + ',\n'.join(listed) + ']')
    lines = [
        as_json(prompt='问', chosen='好', reject='坏'),
        '{',
        as_json(prompt='问', chosen='好', reject=['坏']),
        as_json(prompt=' ', chosen='好', reject='坏'),
        as_json(prompt='问', chosen='好', reject='坏'),
        as_json(prompt='问', chosen='好', reject='好 '),
        as_json(prompt='问', chosen='好'*9, reject='坏')]
    put(tmp_path/'two', '\ufeff' + '\n'.join(lines))
    table = pa.table(dict(prompt=['问', None, '考题'], chosen=['好', '好', '好'], rejected=['差', '坏', '坏']))
    pq.write_table(table, tmp_path/'three.json')
    put(tmp_path/'readme.md', 'nothing here')
    kept, rejects, count = read_prefs(pref_files((str(tmp_path),)), 8, frozenset(['考题']))
    assert sorted((p.source, p.prompt, p.chosen, p.rejected) for p in kept) == [
        ('alpaca', '问\n甲', '答', None), ('huozi', '问', '好', '坏'), ('reward', '问', '好', '差')]
    assert sorted((r.file, r.line, r.rule) for r in rejects) == [
        ('one.txt', 2, 'broken_json'), ('one.txt', 3, 'missing_key'), ('readme.md', 0, 'unknown_format'),
        ('three.json', 2, 'bad_type'), ('three.json', 3, 'leak'), ('two', 2, 'broken_json'), ('two', 3, 'bad_type'),
        ('two', 4, 'empty'), ('two', 5, 'duplicate'), ('two', 6, 'same'), ('two', 7, 'too_long')]
    assert sum(v for (s, what), v in count.items() if what == 'in') == len(kept) + len(rejects) - 1
    assert 'nothing' not in str(kept)

def turn(role:str, text:str)->dict:
    "One turn of a conversation."
    return dict(role=role, content=text)

ASK, GOOD, BAD = turn('user', '问'), turn('assistant', '好'), turn('assistant', '坏')
SAME_PAIR = dict(
    a_third_column=dict(instruction='问', input='', output='好', rejected='坏'),
    a_third_and_input=dict(instruction='问', input=float('nan'), output='好', rejected='坏'),
    two_outputs=dict(instruction='问', input='', output=['好', '坏']),
    chosen_of_instruction=dict(instruction='问', input='', chosen='好', rejected='坏'),
    turns=dict(prompt=[ASK], chosen=[GOOD], rejected=[BAD]),
    system=dict(prompt=[turn('system', '规矩'), ASK], chosen=[GOOD], rejected=[BAD]),
    half_turns=dict(prompt='问', chosen=[GOOD], rejected=[BAD]),
    repeated=dict(prompt='问', chosen=[ASK, GOOD], rejected=[ASK, BAD]),
    implicit=dict(chosen=[ASK, GOOD], rejected=[ASK, BAD]),
    one_turn=dict(conversations=[{'from': 'human', 'value': '问'}], chosen={'from': 'gpt', 'value': '好'},
                  rejected={'from': 'gpt', 'value': '坏'}),
    messages=dict(messages=[ASK], chosen=GOOD, rejected='坏'))

@pytest.mark.parametrize('way', SAME_PAIR)
@pytest.mark.parametrize('as_list', [True, False])
def test_every_way_of_writing_a_pair(tmp_path, way, as_list):
    row = json.dumps(SAME_PAIR[way], ensure_ascii=False)
    put(tmp_path/'a.json', f'[{row}]' if as_list else row + '\n')
    kept, rejects, _ = read_prefs(pref_files((str(tmp_path),)))
    assert [(p.prompt, p.chosen, p.rejected) for p in kept] == [('问', '好', '坏')] and not rejects

@pytest.mark.parametrize('row, rule', [
    (dict(prompt=[ASK, GOOD, ASK], chosen=[GOOD], rejected=[BAD]), 'multi_turn'),
    (dict(chosen=[ASK, GOOD], rejected=[turn('user', '另问'), BAD]), 'two_questions'),
    (dict(chosen=[ASK], rejected=[ASK, BAD]), 'no_answer'),
    (dict(prompt='问', chosen=[turn('tool', '3')], rejected=[BAD]), 'tool_turn'),
    (dict(prompt='问', chosen=[], rejected=[BAD]), 'no_answer'),
    (dict(instruction='问', output=['好']), 'bad_type'), (dict(instruction='问', output=['好', None]), 'bad_type'),
    (dict(instruction='问', output=float('nan')), 'bad_type'),
    (dict(prompt='问', chosen=True, rejected='坏'), 'bad_type')])
def test_what_is_no_pair_is_named(tmp_path, row, rule):
    put(tmp_path/'a.jsonl', json.dumps(row, ensure_ascii=False) + '\n')
    kept, rejects, count = read_prefs(pref_files((str(tmp_path),)))
    assert not kept and [r.rule for r in rejects] == [rule]
    assert sum(n for (_, what), n in count.items() if what == 'in') == 1

def test_an_alpaca_row_without_a_worse_answer_waits_for_our_own(tmp_path):
    rows = [dict(instruction='问一', output='好'), dict(instruction='问二', output='好', rejected=None),
            dict(instruction='问三', output='好', rejected=' ')]
    put(tmp_path/'a.jsonl', ''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in rows))
    assert [p.rejected for p in read_prefs(pref_files((str(tmp_path),)))[0]] == [None]*3

def test_packed_linked_and_oddly_named_preferences(tmp_path):
    rows = [dict(prompt=f'问{k}', chosen='好', rejected='坏') for k in range(4)]
    lines = [json.dumps(r, ensure_ascii=False).encode() + b'\n' for r in rows]
    (tmp_path/'raw').mkdir()
    (tmp_path/'else').mkdir()
    (tmp_path/'else'/'a.jsonl').write_bytes(lines[0])
    link(tmp_path/'raw'/'link', tmp_path/'else')
    (tmp_path/'raw'/'b.gz').write_bytes(gzip.compress(lines[1]))
    with zipfile.ZipFile(tmp_path/'raw'/'c.zip', 'w') as z:
        z.writestr('a/leak.jsonl', lines[2])
        z.writestr('heldout/c.jsonl', lines[2])
        z.writestr('notes', 'nothing')
    (tmp_path/'raw'/gbk('偏好.jsonl')).write_bytes(lines[3] + b'{')
    (tmp_path/'raw'/'x.pdf').write_bytes(b'%PDF-1.4\r\r')
    kept, rejects, _ = read_prefs(pref_files((str(tmp_path/'raw'),)))
    assert {(p.file, p.held) for p in kept} == {
        ('link/a.jsonl', False), ('b.gz', False), ('c.zip/heldout/c.jsonl', True), ('偏好.jsonl', False)}
    assert {(r.file, r.rule) for r in rejects} == {
        ('c.zip/notes', 'unknown_format'), ('c.zip/a/leak.jsonl', 'leak'),
        ('偏好.jsonl', 'broken_json'), ('x.pdf', 'unknown_format')}
    assert 'PDF' in next(r.text for r in rejects if r.file == 'x.pdf')

def test_nothing_left_still_writes_report_and_rejects(tmp_path, monkeypatch):
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path/'runs'))
    put(tmp_path/'raw'/'a.jsonl', json.dumps(dict(prompt='问', chosen='同', rejected='同')) + '\n')
    cfg = replace(dpo_cfg('tiny'), data=(str(tmp_path/'raw'),), pairs=str(tmp_path/'pairs'))
    with pytest.raises(ValueError, match='no train pairs among 0'): prepare_prefs(cfg, None, None, '')
    report = read_json(tmp_path/'pairs'/'report.json')
    assert report['reward']['in'] == 1 and report['reward']['rejected'] == dict(same=1)
    assert pq.read_table(tmp_path/'pairs'/'rejects.parquet')['rule'].to_pylist() == ['same']

@pytest.mark.parametrize('raw, want', [
    ('"\\r\\n"', '"\\r\\n"'), ("用'\\r\\n换行", "用'\\r\\n换行"), ('一\\nC:\\new', '一\nC:\\new'), ('一\\r\\n二', '一\n二'),
    ('```\nr = "OK\\r\\n\\r\\nHello"\n```', '```\nr = "OK\\r\\n\\r\\nHello"\n```'),
    ('一\\n二\n三\ud83d', '一\n二\n三\ud83d')])
def test_literal_newlines_leave_escapes_and_paths(raw, want):
    assert literal_newlines(raw) == want

def test_literal_newlines_come_before_the_comparison(tmp_path):
    "Two answers that differ only in how the newline is written are the same answer."
    rows = [dict(prompt='问', chosen='一\n二', reject=r) for r in ('一\\n二', '一\\r\\n三')]
    put(tmp_path/'a.jsonl', '\n'.join(map(json.dumps, rows)))
    kept, rejects, count = read_prefs(pref_files((str(tmp_path/'a.jsonl'),)))
    assert [p.rejected for p in kept] == ['一\n三'] and [r.rule for r in rejects] == ['same']
    assert count['huozi', 'literal_newline'] == 2

def test_heldout_prompts_never_train(tmp_path):
    def row(prompt, chosen): return as_json(prompt=prompt, chosen=chosen, rejected='坏') + '\n'
    put(tmp_path/'a.jsonl', row('问一', '好') + row('问二', '好'))
    put(tmp_path/'heldout'/'z.jsonl', row('问二', '妙'))
    kept, rejects, _ = read_prefs(pref_files((str(tmp_path),)))
    parts = split_prefs(kept, .5)
    assert [p.prompt for p in parts['train']] == ['问一'] and [p.prompt for p in parts['valid']] == ['问二']
    assert [r.rule for r in rejects] == ['leak']

def test_own_answers_that_make_no_pair_are_rejected():
    asks = [Pref('alpaca', 'f', i, p, '好', None, False) for i, p in enumerate(('一', '二', '三'))]
    kept, rejects = fill_own([*asks, prefs(1)[0]], dict(一=' 坏 ', 二=' ', 三='好'))
    assert [(p.prompt, p.rejected) for p in kept] == [('一', '坏'), (prefs(1)[0].prompt, prefs(1)[0].rejected)]
    assert [(r.line, r.rule, json.loads(r.text)) for r in rejects] == [
        (1, 'own_empty', ['二', '好', '']), (2, 'own_same', ['三', '好', '好'])]

def test_one_damaged_parquet_does_not_stop_the_others(tmp_path):
    pq.write_table(pa.table(dict(prompt=['问'] * 3, chosen=['好'] * 3, rejected=['坏'] * 3)), tmp_path/'b.parquet')
    data = (tmp_path/'b.parquet').read_bytes()
    (tmp_path/'a.parquet').write_bytes(data[:20] + bytes(20) + data[40:])
    (tmp_path/'c.parquet').write_bytes(data[:len(data)//2])
    kept, rejects, _ = read_prefs(pref_files((str(tmp_path),)))
    assert len(kept) >= 1
    assert {r.file for r in rejects if r.rule in ('broken_file', 'unknown_format')} == {'a.parquet', 'c.parquet'}

def test_errors_name_the_thing(tmp_path):
    missing = "data='no/such' does not exist: expected a preference file or a folder"
    with pytest.raises(FileNotFoundError, match=missing): pref_files(('no/such',))
    with pytest.raises(ValueError, match='no valid pairs among 1: .*valid_share=0.0'): split_prefs(prefs(1), 0.)
    with pytest.raises(ValueError, match='rows is empty'): PrefStream([], torch.zeros(0, 2))
    with pytest.raises(FileNotFoundError, match='adapters'): merge(MergeCfg(adapter=str(tmp_path/'none')))
    (tmp_path/'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='adapter_config.json.*adapters'): merge(MergeCfg(str(tmp_path/'empty')))

BAD_CFG = [(dict(variant='dop'), "variant='dop': expected one of sigmoid, ipo, sft"),
           (dict(beta=0), 'beta=0: expected > 0'),
           (dict(alpha=-1.), 'alpha=-1.0: expected >= 0'),
           (dict(lora_r=-1), 'lora_r=-1: expected >= 0'),
           (dict(valid_share=1.), r'valid_share=1.0: expected in \[0, 1\)')]

@pytest.mark.parametrize('bad,said', BAD_CFG, ids=[next(iter(bad)) for bad, _ in BAD_CFG])
def test_bad_values_name_their_field(bad, said):
    with pytest.raises(ValueError, match=said): DpoCfg(**bad)

# Own answers

WRITER = '''
import sys, torch
sys.path.insert(0, {tests!r})
from pathlib import Path
from chat_toys import char_tok, toy_model
from scclm.pref_files import AnswerCfg, own_answers
torch.set_num_threads(1)
CHARS = {chars!r}
tok = char_tok(CHARS)
asks = [CHARS[i % 60:i % 60 + 1 + i % 4] + CHARS[i // 60] for i in range(240)]
model = toy_model(len(tok), endless=True)
own_answers(model, tok, asks, Path(sys.argv[1]), 'k', AnswerCfg(max_new_tok=24, batch=8), progress=False)
'''

def answers_of(path): return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()[1:]]

def kill_at(child, path, lines):
    "SIGKILL as soon as the file has so many lines; False if the process was faster."
    while child.poll() is None and (not path.exists() or path.read_bytes().count(b'\n') < lines): time.sleep(.002)
    killed = child.poll() is None
    if killed: child.send_signal(signal.SIGKILL)
    child.wait()
    return killed

def test_sigkill_loses_and_doubles_no_answer(tmp_path):
    """A real process, killed with SIGKILL again and again, its last line torn by hand too;
    the end equals an uninterrupted run."""
    script = tmp_path/'writer.py'
    script.write_text(WRITER.format(tests=str(Path(__file__).parent), chars=CHARS), encoding='utf-8')
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(Path(__file__).parents[1]))
    subprocess.run([sys.executable, script, tmp_path/'whole.jsonl'], check=True, env=env)
    part, kills = tmp_path/'part.jsonl', 0
    for target in (3, 60, 130):
        kills += kill_at(subprocess.Popen([sys.executable, script, part], env=env), part, target)
        part.write_bytes(part.read_bytes()[:-7])
    assert kills
    subprocess.run([sys.executable, script, part], check=True, env=env)
    whole, rows = answers_of(tmp_path/'whole.jsonl'), answers_of(part)
    assert len(rows) == len(whole) == len({r['prompt'] for r in rows})
    assert sorted(map(str, rows)) == sorted(map(str, whole))

def test_answers_of_another_model_are_dropped(tok, tmp_path):
    asks, path = [piece(i, 3) for i in range(9)], tmp_path/'a.jsonl'
    for key, seed in (('first', 0), ('other', 5)):
        m = toy_model(len(tok), seed=seed, endless=True)
        alone = dict(zip(asks, greedy_answers(m, tok, asks, 8)))
        assert own_answers(m, tok, asks, path, key, AnswerCfg(8), progress=False) == alone, key
    assert len(answers_of(path)) == len(asks)
    assert json.loads(path.read_text(encoding='utf-8').splitlines()[0])['model'] == 'other'

# Reference and stream

def test_stale_or_damaged_reference_is_computed_again(tok, tmp_path):
    rows, path, m = encode_prefs(prefs(), tok, 64), tmp_path/'ref.safetensors', model(tok)
    table = reference(m, rows, path, 'a')
    assert torch.equal(reference(None, rows, path, 'a'), table)
    other = encode_prefs(prefs(chosen='天'), tok, 64)
    assert not torch.equal(reference(m, other, path, 'a'), table)
    with pytest.raises(AttributeError): reference(None, rows, path, 'a')        # the file now belongs to `other`
    reference(m, rows, path, 'a')
    path.write_bytes(path.read_bytes()[:-5])
    assert torch.equal(reference(m, rows, path, 'a'), table)

def test_stream_gives_every_pair_once_and_ranks_share_batches(tok):
    rows = encode_prefs(prefs(60), tok, 64)
    ref = torch.arange(120.).view(60, 2)
    n = len(PrefStream(rows, ref, 300).plan())
    def epoch(**share): return list(islice(iter(PrefStream(rows, ref, 300, **share)), n))
    seen = Counter(v for b in epoch() for v in b['ref_logp'].tolist())
    assert n > 5 and seen == Counter(range(120))
    for b, *parts in zip(epoch(), *(epoch(rank=r, world=3) for r in range(3))):
        assert b['input_ids'].numel() + b['labels'].numel() <= 300 or count_pairs(b) == 1
        shared = [v for p in parts if count_pairs(p) for v in p['ref_logp'].tolist()]
        assert sorted(shared) == sorted(b['ref_logp'].tolist())
    assert PrefStream(rows, ref, 300, seed=1).plan()[0].tolist() != PrefStream(rows, ref, 300).plan()[0].tolist()

def test_labels_and_reference_belong_to_the_same_answer(tok):
    rows = encode_prefs(prefs(30), tok, 64)
    for b in islice(iter(PrefStream(rows, answer_lens(rows).float(), 400)), 8):
        assert b['labels'].ne(-100).sum(1).tolist() == b['ref_logp'].tolist()

# Resume

def untimed(log): return [{k: v for k, v in e.items() if k not in ('seconds', 'real_tok_per_s')} for e in read_log(log)]

@pytest.mark.parametrize('lora', [False, True], ids=['full', 'lora'])
def test_resume_is_bit_for_bit(tok, tmp_path, lora):
    """Stopped by a signal at step 5 of 9, mid-epoch; weights, optimiser, log and position equal those of an
    uninterrupted run. LoRA with its dropout."""
    rows = encode_prefs(prefs(60), tok, 64)
    ref = logp_table(model(tok), rows)
    cfg = replace(dpo_cfg('tiny', lora=lora), steps=9, accum=2, lr=1e-3, log_every=1, save_every=4, eval_every=3,
                  budget_tok=300)
    loss = partial(dpo_loss, variant='sft', beta=cfg.beta)
    def evaluate(m): return pref_scores(logp_table(m, rows), ref, answer_lens(rows), 'sft', cfg.beta)
    def run(out, stop=None):
        m = no_dropout_(model(tok))
        if lora: m = add_lora(m, cfg)
        def interrupt(r):
            if r.step == stop: signal.raise_signal(signal.SIGTERM)
        stream = PrefStream(rows, ref, 300)
        return fit(m, stream, cfg, out, loss, count_pairs, evaluate, callbacks=[interrupt], progress=False)
    whole, part = run(tmp_path/'whole'), run(tmp_path/'part', 5)
    assert (part.step, part.stopped) == (5, 'SIGTERM')
    again = run(tmp_path/'part')
    assert again.done and again.pos == whole.pos
    a, b = (named_weights(r.model) for r in (whole, again))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    one, two = (checkpoints(tmp_path/o)[-1] for o in ('whole', 'part'))
    for name in ('model.safetensors', 'optim.pt'): assert (one/name).read_bytes() == (two/name).read_bytes(), name
    assert untimed(tmp_path/'whole'/'log.jsonl') == untimed(tmp_path/'part'/'log.jsonl')
    assert any('pref_acc' in e for e in read_log(tmp_path/'whole'/'log.jsonl'))

# The stage

@pytest.fixture(scope='module')
def home(tok, tmp_path_factory):
    "A small start model and raw preferences."
    home = tmp_path_factory.mktemp('stage')
    save_model(toy_model(len(tok), endless=True), tok, home/'runs/tiny/sft/model')
    rows = prefs(60)
    asks = [dict(instruction=p.prompt, input='', output=p.chosen) for p in rows[:30]]
    pairs = [dict(prompt=p.prompt, chosen=p.chosen, rejected=p.rejected) for p in rows[30:]]
    put(home/'raw/prefs/a.json', json.dumps(asks))
    put(home/'raw/prefs/b.jsonl', '\n'.join(map(json.dumps, pairs)))
    return home

@pytest.fixture
def dials(home, monkeypatch):
    monkeypatch.setenv('SCCLM_RUNS', str(home/'runs'))
    monkeypatch.setenv('SCCLM_RAW', str(home/'raw'))
    monkeypatch.delenv('SCCLM_SCALE', raising=False)
    return home

def small(lora=False, **kw):
    few = dict(steps=4, eval_every=2, budget_tok=300, answer_tok=8, valid_share=.2)
    return replace(dpo_cfg('tiny', lora=lora), **few | kw)

def test_stage_writes_its_contract_and_trains(dials):
    run = dpo(small(), progress=False)
    out = dials/'runs/tiny/dpo'
    promised = {'model', 'checkpoints', 'log.jsonl', 'config.json', 'figures.json', 'train.parquet', 'valid.parquet',
                'rejects.parquet', 'report.json', 'answers.jsonl'}
    assert run.done and promised <= {p.name for p in out.iterdir()}
    f = read_json(out/'figures.json')
    assert {'pref_acc_before', 'pref_acc_after', 'pref_acc_before_n', 'pref_acc_by_source', 'exact_heldout', 'seconds',
            'real_tok_per_s'} <= f.keys()
    report = read_json(out/'report.json').values()
    assert all(r['in'] == r['train'] + r['valid'] + sum(r['rejected'].values()) for r in report)
    assert sum(r['in'] for r in report) == 60
    before, tok = load_model(dials/'runs/tiny/sft/model')
    valid = pq.read_table(out/'valid.parquet').to_pylist()
    train = pq.read_table(out/'train.parquet').to_pylist()
    assert f['too_long'] == dict(how='cut', max_len=small().max_len, rows=len(train), prompt=0, response=0, either=0)
    table = logp_table(before, encode_prefs([SimpleNamespace(**r) for r in valid], tok, 128))
    assert f['pref_acc_before'] == pytest.approx((table[:, 0] > table[:, 1]).float().mean().item())
    assert f['pref_acc_before_n'] == len(valid)
    own = [r for r in pq.read_table(out/'train.parquet').to_pylist() if r['source'] == 'alpaca']
    assert [r['rejected'] for r in own] == greedy_answers(before, tok, [r['prompt'] for r in own], 8)
    assert read_log(out/'log.jsonl')[0]['step']
    assert not torch.equal(load_model(out/'model')[0].shared.weight, before.shared.weight)

def test_merged_equals_adapter_and_opens_plain(dials):
    from transformers import AutoModelForSeq2SeqLM
    run = dpo(small(lora=True, lr=1e-2), progress=False)
    out = dials/'runs/tiny/dpo_lora'
    assert {'adapter_config.json', 'adapter_model.safetensors'} <= {p.name for p in (out/'adapter').iterdir()}
    assert not (out/'model').exists()
    folder = merge()
    assert folder == out/'model'
    plain = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    before, tok = load_model(dials/'runs/tiny/sft/model')
    rows = encode_prefs(prefs(30), tok, 64)
    models = (plain, run.acc.unwrap_model(run.model), before)
    merged, adapted, start = (logp_table(m, rows) / answer_lens(rows) for m in models)
    assert (merged - adapted).abs().max() < 1e-5 and (merged - start).abs().max() > 1e-3

def test_epochs_stand_for_steps(dials):
    run = dpo(small(epochs=2., out=str(dials/'epochs')), progress=False)
    assert pq.read_metadata(dials/'runs/tiny/dpo/train.parquet').num_rows
    assert run.pos['epoch'] == 2 and run.pos['batch'] == 0 and run.step == run.cfg.steps
    assert sum(e['real_tok'] for e in read_log(dials/'epochs'/'log.jsonl')[-2:] if 'real_tok' in e)
