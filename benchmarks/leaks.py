"""Exam questions in real rows: how many rows hold one.

    python benchmarks/leaks.py --data mixed.parquet --exams cmmlu.tar.xz duie_valid.json [--show 5]"""
import argparse
import time
from pathlib import Path

import pyarrow.parquet as pq
from report import write

from scclm.leaks import Leak, LeakCfg, find_leaks


def counted(leaks:list[Leak], exam:str, rows:int)->list[dict]:
    "Rows of the results for one exam."
    mine = [x for x in leaks if x.exam == exam]
    held, items = len({x.row for x in mine}), len({x.place for x in mine})
    def one(what:str, n:int, of:int, unit:str)->dict:
        "A count beside what it is a part of."
        return dict(what=f'{exam}: {what}', ours=n, baseline=of, baseline_name='rows read', unit=unit, ratio=None,
                    runs=1)
    return [one('rows that hold a question', held, rows, 'rows'), one('questions held', items, rows, 'questions')]


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
    names = [path.name.split('.')[0] for path in args.exams]
    write('leaks', dict(data=args.data.name, rows=n, exams=names, rows_per_s=round(n/seconds)),
          [row for name in names for row in counted(leaks, name, n)])


if __name__ == '__main__': main()
