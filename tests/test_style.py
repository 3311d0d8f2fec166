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
    kind:str # strict: library, benchmarks, set-up: sizes, types and docstrings count; test; or lesson

def plain(text:str)->str:
    "Lines of IPython become `pass`."
    return re.sub(r'^([ \t]*)[%!].*$', r'\1pass', text, flags=re.M)

def pieces(path:Path)->Iterator[Code]:
    "The code of a file: a notebook's cells one by one."
    if path.suffix == '.py':
        kind = 'test' if path.parent.name == 'tests' else 'strict'
        yield Code(path.name, path.read_text(encoding='utf-8'), kind)
        return
    for i, cell in enumerate(nbformat.read(path, 4).cells):
        if cell.cell_type != 'code': continue
        exported = re.match(r'\s*#\| *export', cell.source)
        yield Code(f'{path.name}, cell {i}', plain(cell.source), 'strict' if exported else 'lesson')

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
    shown = body[-1] if body and code.kind == 'lesson' else None
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

def between(text:str, before:ast.AST, after:ast.AST)->str:
    "What stands between two nodes, if they share a line."
    if before.end_lineno != after.lineno: return ''
    line = text.split('\n')[after.lineno - 1].encode()
    return line[before.end_col_offset:after.col_offset].decode()

def typed(tree:ast.Module)->Iterator[tuple[ast.AST, ast.AST]]:
    "The type and the default of every field and parameter that has both."
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from ((x.annotation, x.value) for x in node.body if isinstance(x, ast.AnnAssign) and x.value)
        if isinstance(node, ast.arguments):
            plain = [*node.posonlyargs, *node.args]
            last = list(zip(plain[len(plain) - len(node.defaults):], node.defaults))
            keyed = list(zip(node.kwonlyargs, node.kw_defaults))
            yield from ((arg.annotation, value) for arg, value in last + keyed if arg.annotation and value)

def is_text(node:ast.AST)->bool:
    "A string, with or without f."
    return isinstance(node, ast.JoinedStr) or isinstance(node, ast.Constant) and isinstance(node.value, str)

def spacing(code:Code)->Iterator[str]:
    "A comma without a space behind it, spaces around the / of a path, spaces in `x:int=0`."
    tokens = list(tokenize.generate_tokens(io.StringIO(code.text).readline))
    for token, after in zip(tokens, tokens[1:]):
        close = after.start == token.end and after.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT)
        if token.string == ',' and close and after.string not in ')]':
            yield f'line {token.start[0]}: a comma without a space'
    tree = ast.parse(code.text)
    for node in ast.walk(tree):
        path = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and is_text(node.right)
        if path and ' ' in between(code.text, node.left, node.right):
            yield f'line {node.lineno}: spaces around the / of a path'
    for kind, value in typed(tree):
        if ' ' in between(code.text, kind, value): yield f'line {value.lineno}: spaces around the = of a typed default'

def sizes(code:Code)->Iterator[str]:
    "More than 8 parameters, or 30 lines outside the tests; a lesson's own functions are free."
    if code.kind == 'lesson': return
    for name, f in functions(ast.parse(code.text).body):
        n = len(parameters(f))
        if n > 8 and name not in MANY_PARAMETERS: yield f'{name}: {n} parameters'
        lines = f.end_lineno - min([f.lineno, *(d.lineno for d in f.decorator_list)]) + 1
        if lines > 30 and code.kind == 'strict': yield f'{name}: {lines} lines'

def at_import(nodes:list[ast.stmt])->Iterator[ast.AST]:
    "What runs when a module is imported."
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)): continue
        if isinstance(node, ast.ClassDef): yield from at_import(node.body)
        elif not (isinstance(node, ast.If) and '__main__' in ast.unparse(node.test)): yield from ast.walk(node)

def hidden_switches(code:Code)->Iterator[str]:
    "A `noqa`, or a number of threads set by an import."
    if code.kind == 'lesson': return
    for token in tokenize.generate_tokens(io.StringIO(code.text).readline):
        if token.type == tokenize.COMMENT and 'noqa' in token.string: yield f'line {token.start[0]}: noqa'
    for node in at_import(ast.parse(code.text).body):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith('set_num_threads'):
            yield f'line {node.lineno}: threads set by an import'

def documentation(code:Code)->Iterator[str]:
    "A parameter without a type, no docstring, or one of a single word."
    if code.kind != 'strict': return
    for name, f in functions(ast.parse(code.text).body):
        yield from (f'{name}({x.arg}): no type' for x in parameters(f) if x.annotation is None)
        doc = ast.get_docstring(f)
        if f.name in ('__init__', '__post_init__') and not doc: continue
        if not doc or len(doc.split()) < 2: yield f'{name}: the docstring {doc!r} says nothing'

RULES = [long_lines, joined_statements, side_effects, long_lambdas, spacing, sizes, hidden_switches, documentation]

@pytest.mark.parametrize('rule', RULES, ids=[rule.__name__ for rule in RULES])
def test_style(rule):
    found = [f'{code.where}: {what}' for path in NOTEBOOKS + SCRIPTS for code in pieces(path) for what in rule(code)]
    assert not found, '\n' + '\n'.join(found)

BAD = [
    (long_lines, '121 characters', 'x = ' + '1'*117),
    (joined_statements, ';', 'a = 1; b = 2'),
    (side_effects, 'side effect', '[print(x) for x in (1, 2)]\nlen([])'),
    (side_effects, 'side effect', 'a and print(a)\nlen([])'),
    (side_effects, 'side effect', 'print(a) if a else 0\nlen([])'),
    (long_lambdas, 'with a name', 'f = lambda x: x'),
    (long_lambdas, 'more than 60', 'sorted(a, key=lambda x: x' + ' + 1'*16 + ')'),
    (spacing, 'comma', 'f(1,2)'),
    (spacing, 'path', "Path(f).parent / 'x'"),
    (spacing, 'path', "here / f'{x}'"),
    (spacing, 'default', 'class A:\n    x:int = 0'),
    (spacing, 'default', 'def f(*, x:int = 0): pass'),
    (spacing, 'default', 'def f(y, x:int = 0): pass'),
    (sizes, '9 parameters', 'def f(a, b, c, d, e, f, g, h, i):\n    return 1'),
    (sizes, '31 lines', 'def f():\n' + '    pass\n'*30),
    (hidden_switches, 'noqa', 'import a # noqa'),
    (hidden_switches, 'threads', 'torch.set_num_threads(1)'),
    (documentation, 'no type', 'def f(\n    a, # a number\n):\n    "A number of things."'),
    (documentation, 'says nothing', 'def f():\n    "Once."'),
    (documentation, 'says nothing', 'def f():\n    return 1')]

@pytest.mark.parametrize('rule, message, text', BAD)
def test_every_rule_sees_what_it_forbids(rule, message, text):
    assert any(message in found for found in rule(Code('bad.py', text, 'strict')))
