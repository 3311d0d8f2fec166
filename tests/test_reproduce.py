"`scclm reproduce` goes through every step on files of its own, is killed on the way, and goes on where it was."
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from scclm.reproduce import ReproduceCfg, Step, cost_table, n_finished, note, read_diary, steps_of, tokens_of
from scclm.runs import STAGES

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


def stopped_in(step, run, diary):
    "SIGTERM as soon as the diary says that a step has begun."
    until = time.monotonic() + 900
    while not any(e['step'] == step for e in read_diary(diary)):
        assert run.poll() is None and time.monotonic() < until
        time.sleep(.01)
    run.send_signal(signal.SIGTERM)


def test_killed_on_the_way_it_goes_on_where_it_was(tmp_path):
    raw_files(tmp_path/'raw')
    diary = tmp_path/'runs'/'tiny'/'reproduce.jsonl'
    first = command(tmp_path)
    stopped_in('pretrain', first, diary)
    said = finish(first, tmp_path, 900)
    assert first.returncode == 2 and 'pretrain ended with' in said and 'goes on from here' in said
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
