"Fast dropout: rates, independence, the bits it is made of, attention by a loop, and torch itself where it steps aside."
import math

import pytest
import torch
from torch import nn
from transformers import T5ForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from scclm.fast_dropout import BitDropout, bit_attention, can_mask, dropout_mask, fast_dropout_
from scclm.model import build_model, model_config

MANY = 2**20


def within(found, p, n):
    "Whether a share of n draws of chance p is where it must be but for one time in two million (five sigma)."
    return abs(found - p) < 5*math.sqrt(p*(1 - p)/n)


@pytest.fixture(autouse=True)
def own_random_state():
    with torch.random.fork_rng(): yield


# The mask


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('p', [2**-16, .001, .1, .3, .5, .9, 1 - 2**-16])
def test_the_rate_is_met_to_a_65536th(p, seed):
    torch.manual_seed(seed)
    zeros = dropout_mask(torch.empty(MANY), p).eq(0).float().mean().item()
    real = round(2**16*p)/2**16
    assert within(zeros, real, MANY) and abs(real - p) <= 2**-17


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('shape', [(), (1,), (3,), (2, 5), (4, 3, 7), (0, 4)], ids=str)
def test_shape_type_and_values(shape, dtype):
    x = torch.empty(shape, dtype=dtype)
    for seed in range(20):
        torch.manual_seed(seed)
        mask = dropout_mask(x, .3)
        assert (mask.shape, mask.dtype) == (x.shape, dtype)
        assert set(mask.unique().tolist()) <= {0., torch.ones((), dtype=dtype).div(.7).item()}, seed


@pytest.mark.parametrize('n, p', [(1, .5), (7, .1), (64, .9), (101, .4)])
def test_bits_by_a_loop(n, p):
    "The same 64-bit numbers cut into four by Python, the lowest 16 bits first."
    seed = 11
    torch.manual_seed(seed)
    mask = dropout_mask(torch.empty(n), p)
    torch.manual_seed(seed)
    numbers = torch.empty(-(-n//4), dtype=torch.int64).random_(-2**63, None).tolist()
    kept = []
    for number in numbers:
        for lane in range(4):
            bits = (number >> 16*lane) & 0xffff
            signed = bits - 2**16 if bits >= 2**15 else bits
            kept.append(signed + 2**15 >= round(2**16*p)) # how far above the lowest
    assert mask.ne(0).tolist() == kept[:n]


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('p', [.1, .5])
def test_four_of_one_number_are_independent(p, seed):
    "All 16 patterns of what one 64-bit number decides, as often as four coins say (chi-square of 15, one in 10^6)."
    torch.manual_seed(seed)
    zero = dropout_mask(torch.empty(MANY), p).eq(0).view(-1, 4)
    pattern = (zero.long() * torch.tensor([1, 2, 4, 8])).sum(1)
    found = torch.bincount(pattern, minlength=16).double()
    real = round(2**16*p)/2**16
    expected = torch.tensor([real**bin(i).count('1') * (1 - real)**(4 - bin(i).count('1')) for i in range(16)])
    expected = expected.double() * len(zero)
    assert ((found - expected)**2/expected).sum() < 56.5


@pytest.mark.parametrize('distance', [1, 2, 3, 4, 5, 64, 1000])
def test_neighbours_are_independent(distance):
    torch.manual_seed(3)
    zero = dropout_mask(torch.empty(MANY), .2).eq(0)
    real = round(2**16*.2)/2**16
    both = (zero[distance:] & zero[:-distance]).float().mean().item()
    assert within(both, real**2, MANY - distance), both


def test_two_calls_are_independent_and_a_state_repeats():
    torch.manual_seed(4)
    state = torch.get_rng_state()
    first, second = (dropout_mask(torch.empty(MANY), .2).eq(0) for _ in range(2))
    assert within((first & second).float().mean().item(), (round(2**16*.2)/2**16)**2, MANY)
    torch.set_rng_state(state)
    assert torch.equal(dropout_mask(torch.empty(MANY), .2).eq(0), first)


@pytest.mark.parametrize('p, can', [(0., False), (2**-18, False), (2**-16, True), (.1, True), (1 - 2**-16, True),
                                    (1 - 2**-18, False), (1., False)])
def test_what_16_bits_can_tell(p, can):
    assert can_mask(torch.ones(2), p) is can
    assert not can_mask(torch.ones(2, device='meta'), p)


# The layer


def test_gradients_are_the_mask():
    torch.manual_seed(5)
    x = torch.randn(1000, requires_grad=True)
    y = BitDropout(.25)(x)
    y.sum().backward()
    torch.manual_seed(5)
    torch.randn(1000)
    mask = dropout_mask(x, .25)
    assert torch.equal(y, x*mask) and torch.equal(x.grad, mask)


@pytest.mark.parametrize('p', [0., .1, 1.])
def test_evaluation_changes_nothing_and_draws_nothing(p):
    x, before = torch.randn(100), torch.get_rng_state()
    assert torch.equal(BitDropout(p).eval()(x), x) and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize('p', [0., 2**-20, 1.])
def test_where_it_steps_aside_it_is_torch_to_the_bit(p):
    x = torch.randn(10_000)
    torch.manual_seed(6)
    ours, state = BitDropout(p)(x), torch.get_rng_state()
    torch.manual_seed(6)
    assert torch.equal(ours, nn.Dropout(p)(x)) and torch.equal(state, torch.get_rng_state())


def test_another_device_is_left_to_torch():
    assert BitDropout(.1)(torch.ones(3, device='meta')).shape == (3,)


# Attention


def parts(causal=False, seed=0):
    "A layer, query, key, value, bias."
    model = build_model(model_config('tiny', 50, dropout_rate=.1), seed=seed)
    layer = (model.decoder if causal else model.encoder).block[0].layer[0].SelfAttention
    g = torch.Generator().manual_seed(seed)
    query = torch.randn(2, 3, 5, 4, generator=g)
    key, value = torch.randn(2, 2, 3, 5 if causal else 7, 4, generator=g)
    return layer, query, key, value, torch.randn(1, 3, 5, key.shape[2], generator=g)


def by_loop(query, key, value, bias, seen, scale, mask):
    "Attention of one query of one head at a time, in float64."
    out = torch.zeros(*query.shape[:3], value.shape[3], dtype=torch.float64)
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            for i in range(query.shape[2]):
                keys = [j for j in range(key.shape[2]) if seen[b, i, j]]
                scores = [scale*(query[b, h, i] @ key[b, h, j]) + bias[0, h, i, j] for j in keys]
                probs = torch.stack(scores).softmax(0)
                for prob, j in zip(probs, keys):
                    out[b, h, i] += prob*mask[b, h, i, j]*value[b, h, j]
    return out.transpose(1, 2) # (batch, queries, heads, d_kv)


@pytest.mark.parametrize('kind', ['all', 'padded', 'added', 'causal'])
@pytest.mark.parametrize('scaling', [1., .3, None])
def test_attention_by_a_loop(kind, scaling):
    layer, query, key, value, bias = parts(kind == 'causal')
    seen = torch.ones(2, 5, key.shape[2], dtype=torch.bool)
    attention_mask = None
    if kind == 'padded': seen[0, :, 4:] = False
    if kind == 'added': seen[1, :, :3] = False
    # the layer is a decoder's: torch takes that from `is_causal`
    if kind == 'causal':
        seen = seen.tril()
    if kind == 'padded': attention_mask = seen[:, None]
    if kind == 'added':
        attention_mask = torch.where(seen, 0., torch.finfo(torch.float32).min)[:, None]
    leaves = [x.requires_grad_() for x in (query, key, value, bias)]
    torch.manual_seed(7)
    ours, _ = bit_attention(layer, query, key, value, attention_mask, .3, scaling, position_bias=bias)
    torch.manual_seed(7)
    mask = dropout_mask(torch.empty(2, 3, 5, key.shape[2]), .3).double()
    wide = [x.detach().double().requires_grad_() for x in leaves]
    truth = by_loop(*wide, seen, 4**-.5 if scaling is None else scaling, mask)
    assert mask.eq(0).any() and torch.allclose(ours.double(), truth, atol=1e-5)
    ours.square().sum().backward()
    truth.square().sum().backward()
    for x, w, name in zip(leaves, wide, ('query', 'key', 'value', 'bias')):
        assert torch.allclose(x.grad.double(), w.grad, rtol=1e-4, atol=1e-4), name


@pytest.mark.parametrize('dropout, with_bias', [(0., True), (0., False), (.3, False)])
def test_attention_without_dropout_or_bias_is_torch_to_the_bit(dropout, with_bias):
    layer, query, key, value, bias = parts()
    bias = bias if with_bias else None
    results = []
    for attend in (bit_attention, sdpa_attention_forward):
        torch.manual_seed(8)
        out, _ = attend(layer, query, key, value, None, dropout=dropout, scaling=1., position_bias=bias)
        results.append((out, torch.get_rng_state()))
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_attention_drops_at_the_rate():
    "Values that are the identity show the probabilities."
    layer = parts()[0]
    n = 64
    torch.manual_seed(9)
    query, key = torch.randn(2, 16, 6, n, 8)
    eye, bias = torch.eye(n).expand(16, 6, n, n), torch.randn(1, 6, n, n)
    probs, _ = bit_attention(layer, query, key, eye, None, 0., 1., position_bias=bias)
    dropped, _ = bit_attention(layer, query, key, eye, None, .1, 1., position_bias=bias)
    seen = probs > 0
    assert within(dropped[seen].eq(0).float().mean().item(), round(2**16*.1)/2**16, int(seen.sum()))
    assert torch.allclose(dropped, probs*(dropped > 0)/.9, atol=1e-6)


# A whole model


def toy(p=.1): return build_model(model_config('tiny', 50, dropout_rate=p), seed=1)


def batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    ids, labels = torch.randint(7, 50, (3, 9), generator=g), torch.randint(7, 50, (3, 6), generator=g)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    return dict(input_ids=ids, attention_mask=mask, labels=labels)


def test_only_plain_layers_and_sdpa_change():
    class Own(nn.Dropout): pass
    stack = nn.Sequential(nn.Dropout(.1), Own(.1), nn.Dropout1d(.1), nn.Linear(2, 2))
    assert fast_dropout_(stack) is stack
    assert [type(m) for m in stack] == [BitDropout, Own, nn.Dropout1d, nn.Linear] and stack[0].p == .1
    eager = toy()
    eager.set_attn_implementation('eager')
    assert fast_dropout_(eager).config._attn_implementation == 'eager'
    model = fast_dropout_(toy())
    assert model.config._attn_implementation == 'bit_attention'
    assert {type(m) for m in model.modules() if isinstance(m, nn.Dropout)} == {BitDropout}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), toy().parameters(), strict=True))


def test_a_model_in_evaluation_is_torch_to_the_bit():
    plain, fast = toy().eval(), fast_dropout_(toy()).eval()
    before = torch.get_rng_state()
    with torch.no_grad():
        assert torch.equal(plain(**batch()).logits, fast(**batch()).logits)
        answers = [m.generate(**{k: batch()[k] for k in ('input_ids', 'attention_mask')}, max_new_tokens=5)
                   for m in (plain, fast)]
    assert torch.equal(*answers) and torch.equal(torch.get_rng_state(), before)


def test_a_model_without_dropout_is_torch_to_the_bit_also_in_training():
    losses = []
    for model in (toy(0.).train(), fast_dropout_(toy(0.)).train()):
        loss = model(**batch()).loss
        loss.backward()
        losses.append([loss, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*losses, strict=True))


def test_mean_loss_is_that_of_torchs_dropout():
    "Two samples of the same distribution: their means differ by less than five standard errors."
    def sample(model, n=150):
        torch.manual_seed(10)
        with torch.no_grad(): losses = torch.stack([model(**batch()).loss for _ in range(n)])
        return losses.mean().item(), losses.std().item()/math.sqrt(n)
    (theirs, a), (ours, b) = sample(toy(.3).train()), sample(fast_dropout_(toy(.3)).train())
    assert abs(theirs - ours) < 5*math.hypot(a, b), (theirs, ours)
    assert a < 2*b and b < 2*a


def test_a_saved_model_knows_nothing_of_it(tmp_path):
    model = fast_dropout_(toy())
    model.save_pretrained(tmp_path)
    assert 'bit_attention' not in (tmp_path/'config.json').read_text(encoding='utf-8')
    again = T5ForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config._attn_implementation == 'sdpa'
    assert {type(m) for m in again.modules() if isinstance(m, nn.Dropout)} == {nn.Dropout}
