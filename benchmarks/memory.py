"""The planner's memory formula against measured peaks of training, each in a fresh process.

    python benchmarks/memory.py [--scales tiny mini base] [--repredict]

`ours` is the prediction and `baseline` the peak resident memory above what was resident before the model was built (fp32 on a CPU, one thread,
three steps of the trainer's own `train_step`). glibc's allocator is told to give freed blocks back at once (`EXACT_MALLOC`); the rows against
`default allocator` show what its defaults add. Rows of scales not asked for are kept; `--repredict`
after a change of the formula puts new predictions beside the peaks that the file already holds.
"""
import argparse, json

from report import RESULTS, row, write
from scclm.planner import EXACT_MALLOC, ProbeCfg, measured_peak, predicted_peak

RUNS = [ProbeCfg('tiny', 2331, (6, 64, 64)), ProbeCfg('tiny', 2331, (48, 64, 64)), ProbeCfg('tiny', 2331, (48, 64, 64), optimizer='adafactor'),
        ProbeCfg('tiny', 2331, (48, 64, 64), optimizer='muon'), ProbeCfg('tiny', 2331, (48, 64, 64), precision='bf16'), ProbeCfg('tiny', 2331, (48, 64, 64), accum=2),
        ProbeCfg('tiny', 2331, (32, 96, 96), optimizer='adafactor', checkpointing=True),
        ProbeCfg('mini', 8000, (8, 128, 128)), ProbeCfg('mini', 8000, (8, 128, 128), checkpointing=True), ProbeCfg('mini', 8000, (24, 16, 128)), ProbeCfg('mini', 8000, (8, 128, 128), accum=2),
        ProbeCfg('base', 29298, (1, 320, 320)), ProbeCfg('base', 29298, (1, 320, 320), checkpointing=True), ProbeCfg('base', 29298, (1, 320, 320), optimizer='adafactor')]
LOOSE = [RUNS[1], RUNS[7]] # measured with the allocator's defaults too

def name(c:ProbeCfg)->str:
    "Such as 'mini, 8 x (128 + 128), checkpointing'."
    extra = [x for x in (c.optimizer, c.precision) if x not in ('adamw', 'fp32')] + ['checkpointing']*c.checkpointing + ['accum 2']*(c.accum == 2)
    return ', '.join([c.scale, '{} x ({} + {})'.format(*c.shape), *extra])

def measured(c:ProbeCfg, exact:bool=True, known:dict|None=None)->dict:
    "One row, MiB; a peak that is known is not measured again."
    what = name(c) + ('' if exact else ', allocator')
    ours, peak = predicted_peak(c)/2**20, (known or {}).get(what) or measured_peak(c, exact)/2**20
    r = row(what, [ours], [peak], 'measured peak' if exact else 'default allocator', 'MiB')
    print(f"{r['what']:<44} {ours:9.1f} {peak:9.1f} {r['ratio']:6.3f} {r['baseline_name']}", flush=True)
    return r

def main():
    p = argparse.ArgumentParser()
    p.add_argument('--scales', nargs='+', default=['tiny', 'mini', 'base'], choices=['tiny', 'mini', 'base'])
    p.add_argument('--repredict', action='store_true', help='measure only what the file lacks')
    a = p.parse_args()
    path = RESULTS/'memory.json'
    known = {r['what']: r['baseline'] for r in json.loads(path.read_text(encoding='utf-8'))['rows']} if a.repredict and path.exists() else {}
    rows = [measured(c, exact, known) for exact, runs in ((True, RUNS), (False, LOOSE)) for c in runs if c.scale in a.scales]
    write('memory', dict(steps=ProbeCfg.steps, threads=1, allocator=EXACT_MALLOC, ours='predicted', baseline='measured'), rows, merge=True)

if __name__ == '__main__': main()
