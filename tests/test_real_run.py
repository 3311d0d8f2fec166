"The command line of the real run: what it refuses, that nothing is lost by it, what an evening takes over."
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]/'benchmarks'))
import real

BENCHMARKS = Path(__file__).parents[1]/'benchmarks'


@pytest.fixture
def data(tmp_path):
    "The public files, a row of each."
    root = tmp_path/'data'
    for name in ('pairs', 'raw/alpaca', 'prefs', 'duie', 'eval'): (root/name).mkdir(parents=True)
    pq.write_table(pa.table(dict(prompt=['甲'], response=['子'], source=['B_x'])), root/'pairs'/'mixed.parquet')
    pq.write_table(pa.table(dict(prompt=['丁'], response=['卯'])), root/'pairs'/'smile.parquet')
    (root/real.ALPACA).write_text('[{"zh_instruction": "问", "zh_input": "", "zh_output": "答"}]', encoding='utf-8')
    for name in real.NEEDED: (root/name).write_text('{}', encoding='utf-8')
    return root


@pytest.fixture
def runs(tmp_path, monkeypatch):
    "Runs of this evening; the dials are put back afterwards."
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path/'runs'))
    monkeypatch.setenv('SCCLM_SCALE', 'small')
    monkeypatch.setenv('SCCLM_RAW', '')
    monkeypatch.setattr(os, 'environ', os.environ.copy())
    return tmp_path/'runs'/'small'


def said(capsys, monkeypatch, *args):
    "Exit code and last words of the program."
    monkeypatch.setattr(sys, 'argv', ['real.py', *map(str, args)])
    with pytest.raises(SystemExit) as ended, real.in_one_line(): real.main()
    code = ended.value.code
    return (1, code) if isinstance(code, str) else (code, capsys.readouterr().err)


def files(folder):
    "Everything below a folder, hidden names too, and what it holds."
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


# prepare

def test_incomplete_inputs_are_named_before_anything_is_cleared(data, tmp_path, runs, capsys, monkeypatch):
    raw = tmp_path/'raw'
    real.prepare(data, raw)
    before = files(raw)
    (data/'pairs'/'smile.parquet').unlink()
    (data/'eval'/'cmmlu.tar.xz').unlink()
    (data/'eval').rmdir()
    code, words = said(capsys, monkeypatch, 'prepare', '--data', data, '--raw', raw)
    assert code == 1 and words == f'real.py: --data {data}: expected pairs/smile.parquet, eval in it'
    assert files(raw) == before
    code, words = said(capsys, monkeypatch, 'prepare', '--data', tmp_path/'nowhere', '--raw', tmp_path/'new')
    assert code == 1 and 'expected pairs/smile.parquet, raw, ' in words and not (tmp_path/'new').exists()


@pytest.mark.parametrize('harm', ['[{"zh_instruction": "问"}]', '[', '"text"'])
def test_what_fails_on_the_way_leaves_the_earlier_folder_whole(data, tmp_path, harm):
    raw = tmp_path/'raw'
    real.prepare(data, raw)
    before = files(raw)
    (data/real.ALPACA).unlink() # the raw folder has a link to it
    (data/real.ALPACA).write_text(harm, encoding='utf-8')
    for place in (raw, tmp_path/'new'):
        with pytest.raises(ValueError, match='part_0.json: expected JSON, a list of zh_instruction, zh_input, '):
            real.prepare(data, place)
    assert files(raw) == before and sorted(p.name for p in tmp_path.iterdir()) == ['data', 'raw']


def test_columns_that_are_missing_are_named(data, tmp_path):
    pq.write_table(pa.table(dict(prompt=['甲'], response=['子'])), data/'pairs'/'mixed.parquet')
    with pytest.raises(ValueError, match='expected the columns source too'): real.prepare(data, tmp_path/'raw')


def test_a_file_that_vanishes_is_not_copied(tmp_path):
    with pytest.raises(FileNotFoundError): real.link(tmp_path/'gone', tmp_path/'place')


# run and step

def test_a_raw_folder_that_prepare_did_not_finish_is_refused(data, tmp_path, runs, capsys, monkeypatch):
    (tmp_path/'half').mkdir()
    for name in ('nowhere', 'half'):
        for what in (['run'], ['step', 'clean']):
            code, words = said(capsys, monkeypatch, *what, '--raw', tmp_path/name)
            assert code == 1 and words.startswith(f'real.py: --raw {tmp_path/name}: expected a folder laid out by')
            assert 'goes on' not in words
    (data/'duie'/'duie_train.json').unlink()
    real.prepare(data, tmp_path/'raw')
    code, words = said(capsys, monkeypatch, 'run', '--raw', tmp_path/'raw')
    assert 'expected duie/duie_train.json in it' in words and not runs.exists()


def test_names_are_asked_for_and_known(runs, capsys, monkeypatch):
    for args, says in ((['step'], 'step wants names: expected some of clean leaks'), (['prepare'], 'wants --data'),
                       (['run', 'claen'], 'claen: expected some of clean leaks'),
                       (['run', '--from', 'x'], '--from: expected with SCCLM_EVENING=3 only')):
        code, words = said(capsys, monkeypatch, *args)
        assert code == 2 and says in words, args


def test_an_unknown_evening_is_one_line():
    made = subprocess.run([sys.executable, BENCHMARKS/'real.py', 'run'], env=os.environ | dict(SCCLM_EVENING='7'),
                          capture_output=True, text=True, timeout=300)
    assert made.returncode == 1 and made.stderr.strip() == "real.py: SCCLM_EVENING='7': expected one of 2, 3"


@pytest.mark.parametrize('code, says', [
    (3, 'clean: stopped; the same command goes on'), (143, 'clean: stopped; the same command goes on'),
    (1, 'clean: ended with 1, see above; once it is mended'), (137, 'clean: ended with 137, see above')])
def test_how_a_step_ended_is_told(runs, monkeypatch, code, says):
    asked = []
    monkeypatch.setattr(real, 'call', lambda command: asked.append(command[-2:]) or code)
    with pytest.raises(SystemExit, match=says): real.run_all(['clean', 'leaks'])
    assert asked == [['step', 'clean']]


# The evenings

def test_the_steps_of_an_evening_are_those_that_its_figures_come_from():
    kept = BENCHMARKS/'results'/'real_small'
    second = json.loads((kept/'diary.json').read_text(encoding='utf-8'))
    third = json.loads((kept/'third.json').read_text(encoding='utf-8'))
    for names in real.LISTS.values(): assert len(set(names)) == len(names) and set(names) <= real.FUNCTIONS.keys()
    second = {'ie_longer' if name == 'ie_steps' else name for name in second} # what it was called at first
    assert second <= set(real.LISTS['2']) and 'ie_4000_slower' not in real.LISTS['2']
    trained = {f"ie_{name.replace('pretrained', 'sft')}" for name in (*third['runs'], *third['missing'])}
    assert {'pretrain', 'sft'} | trained == set(real.LISTS['3'])
    assert real.TAKEN.keys() <= set(real.LISTS['2']) and not real.TAKEN.keys() & set(real.LISTS['3'])


@pytest.fixture
def second(tmp_path, runs, monkeypatch):
    "Runs of the second evening with all that the third wants, which it is now."
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path/'second'))
    for name, parts in real.TAKEN.items():
        for part in parts:
            place = real.run_path(part)
            if '.' not in part: place /= 'inside.txt'
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(name, encoding='utf-8')
        real.noted(name, 'end')
    real.noted('pretrain', 'end')
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path/'runs'))
    monkeypatch.setenv('SCCLM_EVENING', '3')
    return tmp_path/'second'


def test_the_third_evening_takes_over_what_it_keeps_and_no_more(second, runs):
    real.take_over(second)
    assert real.done_steps() == real.TAKEN.keys(), 'its pretraining is its own'
    assert (runs/'data'/'inside.txt').read_text(encoding='utf-8') == 'clean'
    assert sorted(files(runs)) == ['data/inside.txt', 'diary.jsonl', 'exercises.parquet', 'ie_choice/choice.json',
                                   'talk.parquet', 'tokenizer/inside.txt']
    before = files(runs)
    for earlier in (second, None): real.take_over(earlier) # the same command again, with or without
    assert files(runs) == before and {e['taken_from'] for e in real.read_diary(real.diary()) if e['what'] == 'end'} == {
        str(second)}


def test_a_take_over_that_was_killed_is_made_up_for(second, runs):
    (runs/'data').mkdir(parents=True)
    (runs/'data'/'half').write_text('', encoding='utf-8')
    real.noted('clean', 'start')
    real.take_over(second)
    assert sorted(p.name for p in (runs/'data').iterdir()) == ['inside.txt']


@pytest.mark.parametrize('lost', ['talk.parquet', 'ie_choice/choice.json', 'data'])
def test_a_gap_in_the_second_evening_is_named(second, runs, lost):
    name, = (n for n, parts in real.TAKEN.items() if lost in parts)
    (second/'small'/lost).rename(second/'small'/'elsewhere')
    with pytest.raises(ValueError, match=f"--from .*: expected the second evening's {name} finished in it"):
        real.take_over(second)
    assert not runs.exists()


def test_the_third_evening_says_what_it_wants(second, tmp_path, runs, monkeypatch):
    with pytest.raises(ValueError, match='takes clean, leaks, tokenizer, mixture, ie_choice over .*--from RUNS'):
        real.take_over(None)
    with pytest.raises(ValueError, match="the second evening's clean, leaks, tokenizer, mixture, ie_choice finished"):
        real.take_over(tmp_path/'nowhere')
    (runs/'data').mkdir(parents=True)
    (runs/'data'/'mine').write_text('', encoding='utf-8')
    with pytest.raises(ValueError, match='holds data already: expected a new SCCLM_RUNS'): real.take_over(second)
    assert (runs/'data'/'mine').exists()
    monkeypatch.setenv('SCCLM_RUNS', str(second))
    with pytest.raises(ValueError, match='holds evening 2: expected an SCCLM_RUNS of its own for evening 3'):
        real.check_runs()
