"""One honest run on real text at scale `small`: from public files to a model, its figures and its page.

    python benchmarks/real.py prepare --data DIR     # lay the public files out for the stages
    python benchmarks/real.py run                    # clean … extraction, restartable: what is done is not done again
    python benchmarks/real.py measure                # figures, samples, card -> results/real_small/

DIR holds pairs/mixed.parquet, pairs/smile.parquet, raw/, prefs/, duie/, eval/ as their owners publish them. Everything
that is made lies under SCCLM_RUNS (default runs/); nothing of the data or the weights goes to results/."""
import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scclm.runs import run_path, write_json

SFT_SOURCES = ('A_carbonz0', 'A_hikariming_extra', 'A_medicalgpt_sharegpt_zh', 'A_oaast_sft_zh', 'C_belle_dev1K',
               'C_belle_eval', 'C_belle_open_source_1k') # instructions; the rest of mixed.parquet is for pretraining
LINKED = {'pairs/smile.parquet': 'pretrain/smile.parquet', 'raw': 'pretrain/raw', 'prefs': 'prefs',
          'duie': 'duie', 'eval': 'eval'} # public file or folder -> its place below the raw folder

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

def prepare(
    data:Path, # the public files
    raw:Path, # the raw folder, made anew
):
    "Lay the public files out as SCCLM_RAW wants them: sft/, prefs/, duie/, eval/, and the rest for pretraining."
    shutil.rmtree(raw, ignore_errors=True)
    for target, place in LINKED.items(): link(data/target, raw/place)
    split_mixed(data/'pairs'/'mixed.parquet', raw)
