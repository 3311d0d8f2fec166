"""The numbers in the prose of nbs/appendix/real_text.ipynb, all from benchmarks/results/real_small/: `make front`.

In a markdown cell `<!--=key-->what stands here<!--=-->` is filled in; a number outside such a mark fails the tests,
but for what a reader computes on paper and for names such as that of a file (tests/test_real.py)."""
import json
import re
from collections.abc import Callable
from pathlib import Path

from scclm.pretrain import PRESETS
from scclm.runs import read_json

PAGE = Path('nbs')/'appendix'/'real_text.ipynb'
RESULTS = Path('benchmarks')/'results'/'real_small'

def millions(n:float)->str:
    "Of tokens or parameters, one digit behind the point."
    return f'{n/1e6:.1f}'

def percent(
    share:float, # 0 to 1
    digits:int=1, # behind the point
)->str: # with its sign
    "A share in per cent."
    return f'{100*share:.{digits}f} %'

def with_interval(
    score:dict, # value or f1, and ci95
    digits:int=3, # behind the point
)->str: # value [low, high]
    "A figure with its interval."
    low, high = score['ci95']
    value = score['value'] if 'value' in score else score['f1']
    return f'{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]'

def share_with_interval(
    score:dict, # value and ci95, 0 to 1
)->str: # value [low, high], in per cent
    "A share with its interval."
    low, high = map(percent, score['ci95'])
    return f"{percent(score['value'])} [{low}, {high}]"

def extraction_values(triples:dict)->dict[str, str]:
    "What the fine-tunings for extraction came to, and the dictionary."
    runs = triples['runs']
    quoted = [name for name in runs if name not in ('1000_stock', '4000_stock')] # 0, and only in the table
    scores = {f'f1_{name}': with_interval(runs[name]) for name in quoted}
    steps = [runs[f'{n}_pretrained']['steps'] for n in (1000, 4000, 17000)]
    return scores | dict(
        lead_1000=with_interval(triples['leads']['1000']), passes_17000=f"{runs['17000_pretrained']['passes']:.1f}",
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
        trial_ie_steps=f"{trial['ie_steps']:,}", looked_at=f"{trial['looked_at']:,}")

def tried_values(tried:dict)->dict[str, str]:
    "What more steps on few sentences came to at the better rate, on sentences held back from training."
    best = {}
    for t in sorted(tried['trials'], key=lambda t: t['f1']): best[t['steps']] = t['f1']
    few, many = sorted(best)
    return dict(tried_rows=f"{tried['ie_rows']:,}", tried_few=f'{few:,}', tried_many=f'{many:,}',
                tried_f1_few=f'{best[few]:.3f}', tried_f1_many=f'{best[many]:.3f}')

def third_values(third:dict, second:dict)->dict[str, str]:
    "What more steps from every start came to; `second` as triples.json has it."
    runs, pretrain, sizes = third['runs'], third['pretrain'], (1000, 4000, 17000)
    quoted = [name for name in runs if not name.endswith('_stock')] # 0, and only in the table
    scores = {f'third_{name}': with_interval(runs[name]) for name in quoted}
    losses = {f'third_loss_{name}': f"{runs[name]['loss']:.2f}" for name in ('4000_slower', '4000_scratch')}
    leads = {f'third_{name}_{n}': with_interval(third[f'{name}s'][str(n)])
             for name in ('lead', 'slower_lead') for n in sizes}
    steps = [runs[f'{n}_pretrained']['steps'] for n in sizes]
    times = [runs[f'{n}_pretrained']['steps'] / second['runs'][f'{n}_pretrained']['steps'] for n in sizes]
    stopped = [step for step, d in third['diary'].items() if d['stops'] and d['ended']]
    return scores | losses | leads | dict(
        third_pretrain_steps=f"{pretrain['step']:,}", third_tok=millions(pretrain['real_tok']),
        third_loss=f"{pretrain['loss']:.2f}", third_steps='、'.join(f'{n:,}' for n in steps),
        third_times='、'.join(f'{t:g}' for t in times), third_stopped=f'{len(stopped)}',
        third_17000_stock=with_interval(runs['17000_stock']),
        third_few_17000=with_interval(third['first']['runs']['17000_pretrained']),
        third_dictionary=with_interval(third['dictionary']['17000']),
        third_dictionary_lead=with_interval(third['dictionary_lead']),
        third_n=f"{runs['1000_pretrained']['n']:,}", third_passes=f"{runs['17000_pretrained']['passes']:.1f}",
        third_lr=f"{runs['4000_pretrained']['lr']:g}", third_lr_scratch=f"{runs['4000_scratch']['lr']:g}")

def hours_values(hours:dict[str, dict[str, float]])->dict[str, str]:
    "What the trainings took: all, those of the third evening, those that tried a mixture before the second."
    def of(seconds:dict[str, float])->str:
        "Hours of many trainings."
        return f'{sum(seconds.values())/3600:.1f}'
    everything = {f'{evening}/{name}': t for evening, names in hours.items() for name, t in names.items()}
    tried = re.compile('ie_choice/(pretrain|exercises|talk)_')
    minutes = sum(t for name, t in hours['second'].items() if tried.match(name)) / 60
    return dict(hours=of(everything), third_hours=of(hours['third']), trial_minutes=f'{minutes:.0f}')

def habit_values(answers:list[dict])->dict[str, str]:
    "How many of the answers on the way begin with figures that mean nothing: where most do, and at the end."
    begins = re.compile(r'[12](0000|\.)')
    counts = {a['step']: sum(bool(begins.match(t)) for t in a['answers'].values()) for a in answers}
    most = max(counts, key=counts.get)
    return dict(habit_step=f'{most:,}', habit_most=f'{counts[most]}', habit_last=f'{counts[max(counts)]}')

def chat_values(samples:dict, blind:dict)->dict[str, str]:
    "What was counted in the answers, how they were judged."
    point, fluent = blind['to_the_point'], blind['fluent']
    judged = {f'to_the_point_{stage}': f"{point[stage]['value']:.2f}" for stage in ('pretrain', 'sft', 'dpo')}
    judged |= {f'fluent_{stage}': f"{fluent[stage]['value']:.2f}" for stage in ('pretrain', 'sft', 'dpo')}
    judged |= {f'less_fluent_{pair}': with_interval(score, 2) for pair, score in fluent['less'].items()}
    return judged | dict(
        less_to_the_point=with_interval(point['less']['sft_dpo'], 2),
        less_to_the_point_all=with_interval(point['less']['pretrain_dpo'], 2),
        repeat_sft=percent(samples['sft']['measures']['repetition']['value']),
        repeat_dpo=percent(samples['dpo']['measures']['repetition']['value']),
        to_the_point_agree=percent(point['agree']['value']), fluent_agree=percent(fluent['agree']['value']))

def decoding_values(tried:dict, judged:dict)->dict[str, str]:
    "What another way to decode came to, and whether it was liked."
    agree = [judged[mark]['agree']['value'] for mark in ('to_the_point', 'fluent')]
    found = dict(ways_agree='、'.join(map(percent, agree)), penalty=tried['chosen'].removeprefix('penalty_'),
                 repeat_people=percent(tried['people']['repetition']['value']))
    found['repeat_dpo_heaviest'] = percent(tried['tried']['dpo'][tried['chosen']]['repetition']['value'])
    for stage, made in tried['on_test'].items():
        repeated, ways = made['measures']['repetition'], tried['tried'][stage]
        found |= {f'repeat_{stage}_penalised': percent(repeated['value']),
                  f'repeat_{stage}_penalised_ci': share_with_interval(repeated),
                  f'repeat_{stage}_tried': share_with_interval(ways['default']['repetition'])}
        for mark in ('fluent', 'to_the_point'):
            less = judged[mark]['less'][f'{stage}_{stage}_penalised']
            gain = dict(value=-less['value'], ci95=[-end for end in reversed(less['ci95'])])
            found[f'{mark}_gain_{stage}'] = with_interval(gain, 2)
    return found

def preference_values(pairs:dict)->dict[str, str]:
    "Which answers are preferred, of all held-out pairs."
    return dict(pref_before=with_interval(pairs['pref_acc_before']), pref_after=with_interval(pairs['pref_acc_after']),
                reward_acc=with_interval(pairs['reward_acc']), pref_n=f"{pairs['n']:,}",
                pref_moved=f"{pairs['moved']:.1f}", pref_apart=f"{pairs['apart']:.0f}")

ANCESTOR = .2e9 # parameters of ChatLM-mini-Chinese

def pretraining_values(curves:dict, bits:dict, law:dict, stages:dict)->dict[str, str]:
    "Loss, bits per character, what the law says; `stages` as stage_bits.json has it."
    size = curves['pretrain']['parameters']
    found = dict(parameters=millions(size), ancestor_times=f'{ANCESTOR/size:.0f}')
    for key, name in (('', 'pretrain'), ('plain_', 'pretrain_plain'), ('tiny_', 'pretrain_tiny')):
        found |= {f'{key}tok': millions(curves[name]['real_tok']),
                  f'{key}loss': f"{curves[name]['points'][-1]['loss']:.2f}"}
    every = bits['all']
    for key, name in (('', 'pretrain'), ('plain_', 'pretrain_plain')):
        found |= {f'{key}above_ngram5': f"{every[name] - every['ngram5']:.2f}",
                  f'{key}test_valid': f"{every[name] - curves[name]['points'][-1]['bits_per_char']:.2f}"}
    return found | {f'bits_{name}': f'{every[name]:.2f}' for name in (
        'pretrain', 'pretrain_plain', 'ngram5', 'ngram5_part', 'sft', 'ie_17000_sft')} | {
        f'law_{scale}': f"{law['predicted'][scale]['law']:.2f}" for scale in ('mini', 'base')} | {
        f'bits_change_{name}': with_interval(score) for name, score in stages['change'].items()} | {
        'tiny_steps': f"{curves['pretrain_tiny']['points'][-1]['step']:,}"}

def settings_values(stages:dict)->dict[str, str]:
    "Steps, batches and rates of the pretrainings."
    ours, plain = stages['pretrain'], stages['pretrain_plain']
    return dict(pretrain_steps=f"{ours['steps']:,}", batch=f"{ours['budget_tok']:,}", plain_steps=f"{plain['steps']:,}",
                plain_batch=f"{plain['budget_tok']:,}", lr=f"{ours['lr']:g}", plain_lr=f"{plain['lr']:g}",
                preset_steps=f"{PRESETS['small'].steps:,}")

def text_values(text:dict)->dict[str, str]:
    "What was read, how much of it is copied."
    return dict(
        share_read=percent(text['share_read'], 0), exercises=f"{text['exercises']['rows']:,}",
        exercise_share=percent(text['exercises']['share'], 0), talk=f"{text['talk']:,}",
        copied_train=percent(text['copied']['train']), copied_duie=percent(text['copied']['duie']),
        longer=percent(text['longer']['reward'], 0))

def asked_values(asked:dict)->dict[str, str]:
    "What was asked for before anything was run."
    return dict(asked_f1=f"{asked['f1_17000']:.2f}", asked_lead=f"{asked['lead_1000']:.2f}",
                asked_bits=f"{asked['bits_below_ngram5']:g}", asked_repetition=percent(asked['repetition'], 0),
                asked_hours=f"{asked['hours']:g}")

def shape_values(trials:dict)->dict[str, str]:
    "Bits per character of the shapes that were compared at equal time."
    names = dict(small='small', deeper='2 + 6 layers', rate='lr 2e-3')
    return {f'shape_{key}': f"{trials[name]['bits']:.2f}" for key, name in names.items()}

def real_values(root:Path)->dict[str, str]:
    "Everything that the page asks for, by its key."
    files = {p.stem: read_json(p) for p in sorted((root/RESULTS).glob('*.json'))}
    lines = (root/RESULTS/'along_the_way.jsonl').read_text(encoding='utf-8').splitlines()
    clean, card, shapes = files['clean'], files['card'], read_json(root/RESULTS.parent/'shapes.json')
    gap = card['published']['pretrained'][0] - card['published']['no pretraining'][0]
    run = dict(rows_in=f"{clean['rows_in']:,}", kept=f"{clean['kept']:,}", published_gap=f'{gap:.2f}',
               exam_n=f"{card['eval']['cmmlu_pretrain']['n']:,}")
    return (run | settings_values(files['settings']['stages']) | text_values(files['text'])
            | pretraining_values(files['curves'], files['bits'], files['law'], files['stage_bits'])
            | chat_values(files['samples'], files['blind'])
            | decoding_values(files['decodings'], files['blind_ways']) | preference_values(files['preferences']['all'])
            | extraction_values(files['triples']) | earlier_values(files['first'], files['trial'])
            | tried_values(files['steps_tried']) | third_values(files['third'], files['triples'])
            | hours_values(files['hours']) | shape_values(shapes['config']['trials'])
            | asked_values(card['asked']) | habit_values(list(map(json.loads, lines))))

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
