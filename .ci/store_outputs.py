"""Put the outputs of the last clean run into the notebooks, and its figures at the front door: `make outputs`.

Executed copies come from runs/<scale>/notebooks; a copy whose code is not the notebook's is refused.
Widget state, execution metadata and progress on standard error are left out. What the READMEs say of the course is
kept in benchmarks/course.json and card.json, and then everything that front.py makes is made again.
"""
import base64
import io
import sys
from pathlib import Path

import front
import nbformat
from course_facts import keep_facts
from nbformat import NotebookNode
from PIL import Image

from scclm.runs import checkout_root, run_path

WIDGET = 'application/vnd.jupyter.widget-view+json'

def smaller(png:str)->str:
    "The same picture in a palette of 128 colours, base64 both: a plot has few colours, and a notebook stays light."
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert('RGB')
    out = io.BytesIO()
    picture.quantize(128, dither=Image.Dither.NONE).save(out, format='PNG', optimize=True)
    return min(base64.b64encode(out.getvalue()).decode(), png, key=len)

def joined(outputs:list[NotebookNode])->list[NotebookNode]:
    "Text that was printed in pieces, one after the other, as one output: how it was cut is the clock's doing."
    whole = []
    for o in outputs:
        if whole and o.get('name') and o.get('name') == whole[-1].get('name'): whole[-1]['text'] += o['text']
        else: whole.append(o)
    return whole

def stored(outputs:list[NotebookNode])->list[NotebookNode]:
    "What a reader needs: no standard error, no widget views (they need a live kernel)."
    keep = joined([o for o in outputs if o.get('name') != 'stderr' and WIDGET not in o.get('data', {})])
    for o in keep:
        if 'execution_count' in o: o['execution_count'] = None
        if 'metadata' in o: o['metadata'] = {}
        if 'image/png' in o.get('data', {}): o['data']['image/png'] = smaller(o['data']['image/png'])
    return keep

def filled(done:Path, target:Path)->NotebookNode:
    "The notebook with the outputs of its executed copy; leaves with a message if the copy ran other code."
    ran, nb = nbformat.read(done, 4), nbformat.read(target, 4)
    ran_cells, cells = ([c for c in n.cells if c.cell_type == 'code'] for n in (ran, nb))
    if [c.source for c in ran_cells] != [c.source for c in cells]:
        sys.exit(f'{target.name}: the executed copy has other code; run the course again')
    for cell, done_cell in zip(cells, ran_cells): cell.outputs = stored(done_cell.outputs)
    return nb

def fitting(nbs:Path)->dict[Path, NotebookNode]:
    "Notebook -> itself with new outputs, for every executed copy; leaves with a message if one ran other code."
    found = {}
    for done in sorted(run_path('notebooks').glob('*.ipynb')):
        target = next(nbs.rglob(done.name), None)
        if target: found[target] = filled(done, target)
    return found

def store(found:dict[Path, NotebookNode]):
    "Write notebooks, and say how large each is."
    for target, nb in found.items():
        nbformat.write(nb, target)
        print(target.name, f'{target.stat().st_size // 1024} KB')

def main(root:Path):
    "Notebooks, then the front door; nothing is written before every copy fits and all facts are there."
    found = fitting(root/'nbs')
    keep_facts(root)
    store(found)
    front.main(root)

if __name__ == '__main__': main(checkout_root())
