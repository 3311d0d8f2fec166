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

def percent_of(share:float)->str:
    "A share in whole per cent."
    return f'{100*share:.0f} %'

def extraction_values(triples:dict)->dict[str, str]:
    "What the fine-tunings for extraction came to, and the dictionary."
    runs = triples['runs']
    found = {f'f1_17000_{start}': f"{runs[f'17000_{start}']['f1']:.3f}" for start in ('pretrained', 'stock', 'copied')}
    scratch, steps = runs['17000_scratch'], [runs[f'{n}_pretrained']['steps'] for n in (1000, 4000, 17000)]
    return found | dict(
        f1ci_17000_scratch=with_interval(scratch['f1'], scratch['ci95']), duie_n=f"{scratch['n']:,}",
        dictionary_17000=f"{triples['dictionary']['17000']['f1']:.3f}", ie_steps='、'.join(f'{n:,}' for n in steps))

def chat_values(samples:dict, blind:dict, dpo:dict)->dict[str, str]:
    "What was counted in the answers, how they were judged, which answers are preferred."
    point, fluent = blind['to_the_point'], blind['fluent']
    judged = {f'to_the_point_{stage}': f"{point[stage]['value']:.2f}" for stage in ('pretrain', 'sft', 'dpo')}
    judged |= {f'fluent_{stage}': f"{fluent[stage]['value']:.2f}" for stage in ('pretrain', 'dpo')}
    return judged | dict(
        repeat_dpo=percent(samples['dpo']['measures']['repetition']['value']),
        to_the_point_agree=percent(point['agree']['value']), fluent_agree=percent(fluent['agree']['value']),
        pref_before=f"{dpo['pref_acc_before']:.3f}", pref_after=f"{dpo['pref_acc_after']:.3f}",
        pref_n=f"{dpo['pref_acc_before_n']:,}")

def pretraining_values(curves:dict, bits:dict, law:dict)->dict[str, str]:
    "Loss, bits per character, what the law says."
    ours, tiny = curves['pretrain'], curves['pretrain_tiny']
    return dict(
        parameters=millions(ours['parameters']), pretrain_tok=millions(ours['real_tok']),
        tiny_tok=millions(tiny['real_tok']), loss=f"{ours['points'][-1]['loss']:.2f}",
        loss_tiny=f"{tiny['points'][-1]['loss']:.2f}", small_bits=f"{bits['all']['pretrain']:.2f}",
        ngram5=f"{bits['all']['ngram5']:.2f}", ngram5_part=f"{bits['all']['ngram5_part']:.2f}",
        bits_sft=f"{bits['all']['sft']:.2f}", bits_ie=f"{bits['all']['ie_17000_sft']:.2f}",
        law_mini=f"{law['predicted']['mini']['law']:.2f}", law_base=f"{law['predicted']['base']['law']:.2f}")

def real_values(root:Path)->dict[str, str]:
    "Everything that the page asks for, by its key."
    files = {p.stem: read_json(p) for p in sorted((root/RESULTS).glob('*.json'))}
    clean, text, card, stages = files['clean'], files['text'], files['card'], files['settings']['stages']
    published, seconds = card['published'], sum(d.get('seconds', 0) for d in files['diary'].values())
    gap = published['pretrained'][0] - published['no pretraining'][0]
    run = dict(
        rows_in=f"{clean['rows_in']:,}", kept=f"{clean['kept']:,}", hours=f'{seconds/3600:.1f}',
        pretrain_steps=f"{stages['pretrain']['steps']:,}", preset_steps=f"{PRESETS['small'].steps:,}",
        practice_steps=f"{stages['copied']['steps']:,}", share_read=percent_of(text['share_read']),
        copied_train=percent(text['copied']['train']), copied_duie=percent(text['copied']['duie']),
        longer=percent_of(text['longer']['reward']), published_gap=f'{gap:.2f}')
    return (run | pretraining_values(files['curves'], files['bits'], files['law'])
            | chat_values(files['samples'], files['blind'], card['dpo']) | extraction_values(files['triples']))

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
