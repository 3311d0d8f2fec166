"Exam questions in training rows: against the definition, by files of every kind, and a kill between two writes."
import json
import random
from dataclasses import replace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scclm import leaks
from scclm.leaks import LeakCfg, check_leaks, drop_leaks, find_leaks, index_items, overlaps, read_items

LETTERS = [chr(c) for c in range(0x4E00, 0x4E00 + 40)] # few, so that n-grams meet by chance


def by_definition(asks, rests, rows, cfg):
    "Every row with every item, by sets of strings."
    def share(part, text):
        wanted = {part[i:i + cfg.ngram] for i in range(max(1, len(part) - cfg.ngram + 1))}
        return sum(g in text for g in wanted)/len(wanted)
    found = {}
    for r, (ask, answer) in enumerate(rows):
        row = ask + answer
        for k, (question, rest) in enumerate(zip(asks, rests)):
            item = question + rest
            if len(item) < cfg.short:
                if item in (ask, row): found[r, k] = 1.
                continue
            asked = question in row if len(question) < cfg.short else share(question, row) >= cfg.share
            if asked and share(item, row) >= cfg.share: found[r, k] = share(item, row)
    return found


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('cfg', [LeakCfg(), LeakCfg(ngram=4, share=.9, short=8), LeakCfg(ngram=3, share=.3, short=3)])
def test_as_defined(seed, cfg):
    rng = random.Random(seed)
    pieces = [''.join(rng.choices(LETTERS, k=rng.randint(1, 20))) for _ in range(8)]
    def text(low, high): return ''.join(rng.choices(pieces, k=rng.randint(low, high)))
    asks, rests = [text(1, 4) for _ in range(50)], [text(0, 4) for _ in range(50)]
    rows = [(text(1, 3), text(0, 9)) for _ in range(60)] + [(asks[0], rests[0]), (asks[1], '')]
    found = overlaps(index_items(asks, rests, cfg), *zip(*rows))
    want = by_definition(asks, rests, rows, cfg)
    got = {(r, k): s for r, k, s in zip(found.rows.tolist(), found.items.tolist(), found.shares.tolist())}
    assert len(got) == len(found.rows) and got == pytest.approx(want) and want


@pytest.mark.parametrize('asks, rows', [([], [('问', '答')]), (['题'*40], []), ([], [])])
def test_nothing(asks, rows):
    found = overlaps(index_items(asks, ['']*len(asks), LeakCfg()), [a for a, _ in rows], [b for _, b in rows])
    assert not len(found.rows) and not len(found.items) and not len(found.shares)


def write_pairs(path, rows, group=None):
    asks, answers = zip(*rows)
    pq.write_table(pa.table(dict(prompt=pa.array(asks, pa.string()), response=pa.array(answers, pa.string()))), path,
                   row_group_size=group)
    return path


QUESTION = '甲男十五岁与乙女十三岁在同一所中学上学二人在参加校文体活动时相识并成为好友甲的行为'
OPTIONS = ('构成奸淫幼女罪的既遂', '情节显著轻微危害不大', '构成猥亵儿童罪的未遂', '构成强奸罪并从重处罚')


@pytest.fixture
def folder(tmp_path):
    "Exams of every kind, and training rows in several row groups; rows 1, 5, 6 and 8 leak."
    test = tmp_path/'cmmlu'/'test'
    test.mkdir(parents=True)
    header = 'Question,A,B,C,D,Answer\n'
    (test/'law.csv').write_text(header + ','.join((QUESTION, *OPTIONS, 'B')) + '\n', encoding='utf-8')
    sentence = dict(text='《边城》是沈从文在一九三四年发表的中篇小说，写的是湘西茶峒的摆渡人和他的孙女', spo_list=[])
    (tmp_path/'duie_dev.json').write_text(json.dumps(sentence, ensure_ascii=False) + '\n', encoding='utf-8')
    write_pairs(tmp_path/'test.parquet', [('江西省的省会是哪里？', '南昌市。'), (None, None)])
    swapped = OPTIONS[2] + '。' + OPTIONS[0] + '；' + OPTIONS[3] + '\n' + OPTIONS[1]
    rows = [('你好', '你好。'), ('选一个：' + QUESTION + '：', swapped), (QUESTION[:16], '不知道。'), ('江西省的省会在哪里？', '南昌市。'),
            (None, None), ('江西省的省会，是哪里', '南昌市'), ('抽取', f'原文：{sentence["text"]}'), ('问', '答'),
            ('再来一遍', QUESTION + ''.join(OPTIONS))]
    write_pairs(tmp_path/'train.parquet', rows, group=4)
    return tmp_path


def cfg_of(folder, **more):
    exams = tuple(folder/name for name in ('cmmlu', 'duie_dev.json', 'test.parquet'))
    return LeakCfg(exams=exams, files=(folder/'train.parquet',), **more)


@pytest.mark.parametrize('workers', [1, 2])
def test_every_kind_of_exam(folder, workers):
    found = find_leaks(cfg_of(folder, workers=workers))
    assert [(x.row, x.exam, x.place) for x in found] == [
        (1, 'cmmlu', 'test/law:2'), (5, 'test', '1'), (6, 'duie_dev', '1'), (8, 'cmmlu', 'test/law:2')]


def test_removal_loses_nothing(folder):
    before = pq.read_table(folder/'train.parquet')
    check_leaks(cfg_of(folder, remove=True))
    after, gone = pq.read_table(folder/'train.parquet'), pd.read_parquet(folder/'train.leaks.parquet')
    assert after.to_pylist() == [row for k, row in enumerate(before.to_pylist()) if k not in (1, 5, 6, 8)]
    assert after.schema.names == before.schema.names and gone.line.tolist() == [2, 6, 7, 9]
    assert gone.repeats.tolist() == ['cmmlu/test/law:2', 'test/1', 'duie_dev/1', 'cmmlu/test/law:2']
    assert [text.split('\n')[0] for text in gone.text] == [before['prompt'][k].as_py() for k in (1, 5, 6, 8)]
    report = json.loads((folder/'leaks.json').read_text(encoding='utf-8'))
    assert len(report['leaks']) == 4 and report['removed'] == {str(folder/'train.parquet'): 4}


def test_without_remove_nothing_is_touched(folder):
    before = (folder/'train.parquet').read_bytes()
    assert len(check_leaks(cfg_of(folder))) == 4
    assert (folder/'train.parquet').read_bytes() == before and not (folder/'train.leaks.parquet').exists()


def test_again_after_a_stop_between_the_two_files(folder, monkeypatch):
    "The rejects are written first; the second run finds the same rows and writes each once."
    found = find_leaks(cfg_of(folder))
    real = leaks.write_aside
    def stop(path):
        if path.name == 'train.parquet': raise KeyboardInterrupt
        return real(path)
    monkeypatch.setattr(leaks, 'write_aside', stop)
    with pytest.raises(KeyboardInterrupt): drop_leaks(folder/'train.parquet', found)
    monkeypatch.undo()
    check_leaks(cfg_of(folder, remove=True))
    first = pd.read_parquet(folder/'train.leaks.parquet')
    assert check_leaks(cfg_of(folder, remove=True)) == [] and len(first) == 4
    assert pd.read_parquet(folder/'train.leaks.parquet').equals(first)
    assert len(pq.read_table(folder/'train.parquet')) == 5


def test_faults_are_named(tmp_path, folder):
    write_pairs(tmp_path/'other.parquet', [('问', '答')])
    table = pq.read_table(tmp_path/'other.parquet').rename_columns(['prompt', 'answer'])
    pq.write_table(table, tmp_path/'other.parquet')
    with pytest.raises(ValueError, match=r"other.parquet has no column 'response': found prompt, answer"):
        read_items([tmp_path/'other.parquet'])
    with pytest.raises(ValueError, match='short=4 must be >= ngram=8'): find_leaks(cfg_of(folder, short=4))
    with pytest.raises(FileNotFoundError, match='nowhere.zip is missing'): read_items([tmp_path/'nowhere.zip'])
    assert leaks.main(['--exams', str(tmp_path/'nowhere.zip'), '--files', str(folder/'train.parquet')]) == 2
    assert leaks.main(['--exams', str(folder/'cmmlu'), '--files', str(folder/'train.parquet')]) == 0


def test_one_file_under_two_names_loses_only_its_leaks(folder):
    (folder/'link.parquet').symlink_to(folder/'train.parquet')
    before = pd.read_parquet(folder/'train.parquet')
    twice = (folder/'train.parquet', folder/'link.parquet', folder/'train.parquet')
    found = check_leaks(replace(cfg_of(folder, remove=True), files=twice))
    gone = {leak.row for leak in found}
    assert 0 < len(gone) < len(before)
    left = pd.read_parquet(folder/'train.parquet')
    assert left.equals(before.drop(index=sorted(gone)).reset_index(drop=True))


@pytest.mark.parametrize('piece', [1, 2, 3])
def test_pieces_do_not_show(folder, monkeypatch, piece):
    whole = find_leaks(cfg_of(folder))
    monkeypatch.setattr(leaks, 'PIECE', piece)
    assert find_leaks(cfg_of(folder)) == whole != []
    before = pd.read_parquet(folder/'train.parquet')
    check_leaks(cfg_of(folder, remove=True))
    left = before.drop(index=sorted({leak.row for leak in whole})).reset_index(drop=True)
    assert pd.read_parquet(folder/'train.parquet').equals(left)
