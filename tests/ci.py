"""Everything CI checks, in order, on any system.

`python tests/ci.py`, or some steps by name: `python tests/ci.py clean ruff`, `python tests/ci.py course tests`.
"""
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT/'runs_test'

def env():
    "The course at its default scale on the sample corpus, in a runs folder of its own."
    drop = {'SCCLM_RAW', 'SCCLM_SCALE', 'SCCLM_SETUP_SECONDS'}
    kept = {k: v for k, v in os.environ.items() if k not in drop}
    return kept | dict(SCCLM_RUNS=str(RUNS), SCCLM_CI='1', PYTHONUTF8='1', JUPYTER_PREFER_ENV_PATH='1')

def sh(*args, cwd=ROOT, **more):
    "Run a command of this Python's environment; leave with its exit code if it fails."
    code = subprocess.run([sys.executable, *map(str, args)], cwd=cwd, env=env() | more).returncode
    if code: sys.exit(code)

def notebooks(folder):
    "All notebooks below a folder; Jupyter's own copies are none."
    return sorted(p for p in folder.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)

def texts(root, *patterns):
    "Relative path -> text of the files that match; line ends do not count."
    found = [p for pat in patterns for p in root.glob(pat) if '.ipynb_checkpoints' not in p.parts]
    return {p.relative_to(root).as_posix(): p.read_text(encoding='utf-8') for p in found}

def same(before, after, advice):
    "Leave with exit code 1 and the differing names, if any."
    if bad := sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n)):
        sys.exit(f"{', '.join(bad)}: {advice}")

def copy_sources(copy):
    "What nbdev works on."
    leave = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
    for name in ('nbs', 'scclm'): shutil.copytree(ROOT/name, copy/name, ignore=leave)
    for name in ('settings.ini', 'setup.py', 'pyproject.toml'): shutil.copy(ROOT/name, copy)

def in_copy(command, patterns, advice, remove=()):
    "Run an nbdev command on a copy of the sources; it must change nothing."
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)/'copy'
        copy_sources(copy)
        for p in [p for pat in remove for p in copy.glob(pat)]: p.unlink()
        sh('-c', f'from nbdev.{command}', cwd=copy)
        same(texts(ROOT, *patterns), texts(copy, *patterns), advice)

def clean():
    "The notebooks hold nothing that nbdev_clean would take away."
    in_copy('clean import nbdev_clean; nbdev_clean()', ['nbs/**/*.ipynb'], 'not clean, run nbdev_clean')

def export():
    "The library is what the notebooks export, no more and no less."
    in_copy('doclinks import nbdev_export; nbdev_export()', ['scclm/*.py'],
            'differs from what the notebooks export, run nbdev_export', remove=['scclm/*.py'])

def ruff():
    "Names, syntax and the traps that ruff.toml lists."
    places = [p for p in ('scclm', 'nbs', 'tests', 'benchmarks', '.ci', 'setup.py') if (ROOT/p).exists()]
    sh('-m', 'ruff', 'check', '--output-format', 'concise', *places)

def house():
    "The house rules, before anything that takes long; the style comes with the other tests."
    sh('-m', 'pytest', '-q', '-p', 'no:cacheprovider', HOUSE)

# Small models gain little from a second thread: two processes with one each do more than one with two
SIDE_BY_SIDE, ONE_THREAD = 2, dict(OMP_NUM_THREADS='1')

# Test files that want nothing of the course: together they take about as long as it does
BESIDE = ('ancestor', 'batching', 'benchmarks', 'chat', 'clean_resume_crash', 'cluster', 'crash', 'dpo', 'evaluation',
          'facts', 'model', 'planner', 'reproduce', 'serve', 'streaming', 'tokenizer', 'trainer')
HOUSE = 'tests/test_house.py'
BESIDE_FILES = tuple(f'tests/test_{name}.py' for name in BESIDE)

def run_apart(args, **more):
    "A command of this Python's environment with one thread: its exit code and what it printed."
    done = subprocess.run([sys.executable, *map(str, args)], cwd=ROOT, env=env() | ONE_THREAD | more,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.returncode, done.stdout.decode('utf-8', 'replace')

def side_by_side(*jobs):
    "Run jobs, each a list of arguments and variables, at the same time; leave with exit code 1 if one fails."
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool: done = list(pool.map(lambda job: run_apart(job[0], **job[1]), jobs))
    print(*[said for _, said in done], sep='\n', flush=True)
    if any(code for code, _ in done): sys.exit(1)

def pytest_args():
    "What every run of tests is given; Windows has no pseudo-terminals, no fork and no SIGKILL."
    leave = ['--ignore-glob=*_pty.py', '--ignore-glob=*_crash.py'] if os.name == 'nt' else []
    return ['-m', 'pytest', '-q', '-p', 'no:cacheprovider', '--durations=8', *leave]

COURSE = ['-m', 'scclm.course', '--reference']

def course():
    "The whole course from an empty folder; the tests use what it makes."
    shutil.rmtree(RUNS, ignore_errors=True)
    sh(*COURSE)

def beside():
    "The course, and on the other core the tests that want nothing of it: their runs folder is an empty one."
    shutil.rmtree(RUNS, ignore_errors=True)
    with tempfile.TemporaryDirectory() as empty:
        side_by_side((COURSE, {}), ([*pytest_args(), *BESIDE_FILES], dict(SCCLM_RUNS=empty)))

def appendix():
    "The notebooks that are no chapters, run the same way, side by side."
    chapters = set((ROOT/'nbs').glob('[0-9][0-9]_*.ipynb'))
    others = [p for p in notebooks(ROOT/'nbs') if p not in chapters]
    parts = [others[k::SIDE_BY_SIDE] for k in range(SIDE_BY_SIDE)]
    side_by_side(*((['-m', 'scclm.course', '--notebooks', *part], {}) for part in parts))

def together(*args):
    "Tests, file by file side by side."
    sh(*pytest_args(), '-n', SIDE_BY_SIDE, '--dist', 'loadfile', *args, **ONE_THREAD)

def tests():
    "Everything under tests/."
    together('tests')

def rest():
    "Everything under tests/ that ran neither as `house` nor beside the course."
    together('tests', *(f'--ignore={name}' for name in (HOUSE, *BESIDE_FILES)))

STEPS = dict(clean=clean, export=export, ruff=ruff, house=house, course=course, beside=beside, appendix=appendix,
             tests=tests, rest=rest)
ALL = ('clean', 'export', 'ruff', 'house', 'beside', 'appendix', 'rest')

def main(names):
    "Run the steps, all of them if none is named."
    if unknown := set(names) - STEPS.keys():
        sys.exit(f"{', '.join(unknown)}: no such step, expected some of {' '.join(STEPS)}")
    t0 = time.monotonic()
    for name in names or ALL:
        print(f'== {name} (at {time.monotonic()-t0:.0f} s)', flush=True)
        STEPS[name]()

if __name__ == '__main__': main(sys.argv[1:])
