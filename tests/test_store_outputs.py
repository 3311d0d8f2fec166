"""`make outputs`: what a run printed goes into the notebooks and the README, and nothing else changes."""
import importlib.util
import json
from pathlib import Path

import nbformat
import pytest
from raw_toys import put

ROOT = Path(__file__).resolve().parents[1]
WIDGET = {'application/vnd.jupyter.widget-view+json': {}, 'text/plain': 'bar'}

@pytest.fixture
def store():
    "The script as a module."
    spec = importlib.util.spec_from_file_location('store_outputs', ROOT/'.ci'/'store_outputs.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

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
    "A checkout with two notebooks, a run of both, a card, one benchmark and a README."
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path/'runs'))
    monkeypatch.setenv('SCCLM_SCALE', 'tiny')
    put(tmp_path/'nbs/00_a.ipynb', book('print(1)', '1+1'))
    put(tmp_path/'nbs/appendix/b.ipynb', book('x = 1'))
    bar = nbformat.v4.new_output('display_data', data=WIDGET)
    value = nbformat.v4.new_output('execute_result', data={'text/plain': '2'}, execution_count=7, metadata={'m': 1})
    ran = book('print(1)', '1+1', outputs=([says('1\n'), says('noise', 'stderr'), bar], [value]))
    put(tmp_path/'runs/tiny/notebooks/00_a.ipynb', ran)
    put(tmp_path/'runs/tiny/notebooks/b.ipynb', book('x = 1', outputs=([],)))
    env = dict(cpu='toy cpu', cores=2, gpu='none', packages=dict(torch='0'))
    scores = dict(exact_heldout=.5, exact_heldout_ci95=[.4, .6], exact_heldout_n=100)
    put(tmp_path/'runs/tiny/card.json', json.dumps(dict(scale='tiny', env=env, sft=scores)))
    row = dict(what='a thing', ours=2., baseline=1., baseline_name='theirs', unit='s', ratio=2.,
               runs=dict(ours=[3., 1., 2.], baseline=[1.]))
    counted = dict(row, what='another', runs=5)
    put(tmp_path/'benchmarks/results/toy.json', json.dumps(dict(machine='toy machine', rows=[row, counted])))
    put(tmp_path/'README.md', 'before\n<!-- results:begin -->\nold\n<!-- results:end -->\nafter\n')
    return tmp_path

def files(folder):
    "Every file and its bytes."
    return {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}

def test_outputs_arrive_and_noise_does_not(store, house):
    store.main(house)
    first, second = code_outputs(house/'nbs/00_a.ipynb')
    assert [o.text for o in first] == ['1\n']
    assert second[0].data == {'text/plain': '2'} and second[0].execution_count is None and second[0].metadata == {}

def test_sources_and_markdown_stay(store, house):
    before = [(c.cell_type, c.source, c.id) for c in nbformat.read(house/'nbs/00_a.ipynb', 4).cells]
    store.main(house)
    assert [(c.cell_type, c.source, c.id) for c in nbformat.read(house/'nbs/00_a.ipynb', 4).cells] == before

def test_the_readme_changes_between_its_marks_only(store, house):
    store.main(house)
    text = (house/'README.md').read_text(encoding='utf-8')
    assert text.startswith('before\n<!-- results:begin -->\n') and text.endswith('\n<!-- results:end -->\nafter\n')
    assert 'old' not in text and '0.500' in text and 'toy machine' in text
    lines = text.splitlines()
    assert '| toy | a thing | 2 (1 to 3) | theirs: 1 | s | 2.00 |' in lines
    assert '| toy | another | 2 | theirs: 1 | s | 2.00 |' in lines
    store.main(house)
    assert (house/'README.md').read_text(encoding='utf-8') == text, 'a second call changes nothing'

def test_a_readme_without_marks_stays(store, house):
    (house/'README.md').write_text('no marks\n', encoding='utf-8')
    store.main(house)
    assert (house/'README.md').read_text(encoding='utf-8') == 'no marks\n'

def test_other_code_is_refused_and_nothing_is_written(store, house):
    (house/'nbs/appendix/b.ipynb').write_text(book('x = 2'), encoding='utf-8')
    before = files(house)
    with pytest.raises(SystemExit, match='b.ipynb: the executed copy has other code'): store.main(house)
    assert files(house) == before
