"""RowGradients: sums over rows of dYᵀX are what autograd says of the weight."""

import copy

import pytest
import torch
from lightning_vlm_callbacks.row_gradients import RowGradients
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint


class Net(nn.Module):
    """The layer is in the middle; `way` is how its block is called."""

    def __init__(self, way="plain"):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.layer, self.last = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)
        self.way = way
        self.double()

    def block(self, x):
        return torch.tanh(self.layer(torch.tanh(x)))

    def forward(self, x):
        x = self.first(x)
        if self.way == "plain":
            x = self.block(x)
        else:
            x = checkpoint(self.block, x, use_reentrant=self.way == "reentrant")
        return self.last(x)


def by_row(net, layer, x):
    """The gradient of the layer's weight that each row of x makes, from one backward."""
    seen = []
    watch = RowGradients(layer, lambda *found: seen.append(found), lambda: "this batch")
    net(x).square().sum().backward()
    watch.remove()
    ((into, out, label),) = seen
    assert label == "this batch"
    assert not into.requires_grad
    assert not out.requires_grad
    return torch.einsum("n...o,n...i->noi", out, into)


def one_by_one(net, weight, x):
    """The same by a backward for each row."""
    return torch.stack([torch.autograd.grad(net(row[None]).square().sum(), weight)[0] for row in x])


def assert_close(found, expected):
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", ["plain", "non-reentrant", "reentrant"])
@pytest.mark.parametrize("shape", [(7, 6), (3, 4, 6)])
def test_each_row_is_as_autograd_says(way, shape):
    net, plain = Net(way), Net()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)  # the reentrant kind wants that
    found = by_row(net, net.layer, x)
    assert_close(found, one_by_one(plain, plain.layer.weight, x))
    assert_close(found.sum(0), net.layer.weight.grad)


def test_a_frozen_weight_is_no_hindrance():
    net = Net()
    x = torch.randn(5, 6, dtype=torch.float64)
    expected = one_by_one(net, net.layer.weight, x)
    net.layer.requires_grad_(False)
    assert_close(by_row(net, net.layer, x), expected)
    assert net.layer.weight.grad is None


def test_a_weight_in_4_bits():
    """As if the weight were what its 4 bits stand for, and trained."""
    bnb = pytest.importorskip("bitsandbytes")
    plain = Net().float()
    plain.layer = nn.Linear(64, 64, bias=False)
    plain.first, plain.last = nn.Linear(6, 64), nn.Linear(64, 3)
    net = copy.deepcopy(plain)
    net.layer = bnb.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    net.layer.load_state_dict({"weight": plain.layer.weight.data})
    net = net.to("cpu")
    x = torch.randn(5, 6)
    net(x)  # quantises
    weight = bnb.functional.dequantize_4bit(net.layer.weight.data, net.layer.weight.quant_state)
    plain.layer.weight.data = weight.float()
    expected = one_by_one(plain, plain.layer.weight, x)
    torch.testing.assert_close(by_row(net, net.layer, x), expected, rtol=1e-4, atol=1e-4)


def test_lora_b_of_peft():
    net = get_peft_model(Net(), LoraConfig(r=2, target_modules=["layer"], init_lora_weights=False)).double()
    layer = net.base_model.model.layer.lora_B["default"]
    x = torch.randn(5, 6, dtype=torch.float64)
    expected = one_by_one(net, layer.weight, x)
    assert_close(by_row(net, layer, x), expected)


def test_a_call_without_gradient_is_not_seen_and_removed_means_removed():
    net, seen = Net(), []
    watch = RowGradients(net.layer, lambda *found: seen.append(found))
    x = torch.randn(2, 6, dtype=torch.float64)
    with torch.no_grad():
        net(x)
    assert not seen
    watch.remove()
    net(x).sum().backward()
    assert not seen
