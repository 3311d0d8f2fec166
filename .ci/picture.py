"The picture of the READMEs: from raw text to chat and triples, with the rows and the time of every step."
from collections.abc import Iterator
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 880, 392
BOX, TALL = 184, 88 # of a step, pixels
LEFT, STEP = 24, 216 # where the first column starts; from one column to the next

class Box(NamedTuple):
    "A step of the picture."
    column:int # 0 … 3
    row:int # 0 … 2
    wide:int # columns it fills
    lines:tuple[str, ...] # its name, then what there is to say
    kind:str # text, step or end: what colours it has

KINDS = dict(text=('#f1eee4', '#8a8370'), step=('#e3edf5', '#4a6b8a'), end=('#fff1d6', '#b07c1f'))

FONT = "'Noto Sans CJK SC','PingFang SC','Microsoft YaHei',sans-serif"

WORDS = dict(
    zh=dict(title='从原始文本到聊天和三元组：清洗、词元化、预训练、指令微调、偏好优化，每一步写着行数和用时',
            raw='原始文本', clean='清洗', tokenizer='词元化', pretrain='预训练', sft='指令微调', dpo='偏好优化',
            chat='聊天', ie='三元组抽取', read='{read} 行，六种格式', kept='{train} 条问答', vocabulary='{vocabulary} 个词元',
            parameters='{parameters} 个参数', sft_rows='{sft} 条指令', prefs='{prefs} 对回答', sentences='{sentences} 句话',
            rejected='{rejected} 行被拒，各有理由', minutes='{:.1f} 分钟', seconds='{:.0f} 秒', who='问：', bot='答：',
            text='原文：', out='读出：', found='读出的三元组',
            note='训练只算训练的时间，清洗和词元化是整章：{cpu}，{cores} 核，{date}'),
    en=dict(title='From raw text to chat and triples: clean, tokenize, pretrain, instruct, prefer; with rows and time',
            raw='raw text', clean='cleaning', tokenizer='tokenizer', pretrain='pretraining', sft='instructions',
            dpo='preferences', chat='chat', ie='triples', read='{read} rows, 6 formats', kept='{train} pairs',
            vocabulary='{vocabulary} tokens', parameters='{parameters} parameters', sft_rows='{sft} instructions',
            prefs='{prefs} pairs of answers', sentences='{sentences} sentences', rejected='{rejected} rows rejected',
            minutes='{:.1f} minutes', seconds='{:.0f} seconds', who='Q: ', bot='A: ', text='text: ', out='read: ',
            found='triples found',
            note='training alone; cleaning, tokenizer: whole chapters; {cpu}, {cores} cores, {date}'))

def width(words:str, size:float)->float:
    "Pixels that words take at most: a Chinese character is as wide as it is high, another half as wide on average."
    return sum(size if ord(c) > 0x2e80 else size/2 for c in words)

def cut(words:str, room:float, size:float)->str:
    "Words that fit, with a … where some did not."
    if width(words, size) <= room: return words
    while width(words + '…', size) > room: words = words[:-1]
    return words + '…'

def spell(seconds:float, words:dict[str, str])->str:
    "Seconds below one minute, minutes above."
    return words['minutes'].format(seconds/60) if seconds >= 60 else words['seconds'].format(seconds)

def boxes(course:dict, seconds:dict[str, float], lang:str)->list[Box]:
    "The steps with what there is to say of each."
    w = WORDS[lang]
    model = {k: f'{course["model"][k]:,}' for k in ('vocabulary', 'parameters')}
    known = {k: f'{n:,}' for k, n in course['rows'].items()} | model
    def says(key:str)->str:
        "A label with its numbers."
        return w[key].format(**known)
    def took(stage:str)->str:
        "How long a stage took."
        return spell(seconds[stage], w)
    answer, read = course['talk'][0], course['triple']
    return [Box(0, 0, 1, (w['raw'], says('read')), 'text'),
            Box(1, 0, 1, (w['clean'], says('rejected'), took('clean')), 'step'),
            Box(2, 0, 1, (w['tokenizer'], says('vocabulary'), took('tokenizer')), 'step'),
            Box(3, 0, 1, (w['pretrain'], says('kept'), took('pretrain')), 'step'),
            Box(3, 1, 1, (w['sft'], says('sft_rows'), took('sft')), 'step'),
            Box(2, 1, 1, (w['dpo'], says('prefs'), took('dpo')), 'step'),
            Box(0, 1, 2, (w['chat'], w['who'] + answer['question'], w['bot'] + answer['answer']), 'end'),
            Box(3, 2, 1, (w['ie'], says('sentences'), took('ie')), 'step'),
            Box(0, 2, 3, (w['found'], w['text'] + read['text'], w['out'] + read['extracted']), 'end')]

def place(box:Box)->tuple[int, int, int]:
    "Left, top and width of a box."
    return LEFT + STEP*box.column, 24 + 120*box.row, BOX + STEP*(box.wide - 1)

def box_lines(box:Box)->Iterator[str]:
    "A box and its words."
    x, y, width_px = place(box)
    fill, line = KINDS[box.kind]
    yield (f'<rect x="{x}" y="{y}" width="{width_px}" height="{TALL}" rx="9" fill="{fill}" stroke="{line}" '
           'stroke-width="1.5"/>')
    name, *rest = box.lines
    yield f'<text x="{x + 14}" y="{y + 28}" font-size="17" font-weight="600" fill="#1d1d1b">{escape(name)}</text>'
    for i, words in enumerate(rest):
        shown = escape(cut(words, width_px - 28, 14))
        yield f'<text x="{x + 14}" y="{y + 52 + 22*i}" font-size="14" fill="#333">{shown}</text>'

def arrow(x:int, y:int, dx:int, dy:int)->str:
    "A line along an axis with its head; dx or dy is 0."
    end_x, end_y = x + dx, y + dy
    back_x, back_y = (7 if dx > 0 else -7)*(dx != 0), (7 if dy > 0 else -7)*(dy != 0)
    side_x, side_y = 5*(dy != 0), 5*(dx != 0)
    head = (f'M{end_x} {end_y}L{end_x - back_x - side_x} {end_y - back_y - side_y}'
            f'L{end_x - back_x + side_x} {end_y - back_y + side_y}z')
    return (f'<path d="M{x} {y}L{end_x - back_x} {end_y - back_y}" stroke="#6b675c" stroke-width="1.8" fill="none"/>'
            f'<path d="{head}" fill="#6b675c"/>')

def arrows()->Iterator[str]:
    "Along the first row, down, back along the second; and down once more to the triples."
    gap = STEP - BOX
    top = [24 + 120*row for row in range(3)]
    for column in range(3): yield arrow(LEFT + STEP*column + BOX, top[0] + TALL//2, gap, 0)
    for row in range(2): yield arrow(LEFT + STEP*3 + BOX//2, top[row] + TALL, 0, 120 - TALL)
    for column in (3, 2): yield arrow(LEFT + STEP*column, top[1] + TALL//2, -gap, 0)
    yield arrow(LEFT + STEP*3, top[2] + TALL//2, -gap, 0)

def draw(course:dict, card:dict, lang:str)->str:
    "The picture as SVG, on a ground of its own, so that a dark page can show it."
    w = WORDS[lang]
    shapes = [line for box in boxes(course, card['seconds'], lang) for line in box_lines(box)]
    note = escape(w['note'].format(**card['env']))
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
            f'role="img" font-family="{FONT}">')
    ground = f'<rect width="{WIDTH}" height="{HEIGHT}" rx="12" fill="#fbfaf6"/>'
    foot = f'<text x="{LEFT}" y="{HEIGHT - 12}" font-size="13" fill="#6b675c">{note}</text>'
    return '\n'.join([head, f'<title>{escape(w["title"])}</title>', ground, *arrows(), *shapes, foot, '</svg>', ''])
