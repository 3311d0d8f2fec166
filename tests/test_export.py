"Exported models against the engines' own search, PyTorch, a slow search without drafts, and what may break."
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from chat_toys import CHARS, byte_tok, char_tok, chat_command, save_toy, search_model, toy_model
from huggingface_hub import ModelCard, metadata_load
from transformers import AutoModelForSeq2SeqLM

from scclm import cli, runtimes
from scclm.batching import Engine
from scclm.chat import ChatBot, Decoding, chooser, find_model, token_steps
from scclm.dataset import pad
from scclm.export import ExportCfg, export
from scclm.model import load_model, write_tokens
from scclm.model_card import all_cards, card_results, model_card, rescore_cards
from scclm.report_card import CardCfg, stage_scores
from scclm.runs import RECORD, fingerprint, read_json, run_path, write_json
from scclm.runtimes import is_export, open_export

pytestmark = pytest.mark.usefixtures('one_thread')

PLAIN = Decoding(loop_copies=0, max_new_tok=30)

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A saved toy; it ends some of its answers."
    model = toy_model(7 + len(set(CHARS)), seed=2)
    with torch.no_grad(): model.shared.weight[1] *= 1.5 # the end mark comes sooner
    return save_toy(tmp_path_factory.mktemp('toy')/'model', char_tok(CHARS), model)

@pytest.fixture(scope='module')
def ct2(folder): return export(ExportCfg(str(folder), 'ct2', str(folder.parent/'ct2'), compare=0))

@pytest.fixture(scope='module')
def onnx(folder): return export(ExportCfg(str(folder), 'onnx', str(folder.parent/'onnx'), compare=0))

def prompts(n:int, seed:int=0, longest:int=12)->list[list[int]]:
    "Random questions of different lengths, each with its end mark."
    rng = np.random.default_rng(seed)
    return [[*rng.integers(7, 7 + len(set(CHARS)), rng.integers(1, longest)).tolist(), 1] for _ in range(n)]

def written(model:object, asked:list[list[int]], choose=None, most:int=30)->list[list[int]]:
    "Ids of every answer up to its end mark."
    ids, mask = pad(asked)
    how = {} if choose is None else dict(choose=choose)
    rows = torch.stack(list(write_tokens(model, ids, mask, most, **how)), 1).tolist()
    return [row[:row.index(1)] if 1 in row else row for row in rows]

# ONNX: the same tokens

def test_onnx_writes_the_tokens_of_pytorch(folder, onnx):
    "A hundred prompts, in batches of 1, 2, 7 and 45: no size of the example stuck to the file."
    model, tok = load_model(folder)
    other, _ = open_export(onnx)
    asked = prompts(100)
    sizes = [1]*10 + [2]*5 + [7]*5 + [45]
    at = 0
    for n in sizes:
        assert written(other, asked[at:at + n]) == written(model, asked[at:at + n])
        at += n
    assert at == 100
    long = prompts(3, 1, 90)
    assert written(other, long, most=150) == written(model, long, most=150)

@pytest.mark.parametrize('dec', [
    Decoding(max_new_tok=30), Decoding('sampling', seed=5, max_new_tok=30),
    Decoding('sampling', temperature=1.7, top_k=9, top_p=.9, seed=2, max_new_tok=30),
    Decoding(repetition_penalty=1.6, no_repeat_ngram=2, max_new_tok=30)])
def test_onnx_answers_as_pytorch_does_whatever_the_knobs(folder, onnx, dec):
    there, here = ChatBot.from_dir(folder, read=list), ChatBot.from_dir(onnx, read=list)
    texts = ['你好吗', '天地玄黄', '谁', '日月盈昃，辰宿列张']
    assert here.answer(texts, dec) == there.answer(texts, dec)
    for text in texts: assert ''.join(here.stream(text, dec)) == ''.join(there.stream(text, dec))

# CTranslate2: its own greedy search, and a slow search without drafts

def engine_answers(model:runtimes.Ct2Model, asked:list[list[int]], most:int=30)->list[list[int]]:
    "What CTranslate2 writes when it is left alone."
    found = model.engine.translate_batch([model.spell(ids) for ids in asked], beam_size=1, max_decoding_length=most,
        min_decoding_length=0, max_input_length=0)
    return [[model.vocab.index(token) for token in row.hypotheses[0]] for row in found]

def test_greedy_is_the_engine_s_own(ct2):
    model, _ = open_export(ct2)
    asked = prompts(60, 2)
    found = written(model, asked)
    assert found == engine_answers(model, asked)
    assert model.n_drafts == 1, 'one draft for the whole batch'
    ends = [len(row) for row in found]
    assert min(ends) < 30 and len(set(ends)) > 3, 'the toy must end at different steps'

def test_a_row_does_not_depend_on_its_neighbours(ct2):
    model, _ = open_export(ct2)
    asked = prompts(20, 4)
    assert written(model, asked) == [written(model, [one])[0] for one in asked]

def slow_answer(model:runtimes.Ct2Model, asked:list[int], choose, most:int)->list[int]:
    "Every token by a fresh search that is told what was said: no draft is kept."
    said = []
    while len(said) < most:
        found, = model.engine.translate_batch([model.spell(asked)], target_prefix=[model.spell(said)], beam_size=1,
            max_decoding_length=len(said) + 1, min_decoding_length=0, max_input_length=0, return_logits_vocab=True)
        scores = torch.from_numpy(np.array(found.logits[0][len(said)])).reshape(1, -1)
        new = choose(torch.tensor([[0, *said]]), scores).item()
        if new == 1: return said
        said.append(new)
    return said

@pytest.mark.parametrize('dec', [
    Decoding('sampling', seed=5, max_new_tok=20),
    Decoding('sampling', temperature=.5, top_p=.8, seed=1, max_new_tok=20),
    Decoding('sampling', temperature=3., seed=1, max_new_tok=20),
    Decoding(repetition_penalty=2., no_repeat_ngram=2, loop_copies=0, max_new_tok=20), Decoding(max_new_tok=60)])
def test_drafts_do_not_change_what_is_chosen(ct2, dec):
    model, tok = open_export(ct2)
    asked = prompts(6, 7)
    n = dec.max_new_tok
    fast = written(model, asked, chooser(dec, 6, tok=tok), n)
    assert fast == [slow_answer(model, one, chooser(dec, 1, tok=tok), n) for one in asked]

def test_longer_than_a_draft(ct2, monkeypatch):
    "An answer that goes on after the draft's last token takes another draft, and stays the same."
    model, _ = open_export(ct2)
    asked = prompts(20, 2)
    whole = written(model, asked, most=40)
    monkeypatch.setattr(runtimes, 'AHEAD', 7)
    before = model.n_drafts
    assert written(model, asked, most=40) == whole and model.n_drafts > before + 3

def test_the_guard_ends_a_loop(tmp_path):
    "A toy that never ends by itself: the guard ends it, and changes nothing before."
    tok = char_tok(CHARS)
    path = save_toy(tmp_path/'model', tok, toy_model(len(tok), seed=1, endless=True))
    model, _ = open_export(export(ExportCfg(str(path), 'ct2', str(tmp_path/'out'), compare=0)))
    free = written(model, prompts(8, 3), most=80)
    dec = Decoding(max_new_tok=80)
    steps = list(token_steps(model, prompts(8, 3), dec, tok))
    ended = [[step[i] for step in steps if step[i] > 1] for i in range(8)]
    assert all(len(row) == 80 for row in free)
    shorter = [row for row, all_of in zip(ended, free) if len(row) < 80 and row == all_of[:len(row)]]
    assert len(shorter) >= 4, 'greedy toys run in circles'

@pytest.mark.parametrize('strategy', ['beam', 'contrastive'])
def test_a_bot_that_could_answer_nothing_does_not_open(folder, onnx, strategy):
    with pytest.raises(ValueError, match='expected strategy greedy or sampling'):
        ChatBot.from_dir(onnx, decoding=Decoding(strategy=strategy))
    bot = ChatBot.from_dir(onnx, read=list)
    with pytest.raises(ValueError, match='expected strategy greedy') as found:
        bot.answer(['你好'], Decoding(strategy=strategy))
    assert '只会贪心和采样' in bot.excuse(found.value)


@pytest.mark.parametrize('how', ['ct2', 'onnx'])
@pytest.mark.parametrize('tied', [True, False])
def test_scores_are_the_models(tmp_path, how, tied):
    "Also of a model with a table of its own for writing: its scores are not scaled. Greedy answers would not tell."
    tok = char_tok(CHARS)
    path = save_toy(tmp_path/'model', tok, search_model(2, tied, len(tok)))
    model, _ = load_model(path)
    other, _ = open_export(export(ExportCfg(str(path), how, str(tmp_path/'out'), compare=0)))
    scores = []
    def keep(said, logits):
        scores.append(logits)
        return logits.argmax(-1)
    for which in (other, model): written(which, prompts(16, 9), keep, 1)
    near = .1 if how == 'ct2' else 1e-4
    assert (scores[0] - scores[1]).abs().mean() < scores[1].std()*near

def test_weights_are_rounded_row_by_row(folder, ct2):
    "PyTorch with weights rounded by hand gives nearly the scores of CTranslate2."
    rounded, _ = load_model(folder)
    with torch.no_grad():
        for name, p in rounded.named_parameters():
            if p.ndim < 2 or 'relative' in name: continue
            scale = p.abs().amax(1, keepdim=True)/127
            p.copy_((p/scale).round()*scale)
    small, _ = open_export(ct2)
    scores = []
    def keep(said, logits):
        scores.append(logits)
        return logits.argmax(-1)
    for which in (small, rounded): written(which, prompts(16, 9), keep, 1)
    assert (scores[0] - scores[1]).abs().mean() < scores[0].std()*.05

def test_byte_level_tokenizers_too(tmp_path):
    tok = byte_tok()
    path = save_toy(tmp_path/'model', tok, toy_model(len(tok), seed=2))
    there = ChatBot.from_dir(path)
    small = ChatBot.from_dir(export(ExportCfg(str(path), out=str(tmp_path/'o'), compare=0)))
    asked = small.encode(['你好', 'a b\tc'])
    assert written(small.model, asked) == engine_answers(small.model, asked)
    assert small.encode(['[EOS] 你好']) == there.encode(['[EOS] 你好'])

# In the chat

def test_many_threads_one_bot(ct2):
    bot = ChatBot.from_dir(ct2, read=list)
    texts = ['你好', '天地', '谁', '玄黄洪荒', '日月', '吗']*2
    alone = [bot.answer([text], PLAIN)[0] for text in texts]
    found = [None]*len(texts)
    def ask(i:int): found[i] = ''.join(bot.stream(texts[i], PLAIN))
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(texts))]
    for t in threads: t.start()
    for t in threads: t.join()
    assert found == alone

def test_a_draft_nobody_holds_stops(tmp_path, monkeypatch):
    tok = char_tok(CHARS)
    path = save_toy(tmp_path/'model', tok, toy_model(len(tok), seed=1, endless=True))
    model, _ = open_export(export(ExportCfg(str(path), 'ct2', str(tmp_path/'out'), compare=0)))
    monkeypatch.setattr(runtimes, 'AHEAD', 10**6)
    ids, mask = pad(prompts(1))
    answer = write_tokens(model, ids, mask, 10**6)
    for _ in range(3): next(answer)
    assert model.engine.num_active_batches > 0
    answer.close()
    gc.collect()
    until = time.monotonic() + 30
    while model.engine.num_active_batches and time.monotonic() < until: time.sleep(.01)
    assert model.engine.num_active_batches == 0, 'it writes a million tokens for nobody'

def test_python_ends_while_a_draft_runs(ct2):
    "Four times: the engine's thread is in another place of its work each time."
    code = ('import sys\nfrom scclm import runtimes\nfrom scclm.chat import ChatBot\nruntimes.AHEAD = 10**6\n'
            'bot = ChatBot.from_dir(sys.argv[1])\npieces = bot.stream("你好")\nprint(next(pieces))\n')
    for _ in range(4):
        done = subprocess.run([sys.executable, '-c', code, str(ct2)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr

def test_the_terminal_takes_the_folder(ct2):
    "And says what it cannot do, without ending."
    bot = ChatBot.from_dir(ct2)
    asked = '你好吗\n天地玄黄\n'
    found = subprocess.run(chat_command(ct2), input=asked, capture_output=True, text=True, timeout=120)
    assert found.stdout.splitlines() == bot.answer(['你好吗', '天地玄黄'])
    assert 'answered 2' in found.stderr

@pytest.mark.parametrize('kind', ['ct2', 'onnx'])
def test_what_is_not_there_is_refused(kind, request):
    bot = ChatBot.from_dir(request.getfixturevalue(kind))
    with pytest.raises(ValueError, match='expected strategy greedy or sampling'): bot.answer(['你好'], Decoding('beam'))
    with pytest.raises(ValueError, match='expected strategy greedy'): list(bot.stream('你好', Decoding('beam')))
    with pytest.raises(ValueError, match='expected strategy greedy'):
        bot.model(input_ids=torch.ones(1, 1), decoder_input_ids=torch.ones(1, 1))
    one = torch.ones(1, 1, dtype=torch.long)
    asked = bot.model.get_encoder()(input_ids=one, attention_mask=one)
    with pytest.raises(ValueError, match='expected strategy greedy'): asked.last_hidden_state.shape
    with pytest.raises(ValueError, match='expected dtype float32'):
        ChatBot.from_dir(request.getfixturevalue(kind), torch.bfloat16)

def test_ask_needs_no_pytorch(ct2):
    "The script in the folder answers as the model does, and nothing in its process has loaded torch."
    bot = ChatBot.from_dir(ct2, read=list)
    run = ('import runpy, sys\nfolder, *sys.argv[1:] = sys.argv[1:]\nrunpy.run_path(folder + "/ask.py")\n'
           'assert not {"torch", "transformers", "scclm"} & set(sys.modules)\n')
    told = subprocess.run([sys.executable, '-c', run, str(ct2)], input='你好吗\n\n谁\n', capture_output=True, text=True)
    free = [bot.answer([text], Decoding(loop_copies=0))[0] for text in ('你好吗', '谁')]
    assert (told.stderr, told.returncode) == ('', 0)
    assert told.stdout.splitlines() == [text if text != bot.fallback else '' for text in free]

def asked_of(folder:Path, *words:object, lines:bytes=b'')->subprocess.CompletedProcess:
    "What ask.py says to words of a command line or to lines of a pipe, in bytes."
    command = [sys.executable, '-I', str(folder/'ask.py'), *words]
    return subprocess.run(command, input=lines, capture_output=True, timeout=60)

def test_ask_names_a_bad_line_and_goes_on(ct2):
    "As `scclm chat` does: what is not UTF-8, blank or too long; a mark of byte order belongs to no question."
    plain = asked_of(ct2, lines='天地玄黄\n谁\n'.encode()).stdout.splitlines()
    bad = [b'\xff', '\u3000'.encode(), '靨'.encode()*512, '天地'.encode('utf-16')]
    lines = b'\n'.join(['\ufeff天地玄黄'.encode(), b'', *bad, '谁\r'.encode()])
    told = asked_of(ct2, lines=lines)
    assert told.stdout.splitlines() == plain and len(plain) == 2 and told.returncode == 1
    assert told.stderr.decode().splitlines() == ['第 3 行：不是 UTF-8 写的。', '第 4 行：问题是空的，请写一句话。',
        '第 5 行：问题太长：513 个词元，最多 512 个。', '第 6 行：不是 UTF-8 写的。']

@pytest.mark.parametrize('word, why', [
    (b'\xff', '不是 UTF-8 写的。'), (b' ', '问题是空的，请写一句话。'), (b'', '问题是空的，请写一句话。'),
    (b'a'*15_000, '问题太长：15001 个词元，最多 512 个。')])
def test_ask_refuses_a_bad_word_with_a_sentence(ct2, word, why):
    told = asked_of(ct2, word)
    assert (told.stdout, told.stderr.decode(), told.returncode) == (b'', f'第 1 行：{why}\n', 1)

def test_ask_takes_the_longest_question(ct2):
    told = asked_of(ct2, '靨'*511)
    assert (told.stderr, told.returncode) == (b'', 0)

def test_the_trained_model_in_bytes_answers_as_before(tmp_path):
    "200 held-out questions: at least 98 % character for character. The record says so, and where the model was."
    source = find_model()
    record = read_json(export(ExportCfg(str(source), out=str(tmp_path/'out')))/RECORD)
    assert record['agreement']['questions'] == 200 and record['agreement']['equal'] >= .98*200
    assert record['source'].endswith('/'.join(source.parts[-3:])) and not record['source'].startswith('/')

# Folders that do not name their special tokens

def nameless(folder:Path, copy:Path, **fields)->Path:
    "The model with a tokenizer_config.json that names no token, and other fields of config.json."
    shutil.copytree(folder, copy)
    (copy/'special_tokens_map.json').unlink(missing_ok=True)
    (copy/'tokenizer_config.json').write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    config = json.loads((copy/'config.json').read_text())
    (copy/'config.json').write_text(json.dumps(config | fields))
    return copy

@pytest.mark.parametrize('kind', ['ct2', 'onnx'])
def test_a_nameless_folder_exports_as_the_named_one(folder, tmp_path, request, kind, monkeypatch):
    monkeypatch.setenv('SCCLM_RUNS', str(tmp_path/'runs'))
    held = run_path('data', 'heldout.parquet')
    held.parent.mkdir(parents=True)
    pq.write_table(pa.table(dict(prompt=['你好', '谁'], response=['好', '我'])), held)
    out = export(ExportCfg(str(nameless(folder, tmp_path/'model')), kind, str(tmp_path/'out'), compare=2))
    asked = ['你好吗', '天地玄黄', '谁']
    assert ChatBot.from_dir(out).answer(asked) == ChatBot.from_dir(request.getfixturevalue(kind)).answer(asked)
    assert read_json(out/RECORD)['agreement']['questions'] == 2
    tok = open_export(out)[1]
    assert (tok.pad_token, tok.eos_token, tok.unk_token) == ('[PAD]', '[EOS]', '[UNK]')
    if kind == 'ct2': assert json.loads((out/'config.json').read_text())['eos_token'] == '[EOS]'

@pytest.mark.parametrize('kind', ['ct2', 'onnx'])
def test_a_folder_without_an_end_is_refused_by_name(folder, tmp_path, capsys, kind):
    path = nameless(folder, tmp_path/'model', eos_token_id=None)
    assert cli.main(['export', '--model', str(path), '--to', kind, '--out', str(tmp_path/'out')]) == 2
    err = capsys.readouterr().err
    assert 'tokenizer_config.json has no eos_token: expected eos_token, pad_token' in err and 'Traceback' not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ['model']

def test_a_vocabulary_without_unknown_is_refused_where_it_is_needed(tmp_path):
    "Byte-level: every text can be spelt. CTranslate2 wants a name nevertheless, ONNX does not."
    tok = byte_tok()
    tok.unk_token = None
    path = save_toy(tmp_path/'model', tok, toy_model(len(tok), seed=2))
    with pytest.raises(ValueError, match='tokenizer_config.json has no unk_token: expected eos_token, pad_token, unk'):
        export(ExportCfg(str(path), 'ct2', str(tmp_path/'ct2'), compare=0))
    out = export(ExportCfg(str(path), 'onnx', str(tmp_path/'onnx'), compare=0))
    assert ChatBot.from_dir(out).answer(['你好'], PLAIN) == ChatBot.from_dir(path).answer(['你好'], PLAIN)

def test_an_export_is_not_exported_again(ct2, onnx, tmp_path, capsys):
    for stage in ('export', 'page'):
        for path in (ct2, onnx):
            assert cli.main([stage, '--model', str(path), '--out', str(tmp_path/'out')]) == 2
            err = capsys.readouterr().err
            assert f'{path} is an export already, it has {RECORD}: expected the model folder it was made from' in err
    assert not (tmp_path/'out').exists()

# The folder

def test_it_says_what_it_was_made_from(folder, ct2, onnx):
    for kind, path in dict(ct2=ct2, onnx=onnx).items():
        record = read_json(path/RECORD)
        assert record['format'] == kind and set(record['versions']) >= {'scclm', 'torch', 'transformers'}
        there = {p.name for p in path.iterdir()} - {RECORD, 'README.md'}
        assert set(record['files']) == there
        assert all(fingerprint(path/name) == mark for name, mark in record['files'].items())
        head = metadata_load(path/'README.md')
        assert head['language'] == 'zh' and head['library_name'] == dict(ct2='ctranslate2', onnx='onnxruntime')[kind]
        assert {'license', 'pipeline_tag', 'tags'} <= head.keys()
    assert read_json(ct2/RECORD)['weights'] == read_json(onnx/RECORD)['weights']

def test_the_same_weights_have_the_same_fingerprint_and_others_another(folder, ct2, tmp_path):
    tok = char_tok(CHARS)
    path = save_toy(tmp_path/'model', tok, toy_model(len(tok), seed=8))
    marks = [read_json(export(ExportCfg(str(p), 'ct2', str(tmp_path/f'{i}'), compare=0))/RECORD)['weights']
             for i, p in enumerate((folder, path))]
    assert marks[0] == read_json(ct2/RECORD)['weights'] != marks[1]

@pytest.mark.parametrize('name', ['model.bin', 'config.json', 'shared_vocabulary.json', 'tokenizer.json'])
def test_a_damaged_folder_is_not_opened(ct2, tmp_path, name):
    copy = Path(shutil.copytree(ct2, tmp_path/'copy'))
    whole = (copy/name).read_bytes()
    for broken in (whole[:-1], whole + b' ', bytes([whole[0] ^ 1]) + whole[1:]):
        (copy/name).write_bytes(broken)
        with pytest.raises(ValueError, match=f'{name} is not the file that was exported'): open_export(copy)
    (copy/name).unlink()
    with pytest.raises(ValueError, match=f'{name} is missing'): open_export(copy)

@pytest.mark.parametrize('record, message', [
    ('{', 'expected a JSON object'), ('[]', 'expected a JSON object'), ('{}', 'format is None, expected a str'),
    ('{"format": 3, "config": {}, "files": {}}', 'format is 3'),
    ('{"format": "ct2", "config": [], "files": {}}', 'config is'),
    ('{"format": "gguf", "config": {}, "files": {}}', "format='gguf': expected one of ct2, onnx"),
    ('{"format": "onnx", "config": {}, "files": {}}', 'cannot be opened')])
def test_a_record_that_says_nothing(tmp_path, record, message):
    (tmp_path/RECORD).write_text(record, encoding='utf-8')
    with pytest.raises(ValueError, match=message): open_export(tmp_path)

def test_nothing_else_is_replaced(folder, ct2, tmp_path):
    "Only an empty folder or an earlier export may go."
    home = tmp_path/'home'
    home.mkdir()
    (home/'letter').write_text('keep me')
    for out in (home, folder, folder.parent, folder/'below', home/'letter'):
        with pytest.raises(ValueError, match='expected a'): export(ExportCfg(str(folder), 'ct2', str(out), compare=0))
    assert (home/'letter').read_text() == 'keep me'
    again = Path(shutil.copytree(ct2, tmp_path/'again'))
    (again/'model.bin').write_bytes(b'broken')
    assert open_export(export(ExportCfg(str(folder), 'ct2', str(again), compare=0)))
    empty = tmp_path/'empty'
    empty.mkdir()
    assert is_export(export(ExportCfg(str(folder), 'ct2', str(empty), compare=0)))

def child(folder:Path, out:Path, at:int):
    "Export in a fork that dies at its `at`-th opening of a file for writing; says how it ended."
    pid = os.fork()
    if pid: return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    n = 0
    def audit(event:str, args:tuple):
        nonlocal n
        kinds = ('open', 'os.rename', 'os.mkdir', 'os.rmdir', 'shutil.rmtree')
        if event not in kinds or str(out.name) not in str(args): return
        n += 1
        if n == at: os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(audit)
    try: export(ExportCfg(str(folder), 'ct2', str(out), compare=0))
    finally: os._exit(0)

def test_a_kill_at_any_moment_leaves_a_whole_folder_or_none(folder, ct2, tmp_path):
    "First with nothing there, then over an earlier export of other weights; a later export tidies up."
    import ctranslate2.converters.transformers # before the forks: they only have to export
    assert ctranslate2.converters.transformers
    tok = char_tok(CHARS)
    other = save_toy(tmp_path/'other', tok, toy_model(len(tok), seed=8))
    old = export(ExportCfg(str(other), 'ct2', str(tmp_path/'old'), compare=0))
    marks = {read_json(p/RECORD)['weights'] for p in (old, ct2)}
    seen, at = set(), 1
    while True:
        fresh, over = tmp_path/f'fresh{at}'/'out', tmp_path/f'over{at}'/'out'
        shutil.copytree(old, over)
        ends = [child(folder, out, at) for out in (fresh, over)]
        if is_export(fresh): open_export(fresh)
        else: assert not fresh.exists()
        assert is_export(over)
        open_export(over)
        seen.add(read_json(over/RECORD)['weights'])
        if ends == [0, 0]: break
        at += 3
    assert seen == marks and at > 10, 'killed before and after the change of names'
    export(ExportCfg(str(folder), 'ct2', str(over), compare=0))
    assert [p.name for p in over.parent.iterdir()] == ['out']

def test_the_command(folder, tmp_path, capsys):
    out = tmp_path/'out'
    assert cli.main(['export', '--model', str(folder), '--to', 'ct2', '--out', str(out), '--compare', '0']) == 0
    assert capsys.readouterr().out.strip() == str(out) and is_export(out)
    assert cli.main(['export', '--model', str(tmp_path/'nowhere'), '--out', str(out)]) == 2
    assert 'is missing' in capsys.readouterr().err
    assert open_export(out), 'the earlier one is still there'
    assert cli.main(['export', '--model', str(folder), '--out', str(folder)]) == 2
    with pytest.raises(SystemExit): cli.main(['export', '--help'])
    text = capsys.readouterr().out
    assert all(f'--{name}' in text for name in ('model', 'to', 'out', 'compare'))

def test_a_package_that_is_not_there_is_named(folder, ct2, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ctranslate2', None)
    with pytest.raises(ModuleNotFoundError, match=r"needs ctranslate2: run pip install 'scclm\[export\]'"):
        open_export(ct2)
    out = tmp_path/'out'
    monkeypatch.setitem(sys.modules, 'ctranslate2.converters', None)
    monkeypatch.setitem(sys.modules, 'ctranslate2.converters.converter', None)
    with pytest.raises(ModuleNotFoundError, match='--to ct2 needs ctranslate2'):
        export(ExportCfg(str(folder), 'ct2', str(out), compare=0))
    assert list(tmp_path.iterdir()) == []

# Model cards

def test_a_stage_s_card_holds_its_own_figures(tmp_path, monkeypatch):
    monkeypatch.delenv('SCCLM_RAW', raising=False)
    model = toy_model(50)
    stage = tmp_path/'runs'/'tiny'/'sft'
    (tmp_path/'runs'/'tiny'/'raw').mkdir(parents=True)
    figures = dict(loss_valid=.5, bleu4=70., exact_heldout=dict(all=.9, template=.8),
        n_heldout=dict(all=200, template=100), bits_per_char=.2,
        bits_per_char_unigram=8., pref_acc_before=.5, seconds=3., loss_train=float('nan'))
    file = tmp_path/'README.md'
    file.write_text(model_card(model, stage/'model', stage_scores(figures)), encoding='utf-8')
    head = metadata_load(file)
    assert (head['license'], head['datasets'], head['model-index'][0]['name']) == \
        ('apache-2.0', ['scclm-sample-corpus'], 'scclm-tiny-sft')
    found = {r.metric_name: r for r in ModelCard.load(file).data.eval_results}
    assert {k: r.metric_value for k, r in found.items()} == dict(loss_valid=.5, bleu4=70., exact_heldout=.9,
        bits_per_char=.2)
    assert found['exact_heldout'].metric_args['n'] == 200 and found['exact_heldout'].metric_type == 'exact_match'

FINALS = dict(exact_heldout=.98, exact_heldout_final=.87, exact_heldout_final_n=713, pref_acc_after=.98,
    pref_acc_after_final=.82, f1_combination=.9, f1_combination_final=.8, f1_entity=.7, f1_entity_final=.6,
    f1_pattern=.5, f1_pattern_final=.4, f1_sentence=.92, bits_per_char=.1, bits_per_char_valid=.2, loss_valid=.3)

def test_no_two_values_of_one_measure_on_one_set_of_questions():
    "A reader would see a contradiction: the last examination, names and patterns ask other questions."
    found = card_results(FINALS)
    for which in ('dataset_type', 'dataset_name'):
        assert len({(getattr(r, which), r.metric_type) for r in found}) == len(found) == 14
    last = next(r for r in found if r.metric_name == 'exact_heldout_final')
    assert (last.dataset_type, last.dataset_name) == ('scclm-heldout-final', '期末卷：没见过的问法')
    assert last.metric_value == .87 and last.metric_args == dict(n=713)

def test_the_stages_cards_get_the_scores_of_the_report_card(tmp_path, monkeypatch):
    "Also the worse one, that was measured after training; what a person wrote stays, other files are left alone."
    monkeypatch.delenv('SCCLM_RAW', raising=False)
    scale = tmp_path/'runs'/'tiny'
    figures = dict(exact_heldout=dict(all=.98), n_heldout=dict(all=1426))
    for stage in ('sft', 'dpo', 'ie'):
        write_json(scale/stage/'figures.json', figures)
        text = model_card(toy_model(50), scale/stage/'model', stage_scores(figures if stage != 'dpo' else {}))
        (scale/stage/'model').mkdir()
        text = text.replace('license: other', 'license: mit').replace('不记得上一句。', '不记得上一句。\n\n我改过。')
        (scale/stage/'model'/'README.md').write_text('# mine\n' if stage == 'ie' else text, encoding='utf-8')
    write_json(scale/'final'/'scores.json', dict(sft=dict(exact_heldout=dict(value=.92, n=713, ci95=[.9, .94])),
        dpo=dict(exact_heldout=dict(value=.87, n=713, ci95=[.85, .9]))))
    card = all_cards(CardCfg(str(scale), figure=False))
    for stage in ('sft', 'dpo'):
        file = scale/stage/'model'/'README.md'
        told = {r.metric_name: r.metric_value for r in ModelCard.load(file).data.eval_results}
        assert told == {k: card[stage][k] for k in ('exact_heldout', 'exact_heldout_final')}
        text = file.read_text(encoding='utf-8')
        assert f"| `exact_heldout_final` | {card[stage]['exact_heldout_final']:.3f} |" in text and '没有量' not in text
        assert metadata_load(file)['license'] == 'mit' and '我改过。' in text and '## 许可' in text
        assert metadata_load(file)['model-index'][0]['name'] == f'scclm-tiny-{stage}'
    assert (scale/'ie'/'model'/'README.md').read_text() == '# mine\n'
    assert rescore_cards(scale) == [], 'the second time nothing is new'

def test_other_people_s_data_has_no_licence_of_ours(tmp_path, monkeypatch):
    monkeypatch.setenv('SCCLM_RAW', str(tmp_path))
    file = tmp_path/'README.md'
    file.write_text(model_card(toy_model(50), tmp_path/'runs'/'base'/'sft'/'model', {}), encoding='utf-8')
    head = metadata_load(file)
    assert head['license'] == 'other' and 'model-index' not in head and '没有量' in file.read_text(encoding='utf-8')

# Half precision

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_the_library_s_without_its_mapped_file(folder, tmp_path, dtype):
    folder = Path(shutil.copytree(folder, tmp_path/'fresh')) # nobody has mapped this one
    model, _ = load_model(folder, dtype)
    maps = Path('/proc/self/maps')
    mapped = maps.read_text() if maps.exists() else ''
    assert str(folder/'model.safetensors') not in mapped
    theirs = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype)
    for (name, p), (same, q) in zip(model.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert name == same and p.dtype == q.dtype and torch.equal(p, q)
    assert model.lm_head.weight is model.shared.weight and model.name_or_path == str(folder)
    assert model.generation_config.to_dict() == theirs.generation_config.to_dict()

def test_half_precision_still_checks(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path/'copy'))
    cfg = json.loads((copy/'config.json').read_text())
    (copy/'config.json').write_text(json.dumps(cfg | dict(d_ff=65)))
    with pytest.raises(ValueError, match='does not fit config.json'): load_model(copy, torch.bfloat16)
    (copy/'config.json').write_text(json.dumps(cfg | dict(num_layers=3)))
    with pytest.raises(ValueError, match='does not fit config.json'): load_model(copy, torch.float16)

# Behind the server

@pytest.mark.parametrize('how', ['ct2', 'onnx'])
def test_the_servers_engine_takes_the_folder(how, request):
    bot = ChatBot.from_dir(request.getfixturevalue(how))
    asked = ['天地', '你是谁？', '秋收冬藏', '好']
    with Engine(bot) as engine:
        tickets = [engine.submit(question, PLAIN) for question in asked]
        said = [ticket.result(60) for ticket in tickets]
    assert said == bot.answer(asked, PLAIN)
    assert {ticket.finish for ticket in tickets} <= {'stop', 'length'}
