"""benchmarks/README.md: every figure with what it means, which way is better, on what machine and against what.

Made from benchmarks/results/*.json, benchmarks/meanings.json and the card of the last course; `make front` writes it.
"""
from itertools import chain
from pathlib import Path

from scclm.report_card import main_rows, meaning, missing
from scclm.runs import read_json
from scclm.website import ARROWS, figures_of, result_files, stamps_of

TABLE = ('| 量什么 | 意思 | | 我们 | 对照 | 对照是谁 | 单位 | 倍数 |', '|---|---|---|---|---|---|---|---|')
LOWER = ('loss', 'bits_per_char', 'refused_known', 'loops') # names of scores of the card that should be small

HEAD = '''# 全部数字

这一页是生成的（`make front`），数字只来自文件：`results/*.json`（由这里的脚本写出，带机器、日期和提交；
`make bench` 只跑那些不要网络、真实文本和别的硬件的）、`card.json` 和 `course.json`（最近一次 `make course`）。
真实文本上的那次训练另有[一页](../nbs/appendix/real_text.ipynb)。没有测过的不写。要改一句解释，改 [`meanings.json`](meanings.json)。

怎么读：**↑** 越高越好，**↓** 越低越好，**·** 没有好坏。“我们”和“对照”是同一次运行里轮流量的中位数，括号里是最低和最高；
“倍数”是好了几倍，大于 1 总是我们好，不管这个数是高好还是低好；没有好坏的，倍数就是两数之比。三个种子的一节写的是平均数。
'''

def cell(text:str)->str:
    "Text that may stand in a table."
    return text.replace('|', '\\|')

def result_part(path:Path, meanings:dict)->list[str]:
    "Title, what it is about, where and when, the table."
    result, says = read_json(path), meanings.get(path.stem)
    if not says: raise ValueError(f'{path.name}: expected an entry {path.stem!r} in benchmarks/meanings.json')
    where = [f'[{path.name}](results/{path.name})：']
    for stamp, which in stamps_of(path, result).items():
        script = f'；由 [{stamp.script}]({stamp.script}) 写出' if stamp.script else ''
        where.append(f'- {which}{stamp.machine}；{stamp.date}；提交 `{stamp.commit}`{script}。')
    rows = ['| ' + ' | '.join(map(cell, f)) + ' |' for f in figures_of(path.stem, result, meanings)]
    return [f"## {says['title']}", '', says['about'], '', *where, '', *TABLE, *rows, '']

def falls(key:str)->bool:
    "Whether a score of the card should be small."
    return key.split('.')[-1].startswith(LOWER)

def in_proportion(course:dict)->str:
    "The seconds on a machine of 10,000 tok/s, in brackets; nothing where the machine was not measured."
    if not (speed := course.get('reference_tok_per_s')): return ''
    seconds = sum(c['seconds'] for c in course['chapters'])*speed/1e4
    return f'（[标尺](../nbs/appendix/reference.ipynb) {speed:,.0f} 词元/秒；按比例折到 10,000 词元/秒，{seconds:,.0f} 秒）'

def card_part(card:dict, course:dict)->list[str]:
    "Time and memory of the chapters, and the scores of the last course with their intervals."
    env, chapters = card['env'], course['chapters']
    seconds, peak = sum(c['seconds'] for c in chapters), max(c['peak_rss_mb'] for c in chapters)
    lines = ['## 最近一次课程', '',
             f"`make course`，规模 `{card['scale']}`：{len(chapters)} 章共 {seconds:,.0f} 秒{in_proportion(course)}，"
             f"峰值内存 {peak:,.0f} MB；"
             f"{env['cpu']}，{env['cores']} 核，GPU：{env['gpu']}，torch {env['packages']['torch']}；{env['date']}。", '',
             '| 章 | 秒 | 峰值内存（MB） |', '|---|---|---|']
    lines += [f"| {c['name']} | {c['seconds']:,.0f} | {c['peak_rss_mb']:,.0f} |" for c in chapters]
    lines += ['', '分数：一个种子，95 % 区间来自 n 道题。`_final` 是只考一次的卷子，`_scratch` 是从新的权重走同样多步的对照（第 09 章）。', '',
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
    meanings = read_json(folder/'meanings.json')
    seeds, *rest = (result_part(p, meanings) for p in result_files(folder))
    course = card_part(read_json(folder/'card.json'), read_json(folder/'course.json'))
    return '\n'.join([HEAD, *seeds, *course, *chain(*rest)]).rstrip() + '\n'
