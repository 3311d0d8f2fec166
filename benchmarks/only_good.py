"""Chapter 07's preferences against fine-tuning on the better answers alone: what does the comparison add?

    python benchmarks/only_good.py [--seeds 1]

Needs a finished chapter 07 at tiny: that run is seed 0 of both terms of the loss. The better answers alone start from
the same model and take the same steps on the same pairs at the same learning rate, with the SFT term only. Scored are
the watched pairs, the final test, and what either model says by itself. `ours` is both terms, `baseline` the better
answers alone; the configuration holds the start model's scores."""
import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
from report import row, write
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from scclm.dpo import DpoCfg, dpo, dpo_cfg
from scclm.model import load_model
from scclm.pref_files import Pref
from scclm.pref_stream import encode_prefs, logp_table
from scclm.runs import read_json, require, run_path
from scclm.sample_prefs import final_pairs
from scclm.scores import greedy_answers

NO_COMPARISON = 1e-9 # a β so small that the other term's gradient is all there is
OPENING = {'wish': '，', 'alpaca': '，', 'harm': '对不起', 'huozi': '对不起', 'unknown': '抱歉'} # what is said first

def exams(folder:Path)->dict[str, list[Pref]]:
    "Pairs by source (watched) and by kind (final test); the folder holds the prepared pairs."
    watched = [Pref(r['source'], '', 0, r['prompt'], r['chosen'], r['rejected'], True)
               for r in pq.read_table(folder/'valid.parquet').to_pylist()]
    last = [Pref(p.kind, '', 0, p.prompt, p.chosen, p.rejected, True) for p in final_pairs()]
    found = {}
    for p in watched + last: found.setdefault(p.source, []).append(p)
    return found

def begins_right(answer:str, want:str, kind:str)->bool:
    "A wish: the listener's name as in the better answer; others: the refusal's first word."
    if OPENING[kind] == '，': return answer.split('，')[0] == want.split('，')[0]
    return answer.startswith(OPENING[kind])

def mean(found:list[bool]|Tensor)->float:
    "Share or mean."
    return sum(map(float, found)) / len(found)

def compared(model:nn.Module, tok:PreTrainedTokenizerBase, cfg:DpoCfg, kind:str, pairs:list[Pref])->dict[str, float]:
    "Log-probabilities of both answers of one examination, how often the better one is likelier, and free answers."
    logp = logp_table(model, encode_prefs(pairs, tok, cfg.max_len, cfg.too_long))
    found = dict(chosen=mean(logp[:, 0]), rejected=mean(logp[:, 1]), pref_acc=mean(logp[:, 0] > logp[:, 1]))
    if kind in OPENING:
        said = greedy_answers(model, tok, [p.prompt for p in pairs])
        found['begins'] = mean([begins_right(a, p.chosen, kind) for a, p in zip(said, pairs)])
        found['exact'] = mean([a == p.chosen for a, p in zip(said, pairs)])
        found['says rejected'] = mean([a == p.rejected for a, p in zip(said, pairs)])
    return {f'{kind}, {what}': x for what, x in found.items()}

def scores(folder:Path)->dict[str, float]:
    "All examinations of a stage's model."
    (model, tok), cfg = load_model(folder/'model'), dpo_cfg('tiny')
    found = {}
    for kind, pairs in exams(run_path('dpo')).items(): found |= compared(model.eval(), tok, cfg, kind, pairs)
    return found | {'plain questions, exact': read_json(folder/'figures.json')['exact_heldout']['all']}

def trained(seed:int, beta:float, folder:Path)->dict[str, float]:
    "`scores` after preference training; the chapter's own run is not made again."
    cfg = dpo_cfg('tiny')
    if (seed, beta) == (cfg.seed, cfg.beta): return scores(require(run_path('dpo'), 'dpo'))
    out = folder/f'{seed}-{beta}'
    dpo(replace(cfg, seed=seed, beta=beta, eval_every=10**6, out=str(out)), progress=False)
    return scores(out)

def main():
    "Train both ways with every seed, print and write the scores."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--seeds', type=int, default=1, help='how many')
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as d:
        both, alone = ([trained(seed, beta, Path(d)) for seed in range(a.seeds)]
                       for beta in (dpo_cfg('tiny').beta, NO_COMPARISON))
    rows = []
    for what in both[0]:
        unit = 'nats an answer' if what.endswith((', chosen', ', rejected')) else 'share'
        direct = not what.endswith((', chosen', ', says rejected')) # of two negative figures the ratio is turned
        rows.append(row(what, [f[what] for f in both], [f[what] for f in alone], 'better answers alone', unit,
                        direct, statistics.mean))
    write('only_good', dict(scale='tiny', seeds=list(range(a.seeds)), start=scores(run_path('sft'))), rows)

if __name__ == '__main__': main()
