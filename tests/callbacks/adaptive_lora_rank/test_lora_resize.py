"""resize_lora: the function against SVD in float64, PEFT's own layers, and optimizers' state by hand."""

import copy
import math

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks.adaptive_lora_rank.lora_resize import drop_lora, resize_lora
from peft import LoraConfig, inject_adapter_in_model
from torch import nn


def make(r=4, wide=7, out=6, seed=0, **options):
    """A LoRA layer whose B isn't zero."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(wide, out))
    given = {"r": r, "lora_alpha": 6, "target_modules": ["0"], **options}
    layer = inject_adapter_in_model(LoraConfig(**given), model)[0]
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_(std=0.3)
    return layer


def matrices(layer):
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


def train(layer, optimizer, steps=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    dtype = layer.lora_A["default"].weight.dtype
    for _ in range(steps):
        x = torch.randn(5, layer.in_features, generator=generator).to(dtype)
        optimizer.zero_grad()
        (layer(x) - x[:, : layer.out_features].roll(1, 1)).square().sum().backward()
        optimizer.step()


def best(matrix, rank):
    u, s, v = torch.linalg.svd(matrix.double())
    return u[:, :rank] * s[:rank] @ v[:rank]


# The function


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_shrinking_is_the_best_approximation(rank, rslora):
    layer = make(use_rslora=rslora)
    before, scale = layer.get_delta_weight("default").detach(), layer.scaling["default"]
    resize_lora(layer, rank)
    torch.testing.assert_close(
        layer.get_delta_weight("default").double(), best(before, rank), rtol=0, atol=2e-6
    )
    assert layer.scaling["default"] == scale
    a, b = matrices(layer)
    assert (a.shape, b.shape) == ((rank, 7), (6, rank))


@pytest.mark.parametrize("quantised", [False, True])
def test_growing_changes_nothing_that_is_computed(quantised):
    layer = make(r=4, wide=64, out=64)
    if quantised:
        bnb = pytest.importorskip("bitsandbytes")
        plain = layer.base_layer
        base = bnb.nn.Linear4bit(64, 64, compute_dtype=torch.float32, quant_type="nf4")
        base.load_state_dict(plain.state_dict())
        model = nn.Sequential(base.to("cpu"))
        model.is_loaded_in_4bit = True
        model(torch.randn(1, 64))
        layer = inject_adapter_in_model(LoraConfig(r=4, target_modules=["0"]), model)[0]
        nn.init.normal_(layer.lora_B["default"].weight)
        assert type(layer).__name__ == "Linear4bit"
    x = torch.randn(9, 64)
    before = layer(x)
    resize_lora(layer, 11)
    assert torch.equal(layer(x), before)
    a, b = matrices(layer)
    assert a.shape == (11, 64)
    assert not b[:, 4:].any()
    assert (a[4:].square().mean() * 3 * 64 - 1).abs() < 0.2  # uniform in ±1/√64


def test_new_rows_are_pefts():
    layer = make()
    resize_lora(layer, 9, seed=3)
    torch.manual_seed(3)
    rows = torch.empty(5, 7)
    nn.init.kaiming_uniform_(rows, a=math.sqrt(5))
    assert torch.equal(matrices(layer)[0][4:], rows)
    torch.manual_seed(3)
    fresh = nn.Linear(7, 5, bias=False)  # what PEFT makes and initialises so
    assert torch.equal(fresh.weight, rows)
    normal = make()
    resize_lora(normal, 2004, init="gaussian")
    assert matrices(normal)[0][4:].std().item() == pytest.approx(1 / 2004, rel=0.02)


@pytest.mark.parametrize("rslora", [False, True])
def test_alpha_is_what_peft_needs_for_the_same_scale(rslora):
    layer = make(use_rslora=rslora)
    scale = layer.scaling["default"]
    for rank in (7, 3, 5, 4):
        resize_lora(layer, rank)
        assert layer.r["default"] == rank
        again = make(r=rank, lora_alpha=layer.lora_alpha["default"], use_rslora=rslora)
        assert again.scaling["default"] == pytest.approx(scale, rel=1e-14)
    assert layer.lora_alpha["default"] == 6
    assert isinstance(layer.lora_alpha["default"], int)


def test_unused_directions_go_on_learning():
    """Where B is zero, as at the start, the nearest matrix is zero: A must not be."""
    layer = make()
    nn.init.zeros_(layer.lora_B["default"].weight)
    size = matrices(layer)[0].square().sum(1).mean()
    resize_lora(layer, 2)
    a, b = matrices(layer)
    assert not b.any()
    torch.testing.assert_close(a @ a.T, size * torch.eye(2))
    before = copy.deepcopy(layer.state_dict())
    train(layer, torch.optim.SGD([a, b], lr=0.1))
    assert all((layer.state_dict()[f"lora_{x}.default.weight"] != before[f"lora_{x}.default.weight"]).all()
               for x in "AB")  # fmt: skip


@pytest.mark.parametrize(("wide", "out"), [(3, 9), (9, 3), (3, 3)])
def test_more_rank_than_the_layer_is_wide(wide, out):
    layer = make(r=8, wide=wide, out=out)
    before = layer.get_delta_weight("default").detach()
    resize_lora(layer, 5)
    torch.testing.assert_close(layer.get_delta_weight("default"), before, rtol=0, atol=1e-6)
    assert matrices(layer)[0].shape == (5, wide)
    resize_lora(layer, 2)
    torch.testing.assert_close(layer.get_delta_weight("default").double(), best(before, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types(dtype):
    layer = make().to(dtype)
    before = layer.get_delta_weight("default").detach()
    resize_lora(layer, 2)
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-12
    assert matrices(layer)[0].dtype == dtype
    torch.testing.assert_close(
        layer.get_delta_weight("default").double(), best(before, 2), rtol=0, atol=tolerance
    )
    resize_lora(layer, 5)
    assert matrices(layer)[1].dtype == dtype


# Optimizers


def test_gradients_turn_as_moments_do():
    """The moments of a shrunk layer are what gradients there would have made: autograd's are the oracle."""
    layer = make().double()
    a, b = matrices(layer)
    optimizer = torch.optim.SGD([a, b], lr=0.0, momentum=0.5)
    exact = copy.deepcopy(layer)
    with torch.no_grad():  # of rank 2 in truth, so that shrinking changes nothing
        for resized in (layer, exact):
            a1, b1 = matrices(resized)
            a1[2:], b1[:, 2:] = a1[:2] * 0.5, b1[:, :2] * 2
    train(layer, optimizer)
    resize_lora(layer, 2, optimizers=[optimizer])
    resize_lora(exact, 2)
    other = torch.optim.SGD(matrices(exact), lr=0.0, momentum=0.5)
    train(exact, other)
    # B's moment needs A' = S A, which holds only where A's rows are in the span of the rows kept.
    for mine, theirs in zip(matrices(layer), matrices(exact), strict=True):
        torch.testing.assert_close(
            optimizer.state[mine]["momentum_buffer"],
            other.state[theirs]["momentum_buffer"],
            rtol=1e-9,
            atol=1e-9,
        )


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "amsgrad", "foreach", "fused"])
def test_adams_state(kind):
    layer = make()
    options = {kind: True} if kind in ("amsgrad", "foreach", "fused") else {}
    optimizer = getattr(torch.optim, kind, torch.optim.Adam)(matrices(layer), lr=0.01, **options)
    train(layer, optimizer)
    a, b = matrices(layer)
    before = {matrix: copy.deepcopy(optimizer.state[matrix]) for matrix in (a, b)}
    resize_lora(layer, 6, optimizers=[optimizer])
    assert matrices(layer) == (a, b)  # the same objects
    for matrix, axis in ((a, 0), (b, 1)):
        state, old = optimizer.state[matrix], before[matrix]
        assert state.keys() == old.keys()
        assert state["step"] == old["step"] == 3
        for key in state.keys() - {"step"}:
            kept, new = state[key].split([4, 2], axis)
            assert torch.equal(kept, old[key])
            mean = old[key].mean(axis, keepdim=True) if "sq" in key else 0 * old[key].sum(axis, keepdim=True)
            torch.testing.assert_close(new, mean.expand_as(new))
    train(layer, optimizer)
    resize_lora(layer, 2, optimizers=[optimizer])
    for matrix in (a, b):
        assert all(
            state.shape == matrix.shape for key, state in optimizer.state[matrix].items() if key != "step"
        )
        assert (optimizer.state[matrix]["exp_avg_sq"] > 0).all()
    train(layer, optimizer)
    assert torch.isfinite(layer.get_delta_weight("default")).all()


def test_second_moments_by_hand():
    layer = make().double()
    optimizer = torch.optim.Adam(matrices(layer), lr=0.01)
    train(layer, optimizer)
    a, b = matrices(layer)
    old = [(matrix.detach().clone(), optimizer.state[matrix]["exp_avg_sq"].clone()) for matrix in (a, b)]
    resize_lora(layer, 2, optimizers=[optimizer])
    s = a.detach() @ torch.linalg.pinv(old[0][0])
    t = torch.linalg.pinv(old[1][0]) @ b.detach()
    torch.testing.assert_close(optimizer.state[a]["exp_avg_sq"], t.square().T @ old[0][1])
    torch.testing.assert_close(optimizer.state[b]["exp_avg_sq"], old[1][1] @ s.square().T)


@pytest.mark.parametrize("beta", [0.95, 0.999])
def test_the_first_step_of_what_is_new_is_no_larger_than_others(beta):
    """With second moments of zero it would be up to three times the learning rate."""
    layer = make()
    optimizer = torch.optim.Adam(matrices(layer), lr=0.01, betas=(0.9, beta))
    train(layer, optimizer, steps=100)
    resize_lora(layer, 8, optimizers=[optimizer])
    _, b = matrices(layer)
    before = b.detach().clone()
    train(layer, optimizer, steps=1, seed=5)
    moved = (b - before)[:, 4:].abs().max().item() / 0.01
    assert 0 < moved < 1.2


def test_what_cannot_be_carried_over_begins_anew():
    layer = make()
    optimizer = torch.optim.RMSprop(matrices(layer), lr=0.01)
    train(layer, optimizer)
    with pytest.warns(UserWarning, match="RMSprop keeps 'square_avg'"):
        resize_lora(layer, 2, optimizers=[optimizer])
    train(layer, optimizer, steps=1)
    assert all(optimizer.state[matrix]["square_avg"].shape == matrix.shape for matrix in matrices(layer))


@pytest.mark.parametrize("rank", [2, 6])
def test_each_matrix_may_have_an_optimizer_of_its_own(rank, recwarn):
    layer, together = make(), make()
    of_both = torch.optim.Adam(matrices(together), lr=0.01)
    of_each = [torch.optim.Adam([matrix], lr=0.01) for matrix in matrices(layer)]
    idle = torch.optim.Adam(matrices(layer), lr=0.01)
    for matrix, other in zip(matrices(layer), matrices(together), strict=True):
        matrix.grad = torch.randn_like(matrix)
        other.grad = matrix.grad.clone()
    for optimizer in (of_both, *of_each):
        optimizer.step()
    resize_lora(together, rank, optimizers=[of_both])
    resize_lora(layer, rank, optimizers=[idle, *of_each])
    for optimizer, matrix, other in zip(of_each, matrices(layer), matrices(together), strict=True):
        assert torch.equal(matrix, other)
        assert torch.equal(optimizer.state[matrix]["exp_avg"], of_both.state[other]["exp_avg"])
    assert len(idle.state) == 0, "it has not stepped, and has nothing to carry over"
    assert not recwarn.list


def test_bitsandbytes_in_8_bits_begins_anew():
    bnb = pytest.importorskip("bitsandbytes")
    layer = make(r=8, wide=64, out=64)
    optimizer = bnb.optim.AdamW8bit(matrices(layer), lr=0.01, min_8bit_size=1)
    train(layer, optimizer)
    with pytest.warns(UserWarning, match="AdamW8bit keeps 'state1'"):
        resize_lora(layer, 4, optimizers=[optimizer])
    train(layer, optimizer)
    a, _ = matrices(layer)
    assert optimizer.state[a]["state1"].shape == a.shape == (4, 64)
    assert optimizer.state[a]["step"] == 3


def test_a_graph_that_is_held_and_hooks_do_no_harm():
    layer, seen = make(), []
    a, b = matrices(layer)
    a.register_hook(lambda gradient: seen.append(tuple(gradient.shape)))
    b.register_post_accumulate_grad_hook(lambda matrix: seen.append(tuple(matrix.grad.shape)))
    held = layer(torch.randn(2, 7)).sum()
    held.backward(retain_graph=True)
    resize_lora(layer, 2)
    assert a.grad is None
    layer(torch.randn(2, 7)).sum().backward()
    assert sorted(seen) == sorted([(4, 7), (6, 4), (2, 7), (6, 2)])


def test_schedulers_and_groups_go_on():
    layer = make()
    a, b = matrices(layer)
    optimizer = torch.optim.AdamW([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.2}])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    train(layer, optimizer, 1)
    scheduler.step()
    resize_lora(layer, 6, optimizers=[optimizer])
    train(layer, optimizer, 1)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.05]
    assert optimizer.param_groups[0]["params"][0] is layer.lora_A["default"].weight


# Rank 0


def test_a_dropped_adapter_leaves_its_base():
    layer = make()
    a, b = matrices(layer)
    other = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([{"params": [a, b, other]}])
    train(layer, optimizer)
    drop_lora(layer, optimizers=[optimizer])
    x = torch.randn(3, 7)
    assert torch.equal(layer(x), layer.base_layer(x))
    assert optimizer.param_groups[0]["params"] == [other]
    assert not {a, b} & set(optimizer.state)
    assert not any("lora" in name for name in layer.state_dict())


# Refusals


def test_refusals():
    layer = make()
    with pytest.raises(MisconfigurationException, match="rank: found 0; expected 1 or more"):
        resize_lora(layer, 0)
    layer.merge()
    with pytest.raises(MisconfigurationException, match="merged"):
        resize_lora(layer, 2)
