"""Put the outputs of the last clean run into the notebooks, and its figures into README.md: `make outputs`.

Executed copies come from runs/<scale>/notebooks; a copy whose code is not the notebook's is refused. Widget state, execution
metadata and progress on standard error are left out.
"""
import json, re, sys
from pathlib import Path

import nbformat

from scclm.data_cleaning import checkout_root, run_path
from scclm.report_card import readme_block

def stored(outputs):
    "What a reader needs: no standard error, no widget views (they need a live kernel)."
    keep = [o for o in outputs if o.get('name') != 'stderr' and 'application/vnd.jupyter.widget-view+json' not in o.get('data', {})]
    for o in keep:
        if 'execution_count' in o: o['execution_count'] = None
        if 'metadata' in o: o['metadata'] = {}
    return keep

def read(*parts): return json.loads(Path(*parts).read_text(encoding='utf-8'))

def spread(median:float, runs:list)->str:
    "A median, and the lowest and highest run where there were several."
    return f'{median:,.4g}' + (f' ({min(runs):,.4g} to {max(runs):,.4g})' if len(runs) > 1 else '')

def bench_rows(folder:Path):
    "Every row of benchmarks/results/*.json: medians with their spread."
    yield '| benchmark | what | ours | baseline | unit | ratio |'
    yield '|---|---|---|---|---|---|'
    for path in sorted(folder.glob('*.json')):
        for r in read(path)['rows']:
            runs = r['runs'] if isinstance(r['runs'], dict) else {} # some scripts write only how many there were
            ours, baseline = (spread(r[k], runs.get(k, [])) for k in ('ours', 'baseline'))
            yield f"| {path.stem} | {r['what']} | {ours} | {r['baseline_name']}: {baseline} | {r['unit']} | {r['ratio']:.2f} |"

def fill_readme(root:Path):
    "The tables between the results markers of README.md."
    results, readme = root / 'benchmarks/results', root / 'README.md'
    machine = next((read(p)['machine'] for p in sorted(results.glob('*.json'))), '')
    text = '\n'.join([readme_block(read(run_path('card.json'))), '', *bench_rows(results), '', machine])
    old = readme.read_text(encoding='utf-8')
    readme.write_text(re.sub(r'(<!-- results:begin -->\n).*?(<!-- results:end -->)', lambda m: m[1] + text + '\n' + m[2], old, flags=re.S), encoding='utf-8')

def filled(done:Path, target:Path):
    "The notebook with the outputs of its executed copy; leaves with a message if the copy ran other code."
    ran, nb = nbformat.read(done, 4), nbformat.read(target, 4)
    code = [[c.source for c in n.cells if c.cell_type == 'code'] for n in (ran, nb)]
    if code[0] != code[1]: sys.exit(f'{target.name}: the executed copy has other code; run the course again')
    outputs = iter([c.outputs for c in ran.cells if c.cell_type == 'code'])
    for c in nb.cells:
        if c.cell_type == 'code': c.outputs = stored(next(outputs))
    return nb

def main(root:Path):
    "Notebooks, then the README; nothing is written before every executed copy has been found to fit."
    nbs = root / 'nbs'
    found = {target: filled(done, target) for done in sorted(run_path('notebooks').glob('*.ipynb')) if (target := next(nbs.rglob(done.name), None))}
    for target, nb in found.items():
        nbformat.write(nb, target)
        print(target.relative_to(nbs), f'{target.stat().st_size // 1024} KB')
    fill_readme(root)

if __name__ == '__main__': main(checkout_root())
