"""The planner's memory formula against measured peaks of training, each in a fresh process.

    python benchmarks/memory.py [--scales tiny mini base] [--repredict]

`ours` is the prediction and `baseline` the peak resident memory above what was resident before the model was
built (fp32 on a CPU, one thread, three steps of the trainer's own `train_step`). glibc's allocator is told to
give freed blocks back at once (`EXACT_MALLOC`); the rows against `default allocator` show what its defaults add.
Rows of scales not asked for are kept; `--repredict` after a change of the formula puts new predictions beside
the peaks that the file already holds.
"""
import argparse
import json

from report import RESULTS, row, write
from scclm.planner import EXACT_MALLOC, ProbeCfg, measured_peak, predicted_peak

SCALES = ('tiny', 'mini', 'base')
RUNS = [
    ProbeCfg('tiny', 2331, (6, 64, 64)),
    ProbeCfg('tiny', 2331, (48, 64, 64)),
    ProbeCfg('tiny', 2331, (48, 64, 64), optimizer='adafactor'),
    ProbeCfg('tiny', 2331, (48, 64, 64), optimizer='muon'),
    ProbeCfg('tiny', 2331, (48, 64, 64), precision='bf16'),
    ProbeCfg('tiny', 2331, (48, 64, 64), accum=2),
    ProbeCfg('tiny', 2331, (32, 96, 96), optimizer='adafactor', checkpointing=True),
    ProbeCfg('mini', 8000, (8, 128, 128)),
    ProbeCfg('mini', 8000, (8, 128, 128), checkpointing=True),
    ProbeCfg('mini', 8000, (24, 16, 128)),
    ProbeCfg('mini', 8000, (8, 128, 128), accum=2),
    ProbeCfg('base', 29298, (1, 320, 320)),
    ProbeCfg('base', 29298, (1, 320, 320), checkpointing=True),
    ProbeCfg('base', 29298, (1, 320, 320), optimizer='adafactor')]
LOOSE = [RUNS[1], RUNS[7]] # measured with the allocator's defaults too


def name(
    cfg:ProbeCfg, # a run
)->str: # such as 'mini, 8 x (128 + 128), checkpointing'
    "How a row calls a run."
    extra = [x for x in (cfg.optimizer, cfg.precision) if x not in ('adamw', 'fp32')]
    if cfg.checkpointing: extra.append('checkpointing')
    if cfg.accum == 2: extra.append('accum 2')
    return ', '.join([cfg.scale, '{} x ({} + {})'.format(*cfg.shape), *extra])


def measured(
    cfg:ProbeCfg, # a run
    exact:bool, # False: with the allocator's defaults
    known:dict[str, float], # what -> peak, MiB: not measured again
)->dict: # a row, MiB
    "Prediction and peak of one run, printed."
    what = name(cfg) + ('' if exact else ', allocator')
    ours = predicted_peak(cfg)/2**20
    peak = known.get(what) or measured_peak(cfg, exact)/2**20
    found = row(what, [ours], [peak], 'measured peak' if exact else 'default allocator', 'MiB')
    print(f"{what:<44} {ours:9.1f} {peak:9.1f} {found['ratio']:6.3f} {found['baseline_name']}", flush=True)
    return found


def main():
    "Measure the scales asked for and write results/memory.json."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--scales', nargs='+', default=SCALES, choices=SCALES)
    parser.add_argument('--repredict', action='store_true', help='measure only what the file lacks')
    args = parser.parse_args()
    path, known = RESULTS/'memory.json', {}
    if args.repredict and path.exists():
        known = {r['what']: r['baseline'] for r in json.loads(path.read_text(encoding='utf-8'))['rows']}
    rows = [measured(cfg, True, known) for cfg in RUNS if cfg.scale in args.scales]
    rows += [measured(cfg, False, known) for cfg in LOOSE if cfg.scale in args.scales]
    config = dict(steps=ProbeCfg.steps, threads=1, allocator=EXACT_MALLOC, ours='predicted', baseline='measured')
    write('memory', config, rows, merge=True)


if __name__ == '__main__': main()
