"""The planner's memory formula against measured peaks of training, each in a fresh process.

    python benchmarks/memory.py [--scales tiny mini base]

`ours` is the prediction and `baseline` the peak resident memory above what was resident before the model was built (fp32 on a CPU, one thread,
three steps of the trainer's own `train_step`). glibc's allocator is told to give freed blocks back at once (`EXACT_MALLOC`); the rows against
`default allocator` show what its defaults add. Rows of scales not asked for are kept.
"""
import argparse

from report import row, write
from scclm.planner import EXACT_MALLOC, ProbeCfg, measured_peak, predicted_peak

RUNS = [ProbeCfg('tiny', 2331, (6, 64, 64)), ProbeCfg('tiny', 2331, (48, 64, 64)), ProbeCfg('tiny', 2331, (48, 64, 64), optimizer='adafactor'),
        ProbeCfg('tiny', 2331, (48, 64, 64), optimizer='muon'), ProbeCfg('tiny', 2331, (48, 64, 64), precision='bf16'), ProbeCfg('tiny', 2331, (48, 64, 64), accum=2),
        ProbeCfg('mini', 8000, (8, 128, 128)), ProbeCfg('mini', 8000, (8, 128, 128), checkpointing=True), ProbeCfg('mini', 8000, (24, 16, 128)), ProbeCfg('mini', 8000, (8, 128, 128), accum=2),
        ProbeCfg('base', 29298, (1, 320, 320)), ProbeCfg('base', 29298, (1, 320, 320), checkpointing=True), ProbeCfg('base', 29298, (1, 320, 320), optimizer='adafactor')]
LOOSE = [RUNS[1], RUNS[6]] # measured with the allocator's defaults too

def name(c:ProbeCfg)->str:
    "Such as 'mini, 8 x (128 + 128), checkpointing'."
    extra = [x for x in (c.optimizer, c.precision) if x not in ('adamw', 'fp32')] + ['checkpointing']*c.checkpointing + ['accum 2']*(c.accum == 2)
    return ', '.join([c.scale, '{} x ({} + {})'.format(*c.shape), *extra])

def measured(c:ProbeCfg, exact:bool=True)->dict:
    "One row, MiB."
    ours, peak = predicted_peak(c)/2**20, measured_peak(c, exact)/2**20
    r = row(name(c) + ('' if exact else ', allocator'), [ours], [peak], 'measured peak' if exact else 'default allocator', 'MiB')
    print(f"{r['what']:<44} {ours:9.1f} {peak:9.1f} {r['ratio']:6.3f} {r['baseline_name']}", flush=True)
    return r

def main():
    p = argparse.ArgumentParser()
    p.add_argument('--scales', nargs='+', default=['tiny', 'mini', 'base'], choices=['tiny', 'mini', 'base'])
    a = p.parse_args()
    rows = [measured(c, exact) for exact, runs in ((True, RUNS), (False, LOOSE)) for c in runs if c.scale in a.scales]
    write('memory', dict(steps=ProbeCfg.steps, threads=1, allocator=EXACT_MALLOC, ours='predicted', baseline='measured'), rows, merge=True)

if __name__ == '__main__': main()
