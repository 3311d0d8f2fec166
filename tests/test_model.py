"Chapter 03 against independent truths: a formula, a bucket loop, plain transformers in another process, SIGKILL."
import json, math, os, random, shutil, subprocess, sys, time
from pathlib import Path

import pytest, torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from scclm.model import (PRESETS, aim_heads_, bias_bucket, build_model, check_vocab, default_init, load_model, match_same_, meta_model,
                         model_config, n_params, param_table, pass_through_, save_model)

SPECIALS = ['[PAD]', '[EOS]', '[SEP]', '[BOS]', '[CLS]', '[MASK]', '[UNK]']


def char_tok(n=300):
    "A tokenizer of single characters with `n` ids."
    vocab = {piece: i for i, piece in enumerate(SPECIALS + [chr(0x4e00 + i) for i in range(n - 7)])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token='[UNK]'))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token='[PAD]', eos_token='[EOS]', unk_token='[UNK]')


def small(n=300, **kw): return build_model(model_config('tiny', n, d_model=64, num_heads=2, d_ff=64, **kw))


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
    torch.manual_seed(5); expected = torch.rand(3)
    for init in ('stock', 'mimetic'):
        torch.manual_seed(5); a = build_model(model_config('tiny', 100), init)
        assert torch.equal(torch.rand(3), expected)                  # the global state did not move
        torch.manual_seed(6); b = build_model(model_config('tiny', 100), init)
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))


@pytest.mark.parametrize('heads', [1, 2, 3, 6])
def test_mimetic_at_any_number_of_heads(heads):
    model = build_model(model_config('tiny', 100, num_heads=heads), 'mimetic').eval()
    stock = build_model(model_config('tiny', 100, num_heads=heads), 'stock')
    assert n_params(model) == n_params(stock)
    attn = model.decoder.block[1].layer[1].EncDecAttention
    for h in range(heads):                                           # per head: query of a position finds itself among others
        w = attn.k.weight[h*32:(h+1)*32]
        assert torch.allclose(w @ w.T, torch.eye(32), atol=1e-5)
        assert torch.allclose(attn.o.weight[:, h*32:(h+1)*32], attn.v.weight[h*32:(h+1)*32].T)
    x = torch.randint(7, 100, (1, 12))
    model.set_attn_implementation('eager')
    maps = model.encoder(x, output_attentions=True).attentions[0][0]
    for h, offset in zip(range(heads), (-1, 1, -2, 2)): assert maps[h].diagonal(offset).mean() > 0.5


def test_match_same_is_the_identity_over_d_model():
    attn = small().decoder.block[0].layer[1].EncDecAttention         # 2 heads x 32 = d_model
    match_same_(attn); pass_through_(attn)
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
    with torch.no_grad(): assert abs(model(input_ids=x, labels=y).loss.item() - math.log(V) - 0.5) < 0.25


def test_round_trip(saved):
    path, model, tok = saved
    again, tok2 = load_model(path)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    assert tok2.get_vocab() == tok.get_vocab() and not again.training
    assert again.lm_head.weight is again.shared.weight
    assert [p.name for p in path.parent.iterdir()] == ['model']
    for dtype in (torch.bfloat16, torch.float16): assert load_model(path, dtype)[0].shared.weight.dtype == dtype


PLAIN = """
import json, sys
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
model, tok = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
ids = tok('一丁七', add_special_tokens=False, return_tensors='pt').input_ids
out = model.generate(ids, max_new_tokens=5, do_sample=False)
print(json.dumps(dict(cls=type(model).__name__, ids=ids.tolist(), out=out.tolist(), n=model.num_parameters(),
    scclm='scclm' in sys.modules, pad=tok.pad_token_id, eos=tok.eos_token_id, start=model.generation_config.decoder_start_token_id)))
"""


def test_opens_in_plain_transformers(saved):
    path, model, tok = saved
    got = json.loads(subprocess.run([sys.executable, '-c', PLAIN, path], capture_output=True, text=True, check=True).stdout)
    assert got['cls'] == 'T5ForConditionalGeneration' and not got['scclm'] and got['n'] == n_params(model)
    assert (got['pad'], got['eos'], got['start']) == (0, 1, 0) and got['ids'] == [[7, 8, 10]]
    ours = load_model(path)[0].generate(torch.tensor(got['ids']), max_new_tokens=5, do_sample=False)
    assert got['out'] == ours.tolist()
    assert json.loads((path/'tokenizer_config.json').read_text(encoding='utf-8'))['tokenizer_class'] == 'PreTrainedTokenizerFast'


SAVER = """
import sys
sys.path.insert(0, sys.argv[2])
import torch
from test_model import char_tok, small
from scclm.model import save_model
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
        proc = subprocess.Popen([sys.executable, '-c', SAVER, path, Path(__file__).parent], stdout=subprocess.PIPE, text=True)
        done = int(proc.stdout.readline())
        time.sleep(rng.random() * 0.3)
        proc.kill()                                                    # SIGKILL
        done = max([done, *map(int, proc.stdout.read().split())]); proc.wait()
        values = {v for p in load_model(path)[0].parameters() for v in p.unique().tolist()}
        assert len(values) == 1 and values <= {float(done), float(done + 1)}   # one whole save, the last or the one under way


def test_every_stage_of_a_save_can_be_read(saved):
    "The states a system without an atomic swap can be left in."
    path, model, tok = saved
    os.rename(path, path.with_name('.model.1.old'))                      # killed between the two renames
    assert n_params(load_model(path)[0]) == n_params(model)
    (path.with_name('.model.99999999.tmp')).mkdir(); (path.with_name('.model.99999999.tmp')/'model.safetensors').write_text('half')
    assert n_params(load_model(path)[0]) == n_params(model)
    save_model(model, tok, path)                                       # the next save tidies up
    assert [p.name for p in path.parent.iterdir()] == ['model']


def broken(path, name, how):
    copy = path.with_name('broken'); shutil.copytree(path, copy)
    how(copy/name)
    return copy


def halve(p): p.write_bytes(p.read_bytes()[:p.stat().st_size // 2])


def drop_tensor(p):
    w = load_file(p); del w['encoder.block.1.layer.0.SelfAttention.k.weight']; save_file(w, p, metadata={'format': 'pt'})


def shrink_tensor(p):
    w = load_file(p); w['shared.weight'] = w['shared.weight'][:100].clone(); save_file(w, p, metadata={'format': 'pt'})


@pytest.mark.parametrize('name,how,error,text', [
    ('model.safetensors', Path.unlink, FileNotFoundError, 'model.safetensors is missing'),
    ('tokenizer.json', Path.unlink, FileNotFoundError, 'tokenizer.json is missing'),
    ('model.safetensors', halve, ValueError, 'not a readable safetensors file'),
    ('config.json', halve, ValueError, 'config.json is not readable JSON'),
    ('tokenizer.json', halve, ValueError, 'tokenizer.json is not readable JSON'),
    ('model.safetensors', drop_tensor, ValueError, '1 tensors are missing or have another shape, such as encoder.block.1'),
    ('model.safetensors', shrink_tensor, ValueError, '1 tensors are missing or have another shape, such as shared.weight, .100, 64. for .300, 64.')])
def test_broken_folder_says_what_is_wrong(saved, name, how, error, text):
    with pytest.raises(error, match=text) as e: load_model(broken(saved[0], name, how))
    assert '\n' not in str(e.value)


def test_missing_folder_names_its_stage(tmp_path):
    for stage, notebook in (('pretrain', '05_pretrain'), ('sft', '06_sft')):
        with pytest.raises(FileNotFoundError, match=notebook): load_model(tmp_path/stage/'model')
    with pytest.raises(FileNotFoundError, match='nowhere is missing'): load_model(tmp_path/'nowhere')


def test_vocabulary_mismatch_says_both_numbers(saved):
    path, model, _ = saved
    with pytest.raises(ValueError, match='290 ids but the model has 300'): check_vocab(model, char_tok(290))
    with pytest.raises(ValueError, match='290 ids but the model has 300'): save_model(model, char_tok(290), path)
    char_tok(310).save_pretrained(path)
    with pytest.raises(ValueError, match='310 ids but the model has 300'): load_model(path)


def test_config_errors():
    with pytest.raises(ValueError, match="huge"): model_config('huge', 100)
    with pytest.raises(ValueError, match="'d_modle'"): model_config('tiny', 100, d_modle=3)
    with pytest.raises(ValueError, match='vocab_size=3'): model_config('tiny', 3)
    with pytest.raises(ValueError, match='num_decoder_layers=3'): model_config('tiny', 100, num_decoder_layers=3)
    with pytest.raises(ValueError, match="'magic'"): build_model(model_config('tiny', 100), 'magic')
    assert [default_init(s) for s in PRESETS] == ['mimetic', 'stock', 'stock']
