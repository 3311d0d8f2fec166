"What every benchmark shares: the machine's description, a printed table, results/<name>.json."
import datetime, json, platform, statistics, subprocess
from pathlib import Path

RESULTS = Path(__file__).parent / 'results'

def machine()->str:
    "CPU model, cores, whether it has bf16 units, torch version."
    import os, torch
    cpu = platform.processor() or platform.machine()
    if Path('/proc/cpuinfo').exists():
        text = Path('/proc/cpuinfo').read_text()
        cpu = next((l.split(':')[1].strip() for l in text.splitlines() if l.startswith('model name')), cpu)
        cpu += ', avx512_bf16' if 'avx512_bf16' in text else ', avx512' if 'avx512f' in text else ''
    gpu = f', {torch.cuda.get_device_name()}' if torch.cuda.is_available() else ''
    return f'{cpu}, {os.cpu_count()} cores{gpu}, torch {torch.__version__}'

def row(what:str, ours, baseline, baseline_name:str, unit:str, higher_is_better:bool=True)->dict:
    "One result: medians of the runs, and the median of the run-by-run ratios (how many times better we are)."
    ratios = [a / b if higher_is_better else b / a for a, b in zip(ours, baseline)]
    return dict(what=what, ours=statistics.median(ours), baseline=statistics.median(baseline), baseline_name=baseline_name, unit=unit,
                ratio=statistics.median(ratios), runs=dict(ours=list(ours), baseline=list(baseline)))

def write(name:str, config:dict, rows:list[dict], merge:bool=False)->Path:
    "Print the rows and write results/<name>.json; `merge` keeps the rows and the configuration that another script put there."
    commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True, cwd=RESULTS.parent).stdout.strip()
    RESULTS.mkdir(exist_ok=True)
    result = dict(machine=machine(), commit=commit, date=datetime.date.today().isoformat(), config=config, rows=rows)
    path = RESULTS / f'{name}.json'
    if merge and path.exists():
        old = json.loads(path.read_text(encoding='utf-8'))
        result |= dict(config=old['config'] | config, rows=list(({r['what']: r for r in old['rows']} | {r['what']: r for r in rows}).values()))
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
    for r in rows: print(f"{r['what']:<34} {r['ours']:>12,.4g} {r['baseline']:>12,.4g} {r['unit']:<14} {r['ratio']:>7.2f}x  against {r['baseline_name']}")
    return path
