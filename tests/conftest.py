"Fixtures that several test files share; the scripts of .ci can be imported by their bare names."
import sys
from pathlib import Path

import pytest
import torch
from processes import gone_afterwards
from trainer_toys import kill, make_course_runs

from scclm.tokenizer import load_tokenizer

sys.path.append(str(Path(__file__).resolve().parents[1]/'.ci'))

@pytest.fixture(autouse=True)
def no_process_left():
    "Whatever a test starts is gone when it ends, also when it fails."
    with gone_afterwards(): yield

@pytest.fixture(scope='module')
def one_thread():
    "For small models: two threads would only wait for each other, and a fork has only one."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with a little data and a tokenizer."
    home = tmp_path_factory.mktemp('toy')
    kill.prepare(home)
    return home

@pytest.fixture
def runs(tmp_path, monkeypatch):
    "A runs folder of its own at tiny; the path of its data."
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path/'runs'))
    monkeypatch.setenv('SCCLM_SCALE', 'tiny')
    return tmp_path/'runs'/'tiny'/'data'

@pytest.fixture
def tok(home): return load_tokenizer(home/'tokenizer')

@pytest.fixture
def course_runs(home, tmp_path): return make_course_runs(home, tmp_path/'runs')
