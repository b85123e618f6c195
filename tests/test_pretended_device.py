"""The device that `support/pretended_device.py` pretends: its values, and what makes a host wait."""

import pytest
import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from tests.support.pretended_device import DEVICE, PretendedDevice, counts


@pytest.fixture
def device():
    with PretendedDevice() as entered:
        yield entered


READS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.any()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "values in a list": lambda x: torch.tensor([x[0], x[1]], device=DEVICE),
    "slice by a value": lambda x: x[: x[1]],
}
SIZES = {
    "mask": lambda x: x[x > 1],
    "mask, set by a tensor": lambda x: x.index_put_((x > 1,), x[:2].clone()),
    "nonzero": lambda x: x.nonzero(),
    "masked_select": lambda x: x.masked_select(x > 1),
    "unique": lambda x: x.unique(),
    "unique_consecutive": lambda x: x.unique_consecutive(),
    "repeat_interleave": lambda x: x.repeat_interleave(x),
    "equal": lambda x: torch.equal(x, x),
    "gradient of masked_scatter": lambda x: torch.autograd.grad(
        x.float().masked_scatter(x > 1, made := torch.zeros(4, device=DEVICE, requires_grad=True)).sum(), made
    ),
}
UPLOADS = {
    "a list": lambda x: torch.tensor([1, 2], device=DEVICE),
    "a blocking copy": lambda x: torch.ones(2).to(DEVICE),
    "an index of the host": lambda x: x[torch.tensor([0, 1])],
    "copy_": lambda x: x.copy_(torch.ones(4)),
}
MIXED = {
    "sum": lambda x: x + torch.ones(4),
    "cat": lambda x: torch.cat([x, torch.ones(4, dtype=torch.int64)]),
    "host by device": lambda x: torch.arange(9)[x],
}
FREE = {
    "arithmetic": lambda x: (x * 2 + 1).float().softmax(0),
    "a number of the host": lambda x: x + torch.tensor(3),
    "made there": lambda x: torch.arange(4, device=DEVICE) + x.new_zeros(4),
    "filled by a mask": lambda x: x.masked_fill(x > 1, 0),
    "set by a mask and a number": lambda x: x.__setitem__(x > 1, 0),
    "masked_scatter": lambda x: x.masked_scatter(x > 1, x),
    "repeat_interleave of known size": lambda x: x.repeat_interleave(x, output_size=6),
    "a copy that doesn't block": lambda x: torch.ones(2).to(DEVICE, non_blocking=True),
    "back without blocking": lambda x: x.to("cpu", non_blocking=True),
    "already there": lambda x: x.to(DEVICE),
}
KINDS = {"read": READS, "size": SIZES, "upload": UPLOADS, "mixed": MIXED}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, each in KINDS.items() for name in each])
def test_what_waits(device, kind, name):
    x = torch.arange(4, device=DEVICE)
    try:
        KINDS[kind][name](x)
    except (RuntimeError, TypeError):
        assert kind == "mixed"
    assert kind in [wait.what for wait in device.waits]
    assert device.waits[0].where.startswith("tests/test_pretended_device.py:")


@pytest.mark.parametrize("name", FREE)
def test_what_does_not(device, name):
    FREE[name](torch.arange(4, device=DEVICE))
    assert not device.waits


def test_values_and_gradients_are_those_of_the_cpu(device):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2))
    given = torch.randn(3, 4)
    expected = model(given)
    expected.square().sum().backward()
    gradients = [weight.grad for weight in model.parameters()]
    model.zero_grad(set_to_none=True)
    model.to(DEVICE)
    assert all(weight.is_cuda for weight in model.parameters())
    device.waits.clear()
    out = model(given.to(DEVICE, non_blocking=True))
    out.square().sum().backward()
    assert not device.waits
    torch.testing.assert_close(out.cpu(), expected)
    for weight, gradient in zip(model.parameters(), gradients, strict=True):
        assert weight.grad.device == DEVICE
        torch.testing.assert_close(weight.grad.cpu(), gradient)


def test_attention_by_lengths(device):
    """The kernel's own wrapper, with gradients; the kernel computes what sdpa does for each sequence."""
    query, key, value = torch.randn(3, 5, 2, 8, generator=torch.Generator().manual_seed(0))
    ends = torch.tensor([0, 2, 5], dtype=torch.int32)
    parts = []
    for piece in (slice(0, 2), slice(2, 5)):
        one = [tensor[piece].transpose(0, 1)[None] for tensor in (query, key, value)]
        parts.append(scaled_dot_product_attention(*one, is_causal=True)[0].transpose(0, 1))
    moved = [tensor.to(DEVICE).requires_grad_() for tensor in (query, key, value)]
    device.waits.clear()
    ends = ends.to(DEVICE, non_blocking=True)
    out = varlen_attn(*moved, ends, ends, 3, 3, window_size=(-1, 0))
    out.sum().backward()
    assert not device.waits
    torch.testing.assert_close(out.detach().cpu(), torch.cat(parts))
    assert moved[2].grad.sum().item() == pytest.approx(out.numel(), rel=1e-5)  # weights of a score sum to 1


def test_views_share_memory(device):
    x = torch.zeros(4, device=DEVICE)
    x.view(2, 2)[0].add_(1)
    assert x.tolist() == [1, 1, 0, 0]


def test_counts(device):
    x = torch.arange(4, device=DEVICE)
    for _ in range(3):
        x.max().item()
    ((place, number),) = counts(device.waits).items()
    assert number == 3
    assert place.startswith("read: _local_scalar_dense at tests/test_pretended_device.py:")


def test_afterwards_there_is_no_device():
    with PretendedDevice():
        torch.arange(4, device=DEVICE)
    assert torch.arange(4).device.type == "cpu"
