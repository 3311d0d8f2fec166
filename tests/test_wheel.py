"""The built packages: the wheel works outside the checkout, and the sdist builds the same wheel."""
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}    # it may name the checkout

def build(kind, src, out):
    "Build a wheel or an sdist of `src`; no build isolation, so nothing is downloaded."
    out.mkdir(exist_ok=True)
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    subprocess.run([sys.executable, '-c', code, str(out)], cwd=src, check=True, capture_output=True, text=True)
    return next(out.glob('*.whl' if kind == 'wheel' else '*.tar.gz'))

@pytest.fixture(scope='module')
def packages(tmp_path_factory):
    "(wheel, sdist) of a copy of the sources, so that the checkout stays clean."
    tmp = tmp_path_factory.mktemp('dist')
    src = tmp/'src'
    for name in ('scclm', 'tests'): shutil.copytree(ROOT/name, src/name, ignore=shutil.ignore_patterns('__pycache__'))
    for p in ROOT.iterdir():
        if p.is_file() and p.name != '.gitignore': shutil.copy(p, src)
    return build('wheel', src, tmp/'wheel'), build('sdist', src, tmp/'sdist')

@pytest.fixture(scope='module')
def venv(packages, tmp_path_factory):
    "A fresh environment with the wheel in it; the dependencies are borrowed from this one, scclm is not."
    home = tmp_path_factory.mktemp('venv')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', str(home)], check=True)
    bin_ = home/('Scripts' if sys.platform == 'win32' else 'bin')
    python = next(p for p in (bin_/'python.exe', bin_/'python') if p.exists())
    pip = [sys.executable, '-m', 'pip', '--python', str(python)]
    subprocess.run([*pip, 'install', '-q', '--no-deps', '--no-index', str(packages[0])], check=True)
    ask = [str(python), '-c', "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    borrowed = sorted({sysconfig.get_path('purelib'), sysconfig.get_path('platlib')})
    (site/'borrowed.pth').write_text('\n'.join(borrowed), encoding='utf-8')
    return python

def names(wheel):
    "Files of a wheel, its list of hashes left out."
    return sorted(n for n in zipfile.ZipFile(wheel).namelist() if not n.endswith('RECORD'))

def test_wheel_holds_the_library_and_the_licence(packages):
    inside = names(packages[0])
    assert {f'scclm/{p.name}' for p in (ROOT/'scclm').glob('*.py')} == {n for n in inside if re.match(r'scclm/.*py', n)}
    assert 'scclm/chat_page.html' in inside
    assert 'scclm/fonts/SCCLMSans-Regular.otf' in inside and 'scclm/fonts/LICENSE.txt' in inside
    assert {f'scclm/page/{p.name}' for p in (ROOT/'scclm'/'page').iterdir()} <= set(inside)
    assert any(n.endswith('licenses/LICENSE') for n in inside) and any(n.endswith('licenses/NOTICE') for n in inside)
    meta = zipfile.ZipFile(packages[0]).read(next(n for n in inside if n.endswith('METADATA'))).decode('utf-8')
    assert 'Requires-Python: >=3.11' in meta and 'Requires-Dist: torch' in meta and '# SCCLM' in meta

def test_sdist_builds_the_same_wheel(packages, tmp_path):
    with tarfile.open(packages[1]) as tar: tar.extractall(tmp_path, filter='data')
    src = next(tmp_path.iterdir())
    again = build('wheel', src, tmp_path/'again')
    assert names(again) == names(packages[0])

def test_the_sdist_holds_no_test_that_cannot_run(packages):
    "Tests ask for notebooks, benchmarks and CI, which a sdist does not have."
    with tarfile.open(packages[1]) as tar: inside = tar.getnames()
    assert not [n for n in inside if n.split('/')[1:2] == ['tests']] and any(n.endswith('/NOTICE') for n in inside)

def test_the_readme_of_a_package_leads_to_the_repository(packages):
    wheel = zipfile.ZipFile(packages[0])
    meta = wheel.read(next(n for n in names(packages[0]) if n.endswith('METADATA'))).decode('utf-8')
    links = re.findall(r'\]\(([^)]+)\)|src="([^"]+)"', meta.split('\n\n', 1)[1])
    assert len(links) > 10 and not [a or b for a, b in links if not (a or b).startswith('https://')]
    assert any('/raw/main/nbs/figures/' in b for _, b in links) and any('/blob/main/nbs/' in a for a, _ in links)

def test_every_module_imports_outside_the_checkout(venv, tmp_path):
    mods = sorted(p.stem for p in (ROOT/'scclm').glob('*.py') if not p.stem.startswith('_'))
    code = """if True:
        import importlib, sys, scclm
        for m in sys.argv[1:]: importlib.import_module('scclm.' + m)
        print(scclm.__file__)"""
    command = [str(venv), '-c', code, *mods]
    done = subprocess.run(command, cwd=tmp_path, env=OUTSIDE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip().splitlines()[-1]).resolve().is_relative_to(venv.parents[1].resolve())

def test_the_command_line_works_outside_the_checkout(venv, tmp_path):
    scclm = next(p for p in (venv.with_name('scclm'), venv.with_name('scclm.exe')) if p.exists())
    command = [str(scclm), '--help']
    done = subprocess.run(command, cwd=tmp_path, env=OUTSIDE, capture_output=True, text=True, encoding='utf-8')
    assert done.returncode == 0, done.stderr
    assert all(stage in done.stdout for stage in ('clean', 'tokenizer', 'pretrain', 'sft', 'chat'))
