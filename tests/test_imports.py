"""What an import costs: every module can be the first one imported, and chat drags in nothing that it does not need."""
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(p.stem for p in (ROOT/'scclm').glob('*.py') if not p.stem.startswith('_'))
LATE = {'pandas', 'datasets', 'trl', 'peft', 'matplotlib', 'ipywidgets'}   # imported where they are used

def fresh(code, *args):
    "What `code` prints as its last line, read as JSON, in an interpreter that has imported nothing else."
    env = os.environ | {'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-c', code, *args]
    done = subprocess.run(command, capture_output=True, text=True, encoding='utf-8', cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])

def test_every_module_imports_on_its_own():
    "Third-party packages stay loaded, which saves minutes; scclm itself is forgotten before every module."
    assert len(MODULES) > 20
    code = """if True:
        import importlib, json, sys, traceback
        faults, files = {}, {}
        for module in sys.argv[1:]:
            for name in [n for n in sys.modules if n.split('.')[0] == 'scclm']: del sys.modules[name]
            try: files[module] = importlib.import_module('scclm.' + module).__file__
            except BaseException: faults[module] = traceback.format_exc()
        print(json.dumps([faults, files]))"""
    faults, files = fresh(code, *MODULES)
    assert faults == {}, '\n'.join(faults.values())
    assert {m: Path(f) for m, f in files.items()} == {m: ROOT/'scclm'/f'{m}.py' for m in MODULES}

def test_chat_loads_nothing_that_it_does_not_need():
    code = """if True:
        import json, sys
        import scclm.chat
        print(json.dumps([scclm.chat.__file__, sorted({name.split('.')[0] for name in sys.modules})]))"""
    file, names = fresh(code)
    assert Path(file) == ROOT/'scclm'/'chat.py' and {'torch', 'transformers'} <= set(names)
    assert LATE.isdisjoint(names), sorted(LATE.intersection(names))
