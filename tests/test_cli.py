"""The command line: every field of every stage is an option with its comment, and what a user does wrong is one sentence."""
import dataclasses, inspect, re
from importlib import import_module

import pytest

from scclm.cli import STAGES, main, summary, usage

def comments(cls):
    "Field -> comment, read from the source of the dataclass and of those it inherits from."
    out = {}
    for c in cls.__mro__[::-1]:
        if dataclasses.is_dataclass(c): out |= dict(re.findall(r'^\s+(\w+):[^#\n]*#\s*(.+)$', inspect.getsource(c), re.M))
    return out

@pytest.mark.parametrize('name', STAGES)
def test_help_lists_every_field_with_its_comment(name, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path)); monkeypatch.setenv('COLUMNS', '300')
    with pytest.raises(SystemExit) as e: main([name, '--help'])
    assert e.value.code == 0
    said = re.sub(r'\W+', '', capsys.readouterr().out)
    stage = STAGES[name]
    preset = getattr(import_module(f'scclm.{stage.module}'), stage.preset)()
    notes = comments(type(preset))
    for field in dataclasses.fields(preset):
        assert field.name.replace('_', '') in said.replace('_', ''), field.name
        assert re.sub(r'\W+', '', notes[field.name])[:40] in said, f'{name}: the comment of {field.name} is not in the help'

def test_usage_names_every_stage(capsys):
    assert main([]) == 0 and all(re.search(rf'^  {name} +\S', usage(), re.M) for name in STAGES)

def test_unknown_stage_and_option(capsys):
    assert main(['sfft']) == 2 and "'sfft' is not a stage: expected one of clean, tokenizer" in capsys.readouterr().err
    with pytest.raises(SystemExit) as e: main(['sft', '--steqs', '3'])
    assert e.value.code == 2 and 'steqs' in capsys.readouterr().err

@pytest.mark.parametrize('args, words', [
    (['pretrain'], 'run nbs/'), (['sft'], '05_pretrain'), (['dpo'], '06_sft'), (['ie'], '06_sft'), (['merge'], '07_dpo'),
    (['evaluate', '--model', 'nowhere'], 'nowhere'), (['sft', '--lr', '-1'], "lr=-1.0: expected > 0"), (['card', '--folder', 'nowhere'], 'nowhere')])
def test_user_errors_are_one_sentence(args, words, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path)); monkeypatch.setenv('SCCLM_SCALE', 'tiny')
    try: code = main(args)
    except SystemExit as e: code = e.code
    err = capsys.readouterr().err
    assert code == 2 and words in err and 'Traceback' not in err

def test_a_stopped_stage_says_so_in_its_exit_code():
    class Stopped: done, stopped = False, 'SIGTERM'
    assert summary('dpo', Stopped()) == 143
