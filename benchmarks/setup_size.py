"""What `make course` downloads before the first chapter: the packages of constraints.txt for this Python and system.

    python benchmarks/setup_size.py [--folder WHEELS]
    python benchmarks/setup_size.py --disk .venv    # of an environment that `make course` has set up and used

`pip download` fetches everything that `pip install -e '.[dev]'` would, into a folder that is removed afterwards;
`--folder` counts what a folder holds already. Megabytes of 10^6 bytes; `installed` is what the wheels unpack to;
`on disk` is what .venv takes, with what pip and Python compiled, in whole blocks of the file system.
The baseline of the first two is torch alone, by far the largest: its CPU build here, not the one with CUDA."""
import argparse
import json
import platform
import subprocess
import sys
import tempfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

from report import RESULTS, write

ROOT = Path(__file__).resolve().parents[1]


def requirements(root:Path)->list[str]:
    "Everything that settings.ini asks for, the extras too."
    cfg = ConfigParser(delimiters=['='])
    cfg.read(root/'settings.ini', encoding='utf-8')
    lists = [k for k in cfg['DEFAULT'] if k.endswith('requirements')]
    return sorted({r for k in lists for r in cfg['DEFAULT'][k].split()})


def download(root:Path, folder:Path):
    "Let pip fetch the whole set. Raises CalledProcessError if it cannot."
    command = [sys.executable, '-m', 'pip', 'download', '-qq', '-c', str(root/'constraints.txt'), '-d', str(folder)]
    subprocess.run([*command, *requirements(root)], check=True)


def unpacked(path:Path)->int:
    "Bytes that a wheel holds; what is no zip file counts as it is."
    if not zipfile.is_zipfile(path): return path.stat().st_size
    with zipfile.ZipFile(path) as wheel: return sum(entry.file_size for entry in wheel.infolist())


def size_rows(folder:Path)->list[dict]:
    "Megabytes to fetch and megabytes on the disk, all packages against torch. Raises ValueError without a torch."
    files = sorted(p for p in folder.iterdir() if p.is_file())
    torch = [p for p in files if p.name.startswith('torch-')]
    if len(torch) != 1: raise ValueError(f'{folder} holds {len(torch)} files named torch-*: expected one')
    counts = dict(download=lambda p: p.stat().st_size, installed=unpacked)
    return [dict(what=what, ours=sum(map(count, files))/1e6, baseline=count(torch[0])/1e6, baseline_name='torch alone',
                 unit='MB', ratio=None, runs=1, packages=len(files)) for what, count in counts.items()]


def taken(folder:Path)->int:
    "Bytes that a folder takes on the disk, each file once, as `du` counts; where there are no blocks, their sizes."
    found = {(s.st_dev, s.st_ino or p): s for p in [folder, *folder.rglob('*')] for s in [p.lstat()]}
    return sum(s.st_blocks*512 if hasattr(s, 'st_blocks') else s.st_size for s in found.values())


def disk_row(folder:Path, unpacked_mb:float)->dict:
    "Megabytes of an environment, against what its wheels unpack to."
    return dict(what='on disk', ours=taken(folder)/1e6, baseline=unpacked_mb, baseline_name='wheels, unpacked',
                unit='MB', ratio=None, runs=1)


def main():
    "Fetch, count, write results/setup_size.json."
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--folder', type=Path, help='wheels that are there already')
    parser.add_argument('--disk', type=Path, help='an environment to measure instead')
    args = parser.parse_args()
    if args.disk:
        held = json.loads((RESULTS/'setup_size.json').read_text(encoding='utf-8'))['rows']
        unpacked_mb = next(r['ours'] for r in held if r['what'] == 'installed')
        write('setup_size', {}, [disk_row(args.disk, unpacked_mb)], merge=True)
        return
    with tempfile.TemporaryDirectory() as tmp:
        if not args.folder: download(ROOT, Path(tmp))
        rows = size_rows(args.folder or Path(tmp))
    config = dict(python=platform.python_version(), system=f'{platform.system()} {platform.machine()}')
    write('setup_size', config, rows, merge=True)


if __name__ == '__main__': main()
