"Cleaning that is killed, or finds the disk full, goes on with the blocks it has and ends with the same bytes."
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scclm.clean_stage import block_name, spool_block, workplace
from scclm.readers import plan_blocks
from scclm.sources import CleanCfg, find_sources

WORDS = '春夏秋冬山水花鸟风雨云月江河湖海东西南北早晚远近高低红黄蓝绿'


def write_raw(folder:Path, files:int=24, rows:int=400):
    "Files of made-up rows; some rows stand in two files, and each file has a broken line."
    folder.mkdir(parents=True)
    rng = random.Random(5)
    def text(n): return ''.join(rng.choices(WORDS, k=n))
    shared = [dict(prompt=text(8) + '？', response=text(30) + '。') for _ in range(50)]
    for k in range(files):
        own = [dict(prompt=text(8) + '？', response=text(30) + '。') for _ in range(rows)]
        lines = [json.dumps(r, ensure_ascii=False) for r in own + rng.sample(shared, 10)]
        (folder/f'{k:02}.jsonl').write_text('\n'.join([*lines, '{"prompt": 坏']) + '\n', encoding='utf-8')


DIES = """
import os, runpy, signal, sys, threading
place, seconds = sys.argv.pop(1), float(sys.argv.pop(1))
def die(): os.killpg(0, signal.SIGKILL)
def watch(event, args):
    if event not in ('open', 'os.mkdir', 'os.remove', 'os.rename'): return
    if place not in [os.path.basename(str(name)) for name in args[:2]]: return
    if not seconds: die()
    later = threading.Timer(seconds, die)
    later.daemon = True
    later.start()
sys.addaudithook(watch)
runpy.run_module('scclm.cli', run_name='__main__')
"""


def start(home:Path, runs:str, workers:int=2, dies:tuple=(), **more)->subprocess.Popen:
    """`scclm clean` in a process of its own. `dies`: (name of a file or folder, seconds), the process and its workers
    are killed where the process is about to open, make, remove or rename it, or so many seconds later."""
    env = os.environ | dict(SCCLM_RUNS=str(home/runs), SCCLM_RAW=str(home/'raw'), SCCLM_SCALE='tiny')
    what = ['-c', DIES, *map(str, dies)] if dies else ['-m', 'scclm.cli']
    command = [sys.executable, *what, 'clean', '--workers', str(workers)]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, start_new_session=True, **more)


def hashes(data:Path)->dict[str, str]:
    "Every file of a finished data folder."
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(data.iterdir())}


def finished_blocks(home:Path, runs:str)->set[str]:
    "Blocks that a stopped run left behind whole."
    return {p.name for p in (home/runs/'tiny'/'.data.work'/'spool').glob('*.json') if p.name != 'spool.json'}


@pytest.fixture(scope='module')
def home(tmp_path_factory)->Path:
    "Raw files, and the folder that a run without any trouble makes of them."
    home = tmp_path_factory.mktemp('clean')
    write_raw(home/'raw')
    whole = start(home, 'whole')
    assert whole.wait(120) == 0, whole.stderr.read()
    return home


def kill_in_a_block(home:Path, more:int, seconds:float)->subprocess.Popen:
    "A run that is killed once so many more blocks are finished and some time has passed."
    enough = min(24, len(finished_blocks(home, 'killed')) + more)
    run, end = start(home, 'killed'), time.monotonic() + 60
    while len(finished_blocks(home, 'killed')) < enough and run.poll() is None and time.monotonic() < end:
        time.sleep(.002)
    time.sleep(seconds)
    if run.poll() is None: os.killpg(run.pid, signal.SIGKILL)
    return run


def what_is_left(home:Path, run:subprocess.Popen, kept:set[str])->set[str]:
    "The finished blocks after a kill: none is ever lost, and nothing half-made has the final name."
    assert run.wait(120) == -signal.SIGKILL, run.stderr.read()
    now = finished_blocks(home, 'killed')
    assert kept <= now and not (home/'killed'/'tiny'/'data').exists()
    return now


# What the process touches after the last block, in this order: duplicates, splits, the report, the final name.
LATER = ['spool.json', '0-0.pairs', '7-0.pairs', '0.near', 'buckets', 'sft_train', '0.bucket', 'train.parquet',
         'report.json', 'data']


def test_twenty_kills_and_the_same_bytes(home):
    rng, kept = random.Random(1), set()
    for _ in range(7): # the first blocks, and those that a stopped run left
        kept = what_is_left(home, kill_in_a_block(home, rng.randint(0, 2), rng.uniform(0, .3)), kept)
    for _ in range(3): # the rest of the blocks, then any moment of the search for duplicates, its workers too
        run = start(home, 'killed', dies=('spool.json', rng.uniform(.01, .3)))
        kept = what_is_left(home, run, kept)
    for place in LATER: kept = what_is_left(home, start(home, 'killed', workers=1, dies=(place, 0)), kept)
    last = start(home, 'killed')
    assert last.wait(120) == 0, last.stderr.read()
    assert len(kept) == 24 and hashes(home/'killed'/'tiny'/'data') == hashes(home/'whole'/'tiny'/'data')
    assert not (home/'killed'/'tiny'/'.data.work').exists(), 'the work is removed at the end'


def test_a_full_disk_leaves_what_was_cleaned(home):
    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    full = start(home, 'full', preexec_fn=small_files)
    said = full.communicate(timeout=120)[1]
    assert full.returncode != 0 and 'scclm clean: ' in said and not (home/'full'/'tiny'/'data').exists()
    left = finished_blocks(home, 'full')
    again = start(home, 'full')
    assert again.wait(120) == 0, again.stderr.read()
    assert len(left) > 0 and hashes(home/'full'/'tiny'/'data') == hashes(home/'whole'/'tiny'/'data')


def test_finished_blocks_are_not_cleaned_again(home, tmp_path):
    sources, _ = find_sources(home/'raw')
    block, cfg = next(plan_blocks(sources[0])), dict(progress=False)
    name = block_name(block, CleanCfg(**cfg))
    first = spool_block(name, block, cfg, str(tmp_path))
    files = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert spool_block(name, block, cfg, str(tmp_path)) == first
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == files
    (tmp_path/f'{name}.json').unlink() # as a kill before the end leaves it
    assert spool_block(name, block, cfg, str(tmp_path)) == first


def test_a_changed_file_setting_or_place_is_another_block(tmp_path):
    write_raw(tmp_path/'raw', files=1, rows=50)
    def name(**cfg): return block_name(next(plan_blocks(find_sources(tmp_path/'raw')[0][0])), CleanCfg(**cfg))
    first, path = name(), tmp_path/'raw'/'00.jsonl'
    assert name(workers=7, progress=False) == first != name(max_response=20)
    text = path.read_text(encoding='utf-8')
    time.sleep(.01)
    path.write_text(text.replace('春', '夏'), encoding='utf-8') # as long as before
    assert name() != first


def test_two_at_once_is_one_too_many(tmp_path):
    with workplace(tmp_path/'work'), pytest.raises(RuntimeError, match='another process is cleaning here'):
        with workplace(tmp_path/'work'): pass
    assert not (tmp_path/'work').exists()


def test_work_stays_after_a_failure(tmp_path):
    with pytest.raises(ValueError), workplace(tmp_path/'work') as folder:
        (folder/'done').write_text('1')
        raise ValueError
    assert (tmp_path/'work'/'done').exists()
