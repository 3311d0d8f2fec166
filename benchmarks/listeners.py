"""Chapter 07's wishes, practised with six listeners and with a made-up one in most rows: who can be told to listen?

    python benchmarks/listeners.py [--seeds 3]

Needs a finished chapter 06 at tiny. Both ways start from its model and see as many wishes, in the same words, and the
same other pairs. Tested are wishes about facts that no preference pair holds; the part `new listener, new words` is the
final test's. `ours` is made-up listeners, `baseline` six."""
import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from report import row, write
from torch import nn
from transformers import PreTrainedTokenizerBase

from scclm.dpo import DpoCfg, dpo, dpo_cfg
from scclm.model import load_model
from scclm.pref_files import Pref
from scclm.pref_stream import encode_prefs, logp_table
from scclm.sample_prefs import NAMES, WISHES, make_sample_prefs, wish_grid, wish_rows

PARTS = {(False, True): 'new listener, known words', (False, False): 'new listener, new words'} # new to both ways
FEW = 6 # listeners of the baseline

def shares(model:nn.Module, tok:PreTrainedTokenizerBase, cfg:DpoCfg)->dict[str, float]:
    "Of each part, the share of wishes whose granting answer the model finds likelier than the plain one."
    found = {}
    for known, pairs in wish_grid(100).items():
        if known not in PARTS: continue
        rows = [Pref(p.kind, '', 0, p.prompt, p.chosen, p.rejected, True) for p in pairs]
        logp = logp_table(model, encode_prefs(rows, tok, cfg.max_len, cfg.too_long))
        found[PARTS[known]] = (logp[:, 0] > logp[:, 1]).float().mean().item()
    return found

def trained(seed:int, few:bool)->dict[str, float]:
    "`shares` after preference training; `few`: the wishes name six listeners only."
    with tempfile.TemporaryDirectory() as d:
        make_sample_prefs(Path(d))
        if few:
            rows = wish_rows(False, invented=0., wishes=WISHES[:FEW])
            (Path(d)/'prefs'/NAMES['alpaca']).write_text(json.dumps(rows, ensure_ascii=False), encoding='utf-8')
        folders = dict(data=(f'{d}/prefs',), pairs=f'{d}/pairs', out=f'{d}/out')
        cfg = replace(dpo_cfg('tiny'), seed=seed, eval_every=10**6, **folders)
        dpo(cfg, progress=False)
        model, tok = load_model(Path(d)/'out'/'model')
    return shares(model.eval(), tok, cfg)

def main():
    "Train both ways with every seed, print and write the shares."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--seeds', type=int, default=3, help='how many')
    a = p.parse_args()
    ours, few = ([trained(seed, way) for seed in range(a.seeds)] for way in (False, True))
    rows = []
    for part in PARTS.values():
        both = [f[part] for f in ours], [f[part] for f in few]
        rows.append(row(part, *both, f'{FEW} listeners', 'share', middle=statistics.mean))
    write('listeners', dict(scale='tiny', seeds=list(range(a.seeds))), rows)

if __name__ == '__main__': main()
