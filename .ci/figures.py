"""benchmarks/README.md: every figure with what it means, which way is better, on what machine and against what.

Made from benchmarks/results/*.json, benchmarks/meanings.json and the card of the last course; `make front` writes it.
"""
from collections.abc import Iterator
from pathlib import Path

from scclm.report_card import main_rows, meaning, missing
from scclm.website import meaning_of
from scclm.runs import read_json

ARROWS = {'higher': '↑', 'lower': '↓', '': '·'}
LOWER = ('loss', 'bits_per_char', 'refused_known', 'loops') # names of scores of the card that should be small

HEAD = '''# 全部数字

这一页是生成的（`make front`），数字只来自文件：`results/*.json`（`make bench` 写出，带机器、日期和提交）、`card.json` 和 `course.json`
（最近一次 `make course`）。没有测过的不写。要改一句解释，改 [`meanings.json`](meanings.json)。

怎么读：**↑** 越高越好，**↓** 越低越好，**·** 没有好坏。“我们”和“对照”是同一次运行里轮流量的中位数，括号里是最低和最高；
“倍数”是好了几倍，大于 1 总是我们好，不管这个数是高好还是低好；没有好坏的，倍数就是两数之比。三个种子的一节写的是平均数。
'''

def number(x:float)->str:
    "A figure to four digits; large ones with commas."
    return f'{x:,.0f}' if abs(x) >= 1000 else f'{x:.4g}'

def spread(middle:float, runs:list[float])->str:
    "A median, and the lowest and highest run where there were several."
    if len(runs) < 2: return number(middle)
    return f'{number(middle)} ({number(min(runs))} – {number(max(runs))})'

def cell(text:str)->str:
    "Text that may stand in a table."
    return text.replace('|', '\\|')

def result_rows(name:str, result:dict, meanings:dict)->Iterator[str]:
    "The table of one results file."
    yield '| 量什么 | 意思 | | 我们 | 对照 | 对照是谁 | 单位 | 倍数 |'
    yield '|---|---|---|---|---|---|---|---|'
    for r in result['rows']:
        runs = r['runs'] if isinstance(r['runs'], dict) else {} # some scripts write only how many there were
        better, says = meaning_of(meanings, name, r['what'])
        figures = [spread(r[k], runs.get(k, [])) for k in ('ours', 'baseline')]
        times = '' if r['ratio'] is None else f"{r['ratio']:.2f}"
        than = '—' if r['baseline_name'] == 'itself' else r['baseline_name']
        if than == '—': figures[1], times = '', ''
        cells = [r['what'], says, ARROWS[better], *figures, than, r['unit'], times]
        yield '| ' + ' | '.join(map(cell, cells)) + ' |'

def result_part(path:Path, meanings:dict)->list[str]:
    "Title, what it is about, where and when, the table."
    result, says = read_json(path), meanings.get(path.stem)
    if not says: raise ValueError(f'{path.name}: expected an entry {path.stem!r} in benchmarks/meanings.json')
    where = f"{result['machine']}；{result['date']}；提交 `{result['commit']}`；[{path.name}](results/{path.name})"
    script = path.parents[1]/f'{path.stem}.py'
    if script.exists(): where += f'，由 [{script.name}]({script.name}) 写出'
    rows = result_rows(path.stem, result, meanings)
    return [f"## {says['title']}", '', says['about'], '', where + '。', '', *rows, '']

def falls(key:str)->bool:
    "Whether a score of the card should be small."
    return key.split('.')[-1].startswith(LOWER)

def card_part(card:dict, course:dict)->list[str]:
    "Time and memory of the chapters, and the scores of the last course with their intervals."
    env, chapters = card['env'], course['chapters']
    seconds, peak = sum(c['seconds'] for c in chapters), max(c['peak_rss_mb'] for c in chapters)
    lines = ['## 最近一次课程', '',
             f"`make course`，规模 `{card['scale']}`：{len(chapters)} 章共 {seconds:,.0f} 秒，峰值内存 {peak:,.0f} MB；"
             f"{env['cpu']}，{env['cores']} 核，GPU：{env['gpu']}，torch {env['packages']['torch']}；{env['date']}。", '',
             '| 章 | 秒 | 峰值内存（MB） |', '|---|---|---|']
    lines += [f"| {c['name']} | {c['seconds']:,.0f} | {c['peak_rss_mb']:,.0f} |" for c in chapters]
    lines += ['', '分数：一个种子，95 % 区间来自 n 道题。`_final` 是只考一次的卷子，`_scratch` 是没有预训练的对照。', '',
              '| 键 | 意思 | | 值 | 95 % 区间 | n |', '|---|---|---|---|---|---|']
    for r in main_rows(card):
        low_high = '{:.3f} – {:.3f}'.format(*r['ci95']) if 'ci95' in r else ''
        arrow = ARROWS['lower' if falls(r['key']) else 'higher']
        cells = [f"`{r['key']}`", meaning(r['key']), arrow, f"{r['value']:.3f}", low_high, str(r.get('n', ''))]
        lines.append('| ' + ' | '.join(map(cell, cells)) + ' |')
    gaps = '、'.join(f'`{key}`' for key in missing(card))
    return [*lines, '', *([f'没有测：{gaps}。', ''] if gaps else [])]

def figures_page(
    folder:Path, # benchmarks/
)->str: # markdown
    "The whole page; the seeds first, then the last course, then the benchmarks by name."
    meanings, results = read_json(folder/'meanings.json'), sorted((folder/'results').glob('*.json'))
    first = [p for p in results if p.stem == 'seeds']
    rest = [line for p in results if p not in first for line in result_part(p, meanings)]
    real = ['真实数据上的一次训练另有一个文件夹：[results/real_small](results/real_small)。', '']
    real = real if (folder/'results'/'real_small'/'card.json').exists() else []
    parts = [*real, *(line for p in first for line in result_part(p, meanings)),
             *card_part(read_json(folder/'card.json'), read_json(folder/'course.json')), *rest]
    return '\n'.join([HEAD, *parts]).rstrip() + '\n'
