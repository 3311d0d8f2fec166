"""What the front door says of the last course: benchmarks/course.json and benchmarks/card.json, from runs/<scale>.

The conversation is not chosen by anyone. The questions come in a fixed order from the paper that is sat only once
(`scclm.final_exam`): the first that is answered right, the first untaught one that is refused, the first one wrong.
"""
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq

from scclm.chat import ChatBot
from scclm.final_exam import FinalQuestion, final_questions, final_unknown
from scclm.model import n_params
from scclm.runs import read_json, require, run_path, write_json
from scclm.sample_unknown import is_refusal
from scclm.scores import is_exact

Asker = Callable[[list[str]], list[str]] # questions -> answers

def asked(
    ask:Asker, # who answers
    questions:list[str], # in a fixed order
)->Iterator[tuple[int, str]]: # number of the question, answer
    "Answers one by one, asked 32 at a time and no more than are looked at."
    for start in range(0, len(questions), 32):
        yield from enumerate(ask(questions[start:start + 32]), start)

def turn(
    kind:str, # right, refused or wrong
    question:str, # as it was asked
    answer:str, # as it came
    number:int, # of the question in its list, from 1
    expected:str='', # the right answer, for a taught question
)->dict: # as benchmarks/course.json keeps it
    "One turn of the conversation."
    return dict(kind=kind, question=question, answer=answer, number=number, expected=expected)

def first_talk(
    ask:Asker, # who answers
    taught:list[FinalQuestion], # about what was taught
    untaught:list[str], # about what was not
)->list[dict]: # three turns: right, refused, wrong
    """The first right answer, the first refusal of an untaught question, the first answer that is wrong and no refusal.
    Raises ValueError if a kind does not occur."""
    found = {}
    for i, answer in asked(ask, [q.prompt for q in taught]):
        q, right = taught[i], is_exact(answer, taught[i].response)
        if not right and is_refusal(answer): continue
        kind = 'right' if right else 'wrong'
        found.setdefault(kind, turn(kind, q.prompt, answer, i + 1, q.response))
        if {'right', 'wrong'} <= found.keys(): break
    for i, answer in asked(ask, untaught):
        if not is_refusal(answer): continue
        found['refused'] = turn('refused', untaught[i], answer, i + 1)
        break
    kinds = ('right', 'refused', 'wrong')
    if gone := [kind for kind in kinds if kind not in found]:
        n = len(taught) + len(untaught)
        raise ValueError(f'none of {n} questions of the final paper is {", ".join(gone)}: expected one of each')
    return [found[kind] for kind in kinds]

def first_triple(
    path:Path, # extracted.parquet of chapter 09
    test:str='entity_final', # of which test
)->dict: # text, extracted
    "The first sentence of a test whose triples were all read. Raises ValueError if there is none."
    for r in pq.read_table(path).to_pylist():
        if r['test'] == test and r['extracted'] == r['stated']: return dict(text=r['text'], extracted=r['extracted'])
    raise ValueError(f'{path} has no sentence of {test} whose triples were all read: expected one')

def row_counts()->dict[str, int]:
    "Rows of every step of the picture."
    data = read_json(require(run_path('data', 'report.json'), 'clean'))
    pairs = read_json(require(run_path('dpo', 'report.json'), 'dpo'))
    triples = read_json(require(run_path('ie', 'report.json'), 'ie'))['train']
    return dict(read=data['rows_in'], rejected=data['rejected'], train=data['splits']['train'],
                sft=data['splits']['sft_train'], prefs=sum(source['train'] for source in pairs.values()),
                sentences=triples['rows']['kept'], triples=triples['triples']['kept'])

def course_facts(
    bot:ChatBot, # the model of chapter 07
    ask:Asker, # who answers the questions
)->dict: # what benchmarks/course.json holds
    "Everything that the READMEs and the picture say of the course; scores are in the card."
    course = read_json(run_path('course.json'))
    chapters = [{k: c[k] for k in ('name', 'seconds', 'peak_rss_mb')} for c in course['chapters']]
    weights = sum(p.stat().st_size for p in run_path('dpo', 'model').glob('*.safetensors'))
    model = dict(parameters=n_params(bot.model), vocabulary=len(bot.tok), mb=weights/1e6)
    speed = {k: course[k] for k in ('reference_tok_per_s',) if k in course}
    return dict(set_up_seconds=course['set_up_seconds'], **speed, chapters=chapters, rows=row_counts(), model=model,
                talk=first_talk(ask, final_questions(), final_unknown()),
                triple=first_triple(require(run_path('ie', 'extracted.parquet'), 'ie')))

def keep_facts(
    root:Path, # the checkout
    ask:Asker|None=None, # who answers the questions; None: the model of chapter 07
):
    """Write both files; neither if something of the course is missing.
    Raises ValueError for a course that is not the one the READMEs speak of."""
    card = read_json(require(run_path('card.json'), 'card'))
    for key, ours in (('scale', 'tiny'), ('corpus', 'sample corpus')):
        if card[key] != ours: raise ValueError(f'{run_path("card.json")}: {key}={card[key]!r}, expected {ours!r}')
    bot = ChatBot.from_dir(require(run_path('dpo', 'model'), 'dpo'))
    facts = course_facts(bot, ask or bot.answer)
    write_json(root/'benchmarks'/'course.json', facts)
    write_json(root/'benchmarks'/'card.json', {k: v for k, v in card.items() if k != 'seeds'})
