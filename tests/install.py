"""Build the sdist and the wheel, install each into an empty environment with all it asks for, and use it there.

`python tests/install.py [wheel] [sdist]`, on every Python of the CI's matrix; it downloads what the library needs, so
it is no part of `make test` (tests/test_wheel.py borrows the packages of the environment). Needs the module `build`.
`--store` keeps what was found in benchmarks/results/install.json; it wants torch beside `build`.
"""
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | dict(PYTHONUTF8='1')
KINDS = dict(wheel='*.whl', sdist='*.tar.gz')

# A module may need an extra; then it says which package is missing, and nothing else does.
USE = """if True:
    import importlib, json, pkgutil, sys, scclm
    missing, modules = {}, list(pkgutil.iter_modules(scclm.__path__))
    for m in modules:
        try: importlib.import_module(f'scclm.{m.name}')
        except ModuleNotFoundError as e: missing[m.name] = e.name
    from scclm.model import build_model, model_config, n_params
    assert n_params(build_model(model_config('tiny', 500))) > 10**6
    print(json.dumps(dict(missing=missing, n=len(modules), where=scclm.__file__)))"""

def sh(*command, **kw):
    "Run a command; its output on success, else leave with all of it."
    out = dict(capture_output=True, text=True, encoding='utf-8')
    done = subprocess.run([str(c) for c in command], env=OUTSIDE, **out, **kw)
    if done.returncode: sys.exit(f'{command}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}')
    return done.stdout

def extras():
    "Import names of what the extras ask for."
    cfg = ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    asked = [r for k, v in cfg['DEFAULT'].items() if k.endswith('_requirements') for r in v.split()]
    return {Requirement(r).name.replace('-', '_') for r in asked}

def use(python, away):
    "Import every module and run the command, in a folder that is not the checkout: modules there, those without extra."
    found = json.loads(sh(python, '-c', USE, cwd=away).splitlines()[-1])
    strange = {m: name for m, name in found['missing'].items() if name.split('.')[0] not in extras()}
    if strange: sys.exit(f'modules that miss what no extra brings: {strange}')
    if not Path(found['where']).resolve().is_relative_to(python.parents[1].resolve()):
        sys.exit(f"scclm came from {found['where']}")
    scclm = next(p for p in (python.with_name('scclm'), python.with_name('scclm.exe')) if p.exists())
    assert 'pretrain' in sh(scclm, '--help', cwd=away)
    assert 'fits' in sh(scclm, 'plan', '--scale', 'base', '--gpu', '24', cwd=away)
    return found['n'], found['missing']

def main(kinds):
    "Build once; then an environment for each kind of package. A row for each, as benchmarks/results has them."
    if unknown := set(kinds) - KINDS.keys(): sys.exit(f"{', '.join(unknown)}: expected some of {' '.join(KINDS)}")
    rows = []
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        leave = shutil.ignore_patterns('.git', '.venv', 'runs', 'runs_*', '__pycache__', '*.egg-info', '_site')
        shutil.copytree(ROOT, tmp/'src', ignore=leave)
        sh(sys.executable, '-m', 'build', '--outdir', tmp/'dist', tmp/'src')
        for kind in kinds or KINDS:
            package, home = next((tmp/'dist').glob(KINDS[kind])), tmp/kind
            sh(sys.executable, '-m', 'venv', home)
            python = next(p for p in (home/'Scripts/python.exe', home/'bin/python') if p.exists())
            sh(python, '-m', 'pip', 'install', '-q', '-c', ROOT/'constraints.txt', package)
            sh(python, '-m', 'pip', 'check')
            (tmp/'away').mkdir(exist_ok=True)
            n, missing = use(python, tmp/'away')
            version = platform.python_version()
            print(f'{package.name}: works on {version}; wants an extra: {missing}', flush=True)
            rows.append(dict(what=f'Python {version}, {kind}', ours=n - len(missing), baseline=n, unit='modules',
                baseline_name='modules of the library', ratio=None, runs=1))
            shutil.rmtree(home)
    return rows

def store(rows):
    "Keep them with those of other Pythons."
    sys.path.insert(0, str(ROOT/'benchmarks'))
    from report import write
    write('install', {}, rows, merge=True)

if __name__ == '__main__':
    words = sys.argv[1:]
    rows = main([w for w in words if w != '--store'])
    if '--store' in words: store(rows)
