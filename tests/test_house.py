"""The house rules that a script can check: imports, sizes, documentation, chapter form, stored outputs, set-up files."""
import ast, io, json, re, statistics, tokenize
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(p for p in (ROOT/'scclm').glob('*.py') if not p.name.startswith('_'))
CHAPTERS = sorted((ROOT/'nbs').glob('[0-9][0-9]_*.ipynb'))
APPENDIX = sorted(p for p in (ROOT/'nbs'/'appendix').glob('*.ipynb'))
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)

# What each module may import: only what lies before it. A list may be shorter than the arrows allow, never longer.
LINE = ['sample_corpus', 'data_cleaning', 'tokenizer', 'dataset', 'model', 'trainer', 'pretrain', 'sft']
MAY_IMPORT = {m: set(LINE[:i]) for i,m in enumerate(LINE)}
MAY_IMPORT['model'].remove('dataset')
MAY_IMPORT |= dict(chat={'data_cleaning', 'tokenizer', 'model'}, sample_prefs={'sample_corpus'}, sample_triples={'sample_corpus'})
MAY_IMPORT |= dict(dpo={*LINE, 'sample_prefs'}, ie_finetune={*LINE, 'sample_triples', 'chat'}, evaluation={*LINE, 'chat'},
                   planner={*LINE}, report_card={'data_cleaning', 'evaluation', 'trainer'})
MAY_IMPORT |= dict(course={'data_cleaning', 'report_card'}, website=set(), cli={'data_cleaning'})

def names(paths): return [p.stem for p in paths]
def source(path): return path.read_text(encoding='utf-8')
def tree(path): return ast.parse(source(path))
def p90(sizes): return sorted(sizes)[int(.9*(len(sizes)-1))]

def imported(path):
    "Modules of the library that a module imports, at the top or inside a function."
    for n in ast.walk(tree(path)):
        if isinstance(n, ast.ImportFrom) and n.level: yield (n.module or n.names[0].name).split('.')[0]
        elif isinstance(n, ast.ImportFrom) and (n.module or '').startswith('scclm.'): yield n.module.split('.')[1]
        elif isinstance(n, ast.Import): yield from (a.name.split('.')[1] for a in n.names if a.name.startswith('scclm.'))

@pytest.mark.parametrize('path', MODULES, ids=names(MODULES))
def test_imports_point_backwards(path):
    assert path.stem in MAY_IMPORT, f"{path.stem} has no place in the arrows yet: add it to MAY_IMPORT"
    assert set(imported(path)) <= MAY_IMPORT[path.stem]

@pytest.mark.parametrize('path', MODULES, ids=names(MODULES))
def test_no_star_no_pickle_no_drawer(path):
    assert path.stem not in ('utils', 'core', 'helpers')
    for n in ast.walk(tree(path)):
        if isinstance(n, ast.ImportFrom): assert all(a.name != '*' for a in n.names), f'line {n.lineno}: star import'
        if isinstance(n, ast.Import): assert all(a.name not in ('pickle', 'dill', 'joblib') for a in n.names), f'line {n.lineno}: pickle'
        if isinstance(n, ast.Call) and ast.unparse(n.func) == 'torch.load':
            assert any(k.arg == 'weights_only' and ast.unparse(k.value) == 'True' for k in n.keywords), f'line {n.lineno}: torch.load'

# Sizes

def functions(path): return [n for n in ast.walk(tree(path)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
def n_lines(f): return f.end_lineno - min([f.lineno, *(d.lineno for d in f.decorator_list)]) + 1

def test_function_sizes():
    sizes = [(n_lines(f), f'{p.stem}.{f.name}') for p in MODULES for f in functions(p)]
    assert [s for s in sizes if s[0] > 45] == []
    assert statistics.median(n for n,_ in sizes) <= 8
    assert p90([n for n,_ in sizes]) <= 20

def export_cells(path):
    return [c.source for c in nbformat.read(path, 4).cells if c.cell_type == 'code' and re.match(r'\s*#\| *export', c.source)]

def body(cell): return [l for l in cell.splitlines() if l.strip() and not re.match(r'\s*#\|', l)]

def test_export_cell_sizes():
    sizes = [(len(body(c)), f'{p.stem}: {body(c)[0]}') for p in CHAPTERS+APPENDIX for c in export_cells(p) if body(c)]
    assert [s for s in sizes if s[0] > 40] == []
    assert statistics.median(n for n,_ in sizes) <= 8
    assert p90([n for n,_ in sizes]) <= 20

@pytest.mark.parametrize('path', CHAPTERS+APPENDIX, ids=names(CHAPTERS+APPENDIX))
def test_imports_stand_alone(path):
    for cell in export_cells(path):
        kinds = {isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(cell).body}
        assert kinds != {True, False}, f'imports and code in one cell:\n{cell[:200]}'

# Documentation

def public_defs(path):
    "Qualified name and node of every public function, class and method; of private ones only what they hide."
    def walk(nodes, prefix=''):
        for n in nodes:
            if not isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)): continue
            if n.name.startswith('_') and n.name != '__init__': continue
            yield prefix+n.name, n
            if isinstance(n, ast.ClassDef): yield from walk(n.body, f'{prefix}{n.name}.')
    return walk(tree(path).body)

def comment_lines(path):
    return {t.start[0] for t in tokenize.generate_tokens(io.StringIO(source(path)).readline) if t.type == tokenize.COMMENT}

def own_nodes(f):
    "Everything inside a function but not inside a function it holds."
    todo = list(f.body)
    while todo:
        n = todo.pop()
        yield n
        if not isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)): todo += ast.iter_child_nodes(n)

def missing_docs(name, f, commented):
    "What a public function, class or dataclass does not say."
    if f.name != '__init__' and not ast.get_docstring(f): yield f'{name}: no docstring'
    if isinstance(f, ast.ClassDef):
        if not any('dataclass' in ast.unparse(d) or 'NamedTuple' in ast.unparse(d) for d in f.decorator_list+f.bases): return
        yield from (f'{name}.{n.target.id}: no comment' for n in f.body if isinstance(n, ast.AnnAssign) and n.end_lineno not in commented)
        return
    a = f.args
    args = [x for x in (*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg) if x and x.arg not in ('self', 'cls')]
    yield from (f'{name}({x.arg}): no comment' for x in args if x.end_lineno not in commented and line_end(f, x) not in commented)
    lines = [x.lineno for x in args]
    if len(set(lines)) < len(lines): yield f'{name}: two arguments on one line'
    gives = any(isinstance(n, ast.Return) and n.value and ast.unparse(n.value) != 'None' for n in own_nodes(f))
    if gives and f.name != '__init__' and sig_end(f) not in commented: yield f'{name}: return not described'

def sig_end(f):
    "The line on which the signature ends."
    return f.returns.end_lineno if f.returns else max(f.lineno, f.body[0].lineno - 1)

def line_end(f, arg):
    "The last line of an argument's default, which may run over several lines."
    ends = [d.end_lineno for d in (*f.args.defaults, *f.args.kw_defaults) if d and d.lineno >= arg.lineno]
    return min(ends, default=arg.end_lineno)

@pytest.mark.parametrize('path', MODULES, ids=names(MODULES))
def test_everything_public_is_documented(path):
    commented = comment_lines(path)
    gaps = [gap for name,f in public_defs(path) for gap in missing_docs(name, f, commented)]
    assert not gaps, '\n'+'\n'.join(gaps)
    assert ast.get_docstring(tree(path)), 'the module has no docstring: the notebook needs a "> summary" line under its title'

def test_the_documentation_check_sees_gaps(tmp_path):
    (tmp_path/'m.py').write_text('def f(\n    a, # fine\n    b,\n)->int:\n    "Doc."\n    return 1\n\ndef g(a): pass\n')
    gaps = [g for name,f in public_defs(tmp_path/'m.py') for g in missing_docs(name, f, comment_lines(tmp_path/'m.py'))]
    assert gaps == ['f(b): no comment', 'f: return not described', 'g: no docstring', 'g(a): no comment']

# Chapter form and stored outputs

@pytest.mark.parametrize('path', CHAPTERS+APPENDIX, ids=names(CHAPTERS+APPENDIX))
def test_chapter_form(path):
    cells = nbformat.read(path, 4).cells
    text = '\n\n'.join(c.source for c in cells if c.cell_type == 'markdown')
    assert re.match(r'# .+\n+> .+', cells[0].source), 'the first cell needs "# title" and "> summary"'
    assert re.search(r'#\| *default_exp ', next(c.source for c in cells if c.cell_type == 'code'))
    assert '学完你能' in text and '花费' in text
    for section in ('小结', '练习', '常见问题'): assert re.search(rf'^##+ .*{section}', text, re.M), f'no section {section}'
    assert 3 <= text[re.search(r'^##+ .*练习', text, re.M).end():].count('<details>') <= 5, 'three to five exercises with folded answers'

def output_texts(cell):
    for o in cell.get('outputs', []):
        yield from ([o.text] if 'text' in o else [str(v) for k,v in o.get('data', {}).items() if k.startswith('text/')])

@pytest.mark.parametrize('path', NOTEBOOKS, ids=names(NOTEBOOKS))
def test_stored_outputs(path):
    cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == 'code']
    images = [v for c in cells for o in c.outputs for k,v in o.get('data', {}).items() if k.startswith('image/')]
    assert len(images) <= 8 and sum(map(len, images)) <= 300*1024*4/3
    assert not [c.source for c in cells for o in c.outputs if o.output_type == 'error']
    for text in (t for c in cells for t in output_texts(c)):
        for what,pattern in dict(path=r'(?<![\w.])/(home|root|tmp|work|Users|var)/\w', address=r'\bat 0x[0-9a-f]{6,}', bar=r'\d(it/s|s/it)\b|█').items():
            assert not (found := re.search(pattern, text)), f'{what} in a stored output: {text[max(0, found.start()-60):found.end()+60]!r}'

def test_no_notebook_is_paired():
    "A pairing left by jupytext would make JupyterLab write nbs/*.py beside the notebooks."
    assert [p.name for p in NOTEBOOKS if 'formats' in nbformat.read(p, 4).metadata.get('jupytext', {})] == []

def test_no_machine_paths_in_sources():
    machine = re.compile('/' + r'(work|root)' + '/' + r'\w')
    files = [*MODULES, *NOTEBOOKS, *(ROOT/'tests').glob('*.py'), *(ROOT/'benchmarks').glob('*.py'), *ROOT.glob('*.md'), ROOT/'Makefile', ROOT/'.ci'/'run']
    assert [p.name for p in files if machine.search(source(p))] == []

# Set-up files

def test_constraints_pin_every_requirement():
    cfg = ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    asked = [Requirement(r) for k in ('requirements', 'dev_requirements') for r in cfg['DEFAULT'][k].split()]
    pins = {Requirement(l).name: l.split('==')[1] for l in source(ROOT/'constraints.txt').split('\n') if '==' in l and not l.startswith('#')}
    assert [r.name for r in asked if r.name not in pins] == []
    assert [str(r) for r in asked if not r.specifier.contains(pins[r.name])] == []

def test_every_import_is_a_requirement():
    cfg = ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    asked = {Requirement(r).name.replace('-', '_').lower() for r in cfg['DEFAULT']['requirements'].split()}
    dev = {'website': {'nbdev', 'execnb'}, 'pretrain': set()} # the site filter runs where the site is made
    import sys
    for p in MODULES:
        tops = {a.name.split('.')[0] for n in ast.walk(tree(p)) if isinstance(n, ast.Import) for a in n.names}
        tops |= {n.module.split('.')[0] for n in ast.walk(tree(p)) if isinstance(n, ast.ImportFrom) and n.module and not n.level}
        unknown = {t for t in tops if t.lower() not in asked} - set(sys.stdlib_module_names) - {'scclm', 'IPython'} - dev.get(p.stem, set())
        assert not unknown, f'{p.stem} imports {unknown}, which settings.ini does not list'

def test_the_site_has_every_notebook():
    conf = yaml.safe_load(source(ROOT/'_quarto.yml'))
    def hrefs(x):
        if isinstance(x, str): yield x
        elif isinstance(x, list): yield from (h for e in x for h in hrefs(e))
        elif isinstance(x, dict): yield from (h for k in ('href', 'contents', 'file') if k in x for h in hrefs(x[k]))
    listed = set(hrefs(conf['website']['sidebar']))
    assert listed == {p.relative_to(ROOT).as_posix() for p in NOTEBOOKS}
    assert conf['execute'] == dict(enabled=False, **{k: v for k,v in conf['execute'].items() if k != 'enabled'})

@pytest.mark.parametrize('path', NOTEBOOKS, ids=names(NOTEBOOKS))
def test_the_site_filter_keeps_the_lesson(path):
    from scclm.website import site_notebook
    before = json.loads(source(path))
    after = json.loads(site_notebook(json.loads(source(path))))
    nbformat.validate(nbformat.from_dict(after))
    assert after['cells'][0]['cell_type'] == 'raw' and ''.join(after['cells'][0]['source']).startswith('---\ntitle: "')
    outs = [[c['outputs'] for c in nb['cells'] if c.get('outputs')] for nb in (before, after)]
    assert len(outs[0]) == len(outs[1])
    code = '\n'.join(''.join(c['source']) for c in after['cells'] if c['cell_type'] == 'code')
    assert not re.search(r'^#\| *(export|default_exp)', code, re.M)
    shown = {l.strip() for l in code.splitlines()}
    assert not [l for cell in export_cells(path) for l in body(cell) if l.strip() not in shown]

@pytest.mark.parametrize('name', ['README.md', 'README.en.md'])
def test_readme_links_and_targets_exist(name):
    text = source(ROOT/name)
    links = [l for l in re.findall(r'\]\(([^)#]+)\)', text) if not l.startswith('http')]
    assert [l for l in links if not (ROOT/l).exists()] == []
    assert set(re.findall(r'\bmake ([a-z]+)', text)) - {'or'} <= set(re.findall(r'^([a-z]+):', source(ROOT/'Makefile'), re.M))
    modules = set(re.findall(r'`scclm\.(\w+)`', text))
    assert {p.stem.split('_', 1)[1] for p in CHAPTERS} == modules
