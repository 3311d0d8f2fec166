"""Triple extraction: the answer format against random strings, repair rules against hand-made rows,
scores against set counts, the stage end to end."""
import gzip
import json
import random
import signal
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import scclm.trainer
from chat_toys import CHARS, char_tok
from raw_toys import gbk, link, put, put_pairs
from scclm.dataset import Pair
from scclm.ie_finetune import (IeCfg, PRESETS, answers_before, by_relation, error_kind, extract, find_errors, ie,
    ie_cfg, mix_in, mix_paths, prf, resolve_cfg, scores, start_model, tallies, telling_errors, twin_marks_)
from scclm.model import build_model, model_config, save_model
from scclm.readers import sniff
from scclm.runs import read_json, run_path
from scclm.sample_triples import make_sample_triples, make_splits
from scclm.tokenizer import load_tokenizer
from scclm.triple_files import (DUIE, PROMPT, Rejects, RULES, by_appearance, duie_triples, find_duie, find_finals,
    format_triples, ie_prompt, parse_triples, part_of, read_duie, read_tests, repair)

MARKS = '\\,()[]，（）'


def dumps(rows): return '\n'.join(r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows) + '\n'


def write(path, rows): return put(path, dumps(rows))


def row(text, *triples, version=2):
    "A DuIE row, written by hand."
    def put(value): return {'@value': value} if version == 2 else value
    spo = []
    for s, p, o in triples:
        spo.append(dict(subject=s, predicate=p, object=put(o), subject_type='甲', object_type=put('乙')))
    return dict(text=text, spo_list=spo)


def random_text(rng, alphabet, longest=8): return ''.join(rng.choice(alphabet) for _ in range(rng.randint(0, longest)))


# ---- the answer

def test_prompt_and_answer_are_spelled_as_agreed():
    assert ie_prompt('《DJ》是A写的') == '请抽取出给定句子中的所有三元组。给定句子：《dj》是a写的'
    two = [('家乡的月亮', '歌手', '宋雪莱'), ('家乡的月亮', '所属专辑', '久违的哥们')]
    assert format_triples(two) == '[(家乡的月亮,歌手,宋雪莱),(家乡的月亮,所属专辑,久违的哥们)]'
    assert format_triples([]) == '[]' and parse_triples('[]') == ([], 0)
    assert format_triples([('春,夏', 'p', r'a\b')]) == r'[(春\,夏,p,a\\b)]'
    assert format_triples([('（一），二', '作者', '三')]) == '[(（一），二,作者,三)]', 'only where needed'


@pytest.mark.parametrize('alphabet', [MARKS + 'ab', MARKS, 'ab 山\n\t', ''.join(map(chr, range(32, 127)))])
def test_any_triples_survive_the_round_trip(alphabet):
    rng = random.Random(alphabet)
    for _ in range(3000):
        triples = [tuple(random_text(rng, alphabet) for _ in range(3)) for _ in range(rng.randint(0, 4))]
        assert parse_triples(format_triples(triples)) == (triples, 0), triples


def test_no_string_breaks_the_parser():
    rng = random.Random(0)
    for i in range(20000):
        text = random_text(rng, MARKS + 'ab \n\ud800' if i % 2 else MARKS, 40)
        triples, bad = parse_triples(text)
        assert bad >= 0 and all(len(t) == 3 for t in triples), repr(text)
    assert parse_triples('(' * 20000)[1] >= 1 and parse_triples('(a,' * 20000)[1] >= 1


def test_a_damaged_answer_never_counts_as_clean():
    "Cut a good answer anywhere: the whole triples are kept, the rest is counted."
    triples = [('春,1', 'p', '(夏)'), ('秋', 'q', '冬'), ('a', 'r', 'b\\')]
    whole = format_triples(triples)
    for i in range(len(whole)):
        got, bad = parse_triples(whole[:i])
        assert got == triples[:len(got)] and bad >= 1, whole[:i]
    for i in range(1, len(whole)): assert parse_triples(whole[i:])[1] >= 1, whole[i:]


ABC, DEF = ('a', 'b', 'c'), ('d', 'e', 'f')

@pytest.mark.parametrize('text, triples, bad', [
    ('', [], 1), ('不知道。', [], 1), ('[(a,b)]', [], 1), ('[(a,b,c,d)]', [], 1), ('[a,b,c]', [], 1),
    ('[(a,b,c)', [ABC], 1), ('(a,b,c)]', [ABC], 1), ('[(a,b),(c,d)]', [], 2), ('[(a),(a,b,c),(b,c)]', [ABC], 2),
    ('[(a,b,c),(d,e', [ABC], 1), ('好的：[(a,b,c)]', [ABC], 1), ('  [(a,b,c)]\n', [ABC], 0),
    ('[(a,b,c)(d,e,f)]', [ABC, DEF], 0), ('[((a,b,c)]', [ABC], 1)])
def test_unreadable_pieces_are_counted(text, triples, bad): assert parse_triples(text) == (triples, bad)


# ---- DuIE

def test_both_versions_read_the_same():
    triples = [('春', '作者', '王山'), ('夏', '歌手', '李水')]
    assert duie_triples(row('x', *triples, version=1)) == duie_triples(row('x', *triples, version=2)) == triples


def test_of_a_complex_object_only_the_value_is_taken():
    r = row('x', ('王', '饰演', '李'))
    r['spo_list'][0]['object']['inWork'] = '风云'
    assert duie_triples(r) == [('王', '饰演', '李')]


def test_sentences_in_tables_numbers_and_nulls():
    label = dict(subject='春', predicate='上映时间', object={'@value': 1998})
    record = dict(text={'@value': '《春》1998年上映'}, spo_list=[label])
    assert duie_triples(record) == [('春', '上映时间', '1998')]
    assert duie_triples(dict(text='x', spo_list=None)) == []


def test_odd_rows_are_read_or_named(tmp_path):
    label = dict(subject='春', predicate='上映时间', object=1998)
    rows = [dict(text='没有标注的第一行'), dict(text={'@value': '《春》1998年上映'}, spo_list=[label]),
            dict(text='空的标注', spo_list=None), dict(text=3, spo_list=[]),
            dict(text='x', spo_list=[label | dict(object=True)]),
            dict(text='x', spo_list='abc'), dict(text='x', spo_list=[label | dict(object=float('nan'))])]
    for as_list in (False, True):
        f = write(tmp_path/'duie_train.json', ['[' + ',\n'.join(map(json.dumps, rows)) + ']'] if as_list else rows)
        rejects = Rejects()
        kept = list(read_duie(f, 'train', rejects))
        assert [(s.text, s.triples) for s in kept] == [('《春》1998年上映', [('春', '上映时间', '1998')])]
        assert [r.rule for r in rejects.rows] == ['missing_key', 'no_triples'] + ['bad_value']*4
        assert rejects.report['train']['rows'] == Counter(rows=7, kept=1, missing_key=1, no_triples=1, bad_value=4)


@pytest.mark.parametrize('name, part', [
    ('contest', 'train'), ('latest', 'train'), ('testament', 'train'), ('invalid', 'train'), ('device', 'train'),
    ('v1.0_test', 'test'), ('test', 'test'), ('Test1', '1'), ('DuIE_TEST', 'test'), ('myTest_entity', 'entity'),
    ('测试test', 'test'), ('testset_b', 'b'), ('validation', 'valid'),
    ('devset', 'valid'), ('duieDev', 'valid'), ('train.dev', 'valid')])
@pytest.mark.parametrize('end', ['.json', '.jsonl.gz'])
def test_test_and_valid_are_words(tmp_path, name, part, end):
    assert part_of(tmp_path/f'{name}{end}') == part


def test_packed_and_linked_files_are_found(tmp_path):
    line = (json.dumps(row('王写春', ('春', '作者', '王'))) + '\n').encode()
    (tmp_path/'raw').mkdir()
    (tmp_path/'else').mkdir()
    (tmp_path/'else'/'dev.json').write_bytes(line)
    link(tmp_path/'raw'/'link', tmp_path/'else')
    (tmp_path/'raw'/'train.json.gz').write_bytes(gzip.compress(line))
    (tmp_path/'raw'/gbk('训练_train.json')).write_bytes(line + b'{"text": 1\n')
    parts, _ = find_duie([tmp_path/'raw'])
    assert {k: len(v) for k, v in parts.items()} == dict(train=2, valid=1)
    rejects = Rejects()
    assert sum(len(list(read_duie(f, part, rejects))) for part, files in parts.items() for f in files) == 3
    assert [(r.file, r.line) for r in rejects.rows] == [('训练_train.json', 2)]


@pytest.mark.parametrize('record', [
    dict(spo_list=[]), dict(text='x'), dict(text=3, spo_list=[]), dict(text={}, spo_list=[]),
    dict(text='x', spo_list=[dict(subject='a', predicate='p')]),
    dict(text='x', spo_list=[dict(subject='a', predicate='p', object={})]),
    dict(text='x', spo_list=[dict(subject=None, predicate='p', object='b')]),
    dict(text='x', spo_list=['abc'])])
def test_a_row_with_a_part_missing_is_an_error(record):
    with pytest.raises((KeyError, TypeError)): duie_triples(record)


# ---- repair

REPAIRS = [
    ('lower_case', 'DJ山与abc', [('DJ山', 'p', 'ABC')], [('dj山', 'p', 'abc')]),
    ('strip_title_marks', '《春》，王', [('《春》', 'p', ' 王')], [('春', 'p', '王')]),
    ('whole_title', '《春天的故事》，王', [('春天', 'p', '王')], [('春天的故事', 'p', '王')]),
    ('song_not_album', '《春》《夏》王', [('春', '所属专辑', '夏'), ('夏', '作曲', '王')], [('春', '所属专辑', '夏')]),
    ('entity_not_in_text', '王写了春', [('春', '作者', '王'), ('春', '作者', '李'), ('', 'p', '王')], [('春', '作者', '王')]),
    ('duplicate_triple', '王写了春', [('春', '作者', '王')]*3, [('春', '作者', '王')])]

@pytest.mark.parametrize('rule, text, labels, want', REPAIRS, ids=[r[0] for r in REPAIRS])
def test_each_rule_does_its_work_and_is_counted(rule, text, labels, want):
    got = repair(text, labels)
    assert got.triples == want and set(got.changed) == {rule}
    assert {r for r, _ in got.dropped} <= {rule} and len(got.dropped) == len(labels) - len(want)

def test_every_rule_has_a_case(): assert {r[0] for r in REPAIRS} == set(RULES)

@pytest.mark.parametrize('text, labels', [
    ('《春》与《春》，王', [('春', 'p', '王')]),
    ('春天里的《春天的故事》，王', [('春天', 'p', '王')]),
    ('《春》收录在《春》，王唱', [('春', '所属专辑', '春'), ('春', '歌手', '王')]),
    ('王唱《夏》', [('夏', '歌手', '王')])],
    ids=['the title itself', 'stands elsewhere too', 'song and album of one name', 'nothing wrong'])
def test_rules_leave_good_labels_alone(text, labels):
    got = repair(text, labels)
    assert sorted(got.triples) == sorted(labels) and not got.changed and not got.dropped

def test_rules_repair_what_earlier_rules_uncover():
    "Marks off, lower case, then the two are the same triple."
    got = repair('《DJ》是王写的', [('《DJ》', '作者', '王'), ('dj', '作者', '王')])
    assert got.triples == [('dj', '作者', '王')]
    assert got.changed == Counter(strip_title_marks=1, lower_case=1, duplicate_triple=1)

def test_order_follows_the_sentence_whatever_the_labels_order():
    text, triples = '《春》是王写的，他生于北山。', [('春', '作者', '王'), ('王', '出生地', '北山')]
    for labels in (triples, triples[::-1]): assert by_appearance(text, labels) == triples


# ---- files

def test_parts_by_name(tmp_path):
    names = dict(duie_train='train', train='train', DuIE_dev='valid', duie_valid='valid', test_entity='entity',
                 other='train') | {'duie-test': 'test'}
    for n, part in names.items(): assert part_of(tmp_path/f'{n}.json') == part, n

GOOD = row('王写春', ('春', '作者', '王'))

def test_schema_and_unlabelled_files_are_no_data(tmp_path):
    write(tmp_path/'schema.json', [dict(subject_type='歌曲', predicate='歌手', object_type={'@value': '人物'})])
    write(tmp_path/'test2.json', [dict(text='没有答案')])
    write(tmp_path/'train.json', ['{broken', GOOD])
    write(tmp_path/'sub'/'dev.jsonl', [GOOD])
    (tmp_path/'empty.json').write_text('')
    parts, other = find_duie([tmp_path])
    assert {k: [p.name for p in v] for k, v in parts.items()} == dict(train=['train.json'], valid=['dev.jsonl'])
    assert sorted(p.name for p in other) == ['empty.json', 'schema.json', 'test2.json']
    assert sniff(tmp_path/'schema.json', DUIE) is None and sniff(tmp_path/'train.json', DUIE)[:2] == ('jsonl', DUIE[0])

def test_missing_files_and_parts_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'): find_duie([tmp_path/'nowhere'])
    only = write(tmp_path/'train.json', [GOOD])
    with pytest.raises(ValueError, match=r'valid.*dev.*test'): find_duie([only])

def test_reading_accounts_for_every_row(tmp_path):
    two = row('王写春，好', ('春', '作者', '王'), ('冬', '作者', '王'))
    f = write(tmp_path/'train.json', [
        GOOD, '{"text": ', '[1]', dict(text='没有标注'), dict(text='空', spo_list=[]), row('王写秋', ('春', '作者', '王')),
        '', GOOD, row('考卷里的王写春', ('春', '作者', '王')), two])
    with open(f, 'ab') as h: h.write(b'{"text": "\xff\xfe\x80", "spo_list": []}\n')
    r = Rejects()
    rows = list(read_duie(f, 'train', r, {'考卷里的王写春': 'leak'}))
    assert [(s.text, s.triples) for s in rows] == [('王写春', [('春', '作者', '王')]), ('王写春，好', [('春', '作者', '王')])]
    assert [s.pair for s in rows] == [(PROMPT + s.text, '[(春,作者,王)]') for s in rows]
    assert r.report['train']['rows'] == Counter(
        rows=10, kept=2, broken_json=2, missing_key=1, no_triples=2, duplicate_row=1, leak=1, encoding=1)
    assert {(x.line, x.rule) for x in r.rows} == {
        (2, 'broken_json'), (3, 'broken_json'), (4, 'missing_key'), (5, 'no_triples'), (6, 'no_triples'),
        (6, 'entity_not_in_text'), (8, 'duplicate_row'), (9, 'leak'), (10, 'entity_not_in_text'), (11, 'encoding')}
    assert all(x.file == 'train.json' and x.source == 'duie' and x.text for x in r.rows)

def test_a_pair_is_what_the_model_is_asked_and_should_answer(tmp_path):
    f = write(tmp_path/'train.json', [row('王写《DJ,1》', ('DJ,1', '作者', '王'))])
    (sentence,) = read_duie(f, 'train', Rejects())
    assert sentence.pair == Pair(ie_prompt('王写《DJ,1》'), r'[(dj\,1,作者,王)]')
    assert parse_triples(sentence.pair.response) == (sentence.triples, 0)

def test_tests_without_a_sentence_are_an_error(tmp_path):
    write(tmp_path/'train.json', [GOOD])
    write(tmp_path/'valid.json', [row('王写秋', ('春', '作者', '王'))])
    with pytest.raises(ValueError, match='valid.json'): read_tests(find_duie([tmp_path])[0], Rejects())

def test_planted_dirt_is_found_by_the_rules(tmp_path):
    dirt, r = make_sample_triples(tmp_path)['dirt'], Rejects()
    rows = list(read_duie(tmp_path/'duie'/'train.json', 'train', r, {}))
    n, t = r.report['train']['rows'], r.report['train']['triples']
    for kind in ('broken_json', 'encoding', 'missing_key', 'duplicate_row'): assert n[kind] == dirt[kind], kind
    assert n['no_triples'] == dirt['no_triples'] + dirt['all_absent'] and n['kept'] == len(rows) == 6000
    assert t['song_not_album'] == dirt['song_album'] and t['duplicate_triple'] >= dirt['duplicate']
    assert t['strip_title_marks'] >= dirt['title_marks'] and t['whole_title'] >= dirt['cut_title']
    assert t['entity_not_in_text'] >= dirt['not_in_text'] and t['lower_case'] > 0
    clean = {text.lower(): sorted(x.lower() for f in facts for x in f) for text, facts in make_splits().train}
    for s in rows: assert sorted(x for triple in s.triples for x in triple) == clean[s.text], s.text

def test_mixing_gives_the_share_and_repeats_only_when_it_must(tmp_path):
    old = [(f'问{i}', f'答{i}') for i in range(50)]
    table = pa.table(dict(prompt=[p for p, _ in old], response=[r for _, r in old]))
    pq.write_table(table, tmp_path/'sft.parquet')
    new = [(f'抽{i}', '[]') for i in range(60)]
    for share, n in ((0., 0), (.25, 20), (.5, 60), (.75, 180)):
        got = mix_in(new, share, [tmp_path/'sft.parquet'])
        assert got[:60] == new and len(got) == 60 + n and set(got[60:]) <= set(old), share
        times = Counter(got[60:])
        assert not times or max(times.values()) - min(times.get(p, 0) for p in old) <= 1, share
    assert mix_in(new, .5, [tmp_path/'sft.parquet']) == mix_in(new, .5, [tmp_path/'sft.parquet'])


# ---- scores

def brute(pred, gold):
    "Micro scores over one set of (sentence, triple)."
    p = {(i, t) for i, ts in enumerate(pred) for t in ts}
    g = {(i, t) for i, ts in enumerate(gold) for t in ts}
    right = len(p & g)
    return (right/len(p) if p else 0.), (right/len(g) if g else 0.), (2*right/(len(p) + len(g)) if p or g else 0.)

def random_sets(rng, n):
    "n sentences with up to four triples each, of eight kinds."
    def triple(): return rng.choice('ab'), rng.choice('pq'), rng.choice('xy')
    return [[triple() for _ in range(rng.randint(0, 4))] for _ in range(n)]

@pytest.mark.parametrize('seed', range(3))
def test_scores_equal_a_brute_force_set_count(seed):
    rng = random.Random(seed)
    for _ in range(100):
        n = rng.randint(1, 12)
        pred, gold = random_sets(rng, n), random_sets(rng, n)
        got = prf(pred, gold, n_boot=2)
        assert (got['p'], got['r'], got['f1']) == pytest.approx(brute(pred, gold)), (pred, gold)
        assert got['n'] == n

def test_scores_of_nothing_and_of_all():
    assert prf([[]], [[]])['f1'] == 0. and prf([[('a', 'p', 'b')]], [[('a', 'p', 'b')]])['ci95'] == [1., 1.]

def test_the_interval_is_that_of_a_plain_bootstrap():
    rng = random.Random(1)
    gold = random_sets(rng, 80)
    pred = [g if rng.random() < .6 else p for g, p in zip(gold, random_sets(rng, 80))]
    low, high = prf(pred, gold, n_boot=4000)['ci95']
    drawn = []
    for _ in range(2000):
        pick = [rng.randrange(80) for _ in range(80)]
        drawn.append(brute([pred[i] for i in pick], [gold[i] for i in pick])[2])
    drawn.sort()
    assert low == pytest.approx(drawn[50], abs=.02) and high == pytest.approx(drawn[1949], abs=.02)
    assert low < prf(pred, gold)['f1'] < high and prf(pred, gold) == prf(pred, gold), 'same seed, same interval'

def test_tallies_and_scores_take_batches():
    counts = np.array([[[1, 2, 4], [0, 0, 0]], [[3, 3, 3], [0, 5, 0]]])
    p, r, f = scores(counts)
    assert p.tolist() == [[.5, 0], [1, 0]] and r.tolist() == [[.25, 0], [1, 0]]
    assert f.tolist() == [[pytest.approx(1/3), 0], [1, 0]]
    with pytest.raises(AssertionError): tallies([[]], [])

@pytest.mark.parametrize('seed', [2, 3])
def test_each_relation_gets_its_own_scores(seed):
    rng = random.Random(seed)
    pred, gold = random_sets(rng, 50), random_sets(rng, 50)
    table = by_relation(pred, gold)
    for p in 'pq':
        theirs, ours = ([[t for t in ts if t[1] == p] for ts in rows] for rows in (pred, gold))
        assert tuple(table.loc[p, ['p', 'r', 'f1']]) == pytest.approx(brute(theirs, ours))
    assert table.stated.sum() == sum(len(set(g)) for g in gold)
    assert table.stated.tolist() == sorted(table.stated, reverse=True)

@pytest.mark.parametrize('triple, kind', [
    (('王山', '歌手', '春天'), 'swapped'), (('春天', '导演', '王山'), 'wrong relation'),
    (('春', '歌手', '王山'), 'wrong boundary'), (('春天', '歌手', '王三'), 'not in text'),
    (('春天', '歌手', '唱'), 'wrong entity'), (('春天', '歌手', '李水'), 'wrong relation'),
    (('王山', '妻子', '李水'), 'spurious'), (('', '', ''), 'spurious')])
def test_errors_are_named(triple, kind):
    gold = [('春天', '歌手', '王山'), ('春天', '作者', '李水')]
    assert error_kind(triple, gold, '春天由王山唱，李水写') == kind

@pytest.mark.parametrize('seed', [3, 4])
def test_no_error_is_lost(seed):
    rng = random.Random(seed)
    pred, gold = random_sets(rng, 40), random_sets(rng, 40)
    errors = find_errors(['abpqxy']*40, pred, gold)
    missed = errors.kind == 'missed'
    assert (~missed).sum() == sum(len(set(p) - set(g)) for p, g in zip(pred, gold))
    quiet = [(p, g) for p, g in zip(pred, gold) if set(p) <= set(g)]            # nothing wrong in these sentences
    assert missed.sum() == sum(len([t for t in g if t not in p]) for p, g in quiet)
    ten = telling_errors(errors, 10)
    assert len(ten) == 10 and set(ten.kind) == set(errors.kind)
    assert len(telling_errors(find_errors(['a'], [[]], [[]]))) == 0


# ---- configuration

BAD_CFG = [dict(mix=1.), dict(mix=-.1), dict(max_rows=-1), dict(max_test=-1), dict(epochs=-1.), dict(n_watch=-1),
           dict(steps=0)]

@pytest.mark.parametrize('bad', BAD_CFG)
def test_bad_values_name_their_field(bad):
    with pytest.raises(ValueError, match=next(iter(bad))): IeCfg(**bad)

def test_base_has_the_recipe_of_the_ancestor():
    cfg = ie_cfg('base')
    assert (cfg.lr, cfg.lr_scratch, cfg.epochs) == (5e-5, 1e-4, 5) and set(PRESETS) == {'tiny', 'small', 'mini', 'base'}


# ---- final tests

def test_what_is_stored_is_what_ran():
    "New weights neither replay nor start from twins, whatever was asked; a trained start keeps both."
    asked = replace(ie_cfg('tiny'), twins=True, replay_files=('train.parquet',), epochs=0.)
    fresh, trained = (resolve_cfg(replace(asked, start=start), None) for start in ('scratch', 'sft'))
    assert (fresh.twins, fresh.replay_files, fresh.lr) == (False, (), asked.lr_scratch)
    assert trained == asked

def test_final_tests_lie_beside_the_data(tmp_path):
    write(tmp_path/'duie'/'train.json', [GOOD])
    write(tmp_path/'duie'/'valid.json', [GOOD])
    assert find_finals([tmp_path/'duie']) == {} == find_finals([tmp_path/'duie'/'train.json'])
    files = {name: write(tmp_path/'final'/f'test_{name}.json', [GOOD]) for name in ('entity', 'pattern')}
    write(tmp_path/'final'/'test_notes.json', [dict(title='not DuIE')])
    found = find_finals([tmp_path/'duie'])
    assert found == {f'{name}_final': [path] for name, path in files.items()}
    assert not [name for name in find_duie([tmp_path/'duie'])[0] if name.endswith('_final')]

def test_published_labels_are_kept_as_they_are(tmp_path):
    f = write(tmp_path/'valid.json', [row('王写《DJ》', ('《DJ》', '作者', '王'), ('冬', '作者', '王'))])
    (sentence,) = read_duie(f, 'valid', Rejects())
    assert sentence.triples == [('dj', '作者', '王')]
    assert sentence.published == [('《DJ》', '作者', '王'), ('冬', '作者', '王')]


# ---- the stage, small

TOY_CHARS = CHARS + PROMPT + '[](),作者写'

def write_pairs(path, prompt, response, n=8, **more):
    return put_pairs(path, [prompt]*n, [response]*n, **more)

@pytest.fixture
def world(tmp_path, monkeypatch):
    "A runs folder with a tokenizer, an SFT file and a few sentences: the toy task of this room."
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path/'runs'))
    monkeypatch.setenv('SCCLM_SCALE', 'tiny')
    monkeypatch.delenv('SCCLM_RAW', raising=False)
    char_tok(TOY_CHARS).save_pretrained(run_path('tokenizer'))
    run_path('data').mkdir(parents=True)
    write_pairs(run_path('data', 'sft_train.parquet'), '你好吗？', '你好。')
    write_pairs(run_path('data', 'train.parquet'), '谁写的？', '李白。')
    write_pairs(run_path('data', 'heldout.parquet'), '你是谁？', '你好。', 1, kind=['phrasing'])
    names = '天地玄黄宇宙洪荒日月盈昃'
    rows = [row(f'{a}写{b}', (b, '作者', a)) for a in names for b in names if a != b]
    write(tmp_path/'duie'/'duie_train.json', rows[:100])
    write(tmp_path/'duie'/'duie_valid.json', rows[100:])
    write(tmp_path/'duie'/'duie_schema.json', [dict(subject_type='书', predicate='作者', object_type='人')])
    cfg = replace(ie_cfg('tiny'), data=(str(tmp_path/'duie'),), start='scratch', steps=6, eval_every=3, save_every=3,
                  log_every=1, n_watch=4)
    return tmp_path, cfg

def weights(run): return {n: p.detach().clone() for n, p in run.acc.unwrap_model(run.model).named_parameters()}

def test_the_stage_writes_what_it_promises(world):
    root, cfg = world
    run = ie(cfg, progress=False)
    out = root/'runs'/'tiny'/'ie_scratch'
    assert run.done and run.out == out
    promised = {'model', 'checkpoints', 'log.jsonl', 'config.json', 'figures.json', 'train.parquet', 'rejects.parquet',
                'report.json', 'extracted.parquet'}
    assert promised <= {p.name for p in out.iterdir()}
    figures = read_json(out/'figures.json')
    assert {'f1_valid', 'f1_valid_ci95', 'f1_valid_n', 'p_valid', 'r_valid', 'unreadable_valid', 'loss_valid',
            'steps', 'published_f1_valid'} <= set(figures)
    assert not [k for k in figures if k.startswith('exact')]   # new weights know no answers: nothing to keep
    assert figures['f1_valid_n'] == 32 and 0 <= figures['f1_valid'] <= 1
    rows = pq.read_table(out/'train.parquet').to_pylist()
    assert figures['too_long'] == dict(how='cut', max_len=cfg.max_len, rows=len(rows), prompt=0, response=0, either=0)
    assert not [k for k in figures if k.startswith('f1_') and 'valid' not in k]
    report = read_json(out/'report.json')
    assert report['ignored'] == ['duie_schema.json']
    assert report['train_rows'] == dict(extraction=100, mixed_in=round(100*cfg.mix/(1 - cfg.mix)))
    assert pq.read_metadata(out/'train.parquet').num_rows == sum(report['train_rows'].values())
    assert pq.read_schema(out/'rejects.parquet').names == ['source', 'file', 'line', 'rule', 'text', 'repeats']
    entries = [json.loads(line) for line in (out/'log.jsonl').read_text(encoding='utf-8').splitlines()]
    assert [e['step'] for e in entries if 'f1_valid' in e] == [3, 6]
    assert all('loss_valid' in e for e in entries if 'f1_valid' in e)
    again = ie(replace(cfg, start=str(out/'model'), steps=2, eval_every=0, out=str(root/'again')), progress=False)
    kept = read_json(again.out/'figures.json')
    assert 0 <= kept['exact_heldout_before'] <= 1 and 0 <= kept['exact_heldout_after'] <= 1
    assert kept['exact_heldout_n'] == 1

def test_final_tests_are_scored_once_and_never_watched(world):
    root, cfg = world
    final = [row('天写地，好', ('地', '作者', '天')), row('玄写《DJ》', ('DJ', '作者', '玄'))]
    write(root/'final'/'test_entity.json', final)
    copied = json.loads((root/'duie'/'duie_train.json').read_text(encoding='utf-8').splitlines()[0])
    write(root/'final'/'test_copied.json', [copied])
    run = ie(cfg, progress=False)
    figures = read_json(run.out/'figures.json')
    assert figures['f1_entity_final_n'] == 2 and 0 <= figures['published_f1_entity_final'] <= 1
    assert {'f1_valid', 'published_f1_valid', 'f1_entity_final', 'f1_entity_final_ci95'} <= figures.keys()
    entries = [json.loads(line) for line in (run.out/'log.jsonl').read_text(encoding='utf-8').splitlines()]
    assert any('f1_valid' in e for e in entries) and not [k for e in entries for k in e if 'final' in k]
    report = read_json(run.out/'report.json')
    assert report['train']['rows']['leak'] == 1, 'a sentence of a final test is not trained on'

def test_what_was_extracted_is_kept_sentence_by_sentence(world):
    root, cfg = world
    run = ie(cfg, progress=False)
    rows = pq.read_table(run.out/'extracted.parquet').to_pylist()
    assert len(rows) == 32 and {r['test'] for r in rows} == {'valid'}
    pred, gold = ([parse_triples(r[column])[0] for r in rows] for column in ('extracted', 'stated'))
    assert prf(pred, gold)['f1'] == read_json(run.out/'figures.json')['f1_valid']

def test_answers_before_are_measured_once(world):
    root, cfg = world
    assert answers_before(cfg, None, None) == {}, 'new weights know nothing'
    known, counts = dict(all=.5, phrasing=.5), dict(all=1, phrasing=1)
    put(run_path('sft', 'figures.json'), json.dumps(dict(exact_heldout=known, n_heldout=counts)))
    assert answers_before(replace(cfg, start='sft'), None, None) == known
    put(run_path('sft', 'figures.json'), json.dumps(dict(exact_heldout=known, n_heldout=dict(all=2, phrasing=2))))
    with pytest.raises(AttributeError): # other questions: the model is asked
        answers_before(replace(cfg, start='sft'), None, None)

def test_rows_to_mix_in_come_from_data_or_from_where_one_says(world):
    root, cfg = world
    mine = write_pairs(root/'mine.parquet', '问', '答', 3)
    named = replace(cfg, mix_files=('sft_train.parquet', str(mine)))
    assert mix_paths(named) == [run_path('data', 'sft_train.parquet'), mine]
    missing = replace(cfg, mix_files=('nothing.parquet',))
    with pytest.raises(FileNotFoundError, match='nothing.parquet.*00_data_cleaning'): mix_paths(missing)
    base = build_model(model_config('tiny', len(load_tokenizer())), seed=0)
    save_model(base, load_tokenizer(), root/'base')
    for start, replayed in ((str(root/'base'), True), ('scratch', False)):
        asked = replace(cfg, steps=1, start=start, replay_files=('train.parquet',), out=str(root/'mixed'))
        run = ie(asked, resume=False, progress=False)
        prompts = set(pq.read_table(run.out/'train.parquet')['prompt'].to_pylist())
        assert '你好吗？' in prompts and ('谁写的？' in prompts) == replayed, 'new weights have nothing to replay'

def test_a_stopped_run_goes_on_bit_for_bit(world):
    root, cfg = world
    whole = weights(ie(replace(cfg, out=str(root/'whole')), progress=False))
    save, seen = scclm.trainer.save_checkpoint, []
    def save_and_interrupt(run, **kwargs):
        save(run, **kwargs)
        if run.step != 3 or seen: return
        seen.append(run.step)
        signal.raise_signal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(scclm.trainer, 'save_checkpoint', save_and_interrupt)
        first = ie(replace(cfg, out=str(root/'parts')), progress=False)
    assert not first.done and not (root/'parts'/'model').exists()
    again = ie(replace(cfg, out=str(root/'parts')), progress=False)
    assert again.done and all(torch.equal(a, b) for a, b in zip(whole.values(), weights(again).values(), strict=True))

def test_limits_epochs_and_starts(world):
    root, cfg = world
    few = replace(cfg, max_rows=20, max_test=5, mix=0., epochs=1., start='stock', lr_scratch=3e-4)
    run = ie(few, progress=False)
    assert run.out.name == 'ie_stock'
    assert read_json(run.out/'report.json')['train_rows'] == dict(extraction=20, mixed_in=0)
    assert read_json(run.out/'figures.json')['f1_valid_n'] == 5
    assert 1 <= run.cfg.steps <= 5 and run.cfg.lr == 3e-4, 'one pass over 20 short rows, learning rate of a fresh start'
    more = ie(replace(cfg, start=str(run.out/'model'), out=str(root/'more'), steps=2), progress=False)
    assert more.cfg.lr == cfg.lr and more.done

def test_sentences_too_long_for_the_model_are_rejected_for_training_only(world):
    root, cfg = world
    long = '天'*80
    write(root/'duie'/'duie_train.json', [row(f'{long}写地', ('地', '作者', '天')), row('天写地', ('地', '作者', '天'))])
    write(root/'duie'/'duie_valid.json', [row(f'{long}写玄', ('玄', '作者', '天'))])
    run = ie(replace(cfg, max_len=60, steps=2), progress=False)
    rejected = pq.read_table(run.out/'rejects.parquet').to_pylist()
    assert [(r['file'], r['line'], r['rule']) for r in rejected] == [('duie_train.json', 1, 'too_long')]
    assert read_json(run.out/'figures.json')['f1_valid_n'] == 1

def test_a_model_learns_the_toy_task(world):
    root, cfg = world
    run = ie(replace(cfg, steps=300, budget_tok=256, eval_every=0, save_every=300, n_watch=0, mix=0.), progress=False)
    assert read_json(run.out/'figures.json')['f1_valid'] > .5
    model, tok = run.acc.unwrap_model(run.model), char_tok(TOY_CHARS)
    triples, bad = extract(model, tok, ['天写地'])
    assert len(triples) == 1 and bad >= 0

def test_twin_marks_change_three_rows_and_only_of_trained_models(world):
    root, cfg = world
    tok = char_tok(TOY_CHARS + '（），')
    tok.save_pretrained(run_path('tokenizer'))
    run = ie(replace(cfg, steps=1, mix=0., twins=True, lr_scratch=1e-9), progress=False)
    trained = replace(cfg, start=str(run.out/'model'))
    def rows(model): return model.get_input_embeddings().weight.detach()
    new = rows(run.acc.unwrap_model(run.model))
    assert torch.allclose(new, rows(start_model(cfg)[0]), atol=1e-6), 'new weights are left alone'
    model, _ = start_model(trained)
    twin_marks_(model, tok)
    changed = {i for i in range(len(tok)) if not torch.equal(rows(model)[i], new[i])}
    assert changed == set(tok.convert_tokens_to_ids(list('(),')))
    for pair in zip('(),', '（），'): assert torch.equal(*(rows(model)[tok.convert_tokens_to_ids(m)] for m in pair))
    plain, small = start_model(trained)[0], char_tok('天地(),[]')
    before = rows(plain).clone()
    twin_marks_(plain, small)
    assert torch.equal(rows(plain), before), 'a tokenizer without the twins changes nothing'

def test_missing_stages_are_named(world):
    _, cfg = world
    with pytest.raises(FileNotFoundError, match='06_sft'): ie(replace(cfg, start='sft'), progress=False)
    with pytest.raises(FileNotFoundError, match='nothing'): ie(replace(cfg, start='nothing'), progress=False)
