"""The whole tiny course with several seeds: how far do the figures of chapters 05, 06, 07 and 09 move?

    python benchmarks/seeds.py [--seeds 3]

Needs a finished `make course` at tiny: that run is seed 0. Every other seed trains the model again from nothing, with another order of the
rows and other first weights, in a runs folder of its own that is removed afterwards; it calls the `scclm` command, one stage after the
other. `runs` in the result lists the seeds in order.
"""
import argparse, json, os, shutil, subprocess, sys, tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from report import row, write

from scclm.data_cleaning import require, run_path
from scclm.dpo import LORA

STAGES = (('pretrain',), ('sft',), ('dpo',), ('dpo', *(x for k, v in LORA['tiny'].items() for x in (f"--{k.replace('_', '-')}", v))), ('ie',), ('ie', '--start', 'scratch'))

def scclm(runs:Path, *args):
    "One call of the command in a process of its own."
    done = subprocess.run([sys.executable, '-m', 'scclm.cli', *map(str, args)], env=os.environ | dict(SCCLM_RUNS=str(runs), SCCLM_SCALE='tiny'),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode: sys.exit(f"scclm {' '.join(map(str, args))}: {done.stderr[-2000:]}")

def figures(scale:Path)->dict:
    "Stage -> its figures.json."
    return {p.parent.name: json.loads(p.read_text(encoding='utf-8')) for p in scale.glob('*/figures.json')}

def course(runs:Path, seed:int)->dict:
    "All training stages with one seed; figures.json of each."
    for name in ('data', 'tokenizer'): shutil.copytree(require(run_path(name), '01_tokenizer'), runs / 'tiny' / name)
    for stage in STAGES: scclm(runs, *stage, '--seed', seed)
    return figures(runs / 'tiny')

def rows_of(found:list[dict])->list[dict]:
    "What moves, and the figure beside it that gives it its meaning."
    def get(stage, *keys):
        out = []
        for f in found:
            v = f[stage]
            for k in keys: v = v[k]
            out.append(v)
        return out
    f1 = lambda stage, test: get(stage, f'f1_{test}')
    yield row('held-out exact match, after 06', get('sft', 'exact_heldout', 'all'), get('pretrain', 'exact_heldout', 'all'), 'after 05', 'share')
    for stage, name in (('dpo', 'all parameters'), ('dpo_lora', 'LoRA')):
        yield row(f'preference accuracy, {name}', get(stage, 'pref_acc_after'), get(stage, 'pref_acc_before'), 'before', 'share')
        yield row(f'held-out exact match, {name}', get(stage, 'exact_heldout', 'all'), get('sft', 'exact_heldout', 'all'), 'before', 'share')
    for test in ('sentence', 'combination', 'entity', 'pattern'):
        yield row(f'triple F1, {test}', f1('ie', test), f1('ie_scratch', test), 'from scratch, same initialisation', 'F1')
    yield row('held-out exact match, after 09', get('ie', 'exact_heldout_after'), get('ie', 'exact_heldout_before'), 'before', 'share')

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--seeds', type=int, default=3, help='how many')
    p.add_argument('--jobs', type=int, default=1, help='seeds trained at the same time; set OMP_NUM_THREADS=1 with more than one')
    a = p.parse_args()
    found = [figures(require(run_path('ie_scratch', 'figures.json'), '09_ie_finetune').parents[1])]
    def one(seed):
        with tempfile.TemporaryDirectory() as d: f = course(Path(d), seed)
        print(seed, json.dumps({k: v.get('exact_heldout') for k, v in f.items()}), flush=True)
        return f
    with ThreadPoolExecutor(a.jobs) as pool: found += pool.map(one, range(1, a.seeds))
    write('seeds', dict(scale='tiny', seeds=list(range(a.seeds))), list(rows_of(found)))

if __name__ == '__main__': main()
