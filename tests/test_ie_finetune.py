"Triple extraction: the answer format against random strings, repair rules against hand-made rows, scores against set counts, the stage end to end."
import json
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chat_toys import CHARS, char_tok
from scclm.ie_finetune import (PRESETS, PROMPT, RULES, IeCfg, Rejects, by_appearance, by_relation, duie_triples, error_kind, extract, find_duie, find_errors,
                               format_triples, ie, ie_cfg, ie_prompt, is_duie, mix_in, mix_paths, parse_triples, part_of, prf, read_duie, read_tests, repair, scores, tallies,
                               start_model, telling_errors, twin_marks_)
from scclm.model import build_model, model_config, save_model
from scclm.sample_triples import make_sample_triples
from scclm.tokenizer import load_tokenizer

MARKS = '\\,()[]，（）'


def dumps(rows): return '\n'.join(r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows) + '\n'


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dumps(rows), encoding='utf-8')
    return path


def row(text, *triples, version=2):
    "A DuIE row, written by hand."
    put = (lambda o: {'@value': o}) if version == 2 else (lambda o: o)
    return dict(text=text, spo_list=[dict(subject=s, predicate=p, object=put(o), subject_type='甲', object_type=put('乙')) for s, p, o in triples])


def random_text(rng, alphabet, longest=8): return ''.join(rng.choice(alphabet) for _ in range(rng.randint(0, longest)))


# ---- the answer

def test_prompt_and_answer_are_spelled_as_agreed():
    assert ie_prompt('《DJ》是A写的') == '请抽取出给定句子中的所有三元组。给定句子：《dj》是a写的'
    assert format_triples([('家乡的月亮', '歌手', '宋雪莱'), ('家乡的月亮', '所属专辑', '久违的哥们')]) == '[(家乡的月亮,歌手,宋雪莱),(家乡的月亮,所属专辑,久违的哥们)]'
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
        assert bad >= 0 and all(len(t) == 3 for t in triples)
    assert parse_triples('(' * 20000)[1] >= 1 and parse_triples('(a,' * 20000)[1] >= 1


def test_a_damaged_answer_never_counts_as_clean():
    "Cut a good answer anywhere: the whole triples are kept, the rest is counted."
    triples = [('春,1', 'p', '(夏)'), ('秋', 'q', '冬'), ('a', 'r', 'b\\')]
    whole = format_triples(triples)
    for i in range(len(whole)):
        got, bad = parse_triples(whole[:i])
        assert got == triples[:len(got)] and bad >= 1, whole[:i]
    for i in range(1, len(whole)): assert parse_triples(whole[i:])[1] >= 1


@pytest.mark.parametrize('text, triples, bad', [
    ('', [], 1), ('不知道。', [], 1), ('[(a,b)]', [], 1), ('[(a,b,c,d)]', [], 1), ('[a,b,c]', [], 1), ('[(a,b,c)', [('a', 'b', 'c')], 1), ('(a,b,c)]', [('a', 'b', 'c')], 1),
    ('[(a,b),(c,d)]', [], 2), ('[(a),(a,b,c),(b,c)]', [('a', 'b', 'c')], 2), ('[(a,b,c),(d,e', [('a', 'b', 'c')], 1), ('好的：[(a,b,c)]', [('a', 'b', 'c')], 1),
    ('  [(a,b,c)]\n', [('a', 'b', 'c')], 0), ('[(a,b,c)(d,e,f)]', [('a', 'b', 'c'), ('d', 'e', 'f')], 0), ('[((a,b,c)]', [('a', 'b', 'c')], 1)])
def test_unreadable_pieces_are_counted(text, triples, bad): assert parse_triples(text) == (triples, bad)


# ---- DuIE

def test_both_versions_read_the_same():
    triples = [('春', '作者', '王山'), ('夏', '歌手', '李水')]
    assert duie_triples(row('x', *triples, version=1)) == duie_triples(row('x', *triples, version=2)) == triples


def test_of_a_complex_object_only_the_value_is_taken():
    r = row('x', ('王', '饰演', '李'))
    r['spo_list'][0]['object']['inWork'] = '风云'
    assert duie_triples(r) == [('王', '饰演', '李')]


@pytest.mark.parametrize('record', [
    dict(spo_list=[]), dict(text='x'), dict(text=3, spo_list=[]), dict(text='x', spo_list=None), dict(text='x', spo_list=[dict(subject='a', predicate='p')]),
    dict(text='x', spo_list=[dict(subject='a', predicate='p', object={})]), dict(text='x', spo_list=[dict(subject=None, predicate='p', object='b')]), dict(text='x', spo_list=['abc'])])
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

def test_rules_leave_good_labels_alone():
    for text, labels in [('《春》与《春》，王', [('春', 'p', '王')]),                                          # the title itself
                         ('春天里的《春天的故事》，王', [('春天', 'p', '王')]),                                # stands elsewhere too
                         ('《春》收录在《春》，王唱', [('春', '所属专辑', '春'), ('春', '歌手', '王')]),       # song and album of one name
                         ('王唱《夏》', [('夏', '歌手', '王')])]:
        got = repair(text, labels)
        assert sorted(got.triples) == sorted(labels) and not got.changed and not got.dropped

def test_rules_repair_what_earlier_rules_uncover():
    "Marks off, lower case, then the two are the same triple."
    got = repair('《DJ》是王写的', [('《DJ》', '作者', '王'), ('dj', '作者', '王')])
    assert got.triples == [('dj', '作者', '王')] and got.changed == Counter(strip_title_marks=1, lower_case=1, duplicate_triple=1)

def test_order_follows_the_sentence_whatever_the_labels_order():
    text, triples = '《春》是王写的，他生于北山。', [('春', '作者', '王'), ('王', '出生地', '北山')]
    rng = random.Random(0)
    for _ in range(10): assert by_appearance(text, rng.sample(triples, 2)) == triples


# ---- files

def test_parts_by_name(tmp_path):
    names = dict(duie_train='train', train='train', DuIE_dev='valid', duie_valid='valid', test_entity='entity', **{'duie-test': 'test'}, other='train')
    for n, part in names.items(): assert part_of(tmp_path/f'{n}.json') == part

def test_schema_and_unlabelled_files_are_no_data(tmp_path):
    write(tmp_path/'schema.json', [dict(subject_type='歌曲', predicate='歌手', object_type={'@value': '人物'})])
    write(tmp_path/'test2.json', [dict(text='没有答案')])
    write(tmp_path/'train.json', ['{broken', row('王写春', ('春', '作者', '王'))])
    write(tmp_path/'sub'/'dev.jsonl', [row('王写春', ('春', '作者', '王'))])
    (tmp_path/'empty.json').write_text('')
    parts, other = find_duie([tmp_path])
    assert {k: [p.name for p in v] for k, v in parts.items()} == dict(train=['train.json'], valid=['dev.jsonl'])
    assert sorted(p.name for p in other) == ['empty.json', 'schema.json', 'test2.json']
    assert not is_duie(tmp_path/'schema.json')

def test_missing_files_and_parts_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'): find_duie([tmp_path/'nowhere'])
    only = write(tmp_path/'train.json', [row('王写春', ('春', '作者', '王'))])
    with pytest.raises(ValueError, match=r'valid.*dev.*test'): find_duie([only])

def test_reading_accounts_for_every_row(tmp_path):
    good = row('王写春', ('春', '作者', '王'))
    f = write(tmp_path/'train.json', [good, '{"text": ', '[1]', dict(text='没有标注'), dict(text='空', spo_list=[]), row('王写秋', ('春', '作者', '王')), '', good,
                                      row('考卷里的王写春', ('春', '作者', '王')), row('王写春，好', ('春', '作者', '王'), ('冬', '作者', '王'))])
    with open(f, 'ab') as h: h.write(b'{"text": "\xff\xfe\x80", "spo_list": []}\n')
    r = Rejects()
    rows = list(read_duie(f, 'train', r, {'考卷里的王写春': 'leak'}))
    assert rows == [('王写春', [('春', '作者', '王')]), ('王写春，好', [('春', '作者', '王')])]
    assert r.report['train']['rows'] == Counter(rows=10, kept=2, broken_json=2, missing_key=1, no_triples=2, duplicate_row=1, leak=1, encoding=1)
    by_line = {(x['line'], x['rule']) for x in r.rows}
    assert by_line == {(2, 'broken_json'), (3, 'broken_json'), (4, 'missing_key'), (5, 'no_triples'), (6, 'no_triples'), (6, 'entity_not_in_text'), (8, 'duplicate_row'),
                       (9, 'leak'), (10, 'entity_not_in_text'), (11, 'encoding')}
    assert all(x['file'] == 'train.json' and x['source'] == 'duie' and x['text'] for x in r.rows)

def test_tests_without_a_sentence_are_an_error(tmp_path):
    write(tmp_path/'train.json', [row('王写春', ('春', '作者', '王'))]); write(tmp_path/'valid.json', [row('王写秋', ('春', '作者', '王'))])
    with pytest.raises(ValueError, match='valid.json'): read_tests(find_duie([tmp_path])[0], Rejects())

def test_planted_dirt_is_found_by_the_rules(tmp_path):
    report = make_sample_triples(tmp_path)
    dirt, r = report['dirt'], Rejects()
    rows = list(read_duie(tmp_path/'duie'/'train.json', 'train', r, {}))
    n, t = r.report['train']['rows'], r.report['train']['triples']
    assert {k: n[k] for k in ('broken_json', 'encoding', 'missing_key', 'duplicate_row')} == {k: dirt[k] for k in ('broken_json', 'encoding', 'missing_key', 'duplicate_row')}
    assert n['no_triples'] == dirt['no_triples'] + dirt['all_absent'] and n['kept'] == len(rows) == 6000
    assert t['song_not_album'] == dirt['song_album'] and t['duplicate_triple'] >= dirt['duplicate']
    assert t['strip_title_marks'] >= dirt['title_marks'] and t['whole_title'] >= dirt['cut_title'] and t['entity_not_in_text'] >= dirt['not_in_text']
    assert t['lower_case'] > 0
    clean = {text.lower(): sorted(x.lower() for f in facts for x in f) for text, facts in __import__('scclm.sample_triples').sample_triples.make_splits().train}
    for text, triples in rows: assert sorted(x for tr in triples for x in tr) == clean[text], text

def test_mixing_gives_the_share_and_repeats_only_when_it_must(tmp_path):
    old = [(f'问{i}', f'答{i}') for i in range(50)]
    pq.write_table(pa.table(dict(prompt=[p for p, _ in old], response=[r for _, r in old])), tmp_path/'sft.parquet')
    new = [(f'抽{i}', '[]') for i in range(60)]
    for share, n in ((0., 0), (.25, 20), (.5, 60), (.75, 180)):
        got = mix_in(new, share, [tmp_path/'sft.parquet'])
        assert got[:60] == new and len(got) == 60 + n and set(got[60:]) <= set(old)
        counts = Counter(got[60:])
        assert not counts or max(counts.values()) - min(counts.get(p, 0) for p in old) <= 1
    assert mix_in(new, .5, [tmp_path/'sft.parquet']) == mix_in(new, .5, [tmp_path/'sft.parquet'])


# ---- scores

def brute(pred, gold):
    "Micro scores over one set of (sentence, triple)."
    p = {(i, t) for i, ts in enumerate(pred) for t in ts}
    g = {(i, t) for i, ts in enumerate(gold) for t in ts}
    right = len(p & g)
    return right/len(p) if p else 0., right/len(g) if g else 0., 2*right/(len(p) + len(g)) if p or g else 0.

def random_sets(rng, n, kinds=6): return [[(rng.choice('ab'), rng.choice('pq'), rng.choice('xy')) for _ in range(rng.randint(0, 4))] for _ in range(n)]

def test_scores_equal_a_brute_force_set_count():
    rng = random.Random(0)
    for _ in range(300):
        n = rng.randint(1, 12)
        pred, gold = random_sets(rng, n), random_sets(rng, n)
        got = prf(pred, gold, n_boot=2)
        assert (got['p'], got['r'], got['f1']) == pytest.approx(brute(pred, gold)) and got['n'] == n
    assert prf([[]], [[]])['f1'] == 0. and prf([[('a', 'p', 'b')]], [[('a', 'p', 'b')]])['ci95'] == [1., 1.]

def test_the_interval_is_that_of_a_plain_bootstrap():
    rng = random.Random(1)
    gold = random_sets(rng, 80)
    pred = [g if rng.random() < .6 else p for g, p in zip(gold, random_sets(rng, 80))]
    low, high = prf(pred, gold, n_boot=4000)['ci95']
    draws = sorted(brute([pred[i] for i in pick], [gold[i] for i in pick])[2] for pick in ([rng.randrange(80) for _ in range(80)] for _ in range(2000)))
    assert low == pytest.approx(draws[50], abs=.02) and high == pytest.approx(draws[1949], abs=.02)
    assert low < prf(pred, gold)['f1'] < high and prf(pred, gold) == prf(pred, gold), 'same seed, same interval'

def test_tallies_and_scores_take_batches():
    counts = np.array([[[1, 2, 4], [0, 0, 0]], [[3, 3, 3], [0, 5, 0]]])
    p, r, f = scores(counts)
    assert p.tolist() == [[.5, 0], [1, 0]] and r.tolist() == [[.25, 0], [1, 0]] and f.tolist() == [[pytest.approx(1/3), 0], [1, 0]]
    with pytest.raises(AssertionError): tallies([[]], [])

def test_each_relation_gets_its_own_scores():
    rng = random.Random(2)
    pred, gold = random_sets(rng, 50), random_sets(rng, 50)
    table = by_relation(pred, gold)
    for p in 'pq':
        theirs, ours = ([[t for t in ts if t[1] == p] for ts in rows] for rows in (pred, gold))
        assert tuple(table.loc[p, ['p', 'r', 'f1']]) == pytest.approx(brute(theirs, ours))
    assert table.stated.sum() == sum(len(set(g)) for g in gold)

def test_errors_are_named_and_none_is_lost():
    text, gold = '春天由王山唱，李水写', [('春天', '歌手', '王山'), ('春天', '作者', '李水')]
    for t, kind in [(('王山', '歌手', '春天'), 'swapped'), (('春天', '导演', '王山'), 'wrong relation'), (('春', '歌手', '王山'), 'wrong boundary'),
                    (('春天', '歌手', '王三'), 'not in text'), (('春天', '歌手', '唱'), 'wrong entity'), (('春天', '歌手', '李水'), 'wrong relation'), (('王山', '妻子', '李水'), 'spurious'),
                    (('', '', ''), 'spurious')]: assert error_kind(t, gold, text) == kind
    rng = random.Random(3)
    pred, gold = random_sets(rng, 40), random_sets(rng, 40)
    errors = find_errors(['abpqxy']*40, pred, gold)
    assert (errors.kind != 'missed').sum() == sum(len(set(p) - set(g)) for p, g in zip(pred, gold))
    assert (errors.kind == 'missed').sum() == sum(len([t for t in g if t not in p]) for p, g in zip(pred, gold) if set(p) <= set(g))
    ten = telling_errors(errors, 10)
    assert len(ten) == 10 and set(ten.kind) == set(errors.kind)
    assert len(telling_errors(find_errors(['a'], [[]], [[]]))) == 0


# ---- configuration

@pytest.mark.parametrize('bad', [dict(mix=1.), dict(mix=-.1), dict(max_rows=-1), dict(max_test=-1), dict(epochs=-1.), dict(n_watch=-1), dict(steps=0)])
def test_bad_values_name_their_field(bad):
    with pytest.raises(ValueError, match=next(iter(bad))): IeCfg(**bad)

def test_base_has_the_recipe_of_the_ancestor():
    cfg = ie_cfg('base')
    assert (cfg.lr, cfg.lr_scratch, cfg.epochs) == (5e-5, 1e-4, 5) and set(PRESETS) == {'tiny', 'mini', 'base'}


# ---- the stage, small

@pytest.fixture
def world(tmp_path, monkeypatch):
    "A runs folder with a tokenizer, an SFT file and a few sentences: the toy task of this room."
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path/'runs')); monkeypatch.setenv('SCCLM_SCALE', 'tiny'); monkeypatch.delenv('SCCLM_RAW', raising=False)
    from scclm.data_cleaning import run_path
    tok = char_tok(CHARS + PROMPT + '[](),作者写')
    tok.save_pretrained(run_path('tokenizer'))
    run_path('data').mkdir(parents=True)
    pq.write_table(pa.table(dict(prompt=['你好吗？']*8, response=['你好。']*8)), run_path('data', 'sft_train.parquet'))
    pq.write_table(pa.table(dict(prompt=['谁写的？']*8, response=['李白。']*8)), run_path('data', 'train.parquet'))
    pq.write_table(pa.table(dict(prompt=['你是谁？'], response=['你好。'], kind=['phrasing'])), run_path('data', 'heldout.parquet'))
    names = '天地玄黄宇宙洪荒日月盈昃'
    rows = [row(f'{a}写{b}', (b, '作者', a)) for a in names for b in names if a != b]
    write(tmp_path/'duie'/'duie_train.json', rows[:100]); write(tmp_path/'duie'/'duie_valid.json', rows[100:])
    write(tmp_path/'duie'/'duie_schema.json', [dict(subject_type='书', predicate='作者', object_type='人')])
    return tmp_path, replace(ie_cfg('tiny'), data=(str(tmp_path/'duie'),), start='scratch', steps=6, eval_every=3, save_every=3, log_every=1, n_watch=4)

def weights(run): return {n: p.detach().clone() for n, p in run.acc.unwrap_model(run.model).named_parameters()}

def test_the_stage_writes_what_it_promises(world):
    root, cfg = world
    run = ie(cfg, progress=False)
    out = root/'runs'/'tiny'/'ie_scratch'
    assert run.done and run.out == out
    assert {'model', 'checkpoints', 'log.jsonl', 'config.json', 'figures.json', 'train.parquet', 'rejects.parquet', 'report.json'} <= {p.name for p in out.iterdir()}
    figures = json.loads((out/'figures.json').read_text())
    assert {'f1_valid', 'f1_valid_ci95', 'f1_valid_n', 'p_valid', 'r_valid', 'unreadable_valid', 'loss_valid', 'steps'} <= set(figures)
    assert not [k for k in figures if k.startswith('exact')]   # new weights know no answers: nothing to keep
    assert figures['f1_valid_n'] == 32 and 0 <= figures['f1_valid'] <= 1 and not [k for k in figures if k.startswith('f1_') and 'valid' not in k]
    report = json.loads((out/'report.json').read_text())
    assert report['ignored'] == ['duie_schema.json'] and report['train_rows'] == dict(extraction=100, mixed_in=round(100*cfg.mix/(1 - cfg.mix)))
    assert pq.read_metadata(out/'train.parquet').num_rows == sum(report['train_rows'].values())
    again = ie(replace(cfg, start=str(out/'model'), steps=2, eval_every=0, out=str(root/'again')), progress=False)
    kept = json.loads((again.out/'figures.json').read_text())
    assert 0 <= kept['exact_heldout_before'] <= 1 and 0 <= kept['exact_heldout_after'] <= 1 and kept['exact_heldout_n'] == 1
    assert pq.read_schema(out/'rejects.parquet').names == ['source', 'file', 'line', 'rule', 'text']
    entries = [json.loads(l) for l in (out/'log.jsonl').read_text().splitlines()]
    assert [e['step'] for e in entries if 'f1_valid' in e] == [3, 6] and all('loss_valid' in e for e in entries if 'f1_valid' in e)

def test_rows_to_mix_in_come_from_data_or_from_where_one_says(world):
    from scclm.data_cleaning import run_path
    root, cfg = world
    mine = root/'mine.parquet'
    pq.write_table(pa.table(dict(prompt=['问']*3, response=['答']*3)), mine)
    assert mix_paths(replace(cfg, mix_files=('sft_train.parquet', str(mine)))) == [run_path('data', 'sft_train.parquet'), mine]
    with pytest.raises(FileNotFoundError, match='nothing.parquet.*00_data_cleaning'): mix_paths(replace(cfg, mix_files=('nothing.parquet',)))
    base = build_model(model_config('tiny', len(load_tokenizer())), seed=0)
    save_model(base, load_tokenizer(), root/'base')
    for start, replayed in ((str(root/'base'), True), ('scratch', False)):
        run = ie(replace(cfg, steps=1, start=start, replay_files=('train.parquet',), out=str(root/'mixed')), resume=False, progress=False)
        prompts = set(pq.read_table(run.out/'train.parquet')['prompt'].to_pylist())
        assert '你好吗？' in prompts and ('谁写的？' in prompts) == replayed, 'new weights have nothing to replay'

def test_a_stopped_run_goes_on_bit_for_bit(world):
    import torch
    from scclm.ie_finetune import ie_eval  # noqa: F401
    root, cfg = world
    whole = weights(ie(replace(cfg, out=str(root/'whole')), progress=False))
    import signal, scclm.trainer as t
    save, seen = t.save_checkpoint, []
    def once(run, **kwargs):
        save(run, **kwargs)
        if run.step == 3 and not seen: seen.append(1); signal.raise_signal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(t, 'save_checkpoint', once)
        first = ie(replace(cfg, out=str(root/'parts')), progress=False)
    assert not first.done and not (root/'parts'/'model').exists()
    again = ie(replace(cfg, out=str(root/'parts')), progress=False)
    assert again.done and all(torch.equal(a, b) for a, b in zip(whole.values(), weights(again).values()))

def test_limits_epochs_and_starts(world):
    root, cfg = world
    run = ie(replace(cfg, max_rows=20, max_test=5, mix=0., epochs=1., start='stock', lr_scratch=3e-4), progress=False)
    report = json.loads((run.out/'report.json').read_text())
    assert run.out.name == 'ie_stock' and report['train_rows'] == dict(extraction=20, mixed_in=0)
    assert json.loads((run.out/'figures.json').read_text())['f1_valid_n'] == 5
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
    assert json.loads((run.out/'figures.json').read_text())['f1_valid_n'] == 1

def test_a_model_learns_the_toy_task(world):
    root, cfg = world
    run = ie(replace(cfg, steps=300, budget_tok=256, eval_every=0, save_every=300, n_watch=0, mix=0.), progress=False)
    figures = json.loads((run.out/'figures.json').read_text())
    assert figures['f1_valid'] > .5
    model, tok = run.acc.unwrap_model(run.model), char_tok(CHARS + PROMPT + '[](),作者写')
    triples, bad = extract(model, tok, ['天写地'])
    assert len(triples) == 1 and bad >= 0

def test_twin_marks_change_three_rows_and_only_of_trained_models(world):
    import torch
    from scclm.data_cleaning import run_path
    root, cfg = world
    tok = char_tok(CHARS + PROMPT + '[](),作者写（），')
    tok.save_pretrained(run_path('tokenizer'))
    run = ie(replace(cfg, steps=1, mix=0., twins=True, lr_scratch=1e-9), progress=False)
    fresh, _ = start_model(cfg)
    rows = lambda model: model.get_input_embeddings().weight.detach()
    new = rows(run.acc.unwrap_model(run.model))
    assert torch.allclose(new, rows(fresh), atol=1e-6), 'new weights are left alone'
    model, _ = start_model(replace(cfg, start=str(run.out/'model')))
    twin_marks_(model, tok)
    changed = {i for i in range(len(tok)) if not torch.equal(rows(model)[i], new[i])}
    assert changed == set(tok.convert_tokens_to_ids(list('(),')))
    for a, b in zip('(),', '（），'): assert torch.equal(*(rows(model)[tok.convert_tokens_to_ids(m)] for m in (a, b)))
    plain, small = start_model(replace(cfg, start=str(run.out/'model')))[0], char_tok('天地(),[]')
    before = rows(plain).clone()
    twin_marks_(plain, small)
    assert torch.equal(rows(plain), before), 'a tokenizer without the twins changes nothing'

def test_missing_stages_are_named(world):
    with pytest.raises(FileNotFoundError, match='06_sft'): ie(replace(world[1], start='sft'), progress=False)
    with pytest.raises(FileNotFoundError, match='nothing'): ie(replace(world[1], start='nothing'), progress=False)
