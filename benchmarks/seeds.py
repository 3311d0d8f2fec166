"""The whole tiny course with several seeds: how far do the figures of chapters 05, 06, 07 and 09 move?

    python benchmarks/seeds.py [--seeds 3]

Needs a finished `make course` at tiny: that run is seed 0. Every other seed trains the model again from nothing, with
another order of the rows and other first weights, in a runs folder of its own that is removed afterwards; it calls the
`scclm` command, one stage after the other. `runs` in the result lists the seeds in order.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from report import row, write

from scclm.dpo import LORA
from scclm.runs import require, run_path

def lora_args()->Iterator[str]:
    "The command-line arguments of the LoRA preset."
    for field, value in LORA['tiny'].items(): yield from (f"--{field.replace('_', '-')}", str(value))

STAGES = (('pretrain',), ('sft',), ('dpo',), ('dpo', *lora_args()), ('ie',), ('ie', '--start', 'scratch'))

def scclm(runs:Path, *args:str):
    "One call of the command in a process of its own; leaves with what it complained about if it fails."
    env = os.environ | dict(SCCLM_RUNS=str(runs), SCCLM_SCALE='tiny')
    done = subprocess.run([sys.executable, '-m', 'scclm.cli', *args], env=env, capture_output=True, text=True)
    if done.returncode: sys.exit(f"scclm {' '.join(args)}: {done.stderr[-2000:]}")

def figures(scale:Path)->dict:
    "Stage -> its figures.json."
    return {p.parent.name: json.loads(p.read_text(encoding='utf-8')) for p in scale.glob('*/figures.json')}

def course(runs:Path, seed:int)->dict:
    "All training stages with one seed; figures.json of each."
    for name in ('data', 'tokenizer'): shutil.copytree(require(run_path(name), 'tokenizer'), runs/'tiny'/name)
    for stage in STAGES: scclm(runs, *stage, '--seed', str(seed))
    return figures(runs/'tiny')

def course_alone(seed:int)->dict:
    "`course` in a folder that is removed afterwards; says how it went."
    with tempfile.TemporaryDirectory() as d: found = course(Path(d), seed)
    print(seed, json.dumps({stage: f.get('exact_heldout') for stage, f in found.items()}), flush=True)
    return found

def each(found:list[dict], stage:str, *keys:str)->list[float]:
    "One figure of a stage, of every seed."
    out = []
    for value in (f[stage] for f in found):
        for k in keys: value = value[k]
        out.append(value)
    return out

def rows_of(found:list[dict])->Iterator[dict]:
    "What moves, and the figure beside it that gives it its meaning."
    held = {stage: each(found, stage, 'exact_heldout', 'all') for stage in ('pretrain', 'sft', 'dpo', 'dpo_lora')}
    yield row('held-out exact match, after 06', held['sft'], held['pretrain'], 'after 05', 'share')
    for stage, name in (('dpo', 'all parameters'), ('dpo_lora', 'LoRA')):
        after, before = each(found, stage, 'pref_acc_after'), each(found, stage, 'pref_acc_before')
        yield row(f'preference accuracy, {name}', after, before, 'before', 'share')
        yield row(f'held-out exact match, {name}', held[stage], held['sft'], 'before', 'share')
    for test in ('sentence', 'combination', 'entity', 'pattern'):
        f1, scratch = each(found, 'ie', f'f1_{test}'), each(found, 'ie_scratch', f'f1_{test}')
        yield row(f'triple F1, {test}', f1, scratch, 'from scratch, same initialisation', 'F1')
    after, before = each(found, 'ie', 'exact_heldout_after'), each(found, 'ie', 'exact_heldout_before')
    yield row('held-out exact match, after 09', after, before, 'before', 'share')

def main():
    "Train the other seeds, print and write the spread."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--seeds', type=int, default=3, help='how many')
    p.add_argument('--jobs', type=int, default=1,
                   help='seeds trained at the same time; set OMP_NUM_THREADS=1 with more than one')
    a = p.parse_args()
    found = [figures(require(run_path('ie_scratch', 'figures.json'), 'ie').parents[1])]
    with ThreadPoolExecutor(a.jobs) as pool: found += pool.map(course_alone, range(1, a.seeds))
    write('seeds', dict(scale='tiny', seeds=list(range(a.seeds))), list(rows_of(found)))

if __name__ == '__main__': main()
