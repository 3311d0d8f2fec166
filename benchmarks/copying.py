"""What the mimetic initialisation is worth: steps until a tiny model copies names, from either start.

    python benchmarks/copying.py [--limit 6000] [--every 50] [--goal 0.9]

The task of chapter 03: a question with a made-up name in it, the name is the answer. Needs the tokenizer of
`make course` (or SCCLM_RUNS pointing at it). A run ends at the first exam in which both kinds of new names, those
of known characters and those of characters never trained on, are copied to the goal, or at the limit: then the
row's figure is the limit, `reached` says so, and the ratio is a lower bound. The two curves stand in `curves`."""
import argparse
import json
import time

from report import row, write

from scclm.model import build_model, learn_to_copy, model_config, n_params
from scclm.runs import write_json
from scclm.tokenizer import load_tokenizer

KINDS = dict(known='names of known characters', new='names of new characters')

def parse_args()->argparse.Namespace:
    "What the command line asks for."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--limit', type=int, default=6000, help='most steps of a run')
    p.add_argument('--every', type=int, default=50, help='steps between exams')
    p.add_argument('--goal', type=float, default=.9, help='share of names that counts as having learnt to copy')
    return p.parse_args()

def first_step(
    curve:list[dict], # of `learn_to_copy`
    kind:str, # known or new
    goal:float, # share
)->int|None: # step; None: never
    "The first exam at which this kind of names was copied to the goal."
    return next((exam['step'] for exam in curve if exam[kind] >= goal), None)

def make_rows(
    curves:dict[str, list[dict]], # initialisation -> exams
    goal:float, # share
)->list[dict]: # a row a kind of names
    "Steps to the goal, mimetic against stock."
    rows = []
    for kind, words in KINDS.items():
        steps = {init: first_step(curve, kind, goal) for init, curve in curves.items()}
        spent = {init: steps[init] or curves[init][-1]['step'] for init in curves}
        compared = row(words, [spent['mimetic']], [spent['stock']], 'stock', 'steps', higher_is_better=False)
        rows.append(compared | dict(reached={init: s is not None for init, s in steps.items()}))
    return rows

def main():
    "Train from both starts, print, write results/copying.json."
    a, tok = parse_args(), load_tokenizer()
    curves, seconds = {}, {}
    for init in ('mimetic', 'stock'):
        model, start = build_model(model_config('tiny', len(tok)), init), time.perf_counter()
        exams = learn_to_copy(model, tok, a.limit, a.every, a.goal)
        curves[init] = [{k: v and round(v, 4) for k, v in exam.items()} for exam in exams]
        seconds[init] = time.perf_counter() - start
        print(f'{init:<8} {seconds[init]:6.0f} s  {curves[init][-1]}', flush=True)
    config = dict(scale='tiny', parameters=n_params(model), vocabulary=len(tok), batch=24, lr=1e-3, limit=a.limit,
                  every=a.every, goal=a.goal, names_an_exam=200, seconds={k: round(v, 1) for k, v in seconds.items()})
    path = write('copying', config, make_rows(curves, a.goal))
    write_json(path, json.loads(path.read_text(encoding='utf-8')) | dict(curves=curves))

if __name__ == '__main__': main()
