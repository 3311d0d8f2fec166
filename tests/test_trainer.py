"The loop against a plain PyTorch loop, and everything that can interrupt it."
import math
import os
import re
import shutil
import signal
import sys
import time
from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from trainer_toys import (CFG, ROOT, at_step, finished, model, same, scclm_command,
    stream)

from scclm.dataset import collate, encode_pairs, read_pairs
from scclm.fast_dropout import fast_dropout_
from scclm.runlog import Progress, read_log
from scclm.trainer import CURVES, TrainCfg, append_log, fit, lr_factor, seq2seq_loss, start_run
from scclm.trainer_options import phase_table

pytestmark = pytest.mark.usefixtures('one_thread')


# ---- the loop

def test_equals_a_plain_loop(home, tok, tmp_path):
    "Independent truth: the library's own mean loss over the batches of a step, AdamW and clipping written out."
    ours = model(tok)
    fit(ours, stream(home, tok), CFG, tmp_path, progress=False)
    plain, batches = model(tok), iter(stream(home, tok))
    opt = torch.optim.AdamW(plain.parameters(), lr=1., betas=(0.9, 0.98), weight_decay=0.)
    plain.train()
    for step in range(CFG.steps):
        group = list(islice(batches, CFG.accum))
        n = [int((b['labels'] != -100).sum()) for b in group]
        loss = sum(plain(**b).loss * k for b, k in zip(group, n)) / sum(n)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.)
        opt.param_groups[0]['lr'] = CFG.lr * (1.0 if step == 0 else 1 + (0.05 - 1) * step / (CFG.steps - 1))
        opt.step()
        opt.zero_grad()
    for (name, a), b in zip(ours.named_parameters(), plain.parameters()): assert torch.allclose(a, b, atol=2e-5), name
    assert read_log(tmp_path/'log.jsonl')[-1]['loss'] == pytest.approx(loss.item(), rel=1e-4)

def last_gradients(m):
    "name -> the gradient as the last backward pass left it, which is the sum over all passes; filled while `m` trains."
    seen = {}
    def watch(name, p):
        def keep(p): seen[name] = p.grad.clone()
        p.register_post_accumulate_grad_hook(keep)
    for name, p in m.named_parameters(): watch(name, p)
    return seen

def one_big_batch(group):
    "The rows of all batches, padded together: nothing of ours is used."
    def rows(key, fill):
        flat = [row for b in group for row in b[key]]
        return pad_sequence(flat, batch_first=True, padding_value=fill)
    return dict(input_ids=rows('input_ids', 0), attention_mask=rows('attention_mask', 0), labels=rows('labels', -100))

class Batches(list):
    "A loader of given batches."
    def state_dict(self): return {}

@pytest.mark.parametrize('sizes', [(7,), (1, 9, 3), (2, 1, 12, 5)])
def test_accumulated_gradients_are_those_of_one_big_batch(home, tok, tmp_path, sizes):
    "Batches of different sizes: the mean over all their tokens, not the mean of the means."
    rows = iter(encode_pairs(*map(list, zip(*read_pairs(home/'data/train.parquet', sum(sizes)))), tok, 64))
    group = Batches(collate(list(islice(rows, n))) for n in sizes)
    ours, plain = model(tok), model(tok).train()
    got = last_gradients(ours)
    fit(ours, group, replace(CFG, steps=1, accum=len(sizes), clip=0.), tmp_path, progress=False)
    plain(**one_big_batch(group)).loss.backward()
    want = {name: p.grad.clone() for name, p in plain.named_parameters()}
    assert got.keys() == want.keys()
    def equal(a): return all(torch.allclose(a[name], want[name], rtol=1e-3, atol=1e-6) for name in want)
    assert equal(got)
    plain.zero_grad()
    for b in group: (plain(**b).loss / len(sizes)).backward()
    naive = {name: p.grad for name, p in plain.named_parameters()}
    assert equal(naive) == (len(sizes) == 1), 'the mean of the means is something else'

def test_one_bad_gradient_is_skipped_and_many_stop_the_run(home, tok, tmp_path):
    calls, bad = [0], {5}
    def loss(m, batch):
        calls[0] += 1
        return seq2seq_loss(m, batch) * (math.nan if calls[0] in bad else 1.)
    run = fit(model(tok), stream(home, tok), CFG, tmp_path/'one', loss_fn=loss, progress=False)
    assert run.skipped == 1 and run.done and all(torch.isfinite(p).all() for p in run.model.parameters())
    calls[0], bad = 0, set(range(11, 1000))
    says = r'4 gradients in a row are not finite; last good checkpoint: .*step-00000008'
    with pytest.raises(RuntimeError, match=says):
        fit(model(tok), stream(home, tok), replace(CFG, max_skipped=3), tmp_path/'many', loss_fn=loss, progress=False)

def test_schedule_touches_its_ends():
    cfg = TrainCfg(steps=100, warmup=0.1, final_lr=0.05)
    assert [round(lr_factor(s, cfg), 3) for s in (0, 9, 10, 99)] == [round(1/11, 3), round(10/11, 3), 1., 0.05]
    assert lr_factor(99, replace(cfg, schedule='cosine')) == pytest.approx(0.05)
    assert all(lr_factor(s, replace(cfg, schedule='constant')) == 1. for s in range(10, 100))

class Count:
    "A callback with a state, which ends the run after step 7."
    def __init__(self): self.n = 0
    def __call__(self, run):
        self.n += 1
        if run.step == 7: run.end('enough')
    def state_dict(self): return dict(n=self.n)
    def load_state_dict(self, state): self.n = state['n']

def square(t, final): return (1 - t) ** 2

def test_own_schedule_stop_and_state_of_callbacks(home, tok, tmp_path, monkeypatch):
    "A curve of one's own is followed; a run that a callback ended stays ended; a callback's state comes back."
    with monkeypatch.context() as m:
        m.setitem(CURVES, 'square', square)
        cfg = replace(CFG, schedule='square', warmup=0.)
        run = fit(model(tok), stream(home, tok), cfg, tmp_path, callbacks=[Count()], progress=False)
        lrs = [e['lr'] for e in read_log(tmp_path/'log.jsonl')]
        assert lrs == pytest.approx([cfg.lr * (1 - s / 11) ** 2 for s in range(7)])
        assert (run.step, run.done, run.ended, run.stopped) == (7, True, 'enough', None)
        again = Count()
        run = fit(model(tok), stream(home, tok), cfg, tmp_path, callbacks=[again], progress=False)
        assert (run.step, again.n) == (7, 7)
    with pytest.raises(ValueError, match="schedule='square': expected one of linear, cosine, constant, onecycle"):
        replace(CFG, schedule='square')

def test_between_two_steps_the_order_is_log_evaluate_callbacks_save(home, tok, tmp_path):
    "What a callback sees: the figures of this step, and no checkpoint of it yet."
    seen = []
    def look(run): seen.append((run.step, run.entry['step'], 'loss_valid' in run.entry, run.saved))
    cfg = replace(CFG, eval_every=4)
    run = fit(model(tok), stream(home, tok), cfg, tmp_path, eval_fn=lambda m: dict(loss_valid=1.), callbacks=[look],
              progress=False)
    assert seen == [(s, s, s % 4 == 0, (s - 1)//4*4 or -1) for s in range(1, 13)]
    assert run.saved == 12

def test_activation_checkpointing_changes_no_bit_and_may_change_at_a_resume(home, tok, tmp_path):
    whole, part = model(tok, dropout_rate=.1), model(tok, dropout_rate=.1)
    fit(whole, stream(home, tok), CFG, tmp_path/'whole', progress=False)
    fit(part, stream(home, tok), CFG, tmp_path/'part', callbacks=[at_step(5, signal.SIGTERM)], progress=False)
    fit(part, stream(home, tok), replace(CFG, act_ckpt=True), tmp_path/'part', progress=False)
    assert same(whole, part) and not part.is_gradient_checkpointing

def test_phases_cover_the_session(home, tok, tmp_path):
    "Their sum is the time of the loop: nothing that takes time is left out."
    def slow(run): time.sleep(.02)
    began = time.perf_counter()
    run = fit(model(tok), stream(home, tok), CFG, tmp_path, eval_fn=lambda m: dict(loss_valid=1.), callbacks=[slow],
              progress=False)
    all_in = time.perf_counter() - began
    table = phase_table(run)
    assert set(table.index) == {'data', 'forward', 'backward', 'optimiser', 'log', 'eval', 'callbacks', 'save'}
    assert .24 < table.seconds['callbacks'] and table.seconds.sum() < all_in
    assert table.share.sum() == pytest.approx(1)

def test_live_plot_waits_for_the_first_log_line(home, tok, tmp_path):
    "A slow machine is due to draw before anything is logged: then there is no log to read yet."
    class Display:
        shown = []
        def update(self, html): self.shown.append(html.data)
    run = start_run(model(tok), stream(home, tok), CFG, tmp_path)
    progress = Progress(run, show=False, every=0.)
    progress.handle = Display()
    progress()
    assert Display.shown == []
    append_log(run, dict(step=1, loss=2.))
    progress()
    assert len(Display.shown) == 1 and '<img' in Display.shown[0]

# ---- fast dropout

@pytest.mark.parametrize('shape', ['padded', 'full', 'blocks'])
def test_attention_with_masks_has_the_gradients_of_sdpa(tok, shape):
    """A chance so small that nothing is dropped: what is left is attention, whatever the mask. Torch's own says what
    its gradients are."""
    g = torch.Generator().manual_seed(0)
    ids, labels = torch.randint(7, len(tok), (3, 9), generator=g), torch.randint(7, len(tok), (3, 5), generator=g)
    mask = torch.ones(3, 9, dtype=torch.long)
    if shape == 'padded': mask[0, 6:] = 0
    if shape == 'blocks': # as in packing
        together = (torch.arange(9)[:, None] < 4) == (torch.arange(9) < 4)
        mask = torch.where(together, 0., torch.finfo(torch.float32).min).expand(3, 1, 9, 9)
    def grads(m, bf16=False):
        with torch.autocast('cpu', torch.bfloat16, enabled=bf16):
            if shape == 'blocks': out = m.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            else: out = m(input_ids=ids, attention_mask=mask, labels=labels).logits
        (out*torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        return torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None])
    def fast():
        m = fast_dropout_(model(tok)).train()
        assert m.config._attn_implementation == 'bit_attention'
        for layer in m.modules():
            if hasattr(layer, 'relative_attention_num_buckets'): layer.dropout = 2**-16
        return m
    torch.manual_seed(0)
    before, truth = torch.get_rng_state(), grads(model(tok).train())
    def error(x): return (x - truth).norm()/truth.norm()
    torch.set_rng_state(before)
    assert error(grads(fast())) < 1e-4 and not torch.equal(before, torch.get_rng_state()) # masks were drawn
    in_bf16 = error(grads(model(tok).train(), bf16=True))
    assert error(grads(fast(), bf16=True)) < .1 > in_bf16 # a handful of ReLUs on the other side, in either
    assert error(grads(fast().bfloat16())) < .1

# ---- scores that `eval_fn` is made of



# ---- the command line and the README

@pytest.mark.parametrize('args, says', [
    (['sft'], 'pretrain/model is missing: run nbs/05_pretrain.ipynb or `scclm pretrain` first'),
    (['chat'], 'scclm sft'),
    (['pretrain', '--files', 'nothing.parquet'], 'nothing.parquet'),
    (['pretrain', '--lr', '-1'], 'lr=-1.0: expected > 0'),
    (['pretrain', '--optimizer', 'sgd'], "optimizer='sgd': expected one of adamw"),
    (['tokenizer', '--files', 'nothing.parquet'], 'nothing.parquet')])
def test_user_errors_are_one_sentence(course_runs, args, says):
    p = finished(**scclm_command(course_runs, *args), timeout=120)
    err = p.stderr
    assert p.returncode == 2 and 'Traceback' not in p.stdout + err, err
    assert says in err.replace(os.sep, '/'), err
    assert len(err.strip().splitlines()) == 1 or 'Error parsing' in err, err # an option's value is answered in a box

def test_unknown_scale_and_missing_data(tmp_path):
    p = finished([sys.executable, '-m', 'scclm.cli', 'pretrain'], os.environ | dict(SCCLM_SCALE='huge'), timeout=120)
    assert p.returncode == 2 and "SCCLM_SCALE='huge' is not known: expected one of tiny, small, mini, base" in p.stderr
    for stage, needs in [('tokenizer', 'scclm clean'), ('pretrain', 'scclm tokenizer')]:
        p = finished(**scclm_command(tmp_path/'empty', stage), timeout=120)
        assert p.returncode == 2 and needs in p.stderr, p.stderr

@pytest.mark.parametrize('readme', ['README.md', 'README.en.md'])
def test_the_readme_trains(home, tmp_path, readme):
    "The example as printed, with fewer steps and a smaller model, in a folder that holds what it names."
    blocks = re.findall(r'```python\n(.*?)```', (ROOT/readme).read_text(encoding='utf-8'), re.S)
    code, = [b for b in blocks if 'fit(' in b]
    shutil.copytree(home/'tokenizer', tmp_path/'runs/tiny/tokenizer')
    shutil.copy(home/'data/train.parquet', tmp_path/'mine.parquet')
    for a, b in (("'mini'", "'tiny'"), ('steps=2000', 'steps=3'), ('budget_tok=4096', 'budget_tok=512')):
        assert a in code
        code = code.replace(a, b)
    env = os.environ | dict(SCCLM_RUNS=str(tmp_path/'runs'), SCCLM_SCALE='tiny')
    p = finished([sys.executable, '-c', code], env, cwd=tmp_path)
    assert p.returncode == 0, p.stderr
    assert (tmp_path/'runs/mine/model/config.json').exists()
