"""What the real run came to: figures, samples and a card, kept in results/real_small/.

    python benchmarks/real_measure.py --raw RAW                     # figures, samples, a blank sheet for the judges
    python benchmarks/real_measure.py --raw RAW --judged A.json B.json  # what two judges said of the sheet; the card
    SCCLM_EVENING=3 python benchmarks/real_measure.py --raw RAW         # the third evening: third.json, and that is all

Reads what real.py left under SCCLM_RUNS. A part that is measured already is kept (delete its file to measure again).
No weights and no rows of the data go to the results but the questions asked and the answers given."""
import argparse
import hashlib
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
from ngram import CharNgram
from real import EVENING, EVENINGS, IE_STARTS, IE_STEPS, LAW, SLOWER, done_steps, key, named_rows, set_dials, test_name
from report import RESULTS, machine

from scclm.chat import ChatBot
from scclm.chat_exam import in_circles
from scclm.dataset import columns, encode, read_pairs
from scclm.evaluation import EvaluateCfg, distinct, evaluate, repeats
from scclm.ie_finetune import by_relation, find_errors, prf, telling_errors
from scclm.model import load_model, meta_model, model_config, n_params
from scclm.pretrain import pretrain_cfg
from scclm.real_text import fit_law
from scclm.reproduce import read_diary
from scclm.runlog import read_log
from scclm.runs import raw_dir, read_json, run_path, write_json
from scclm.scores import bits_per_char, ratio_score, scored, share_score
from scclm.tokenizer import load_tokenizer, tokenizer_cfg
from scclm.triple_files import Rejects, parse_triples, read_duie

OUT = RESULTS/'real_small'
STAGES = ('pretrain', 'sft', 'dpo')
DRAWN, SHOWN, SEED = 200, 50, 2026 # questions asked, those of them that are printed and judged, the draw
WITH_IE = 'ie_17000_sft' # after extraction was learnt: is the chat still there?
HELD_OUT = 2000 # rows of the test that bits are counted on

def kept(make:Callable[[], dict], name:str)->dict:
    "What is in results/real_small/<name>.json, else what `make` gives, written there."
    path = OUT/f'{name}.json'
    if not path.exists(): write_json(path, make())
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

def curve(stage:str)->dict:
    "Validation loss over tokens, parameters and what the run took."
    log, figures = read_log(run_path(stage, 'log.jsonl')), read_json(run_path(stage, 'figures.json'))
    seen, points = 0, []
    for entry in log:
        seen = entry.get('real_tok', seen)
        if 'loss_valid' in entry: points.append(dict(step=entry['step'], real_tok=seen, loss=entry['loss_valid']))
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
    thrice = [any(t.count(t[k:k + 4]) >= 3 for k in range(len(t) - 3)) for t in said] # not one over the other
    pieces = [repeats(t) for t in said]
    circles = sum(map(in_circles, said))
    measures = dict(
        repetition=share_score(sum(thrice), DRAWN), in_circles=share_score(circles, DRAWN),
        pieces_again=ratio_score([p.again for p in pieces], [p.pieces for p in pieces]),
        length_ratio=ratio_score([len(t) for t in said], [len(t) for t in wanted]),
        distinct1=scored(distinct(said, 1)), distinct2=scored(distinct(said, 2)))
    return dict(measures=measures, answers=said[:SHOWN])

def samples()->dict:
    "Every stage's answers to the same questions; the first 50 are kept, in the order of the draw."
    asked, _ = columns(drawn_questions())
    return dict(questions=list(asked[:SHOWN])) | {stage: answers_of(stage) for stage in (*STAGES, WITH_IE)}

def blind(found:dict)->dict:
    "The first 50 questions with the stages' answers in an order that tells nothing; who wrote which is kept apart."
    rng, sheet, who = random.Random(SEED + 1), [], []
    for k, question in enumerate(found['questions']):
        order = rng.sample(STAGES, len(STAGES))
        sheet.append(dict(number=k + 1, question=question,
                          answers={letter: found[s]['answers'][k] for letter, s in zip('ABC', order)}))
        who.append(dict(zip('ABC', order)))
    return dict(sheet=sheet, who=who)

MARKS = ('to_the_point', 'fluent') # what is judged, 0, 1 or 2 each
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
        means = {stage: [(x + y) / 2 for (s, x), y in zip(ways[0], b) if s == stage] for stage in STAGES}
        same = sum(x == y for x, y in zip(a, b))
        found[mark] = {stage: ratio_score(m, [1] * len(m)) for stage, m in means.items()} | dict(
            agree=share_score(same, len(a)), kappa=weighted_kappa(a, b))
    return found

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
    "Strict micro precision, recall and F1, without an interval."
    found = prf(pred, gold, n_boot=1)
    return {name: found[name] for name in ('p', 'r', 'f1')}

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
    f = read_json(run_path(folder, 'figures.json'))
    name = test_name(f)
    return dict(f1=f[f'f1_{name}'], ci95=f[f'f1_{name}_ci95'], p=f[f'p_{name}'], r=f[f'r_{name}'], n=f[f'f1_{name}_n'],
                raw=f[f'published_f1_{name}'], unreadable=f[f'unreadable_{name}'], loss=f['loss_valid'],
                steps=f['steps'], seconds=f['seconds'], passes=passes(folder))

def longer_run()->dict:
    "The third evening: extraction as far as it was trained, and the control at a lower rate. Says what is missing."
    names = {f'{n}_{"pretrained" if start == "sft" else start}': f'ie_{n}_{start}'
             for n in IE_STEPS for start in IE_STARTS} | {f'{SLOWER}_slower': f'ie_{SLOWER}_slower'}
    there = {name: folder for name, folder in names.items() if run_path(folder, 'figures.json').exists()}
    runs = {name: fine_tuned(folder) for name, folder in there.items()}
    for name, run in runs.items(): run.update(lr=read_json(run_path(there[name], 'config.json'))['lr'])
    ends = curve('pretrain')
    copy_each(['pretrain', *there.values()], 'logs_third')
    return dict(machine=machine(), missing=sorted(names.keys() - there.keys()), runs=runs,
                pretrain=ends['points'][-1] | {k: ends[k] for k in ('real_tok', 'seconds')})

def triples()->dict:
    "The nine fine-tunings, the plain baseline, a table of relations, ten mistakes."
    found = {f'{n}_{"pretrained" if start == "sft" else start}': fine_tuned(f'ie_{n}_{start}')
             for n in IE_STEPS for start in IE_STARTS}
    texts, stated, said = extracted(f'ie_{max(IE_STEPS)}_{SHOWN_RUN}')
    plain = {n: strict(pred, stated) for n, pred in by_dictionary(texts).items()}
    choice = read_json(run_path('ie_choice', 'choice.json'))
    relations = by_relation(said, stated).rename_axis('relation').reset_index()
    return dict(choice=choice, runs=found, dictionary=plain, relations=relations.to_dict('records'),
                errors=mistakes(texts, stated, said))

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

def diary()->dict:
    "How often each step was started and stopped, and how long it took in all, waiting between two starts left out."
    starts = Counter(e['step'] for e in read_diary(run_path('diary.jsonl')) if e['what'] == 'start')
    found = {name: dict(starts=starts[name], stops=starts[name] - 1) for name in done_steps()}
    for name, f in found.items():
        figures = run_path(name, 'figures.json')
        if figures.exists(): f['seconds'] = read_json(figures)['seconds']
    return found

def inputs()->dict[str, dict]:
    "Size and SHA-256 of every file that was read."
    root = raw_dir()
    return {str(p.relative_to(root)): dict(bytes=p.stat().st_size, sha256=hashlib.sha256(p.read_bytes()).hexdigest())
            for p in sorted(root.rglob('*')) if p.is_file()}

def settings()->dict:
    "The configuration of every stage, paths left out."
    found = {}
    for name in sorted(done_steps()):
        path = run_path(name, 'config.json')
        if not path.exists(): continue
        fields = {k: v for k, v in read_json(path).items() if k not in ('out', 'data', 'files', 'pairs')}
        for field in {'base', 'start'} & fields.keys(): # a model folder goes by the name of its stage
            if Path(fields[field]).name == 'model': fields[field] = Path(fields[field]).parent.name
        found[name] = fields
    return dict(machine=machine(), stages=found)

def copy_logs():
    "Every training's log as it was written, and the answers given on the way."
    shutil.copyfile(run_path('pretrain', 'samples.jsonl'), OUT/'along_the_way.jsonl')
    copy_each(sorted(done_steps()), 'logs')

def copy_each(
    names:list[str], # of steps
    folder:str, # in results/real_small/
):
    "The logs of steps that trained."
    (OUT/folder).mkdir(exist_ok=True)
    for name in names:
        log = run_path(name, 'log.jsonl')
        if log.exists(): shutil.copyfile(log, OUT/folder/f'{name}.jsonl')

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
    prefs = read_json(run_path('dpo', 'figures.json'))
    dpo = {k: prefs[k] for k in ('pref_acc_before', 'pref_acc_after', 'pref_acc_before_n', 'pref_acc_by_source')}
    found = {f'cmmlu_{k}': v['0-shot'] for k, v in kept(exams, 'exams').items()}
    marks = {k: {name: score[name] for name in ('accuracy', 'ci95', 'n')} for k, score in found.items()}
    return dict(scale='small', machine=machine(), pretrain=pretrain, ie=ie, chat=chat, dpo=dpo, eval=marks,
                published=PUBLISHED)

PUBLISHED = { # triples of ChatLM-mini-Chinese, 0.2B: F1, precision, recall on its DuIE test, as its README has them
    'pretrained': (.74, .75, .73), 'no pretraining': (.51, .53, .49), 'a classical model': (.80, .79, .80)}

def main():
    "Measure what is missing; write the card last."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--raw', type=Path, required=True, help='the raw folder that real.py laid out')
    p.add_argument('--judged', type=Path, nargs=2, help='files of two judges')
    a = p.parse_args()
    set_dials(a.raw)
    OUT.mkdir(parents=True, exist_ok=True)
    if EVENING is EVENINGS['3']: return write_json(OUT/'third.json', longer_run())
    if a.judged:
        first, second = (read_json(path)['judged'] for path in a.judged)
        write_json(OUT/'blind.json', judged(first, second, read_json(run_path('blind_who.json'))['who']))
    makers = inputs, clean, trial, steps_tried, settings, diary, curves, law, bits, samples, triples, text, exams
    for make in makers: kept(make, make.__name__)
    sheet = blind(read_json(OUT/'samples.json'))
    write_json(run_path('blind_sheet.json'), dict(sheet=sheet['sheet']))
    write_json(run_path('blind_who.json'), dict(who=sheet['who']))
    copy_logs()
    if (OUT/'blind.json').exists(): write_json(OUT/'card.json', card())

if __name__ == '__main__': main()
