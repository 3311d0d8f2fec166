"""The whole tiny course with several seeds: how far do the figures of the report card move?

    python benchmarks/seeds.py [--seeds 3]

Needs a finished `make course` at tiny: that run is seed 0. Every other seed trains the model again from nothing, with
another order of the rows and other first weights, in a runs folder of its own that is removed afterwards; it calls the
`scclm` command, one stage after the other, then chapter 08's examinations. `ours` and `baseline` are means over the
seeds; `runs` lists the seeds in order. Names are the keys of the report card.
"""
import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from report import row, write

from scclm.dpo import LORA
from scclm.report_card import card_rows, make_card
from scclm.runs import require, run_path

def lora_args()->Iterator[str]:
    "The command-line arguments of the LoRA preset."
    for field, value in LORA['tiny'].items(): yield from (f"--{field.replace('_', '-')}", str(value))

STAGES = (('pretrain',), ('sft',), ('dpo',), ('dpo', *lora_args()), ('ie',), ('ie', '--start', 'scratch'))

EXAM = """
from scclm.chat import ChatBot
from scclm.chat_exam import chat_scores
from scclm.final_exam import final_scores
from scclm.runs import run_path
bot = ChatBot.from_dir(run_path('dpo', 'model'))
chat_scores(bot)
final_scores(bot)
"""

def run(runs:Path, *args:str):
    "One Python process on a runs folder; leaves with what it complained about if it fails."
    env = os.environ | dict(SCCLM_RUNS=str(runs), SCCLM_SCALE='tiny')
    done = subprocess.run([sys.executable, *args], env=env, capture_output=True, text=True)
    if done.returncode: sys.exit(f"{' '.join(args)}: {done.stderr[-2000:]}")

def scores(scale:Path)->dict[str, float]:
    "Every score of the report card, by its key; the LoRA run's preferences as `dpo_lora.…`."
    return {r['key']: r['value'] for r in card_rows(make_card(scale))}

def course(runs:Path, seed:int)->dict[str, float]:
    "All training stages and examinations with one seed; the scores."
    for name in ('data', 'tokenizer'): shutil.copytree(require(run_path(name), 'tokenizer'), runs/'tiny'/name)
    for stage in STAGES: run(runs, '-m', 'scclm.cli', *stage, '--seed', str(seed))
    run(runs, '-c', EXAM)
    return scores(runs/'tiny')

def course_alone(seed:int)->dict[str, float]:
    "`course` in a folder that is removed afterwards; says how it went."
    with tempfile.TemporaryDirectory() as d: found = course(Path(d), seed)
    print(seed, json.dumps({key: round(found[key], 4) for key in HEADLINE if key in found}), flush=True)
    return found

HEADLINE = ('pretrain.exact_heldout_final', 'sft.exact_heldout_final', 'dpo.pref_acc_after_final',
    'ie.f1_combination_final', 'ie.f1_entity_final', 'ie.f1_pattern_final', 'chat.refused_unknown_final')

def baseline_of(key:str)->tuple[str, str]:
    "The score that gives another its meaning, and what it is; of a score without one, itself."
    stage, name = key.split('.')
    end = '_final' if name.endswith('_final') else ''
    if name.startswith('f1_'): return f'{key}_scratch', 'from scratch, same initialisation'
    if name.startswith('pref_acc_after'): return key.replace('_after', '_before'), 'before'
    if name == 'exact_heldout_after': return key.replace('_after', '_before'), 'before'
    if stage in ('sft', 'dpo'): return f'pretrain.exact_heldout{end}', 'after 05'
    if stage == 'chat' and 'refused' not in name and 'loops' not in name: return f'chat.plain{end}', 'as in the table'
    return key, 'itself'

SHOWN = re.compile(r'(pretrain|sft|dpo)\.exact_heldout(_final)?|dpo(_lora)?\.pref_acc_after(_final)?'
    r'|ie\.f1_(combination|entity|pattern|sentence)(_final)?|ie\.exact_heldout_after|chat\.\w+')

def rows_of(found:list[dict[str, float]])->Iterator[dict]:
    "A row for every score that all seeds have: means over the seeds."
    for key in found[0]:
        if not SHOWN.fullmatch(key) or not all(key in scores for scores in found): continue
        beside, name = baseline_of(key)
        if beside not in found[0]: beside, name = key, 'itself'
        ours, theirs = [scores[key] for scores in found], [scores[beside] for scores in found]
        yield row(key, ours, theirs, name, 'share', middle=statistics.mean)

def main():
    "Train the other seeds, print and write the spread."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--seeds', type=int, default=3, help='how many')
    p.add_argument('--jobs', type=int, default=1,
                   help='seeds trained at the same time; set OMP_NUM_THREADS=1 with more than one')
    a = p.parse_args()
    found = [scores(require(run_path('ie_scratch', 'figures.json'), 'ie').parents[1])]
    with ThreadPoolExecutor(a.jobs) as pool: found += pool.map(course_alone, range(1, a.seeds))
    write('seeds', dict(scale='tiny', seeds=list(range(a.seeds))), list(rows_of(found)))

if __name__ == '__main__': main()
