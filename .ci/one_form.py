"""Bring the notebooks into one form: `make form` rewrites them, tests/test_site.py checks that nothing is left to do.

First cell: `# title`, `> summary`, each with a blank line behind it; an English abstract is folded. Quotation marks are
「 and 」. Answers stand under their exercise, three spaces in. Lesson cells have no line over 100 characters. Every
notebook with code begins with the cell that sets up Colab and Kaggle (`scclm.website.setup_cell`).
"""
import ast
import html
import io
import json
import keyword
import re
import sys
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from scclm.runs import checkout_root
from scclm.website import repository, setup_cell

LIMIT = 100
KEYWORDS = {*keyword.kwlist}
SPARED = re.compile(r'```.*?```|`[^`\n]*`|<code>.*?</code>|<pre>.*?</pre>|<[^>]+>|\]\([^)]*\)|\$[^$\n]+\$', re.S)
SETUP = 'setup-elsewhere' # id of the cell

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

# Lines of lesson cells

class Bracket(NamedTuple):
    "An open bracket."
    column:int # where the first thing in it stands
    is_index:bool # [ behind a name or another bracket

def opened_at(tokens:list[tokenize.TokenInfo], i:int)->Bracket:
    "The bracket that token i opens."
    first = next(t.start[1] for t in tokens[i + 1:] if t.type not in (tokenize.NL, tokenize.COMMENT))
    before = tokens[max(0, i - 1)]
    behind = before.string in (')', ']') or before.type == tokenize.NAME and before.string not in KEYWORDS
    return Bracket(first, tokens[i].string == '[' and behind)

class Place(NamedTuple):
    "Where a line may be broken; the smallest is the best."
    far:bool # the rest would stand far in
    opening:bool # directly behind a bracket
    depth:int # brackets around it
    back:int # minus the column
    indent:int # how far in the rest stands

def breaks(tokens:list[tokenize.TokenInfo], row:int)->Iterator[Place]:
    "In brackets: behind a comma, before a word such as `for`, behind the bracket itself."
    opened, in_target = [], False
    for i, token in enumerate(tokens[:-1]):
        if token.string == 'for' and opened: in_target = True
        if token.string == 'in': in_target = False
        on_row, same_row = token.start[0] == row, tokens[i + 1].start[0] == row
        if token.type == tokenize.OP and token.string in '([{':
            opened.append(opened_at(tokens, i))
            if on_row and same_row and not opened[-1].is_index and token.end[1] <= LIMIT:
                lead = len(token.line) - len(token.line.lstrip())
                yield Place(False, True, 0, -token.end[1], lead + 4)
        elif token.type == tokenize.OP and token.string in ')]}': opened.pop()
        elif on_row and opened and not opened[-1].is_index:
            comma = token.string == ',' and same_row and not in_target
            word = token.string in ('for', 'if', 'else', 'and', 'or')
            column = token.end[1] if comma else token.start[1]
            indent = opened[-1].column
            if (comma or word) and indent < column <= LIMIT:
                yield Place(indent > 56, False, len(opened), -column, indent)

def column_of(line:str, offset:int)->int:
    "The column of a byte offset of the syntax tree."
    return len(line.encode()[:offset].decode())

def body_below(source:str)->str:
    "The first long line `if a: b` becomes two lines; without one the source as it is."
    lines = source.split('\n')
    for node in ast.walk(ast.parse(source)):
        bodies = [getattr(node, field, None) for field in ('body', 'orelse')]
        for first in (b[0] for b in bodies if isinstance(b, list) and b):
            line = lines[first.lineno - 1]
            column = column_of(line, first.col_offset)
            if len(line) <= LIMIT or not line[:column].strip(): continue
            head, body = line[:column].rstrip(), ' '*(len(line) - len(line.lstrip()) + 4) + line[column:]
            return '\n'.join([*lines[:first.lineno - 1], head, body, *lines[first.lineno:]])
    return source

def single_asserts(source:str)->str:
    "The first long `assert a and b` becomes two assertions; without one the source as it is."
    lines = source.split('\n')
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assert) or node.msg or not isinstance(node.test, ast.BoolOp): continue
        line = lines[node.lineno - 1]
        if len(line) <= LIMIT or node.end_lineno != node.lineno or not isinstance(node.test.op, ast.And): continue
        lead = line[:column_of(line, node.col_offset)]
        if lead.strip(): continue
        each = [f'{lead}assert {ast.get_source_segment(source, part)}' for part in node.test.values]
        each[-1] += line[column_of(line, node.end_col_offset):]
        return '\n'.join([*lines[:node.lineno - 1], *each, *lines[node.lineno:]])
    return source

def settled(source:str, change:Callable[[str], str])->str:
    "Changed until nothing changes any more."
    for _ in range(60):
        after = change(source)
        if after == source: return source
        source = after
    raise ValueError(f'no end to the changes of a cell: {source[:80]!r}')

def shorter(source:str)->str:
    "The source with its first long line that can be broken or lose its comment made shorter; itself if there is none."
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    lines = source.split('\n')
    for row, line in enumerate(lines, 1):
        if len(line) <= LIMIT: continue
        lead = line[:len(line) - len(line.lstrip())]
        notes = [t for t in tokens if t.type == tokenize.COMMENT and t.start[0] == row and line[:t.start[1]].strip()]
        if notes:
            column = notes[0].start[1]
            return '\n'.join([*lines[:row - 1], lead + notes[0].string, line[:column].rstrip(), *lines[row:]])
        place = min(breaks(tokens, row), default=None)
        if place:
            head, tail = line[:-place.back].rstrip(), ' '*place.indent + line[-place.back:].strip()
            return '\n'.join([*lines[:row - 1], head, tail, *lines[row:]])
    return source

def short_lines(source:str)->str:
    "A lesson cell with its long lines broken, where that can be done; the code stays the same."
    if re.search(r'^#\| *export', source, re.M) or max(map(len, source.split('\n'))) <= LIMIT: return source
    try: source = settled(source, single_asserts)
    except SyntaxError: return source # %magic
    before = ast.dump(ast.parse(source))
    source = settled(settled(source, body_below), shorter)
    assert ast.dump(ast.parse(source)) == before, source
    return source

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
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown': cell['source'] = lines_of(one_markdown(source, i == 0))
        if cell['cell_type'] == 'code' and cell['id'] != SETUP: cell['source'] = lines_of(short_lines(source))
    folder = path.relative_to(root).parent.as_posix()
    return {**nb, 'cells': with_setup(nb['cells'], setup_cell(repository(root)[0], folder))}

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
