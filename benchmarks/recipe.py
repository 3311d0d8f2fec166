"""Memory of the small recipe: `base`, batch 1, 320 + 320 tokens, on the CPU, and what each saving gives.

    python benchmarks/recipe.py [--scale base]

Peak resident memory of three steps of the trainer's own `train_step` above what was resident before the model
was built, each recipe in a fresh process with one thread and an allocator that gives freed blocks back at once
(`scclm.planner.measured_peak`). The baseline of every row is plain AdamW in fp32."""
import argparse
from dataclasses import replace

from report import row, write
from scclm.planner import EXACT_MALLOC, ProbeCfg, measured_peak

FACTOR = dict(optimizer='adafactor')
SAVE = dict(checkpointing=True)
CHUNK = dict(loss_chunk=64)
BF16 = dict(weights='bf16')
RECIPES = {
    'AdamW': {},
    'AdamW, activation checkpointing': SAVE,
    'AdamW, logits in chunks': CHUNK,
    'Adafactor': FACTOR,
    'Adafactor, activation checkpointing': FACTOR | SAVE,
    'Adafactor, activation checkpointing, logits in chunks': FACTOR | SAVE | CHUNK,
    'AdamW, weights and states in bf16': BF16,
    'Adafactor, all savings, weights and states in bf16': FACTOR | SAVE | CHUNK | BF16}


def main():
    "Measure every recipe and write results/recipe.json."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--scale', default='base', choices=['tiny', 'mini', 'base'])
    args = parser.parse_args()
    plain = ProbeCfg(args.scale, 29298, (1, 320, 320))
    peaks = {}
    for name, change in RECIPES.items():
        peaks[name] = measured_peak(replace(plain, **change))/2**20
        print(f'{name:<56} {peaks[name]:8.1f} MiB', flush=True)
    rows = [row(name, [peak], [peaks['AdamW']], 'AdamW', 'MiB', higher_is_better=False)
            for name, peak in peaks.items()]
    config = dict(scale=args.scale, shape='1 x (320 + 320)', steps=plain.steps, threads=1, allocator=EXACT_MALLOC)
    write('recipe', config, rows)


if __name__ == '__main__': main()
