"The report card: what the stages left, told again without loss, with intervals, and nothing that was not measured."
import inspect
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import raw_toys

from scclm.report_card import (CONTRACT, CardCfg, card, card_markdown, card_rows, commit, flat, make_card, meaning,
    missing, official_exams, readme_block, stage_scores, tidy, write_card)
from scclm.scores import pair_eval

HELD = dict(exact_heldout=dict(all=.96, phrasing=.98, template=.94),
            n_heldout=dict(all=1400, phrasing=700, template=700))
COST = dict(real_tok_per_s=16000., real_tok=3_000_000, seconds=184.5, steps=4200)
F1 = dict(f1_combination=.93, f1_combination_ci95=[.91, .95], f1_combination_n=300,
          f1_entity=.86, f1_entity_ci95=[.83, .89], f1_entity_n=300,
          f1_pattern=.5, f1_pattern_ci95=[.45, .55], f1_pattern_n=300)

F1 |= {re.sub(r'(_ci95|_n)?$', r'_final\1', k, count=1): v for k, v in F1.items()}
MEASURED = dict(value=.97, ci95=[.96, .98], n=1426)

def lower(value, by=.3):
    "A share or an interval moved down."
    return [x - by for x in value] if isinstance(value, list) else value - by

def put(path, value):
    "Write a text, or a value as JSON."
    raw_toys.put(path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))

def exam(share, n=1000):
    "An exam's entry in eval/scores.json."
    interval = [share - .03, share + .03]
    return dict(accuracy=share, ci95=interval, n=n, chance=.25, subjects={'x': {}}, contains_chance=True)

def put_training(f):
    "What the training stages leave."
    put(f/'pretrain/figures.json', HELD | COST | dict(
        loss_valid=.07, bits_per_char=.1, bits_per_char_valid=.11, bleu4=92., answers={'问': '答'}))
    put(f/'pretrain/config.json', dict(
        scale='tiny', steps=4200, lr=1e-3, files=['/elsewhere/secret/a.parquet'], out=str(f/'pretrain')))
    put(f/'pretrain/log.jsonl', '{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0, "loss_valid": 2.1}\n{"st')
    put(f/'sft/figures.json', HELD | COST)
    put(f/'dpo/figures.json', HELD | COST | dict(
        pref_acc_before=.6, pref_acc_before_n=200, pref_acc_after=.9, pref_acc_after_n=200,
        pref_acc_after_final=.8, pref_acc_after_final_n=100,
        pref_acc_by_source={'sample': dict(before=.6, after=.9, n=200)}))
    put(f/'dpo_lora/figures.json', dict(pref_acc_after=.85, pref_acc_after_n=200))
    put(f/'ie/figures.json', F1 | COST | dict(
        exact_heldout_before=.96, exact_heldout_after=.95, p_entity=.9, unreadable_entity=2))
    put(f/'ie_scratch/figures.json', {k: v if k.endswith('_n') else lower(v) for k, v in F1.items()})

@pytest.fixture
def folder(tmp_path, monkeypatch):
    "A whole course as the stages leave it."
    for dial in ('SCCLM_RAW', 'SCCLM_SCALE'): monkeypatch.delenv(dial, raising=False)
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path/'runs'))
    f = tmp_path/'runs'/'tiny'
    put_training(f)
    measured = dict(rows=9, loss=dict(value=.1, ci95=[.05, .2]), exact=dict(value=.5, ci95=[.3, .7]))
    put(f/'eval/scores.json', dict(
        model=str(f/'sft'/'model'), pairs=dict(test=measured), cmmlu={'0-shot': exam(.24), '5-shot': exam(.26)},
        ceval={'0-shot': exam(.25)}, cmmlu_text={'5-shot': exam(.9)}))
    put(f/'chat/scores.json', {k: MEASURED for k in CONTRACT['chat'] if not k.endswith('_final')})
    chat = [k.removesuffix('_final') for k in CONTRACT['chat'] if k.endswith('_final')]
    stages = {s: dict(exact_heldout=MEASURED) for s in ('pretrain', 'sft', 'dpo')}
    put(f/'final/scores.json', stages | dict(chat=dict.fromkeys(chat, MEASURED)))
    chapters = [dict(name='00_data_cleaning', seconds=4., peak_rss_mb=300, ok=True),
                dict(name='05_pretrain', seconds=250., peak_rss_mb=1000, ok=True),
                dict(name='06_sft', seconds=1., peak_rss_mb=1, ok=False, error='x', stopped=False)]
    put(f/'course.json', dict(set_up_seconds=70., chapters=chapters))
    put(f/'data/report.json', dict(
        rows_in=10, kept=8, rejected=2, rules=dict(star=2), splits=dict(train=8), config={},
        sources=dict(webtext=dict(rows_in=10, kept=8, rejected=dict(star=2)))))
    return f

def by_definition(right, n, z=1.959964):
    "All shares within z of their own standard errors of the observed one, on a grid."
    grid = [i/20000 for i in range(20001)]
    inside = [p for p in grid if abs(right/n - p) <= z*math.sqrt(p*(1 - p)/n) + 1e-12]
    return inside[0], inside[-1]

def test_the_contract_is_kept(folder):
    c = make_card(folder)
    assert missing(c) == []
    assert {'env', 'config', 'seconds', 'data', 'chapters', 'memory_mb', 'tok_per_s'} <= c.keys()
    assert all(isinstance(c[s][k], float) for s, names in CONTRACT.items() if s != 'eval' for k in names)
    for e in ('cmmlu', 'ceval'): assert {'accuracy', 'ci95', 'chance'} <= c['eval'][e].keys()
    assert c['seconds'] == dict(clean=4., pretrain=184.5, sft=184.5, dpo=184.5, ie=184.5, set_up=70.)
    assert c['memory_mb'] == dict(clean=300, pretrain=1000) and c['tok_per_s']['pretrain'] == 16000.
    assert c['chapters'].keys() == {'00_data_cleaning', '05_pretrain'}
    assert c['data']['sources']['webtext']['rejected'] == dict(star=2)

def test_values_arrive_unchanged(folder):
    c = make_card(folder)
    assert (c['pretrain']['exact_heldout'], c['pretrain']['exact_heldout_template']) == (.96, .94)
    assert c['dpo']['pref_acc_after'] == .9
    assert (c['ie']['f1_entity'], c['ie']['f1_entity_ci95']) == (.86, [.83, .89])
    assert c['ie']['f1_entity_scratch'] == pytest.approx(.56)
    assert c['ie']['f1_entity_scratch_ci95'] == pytest.approx([.53, .59])
    assert (c['eval']['cmmlu']['accuracy'], c['eval']['cmmlu']['shots'], c['eval']['ceval']['shots']) == (.26, 5, 0)
    assert c['eval']['test'] == dict(loss=.1, loss_ci95=[.05, .2], exact=.5, exact_ci95=[.3, .7])
    assert c['eval']['model'] == 'runs/tiny/sft/model'
    assert (c['sft']['exact_heldout_final'], c['sft']['exact_heldout_final_ci95']) == (.97, [.96, .98])
    assert c['chat']['slip_final_n'] == 1426 and c['dpo']['pref_acc_after_final'] == .8
    assert (c['chat']['slip'], c['chat']['slip_ci95'], c['chat']['slip_n']) == (.97, [.96, .98], 1426)
    assert [r['key'] for r in card_rows(c) if r['key'].startswith('chat.')] == [f'chat.{k}' for k in CONTRACT['chat']]

def test_intervals_of_shares_by_definition(folder):
    c = make_card(folder)
    for got, right, n in [(c['pretrain']['exact_heldout_ci95'], 1344, 1400),
                          (c['dpo']['pref_acc_after_ci95'], 180, 200),
                          (c['dpo']['pref_acc_by_source_sample_before_ci95'], 120, 200),
                          (c['ie']['exact_heldout_before_ci95'], 1344, 1400)]:
        assert got == pytest.approx(by_definition(right, n), abs=1e-4)
    for r in card_rows(c):
        share = r['key'].split('.')[1].startswith(('exact', 'pref', 'f1'))
        if share: assert r['ci95'][0] <= r['value'] <= r['ci95'][1], r

def test_given_intervals_are_not_replaced():
    s = stage_scores(dict(exact_heldout=dict(all=.5), exact_heldout_ci95=[.1, .9], n_heldout=dict(all=10),
                          loss_valid=2., loss_valid_ci95=[1.9, 2.1]))
    assert s['exact_heldout_ci95'] == [.1, .9] and s['loss_valid_ci95'] == [1.9, 2.1]

def holds_null(x):
    "Whether there is a null anywhere inside."
    if isinstance(x, dict): return any(map(holds_null, x.values()))
    return any(map(holds_null, x)) if isinstance(x, list) else x is None

def test_what_is_absent_stays_absent(folder):
    (folder/'ie'/'figures.json').unlink()
    # real data: no held-out questions
    put(folder/'sft/figures.json', dict(loss_valid=float('nan'), exact_heldout={}, n_heldout={}, bleu4=None))
    (folder/'final'/'scores.json').unlink()
    c = json.loads(json.dumps(make_card(folder), allow_nan=False))
    assert 'sft' not in c and 'f1_entity' not in c['ie'] and 'f1_entity_scratch' in c['ie']
    ie = [f'ie.{n}' for n in CONTRACT['ie'] if not n.endswith('_scratch')]
    chat = [f'chat.{n}' for n in CONTRACT['chat'] if n.endswith('_final')]
    finals = [f'{s}.exact_heldout_final' for s in ('pretrain', 'sft', 'dpo')]
    assert set(missing(c)) == {'sft.exact_heldout', *ie, *chat, *finals}
    assert '`ie.f1_entity`' in card_markdown(c).split('没有测：')[1].split('。')[0]
    assert not holds_null(c)

def test_an_empty_folder_gives_a_card_without_figures(tmp_path):
    (tmp_path/'mini').mkdir()
    c = write_card(tmp_path/'mini')
    assert set(c) == {'scale', 'env'} and c['scale'] == 'mini' and len(missing(c)) == sum(map(len, CONTRACT.values()))
    assert (tmp_path/'mini'/'card.png').stat().st_size > 1000

def test_files_are_whole_and_private(folder, tmp_path):
    c = card(CardCfg(folder=str(folder)))
    written = (folder/'card.json').read_text(encoding='utf-8')
    assert json.loads(written) == json.loads(json.dumps(c))
    text = written + (folder/'card.md').read_text(encoding='utf-8')
    host = os.uname().nodename if hasattr(os, 'uname') else 'no host'
    for private in (str(tmp_path), str(Path.home()), host): assert private not in text or len(private) < 4, private
    config = c['config']['pretrain']
    assert config['files'] == ['a.parquet'] and config['out'] == 'runs/tiny/pretrain'
    assert (folder/'card.png').read_bytes()[:8] == b'\x89PNG\r\n\x1a\n'
    assert not list(folder.glob('.*tmp'))

def test_the_page_says_what_the_file_says(folder):
    c = make_card(folder)
    page = card_markdown(c)
    for r in card_rows(c):
        if f"`{r['key']}`" in page and 'ci95' in r:
            line = next(x for x in page.splitlines() if f"`{r['key']}`" in x)
            assert f"| {r['value']:.3f} | {r['ci95'][0]:.3f} – {r['ci95'][1]:.3f} |" in line
    for section, names in CONTRACT.items():
        for n in names: assert f'`{section}.{n}{".accuracy" if section == "eval" else ""}`' in page
    assert '`ie.f1_entity_scratch`' in readme_block(c) and '没有测' not in readme_block(c)

def test_bleu_names_its_rows():
    "The number is one of a few rows: which file, how many of them."
    n = inspect.signature(pair_eval).parameters['n_bleu'].default
    for stage, name in (('pretrain', 'valid'), ('sft', 'sft_valid')):
        assert meaning(f'{stage}.bleu4') == f'BLEU-4，{name}.parquet 的前 {n} 对'
    assert meaning('eval.test.bleu4') == 'BLEU-4', 'its file is in the key'

@pytest.mark.parametrize('text, words', [
    ('{"a": 1,\n\n"b" }', 'figures.json, line 3'),
    ('[1]', 'figures.json: holds a list, expected a JSON object')])
def test_an_unreadable_file_is_named(folder, text, words):
    put(folder/'sft/figures.json', text)
    with pytest.raises(ValueError, match=words): make_card(folder)

def test_wrong_encoding_is_named(folder):
    (folder/'course.json').write_bytes('{"章": 1}'.encode('gbk'))
    with pytest.raises(ValueError, match='course.json: not UTF-8'): make_card(folder)

def test_a_missing_folder_is_named(tmp_path):
    cfg = CardCfg(folder=str(tmp_path/'nowhere'))
    with pytest.raises(FileNotFoundError, match='nowhere is missing: run `make course`'): card(cfg)

def test_a_broken_input_leaves_the_old_card(folder):
    write_card(folder)
    old = {n: (folder/n).read_bytes() for n in ('card.json', 'card.md', 'card.png')}
    put(folder/'dpo/figures.json', '{')
    with pytest.raises(ValueError): write_card(folder)
    assert {n: (folder/n).read_bytes() for n in old} == old

DIES_AT_THE_RENAME = '''
import os
import sys
from pathlib import Path
from scclm.report_card import write_card
os.replace = lambda *paths: os._exit(9)
write_card(Path(sys.argv[1]))
'''

def test_a_kill_while_writing_leaves_whole_files(folder):
    write_card(folder)
    old = (folder/'card.json').read_bytes()
    assert subprocess.run([sys.executable, '-c', DIES_AT_THE_RENAME, str(folder)]).returncode == 9
    assert (folder/'card.json').read_bytes() == old
    assert (folder/'card.png').read_bytes()[-8:] == b'IEND\xaeB`\x82' # the end of a whole PNG
    write_card(folder)

def test_commit_in_and_outside_a_checkout(tmp_path):
    assert commit(tmp_path) is None
    def git(*args):
        "One call of git, as somebody."
        who = ['-c', 'user.name=a', '-c', 'user.email=a@b']
        return subprocess.run(['git', *who, *args], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    git('init')
    put(tmp_path/'a.txt', 'a')
    git('add', '.')
    git('commit', '-m', 'x')
    assert git('rev-parse', 'HEAD').startswith(commit(tmp_path)) and '-dirty' not in commit(tmp_path)
    put(tmp_path/'a.txt', 'b')
    assert commit(tmp_path).endswith('-dirty')

@pytest.mark.parametrize('value, want', [
    ('/x/runs/tiny/sft', 'runs/tiny/sft'), ('/y/z.parquet', 'z.parquet'), ('~/z.parquet', 'z.parquet'),
    ('C:\\u\\z', 'z'), ('\\\\host\\u\\z', 'z'), ('runs/a', 'runs/a'), ('', ''), (3, 3), (None, None)])
def test_tidy(value, want): assert tidy(value, Path('/x')) == want

def test_flat_keeps_only_finite_numbers():
    assert flat('f1_a', dict(f1=.5, p=float('inf'), r=None, n=True, ci95=[.1, float('nan')])) == dict(f1_a=.5)
    assert official_exams({}) == {} and official_exams(dict(cmmlu={'note': 1})) == {}
