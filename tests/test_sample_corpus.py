"The sample corpus against plain readings of its files, brute force, and what chapter 00 makes of it."
import csv
import io
import json
import re
from collections import Counter

import pyarrow.parquet as pq
import pytest
from raw_toys import tree

from scclm.dpo import dpo_cfg
from scclm.ie_finetune import ie_cfg
from scclm.pretrain import pretrain_cfg
from scclm.sample_copying import EVENTS, TASKS, Names
from scclm.sample_corpus import (ASKED, FILES, REVERSIBLE, articles, copy_rows, fact_rows,
    heldout_rows, intended, make_sample_corpus, sft_rows)
from scclm.sample_facts import RELATIONS, facts, phrasings
from scclm.sft import sft_cfg
from scclm.tokenizer import tokenizer_cfg, train_tokenizer


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    "The default corpus: its folder and its report."
    root = tmp_path_factory.mktemp('corpus')/'raw'
    return root, make_sample_corpus(root)


@pytest.fixture(scope='module')
def cleaned(corpus):
    "Chapter 00 run on the default corpus: its report and a reader of its parquet files."
    from scclm.data_cleaning import CleanCfg, clean
    from scclm.runs import run_path
    with pytest.MonkeyPatch.context() as m:
        m.setenv('SCCLM_RUNS', str(corpus[0].parent/'runs'))
        m.setenv('SCCLM_SCALE', 'tiny')
        report = clean(CleanCfg(raw=corpus[0], workers=1, progress=False, chat_form=True))
        folder = run_path('data')
    def read(*names):
        return [r for n in names for r in pq.read_table(folder/f'{n}.parquet').to_pylist()]
    return report, read


def test_nothing_of_the_sample_is_cut_at_tiny(cleaned, corpus, monkeypatch):
    "Every text, in the tokens of the tokenizer that learns from it, and its end mark."
    monkeypatch.setenv('SCCLM_RUNS', str(corpus[0].parent/'runs'))
    monkeypatch.setenv('SCCLM_SCALE', 'tiny')
    monkeypatch.delenv('SCCLM_RAW', raising=False)
    rows = cleaned[1]('train', 'valid', 'test', 'sft_train', 'sft_valid', 'heldout')
    texts = [r[column] for r in rows for column in ('prompt', 'response')]
    tok = train_tokenizer(tokenizer_cfg())
    longest = max(len(ids) for ids in tok(sorted(texts, key=len)[-500:])['input_ids'])
    presets = pretrain_cfg('tiny'), sft_cfg('tiny'), dpo_cfg('tiny'), dpo_cfg('tiny', lora=True), ie_cfg('tiny')
    assert 100 < longest < min(cfg.max_len for cfg in presets)
    assert {cfg.too_long for cfg in presets} == {'cut'}


# ---- facts and held-out questions

def test_about_seven_hundred_facts_with_one_answer_each():
    fs = facts()
    assert 650 <= len(fs) <= 800
    assert len({f.response for f in fs}) == len(fs)
    assert all(15 <= len(f.response) <= 30 and f.response[-1] in '。？' for f in fs)
    answer = {}
    for f in fs:
        train, held = phrasings(f)
        for q in [*train, *(h.question for h in held)]: assert answer.setdefault(q, f.response) == f.response, q


def test_known_facts_are_as_everyone_knows_them():
    said = {(f.relation, f.subject): f.response for f in facts()}
    assert said['province', '浙江省'] == '浙江省的省会是杭州市，简称浙。'
    assert said['capital', '澳大利亚'] == '澳大利亚的首都是堪培拉，这座城市位于大洋洲。'
    assert said['element', '金'] == '金的元素符号是Au，原子序数是79。'
    assert said['couplet', '床前明月光'] == '“床前明月光”的下一句是“疑是地上霜”。'


def test_solar_terms_zodiac_and_elements_are_in_order():
    after = {f.subject: f.object for f in facts('solar_term')}
    term, seen = '立春', []
    while term not in seen:
        seen.append(term)
        term = after[term]
    assert len(seen) == len(after) == 24 and term == '立春'
    beasts = [f.subject for f in facts('zodiac')]
    assert ''.join(beasts) == '鼠牛虎兔龙蛇马羊猴鸡狗猪'
    assert [f.columns[2] for f in facts('zodiac')][:11] == [f'后面是{b}' for b in beasts[1:]]
    numbers = [int(f.columns[2]) for f in facts('element')]
    assert numbers == sorted(set(numbers)) and numbers[:36] == list(range(1, 37))


def test_two_held_out_questions_per_fact_never_train():
    train = {r.prompt for r in fact_rows()} | {r.prompt for r in sft_rows()}
    rows = heldout_rows()
    held = {h['prompt'] for h in rows}
    assert len(held) == len(rows) == 2*len(facts())
    assert Counter(h['kind'] for h in rows) == {'phrasing': len(facts()), 'template': len(facts())}
    def letters(s):
        return re.sub(r'\W', '', s)
    assert not {letters(p) for p in held} & {letters(p) for p in train}
    inside = set()                                # frames and wraps
    for p in train: inside |= {*p.split('\n'), p.split('：', 1)[-1], p.split('，', 1)[-1]}
    assert not held & inside


def test_template_kind_uses_no_training_template_and_phrasing_kind_uses_one_of_the_others():
    for name, rel in RELATIONS.items():
        if name == 'chat': continue
        assert not set(rel.asks) & set(rel.reserved) and 18 <= len(rel.asks) <= 24 and 1 <= len(rel.reserved) <= 2
        used = Counter()
        for f in facts(name):
            train, [(a, kind_a), (b, kind_b)] = phrasings(f)
            assert (kind_a, kind_b) == ('phrasing', 'template')
            assert a in {t.format(*f.columns) for t in rel.asks} and b in {t.format(*f.columns) for t in rel.reserved}
            used.update(t for t in rel.asks if t.format(*f.columns) in train)
        assert all(used[t] >= 1 for t in rel.asks), (name, used)


def test_adding_a_fact_does_not_move_the_held_out_questions(monkeypatch):
    before = {f.subject: phrasings(f) for f in facts('capital')}
    rel = RELATIONS['capital']
    monkeypatch.setitem(RELATIONS, 'capital', rel._replace(rows=(('新国', '新城', '亚洲'), *rel.rows)))
    after = {f.subject: phrasings(f) for f in facts('capital')}
    assert {k: after[k] for k in before} == before and len(after) == len(before) + 1


def grams(text, n):
    "The set of its n-grams."
    return {text[i:i + n] for i in range(len(text) - n + 1)}


def test_phrasings_are_no_near_duplicates_by_brute_force():
    by_response = {}
    for r in fact_rows(typed=False): by_response.setdefault(r.response, []).append(r.prompt + r.response)
    for n in (3, 4):
        hit = total = 0
        for texts in by_response.values():
            sets = [grams(t, n) for t in texts]
            for i in range(1, len(sets)):
                total += 1
                hit += any(len(sets[i] & s)/len(sets[i] | s) >= .85 for s in sets[:i])
        assert hit/total < .02, (n, hit, total)


# ---- copying exercises

@pytest.mark.parametrize('seed', [3, 4, 'sft:0'])
def test_names_are_never_given_twice_and_characters_come_evenly(seed):
    names = Names(seed)
    given = [names.fresh(k) for k in ('person', 'place', 'shop', 'thing', 'work')*2000]
    assert len(set(given)) == len(given)
    names, count = Names(seed), Counter()
    for _ in range(9000): count.update(names.chars(1, 3))
    assert len(count) == 1500 and max(count.values()) - min(count.values()) <= 2


def pieces(task, answer):
    "The names that an answer of one of the regular tasks consists of."
    if task == 'pick': return re.findall('个是(.+)。', answer)
    if task == 'order': return re.findall('倒过来排是(.+)。', answer)[0].split('、')
    if task == 'people': return answer.split('提到的人有')[1][:-1].split('、')
    if task == 'card': return [x for part in answer[:-1].split('；') for x in part.split('：', 1)[1].split('、')]
    if task == 'match': return [x for part in answer[:-1].split('；') for x in part.split('：')]
    return [x for part in re.findall('（(.+?)）', answer) for x in part.split('，')]


CONNECTING = ('。，的人是在和走进排前面见等车坐位置右边刷了大门把成给带东西骑去地方出发捡交到客借书找忘订货接单运拿换迷路送搬旁买时提着从用队'
    '一本向修好它') # characters that an answer may add to the words of its question


def test_answers_are_copied_from_the_question():
    rows = copy_rows(3000, 'test')
    assert set(TASKS) == {r.relation for r in rows}
    for r in rows:
        if r.relation == 'repeat': assert r.response in r.prompt
        elif r.relation in ('pick', 'order', 'people', 'card', 'match', 'bracket'):
            assert all(x and x in r.prompt for x in pieces(r.relation, r.response)), r
        elif r.relation == 'swap':
            old, new, text = re.search('把(.+?)改成(.+?)[：\n](.+)$', r.prompt).groups()
            assert text.replace(old, new) == r.response, r
        else: assert set(r.response) <= set(r.prompt) | set(CONNECTING), r


def test_second_item_is_the_second():
    for r in copy_rows(3000, 'pick'):
        if r.relation != 'pick': continue
        items = re.split('[：\n]', r.prompt)[-1][:-1].split('、')
        i = '一二三'.index(r.response[6])
        assert f'第{"一二三"[i]}' in r.prompt and items[i] == pieces('pick', r.response)[0], r


def test_exercises_hold_no_relation_of_the_extraction_chapter():
    words = ('作者 首都 配偶 妻子 丈夫 歌手 演唱 专辑 导演 创始 成立 出生 国籍 身高 出版 祖籍 毕业 主演 编剧 作曲 作词 朝代 面积 人口 '
        '父亲 母亲 总部 嘉宾 主持').split()
    for text in [x for e in EVENTS for x in e]: assert not any(w in text for w in words), text


def test_lengths_fit_the_training_budget():
    rows = copy_rows(5000)
    assert sum(len(r.prompt) > 60 for r in rows) < 50 and max(len(r.prompt) for r in rows) <= 80
    assert max(len(r.response) for r in rows) <= 45
    least = dict(webtext=10, baike=15, medical=15, zhihu=10, belle=15)
    for r in rows + fact_rows() + sft_rows(): assert len(r.response) >= least[r.source], r


# ---- files

def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path):
    reports = [make_sample_corpus(tmp_path/str(i), seed, n_copy=300) for i, seed in enumerate((5, 5, 6))]
    a, b, c = (tree(tmp_path/str(i)) for i in range(3))
    assert a == b and reports[0] == reports[1]
    assert a.keys() == c.keys() and all(a[k] != c[k] for k in a if not k.startswith('wiki'))


def test_files_are_small_and_read_as_what_they_claim(corpus):
    root, report = corpus
    assert sum(p.stat().st_size for p in root.rglob('*') if p.is_file()) < 10_000_000
    raw = (root/FILES['medical']).read_bytes()
    with pytest.raises(UnicodeDecodeError): raw.decode('utf-8')
    rows = list(csv.reader(io.StringIO(raw.decode('gb18030'))))
    assert rows[0] == ['department', 'title', 'ask', 'answer']
    assert sum(len(r) != 4 for r in rows) == report['dirt']['field_count']
    assert any('\n' in r[1] for r in rows) and any(',' in r[0] for r in rows)
    assert pq.read_schema(root/FILES['zhihu']).names == ['INSTRUCTION', 'RESPONSE', 'SOURCE', 'METADATA']
    assert re.findall(r'^<doc id="\d+" url="[^"]+" title="[^"]+">$', (root/'wiki/AA/wiki_00').read_text('utf-8'), re.M)
    lines = (root/'wiki/AB/wiki_00').read_text('utf-8').splitlines()
    assert all({'title', 'text'} <= json.loads(x).keys() for x in lines)


def test_planted_json_dirt_by_a_plain_reading(corpus):
    root, report = corpus
    found = Counter()
    need = dict(webtext='content', baike='answer', belle='output', sft='output')
    for source, key in need.items():
        for line in (root/FILES[source]).read_bytes().splitlines():
            try: row = json.loads(line.decode())
            except UnicodeDecodeError:
                found['encoding'] += 1
                continue
            except ValueError:
                found['broken_json'] += 1
                continue
            found['missing_key'] += key not in row
            found['star'] += source == 'webtext' and row['star'] < 5
            found['translation'] += '翻译' in str(row)
            found['table'] += '-----' in str(row)
    assert dict(found) == {k: report['dirt'][k] for k in found}


def test_writing_again_replaces_and_leaves_no_scraps(tmp_path):
    root = tmp_path/'raw'
    make_sample_corpus(root, n_copy=300)
    first = tree(root)
    (root/FILES['belle']).write_text('damaged')
    make_sample_corpus(root, n_copy=300)
    assert tree(root) == first and not list(root.rglob('.*'))


# ---- together with chapter 00

def test_cleaning_leaves_exactly_the_intended_rows(cleaned):
    clean, (_, read) = intended(), cleaned
    got = Counter((r['prompt'], r['response']) for r in read('train', 'test', 'valid'))
    want = Counter((r.prompt, r.response) for r in clean.pretrain)
    assert not want - got
    assert sorted(r for _, r in (got - want)) == sorted(text for _, text in wiki_leads())
    got = Counter((r['prompt'], r['response']) for r in read('sft_train', 'sft_valid'))
    assert got == Counter((r.prompt, r.response) for r in clean.sft)
    assert read('heldout') == clean.heldout


def wiki_leads(chars=320):
    "Articles cut at the last sentence end within `chars`."
    return [(t, x[:x.rindex('。', 0, chars) + 1]) for t, x in articles()]


def test_planted_dirt_is_what_cleaning_rejects(corpus, cleaned):
    dirt, (report, read) = corpus[1]['dirt'], cleaned
    rules = dict(missing_key='missing_column', exact_duplicate='duplicate', short='response_short')
    mended = {*REVERSIBLE, *ASKED, 'traditional', 'empty_bracket', 'leak_sft'}
    want = {rules.get(k, k): n for k, n in dirt.items() if k not in mended} | dict(leak=dirt['leak'] + dirt['leak_sft'])
    assert report['rules'] == want
    assert Counter(r['rule'] for r in read('rejects')) == want


def test_no_leak_reaches_training(cleaned):
    _, read = cleaned
    held = {(h['prompt'], h['response']) for h in heldout_rows()}
    trained = read('train', 'test', 'valid', 'sft_train', 'sft_valid')
    assert not held & {(r['prompt'], r['response']) for r in trained}
