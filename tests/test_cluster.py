"Cleaning on a Ray cluster: two nodes, one killed midway; the rows, the rejects and the bytes of one machine."
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from itertools import combinations
from pathlib import Path
from threading import Thread

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from raw_toys import put, put_lines, put_pairs, tree

from scclm.cluster import clean_block, clean_on_ray, main, pairs_in_part, patient, ray_env, ray_session
from scclm.data_cleaning import clean
from scclm.runs import run_path
from scclm.sources import CleanCfg

ROOT = Path(__file__).resolve().parents[1]
WORDS = '河流从雪山上下来经过三座城市两岸种着水稻和油菜春天有许多候鸟停在浅滩秋天渔民划着小船收网'
NODE = dict(num_cpus=1, object_store_memory=80*2**20)

def text(rng:random.Random, n:int)->str: return ''.join(rng.choices(WORDS, k=n)) + '。'

def make_rows(rng:random.Random, n:int, seen:list)->list[dict]:
    "Rows of which every seventh repeats an earlier one: whole, with another ending, or with other punctuation."
    rows = []
    for _ in range(n):
        ask, answer = f'请说说第{len(seen)}段：{text(rng, 10)}', text(rng, 70)
        kind = len(seen) % 21
        if seen and kind == 7: ask, answer = rng.choice(seen)
        if seen and kind == 14: ask, answer = seen[-1][0], seen[-1][1][:-2] + '呢。'
        if seen and kind == 0: ask, answer = (t.replace('。', '！') for t in rng.choice(seen))
        seen.append((ask, answer))
        rows.append(dict(prompt=ask, response=answer))
    return rows

def make_raw(raw:Path)->Path:
    "Some 600 rows in 36 files of several formats: exam, pretraining, SFT, an archive, broken lines, an unknown file."
    rng, seen = random.Random(5), []
    for k in range(30): put_lines(raw/'pretrain'/f'{k:02}.jsonl', make_rows(rng, 16, seen))
    rows = make_rows(rng, 40, seen)
    put_pairs(raw/'pretrain'/'t.parquet', *([r[c] for r in rows] for c in ('prompt', 'response')), size=10)
    put(raw/'pretrain'/'z.jsonl.gz', gzip.compress('\n'.join(map(json.dumps, make_rows(rng, 16, seen))).encode()))
    put(raw/'pretrain'/'broken.jsonl', '{"prompt": "半行", "respon\n' + json.dumps(make_rows(rng, 1, seen)[0]))
    put_lines(raw/'sft'/'s.jsonl', [*make_rows(rng, 30, seen), *(dict(prompt=a, response=b) for a, b in seen[40:60])])
    put_lines(raw/'heldout'/'q.jsonl', [dict(prompt=a, response=b, kind='段') for a, b in seen[3:9]])
    put(raw/'notes.xyz', 'nobody can read this')
    return raw

def rows_of(folder:Path)->dict[str, Counter]:
    "The rows of every file, without their order."
    return {p.name: Counter(map(tuple, pq.read_table(p).to_pandas().fillna('').values.tolist()))
            for p in sorted(folder.glob('*.parquet'))}

def one_machine(cfg:CleanCfg, runs:Path, monkeypatch)->tuple[dict, Path]:
    "Report and folder of `clean`."
    monkeypatch.setenv('SCCLM_RUNS', str(runs))
    return clean(cfg), run_path('data')

class Killer(Thread):
    "Kills a node while one of its workers is at a task of a kind, in the middle of the work."
    def __init__(self, cluster, node, spool, wanted):
        super().__init__(daemon=True)
        self.cluster, self.node, self.spool, self.wanted = cluster, node, spool, wanted
        self.task, self.done, self.stop = '', 0, False
        self.start()

    def tasks(self):
        "What the node's workers are at."
        raylet = psutil.Process(self.node.all_processes['raylet'][0].process.pid)
        for p in raylet.children():
            with suppress(psutil.Error): yield (p.cmdline() or [''])[0].removeprefix('ray::')

    def run(self):
        while not self.stop:
            self.done = len([*self.spool().glob('*.keys')]) if self.spool() else 0
            at = [t for t in self.tasks() if any(w in t for w in self.wanted)]
            if at and self.done >= 5:
                self.task = at[0]
                self.cluster.remove_node(self.node, allow_graceful=False)
                return
            time.sleep(.005)

def spool_below(data:Path)->Path|None:
    "The spool of the run that is writing below a folder."
    spool = data.with_name('.data.work')/'spool'
    return spool if spool.exists() else None

def test_a_node_dies_and_the_rows_are_those_of_one_machine(tmp_path, monkeypatch):
    "Two nodes; one is killed while it cleans, another while it looks for near duplicates."
    cfg = CleanCfg(raw=make_raw(tmp_path/'raw'), workers=1, progress=False)
    want, one = one_machine(cfg, tmp_path/'one', monkeypatch)
    assert min(want['duplicates'].values()) > 10 and want['leaks'] > 0 and want['splits']['sft_train']
    kinds = dict(cleaning=['clean_block'], grouping=['Shuffle', 'keys_of_chunks', '_in_part'])
    with ray_env():
        from ray.cluster_utils import Cluster
        cluster = patient(partial(Cluster, True, head_node_args=NODE | dict(include_dashboard=False)))
        try:
            for name, tasks in kinds.items():
                node = patient(partial(cluster.add_node, **NODE))
                monkeypatch.setenv('SCCLM_RUNS', str(tmp_path/name))
                killer = Killer(cluster, node, partial(spool_below, run_path('data')), tasks)
                got = clean_on_ray(cfg, cluster.address)
                killer.stop = True
                killer.join(60)
                assert killer.task, f'nothing was killed while {name}'
                if name == 'cleaning': assert 5 <= killer.done < len(want['files'])
                assert rows_of(run_path('data')) == rows_of(one) # rejects.parquet is one of them
                assert got == want and tree(run_path('data')) == tree(one)
        finally:
            cluster.shutdown()

def test_odd_inputs_are_those_of_one_machine(tmp_path, monkeypatch):
    "No duplicates, nothing kept, one row; a relative path. All with one Ray of one machine."
    rng = random.Random(0)
    raws = dict(none_alike=[dict(prompt=text(rng, 20), response=text(rng, 60)) for _ in range(20)],
                nothing_kept=[dict(prompt='', response='')]*3, one_row=[dict(prompt='一', response=text(rng, 50))],
                all_equal=[dict(prompt='一样', response='都是这一句话。')]*40)
    for name, rows in raws.items(): put_lines(tmp_path/name/'a.jsonl', rows)
    monkeypatch.chdir(tmp_path)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with ray_session() as ray:
        for name in raws:
            cfg = CleanCfg(raw=Path(name), workers=1, progress=False)
            want, one = one_machine(cfg, Path(f'{name}-one'), monkeypatch)
            monkeypatch.setenv('SCCLM_RUNS', f'{name}-many')
            assert clean_on_ray(cfg) == want, name
            assert tree(run_path('data')) == tree(one), name
        assert ray.is_initialized() # the one that was there stays
    assert not ray.is_initialized() and signal.getsignal(signal.SIGTERM) == on_sigterm

@pytest.mark.parametrize('parts', [1, 2, 7])
def test_grouping_by_remainder_equals_brute_force(parts):
    "Every two rows of a small group share a drawer; rows come in any order."
    rng = np.random.default_rng(parts)
    key, row = rng.integers(0, 300, 400, dtype=np.uint64), rng.permutation(400)
    found = set()
    for part in range(parts):
        mine = key % np.uint64(parts) == part
        out = pairs_in_part(dict(key=key[mine], row=row[mine]), parts)
        assert (out['part'] == out['first'] % parts).all()
        found |= set(zip(out['first'].tolist(), out['second'].tolist()))
    drawers = {}
    for k, r in zip(key.tolist(), row.tolist()): drawers.setdefault(k, []).append(r)
    assert found == {pair for rows in drawers.values() for pair in combinations(sorted(rows), 2)}

def test_nothing_else_needs_ray():
    "The module itself loads without it, and says what to install where it is missing."
    code = """if True:
        import sys
        sys.modules['ray'] = None
        import scclm.cluster
        assert not any(name.startswith('ray.') for name in sys.modules)
        sys.exit(scclm.cluster.main(['--address', 'auto']))"""
    env = os.environ | dict(PYTHONPATH=str(ROOT))
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 2 and "expected pip install 'scclm[ray]'" in done.stderr, done.stderr

def test_a_folder_that_is_not_shared_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='expected storage that all machines share'):
        clean_block(dict(name='a'), {}, {}, str(tmp_path/'elsewhere'))

def test_an_address_where_nobody_listens_is_said_at_once(tmp_path, monkeypatch, capsys):
    put_lines(tmp_path/'raw'/'a.jsonl', [dict(prompt='一', response='二')])
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path/'runs'))
    assert main(['--address', '127.0.0.1:1', '--raw', str(tmp_path/'raw')]) == 2
    assert 'scclm.cluster: no Ray at 127.0.0.1:1: ' in capsys.readouterr().err

def test_bad_options(capsys):
    with pytest.raises(SystemExit) as e: main(['--no-such-option', '1'])
    assert e.value.code == 2
    with pytest.raises(SystemExit) as e: main(['--help'])
    assert e.value.code == 0 and '--address' in capsys.readouterr().out
