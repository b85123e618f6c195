"""What computes no gradients never trains: the indexers of Mistral Large 4, which choose where to attend."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, MistralLarge4Config

from lightning_vlm.errors import UserError
from lightning_vlm.models.no_gradients import without_gradients
from lightning_vlm.models.parts import find_parts
from lightning_vlm.models.plan.adapt import adapt, trainable_names
from tests.support.tiny.family import VISION_SIZE


@pytest.fixture
def model():
    attention = {"num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 16}
    heads = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
    indexer = {"index_head_dim": 16, "index_n_heads": 2, "index_topk": 4}
    experts = {"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2}
    size = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
    config = MistralLarge4Config(
        vision_config={"model_type": "pixtral", **VISION_SIZE, "image_size": 56, "patch_size": 7},
        text_config={**size, **attention, **heads, **indexer, **experts, **rope},
    )
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config)


INDEXERS = [f"model.language_model.layers.{layer}.self_attn.indexer" for layer in (0, 1)]


def test_they_are_found(model):
    assert without_gradients(model) == INDEXERS


@pytest.mark.parametrize("method", ["full", {"lora": {"expert_r": 0}}])
def test_all_that_trains_gets_a_gradient(model, method):
    adapt(model, {"language": method}, find_parts(model))
    trained = trainable_names(model)
    assert trained
    assert not any(".indexer." in name for name in trained)
    ids = torch.randint(1, 99, (2, 40))
    model(input_ids=ids, labels=ids).loss.backward()
    assert [name for name in sorted(trained) if model.get_parameter(name).grad is None] == []


def test_a_selector_of_nothing_else_is_refused(model):
    with pytest.raises(UserError, match=r"found full for what computes no gradients \(.*indexer"):
        adapt(model, {"*.self_attn.indexer": "full"}, find_parts(model))
    adapt(model, {"*.self_attn.indexer": "frozen", "language.layers[0].mlp": "full"}, find_parts(model))
