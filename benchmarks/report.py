"What every benchmark shares: the machine's description, a printed table, results/<name>.json."
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parent/'results'

# What the figures mean, in Chinese, stands in meanings.json, for the site and for benchmarks/README.md:
#   {<name of results/<name>.json>: {"title", "about", "rows": {<pattern>: [<better>, <meaning>]}}}
# pattern: fnmatchcase of a row's "what"; the first that fits counts. better: "higher", "lower", or "": neither.
# A new script or row needs its entry there (tests/test_site.py).
MEANINGS = RESULTS.parent/'meanings.json'

def machine()->str:
    "CPU model, cores, whether it has bf16 units, torch version."
    import torch
    cpu = platform.processor() or platform.machine()
    if Path('/proc/cpuinfo').exists():
        text = Path('/proc/cpuinfo').read_text()
        named = [line.split(':')[1].strip() for line in text.splitlines() if line.startswith('model name')]
        if named: cpu = named[0]
        if 'avx512_bf16' in text: cpu += ', avx512_bf16'
        elif 'avx512f' in text: cpu += ', avx512'
    gpu = f', {torch.cuda.get_device_name()}' if torch.cuda.is_available() else ''
    return f'{cpu}, {os.cpu_count()} cores{gpu}, torch {torch.__version__}'

def ratio(
    a:float, # how well one did
    b:float, # and the other
)->float|None: # a/b; of two zeros 1; None: the other is zero
    "How many times better."
    if b: return a/b
    return 1. if a == b else None

def row(
    what:str, # what was measured
    ours:list[float], # one figure a run
    baseline:list[float], # as many, of what we compare with
    baseline_name:str, # its name
    unit:str, # of both
    higher_is_better:bool=True, # False: seconds, bytes, losses
    middle:Callable[[list[float]], float]=statistics.median, # what is said of several runs
)->dict: # a row of results/<name>.json
    "One result: medians of the runs, and the median of the run-by-run ratios (how many times better we are)."
    ratios = [ratio(a, b) if higher_is_better else ratio(b, a) for a, b in zip(ours, baseline)]
    return dict(what=what, ours=middle(ours), baseline=middle(baseline),
                baseline_name=baseline_name, unit=unit, ratio=None if None in ratios else statistics.median(ratios),
                runs=dict(ours=list(ours), baseline=list(baseline)))

STAMP = ('machine', 'commit', 'date', 'script') # what a run says of itself

def stamped(result:dict)->list[dict]:
    "The rows, each with the stamp of the run that made it: what it does not say itself, its file says."
    stamp = {k: result[k] for k in STAMP if k in result}
    return [r | {k: v for k, v in stamp.items() if k not in r} for r in result['rows']]

def joined(old:dict, result:dict)->dict:
    """The old result with the new rows and configuration in it; a row measured again replaces the old one.
    The others keep the stamp of their own run."""
    rows = {r['what']: r for r in stamped(old)} | {r['what']: r for r in result['rows']}
    return result | dict(config=old['config'] | result['config'], rows=list(rows.values()))

def write(name:str, config:dict, rows:list[dict], merge:bool=False)->Path:
    """Print the rows and write results/<name>.json.
    `merge` keeps the rows and the configuration that another run put there, with its stamp."""
    head = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True, cwd=RESULTS.parent)
    RESULTS.mkdir(exist_ok=True)
    today = datetime.date.today().isoformat()
    script = Path(sys.argv[0]).name
    result = dict(machine=machine(), commit=head.stdout.strip(), date=today, script=script, config=config, rows=rows)
    result['rows'] = stamped(result)
    path = RESULTS/f'{name}.json'
    if merge and path.exists(): result = joined(json.loads(path.read_text(encoding='utf-8')), result)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
    for r in rows:
        times = '' if r['ratio'] is None else f"{r['ratio']:.2f}x"
        print(f"{r['what']:<34} {r['ours']:>12,.4g} {r['baseline']:>12,.4g} {r['unit']:<14} {times:>8}"
              f"  against {r['baseline_name']}")
    return path
