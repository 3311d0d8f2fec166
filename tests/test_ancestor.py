"A folder as ChatLM-mini-Chinese publishes it: opened without its code, its four searches, its streamers, its damage."
import json
import os
import shutil
from itertools import product
from pathlib import Path
from threading import Thread

import pytest
import torch
from chat_toys import CHARS, char_tok, search_model, search_prompts, toy_model
from safetensors.torch import load_file, save_file
from test_contrastive import BY_TRANSFORMERS_4
from transformers import GenerationConfig, T5ForConditionalGeneration, TextIteratorStreamer, TextStreamer
from transformers.generation import BaseStreamer

from scclm.ancestor import SEARCHES, TextToTextModel, new_columns, seeded_rngs, unpadded
from scclm.chat import ChatBot, Decoding
from scclm.model import build_model, load_model, meta_model, model_config, n_params, save_model
from scclm.pref_files import model_key
from scclm.terminal import ChatCfg
from scclm.weights import weight_files

TOK = char_tok(CHARS)
REMOTE = 'open({mark!r}, "w").write("the code of others ran")\n'
OWN = { # what its authors pass to `generate`, written anew
    'greedy': dict(num_beams=1, do_sample=False),
    'beam': dict(num_beams=5, do_sample=True, top_k=50, top_p=.95, no_repeat_ngram_size=4, length_penalty=-2.,
                 early_stopping=True),
    'sampling': dict(num_beams=1, do_sample=True, top_k=50, temperature=.98, top_p=.8, no_repeat_ngram_size=4)}


def as_json(path, value): path.write_text(json.dumps(value), encoding='utf-8')


def changed(path, **fields): as_json(path, json.loads(path.read_text(encoding='utf-8')) | fields)


def small(tied=True, seed=0):
    "Base's layers in small: its config with narrow ones."
    config = model_config('base', len(TOK), d_model=32, d_kv=8, d_ff=64, num_heads=4, num_layers=2,
        num_decoder_layers=2)
    model = build_model(config, seed=seed)
    model.shared.weight.data.normal_(generator=torch.Generator().manual_seed(seed))
    if tied: return model.eval()
    model.lm_head.weight = torch.nn.Parameter(model.shared.weight.flip(0) * .2)
    model.config.scale_decoder_outputs = False                             # T5 scales them only when tied
    return model.eval()


def config_of(model, tied):
    "config.json as transformers 4.36 wrote it."
    c = model.config
    auto_map = {'AutoModelForSeq2SeqLM': 'modeling_chat_model.TextToTextModel'}
    own = dict(architectures=['TextToTextModel'], auto_map=auto_map, classifier_dropout=0.,
        dense_act_fn='relu', feed_forward_proj='relu', is_encoder_decoder=True,
        is_gated_act=False, layer_norm_epsilon=1e-6, model_type='t5', initializer_factor=1., torch_dtype='float32',
        transformers_version='4.36.2', use_cache=True, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    sizes = ('d_ff', 'd_kv', 'd_model', 'dropout_rate', 'num_decoder_layers', 'num_heads', 'num_layers', 'vocab_size',
             'relative_attention_max_distance', 'relative_attention_num_buckets')
    untied = {} if tied else dict(tie_word_embeddings=False)               # the default was not written
    return own | {name: getattr(c, name) for name in sizes} | untied


def publish(path, model, tok, tied=True, old=False):
    "A folder as its authors publish it, with a module of their own that leaves a mark if it is run."
    path.mkdir()
    as_json(path/'config.json', config_of(model, tied))
    as_json(path/'generation_config.json', dict(decoder_start_token_id=0, eos_token_id=1, pad_token_id=0,
        transformers_version='4.36.2'))
    mark = dict(lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
    names = dict(eos_token='[EOS]', pad_token='[PAD]', unk_token='[UNK]')
    added = {i: dict(mark, content=tok.convert_ids_to_tokens(i)) for i in range(7)}
    as_json(path/'tokenizer_config.json', dict(added_tokens_decoder=added, clean_up_tokenization_spaces=True,
        model_max_length=1000000000000000019884624838656, tokenizer_class='PreTrainedTokenizerFast', **names))
    as_json(path/'special_tokens_map.json', names)
    tok.backend_tokenizer.save(str(path/'tokenizer.json'))
    for module in ('modeling_chat_model.py', 'configuration_chat_model.py'):
        (path/module).write_text(REMOTE.format(mark=str(path/'ran')), encoding='utf-8')
    if old: torch.save(model.state_dict(), path/'pytorch_model.bin')
    else: save_file({k: v for k, v in model.state_dict().items() if 'embed_tokens' not in k
                     and (k != 'lm_head.weight' or not tied)}, path/'model.safetensors', metadata=dict(format='pt'))
    return path


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return publish(tmp_path_factory.mktemp('its')/'model', small(), TOK)

@pytest.fixture(scope='module')
def model(folder): return load_model(folder)[0]


def asked(*texts):
    "Questions as its scripts prepare them."
    rows = [TOK(text, add_special_tokens=False).input_ids + [1] for text in texts]
    batch = TOK.pad(dict(input_ids=rows), return_tensors='pt')
    return batch.input_ids, batch.attention_mask


# Opening


@pytest.mark.parametrize('old', [False, True], ids=['safetensors', 'bin'])
@pytest.mark.parametrize('tied', [True, False], ids=['tied', 'untied'])
def test_it_opens(tmp_path, tied, old):
    ours = small(tied)
    path = publish(tmp_path/'its', ours, TOK, tied, old)
    model, tok = load_model(path)
    assert type(model) is TextToTextModel and not model.training and not (path/'ran').exists()
    assert (model.lm_head.weight is model.shared.weight) == tied
    theirs = ours.state_dict()
    for name, t in model.state_dict().items(): assert torch.equal(t, theirs[name]), name
    assert tok.get_vocab() == TOK.get_vocab() and (tok.pad_token_id, tok.eos_token_id, tok.unk_token_id) == (0, 1, 6)
    ids, mask = asked('你好吗', '天地玄黄')
    with torch.no_grad():
        logits = [m(input_ids=ids, attention_mask=mask, decoder_input_ids=ids).logits for m in (model, ours)]
    assert torch.equal(*logits)
    bot = ChatBot.from_dir(path)
    assert bot.answer(['你好']) == ChatBot(ours, TOK).answer(['你好']) and type(bot.model) is TextToTextModel


def test_it_is_saved_without_a_way_to_remote_code(tmp_path, folder):
    model, tok = load_model(folder)
    save_model(model, tok, tmp_path/'again')
    config = json.loads((tmp_path/'again'/'config.json').read_text(encoding='utf-8'))
    assert 'auto_map' not in config and config['architectures'] == ['TextToTextModel']
    again, _ = load_model(tmp_path/'again')
    assert type(again) is TextToTextModel
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), model.parameters(), strict=True))


def test_an_untied_model_survives_a_round_trip(tmp_path):
    first, tok = load_model(publish(tmp_path/'its', small(False), TOK, tied=False))
    save_model(first, tok, tmp_path/'again')
    again, _ = load_model(tmp_path/'again')
    ids, mask = asked('你好')
    with torch.no_grad():
        logits = [m(input_ids=ids, attention_mask=mask, decoder_input_ids=ids).logits for m in (first, again)]
    assert torch.equal(*logits)


MARK = dict(lstrip=False, normalized=False, rstrip=False, single_word=False)
ADDED = {i: dict(MARK, content=TOK.convert_ids_to_tokens(i), special=True) for i in range(7)}
MAPS = dict(named=dict(eos_token='[EOS]', pad_token='[PAD]', unk_token='[UNK]'), nothing=None, empty={},
    dicts={f'{x}_token': dict(MARK, content=f'[{x.upper()}]') for x in ('eos', 'pad', 'unk')},
    half=dict(eos_token='[EOS]', sep_token='[SEP]'))

@pytest.mark.parametrize('tok_map', MAPS)
@pytest.mark.parametrize('tok_config', [None, {}, dict(tokenizer_class='T5Tokenizer'), dict(added_tokens_decoder=ADDED),
    dict(tokenizer_class='ChatTokenizer', auto_map=dict(AutoTokenizer=['modeling_chat_model.ChatTokenizer', None]))])
def test_its_words_are_read_as_they_are(folder, tmp_path, tok_config, tok_map):
    "Whatever tokenizer_config.json says or leaves out: tokenizer.json holds all that is needed."
    copy = tmp_path/'model'
    shutil.copytree(folder, copy)
    if tok_config is None: (copy/'tokenizer_config.json').unlink()
    else: as_json(copy/'tokenizer_config.json', tok_config)
    (copy/'special_tokens_map.json').unlink()
    if MAPS[tok_map] is not None: as_json(copy/'special_tokens_map.json', MAPS[tok_map])
    bot = ChatBot.from_dir(copy)
    assert bot.tok.get_vocab() == TOK.get_vocab() and not (copy/'ran').exists()
    assert (bot.tok.pad_token_id, bot.tok.eos_token_id, bot.tok.unk_token_id) == (0, 1, 6)
    assert bot.unknown_chars('你好甲') == '甲'
    assert bot.answer(['你好甲']) == ChatBot(small(), TOK).answer(['你好甲'])


@pytest.mark.parametrize('eos', [1, [1, 6]])
def test_a_nameless_end_still_ends_loops(tmp_path, eos):
    "The guard must know the end mark: the same answer as with a tokenizer that names it, and another without guard."
    tok = char_tok(CHARS)
    ours = toy_model(len(tok), seed=5, endless=True)
    path = publish(tmp_path/'its', ours, tok)
    as_json(path/'tokenizer_config.json', {})
    (path/'special_tokens_map.json').unlink()
    changed(path/'config.json', eos_token_id=eos)
    dec, free = (Decoding(max_new_tok=200, loop_copies=n) for n in (2, 0))
    guarded = ChatBot.from_dir(path).answer(['你好'], dec)
    assert guarded == ChatBot(ours, tok).answer(['你好'], dec) != ChatBot(ours, tok).answer(['你好'], free)


def in_shards(folder, old):
    "The weights in three files and the list of them, as large models are published."
    kind, save = ('bin', torch.save) if old else ('safetensors', save_file)
    name = 'pytorch_model.bin' if old else 'model.safetensors'
    weights = torch.load(folder/name) if old else load_file(folder/name)
    (folder/name).unlink()
    stem, places = name.split('.')[0], {}
    for n in range(3):
        file = f'{stem}-0000{n + 1}-of-00003.{kind}'
        part = {key: weights[key] for key in sorted(weights)[n::3]}
        save(part, folder/file)
        places |= dict.fromkeys(part, file)
    as_json(folder/f'{name}.index.json', dict(metadata=dict(total_size=1), weight_map=places))


@pytest.mark.parametrize('old', [False, True], ids=['safetensors', 'bin'])
@pytest.mark.parametrize('tied', [True, False], ids=['tied', 'untied'])
def test_shards_are_read(tmp_path, tied, old):
    ours = small(tied)
    path = publish(tmp_path/'its', ours, TOK, tied, old)
    in_shards(path, old)
    for dtype in (torch.float32, torch.bfloat16):
        model, _ = load_model(path, dtype)
        assert type(model) is TextToTextModel
        theirs = ours.to(dtype).state_dict()
        for name, t in model.state_dict().items(): assert torch.equal(t, theirs[name]), name
    assert load_model(path, foreign=True)[0].shared.weight.shape == ours.shared.weight.shape


@pytest.mark.parametrize('old', [False, True], ids=['safetensors', 'bin'])
@pytest.mark.parametrize('parted', [False, True], ids=['one file', 'shards'])
def test_own_answers_know_the_model_by_all_its_weights(tmp_path, old, parted):
    path = publish(tmp_path/'its', small(), TOK, old=old)
    if parted: in_shards(path, old)
    files = weight_files(path)
    held = {file.name for file in path.iterdir() if file.suffix in ('.bin', '.safetensors')}
    assert {file.name for file in files} == held and len(files) == (3 if parted else 1)
    keys = {model_key(path)}
    (path/'README.md').write_text('another card', encoding='utf-8')
    assert {model_key(path)} == keys
    for file in files:
        *head, last = file.read_bytes()
        file.write_bytes(bytes([*head, last ^ 1]))
        keys.add(model_key(path))
    assert len(keys) == 1 + len(files)


@pytest.mark.parametrize('legacy', [False, True])
def test_older_files_open(folder, tmp_path, legacy):
    "A .bin of the time before torch 1.6; safetensors without metadata."
    copy = tmp_path/'model'
    shutil.copytree(folder, copy)
    weights = load_file(copy/'model.safetensors')
    if legacy:
        (copy/'model.safetensors').unlink()
        torch.save(small().state_dict(), copy/'pytorch_model.bin', _use_new_zipfile_serialization=False)
    else: save_file(weights, copy/'model.safetensors')
    assert torch.equal(load_model(copy)[0].shared.weight, weights['shared.weight'])


def test_rows_to_spare_are_allowed(tmp_path):
    "A vocabulary rounded up."
    model = build_model(model_config('tiny', len(TOK) + 9))
    opened, tok = load_model(publish(tmp_path/'its', model, TOK))
    assert opened.config.vocab_size == len(tok) + 9


def test_base_at_full_size(tmp_path):
    "187.7 million parameters, on disk in bfloat16; half precision stays below 512 MB."
    tok = char_tok(map(chr, range(0x4e00, 0x4e00 + 20_000)))
    config = model_config('base', 29298)
    assert n_params(meta_model(config)) == 187_692_288
    with torch.device('meta'): model = T5ForConditionalGeneration(config).bfloat16()
    model = model.to_empty(device='cpu')
    model.tie_weights()
    for p in model.parameters(): p.data.uniform_(-.05, .05)
    path = publish(tmp_path/'base', model, tok)
    del model
    for dtype in (torch.bfloat16, torch.float16):
        before = resident()
        half, _ = load_model(path, dtype)
        assert type(half) is TextToTextModel and n_params(half) == 187_692_288
        assert half.get_memory_footprint() <= 512e6 and resident() - before <= 512e6
        if dtype == torch.float16: break
        ids = torch.tensor([[100, 200, 1]])
        assert half.my_generate(ids, ids*0 + 1, 3, 'greedy').shape[1] <= 4
        del half


def resident():
    "Memory of this process that no file backs, bytes."
    with open('/proc/self/status', encoding='utf-8') as f: lines = dict(line.split(':', 1) for line in f)
    return int(lines['RssAnon'].split()[0]) * 1024


# my_generate


@pytest.mark.parametrize('how', OWN)
def test_its_searches_are_its_own(model, how):
    "Against the library with the same numbers: the same draws from the same stream."
    ids, mask = asked('你好吗，天地玄黄')
    own = GenerationConfig(max_new_tokens=24, eos_token_id=1, pad_token_id=0, decoder_start_token_id=0, **OWN[how])
    for seed in range(4):
        torch.manual_seed(seed)
        torch.manual_seed(torch.randint(2**62, (1,)).item())
        want = model.generate(ids, attention_mask=mask, generation_config=own)[0].tolist()
        torch.manual_seed(seed)
        got = model.my_generate(ids, mask, 24, how)[0].tolist()
        assert got == (want[:want.index(1) + 1] if 1 in want else want)


def test_its_contrastive_search_is_that_of_transformers_4():
    seed, tied, _, _, _, want = BY_TRANSFORMERS_4[1]
    model = search_model(seed, tied)
    model.__class__ = TextToTextModel
    ids, mask = search_prompts(seed)
    out = model.my_generate(ids, mask, 20, 'contrastive').tolist()
    assert [row[1:][:len(w)] for row, w in zip(out, want)] == want
    assert all(not any(row[1 + len(w):]) and row[0] == 0 for row, w in zip(out, want))


@pytest.mark.parametrize('how', SEARCHES)
def test_a_batch_is_its_rows(model, how):
    "Padded on either side; greedy and contrastive draw nothing, so a row alone says the same."
    ids, mask = asked('你好', '天地玄黄，宇宙洪荒', '秋')
    torch.manual_seed(3)
    right = model.my_generate(ids, mask, 12, how)
    left = [row[keep.bool()] for row, keep in zip(ids, mask)]
    width = ids.shape[1]
    ids = torch.stack([torch.cat([torch.zeros(width - len(row), dtype=torch.long), row]) for row in left])
    torch.manual_seed(3)
    assert torch.equal(model.my_generate(ids, (ids > 0).long(), 12, how), right)
    assert right.shape[0] == 3 and right.shape[1] <= 13 and right.dtype == torch.long
    if how not in ('greedy', 'contrastive'): return
    for i, row in enumerate(left):
        alone = model.my_generate(row[None], torch.ones_like(row[None]), 12, how)[0]
        assert torch.equal(right[i, :len(alone)], alone) and not right[i, len(alone):].any()


def test_equal_questions_are_drawn_apart(model):
    ids, mask = asked(*['你好吗']*6)
    torch.manual_seed(0)
    assert len({tuple(row) for row in model.my_generate(ids, mask, 10, 'sampling').tolist()}) > 1


def test_the_default_is_beam_of_256_tokens(model):
    ids, mask = asked('你好')
    torch.manual_seed(1)
    default = model.my_generate(ids, mask)
    torch.manual_seed(1)
    named = dict(input_ids=ids, attention_mask=mask, max_seq_len=256, search_type='beam', streamer=None)
    assert torch.equal(default, model.my_generate(**named))


# Streamers


class Puts(BaseStreamer):
    "Remembers what it got."
    def __init__(self): self.got, self.ends = [], 0
    def put(self, value): self.got.append(value.clone())
    def end(self): self.ends += 1


@pytest.mark.parametrize('how', SEARCHES)
def test_what_a_streamer_gets_is_the_answer(model, how):
    ids, mask = asked('你好吗')
    puts = Puts()
    torch.manual_seed(2)
    out = model.my_generate(ids, mask, 16, how, puts)
    assert torch.cat([value.flatten() for value in puts.got]).tolist() == out[0].tolist() and puts.ends == 1
    assert puts.got[0].shape == (1, 1) and all(value.shape == (1,) for value in puts.got[1:])
    streamer = TextIteratorStreamer(TOK, skip_special_tokens=True, timeout=60)
    torch.manual_seed(2)
    thread = Thread(target=model.my_generate, args=(ids, mask, 16, how, streamer))
    thread.start()
    text = ''.join(streamer)
    thread.join()
    assert text == TOK.decode(out[0], skip_special_tokens=True)


def test_a_text_streamer_prints(model, capsys):
    ids, mask = asked('你好')
    out = model.my_generate(ids, mask, 8, 'greedy', TextStreamer(TOK, skip_special_tokens=True))
    assert capsys.readouterr().out == TOK.decode(out[0], skip_special_tokens=True) + '\n'
    with pytest.raises(ValueError, match='batch size 1'):
        model.my_generate(*asked('你好', '秋'), 8, 'greedy', TextStreamer(TOK))


def test_a_batch_streams_its_columns(model):
    puts = Puts()
    for how in SEARCHES:
        out = model.my_generate(*asked('你好', '秋收'), 8, how, puts)
        assert torch.equal(torch.stack([value.flatten() for value in puts.got], 1), out)
        puts.got.clear()


def test_beams_stream_before_the_search_is_over():
    "Somewhere among seeds a column comes while the search still goes on."
    early = 0
    for seed in range(8):
        model = search_model(seed)
        ids, mask = search_prompts(seed, 1)
        calls = []
        hook = model.decoder.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        columns = new_columns(model, unpadded(ids, mask), SEARCHES['beam'])
        next(columns)
        at = len(calls)
        rest = list(columns)
        hook.remove()
        early += bool(rest) and len(calls) > at
    assert early >= 1


def test_a_streamer_is_ended_even_if_writing_fails(model):
    class Full(Puts):
        def put(self, value): raise OSError('disk full')
    full = Full()
    with pytest.raises(OSError, match='disk full'): model.my_generate(*asked('你好'), 8, 'greedy', full)
    assert full.ends == 1


# What is refused


@pytest.mark.parametrize('bad', ['contrast', 'Beam', '', None, ['beam'], 3])
def test_an_unknown_search_lists_the_known(model, bad):
    with pytest.raises(ValueError, match='expected one of greedy, beam, sampling, contrastive'):
        model.my_generate(*asked('你好'), search_type=bad)


def test_bad_input_is_named(model):
    ids, mask = asked('你好', '秋')
    with pytest.raises(ValueError, match=r'input_ids is \(2, 3\) and attention_mask \(1, 3\)'):
        model.my_generate(ids, mask[:1])
    with pytest.raises(ValueError, match=r'attention_mask \(\): expected'): model.my_generate(ids, None)
    with pytest.raises(ValueError, match=r'input_ids is \(3,\)'): model.my_generate(ids[0], mask[0])
    with pytest.raises(ValueError, match='a token in each'): model.my_generate(ids, mask*0)
    with pytest.raises(ValueError, match='at least one question'): model.my_generate(ids[:0], mask[:0])
    for bad in (0, -1, 2.5, True, None):
        with pytest.raises(ValueError, match=f'max_seq_len={bad} is not valid'): model.my_generate(ids, mask, bad)


def test_manual_seed_decides():
    torch.manual_seed(4)
    a = [rng.initial_seed() for rng in seeded_rngs(5)]
    torch.manual_seed(4)
    assert [rng.initial_seed() for rng in seeded_rngs(5)] == a and len(set(a)) == 5


# Damage


class Trap:
    "Read as a pickle it would make a file."
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return os.mkdir, (self.mark,)


def halve(p): p.write_bytes(p.read_bytes()[:p.stat().st_size//2])


def with_tensor(name, change):
    def damage(folder):
        weights = load_file(folder/'model.safetensors')
        weights[name] = change(weights[name])
        if weights[name] is None: del weights[name]
        save_file(weights, folder/'model.safetensors', metadata=dict(format='pt'))
    return damage


def as_bin(value):
    def damage(folder):
        (folder/'model.safetensors').unlink()
        if isinstance(value, bytes): (folder/'pytorch_model.bin').write_bytes(value)
        else: torch.save(value(folder) if callable(value) else value, folder/'pytorch_model.bin')
    return damage


def with_config(**fields): return lambda folder: changed(folder/'config.json', **fields)
def with_file(name, how): return lambda folder: how(folder/name)


def untied_as_tied(folder):
    shutil.rmtree(folder)
    publish(folder, small(False), TOK, tied=False)
    fields = json.loads((folder/'config.json').read_text(encoding='utf-8'))
    del fields['tie_word_embeddings']
    as_json(folder/'config.json', fields)


def more_words(path): char_tok(CHARS + '甲乙丙').backend_tokenizer.save(str(path))


def endless(path): path.write_text('['*100_000, encoding='utf-8')


def without(name, *fields):
    def damage(folder):
        kept = json.loads((folder/name).read_text(encoding='utf-8'))
        as_json(folder/name, {k: v for k, v in kept.items() if k not in fields})
    return damage


INDEX = 'model.safetensors.index.json'


def shards(change=lambda folder: None):
    def damage(folder):
        in_shards(folder, False)
        change(folder)
    return damage


SECOND = 'model-00002-of-00003.safetensors'

def second(how): return shards(lambda folder: how(folder/SECOND))
def with_index(**fields): return shards(lambda folder: changed(folder/INDEX, **fields))


def forgotten(folder):
    places = json.loads((folder/INDEX).read_text(encoding='utf-8'))['weight_map']
    changed(folder/INDEX, weight_map={name: file for name, file in places.items() if '00002' not in file})


def half_a_bin(folder):
    as_bin(lambda f: small().state_dict())(folder)
    halve(folder/'pytorch_model.bin')


K = 'encoder.block.1.layer.0.SelfAttention.k.weight'
DAMAGE = {
    'no weights': (with_file('model.safetensors', Path.unlink), 'model.safetensors is missing: expected config.json'),
    'no config': (with_file('config.json', Path.unlink), 'config.json is missing'),
    'no tokenizer': (with_file('tokenizer.json', Path.unlink), 'tokenizer.json is missing'),
    'half the weights': (with_file('model.safetensors', halve), 'not a readable safetensors file'),
    'half the config': (with_file('config.json', halve), 'config.json is not readable JSON'),
    'a list for a config': (with_file('config.json', lambda p: as_json(p, [1])), 'expected an object, found list'),
    'half the tokenizer': (with_file('tokenizer.json', halve), 'tokenizer.json is not readable JSON'),
    'a tokenizer of nothing': (with_file('tokenizer.json', lambda p: as_json(p, {})), 'cannot be loaded: '),
    'a tensor gone': (with_tensor(K, lambda t: None), 'does not fit config.json: 1 tensors .*' + K),
    'a wrong shape': (with_tensor(K, lambda t: t[:3].clone()), r'another shape, such as .*\(3, 32\) for \(32, 32\)'),
    'a NaN': (with_tensor(K, lambda t: t*torch.nan), K + ' holds numbers that are not finite'),
    'an infinity': (with_tensor('shared.weight', lambda t: t/0), 'shared.weight holds numbers that are not finite'),
    'another architecture': (with_config(model_type='gpt2'), "TextToTextModel is a 't5', but model_type is 'gpt2'"),
    'no architecture': (with_config(model_type=None), "but model_type is None"),
    'other sizes': (with_config(d_model=64), 'does not fit config.json: .*another shape'),
    'a size that is none': (with_config(d_model='wide'), 'cannot be loaded: '),
    'fewer layers': (with_config(num_layers=1), 'it has 8 tensors that the model has no place for, such as enc'),
    'no start': (with_config(decoder_start_token_id=None), 'config.json has no decoder_start_token_id: expected'),
    'no word of a start': (without('config.json', 'decoder_start_token_id'),
        'config.json has no decoder_start_token_id: expected a token id'),
    'no decoder': (with_config(is_encoder_decoder=False), 'says is_encoder_decoder=false: expected true'),
    'a shard gone': (second(Path.unlink), '00002-of-00003.safetensors is missing: model.safetensors.index.json says'),
    'half a shard': (second(halve), '00002-of-00003.safetensors is not a readable safetensors file'),
    'a shard that the index forgets': (shards(forgotten), 'index.json does not fit config.json: .* are missing'),
    'an index of nothing': (with_index(weight_map={}), 'index.json: expected weight_map'),
    'no index': (with_index(weight_map=None), 'index.json: expected weight_map'),
    'an index of numbers': (with_index(weight_map={'shared.weight': 1}), 'index.json: expected weight_map'),
    'a shard elsewhere': (with_index(weight_map={'shared.weight': '../model.safetensors'}), 'a file of this folder'),
    'an index without metadata': (with_index(metadata=None), 'index.json has no metadata: expected an object'),
    'half an index': (shards(lambda f: halve(f/INDEX)), 'index.json is not readable JSON'),
    'a config without end': (with_file('config.json', endless), 'config.json is not readable JSON'),
    'more layers': (with_config(num_layers=3), 'does not fit config.json: .*encoder.block.2'),
    'untied without a table': (with_config(tie_word_embeddings=False), 'no lm_head.weight: config.json says tie_word'),
    'tied with two tables': (untied_as_tied, 'lm_head.weight is not shared.weight, though'),
    'other words': (with_file('tokenizer.json', more_words), 'tokenizer has 42 ids but the model has 39 embedding'),
    'a pickle with code': (as_bin(lambda f: {'shared.weight': Trap(str(f/'ran'))}), 'could run code'),
    'a whole model in a pickle': (as_bin(lambda f: small()), 'could run code'),
    'no pickle at all': (as_bin(b'<html>404</html>'), 'pytorch_model.bin is (refused|not a readable)'),
    'an empty file': (as_bin(b''), 'pytorch_model.bin is (refused|not a readable)'),
    'a checkpoint of training': (as_bin({'model': {}, 'step': 3}), 'is not a model: expected tensors by name'),
    'a list of tensors': (as_bin([torch.ones(2)]), 'is not a model: expected tensors by name, found list'),
    'a bin without tensors': (as_bin({}), 'does not fit config.json: '),
    'half a bin': (half_a_bin, 'pytorch_model.bin is not a readable checkpoint')}


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=['whole', 'half'])
@pytest.mark.parametrize('name', DAMAGE)
def test_a_damaged_folder_is_one_clear_sentence(folder, tmp_path, name, dtype):
    damage, text = DAMAGE[name]
    copy = tmp_path/'model'
    shutil.copytree(folder, copy)
    damage(copy)
    with pytest.raises((ValueError, FileNotFoundError), match=text) as e: ChatBot.from_dir(copy, dtype)
    assert '\n' not in str(e.value) and str(e.value).isascii() and len(str(e.value)) < 400
    try: load_model(copy, foreign=True) # asks less of a folder, but runs no code either
    except (ValueError, FileNotFoundError) as e: assert '\n' not in str(e)
    assert not (copy/'ran').exists()


def test_its_code_never_runs_whatever_it_is_named_for(folder, tmp_path, monkeypatch):
    "Also where the library would ask, or where the class is none of ours."
    monkeypatch.setattr('builtins.input', lambda *_: 'y')
    copy = tmp_path/'model'
    shutil.copytree(folder, copy)
    remote = {name: f'modeling_chat_model.{name}' for name in ('AutoConfig', 'AutoModel', 'AutoModelForSeq2SeqLM')}
    for fields in (dict(auto_map=remote), dict(auto_map=remote, architectures=['SomethingElse']),
                   dict(auto_map=remote, architectures=None, model_type='chatlm')):
        changed(copy/'config.json', **fields)
        for foreign, dtype in product((False, True), (torch.float32, torch.bfloat16)):
            try: load_model(copy, dtype, foreign=foreign)
            except ValueError as e: assert 'chatlm' in str(e) or 'custom code' in str(e), e
    changed(copy/'tokenizer_config.json', auto_map=dict(AutoTokenizer=['modeling_chat_model.Tok', None]))
    changed(copy/'config.json', model_type='t5', architectures=['TextToTextModel'])
    load_model(copy)
    assert not (copy/'ran').exists()


def test_the_terminal_takes_it(folder):
    "One argument: the folder."
    from scclm.terminal import open_bot
    assert type(open_bot(ChatCfg(model=str(folder), strategy='contrastive', device='cpu')).model) is TextToTextModel


@pytest.mark.parametrize('search_type', ['greedy', 'contrastive'])
def test_who_draws_nothing_leaves_the_generator_alone(search_type):
    model, (ids, mask) = TextToTextModel(search_model(1).config), search_prompts(1)
    before = torch.get_rng_state()
    model.eval().my_generate(ids, mask, 5, search_type)
    assert torch.equal(torch.get_rng_state(), before)
