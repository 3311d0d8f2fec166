"""`make outputs`: what a run printed goes into the notebooks and the README, and nothing else changes."""
import importlib.util, json
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]

@pytest.fixture
def store():
    spec = importlib.util.spec_from_file_location('store_outputs', ROOT/'.ci'/'store_outputs.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

def book(*sources, outputs=()):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell('# title'), *map(nbformat.v4.new_code_cell, sources)])
    for cell, out in zip(nb.cells[1:], outputs): cell.outputs = out
    return nb

def says(text, name='stdout'): return nbformat.v4.new_output('stream', text=text, name=name)

@pytest.fixture
def house(tmp_path, monkeypatch):
    "A checkout with two notebooks, a run of both, a card, one benchmark and a README."
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path/'runs')); monkeypatch.setenv('SCCLM_SCALE', 'tiny')
    put = lambda path, text: (path.parent.mkdir(parents=True, exist_ok=True), path.write_text(text, encoding='utf-8'))
    bar = nbformat.v4.new_output('display_data', data={'application/vnd.jupyter.widget-view+json': {}, 'text/plain': 'bar'})
    value = nbformat.v4.new_output('execute_result', data={'text/plain': '2'}, execution_count=7, metadata={'m': 1})
    put(tmp_path/'nbs/00_a.ipynb', nbformat.writes(book('print(1)', '1+1')))
    put(tmp_path/'nbs/appendix/b.ipynb', nbformat.writes(book('x = 1')))
    put(tmp_path/'runs/tiny/notebooks/00_a.ipynb', nbformat.writes(book('print(1)', '1+1', outputs=([says('1\n'), says('noise', 'stderr'), bar], [value]))))
    put(tmp_path/'runs/tiny/notebooks/b.ipynb', nbformat.writes(book('x = 1', outputs=([],))))
    card = dict(scale='tiny', env=dict(cpu='toy cpu', cores=2, gpu='none', packages=dict(torch='0')), sft=dict(exact_heldout=.5, exact_heldout_ci95=[.4, .6], exact_heldout_n=100))
    put(tmp_path/'runs/tiny/card.json', json.dumps(card))
    row = dict(what='a thing', ours=2., baseline=1., baseline_name='theirs', unit='s', ratio=2., runs=dict(ours=[3., 1., 2.], baseline=[1.]))
    put(tmp_path/'benchmarks/results/toy.json', json.dumps(dict(machine='toy machine', rows=[row])))
    put(tmp_path/'README.md', 'before\n<!-- results:begin -->\nold\n<!-- results:end -->\nafter\n')
    return tmp_path

def test_outputs_arrive_and_noise_does_not(store, house):
    store.main(house)
    first, second = [c.outputs for c in nbformat.read(house/'nbs/00_a.ipynb', 4).cells if c.cell_type == 'code']
    assert [o.text for o in first] == ['1\n']
    assert second[0].data == {'text/plain': '2'} and second[0].execution_count is None and second[0].metadata == {}

def test_the_readme_changes_between_its_marks_only(store, house):
    store.main(house)
    text = (house/'README.md').read_text(encoding='utf-8')
    assert text.startswith('before\n<!-- results:begin -->\n') and text.endswith('<!-- results:end -->\nafter\n') and 'old' not in text
    assert '0.500' in text and 'a thing' in text and '| 2 (1 to 3) | theirs: 1 |' in text and 'toy machine' in text

def test_other_code_is_refused_and_nothing_is_written(store, house):
    (house/'nbs/appendix/b.ipynb').write_text(nbformat.writes(book('x = 2')), encoding='utf-8')
    before = {p: p.read_bytes() for p in house.rglob('*') if p.is_file()}
    with pytest.raises(SystemExit, match='b.ipynb: the executed copy has other code'): store.main(house)
    assert {p: p.read_bytes() for p in house.rglob('*') if p.is_file()} == before
