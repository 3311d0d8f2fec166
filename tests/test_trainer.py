"The loop against a plain PyTorch loop, and everything that can interrupt it."
import importlib.util, math, os, signal, subprocess, sys, time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from scclm.dataset import PairStream, encode_pairs
from scclm.model import build_model, model_config
from scclm.pretrain import bits_per_char, read_pairs
from scclm.tokenizer import load_tokenizer
from scclm.trainer import CURVES, Progress, TrainCfg, append_log, bit_dropout_, fit, greedy_answers, lr_factor, named_weights, phase_table, read_log, seq2seq_loss, start

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location('kill', ROOT/'benchmarks'/'kill.py')
kill = importlib.util.module_from_spec(spec); spec.loader.exec_module(kill)

CFG = TrainCfg(steps=12, accum=2, lr=1e-3, precision='fp32', log_every=1, save_every=4, seed=1)

torch.set_num_threads(1) # small models: two threads would only wait for each other

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp('toy')
    kill.prepare(home)
    return home

@pytest.fixture
def tok(home): return load_tokenizer(home/'tokenizer')

def model(tok, **kw): return build_model(model_config('tiny', len(tok), **dict(d_model=32, num_heads=2, d_ff=64, dropout_rate=0.) | kw), seed=1)
def stream(home, tok, **kw): return PairStream([home/'data/train.parquet'], tok, budget_tok=256, max_len=64, seed=1, index_dir=home/'lengths', **kw)
def same(a, b): return all(torch.equal(x, y) for x, y in zip(named_weights(a).values(), named_weights(b).values()))

def test_equals_a_plain_loop(home, tok, tmp_path):
    "Independent truth: the library's own mean loss over one padded batch per step, torch's AdamW and clipping, written out."
    ours = model(tok); fit(ours, stream(home, tok), CFG, tmp_path, progress=False)
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
        opt.step(); opt.zero_grad()
    for (name, a), b in zip(ours.named_parameters(), plain.parameters()): assert torch.allclose(a, b, atol=2e-5), name
    assert read_log(tmp_path/'log.jsonl')[-1]['loss'] == pytest.approx(loss.item(), rel=1e-4)

@pytest.mark.parametrize('shape', ['padded', 'full', 'blocks'])
def test_attention_with_coins_has_the_gradients_of_sdpa(tok, shape):
    "A chance so small that no coin falls on zero: what is left is attention, whatever the mask. Torch's own says what its gradients are."
    g = torch.Generator().manual_seed(0)
    ids, labels = torch.randint(7, len(tok), (3, 9), generator=g), torch.randint(7, len(tok), (3, 5), generator=g)
    mask = torch.ones(3, 9, dtype=torch.long)
    if shape == 'padded': mask[0, 6:] = 0
    if shape == 'blocks': mask = torch.where((torch.arange(9)[:, None] < 4) == (torch.arange(9) < 4), 0., torch.finfo(torch.float32).min).expand(3, 1, 9, 9) # as in packing
    def grads(m, bf16=False):
        with torch.autocast('cpu', torch.bfloat16, enabled=bf16):
            out = m.encoder(input_ids=ids, attention_mask=mask).last_hidden_state if shape == 'blocks' else m(input_ids=ids, attention_mask=mask, labels=labels).logits
        (out*torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        return torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None])
    def coined():
        m = bit_dropout_(model(tok)).train()
        assert m.config._attn_implementation == 'bit_attention'
        for layer in m.modules():
            if hasattr(layer, 'relative_attention_num_buckets'): layer.dropout = 2**-16
        return m
    torch.manual_seed(0)
    before, truth = torch.get_rng_state(), grads(model(tok).train())
    def error(x): return (x - truth).norm()/truth.norm()
    torch.set_rng_state(before)
    assert error(grads(coined())) < 1e-4 and not torch.equal(before, torch.get_rng_state()) # coins were drawn
    assert error(grads(coined(), bf16=True)) < .1 > error(grads(model(tok).train(), bf16=True)) # a handful of ReLUs on the other side, in either
    assert error(grads(coined().bfloat16())) < .1

def test_live_plot_waits_for_the_first_log_line(home, tok, tmp_path):
    "A slow machine is due to draw before anything is logged: then there is no log to read yet."
    class Display:
        shown = []
        def update(self, html): self.shown.append(html.data)
    run = start(model(tok), stream(home, tok), CFG, tmp_path)
    progress = Progress(run, show=False, every=0.)
    progress.handle = Display()
    progress()
    assert Display.shown == []
    append_log(run, dict(step=1, loss=2.)); progress()
    assert len(Display.shown) == 1 and '<img' in Display.shown[0]

def test_schedule_touches_its_ends():
    cfg = TrainCfg(steps=100, warmup=0.1, final_lr=0.05)
    assert [round(lr_factor(s, cfg), 3) for s in (0, 9, 10, 99)] == [round(1/11, 3), round(10/11, 3), 1., 0.05]
    assert lr_factor(99, replace(cfg, schedule='cosine')) == pytest.approx(0.05)
    assert all(lr_factor(s, replace(cfg, schedule='constant')) == 1. for s in range(10, 100))

def test_one_bad_gradient_is_skipped_and_many_stop_the_run(home, tok, tmp_path):
    calls = [0]
    def loss(m, batch):
        calls[0] += 1
        return seq2seq_loss(m, batch) * (math.nan if calls[0] in bad else 1.)
    bad = {5}
    run = fit(model(tok), stream(home, tok), CFG, tmp_path/'one', loss_fn=loss, progress=False)
    assert run.skipped == 1 and run.done and all(torch.isfinite(p).all() for p in run.model.parameters())
    calls[0], bad = 0, set(range(11, 1000))
    with pytest.raises(RuntimeError, match=r'4 gradients in a row are not finite; last good checkpoint: .*step-00000008'):
        fit(model(tok), stream(home, tok), replace(CFG, max_skipped=3), tmp_path/'many', loss_fn=loss, progress=False)

def test_bits_per_char_by_hand(home, tok):
    pairs, m = read_pairs(home/'data/valid.parquet', 12), model(tok).eval()
    nats = 0.
    for p, r in pairs:
        (ids, labels), = encode_pairs([p], [r], tok, 64)
        logp = m(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).logits.log_softmax(-1)[0]
        nats -= sum(logp[t, i].item() for t, i in enumerate(labels))
    assert bits_per_char(m, tok, pairs, 64) == pytest.approx(nats / math.log(2) / sum(len(r) + 1 for _, r in pairs), rel=1e-4)

def test_greedy_answers_equal_generate_one_by_one(home, tok):
    m, prompts = model(tok).eval(), [p for p, _ in read_pairs(home/'data/valid.parquet', 8)] + ['短']
    def alone(p): return tok.decode(m.generate(torch.tensor([tok(p, add_special_tokens=False).input_ids + [1]]), max_new_tokens=12)[0], skip_special_tokens=True)
    assert greedy_answers(m, tok, prompts, max_new_tok=12, batch_size=4) == [alone(p) for p in prompts]

@pytest.fixture
def course_runs(home, tmp_path):
    "A runs folder with data and tokenizer, as the command line expects it."
    import shutil
    for d in ('data', 'tokenizer'): shutil.copytree(home/d, tmp_path/'runs'/'tiny'/d)
    shutil.copy(home/'data/valid.parquet', tmp_path/'runs/tiny/data/test.parquet')
    return tmp_path/'runs'

def scclm(runs, *args, **kw):
    return subprocess.Popen([sys.executable, '-m', 'scclm.cli', *args], env={**os.environ, 'SCCLM_RUNS': str(runs), 'SCCLM_SCALE': 'tiny', 'OMP_NUM_THREADS': '1'},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)

@pytest.mark.parametrize('args, says', [
    (['sft'], 'pretrain/model is missing: run nbs/05_pretrain.ipynb or `scclm pretrain` first'),
    (['chat'], 'scclm sft'),
    (['pretrain', '--files', 'nothing.parquet'], 'nothing.parquet'),
    (['pretrain', '--lr', '-1'], 'lr=-1.0: expected > 0'),
    (['pretrain', '--optimizer', 'sgd'], "optimizer='sgd': expected one of adamw"),
    (['tokenizer', '--files', 'nothing.parquet'], 'nothing.parquet')])
def test_user_errors_are_one_sentence(course_runs, args, says):
    out, err = (p := scclm(course_runs, *args)).communicate(timeout=120)
    assert p.returncode == 2 and 'Traceback' not in out + err, err
    assert says in err.replace(os.sep, '/'), err
    assert len(err.strip().splitlines()) == 1 or 'Error parsing' in err, err   # an option's value is answered in a small box

def test_unknown_scale_and_missing_data(tmp_path):
    p = subprocess.run([sys.executable, '-m', 'scclm.cli', 'pretrain'], env={**os.environ, 'SCCLM_SCALE': 'huge'}, capture_output=True, text=True)
    assert p.returncode == 2 and "SCCLM_SCALE='huge' is not known: expected one of tiny, mini, base" in p.stderr
    for stage, needs in [('tokenizer', 'scclm clean'), ('pretrain', 'scclm tokenizer')]:
        out, err = (p := scclm(tmp_path/'empty', stage)).communicate(timeout=120)
        assert p.returncode == 2 and needs in err, err

@pytest.mark.parametrize('readme', ['README.md', 'README.en.md'])
def test_the_readme_trains(home, tmp_path, readme):
    "The example as printed, with fewer steps and a smaller model, in a folder that holds what it names."
    import re, shutil
    code, = [b for b in re.findall(r'```python\n(.*?)```', (ROOT/readme).read_text(encoding='utf-8'), re.S) if 'fit(' in b]
    shutil.copytree(home/'tokenizer', tmp_path/'runs/tiny/tokenizer'); shutil.copy(home/'data/train.parquet', tmp_path/'mine.parquet')
    for a, b in (("'mini'", "'tiny'"), ('steps=2000', 'steps=3'), ('budget_tok=4096', 'budget_tok=512')):
        assert a in code; code = code.replace(a, b)
    subprocess.run([sys.executable, '-c', code], cwd=tmp_path, check=True, env=os.environ | dict(OMP_NUM_THREADS='1', SCCLM_RUNS=str(tmp_path/'runs'), SCCLM_SCALE='tiny'))
    assert (tmp_path/'runs/mine/model/config.json').exists()

def test_own_schedule_stop_and_state_of_callbacks(home, tok, tmp_path):
    "A curve of one's own is followed; a run that a callback ended stays ended; the state of a callback comes back from the checkpoint."
    CURVES['square'] = lambda t, final: (1 - t) ** 2
    class Count:
        def __init__(self): self.n = 0
        def __call__(self, run): self.n += 1; run.step == 7 and run.end('enough')
        def state_dict(self): return dict(n=self.n)
        def load_state_dict(self, state): self.n = state['n']
    try:
        cfg, count = replace(CFG, schedule='square', warmup=0.), Count()
        run = fit(model(tok), stream(home, tok), cfg, tmp_path, callbacks=[count], progress=False)
        lrs = [e['lr'] for e in read_log(tmp_path/'log.jsonl')]
        assert lrs == pytest.approx([cfg.lr * (1 - s / 11) ** 2 for s in range(7)]) and (run.step, run.done, run.ended, run.stopped) == (7, True, 'enough', None)
        again = Count()
        assert fit(model(tok), stream(home, tok), cfg, tmp_path, callbacks=[again], progress=False).step == 7 and again.n == 7
    finally: del CURVES['square']
    with pytest.raises(ValueError, match="schedule='square': expected one of linear, cosine, constant, onecycle"): replace(CFG, schedule='square')

def test_activation_checkpointing_changes_no_bit_and_may_change_at_a_resume(home, tok, tmp_path):
    whole, part = model(tok, dropout_rate=.1), model(tok, dropout_rate=.1)
    fit(whole, stream(home, tok), CFG, tmp_path/'whole', progress=False)
    fit(part, stream(home, tok), CFG, tmp_path/'part', callbacks=[lambda run: run.step == 5 and signal.raise_signal(signal.SIGTERM)], progress=False)
    fit(part, stream(home, tok), replace(CFG, act_ckpt=True), tmp_path/'part', progress=False)
    assert same(whole, part) and not part.is_gradient_checkpointing

def test_phases_cover_the_session(home, tok, tmp_path):
    "Their sum is the time of the loop: nothing that takes time is left out."
    began = time.perf_counter()
    run = fit(model(tok), stream(home, tok), CFG, tmp_path, eval_fn=lambda m: dict(loss_valid=1.), callbacks=[lambda run: time.sleep(.02)], progress=False)
    all_in = time.perf_counter() - began
    table = phase_table(run)
    assert set(table.index) == {'data', 'forward', 'backward', 'optimiser', 'log', 'eval', 'callbacks', 'save'}
    assert .24 < table.seconds['callbacks'] and table.seconds.sum() < all_in and table.share.sum() == pytest.approx(1)
