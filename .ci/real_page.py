"""The numbers in the prose of nbs/appendix/real_text.ipynb, all from benchmarks/results/real_small/: `make front`.

In a markdown cell `<!--=key-->what stands here<!--=-->` is filled in; a number outside such a mark fails the tests,
but for what a reader computes on paper and for names such as that of a file (tests/test_real.py)."""
import json
from collections.abc import Callable
from pathlib import Path

from scclm.pretrain import PRESETS
from scclm.runs import read_json

PAGE = Path('nbs')/'appendix'/'real_text.ipynb'
RESULTS = Path('benchmarks')/'results'/'real_small'

def millions(n:float)->str:
    "Of tokens or parameters, one digit behind the point."
    return f'{n/1e6:.1f}'

def percent(share:float)->str:
    "A share in per cent."
    return f'{100*share:.1f} %'

def with_interval(value:float, ci95:tuple[float, float])->str:
    "A figure with its interval."
    low, high = ci95
    return f'{value:.3f} [{low:.3f}, {high:.3f}]'

def run_values(triples:dict)->dict[str, str]:
    "F1 of the nine fine-tunings and of the dictionary, and what pretraining adds."
    runs, found = triples['runs'], {}
    for name, r in runs.items():
        found |= {f'f1_{name}': f"{r['f1']:.3f}", f'f1ci_{name}': with_interval(r['f1'], r['ci95'])}
    for n, f in triples['dictionary'].items(): # and what pretraining adds
        ours, scratch, stock = (runs[f'{n}_{start}']['f1'] for start in ('pretrained', 'scratch', 'stock'))
        found |= {f'dictionary_{n}': f"{f['f1']:.3f}", f'gap_{n}': f'{ours - scratch:.3f}',
                  f'gap_stock_{n}': f'{ours - stock:.3f}'}
    return found

def chat_values(samples:dict, blind:dict)->dict[str, str]:
    "What was counted in the answers, and how they were judged."
    found = {}
    for stage, s in samples.items():
        if 'measures' not in s: continue
        found |= {f'{name}_{stage}': f"{m['value']:.3f}" for name, m in s['measures'].items()}
        found[f'repeat_{stage}'] = percent(s['measures']['repetition']['value'])
    for mark, m in blind.items():
        found |= {f'{mark}_{stage}': f"{m[stage]['value']:.2f}" for stage in ('pretrain', 'sft', 'dpo')}
        found |= {f'{mark}_kappa': f"{m['kappa']:.2f}", f'{mark}_agree': percent(m['agree']['value'])}
    return found

def real_values(root:Path)->dict[str, str]:
    "Everything that the page may ask for, by its key."
    files = {p.stem: read_json(p) for p in sorted((root/RESULTS).glob('*.json'))}
    settings, clean, curves, bits = (files[name] for name in ('settings', 'clean', 'curves', 'bits'))
    law, triples, card = (files[name] for name in ('law', 'triples', 'card'))
    ends = {name: c['points'][-1] for name, c in curves.items()}
    seconds = sum(d.get('seconds', 0) for d in files['diary'].values())
    ours, ngram5 = bits['all']['pretrain'], bits['all']['ngram5']
    published = card['published']
    gap = published['pretrained'][0] - published['no pretraining'][0]
    made = dict(
        rows_in=f"{clean['rows_in']:,}", kept=f"{clean['kept']:,}",
        parameters=millions(curves['pretrain']['parameters']),
        pretrain_steps=f"{settings['stages']['pretrain']['steps']:,}", preset_steps=f"{PRESETS['small'].steps:,}",
        hours=f'{seconds/3600:.1f}', pretrain_tok=millions(curves['pretrain']['real_tok']),
        tiny_tok=millions(curves['pretrain_tiny']['real_tok']), loss=f"{ends['pretrain']['loss']:.2f}",
        loss_tiny=f"{ends['pretrain_tiny']['loss']:.2f}", small_bits=f'{ours:.2f}', ngram5=f'{ngram5:.2f}',
        tiny_bits=f"{bits['all']['pretrain_tiny']:.2f}", below_ngram5=f'{ngram5 - ours:.2f}',
        bits_sft=f"{bits['all']['sft']:.2f}", bits_dpo=f"{bits['all']['dpo']:.2f}",
        bits_ie=f"{bits['all']['ie_17000_sft']:.2f}", law_mini=f"{law['predicted']['mini']['law']:.2f}",
        law_base=f"{law['predicted']['base']['law']:.2f}", floor=f"{law['law']['floor']:.2f}",
        duie_n=f"{triples['runs']['17000_pretrained']['n']:,}",
        ie_steps='、'.join(f"{triples['runs'][f'{n}_pretrained']['steps']:,}" for n in (1000, 4000, 17000)),
        practice_steps=f"{settings['stages']['copied']['steps']:,}",
        share_read=percent(files['text']['share_read']), ngram5_part=f"{bits['all']['ngram5_part']:.2f}",
        copied_train=percent(files['text']['copied']['train']), copied_duie=percent(files['text']['copied']['duie']),
        published_gap=f'{gap:.2f}', pref_before=f"{card['dpo']['pref_acc_before']:.3f}",
        pref_after=f"{card['dpo']['pref_acc_after']:.3f}", pref_n=f"{card['dpo']['pref_acc_before_n']:,}")
    return made | run_values(triples) | chat_values(files['samples'], files['blind'])

def filled_page(
    root:Path, # of the checkout
    fill:Callable[[str, dict[str, str]], str], # text, values -> text with its marks filled
)->str: # the notebook
    "The page with every mark in its prose filled."
    nb, values = json.loads((root/PAGE).read_text(encoding='utf-8')), real_values(root)
    for cell in nb['cells']:
        if cell['cell_type'] != 'markdown': continue
        cell['source'] = fill(''.join(cell['source']), values).splitlines(keepends=True)
    return json.dumps(nb, ensure_ascii=False, indent=1) + '\n'
