"""The check of a flash attention on the first batch. The exact loop stands for the kernel."""

import lightning as L
import pytest
import torch

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from lightning_vlm.models import blocks
from lightning_vlm.models.attention import callback, check, families, kernel_takes_lengths, varlen
from lightning_vlm.models.attention.callback import VarlenAttentionCheck
from lightning_vlm.models.attention.families import attention_line
from tests.support import tiny
from tests.support.packed import SAMPLES, batch_of

SDPA_IN_TOWER = "Attention: sdpa in the vision tower (it takes"
BATCHING = {"padded": {}, "packed": {"batching": "packed", "max_tokens": 2000}}


def make_module(folder, family="qwen2_5_vl", **options):
    template = None if tiny.FAMILIES[family].template else "plain"
    torch.manual_seed(0)
    module = VLMModule(str(folder), adapt="full", chat_template=template, **options)
    module.configure_model()
    return module.train()


def mixed_batch(module, pack=True):
    """Samples with pictures, and without."""
    return batch_of(module, SAMPLES, pack=pack, dtype=torch.float32)


def checked(module, batch):
    return check.check_attention(module.model, lambda: module.hidden_states(batch), batch.lengths)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "pixtral", "llava"])
def test_exact_attention_is_close_to_the_reference(family, pack, tiny_folder):
    module = make_module(tiny_folder(family), family)
    batch = mixed_batch(module, pack)
    modes = [part.training for part in module.modules()]
    distances = checked(module, batch)
    assert distances.reference == "eager"
    assert 0 <= distances.language < 1e-5
    assert (distances.tower is None) == (family == "llava")
    assert distances.tower is None or distances.tower < 1e-5
    assert [part.training for part in module.modules()] == modes
    assert module.model.get_decoder().config._attn_implementation == varlen.NAME


def test_nothing_is_compiled_for_the_check(tiny_folder):
    module = make_module(tiny_folder("qwen2_5_vl"))
    compiled = []
    blocks.compile_blocks(module.model, backend=lambda graph, inputs: compiled.append(graph) or graph)
    assert checked(module, mixed_batch(module)).language < 1e-5
    assert not compiled


@pytest.mark.parametrize("pack", [True, False])
def test_each_sample_is_compared_by_itself(pack):
    """A short one that is wrong isn't lost among long ones, and padding doesn't count."""
    hidden = torch.arange(9).reshape(1, 9, 1) if pack else torch.arange(12).reshape(2, 6, 1)
    samples = check.hidden_of_samples(hidden, [6, 3])
    expected = [range(6), range(6, 9)]
    assert [sample.flatten().tolist() for sample in samples] == [list(values) for values in expected]


def leak(query, key, value, ends, *rest):
    """Sequences see one another."""
    return IN_TURN(query, key, value, torch.tensor([0, len(query)]), *rest)


IN_TURN = varlen.attend_in_turn


@pytest.mark.parametrize(("causal", "part"), [(True, "language model"), (False, "vision tower")])
def test_a_leak_in_either_part_is_refused(causal, part, tiny_folder, monkeypatch):
    module = make_module(tiny_folder("qwen2_5_vl"))
    batch = mixed_batch(module)
    monkeypatch.setattr(
        varlen,
        "attend_in_turn",
        lambda *args: leak(*args) if args[4] == causal else IN_TURN(*args),
    )
    with pytest.raises(UserError, match=f"the {part} gives something else with flash_varlen than with"):
        checked(module, batch)
    assert module.model.get_decoder().config._attn_implementation == varlen.NAME


def test_other_flash_attentions_are_checked_too(tiny_folder):
    """One that leaves out the masks of pictures, as FlashAttention does in Gemma 3."""
    module = make_module(tiny_folder("gemma3"), "gemma3", attn_implementation="sdpa")
    batch = mixed_batch(module, False)
    assert checked(module, batch) is None
    varlen.AttentionInterface.register("flash_of_somebody", forgetful)
    varlen.AttentionMaskInterface.register("flash_of_somebody", varlen.sdpa_mask)
    module.model.get_decoder().config._attn_implementation_internal = "flash_of_somebody"
    with pytest.raises(UserError, match="with flash_of_somebody than with eager"):
        checked(module, batch)


def forgetful(module, query, key, value, attention_mask, **kwargs):
    return varlen.sdpa_attention_forward(module, query, key, value, None, **kwargs)


def test_a_large_batch_is_compared_with_sdpa(tiny_folder, monkeypatch):
    module = make_module(tiny_folder("qwen2_5_vl"))
    monkeypatch.setattr(check, "EAGER_BYTES", 1000)
    distances = checked(module, mixed_batch(module))
    assert distances.reference == "sdpa"
    assert distances.language < 1e-5


def fit(module, batching, devices, monkeypatch):
    lines = []
    monkeypatch.setattr(callback, "rank_zero_info", lines.append)
    object.__setattr__(module.callbacks, "attention_check", VarlenAttentionCheck(devices))
    data = VLMDataModule(train=Drawn("train", size=8), batch_size=2, **BATCHING[batching])
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return lines


@pytest.mark.parametrize(
    ("batching", "devices", "said"),
    [
        ("padded", {"cuda"}, []),
        ("packed", {"cuda"}, [SDPA_IN_TOWER]),
        (
            "padded",
            {"cpu"},
            [SDPA_IN_TOWER, "Attention, checked on the"],
        ),
    ],
)
def test_a_fit_says_once_what_is_used_and_what_was_found(batching, devices, said, monkeypatch):
    lines = fit(VLMModule("drawn-vlm", adapt="lora"), batching, devices, monkeypatch)
    assert len(lines) == len(said)
    for line, beginning in zip(lines, said, strict=True):
        assert line.startswith(beginning)


@pytest.mark.parametrize("batching", ["padded", "packed"])
def test_the_check_changes_no_bit_of_training(batching, monkeypatch):
    """With dropout, whose numbers it must not draw."""
    weights = []
    for devices in ({"cuda"}, {"cpu"}):
        L.seed_everything(0, verbose=False)
        module = VLMModule("drawn-vlm", adapt={"language": {"lora": {"dropout": 0.5}}})
        lines = fit(module, batching, devices, monkeypatch)
        weights.append({name: weight for name, weight in module.named_parameters() if weight.requires_grad})
    assert lines[-1].startswith(
        "Attention, checked on the first batch: the language model is 0.00% from eager"
    )
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name


@pytest.mark.parametrize(
    ("family", "options", "line"),
    [
        (
            "qwen2_vl",
            {"attn_implementation": "eager"},
            "Attention: eager in the vision tower, eager in the language model",
        ),
        (
            "smolvlm",
            {"attn_implementation": "eager"},
            "Attention: eager in the vision tower, eager in the language model",
        ),
        (
            "paligemma",
            {},
            f"{SDPA_IN_TOWER} all pictures in one call), "
            "eager in the language model (tokens of a picture or a question see those behind them)",
        ),
    ],
)
def test_the_line_says_why(family, options, line, tiny_folder):
    assert attention_line(make_module(tiny_folder(family), family, **options).model) == line


def test_the_line_says_where_the_kernel_cant(tiny_folder, monkeypatch):
    model = make_module(tiny_folder("qwen2_vl"), "qwen2_vl").model
    assert attention_line(model).endswith("(one sequence after another: cpu has no FlashAttention)")
    monkeypatch.setattr(families, "kernel_runs_on", lambda device: True)
    everywhere = "Attention: flash_varlen in the vision tower, flash_varlen in the language model"
    assert attention_line(model) == everywhere
    assert not kernel_takes_lengths(model)  # in float32
    model.bfloat16()
    assert kernel_takes_lengths(model)
    config = model.get_decoder().config
    for name, value in (("attention_dropout", 0.1), ("head_dim", 288)):
        with monkeypatch.context() as patch:
            patch.setattr(config, name, value, raising=False)
            assert attention_line(model).startswith(
                f"{everywhere} (one sequence after another: the kernel takes"
            )
            assert not kernel_takes_lengths(model)
