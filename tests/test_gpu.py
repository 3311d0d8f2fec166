"What only a GPU can show; skipped without one. Training there against a CPU, a resume, memory that base gets by with."
import signal
from dataclasses import replace

import pytest
import torch
from trainer_toys import CFG, at_step, load_benchmark, model, same, stream

from scclm.dataset import collate
from scclm.model import build_model, model_config
from scclm.planner import ProbeCfg, train_briefly
from scclm.trainer import fit, seq2seq_loss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')


@pytest.fixture(scope='module')
def gpu(): return load_benchmark('gpu')


def toy_batch(gpu, n:int=12): return gpu.make_pairs(gpu.lengths(n, 40), 200)

def on_gpu(batch:dict)->dict: return {k: v.cuda() for k, v in batch.items()}


def test_loss_and_gradients_are_those_of_the_cpu(gpu):
    batch, found = collate(toy_batch(gpu)), []
    for place in ('cpu', 'cuda'):
        m = build_model(model_config('tiny', 200, dropout_rate=0.), seed=0).to(place)
        loss = seq2seq_loss(m, {k: v.to(place) for k, v in batch.items()})
        loss.backward()
        found.append((loss.item(), {n: p.grad.cpu() for n, p in m.named_parameters()}))
    (loss, grads), (other, others) = found
    print(f'loss {loss:.6f} on the CPU, relative difference {abs(other/loss - 1):.1e}')
    assert other == pytest.approx(loss, rel=1e-5)
    for n, g in grads.items(): assert torch.allclose(g, others[n], rtol=1e-3, atol=1e-3*g.abs().max().item()), n


def test_packed_rows_give_the_loss_of_the_pairs_in_bf16(gpu):
    m, pairs = build_model(model_config('tiny', 200, dropout_rate=0.), seed=0).cuda(), toy_batch(gpu)
    with torch.no_grad(), torch.autocast('cuda', torch.bfloat16):
        alone = seq2seq_loss(m, on_gpu(collate(pairs))).item()
        assert gpu.packed_loss(m, on_gpu(gpu.packed(pairs, 64))).item() == pytest.approx(alone, rel=1e-2)
        assert gpu.padded_loss(m, on_gpu(collate(pairs))).item() == pytest.approx(alone, rel=1e-3)


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_a_resumed_run_is_the_uninterrupted_one(home, tok, tmp_path, precision):
    cfg, ends = replace(CFG, precision=precision), []
    for name, stops in dict(whole=[], again=[], resumed=[at_step(6, signal.SIGINT)]).items():
        for callbacks in (stops, []) if stops else ([],):
            run = fit(model(tok, dropout_rate=.1), stream(home, tok), cfg, tmp_path/name, callbacks=callbacks,
                      progress=False)
            assert run.step == (6 if callbacks else cfg.steps) and run.acc.device.type == 'cuda'
        ends.append(run.acc.unwrap_model(run.model))
    whole, again, resumed = ends
    assert same(whole, again) and same(whole, resumed), 'seen to be so, to the bit, on an H200'


@pytest.mark.parametrize('optimizer, checkpointing', [('adamw', False), ('adafactor', False), ('adafactor', True)])
def test_base_learns_a_row_of_320_within_four_gigabytes(optimizer, checkpointing):
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2**32/total)
    shape = (1, 320, 320)
    cfg = ProbeCfg('base', 29298, shape, optimizer, 'bf16', checkpointing)
    try: train_briefly(model_config('base', 29298), shape, cfg)
    finally: torch.cuda.set_per_process_memory_fraction(1.)
