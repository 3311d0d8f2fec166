"""`make outputs`: what a run printed goes into the notebooks, its facts into benchmarks/; nothing else changes."""
import json

import course_facts
import nbformat
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import store_outputs
from raw_toys import put
from trainer_toys import model

from scclm.final_exam import final_questions, final_unknown
from scclm.model import save_model
from scclm.sample_unknown import REFUSALS

WIDGET = {'application/vnd.jupyter.widget-view+json': {}, 'text/plain': 'bar'}

def book(*sources, outputs=()):
    "A notebook with a title and code cells."
    cells = [nbformat.v4.new_code_cell(s) for s in sources]
    for cell, out in zip(cells, outputs): cell.outputs = out
    return nbformat.writes(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell('# title'), *cells]))

def says(text, name='stdout'): return nbformat.v4.new_output('stream', text=text, name=name)

def code_outputs(path):
    "Outputs of each code cell."
    return [c.outputs for c in nbformat.read(path, 4).cells if c.cell_type == 'code']

@pytest.fixture
def house(tmp_path, monkeypatch):
    "A checkout with two notebooks and a run of both."
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path/'runs'))
    monkeypatch.setenv('SCCLM_SCALE', 'tiny')
    put(tmp_path/'nbs/00_a.ipynb', book('print(1)', '1+1'))
    put(tmp_path/'nbs/appendix/b.ipynb', book('x = 1'))
    bar = nbformat.v4.new_output('display_data', data=WIDGET)
    value = nbformat.v4.new_output('execute_result', data={'text/plain': '2'}, execution_count=7, metadata={'m': 1})
    ran = book('print(1)', '1+1', outputs=([says('1\n'), says('noise', 'stderr'), bar], [value]))
    put(tmp_path/'runs/tiny/notebooks/00_a.ipynb', ran)
    put(tmp_path/'runs/tiny/notebooks/b.ipynb', book('x = 1', outputs=([],)))
    return tmp_path

def files(folder):
    "Every file and its bytes."
    return {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}

def test_outputs_arrive_and_noise_does_not(house):
    store_outputs.store(store_outputs.fitting(house/'nbs'))
    first, second = code_outputs(house/'nbs/00_a.ipynb')
    assert [o.text for o in first] == ['1\n']
    assert second[0].data == {'text/plain': '2'} and second[0].execution_count is None and second[0].metadata == {}

def test_what_was_printed_in_pieces_is_one_output():
    value = nbformat.v4.new_output('execute_result', data={'text/plain': '2'})
    kept = store_outputs.stored([says('1'), says('noise', 'stderr'), says('\n2\n'), value, says('3')])
    assert [o.get('text', o.output_type) for o in kept] == ['1\n2\n', 'execute_result', '3']

def test_sources_and_markdown_stay(house):
    before = [(c.cell_type, c.source, c.id) for c in nbformat.read(house/'nbs/00_a.ipynb', 4).cells]
    store_outputs.store(store_outputs.fitting(house/'nbs'))
    assert [(c.cell_type, c.source, c.id) for c in nbformat.read(house/'nbs/00_a.ipynb', 4).cells] == before

def test_other_code_is_refused_and_nothing_is_written(house):
    (house/'nbs/appendix/b.ipynb').write_text(book('x = 2'), encoding='utf-8')
    before = files(house)
    with pytest.raises(SystemExit, match='b.ipynb: the executed copy has other code'): store_outputs.main(house)
    assert files(house) == before

# What the READMEs say of the course

def answers(questions):
    "The second question of the paper is answered wrong, the fifth untaught one refused, the rest right or nonsense."
    right = {q.prompt: q.response for q in final_questions()} | {final_questions()[1].prompt: '不对'}
    return [REFUSALS['outside'] if q == final_unknown()[4] else right.get(q, '嗯') for q in questions]

@pytest.fixture
def course(house, tok):
    "What a course leaves, as far as the facts go."
    tiny = house/'runs/tiny'
    save_model(model(tok), tok, tiny/'dpo/model')
    chapters = [dict(name='00_data_cleaning', seconds=6., peak_rss_mb=300, ok=True, key='k')]
    pairs = {name: dict(train=n, valid=1) for name, n in (('a', 3), ('b', 4))}
    triples = dict(train=dict(rows=dict(rows=9, kept=8), triples=dict(kept=11, lower_case=1)))
    for name, value in {'card.json': dict(scale='tiny', corpus='sample corpus', seeds=dict(a=1), env={}),
                        'course.json': dict(set_up_seconds=1., reference_tok_per_s=5e3, chapters=chapters),
                        'data/report.json': dict(rows_in=20, rejected=2, splits=dict(train=15, sft_train=3)),
                        'dpo/report.json': pairs, 'ie/report.json': triples}.items(): put(tiny/name, json.dumps(value))
    rows = [('entity', 't0', '[(a,b,c)]', '[(a,b,c)]'), ('entity_final', 't1', '[(a,b,c)]', '[(a,b,d)]'),
            ('entity_final', 't2', '[(a,b,c)]', '[(a,b,c)]')]
    names = ('test', 'text', 'stated', 'extracted')
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows))))), tiny/'ie/extracted.parquet')
    return house

def test_facts_are_those_of_the_run(course, tok):
    (course/'benchmarks').mkdir()
    course_facts.keep_facts(course, answers)
    facts = json.loads((course/'benchmarks/course.json').read_text(encoding='utf-8'))
    assert facts['rows'] == dict(read=20, rejected=2, train=15, sft=3, prefs=7, sentences=8, triples=11)
    assert facts['reference_tok_per_s'] == 5e3
    assert facts['chapters'] == [dict(name='00_data_cleaning', seconds=6., peak_rss_mb=300)]
    assert facts['model']['parameters'] == sum(p.numel() for p in model(tok).parameters())
    assert facts['model']['vocabulary'] == len(tok) and facts['model']['mb'] > 0
    assert [(t['kind'], t['number']) for t in facts['talk']] == [('right', 1), ('refused', 5), ('wrong', 2)]
    assert facts['triple'] == dict(text='t2', extracted='[(a,b,c)]')
    card = json.loads((course/'benchmarks/card.json').read_text(encoding='utf-8'))
    assert card == dict(scale='tiny', corpus='sample corpus', env={}), 'seeds have a file of their own'

@pytest.mark.parametrize('name, text, says', [
    ('card.json', '{"scale": "small", "corpus": "sample corpus"}', "scale='small', expected 'tiny'"),
    ('card.json', '{"scale": "tiny", "corpus": "own files"}', "corpus='own files', expected 'sample corpus'"),
    ('ie/report.json', None, 'ie/report.json is missing'),
    ('card.json', None, 'card.json is missing')])
def test_facts_of_another_course_are_refused(course, name, text, says):
    (course/'benchmarks').mkdir()
    path = course/'runs/tiny'/name
    path.unlink()
    if text: put(path, text)
    before = files(course)
    with pytest.raises((ValueError, FileNotFoundError), match=says): course_facts.keep_facts(course, answers)
    assert files(course) == before
