"The sample triples against plain readings of their files."
import json
import re
from collections import Counter

import pytest
from raw_toys import tree

from scclm.sample_corpus import intended
from scclm.sample_triples import (DIRT, FINAL_CLAUSES, Fact, KINDS, RELATIONS, Speaker, bad_lines, bigrams, course_text,
    duie_record, make_finals, make_sample_triples, make_splits, make_world, name_pool, names_by_kind, spoil)
from scclm.tokenizer import ALWAYS

FILES = ['test_combination', 'test_entity', 'test_pattern', 'test_sentence', 'train', 'valid']


def triples(record):
    "Read a row with nothing from the library."
    got = []
    for x in record['spo_list']:
        value = x['object'] if isinstance(x['object'], str) else x['object']['@value']
        got.append((x['subject'], x['predicate'], value))
    return got


def names_in(rows): return {e for _, facts in rows for f in facts for e in (f.s, f.o)}

def facts_in(rows): return {tuple(f) for _, facts in rows for f in facts}


def readable_rows(path):
    "The rows of a file that are whole and have labels."
    rows = []
    for line in path.read_bytes().splitlines():
        try: row = json.loads(line)
        except ValueError: continue
        if row.get('spo_list'): rows.append(row)
    return rows


@pytest.fixture(scope='module')
def sample(tmp_path_factory):
    "The default sample: its folder, its report, its readable rows per file."
    root = tmp_path_factory.mktemp('triples')
    report = make_sample_triples(root)
    return root, report, {name: readable_rows(root/'duie'/f'{name}.json') for name in FILES}


@pytest.fixture(scope='module')
def splits(): return make_splits()

@pytest.fixture(scope='module')
def finals(splits): return make_finals(splits)


def test_the_same_seed_writes_the_same_bytes_another_writes_others(tmp_path):
    small = dict(n_train=80, n_test=10, n_names=30)
    for name, seed in (('a', 0), ('b', 0), ('c', 1)): make_sample_triples(tmp_path/name, seed, **small)
    a, b, c = (tree(tmp_path/name) for name in 'abc')
    assert a == b
    assert a.keys() == c.keys() and not set(a.values()) & set(c.values())


def test_files_and_sizes(sample):
    root, report, rows = sample
    assert sorted(p.name for p in (root/'duie').iterdir()) == [f'{n}.json' for n in FILES]
    for name in FILES: assert report['rows'][name] == len((root/'duie'/f'{name}.json').read_bytes().splitlines())
    assert all(len(rows[n]) == 300 for n in FILES if n != 'train')
    added = ('broken_json', 'encoding', 'missing_key', 'no_triples', 'all_absent', 'duplicate_row')
    assert report['rows']['train'] == 6000 + sum(report['dirt'][k] for k in added)


def test_both_versions_of_the_format(sample):
    kinds = Counter(type(x['object']).__name__ for r in sample[2]['train'] for x in r['spo_list'])
    assert set(kinds) == {'dict', 'str'} and min(kinds.values()) > 500
    for r in sample[2]['train']:
        assert {type(x['object']) for x in r['spo_list']} == {type(x['object_type']) for x in r['spo_list']}
        for x in r['spo_list']:
            assert set(x) == {'predicate', 'subject', 'subject_type', 'object', 'object_type'}
            if isinstance(x['object'], dict): assert set(x['object']) == set(x['object_type']) == {'@value'}


def test_eight_relations_with_enough_patterns():
    assert len(RELATIONS) == 8
    for name, r in RELATIONS.items():
        assert {r.subject, r.object} <= set(KINDS), name
        assert len(r.heads) >= 8 and len(r.reserved) >= 2 and len(set(r.heads)) == len(r.heads)
        assert not (set(r.heads) | set(r.tails)) & (set(r.reserved) | set(r.reserved_tails))


def test_every_triple_of_a_test_stands_in_its_sentence(sample):
    for name in FILES[:-2] + ['valid']:
        for r in sample[2][name]:
            assert 1 <= len(triples(r)) <= 3
            for s, p, o in triples(r): assert s in r['text'] and o in r['text'] and p in RELATIONS


def test_sentences_have_one_to_three_triples(splits):
    n = Counter(len(fs) for _, fs in splits.train)
    assert set(n) == {1, 2, 3} and min(n.values()) >= 100
    for _, fs in splits.train: assert len({(f.s, f.p) for f in fs}) == len(fs)


def test_no_sentence_comes_twice(splits):
    texts = [t for rows in (splits.train, *splits.tests.values()) for t, _ in rows]
    assert len(set(texts)) == len(texts) == 6000 + 5*300


def test_what_is_unseen_in_each_test(splits):
    known, world = names_in(splits.train), facts_in(splits.train)
    assert not facts_in(splits.tests['combination']) & world
    assert not names_in(splits.tests['entity']) & known
    assert names_in(splits.tests['combination']) <= known
    for kind in ('sentence', 'pattern', 'valid'): assert facts_in(splits.tests[kind]) <= world, kind


def shape(text, facts):
    "A sentence with its names replaced by a mark, longest names first."
    for e in sorted({e for f in facts for e in (f.s, f.o)}, key=len, reverse=True): text = text.replace(e, '#')
    return text


def test_pattern_sentences_are_made_of_reserved_clauses_only(splits):
    clauses = [c for r in RELATIONS.values() for c in r.reserved + r.reserved_tails]
    kept = '|'.join(re.escape(c.replace('{s}', '#').replace('{o}', '#')) for c in clauses)
    whole = re.compile(f'(据了解，|资料显示，)?({kept})([，；]({kept}))*(，很受欢迎|，值得一看)?。')
    for text, facts in splits.tests['pattern']: assert whole.fullmatch(shape(text, facts)), text
    shapes = {shape(*r) for r in splits.train}
    assert not shapes & {shape(*r) for r in splits.tests['pattern']}


def test_final_tests_are_another_lot(splits, finals):
    train, watched = splits.train, [row for rows in splits.tests.values() for row in rows]
    assert sorted(finals) == ['combination', 'entity', 'pattern'] and {len(rows) for rows in finals.values()} == {300}
    texts = [text for rows in (train, watched, *finals.values()) for text, _ in rows]
    assert len(set(texts)) == len(texts)
    assert not facts_in(finals['combination']) & (facts_in(train) | facts_in(watched))
    assert names_in(finals['combination']) <= names_in(train)
    assert not names_in(finals['entity']) & (names_in(train) | names_in(watched))
    assert facts_in(finals['pattern']) <= facts_in(train)
    for text, facts in (row for rows in finals.values() for row in rows):
        assert 1 <= len(facts) <= 3 and all(f.s in text and f.o in text for f in facts)


def test_final_patterns_were_never_used(splits, finals):
    old = {c for r in RELATIONS.values() for c in r.heads + r.reserved + r.tails + r.reserved_tails}
    assert FINAL_CLAUSES.keys() == RELATIONS.keys()
    assert not old & {c for parts in FINAL_CLAUSES.values() for clauses in parts for c in clauses}
    shapes = {shape(*r) for rows in (splits.train, *splits.tests.values()) for r in rows}
    assert not shapes & {shape(*r) for r in finals['pattern']}


def test_names_by_kind_is_a_pool_of_the_facts():
    pool = name_pool(5, 'k')
    facts = sorted({f for fs in make_world(pool, 'k').values() for f in fs})
    found = names_by_kind(facts)
    assert set(found) == set(KINDS) and all(set(found[kind]) <= set(pool[kind]) for kind in KINDS)
    for kind in ('song', 'company', 'book', 'film'): assert sorted(pool[kind]) == found[kind], 'each has a fact'


def test_no_name_occurs_in_the_course_corpus(splits, finals):
    clean = intended(0)
    texts = ['\n'.join((r.title, r.body, r.response)) for r in clean.pretrain + clean.sft]
    texts += ['\n'.join((h['prompt'], h['response'])) for h in clean.heldout]
    corpus = '\n'.join(texts)
    names = set().union(*map(names_in, (splits.train, *splits.tests.values(), *finals.values())))
    assert [n for n in names if n in corpus] == []
    assert len(names) > 1500


def test_every_character_is_known_to_the_course(splits, finals):
    known = set(course_text()) | set(ALWAYS)
    used = set('请抽取出给定句子中的所有三元组。给定句子：')
    for rows in (splits.train, *splits.tests.values(), *finals.values()):
        for text, facts in rows: used.update(text, *(f.p for f in facts))
    assert used - known == set()


def test_names_never_come_twice_and_avoid_what_is_taken():
    pool = name_pool(200, 'x')
    names = [n for ns in pool.values() for n in ns]
    assert len(set(names)) == len(names) == 200*len(KINDS)
    text = '\n'.join(names)
    more = [n for ns in name_pool(200, 'x', bigrams(text)).values() for n in ns]
    assert not [n for n in more if n in text]


def test_another_world_has_other_facts():
    pool = name_pool(30, 'w')
    one = {f for fs in make_world(pool, 0).values() for f in fs}
    two = {f for fs in make_world(pool, 1, frozenset(one)).values() for f in fs}
    assert len(one) == len(two) == 30*len(RELATIONS) and not one & two
    for e, fs in make_world(pool, 0).items(): assert all(e in (f.s, f.o) for f in fs)


def damage(row, want):
    "The kind of dirt in a row that should state `want`; '' for none."
    got = triples(row)
    if len(got) > len(want) and got[-1] == got[0] and got[:-1] == want: return 'duplicate'
    if any('《' in s for s, _, _ in got): return 'title_marks'
    if any(o not in row['text'] for _, _, o in got): return 'not_in_text'
    if len(got) > len(want): return 'song_album'
    return 'cut_title' if got != want else ''


def fault(line):
    "The row of a line, and what makes it unusable; '' for nothing."
    try: row = json.loads(line.decode('utf-8'))
    except UnicodeDecodeError: return None, 'encoding'
    except ValueError: return None, 'broken_json'
    if 'spo_list' not in row: return row, 'missing_key'
    if not row['spo_list']: return row, 'no_triples'
    return row, 'all_absent' if all(o not in row['text'] for _, _, o in triples(row)) else ''


def test_dirt_is_as_counted(sample, splits):
    "Every kind of dirt found again by reading the file line by line."
    root, report, _ = sample
    found, texts = Counter(), Counter()
    for i, line in enumerate((root/'duie'/'train.json').read_bytes().splitlines()):
        row, kind = fault(line)
        if row: texts[row['text']] += 1
        if i < 6000:
            assert not kind, (i, kind)
            kind = damage(row, [tuple(f) for f in splits.train[i].facts])
        if kind: found[kind] += 1
    found['duplicate_row'] = sum(n - 1 for n in texts.values())
    assert found == Counter(report['dirt'])
    asked = {kind: n for kind, (_, n) in DIRT.items()}
    assert all(report['dirt'][k] == n for k, n in asked.items() if k != 'song_album')
    assert report['dirt']['song_album'] >= 5


def test_commas_and_brackets_stand_in_a_few_names(splits):
    odd = [f for _, fs in splits.train for f in fs if re.search(r'[,()\[\]]', f.s + f.o)]
    assert 5 <= len(odd) <= 200


def test_spoil_and_bad_lines_leave_the_input_usable():
    facts = [Fact('甲乙丙丁', '歌手', '王山'), Fact('甲乙丙丁', '所属专辑', '戊己')]
    rec = duie_record('《甲乙丙丁》由王山演唱，收录在专辑《戊己》中。', facts)
    before = json.dumps(rec)
    for change, _ in DIRT.values():
        dirty = change(rec)
        assert dirty is None or dirty != rec, change.__name__
    assert json.dumps(rec) == before
    lines, n = bad_lines([rec]*12, 2)
    assert len(lines) == n.total() == 12
    rows = [dict(rec) for _ in range(20)]
    assert spoil(rows, 0).total() == 20 and all(r != rec for r in rows)
    assert json.dumps(rec) == before


def test_a_speaker_says_only_what_is_true():
    pool = name_pool(25, 's')
    world = make_world(pool, 's')
    true = {f for fs in world.values() for f in fs}
    say = Speaker(world, 's')
    for _ in range(400):
        text, facts = say.sentence()
        assert set(facts) <= true and text.endswith('。')
        for f in facts: assert f.o in text and f.s in text
