"""`scclm fetch`: every source of the catalogue from stand-ins on this machine, into a folder that the chapters read."""
import bz2
import hashlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fetch_toys import Mood, blob_id, commit_of, shop_open
from raw_toys import gbk

from scclm.cli import main
from scclm.data_cleaning import clean
from scclm.download import Remote
from scclm.evaluation import read_exam
from scclm.fetch import (ITEMS, FetchCfg, Ledger, fetch, fetch_table, is_there, link_file, mirrored,
    pick_items, raw_root, state_of)
from scclm.pref_files import pref_files, read_prefs
from scclm.sources import CleanCfg, find_sources
from scclm.triple_files import Rejects, find_duie, read_tests

def jsonl(*rows): return ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows).encode()
def zipped(**files):
    "A zip archive; __ in a name stands for / and _dot_ for a dot."
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as z:
        for name, data in files.items(): z.writestr(name.replace('__', '/').replace('_dot_', '.'), data)
    return out.getvalue()
def parquet(**columns):
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()

LONG = '这一条回答要写得足够长，才不会被最短长度的规则拒掉，所以多写几个字。'
PAPER = 'id,question,A,B,C,D,answer\n0,一加一等于几,一,二,三,四,B\n'
HEAD = '''<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10" xml:lang="zh">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <base>https://zh.wikipedia.org/wiki/Wikipedia:%E9%A6%96%E9%A1%B5</base>
    <namespaces>
      <namespace key="0" case="first-letter" />
      <namespace key="10" case="first-letter">Template</namespace>
    </namespaces>
  </siteinfo>
'''

def page(title, ns, number, text, redirect=''):
    "A page as the dumps have it, a tag a line."
    lines = ['  <page>', f'    <title>{title}</title>', f'    <ns>{ns}</ns>', f'    <id>{number}</id>', redirect,
        '    <revision>', f'      <id>{number + 100}</id>', f'      <text xml:space="preserve">{text}</text>',
        '    </revision>', '  </page>']
    return '\n'.join(line for line in lines if line) + '\n'

DUMP = HEAD + ''.join([
    page('花園街', 0, 13, "'''花園街'''（{{lang-en|Fa Yuen Street}}）是[[香港]][[油尖旺區]]的一條街道。&lt;ref&gt;某書&lt;/ref&gt;位於九龍旺角。"),
    page('界限街', 0, 14, '界限街是香港九龍的一條街道，分隔南北兩部分。'),
    page('花园', 0, 15, '#REDIRECT [[花園街]]', '    <redirect title="花園街" />'),
    page('Template:测试', 10, 16, '模板不是条目。')]) + '</mediawiki>\n'

def belle(k): return jsonl(dict(instruction=f'介绍第{k}种水果。', input='', output=f'第{k}种：' + LONG))

def zhihu(k):
    "A shard."
    return parquet(INSTRUCTION=[f'第{k}个问题怎么回答？'], RESPONSE=[f'第{k}个，' + LONG], SOURCE=['Zhihu'], METADATA=['{}'])

HUB = {
    'wangrui6/Zhihu-KOL': {'README.md': b'#', 'data/train-00000-of-00002.parquet': zhihu(0),
        'data/train-00001-of-00002.parquet': zhihu(1)},
    'BelleGroup/train_1M_CN': {'Belle_open_source_1M.json': belle(1)},
    'BelleGroup/train_2M_CN': {'train_2M_CN.json': belle(2)},
    'BelleGroup/train_3.5M_CN': {'train_3.5M_CN.json': jsonl(dict(id='1', conversations=[
        dict({'from': 'human', 'value': '介绍第三种水果。'}), dict({'from': 'assistant', 'value': '第三种：' + LONG})]))},
    'BelleGroup/generated_chat_0.4M': {'generated_chat_0.4M.json': belle(4)},
    'BelleGroup/train_0.5M_CN': {'Belle_open_source_0.5M.json': belle(5)},
    'Skepsun/huozi_rlhf_data_json': {'huozi_rlhf_data.json': json.dumps(
        [dict(prompt='天为什么蓝？', chosen='因为散射。\\n蓝光散得多。', reject='不知道。')], ensure_ascii=False).encode()},
    'beyond/rlhf-reward-single-round-trans_chinese': {'data/train-00000-of-00001.parquet': parquet(
        prompt=['水为什么湿？'], chosen=['因为它附着。'], rejected=['随便。'])},
    'ceval/ceval-exam': {'ceval-exam.zip': zipped(dev__law_dev_dot_csv=PAPER, val__law_val_dot_csv=PAPER)},
    'haonan-li/cmmlu': {'cmmlu_v1_0_1.zip': zipped(dev__law_dot_csv=PAPER.replace('question', 'Question'),
        test__law_dot_csv=PAPER.replace('question', 'Question'))}}

MEDICAL = 'department,title,ask,answer\n男科,头痛怎么办,"头痛两天了，\n怎么办","' + LONG + '"\n'
ALPACA = json.dumps([dict(instruction='写一句诗。', input='', output='床前明月光。')], ensure_ascii=False).encode()
WEBTEXT = jsonl(dict(qid=1, title='花园街在哪？', desc='', topic='地理', star=9, content='花园街在香港。' + LONG))
WIKI = bz2.compress(DUMP.encode())
SPO = jsonl(dict(text='《月亮》是宋雪莱演唱的歌曲', spo_list=[dict(subject='月亮', predicate='歌手', object='宋雪莱')]))
BAIKE = jsonl(dict(qid='1', category='生活', title='冬天怎样进补？', desc='', answer=LONG))

@pytest.fixture
def world(tmp_path, monkeypatch):
    "Stand-ins for every place, a catalogue that leads there, a cache of its own."
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path/'cache'))
    monkeypatch.setenv('HF_HUB_DISABLE_TELEMETRY', '1')
    monkeypatch.delenv('SCCLM_RAW', raising=False)
    with shop_open() as shop:
        monkeypatch.setenv('HF_ENDPOINT', shop.url)
        shop.repos |= {name: dict(files) for name, files in HUB.items()}
        base = '/zhwiki/latest/zhwiki-latest-'
        line = f'{hashlib.sha1(WIKI).hexdigest()}  zhwiki-20260901-pages-articles.xml.bz2\n'
        shop.files |= {'/m.csv': MEDICAL.encode('gb18030'), '/webtext2019zh.zip': zipped(
            webtext2019zh__web_text_zh_train_dot_json=WEBTEXT), '/alpaca.json': ALPACA,
            base + 'sha1sums.txt': line.encode(), base + 'pages-articles.xml.bz2': WIKI}
        places = {'webtext2019zh': Remote('webtext2019zh.zip', shop.url + '/webtext2019zh.zip'),
            'Chinese-medical-dialogue': Remote('男科/男科.csv', shop.url + '/m.csv',
                digest=f"git:{blob_id(MEDICAL.encode('gb18030'))}"),
            'alpaca-gpt4-data-zh': Remote('alpaca_gpt4_data_zh.json', shop.url + '/alpaca.json')}
        shop.items = ITEMS | {name: ITEMS[name]._replace(files=(r,)) for name, r in places.items()}
        shop.raw = tmp_path/'raw'
        shop.cfg = FetchCfg(to=str(shop.raw), mirror=(f'https://dumps.wikimedia.org={shop.url}',), tries=3, pause_s=.01,
            timeout_s=10, progress=False, workers=1)
        yield shop

def get(world, *names, **more):
    "Fetch some sources."
    return fetch(replace(world.cfg, names=names, **more), world.items)

def seen_in(folder):
    "The files below a folder that are not hidden."
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file() and p.name[0] != '.')

def state(world, name): return state_of(world.items[name], world.raw)

def put_by_hand(world):
    "What a person downloads behind a login."
    duie = ('duie1.0/train_data.json', 'duie1.0/dev_data.json', 'duie2.0/duie_train.json', 'duie2.0/duie_dev.json')
    hand = {'baike_qa2019/baike_qa_train.json': BAIKE} | {f'duie/{name}': SPO for name in duie}
    for name, data in hand.items():
        (world.raw/name).parent.mkdir(parents=True, exist_ok=True)
        (world.raw/name).write_bytes(data)

# The whole

def test_all_of_base_is_read_as_it_is(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path/'runs'))
    monkeypatch.setenv('SCCLM_SCALE', 'base')
    fetch(replace(world.cfg, all='base'), world.items)
    said = capsys.readouterr().out
    for name in ('baike_qa2019', 'DuIE1.0', 'DuIE2.0'): assert f'{name}, by hand: https://' in said
    put_by_hand(world)
    fetched = fetch(replace(world.cfg, all='base'), world.items)
    assert all(text.startswith('there') for text in fetch_table(fetched)['state'])
    asked = len(world.log)
    fetch(replace(world.cfg, all='base', verify=True), world.items)
    assert len(world.log) == asked, 'what is there is not asked for again'
    sources, unknown = find_sources(world.raw)
    assert unknown == []
    report = clean(CleanCfg(raw=world.raw, progress=False))
    rows = {name: c['rows_in'] for name, c in report['sources'].items()}
    assert rows == dict(webtext=1, baike=1, medical=1, zhihu=2, wiki=2, belle=5, chat=1)
    assert report['rules'].keys() <= {'leak'}, 'train_2M_CN is there twice: a row that validates SFT leaves pretraining'
    assert report['unrecognised'] == []
    roles = {s.file: s.role for s in sources}
    assert [file for file, role in sorted(roles.items()) if role == 'sft'] == [
        'sft/generated_chat_0.4M/generated_chat_0.4M.json', 'sft/train_0.5M_CN/Belle_open_source_0.5M.json',
        'sft/train_2M_CN/train_2M_CN.json']

def test_the_other_chapters_find_theirs(world, tmp_path):
    put_by_hand(world)
    get(world, *(name for name, item in ITEMS.items() if item.chapter in ('07', '09', 'evaluate')))
    prefs, rejects, _ = read_prefs(pref_files((str(world.raw/'prefs'),)))
    assert sorted(p.source for p in prefs) == ['alpaca', 'huozi', 'reward'] and rejects == []
    assert '\n' in next(p.chosen for p in prefs if p.source == 'huozi')
    parts, other = find_duie([world.raw/'duie'])
    assert {part: len(files) for part, files in parts.items()} == dict(train=2, valid=2) and other == []
    assert len(read_tests(parts, Rejects())['valid']) == 2
    exam = read_exam(world.raw/'eval'/'C-Eval'/'ceval-exam.zip', 'val')
    assert len(exam['law'].questions) == 1
    exam = read_exam(world.raw/'eval'/'CMMLU'/'cmmlu_v1_0_1.zip', 'test')
    assert len(exam['law'].questions) == 1

# Plain downloads

def test_an_archive_shows_itself_only_unpacked(world):
    get(world, 'webtext2019zh')
    home = world.raw/'webtext2019zh'
    assert [p.name for p in home.iterdir() if not p.name.startswith('.')] == ['webtext2019zh']
    assert not (home/'.webtext2019zh.zip').exists()
    get(world, 'webtext2019zh', keep=True, renew=True)
    assert (home/'.webtext2019zh.zip').exists()
    sources, unknown = find_sources(world.raw)
    assert len(sources) == 1 and unknown == []

def test_a_hostile_archive_leaves_nothing(world):
    world.files['/webtext2019zh.zip'] = zipped(**{'a_dot_json': WEBTEXT, '..__..__evil': 'x'})
    with pytest.raises(OSError, match=r"webtext2019zh: an archive holds '../../evil'"): get(world, 'webtext2019zh')
    assert not list(world.raw.rglob('evil')) and not list(world.raw.rglob('*.json'))
    assert state(world, 'webtext2019zh').startswith('begun')

def test_an_archive_from_a_browser(world):
    home = world.raw/'webtext2019zh'
    home.mkdir(parents=True)
    (home/'.webtext2019zh.zip').write_bytes(world.files['/webtext2019zh.zip'])
    get(world, 'webtext2019zh')
    assert world.log == [] and len(find_sources(world.raw)[0]) == 1

def test_a_wrong_hash_is_not_taken(world):
    world.files['/m.csv'] = MEDICAL.replace('两天', '三天').encode('gb18030')
    with pytest.raises(OSError, match='its hash is git:.*expected git:.*removed'):
        get(world, 'Chinese-medical-dialogue')
    assert state(world, 'Chinese-medical-dialogue') == 'not there'

def test_what_it_was_the_first_time(world):
    get(world, 'alpaca-gpt4-data-zh')
    file = world.raw/'prefs'/'alpaca-gpt4-data-zh'/'alpaca_gpt4_data_zh.json'
    world.files['/alpaca.json'] = ALPACA.replace('诗'.encode(), '词'.encode())
    get(world, 'alpaca-gpt4-data-zh')
    assert file.read_bytes() == ALPACA, 'it is there, nobody asks'
    file.unlink()
    assert state(world, 'alpaca-gpt4-data-zh').startswith('changed')
    with pytest.raises(OSError, match=r'recorded on \d{4}-\d\d-\d\d: it has changed at its source; --renew accepts'):
        get(world, 'alpaca-gpt4-data-zh')
    assert not file.exists()
    get(world, 'alpaca-gpt4-data-zh', renew=True)
    assert file.read_bytes() == world.files['/alpaca.json'] and state(world, 'alpaca-gpt4-data-zh').startswith('there')

def test_verify_sees_a_changed_byte(world):
    get(world, 'alpaca-gpt4-data-zh')
    file = world.raw/'prefs'/'alpaca-gpt4-data-zh'/'alpaca_gpt4_data_zh.json'
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    file.write_bytes(data)
    assert state(world, 'alpaca-gpt4-data-zh').startswith('there'), 'the size is the same'
    with pytest.raises(OSError, match='alpaca_gpt4_data_zh.json: not as recorded'):
        get(world, 'alpaca-gpt4-data-zh', verify=True)

def test_a_wrong_file_is_seen_at_once(world):
    world.files['/alpaca.json'] = b'{"error": "quota exceeded"}'
    for _ in range(2): # the file is recorded: it is not asked for again
        with pytest.raises(OSError, match='expected JSON list with instruction, output; --renew gets it again'):
            get(world, 'alpaca-gpt4-data-zh')
    assert not is_there(world.items['alpaca-gpt4-data-zh'], world.raw)
    world.files['/alpaca.json'] = ALPACA
    get(world, 'alpaca-gpt4-data-zh', renew=True)
    assert is_there(world.items['alpaca-gpt4-data-zh'], world.raw)

def test_a_wrong_file_put_by_hand_is_not_to_be_renewed(world):
    home = world.raw/'baike_qa2019'
    home.mkdir(parents=True)
    (home/'a.json').write_bytes(SPO)
    with pytest.raises(OSError, match=r'expected JSON Lines with title, answer$'): get(world, 'baike_qa2019')

def test_an_error_page_under_the_name_of_an_archive_goes(world):
    packed = world.files['/webtext2019zh.zip']
    world.files['/webtext2019zh.zip'] = b'{"error": "quota exceeded"}'
    with pytest.raises(OSError, match='--renew gets it again'): get(world, 'webtext2019zh')
    world.files['/webtext2019zh.zip'] = packed
    get(world, 'webtext2019zh', renew=True)
    assert seen_in(world.raw/'webtext2019zh') == ['webtext2019zh/webtext2019zh/web_text_zh_train.json']

def test_one_failure_does_not_keep_the_others(world):
    world.moods['/m.csv'] = [Mood(404)]
    with pytest.raises(OSError) as e: get(world, 'Chinese-medical-dialogue', 'alpaca-gpt4-data-zh', 'DuIE1.0')
    lines = [line.split(':')[0].strip() for line in str(e.value).split('\n')[1:]]
    assert lines == ['Chinese-medical-dialogue', 'DuIE1.0'] and state(world, 'alpaca-gpt4-data-zh').startswith('there')

def test_an_address_of_ones_own(world):
    world.files['/mine/duie.zip'] = zipped(duie_train_dot_json=SPO, duie_dev_dot_json=SPO)
    get(world, 'DuIE2.0', url=f'{world.url}/mine/duie.zip')
    assert (world.raw/'duie'/'duie2.0'/'duie'/'duie_train.json').read_bytes() == SPO
    world.files['/mine/web.json'] = WEBTEXT
    get(world, 'webtext2019zh', url=f'{world.url}/mine/web.json')
    assert (world.raw/'webtext2019zh'/'web.json').read_bytes() == WEBTEXT
    assert [s.schema.name for s in find_sources(world.raw)[0]] == ['webtext']
    for url in ('ftp://x/y', f'{world.url}/', 'web.json'):
        with pytest.raises(OSError, match='expected http'): get(world, 'DuIE1.0', url=url)
    with pytest.raises(ValueError, match='expected one source'): get(world, url=f'{world.url}/a')

def test_an_address_of_ones_own_for_a_source_of_the_hub(world):
    world.files['/mine/zhihu.zip'] = zipped(a_dot_parquet=zhihu(7))
    get(world, 'Zhihu-KOL', url=f'{world.url}/mine/zhihu.zip')
    assert seen_in(world.raw/'zhihu-kol') == ['zhihu/a.parquet']
    assert [path for path, _ in world.log] == ['/mine/zhihu.zip']
    world.files['/mine/exam.zip'] = HUB['ceval/ceval-exam']['ceval-exam.zip']
    get(world, 'C-Eval', url=f'{world.url}/mine/exam.zip')
    assert (world.raw/'eval'/'C-Eval'/'exam.zip').read_bytes() == world.files['/mine/exam.zip']
    get(world, 'C-Eval', renew=True)
    assert seen_in(world.raw/'eval'/'C-Eval') == ['ceval-exam.zip'], 'from the hub again'

def test_an_address_of_ones_own_for_wikipedia(world):
    world.files['/mine/wiki.xml.bz2'] = WIKI
    get(world, 'zhwiki', url=f'{world.url}/mine/wiki.xml.bz2')
    assert [path for path, _ in world.log] == ['/mine/wiki.xml.bz2'] and list((world.raw/'zhwiki').rglob('wiki_*'))

def test_what_came_from_another_address_goes_with_renew(world):
    world.files['/mine/web.json'] = WEBTEXT
    get(world, 'webtext2019zh', url=f'{world.url}/mine/web.json')
    get(world, 'webtext2019zh', renew=True)
    assert seen_in(world.raw/'webtext2019zh') == ['webtext2019zh/webtext2019zh/web_text_zh_train.json']
    get(world, 'webtext2019zh', url=f'{world.url}/mine/web.json', renew=True)
    assert seen_in(world.raw/'webtext2019zh') == ['web.json'] and len(find_sources(world.raw)[0]) == 1
    assert state(world, 'webtext2019zh').startswith('there')

def test_what_a_person_put_there_stays(world):
    put_by_hand(world)
    get(world, 'DuIE2.0')
    world.files['/mine/duie.zip'] = zipped(duie_train_dot_json=SPO)
    get(world, 'DuIE2.0', url=f'{world.url}/mine/duie.zip', renew=True)
    assert seen_in(world.raw/'duie'/'duie2.0') == ['duie/duie_train.json', 'duie_dev.json', 'duie_train.json']

def test_names_that_are_no_text_are_recorded(world):
    "A tar archive with names in GBK."
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w') as t:
        entry = tarfile.TarInfo(gbk('训练_train.json'))
        entry.size = len(SPO)
        t.addfile(entry, io.BytesIO(SPO))
    world.files['/duie.tar'] = out.getvalue()
    get(world, 'DuIE1.0', url=f'{world.url}/duie.tar')
    get(world, 'DuIE1.0', verify=True)
    assert state(world, 'DuIE1.0').startswith('there') and seen_in(world.raw/'duie') == [
        f"duie1.0/duie/{gbk('训练_train.json')}"]

# The hub

def test_the_hub_its_cache_and_a_second_name(world, tmp_path):
    get(world, 'Zhihu-KOL', 'train_2M_CN')
    seen = [p for p in world.raw.rglob('*') if p.is_file() and not p.name.startswith('.')]
    files = sorted(p.relative_to(world.raw).as_posix() for p in seen)
    assert files == ['belle/train_2M_CN/train_2M_CN.json', 'sft/train_2M_CN/train_2M_CN.json',
        'zhihu-kol/data/train-00000-of-00002.parquet', 'zhihu-kol/data/train-00001-of-00002.parquet']
    first, second = (world.raw/name for name in files[:2])
    assert first.samefile(second) and first.stat().st_nlink == 3, 'one file: in the cache and twice in the raw folder'
    loads = sum('/resolve/' in path for path, _ in world.log)
    fetch(replace(world.cfg, names=('Zhihu-KOL',), to=str(tmp_path/'raw2')), world.items)
    assert sum('/resolve/' in path for path, _ in world.log) == loads, 'the second folder comes from the cache'
    second.unlink()
    assert not is_there(world.items['train_2M_CN'], world.raw)
    get(world, 'train_2M_CN')
    assert second.samefile(first)

RESOLVE = f"/datasets/BelleGroup/train_1M_CN/resolve/{'{}'}/Belle_open_source_1M.json"

def resolve(world): return RESOLVE.format(commit_of(world.repos['BelleGroup/train_1M_CN']))

INFO = '/api/datasets/BelleGroup/train_1M_CN'

@pytest.mark.parametrize('status', [408, 425, 429, 500, 503, 520])
def test_a_hub_that_is_busy_is_asked_again(world, status):
    world.moods[INFO] = [Mood(status, headers=(('Retry-After', '0'),)), Mood()]
    get(world, 'Belle_open_source_1M')
    assert state(world, 'Belle_open_source_1M').startswith('there')

def test_a_hub_that_breaks_off_goes_on(world):
    data = world.repos['BelleGroup/train_1M_CN']['Belle_open_source_1M.json'] = belle(1)*3000
    world.moods[resolve(world)] = [Mood(stop=100_000), Mood()]
    get(world, 'Belle_open_source_1M')
    assert (world.raw/'belle'/'train_1M_CN'/'Belle_open_source_1M.json').read_bytes() == data
    assert len(world.ranges(resolve(world))) == 2

REFUSALS = {'404': (Mood(404, b'{}', headers=(('X-Error-Code', 'RepoNotFound'),)), 'not there, or wants a login'),
    'gated': (Mood(403, b'{}', headers=(('X-Error-Code', 'GatedRepo'),)), 'wants a login: agree to its terms'),
    '500': (Mood(500), 'gave up after 3 tries'), '418': (Mood(418), '418')}

@pytest.mark.parametrize('mood, words', REFUSALS.values(), ids=REFUSALS)
def test_what_the_hub_refuses(world, mood, words):
    world.moods[INFO] = [mood]
    with pytest.raises(OSError, match=f'Belle_open_source_1M: .*{words}'): get(world, 'Belle_open_source_1M')

def test_a_file_that_is_not_what_the_hub_said(world, tmp_path):
    data = world.repos['BelleGroup/train_1M_CN']['Belle_open_source_1M.json']
    world.moods[resolve(world)] = [Mood(body=data.replace('水果'.encode(), '蔬菜'.encode()))]
    with pytest.raises(OSError, match='expected (sha256|git):.*it is removed'): get(world, 'Belle_open_source_1M')
    world.moods.clear()
    get(world, 'Belle_open_source_1M')
    assert (world.raw/'belle'/'train_1M_CN'/'Belle_open_source_1M.json').read_bytes() == data

def test_the_recorded_commit_stays(world):
    get(world, 'Belle_open_source_1M')
    file = world.raw/'belle'/'train_1M_CN'/'Belle_open_source_1M.json'
    before = Ledger(file.parent).revision
    world.repos['BelleGroup/train_1M_CN']['Belle_open_source_1M.json'] = belle(9)
    get(world, 'Belle_open_source_1M')
    assert file.read_bytes() == belle(1) and Ledger(file.parent).revision == before
    get(world, 'Belle_open_source_1M', renew=True)
    assert file.read_bytes() == belle(9) and Ledger(file.parent).revision != before

def test_a_mirror_of_the_hub(world, monkeypatch):
    monkeypatch.setenv('HF_ENDPOINT', world.url + '/')
    get(world, 'huozi_rlhf')
    monkeypatch.setenv('HF_ENDPOINT', 'hf-mirror.example')
    with pytest.raises(OSError, match="HF_ENDPOINT='hf-mirror.example': expected https://"): get(world, 'CMMLU')

def test_a_repository_without_such_files(world):
    world.repos['BelleGroup/train_1M_CN'] = {'README.md': b'moved'}
    with pytest.raises(OSError, match=r'has no file like \*.json, \*.jsonl: it has README.md'):
        get(world, 'Belle_open_source_1M')

def test_a_hub_that_names_files_elsewhere(world, tmp_path):
    world.repos['BelleGroup/train_1M_CN'] = {'../../../evil.json': belle(1)}
    with pytest.raises(OSError, match='expected a name inside it|evil'): get(world, 'Belle_open_source_1M')
    assert not [p for p in tmp_path.rglob('evil*') if tmp_path/'cache' not in p.parents]

def test_files_that_the_hub_no_longer_has_go(world):
    get(world, 'Zhihu-KOL')
    repo = world.repos['wangrui6/Zhihu-KOL']
    repo['data/train-00000-of-00001.parquet'] = repo.pop('data/train-00000-of-00002.parquet')
    del repo['data/train-00001-of-00002.parquet']
    get(world, 'Zhihu-KOL', renew=True)
    assert [p.name for p in world.raw.rglob('*.parquet')] == ['train-00000-of-00001.parquet']

def test_the_second_folder_forgets_them_too(world):
    get(world, 'train_2M_CN')
    repo = world.repos['BelleGroup/train_2M_CN']
    repo['new.json'] = repo.pop('train_2M_CN.json')
    get(world, 'train_2M_CN', renew=True)
    assert seen_in(world.raw) == ['belle/train_2M_CN/new.json', 'sft/train_2M_CN/new.json']
    world.files['/mine/2m.json'] = belle(3)
    get(world, 'train_2M_CN', url=f'{world.url}/mine/2m.json', renew=True)
    assert seen_in(world.raw) == ['belle/train_2M_CN/2m.json', 'sft/train_2M_CN/2m.json']

def test_a_renewal_that_breaks_off_mixes_no_two_commits(world):
    get(world, 'Zhihu-KOL')
    name, repo = 'wangrui6/Zhihu-KOL', world.repos['wangrui6/Zhihu-KOL']
    shards = sorted(path for path in repo if path.endswith('.parquet'))
    for k, path in enumerate(shards):
        repo[path] = zhihu(k + 5)
        assert len(repo[path]) == len(HUB[name][path])
    second = f'/datasets/{name}/resolve/{commit_of(repo)}/{shards[1]}'
    world.moods[second] = [Mood(404)]
    with pytest.raises(OSError, match='Zhihu-KOL: '): get(world, 'Zhihu-KOL', renew=True)
    assert (world.raw/'zhihu-kol'/shards[0]).read_bytes() == repo[shards[0]], 'the first one has come'
    world.moods.clear()
    get(world, 'Zhihu-KOL')
    assert [(world.raw/'zhihu-kol'/path).read_bytes() for path in shards] == [repo[path] for path in shards]

def test_a_second_name(tmp_path):
    (tmp_path/'a').write_bytes(b'x')
    (tmp_path/'b').symlink_to(tmp_path/'a')
    link_file(tmp_path/'b', tmp_path/'c')
    assert (tmp_path/'c').samefile(tmp_path/'a')
    link_file(tmp_path/'b', tmp_path/'c') # again: two names of one file
    assert (tmp_path/'c').read_bytes() == b'x' and sorted(p.name for p in tmp_path.iterdir()) == ['a', 'b', 'c']

def test_a_copy_where_no_second_name_can_be(tmp_path, monkeypatch):
    def refuse(*names): raise OSError('another file system')
    monkeypatch.setattr(os, 'link', refuse)
    (tmp_path/'a').write_bytes(b'x')
    link_file(tmp_path/'a', tmp_path/'c')
    assert (tmp_path/'c').read_bytes() == b'x' and not (tmp_path/'c').samefile(tmp_path/'a')

# Wikipedia

def test_a_dump_becomes_articles(world):
    get(world, 'zhwiki')
    home = world.raw/'zhwiki'
    rows = [json.loads(line) for p in sorted(home.rglob('wiki_*')) for line in p.read_text().splitlines()]
    assert [r['title'] for r in rows] == ['花園街', '界限街'] and '香港油尖旺區' in rows[0]['text']
    assert '某書' not in rows[0]['text'] and not list(home.glob('*.bz2'))
    assert not (home/'.zhwiki-latest-pages-articles.xml.bz2').exists()

def test_a_dump_that_differs_from_its_published_hash(world):
    world.files['/zhwiki/latest/zhwiki-latest-pages-articles.xml.bz2'] = WIKI + b'x'
    with pytest.raises(OSError, match='zhwiki: .*expected sha1:'): get(world, 'zhwiki')
    world.files['/zhwiki/latest/zhwiki-latest-sha1sums.txt'] = b''
    with pytest.raises(OSError, match='publishes no hash of zhwiki-latest'): get(world, 'zhwiki')
    with pytest.raises(OSError, match='expected latest or a date'): get(world, 'zhwiki', wiki='yesterday')
    with pytest.raises(OSError, match='zhwiki-20230901-sha1sums.txt: 404'): get(world, 'zhwiki', wiki='20230901')

def test_a_dump_that_cannot_be_taken_apart(world):
    for data, words in ((b'no dump', 'WikiExtractor'), (bz2.compress(b'<mediawiki></mediawiki>'), 'WikiExtractor')):
        line = f'{hashlib.sha1(data).hexdigest()}  zhwiki-20260901-pages-articles.xml.bz2\n'
        world.files |= {'/zhwiki/latest/zhwiki-latest-pages-articles.xml.bz2': data,
            '/zhwiki/latest/zhwiki-latest-sha1sums.txt': line.encode()}
        with pytest.raises(OSError, match=words): get(world, 'zhwiki', renew=True)
        assert not list(world.raw.rglob('wiki_*'))

# Processes

RUN = '''
import sys, json
from dataclasses import replace
from scclm.download import Remote
from scclm.fetch import ITEMS, FetchCfg, fetch
to, url = sys.argv[1:]
item = ITEMS['webtext2019zh']._replace(files=(Remote('webtext2019zh.zip', url),))
fetch(FetchCfg(('webtext2019zh',), to=to, progress=False, timeout_s=30), {item.name: item})
'''

def start(world):
    "Fetch webtext2019zh in another process."
    command = [sys.executable, '-c', RUN, str(world.raw), f'{world.url}/webtext2019zh.zip']
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

def test_two_processes_fetch_one_source(world):
    world.moods['/webtext2019zh.zip'] = [Mood(pause_s=.02)]
    runs = [start(world), start(world)]
    said = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert len(world.log) == 1, 'the other one waits, and finds it there'
    assert 'another process is getting it, waiting' in said[0][0] + said[1][0]
    assert state(world, 'webtext2019zh').startswith('there')

if os.name == 'posix':
    def test_killed_again_and_again_it_gets_there(world):
        world.moods['/webtext2019zh.zip'] = [Mood(pause_s=.02)]
        home = world.raw/'webtext2019zh'
        for more in (50, 100, 150):
            run = start(world)
            part = home/'..webtext2019zh.zip.part'
            while not (part.exists() and part.stat().st_size > more) and run.poll() is None: time.sleep(.01)
            run.send_signal(signal.SIGKILL)
            run.communicate()
            assert not [p for p in home.iterdir() if not p.name.startswith('.')]
            assert re.match(r'begun, \d+ B', state(world, 'webtext2019zh'))
        world.moods.clear()
        get(world, 'webtext2019zh')
        assert (home/'webtext2019zh'/'webtext2019zh'/'web_text_zh_train.json').read_bytes() == WEBTEXT
        assert len([r for r in world.ranges('/webtext2019zh.zip') if r]) == 3

    def test_half_unpacked_is_not_read(world):
        "Killed while unpacking: clean does not look into hidden folders."
        get(world, 'webtext2019zh')
        half = world.raw/'webtext2019zh'/'.webtext2019zh.99999.tmp'
        half.mkdir()
        (half/'half.json').write_bytes(WEBTEXT)
        assert len(find_sources(world.raw)[0]) == 1

    def test_what_is_hidden_no_chapter_reads(world):
        "Half a download, its facts, a folder that was being unpacked, an archive that is kept."
        put_by_hand(world)
        get(world, 'DuIE2.0', 'huozi_rlhf')
        duie, prefs = world.raw/'duie', world.raw/'prefs'
        for folder, data in ((duie, SPO), (prefs, HUB['Skepsun/huozi_rlhf_data_json']['huozi_rlhf_data.json'])):
            (folder/'.a.99999.tmp').mkdir()
            for name in ('..a_train.json.part', '..a_dev.json.part.of', '.a.99999.tmp/a_train.json'):
                (folder/name).write_bytes(data)
            (folder/'.a.zip').write_bytes(zipped(a_dot_json=data))
        parts, other = find_duie([duie])
        assert {part: len(files) for part, files in parts.items()} == dict(train=2, valid=2) and other == []
        assert [file.name for file in pref_files((str(prefs),))] == ['huozi_rlhf/huozi_rlhf_data.json']

# The command

def test_the_catalogue():
    assert len(ITEMS) == 17 and len({x.folder for x in ITEMS.values()}) == 17
    for name, x in ITEMS.items():
        assert x.name == name and x.how in ('hub', 'http', 'wiki', 'hand')
        assert x.licence and x.rows and x.size and x.form
        assert bool(x.files) == (x.how in ('hub', 'http')) and bool(x.hand) >= (x.how == 'hand')
        for r in x.files:
            if x.how == 'http': assert r.url.startswith('https://') and re.fullmatch('(git:[0-9a-f]{40})?', r.digest)
        top = x.folder.split('/')[0]
        assert (top in ('prefs', 'duie', 'eval')) == (x.chapter in ('07', '09', 'evaluate'))
        if x.chapter == '06': assert top == 'sft'
    spec = '''webtext2019zh baike_qa2019 Chinese-medical-dialogue Zhihu-KOL Belle_open_source_1M train_2M_CN
        train_3.5M_CN generated_chat_0.4M train_0.5M_CN zhwiki alpaca-gpt4-data-zh huozi_rlhf
        rlhf-reward-single-round-trans_chinese DuIE1.0 DuIE2.0 C-Eval CMMLU'''
    assert sorted(ITEMS) == sorted(spec.split())

def test_a_listing_asks_nobody(world, monkeypatch, capsys):
    monkeypatch.setenv('SCCLM_RAW', str(world.raw))
    assert main(['fetch']) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ITEMS) and 'not there' in said and 'by hand' in said and '1.7 GB zip' in said
    assert world.log == [] and not world.raw.exists()

MISTAKES = [(['webtxt2019'], "'webtxt2019' is not a source: expected webtext2019zh, baike_qa2019"),
    (['--all', 'tiny'], 'expected base'), (['--all', 'base', 'CMMLU'], 'expected one or the other'),
    (['CMMLU', '--tries', '0'], 'tries=0'), (['CMMLU', '--timeout-s', '-1'], 'timeout_s=-1.0: expected > 0'),
    (['zhwiki', '--mirror', 'here'], "mirror='here'"), (['DuIE1.0'], 'DuIE1.0: https://ai.baidu.com'),
    (['--url', 'http://x/y'], 'expected one source'), (['--verify'], 'verify without a source: expected names'),
    (['--keep', '--renew'], 'keep, renew without a source: expected names')]

@pytest.mark.parametrize('args, words', MISTAKES, ids=[' '.join(args) for args, _ in MISTAKES])
def test_mistakes_are_one_sentence(world, args, words, capsys):
    assert main(['fetch', *args, '--to', str(world.raw)]) == 2
    said = capsys.readouterr().err
    assert words in said and 'Traceback' not in said and said.count('\n') == 1
    assert world.log == []

def test_names_in_any_case_and_where_they_go(monkeypatch, tmp_path):
    assert [x.name for x in pick_items(FetchCfg(('DUIE2.0', 'c-eval', 'C-Eval')), ITEMS)] == ['DuIE2.0', 'C-Eval']
    monkeypatch.setenv('SCCLM_RAW', str(tmp_path))
    assert raw_root() == tmp_path and raw_root('there').name == 'there'
    monkeypatch.delenv('SCCLM_RAW')
    assert raw_root().name == 'raw'
    assert mirrored('https://a/b', ['https://a=http://c']) == 'http://c/b'

def test_a_download_by_the_command(world, capsys):
    "Through the hub's variable, as a user would."
    assert main(['fetch', 'huozi_rlhf', '--to', str(world.raw), '--no-progress']) == 0
    said = capsys.readouterr().out
    assert 'huozi_rlhf: there' in said and f'next: SCCLM_RAW={world.raw} scclm clean' in said

def test_the_next_command_can_be_copied(world, tmp_path, capsys):
    "A folder with a space in its name is quoted for the shell."
    fetch(replace(world.cfg, names=('huozi_rlhf',), to=str(tmp_path/'my raw')), world.items)
    line = re.search('^next: (.*)$', capsys.readouterr().out, re.M)[1]
    assert shlex.split(line) == [f"SCCLM_RAW={tmp_path/'my raw'}", 'scclm', 'clean']
