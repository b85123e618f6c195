"""Batch norms of a loaded model keep their statistics, though their weights train."""

import torch
from lightning_vlm_callbacks.modes import hold_modes
from torch import nn

from lightning_vlm.models.loading.load import load_model


def test_pictures_of_a_batch_do_not_mix_and_statistics_stay(model_folder):
    model = load_model(model_folder("fast_vlm")).model
    hold_modes(model)
    model.train()
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    assert norms
    assert all(weight.requires_grad for part in norms for weight in part.parameters())
    before = [part.running_mean.clone() for part in norms]
    pictures = torch.rand(2, 3, 128, 128)
    tower = model.model.vision_tower
    together = tower(pictures).last_hidden_state
    alone = torch.cat([tower(one).last_hidden_state for one in pictures.split(1)])
    torch.testing.assert_close(together, alone)
    together.square().sum().backward()
    assert any(part.weight.grad.any() for part in norms)
    assert all(torch.equal(part.running_mean, mean) for part, mean in zip(norms, before, strict=True))
