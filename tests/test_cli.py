"""The command line: every field of every stage is an option with its comment; a user's mistake is one sentence."""
import dataclasses
import inspect
import os
import re
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
from processes import default_sigint

from scclm.cli import library, main, summary, usage
from scclm.runs import SCALES, STAGES, checkout_root

@pytest.mark.parametrize('stage', STAGES.values(), ids=STAGES)
def test_the_stage_table_names_what_exists(stage):
    "Notebook, module, functions: and the module is exported from that very notebook."
    notebook = checkout_root()/'nbs'/f'{stage.notebook}.ipynb'
    assert f'#| default_exp {stage.module}"' in notebook.read_text(encoding='utf-8')
    for name in (stage.preset, stage.run, *([stage.tell] if stage.tell else [])):
        assert library(stage, name) is getattr(import_module(f'scclm.{stage.module}'), name)
    assert dataclasses.is_dataclass(library(stage, stage.preset)())
    assert STAGES[stage.name] is stage and re.fullmatch('[a-z]+', stage.name)

def comments(cls):
    "Field -> comment, read from the source of the dataclass and of those it inherits from."
    out = {}
    for c in cls.__mro__[::-1]:
        if not dataclasses.is_dataclass(c): continue
        out |= dict(re.findall(r'^\s+(\w+):[^#\n]*#\s*(.+)$', inspect.getsource(c), re.M))
    return out

@pytest.mark.parametrize('name', STAGES)
def test_help_lists_every_field_with_its_comment(name, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path))
    monkeypatch.setenv('COLUMNS', '300')
    with pytest.raises(SystemExit) as e: main([name, '--help'])
    assert e.value.code == 0
    said = re.sub(r'\W+', '', capsys.readouterr().out)
    stage = STAGES[name]
    preset = library(stage, stage.preset)()
    notes = comments(type(preset))
    for field in dataclasses.fields(preset):
        assert field.name.replace('_', '') in said.replace('_', ''), field.name
        assert re.sub(r'\W+', '', notes[field.name])[:40] in said, f'{name}: the comment of {field.name} is missing'

def test_usage_names_every_stage(capsys):
    assert main([]) == main(['-h']) == main(['--help']) == 0
    assert capsys.readouterr().out == 3*(usage() + '\n')
    for s in STAGES.values(): assert re.search(rf'^  {s.name} +{re.escape(s.does)}$', usage(), re.M)

def test_usage_names_every_scale(monkeypatch):
    assert 'SCCLM_SCALE (tiny, small, mini, base)' in usage()
    monkeypatch.setattr('scclm.cli.SCALES', (*SCALES, 'huge'))
    assert 'SCCLM_SCALE (tiny, small, mini, base, huge)' in usage()

def test_help_loads_no_pytorch():
    code = "import sys; from scclm.cli import main; print(main(['--help']), main(['nonsense']), 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert run.stdout.splitlines()[-1] == '0 2 False'

def test_unknown_stage_and_option(capsys):
    assert main(['sfft']) == 2
    assert "'sfft' is not a stage: expected one of fetch, clean, tokenizer" in capsys.readouterr().err
    with pytest.raises(SystemExit) as e: main(['sft', '--steqs', '3'])
    assert e.value.code == 2 and 'steqs' in capsys.readouterr().err

MISTAKES = [
    (['tokenizer'], '00_data_cleaning'), (['pretrain'], '01_tokenizer'), (['sft'], '05_pretrain'), (['dpo'], '06_sft'),
    (['ie'], '06_sft'), (['merge'], 'adapters'), (['chat'], '06_sft'), (['evaluate', '--model', 'nowhere'], 'nowhere'),
    (['sft', '--lr', '-1'], 'lr=-1.0: expected > 0'), (['chat', '--top-p', '3'], 'top_p=3.0 is not valid'),
    (['card', '--folder', 'nowhere'], 'nowhere')]

@pytest.mark.parametrize('args, words', MISTAKES, ids=[' '.join(args) for args, _ in MISTAKES])
def test_user_errors_are_one_sentence(args, words, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path))
    monkeypatch.setenv('SCCLM_SCALE', 'tiny')
    try: code = main(args)
    except SystemExit as e: code = e.code
    err = capsys.readouterr().err
    assert code == 2 and words in err and 'Traceback' not in err

def test_a_traceback_is_there_for_who_asks(monkeypatch, tmp_path):
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path))
    monkeypatch.setenv('SCCLM_TRACEBACK', '1')
    with pytest.raises(FileNotFoundError, match='05_pretrain'): main(['sft'])

@dataclasses.dataclass
class Result:
    "As much of a training run's result as the command looks at."
    done:bool # all steps
    stopped:str|None # the signal's name
    out:Path|None=None # its folder

@pytest.mark.parametrize('stopped,code', [('SIGTERM', 143), ('SIGINT', 130)])
def test_a_stopped_stage_says_so_in_its_exit_code(stopped, code, capsys):
    assert summary('dpo', Result(False, stopped)) == code
    assert capsys.readouterr().out == ''

def test_what_a_stage_has_to_say(tmp_path, capsys):
    (tmp_path/'figures.json').write_text('{"问": "答"}', encoding='utf-8')
    assert summary('dpo', Result(True, None, tmp_path)) == 0 and capsys.readouterr().out == '{"问": "答"}\n'
    assert summary('merge', tmp_path) == 0 and capsys.readouterr().out == f'{tmp_path}\n'
    assert summary('tokenizer', range(12_345)) == 0 and capsys.readouterr().out == '12,345 tokens\n'

if os.name == 'posix':
    def test_ctrl_c_is_one_word_and_130(tmp_path):
        "Caught in the middle of a stage: `card` reads a file that never ends, a named pipe."
        os.mkfifo(tmp_path/'course.json')
        code = 'import sys; from scclm.cli import main; sys.exit(main())'
        command = [sys.executable, '-c', code, 'card', '--folder', str(tmp_path)]
        with default_sigint(): run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        pipe = open_for_writing(tmp_path/'course.json', run)
        run.send_signal(signal.SIGINT)
        assert run.communicate(timeout=60)[1] == 'interrupted\n' and run.returncode == 130
        os.close(pipe)

    def open_for_writing(fifo, run, seconds=120):
        "The writing end of a named pipe, as soon as the process reads it."
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert run.poll() is None, run.stderr.read()
            try: return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
            except OSError: time.sleep(.05)
        raise AssertionError('the stage never read its file')
