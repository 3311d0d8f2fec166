"""Exam questions in real rows: how many rows hold one.

    python benchmarks/leaks.py --data mixed.parquet --exams cmmlu.tar.xz duie_valid.json [--show 5]"""
import argparse
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
from report import write

from scclm.leaks import Leak, LeakCfg, find_leaks, read_items


def counted(leaks:list[Leak], exam:str, questions:int, rows:int)->list[dict]:
    "Rows of the results for one exam of so many questions."
    mine = [x for x in leaks if x.exam == exam]
    held, items = len({x.row for x in mine}), len({x.place for x in mine})
    def one(what:str, n:int, whole:int, name:str, unit:str)->dict:
        "A count beside what it is a part of."
        return dict(what=f'{exam}: {what}', ours=n, baseline=whole, baseline_name=name, unit=unit, ratio=None, runs=1)
    return [one('rows that hold a question', held, rows, 'rows read', 'rows'),
            one('questions held', items, questions, 'questions of the exam', 'questions')]


def main():
    "Look, count, write."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, required=True, help='parquet with prompt and response')
    p.add_argument('--exams', type=Path, nargs='+', required=True, help='as `scclm.leaks` takes them')
    p.add_argument('--show', type=int, default=0, help='leaks to print')
    args = p.parse_args()
    n = pq.ParquetFile(args.data).metadata.num_rows
    start = time.perf_counter()
    leaks = find_leaks(LeakCfg(exams=tuple(args.exams), files=(args.data,)))
    seconds = time.perf_counter() - start
    for leak in leaks[:args.show]: print(leak)
    exams = Counter(item.exam for item in read_items(args.exams))
    write('leaks', dict(data=args.data.name, rows=n, exams=list(exams), rows_per_s=round(n/seconds)),
          [row for exam, questions in exams.items() for row in counted(leaks, exam, questions, n)])


if __name__ == '__main__': main()
