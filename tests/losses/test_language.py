"""Against F.cross_entropy on explicit logits, gradcheck, and PyTorch's own counters of work and memory."""

import bitsandbytes as bnb
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lightning_vlm.errors import UserError
from lightning_vlm.losses import linear_cross_entropy as arithmetic
from lightning_vlm.losses.language import head_cross_entropy, linear_cross_entropy

N, H, V = 37, 16, 101
SCALINGS = [{}, {"softcap": 3.0}, {"logit_scale": 0.25}, {"softcap": 2.0, "logit_scale": 1.7}]


def problem(dtype=torch.float64, tokens=N, with_bias=True):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, H, generator=generator, dtype=torch.float64)
    weight = torch.randn(V, H, generator=generator, dtype=torch.float64)
    bias = torch.randn(V, generator=generator, dtype=torch.float64) if with_bias else None
    labels = torch.randint(0, V, (tokens,), generator=generator)
    weights = 2 * torch.rand(tokens, generator=generator, dtype=torch.float64)
    weights[::5] = 0
    leaves = [None if x is None else x.to(dtype).requires_grad_() for x in (hidden, weight, bias)]
    return *leaves, labels, weights


def reference(logits, labels, weights, softcap=None, logit_scale=1.0):
    logits = logits * logit_scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    losses = F.cross_entropy(logits, labels, reduction="none")
    return (losses * weights).sum(), losses


def relative(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradcheck(scaling, with_bias):
    hidden, weight, bias, labels, weights = problem(tokens=5, with_bias=with_bias)
    weight, labels = weight.detach()[:7].requires_grad_(), labels % 7
    bias = bias.detach()[:7].requires_grad_() if with_bias else None
    assert gradcheck(
        lambda h, w, b: linear_cross_entropy(h, w, labels, weights, bias=b, chunk_size=2, **scaling).loss_sum,
        (hidden, weight, bias),
    )


@pytest.mark.parametrize("chunk_size", [1, 2, 8, 36, 37, 1000, None])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_equals_cross_entropy_of_all_logits(dtype, tolerance, scaling, chunk_size):
    hidden, weight, bias, labels, weights = problem()
    expected, losses = reference(F.linear(hidden, weight, bias), labels, weights, **scaling)
    expected.backward()

    ours = problem(dtype)
    options = {"bias": ours[2], "chunk_size": chunk_size, **scaling}
    sums = linear_cross_entropy(ours[0], ours[1], labels, weights, **options)
    sums.loss_sum.backward()
    assert relative(sums.loss_sum.detach(), expected.detach()) < tolerance
    assert relative(sums.weight_sum, weights.sum()) < tolerance
    assert relative(sums.token_losses, losses.detach() * (weights != 0)) < tolerance
    for found, wanted in zip(ours[:3], (hidden, weight, bias), strict=True):
        assert found.grad.dtype == dtype
        assert relative(found.grad, wanted.grad) < tolerance
    assert {x.dtype for x in sums} == {dtype}
    assert not sums.weight_sum.requires_grad
    assert not sums.token_losses.requires_grad

    with torch.no_grad():
        without = linear_cross_entropy(ours[0], ours[1], labels, weights, **options)
    assert not without.loss_sum.requires_grad
    assert relative(without.loss_sum, expected.detach()) < tolerance


def test_without_weights_every_token_counts_once():
    hidden, weight, bias, labels, _ = problem()
    sums = linear_cross_entropy(hidden, weight, labels, bias=bias)
    torch.testing.assert_close(
        sums.loss_sum, F.cross_entropy(F.linear(hidden, weight, bias), labels, reduction="sum")
    )
    assert sums.weight_sum == N


def test_zero_and_one_weights_are_ignore_index():
    hidden, weight, _, labels, _ = problem(with_bias=False)
    ignored = torch.arange(N) % 3 == 0
    labels = labels.masked_fill(ignored, -100)
    expected = torch.autograd.grad(F.cross_entropy(hidden @ weight.t(), labels), (hidden, weight))
    sums = linear_cross_entropy(hidden, weight, labels, ~ignored, chunk_size=7)
    found = torch.autograd.grad(sums.loss_sum / sums.weight_sum, (hidden, weight))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    wanted = F.cross_entropy(hidden @ weight.t(), labels, reduction="none")
    torch.testing.assert_close(sums.token_losses, wanted.detach())


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("lora", [False, True])
def test_a_token_of_weight_0_contributes_exactly_nothing(poison, lora):
    hidden, weight, _, labels, weights = problem(with_bias=False)
    head = nn.Linear(H, V, bias=False, dtype=torch.float64)
    head.load_state_dict({"weight": weight.detach()})
    head = adapted(head, lora_dropout=0.0) if lora else head
    trained = [p for p in head.parameters() if p.requires_grad]
    results = []
    for bad in (0.0, poison):
        poisoned = hidden.detach().masked_fill((weights == 0)[:, None], bad).requires_grad_()
        sums = head_cross_entropy(poisoned, head, labels, weights, chunk_size=6)
        grads = torch.autograd.grad(sums.loss_sum, (poisoned, *trained))
        results.append((*sums, *grads))
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)
    assert (results[1][3][weights == 0] == 0).all()
    assert (results[1][3][weights != 0] != 0).any()


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The matrix units of a GPU: products of 16-bit numbers, summed and written in float32.
    A list of the shapes that they multiplied."""
    products = []

    def multiply(out, left, right, *, add):
        assert left.dtype == right.dtype == torch.bfloat16
        assert out.dtype == torch.float32
        products.append((*left.shape, right.shape[1]))
        torch.addmm(out, left.float(), right.float(), beta=int(add), out=out)

    monkeypatch.setattr(arithmetic, "multiplies_into_float32", lambda device, dtype: dtype == torch.bfloat16)
    monkeypatch.setattr(arithmetic, "wide_product", multiply)
    return products


@pytest.mark.parametrize("scaling", SCALINGS)
def test_on_a_gpu_it_is_as_good_as_its_inputs(scaling, as_on_a_gpu):
    """The truth is float64 arithmetic on the same rounded inputs; the rival PyTorch's own half precision."""
    ours, rival, truth = problem(torch.bfloat16), problem(torch.bfloat16), problem()
    labels, weights = ours[3:]
    with torch.no_grad():
        for exact, rounded in zip(truth[:3], ours[:3], strict=True):
            exact.copy_(rounded)
    sums = linear_cross_entropy(*ours[:2], labels, weights, bias=ours[2], chunk_size=8, **scaling)
    expected, _ = reference(F.linear(*truth[:3]), labels, weights, **scaling)
    usual, _ = reference(F.linear(*rival[:3]).float(), labels, weights, **scaling)
    for loss in (sums.loss_sum, expected, usual):
        loss.backward()
    unit = torch.finfo(torch.bfloat16).eps
    assert relative(sums.loss_sum.detach(), expected.detach()) < 1e-6  # logits are never rounded to 16 bits
    for found, wanted, other in zip(ours[:3], truth[:3], rival[:3], strict=True):
        assert relative(found.grad, wanted.grad) < unit
        assert relative(found.grad, wanted.grad) < 1.1 * relative(other.grad, wanted.grad)
    rows = 4 if "softcap" in scaling else 8
    assert (rows, H, V) in as_on_a_gpu
    assert (V, rows, H) in as_on_a_gpu
    assert len(as_on_a_gpu) == 2 * -(-N // rows)


def test_on_a_gpu_nothing_is_left_from_what_memory_held_before(as_on_a_gpu):
    """New memory is filled with NaN where PyTorch has to be deterministic."""
    hidden, weight, _, labels, weights = problem(torch.bfloat16, with_bias=False)
    torch.use_deterministic_algorithms(True)
    try:
        for tokens in (N, 0):
            weight.grad = None
            some = hidden.detach()[:tokens].requires_grad_()
            sums = linear_cross_entropy(some, weight, labels[:tokens], weights[:tokens], chunk_size=8)
            sums.loss_sum.backward()
            assert some.grad.isfinite().all()
            assert weight.grad.isfinite().all()
    finally:
        torch.use_deterministic_algorithms(False)


def test_what_a_gpu_is_asked_for_exists():
    """PyTorch checks dtypes and shapes without a device. Only the numbers need one."""
    left, right = (torch.empty(*shape, dtype=torch.bfloat16, device="meta") for shape in ((5, 7), (7, 3)))
    out = torch.empty(5, 3, device="meta")
    for add in (False, True):
        arithmetic.wide_product(out, left, right, add=add)
    with pytest.raises(RuntimeError):
        arithmetic.wide_product(out.bfloat16(), left, right, add=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_good_as_its_inputs(dtype):
    """The truth is float64 arithmetic on the same rounded inputs; the rival PyTorch's own half precision."""
    ours, rival, truth = problem(dtype), problem(dtype), problem()
    labels, weights = ours[3:]
    with torch.no_grad():
        for exact, rounded in zip(truth[:3], ours[:3], strict=True):
            exact.copy_(rounded)
    sums = linear_cross_entropy(*ours[:2], labels, weights, bias=ours[2], chunk_size=8)
    expected, _ = reference(F.linear(*truth[:3]), labels, weights)
    usual, _ = reference(F.linear(*rival[:3]).float(), labels, weights)
    for loss in (sums.loss_sum, expected, usual):
        (loss / 7).backward()
    unit = torch.finfo(dtype).eps
    assert sums.loss_sum.dtype == torch.float32
    assert relative(sums.loss_sum.detach(), expected.detach()) < unit
    for found, wanted, other in zip(ours[:3], truth[:3], rival[:3], strict=True):
        assert found.grad.dtype == dtype
        assert relative(found.grad, wanted.grad) < 2 * unit
        assert relative(found.grad, wanted.grad) < 1.5 * relative(other.grad, wanted.grad)


def test_large_logits_stay_finite():
    hidden, weight, _, labels, weights = problem(torch.bfloat16, with_bias=False)
    with torch.no_grad():
        hidden.mul_(1e3), weight.mul_(1e3)
    exact = F.cross_entropy(hidden.double() @ weight.double().t(), labels, reduction="none") * weights
    sums = linear_cross_entropy(hidden, weight, labels, weights)
    sums.loss_sum.backward()
    assert relative(sums.loss_sum.detach(), exact.sum().detach()) < 0.01
    assert hidden.grad.isfinite().all()
    assert weight.grad.isfinite().all()


def test_a_loss_scale_too_large_for_float16_is_not_rounded_first():
    hidden, weight, *_, labels, _ = problem(torch.float16)
    sums = linear_cross_entropy(hidden, weight, labels, torch.full((N,), 1e-3))
    (sums.loss_sum * 65536).backward()  # float16 ends at 65504
    assert hidden.grad.isfinite().all()
    assert hidden.grad.abs().max() > 1


@pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16])
def test_autocast(hidden_dtype):
    """Under autocast the result is that of bfloat16 copies; gradients come in the dtype of the leaves."""
    hidden, weight, bias, labels, weights = problem(torch.float32)
    hidden = hidden.detach().to(hidden_dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        sums = linear_cross_entropy(hidden, weight, labels, weights, bias=bias, chunk_size=8)
    sums.loss_sum.backward()
    copies = [x.detach().bfloat16().requires_grad_() for x in (hidden, weight)]
    expected = linear_cross_entropy(*copies, labels, weights, bias=bias.detach(), chunk_size=8)
    expected.loss_sum.backward()
    assert torch.equal(sums.loss_sum, expected.loss_sum)
    assert hidden.grad.dtype == hidden_dtype
    assert weight.grad.dtype == bias.grad.dtype == torch.float32
    assert torch.equal(hidden.grad.bfloat16(), copies[0].grad)
    assert torch.equal(weight.grad.bfloat16(), copies[1].grad)


@pytest.mark.parametrize(
    ("hidden_learns", "weight_learns", "multiplications"),
    [(True, True, 3), (True, False, 2), (False, True, 2), (False, False, 1)],
)
def test_no_work_for_what_is_frozen(hidden_learns, weight_learns, multiplications):
    hidden, weight, _, labels, weights = problem(torch.float32, with_bias=False)
    hidden.requires_grad_(hidden_learns), weight.requires_grad_(weight_learns)
    with FlopCounterMode(display=False) as flops, Recorder() as seen:
        sums = linear_cross_entropy(hidden, weight, labels, weights, chunk_size=8)
        if sums.loss_sum.requires_grad:
            sums.loss_sum.backward()
    assert flops.get_total_flops() == multiplications * 2 * N * V * H
    assert (hidden.grad is not None, weight.grad is not None) == (hidden_learns, weight_learns)
    assert (V * H in seen.made) == weight_learns  # no buffer for a gradient that nobody wants
    with torch.no_grad(), FlopCounterMode(display=False) as flops, Recorder() as seen:
        linear_cross_entropy(hidden, weight, labels, weights, chunk_size=8)
    assert flops.get_total_flops() == 2 * N * V * H
    assert not [
        func for func in seen.called if "scatter" in str(func)
    ]  # the softmax less the label is never made


class Recorder(TorchDispatchMode):
    """Sizes of every new piece of memory that an operation returned."""

    def __init__(self):
        super().__init__()
        self.made, self.called = [], set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if torch.is_tensor(x)}
        self.called.add(func)
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if torch.is_tensor(x) and x.untyped_storage().data_ptr() not in before:
                self.made.append(x.untyped_storage().nbytes() // x.element_size())
        return result


@pytest.mark.parametrize("scaling", [{}, {"softcap": 3.0}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_chunk_of_logits_is_all_there_ever_is(dtype, scaling):
    """Counted over the whole run, not at one moment: buffers of logits are made once, not once per chunk."""
    hidden, weight, bias, labels, weights = problem(dtype, tokens=400)
    with Recorder() as seen:
        sums = linear_cross_entropy(hidden, weight, labels, weights, bias=bias, chunk_size=50, **scaling)
        sums.loss_sum.backward()
    of_logits = [size for size in seen.made if size % V == 0 and size > V * H]
    half = len(scaling)  # with a softcap: logits and slopes, half as many rows each
    expected = [25 * V] * 2 if half else [50 * V]
    if dtype != torch.float32:
        expected.append(expected[0])
    assert sorted(of_logits) == sorted(expected)
    assert max(seen.made) <= max(50 * V, 400 * H)


def test_default_chunk():
    """64 MiB of float32 logits on a CPU, but 64 rows at least."""
    for vocabulary, rows in ((151_936, 110), (2**21, 64)):
        hidden, weight = torch.zeros(300, 1), torch.zeros(vocabulary, 1)
        with Recorder() as seen, torch.no_grad():
            linear_cross_entropy(hidden, weight, torch.zeros(300, dtype=torch.long))
        assert max(seen.made) == rows * vocabulary


def test_the_callers_tensors_are_untouched():
    tensors = problem(torch.float32)
    before = [x.detach().clone() for x in tensors]
    hidden, weight, bias, labels, weights = tensors
    for softcap in (None, 3.0):
        sums = linear_cross_entropy(hidden, weight, labels, weights, bias=bias, softcap=softcap, chunk_size=8)
        sums.loss_sum.backward()
    for now, then in zip(tensors, before, strict=True):
        assert torch.equal(now, then)


def test_backward_scales_repeats_and_adds_up():
    hidden, weight, bias, labels, weights = problem()
    loss = linear_cross_entropy(hidden, weight, labels, weights, bias=bias).loss_sum
    once = torch.autograd.grad(loss, (hidden, weight, bias), retain_graph=True)
    scaled = torch.autograd.grad(loss * 2.5, (hidden, weight, bias), retain_graph=True)
    (loss + 1.5 * loss).backward()
    for one, found, leaf in zip(once, scaled, (hidden, weight, bias), strict=True):
        torch.testing.assert_close(found, 2.5 * one)
        torch.testing.assert_close(leaf.grad, found)


def test_a_tied_weight_gets_both_gradients():
    _, weight, _, labels, weights = problem(with_bias=False)
    tokens = torch.arange(N) % V
    expected, _ = reference(weight[tokens] @ weight.t(), labels, weights)
    (wanted,) = torch.autograd.grad(expected, weight)
    sums = linear_cross_entropy(weight[tokens], weight, labels, weights, chunk_size=8)
    (found,) = torch.autograd.grad(sums.loss_sum, weight)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_a_second_derivative_is_refused():
    hidden, weight, bias, labels, _ = problem()
    loss = linear_cross_entropy(hidden, weight, labels, bias=bias).loss_sum
    with pytest.raises(UserError, match="no second derivative"):
        torch.autograd.grad(loss, hidden, create_graph=True)


@pytest.mark.parametrize("tokens", [0, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [False, True])
def test_nothing_supervised_is_a_connected_zero(tokens, dtype, lora):
    hidden, *_, labels, _ = problem(dtype, tokens)
    head = nn.Linear(H, V, dtype=dtype)
    head = adapted(head) if lora else head
    sums = head_cross_entropy(hidden, head, labels, torch.zeros(tokens))
    assert sums.loss_sum == sums.weight_sum == 0
    assert sums.token_losses.shape == (tokens,)
    sums.loss_sum.backward()
    trained = [p for p in head.parameters() if p.requires_grad]
    assert len(trained) == 2
    for leaf in (hidden, *trained):
        assert leaf.grad.shape == leaf.shape
        assert (leaf.grad == 0).all()


class Model(nn.Module):
    """The least that PEFT can put an adapter into."""

    def __init__(self, head):
        super().__init__()
        self.lm_head = head


def adapted(head, **options):
    config = LoraConfig(r=3, lora_alpha=12, target_modules=["lm_head"], init_lora_weights=False, **options)
    adapted_head = inject_adapter_in_model(config, Model(head)).lm_head
    assert adapted_head is not head
    return adapted_head


def quantised():
    return Model(bnb.nn.Linear4bit(64, V, bias=False, quant_type="nf4")).to("cpu").lm_head


HEADS = {
    "linear": lambda: nn.Linear(64, V),
    "frozen": lambda: nn.Linear(64, V).requires_grad_(False),
    "lora": lambda: adapted(nn.Linear(64, V, bias=False)),
    "dropout": lambda: adapted(nn.Linear(64, V, bias=False), lora_dropout=0.5),
    "dora": lambda: adapted(nn.Linear(64, V, bias=False), use_dora=True),
    "nf4": quantised,
    "qlora": lambda: adapted(quantised()),
}


@pytest.mark.parametrize("scaling", [{}, {"softcap": 2.0, "logit_scale": 1.7}])
@pytest.mark.parametrize("name", HEADS)
def test_any_head_equals_calling_it_in_full(name, scaling):
    torch.manual_seed(0)
    head = HEADS[name]()
    hidden = torch.randn(N, 64, requires_grad=True)
    labels, weights = problem(torch.float32)[3:]
    leaves = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    assert len(leaves) == {"linear": 3, "lora": 3, "dropout": 3, "dora": 4, "qlora": 3}.get(name, 1)
    torch.manual_seed(1)
    expected, losses = reference(head(hidden), labels, weights.float(), **scaling)
    wanted = torch.autograd.grad(expected, leaves)

    # In one chunk dropout draws the same mask as in full. The backward must draw it in any random state.
    torch.manual_seed(1)
    chunk_size = N if name == "dropout" else 8
    sums = head_cross_entropy(hidden, head, labels, weights, chunk_size=chunk_size, **scaling)
    torch.manual_seed(2)
    found = torch.autograd.grad(sums.loss_sum, leaves)
    assert relative(sums.loss_sum.detach(), expected.detach()) < 1e-6
    assert relative(sums.token_losses, losses.detach() * (weights != 0)) < 1e-6
    for one, other in zip(found, wanted, strict=True):
        assert relative(one, other) < 2e-6
    assert sums.token_losses.requires_grad is sums.weight_sum.requires_grad is False


def test_an_adapted_head_never_makes_or_holds_all_logits():
    head, tokens = adapted(nn.Linear(H, V)), 400
    hidden, *_, labels, weights = problem(torch.float32, tokens)
    held = []
    with Recorder() as seen:
        with torch.autograd.graph.saved_tensors_hooks(lambda x: held.append(x.shape) or x, lambda x: x):
            sums = head_cross_entropy(hidden, head, labels, weights, chunk_size=50)
        sums.loss_sum.backward()
    assert max(seen.made) <= max(50 * V, tokens * H)
    assert held
    assert not [shape for shape in held if shape[-1] == V]


def test_a_hook_on_the_head_is_honoured():
    head = nn.Linear(H, V, dtype=torch.float64)
    hidden, *_, labels, weights = problem()
    head.register_forward_hook(lambda module, args, output: output * 0.5)
    sums = head_cross_entropy(hidden, head, labels, weights, chunk_size=8)
    torch.testing.assert_close(sums.loss_sum, reference(head(hidden), labels, weights)[0])


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("label", [-100, -1, V])
def test_a_label_outside_the_vocabulary_is_an_error(label, lora):
    hidden, *_, labels, _ = problem(torch.float32)
    labels[3] = label
    head = nn.Linear(H, V)
    with pytest.raises(RuntimeError, match=f"index {label} is out of bounds"):
        head_cross_entropy(hidden, adapted(head) if lora else head, labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": torch.zeros(1, N, H)}, r"hidden: found shape \[1, 37, 16\]; expected \[tokens, hidden\]"),
        ({"weight": torch.zeros(V, H + 1)}, r"weight: found shape \[101, 17\]; expected \[vocabulary, 16\]"),
        ({"labels": torch.zeros(N + 1).long()}, r"labels: found shape \[38\]; expected \[37\]"),
        ({"token_weights": torch.ones(1)}, r"token_weights: found shape \[1\]; expected \[37\]"),
        ({"bias": torch.ones(1)}, r"bias: found shape \[1\]; expected \[101\]"),
        ({"chunk_size": 0}, "chunk_size: found 0; expected 1 or more"),
        ({"softcap": 0.0}, "softcap: found 0.0; expected a number above 0"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    hidden, weight, _, labels, _ = problem(torch.float32)
    with pytest.raises(UserError, match=message):
        linear_cross_entropy(**{"hidden": hidden, "weight": weight, "labels": labels, **changes})
