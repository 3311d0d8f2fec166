"Small random models and tokenizers that the chat tests talk to."
import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

SPECIALS = ['[PAD]', '[EOS]', '[SEP]', '[BOS]', '[CLS]', '[MASK]', '[UNK]']
CHARS = '天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏你好是谁吗？。，'
_RUN = """
import json, sys
from scclm.terminal import ChatCfg, chat_terminal
print('answered', chat_terminal(ChatCfg(**json.loads(sys.argv[1]))), file=sys.stderr)
"""


def chat_command(model:Path, **cfg)->list[str]:
    "A process that runs the terminal chat with this model."
    return [sys.executable, '-c', _RUN, json.dumps(dict(cfg, model=str(model)))]


def byte_tok()->PreTrainedTokenizerFast:
    "A byte-level tokenizer without merges: every Chinese character takes three tokens, an emoji four."
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({t: i for i, t in enumerate(SPECIALS + letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return _wrap(core)


def char_tok(chars:str)->PreTrainedTokenizerFast:
    "One token per character."
    core = Tokenizer(models.BPE({t: i for i, t in enumerate(SPECIALS + sorted(set(chars)))}, [], unk_token='[UNK]'))
    core.decoder = decoders.Fuse()
    return _wrap(core)


def word_tok(chars:str, words:list[str])->PreTrainedTokenizerFast:
    "One token per character and per word; the words before others are built first, from their left end on."
    vocab, merges = SPECIALS + sorted(set(chars) | set(''.join(words))), []
    for word in words:
        for n in range(1, len(word)):
            vocab.append(word[:n + 1])
            merges.append((word[:n], word[n]))
    ids = {t: i for i, t in enumerate(dict.fromkeys(vocab))}
    core = Tokenizer(models.BPE(ids, list(dict.fromkeys(merges)), unk_token='[UNK]'))
    core.decoder = decoders.Fuse()
    return _wrap(core)


def _wrap(core:Tokenizer)->PreTrainedTokenizerFast:
    "The library's tokenizer around it, with the special tokens named."
    names = {f'{mark[1:-1].lower()}_token': mark for mark in SPECIALS}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def toy_model(vocab:int, seed:int=0, endless:bool=False, spread:float=1.)->T5ForConditionalGeneration:
    """A random T5. `endless`: special tokens have logit 0, so the largest of the others always wins;
    `spread` scales the logits."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(T5Config(vocab_size=vocab, d_model=32, d_kv=8, d_ff=64, num_layers=2,
            num_decoder_layers=2, num_heads=4, dropout_rate=0., decoder_start_token_id=0, pad_token_id=0,
            eos_token_id=1, tie_word_embeddings=True))
        for p in model.decoder.parameters():
            if p.ndim == 2: torch.nn.init.normal_(p, std=.3)
    model.shared.weight.data.normal_(generator=torch.Generator().manual_seed(seed)).mul_(spread)
    if endless: model.shared.weight.data[:len(SPECIALS)] = 0
    return model.eval()


def said_alone(model:T5ForConditionalGeneration, tok:PreTrainedTokenizerFast, prompt:str, most:int=64)->str:
    "What the library's own `generate` answers to one prompt: one token a character, then the end mark."
    ids = [*map(tok.get_vocab().get, prompt), 1]
    out = model.generate(torch.tensor([ids]), max_new_tokens=most, do_sample=False, num_beams=1)
    return tok.decode(out[0], skip_special_tokens=True)


def save_toy(path:Path, tok:PreTrainedTokenizerFast, model:T5ForConditionalGeneration)->Path:
    "A model folder as `ChatBot.from_dir` opens it."
    model.save_pretrained(path)
    tok.save_pretrained(path)
    return path


def search_model(seed:int, tied:bool=True, vocab:int=20)->T5ForConditionalGeneration:
    "A small T5 whose every number comes from `seed`, whatever version of transformers builds it."
    model = T5ForConditionalGeneration(T5Config(vocab_size=vocab, d_model=16, d_kv=8, d_ff=32, num_layers=2,
        num_decoder_layers=2, num_heads=2, dropout_rate=0., decoder_start_token_id=0, tie_word_embeddings=tied))
    if not tied: model.lm_head.weight = torch.nn.Parameter(torch.zeros(vocab, 16))
    rng = torch.Generator().manual_seed(seed)
    for name, p in sorted(model.named_parameters()):
        if p.ndim == 2: p.data = torch.randn(p.shape, generator=rng) * (1. if name == 'shared.weight' else .3)
    return model.eval()


def search_prompts(seed:int, n:int=3, vocab:int=20)->tuple[torch.Tensor, torch.Tensor]:
    "Questions of different lengths, padded, and their mask."
    rng = torch.Generator().manual_seed(seed)
    rows = [torch.randint(2, vocab, (2 + 3*i,), generator=rng).tolist() + [1] for i in range(n)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0]*(width - len(row)) for row in rows])
    return ids, (ids > 0).long()
