"""Ours, Hugging Face's BPE and sentencepiece: the same text, the same size of vocabulary.

    python benchmarks/tokenizer_trainers.py --data FOLDER [--rows 30000 100000 300000 0] [--work runs/trainers]

(Not `tokenizers.py`: that name would hide the library from every script beside it.)

FOLDER may hold .parquet, .jsonl, .json, .csv, .txt and .tar.xz files at any depth; every text of every record is
taken. One row in fifty is held out; folders named `eval` are read by no trainer and stand, with the course's own
prose, for text of another kind. Each trainer works in a process of its own at each size (0: all rows) and reports its
peak memory (VmHWM; what ours and its workers hold together, where that is more). What is done lies in the work folder
and is not done again; results/tokenizers.json is written after every part.
The line through the two largest sizes is drawn on to ten million rows: `peak memory at 10,000,000 rows`.
"""
import argparse
import json
import re
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from report import row, write
from transformers import PreTrainedTokenizerFast

from scclm.dataset import encode
from scclm.runs import read_json
from scclm.tokenizer import TokenizerCfg, load_tokenizer, save_tokenizer, train_bpe, train_tokenizer

TRAINERS = ('ours', 'hugging face BPE', 'sentencepiece BPE', 'sentencepiece unigram')
ROOT = Path(__file__).resolve().parents[1]

# --- the corpus

def strings(x:object)->Iterator[str]:
    "Every string in a record, however deep."
    if isinstance(x, str): yield x
    elif isinstance(x, dict): yield from (s for v in x.values() for s in strings(v))
    elif isinstance(x, list): yield from (s for v in x for s in strings(v))

def decoded(file:Path)->str:
    "The text of a file in UTF-8 or GB18030."
    data = file.read_bytes()
    try: return data.decode('utf-8-sig')
    except UnicodeDecodeError: return data.decode('gb18030', errors='replace')

def json_records(text:str)->list:
    "The records of a JSON list or of JSON Lines."
    if text.lstrip().startswith('['): return json.loads(text)
    return [json.loads(line) for line in text.splitlines() if line.strip()]

def csv_records(file:Path|IO[bytes], encoding:str)->Iterator[list[str]]:
    "The fields of each row."
    table = pd.read_csv(file, encoding=encoding, dtype=str, encoding_errors='replace', on_bad_lines='skip')
    for fields in table.fillna('').itertuples(index=False): yield list(fields)

def records(file:Path)->Iterator[tuple[str, list[str]]]:
    "The source and the texts of each record."
    name = f'{file.parent.name}/{file.stem}'
    if file.suffix == '.parquet':
        for batch in pq.ParquetFile(file).iter_batches(4096):
            for x in batch.to_pylist(): yield f"{file.stem}/{x.pop('source', '')}".rstrip('/'), list(strings(x))
    elif file.suffix in ('.json', '.jsonl'):
        for x in json_records(decoded(file)): yield name, list(strings(x))
    elif file.suffix == '.csv':
        for x in csv_records(file, 'gb18030'): yield name, x
    elif file.name.endswith('.tar.xz'):
        with tarfile.open(file) as packed:
            for member in (m for m in packed if m.name.endswith('.csv')):
                for x in csv_records(packed.extractfile(member), 'utf-8-sig'): yield name.partition('.')[0], x
    elif file.suffix == '.txt':
        for line in decoded(file).splitlines():
            if line.strip() and not line.startswith(('<doc', '</doc')): yield name, [line]

def course_prose()->Iterator[str]:
    "Chinese lines of the course's own notebooks, without code and links."
    for path in sorted((ROOT/'nbs').rglob('*.ipynb')):
        for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
            for line in ''.join(cell['source']).splitlines() if cell['cell_type'] == 'markdown' else ():
                line = re.sub(r'`[^`]*`|\]\([^)]*\)|<[^>]*>|[\[*|#]', '', line).strip()
                if sum('一' <= c <= '鿿' for c in line) > max(20, .6*len(line)): yield line

class Corpus(NamedTuple):
    "Files made from the folder of data."
    train:Path # parquet with prompt (the first text of a record), response (the others) and source
    heldout:Path # the same columns; every fiftieth row
    far:Path # the same columns; text that no trainer reads

def add_row(parts:dict[str, list], source:str, texts:list[str])->None:
    "One row: the first text, and the others."
    texts = [t for t in texts if t]
    if not texts: return
    parts['prompt'].append(texts[0])
    parts['response'].append('\n'.join(texts[1:]))
    parts['source'].append(source)

def make_corpus(data:Path, work:Path)->Corpus:
    "Read the folder once; the last file is written last, and says that all are there."
    files = Corpus(work/'train.parquet', work/'heldout.parquet', work/'far.parquet')
    if files.far.exists(): return files
    tables = [dict(prompt=[], response=[], source=[]) for _ in files]
    for file in sorted(p for p in data.rglob('*') if p.is_file()):
        exam = 'eval' in file.relative_to(data).parts
        for k, (source, texts) in enumerate(records(file)):
            add_row(tables[2 if exam else k % 50 == 7], source, texts)
    for line in course_prose(): add_row(tables[2], 'course prose', [line])
    for path, parts in zip(files, tables): pq.write_table(pa.table(parts), path, row_group_size=4096)
    return files

def some_rows(file:Path, n:int, out:Path)->Path:
    "About `n` rows, spread over the file; 0: all."
    table = pq.read_table(file)
    step = max(1, round(len(table)/n)) if n else 1
    pq.write_table(table.take(pa.array(range(0, len(table), step))), out, row_group_size=4096)
    return out

def lines(file:Path)->Iterator[str]:
    "The lines of all texts, as trainers read them."
    for batch in pq.ParquetFile(file).iter_batches(4096, columns=['prompt', 'response']):
        for column in batch.columns:
            for text in column.to_pylist(): yield from filter(None, text.splitlines())

# --- training, in a process of its own

def train_sentencepiece(file:Path, out:Path, size:int, kind:str)->None:
    "Nothing normalised, no space put in front: as ours, what goes in comes out."
    import sentencepiece
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines(file), model_prefix=str(out/'sp'), model_type=kind, vocab_size=size,
        character_coverage=.9995, normalization_rule_name='identity', add_dummy_prefix=False,
        remove_extra_whitespaces=False, max_sentence_length=1 << 20, num_threads=2, minloglevel=2)

def train(trainer:str, file:Path, out:Path, size:int)->None:
    "Train on every line of a file, write a folder."
    out.mkdir(parents=True, exist_ok=True)
    if trainer == 'ours':
        rows = pq.ParquetFile(file).metadata.num_rows
        least = max(2, rows//50_000)
        train_tokenizer(TokenizerCfg((file,), min_count=least, min_char_count=least, max_vocab=size, out=out))
    elif trainer == 'hugging face BPE': save_tokenizer(train_bpe(lines(file), size), out)
    else: train_sentencepiece(file, out, size, trainer.split()[1])

def peak_mb()->float:
    "MB of this process alone at its peak."
    status = Path('/proc/self/status').read_text() # ru_maxrss begins with the parent's peak
    return int(status.split('VmHWM:')[1].split()[0])/1024

def child(trainer:str, file:str, out:str, size:str)->None:
    "Train and print seconds and the peak."
    start, imports_mb = time.perf_counter(), peak_mb()
    train(trainer, Path(file), Path(out), int(size))
    print(json.dumps(dict(seconds=time.perf_counter() - start, peak_mb=peak_mb(), imports_mb=imports_mb)))

def held_mb(top:psutil.Process)->float:
    "MB that a process and its children hold, shared pages divided among them."
    try: return sum(p.memory_full_info().pss for p in [top, *top.children(recursive=True)])/2**20
    except psutil.Error: return 0 # one has just ended

def run_child(command:list[str])->dict:
    "What a child reports; its peak is its own, or the largest that it and its workers held together."
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    together = 0
    while process.poll() is None:
        together = max(together, held_mb(psutil.Process(process.pid)))
        time.sleep(.2)
    if process.returncode: raise SystemExit(f"{' '.join(command)} failed")
    result = json.loads(process.stdout.read().strip().split('\n')[-1])
    return result | dict(peak_mb=max(result['peak_mb'], together))

def train_apart(trainer:str, file:Path, work:Path, n:int, size:int)->dict:
    "What the child reports; what is known already is not measured again."
    name = f"{trainer.replace(' ', '_')}-{n}"
    done = work/f'{name}.json'
    if done.exists(): return json.loads(done.read_text())
    result = run_child([sys.executable, __file__, '--child', trainer, str(file), str(work/name), str(size)])
    result['rows'] = pq.ParquetFile(file).metadata.num_rows
    done.write_text(json.dumps(result))
    print(f"{name:<32} {result['seconds']:>8,.0f} s {result['peak_mb']:>8,.0f} MB", flush=True)
    return result

# --- what the tokenizers do

class Rival(NamedTuple):
    "One tokenizer behind one face."
    encode:Callable[[list[str]], list[list[int]]] # a batch of texts to ids
    unknown:int # id of an unknown character
    vocab:int # entries

def open_rival(trainer:str, folder:Path)->Rival:
    "A trained tokenizer."
    if trainer.startswith('sentencepiece'):
        import sentencepiece
        sp = sentencepiece.SentencePieceProcessor(model_file=str(folder/'sp.model'))
        return Rival(lambda texts: sp.encode(texts, num_threads=2), sp.unk_id(), sp.get_piece_size())
    tok = load_tokenizer(folder)
    batch = ours if trainer == 'ours' else hugging_face
    return Rival(partial(batch, tok), tok.unk_token_id, len(tok))

def ours(tok:PreTrainedTokenizerFast, texts:list[str])->list[list[int]]:
    "The course's one encoder, without the end marks."
    return [ids[:-1] for ids in encode(texts, tok)]

def hugging_face(tok:PreTrainedTokenizerFast, texts:list[str])->list[list[int]]:
    "The library's own batches."
    return [e.ids for e in tok.backend_tokenizer.encode_batch_fast(texts)]

def figures(rival:Rival, texts:list[str])->dict[str, float]:
    "Characters a token, share of the characters known, rows a second in batches of 4096."
    start = time.perf_counter()
    tokens = sum(len(ids) for k in range(0, len(texts), 4096) for ids in rival.encode(texts[k:k + 4096]))
    seconds = time.perf_counter() - start
    chars = Counter(c for t in texts for c in t)
    kinds = list(chars)
    missing = sum(chars[c] for c, ids in zip(kinds, rival.encode(kinds)) if rival.unknown in ids)
    total = chars.total()
    return dict(chars_per_token=total/tokens, coverage=1 - missing/total, chars_per_s=total/seconds)

def domains(corpus:Corpus, least:int=100)->dict[str, list[str]]:
    "Held-out texts by source (small ones together), and those of another kind."
    found = {}
    for kind, file in (('held out', corpus.heldout), ('another kind', corpus.far)):
        table = pq.read_table(file)
        for prompt, response, source in zip(*(table[c].to_pylist() for c in ('prompt', 'response', 'source'))):
            found.setdefault(f'{kind}: all', []).extend(t for t in (prompt, response) if t)
            found.setdefault(f'{kind}: {source}', []).extend(t for t in (prompt, response) if t)
    return {name: texts for name, texts in found.items() if len(texts) >= least or name.startswith('another')}

def measure(trainer:str, folder:Path, texts:dict[str, list[str]], done:Path)->dict:
    "Figures of one tokenizer on every domain."
    if done.exists(): return json.loads(done.read_text())
    rival = open_rival(trainer, folder)
    rival.encode(texts['held out: all'][:4096]) # makes what is made once
    result = dict(vocab=rival.vocab, domains={name: figures(rival, some) for name, some in texts.items()})
    done.write_text(json.dumps(result))
    return result

# --- the table

def memory_rows(trained:dict[str, list[dict]])->list[dict]:
    "Peak memory and seconds of each trainer against ours."
    rows = []
    for trainer in [t for t in TRAINERS[1:] if t in trained]:
        for a, b in zip(trained['ours'], trained[trainer]):
            for key, what, unit in (('peak_mb', 'peak memory', 'MB'), ('seconds', 'training', 's')):
                name = f"{what}, {a['rows']:,} rows: against {trainer}"
                rows.append(row(name, [a[key]], [b[key]], trainer, unit, higher_is_better=False))
    return rows

def domain_rows(measured:dict[str, dict])->list[dict]:
    "The figures of all held-out text and of other kinds against ours; by source they stand in the configuration."
    units = dict(chars_per_token='characters a token', coverage='share', chars_per_s='characters/s')
    rows = []
    for trainer in [t for t in TRAINERS[1:] if t in measured]:
        for name, mine in measured['ours']['domains'].items():
            if not name.startswith('another') and not name.endswith(': all'): continue
            theirs = measured[trainer]['domains'][name]
            for key, unit in units.items():
                rows.append(row(f'{name}, {key}: against {trainer}', [mine[key]], [theirs[key]], trainer, unit))
    return rows

def report(trained:dict[str, list[dict]], measured:dict[str, dict], size:int, last:bool=False)->None:
    "Write what is known so far; print it when it is the last time."
    if 'ours' not in trained: return
    rows = memory_rows(trained)
    if 'ours' in measured: rows += domain_rows(measured)
    vocab = {trainer: m['vocab'] for trainer, m in measured.items()}
    figures = {trainer: m['domains'] for trainer, m in measured.items()}
    config = dict(size=size, rows=[x['rows'] for x in trained['ours']], vocab=vocab, figures=figures)
    with redirect_stdout(sys.stdout if last else None): write('tokenizers', config, rows)

def options()->argparse.Namespace:
    "The command line."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, required=True, help='folder of real text')
    p.add_argument('--rows', type=int, nargs='+', default=[30_000, 100_000, 300_000, 0], help='sizes; 0: all rows')
    p.add_argument('--work', type=Path, default=ROOT/'runs'/'trainers', help='where parts that are done are kept')
    p.add_argument('--size', type=int, default=29_298, help='entries of each vocabulary')
    p.add_argument('--trainers', nargs='+', default=TRAINERS, choices=TRAINERS)
    return p.parse_args()

def main():
    "Train each at each size, measure the largest of each."
    args = options()
    args.work.mkdir(parents=True, exist_ok=True)
    kept = dict(data=str(args.data), size=args.size)
    if read_json(args.work/'config.json') not in ({}, kept):
        raise SystemExit(f'{args.work} holds parts of another run: take another --work')
    (args.work/'config.json').write_text(json.dumps(kept))
    corpus = make_corpus(args.data, args.work)
    texts = domains(corpus)
    trained, measured = {}, {}
    for n in args.rows:
        file = some_rows(corpus.train, n, args.work/f'train-{n}.parquet')
        for trainer in args.trainers:
            trained.setdefault(trainer, []).append(train_apart(trainer, file, args.work, n, args.size))
            report(trained, measured, args.size)
    for trainer in args.trainers:
        name = f"{trainer.replace(' ', '_')}-{args.rows[-1]}"
        measured[trainer] = measure(trainer, args.work/name, texts, args.work/f'{name}.figures.json')
        report(trained, measured, args.size)
    report(trained, measured, args.size, last=True)

if __name__ == '__main__':
    if sys.argv[1:2] == ['--child']: child(*sys.argv[2:])
    else: main()
