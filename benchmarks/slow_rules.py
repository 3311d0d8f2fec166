"""The rule chain once more, slow and obvious: one row after the other, character by character.

    python benchmarks/slow_rules.py --data mixed.parquet [--rows N]

Written from what the rules say, without a function or a pattern of `scclm`, for two purposes: the library must give the
same (this script compares row by row), and the benchmark of the rule chain has it as its baseline."""
import argparse
import html
import re
import sys
from collections.abc import Callable
from html.entities import html5
from pathlib import Path

import pyarrow.parquet as pq

from scclm.sources import CleanCfg, clean_columns

# What characters are

LINE_ENDS = '\r\x0b\x0c\x85\u2028\u2029'
STOPS = '。！？'
WEAK = '，、；：'
OPENING, CLOSING = '（《“【', '）》”】'
TO_CHINESE = {',': '，', ';': '；', ':': '：', '!': '！', '?': '？'}


def is_han(c:str)->bool:
    "A Chinese character? No character at all is none."
    return '\u4e00' <= c <= '\u9fff' or '\u3400' <= c <= '\u4dbf'


def is_latin(c:str)->bool:
    "A letter of ASCII?"
    return c.isascii() and c.isalpha()


def is_plain(c:str)->bool:
    "A letter or a digit of ASCII?"
    return c.isascii() and c.isalnum()


def is_word(c:str)->bool:
    "What a pattern calls a word character."
    return c == '_' or c.isalnum()


def at(text:str, i:int)->str:
    "The character at a place, nothing outside the text."
    return text[i] if 0 <= i < len(text) else ''


# Invisible characters


def is_unseen(c:str)->bool:
    "A control character, one of no width, half of a pair?"
    k = ord(c)
    if c in '\n\t\x01': return False
    ranges = ((0, 0x1F), (0x7F, 0x9F), (0x200B, 0x200F), (0x2028, 0x202E), (0xD800, 0xDFFF))
    return any(a <= k <= b for a, b in ranges) or c in '\xad\u2060\ufeff\ufffe\uffff'


def is_emoji(c:str)->bool:
    "A pictogram?"
    return '\u2600' <= c <= '\u27bf' or '\U0001f000' <= c <= '\U0001faff'


def slow_invisible(text:str)->str:
    "Line ends are newlines, separators of fields are spaces, a joiner stays before an emoji, the rest goes."
    text = text.replace('\r\n', '\n')
    out = []
    for i, c in enumerate(text):
        if not is_unseen(c): out.append(c)
        elif c in LINE_ENDS: out.append('\n')
        elif '\x1c' <= c <= '\x1f': out.append(' ')
        elif c == '\u200d' and is_emoji(at(text, i + 1)): out.append(c)
    return ''.join(out)


# HTML

BLOCKS = set('p div li tr ul ol h1 h2 h3 h4 h5 h6 table thead tbody tfoot caption blockquote center dl dt dd section '
             'article header footer hr br'.split())
CELLS = {'td', 'th', 'ref'}
INLINE = set('span a b i u em strong img font small big s del ins mark nowiki sup sub'.split())
ALONE = {'br', 'hr', 'img'}
ATTRIBUTES = set('class style href id src color size face align valign width height target rel title alt name border '
                 'bgcolor cellpadding cellspacing colspan rowspan lang dir'.split())


class Tag:
    "A tag: its place, name and kind."
    def __init__(self, start:int, end:int, name:str, closing:bool, attributes:bool, lone:bool):
        "Keep them."
        self.start, self.end, self.name = start, end, name
        self.closing, self.attributes, self.lone = closing, attributes, lone


def starts_attributes(body:str)->bool:
    "Is what follows a tag's name a list of attributes?"
    rest = body.lstrip()
    if rest == body: return False
    k = 0
    while k < len(rest) and (is_latin(rest[k]) or rest[k] in ':@_-'): k += 1
    key, value = rest[:k].lower(), rest[k:].lstrip()
    if not key or not value.startswith('='): return False
    if '\n' in value.rstrip(): return False
    return key in ATTRIBUTES or value[1:].lstrip()[:1] in ('"', "'")


def read_tag(text:str, i:int)->Tag|None:
    "The known tag that begins at a `<`, if one does."
    closing = at(text, i + 1) == '/'
    j = k = i + 1 + closing
    while is_plain(at(text, k)): k += 1
    name = text[j:k].lower()
    end = k
    while end < len(text) and text[end] not in '<>': end += 1
    if name not in BLOCKS | CELLS | INLINE or at(text, end) != '>': return None
    body = text[k:end]
    if body.strip() == '' or (body.endswith('/') and body[:-1].strip() == ''):
        return Tag(i, end + 1, name, closing, False, body.endswith('/'))
    return Tag(i, end + 1, name, closing, True, False) if starts_attributes(body) else None


def all_tags(text:str)->list[Tag]:
    "The tags of a row, in order."
    tags = [read_tag(text, i) for i, c in enumerate(text) if c == '<']
    return [tag for tag in tags if tag]


def pair_tags(tags:list[Tag])->list[tuple[Tag, Tag|None]]:
    "Tags with their partners; an opening one without a partner counts only with attributes."
    waiting, pairs = {}, []
    for tag in tags:
        if tag.name in ALONE or tag.lone: pairs.append((tag, None))
        elif not tag.closing: waiting.setdefault(tag.name, []).append(tag)
        elif waiting.get(tag.name): pairs.append((waiting[tag.name].pop(), tag))
    return pairs + [(tag, None) for some in waiting.values() for tag in some if tag.attributes]


def script_signs(text:str, first:Tag, last:Tag|None)->tuple[str, str]:
    "What stands for sup and sub."
    sign = '^' if first.name == 'sup' else '_'
    if last is None: return sign, ''
    inside, after = text[first.end:last.start], at(text, last.end)
    if inside.strip() == '': return ' ', ''
    if inside[0] == '[': return '', ''
    number = inside[1:] if inside[0] in '-+' else inside
    plain = number != '' and (all(map(is_plain, number)) or not any(map(str.isascii, number)))
    formula = sign == '_' and len(inside) == 1 and inside.isdigit() and after.isalpha()
    joined = after.isascii() and after.isalnum()
    return (sign, '') if plain and (formula or not joined) else (sign + '{', '}')


def drop_comments(text:str)->str:
    "Comments go, but for one that a colon announces."
    out, i = [], 0
    while i < len(text):
        end = text.find('-->', i + 4) if text.startswith('<!--', i) else -1
        colon = i - 2 if at(text, i - 1) in (' ', '\n') and i > 0 else i - 1
        announced = at(text, colon) in ('：', ':') and is_word(at(text, colon - 1))
        nearer = at(text, i - 1) in ('：', ':') and is_word(at(text, i - 2))
        if end >= 0 and not (i and (announced or nearer)): i = end + 3
        else:
            out.append(text[i])
            i += 1
    return ''.join(out)


def only_markup(text:str)->bool:
    "Is the markup all there is?"
    body = text.strip()
    if body.startswith('<!--') and body.endswith('-->') and len(body) >= 7: return True
    if re.fullmatch(r'<h([1-6])>[^<]*</h\1>', body, re.I): return True
    if not re.search(r'<(img|table|[uo]l)\b', body, re.I): return False
    return re.fullmatch(r'(</?[a-z][^<>]*>\s*)+', body, re.I) is not None


def slow_tags(text:str)->str:
    "Known tags go, what they parted stays apart."
    if not re.search('<(!--|/?[a-zA-Z])', text): return text
    low = text.lower()
    if '标签' in text or 'html' in low or 'xml' in low or only_markup(text): return text
    text = drop_comments(text)
    tags = all_tags(text)
    stands_for = {}
    for first, last in pair_tags(tags):
        both = ('', '')
        if first.name == 'br': both = ('\n', '')
        elif first.name in BLOCKS: both = ('\x03', '\x03')
        elif first.name in CELLS: both = (' ', ' ')
        elif first.name in ('sup', 'sub'): both = script_signs(text, first, last)
        stands_for[first.start] = both[0]
        if last: stands_for[last.start] = both[1]
    out, i = [], 0
    for tag in tags:
        if tag.start in stands_for:
            out += [text[i:tag.start], stands_for[tag.start]]
            i = tag.end
    return slow_breaks(''.join(out) + text[i:])


def slow_breaks(text:str)->str:
    "Where blocks meet, a line ends, or a paragraph if a blank line stood there."
    out, i = [], 0
    while i < len(text):
        j = i
        while at(text, j) in (' ', '\t', '\n', '\x03') and j < len(text): j += 1
        run = text[i:j]
        if '\x03' in run:
            out.append('\n\n' if has_blank_line(run) else '\n')
            i = j
        else:
            out.append(text[i:j] or text[i])
            i = max(j, i + 1)
    return ''.join(out)


def has_blank_line(run:str)->bool:
    "Two line ends with only spaces between?"
    return any(line.strip(' \t') == '' for line in run.split('\n')[1:-1])


def slow_entities(text:str)->str:
    "&name; and &#number; as the characters they stand for."
    out, i = [], 0
    while i < len(text):
        end = text.find(';', i) if text[i] == '&' else -1
        name = text[i + 1:end + 1] if end > 0 else ''
        if name and is_entity(name):
            out.append(slow_invisible(html.unescape('&' + name)).replace('\x01', '').replace('\ufffd', ''))
            i = end + 1
        else:
            out.append(text[i])
            i += 1
    return ''.join(out)


def is_entity(name:str)->bool:
    "Is this, with its semicolon, an entity one knows?"
    body = name[:-1]
    if body.startswith('#x'): return 2 <= len(body) - 2 <= 5 and all(c in '0123456789abcdefABCDEF' for c in body[2:])
    if body.startswith('#'): return 2 <= len(body) - 1 <= 6 and body[1:].isdigit()
    letters = body.rstrip('0123456789')
    return 2 <= len(letters) <= 8 and len(body) - len(letters) <= 2 and all(map(is_latin, letters)) and name in html5


# Forms of characters

SAME = dict(zip('｡､﹐﹑﹔﹕﹖﹗「」『』〝〞\u3000\xa0', '。、，、；：？！“”‘’“”  '))
NARROW = [chr(k) for k in [*range(0x2002, 0x200B), 0x202F, 0x205F]]


def plain_form(c:str, marks:bool=True)->str:
    "The usual form of a character; without `marks`, of letters, digits and spaces only."
    if c in NARROW: return ' '
    if c in '０１２３４５６７８９＋－＝％＃＆＠＊／．': new = chr(ord(c) - 0xFEE0)
    elif 'Ａ' <= c <= 'Ｚ' or 'ａ' <= c <= 'ｚ': new = chr(ord(c) - 0xFEE0)
    else: new = SAME.get(c, c)
    return new if marks or new == ' ' or new.isalnum() else c


def slow_forms(text:str)->str:
    "Wide letters and digits become narrow, and the wide spaces that begin a paragraph go."
    lines = text.split('\n')
    for k in range(1, len(lines)):
        rest = lines[k].lstrip(' \t\xa0')
        if rest.startswith('\u3000'): lines[k] = rest.lstrip(' \t\xa0\u3000')
    return ''.join(map(plain_form, '\n'.join(lines)))


# Spaces


def slow_gaps(line:str)->str:
    "One space between words; the indentation stays."
    body = line.lstrip(' \t')
    indent = line[:len(line) - len(body)]
    tabs = len(indent) - len(indent.lstrip('\t'))
    if tabs and len(indent) > tabs: indent = indent[:tabs] + ' '
    out = [indent]
    for c in body:
        blank = c in ' \t'
        if not (blank and out[-1] == ' ' and len(out) > 1): out.append(' ' if blank else c)
    return ''.join(out)


def no_blank_lines(text:str)->str:
    "At most one blank line."
    lines = text.split('\n')
    out = [lines[0]]
    for k, line in enumerate(lines[1:], 1):
        blank = line.strip(' \t') == '' and k < len(lines) - 1
        if blank and len(out) > 1 and out[-1] == '': continue
        out.append('' if blank else line)
    return '\n'.join(out)


def slow_spaces(text:str)->str:
    "One space between words, none at line ends, at most one blank line."
    text = '\n'.join(slow_gaps(line) for line in text.split('\n'))
    text = no_blank_lines(text.rstrip(' ').replace(' \n', '\n'))
    lines = text.split('\n')
    for k in range(1, len(lines)):
        after = at(lines[k], 1)
        kept = after and (after in ' \t*+•>-_#@$/<{}' or after.isdigit() or is_latin(after))
        if lines[k].startswith(' ') and not kept: lines[k] = lines[k][1:]
    return first_indent('\n'.join(lines))


def first_indent(text:str)->str:
    "The indentation of the first line stays if another line has one."
    body = text.lstrip(' \t\n')
    indent = text[:len(text) - len(body)].split('\n')[-1]
    others = '\n  ' in body or '\n\t' in body
    return indent + body if others and indent not in ('', ' ') else body


# Chinese punctuation

NAMES = set('阿埃艾安奥巴贝本比彼波伯博布查茨达戴丹德登迪狄蒂丁顿多朵厄恩尔法凡梵菲费芬弗佛夫福盖戈格根哈海汉翰赫亨霍基吉加杰金卡凯坎康柯科克'
            '昆拉莱兰朗劳勒雷里利丽莉列林琳卢鲁伦罗洛马玛迈曼梅门蒙米密敏明姆穆纳娜奈南内尼妮涅诺欧帕佩皮珀普浦齐恰乔切琼热茹瑞萨塞森桑沙莎舍'
            '圣施史斯司丝苏索塔泰坦特汀廷图托瓦娃威韦维温文沃乌西希夏肖谢辛休逊雅娅亚扬耶伊因茵英尤于约泽扎詹珍朱兹佐')
NUMERALS = '一二三四五六七八九十'


def is_left(c:str)->bool:
    "Does it make a mark on its right Chinese?"
    return c != '' and (is_han(c) or c in '）》”')


def paren_end(text:str, i:int)->int:
    "Where the ) of a ( stands; the brackets hold no other bracket and no line end. -1: nowhere."
    end = i + 1
    while at(text, end) not in ('', '(', ')', '[', ']', '\n'): end += 1
    return end if at(text, end) == ')' else -1


def replace_parens(text:str, becomes_wide:Callable[[str, int, int], bool])->str:
    "Pairs of brackets in their Chinese form where a rule says so."
    out, i = [], 0
    while i < len(text):
        end = paren_end(text, i) if text[i] == '(' else -1
        if end > 0 and becomes_wide(text, i, end):
            out.append(f'（{text[i + 1:end]}）')
            i = end + 1
        else:
            out.append(text[i])
            i += 1
    return ''.join(out)


def chinese_inside(text:str, i:int, end:int)->bool:
    "Brackets with a Chinese character in them, that are no call of a function."
    before, inside = text[i - 1] if i else '', text[i + 1:end]
    called = before != '' and (is_latin(before) or before in '_]')
    balanced = inside.count('（') == inside.count('）')
    return balanced and not called and len(inside) <= 300 and any(map(is_han, inside[:201]))


def chinese_around(text:str, i:int, end:int)->bool:
    "中(abc)文: brackets inside a Chinese sentence."
    after = at(text, end + 1)
    beyond = at(text, end + 2) if after == ' ' else after
    ends = after in ('', '\n') or (beyond != '' and (is_han(beyond) or beyond in '，。；：！？、,;:!?'))
    return i > 0 and is_han(text[i - 1]) and 1 <= end - i - 1 <= 60 and ends


def has_wide_in_narrow(text:str)->bool:
    "Does a （ stand behind a ( of the same line, with no ( or ) between?"
    opened = False
    for c in text:
        if c == '(': opened = True
        elif c in ')\n': opened = False
        elif c == '（' and opened: return True
    return False


def slow_parens(text:str)->str:
    "The inner brackets first."
    old, text = text, replace_parens(text, chinese_inside)
    while old != text and has_wide_in_narrow(text): old, text = text, replace_parens(text, chinese_inside)
    return replace_parens(text, chinese_around)


def is_entity_end(text:str, i:int)->bool:
    "Does a semicolon at this place end an entity?"
    return any(text[:i + 1].endswith(f'&{name};') for name in ('lt', 'gt', 'amp', 'quot', 'nbsp', '#39'))


def may_follow(text:str, mark:str, end:int)->bool:
    "May a mark before this place become Chinese?"
    if mark == '!': return at(text, end) != '='
    if mark != '?': return True
    k = end
    while at(text, k) and is_word(text[k]): k += 1
    return not (k > end and at(text, k) == '=' and (is_latin(text[end]) or text[end] == '_'))


def right_is_chinese(text:str, i:int)->bool:
    "Does what begins here make a mark before it Chinese?"
    c = at(text, i)
    if c == ' ': return at(text, i + 1) in ('《', '“', '（')
    return c != '' and (is_han(c) or c in '《“（')


def one_kind(text:str, mark:str)->str:
    "A run of one ASCII mark beside a Chinese character becomes one Chinese mark."
    out, i = [], 0
    while i < len(text):
        end = mark_end(text, mark, i) if text[i] == mark else i
        out.append(TO_CHINESE[mark] if end > i else text[i])
        i = max(end, i + 1)
    return ''.join(out)


def mark_end(text:str, mark:str, i:int)->int:
    "Where the run of a mark ends that becomes Chinese; `i` if it stays."
    longest = i + 1
    if mark != ':':
        while at(text, longest) == mark: longest += 1
    elif at(text, i + 1) == ':' or (i and text[i - 1] == ':'): return i
    before = at(text, i - 1) if i else ''
    left = is_left(before) or (before == ' ' and i > 1 and is_left(text[i - 2]))
    for end in range(longest, i, -1):
        if left and may_follow(text, mark, end): return end
    if mark == '!' and before and (is_plain(before) or before in ')!\x04'): return i
    if mark == ';' and is_entity_end(text, i): return i
    for end in range(longest, i, -1):
        if right_is_chinese(text, end) and may_follow(text, mark, end): return end
    return i


def quote_end(text:str, i:int)->int:
    "Where the quotation ends that begins at this straight quote and has Chinese in it; -1: none does."
    before, after = at(text, i - 1) if i else '', at(text, i + 1)
    if before and (before in '=:,[{(“”' or (is_word(before) and not is_han(before))): return -1
    if before == ' ' and i > 1 and text[i - 2] in '=:,': return -1
    if after == '' or after in ' “”，。、；：！？）,.;:!?)': return -1
    end = i + 1
    while at(text, end) not in ('', '"', '“', '”', '\n'): end += 1
    inside = text[i + 1:end]
    if at(text, end) != '"' or not 1 <= len(inside) <= 300 or not any(map(is_han, inside[:201])): return -1
    if inside[-1] in ' （(：，': return -1
    rest = text[end + 1:end + 3]
    rest = rest[1:] if rest.startswith(' ') else rest
    return -1 if rest[:1] in (':', ',', ']', '}', '=') else end


def slow_quotes(text:str)->str:
    "Straight quotes around Chinese become curly, and so do the marks beside them."
    if '"' not in text: return text
    text = slow_hug(text)
    out, i = [], 0
    while i < len(text):
        end = quote_end(text, i) if text[i] == '"' else -1
        out.append(f'“{text[i + 1:end]}”' if end > 0 else text[i])
        i = end + 1 if end > 0 else i + 1
    text = ''.join(out)
    text = ''.join(TO_CHINESE[c] if c in TO_CHINESE and i and text[i - 1] == '”' else c for i, c in enumerate(text))
    for mark, wide in TO_CHINESE.items(): text = before_quote(text, mark, wide)
    return text


def before_quote(text:str, mark:str, wide:str)->str:
    "A run of a mark before an opening quote becomes Chinese, the space between goes."
    out, i = [], 0
    while i < len(text):
        end = i
        while at(text, end) == mark: end += 1
        before = at(text, i - 1) if i else ''
        blocked = text[i] == mark and before and mark_is_sign(before, mark)
        space = at(text, end) == ' '
        if end > i and not blocked and at(text, end + space) == '“':
            out.append(wide)
            i = end + space
        else:
            out.append(text[i])
            i += 1
    return ''.join(out)


def mark_is_sign(before:str, mark:str)->bool:
    "5! is a factorial."
    return mark == '!' and (is_plain(before) or before in ')!\x04')


def slow_stops(text:str)->str:
    "A point behind a Chinese sentence becomes a full stop."
    return ''.join('。' if c == '.' and is_stop(text, i) else c for i, c in enumerate(text))


def is_stop(text:str, i:int)->bool:
    "Does the point at this place end a Chinese sentence?"
    before, after = at(text, i - 1) if i else '', at(text, i + 1)
    if before and before in NUMERALS:
        beyond = at(text, i + 2) if after == ' ' else after
        if beyond and is_han(beyond): return False
        line = text[text.rfind('\n', 0, i) + 1:i]
        if line == before or (len(line) == 2 and line[0] == '十'): return False
    behind_space = before == ' ' and i > 1 and is_left(text[i - 2])
    if (is_left(before) or behind_space) and not (after and (after in './-' or is_word(after))): return True
    if not (after and is_han(after)): return False
    if not (before and (before in '）》”' or (i >= 5 and all(map(is_han, text[i - 5:i]))))): return False
    return not (before in NAMES and after in NAMES)


def slow_punct(text:str)->str:
    "ASCII punctuation that touches a Chinese character becomes Chinese."
    if '(' in text: text = slow_parens(text)
    for mark in TO_CHINESE: text = one_kind(text, mark)
    return slow_stops(slow_quotes(text))


def slow_hug(text:str)->str:
    "Spaces beside a Chinese mark go."
    return ''.join(c for i, c in enumerate(text) if not (c == ' ' and space_goes(text, i)))


def space_goes(text:str, i:int)->bool:
    "Does the space at this place stand beside a Chinese mark that keeps the words apart itself?"
    if i == 0 or text[i - 1] in '\n \t': return False
    before, after = text[i - 1], at(text, i + 1)
    if before in '，。！？；：、（）《》“”【】…' and not (before == '”' and is_latin(after)): return True
    if after == '': return False
    if after in '，。！？；：、）》”】…': return True
    column = i >= 3 and is_latin(before) and text[i - 2] == ' ' and is_plain(text[i - 3])
    if before in '-*+#>.' or column: return False
    return after in '（《【' or (after == '“' and not is_latin(before))


# Brackets


def unpaired(text:str)->set[int]:
    "Places of brackets without a partner."
    waiting, odd = {c: [] for c in OPENING}, set()
    for i, c in enumerate(text):
        if c in OPENING: waiting[c].append(i)
        elif c in CLOSING:
            partner = OPENING[CLOSING.index(c)]
            if waiting[partner]: waiting[partner].pop()
            else: odd.add(i)
    return odd | {i for places in waiting.values() for i in places}


def is_debris(before:str, c:str, after:str)->bool:
    "Can a bracket without a partner go, between these two?"
    if before == '\\' or after == '\\': return False
    if c in '“”' and (before.isdigit() or before == '\x04'): return False
    ends = '，。、！？…' if c in '（）' else '，。、！？…：；'
    edge = before == '\n' or before in ends
    if c in CLOSING: return edge
    if after == '\n': return not (c == '（' and before in '：；:;')
    return after in ends or (edge and is_han(after))


def alone_in_line(text:str, odd:set[int])->set[int]:
    "Unpaired quotes that are the only unpaired one of their line and close no pair in reverse."
    found = set()
    for i in odd:
        if text[i] not in '“”': continue
        line = text.count('\n', 0, i)
        others = [j for j in odd if text[j] in '“”' and text.count('\n', 0, j) == line]
        if len(others) == 1 and not ends_reversed(text, i): found.add(i)
    return found


def ends_reversed(text:str, i:int)->bool:
    "Is this the end of ”word“?"
    k = i - 1
    while k >= 0 and i - k <= 21 and text[k] not in '“”，。！？；：\n': k -= 1
    return text[i] == '“' and 2 <= i - k <= 21 and at(text, k) == '”' and k >= 0


def slow_balance(text:str)->str:
    "Brackets without a partner go where they are debris: what stands before and after decides, as it stands then."
    odd = unpaired(text)
    lone = alone_in_line(text, odd)
    odd = {i for i in odd if text[i] not in '“”' or i in lone}
    if not odd: return no_blank_lines(text)
    kept = []
    for i, c in enumerate(text + '\n'):
        while kept and kept[-1] in odd and is_debris(last_seen(text, kept[:-1]), text[kept[-1]], c): kept.pop()
        kept.append(i)
    return no_blank_lines(''.join(text[i] for i in kept[:-1]).replace(' \n', '\n'))


def last_seen(text:str, kept:list[int])->str:
    "The last of the kept characters that is no blank; a line end if there is none."
    for i in reversed(kept):
        if text[i] not in ' \t': return text[i]
    return '\n'


def slow_brackets(text:str)->str:
    "Balance, and where brackets went, the rules for marks again, until nothing changes."
    if not unpaired(text): return text
    old, text = text, slow_balance(text)
    while text != old:
        old, text = text, slow_balance(slow_marks(slow_hug(slow_punct(text))))
    return text


# Runs


def inside_word(text:str, start:int, end:int)->bool:
    "Does a piece stand between two letters or digits, or addresses?"
    before, after = at(text, start - 1) if start else '', at(text, end)
    both = before and after and plain_form(before) + plain_form(after)
    return bool(both) and all(is_plain(c) or c == '\x04' for c in both)


def slow_long_runs(text:str)->str:
    "A very long run of one sign is cut to three, of a dash to two."
    out, i = [], 0
    while i < len(text):
        end = i + 1
        while text[i] in '-=_*.~～·—' and at(text, end) == text[i]: end += 1
        if end - i > 20 and not inside_word(text, i, end): out.append(text[i]*(2 if text[i] == '—' else 3))
        else: out.append(text[i:end])
        i = end
    return ''.join(out)


def run_end(text:str, i:int)->int:
    "Where a run of at least two marks that begins here ends; `i` if there is none to look at."
    marks = WEAK + STOPS
    longest = i
    while at(text, longest) and text[longest] in marks: longest += 1
    if text[i] == '：' and longest - i > 1 and all(c in '，、；' for c in text[i + 1:longest]): return i
    if text[i] in '，、' and text[i + 1:longest] == '？' and i and is_plain(text[i - 1]): return i
    for end in range(longest, i + 1, -1):
        if at(text, end) not in ('）', '（', '='): return end
    return i


def slow_marks(text:str)->str:
    "One mark for a run, an ellipsis of two signs, no mark at the start."
    out, i = [], 0
    while i < len(text):
        end = run_end(text, i) if text[i] in WEAK + STOPS else i
        out.append(one_of_run(text, i, end) if end > i + 1 else text[i])
        i = max(end, i + 1)
    text, out = ''.join(out), []
    for i, c in enumerate(text):
        if not (c == '…' and text[max(0, i - 2):i] == '……'): out.append(c)
    return no_lead(''.join(out))


def one_of_run(text:str, start:int, end:int)->str:
    "Each sentence end once; without any, the first mark."
    run = text[start:end]
    if len(set(run)) > 2 or inside_word(text, start, end): return run
    if run[0] in '：；' and start and text[start - 1] == '（': return run
    ends = []
    for c in run:
        if c in STOPS and c not in ends: ends.append(c)
    return ''.join(ends) or run[0]


def no_lead(text:str)->str:
    "A row does not begin with a mark, unless that is a face or a command."
    body = text.lstrip(' \t\n')
    blank = text[:len(text) - len(body)]
    if not body or body[0] not in WEAK + STOPS: return text
    rest = body.lstrip(WEAK + STOPS + ' \t\n')
    last, after = body[len(body) - len(rest) - 1], rest[:1]
    face = last in '：；' and after in ('）', '（')
    command = last in '：！' and is_latin(after)
    return blank + (last if face or command else '') + rest


# Code, and text about punctuation

# Lines of code. One sign a pattern, tried one after the other, so that a row shows which one it has; \w is ASCII here.

COMMANDS = ('sudo git pip pip3 apt apt-get yum npm npx yarn docker kubectl conda brew ssh scp curl wget chmod chown '
            'mkdir cd ls rm cp mv cat echo grep sed awk export python python3 node tar gcc java javac ping vi '
            'vim').split()
TYPES = 'int char float double void bool boolean long var let const auto string String'.split()
FLOW = 'for while if elif with try except else finally async match case default'.split()
HAN_RANGE = '\u3400-\u4dbf\u4e00-\u9fff'
SIGNS = [
    # markup
    r'```', r'^~~~', r'^[ \t]*//', r'^[ \t]*/\*', r'^[ \t]+[/\\|]([ \t]*[/\\|])*[ \t]*$', r'\\begin\{',
    r'\[\^?([A-Za-z]-[A-Za-z]|0-9)', r'(?i:<!doctype)',
    r'(?i:</?(html|body|head|script|style|code|pre|form|input|button)\b[^<>\n]*>)',
    rf'[!-~{HAN_RANGE}]\s*\n[ \t]{{2,}}</?[a-z]', r'<[a-z]+ [a-z]+ ?=[“‘]', r'<[a-z]+ [a-z]+ ?=["\'][^<>\n]*：',
    # spreadsheets
    r'(^|[^\w=<>!])=[A-Za-z][A-Za-z.]+\(',
    # Python
    r'\bdef \w+ ?\(', r'\bclass \w+ ?[(:{]', r'\blambda\b[^\n]*:', r'\bself\.', r'\bprint ?\(', r'\blen\(',
    r'\brange\(', r'^>>> ', r'^[ \t]*@\w+',
    rf'^[ \t]*(({"|".join(FLOW)})\b[^\n，。？！]*|do|then):[ \t]*(#[^\n]*)?$', r'^[ \t]*import [\w.]+',
    r'^[ \t]*from [\w.]+ import ',
    # C and its kin
    r'\bprintf ?\(', r'\bscanf ?\(', r'\bconsole\.log', r'System\.out', r'\bcout ?<<', r'\bcin ?>>', r'#include',
    r'#define', r'\bint main\b', r'\bpublic (static|class|void|int) ', r'\busing namespace', r'\bnew [A-Z]\w*\(',
    r'\bfunction \w*\(', r'\breturn [^\n]*;', r'\bnull;', r'\bbreak;', r'\)[ \t]*;', r'\)[ \t]*\{', r'\};?[ \t]*$',
    r'\w\[["\'\w]+\] ?=', r'^[ \t]*\w+(\.\w+)*\([^\n]*\)[ \t]*$',
    rf'\b({"|".join(TYPES)}) [*&]?\w+ ?[=;(\[]', rf'\b({"|".join(TYPES)}) [*&]?\w+ ?, ?\w+;',
    r'\b(for|while|if|switch|elif|foreach|catch) ?\([^\n]*[;<>=!&|:][^\n]*\)',
    r'&&', r'\|\| ?\w', r'[\w)\]"\'] ?===? ?[\w("\'-]', r'\w ?!== ?', r'!=', r'\w ?[-+*/%|&]= ?\w', r'=>', r'\w::\w',
    r'\w->\w', r'\w(\+\+|--)[;)]',
    # the shell
    rf'^[ \t]*([$#>] )?({"|".join(COMMANDS)}) [-\w./~"\'$*]', r'^\$ \w', r'^#!', r'\$\{?\w+\}?/',
    r'\b(git|pip|npm|docker|conda|apt|apt-get|kubectl) [a-z]+ [-\w./"\']', r'^[ \t]*(fi|done|esac|end)$',
    r'[\w./"] --?[A-Za-z][\w-]*([ =]["\'\w./$*]|$)',
    # SQL
    r'\b(?i:select)\b[^\n]{1,300}\b(?i:from)\b', r'\b(?i:update) \w+ (?i:set)\b',
    r'\b(?i:insert into|create table|delete from|alter table|drop table|order by|group by)\b',
    r'\b(?i:where) \w+ ?[=<>]', r'\b(?i:where) \w+ ?(?i:in|like)\b',
    # data and settings
    r'"[^"\n]{0,100}"[ \t]*:[ \t]*(["\[{\d-]|true|false|null)', r'^[ \t]*[\w-]+:[ \t]*\n[ \t]+[-\w"\']',
    r'^[ \t]*- [a-zA-Z_][\w.-]*: ', r'^[ \t]*[a-z_][\w.-]+: [^\n]*\n[ \t]*[a-z_][\w.-]+:([ \n]|$)',
    r'^[ \t]*[A-Za-z_][\w.]* = \S', r'^[ \t]*[A-Za-z_][\w.]* ?:?= ?["\'\[{]', r'^\[[\w.-]+\]\n[\w.]+ ?=',
    r'^[ \t]*[.#]?[\w-]+ ?\{', r'[a-z-]+: ?[^;\n]+;[ \t]*\}',
    # single lines of other languages
    r'\b(raise|throw) (new )?[A-Za-z_][\w.]*\(', r'^[ \t]*(assert|yield|raise|del) [A-Za-z_][\w.]*[ (\[=<>!,]',
    r'^[ \t]*(puts|print|return|say|die|warn|put|p|write|writeln|fputs) ?["\']',
    r'\b(?i:msgbox|inputbox|debug\.print|response\.write|write-host|write-output) ?[("\'$]',
    r'\bDim \w+ As\b', r'#\{\w',
    r'[$@][A-Za-z_]\w* ?\.?= ?(["\']|\[["\'\]])', r'[$@][A-Za-z_]\w*->', r'[$@][A-Za-z_]\w*\[["\']', r'<\?php',
    r'\b(my|our) [$@%]\w', r'^[ \t]*[\w.$]+ ?<- ?["\'\w(]', r'\b[a-z_]+!\([\w"\'&]',
    r'^[ \t]*\w+(\.\w+)*\([^\n]*\)[ \t]*(#|//)', r'["\'];[ \t]*((#|//|--)[^\n]*)?$',
    r'^[ \t]*(val|local) \w+ ?(:|=)', r'\w\(@"']
SIGNS = [re.compile(sign, re.A | re.M) for sign in SIGNS]


def inline_end(text:str, i:int)->int:
    "Where the piece of `inline code` ends that begins at this tick; `i`: none does."
    if text[i] != '`' or (i and text[i - 1] == '`'): return i
    end = i + 1
    while at(text, end) not in ('', '`', '\n'): end += 1
    whole = at(text, end) == '`' and at(text, end + 1) != '`' and 1 <= end - i - 1 <= 300
    return end + 1 if whole else i


def hold(text:str, sign:str, piece_end:Callable[[str, int], int])->tuple[str, list[str]]:
    "The text with a sign in the place of every piece that no rule may touch, and the pieces."
    out, held, i = [], [], 0
    while i < len(text):
        end = piece_end(text, i)
        if end > i:
            held.append(text[i:end])
            out.append(sign)
        else: out.append(text[i])
        i = max(end, i + 1)
    return ''.join(out), held


def without_inline(text:str)->str:
    "The text without `inline code`."
    return hold(text, '', inline_end)[0]


def address_end(text:str, i:int)->int:
    "Where the address ends that begins here; `i`: none does."
    start = next((i + len(head) for head in ('http://', 'https://') if text.startswith(head, i)), 0)
    if not start: return i
    end = start
    while at(text, end) and '!' <= text[end] <= '~' and text[end] not in '"<>': end += 1
    while end > start and not (is_plain(text[end - 1]) or text[end - 1] in '_/=&#%+~-'): end -= 1
    return end if end > start else i


def put_back(text:str, sign:str, held:list[str])->str:
    "The pieces in their places."
    out, k = [], 0
    for c in text:
        if c == sign:
            out.append(held[k])
            k += 1
        else: out.append(c)
    return ''.join(out)


def could_be_code(text:str)->bool:
    "Is there what a line of code always has? $100/晚 has none of it."
    if any(is_latin(a) and is_latin(b) for a, b in zip(text, text[1:])): return True
    if any(c in '=&`~|;{}' for c in text) or '//' in text or '/*' in text: return True
    if any(piece.lstrip(' \t').startswith(':') for piece in text.split('"')[1:]): return True
    for line in text.split('\n'):
        body = line.lstrip(' \t')
        if line[:1] in ('#', '$', '>') or (body != line and body[:1] in ('/', '\\')): return True
    return False


def is_code(text:str)->bool:
    "Does a row hold a line of code?"
    if not could_be_code(text): return False
    bare = without_inline(text)
    return any(sign.search(bare) for sign in SIGNS)


QUESTIONS = ('是什么', '是啥', '分别', '表示', '代表', '怎么', '如何', '连用', '叫', '有什么', '有么', '有何', '的区别', '的用法', '的作用', '的意思', '的含义',
             '的名', '的写法', '的读法', '的位置', '的不同')


def speaks_of_marks(text:str)->bool:
    "Is a row about punctuation itself?"
    text = without_inline(text)
    for word, no in (('标点', '鼠光目坐地'), ('括号', '包概')):
        for i in range(len(text)):
            if text.startswith(word, i) and not (i and text[i - 1] in no): return True
    names = [a + '号' for a in '逗句顿问叹冒分引'] + ['感叹号', '省略号', '破折号', '书名号']
    return any(name in text for name in names) or begins_with_marks(text)


def begins_with_marks(text:str)->bool:
    "Does it begin with a mark that something is asked of: 。是什么"
    i = 0
    while at(text, i) and text[i] in ' \t\n\r\f\v': i += 1
    return after_marks(text, i)


def after_marks(text:str, i:int)->bool:
    "Is what follows some marks a question about them?"
    for size, group in ((1, '，。、；：！？）》】,.;:!?'), (2, ('（）', '《》', '“”', '【】'))):
        piece = text[i:i + size]
        if len(piece) == size and piece in group:
            rest = i + size
            if text.startswith(QUESTIONS, rest) or after_marks(text, rest): return True
            if at(text, rest) in ('和', '与', '跟', '及') and one_mark_at(text, rest + 1): return True
    return False


def one_mark_at(text:str, i:int)->bool:
    "Does a mark, or a pair of brackets, begin here?"
    return (at(text, i) != '' and text[i] in '，。、；：！？）》】,.;:!?') or text[i:i + 2] in ('（）', '《》', '“”', '【】')


# The chain


def slow_prose(text:str)->str:
    "Every rule, with code and addresses out of the way."
    text, code = hold(text, '\x02', inline_end)
    text, addresses = hold(slow_forms(slow_entities(slow_tags(text))), '\x04', address_end)
    for rule in (slow_spaces, slow_punct, slow_hug, slow_brackets, slow_long_runs, slow_marks): text = rule(text)
    return put_back(put_back(text, '\x04', addresses), '\x02', code)


def slow_about_marks(text:str)->str:
    "Text about punctuation keeps its marks."
    text, code = hold(text, '\x02', inline_end)
    text = ''.join(plain_form(c, marks=False) for c in slow_entities(slow_tags(text)))
    return put_back(slow_spaces(text), '\x02', code)


def slow_text(text:str)->tuple[str, bool]:
    "A cleaned text, and whether it is code."
    text = slow_invisible(text.replace('\x01', ''))
    code = is_code(text)
    if not code: text = slow_about_marks(text) if speaks_of_marks(text) else slow_prose(text)
    text = text.rstrip()
    lines = text.split('\n')
    while len(lines) > 1 and lines[0].strip(' \t') == '': del lines[0]
    text = '\n'.join(lines)
    indented = text.startswith(('  ', '\t')) and ('\n  ' in text or '\n\t' in text)
    return (text if indented else text.lstrip()), code


# The end of an answer


def ends_here(text:str, i:int, window:int)->int:
    "Where a sentence ends whose last mark is at this place; 0: none ends. Something must follow in the window."
    c, before, after = text[i], at(text, i - 1) if i else '', text[i + 1:window][:1]
    if c in '。！？…' and after != '》' or c in '!?' and not (after and (is_plain(after) or after in '=/&\\%#_》')):
        closed = i + 2 if after and after in '”）’' else i + 1
        return next((end for end in (closed, i + 1) if end < window), 0)
    if c != '.' or i + 1 >= window: return 0
    if after == '\n' and not before.isspace(): return i + 1
    if after not in (' ', '\t') or before.isspace() or (before and before in '0123456789'): return 0
    initial = is_latin(before) and (i < 2 or not is_latin(text[i - 2]))
    return 0 if initial else i + 1


def slow_cut(text:str, limit:int)->str:
    "The longest beginning of whole sentences that fits, searched from the end."
    text += '\n'
    window = min(len(text), limit + 1)
    for i in range(window - 1, -1, -1):
        end = ends_here(text, i, window)
        if end: return text[:end]
    return ''


def slow_mend(text:str, limit:int)->str:
    "An answer without its unfinished end."
    openers = ('，', '、', '；', '：', '（', '“', '《', ',')
    long = len(text) >= 128 and is_han(text[-1]) and '\n' not in text[len(slow_cut(text, len(text))):]
    if len(text) <= limit and not text.endswith(openers) and not long: return text
    cut = slow_cut(text, limit)
    if len(text) > limit or 2*len(cut) >= len(text): return cut
    while text.endswith(openers): text = text[:-1]
    return text


def slow_row(prompt:str, response:str, limit:int=512)->tuple[str, str, str]:
    "A row through the chain: question, answer, and the rule that rejects it or ''."
    prompt, _ = slow_text(prompt)
    response, code = slow_text(response)
    mended = response if code and len(response) <= limit else slow_mend(response, limit)
    rule = ''
    garbled = any(sign in text for sign in ('\ufffd', '锟斤拷', '烫烫烫') for text in (prompt, mended))
    if response and not mended: rule = 'response_long'
    elif not prompt: rule = 'prompt_short'
    elif len(prompt) > limit: rule = 'prompt_long'
    elif not mended: rule = 'response_short'
    elif garbled: rule = 'mojibake'
    return prompt, mended, rule


# The library's chain beside it


def fast_rows(prompts:list[str], responses:list[str])->list[tuple[str, str, str]]:
    "Two columns through the library's chain: question, answer, rule that rejects."
    return list(zip(*clean_columns('pair', dict(prompt=prompts, response=responses), CleanCfg())))


def differences(prompts:list[str], responses:list[str])->list[tuple[int, tuple, tuple]]:
    "Rows of which the library makes something else: place, slow, fast."
    slow = map(slow_row, prompts, responses)
    both = enumerate(zip(slow, fast_rows(prompts, responses), strict=True))
    return [(k, one, other) for k, (one, other) in both if one != other]


def main():
    "Compare a file row by row."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, required=True, help='parquet with prompt and response')
    p.add_argument('--rows', type=int, default=0, help='every k-th row, so many in all; 0: all')
    args = p.parse_args()
    table = pq.read_table(args.data, columns=['prompt', 'response'])
    step = max(1, len(table)//args.rows) if args.rows else 1
    columns = [table[name].to_pylist()[::step] for name in ('prompt', 'response')]
    odd = differences(*columns)
    for k, slow, fast in odd[:20]: print(k*step, slow, fast, sep='\n  ')
    print(f'{len(columns[0])} rows, {len(odd)} differ')
    sys.exit(bool(odd))


if __name__ == '__main__': main()
