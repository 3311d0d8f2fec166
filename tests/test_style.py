"""How the code is written: short lines, one statement a line, few parameters, types, docstrings that say something.

The library is read from its notebooks' cells, so that a report names the cell; tests, benchmarks, CI as files.
Lines are counted in characters: ruff counts a Chinese character twice, which is why this is not its E501."""
import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
SCRIPTS = [ROOT/'setup.py', *sorted(p for folder in ('tests', 'benchmarks', '.ci') for p in (ROOT/folder).glob('*.py'))]
MANY_PARAMETERS = {'fit', 'PairFiles.__init__', 'bit_attention'} # others rely on them; the last is transformers' own

class Code(NamedTuple):
    "A piece of Python."
    where:str # file, or notebook and cell
    text:str # without the lines that only IPython understands
    strict:bool # library and benchmarks: sizes, types and docstrings count

def plain(text:str)->str:
    "Lines of IPython become `pass`."
    return '\n'.join('pass' if re.match(r'\s*[%!]', line) else line for line in text.split('\n'))

def pieces(path:Path)->Iterator[Code]:
    "The code of a file: a notebook's cells one by one."
    if path.suffix == '.py':
        yield Code(path.name, path.read_text(encoding='utf-8'), path.parent.name == 'benchmarks')
        return
    for i, cell in enumerate(nbformat.read(path, 4).cells):
        if cell.cell_type != 'code': continue
        exported = re.match(r'\s*#\| *export', cell.source) is not None
        yield Code(f'{path.name}, cell {i}', plain(cell.source), exported)

def functions(nodes:list, prefix:str='')->Iterator[tuple[str, ast.FunctionDef]]:
    "Every function, those inside others too, with its qualified name."
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)): yield prefix + node.name, node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from functions(node.body, f'{prefix}{node.name}.')
        else:
            inner = [x for field in ('body', 'orelse', 'finalbody', 'handlers') for x in getattr(node, field, [])]
            yield from functions(inner, prefix)

def parameters(f:ast.FunctionDef)->list[ast.arg]:
    "All but self and cls."
    a = f.args
    found = [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]
    return [x for x in found if x and x.arg not in ('self', 'cls')]

def long_lines(code:Code)->Iterator[str]:
    "Lines over 120 characters."
    for i, line in enumerate(code.text.split('\n'), 1):
        if len(line) > 120: yield f'line {i}: {len(line)} characters'

def joined_statements(code:Code)->Iterator[str]:
    "A `;` with a statement behind it."
    tokens = list(tokenize.generate_tokens(io.StringIO(code.text).readline))
    ends = (tokenize.NEWLINE, tokenize.NL, tokenize.COMMENT, tokenize.ENDMARKER)
    for token, after in zip(tokens, tokens[1:]):
        joins = token.type == tokenize.OP and token.string == ';' and after.type not in ends
        if joins: yield f'line {token.start[0]}: ;'

def side_effects(code:Code)->Iterator[str]:
    "A comprehension, a condition or an `and` that stands alone; the last line of a lesson may show its value."
    body = ast.parse(code.text).body
    shown = body[-1] if body and not code.strict and code.where.count(',') else None
    kinds = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.BoolOp, ast.IfExp)
    for node in ast.walk(ast.parse(code.text)):
        if not isinstance(node, ast.Expr) or not isinstance(node.value, kinds): continue
        if shown is not None and node.lineno == shown.lineno: continue
        yield f'line {node.lineno}: an expression for its side effect'

def long_lambdas(code:Code)->Iterator[str]:
    "A lambda with a name, or one over 60 characters."
    for node in ast.walk(ast.parse(code.text)):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Lambda):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name): yield f'line {node.lineno}: a lambda with a name'
        if isinstance(node, ast.Lambda) and len(ast.get_source_segment(code.text, node) or '') > 60:
            yield f'line {node.lineno}: a lambda of more than 60 characters'

def spacing(code:Code)->Iterator[str]:
    "A comma without a space behind it, spaces around the / of a path."
    tokens = list(tokenize.generate_tokens(io.StringIO(code.text).readline))
    for token, after in zip(tokens, tokens[1:]):
        close = after.start == token.end and after.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT)
        if token.string == ',' and close and after.string not in ')]':
            yield f'line {token.start[0]}: a comma without a space'
    for i, line in enumerate(code.text.split('\n'), 1):
        if re.search(r"""\b(Path\([^()]*\)|run_path\([^()]*\)|out|path|folder|root|tmp|ROOT|RUNS) / f?['"]""", line):
            yield f'line {i}: spaces around the / of a path'

def sizes(code:Code)->Iterator[str]:
    "More than 8 parameters or 30 lines."
    if not code.strict: return
    for name, f in functions(ast.parse(code.text).body):
        n = len(parameters(f))
        if n > 8 and name not in MANY_PARAMETERS: yield f'{name}: {n} parameters'
        lines = f.end_lineno - min([f.lineno, *(d.lineno for d in f.decorator_list)]) + 1
        if lines > 30: yield f'{name}: {lines} lines'

def documentation(code:Code)->Iterator[str]:
    "A parameter without a type, no docstring, or one of a single word."
    if not code.strict: return
    for name, f in functions(ast.parse(code.text).body):
        yield from (f'{name}({x.arg}): no type' for x in parameters(f) if x.annotation is None)
        doc = ast.get_docstring(f)
        if f.name in ('__init__', '__post_init__') and not doc: continue
        if not doc or len(doc.split()) < 2: yield f'{name}: the docstring {doc!r} says nothing'

RULES = [long_lines, joined_statements, side_effects, long_lambdas, spacing, sizes, documentation]

@pytest.mark.parametrize('rule', RULES, ids=[rule.__name__ for rule in RULES])
def test_style(rule):
    found = [f'{code.where}: {what}' for path in NOTEBOOKS + SCRIPTS for code in pieces(path) for what in rule(code)]
    assert not found, '\n' + '\n'.join(found)

BAD = {
    long_lines: 'x = ' + '1 + '*40 + '1',
    joined_statements: 'a = 1; b = 2',
    side_effects: '[print(x) for x in (1, 2)]\nlen([])',
    long_lambdas: 'f = lambda x: x',
    spacing: 'f(1,2)',
    sizes: 'def f(a, b, c, d, e, f, g, h, i):\n    return 1',
    documentation: 'def f(\n    a, # a number\n):\n    "Once."'}

@pytest.mark.parametrize('rule', RULES, ids=[rule.__name__ for rule in RULES])
def test_every_rule_sees_what_it_forbids(rule):
    assert list(rule(Code('bad.py', BAD[rule], True)))
