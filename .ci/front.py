"""Everything at the front door that is made and not written: `make front`.

README.md and README.en.md get their numbers, nbs/figures/front*.svg are drawn, benchmarks/README.md and
DEPENDENCIES.md are written, and every file that names the repository gets the address of settings.ini. All of it comes
from tracked files (benchmarks/course.json and card.json, which `make outputs` keeps of the last course,
benchmarks/results/*.json, settings.ini) and from the library itself.

In a README `<!--=key-->what stands here<!--=-->` is filled in; the words around it are yours.
"""
import re
import shutil
import subprocess
from collections.abc import Callable
from configparser import ConfigParser, SectionProxy
from pathlib import Path
from statistics import mean

from figures import figures_page
from licences import licences_page
from picture import draw
from real_page import PAGE, filled_page

from scclm.planner import PlanCfg, plan
from scclm.reproduce import ReproduceCfg, tokens_of
from scclm.runs import checkout_root, read_json, write_aside
from scclm.sample_facts import facts

MARK = re.compile(r'<!--=(\w+)-->(.*?)<!--=-->', re.S)
LANGUAGES = {'zh': 'README.md', 'en': 'README.en.md'}

# The address of the repository

def settings(root:Path)->SectionProxy:
    "What settings.ini says, the only place where the owner and the name of the repository are written by hand."
    cfg = ConfigParser(delimiters=['='])
    cfg.read(root/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']

COLAB = 'https://colab.research.google.com/github/' # what stands before owner and name there

def addresses(root:Path)->dict[str, str]:
    """Old address -> new one, as CITATION.cff has them and as settings.ini wants them: of the site, of the repository,
    and of its notebooks in Colab."""
    cfg, cited = settings(root), (root/'CITATION.cff').read_text(encoding='utf-8')
    new = {'url': cfg['doc_host'] + cfg['doc_baseurl'], 'repository-code': cfg['git_url']}
    old = {key: re.search(rf'^{key}: "(https://[^"]+)"$', cited, re.M) for key in new}
    if None in old.values(): raise ValueError(f'CITATION.cff: expected lines like {" and ".join(new)}: "https://…"')
    moves = {old[key][1]: new[key] for key in new}
    was, now = (x.removeprefix('https://github.com/') for x in (old['repository-code'][1], cfg['git_url']))
    return moves | {COLAB + was: COLAB + now}

def tracked(root:Path)->list[Path]:
    "The files of the project, as git knows them; new ones that it does not ignore count too."
    listed = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=root,
                            capture_output=True, check=True).stdout.decode('utf-8')
    return [root/name for name in sorted(set(listed.split('\0'))) if name and (root/name).is_file()]

def replaced(path:Path, new:bytes):
    "Write aside, then rename, with the rights of the old file: a crash leaves one of the two whole."
    with write_aside(path) as tmp:
        tmp.write_bytes(new)
        if path.exists(): shutil.copymode(path, tmp)

def move_in(root:Path)->list[Path]:
    "Write the addresses of settings.ini over the old ones, CITATION.cff last; returns what changed."
    moves = {old: new for old, new in addresses(root).items() if old != new}
    changed = []
    for path in sorted(tracked(root), key=lambda p: p.name == 'CITATION.cff'):
        before = path.read_bytes()
        after = before
        for old, new in moves.items(): after = re.sub(re.escape(old).encode() + rb'(?![\w-])', new.encode(), after)
        if after == before: continue
        replaced(path, after)
        changed.append(path)
    return changed

# The numbers of the READMEs

NEW_WEIGHTS = dict( # the control of chapter 09, which says what else differs
    zh='新的权重，同样多步（见上）',
    en='new weights, equal steps (see above)')

SIX = { # key of benchmarks/results/seeds.json -> what it says and what it is compared with, in both languages
    'dpo.exact_heldout_final': dict(
        zh='学过的事实换个没见过的问法，一字不差', en='taught facts in unseen words, exact',
        zh_than='微调之前（05 章）', en_than='before fine-tuning (chapter 05)'),
    'chat.slip_final': dict(
        zh='同样的问题，多打一个字', en='the same, one character too many',
        zh_than='没有打错', en_than='typed without a slip'),
    'chat.refused_unknown_final': dict(
        zh='没教过的问题，说不知道', en='untaught, answered "I do not know"',
        zh_than='教过的也说不知道（越低越好）', en_than='taught, but refused (lower: better)',
        than='chat.refused_known_final'),
    'dpo.pref_acc_after_final': dict(
        zh='两个回答里认出好的那个', en='the better of two answers',
        zh_than='偏好优化之前', en_than='before preferences'),
    'ie.f1_entity_final': dict(
        zh='三元组 F1，名字没见过', en='triples, F1, names never seen',
        zh_than=NEW_WEIGHTS['zh'], en_than=NEW_WEIGHTS['en']),
    'ie.f1_pattern_final': dict(
        zh='三元组 F1，句式没见过', en='triples, F1, sentence patterns never seen',
        zh_than=NEW_WEIGHTS['zh'], en_than=NEW_WEIGHTS['en'])}

SIX_HEAD = dict(zh='| 量什么（越高越好） | 我们 | 拿来比的 | 那是什么 |',
                en='| what (higher is better) | ours | compared with | which is |')

def mean_and_range(runs:list[float])->str:
    "Of the seeds: the mean, and the lowest and the highest."
    return f'{mean(runs):.3f} ({min(runs):.3f}–{max(runs):.3f})'

def six_rows(seeds:dict[str, dict], lang:str)->list[str]:
    "The table of six results."
    rows = [SIX_HEAD[lang], '|---|---|---|---|']
    for key, says in SIX.items():
        runs = seeds[key]['runs']
        than = seeds[says['than']]['runs']['ours'] if 'than' in says else runs['baseline']
        cells = [says[lang], mean_and_range(runs['ours']), mean_and_range(than), says[f'{lang}_than']]
        rows.append('| ' + ' | '.join(cells) + ' |')
    return rows

NOTES = dict(
    zh=dict(who='你', bot='它', right='第 {number} 题，答对了', refused='没教过的第 {number} 题：就该这么说',
            wrong='第 {number} 题，答错了，应该是：{expected}'),
    en=dict(who='you', bot='bot', right='question {number}, right',
            refused='untaught question {number}: as it should be',
            wrong='question {number}, wrong: {expected}'))

def quoted(words:str)->str:
    "An answer on one line that neither ends the block it stands in nor looks like a mark, whatever a model wrote."
    return ' '.join(words.split()).replace('`', "'").replace('<!--', '<! --')

def talk_lines(talk:list[dict], lang:str)->list[str]:
    "The conversation as it stands in a README: a question, the answer, what to think of it."
    notes, lines = NOTES[lang], []
    colon = '：' if lang == 'zh' else ': '
    for said in talk:
        t = {k: quoted(v) if isinstance(v, str) else v for k, v in said.items()}
        note = notes[t['kind']].format(**t)
        lines += [notes['who'] + colon + t['question'], f"{notes['bot']}{colon}{t['answer']}    ← {note}"]
    return ['```text', *lines, '```']

COMMANDS = dict(
    zh=dict(course='# 建环境，依次跑完十章；中断后再来一次，从没跑完的那章接着跑', chat='# 和刚训练好的模型聊天',
            test='# CI 检查的一切：笔记本、整个课程、附录、全部测试；比课程久得多'),
    en=dict(course='# sets up .venv, runs the ten chapters; again: goes on where it stopped',
            chat='# talk to the model',
            test='# everything CI checks, the course among it: takes much longer than that'))

def command_lines(url:str, lang:str)->list[str]:
    "What a reader types first."
    notes = COMMANDS[lang]
    typed = [f"{f'make {name}':<13} {note}" for name, note in notes.items()]
    return ['```sh', f"git clone {url} && cd {url.rsplit('/', 1)[1]}", *typed, '```']

def count(n:float, lang:str)->str:
    "A large number in words, four digits of it in either language: 260.3 万, 2.603 million."
    if lang == 'en': return f'{n/1e6:.4g} million'
    if n >= 1e8: return f'{n/1e8:.4g} 亿'
    return f'{float(f"{n/1e4:.4g}"):,} 万'.replace('.0 ', ' ')

def base_cost()->dict:
    "What the planner says of `base` on one 24 GB GPU: ten million pairs of 30 + 70 tokens, read once."
    return plan(PlanCfg(scale='base', gpu=24., rows=1e7, prompt_tok=30., answer_tok=70., vocab_size=29298))

def share(runs:list[float])->str:
    "A share of the seeds in per cent."
    return f'{100*mean(runs):.0f} %'

def course_values(course:dict, lang:str)->dict[str, str]:
    "What the last course was like."
    chapters, rows, model = course['chapters'], course['rows'], course['model']
    minutes = {f"m{c['name'][:2]}": f"{c['seconds']/60:.1f}" for c in chapters}
    seconds, peak = sum(c['seconds'] for c in chapters), max(c['peak_rss_mb'] for c in chapters)
    return minutes | {k: f'{n:,}' for k, n in rows.items()} | dict(
        minutes=f'{seconds/60:.0f}', setup=f"{course['set_up_seconds']/60:.0f}", ram=f'{peak/1e3:.1f}',
        parameters=count(model['parameters'], lang), model_mb=f"{model['mb']:.0f}")

def base_values(lang:str)->dict[str, str]:
    "What `base` would cost: ten million pairs read once, and its presets."
    cost = base_cost()
    low, high = cost['hours_range']
    read = tokens_of('base', sum(cost['tok_per_row']), ReproduceCfg(scale='base')) # as `scclm reproduce` counts
    passes, times = read['pretrain'] / cost['tokens'], sum(read.values()) / cost['tokens']
    return dict(base_passes=f'{passes:.0f}', base_all=f"{times * cost['hours']:.0f}",
                base_all_range=f'{times * low:.0f}–{times * high:.0f}',
                base_parameters=count(cost['n_params'], lang), base_pairs=count(1e7, lang),
                base_hours=f"{cost['hours']:.0f}", base_range=f'{low:.0f}–{high:.0f}',
                base_gib=f"{cost['memory_gb']['peak']:.0f}", base_gpu='24')

def values(root:Path, lang:str)->dict[str, str]:
    "Everything that a README may ask for, by its key."
    found = root/'benchmarks'
    course, card = read_json(found/'course.json'), read_json(found/'card.json')
    seeds = {r['what']: r for r in read_json(found/'results'/'seeds.json')['rows']}
    sizes = {r['what']: r['ours'] for r in read_json(found/'results'/'setup_size.json')['rows']}
    blocks = dict(talk=talk_lines(course['talk'], lang), six=six_rows(seeds, lang),
                  commands=command_lines(settings(root)['git_url'], lang))
    env, cfg = card['env'], settings(root)
    said = dict(facts=f'{len(facts())}', cores=f"{env['cores']}", date=env['date'], cpu=env['cpu'],
                download=f"{sizes['download']:.0f}", installed=f"{sizes['on disk']/1e3:.1f}",
                python=cfg['min_python'], url=cfg['git_url'],
                stranger=share(seeds['chat.refused_stranger']['runs']['ours']),
                pattern=f"{mean(seeds['ie.f1_pattern_final']['runs']['ours']):.3f}",
                seeds=f"{len(seeds['chat.slip_final']['runs']['ours'])}")
    made = {key: '\n' + '\n'.join(lines) + '\n' for key, lines in blocks.items()}
    return made | said | course_values(course, lang) | base_values(lang)

def fill(text:str, known:dict[str, str])->str:
    "The text with every mark filled. Raises ValueError for a mark that has no value, or that is not closed."
    def one(m:re.Match)->str:
        "A mark with its value."
        if m[1] not in known: raise ValueError(f'<!--={m[1]}-->: expected one of {", ".join(sorted(known))}')
        if '<!--=' in m[2]: raise ValueError(f'<!--={m[1]}--> is not closed: expected <!--=--> before the next mark')
        return f'<!--={m[1]}-->{known[m[1]]}<!--=-->'
    filled = MARK.sub(one, text)
    if filled.count('<!--=') != 2*len(MARK.findall(filled)): raise ValueError('a mark <!--=…--> is not closed')
    return filled

# All of it

def made(root:Path)->dict[Path, str]:
    "Path -> text of everything that is made, addresses aside."
    found = root/'benchmarks'
    course, card = read_json(found/'course.json'), read_json(found/'card.json')
    texts = {root/name: fill((root/name).read_text(encoding='utf-8'), values(root, lang))
             for lang, name in LANGUAGES.items()}
    names = dict(zh='front.svg', en='front.en.svg')
    pictures = {root/'nbs'/'figures'/name: draw(course, card, lang) for lang, name in names.items()}
    return texts | pictures | {found/'README.md': figures_page(found), root/PAGE: filled_page(root, fill)}

def main(root:Path, say:Callable[[str], None]=print):
    "Addresses are written first; of everything that is made nothing before all of it could be made."
    for path in move_in(root): say(f'{path.relative_to(root)}: the address of settings.ini')
    for path, text in (made(root) | {root/'DEPENDENCIES.md': licences_page(root)}).items():
        if path.exists() and path.read_text(encoding='utf-8') == text: continue
        replaced(path, text.encode('utf-8'))
        say(f'{path.relative_to(root)}')

if __name__ == '__main__': main(checkout_root())
