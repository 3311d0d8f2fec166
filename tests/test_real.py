"The scripts of the real run: what they lay out, what they fit, what they count, on files made by hand."
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]/'benchmarks'))
import real
import real_measure

from scclm.sources import find_sources


@pytest.fixture
def data(tmp_path):
    "The public files, a few rows of each."
    root = tmp_path/'data'
    for name in ('pairs', 'raw/alpaca', 'prefs', 'duie', 'eval'): (root/name).mkdir(parents=True)
    rows = dict(prompt=list('甲乙丙'), response=list('子丑寅'), source=['A_carbonz0', 'B_x', 'C_belle_dev1K'])
    pq.write_table(pa.table(rows), root/'pairs'/'mixed.parquet')
    pq.write_table(pa.table(dict(prompt=['丁'], response=['卯'])), root/'pairs'/'smile.parquet')
    alpaca = [dict(zh_instruction='问', zh_input='', zh_output='答', en_output='x')]
    (root/'raw'/'alpaca'/'alpaca_chinese_part_0.json').write_text(json.dumps(alpaca), encoding='utf-8')
    (root/'duie'/'duie_valid.json').write_text('{}', encoding='utf-8')
    return root


def test_instructions_go_to_sft_and_everything_else_to_pretraining(data, tmp_path):
    raw = tmp_path/'raw'
    for _ in range(2): real.prepare(data, raw) # it may be made anew
    assert pq.read_table(raw/'sft'/'mixed.parquet')['prompt'].to_pylist() == ['甲', '丙']
    assert pq.read_table(raw/'pretrain'/'mixed.parquet')['prompt'].to_pylist() == ['乙']
    assert json.loads((raw/'prefs'/'alpaca_own_answers.json').read_text(encoding='utf-8')) == [
        dict(instruction='问', input='', output='答')]
    assert (raw/'duie'/'duie_valid.json').samefile(data/'duie'/'duie_valid.json'), 'linked, not copied'
    used = {source.path.relative_to(raw).parts[0] for source in find_sources(raw)[0]}
    assert used == {'sft', 'pretrain'}


def test_a_folder_of_somebody_is_not_made_anew(data, tmp_path):
    (tmp_path/'raw').mkdir()
    (tmp_path/'raw'/'thesis.txt').write_text('mine', encoding='utf-8')
    with pytest.raises(ValueError, match='holds something that is no raw folder'): real.prepare(data, tmp_path/'raw')
    assert (tmp_path/'raw'/'thesis.txt').read_text(encoding='utf-8') == 'mine'


def test_rates_are_chosen_on_sentences_that_no_reported_test_holds(data, tmp_path, monkeypatch):
    lines = [json.dumps(dict(text=f'第{k}句', spo_list=[]), ensure_ascii=False) + '\n' for k in range(3000)]
    (data/'duie'/'duie_train.json').write_text(''.join(lines), encoding='utf-8')
    monkeypatch.setenv('SCCLM_RAW', str(data))
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path/'runs'))
    folder = real.trial_folder()
    kept, held = ((folder/f'duie_{name}.json').read_text(encoding='utf-8') for name in ('train', 'dev'))
    assert kept + held == ''.join(lines) and held.count('\n') == real.LOOKED_AT
    assert real.test_name(dict(loss=1., f1_valid_ci95=[0, 1], f1_valid_n=3, f1_valid=.5)) == 'valid'


def test_the_law_finds_what_made_the_points():
    true = real_measure.Law(1.7, 400., 900., real_measure.HOFFMANN)
    sizes = [(n, d) for n in (2.4e6, 9.4e6) for d in (2e6, 8e6, 5e7)]
    points = [dict(parameters=n, real_tok=d, bits_per_char=true(n, d)) for n, d in sizes]
    found = real_measure.fitted(points)
    assert found[:3] == pytest.approx(true[:3], rel=1e-6)
    assert true(2.4e6, 2e6) == pytest.approx(1.7 + 400/2.4e6**.34 + 900/2e6**.28)


def test_what_is_planned_for_base():
    plan = real_measure.planned('base')
    assert round(plan['parameters']/1e6, 1) == 187.7 and plan['real_tok'] == round(.95 * 300_000 * 8192 * 4)


SENTENCES = [('《甲》的作者是乙。', [('甲', '作者', '乙')]), ('《丙》的作者是丁。', [('丙', '作者', '丁')])]


def test_the_dictionary_knows_triples_and_the_words_between():
    def named(text): return text.replace('甲', '红楼').replace('乙', '曹雪芹').replace('丙', '水浒').replace('丁', '施耐庵')
    rows = [(named(t), [tuple(map(named, x)) for x in triples]) for t, triples in SENTENCES]
    look = real_measure.Dictionary(rows)
    assert look('曹雪芹写红楼十年') == [('红楼', '作者', '曹雪芹')], 'a triple that it knows'
    assert look('《水浒》的作者是曹雪芹') == [('水浒', '作者', '曹雪芹')], 'names that it knows and words between them'
    assert look('曹雪芹没有写过水浒') == []


def test_a_table_of_relations_counts_each_one_alone():
    gold = [[('甲', '作者', '乙'), ('甲', '国籍', '丙')], [('丁', '作者', '戊')]]
    said = [[('甲', '作者', '乙'), ('甲', '作者', '丙')], []]
    assert real_measure.relations(gold, said) == [
        dict(relation='作者', stated=2, p=.5, r=.5, f1=.5), dict(relation='国籍', stated=1, p=0., r=0., f1=0.)]


def test_the_sheet_hides_who_wrote_what_and_the_key_tells():
    found = dict(questions=[f'问{k}' for k in range(60)])
    for stage in real_measure.STAGES: found[stage] = dict(answers=[f'{stage}{k}' for k in range(60)])
    made = real_measure.blind(found)
    assert len(made['sheet']) == len(made['who']) == real_measure.SHOWN
    for k, (row, who) in enumerate(zip(made['sheet'], made['who'])):
        assert row['answers'] == {letter: f'{stage}{k}' for letter, stage in who.items()}
    assert len({tuple(who.values()) for who in made['who']}) > 1, 'not always in one order'
