"""One honest run on real text at scale `small`: from public files to a model, its figures and its page.

    python benchmarks/real.py prepare --data DIR --raw RAW   # lay the public files out for the stages
    python benchmarks/real.py run --raw RAW                  # clean … extraction; what is done is not done again
    python benchmarks/real_measure.py --raw RAW              # figures, samples, card -> results/real_small/

DIR holds pairs/mixed.parquet, pairs/smile.parquet, raw/, prefs/, duie/, eval/ as their owners publish them. Everything
that is made lies under SCCLM_RUNS (default runs/) in small/; nothing of the data or the weights goes to results/."""
import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scclm.course import KEEP_FREED
from scclm.data_cleaning import clean
from scclm.dpo import dpo, dpo_cfg
from scclm.ie_finetune import ie, ie_cfg
from scclm.leaks import LeakCfg, check_leaks
from scclm.pretrain import pretrain, pretrain_cfg
from scclm.reproduce import Step, note, read_diary
from scclm.runs import check_out, raw_dir, read_json, run_path, write_json
from scclm.sample_corpus import copy_rows
from scclm.sft import sft, sft_cfg
from scclm.tokenizer import tokenizer_cfg, train_tokenizer

SFT_SOURCES = ('A_carbonz0', 'A_hikariming_extra', 'A_medicalgpt_sharegpt_zh', 'A_oaast_sft_zh', 'C_belle_dev1K',
               'C_belle_eval', 'C_belle_open_source_1k') # instructions; the rest of mixed.parquet is for pretraining
LINKED = {'pairs/smile.parquet': 'pretrain/smile.parquet', 'raw': 'pretrain/raw', 'prefs': 'prefs',
          'duie': 'duie', 'eval': 'eval'} # public file or folder -> its place below the raw folder

MARK = '.laid_out' # in the raw folder: it may be made anew

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
    except OSError: shutil.copyfile(target, place)

def split_mixed(
    file:Path, # mixed.parquet: prompt, response, source
    raw:Path, # the raw folder
):
    "Instructions to sft/, everything else to pretrain/."
    table = pq.read_table(file)
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
    rows = json.loads(file.read_text(encoding='utf-8'))
    rows = [{name: r[f'zh_{name}'] for name in ('instruction', 'input', 'output')} for r in rows]
    write_json(place, rows)

def prepare(
    data:Path, # the public files
    raw:Path, # the raw folder, made anew
):
    "Lay the public files out as SCCLM_RAW wants them: sft/, prefs/, duie/, eval/, and the rest for pretraining."
    check_out(raw, data, 'raw folder of this script', (raw/MARK).exists())
    shutil.rmtree(raw, ignore_errors=True)
    raw.mkdir(parents=True)
    (raw/MARK).touch()
    for target, place in LINKED.items(): link(data/target, raw/place)
    split_mixed(data/'pairs'/'mixed.parquet', raw)
    own_answers(data/'raw'/'alpaca'/'alpaca_chinese_part_0.json', raw/'prefs'/'alpaca_own_answers.json')

QUESTIONS = ('你好', '你是谁？', '感冒了要怎么办？', '高血压患者能吃鸡蛋吗？', '中国的首都是哪里？', '《红楼梦》的作者是谁？',
    '写一首关于春天的诗。', '如何学好英语？', '我最近总是睡不着，怎么办？', '解释一下什么是光合作用。', '给出三条保持健康的建议。',
    '离婚需要哪些手续？', '1加1等于几？', '把“今天天气很好”翻译成英文。', '地球为什么是圆的？', '推荐一部好看的电影。',
    '怎样做西红柿炒鸡蛋？', '人工智能是什么？', '我和父母吵架了，很难过。', '世界上最高的山是哪座？')

def without_leaks():
    "Take the rows out that hold a question of our own tests, of CMMLU or of DuIE's development set: *.leaks.parquet."
    own = [run_path('data', f'{name}.parquet') for name in ('test', 'valid', 'sft_valid')]
    public = [raw_dir()/'eval'/'cmmlu.tar.xz', raw_dir()/'duie'/'duie_valid.json']
    check_leaks(LeakCfg(exams=(*own, *public), workers=2, remove=True))

# One evening on two cores: a quarter of the preset's pretraining, and short fine-tunings of small batches
PRETRAIN = replace(pretrain_cfg('small'), steps=2400, eval_every=240)
SFT = replace(sft_cfg('small'), steps=200, eval_every=100)
DPO = replace(dpo_cfg('small'), epochs=1.)
IE_STEPS = {1000: 200, 4000: 300, 17_000: 1200} # training sentences -> steps, the same from every start
IE_BATCH = 1024 # padded tokens; 99 of 100 answers fit into the 128 below
IE_MIX = .1 # share of instruction rows among the sentences, for the chat to be kept
IE = replace(ie_cfg('small'), mix=IE_MIX, epochs=0., budget_tok=IE_BATCH, max_test=1000, max_new_tok=128)
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
    start:str, # sft or scratch
    lr:float, # to try
)->dict: # what was tried, loss and F1 of the sentences that were held back
    "A short fine-tuning; one that was finished before is not run again. Exits with 3 if it is stopped on the way."
    out = run_path('ie_choice', f'{start}_{lr}')
    cfg = replace(IE, data=(str(folder),), max_rows=TRIAL_ROWS, steps=TRIAL_STEPS, start=start, lr=lr, lr_scratch=lr,
                  out=str(out))
    if not (out/'figures.json').exists() and not ie(cfg, progress=False).done: sys.exit(3)
    figures = read_json(out/'figures.json')
    return dict(start=start, lr=lr, f1=figures[f'f1_{test_name(figures)}'], loss=figures['loss_valid'])

def choose_rates():
    "The learning rate of each start with the lowest loss, kept with all that was tried."
    folder = trial_folder()
    trials = [trial(folder, start, lr) for start in ('sft', 'scratch') for lr in RATES]
    best = {t['start']: t['lr'] for t in sorted(trials, key=lambda t: -t['loss'])} # so early F1 is still 0
    write_json(run_path('ie_choice', 'choice.json'), dict(trials=trials, best=best))

def triples(
    rows:int, # training sentences
    start:str, # sft, scratch or stock
)->object: # the run
    "Extraction from so many sentences, from such a start."
    best = read_json(run_path('ie_choice', 'choice.json'))['best']
    cfg = replace(IE, max_rows=rows, start=start, steps=IE_STEPS[rows], lr=best['sft'], lr_scratch=best['scratch'],
                  out=str(run_path(f'ie_{rows}_{start}')))
    return ie(cfg, progress=False)

# Does practice in copying help where pretraining on these texts did not? A few minutes of the course's exercises.
COPY_ROWS = 30_000
COPIED = replace(sft_cfg('small'), freeze=(), steps=300, lr=1e-3, budget_tok=2048, eval_every=150)

def copying_file()->str: # parquet with prompt and response
    "The course's copying exercises, each with names of its own."
    asked = [(f'{r.title}：{r.body}' if r.body else r.title, r.response) for r in copy_rows(COPY_ROWS)]
    rows, path = [dict(prompt=p, response=r) for p, r in asked], run_path('copying.parquet')
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)

def practise()->object: # the run
    "Copying exercises among instruction rows, from the fine-tuned model."
    files = copying_file(), str(run_path('data', 'sft_train.parquet'))
    return sft(replace(COPIED, base=str(run_path('sft', 'model')), files=files, out=str(run_path('copied'))),
               progress=False)

def after_practice()->object: # the run
    "Extraction from all training sentences afterwards, with the steps and the rate of the others."
    best, rows = read_json(run_path('ie_choice', 'choice.json'))['best'], max(IE_STEPS)
    cfg = replace(IE, max_rows=rows, start=str(run_path('copied', 'model')), steps=IE_STEPS[rows], lr=best['sft'],
                  out=str(run_path(f'ie_{rows}_copied')))
    return ie(cfg, progress=False)

PARTS = {'16th': 1/16} # whole trainings with a smaller budget: points for the law that the loss follows
TINY = replace(pretrain_cfg('tiny'), steps=1000, budget_tok=2048, max_len=257, precision='auto')

def shorter(
    scale:str, # small, or tiny: the course's size on the same text
    share:float, # of the whole budget
    name:str, # of the folder
)->object: # the run
    "A pretraining of its own, not the beginning of another one: its learning rate comes down at its own end."
    cfg = PRETRAIN
    if scale == 'tiny': cfg = TINY
    steps = round(cfg.steps * share)
    cfg = replace(cfg, steps=steps, eval_every=max(1, steps // 20), out=str(run_path(name)))
    return pretrain(cfg, progress=False)

LAW = {'pretrain_tiny': ('tiny', 1.)} | {f'pretrain_{scale}_{part}': (scale, share)
                                         for scale in ('small', 'tiny') for part, share in PARTS.items()}

STEPS:dict[str, Callable] = dict(
    clean=clean,
    leaks=without_leaks,
    tokenizer=lambda: train_tokenizer(tokenizer_cfg()),
    pretrain=partial(pretrain, PRETRAIN, QUESTIONS, progress=False),
    sft=partial(sft, SFT, progress=False),
    dpo=partial(dpo, DPO, progress=False),
    ie_choice=choose_rates,
) | {f'ie_{n}_{start}': partial(triples, n, start) for n in IE_STEPS for start in IE_STARTS} | {
    name: partial(shorter, *how, name) for name, how in LAW.items()} | {
    'copied': practise, f'ie_{max(IE_STEPS)}_copied': after_practice}

def diary()->Path:
    "Where it is noted what began, ended or was stopped, and when."
    return run_path('diary.jsonl')

def step(
    name:str, # of STEPS
):
    "One step in this process; exits with 3 if it was stopped on the way."
    noted = Step(name, (), '')
    note(diary(), noted, 'start')
    run = STEPS[name]()
    done = getattr(run, 'done', True)
    note(diary(), noted, 'end' if done else 'stop')
    if not done: sys.exit(3)

def done_steps()->set[str]:
    "What the diary says is finished."
    return {e['step'] for e in read_diary(diary()) if e['what'] == 'end'}

def run_all(
    names:list[str], # of STEPS, in order
):
    "Every step that is not done, each in a process of its own; the first that fails or is stopped ends it."
    for name in names:
        if name in done_steps(): continue
        made = subprocess.run([sys.executable, __file__, 'step', name]) # the dials go on in the environment
        if made.returncode: sys.exit(f'{name}: ended with {made.returncode}; the same command goes on from here')

def set_dials(
    raw:Path, # the raw folder
):
    "Scale, raw folder and allocator of those that this process starts."
    os.environ |= KEEP_FREED | dict(SCCLM_SCALE='small', SCCLM_RAW=str(raw.absolute()))

def main():
    "What the command line asks for."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('what', choices=('prepare', 'run', 'step'))
    p.add_argument('names', nargs='*', help='steps; none: all')
    p.add_argument('--data', type=Path, help='the public files')
    p.add_argument('--raw', type=Path, default=Path(os.environ.get('SCCLM_RAW', 'raw_real')), help='the raw folder')
    a = p.parse_intermixed_args()
    set_dials(a.raw)
    if a.what == 'prepare': return prepare(a.data, a.raw) if a.data else p.error('prepare wants --data')
    if unknown := set(a.names) - STEPS.keys(): p.error(f"{', '.join(unknown)}: expected some of {' '.join(STEPS)}")
    if a.what == 'run': return run_all(a.names or list(STEPS))
    for name in a.names: step(name)

if __name__ == '__main__': main()
