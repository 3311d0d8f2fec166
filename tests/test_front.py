"""The front door: no figure of the READMEs, the picture or benchmarks/README.md without its file; one address."""
import ast
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
import zipfile
from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path

import course_facts
import figures
import front
import licences
import pytest
import yaml
from packaging.requirements import Requirement
from trainer_toys import load_benchmark, model

from scclm.final_exam import FinalQuestion, final_questions, final_unknown
from scclm.model import save_model
from scclm.planner import PlanCfg, plan
from scclm.runs import STAGES
from scclm.sample_facts import facts
from scclm.sample_unknown import REFUSALS, is_refusal
from scclm.serve import ServeCfg
from scclm.website import meaning_of, number, stamps_of

ROOT = Path(__file__).resolve().parents[1]

def text(name): return (ROOT/name).read_text(encoding='utf-8')
def held(name): return json.loads(text(f'benchmarks/{name}.json'))

READMES = list(front.LANGUAGES.items())
each_readme = pytest.mark.parametrize('lang, name', READMES, ids=[lang for lang, _ in READMES])

# What is made is what the files say

def test_nothing_that_is_made_is_stale():
    stale = [p.name for p, new in front.made(ROOT).items() if p.read_text(encoding='utf-8') != new]
    assert stale == [], 'run `make front`'

def wide(line):
    "Pixels of a line in letters of 16: a Chinese one is as wide as high, others half of that; links are their words."
    line = re.sub(r'<[^>]+>|[*`]', '', re.sub(r'\]\([^)]*\)|!?\[', '', line))
    return sum(16 if ord(c) > 0x2e80 else 7.6 for c in line)

def wrapped(line): return max(1, -(-wide(line)//896))

def height(markdown):
    """Pixels in GitHub's column of 896, folds closed: what Chromium made of both READMEs, within 4 %. A line of text is
    24 high, of code 20, a row of a table 13 more than its lines, and blocks stand 16 apart."""
    out = re.sub(r'<details>.*?</details>', '<fold>', re.sub(r'<!--.*?-->', '', markdown), flags=re.S)
    pixels = 0
    for block in re.split(r'\n\s*\n', out.strip()):
        lines = [line for line in block.split('\n') if line]
        if not lines: continue
        if lines[0].startswith('#'): pixels += 60
        elif lines[0].startswith('<img'): pixels += int(re.search(r'width="(\d+)"', block)[1])*392//880 + 16
        elif lines[0].startswith('```'): pixels += 20*(len(lines) - 2) + 48
        elif lines[0].startswith('|'): pixels += sum(13 + 24*wrapped(x) for x in lines if '---' not in x) + 16
        else: pixels += 24*sum(map(wrapped, lines)) + 16
    return pixels

@each_readme
def test_a_readme_fills_two_screens(lang, name):
    assert 1900 < height(text(name)) <= 2*1080
    box = ElementTree.fromstring(text(f'nbs/figures/front{"" if lang == "zh" else ".en"}.svg')).get('viewBox')
    assert box == '0 0 880 392'

def test_what_fills_a_screen():
    "A fold is one line whatever it hides; a long line is several."
    assert height('<details><summary>a</summary>\n\n' + 'x\n\n'*50 + '</details>') == 40
    assert height('汉'*56) == 40 and height('汉'*57) == 64 and height('[汉](' + 'x'*500 + ')') == 40
    assert height('## a\n\n```sh\na\nb\n```\n\n| a |\n|---|\n| b |') == 60 + 88 + 90

def test_both_readmes_ask_for_the_same_figures():
    keys = [{m[1] for m in front.MARK.finditer(text(name))} for _, name in READMES]
    assert keys[0] == keys[1] and {'talk', 'six', 'commands', 'facts', 'minutes', 'download', 'ram'} <= keys[0]

def prose(name):
    "A README without what is filled in, code, links and HTML: what a person wrote."
    out = front.MARK.sub('', text(name))
    out = re.sub(r'```.*?```|`[^`]*`|<[^>]*>', '', out, flags=re.S)
    return re.sub(r'\]\([^)]*\)', ']', out)

@each_readme
def test_no_figure_was_typed_by_hand(lang, name):
    known = r'\b0\d(?= ?[\w])|Apache-2\.0|T5|F1' # chapters, a licence, a model, a score
    assert re.findall(r'\S*\d\S*', re.sub(known, '', prose(name))) == []

@each_readme
def test_marks_are_read_as_markdown(lang, name):
    "A line that begins with a comment is HTML to the end: links and bold type behind it would stay as they are."
    for line in text(name).splitlines():
        if line.startswith('<!--='): assert re.fullmatch(r'<!--=\w*-->', line), line

@pytest.mark.parametrize('bad, says', [
    ('<!--=no-->1<!--=-->', 'expected one of a, b'),
    ('<!--=a-->1 <!--=b-->2<!--=-->', 'is not closed'),
    ('<!--=a-->1', 'is not closed'),
    ('1<!--=-->', 'is not closed')])
def test_a_bad_mark_is_named(bad, says):
    with pytest.raises(ValueError, match=says): front.fill(bad, dict(a='1', b='2'))

def test_filling_twice_changes_nothing():
    known = dict(a='\n| x |\n', b=r'\1 \g<0>')
    once = front.fill('<!--=a--><!--=-->, <!--=b-->old<!--=-->', known)
    assert once == f'<!--=a-->{known["a"]}<!--=-->, <!--=b-->{known["b"]}<!--=-->' and front.fill(once, known) == once

# What the READMEs say, against its source

@each_readme
def test_numbers_come_from_where_they_should(lang, name):
    "Each once more, straight from its file, without the functions that fill them in."
    said = {m[1]: m[2] for m in front.MARK.finditer(text(name))}
    course, seeds = held('course'), {r['what']: r['runs']['ours'] for r in held('results/seeds')['rows']}
    assert int(said['facts']) == len(facts()) == len(final_questions())
    assert float(said['minutes']) == round(sum(c['seconds'] for c in course['chapters'])/60)
    assert float(said['ram']) == round(max(c['peak_rss_mb'] for c in course['chapters'])/1000, 1)
    assert [c['name'][:2] for c in course['chapters']] == [f'{i:02}' for i in range(10)], 'ten chapters'
    sizes = {r['what']: r['ours'] for r in held('results/setup_size')['rows']}
    assert float(said['download']) == round(sizes['download'])
    assert float(said['installed']) == round(sizes['on disk']/1000, 1) and sizes['on disk'] > sizes['installed']
    assert float(said['setup']) == round(course['set_up_seconds']/60)
    digits = f"{course['model']['parameters']:.3e}"[:5].replace('.', '')
    assert said['parameters'].replace('.', '').startswith(digits), 'as many digits in both languages'
    assert said['stranger'] == f"{round(100*sum(seeds['chat.refused_stranger'])/3)} %"
    for key in front.SIX: assert f'{min(seeds[key]):.3f}–{max(seeds[key]):.3f}' in said['six'], key
    assert said['python'] == front.settings(ROOT)['min_python'] and front.settings(ROOT)['git_url'] in said['commands']
    for c in course['chapters']: assert float(said[f"m{c['name'][:2]}"]) == pytest.approx(c['seconds']/60, abs=.05)
    assert len([s for s in held('card')['data']['sources'] if s != 'heldout']) == 6, 'six formats'

@each_readme
def test_commands_and_modules_exist(lang, name):
    done = set(re.findall(r'[`/]scclm (?!and)([a-z]+)', text(name)))
    assert {'chat', 'fetch', 'page', 'plan'} <= done <= set(STAGES), done
    for module in re.findall(r'-m scclm\.(\w+)', text(name)): assert (ROOT/'scclm'/f'{module}.py').exists()
    for path in re.findall(r'configs/\w+\.yaml', text(name)): assert (ROOT/path).exists()
    for path in re.findall(r'(?:\]\(|src=")(?!https?:)([^)"#]+)', text(name)): assert (ROOT/path).exists(), path
    assert 'nbs/appendix/real_text.ipynb' in text(name), 'the run on real text'
    for word in ('make course', 'make test', 'make chat', 'make serve', 'Apache-2.0', 'charent'):
        assert word in text(name), word

@each_readme
def test_the_sum_is_the_one_that_the_command_does(lang, name):
    "The hours and the memory of `base` are those of the `scclm plan …` that stands there."
    options = re.search(r'`scclm plan (--[^`]+)`', text(name))[1].replace('-tok', '_tok').split()
    given = dict(zip((o.removeprefix('--') for o in options[::2]), options[1::2]))
    kinds = {f.name: type(f.default) for f in fields(PlanCfg)}
    cost = plan(PlanCfg(vocab_size=29298, **{k: kinds[k](v) for k, v in given.items()}))
    said = {m[1]: m[2] for m in front.MARK.finditer(text(name))}
    assert said['base_hours'] == f"{cost['hours']:.0f}" and said['base_gib'] == f"{cost['memory_gb']['peak']:.0f}"
    assert float(given['gpu']) == float(said['base_gpu']) and '`--gpu 0`' in text(name)

@each_readme
def test_extras_and_the_lines_that_ask_a_server(lang, name):
    extras = set(licences.lists(ROOT)) - {'requirements'}
    assert extras <= set(re.findall(r'`(\w+)`', text(name).split('[serve]')[0])), extras
    lines = text(name).splitlines()
    for start in ('curl http://127.0.0.1:8812/api/chat', 'python -c "from openai import OpenAI'):
        assert len([x for x in lines if x.startswith(start)]) == 1, start
    code, = (x for x in lines if x.startswith('python -c'))
    ast.parse(code.removeprefix('python -c "').removesuffix('"'))
    assert ServeCfg().port == 8812 and 'runs/tiny/page/index.html' in text(name)

def test_the_readmes_ask_the_model_as_printed(tok, tmp_path, monkeypatch, capsys):
    "The first example of either README, in a folder that holds such a model."
    first = {re.search(r'```python\n(.*?)```', text(name), re.S)[1] for _, name in READMES}
    code, = first
    save_model(model(tok), tok, tmp_path/'runs/tiny/dpo/model')
    monkeypatch.chdir(tmp_path)
    exec(compile(code, 'README.md', 'exec'), {})
    assert len(ast.literal_eval(capsys.readouterr().out)) == 2

def test_every_appendix_is_where_a_reader_looks():
    "The READMEs send a reader to the list of the home page."
    listed = text('nbs/index.ipynb')
    names = sorted(p.name for p in (ROOT/'nbs/appendix').glob('*.ipynb'))
    assert [name for name in names if f'(appendix/{name})' not in listed] == []

# The conversation

def test_the_conversation_is_one_of_each_and_true():
    right, refused, wrong = held('course')['talk']
    answers = {q.prompt: q.response for q in final_questions()}
    assert right['answer'] == right['expected'] == answers[right['question']]
    assert wrong['expected'] == answers[wrong['question']] != wrong['answer'] and not is_refusal(wrong['answer'])
    assert is_refusal(refused['answer']) and refused['question'] == final_unknown()[refused['number'] - 1]
    for t in (right, wrong): assert final_questions()[t['number'] - 1].prompt == t['question']
    for _, name in READMES:
        for t in (right, refused, wrong): assert t['question'] in text(name) and t['answer'] in text(name)

def test_whatever_the_model_writes_stays_in_its_place():
    talk = held('course')['talk']
    talk[0]['answer'] = 'a ```\n<!--=six--> {number} | b'
    for lang in front.LANGUAGES:
        lines = front.talk_lines(talk, lang)
        assert len(lines) == 8 and [x for x in lines if '```' in x] == ['```text', '```']
        known = dict(talk='\n'.join(lines))
        once = front.fill('<!--=talk--><!--=-->', known)
        assert front.fill(once, known) == once and '{number} | b' in once

TAUGHT = [FinalQuestion(f'q{i}', f'a{i}', 'r') for i in range(70)]
UNTAUGHT = [f'u{i}' for i in range(70)]

def student(wrong=(), refuses=()):
    "Answers as told, and remembers what it was asked."
    seen = []
    def ask(questions):
        seen.extend(questions)
        said = {q: q.replace('q', 'a') for q in questions if q[0] == 'q'} | dict.fromkeys(wrong, 'nonsense')
        return [REFUSALS['outside'] if q in refuses else said.get(q, 'nonsense') for q in questions]
    return ask, seen

def test_the_first_of_each_kind_is_taken_in_order():
    ask, seen = student(wrong={'q0', 'q40', 'q41'}, refuses={'q1', 'u3', 'u4'})
    talk = course_facts.first_talk(ask, TAUGHT, UNTAUGHT)
    assert [(t['kind'], t['question'], t['number']) for t in talk] == [
        ('right', 'q2', 3), ('refused', 'u3', 4), ('wrong', 'q0', 1)]
    assert talk[2]['expected'] == 'a0' and talk[2]['answer'] == 'nonsense'
    assert len(seen) == 64, 'no more is asked than is looked at, 32 at a time'
    assert course_facts.first_talk(student(wrong={'q69'}, refuses={'u69'})[0], TAUGHT, UNTAUGHT)[2]['question'] == 'q69'

@pytest.mark.parametrize('wrong, refuses, gone', [
    ((), {'u0'}, 'wrong'), ({'q0'}, (), 'refused'), ({q.prompt for q in TAUGHT}, {'u0'}, 'right'),
    ((), {*UNTAUGHT, *(q.prompt for q in TAUGHT)}, 'right, wrong')])
def test_a_kind_that_does_not_occur_is_named(wrong, refuses, gone):
    with pytest.raises(ValueError, match=f'is {gone}: expected one of each'):
        course_facts.first_talk(student(wrong, refuses)[0], TAUGHT, UNTAUGHT)

# The picture

@pytest.mark.parametrize('name', ['front.svg', 'front.en.svg'])
def test_the_picture_says_what_the_course_did(name):
    root = ElementTree.fromstring(text(f'nbs/figures/{name}'))
    words = [e.text for e in root.iter() if e.tag.endswith('text')]
    said, course = ' '.join(words), held('course')
    for key in ('read', 'rejected', 'train', 'sft', 'prefs', 'sentences'):
        assert f"{course['rows'][key]:,}" in said, key
    assert course['talk'][0]['answer'] in said and course['triple']['extracted'] in said
    for stage in ('pretrain', 'ie'): assert f"{held('card')['seconds'][stage]/60:.1f} " in said, stage

def leaving(svg):
    "Words that do not end inside the smallest box they begin in; Chinese ones are as wide as high, others half."
    root = ElementTree.fromstring(svg)
    found = [e for e in root.iter() if e.tag.endswith(('rect', 'text'))]
    places = [[e.get(k) for k in ('x', 'y', 'width', 'height')] for e in found]
    boxes = [[*map(float, place)] for place in places if all(place)]
    for e in found:
        if not e.tag.endswith('text'): continue
        x, y = float(e.get('x')), float(e.get('y'))
        inside = [bx + w for bx, by, w, h in boxes if bx <= x <= bx + w and by <= y <= by + h]
        wide = sum(1 if ord(c) > 0x2e80 else .5 for c in e.text)*float(e.get('font-size'))
        if x + wide > min(inside, default=880): yield e.text

@pytest.mark.parametrize('lang', front.LANGUAGES)
@pytest.mark.parametrize('answer', [None, '很长的回答'*40, 'a long answer '*40, ''])
def test_no_words_leave_their_box(lang, answer):
    course, card = held('course'), held('card')
    if answer is not None: course['talk'][0]['answer'] = course['triple']['text'] = answer
    svg = front.draw(course, card, lang)
    assert list(leaving(svg)) == [] and ('…' in svg) == bool(answer)

def test_words_that_mean_something_in_svg_stay_words():
    course, card = held('course'), held('card')
    course['talk'][0]['answer'] = '<b> & "x"'
    root = ElementTree.fromstring(front.draw(course, card, 'zh'))
    assert '答：<b> & "x"' in [e.text for e in root.iter()]

# benchmarks/README.md

ROWS = [(p.stem, r) for p in sorted((ROOT/'benchmarks/results').glob('*.json')) for r in json.loads(
    p.read_text(encoding='utf-8'))['rows']]

def test_every_figure_is_in_the_page_with_a_meaning():
    page, meanings = text('benchmarks/README.md'), held('meanings')
    for name, r in ROWS:
        better, says = meaning_of(meanings, name, r['what'])
        than = r['baseline_name']
        start = f"| {r['what']} | {says} | {figures.ARROWS[better]} | {number(r['ours'])} "
        lines = [x for x in page.splitlines() if x.startswith(start)]
        assert lines and any(than in x or than == 'itself' for x in lines), (name, r['what'])

def test_the_direction_is_the_one_of_the_ratio():
    "A ratio above 1 says that ours is better: where ours is larger, larger must be better."
    for name, r in ROWS:
        better, _ = meaning_of(held('meanings'), name, r['what'])
        if not better or r['ratio'] is None or r['ours'] == r['baseline'] or abs(r['ratio'] - 1) < .02: continue
        rises = (r['ratio'] > 1) == (r['ours'] > r['baseline'])
        assert rises == (better == 'higher'), (name, r['what'])

def test_machine_date_and_commit_stand_by_every_table():
    page = text('benchmarks/README.md')
    for p in (ROOT/'benchmarks/results').glob('*.json'):
        result = json.loads(p.read_text(encoding='utf-8'))
        part = page.split(f'[{p.name}](results/{p.name})：')[1].split('\n## ')[0]
        for r in result['rows']:
            of = result | r
            assert f"{of['machine']}；{of['date']}；提交 `{of['commit']}`" in part, (p.name, r['what'])
    links = [x for x in re.findall(r'\]\(([^)#]+)\)', page) if not x.startswith('http')]
    assert [x for x in links if not (ROOT/'benchmarks'/x).exists()] == []

def test_a_row_keeps_the_stamp_of_its_own_run():
    "Two scripts, two days, one file: the second neither takes the rows of the first as its own nor loses them."
    report = load_benchmark('report')
    def result(day, script, *names):
        rows = [dict(what=name, ours=1.) for name in names]
        found = dict(machine='m', commit=f'c{day}', date=f'2026-01-0{day}', script=script, config={}, rows=rows)
        return found | dict(rows=report.stamped(found))
    old = result(1, 'words.py', 'a', 'b')
    for row in old['rows']: row.pop('script') # as files from before the rows had stamps
    both = report.joined(old, result(2, 'data.py', 'b', 'c'))
    both = report.joined(both, result(3, 'data.py'))
    assert [(r['what'], r['commit'], r['script']) for r in both['rows']] == [
        ('a', 'c1', 'words.py'), ('b', 'c2', 'data.py'), ('c', 'c2', 'data.py')]
    path = ROOT/'benchmarks/results/data.json'
    assert list(stamps_of(path, both).values()) == ['第 1 行：', '第 2–3 行：']
    assert list(stamps_of(path, result(1, 'data.py', 'a', 'b')).values()) == ['']

def git(*args): return subprocess.run(['git', *args], cwd=ROOT, capture_output=True, text=True)

def test_the_code_of_every_figure_can_be_found():
    "Every commit of a result belongs to the history that a clone gets."
    if git('rev-parse', '--is-shallow-repository').stdout.strip() != 'false': pytest.skip('no history here')
    commits = {r['commit'] for p in (ROOT/'benchmarks/results').glob('*.json')
               for result in [json.loads(p.read_text(encoding='utf-8'))] for r in [result, *result['rows']]
               if 'commit' in r}
    assert [c for c in sorted(commits) if git('merge-base', '--is-ancestor', c, 'HEAD').returncode] == []

def test_make_bench_leaves_figures_of_real_text_alone():
    "Without --data a script takes the sample corpus: its figures would stand under the words that say real text."
    line = next(x for x in text('Makefile').splitlines() if 'wants real text' in x)
    skipped = re.findall(r'\*/([\w*.]+)(?=[|)])', line)
    meanings, names = held('meanings'), dict(tokenizers='tokenizer_trainers', rule_reading='')
    for name, says in meanings.items():
        script = names.get(name, name)
        if '真实' not in says['about'] or not (ROOT/f'benchmarks/{script}.py').exists(): continue
        assert any(fnmatchcase(f'{script}.py', pattern) for pattern in skipped), name

def test_the_seconds_are_told_in_proportion():
    course = held('course')
    seconds = sum(c['seconds'] for c in course['chapters'])*course['reference_tok_per_s']/1e4
    assert f'折到 10,000 词元/秒，{seconds:,.0f} 秒' in text('benchmarks/README.md')
    assert figures.in_proportion(dict(chapters=[dict(seconds=9.)])) == ''

def test_words_are_ours():
    rows = held('results/pieces')['rows']
    assert {r['baseline_name'] for r in rows} == {'characters'}
    bits = next(r for r in rows if r['what'].startswith('bits'))
    assert bits['ours'] < bits['baseline'] and bits['ratio'] > 1

def test_a_figure_without_a_meaning_is_named():
    meanings = dict(toy=dict(title='t', about='a', rows={'known *': ['lower', 'x']}))
    assert meaning_of(meanings, 'toy', 'known one') == ('lower', 'x')
    with pytest.raises(ValueError, match="'toy' says nothing of 'other'"): meaning_of(meanings, 'toy', 'other')
    with pytest.raises(ValueError, match="'gone' says nothing of 'a'"): meaning_of(meanings, 'gone', 'a')

@pytest.mark.parametrize('x, said', [
    (0, '0'), (0.00537, '0.00537'), (999.5, '999.5'), (17370.2, '17,370'), (3.69e6, '3,690,000')])
def test_figures_are_readable(x, said): assert number(x) == said

# One address

def test_the_address_is_the_one_of_settings():
    moves = front.addresses(ROOT)
    assert all(old == new for old, new in moves.items()), 'run `make front`'
    cited = yaml.safe_load(text('CITATION.cff'))
    assert cited['repository-code'] == front.settings(ROOT)['git_url']
    version = front.settings(ROOT)['version']
    assert str(cited['version']) == version and f'\n## {version}\n' in text('CHANGELOG.md')
    site = yaml.safe_load(text('_quarto.yml'))['website']
    assert site['repo-url'] == cited['repository-code'] and site['site-url'] == cited['url']

def test_a_fork_changes_two_lines(tmp_path):
    "Every tracked file of a copy under another owner: nothing names the old one, and a second time nothing changes."
    copy = tmp_path/'copy'
    for path in front.tracked(ROOT):
        target = copy/path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    subprocess.run(['git', 'init', '-q', '.'], cwd=copy, check=True)
    old = front.settings(ROOT)
    ini = (copy/'settings.ini').read_text(encoding='utf-8')
    ini = re.sub(r'^user = .*', 'user = someone', ini, flags=re.M)
    ini = re.sub(r'^repo = .*', 'repo = my-course', ini, flags=re.M)
    (copy/'settings.ini').write_text(ini, encoding='utf-8')
    (copy/'tool').write_text(f"#!/bin/sh\necho {old['git_url']}.git {old['git_url']}-two\n", encoding='utf-8')
    (copy/'tool').chmod(0o755)
    before, cited = (copy/'tool').stat().st_mode, (copy/'CITATION.cff').read_bytes()
    assert copy/'tool' in front.move_in(copy) and (copy/'tool').stat().st_mode == before
    assert (copy/'tool').read_text(encoding='utf-8').endswith(f"/my-course.git {old['git_url']}-two\n"), 'another one'
    (copy/'tool').unlink()
    (copy/'CITATION.cff').write_bytes(cited)
    assert front.move_in(copy) == [copy/'CITATION.cff'], 'a run that was killed before its last file ends the next time'
    addresses = [a.encode() for a in front.addresses(ROOT)]
    names = {p.relative_to(copy).as_posix() for p in front.tracked(copy) for a in addresses if a in p.read_bytes()}
    assert names <= {'scclm/_modidx.py'}, 'nbdev_export writes that one'
    assert 'https://github.com/someone/my-course' in (copy/'README.md').read_text(encoding='utf-8')
    assert 'https://someone.github.io/my-course' in (copy/'CITATION.cff').read_text(encoding='utf-8')
    assert front.move_in(copy) == []

def test_no_other_address_is_written_by_hand():
    "Whatever names the owner and the repository does so by the address that `make front` knows."
    cfg, known = front.settings(ROOT), front.addresses(ROOT)
    for path in front.tracked(ROOT):
        if path.name in ('settings.ini', '_modidx.py'): continue
        left = path.read_bytes()
        for address in known: left = left.replace(address.encode(), b'')
        assert f"{cfg['user']}/{cfg['repo']}".encode() not in left, path

# Licences, sizes

def test_every_requirement_has_its_licence_in_the_page():
    rows = {row[0]: row for row in licences.package_rows(ROOT)}
    page, pins = text('DEPENDENCIES.md'), licences.pinned(ROOT)
    table = [[c.strip() for c in line.split('|')[1:5]] for line in page.splitlines() if line.startswith('| ')]
    cells = {name: rest for name, *rest in table}
    asked = {licences.named(r.name) for wanted in licences.lists(ROOT).values() for r in wanted}
    assert asked <= cells.keys(), 'run `make front`'
    for name in asked: assert cells[name] == [pins[name], *rows[name][2:]], f'{name}: run `make front`'
    assert not [name for name, (_, says, _) in cells.items() if not says or says.startswith('not stated')]

@pytest.mark.parametrize('kind, how', [
    ('GNU Affero General Public License', 'strong'), ('AGPL-3.0-or-later', 'strong'), ('GPL-3.0-only', 'strong'),
    ('MIT AND GPL-2.0', 'strong'), ('EUPL-1.2', 'strong'), ('LGPL-2.1-only', 'weak'), ('MPL-2.0 AND MIT', 'weak'),
    ('GNU Lesser General Public License v3', 'weak'), ('Mozilla Public License 2.0', 'weak'), ('MIT', ''), ('BSD', ''),
    ('Apache-2.0', ''), ('ZPL-2.1', '')])
def test_copyleft_is_found_however_it_is_spelt(kind, how): assert licences.copyleft(kind) == how

def test_what_asks_for_what():
    deep = licences.closure([Requirement('jinja2')])
    assert {'jinja2', 'markupsafe'} <= deep.keys() and 'babel' not in deep, 'an extra that nobody asked for'
    assert 'babel' in licences.closure([Requirement('jinja2[i18n]')])
    with pytest.raises(ValueError, match='no-such-package-of-ours is not installed'):
        licences.closure([Requirement('no-such-package-of-ours')])

def test_sizes_are_those_of_the_wheels(tmp_path):
    size = load_benchmark('setup_size')
    for name, n in (('torch-1-py3-none-any.whl', 5000), ('other-1-py3-none-any.whl', 70)):
        with zipfile.ZipFile(tmp_path/name, 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('a', b'0'*n)
    (tmp_path/'old-1.tar.gz').write_bytes(b'1'*11)
    down, unpacked = size.size_rows(tmp_path)
    assert down['ours']*1e6 == pytest.approx(sum(p.stat().st_size for p in tmp_path.iterdir()))
    assert unpacked['ours']*1e6 == pytest.approx(5081) and unpacked['baseline']*1e6 == pytest.approx(5000)
    assert size.disk_row(tmp_path, 2.)['ours']*1e6 >= 5000 and size.disk_row(tmp_path, 2.)['baseline'] == 2.
    (tmp_path/'torch-1-py3-none-any.whl').unlink()
    with pytest.raises(ValueError, match='0 files named torch'): size.size_rows(tmp_path)
    assert {'torch>=2.9', 'fastapi>=0.116'} <= set(size.requirements(ROOT))
