"`scclm reproduce` goes through every step on files of its own, is killed on the way, and goes on where it was."
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from scclm.reproduce import (
    _TIED, ReproduceCfg, Step, call, cost_table, cost_text, do_step, hold, n_finished, note, plan_of, read_diary,
    reproduce, steps_of, tokens_of)
from scclm.runs import STAGES

ROOT = Path(__file__).resolve().parents[1]
COLOURS = '红橙黄绿青蓝紫黑白灰'
THINGS = ('苹果', '石头', '帽子', '小船', '风筝', '雨伞', '杯子', '房子')


def raw_files(raw:Path):
    "A raw folder with question-answer pairs, preferences and sentences with triples, as their owners write them."
    def lines(name, rows):
        (raw/name).parent.mkdir(parents=True, exist_ok=True)
        (raw/name).write_text('\n'.join(json.dumps(r, ensure_ascii=False) for r in rows) + '\n', encoding='utf-8')
    pairs = [(c, t, k) for c in COLOURS for t in THINGS for k in range(5)]
    lines('belle/rows.jsonl', [dict(instruction=f'第{k + 1}排的{c}色{t}是什么颜色？请写一句完整的话。', input='',
                                    output=f'第{k + 1}排的{t}是{c}色的，看上去和旁边的都不一样。') for c, t, k in pairs])
    lines('prefs/rows.jsonl', [dict(prompt=f'{t}是{c}色的吗？', chosen=f'是的，{t}是{c}色的。', rejected=f'{t}不知道。')
                               for c, t, k in pairs if k == 0])
    def sentences(part):
        return [dict(text=f'{t}{k}号的颜色是{c}色。', spo_list=[dict(subject=f'{t}{k}号', predicate='颜色', object=f'{c}色')])
                for c, t, k in pairs if k in part]
    lines('duie/duie_train.json', sentences((0, 1, 2)))
    lines('duie/duie_dev.json', sentences((4,)))


def command(tmp_path):
    env = os.environ | dict(SCCLM_RUNS=str(tmp_path/'runs'), SCCLM_RAW=str(tmp_path/'raw'), OMP_NUM_THREADS='1')
    args = ['reproduce', '--scale', 'tiny', '--gpu', '0', '--tok-per-s', '7000', '--dry-steps', '2']
    with open(tmp_path/'said', 'w') as said:
        return subprocess.Popen([sys.executable, '-m', 'scclm.cli', *args], env=env, stdout=said,
                                stderr=subprocess.STDOUT)


def finish(run, tmp_path, seconds)->str:
    "Wait for the end; what it said."
    run.wait(seconds)
    return (tmp_path/'said').read_text(encoding='utf-8')


def begun(step, run, diary):
    "Wait until the diary says that a step has begun."
    until = time.monotonic() + 900
    while not any(e['step'] == step for e in read_diary(diary)):
        assert run.poll() is None and time.monotonic() < until
        time.sleep(.01)


def stopped_in(step, run, diary):
    "SIGTERM as soon as the diary says that a step has begun."
    begun(step, run, diary)
    run.send_signal(signal.SIGTERM)


def test_killed_on_the_way_it_goes_on_where_it_was(tmp_path):
    raw_files(tmp_path/'raw')
    diary = tmp_path/'runs'/'tiny'/'reproduce.jsonl'
    first = command(tmp_path)
    stopped_in('pretrain', first, diary)
    said = finish(first, tmp_path, 900)
    assert first.returncode == 2 and 'pretrain ended with 143' in said and 'goes on from here' in said
    second = command(tmp_path)
    said = finish(second, tmp_path, 900)
    assert second.returncode == 0, said[-3000:]
    assert '== clean: done before' in said and '== tokenizer: done before' in said and '== pretrain: scclm' in said
    steps = steps_of(ReproduceCfg(dry_steps=2))
    ends = Counter(e['step'] for e in read_diary(diary) if e['what'] == 'end')
    starts = Counter(e['step'] for e in read_diary(diary) if e['what'] == 'start')
    assert ends == {s.name: 1 for s in steps}
    assert starts == {s.name: 1 for s in steps} | dict(pretrain=2)
    assert all((diary.parent/s.made).exists() for s in steps)
    third = command(tmp_path)
    said = finish(third, tmp_path, 900)
    assert third.returncode == 0 and said.count('done before') == len(steps)
    shutil.rmtree(diary.parent/'ie') # as someone who wants it otherwise: what comes after is trained again, too
    fourth = command(tmp_path)
    said = finish(fourth, tmp_path, 900)
    assert fourth.returncode == 0 and said.count('done before') == 5, said[-3000:]
    for name in ('ie', 'ie_scratch'): assert said.split(f'== {name}: scclm')[1].split('== ')[0].count('step=2 ') > 0


def test_a_killed_parent_takes_its_child_along_and_leaves_a_lock_that_is_free(tmp_path):
    raw_files(tmp_path/'raw')
    folder = tmp_path/'runs'/'tiny'
    first = command(tmp_path)
    begun('clean', first, folder/'reproduce.jsonl')
    refused = subprocess.run([sys.executable, '-m', 'scclm.cli', 'reproduce', '--scale', 'tiny'], capture_output=True,
                             text=True, env=os.environ | dict(SCCLM_RUNS=str(tmp_path/'runs')), timeout=300)
    assert refused.returncode == 2 and f'scclm reproduce of pid {first.pid} on ' in refused.stderr
    assert Counter(e['what'] for e in read_diary(folder/'reproduce.jsonl') if e['step'] == 'clean')['start'] == 1
    while not (children := psutil.Process(first.pid).children()): time.sleep(.01) # between two steps there is none
    first.kill()
    first.wait(60)
    assert len(children) == 1 and psutil.wait_procs(children, timeout=60)[1] == []
    with hold(folder): assert f'pid {os.getpid()} on' in (folder/'reproduce.pid').read_text()
    assert not (folder/'reproduce.pid').exists()


STARTER = '''import os, subprocess, sys
child = subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())])
print(child.pid, flush=True)
child.wait()'''


@pytest.mark.parametrize('condition', ["sys.platform == 'linux'", 'False'], ids=['here', 'elsewhere'])
def test_a_child_ends_when_its_parent_is_killed(condition):
    code = _TIED.split('from scclm.cli')[0].replace("sys.platform == 'linux'", condition)
    code += "print('ready', flush=True)\ntime.sleep(300)"
    parent = subprocess.Popen([sys.executable, '-c', STARTER, code], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    assert parent.stdout.readline() == 'ready\n' and child.is_running()
    parent.kill()
    parent.wait(60)
    child.wait(60)


def test_a_child_whose_parent_is_gone_does_not_begin():
    assert subprocess.run([sys.executable, '-c', _TIED, '1', '--help'], capture_output=True).returncode == 143


def test_a_lock_is_one_processs_and_that_of_a_dead_one_is_taken_over(tmp_path, capsys):
    with hold(tmp_path/'tiny'):
        with pytest.raises(RuntimeError, match=rf'of pid {os.getpid()} on .*wait for it, stop it, or set another'):
            with hold(tmp_path/'tiny'): pass
        assert (tmp_path/'tiny'/'reproduce.pid').exists(), 'who was refused leaves the lock alone'
    (tmp_path/'tiny'/'reproduce.pid').write_text('pid 12345 on laptop')
    with hold(tmp_path/'tiny'): assert 'the lock of pid 12345 on laptop, which was killed' in capsys.readouterr().out


@pytest.mark.parametrize('how, code', [
    ('sys.exit(3)', 3), ('os.kill(os.getpid(), 15)', 143), ('os.kill(os.getpid(), 9)', 137)])
def test_what_a_signal_ended_is_told_as_a_shell_tells_it(how, code):
    assert call([sys.executable, '-c', f'import os, sys; {how}']) == code


def test_the_step_that_failed_is_named_with_its_code(tmp_path):
    step = Step('card', ('card', '--no-such-option'), '')
    with pytest.raises(RuntimeError, match='card ended with 2 after .* the same command goes on'):
        do_step(step, tmp_path/'tiny'/'reproduce.jsonl', dict(os.environ))
    assert [e['what'] for e in read_diary(tmp_path/'tiny'/'reproduce.jsonl')] == ['start', 'stop']


def test_a_missing_raw_folder_is_refused_before_anything_else(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path/'runs'))
    (tmp_path/'file').write_text('')
    for name in ('nowhere', 'file'):
        monkeypatch.setenv('SCCLM_RAW', str(tmp_path/name))
        for plan_only in (True, False):
            with pytest.raises(FileNotFoundError, match=f'SCCLM_RAW=.*{name}: expected a folder of raw files'):
                reproduce(ReproduceCfg(scale='tiny', plan_only=plan_only))
    assert capsys.readouterr().out == '' and not (tmp_path/'runs').exists()


def said_hours(text):
    "The total and its range as `reproduce` says them."
    line, = re.findall(r'^in all .*$', text, re.M)
    return [float(x) for x in re.findall(r'[\d.]+', line.split(' at ')[0])]


def test_what_it_costs_is_one_total_with_its_range(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path/'runs'))
    monkeypatch.delenv('SCCLM_RAW', raising=False)
    assert reproduce(ReproduceCfg(scale='base', plan_only=True)) is None
    text = capsys.readouterr().out
    hours, low, high = said_hours(text)
    assert 'sum' in text and hours == round(float(re.search(r'^sum .* ([\d.]+)$', text, re.M)[1]))
    assert low < hours < high and text.count('hours') == 2, 'the head of the table, and one total'
    assert 'not counted: download, cleaning' in text and 'card.md' not in text
    for name in ('README.md', 'README.en.md'):
        marks = dict(re.findall(r'<!--=(base_\w+)-->(.*?)<!--=-->', (ROOT/name).read_text(encoding='utf-8')))
        assert (float(marks['base_all']), marks['base_all_range']) == (hours, f'{low:.0f}–{high:.0f}'), 'make front'


def test_sizes_are_those_of_the_scales_own_vocabulary(tmp_path, monkeypatch):
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path/'runs'))
    sizes = {scale: plan_of(ReproduceCfg(), scale)['n_params'] / 1e6 for scale in ('tiny', 'small', 'mini', 'base')}
    assert {scale: round(n, 1) for scale, n in sizes.items()} == dict(tiny=3.2, small=9.9, mini=26.2, base=187.7)
    assert 'largest vocabulary it may get, 10,000' in cost_text(ReproduceCfg(), plan_of(ReproduceCfg(), 'small'))


def test_a_small_scale_is_priced_for_this_machine_and_a_large_one_for_a_card(tmp_path, monkeypatch):
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path/'runs'))
    here, asked = plan_of(ReproduceCfg(), 'tiny'), plan_of(ReproduceCfg(gpu=24.), 'tiny')
    text = cost_text(ReproduceCfg(), here)
    assert 'hours' not in here and 'give --tok-per-s' in text and '--run' not in text and 'rtx' not in text
    assert 'rtx3090' in cost_text(ReproduceCfg(), asked) and 'hours' in plan_of(ReproduceCfg(), 'base')
    assert 'rtx4090' in cost_text(ReproduceCfg(), plan_of(ReproduceCfg(chip='rtx4090'), 'tiny'))


@pytest.mark.parametrize('scale', ['tiny', 'base'])
def test_a_dry_run_costs_what_its_steps_read(scale):
    read = tokens_of(scale, 100., ReproduceCfg(dry_steps=2))
    whole = tokens_of(scale, 100., ReproduceCfg())
    assert all(0 < read[name] < whole[name] / 50 for name in whole)


def test_every_step_is_a_command_there_is():
    for step in steps_of(ReproduceCfg(fetch='base')): assert step.args[0] in STAGES


@pytest.mark.parametrize('scale', ['tiny', 'small', 'mini', 'base'])
def test_the_sum_is_the_sum_of_the_steps(scale):
    cfg = ReproduceCfg(scale=scale)
    table = cost_table(cfg, dict(scale=scale, tok_per_row=[30., 70.], tok_per_s=1000.))
    read = tokens_of(scale, 100., cfg)
    assert table['million tokens']['sum'] == pytest.approx(sum(read.values()) / 1e6, abs=.01)
    assert table.hours['sum'] == pytest.approx(sum(read.values()) / 1000 / 3600, abs=.01)
    assert set(read) == {s.name for s in steps_of(cfg) if s.made.endswith('/model')}


def test_hours_are_absent_without_a_speed():
    table = cost_table(ReproduceCfg(), dict(scale='base', tok_per_row=[30., 70.]))
    assert list(table) == ['million tokens']


def test_a_step_that_a_crash_cut_short_is_not_finished(tmp_path):
    diary, step = tmp_path/'tiny'/'reproduce.jsonl', Step('card', ('card',), 'card.json')
    note(diary, step, 'start')
    at = diary.stat().st_size
    note(diary, step, 'end')
    (diary.parent/'card.json').write_text('{}')
    whole = diary.read_bytes()
    assert n_finished([step], diary) == 1
    for cut in range(at, len(whole.rstrip())):
        diary.write_bytes(whole[:cut])
        assert n_finished([step], diary) == 0
        note(diary, step, 'end') # what is written after the crash counts
        assert n_finished([step], diary) == 1


@pytest.mark.parametrize('seed', range(20))
def test_what_is_finished_is_a_beginning(tmp_path, seed):
    "Against the definition: all of them ended, each after the one before, with nothing of an earlier one since."
    rng, diary = random.Random(seed), tmp_path/'tiny'/'reproduce.jsonl'
    steps = [Step(name, (name,), '') for name in 'abcd']
    ends = {}
    for k in range(12):
        step, what = rng.choice(steps), rng.choice(('start', 'end', 'stop'))
        note(diary, step, what)
        if what == 'end': ends[step.name] = k
        want = max(n for n in range(5) if all(s.name in ends for s in steps[:n])
                   and sorted(ends[s.name] for s in steps[:n]) == [ends[s.name] for s in steps[:n]])
        assert n_finished(steps, diary) == want
