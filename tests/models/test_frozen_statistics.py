"""Batch norms of a loaded model keep their statistics, though their weights train."""

import torch
from lightning_vlm_callbacks.modes import hold_modes
from torch import nn
from transformers import AutoModelForImageTextToText, FastVlmConfig

from lightning_vlm.models.loading.load import load_model

CONFIG = FastVlmConfig(
    vision_config={
        "model_type": "timm_wrapper",
        "architecture": "fastvit_mci3",
        "do_pooling": True,
        "global_pool": "avg",
        "hidden_size": 128,
        "model_args": {
            "inference_mode": True,
            "layer_scale_init_value": 0.5,
            "layers": [1, 1, 1, 1, 1],
            "embed_dims": [4, 8, 16, 32, 64],
            "mlp_ratios": [2, 2, 2, 2, 2],
        },
    },
    text_config={
        "model_type": "qwen2",
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
    image_token_index=3,
)


def test_pictures_of_a_batch_do_not_mix_and_statistics_stay(tmp_path):
    torch.manual_seed(0)
    made = AutoModelForImageTextToText.from_config(CONFIG)
    for weight in made.model.vision_tower.parameters():
        if weight.ndim == 4:  # as drawn for a model, nothing of a picture comes through so many
            nn.init.kaiming_normal_(weight)
    made.save_pretrained(tmp_path)
    model = load_model(tmp_path).model
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
