"""Bring the notebooks into one form: `make form` rewrites them, tests/test_site.py checks that nothing is left to do.

First cell: `# title`, `> summary`, each with a blank line behind it; an English abstract is folded. Quotation marks are
「 and 」. Answers stand under their exercise, three spaces in. Every notebook with code begins with the cell that sets up
Colab and Kaggle (`scclm.website.setup_cell`), and names its kernel.
"""
import html
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from scclm.runs import checkout_root
from scclm.website import repository, setup_cell

SPARED = re.compile(r'```.*?```|`[^`\n]*`|<code>.*?</code>|<pre>.*?</pre>|<[^>]+>|\]\([^)]*\)|\$[^$\n]+\$', re.S)
SETUP = 'setup-elsewhere' # id of the cell
KERNEL = dict(display_name='python3', language='python', name='python3') # without one Jupyter asks

# Markdown

def outside(text:str, change:Callable[[str], str])->str:
    "Change what is neither code nor a tag nor an address."
    ends = [0, *(i for m in SPARED.finditer(text) for i in m.span()), len(text)]
    parts = [text[a:b] for a, b in zip(ends, ends[1:])]
    return ''.join(change(part) if i % 2 == 0 else part for i, part in enumerate(parts))

def corner_marks(text:str)->str:
    "“ and ” become 「 and 」, ‘ and ’ within them 『 and 』."
    pairs = re.compile(r'‘([^‘’]*)’(?=[^“]*”)')
    def change(part:str)->str:
        "Of a part that is text."
        return pairs.sub(r'『\1』', part).replace('“', '「').replace('”', '」')
    return outside(text, change)

def is_abstract(paragraph:str)->bool:
    "A paragraph of the first cell in English."
    return len(paragraph) > 60 and paragraph[0] not in '#><!' and len(re.findall('[\u4e00-\u9fff]', paragraph)) < 3

def folded_abstract(paragraph:str)->str:
    "The same as a fold."
    text = html.escape(paragraph.strip('*').replace('\n', ' '), quote=False)
    text = re.sub(r'`([^`]+)`', r'<code>\1</code>', text)
    return f'<details><summary>English abstract</summary>{text}</details>'

def first_cell(text:str)->str:
    "Title, summary, text, and the abstract at the end of the opening."
    text = re.sub(r'\A(# .+)\n+(> .+)\n+', r'\1\n\n\2\n\n', text.strip() + '\n\n').strip()
    paragraphs = text.split('\n\n')
    abstracts = [p for p in paragraphs if is_abstract(p)]
    rest = [p for p in paragraphs if p not in abstracts]
    end = next((i for i, p in enumerate(rest) if p.startswith('## ')), len(rest))
    return '\n\n'.join([*rest[:end], *map(folded_abstract, abstracts), *rest[end:]])

def indented_answers(text:str)->str:
    "Exercises are a numbered list; a fold behind one belongs to it."
    def shift(m:re.Match)->str:
        "Three spaces before every line."
        return '\n\n' + '\n'.join(f'   {line}' for line in m[1].split('\n'))
    text = re.sub(r'^\*\*(\d+)\.\*\* ', r'\1. ', text, flags=re.M)
    head, *exercises = re.split(r'(?=^\d+\. )', text, flags=re.M)
    return head + ''.join(re.sub(r'\n+(<details>.*?</details>)', shift, e, flags=re.S) for e in exercises)

def one_markdown(text:str, first:bool)->str:
    "A markdown cell in the one form."
    text = corner_marks(indented_answers(text))
    return first_cell(text) if first else text

# Notebooks

def with_setup(cells:list[dict], source:str)->list[dict]:
    "The cell for Colab and Kaggle stands first of all code, behind `default_exp`."
    cells = [c for c in cells if c['id'] != SETUP]
    code = [i for i, c in enumerate(cells) if c['cell_type'] == 'code']
    if not code: return cells
    at = code[0] + ('default_exp' in ''.join(cells[code[0]]['source']))
    new = dict(cell_type='code', execution_count=None, id=SETUP, metadata={}, outputs=[], source=lines_of(source))
    return [*cells[:at], new, *cells[at:]]

def lines_of(text:str)->list[str]:
    "As a notebook keeps a text."
    return text.splitlines(keepends=True)

def one_form(path:Path, root:Path)->dict:
    "A notebook in the one form."
    nb = json.loads(path.read_text(encoding='utf-8'))
    for i, cell in enumerate(nb['cells']):
        if cell['cell_type'] != 'markdown': continue
        cell['source'] = lines_of(one_markdown(''.join(cell['source']), i == 0))
    folder = path.relative_to(root).parent.as_posix()
    cells = with_setup(nb['cells'], setup_cell(repository(root)[0], folder))
    return {**nb, 'metadata': dict(kernelspec=KERNEL), 'cells': cells}

def notebooks(root:Path)->list[Path]:
    "All that the site shows."
    found = [root/'index.ipynb', *sorted((root/'nbs').rglob('*.ipynb'))]
    return [p for p in found if '.ipynb_checkpoints' not in p.parts]

def written(nb:dict)->str:
    "The text of a notebook's file."
    return json.dumps(nb, ensure_ascii=False, indent=1) + '\n'

def main(root:Path):
    "Rewrite what is in another form, and name it."
    for path in notebooks(root):
        before = json.loads(path.read_text(encoding='utf-8'))
        after = one_form(path, root)
        if after == before: continue
        path.write_text(written(after), encoding='utf-8')
        sys.stdout.write(f'{path.relative_to(root)}\n')

if __name__ == '__main__': main(checkout_root())
