"""Put the outputs of the last clean run into the notebooks, and its figures into README.md: `make outputs`.

Executed copies come from runs/<scale>/notebooks; a copy whose code is not the notebook's is refused.
Widget state, execution metadata and progress on standard error are left out.
"""
import base64
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from PIL import Image

from scclm.report_card import readme_block
from scclm.runs import checkout_root, read_json, require, run_path

WIDGET = 'application/vnd.jupyter.widget-view+json'

def smaller(png:str)->str:
    "The same picture in a palette of 128 colours, base64 both: a plot has few colours, and a notebook stays light."
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert('RGB')
    out = io.BytesIO()
    picture.quantize(128, dither=Image.Dither.NONE).save(out, format='PNG', optimize=True)
    return min(base64.b64encode(out.getvalue()).decode(), png, key=len)

def stored(outputs:list[NotebookNode])->list[NotebookNode]:
    "What a reader needs: no standard error, no widget views (they need a live kernel)."
    keep = [o for o in outputs if o.get('name') != 'stderr' and WIDGET not in o.get('data', {})]
    for o in keep:
        if 'execution_count' in o: o['execution_count'] = None
        if 'metadata' in o: o['metadata'] = {}
        if 'image/png' in o.get('data', {}): o['data']['image/png'] = smaller(o['data']['image/png'])
    return keep

def spread(median:float, runs:list[float])->str:
    "A median, and the lowest and highest run where there were several."
    if len(runs) < 2: return f'{median:,.4g}'
    return f'{median:,.4g} ({min(runs):,.4g} to {max(runs):,.4g})'

def bench_rows(folder:Path)->Iterator[str]:
    "Every row of benchmarks/results/*.json: medians with their spread."
    yield '| benchmark | what | ours | baseline | unit | ratio |'
    yield '|---|---|---|---|---|---|'
    for path in sorted(folder.glob('*.json')):
        for r in read_json(path)['rows']:
            runs = r['runs'] if isinstance(r['runs'], dict) else {} # some scripts write only how many there were
            ours, baseline = (spread(r[k], runs.get(k, [])) for k in ('ours', 'baseline'))
            against = f"{r['baseline_name']}: {baseline}"
            times = '' if r['ratio'] is None else f"{r['ratio']:.2f}"
            yield f"| {path.stem} | {r['what']} | {ours} | {against} | {r['unit']} | {times} |"

def fill_readme(root:Path):
    "The tables between the results markers of README.md."
    results, readme = root/'benchmarks'/'results', root/'README.md'
    machines = [read_json(p)['machine'] for p in sorted(results.glob('*.json'))]
    card = readme_block(read_json(require(run_path('card.json'), 'card')))
    text = '\n'.join([card, '', *bench_rows(results), '', machines[0] if machines else ''])
    old = readme.read_text(encoding='utf-8')
    head, begin, rest = old.partition('<!-- results:begin -->\n')
    _, end, tail = rest.partition('<!-- results:end -->')
    if begin and end: readme.write_text(f'{head}{begin}{text}\n{end}{tail}', encoding='utf-8')

def filled(done:Path, target:Path)->NotebookNode:
    "The notebook with the outputs of its executed copy; leaves with a message if the copy ran other code."
    ran, nb = nbformat.read(done, 4), nbformat.read(target, 4)
    ran_cells, cells = ([c for c in n.cells if c.cell_type == 'code'] for n in (ran, nb))
    if [c.source for c in ran_cells] != [c.source for c in cells]:
        sys.exit(f'{target.name}: the executed copy has other code; run the course again')
    for cell, done_cell in zip(cells, ran_cells): cell.outputs = stored(done_cell.outputs)
    return nb

def main(root:Path):
    "Notebooks, then the README; nothing is written before every executed copy has been found to fit."
    nbs, found = root/'nbs', {}
    for done in sorted(run_path('notebooks').glob('*.ipynb')):
        target = next(nbs.rglob(done.name), None)
        if target: found[target] = filled(done, target)
    for target, nb in found.items():
        nbformat.write(nb, target)
        print(target.relative_to(nbs), f'{target.stat().st_size // 1024} KB')
    fill_readme(root)

if __name__ == '__main__': main(checkout_root())
