"""Put the outputs of the last clean run into the notebooks: `make outputs`.

Executed copies come from runs/<scale>/notebooks; a copy whose code is not the notebook's is refused. Widget state, execution
metadata and progress on standard error are left out.
"""
import sys
from pathlib import Path

import nbformat

from scclm.data_cleaning import checkout_root, run_path

def stored(outputs):
    "What a reader needs: no standard error, no widget views (they need a live kernel)."
    keep = [o for o in outputs if o.get('name') != 'stderr' and 'application/vnd.jupyter.widget-view+json' not in o.get('data', {})]
    for o in keep:
        if 'execution_count' in o: o['execution_count'] = None
        if 'metadata' in o: o['metadata'] = {}
    return keep

def main():
    nbs = checkout_root() / 'nbs'
    for done in sorted(run_path('notebooks').glob('*.ipynb')):
        target = next(nbs.rglob(done.name), None)
        if not target: continue
        ran, nb = nbformat.read(done, 4), nbformat.read(target, 4)
        code = [[c.source for c in n.cells if c.cell_type == 'code'] for n in (ran, nb)]
        if code[0] != code[1]: sys.exit(f'{target}: the executed copy has other code; run the course again')
        outputs = iter([c.outputs for c in ran.cells if c.cell_type == 'code'])
        for c in nb.cells:
            if c.cell_type == 'code': c.outputs = stored(next(outputs))
        nbformat.write(nb, target)
        print(target.relative_to(nbs), f'{target.stat().st_size // 1024} KB')

if __name__ == '__main__': main()
