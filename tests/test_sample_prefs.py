"""The sample preferences: the same bytes every time, nothing shared between training and test,
every planted fault where it is said to be."""
import json

import pyarrow.parquet as pq
import pytest

from scclm.text_rules import clean_texts
from scclm.sample_corpus import heldout_rows
from scclm.sample_facts import facts
from scclm.sample_prefs import (FINAL_KINDS, FLAWS, HARMS, NAMES, WISHES, final_pairs, flaw_rows, harm_rows, is_heldout,
    make_sample_prefs, unknown_pairs, wish_grid, wish_rows)
from scclm.sample_unknown import is_refusal


def ask(row): return row.get('prompt') or row['instruction']

def everything(held): return wish_rows(held) + harm_rows(held) + flaw_rows(held) + unknown_pairs(held)

def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path):
    for name, seed in (('a', 0), ('b', 0), ('c', 1)): make_sample_prefs(tmp_path/name, seed)
    files = sorted(p.relative_to(tmp_path/'a') for p in (tmp_path/'a').rglob('*') if p.is_file())
    assert len(files) == 6 and not [p for p in (tmp_path/'a').rglob('.*')]
    assert all((tmp_path/'a'/f).read_bytes() == (tmp_path/'b'/f).read_bytes() for f in files)
    a, c = ((tmp_path/folder/'prefs'/NAMES['alpaca']).read_bytes() for folder in 'ac')
    assert a != c

def test_saying_that_one_does_not_know_is_better_than_something_wrong():
    true = {f.response for f in facts()}
    for held in (False, True):
        rows = unknown_pairs(held)
        assert all(is_refusal(r['chosen']) and not is_refusal(r['rejected']) for r in rows)
        assert not {r['rejected'] for r in rows} & true, 'a true sentence must not be unlearnt'
    known = [r for r in flaw_rows(False) if is_refusal(r['rejected'])]
    assert len(known) > 100 and all(r['chosen'] in true for r in known)

def test_nothing_of_the_test_is_in_training():
    train, test = everything(False), everything(True)
    assert not {ask(r) for r in train} & {ask(r) for r in test}
    held = {r['prompt'] for r in heldout_rows()}
    assert not {ask(r) for r in train + test} & held
    subjects = {f.subject for f in facts() if is_heldout(f.relation + f.subject) and len(f.subject) > 3}
    names = {f.response for f in facts() if f.subject in subjects and is_heldout(f.relation + f.subject)}
    wishes = wish_rows(False)
    assert not [r for r in wishes if any(n in r['output'] for n in names)]
    assert not [r for r in wishes for w in WISHES if r['instruction'].startswith(w.reserved.format(''))]

def test_flaws_take_turns_and_differ_from_the_fact():
    rows = flaw_rows(False)
    assert all(r['chosen'] != r['rejected'] for r in rows)
    twice = [r['rejected'] == r['chosen'] * 2 for r in rows[:8]]
    assert twice == [i % len(FLAWS) == FLAWS.index('twice') for i in range(8)]

def test_every_harm_is_refused_and_holds_its_names():
    for r in harm_rows(False) + harm_rows(True):
        verb, thing = next((v, o) for v, objects in HARMS.items() for o in objects if v + o in r['prompt'])
        assert r['chosen'].startswith('对不起') and thing in r['chosen'], r
        assert verb + thing in r['reject'], r
        assert '\\n' in r['reject'] and '\n' not in r['reject'], r

def test_files_have_the_real_formats(tmp_path):
    made = make_sample_prefs(tmp_path)
    dirty = (tmp_path/'prefs'/NAMES['alpaca']).read_text(encoding='utf-8')
    with pytest.raises(ValueError): json.loads(dirty)                           # dirt: broken objects
    wanted = {NAMES['alpaca']: {'instruction', 'input', 'output'}, NAMES['huozi']: {'prompt', 'chosen', 'reject'}}
    for name, keys in wanted.items():
        rows = json.loads((tmp_path/'prefs'/'heldout'/name).read_text(encoding='utf-8'))
        assert all(set(r) == keys for r in rows)
    table = pq.read_table(tmp_path/'prefs'/NAMES['reward'])
    assert table.column_names == ['prompt', 'chosen', 'rejected'] and len(table) == made['rows']['reward'] + 25
    assert sum(v is None for v in table['chosen'].to_pylist()) == 5

def test_dirt_is_as_counted(tmp_path):
    "Every planted fault found again by reading the files line by line, with nothing from the library."
    made = make_sample_prefs(tmp_path)
    found = dict.fromkeys(made['dirt'], 0)
    answers = dict(alpaca=('output', None), huozi=('chosen', 'reject'), reward=('chosen', 'rejected'))
    for source, (good, bad) in answers.items():
        path = tmp_path/'prefs'/NAMES[source]
        rows = []
        if source == 'reward': rows = pq.read_table(path).to_pylist()
        else:
            for line in path.read_text(encoding='utf-8').splitlines()[1:-1]:
                try: rows.append(json.loads(line.removesuffix(',')))
                except ValueError: found['broken_json'] += 1
        seen = set()
        for row in rows:
            if good not in row: fault = 'missing_key'
            elif row[good] is None: fault = 'bad_type'
            elif not row[good].strip(): fault = 'empty'
            elif len(row[good]) > 512: fault = 'too_long'
            elif bad and row[good] == row[bad]: fault = 'same'
            else: fault = 'duplicate' if str(row) in seen else ''
            seen.add(str(row))
            if fault: found[fault] += 1
    assert found == made['dirt']

# The final test

def test_the_final_test_shares_nothing_with_what_is_trained_or_watched():
    final = final_pairs()
    assert final == final_pairs() != final_pairs(seed='other') and len(final) == len({p.prompt for p in final}) == 400
    assert [p.kind for p in final] == [kind for kind in FINAL_KINDS for _ in range(100)]
    others = {ask(r) for held in (False, True) for r in everything(held)} | {r['prompt'] for r in heldout_rows()}
    assert not {p.prompt for p in final} & others
    wishes = [r['instruction'] for held in (False, True) for r in wish_rows(held)]
    for p in final:
        if p.kind != 'wish': continue
        who, _, plain = p.chosen.partition('，')
        assert plain == p.rejected and who in p.prompt and not [w for w in wishes if who in w], who

def test_pairs_of_the_final_test_are_pairs():
    trained = {f.response for f in facts() if not is_heldout(f.relation + f.subject)}
    for p in final_pairs():
        assert p.prompt and p.chosen and p.rejected and p.chosen != p.rejected
        assert clean_texts(list(p[1:])) == list(p[1:]), p
        if p.kind == 'flaw': assert p.chosen not in trained, 'about facts that no preference pair trains'
        if p.kind == 'unknown': assert is_refusal(p.chosen) and not is_refusal(p.rejected)

def test_the_grid_of_wishes_changes_one_thing_at_a_time():
    grid = wish_grid(20)
    who = {known: {p.chosen.split('，')[0] for p in pairs} for known, pairs in grid.items()}
    assert len(grid) == 4 and all(len(pairs) == 20 for pairs in grid.values())
    trained = {w.before[:-1] for w in WISHES}
    assert who[True, True] <= trained and who[True, False] <= trained
    assert not who[False, True] & trained and not who[False, False] & trained
