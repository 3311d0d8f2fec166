"Chapter 03 against independent truths: a formula, a bucket loop, slow decoding, plain transformers, SIGKILL."
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import chat_toys
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, processors
from transformers import (BartConfig, BartForConditionalGeneration, GPT2Config, GPT2LMHeadModel,
    PreTrainedTokenizerFast)

from chat_toys import toy_model
from scclm.model import (PRESETS, aim_heads_, bias_bucket, build_model, copied, copy_batch, copy_chars, default_init,
    learn_to_copy, match_same_, meta_model, model_config, most_likely, n_params, param_table, pass_through_,
    write_tokens)
from scclm.weights import check_vocab, load_model, save_model

def char_tok(n=300):
    "A tokenizer of single characters with `n` ids."
    return chat_toys.char_tok(map(chr, range(0x4e00, 0x4e00 + n - 7)))


def small(n=300, **kw): return build_model(model_config('tiny', n, d_model=64, num_heads=2, d_ff=64, **kw))


def bart_parts(**kw):
    "A model whose special ids are not T5's: pad 1, eos 2, decoder start 2; its tokenizer writes <s> … </s>."
    vocab = {t: i for i, t in enumerate(['<s>', '<pad>', '</s>', '<unk>', *(chr(0x4e00 + i) for i in range(20))])}
    core = Tokenizer(models.BPE(vocab, [], unk_token='<unk>'))
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing('<s> $A </s>', None, [('<s>', 0), ('</s>', 2)])
    tok = PreTrainedTokenizerFast(tokenizer_object=core, bos_token='<s>', pad_token='<pad>', eos_token='</s>',
                                  unk_token='<unk>')
    config = BartConfig(vocab_size=len(tok) + 5, d_model=32, encoder_layers=2, decoder_layers=2,
                        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
                        decoder_ffn_dim=64, max_position_embeddings=64, init_std=.5, forced_eos_token_id=None)
    with torch.random.fork_rng():
        torch.manual_seed(kw.get('seed', 0))
        return BartForConditionalGeneration(config).eval(), tok


@pytest.fixture
def saved(tmp_path):
    "A saved folder named like a trained stage, its model and its tokenizer."
    tok, model, path = char_tok(), small(), tmp_path/'pretrain'/'model'
    save_model(model, tok, path)
    return path, model, tok


def formula(vocab, d_model, d_ff, num_heads, d_kv, num_layers, num_decoder_layers, **_):
    attn, ff = 4 * d_model * num_heads * d_kv, 2 * d_model * d_ff
    enc = num_layers * (attn + ff + 2 * d_model)
    dec = num_decoder_layers * (2 * attn + ff + 3 * d_model)
    return vocab * d_model + enc + dec + 2 * d_model + 2 * 32 * num_heads


@pytest.mark.parametrize('scale', PRESETS)
@pytest.mark.parametrize('vocab', [1874, 29298])
def test_parameter_count(scale, vocab):
    model = meta_model(model_config(scale, vocab))
    assert n_params(model) == formula(vocab, **PRESETS[scale]) == sum(param_table(model).values())
    assert param_table(model)['shared embedding'] == vocab * model.config.d_model


def test_base_is_the_size_it_says():
    n = n_params(meta_model(model_config('base', 29298)))
    assert n == 187_692_288 and n + 29298 * 768 == 210_193_152


def test_bucket_against_a_search():
    "The bucket is the number of boundaries passed; a boundary is where the logarithm passes a whole number."
    config = model_config('tiny', 100)
    def brute(distance, n):
        exact = n // 2
        if distance < exact: return distance
        edges = [exact * (128 / exact) ** (i / (n - exact)) for i in range(1, n - exact)]
        return exact + sum(distance >= edge - 1e-9 for edge in edges)
    for o in range(-300, 301):
        assert bias_bucket(o, True, config) == brute(abs(o), 16) + 16 * (o > 0), o
        assert bias_bucket(o, False, config) == brute(max(0, -o), 32), o


def test_seed_alone_decides():
    torch.manual_seed(5)
    expected = torch.rand(3)
    for init in ('stock', 'mimetic'):
        torch.manual_seed(5)
        a = build_model(model_config('tiny', 100), init)
        assert torch.equal(torch.rand(3), expected)                  # the global state did not move
        torch.manual_seed(6)
        b = build_model(model_config('tiny', 100), init)
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))


@pytest.mark.parametrize('heads', [1, 2, 3, 6])
def test_mimetic_at_any_number_of_heads(heads):
    model = build_model(model_config('tiny', 100, num_heads=heads), 'mimetic').eval()
    stock = build_model(model_config('tiny', 100, num_heads=heads), 'stock')
    assert n_params(model) == n_params(stock)
    attn = model.decoder.block[1].layer[1].EncDecAttention
    for h in range(heads): # a position's query finds itself among others
        w = attn.k.weight[h*32:(h+1)*32]
        assert torch.allclose(w @ w.T, torch.eye(32), atol=1e-5)
        assert torch.allclose(attn.o.weight[:, h*32:(h+1)*32], attn.v.weight[h*32:(h+1)*32].T)
    x = torch.randint(7, 100, (1, 12))
    model.set_attn_implementation('eager')
    maps = model.encoder(x, output_attentions=True).attentions[0][0]
    for h, offset in zip(range(heads), (-1, 1, -2, 2)): assert maps[h].diagonal(offset).mean() > 0.5


def test_match_same_is_the_identity_over_d_model():
    attn = small().decoder.block[0].layer[1].EncDecAttention         # 2 heads x 32 = d_model
    match_same_(attn)
    pass_through_(attn)
    assert torch.allclose(attn.q.weight.T @ attn.k.weight, torch.eye(64) * 32**-0.5, atol=1e-5)
    assert torch.allclose(attn.o.weight @ attn.v.weight, torch.eye(64), atol=1e-5)


def test_aim_heads_drops_what_it_has_no_head_for():
    model = small()
    before = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.clone()
    aim_heads_(model.encoder, (-1, 1, -2, 2), 7.0)
    change = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight - before
    assert change.nonzero().tolist() == [[1, 0], [17, 1]] and torch.allclose(change[1, 0], torch.tensor(7.0))


def test_stock_loss_starts_near_ln_v():
    V = 5000
    model = build_model(model_config('mini', V, dropout_rate=0.0))
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randint(7, V, (8, 32), generator=g) for _ in range(2))
    with torch.no_grad(): loss = model(input_ids=x, labels=y).loss.item()
    assert abs(loss - math.log(V) - 0.5) < 0.25


def test_round_trip(saved):
    path, model, tok = saved
    again, tok2 = load_model(path)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    assert tok2.get_vocab() == tok.get_vocab() and not again.training
    assert again.lm_head.weight is again.shared.weight
    assert [p.name for p in path.parent.iterdir()] == ['model']
    for dtype in (torch.bfloat16, torch.float16):
        assert load_model(path, dtype)[0].shared.weight.dtype == dtype


def test_a_dtype_is_no_name(saved):
    with pytest.raises(TypeError, match="dtype=.bfloat16. is not a torch.dtype: expected torch.float32"):
        load_model(saved[0], 'bfloat16')


PLAIN = """
import json, sys
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1])
tok = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tok('一丁七', add_special_tokens=False, return_tensors='pt').input_ids
out = model.generate(ids, max_new_tokens=5, do_sample=False)
print(json.dumps(dict(cls=type(model).__name__, ids=ids.tolist(), out=out.tolist(), n=model.num_parameters(),
    scclm='scclm' in sys.modules, pad=tok.pad_token_id, eos=tok.eos_token_id,
    start=model.generation_config.decoder_start_token_id)))
"""


def test_opens_in_plain_transformers(saved):
    path, model, tok = saved
    done = subprocess.run([sys.executable, '-c', PLAIN, path], capture_output=True, text=True, check=True)
    got = json.loads(done.stdout)
    assert got['cls'] == 'T5ForConditionalGeneration' and not got['scclm'] and got['n'] == n_params(model)
    assert (got['pad'], got['eos'], got['start']) == (0, 1, 0) and got['ids'] == [[7, 8, 10]]
    ours = load_model(path)[0].generate(torch.tensor(got['ids']), max_new_tokens=5, do_sample=False)
    assert got['out'] == ours.tolist()
    written = json.loads((path/'tokenizer_config.json').read_text(encoding='utf-8'))
    assert written['tokenizer_class'] == 'PreTrainedTokenizerFast'


SAVER = """
import sys
sys.path.insert(0, sys.argv[2])
import torch
from test_model import char_tok, small
from scclm.weights import save_model
model, tok = small(), char_tok()
step = 0
while True:
    step += 1
    for p in model.parameters(): p.data.fill_(step)
    save_model(model, tok, sys.argv[1])
    print(step, flush=True)
"""


def test_sigkill_leaves_the_old_or_the_new(tmp_path):
    path, rng = tmp_path/'model', random.Random(0)
    for _ in range(4):
        command = [sys.executable, '-c', SAVER, path, Path(__file__).parent]
        proc = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        done = int(proc.stdout.readline())
        time.sleep(rng.random() * 0.3)
        proc.kill()                                                    # SIGKILL
        done = max([done, *map(int, proc.stdout.read().split())])
        proc.wait()
        values = {v for p in load_model(path)[0].parameters() for v in p.unique().tolist()}
        assert len(values) == 1                                        # one whole save:
        assert values <= {float(done), float(done + 1)}                # the last, or the one under way


def test_every_stage_of_a_save_can_be_read(saved):
    "The states a system without an atomic swap can be left in."
    path, model, tok = saved
    os.rename(path, path.with_name('.model.1.old'))                      # killed between the two renames
    assert n_params(load_model(path)[0]) == n_params(model)
    torn = path.with_name('.model.99999999.tmp')
    torn.mkdir()
    (torn/'model.safetensors').write_text('half')
    assert n_params(load_model(path)[0]) == n_params(model)
    save_model(model, tok, path)                                       # the next save tidies up
    assert [p.name for p in path.parent.iterdir()] == ['model']


def broken(path, name, how):
    copy = path.with_name('broken')
    shutil.copytree(path, copy)
    how(copy/name)
    return copy


def halve(p): p.write_bytes(p.read_bytes()[:p.stat().st_size // 2])


def drop_tensor(p):
    w = load_file(p)
    del w['encoder.block.1.layer.0.SelfAttention.k.weight']
    save_file(w, p, metadata={'format': 'pt'})


def shrink_tensor(p):
    w = load_file(p)
    w['shared.weight'] = w['shared.weight'][:100].clone()
    save_file(w, p, metadata={'format': 'pt'})


@pytest.mark.parametrize('name,how,error,text', [
    ('model.safetensors', Path.unlink, FileNotFoundError, 'model.safetensors is missing'),
    ('tokenizer.json', Path.unlink, FileNotFoundError, 'tokenizer.json is missing'),
    ('model.safetensors', halve, ValueError, 'not a readable safetensors file'),
    ('config.json', halve, ValueError, 'config.json is not readable JSON'),
    ('tokenizer.json', halve, ValueError, 'tokenizer.json is not readable JSON'),
    ('model.safetensors', drop_tensor, ValueError, '1 tensors are missing or have .*, such as encoder.block.1'),
    ('model.safetensors', shrink_tensor, ValueError, 'another shape, such as shared.weight, .100, 64. for .300, 64.')])
def test_broken_folder_says_what_is_wrong(saved, name, how, error, text):
    with pytest.raises(error, match=text) as e: load_model(broken(saved[0], name, how))
    assert '\n' not in str(e.value)


def test_missing_folder_names_its_stage(tmp_path):
    for stage, notebook in (('pretrain', '05_pretrain'), ('sft', '06_sft')):
        with pytest.raises(FileNotFoundError, match=notebook): load_model(tmp_path/stage/'model')
    with pytest.raises(FileNotFoundError, match='nowhere is missing'):
        load_model(tmp_path/'nowhere')


def test_vocabulary_mismatch_says_both_numbers(saved):
    path, model, _ = saved
    with pytest.raises(ValueError, match='290 ids but the model has 300'):
        check_vocab(model, char_tok(290))
    with pytest.raises(ValueError, match='290 ids but the model has 300'):
        save_model(model, char_tok(290), path)
    char_tok(310).save_pretrained(path)
    with pytest.raises(ValueError, match='310 ids but the model has 300'): load_model(path)


def test_config_errors():
    with pytest.raises(ValueError, match="huge"): model_config('huge', 100)
    with pytest.raises(ValueError, match="'d_modle'"): model_config('tiny', 100, d_modle=3)
    with pytest.raises(ValueError, match='vocab_size=3'): model_config('tiny', 3)
    with pytest.raises(ValueError, match='num_decoder_layers=3'):
        model_config('tiny', 100, num_decoder_layers=3)
    with pytest.raises(ValueError, match="'magic'"): build_model(model_config('tiny', 100), 'magic')
    assert [default_init(s) for s in PRESETS] == ['mimetic', 'mimetic', 'stock', 'stock']


# Other people's folders


@pytest.fixture
def foreign(tmp_path):
    "A folder as others publish it: BART, five rows more than ids."
    model, tok = bart_parts()
    path = tmp_path/'theirs'
    model.save_pretrained(path)
    tok.save_pretrained(path)
    return path


def test_a_foreign_folder_opens(foreign):
    model, tok = load_model(foreign, foreign=True)
    theirs, _ = bart_parts()
    assert type(model) is BartForConditionalGeneration and not model.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), theirs.parameters(), strict=True))
    assert tok('一').input_ids == [0, 4, 2] and len(tok) == model.config.vocab_size - 5
    assert load_model(foreign, torch.bfloat16, foreign=True)[0].dtype == torch.bfloat16
    with pytest.raises(ValueError, match='the tokenizer has 24 ids but the model has 29 embedding rows'):
        load_model(foreign)


def test_our_folder_is_a_foreign_one_too(saved):
    path, model, tok = saved
    again, tok2 = load_model(path, foreign=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert tok2.get_vocab() == tok.get_vocab()


def write_config(**fields): return lambda p: p.write_text(json.dumps(fields), encoding='utf-8')


def drop_bart_tensor(p):
    w = load_file(p)
    del w['model.encoder.layers.1.fc1.weight']
    save_file(w, p, metadata={'format': 'pt'})


@pytest.mark.parametrize('name, how, error, text', [
    ('config.json', Path.unlink, FileNotFoundError, 'config.json is missing: expected a Hugging Face model folder'),
    ('tokenizer.json', Path.unlink, FileNotFoundError, 'broken has no tokenizer: expected one of tokenizer.json, spi'),
    ('config.json', halve, ValueError, 'config.json cannot be read: '),
    ('config.json', write_config(model_type='abacus'), ValueError, 'config.json cannot be read: .*abacus'),
    ('config.json', write_config(), ValueError, 'config.json cannot be read: '),
    ('config.json', write_config(model_type='gpt2'), ValueError, "model_type 'gpt2' has no encoder: expected a seq"),
    ('model.safetensors', Path.unlink, ValueError, 'broken cannot be loaded: '),
    ('model.safetensors', halve, ValueError, 'broken cannot be loaded: '),
    ('model.safetensors', drop_bart_tensor, ValueError, 'does not fit config.json: 1 tensors .*encoder.layers.1.fc1'),
    ('tokenizer.json', halve, ValueError, 'broken cannot be loaded: ')])
def test_broken_foreign_folder_says_what_is_wrong(foreign, name, how, error, text):
    with pytest.raises(error, match=text) as e: load_model(broken(foreign, name, how), foreign=True)
    assert '\n' not in str(e.value)


def test_a_foreign_decoder_is_refused(tmp_path):
    "A whole folder of a model that has no encoder."
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    char_tok().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'gpt2' has no encoder"):
        load_model(tmp_path, foreign=True)


def test_a_foreign_tokenizer_may_not_be_larger_than_the_model(foreign):
    char_tok(30).save_pretrained(foreign)
    with pytest.raises(ValueError, match='theirs: the tokenizer has 30 ids but the model has 29 embedding rows'):
        load_model(foreign, foreign=True)


def test_a_missing_foreign_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='05_pretrain'):
        load_model(tmp_path/'pretrain'/'model', foreign=True)
    with pytest.raises(FileNotFoundError, match='config.json is missing'):
        load_model(tmp_path/'no', foreign=True)


# The token loop


def t5_parts(seed=0, vocab=12):
    "Few ids, and an end mark with a long vector: answers end now and then."
    model = toy_model(vocab, seed=seed, spread=.5)
    model.shared.weight.data[1] *= 2
    return model


MAKERS = dict(t5=t5_parts, bart=lambda seed=0: bart_parts(seed=seed)[0])


def prompts(model, seed=0, lens=(3, 9, 1, 6)):
    "Random prompts that end in the end mark, padded to a rectangle; its mask."
    g, cfg = torch.Generator().manual_seed(seed), model.config
    ids = torch.full((len(lens), max(lens) + 1), cfg.pad_token_id)
    for row, n in zip(ids, lens):
        row[:n] = torch.randint(3, cfg.vocab_size, (n,), generator=g)
        row[n] = cfg.eos_token_id
    return ids, (torch.arange(ids.shape[1]) <= torch.tensor(lens)[:, None]).long()


def written(model, ids, mask, most, **kw): return torch.stack(list(write_tokens(model, ids, mask, most, **kw)), 1)


@torch.no_grad()
def slowly(model, prompt, most):
    "Greedy for one row without padding: the whole model anew for each token, no cache."
    said = [model.config.decoder_start_token_id]
    for _ in range(most):
        logits = model(input_ids=prompt[None], decoder_input_ids=torch.tensor([said]), use_cache=False).logits
        said.append(logits[0, -1].argmax().item())
        if said[-1] == model.config.eos_token_id: break
    return said[1:]


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('kind', MAKERS)
def test_the_loop_writes_what_generate_writes(kind, seed):
    model = MAKERS[kind](seed=seed)
    ids, mask = prompts(model, seed)
    theirs = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=15, do_sample=False, num_beams=1)
    assert written(model, ids, mask, 15).tolist() == theirs[:, 1:].tolist()
    assert theirs[0, 0] == model.config.decoder_start_token_id == dict(t5=0, bart=2)[kind]


@pytest.mark.parametrize('kind', MAKERS)
def test_the_loop_writes_what_a_slow_one_writes(kind):
    "Each row alone, then as in a batch: padded after its end. Some rows must end early, some not at all."
    lengths = []
    for seed in range(6):
        model = MAKERS[kind](seed=seed)
        cfg = model.config
        ids, mask = prompts(model, seed)
        rows = [slowly(model, row[m.bool()], 12) for row, m in zip(ids, mask)]
        steps = max(map(len, rows))
        padded = [row + [cfg.pad_token_id]*(steps - len(row)) for row in rows]
        assert written(model, ids, mask, 12).tolist() == padded, seed
        lengths.append([len(row) for row in rows])
    assert any(len(set(n)) > 1 for n in lengths) and any(max(n) < 12 for n in lengths), lengths


@pytest.mark.parametrize('most', [0, 1, 7])
def test_the_loop_stops_at_max_new_tok(most):
    "A model that never ends: so many tokens, no end mark, and the slow loop's."
    model = toy_model(12, endless=True).eval()
    ids, mask = prompts(model)
    steps = list(write_tokens(model, ids, mask, most))
    assert len(steps) == most and all(s.shape == (4,) for s in steps)
    rows = [slowly(model, row[m.bool()], most) for row, m in zip(ids, mask)]
    assert [[s[i].item() for s in steps] for i in range(4)] == rows
    assert all(model.config.eos_token_id not in row for row in rows)


@pytest.mark.parametrize('kind', MAKERS)
def test_rows_that_are_done_are_padded_and_the_last_one_ends_the_loop(kind):
    "A choice that is written down: row i ends at its own step; what it says later counts for nothing."
    model = MAKERS[kind]()
    cfg = model.config
    ids, mask = prompts(model)
    ends, seen = torch.tensor([2, 0, 4, 1]), []
    def choose(said, logits):
        assert logits.shape == (4, cfg.vocab_size) and logits.dtype == torch.float32
        seen.append(said.clone())
        step = said.shape[1] - 1
        return torch.where(ends == step, cfg.eos_token_id, 5 + step)
    got = written(model, ids, mask, 9, choose=choose)
    pad, eos = cfg.pad_token_id, cfg.eos_token_id
    assert got.tolist() == [[5, 6, eos, pad, pad], [eos, pad, pad, pad, pad], [5, 6, 7, 8, eos],
                            [5, eos, pad, pad, pad]]
    start = torch.full((4, 1), cfg.decoder_start_token_id)
    whole = torch.cat([start, got], 1)
    assert all(torch.equal(said, whole[:, :t + 1]) for t, said in enumerate(seen)) and len(seen) == 5


def test_the_encoder_runs_once_and_the_decoder_reads_one_token_a_step():
    model = toy_model(12, endless=True).eval()
    runs, read = [], []
    model.encoder.register_forward_hook(lambda *a: runs.append(1))
    model.decoder.register_forward_pre_hook(lambda m, a, kw: read.append(kw['input_ids'].shape), with_kwargs=True)
    assert written(model, *prompts(model), 6).requires_grad is False
    assert len(runs) == 1 and read == [(4, 1)]*6


def test_rows_that_are_done_leave_once_they_are_half_of_the_batch():
    "Row i ends at its own step: four rows are read until two are done, then two, then one."
    model, read = toy_model(12), []
    model.decoder.register_forward_pre_hook(lambda m, a, kw: read.append(kw['input_ids'].shape), with_kwargs=True)
    ends = torch.tensor([2, 0, 4, 1])
    def choose(said, logits): return torch.where(ends == said.shape[1] - 1, model.config.eos_token_id, 5)
    written(model, *prompts(model), 9, choose=choose)
    assert read == [(4, 1), (4, 1), (2, 1), (1, 1), (1, 1)]


def until(lasts, eos, said, logits): return torch.where(lasts == said.shape[1] - 1, eos, logits.argmax(-1))


def test_whoever_stays_is_not_disturbed_by_those_who_leave():
    "Rows end at steps drawn by lot; what the others say between is the slow loop's, whoever left before."
    for seed in range(20):
        model = toy_model(12, seed, endless=True)
        ids, mask = prompts(model)
        eos, pad = model.config.eos_token_id, model.config.pad_token_id
        lasts = torch.randint(1, 9, (4,), generator=torch.Generator().manual_seed(seed))
        choose = partial(until, lasts, eos)
        alone = [slowly(model, row[m.bool()], n) + [eos] for row, m, n in zip(ids, mask, lasts.tolist())]
        most = max(map(len, alone))
        assert written(model, ids, mask, 9, choose=choose).tolist() == [a + [pad]*(most - len(a)) for a in alone]


def test_a_choice_gets_fp32_scores_of_a_half_precision_model():
    model, types = t5_parts().bfloat16(), []
    def choose(said, logits):
        types.append(logits.dtype)
        return most_likely(said, logits)
    written(model, *prompts(model), 3, choose=choose)
    assert set(types) == {torch.float32}


def test_the_most_likely_token_is_the_first_of_the_highest():
    logits = torch.tensor([[0., 3., 1.], [5., -1., 5.]])
    assert most_likely(None, logits).tolist() == [1, 0]


# Copying names


def test_copying_asks_for_a_name_that_stands_in_the_question():
    tok = char_tok()
    known, kept = copy_chars(tok)
    assert not set(known.tolist()) & set(kept.tolist())
    assert 0 <= 5*len(kept) - len(known) - len(kept) < 5
    for chars in (known, kept):
        batch = copy_batch(torch.Generator().manual_seed(3), tok, chars, 50)
        for ids, mask, labels in zip(batch['input_ids'], batch['attention_mask'], batch['labels']):
            name, asked = labels[labels >= 0].tolist(), ids[mask.bool()].tolist()
            assert name[-1] == asked[-1] == 1 and 2 <= len(name) - 1 <= 5
            assert set(name[:-1]) <= set(chars.tolist())
            assert any(asked[i:i + len(name) - 1] == name[:-1] for i in range(len(asked)))


def test_copied_counts_whole_names():
    class Says(torch.nn.Module):
        def forward(self, labels, **kw): return type('Out', (), dict(logits=self.logits))
    model, labels = Says(), torch.tensor([[7, 8, 1], [9, 1, -100]])
    right = torch.nn.functional.one_hot(labels.clamp(min=0), 20).float()
    for wrong, share in (([], 1.), ([(0, 1)], .5), ([(1, 2)], 1.), ([(0, 0), (1, 0)], 0.)):
        model.logits = right.clone()
        for place in wrong: model.logits[place] = torch.eye(20)[3]
        assert copied(model, dict(labels=labels)) == share, wrong


def test_learning_to_copy_stops_at_the_goal_or_at_the_last_step():
    tok, model = char_tok(), small()
    before = model.shared.weight.clone()
    curve = learn_to_copy(model, tok, steps=4, every=2)
    assert [exam['step'] for exam in curve] == [0, 2, 4] and not torch.equal(before, model.shared.weight)
    assert curve[0]['loss'] is None and all(exam['loss'] > 0 for exam in curve[1:])
    assert [exam['step'] for exam in learn_to_copy(small(), tok, steps=4, every=2, goal=0.)] == [0]
