"""What the real run came to: figures, samples and a card, in results/ of the run itself, under SCCLM_RUNS.

    python benchmarks/real_measure.py --raw RAW                     # figures, samples, a blank sheet for the judges
    python benchmarks/real_measure.py --raw RAW --judged A.json B.json  # what two judges said of the sheet; the card
    python benchmarks/real_measure.py --raw RAW --judged-ways A.json B.json # of the sheet with a repetition penalty
    SCCLM_EVENING=3 python benchmarks/real_measure.py --raw RAW         # the third evening: third.json, and that is all
    python benchmarks/real_measure.py --raw RAW --first                 # an evening without exercises: first.json
    python benchmarks/real_measure.py --raw RAW --hours RUNS RUNS RUNS  # what the three evenings' trainings took

Reads what real.py left under SCCLM_RUNS. A part that is measured already is not measured again unless a training of the
run has been made anew since. benchmarks/results/real_small/ holds the authors' run, which the page shows: nothing is
read from there, and only --keep writes there. No weights and no rows of the data go to the results but the questions
asked and the answers given."""
import argparse
import hashlib
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from ngram import CharNgram
from real import (EVENING, EVENINGS, FEW, IE_STARTS, IE_STEPS, LAW, MIXTURES, done_steps, in_one_line, key,
                  named_rows, set_dials, test_name)
from report import RESULTS, machine
from safetensors.torch import load_file

from scclm.chat import ChatBot, Decoding
from scclm.chat_exam import in_circles
from scclm.dataset import columns, encode, encode_pairs, read_pairs
from scclm.evaluation import EvaluateCfg, distinct, evaluate, repeats
from scclm.ie_finetune import FRESH, by_relation, find_errors, prf, scores, tallies, telling_errors
from scclm.model import load_model, meta_model, model_config, n_params
from scclm.pref_files import Pref
from scclm.pref_stream import fit_prefs, logp_table
from scclm.pretrain import pretrain_cfg
from scclm.real_text import fit_law
from scclm.reproduce import read_diary
from scclm.runlog import read_log
from scclm.runs import fingerprint, raw_dir, read_json, run_path, write_json
from scclm.scores import answer_logp, bits_per_char, bootstrap, ratio_score, scored, scored_chars, share_score
from scclm.tokenizer import load_tokenizer, tokenizer_cfg
from scclm.triple_files import Rejects, parse_triples, read_duie

KEPT = RESULTS/'real_small' # the authors' run, for the page; written with --keep alone
STAGES = ('pretrain', 'sft', 'dpo')
DRAWN, SHOWN, SEED = 200, 50, 2026 # questions asked, those of them that are printed and judged, the draw
WITH_IE = 'ie_17000_sft' # after extraction was learnt: is the chat still there?
HELD_OUT = 2000 # rows of the test that bits are counted on

ASKED = dict(f1_17000=.60, lead_1000=.10, bits_below_ngram5=.5, repetition=.02, hours=7) # before anything was run

def out(
    *parts:str, # below the folder
)->Path: # <SCCLM_RUNS>/small/results/<parts>
    "Where what is measured goes: beside the run that it was measured on."
    return run_path('results', *parts)

def made_of()->str:
    "Identity of the run: its diary, configuration and figures of every training in it."
    places = (f'{at}/{name}.json' for at in ('*', 'ie_choice/*') for name in ('config', 'figures'))
    found = [p for place in (*places, 'diary.jsonl') for p in run_path().glob(place)]
    return fingerprint(*(x for p in sorted(found) for x in (p.relative_to(run_path()).as_posix(), p)))

def kept(make:Callable[[], dict], name:str)->dict:
    "What is in <name>.json of this run's results; what `make` gives, written there, if it is of an older state of it."
    path, stamps = out(f'{name}.json'), out('made_of.json')
    known, now = read_json(stamps) if stamps.exists() else {}, made_of()
    if not path.exists() or known.get(name) != now:
        write_json(path, make())
        write_json(stamps, known | {name: now})
    return read_json(path)

# ---- text

def by_source(pairs:list)->dict[str, list]:
    "Held-out rows by the kind of text; `other` where the row is in neither file."
    kinds, found = dict(named_rows()), defaultdict(list)
    for pair in pairs: found[kinds.get(key(*pair), 'other')].append(pair)
    return {kind: rows for kind, rows in sorted(found.items()) if len(rows) >= 20}

def tokens_in(
    pairs:list[tuple[str, str]], # in an order drawn at random
)->float: # real tokens
    "As many as all rows have, judged by the first 4,000."
    tok, cfg = load_tokenizer(), read_json(run_path('pretrain', 'config.json'))
    sample = pairs[:4000]
    ids = [x for column in columns(sample) for x in encode(list(column), tok, cfg['max_len'])]
    return sum(map(len, ids)) * len(pairs) / len(sample)

def share_read(
    *files:list[tuple[str, str]], # all that pretraining could read
)->float: # 0 to 1
    "What part of it was read; the files are shuffled together."
    return min(1., read_json(run_path('pretrain', 'figures.json'))['real_tok'] / sum(map(tokens_in, files)))

def mixed()->tuple[list[tuple[str, str]], list[tuple[str, str]]]: # talk, exercises
    "What pretraining could read."
    return read_pairs(run_path('talk.parquet')), read_pairs(run_path('exercises.parquet'))

def bits()->dict:
    "Bits per character of held-out answers: the model after each stage, and what counting knows; in all and by kind."
    test = read_pairs(run_path('data', 'test.parquet'), HELD_OUT)
    groups = dict(all=test) | by_source(test)
    found = {kind: dict(rows=len(rows)) for kind, rows in groups.items()}
    train = list(columns(read_pairs(run_path('data', 'train.parquet')))[1])
    talk, exercises = mixed() # drawn at random: any part is a sample
    part = list(columns(talk)[1])[:round(share_read(talk, exercises) * len(talk))]
    counts = dict(unigram=(train, 1), bigram=(train, 2), ngram5=(train, 5), ngram5_part=(part, 5))
    for name, (texts, order) in counts.items():
        counted = CharNgram(texts, order)
        for kind, rows in groups.items(): found[kind][name] = counted.bits(columns(rows)[1])
    for stage in ('pretrain_tiny', 'pretrain_plain', *STAGES, WITH_IE):
        model, tok = load_model(run_path(stage, 'model'))
        for kind, rows in groups.items(): found[kind][stage] = bits_per_char(model.eval(), tok, rows, 257)
    return found

STAGE_BITS = ('pretrain_plain', *STAGES) # compared row by row

def bits_by_row(
    stage:str, # a folder with a model
    pairs:list[tuple[str, str]], # held-out rows
)->tuple[np.ndarray, np.ndarray]: # bits and characters of every answer, the end counted as one
    "What `bits_per_char` is a ratio of sums of."
    model, tok = load_model(run_path(stage, 'model'))
    encoded = encode_pairs(*columns(pairs), tok, 257, 'close')
    nats = -answer_logp(model.eval(), [(ids.prompt, ids.response) for ids in encoded])
    chars = [scored_chars(tok, text, ids.response, 257) for (_, text), ids in zip(pairs, encoded)]
    ends = [ids.response[-1] != tok.eos_token_id for ids in encoded] # no end was scored, so none is counted
    return nats / np.log(2), np.array(chars) - np.array(ends)

def stage_bits()->dict:
    "Bits per character of the stages with intervals, and how far each stage is from the one before, on the same rows."
    test = read_pairs(run_path('data', 'test.parquet'), HELD_OUT)
    found = {stage: bits_by_row(stage, test) for stage in STAGE_BITS}
    steps = dict(sft=('sft', 'pretrain'), dpo=('dpo', 'sft'))
    return dict(rows=len(test), bits={stage: ratio_score(*rows) for stage, rows in found.items()},
                change={name: ratio_score(found[a][0] - found[b][0], found[b][1]) for name, (a, b) in steps.items()})

def curve(stage:str)->dict:
    "Validation loss over tokens, parameters and what the run took."
    log, figures = read_log(run_path(stage, 'log.jsonl')), read_json(run_path(stage, 'figures.json'))
    steps, toks = zip((0, 0), *((entry['step'], entry['real_tok']) for entry in log if 'real_tok' in entry))
    points = [dict(step=entry['step'], real_tok=round(float(np.interp(entry['step'], steps, toks))),
                   loss=entry['loss_valid']) for entry in log if 'loss_valid' in entry] # seldom at a logged step
    last = points[-1]['loss']
    per_nat = figures['bits_per_char_valid'] / last # bits per character for a nat per token: the same all along
    for p in points: p['bits_per_char'] = p['loss'] * per_nat
    model, _ = load_model(run_path(stage, 'model'))
    return dict(points=points, parameters=n_params(model), seconds=figures['seconds'], real_tok=figures['real_tok'])

def curves()->dict:
    "Of every training on pairs."
    return {stage: curve(stage) for stage in ('pretrain', *LAW, 'sft')}

BUDGETS = ('mini', 'base') # what the law is asked about

def planned(scale:str)->dict:
    "Parameters and real tokens of a pretraining as its preset has it; 95 of 100 tokens of a batch are real."
    cfg = pretrain_cfg(scale)
    words = 29_298 if scale == 'base' else tokenizer_cfg(scale).max_vocab
    return dict(parameters=n_params(meta_model(model_config(scale, words))),
                real_tok=round(.95 * cfg.steps * cfg.budget_tok * cfg.accum))

def law()->dict:
    "Ends of the whole trainings, the law through them, how well it fits, and what it says of larger budgets."
    ends = {name: curve(name) for name in LAW} # all on the same rows: the one with exercises is none of them
    points = [dict(name=name, parameters=c['parameters'], real_tok=c['real_tok'],
                   bits_per_char=c['points'][-1]['bits_per_char']) for name, c in ends.items()]
    found = fit_law(points)
    for p in points: p['law'] = found(p['parameters'], p['real_tok'])
    larger = {scale: planned(scale) for scale in BUDGETS}
    for p in larger.values(): p['law'] = found(p['parameters'], p['real_tok'])
    return dict(law=found._asdict(), points=points, predicted=larger)

# ---- answers

def drawn_questions()->list[tuple[str, str]]:
    "Held-out rows drawn at random before any was seen."
    return random.Random(SEED).sample(read_pairs(run_path('data', 'test.parquet')), DRAWN)

def answers_of(stage:str)->dict:
    "The chat's own answers with its default decoding, and what can be counted in them."
    asked, wanted = columns(drawn_questions())
    said = ChatBot.from_dir(run_path(stage, 'model')).answer(list(asked))
    return dict(measures=measured(said, wanted), answers=said[:SHOWN])

def measured(
    said:list[str], # answers
    wanted:list[str], # one each
)->dict: # measure -> value, and its interval where it has one
    "What can be counted in answers."
    thrice = [any(t.count(t[k:k + 4]) >= 3 for k in range(len(t) - 3)) for t in said] # not one over the other
    pieces = [repeats(t) for t in said]
    return dict(
        repetition=share_score(sum(thrice), len(said)), in_circles=share_score(sum(map(in_circles, said)), len(said)),
        pieces_again=ratio_score([p.again for p in pieces], [p.pieces for p in pieces]),
        length_ratio=ratio_score([len(t) for t in said], [len(t) for t in wanted]),
        distinct1=scored(distinct(said, 1)), distinct2=scored(distinct(said, 2)))

# What was tried against repetition; the first is the default
WAYS = dict(default=Decoding()) | {f'penalty_{p}': Decoding(repetition_penalty=p) for p in (1.1, 1.2, 1.3)} | dict(
    no_4_twice=Decoding(no_repeat_ngram=4), sampling=Decoding('sampling', temperature=.7, top_p=.9, seed=0))
CHATS = ('sft', 'dpo') # the stages that are tried

def tried_questions()->list[tuple[str, str]]:
    "Rows that watch the training, drawn at random: none of them is reported on."
    return random.Random(SEED + 2).sample(read_pairs(run_path('data', 'valid.parquet')), DRAWN)

def mildest(
    tried:dict[str, dict[str, dict]], # stage -> way -> measures
)->str: # of WAYS
    "The lowest penalty with which no stage repeats itself more than asked; the highest if none is enough."
    penalties = [way for way in WAYS if way.startswith('penalty_')]
    worst = {way: max(ways[way]['repetition']['value'] for ways in tried.values()) for way in penalties}
    return next((way for way in penalties if worst[way] <= ASKED['repetition']), penalties[-1])

def decodings()->dict:
    "Ways to decode, tried on questions of their own; the mildest penalty that is enough, on those of `samples`."
    asked, wanted = columns(tried_questions())
    bots = {stage: ChatBot.from_dir(run_path(stage, 'model')) for stage in CHATS}
    tried = {stage: {way: measured(bot.answer(list(asked), dec), wanted) for way, dec in WAYS.items()}
             for stage, bot in bots.items()}
    chosen, (asked, wanted) = mildest(tried), columns(drawn_questions())
    said = {stage: bot.answer(list(asked), WAYS[chosen]) for stage, bot in bots.items()}
    return dict(tried=tried, chosen=chosen, people=measured(list(wanted), wanted),
                on_test={stage: dict(measures=measured(a, wanted), answers=a[:SHOWN]) for stage, a in said.items()})

def samples()->dict:
    "Every stage's answers to the same questions; the first 50 are kept, in the order of the draw."
    asked, _ = columns(drawn_questions())
    return dict(questions=list(asked[:SHOWN])) | {stage: answers_of(stage) for stage in (*STAGES, WITH_IE)}

def blind(
    questions:list[str], # asked
    answers:dict[str, list[str]], # name of who answered -> one answer each
)->dict: # sheet, who
    "The questions with the answers in an order that tells nothing; who wrote which is kept apart."
    rng, sheet, who, letters = random.Random(SEED + 1), [], [], 'ABCD'[:len(answers)]
    for k, question in enumerate(questions):
        order = rng.sample(list(answers), len(answers))
        sheet.append(dict(number=k + 1, question=question,
                          answers={letter: answers[s][k] for letter, s in zip(letters, order)}))
        who.append(dict(zip(letters, order)))
    return dict(sheet=sheet, who=who)

def blind_stages()->dict:
    "The sheet of the three stages, default decoding."
    found = read_json(out('samples.json'))
    return blind(found['questions'], {stage: found[stage]['answers'] for stage in STAGES})

def blind_ways()->dict:
    "The sheet of two stages, with the default decoding and with the penalty that was chosen."
    found, tried = read_json(out('samples.json')), read_json(out('decodings.json'))
    answers = {stage: found[stage]['answers'] for stage in CHATS}
    return blind(found['questions'], answers | {f'{s}_penalised': tried['on_test'][s]['answers'] for s in CHATS})

MARKS = ('to_the_point', 'fluent') # what is judged, 0, 1 or 2 each
PAIRS = ('pretrain', 'sft'), ('sft', 'dpo'), ('pretrain', 'dpo')
PENALISED = tuple((stage, f'{stage}_penalised') for stage in CHATS)
# A judge's file: {"judged": [{"A": {"to_the_point": 0, "fluent": 2}, "B": …, "C": …}, …]}, as long as the sheet
Judged = list[dict[str, dict[str, int]]] # of each question: letter -> mark -> 0, 1 or 2

def weighted_kappa(a:list[int], b:list[int])->float:
    "Agreement of two judges beyond chance, far apart counting more: Cohen 1968, squared weights. 1 if all is the same."
    apart = sum((x - y)**2 for x, y in zip(a, b)) / len(a)
    by_chance = sum((x - y)**2 for x in a for y in b) / len(a)**2
    return 1 - apart / by_chance if by_chance else 1.

def judged(
    first:Judged, # one judge
    second:Judged, # the other
    who:list[dict[str, str]], # of each question: letter -> stage
    pairs:tuple[tuple[str, str], ...]=PAIRS, # stages that are compared
)->dict: # per mark: the mean of each stage with its interval, and how far the two agree
    "What two judges made of the answers when they did not know who wrote them. Raises ValueError for a gap."
    if not len(first) == len(second) == len(who):
        raise ValueError(f'{len(first)} and {len(second)} questions judged: expected {len(who)} each')
    found = {}
    for mark in MARKS:
        ways = [[(row[letter], said[letter][mark]) for row, said in zip(who, judge) for letter in sorted(row)]
                for judge in (first, second)]
        a, b = ([value for _, value in way] for way in ways)
        if wrong := set(a + b) - {0, 1, 2}: raise ValueError(f'{mark}: {sorted(wrong)}, expected 0, 1 or 2')
        stages = sorted(set(who[0].values()))
        means = {stage: [(x + y) / 2 for (s, x), y in zip(ways[0], b) if s == stage] for stage in stages}
        same = sum(x == y for x, y in zip(a, b))
        found[mark] = {stage: ratio_score(m, [1] * len(m)) for stage, m in means.items()} | dict(
            agree=share_score(same, len(a)), kappa=weighted_kappa(a, b), less=lessened(means, pairs))
    return found

def lessened(
    means:dict[str, list[float]], # stage -> what each question got, in the same order
    pairs:tuple[tuple[str, str], ...], # stages that are compared
)->dict: # '<earlier>_<later>' -> how much less the later stage got, with its interval
    "Stages compared question by question: the questions are the same, so their spread does not count."
    return {f'{a}_{b}': ratio_score(np.subtract(means[a], means[b]), [1] * len(means[a])) for a, b in pairs}

def sheet_key(
    sheet:dict, # from `blind`
)->str: # as it stands in judged.json
    "Identity of the sheet: marks belong to the answers that they were given to."
    return fingerprint(sheet['sheet'])

# What a judge is told besides the sheet. In substance so it was for `blind_ways`; what was said for `blind` is not kept
HOW = """You judge answers of a very small Chinese chat model: 50 questions with some answers each, in an order that
tells nothing. Judge every answer yourself by reading it, on two marks, integers 0, 1 or 2.
to_the_point: 0 = has nothing to do with the question; 1 = the right topic, but does not really answer; 2 = answers the
question.
fluent: 0 = broken, repeats itself, or cannot be understood; 1 = understandable with faults (an odd clause, a
repetition, a cut end); 2 = reads as a person would write it.
Judge each answer by itself, the same text always gets the same marks; whether medical facts are true does not matter
for `fluent`."""

SHEETS = dict(blind=(blind_stages, PAIRS), blind_ways=(blind_ways, PENALISED)) # result -> sheet, who is compared

def marks_of(
    name:str, # of SHEETS
)->Path: # judged.json, judged_ways.json
    "Where the marks of two judges are kept."
    return out(f"{name.replace('blind', 'judged')}.json")

def marked_sheet(
    sheet:dict, # from `blind`
    name:str='blind', # of SHEETS
)->dict: # what two judges made of it
    "Means, differences and agreement. Raises ValueError where the marks are of another sheet."
    given = read_json(marks_of(name))
    if given['sheet'] == sheet_key(sheet): return judged(*given['judges'], sheet['who'], SHEETS[name][1])
    raise ValueError(f'{marks_of(name).name}: the marks are of another sheet; give the new {name}_sheet.json to two '
                     'judges')

def judge(
    name:str, # of SHEETS
    marks:list[Path], # files of two judges, or none
):
    "Write the sheet; keep the marks, and what they come to, if there are any."
    sheet = SHEETS[name][0]()
    write_json(run_path(f'{name}_sheet.json'), dict(how=HOW, sheet=sheet['sheet']))
    write_json(run_path(f'{name}_who.json'), dict(who=sheet['who']))
    if marks:
        judges = [read_json(path)['judged'] for path in marks]
        write_json(marks_of(name), dict(sheet=sheet_key(sheet), who=sheet['who'], judges=judges))
    if marks_of(name).exists(): write_json(out(f'{name}.json'), marked_sheet(sheet, name))

# ---- preferences

def preferences()->dict:
    """Held-out pairs: how often the better answer is likelier, and how often it gained more than the worse one. In
    nats, on average: `apart`, by how much it was less likely before; `moved`, how much of that training made good."""
    figures, cfg = read_json(run_path('dpo', 'figures.json')), read_json(run_path('dpo', 'config.json'))
    rows = pq.read_table(run_path('dpo', 'valid.parquet')).to_pylist()
    prefs = [Pref(row['source'], '', 0, row['prompt'], row['chosen'], row['rejected'], True) for row in rows]
    model, tok = load_model(run_path('dpo', 'model'))
    fitting = fit_prefs(prefs, tok, cfg['max_len'], cfg['too_long'])
    before = load_file(run_path('dpo', 'ref_valid.safetensors'))['logp']
    after = logp_table(model.eval(), fitting.rows)
    gained = (after - before).numpy()
    margin = cfg['beta'] * (gained[:, 0] - gained[:, 1])
    likelier = dict(pref_acc_before=before, pref_acc_after=after)
    right = {name: (t[:, 0] > t[:, 1]).numpy() for name, t in likelier.items()} | dict(reward_acc=margin > 0)
    for name in ('reward_acc', 'margin'): # of the same model, on another day
        found = float(np.mean(margin > 0 if name == 'reward_acc' else margin))
        if abs(found - figures[name]) > .02: raise ValueError(f'{name}: {found} here, {figures[name]} in figures.json')
    sources = np.array([p.source for p in fitting.prefs])
    groups = dict(all=sources == sources) | {str(s): sources == s for s in sorted(set(sources))}
    return {group: {name: share_score(int(ok[mine].sum()), int(mine.sum())) for name, ok in right.items()} | dict(
        margin=ratio_score(margin[mine], [1] * int(mine.sum())), n=int(mine.sum()),
        moved=float((gained[mine, 0] - gained[mine, 1]).mean()),
        apart=float((before[:, 1] - before[:, 0]).numpy()[mine].mean())) for group, mine in groups.items()}

# ---- triples

SHOWN_RUN = 'sft' # whose relations and mistakes are shown

class Dictionary:
    "Extraction without a network: triples seen in training, and what stood between subject and object."
    def __init__(self, rows:list[tuple[str, list]]):
        "Collect names and the words between them."
        self.known, self.subjects, self.objects = set(), defaultdict(set), defaultdict(set)
        between = defaultdict(Counter)
        for text, triples in rows:
            for s, p, o in triples:
                self.known.add((s, p, o))
                self.subjects[s].add(p)
                self.objects[o].add(p)
                if gap := self.gap(text, s, o): between[gap][p] += 1
        self.means = {gap: {p for p, n in c.items() if n >= 2 and n > .5 * c.total()} for gap, c in between.items()}

    @staticmethod
    def gap(text:str, s:str, o:str)->str:
        "What stands between the first subject and the next object, if it is short."
        at = text.find(s)
        end = text.find(o, at + len(s)) if at >= 0 else -1
        return text[at + len(s):end] if 0 <= end - at - len(s) <= 8 else ''

    def __call__(self, text:str)->list:
        "The triples of a sentence."
        pieces = {text[i:j] for i in range(len(text)) for j in range(i + 2, min(i + 16, len(text)) + 1)}
        subjects, objects = (pieces & names.keys() for names in (self.subjects, self.objects))
        found = []
        for s in subjects:
            for o in objects - {s}:
                likely = self.means.get(self.gap(text, s, o), set())
                found += [(s, p, o) for p in self.subjects[s] & self.objects[o]
                          if (s, p, o) in self.known or p in likely]
        return found

def copied_share(
    pairs:list[tuple[str, str]], # what is read, what is to be written
)->float: # 0 to 1
    "How many of the pairs of neighbouring characters in the answers stand in their questions too."
    there = total = 0
    for prompt, response in pairs:
        read = {prompt[k:k + 2] for k in range(len(prompt) - 1)}
        written = [response[k:k + 2] for k in range(len(response) - 1)]
        there += sum(two in read for two in written)
        total += len(written)
    return there / total

def longer()->dict[str, float]:
    "In how many held-out preference pairs of each source the better answer has more characters."
    found = defaultdict(list)
    for row in pq.read_table(run_path('dpo', 'valid.parquet')).to_pylist():
        found[row['source']].append(len(row['chosen']) > len(row['rejected']))
    return {source: sum(rows) / len(rows) for source, rows in found.items()}

def text()->dict:
    "How much of the training text was read, how much of each task is copying, how often the better answer is longer."
    texts, stated, _ = extracted(f'ie_{max(IE_STEPS)}_sft')
    answers = [''.join(s + o for s, _, o in row) for row in stated]
    talk, exercises = mixed()
    tasks = dict(train=read_pairs(run_path('data', 'train.parquet'), 5000), talk=talk[:5000],
                 exercises=exercises[:5000], sft_train=read_pairs(run_path('data', 'sft_train.parquet'), 5000),
                 duie=list(zip(texts, answers)))
    part = tokens_in(exercises) / (tokens_in(talk) + tokens_in(exercises))
    return dict(share_read=share_read(talk, exercises), exercises=dict(rows=len(exercises), share=part),
                talk=len(talk), copied={name: copied_share(pairs) for name, pairs in tasks.items()}, longer=longer())

def strict(pred:list[list], gold:list[list])->dict:
    "Strict micro precision, recall and F1 with its interval."
    found = prf(pred, gold)
    return {name: found[name] for name in ('p', 'r', 'f1', 'ci95')}

def more_f1(
    first:list[list], # what one extracted, sentence by sentence
    second:list[list], # and another
    stated:list[list], # what the sentences state
)->dict: # value, ci95
    "By how much the first has the higher F1, with the interval of the difference: both on the same drawn sentences."
    counts = np.hstack([tallies(first, stated), tallies(second, stated)])

    def lead(sums:np.ndarray)->float:
        "F1 of one less F1 of the other."
        return float(scores(sums[:3])[2] - scores(sums[3:])[2])

    return scored(lead(counts.sum(0)), bootstrap(counts, lead))

def extracted(folder:str)->tuple[list[str], list[list], list[list]]:
    "Sentences, what they state, what was extracted, as the stage wrote it down."
    rows = pq.read_table(run_path(folder, 'extracted.parquet')).to_pydict()
    stated, said = ([parse_triples(t)[0] for t in rows[name]] for name in ('stated', 'extracted'))
    return rows['text'], stated, said

def by_dictionary(texts:list[str])->dict[int, list[list]]:
    "What the plain baseline extracts from the test, for each number of training rows."
    found, tests = {}, dict.fromkeys(texts, 'leak')
    train = read_duie(raw_dir()/'duie'/'duie_train.json', 'train', Rejects(), tests)
    rows = [(s.text, s.triples) for s in train]
    for n in IE_STEPS:
        look = Dictionary(rows[:n])
        found[n] = [look(t) for t in texts]
    return found

def mistakes(texts:list[str], stated:list[list], said:list[list])->dict:
    "How many of each kind, and ten telling ones."
    found = find_errors([t.lower() for t in texts], said, stated)
    return dict(kinds=found.kind.value_counts().to_dict(), ten=telling_errors(found).to_dict('records'))

def passes(folder:str)->float:
    "How often a fine-tuning read its training rows."
    pairs = read_pairs(run_path(folder, 'train.parquet'))
    shuffled = random.Random(SEED).sample(pairs, len(pairs)) # they lie kind by kind
    return read_json(run_path(folder, 'figures.json'))['real_tok'] / tokens_in(shuffled)

def fine_tuned(folder:str)->dict:
    "What a fine-tuning for extraction came to."
    f, cfg = read_json(run_path(folder, 'figures.json')), read_json(run_path(folder, 'config.json'))
    name = test_name(f)
    _, stated, said = extracted(folder)
    counts = dict(zip(('right', 'extracted', 'stated'), map(int, tallies(said, stated).sum(0))))
    return dict(f1=f[f'f1_{name}'], ci95=f[f'f1_{name}_ci95'], p=f[f'p_{name}'], r=f[f'r_{name}'], n=f[f'f1_{name}_n'],
                raw=f[f'published_f1_{name}'], unreadable=f[f'unreadable_{name}'], loss=f['loss_valid'],
                steps=f['steps'], seconds=f['seconds'], passes=passes(folder), lr=cfg['lr'], counts=counts)

def run_name(rows:int, start:str)->str:
    "What a fine-tuning goes by in the results."
    return f'{rows}_{"pretrained" if start == "sft" else start}'

NINE = {run_name(n, start): f'ie_{n}_{start}' for n in IE_STEPS for start in IE_STARTS} # name -> folder

def finished(
    names:dict[str, str], # name -> folder
)->dict[str, str]: # those that were trained to the end
    "The others are said to be missing."
    return {name: folder for name, folder in names.items() if run_path(folder, 'figures.json').exists()}

def leads(
    said:dict[str, list[list]], # name -> what was extracted
    stated:list[list], # what the sentences state
    ours:str='pretrained', # what the runs that are compared are called
)->dict: # rows -> how far these are ahead of new weights, with the interval
    "On the same sentences."
    return {n: more_f1(said[f'{n}_{ours}'], said[run_name(n, 'scratch')], stated) for n in IE_STEPS}

def evening(
    names:dict[str, str], # of the fine-tunings for extraction
    others:tuple[str, ...], # the other steps of that evening
    logs:str, # folder of the results for its logs
)->dict: # machine, missing, runs, diary, settings
    "What every evening has of its own."
    there = finished(names)
    steps = [*others, *names.values()]
    copy_each(steps, logs)
    return dict(machine=machine(), missing=sorted(names.keys() - there.keys()),
                runs={name: fine_tuned(folder) for name, folder in there.items()},
                diary=diary(steps), settings=settings(steps)['stages'])

def longer_run()->dict:
    """The third evening: extraction as far as it was trained, and the control at a lower rate. Of stock weights it says
    what is missing. Raises ValueError if what is compared is not there."""
    names = NINE | {f'{n}_slower': f'ie_{n}_slower' for n in IE_STEPS}
    compared = [name for name in names if not name.endswith('_stock')]
    if absent := [name for name in compared if name not in finished(names)]:
        raise ValueError(f"not trained to the end: {', '.join(absent)}; expected all of {', '.join(compared)}")
    found, there = evening(names, ('pretrain', 'sft', 'dpo'), 'logs_third'), finished(names)
    said = {name: extracted(folder)[2] for name, folder in there.items()}
    most = max(IE_STEPS)
    texts, stated, _ = extracted(there[run_name(most, 'sft')])
    plain = by_dictionary(texts)
    few = EVENINGS['2'].max_test # what the second evening was scored on
    first = {name: strict(pred[:few], stated[:few]) for name, pred in said.items()}
    best, ends = run_name(most, 'scratch'), curve('pretrain')
    return found | dict(
        dictionary={n: strict(pred, stated) for n, pred in plain.items()}, first=dict(n=few, runs=first),
        leads=leads(said, stated), slower_leads=leads(said, stated, 'slower'),
        dictionary_lead=more_f1(said[best], plain[most], stated),
        pretrain=ends['points'][-1] | {k: ends[k] for k in ('real_tok', 'seconds')})

def first_run()->dict:
    "The evening without exercises; one fine-tuning started from a model that had practised copying after SFT."
    practice = read_json(run_path('copied', 'config.json'))['steps']
    about = (f'An earlier evening: extraction after pretraining without copying exercises, with fewer steps; "copied": '
             f'{practice} steps of copying exercises between SFT and extraction.')
    names = NINE | {'17000_copied': 'ie_17000_copied'}
    others = ('pretrain', 'sft', 'dpo', 'copied', 'ie_choice')
    return dict(about=about, practice_steps=practice) | evening(names, others, 'logs_first')

def triples()->dict:
    "The nine fine-tunings, the plain baseline, a table of relations, ten mistakes."
    found = {name: fine_tuned(folder) for name, folder in NINE.items()}
    all_said = {name: extracted(folder)[2] for name, folder in NINE.items()}
    texts, stated, said = extracted(f'ie_{max(IE_STEPS)}_{SHOWN_RUN}')
    plain = {n: strict(pred, stated) for n, pred in by_dictionary(texts).items()}
    choice = read_json(run_path('ie_choice', 'choice.json'))
    relations = by_relation(said, stated).rename_axis('relation').reset_index()
    return dict(choice=choice, runs=found, leads=leads(all_said, stated), dictionary=plain,
                relations=relations.to_dict('records'), errors=mistakes(texts, stated, said))

# ---- the whole

def exams()->dict:
    "CMMLU by the likelihood of the letter, for every stage. C-Eval is not among the files."
    archive = next((raw_dir()/'eval').glob('cmmlu*'))
    found = {}
    for stage in STAGES:
        cfg = EvaluateCfg(model=str(run_path(stage, 'model')), pairs=False, heldout=False, cmmlu=str(archive),
                          shots=(0,), out=str(run_path('eval', stage)))
        scores = evaluate(cfg)
        found[stage] = scores['cmmlu']
    return found

CHOSEN_BY = dict(trial=(*(f'pretrain_{m}' for m in MIXTURES), *(f'{m}_*' for m in MIXTURES)),
                 ie_choice=('sft_0*', 'scratch_*'), ie_longer=(f'sft_{FEW}_*',)) # step -> its trainings in ie_choice/
CHOSEN_BY |= dict(ie_steps=CHOSEN_BY['ie_longer']) # what the step was called at first

def figures_of(
    step:str, # of the diary
)->list[Path]: # figures.json of what it trained
    "A step that tries things has several trainings, others one or none."
    if step not in CHOSEN_BY: return list(run_path().glob(f'{step}/figures.json'))
    return [p for like in CHOSEN_BY[step] for p in sorted(run_path('ie_choice').glob(f'{like}/figures.json'))]

def diary(
    names:list[str]|None=None, # steps; None: all that were ever started
)->dict[str, dict]: # step -> starts, stops, whether it was ended, seconds
    "How often each step was started and stopped, and how long it took in all, waiting between two starts left out."
    entries = [e for e in read_diary(run_path('diary.jsonl')) if names is None or e['step'] in names]
    starts = Counter(e['step'] for e in entries if e['what'] == 'start')
    ended = {e['step'] for e in entries if e['what'] == 'end'}
    found = {name: dict(starts=n, stops=n - (name in ended), ended=name in ended) for name, n in sorted(starts.items())}
    for name, f in found.items():
        trained = figures_of(name)
        if trained: f['seconds'] = sum(read_json(p)['seconds'] for p in trained)
    return found

def hours(
    runs:list[Path], # SCCLM_RUNS of the evenings, in order
)->dict[str, dict[str, float]]: # evening -> training -> seconds
    "What every training took that was ended. One that was copied into a later evening's folder is of the earlier one."
    found, seen = {}, set()
    for name, root in zip(('first', 'second', 'third'), runs, strict=True):
        found[name] = {}
        for path in sorted([*root.glob('small/*/figures.json'), *root.glob('small/ie_choice/*/figures.json')]):
            figures = read_json(path)
            if 'seconds' not in figures or (figures['seconds'], figures['steps']) in seen: continue
            seen.add((figures['seconds'], figures['steps']))
            found[name][path.parent.relative_to(root/'small').as_posix()] = figures['seconds']
    return found

def inputs()->dict[str, dict]:
    "Size and SHA-256 of every file that was read."
    root = raw_dir()
    return {str(p.relative_to(root)): dict(bytes=p.stat().st_size, sha256=hashlib.sha256(p.read_bytes()).hexdigest())
            for p in sorted(root.rglob('*')) if p.is_file()}

def settings(
    names:list[str]|None=None, # steps; None: all that are done
)->dict: # machine, stages
    "The configuration of every stage, paths left out."
    found = {}
    for name in sorted(done_steps() if names is None else done_steps() & set(names)):
        path = run_path(name, 'config.json')
        if not path.exists(): continue
        fields = {k: v for k, v in read_json(path).items() if k not in ('out', 'data', 'files', 'pairs')}
        for field in {'base', 'start'} & fields.keys(): # a model folder goes by the name of its stage
            if Path(fields[field]).name == 'model': fields[field] = Path(fields[field]).parent.name
        if fields.get('start') in FRESH: fields['twins'] = False # it never ran for them, whatever older runs wrote down
        found[name] = fields
    return dict(machine=machine(), stages=found)

def copy_logs():
    "Every training's log as it was written, and the answers given on the way."
    shutil.copyfile(run_path('pretrain', 'samples.jsonl'), out('along_the_way.jsonl'))
    copy_each(sorted(done_steps()), 'logs')

def copy_each(
    names:list[str], # of steps
    folder:str, # in the results
):
    "The logs of steps that trained."
    out(folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        log = run_path(name, 'log.jsonl')
        if log.exists(): shutil.copyfile(log, out(folder, f'{name}.jsonl'))

def trial()->dict:
    "What was tried before the second evening."
    return read_json(run_path('ie_choice', 'mixtures.json'))

def steps_tried()->dict:
    "What more steps and a higher rate came to."
    return read_json(run_path('ie_choice', 'longer.json'))

def clean()->dict:
    "What cleaning was given, what it kept and why it turned rows away."
    report = read_json(run_path('data', 'report.json'))
    return {k: report[k] for k in ('rows_in', 'kept', 'rejected', 'duplicates', 'leaks', 'rules', 'splits')}

def card()->dict:
    "The figures that are quoted, by the names of the report card."
    b, s, t = (kept(make, name) for make, name in ((bits, 'bits'), (samples, 'samples'), (triples, 'triples')))
    pretrain = dict(bits_per_char=b['all']['pretrain'], bits_per_char_unigram=b['all']['unigram'],
                    bits_per_char_bigram=b['all']['bigram'], bits_per_char_ngram5=b['all']['ngram5'])
    ie = {}
    for name, f in t['runs'].items():
        ie |= {f'f1_{name}': f['f1'], f'f1_{name}_ci95': f['ci95'], f'f1_{name}_raw': f['raw']}
    for n, f in t['dictionary'].items(): ie[f'f1_{n}_dictionary'] = f['f1']
    chat = {k: v['value'] for k, v in s['dpo']['measures'].items()}
    chat |= {f'{k}_ci95': v['ci95'] for k, v in s['dpo']['measures'].items() if 'ci95' in v}
    for stage, made in kept(decodings, 'decodings')['on_test'].items():
        repeated = made['measures']['repetition']
        name = f'repetition_{stage}_penalised'
        chat |= {name: repeated['value'], f'{name}_ci95': repeated['ci95']}
    prefs = kept(preferences, 'preferences')['all']
    dpo = dict(n=prefs['n'])
    for name in ('pref_acc_before', 'pref_acc_after', 'reward_acc', 'margin'):
        dpo |= {name: prefs[name]['value'], f'{name}_ci95': prefs[name]['ci95']}
    found = {f'cmmlu_{k}': v['0-shot'] for k, v in kept(exams, 'exams').items()}
    marks = {k: {name: score[name] for name in ('accuracy', 'ci95', 'n')} for k, score in found.items()}
    return dict(scale='small', machine=machine(), pretrain=pretrain, ie=ie, chat=chat, dpo=dpo, eval=marks,
                published=PUBLISHED, asked=ASKED)

PUBLISHED = { # triples of ChatLM-mini-Chinese, 0.2B: F1, precision, recall on its DuIE test, as its README has them
    'pretrained': (.74, .75, .73), 'no pretraining': (.51, .53, .49), 'a classical model': (.80, .79, .80)}

def keep():
    "Lay this run's results where the page reads them."
    shutil.copytree(out(), KEPT, ignore=shutil.ignore_patterns('made_of.json'), dirs_exist_ok=True)

def measure(
    marks:dict[str, list[Path]], # of SHEETS -> files of two judges, or none
):
    "What is missing; the sheets for the judges; the card last, when they have judged the stages."
    makers = (inputs, clean, trial, steps_tried, settings, diary, curves, law, bits, stage_bits, samples, decodings,
              triples, text, exams, preferences)
    for make in makers: kept(make, make.__name__)
    copy_logs()
    for name, files in marks.items(): judge(name, files)
    if marks_of('blind').exists(): write_json(out('card.json'), card())

def main():
    "Measure what is missing; write the card last."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--raw', type=Path, required=True, help='the raw folder that real.py laid out')
    p.add_argument('--judged', type=Path, nargs=2, default=[], help='files of two judges')
    p.add_argument('--judged-ways', type=Path, nargs=2, default=[], help='the same of the other sheet')
    p.add_argument('--first', action='store_true', help='SCCLM_RUNS is an evening without exercises: first.json alone')
    p.add_argument('--hours', type=Path, nargs=3, help='SCCLM_RUNS of the three evenings: hours.json alone')
    p.add_argument('--keep', action='store_true', help="in place of the authors' figures in results/real_small/, too")
    a = p.parse_args()
    set_dials(a.raw)
    out().mkdir(parents=True, exist_ok=True)
    if a.hours: write_json(out('hours.json'), hours(a.hours))
    elif a.first: write_json(out('first.json'), first_run())
    elif EVENING is EVENINGS['3']: write_json(out('third.json'), longer_run())
    else: measure(dict(blind=a.judged, blind_ways=a.judged_ways))
    print(f'results: {out()}')
    if a.keep: keep()

if __name__ == '__main__':
    with in_one_line(): main()
