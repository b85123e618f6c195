"""Importance: Fisher against autograd sample by sample, sensitivity against AdaLoRA, spectra against EVA."""

from types import SimpleNamespace

import pytest
import torch
from lightning_vlm_callbacks.adaptive_lora_rank.activation import Activation
from lightning_vlm_callbacks.adaptive_lora_rank.importance import Fisher, Sensitivity, squared_norms
from lightning_vlm_callbacks.adaptive_lora_rank.lora_layers import lora_layers
from peft import EvaConfig, LoraConfig, get_peft_model
from peft.tuners.adalora.layer import RankAllocator
from peft.tuners.lora.eva import get_eva_state_dict
from torch import nn
from torch.utils.checkpoint import checkpoint


class Net(nn.Module):
    def __init__(self, wide=12, ckpt=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(wide, 9), nn.Linear(9, 7)
        self.last, self.dropout = nn.Linear(7, 3), nn.Dropout(0.5)
        self.ckpt = ckpt

    def block(self, x):
        return torch.tanh(self.second(torch.tanh(self.first(x))))

    def forward(self, x):
        x = self.block(x) if self.ckpt is None else checkpoint(self.block, x, use_reentrant=self.ckpt)
        return self.last(x)


def adapted(dtype=torch.float64, **options):
    model = get_peft_model(Net(**options), LoraConfig(r=3, lora_alpha=6, target_modules=["first", "second"]))
    for lora in lora_layers(model).values():
        nn.init.normal_(lora.b, std=0.5)
    return model.to(dtype)


def data(samples=5, tokens=4, seed=1, dtype=torch.float64):
    shape = (samples, 12) if tokens is None else (samples, tokens, 12)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def loss_of(model, x):
    return (model(x) - 1).square().sum() / len(x)


def one_by_one(model, weights, x):
    """Σ_n ‖G_n‖², a backward for each sample."""
    total = torch.zeros(len(weights), dtype=x.dtype)
    for row in x:
        gradients = torch.autograd.grad(loss_of(model, row[None]) / len(x), weights)
        total += torch.stack([gradient.square().sum() for gradient in gradients])
    return total


def measured(kind, model, batches, scale=1.0, world=1):
    kind.begin()
    for x in batches:
        (scale * loss_of(model, x)).backward()
    kind.end(scale, world)
    return kind


# Fisher


@pytest.mark.parametrize("tokens", [None, 1, 2, 40])
def test_squared_norms_either_way(tokens):
    x = data(tokens=tokens)
    dy = torch.randn(*x.shape[:-1], 9, dtype=x.dtype)
    expected = torch.einsum("n...o,n...i->noi", dy, x).square().sum((1, 2))
    torch.testing.assert_close(squared_norms(x, dy), expected, rtol=1e-12, atol=1e-12)


def test_images_have_two_dimensions_of_tokens():
    x, dy = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 6)
    torch.testing.assert_close(
        squared_norms(x, dy), squared_norms(x.flatten(1, 2), dy.flatten(1, 2)), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("ckpt", [None, False, True])
@pytest.mark.parametrize("tokens", [None, 3])
def test_fisher_is_that_of_single_samples(ckpt, tokens):
    """Frozen base weights, whose gradients the ordinary backward never makes; two micro-batches."""
    model, plain = adapted(ckpt=ckpt), adapted()
    batches = [data(tokens=tokens, seed=seed).requires_grad_() for seed in (1, 2)]
    kind = measured(Fisher(lora_layers(model)), model, batches)
    layers = lora_layers(plain)
    weights = [lora.layer.base_layer.weight.requires_grad_() for lora in layers.values()]
    expected = sum(one_by_one(plain, weights, x.detach()) for x in batches)
    found = torch.stack([kind.kept[name][0] for name in layers])
    assert expected.min() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert all(lora.layer.base_layer.weight.grad is None for lora in lora_layers(model).values())
    assert not any(child._forward_hooks for child in model.modules())


@pytest.mark.parametrize("ckpt", [None, False, True])
def test_fisher_of_samples_that_share_a_row(ckpt):
    """Of uneven lengths, against a backward for each; a layer of other rows keeps its way."""
    model, plain = adapted(ckpt=ckpt), adapted()
    layers = lora_layers(plain)
    weights = [lora.layer.base_layer.weight.requires_grad_() for lora in layers.values()]
    expected = torch.zeros(len(weights), dtype=torch.float64)
    kind = Fisher(lora_layers(model))
    kind.begin()
    for seed, lengths in ((1, (3, 1, 4)), (2, None), (3, (2, 6))):
        x = data(samples=1, tokens=8, seed=seed)
        for sample in x.split(lengths or 8, dim=1):
            gradients = torch.autograd.grad((plain(sample) - 1).square().sum(), weights)
            expected += torch.stack([gradient.square().sum() for gradient in gradients])
        kind.packed_lengths = lengths
        (model(x.requires_grad_()) - 1).square().sum().backward()
    kind.packed_lengths = (3, 4)  # of the text, but these inputs are patches
    other = data(samples=1, tokens=5, seed=4)
    gradients = torch.autograd.grad((plain(other) - 1).square().sum(), weights)
    expected += torch.stack([gradient.square().sum() for gradient in gradients])
    (model(other.requires_grad_()) - 1).square().sum().backward()
    kind.end(1.0, 1)
    found = torch.stack([kind.kept[name][0] for name in layers])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_fisher_scores_by_hand():
    model = adapted(torch.float32)
    layers = lora_layers(model)
    kind = measured(Fisher(layers), model, [data(dtype=torch.float32)])
    scores = kind.scores([*layers, "unmet"], 6)
    assert scores.pop("unmet") == 0.0
    for name, (layer, _) in layers.items():
        delta = layer.get_delta_weight("default").double()
        mean = kind.kept[name][0].double() / delta.numel()
        stable_rank = torch.linalg.matrix_norm(delta) ** 2 / torch.linalg.matrix_norm(delta, 2) ** 2
        expected = stable_rank * (torch.linalg.matrix_norm(delta, 2) * mean.sqrt()).sqrt()
        assert scores[name] == pytest.approx(expected.item(), rel=1e-5)


def test_a_layer_that_learned_nothing_has_no_score():
    model = adapted(torch.float32)
    layers = lora_layers(model)
    first = next(iter(layers))
    nn.init.zeros_(layers[first].b)
    kind = measured(Fisher(layers), model, [data(dtype=torch.float32)])
    scores = kind.scores(layers, 6)
    assert scores.pop(first) == 0.0
    assert min(scores.values()) > 0


def test_a_scaled_loss_is_scaled_back():
    model = adapted()
    plain = measured(Fisher(lora_layers(model)), model, [data()])
    scaled = measured(Fisher(lora_layers(model)), model, [data()], scale=1024.0)
    for name, (value,) in plain.kept.items():
        torch.testing.assert_close(scaled.kept[name][0], value, rtol=1e-12, atol=0)


def test_a_step_that_overflows_is_left_out():
    model = adapted()
    kind = measured(Fisher(lora_layers(model)), model, [data()])
    before = {name: tensors[0].clone() for name, tensors in kind.kept.items()}
    bad = data()
    bad[0, 0, 0] = float("inf")
    measured(kind, model, [bad])
    assert all(torch.equal(tensors[0], before[name]) for name, tensors in kind.kept.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model = adapted(torch.float32)
    plain = measured(Fisher(lora_layers(model)), model, [data(dtype=torch.float32)])
    with torch.autocast("cpu", dtype):
        half = measured(Fisher(lora_layers(model)), model, [data(dtype=torch.float32)])
    for name, (value,) in plain.kept.items():
        assert half.kept[name][0].dtype == torch.float32
        torch.testing.assert_close(half.kept[name][0], value, rtol=0.05, atol=0)


# Sensitivity


def test_sensitivity_is_adaloras():
    """PEFT's own RankAllocator computes |w ∂L/∂w|."""
    model = adapted()
    layers = lora_layers(model)
    kind = measured(Sensitivity(layers), model, [data(seed=1), data(seed=2)])
    theirs = RankAllocator(model, SimpleNamespace(beta1=0.5, beta2=0.5, target_r=1), "default")
    theirs.update_ipt(model)
    scores = kind.scores(layers, 6)
    for name in layers:
        mine = sum(value.sum().item() for key, value in theirs.ipt.items() if key.startswith(f"{name}."))
        assert scores[name] == pytest.approx(mine, rel=1e-6)
        assert mine > 0.01
    model.zero_grad()
    measured(kind, model, [data(seed=3)])
    assert all(kind.scores(layers, 6)[name] > scores[name] for name in layers)  # steps add up


def test_what_has_no_gradient_counts_as_nothing():
    model = adapted()
    kind = Sensitivity(lora_layers(model))
    kind.end(1.0, 1)
    assert set(kind.scores(lora_layers(model), 6).values()) == {0.0}


# Activation


def skewed(samples=400, wide=12, seed=0, fall=0.7):
    """Inputs with a spectrum that falls, and a mean that isn't zero."""
    chance = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(wide, wide, generator=chance))[0]
    return torch.randn(samples, wide, generator=chance) * fall ** torch.arange(wide) @ turn + 1


def test_explained_variance_is_that_of_the_covariance():
    model = adapted(torch.float32)
    layers = lora_layers(model)
    kind = Activation(layers, width=20)
    batches = skewed().split(100)
    for x in batches:
        kind.begin()
        loss_of(model, x)
        kind.end(1.0, 1)
    name = next(iter(layers))
    expected = torch.linalg.eigvalsh(torch.cov(skewed().double().T, correction=0)).flip(0)
    torch.testing.assert_close(kind._explained(name), expected / expected.sum(), rtol=1e-3, atol=1e-5)
    narrow = Activation(layers, width=9)
    narrow.begin()
    loss_of(model, skewed())
    narrow.end(1.0, 1)
    found = narrow._explained(name)
    torch.testing.assert_close(found[:4], (expected / expected.sum())[:4], rtol=0.05, atol=0)


def test_counts_are_evas():
    """PEFT's EVA shares 10 directions between the layers as ours does."""
    model = adapted(torch.float32)
    batches = [{"x": x} for x in skewed(800, fall=0.95).split(200)]
    config = LoraConfig(
        r=5,
        target_modules=["first", "second"],
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=1.6, use_label_mask=False),
    )
    fresh = get_peft_model(Net(), config)
    for adapted_model in (model, fresh):  # three directions are all that the second layer sees
        adapted_model.get_parameter("base_model.model.first.base_layer.weight").data[3:] *= 0.1
    theirs = get_eva_state_dict(
        fresh,
        batches * 5,
        config,
        forward_fn=lambda model, inputs: model(inputs["x"]),
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None,
        show_progress_bar=False,
    )
    layers = lora_layers(model)
    kind = Activation(layers, width=20)
    with model.disable_adapter():
        for batch in batches:
            kind.begin()
            loss_of(model, batch["x"])
            kind.end(1.0, 1)
    mine = kind.scores(layers, 10)
    found = {name: len(directions) for name, directions in theirs.items()}
    assert sum(found.values()) == 10
    assert max(found.values()) > 6
    assert {name.rpartition(".")[2]: score for name, score in mine.items()} == {
        name.rpartition(".")[2]: float(rank) for name, rank in found.items()
    }


# Ranks


@pytest.mark.parametrize("kind", [Fisher, Activation])
def test_two_ranks_are_one(on_two_ranks, kind):
    """The second rank's batch doesn't reach one of the layers."""
    options = {"width": 5} if kind is Activation else {}

    def run(rank=None):
        model = adapted()
        layers = lora_layers(model)
        batches = [data(seed=1), data(seed=2)]
        measure = kind(layers, **options)
        if rank is None:
            measured(measure, model, batches)
            last = list(layers)[1]
            measure.begin()
            loss_of_second(model, data(seed=3)).backward()
            measure.end(1.0, 1)
            return {name: tensors for name, tensors in measure.kept.items() if name == last}
        torch.distributed.init_process_group("gloo")
        try:
            measured(measure, model, [batches[rank]], world=2)
            measure.begin()
            if rank:
                loss_of_second(model, data(seed=3)).backward()
            measure.end(1.0, 2)
        finally:
            torch.distributed.destroy_process_group()
        return dict(list(measure.kept.items())[1:])

    def loss_of_second(model, x):
        return model.base_model.model.second(x[..., :9]).square().mean()

    def on_rank():
        import os

        return run(int(os.environ["RANK"]))

    first, second = on_two_ranks(on_rank)
    expected = run()
    for name, tensors in expected.items():
        for mine, other, alone in zip(first[name], second[name], tensors, strict=True):
            assert torch.equal(mine, other)
            torch.testing.assert_close(mine, alone, rtol=1e-5, atol=1e-7)
