"""One honest run on real text at scale `small`: from public files to a model, its figures and its page.

    python benchmarks/real.py prepare --data DIR --raw RAW   # lay the public files out for the stages
    python benchmarks/real.py run --raw RAW                  # clean … extraction; what is done is not done again
    python benchmarks/real_measure.py --raw RAW              # figures, samples, card -> SCCLM_RUNS/small/results/

DIR holds pairs/mixed.parquet, pairs/smile.parquet, raw/, prefs/, duie/, eval/ as their owners publish them. Everything
that is made lies under SCCLM_RUNS (default runs/) in small/; real_measure's `--keep` puts figures into the repository.

    SCCLM_EVENING=3 SCCLM_RUNS=runs3 python benchmarks/real.py run --raw RAW --from runs

The third evening: more steps, in runs of its own; what it keeps of the second evening is taken from that one's runs."""
import argparse
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scclm.course import KEEP_FREED
from scclm.data_cleaning import clean
from scclm.dataset import read_pairs
from scclm.dpo import dpo, dpo_cfg
from scclm.duplicates import normal_form
from scclm.ie_finetune import ie, ie_cfg
from scclm.leaks import LeakCfg, check_leaks
from scclm.pretrain import pretrain, pretrain_cfg
from scclm.real_text import line_exercises, lines_of
from scclm.reproduce import Step, call, note, read_diary
from scclm.runs import check_out, folder_aside, raw_dir, read_json, run_path, write_aside, write_json
from scclm.sft import sft, sft_cfg
from scclm.tokenizer import tokenizer_cfg, train_tokenizer

SFT_SOURCES = ('A_carbonz0', 'A_hikariming_extra', 'A_medicalgpt_sharegpt_zh', 'A_oaast_sft_zh', 'C_belle_dev1K',
               'C_belle_eval', 'C_belle_open_source_1k') # instructions; the rest of mixed.parquet is for pretraining
LINKED = {'pairs/smile.parquet': 'pretrain/smile.parquet', 'raw': 'pretrain/raw', 'prefs': 'prefs',
          'duie': 'duie', 'eval': 'eval'} # public file or folder -> its place below the raw folder

ALPACA = 'raw/alpaca/alpaca_chinese_part_0.json'
INPUTS = (*LINKED, 'pairs/mixed.parquet', ALPACA) # what `prepare` reads
NEEDED = ('duie/duie_train.json', 'duie/duie_valid.json', 'eval/cmmlu.tar.xz') # read below the raw folder by name
MARK = '.laid_out' # in the raw folder, written last: it is whole, and may be made anew

@contextmanager
def in_one_line()->Iterator[None]:
    "Ends the program with one line instead of a traceback for what a user can mend; SCCLM_TRACEBACK=1 shows it."
    try: yield
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, RuntimeError) as e:
        if os.environ.get('SCCLM_TRACEBACK'): raise
        sys.exit(f'{Path(sys.argv[0]).name}: {e}')

def link(
    target:Path, # a file, or a folder of files
    place:Path, # where it shall be found: files are linked, folders made
):
    "Hard links where the file system has them, else copies."
    if target.is_dir():
        for p in sorted(target.iterdir()): link(p, place/p.name)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    try: os.link(target, place)
    except FileNotFoundError: raise
    except OSError: shutil.copyfile(target, place)

COLUMNS = ('prompt', 'response', 'source') # of mixed.parquet

def split_mixed(
    file:Path, # mixed.parquet: prompt, response, source
    raw:Path, # the raw folder
):
    "Instructions to sft/, everything else to pretrain/."
    table = pq.read_table(file, columns=list(COLUMNS))
    is_sft = pc.is_in(table['source'], pa.array(SFT_SOURCES))
    for name, part in (('sft', table.filter(is_sft)), ('pretrain', table.filter(pc.invert(is_sft)))):
        (raw/name).mkdir(parents=True, exist_ok=True)
        pq.write_table(part, raw/name/'mixed.parquet')
        print(f'{name}: {part.num_rows:,} rows of {file.name}')

def own_answers(
    file:Path, # a list of zh_instruction, zh_input, zh_output
    place:Path, # written: a list of instruction, input, output
):
    "Preference rows without a rejected answer: chapter 07 takes the model's own."
    names = 'instruction', 'input', 'output'
    try: rows = [{n: r[f'zh_{n}'] for n in names} for r in json.loads(file.read_text(encoding='utf-8'))]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file}: expected JSON, a list of zh_{', zh_'.join(names)}") from None
    write_json(place, rows)

def check_inputs(
    data:Path, # the public files
):
    "Raises FileNotFoundError that names every file and folder that is not there, ValueError for missing columns."
    gone = [name for name in INPUTS if not (data/name).exists()]
    if gone: raise FileNotFoundError(f"--data {data}: expected {', '.join(gone)} in it")
    found = pq.read_schema(data/'pairs'/'mixed.parquet').names
    if absent := [name for name in COLUMNS if name not in found]:
        raise ValueError(f"{data/'pairs'/'mixed.parquet'}: expected the columns {', '.join(absent)} too, has {found}")

def prepare(
    data:Path, # the public files
    raw:Path, # the raw folder, made anew
):
    """Lay the public files out as SCCLM_RAW wants them: sft/, prefs/, duie/, eval/, and the rest for pretraining.
    It is laid out beside, then renamed: whatever fails, an earlier raw folder is as it was."""
    check_inputs(data)
    check_out(raw, data, 'raw folder of this script', (raw/MARK).exists())
    with folder_aside(raw) as tmp:
        for target, place in LINKED.items(): link(data/target, tmp/place)
        split_mixed(data/'pairs'/'mixed.parquet', tmp)
        own_answers(data/ALPACA, tmp/'prefs'/'alpaca_own_answers.json')
        (tmp/MARK).touch()

def check_raw(
    raw:Path, # the raw folder
):
    "Raises FileNotFoundError for a raw folder that `prepare` did not lay out whole, before a step begins."
    if not (raw/MARK).exists():
        raise FileNotFoundError(f'--raw {raw}: expected a folder laid out by real.py prepare --data DIR --raw {raw}')
    gone = [name for name in NEEDED if not (raw/name).exists()]
    if gone: raise FileNotFoundError(f"--raw {raw}: expected {', '.join(gone)} in it; complete --data and prepare")

QUESTIONS = ('你好', '你是谁？', '感冒了要怎么办？', '高血压患者能吃鸡蛋吗？', '中国的首都是哪里？', '《红楼梦》的作者是谁？',
    '写一首关于春天的诗。', '如何学好英语？', '我最近总是睡不着，怎么办？', '解释一下什么是光合作用。', '给出三条保持健康的建议。',
    '离婚需要哪些手续？', '1加1等于几？', '把“今天天气很好”翻译成英文。', '地球为什么是圆的？', '推荐一部好看的电影。',
    '怎样做西红柿炒鸡蛋？', '人工智能是什么？', '我和父母吵架了，很难过。', '世界上最高的山是哪座？')

def without_leaks():
    "Take the rows out that hold a question of our own tests, of CMMLU or of DuIE's development set: *.leaks.parquet."
    own = [run_path('data', f'{name}.parquet') for name in ('test', 'valid', 'sft_valid')]
    public = [raw_dir()/'eval'/'cmmlu.tar.xz', raw_dir()/'duie'/'duie_valid.json']
    check_leaks(LeakCfg(exams=(*own, *public), workers=2, remove=True))

# ---- what pretraining reads: talk, with less counselling, and copying exercises made of its sentences

KINDS = dict(A='instructions', B='medicine', C='instructions', D='knowledge', E='reading', J='law') # of mixed.parquet
COUNSELLING_SHARE = .25 # of its rows that stay: of all there are three times as many as of the rest together
N_EXERCISES = 150_000

def key(prompt:str, response:str)->tuple[str, str]:
    "What is left of a row whatever cleaning did to its marks: the beginnings of both normal forms."
    return normal_form(prompt)[:12], normal_form(response)[:12]

def named_rows()->Iterator[tuple[tuple[str, str], str]]:
    "The key and the kind of every row of the two large files."
    for path in sorted(raw_dir().rglob('*.parquet')):
        table = pq.read_table(path)
        if 'source' not in table.column_names: continue
        for row in table.to_pylist():
            yield key(row['prompt'], row['response']), KINDS.get(row['source'][0], 'counselling')

def write_pairs(name:str, pairs:list[tuple[str, str]]):
    "Prompt and response as a parquet file in the run's folder."
    rows = [dict(prompt=p, response=r) for p, r in pairs]
    pq.write_table(pa.Table.from_pylist(rows), run_path(name), row_group_size=4096)
    print(f'{name}: {len(rows):,} rows')

def mixture():
    "talk.parquet, and exercises.parquet from the sentences of its other kinds."
    kinds, rng = dict(named_rows()), random.Random('mixture')
    parts = {True: [], False: []} # counselling or not
    for pair in read_pairs(run_path('data', 'train.parquet')):
        parts[kinds.get(key(*pair)) == 'counselling'].append(pair)
    fewer = rng.sample(parts[True], round(COUNSELLING_SHARE * len(parts[True])))
    write_pairs('talk.parquet', rng.sample(fewer + parts[False], len(fewer) + len(parts[False])))
    texts = [text for pair in parts[False] for text in pair]
    write_pairs('exercises.parquet', line_exercises(lines_of(texts, N_EXERCISES)))

class Evening(NamedTuple):
    "What differs between the evenings with copying exercises."
    pretrain_steps:int # of 1,024 padded tokens
    ie_steps:dict[int, int] # training sentences -> steps, the same from every start
    max_test:int # sentences of the test; 0: all

EVENINGS = { # the first one had no exercises: PLAIN
    '2': Evening(5400, {1000: 400, 4000: 600, 17_000: 1600}, 1000),
    '3': Evening(10_000, {1000: 1600, 4000: 2400, 17_000: 6000}, 0)}

def evening_name()->str:
    "What SCCLM_EVENING says, the second if nothing."
    return os.environ.get('SCCLM_EVENING') or '2'

def evening()->Evening:
    "What SCCLM_EVENING names, the second if nothing. Raises ValueError for another."
    name = evening_name()
    if name in EVENINGS: return EVENINGS[name]
    raise ValueError(f"SCCLM_EVENING={name!r}: expected one of {', '.join(EVENINGS)}")

with in_one_line(): EVENING = evening() # each in runs of its own; rates are chosen in the second

# An evening on two cores: many small batches
PRETRAIN = replace(pretrain_cfg('small'), steps=EVENING.pretrain_steps, lr=1e-3, budget_tok=1024,
                   eval_every=EVENING.pretrain_steps // 10)

def pretrain_mixed()->object: # the run
    "Talk and copying exercises from the first step."
    files = str(run_path('talk.parquet')), str(run_path('exercises.parquet'))
    return pretrain(replace(PRETRAIN, files=files), QUESTIONS, progress=False)

# The first evening's pretraining: all rows as they come, large batches, no exercises
PLAIN = replace(pretrain_cfg('small'), steps=2400, eval_every=240)
SFT = replace(sft_cfg('small'), steps=200, eval_every=100)
DPO = replace(dpo_cfg('small'), epochs=1.)
IE_STEPS = EVENING.ie_steps
IE_BATCH = 1024 # padded tokens; 99 of 100 answers fit into the 128 below
IE_MIX = .1 # share of instruction rows among the sentences, for the chat to be kept
IE = replace(ie_cfg('small'), mix=IE_MIX, epochs=0., budget_tok=IE_BATCH, max_test=EVENING.max_test, max_new_tok=128)
IE_STARTS = ('sft', 'scratch', 'stock')
RATES = (7e-4, 1.5e-3) # tried
TRIAL_ROWS, TRIAL_STEPS, LOOKED_AT = 4000, 300, 500 # of a trial: rows, steps, sentences it is judged by

def trial_folder()->Path: # duie_train.json, and its last sentences as duie_dev.json
    "Training sentences parted in two: what is chosen by a trial is chosen on rows that no reported test holds."
    folder = run_path('ie_choice', 'duie')
    folder.mkdir(parents=True, exist_ok=True)
    lines = (raw_dir()/'duie'/'duie_train.json').read_text(encoding='utf-8').splitlines(keepends=True)
    for name, part in (('train', lines[:-LOOKED_AT]), ('dev', lines[-LOOKED_AT:])):
        (folder/f'duie_{name}.json').write_text(''.join(part), encoding='utf-8')
    return folder

def test_name(
    figures:dict, # of a run
)->str: # as in f1_<name>
    "The test that a run was scored on; real data has one."
    return next(k[3:] for k in figures if k.startswith('f1_') and not k.endswith(('_ci95', '_n')))

def trial(
    folder:Path, # from `trial_folder`
    start:str, # sft, scratch or a model folder
    lr:float, # to try
    name:str='', # what it goes by, if not by its start
    rows:int=TRIAL_ROWS, # training sentences
    steps:int=TRIAL_STEPS,
)->dict: # what was tried, loss and F1 of the sentences that were held back
    "A short fine-tuning; one that was finished before is not run again. Exits with 3 if it is stopped on the way."
    out = run_path('ie_choice', f'{name or start}_{lr}')
    cfg = replace(IE, data=(str(folder),), max_rows=rows, steps=steps, start=start, lr=lr, lr_scratch=lr, out=str(out))
    if not (out/'figures.json').exists() and not ie(cfg, progress=False).done: sys.exit(3)
    figures = read_json(out/'figures.json')
    f1 = figures[f'f1_{test_name(figures)}']
    return dict(start=name or start, lr=lr, steps=steps, f1=f1, loss=figures['loss_valid'])

def choose_rates():
    "The learning rate of each start with the lowest loss, kept with all that was tried."
    folder = trial_folder()
    trials = [trial(folder, start, lr) for start in ('sft', 'scratch') for lr in RATES]
    best = {t['start']: t['lr'] for t in sorted(trials, key=lambda t: -t['loss'])} # so early F1 is still 0
    write_json(run_path('ie_choice', 'choice.json'), dict(trials=trials, best=best))

FEW, TRIED = 1000, [(steps, lr) for steps in (400, 1600) for lr in (1.5e-3, 3e-3)] # training sentences; steps and rate

def try_longer():
    "A higher rate, and more steps, on few sentences from the pretrained start, kept with all that was tried."
    folder = trial_folder()
    trials = [trial(folder, 'sft', lr, f'sft_{FEW}_{steps}', FEW, steps) for steps, lr in TRIED]
    write_json(run_path('ie_choice', 'longer.json'), dict(ie_rows=FEW, looked_at=LOOKED_AT, trials=trials))

MIXTURES = dict(exercises=('talk.parquet', 'exercises.parquet'), talk=('talk.parquet',)) # the control has none
TRIED_STEPS = 1200 # of pretraining

def briefly(
    name:str, # of MIXTURES
)->str: # model folder
    "Minutes of pretraining instead of an evening. Exits with 3 if it is stopped on the way."
    files = tuple(str(run_path(file)) for file in MIXTURES[name])
    out = run_path('ie_choice', f'pretrain_{name}')
    cfg = replace(PRETRAIN, steps=TRIED_STEPS, eval_every=TRIED_STEPS, files=files, out=str(out))
    if not (out/'figures.json').exists() and not pretrain(cfg, progress=False).done: sys.exit(3)
    return str(out/'model')

def try_mixtures():
    "What extraction learns from few sentences after each mixture and after none, kept with all that was tried."
    folder = trial_folder()
    starts = {name: briefly(name) for name in MIXTURES} | dict(scratch='scratch')
    trials = [trial(folder, start, lr, name) for name, start in starts.items() for lr in RATES]
    write_json(run_path('ie_choice', 'mixtures.json'), dict(
        pretrain_steps=TRIED_STEPS, ie_rows=TRIAL_ROWS, ie_steps=TRIAL_STEPS, looked_at=LOOKED_AT, trials=trials))

def triples(
    rows:int, # training sentences
    start:str, # sft, scratch or stock
)->object: # the run
    "Extraction from so many sentences, from such a start."
    best = read_json(run_path('ie_choice', 'choice.json'))['best']
    cfg = replace(IE, max_rows=rows, start=start, steps=IE_STEPS[rows], lr=best['sft'], lr_scratch=best['scratch'],
                  out=str(run_path(f'ie_{rows}_{start}')))
    return ie(cfg, progress=False)

def slower(
    rows:int, # training sentences
)->object: # the run
    "The pretrained start at the rate that was best for new weights: the rates were chosen on much shorter trials."
    best = read_json(run_path('ie_choice', 'choice.json'))['best']
    cfg = replace(IE, max_rows=rows, start='sft', steps=IE_STEPS[rows], lr=best['scratch'],
                  out=str(run_path(f'ie_{rows}_slower')))
    return ie(cfg, progress=False)

PARTS = {'16th': 1/16} # whole trainings with a smaller budget: points for the law that the loss follows
TINY = replace(pretrain_cfg('tiny'), steps=1000, budget_tok=2048, max_len=257, precision='auto')

def shorter(
    scale:str, # small, or tiny: the course's size on the same text
    share:float, # of the whole budget
    name:str, # of the folder
)->object: # the run
    "A pretraining of its own, not the beginning of another one: its learning rate comes down at its own end."
    cfg = TINY if scale == 'tiny' else PLAIN
    steps = round(cfg.steps * share)
    cfg = replace(cfg, steps=steps, eval_every=max(1, steps // 20), out=str(run_path(name)))
    return pretrain(cfg, progress=False)

LAW = {'pretrain_plain': ('small', 1.), 'pretrain_tiny': ('tiny', 1.)} | {f'pretrain_{scale}_{part}': (scale, share)
                                         for scale in ('small', 'tiny') for part, share in PARTS.items()}

FUNCTIONS:dict[str, Callable] = dict(
    clean=clean,
    leaks=without_leaks,
    tokenizer=lambda: train_tokenizer(tokenizer_cfg()),
    mixture=mixture,
    trial=try_mixtures,
    pretrain=pretrain_mixed,
    sft=partial(sft, SFT, progress=False),
    dpo=partial(dpo, DPO, progress=False),
    ie_choice=choose_rates,
    ie_longer=try_longer,
) | {f'ie_{n}_{start}': partial(triples, n, start) for n in IE_STEPS for start in IE_STARTS} | {
    f'ie_{n}_slower': partial(slower, n) for n in IE_STEPS} | {
    name: partial(shorter, *how, name) for name, how in LAW.items()}

FINE_TUNED = [f'ie_{n}_{start}' for n in IE_STEPS for start in IE_STARTS]
TAKEN = dict( # what the third evening takes over from the second, and what each leaves that later steps read
    clean=('data',), leaks=(), tokenizer=('tokenizer',), mixture=('talk.parquet', 'exercises.parquet'),
    ie_choice=('ie_choice/choice.json',))
LISTS = { # evening -> its steps, in order; the first one's pretraining and the points of the law are in the second's
    '2': ['clean', 'leaks', 'tokenizer', 'mixture', 'trial', 'pretrain', 'sft', 'dpo', 'ie_choice', 'ie_longer',
          *FINE_TUNED, *LAW],
    '3': ['pretrain', 'sft', *FINE_TUNED, *(f'ie_{n}_slower' for n in IE_STEPS)]}
STEPS = LISTS[evening_name()]

def diary()->Path:
    "Where it is noted what began, ended or was stopped, and when."
    return run_path('diary.jsonl')

def noted(
    name:str, # of the step
    what:str, # start, end or stop
    **more:object, # such as from where it was taken
):
    "A line in the diary, with the evening."
    note(diary(), Step(name, (), ''), what, evening=evening_name(), **more)

def step(
    name:str, # of STEPS
):
    "One step in this process; exits with 3 if it was stopped on the way."
    noted(name, 'start')
    run = FUNCTIONS[name]()
    done = getattr(run, 'done', True)
    noted(name, 'end' if done else 'stop')
    if not done: sys.exit(3)

def done_in(
    path:Path, # a diary
)->set[str]: # names of steps
    "What a diary says is finished."
    return {e['step'] for e in read_diary(path) if e['what'] == 'end'}

def done_steps()->set[str]:
    "What the diary says is finished."
    return done_in(diary())

def check_runs():
    "Raises ValueError for runs of another evening: their steps have the same names."
    others = {e.get('evening', '2') for e in read_diary(diary())} - {evening_name()}
    if not others: return
    raise ValueError(f"{run_path()} holds evening {', '.join(sorted(others))}: expected an SCCLM_RUNS of its own "
                     f'for evening {evening_name()}')

def check_earlier(
    earlier:Path|None, # the second evening's SCCLM_RUNS
    names:list[str], # of TAKEN, still to be taken over
):
    "Raises ValueError that says what is missing, before anything is taken over."
    if not earlier:
        raise ValueError(f"evening {evening_name()} takes {', '.join(names)} over from the second: expected "
                         "--from RUNS, the second evening's SCCLM_RUNS")
    folder = earlier/'small'
    if folder.resolve() == run_path().resolve():
        raise ValueError(f'--from {earlier}: expected other runs than those of this evening; set SCCLM_RUNS')
    done = done_in(folder/'diary.jsonl')
    gone = [n for n in names if n not in done or not all((folder/part).exists() for part in TAKEN[n])]
    if gone: raise ValueError(f"--from {earlier}: expected the second evening's {', '.join(gone)} finished in it")
    begun = {e['step'] for e in read_diary(diary())}
    held = [part for n in names if n not in begun for part in TAKEN[n] if run_path(part).exists()]
    if held: raise ValueError(f"{run_path()} holds {', '.join(held)} already: expected a new SCCLM_RUNS")

def take_over(
    earlier:Path|None, # the second evening's SCCLM_RUNS
):
    "What this evening keeps of the second, linked or copied and noted, each once. Raises ValueError for a gap."
    names = [n for n in TAKEN if n not in done_steps()]
    if not names: return
    check_earlier(earlier, names)
    for name in names:
        noted(name, 'start')
        for part in TAKEN[name]:
            made = earlier/'small'/part
            with (folder_aside if made.is_dir() else write_aside)(run_path(part)) as tmp: link(made, tmp)
        noted(name, 'end', taken_from=str(earlier))
        print(f'{name}: taken over from {earlier}', flush=True)

def run_all(
    names:list[str], # of STEPS, in order
):
    "Every step that is not done, each in a process of its own; the first that fails or is stopped ends it."
    for name in names:
        if name in done_steps(): continue
        code = call([sys.executable, __file__, 'step', name]) # the dials go on in the environment
        if code in (3, 130, 143): sys.exit(f'{name}: stopped; the same command goes on from here')
        if code: sys.exit(f'{name}: ended with {code}, see above; once it is mended, the same command goes on')

def set_dials(
    raw:Path, # the raw folder
):
    "Scale, raw folder and allocator of those that this process starts."
    os.environ |= KEEP_FREED | dict(SCCLM_SCALE='small', SCCLM_RAW=str(raw.absolute()))

def asked()->argparse.Namespace:
    "What the command line asks for. Exits with 2 for what cannot be."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('what', choices=('prepare', 'run', 'step'))
    p.add_argument('names', nargs='*', help='steps; of run none: all')
    p.add_argument('--data', type=Path, help='the public files')
    p.add_argument('--raw', type=Path, default=Path(os.environ.get('SCCLM_RAW', 'raw_real')), help='the raw folder')
    p.add_argument('--from', type=Path, dest='earlier', metavar='RUNS', help='third evening: SCCLM_RUNS of the second')
    a = p.parse_intermixed_args()
    if a.what == 'prepare' and not a.data: p.error('prepare wants --data')
    if a.what == 'step' and not a.names: p.error(f"step wants names: expected some of {' '.join(STEPS)}")
    if a.earlier and evening_name() != '3': p.error('--from: expected with SCCLM_EVENING=3 only')
    if unknown := [n for n in a.names if n not in STEPS]:
        p.error(f"{', '.join(unknown)}: expected some of {' '.join(STEPS)}")
    return a

def main():
    "Do what the command line asks for."
    a = asked()
    set_dials(a.raw)
    if a.what == 'prepare': return prepare(a.data, a.raw)
    check_raw(a.raw)
    check_runs()
    if evening_name() == '3': take_over(a.earlier)
    if a.what == 'run': return run_all(a.names or STEPS)
    for name in a.names: step(name)

if __name__ == '__main__':
    with in_one_line(): main()
