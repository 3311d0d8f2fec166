"""Form may change, facts may not: every rule of chapter 00 against an independent checker, on real texts.

The checker shares no code with the rules. It reads a text as atoms (letters, digits, Chinese characters) with gaps
between them, and asks of a rule's output: is every atom still there, in order, and none new? Are two neighbours in
the output neighbours in the input, or kept apart there only by characters nobody sees? Is every operator still there?
Only spans that the rule names (a tag, a comment, an entity, an emptied bracket) may go."""
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

# ---- the checker

OPERATORS = frozenset('+-*/=<>×÷±~^%≤≥≠≈√∑∫∈∞°′″|$￥¥€@')
BLOCK_TAGS = frozenset('p div li tr td th ref ul ol h1 h2 h3 h4 h5 h6 table thead tbody tfoot caption blockquote '
                       'center dl dt dd section article header footer hr br'.split())
INLINE_TAGS = frozenset('span a b i u em strong img font small big s del ins mark nowiki sup sub'.split())
TAG = re.compile(r'<(/?)([a-zA-Z]+[1-6]?)((?:\s[^<>\n]*)?/?)\s*>')
COMMENT = re.compile('<!--.*?-->', re.S)
ENTITY = re.compile('&#?[a-zA-Z0-9]+;')
EMPTIED = re.compile(r'[（(《“【‘][，、；：。,;:\s]*[）)》”】’]')
ESCAPED_LINE = re.compile(r'(?:\\r)?\\n')
HTML_RULES = frozenset(('strip_html', 'clean_prose', 'clean_texts', 'wiki'))


class Step(NamedTuple):
    "One way on through a text."
    atom:str # what is read; '' for nothing
    effect:str # gap: something visible was passed; span: a named piece was; else ''
    to:int # the place reached


def plain(c:str)->str:
    "A full-width letter, digit or sign as its ASCII form."
    return chr(ord(c) - 0xFEE0) if '\uff01' <= c <= '\uff5e' else c


def is_invisible(c:str)->bool:
    "Does nobody see this character, and does it part nothing?"
    if c in '\n\t\r\x0b\x0c\x85\x1c\x1d\x1e\x1f': return False
    return unicodedata.category(c) in ('Cc', 'Cf', 'Cs') or c in '\ufffe\uffff'


def is_atom(c:str)->bool:
    "A letter, a digit or a Chinese character."
    return c.isalnum()


def char_step(c:str, to:int)->Step:
    "Over one character."
    if is_invisible(c): return Step('', '', to)
    return Step(plain(c), '', to) if is_atom(c) else Step('', 'gap', to)


def is_tag(m:re.Match, text:str)->bool:
    "A known tag that is one: of a kind that is never paired, with attributes, or with its other half in the text."
    name = m[2].lower()
    if name not in BLOCK_TAGS and name not in INLINE_TAGS: return False
    if name in ('br', 'hr', 'img') or '=' in m[3] or m[3].strip() == '/' or m[3].endswith('/'): return True
    other = rf'<{name}[\s>]' if m[1] else f'</{name} *>'
    return re.search(other, text, re.I) is not None


def steps_of(text:str, rule:str)->list[list[Step]]:
    "For every place in a text, the ways on from there."
    ways = [[char_step(c, i + 1)] for i, c in enumerate(text)] + [[]]
    if rule in HTML_RULES:
        for m in TAG.finditer(text):
            if not is_tag(m, text): continue
            name = m[2].lower()
            parts = name in BLOCK_TAGS or (name in ('sup', 'sub') and not m[1])
            ways[m.start()].append(Step('', 'gap' if parts else 'span', m.end()))
        for m in COMMENT.finditer(text): ways[m.start()].append(Step('', 'span', m.end()))
        for m in ENTITY.finditer(text): ways[m.start()].append(entity_step(m))
    if rule in ('wiki', 'wiki_brackets'):
        for m in EMPTIED.finditer(text): ways[m.start()].append(Step('', 'span', m.end()))
    if rule == 'literal_newlines':
        for m in ESCAPED_LINE.finditer(text): ways[m.start()].append(Step('', 'gap', m.end()))
    return ways


def entity_step(m:re.Match)->Step:
    "Over an entity, as the character it stands for."
    c = html.unescape(m[0])
    if len(c) != 1 or c == '\ufffd' or is_invisible(c): return Step('', 'span', m.end())
    return char_step(c, m.end())


def ahead(ways:list[list[Step]], states:set[tuple[int, bool, bool]])->set[tuple[int, bool, bool]]:
    "Every place that can be reached without reading an atom: (place, was there a gap, was there a span)."
    todo, seen = list(states), set(states)
    while todo:
        at, gap, span = todo.pop()
        for step in ways[at]:
            if step.atom: continue
            new = (step.to, gap or step.effect == 'gap', span or step.effect == 'span')
            if new not in seen:
                seen.add(new)
                todo.append(new)
    return seen


def output_atoms(text:str)->Iterator[tuple[str, bool]]:
    "Every atom of a cleaned text, and whether something stands before it."
    gap = True
    for c in text:
        if is_atom(c):
            yield plain(c), gap
            gap = False
        elif not is_invisible(c): gap = True


def skeleton(text:str)->str:
    "Atoms with one blank for every gap."
    text = ''.join(plain(c) if is_atom(c) else '' if is_invisible(c) else ' ' for c in text)
    return ' '.join(text.split())


def follow(before:str, after:str, rule:str)->str:
    "Walk through the input along the atoms of the output; '' if that works."
    ways = steps_of(before, rule)
    states = {(0, False, True)}
    for k, (atom, gap) in enumerate(output_atoms(after)):
        reached = ahead(ways, states)
        read = [(step.to, was_gap, span) for at, was_gap, span in reached for step in ways[at] if step.atom == atom]
        if not read: return f'atom {k} ({atom}) is not what comes next'
        states = {(to, False, False) for to, was_gap, span in read if was_gap == gap or (gap and span)}
        if not states: return f'atom {k} ({atom}) ' + ('was parted' if gap else 'has a new neighbour')
    end = len(before)
    return '' if any(at == end for at, _, _ in ahead(ways, states)) else 'atoms at the end are gone'


def lost_operators(before:str, after:str, rule:str)->str:
    "Operators of the input, runs of one counted once, that the output has fewer of."
    if rule in HTML_RULES:
        before = COMMENT.sub(' ', before)
        before = TAG.sub(lambda m: ' ' if is_tag(m, before) else m[0], before)
        before = ENTITY.sub(lambda m: '' if entity_step(m).effect == 'span' else m[0], before)
    before = ''.join(c for c in before if not is_invisible(c))
    need = re.sub(r'([-=_*~.|+<>/%^@$])\1+', r'\1', ''.join(map(plain, before)))
    want = Counter(c for c in need if c in OPERATORS)
    have = Counter(c for c in map(plain, after) if c in OPERATORS)
    return ''.join(want - have)


def violation(before:str, after:str, rule:str)->str:
    "What a rule did to the facts of a text; '' for nothing."
    if before == after: return ''
    if lost := lost_operators(before, after, rule): return f'operators lost: {lost}'
    if skeleton(before) == skeleton(after): return ''
    return follow(before, after, rule)


def is_escaped(text:str)->bool:
    """Does a text hold entities of markup? Decoding is one step by nature: what `&lt;b&gt;` or `&amp;lt;` becomes
    is text now, and nobody can tell it from markup later.
    Only for such texts a second cleaning may differ from the first."""
    return any(html.unescape(m[0]) in ('<', '>', '&') for m in ENTITY.finditer(text))


def cut_violation(before:str, after:str)->str:
    "A cut leaves a beginning and no half number."
    if not before.startswith(after): return 'not a beginning'
    number = re.search(r'\d\.\Z', after) and before[len(after):][:1].isdigit()
    return 'cut in a number' if number else ''


def number_violation(before:str, form:str)->str:
    "The normal form holds the same numbers."
    want = re.findall('[0-9]+', ''.join(map(plain, before)))
    return '' if want == re.findall('[0-9]+', ''.join(map(plain, form))) else 'other numbers'


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
    from scclm import data_cleaning as dc
    from scclm.dpo import literal_newlines
    from scclm.duplicates import normal_form
    def joined(rule:Callable[[str], str])->Callable[[list[str]], list[str]]:
        "A text rule for a list."
        return partial(dc.on_joined, rule)
    def same(name:str)->Callable[[str, str], str]:
        "The checker for a rule."
        return partial(violation, rule=name)
    def visible(texts:list[str])->list[str]:
        "`clean_prose` relies on the first rule."
        return dc.on_joined(dc.clean_prose, dc.on_joined(dc.strip_invisible, texts))
    rules = {r.__name__: (joined(r), same(r.__name__)) for r in (*dc.TEXT_RULES, dc.wiki_brackets)}
    rules['clean_prose'] = (visible, same('clean_prose'))
    rules['clean_texts'] = (dc.clean_texts, same('clean_texts'))
    rules['simplify'] = (joined(dc.simplify), _simplified)
    rules['mend_end'] = (partial(each, partial(dc.mend_end, max_chars=512)), cut_violation)
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
