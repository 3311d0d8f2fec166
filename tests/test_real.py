"The scripts of the real run: what they lay out, what they fit, what they count, on files made by hand."
import json
import random
import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from front import MARK, fill
from real_page import PAGE, filled_page, real_values

sys.path.insert(0, str(Path(__file__).parents[1]/'benchmarks'))
import real
import real_measure

from scclm.real_text import HOFFMANN, Law, fit_law, line_exercises, lines_of, marked, onward
from scclm.sources import find_sources


@pytest.fixture
def data(tmp_path):
    "The public files, a few rows of each."
    root = tmp_path/'data'
    for name in ('pairs', 'raw/alpaca', 'prefs', 'duie', 'eval'): (root/name).mkdir(parents=True)
    rows = dict(prompt=list('甲乙丙'), response=list('子丑寅'), source=['A_carbonz0', 'B_x', 'C_belle_dev1K'])
    pq.write_table(pa.table(rows), root/'pairs'/'mixed.parquet')
    pq.write_table(pa.table(dict(prompt=['丁'], response=['卯'])), root/'pairs'/'smile.parquet')
    alpaca = [dict(zh_instruction='问', zh_input='', zh_output='答', en_output='x')]
    (root/'raw'/'alpaca'/'alpaca_chinese_part_0.json').write_text(json.dumps(alpaca), encoding='utf-8')
    (root/'duie'/'duie_valid.json').write_text('{}', encoding='utf-8')
    return root


def test_instructions_go_to_sft_and_everything_else_to_pretraining(data, tmp_path):
    raw = tmp_path/'raw'
    for _ in range(2): real.prepare(data, raw) # it may be made anew
    assert pq.read_table(raw/'sft'/'mixed.parquet')['prompt'].to_pylist() == ['甲', '丙']
    assert pq.read_table(raw/'pretrain'/'mixed.parquet')['prompt'].to_pylist() == ['乙']
    assert json.loads((raw/'prefs'/'alpaca_own_answers.json').read_text(encoding='utf-8')) == [
        dict(instruction='问', input='', output='答')]
    assert (raw/'duie'/'duie_valid.json').samefile(data/'duie'/'duie_valid.json'), 'linked, not copied'
    used = {source.path.relative_to(raw).parts[0] for source in find_sources(raw)[0]}
    assert used == {'sft', 'pretrain'}


def test_a_folder_of_somebody_is_not_made_anew(data, tmp_path):
    (tmp_path/'raw').mkdir()
    (tmp_path/'raw'/'thesis.txt').write_text('mine', encoding='utf-8')
    with pytest.raises(ValueError, match='holds something that is no raw folder'): real.prepare(data, tmp_path/'raw')
    assert (tmp_path/'raw'/'thesis.txt').read_text(encoding='utf-8') == 'mine'


def test_rates_are_chosen_on_sentences_that_no_reported_test_holds(data, tmp_path, monkeypatch):
    lines = [json.dumps(dict(text=f'第{k}句', spo_list=[]), ensure_ascii=False) + '\n' for k in range(3000)]
    (data/'duie'/'duie_train.json').write_text(''.join(lines), encoding='utf-8')
    monkeypatch.setenv('SCCLM_RAW', str(data))
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path/'runs'))
    folder = real.trial_folder()
    kept, held = ((folder/f'duie_{name}.json').read_text(encoding='utf-8') for name in ('train', 'dev'))
    assert kept + held == ''.join(lines) and held.count('\n') == real.LOOKED_AT
    assert real.test_name(dict(loss=1., f1_valid_ci95=[0, 1], f1_valid_n=3, f1_valid=.5)) == 'valid'


def test_the_law_finds_what_made_the_points():
    true = Law(1.7, 400., 900., HOFFMANN)
    sizes = [(n, d) for n in (2.4e6, 9.4e6) for d in (2e6, 8e6, 5e7)]
    points = [dict(parameters=n, real_tok=d, bits_per_char=true(n, d)) for n, d in sizes]
    found = fit_law(points)
    assert found[:3] == pytest.approx(true[:3], rel=1e-6)
    assert true(2.4e6, 2e6) == pytest.approx(1.7 + 400/2.4e6**.34 + 900/2e6**.28)


TEXTS = ['《春晓》的作者是孟浩然，他是襄阳人，生在唐朝。\n太短。', '高血压患者要少吃盐，每天量一次血压，按时吃药；不要自己停药。',
         'HTTP 的默认端口是 80，HTTPS 的默认端口是 443，这两个数要记住。', '这一句里有【括号】，所以它不能用来出照抄题，要跳过。',
         '……！！！？？？——……！！！？？？——']


def test_lines_are_whole_sentences_that_stand_in_the_texts():
    lines = lines_of(TEXTS * 3, 100)
    assert len(lines) == len(set(lines)) == 3 and all(any(line in t for t in TEXTS) for line in lines)
    assert all(15 <= len(line) <= 60 and '【' not in line for line in lines)
    assert lines_of(TEXTS * 3, 2) == lines[:2] and lines_of(TEXTS, 0) == []


def test_what_a_copying_exercise_wants_stands_in_its_sentence():
    lines = lines_of(TEXTS, 100)
    for seed in range(200):
        for line in lines:
            asked, wanted = marked(line, random.Random(seed))
            assert asked.removeprefix('抄出括号里的字：').replace('【', '').replace('】', '') == line
            pieces = re.findall('【(.*?)】', asked)
            assert wanted == '、'.join(pieces) and 1 <= len(pieces) <= 4
            assert all(2 <= len(piece) <= 8 and piece.isalnum() for piece in pieces)
            asked, wanted = onward(line, random.Random(seed))
            two = asked[2:4]
            assert asked == f'从“{two}”抄到标点：{line}' and wanted.startswith(two)
            by_hand = re.split('[，。！？；：、]', line[line.index(two):])[0]
            assert wanted == by_hand[:12]
    assert line_exercises(lines, 1) == line_exercises(lines, 1) != line_exercises(lines, 2)


def test_counselling_is_thinned_and_the_exercises_are_made_of_the_rest(tmp_path, monkeypatch):
    monkeypatch.setenv('SCCLM_RAW', str(tmp_path/'raw'))
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path/'runs'))
    for place in (tmp_path/'raw', real.run_path('data')): place.mkdir(parents=True)
    worries = [(f'第{k}个烦恼该怎么办', f'我理解你的第{k}份难过，慢慢来，你已经做得很好了。') for k in range(40)]
    facts = [(f'第{k}座山有多高', f'这一座山的高度是第{k}千米，在很远很远的地方。') for k in range(10)]
    for name, pairs, source in (('smile', worries, 'smile'), ('mixed', facts, 'D_kbqa')):
        rows = [dict(prompt=p, response=r, source=source) for p, r in pairs]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path/'raw'/f'{name}.parquet')
    pq.write_table(pa.Table.from_pylist([dict(prompt=p, response=r) for p, r in worries + facts]),
                   real.run_path('data', 'train.parquet'))
    real.mixture()
    talk = real.read_pairs(real.run_path('talk.parquet'))
    assert set(facts) <= set(talk) and len(set(talk) & set(worries)) == len(talk) - len(facts) == 10
    exercises = real.read_pairs(real.run_path('exercises.parquet'))
    assert len(exercises) == 10 and all('这一座山' in asked.replace('【', '').replace('】', '') for asked, _ in exercises)


def test_what_is_planned_for_base():
    plan = real_measure.planned('base')
    assert round(plan['parameters']/1e6, 1) == 187.7 and plan['real_tok'] == round(.95 * 300_000 * 8192 * 4)


SENTENCES = [('《甲》的作者是乙。', [('甲', '作者', '乙')]), ('《丙》的作者是丁。', [('丙', '作者', '丁')])]


def test_the_dictionary_knows_triples_and_the_words_between():
    def named(text): return text.replace('甲', '红楼').replace('乙', '曹雪芹').replace('丙', '水浒').replace('丁', '施耐庵')
    rows = [(named(t), [tuple(map(named, x)) for x in triples]) for t, triples in SENTENCES]
    look = real_measure.Dictionary(rows)
    assert look('曹雪芹写红楼十年') == [('红楼', '作者', '曹雪芹')], 'a triple that it knows'
    assert look('《水浒》的作者是曹雪芹') == [('水浒', '作者', '曹雪芹')], 'names that it knows and words between them'
    assert look('曹雪芹没有写过水浒') == []


def test_what_is_copied_is_counted_by_pairs_of_characters():
    assert real_measure.copied_share([('甲乙丙', '乙丙'), ('子丑', '丑子寅')]) == pytest.approx(1/3) # 乙丙 of three


def test_the_sheet_hides_who_wrote_what_and_the_key_tells():
    shown = range(real_measure.SHOWN)
    answers = {stage: [f'{stage}{k}' for k in shown] for stage in real_measure.STAGES}
    made = real_measure.blind([f'问{k}' for k in shown], answers)
    assert len(made['sheet']) == len(made['who']) == real_measure.SHOWN
    for k, (row, who) in enumerate(zip(made['sheet'], made['who'])):
        assert row['answers'] == {letter: f'{stage}{k}' for letter, stage in who.items()}
    assert len({tuple(who.values()) for who in made['who']}) > 1, 'not always in one order'


def test_the_sheet_of_the_ways_has_two_stages_as_they_are_and_penalised(own_run):
    own_run('mine', 5)
    shown = range(real_measure.SHOWN)
    by_stage = {s: dict(answers=[f'{s}{k}' for k in shown]) for s in real_measure.CHATS}
    penalised = {s: dict(answers=[f'{s}_penalised{k}' for k in shown]) for s in real_measure.CHATS}
    real.write_json(real_measure.out('samples.json'), dict(questions=[f'问{k}' for k in shown]) | by_stage)
    real.write_json(real_measure.out('decodings.json'), dict(on_test=penalised))
    made = real_measure.blind_ways()
    for k, (row, who) in enumerate(zip(made['sheet'], made['who'])):
        assert set(who.values()) == {'sft', 'dpo', 'sft_penalised', 'dpo_penalised'}
        assert row['answers'] == {letter: f'{name}{k}' for letter, name in who.items()}


def test_what_is_counted_in_answers():
    said = ['多喝热水，多喝热水。多喝热水！', '多喝水，多喝水，多喝水', '多喝水多喝水多喝水', '好']
    found = real_measure.measured(said, ['好'*10]*4)
    assert found['repetition']['value'] == 1/4, 'four characters three times, none over another; not three characters'
    assert found['length_ratio']['value'] == sum(map(len, said))/40


def test_the_mildest_penalty_that_is_enough_for_every_stage():
    def tried(**stages):
        ways = 'default', 'penalty_1.1', 'penalty_1.2', 'penalty_1.3', 'no_4_twice'
        return {s: {w: dict(repetition=dict(value=v)) for w, v in zip(ways, found)} for s, found in stages.items()}
    assert real_measure.mildest(tried(sft=[.3, .02, .01, 0, 0], dpo=[.3, .03, .02, 0, 0])) == 'penalty_1.2'
    assert real_measure.mildest(tried(sft=[0, .2, .1, .05, 0])) == 'penalty_1.3', 'the last, if none is enough'


def judge(*values):
    "What a judge says of one question a value, the same of all three answers and both marks."
    return [{letter: dict(to_the_point=v, fluent=v) for letter in 'ABC'} for v in values]


WHO = [dict(A='sft', B='pretrain', C='dpo'), dict(A='dpo', B='sft', C='pretrain')]


def test_two_judges_are_averaged_by_stage_and_their_agreement_is_counted():
    first, second = judge(2, 0), judge(2, 0)
    first[0]['B']['fluent'], second[0]['B']['fluent'] = 0, 1 # one answer of pretraining, seen differently
    found = real_measure.judged(first, second, WHO)
    assert found['to_the_point']['sft']['value'] == 1 and found['to_the_point']['kappa'] == 1
    assert found['fluent']['pretrain']['value'] == .25 and found['fluent']['agree']['value'] == pytest.approx(5/6)
    a, b = [2, 0, 2, 0, 0, 0], [2, 1, 2, 0, 0, 0]
    by_hand = 1 - (1/6) / (sum((x - y)**2 for x in a for y in b) / 36)
    assert found['fluent']['kappa'] == pytest.approx(by_hand)


def test_a_judge_who_left_something_out_is_named():
    with pytest.raises(ValueError, match='expected 2 each'): real_measure.judged(judge(1), judge(1, 1), WHO)
    with pytest.raises(ValueError, match=r'to_the_point: \[3\], expected 0, 1 or 2'):
        real_measure.judged(judge(3, 1), judge(1, 1), WHO)


# Whose figures they are


def folders(root):
    "Every file below, and what is in it."
    return {p.relative_to(root): p.read_bytes() for p in root.rglob('*') if p.is_file()}


@pytest.fixture
def own_run(tmp_path, monkeypatch):
    "Makes a run of somebody: the cleaning's report and one training."
    monkeypatch.setenv('SCCLM_SCALE', 'small')

    def make(name, kept):
        monkeypatch.setenv('SCCLM_RUNS', str(tmp_path/name))
        report = dict(rows_in=9, kept=kept, rejected=9 - kept, duplicates={}, leaks=0, rules={}, splits={})
        real.write_json(real.run_path('data', 'report.json'), report)
        real.write_json(real.run_path('sft', 'figures.json'), dict(seconds=kept, steps=1))

    return make


def test_every_run_has_results_of_its_own_and_those_that_are_shipped_are_left_alone(own_run, tmp_path, monkeypatch):
    shipped, found = folders(real_measure.KEPT), {}
    for name, rows in (('mine', 5), ('yours', 7)):
        own_run(name, rows)
        assert real_measure.kept(real_measure.clean, 'clean')['kept'] == rows
        assert {p.name for p in real_measure.out().iterdir()} == {'clean.json', 'made_of.json'}, 'nothing is taken over'
        found[name] = (real_measure.out('clean.json')).read_bytes()
    assert found['mine'] != found['yours'] and folders(real_measure.KEPT) == shipped
    monkeypatch.setattr(real_measure, 'KEPT', tmp_path/'page')
    real_measure.keep()
    assert folders(tmp_path/'page') == {Path('clean.json'): found['yours']}


def test_what_is_measured_is_measured_again_after_another_training_only(own_run):
    own_run('mine', 5)
    real_measure.kept(lambda: dict(n=1), 'clean')
    assert real_measure.kept(lambda: dict(n=2), 'clean') == dict(n=1)
    real.write_json(real.run_path('ie_choice', 'sft_0.1', 'figures.json'), dict(seconds=3))
    assert real_measure.kept(lambda: dict(n=3), 'clean') == dict(n=3) == real_measure.kept(lambda: dict(n=4), 'clean')


def test_marks_count_for_the_sheet_that_they_were_given_to(own_run):
    own_run('mine', 5)
    sheet = dict(sheet=[dict(answers='子丑')], who=WHO)
    given = dict(sheet=real_measure.sheet_key(sheet), who=WHO, judges=[judge(2, 0), judge(2, 1)])
    real.write_json(real_measure.out('judged.json'), given)
    assert real_measure.marked_sheet(sheet) == real_measure.judged(*given['judges'], WHO)
    with pytest.raises(ValueError, match='marks are of another sheet'):
        real_measure.marked_sheet(sheet | dict(sheet=[dict(answers='寅卯')]))


def test_the_diary_keeps_what_was_never_ended(own_run):
    own_run('mine', 5)
    entries = [('sft', 'start'), ('sft', 'stop'), ('sft', 'start'), ('sft', 'end'), ('dpo', 'start')]
    lines = [json.dumps(dict(step=step, args=[], what=what, at=1.)) for step, what in entries]
    real.diary().write_text('\n'.join(lines), encoding='utf-8')
    assert real_measure.diary() == dict(dpo=dict(starts=1, stops=1, ended=False),
                                        sft=dict(starts=2, stops=1, ended=True, seconds=5))
    assert list(real_measure.diary(['dpo'])) == ['dpo']


def test_an_evening_that_is_not_over_names_what_is_missing(own_run):
    own_run('mine', 5)
    for name in ('ie_1000_sft', 'ie_17000_scratch'):
        real.write_json(real.run_path(name, 'figures.json'), dict(seconds=1, steps=1))
    with pytest.raises(ValueError, match='not trained to the end: 1000_scratch, 4000_pretrained, ') as said:
        real_measure.longer_run()
    assert '_stock' not in str(said.value) and not real_measure.out('logs_third').exists()


def test_a_training_that_was_copied_into_a_later_evening_is_counted_once(tmp_path):
    for evening, names in dict(a='xy', b='yz', c='').items():
        for name in names:
            seconds = dict(x=1, y=2, z=4)[name]
            real.write_json(tmp_path/evening/'small'/name/'figures.json', dict(seconds=seconds, steps=9))
    found = real_measure.hours([tmp_path/name for name in 'abc'])
    assert found == dict(first=dict(x=1, y=2), second=dict(z=4), third={})


def test_a_point_of_the_curve_lies_between_the_logged_steps_around_it(own_run, monkeypatch):
    own_run('mine', 5)
    monkeypatch.setattr(real_measure, 'load_model', lambda path: (None, None))
    monkeypatch.setattr(real_measure, 'n_params', lambda model: 7)
    log = [dict(step=4, loss_valid=3.), dict(step=10, real_tok=100), dict(step=15, loss_valid=2.),
           dict(step=20, real_tok=300), dict(step=20, loss_valid=1.)]
    real.run_path('sft', 'log.jsonl').write_text('\n'.join(map(json.dumps, log)), encoding='utf-8')
    real.write_json(real.run_path('sft', 'figures.json'), dict(bits_per_char_valid=1.5, seconds=1, real_tok=300))
    points = real_measure.curve('sft')['points']
    assert [p['real_tok'] for p in points] == [40, 200, 300] and points[0]['bits_per_char'] == 4.5


def test_a_difference_is_taken_on_the_same_sentences():
    stated = [[('甲', '作者', '乙')]] * 20
    right, wrong = stated, [[('甲', '作者', '丙')]] * 20
    same = real_measure.more_f1(right, right, stated)
    assert same == dict(value=0, ci95=[0, 0]), 'whatever is drawn'
    assert real_measure.more_f1(right, wrong, stated)['value'] == 1
    less = real_measure.lessened(dict(pretrain=[2., 1.], sft=[1., 0.], dpo=[1., 0.]), real_measure.PAIRS)
    assert less['pretrain_sft'] == dict(value=1, ci95=[1, 1]) and less['sft_dpo']['value'] == 0


# The page

ROOT = Path(__file__).resolve().parents[1]
ON_PAPER = ('先换算', '练习') # sections whose numbers a reader computes, with a cell or an answer beside them
NAMES = {'4', # the loss that students ask about
         '95', '25', # an interval, the line of chance
         '0.34', '0.28', '2022', # exponents as published, and when
         '0.2', '2.0'} # the ancestor's parameters in billions, DuIE's version
BESIDE = r'```.*?```|`[^`]*`|\]\([^)]*\)|<details>.*?</details>|第 \d\d 章|distinct-\d|[A-Za-z_]+\d+' # code, names


SPELT = {'零点一', '十倍', '百分之二十六', '四倍'} # in characters: the course's loss, an axis, an example, 4 or 3.75


def prose():
    "Title -> text of every section of the page, marks and code left out."
    cells = json.loads((ROOT/PAGE).read_text(encoding='utf-8'))['cells']
    text = '\n\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    parts = re.split(r'^## +(.+)$', re.sub(BESIDE, '', MARK.sub('', text), flags=re.S), flags=re.M)
    return dict(zip(['', *parts[1::2]], parts[::2]))


def test_every_number_in_the_prose_of_the_page_comes_from_a_stored_file():
    for title, text in prose().items():
        if title.startswith(ON_PAPER): continue
        loose = [n.rstrip('.,') for n in re.findall(r'\d[\d.,]*', text)]
        assert set(loose) <= NAMES, f'{title}: {set(loose) - NAMES} stand outside a mark'
        spelt = set(re.findall('零点.|百分之[零一二三四五六七八九十]+|[二三四五六七八九十]+倍|几分钟', text))
        assert spelt <= SPELT, f'{title}: {spelt - SPELT} are spelt out'
    assert filled_page(ROOT, fill) == (ROOT/PAGE).read_text(encoding='utf-8'), 'make front'
    cells = json.loads((ROOT/PAGE).read_text(encoding='utf-8'))['cells']
    marks = dict(MARK.findall(''.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')))
    assert marks.keys() == real_values(ROOT).keys(), 'asked for and made are the same'
    logs = {p.stem: [json.loads(line) for line in p.read_text(encoding='utf-8').splitlines() if line]
            for p in (real_measure.KEPT/'logs').glob('*.jsonl')}
    assert float(marks['loss']) == round(logs['pretrain'][-1]['loss_valid'], 2)
    assert float(marks['plain_loss']) == round(logs['pretrain_plain'][-1]['loss_valid'], 2)
    assert float(marks['tiny_loss']) == round(logs['pretrain_tiny'][-1]['loss_valid'], 2)
    last = [logs[f'ie_{n}_sft'][-1]['step'] for n in (1000, 4000, 17000)]
    assert marks['ie_steps'] == '、'.join(f'{n:,}' for n in last)


def test_the_card_has_every_figure_that_is_quoted():
    card = json.loads((real_measure.KEPT/'card.json').read_text(encoding='utf-8'))
    for n in (1000, 4000, 17000):
        for start in ('pretrained', 'scratch', 'stock'):
            assert 0 <= card['ie'][f'f1_{n}_{start}'] <= 1 and 0 <= card['ie'][f'f1_{n}_{start}_raw'] <= 1
    assert card['pretrain']['bits_per_char'] > 0 and card['pretrain']['bits_per_char_ngram5'] > 0
    assert 0 <= card['chat']['repetition'] <= 1


def test_what_is_stored_agrees_with_itself(monkeypatch):
    "Precision, recall and F1 with their counts; the law at its own points; marks, differences, shares and counts."
    read = {p.stem: json.loads(p.read_text(encoding='utf-8')) for p in real_measure.KEPT.glob('*.json')}
    quoted = read['card']['ie']
    for name, r in read['triples']['runs'].items():
        assert quoted[f'f1_{name}'] == r['f1'] and quoted[f'f1_{name}_raw'] == r['raw']
    runs = [(name, r) for evening in ('first', 'triples', 'third') for name, r in read[evening]['runs'].items()]
    for name, r in runs:
        right, extracted, stated = (r['counts'][k] for k in ('right', 'extracted', 'stated'))
        assert r['p'] == pytest.approx(right / extracted if extracted else 0) and r['r'] == right / stated, name
        assert r['f1'] == pytest.approx(2 * right / (extracted + stated)) and r['ci95'][0] <= r['f1'] <= r['ci95'][1]
    for evening in ('triples', 'third'):
        scores = read[evening]['runs']
        for n, lead in read[evening]['leads'].items():
            assert lead['value'] == pytest.approx(scores[f'{n}_pretrained']['f1'] - scores[f'{n}_scratch']['f1'])
    third = read['third']
    for n, lead in third['slower_leads'].items():
        slower, scratch = (third['runs'][f'{n}_{start}'] for start in ('slower', 'scratch'))
        assert lead['value'] == pytest.approx(slower['f1'] - scratch['f1']) and slower['lr'] == scratch['lr']
    assert third['dictionary_lead']['value'] == pytest.approx(
        third['runs']['17000_scratch']['f1'] - third['dictionary']['17000']['f1'])
    assert third['first']['n'] == read['triples']['runs']['1000_scratch']['n']
    found = fit_law(read['law']['points'])
    assert list(found)[:3] == pytest.approx([read['law']['law'][k] for k in ('floor', 'by_size', 'by_tokens')])
    assert read['clean']['kept'] + read['clean']['rejected'] == read['clean']['rows_in']
    assert sum(read['clean']['rules'].values()) == read['clean']['rejected']
    assert len(read['samples']['questions']) == real_measure.SHOWN
    monkeypatch.setattr(real_measure, 'out', lambda *parts: real_measure.KEPT.joinpath(*parts))
    for name, (make, pairs) in real_measure.SHEETS.items():
        given, sheet = json.loads(real_measure.marks_of(name).read_text(encoding='utf-8')), make()
        assert given['who'] == sheet['who'] and given['sheet'] == real_measure.sheet_key(sheet)
        assert read[name] == real_measure.judged(*given['judges'], given['who'], pairs)
    assert read['preferences']['all']['reward_acc']['value'] == read['card']['dpo']['reward_acc']
    for stage, score in read['stage_bits']['bits'].items():
        assert score['value'] == pytest.approx(read['bits']['all'][stage], abs=1e-5)


def test_settings_say_what_ran_and_hours_what_it_took():
    read = {name: json.loads((real_measure.KEPT/f'{name}.json').read_text(encoding='utf-8'))
            for name in ('first', 'settings', 'third', 'hours')}
    for stages in (read['first']['settings'], read['settings']['stages'], read['third']['settings']):
        starts = {name: stage for name, stage in stages.items() if 'twins' in stage}
        assert len(starts) >= 9
        for name, stage in starts.items(): assert stage['twins'] == (stage['start'] not in ('scratch', 'stock')), name
    assert read['hours']['third'].keys() == {name for name, d in read['third']['diary'].items() if d['ended']}
    for name, d in read['third']['diary'].items():
        if d['ended']: assert d['seconds'] == read['hours']['third'][name]
    for path in real_measure.KEPT.rglob('*.json*'):
        assert '"/' not in path.read_text(encoding='utf-8'), f'{path.name}: a path of the machine that it was made on'
