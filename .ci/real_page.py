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
    quoted = [name for name in runs if name not in ('1000_stock', '4000_stock')] # 0, and only in the table
    scores = {f'f1_{name}': with_interval(runs[name]['f1'], runs[name]['ci95']) for name in quoted}
    steps = [runs[f'{n}_pretrained']['steps'] for n in (1000, 4000, 17000)]
    lead = {f'lead_{n}': f"{runs[f'{n}_pretrained']['f1'] - runs[f'{n}_scratch']['f1']:.3f}" for n in (1000,)}
    return scores | lead | dict(
        passes_17000=f"{runs['17000_pretrained']['passes']:.1f}",
        duie_n=f"{runs['17000_scratch']['n']:,}", ie_steps='、'.join(f'{n:,}' for n in steps),
        dictionary_17000=f"{triples['dictionary']['17000']['f1']:.3f}")

def earlier_values(first:dict, trial:dict)->dict[str, str]:
    "What the first evening and the trial before the second came to."
    runs, lowest = first['runs'], {}
    for t in trial['trials']: lowest[t['start']] = min(t['loss'], lowest.get(t['start'], t['loss']))
    return {f'trial_{name}': f'{loss:.2f}' for name, loss in lowest.items()} | dict(
        first_steps=f"{runs['17000_scratch']['steps']:,}", first_scratch=f"{runs['17000_scratch']['f1']:.3f}",
        first_copied=f"{runs['17000_copied']['f1']:.3f}", practice_steps=f"{first['practice_steps']:,}",
        trial_steps=f"{trial['pretrain_steps']:,}", trial_rows=f"{trial['ie_rows']:,}",
        trial_ie_steps=f"{trial['ie_steps']:,}")

def tried_values(tried:dict)->dict[str, str]:
    "What more steps on few sentences came to at the better rate, on sentences held back from training."
    best = {}
    for t in sorted(tried['trials'], key=lambda t: t['f1']): best[t['steps']] = t['f1']
    few, many = sorted(best)
    return dict(tried_rows=f"{tried['ie_rows']:,}", tried_few=f'{few:,}', tried_many=f'{many:,}',
                tried_f1_few=f'{best[few]:.3f}', tried_f1_many=f'{best[many]:.3f}')

def third_values(third:dict)->dict[str, str]:
    "What more steps from every start came to."
    runs, pretrain = third['runs'], third['pretrain']
    quoted = [name for name in runs if not name.endswith('_stock')] # 0, and only in the table
    scores = {f'third_{name}': with_interval(runs[name]['f1'], runs[name]['ci95']) for name in quoted}
    losses = {f'third_loss_{name}': f"{runs[name]['loss']:.2f}" for name in ('4000_slower', '4000_scratch')}
    lead = runs['1000_pretrained']['f1'] - runs['1000_scratch']['f1']
    steps = [runs[f'{n}_pretrained']['steps'] for n in (1000, 4000, 17000)]
    seconds = pretrain['seconds'] + sum(run['seconds'] for run in runs.values())
    return scores | losses | dict(third_hours=f'{seconds/3600:.1f}',
        third_pretrain_steps=f"{pretrain['step']:,}", third_tok=millions(pretrain['real_tok']),
        third_loss=f"{pretrain['loss']:.2f}", third_steps='、'.join(f'{n:,}' for n in steps), third_lead=f'{lead:.3f}',
        third_n=f"{runs['1000_pretrained']['n']:,}", third_passes=f"{runs['17000_pretrained']['passes']:.1f}",
        third_lr=f"{runs['4000_pretrained']['lr']:g}", third_lr_scratch=f"{runs['4000_scratch']['lr']:g}")

def chat_values(samples:dict, blind:dict, dpo:dict)->dict[str, str]:
    "What was counted in the answers, how they were judged, which answers are preferred."
    point, fluent = blind['to_the_point'], blind['fluent']
    judged = {f'to_the_point_{stage}': f"{point[stage]['value']:.2f}" for stage in ('pretrain', 'sft', 'dpo')}
    judged |= {f'fluent_{stage}': f"{fluent[stage]['value']:.2f}" for stage in ('pretrain', 'sft', 'dpo')}
    return judged | dict(
        repeat_sft=percent(samples['sft']['measures']['repetition']['value']),
        repeat_dpo=percent(samples['dpo']['measures']['repetition']['value']),
        to_the_point_agree=percent(point['agree']['value']), fluent_agree=percent(fluent['agree']['value']),
        pref_before=f"{dpo['pref_acc_before']:.3f}", pref_after=f"{dpo['pref_acc_after']:.3f}",
        pref_n=f"{dpo['pref_acc_before_n']:,}")

def pretraining_values(curves:dict, bits:dict, law:dict)->dict[str, str]:
    "Loss, bits per character, what the law says."
    found = dict(parameters=millions(curves['pretrain']['parameters']))
    for key, name in (('', 'pretrain'), ('plain_', 'pretrain_plain'), ('tiny_', 'pretrain_tiny')):
        found |= {f'{key}tok': millions(curves[name]['real_tok']),
                  f'{key}loss': f"{curves[name]['points'][-1]['loss']:.2f}"}
    every = bits['all']
    return found | {f'bits_{name}': f'{every[name]:.2f}' for name in (
        'pretrain', 'pretrain_plain', 'ngram5', 'ngram5_part', 'sft', 'ie_17000_sft')} | {
        f'law_{scale}': f"{law['predicted'][scale]['law']:.2f}" for scale in ('mini', 'base')}

def settings_values(stages:dict)->dict[str, str]:
    "Steps and batches of the pretrainings."
    ours, plain = stages['pretrain'], stages['pretrain_plain']
    return dict(pretrain_steps=f"{ours['steps']:,}", batch=f"{ours['budget_tok']:,}", plain_steps=f"{plain['steps']:,}",
                plain_batch=f"{plain['budget_tok']:,}", preset_steps=f"{PRESETS['small'].steps:,}")

def text_values(text:dict)->dict[str, str]:
    "What was read, how much of it is copied."
    return dict(
        share_read=percent_of(text['share_read']), exercises=f"{text['exercises']['rows']:,}",
        exercise_share=percent_of(text['exercises']['share']), talk=f"{text['talk']:,}",
        copied_train=percent(text['copied']['train']), copied_duie=percent(text['copied']['duie']),
        longer=percent_of(text['longer']['reward']))

def real_values(root:Path)->dict[str, str]:
    "Everything that the page asks for, by its key."
    files = {p.stem: read_json(p) for p in sorted((root/RESULTS).glob('*.json'))}
    clean, card = files['clean'], files['card']
    published, seconds = card['published'], sum(d.get('seconds', 0) for d in files['diary'].values())
    gap = published['pretrained'][0] - published['no pretraining'][0]
    run = dict(rows_in=f"{clean['rows_in']:,}", kept=f"{clean['kept']:,}", hours=f'{seconds/3600:.1f}',
               published_gap=f'{gap:.2f}')
    return (run | settings_values(files['settings']['stages']) | text_values(files['text'])
            | pretraining_values(files['curves'], files['bits'], files['law'])
            | chat_values(files['samples'], files['blind'], card['dpo'])
            | extraction_values(files['triples']) | earlier_values(files['first'], files['trial'])
            | tried_values(files['steps_tried']) | third_values(files['third']))

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
