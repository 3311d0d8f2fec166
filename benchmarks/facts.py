"""Form may change, facts may not: every rule of chapter 00 against an independent checker, on real texts.

The checker shares no code with the rules. It reads a text as atoms (letters, digits, Chinese characters) with gaps
between them, walks through the input along the atoms of the output and compares every two gaps, sign by sign:
no atom goes or comes; no sign goes but a mark of a run, a mark before the first atom, a bracket without a partner;
between two Latin letters or digits every mark stays what it is. Only spans that the rule names (a tag, a comment,
an entity, an emptied bracket) may go."""
import argparse
import csv
import html
import io
import json
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

# ---- the checker: what is read

BLOCK_TAGS = frozenset('p div li tr ul ol h1 h2 h3 h4 h5 h6 table thead tbody tfoot caption '
                       'blockquote center dl dt dd section article header footer hr br'.split())
CELL_TAGS = frozenset(('td', 'th', 'ref'))
INLINE_TAGS = frozenset('span a b i u em strong img font small big s del ins mark nowiki sup sub'.split())
TAG = re.compile(r'<(/?)([a-zA-Z]+[1-6]?)((?:\s[^<>\n]*)?/?)\s*>')
COMMENT = re.compile('<!--.*?-->', re.S)
ENTITY = re.compile('&#?[a-zA-Z0-9]+;')
EMPTIED = re.compile(r'[（(][，、；：。,;:\s]*[）)]|《》|“”|【】|‘’')
ESCAPED_LINE = re.compile(r'(?:\\r)?\\n')
HTML_RULES = frozenset(('strip_html', 'clean_prose', 'clean_texts'))
BLOCK, CELL, SUP, SUB, SCRIPT_END = '\ue000\ue001\ue002\ue003\ue004' # what is seen of a tag
LINE_ENDS = frozenset('\n\r\x0b\x0c\x85\u2028\u2029')
CHINESE_MARKS, ASCII_MARKS = frozenset('，、；：。！？'), frozenset(',;:.．!?')
MARKS = CHINESE_MARKS | ASCII_MARKS
OPENING = dict(zip('（《“【「〝', '）》”】」〞')) # these may go where they have no partner
CLOSING = {c: o for o, c in OPENING.items()}


class Step(NamedTuple):
    "One way on through a text."
    atom:str # what is read; '' for nothing
    seen:str # what is seen on the way: a sign, white space, a tag that parts; '' for nothing
    to:int # the place reached


def plain(c:str)->str:
    "A full-width letter, digit or sign as its ASCII form."
    return chr(ord(c) - 0xFEE0) if '\uff01' <= c <= '\uff5e' else c


def is_invisible(c:str)->bool:
    "Does nobody see this character, and does it part nothing?"
    if c in LINE_ENDS or c in '\t\x1c\x1d\x1e\x1f': return False
    return unicodedata.category(c) in ('Cc', 'Cf', 'Cs') or c in '\ufffe\uffff'


def is_atom(c:str)->bool:
    "A letter, a digit or a Chinese character."
    return c.isalnum()


def is_latin(c:str)->bool:
    "A Latin letter or a digit?"
    return c.isascii() and c.isalnum()


def char_step(c:str, to:int)->Step:
    "Over one character."
    if is_invisible(c): return Step('', '', to)
    return Step(plain(c), '', to) if is_atom(c) else Step('', c, to)


def is_tag(m:re.Match, text:str)->bool:
    "A known tag that is one: of a kind that is never paired, with attributes, or with its other half in the text."
    name = m[2].lower()
    if name not in BLOCK_TAGS and name not in CELL_TAGS and name not in INLINE_TAGS: return False
    if name in ('br', 'hr', 'img') or '=' in m[3] or m[3].strip() == '/' or m[3].endswith('/'): return True
    other = rf'<{name}[\s>]' if m[1] else f'</{name} *>'
    return re.search(other, text, re.I) is not None


def tag_step(m:re.Match)->Step:
    "Over a tag."
    name = m[2].lower()
    seen = BLOCK if name in BLOCK_TAGS else CELL if name in CELL_TAGS else ''
    if name in ('sup', 'sub'): seen = SCRIPT_END if m[1] else SUP if name == 'sup' else SUB
    return Step('', seen, m.end())


def entity_step(m:re.Match)->Step:
    "Over an entity, as the character it stands for."
    c = html.unescape(m[0])
    if len(c) != 1 or c == '\ufffd' or is_invisible(c): return Step('', '', m.end())
    return char_step(c, m.end())


def steps_of(text:str, rule:str)->list[list[Step]]:
    "For every place in a text, the ways on from there."
    ways = [[char_step(c, i + 1)] for i, c in enumerate(text)] + [[]]
    if rule in HTML_RULES:
        for m in TAG.finditer(text):
            if is_tag(m, text): ways[m.start()].append(tag_step(m))
        for m in COMMENT.finditer(text): ways[m.start()].append(Step('', '', m.end()))
        for m in ENTITY.finditer(text): ways[m.start()].append(entity_step(m))
    if rule == 'wiki_brackets':
        for m in EMPTIED.finditer(text): ways[m.start()].append(Step('', '', m.end()))
    if rule == 'literal_newlines':
        for m in ESCAPED_LINE.finditer(text): ways[m.start()].append(Step('', '\n', m.end()))
    return ways


# ---- the checker: two gaps

class Gap(NamedTuple):
    "What stands between two atoms, before and after a rule."
    before:str
    after:str
    left:str # the atom before it; '' at the beginning
    right:str # the atom behind it; '' at the end


class Sign(NamedTuple):
    "A sign in a gap."
    c:str # in its common form
    raw:str # as it stands there


FORMS = {**dict.fromkeys('｡', '。'), **dict.fromkeys('﹐，', ','), **dict.fromkeys('､﹑', '、'), **dict.fromkeys('﹔', ';'),
         **dict.fromkeys('﹕', ':'), **dict.fromkeys('﹖', '?'), **dict.fromkeys('﹗', '!'),
         **dict.fromkeys('“”「」〝〞', '"'), **dict.fromkeys('‘’『』', "'"), **dict.fromkeys(LINE_ENDS, '\n')}


def common(c:str)->str:
    "A sign in its common form."
    if c in FORMS: return FORMS[c]
    return ' ' if c.isspace() else plain(c)


def signs_of(gap:str)->list[Sign]:
    "The signs of a gap without blanks; a very long run of one sign counts as three, or two of a dash or an ellipsis."
    gap = re.sub(r'([-=_*.~～·])\1{20,}', lambda m: m[1]*3, gap)
    gap = re.sub('—{21,}', '——', re.sub('…{3,}', '……', gap))
    signs = [Sign(common(c), c) for c in gap]
    signs = [s for s in signs if s.c != ' ' and s.c != CELL]
    return [s for k, s in enumerate(signs) if s.c != '\n' or k == 0 or signs[k - 1].c != '\n']


class Reached(NamedTuple):
    "How far the signs after a rule were found among those before it."
    done:int # signs after it that were found
    kept:bool # was a mark of the present run kept
    dropped:bool # was one dropped


def is_run(signs:list[Sign], k:int, c:str)->bool:
    "Is the sign at `k` one of several like it?"
    return any(0 <= j < len(signs) and signs[j].raw == c for j in (k - 1, k + 1))


def may_be_dropped(signs:list[Sign], k:int, gap:Gap, rule:str)->bool:
    "May this bracket, mark or line end go, as far as its neighbours tell?"
    raw = signs[k].raw
    first, last = k == 0, k == len(signs) - 1
    if signs[k].c == '\n': return not gap.left or not gap.right or rule == 'wiki_brackets' or (
        any(s.raw in (BLOCK, *OPENING, *CLOSING) for s in signs[max(0, k - 1):k + 2]))
    if signs[k].c == BLOCK: return True
    if raw in CLOSING: return not (first and gap.left)
    if raw in OPENING:
        if raw in '“「' and first and gap.left.isdigit(): return False # 4'33“
        if raw == '（' and not first and signs[k - 1].c in ':;' and last: return False # a face
        return not (first and last and gap.left and gap.right)
    if raw not in MARKS or (raw == '.' and is_run(signs, k, '.')): return False
    factorial = raw == '!' and is_latin(gap.left) and all(s.raw == '!' for s in signs[:k])
    return not factorial and not in_word(gap)


def in_word(gap:Gap)->bool:
    "Marks of one kind only, Chinese or ASCII, between two Latin letters or digits?"
    inside = set(gap.before)
    return is_latin(gap.left) and is_latin(gap.right) and (inside <= CHINESE_MARKS or inside <= ASCII_MARKS)


def same_sign(s:Sign, after:Sign, direct:bool)->bool:
    "Is a sign still itself? Between two letters or digits a point is no full stop."
    if s.c == after.c: return True
    return not direct and {s.raw, after.raw} <= {'.', '。', '．'} and after.raw == '。'


def next_reached(r:Reached, signs:list[Sign], k:int, after:list[Sign], gap:Gap, rule:str)->Iterator[Reached]:
    "Where the sign at `k` leads to: it is kept, or it goes."
    s, here = signs[k], after[r.done:r.done + 2]
    is_mark = s.raw in MARKS
    if s.c in (SUP, SUB, SCRIPT_END):
        sign = '^' if s.c == SUP else '_'
        forms = ([], ['}']) if s.c == SCRIPT_END else ([], [sign], [sign, '{'])
        for form in forms:
            if [a.c for a in here[:len(form)]] == form: yield Reached(r.done + len(form), False, False)
        return
    ends_run = not is_mark and s.raw not in OPENING and s.raw not in CLOSING
    free = rule == 'wiki_brackets' or (not gap.left and all(a.c == '\n' for a in after[:r.done]))
    if ends_run and r.dropped and not r.kept and not free: return
    if here and (same_sign(s, here[0], in_word(gap)) or (s.c == BLOCK and here[0].c == '\n')):
        yield Reached(r.done + 1, is_mark or (r.kept and not ends_run), r.dropped and not ends_run and not free)
    if may_be_dropped(signs, k, gap, rule): yield Reached(r.done, r.kept, r.dropped or is_mark)


def same_gap(gap:Gap, rule:str)->bool:
    "Does a gap say the same after a rule?"
    if gap.before == gap.after: return True
    signs, after = signs_of(gap.before), signs_of(gap.after)
    if gap.left and gap.right:
        if bool(gap.before) != bool(gap.after): return gap.before == SCRIPT_END and not is_one_script(gap)
        if BLOCK in gap.before and '\n' not in gap.after: return False
    if any(c.isspace() for c in gap.after) and not any(c.isspace() or c in (BLOCK, CELL, SUP, SUB) for c in gap.before):
        return False
    if lost_blank(gap): return False
    states = {Reached(0, False, False)}
    for k in range(len(signs)): states = {new for r in states for new in next_reached(r, signs, k, after, gap, rule)}
    free = not gap.left or rule == 'wiki_brackets' # marks before the first atom may go
    return any(r.done == len(after) and (r.kept or not r.dropped or free) for r in states)


def is_one_script(gap:Gap)->bool:
    "Would what follows a superscript or subscript be read as a part of it? Not in H_2O."
    return is_latin(gap.left) and is_latin(gap.right) and not (gap.left.isdigit() and gap.right.isalpha())


def lost_blank(gap:Gap)->bool:
    "Did a blank go between two numbers, where no Chinese mark parts them?"
    if not (gap.left.isdigit() and gap.right.isdigit()): return False
    gone = any(common(c) == ' ' for c in gap.before) and not any(c.isspace() for c in gap.after)
    return gone and gap.after.isascii()


# ---- the checker: a text

def ahead(ways:list[list[Step]], states:set[tuple[int, str]])->set[tuple[int, str]]:
    "Every place that can be reached without reading an atom, with what is seen on the way."
    todo, seen = list(states), set(states)
    while todo:
        at, gap = todo.pop()
        for step in ways[at]:
            if step.atom: continue
            new = (step.to, gap + step.seen)
            if new not in seen:
                seen.add(new)
                todo.append(new)
    return seen


def output_atoms(text:str)->Iterator[tuple[str, str]]:
    "Every atom of a cleaned text with what stands before it; at last '' with the rest."
    gap = ''
    for c in text:
        if is_atom(c):
            yield plain(c), gap
            gap = ''
        elif not is_invisible(c): gap += c
    yield '', gap


def follow(before:str, after:str, rule:str)->str:
    "Walk through the input along the atoms of the output; '' if that works."
    ways, same = steps_of(before, rule), 0
    while same < min(len(before), len(after)) and before[same] == after[same] and len(ways[same]) == 1: same += 1
    while same and not is_atom(before[same - 1]): same -= 1
    states, left = {(same, '')}, before[same - 1:same]
    for atom, gap in output_atoms(after[same:]):
        found, near = set(), False
        for at, seen in ahead(ways, states):
            to = [s.to for s in ways[at] if s.atom == atom] if atom else [at]*(at == len(before))
            near = near or bool(to)
            if to and same_gap(Gap(seen, gap, left, atom), rule): found |= {(t, '') for t in to}
        if not found: return f'the gap between {left!r} and {atom!r}' if near else f'{atom!r} is not what comes next'
        states, left = found, atom
    return ''


def pairs_in(text:str)->Counter:
    "How many pairs of each kind of Chinese brackets a text has; what is in `code` pairs with nothing outside."
    pairs, opened = Counter(), Counter()
    for c in text:
        if c == '`': opened.clear()
        elif c in OPENING: opened[c] += 1
        elif c in CLOSING and opened[CLOSING[c]]:
            opened[CLOSING[c]] -= 1
            pairs[common(CLOSING[c])] += 1
    return pairs


def lost_pairs(before:str, after:str, rule:str)->str:
    "Kinds of Chinese brackets of which a text has fewer pairs than before."
    if rule in HTML_RULES: before = COMMENT.sub('', TAG.sub(lambda m: '' if is_tag(m, before) else m[0], before))
    if rule == 'wiki_brackets': before = EMPTIED.sub('', before)
    return ''.join(pairs_in(before) - pairs_in(after))


ABOUT_MARKS = re.compile('标点|逗号|句号|顿号|问号|感叹号|冒号|分号|^[，。、；：！？]+[和与]?[，。、；：！？]*(?:分别|有什么|的区别)')


def lost_marks(before:str, after:str)->str:
    "Marks that a text about marks has lost."
    if not ABOUT_MARKS.search(before): return ''
    before = COMMENT.sub('', TAG.sub(lambda m: '' if is_tag(m, before) else m[0], before))
    before = ENTITY.sub(lambda m: html.unescape(m[0]), before)
    have, want = (Counter(common(c) for c in t if c in MARKS) for t in (after, before))
    return ''.join(want - have)


def violation(before:str, after:str, rule:str)->str:
    "What a rule did to the facts of a text; '' for nothing."
    if before == after: return ''
    if lost := lost_pairs(before, after, rule): return f'a pair is gone: {lost}'
    if rule == 'clean_texts' and (lost := lost_marks(before, after)): return f'the marks it speaks of are gone: {lost}'
    return follow(before, after, rule)


def is_escaped(text:str)->bool:
    """Does a text hold entities of markup? Decoding is one step by nature: what `&lt;b&gt;` or `&amp;lt;` becomes
    is text now, and nobody can tell it from markup later.
    Only for such texts a second cleaning may differ from the first."""
    return any(html.unescape(m[0]) in ('<', '>', '&') for m in ENTITY.finditer(text))


# ---- the checker: cuts, normal forms, words that differ by region

def cut_violation(before:str, after:str, max_chars:int=512)->str:
    """A cut leaves the longest beginning of whole sentences that fits and no half number; a short text loses no half.
    A mark before 》 belongs to a title and ends no sentence."""
    if not before.startswith(after): return 'not a beginning'
    rest = before[len(after):]
    if not rest: return ''
    if re.search(r'\d\.\Z', after) and rest[:1].isdigit(): return 'cut in a number'
    if not rest.strip('，、；：（“《,'): return ''
    if len(before) <= max_chars and 2*len(after) < len(before): return 'more than half is gone'
    ends = [m.end() for m in re.finditer('[。！？](?!》)', before) if m.end() <= max_chars]
    if ends and len(after) < ends[-1]: return 'a whole sentence is gone'
    return '' if not after or after[-1] in '。！？…!?.”）》’' else 'cut in mid-sentence'


def number_violation(before:str, form:str)->str:
    "The normal form holds the same numbers, each with its sign, and what stands alone between two of them."
    before, form = (''.join(map(plain, t)).replace('、', ',').replace('。', '.') for t in (before, form))
    if re.findall('[0-9]+', before) != re.findall('[0-9]+', form): return 'other numbers'
    gaps = list(zip(re.split('[0-9]+', before), re.split('[0-9]+', form)))[:-1] # before each number
    for k, (old, new) in enumerate(gaps):
        signs = [t[-1:] if t[-1:] in tuple('-+±') else '' for t in (old, new)]
        if (signs[0] and signs[1] != signs[0]) or signs[1] not in old: return f'another sign of number {k}'
        if k and len(old) == 1 and old in '.:/,~-%^*+=' and new != old: return f'another mark before number {k}'
    return ''


def mainland(marked:str)->str:
    "What -{…}- shows in mainland China, read from its parts."
    flag, _, words = marked.rpartition('|')
    if flag.strip() in ('H', 'T'): return '' # a definition, a title
    forms = {}
    for part in words.split(';'):
        region, colon, word = part.partition(':')
        if colon and region.strip().startswith('zh'): forms.setdefault(region.strip(), word.strip())
    if not forms: return words
    best = [region for region in ('zh-hans', 'zh-cn', 'zh-sg', 'zh-my', 'zh') if region in forms]
    return forms[best[0]] if best else next(iter(forms.values()))


def variants_violation(before:str, after:str)->str:
    "Every -{…}- became what the mainland reads, and nothing else changed."
    before, after = (''.join(c for c in t if not is_invisible(c)) for t in (before, after))
    want, rest = '', before
    while '-{' in rest:
        start, _, rest = rest.partition('-{')
        inside, closed, behind = rest.partition('}-')
        if not closed or '{' in inside or '}' in inside: want += start + '-{'
        else: want, rest = want + start + mainland(inside), behind
    return '' if (want + rest).split() == after.split() else 'other words'


# ---- real texts

def json_records(text:str)->Iterator[dict]:
    "The records of a JSON list or of JSON Lines."
    if text.lstrip().startswith('['):
        yield from json.loads(text)
        return
    for line in text.splitlines():
        if line.strip(): yield json.loads(line)


def strings(value:object)->Iterator[str]:
    "Every text inside a record."
    if isinstance(value, str): yield value
    elif isinstance(value, dict): value = list(value.values())
    if isinstance(value, list):
        for v in value: yield from strings(v)


def texts_of(path:Path)->Iterator[str]:
    "Every text of a file."
    if path.suffix == '.parquet':
        table = pq.read_table(path)
        for name in ('prompt', 'response'): yield from (t for t in table[name].to_pylist() if t)
    elif path.suffix == '.csv':
        for row in csv.reader(io.StringIO(path.read_bytes().decode('gb18030', 'replace'))): yield from row
    elif path.suffix in ('.json', '.jsonl'):
        for record in json_records(path.read_text(encoding='utf-8')): yield from strings(record)
    else:
        yield from re.split(r'</?doc[^>]*>', path.read_text(encoding='utf-8'))


def all_texts(root:Path, share:float, seed:int)->Iterator[tuple[str, list[str]]]:
    "File by file: its name and a share of its texts, drawn at random."
    rng = random.Random(seed)
    for path in sorted(root.rglob('*')):
        if not path.is_file() or path.suffix in ('.md', '.xz') or path.name == 'duie_schema.json': continue
        texts = [t for t in texts_of(path) if share == 1 or rng.random() < share]
        yield path.relative_to(root).as_posix(), texts


# ---- the rules on them

class Count(NamedTuple):
    "What a rule did."
    texts:int
    changed:int
    violations:int


def _han_class(text:str)->str:
    "Every Chinese character as the same one: for the rule that exchanges them."
    return re.sub('[\u2e80-\u2fdf\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]', '漢', text)


def _simplified(before:str, after:str)->str:
    "Only Chinese characters were exchanged."
    before, after = (_han_class(''.join(c for c in t if not is_invisible(c))) for t in (before, after))
    return '' if before == after else 'more than characters'


def each(rule:Callable[[str], str], texts:list[str])->list[str]:
    "A rule for every text that is not empty."
    return [rule(t) if t else t for t in texts]


def rules_to_check()->dict[str, tuple]:
    "Name -> (function of a list of texts, function of a text before and after that names a violation)."
    from scclm import text_rules
    from scclm.duplicates import normal_form
    from scclm.pref_files import literal_newlines
    def joined(rule:Callable[[str], str])->Callable[[list[str]], list[str]]:
        "A text rule for a list."
        return partial(text_rules.on_joined, rule)
    def same(name:str)->Callable[[str, str], str]:
        "The checker for a rule."
        return partial(violation, rule=name)
    def visible(texts:list[str])->list[str]:
        "`clean_prose` relies on the first rule."
        return text_rules.on_joined(text_rules.clean_prose, text_rules.on_joined(text_rules.strip_invisible, texts))
    rules = {r.__name__: (joined(r), same(r.__name__)) for r in (*text_rules.TEXT_RULES, text_rules.wiki_brackets)}
    rules['wiki_variants'] = (joined(text_rules.wiki_variants), variants_violation)
    rules['clean_prose'] = (visible, same('clean_prose'))
    rules['clean_texts'] = (text_rules.clean_texts, same('clean_texts'))
    rules['simplify'] = (joined(text_rules.simplify), _simplified)
    rules['mend_end'] = (partial(each, partial(text_rules.mend_end, max_chars=512)), cut_violation)
    rules['normal_form'] = (joined(normal_form), number_violation)
    rules['literal_newlines'] = (partial(each, literal_newlines), same('literal_newlines'))
    return rules


def main():
    "Every rule on every text; print and write the counts."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('root', type=Path, help='folder of parquet, JSON, CSV and WikiExtractor files')
    p.add_argument('--share', type=float, default=1, help='of the texts, drawn at random')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--show', type=int, default=0, help='violations to print per rule')
    args = p.parse_args()
    rules = rules_to_check()
    total = {name: Count(0, 0, 0) for name in rules}
    for file, texts in all_texts(args.root, args.share, args.seed):
        print(f'{file}: {len(texts):,} texts', flush=True)
        for start in range(0, len(texts), 8192):
            check_chunk(texts[start:start + 8192], rules, total, args.show)
    for name, c in total.items():
        print(f'{name:18} {c.texts:>9,} texts {c.changed:>9,} changed {c.violations:>5} violations')
    if args.share == 1: write_counts(total)


def check_chunk(texts:list[str], rules:dict[str, tuple], total:dict[str, Count], show:int):
    "Add one chunk to the counts."
    for name, (rule, judge) in rules.items():
        after = rule(texts)
        changed = [(a, b) for a, b in zip(texts, after) if a != b]
        bad = [(a, b, why) for a, b in changed if (why := judge(a, b))]
        if name == 'clean_texts':
            twice = zip(texts, after, rule(after))
            bad += [(a, b, 'not the same again') for t, a, b in twice if a != b and not is_escaped(t)]
        for a, b, why in bad[:max(0, show - total[name].violations)]:
            print(f'  {name}: {why}\n    {a!r}\n    {b!r}')
        old = total[name]
        total[name] = Count(old.texts + len(texts), old.changed + len(changed), old.violations + len(bad))


def write_counts(total:dict[str, Count]):
    "Write the counts to results/facts.json."
    from report import write
    rows = [dict(what=f'{name}: every fact still there', ours=c.texts - c.violations, baseline=c.texts,
                 baseline_name=f'texts read, {c.changed:,} of them changed', unit='texts',
                 ratio=(c.texts - c.violations)/c.texts, runs=1) for name, c in total.items()]
    write('facts', {}, rows)


if __name__ == '__main__': main()
