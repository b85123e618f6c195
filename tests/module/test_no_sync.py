"""What the host waits for between the first kernel of a training step and the optimizer, on a pretended GPU.

Each family's real model trains by a real Trainer, in bfloat16, with the attention that a GPU gets. The first
step checks and compiles what it likes; of a later one every wait is listed here, with its reason. None is
ours, and none is in a layer, so that their number doesn't grow with a model.
"""

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning_vlm_callbacks import (
    AdaptiveLoRARank,
    GradientMonitor,
    GradNorm,
    NonFiniteGuard,
    ThroughputMonitor,
)

from lightning_vlm import VLMDataModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.training.packing_proof import PackingProof
from tests.module.test_families import FULL
from tests.support import tiny
from tests.support.clips import EVERY_FRAME, VIDEO, clip, talk
from tests.support.dead import DEAD
from tests.support.packed import PACKED, OfList
from tests.support.pretended_device import DEVICE, PretendedDevice, counts

PLANS = {"lfm2_vl": {"vision.layers": "full", "projector": "full", "language": "full"}}
"""What trains of a family, where not all does: SigLIP 2's position embeddings have no backward in bfloat16 on
the CPU that pretends to be a GPU."""
LORA = {"language": {"lora": {"r": 2}}}
SCATTER = ("size", "masked_scatter_backward", "")
"""torch finds how many features a picture has when their gradient goes back: once, where features learn."""
SIZES_ARE_MOVED = "transformers makes the tensor on the device from numbers of the host, once a forward"
MIXED = "which tokens are of pictures, and so go to other experts, is read from the device"
TILES = "which tiles are real is read from their pixels"
PADDED = "whether a batch is padded"
MARKS = "which tokens are the marks around pictures, a kind after the other; forward and backward"
LINEAR = {
    ("read", "_local_scalar_dense", "_ignore_causal_mask_sdpa"): PADDED,
    ("read", "_local_scalar_dense", "create_recurrent_attention_mask"): PADDED,
}
Q_FORMER = {
    ("read", "_local_scalar_dense", "_ignore_bidirectional_mask_sdpa"): "whether what it sees is padded",
    ("read", "_local_scalar_dense", "_ignore_causal_mask_sdpa"): PADDED,
}
_GEMMA4 = {
    ("read", "_local_scalar_dense", "_ignore_causal_mask_sdpa"): "whether a batch is padded",
    ("read", "_local_scalar_dense", "_ignore_bidirectional_mask_sdpa"): "whether patches are padded",
    ("read", "_to_copy", "get_image_features"): "how many tokens each picture has is in a mask",
    ("size", "index", "modeling_gemma4"): "real patches and tokens of pictures are in masks",
    ("size", "index_put", ""): "and in the backward of that",
}
ALLOWED = {
    "llava_next": {("upload", "_to_copy", "pack_image_features"): SIZES_ARE_MOVED},
    "llava_next_video": {("upload", "_to_copy", "pack_image_features"): SIZES_ARE_MOVED},
    "llava_onevision": {("upload", "_to_copy", "pack_image_features"): SIZES_ARE_MOVED},
    "pixtral": {
        ("upload", "_to_copy", "modeling_pixtral"): SIZES_ARE_MOVED,
        ("upload", "_to_copy", "get_image_features"): SIZES_ARE_MOVED,
        ("read", "_to_copy", "get_image_features"): "and reads it back",
    },
    "mistral3": {
        ("upload", "_to_copy", "modeling_pixtral"): SIZES_ARE_MOVED,
        ("upload", "_to_copy", "get_image_features"): SIZES_ARE_MOVED,
        ("read", "_to_copy", "get_image_features"): "and reads it back",
    },
    "smolvlm": {
        ("size", "index", "get_image_features"): TILES,
        ("read", "_to_copy", "get_image_features"): TILES,
        ("read", "_local_scalar_dense", "_ignore_bidirectional_mask_sdpa"): "whether tiles are padded",
    },
    "idefics3": {
        ("size", "index", "get_image_features"): TILES,
        ("read", "_to_copy", "get_image_features"): TILES,
        ("read", "_local_scalar_dense", "_ignore_bidirectional_mask_sdpa"): "whether tiles are padded",
        ("read", "_local_scalar_dense", "torch_compilable_check"): "features against tokens, elsewhere ours",
    },
    "lighton_ocr": {("upload", "_to_copy", "modeling_pixtral"): SIZES_ARE_MOVED},
    "lfm2_vl": {
        ("read", "_local_scalar_dense", "_ignore_causal_mask_sdpa"): PADDED,
        ("read", "_local_scalar_dense", "create_recurrent_attention_mask"): PADDED,
        ("read", "_local_scalar_dense", "_ignore_bidirectional_mask_sdpa"): "whether pictures are padded",
        ("read", "_local_scalar_dense", "get_image_features"): "how many patches each picture has",
    },
    "deepseek_ocr2": {
        ("read", "_to_copy", "get_image_features"): "how many tiles each picture has",
        ("upload", "index", "get_rel_pos"): "places relative to one another, once a layer of SAM's tower",
        ("upload", "index_put", "__call__"): "the same, backward",
    },
    "molmo2": {
        ("read", "_local_scalar_dense", "_ignore_bidirectional_mask_sdpa"): "whether patches lack at an edge",
        ("size", "index", "modeling_molmo2"): "which places have patches, and which tokens are features",
        ("size", "index_put", "__call__"): "the same, backward",
    },
    "got_ocr2": {
        ("upload", "index", "get_rel_pos"): "which relative positions patches have, in each of SAM's layers",
        ("upload", "index_put", "__call__"): "the same, backward",
    },
    "lfm3_vl": {
        ("read", "_local_scalar_dense", "_ignore_causal_mask_sdpa"): PADDED,
        ("read", "_local_scalar_dense", "create_recurrent_attention_mask"): PADDED,
    },
    "ovis2": {
        ("upload", "_to_copy", "get_image_features"): "the numbers of the marks around pictures",
        ("read", "_local_scalar_dense", "modeling_ovis2"): MARKS,
        ("size", "index_put_", "modeling_ovis2"): MARKS,
        ("size", "index", "__call__"): MARKS,
        ("size", "index_put", "__call__"): MARKS,
    },
    "idefics2": {
        ("size", "index", "get_image_features"): TILES,
        ("read", "_to_copy", "get_image_features"): TILES,
        ("read", "_local_scalar_dense", "_ignore_bidirectional_mask_sdpa"): "whether patches are padded",
        ("read", "_local_scalar_dense", "torch_compilable_check"): "features against tokens, elsewhere ours",
    },
    "granite4_vision": {
        ("size", "index", "modeling_granite4_vision"): "features are added by a mask, in each layer",
        ("size", "index_put", ""): "and in its backward",
    },
    "granite_docling": {
        ("size", "index", "get_image_features"): "how many tiles a sample has is in a mask",
        ("read", "_to_copy", "get_image_features"): "how many tiles a sample has is in a mask",
    },
    "gemma3n": {
        ("upload", "_to_copy", "_gaussian_topk"): "how many standard deviations its sparse layers drop",
    },
    "gemma4": _GEMMA4,
    "gemma4_31b": _GEMMA4,
    "mllama": {
        ("read", "_local_scalar_dense", "_ignore_causal_mask_sdpa"): PADDED,
    },
    "ernie4_5_vl_moe": {
        ("read", "_local_scalar_dense", "modeling_ernie4_5_vl_moe"): MIXED,
        ("read", "_local_scalar_dense", "get_max_seqlen"): SIZES_ARE_MOVED,
        ("read", "_to_copy", ""): SIZES_ARE_MOVED,
        ("read", "copy_", "_temporal_slicing"): SIZES_ARE_MOVED,
        ("size", "index", ""): MIXED,
        ("size", "index_put", ""): MIXED,
        ("size", "index_put_", ""): MIXED,
        ("size", "repeat_interleave", "get_vision_cu_seqlens"): SIZES_ARE_MOVED,
        ("upload", "_to_copy", ""): SIZES_ARE_MOVED,
    },
    "hunyuan_vl": {("size", "index", "get_placeholder_mask"): "features against tokens, elsewhere ours"},
    "kosmos-2": {
        ("size", "index_put_", "forward_embedding"): "it puts features where a mask says",
        ("size", "index_put", "__call__"): "the same in the backward, by autograd",
        ("size", "index", "__call__"): "the same in the backward, by autograd",
    },
    "llama4": {("read", "_local_scalar_dense", "_ignore_causal_mask_sdpa"): PADDED},
    "blip-2": Q_FORMER,
    "instructblip": Q_FORMER,
    "qwen3_5": LINEAR,
    "qwen3_5_moe": LINEAR,
    "minicpmv4_6": LINEAR
    | {
        ("upload", "_to_copy", "modeling_minicpmv4_6"): SIZES_ARE_MOVED,
        ("read", "_local_scalar_dense", "get_max_seqlen"): SIZES_ARE_MOVED,
        ("size", "index", "get_placeholder_mask"): "features against tokens, compared although ours was",
    },
}
"""What waits in transformers by family: the kind, the operation, and a part of where; `docs/decisions.md`."""


class Pretended(CPUAccelerator):
    """Lets a strategy have the device that is pretended."""

    def setup_device(self, device):
        pass


class WaitsOfSteps(Callback):
    """Lists the waits of each step, from its batch's arrival to its optimizer, and those after that."""

    def __init__(self, device):
        self.device = device
        self.steps = []
        self.between = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.between.append(list(self.device.waits))
        self.device.waits.clear()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.steps.append(list(self.device.waits))
        self.device.waits.clear()


@pytest.fixture
def waits_of_a_step(module, tmp_path):
    """The waits of the last of some steps of a family's fit; with a logger those between the last two."""

    def fit(
        family,
        adapt=FULL,
        packed=False,
        callbacks=(),
        steps=2,
        tasks=None,
        logging=None,
        source=None,
        size=2,
        **options,
    ):
        no_gradient = DEAD.get(family) if adapt is FULL else None
        one = module(
            family, adapt=adapt, dtype="bfloat16", clip=1.0, no_gradient_needed=no_gradient, **options
        )
        batching = {"batching": "packed", "max_tokens": 400} if packed else {"batch_size": size}
        source = source or Drawn("train", size=6, tasks=tasks or ["vqa"])
        data = VLMDataModule(train=source, shuffle=False, on_bad_sample="skip", video=EVERY_FRAME, **batching)
        with PretendedDevice() as device:
            seen = WaitsOfSteps(device)
            trainer = Trainer(
                devices=1,
                strategy=SingleDeviceStrategy(DEVICE, accelerator=Pretended()),
                precision="bf16-true",
                max_steps=steps,
                log_every_n_steps=50 if logging else 1,
                callbacks=[*callbacks, seen],
                default_root_dir=tmp_path,
                logger=logging or False,
                enable_checkpointing=False,
                enable_progress_bar=bool(logging),
                enable_model_summary=False,
                use_distributed_sampler=False,
            )
            trainer.fit(one, data)
        assert len(seen.steps) == steps
        return seen.between[-1] if logging else seen.steps[-1]

    return fit


def unexpected(waits, allowed=()):
    """Those that aren't allowed."""
    return counts(
        [
            wait
            for wait in waits
            if not any(
                (wait.what, wait.operation) == (what, operation) and part in wait.where
                for what, operation, part in allowed
            )
        ]
    )


CASES = [(family, family in PACKED) for family in tiny.FAMILIES]


@pytest.mark.parametrize(("family", "packed"), [*CASES, ("qwen2_5_vl", False), ("llava_next", False)])
def test_no_wait_but_those_named(waits_of_a_step, monkeypatch, family, packed):
    # It is before the first step, takes longer than both, and test_packing_proof.py has it for each family.
    monkeypatch.setattr(PackingProof, "on_train_start", Callback.on_train_start)
    allowed = {SCATTER: "", **ALLOWED.get(family, {})}
    waits = waits_of_a_step(family, PLANS.get(family, FULL), packed=packed)
    assert unexpected(waits, allowed) == {}
    for entry in allowed:
        if entry != SCATTER or family not in ("mllama", "kosmos-2"):
            assert unexpected(waits, [entry]) != counts(waits), f"{entry} is gone: allow it no more"


VIDEOS = [
    talk((clip(), "What moves?"), "Nothing."),
    talk((clip(3, seed=1), "What moves?"), "Nothing at all."),
    Drawn("train", size=1, tasks=["vqa"])[0],
] * 3


JOINS = "transformers joins what several layers get of pictures and of videos where masks say"
_JOINED = {
    ("size", "index", "forward"): JOINS,
    ("read", "_local_scalar_dense", "forward"): JOINS,
    ("size", "index", "step.py"): JOINS,
    ("size", "index_put", "step.py"): JOINS,
    ("size", "index_put", "forward"): JOINS,
    ("size", "index_put_", "forward"): JOINS,
}
WITH_VIDEOS = {
    "qwen3_vl": _JOINED,
    "qwen3_vl_moe": _JOINED,
    "llava_next_video": {("upload", "_to_copy", "modeling_llava_next_video"): SIZES_ARE_MOVED},
    "video_llama_3": {
        ("size", "index", "modeling_video_llama_3"): "which features are kept is a mask",
        ("size", "index_put", ""): "and so is its gradient",
    },
}
"""What waits in a batch that has both, in addition."""


READS_POSITIONS = ("gemma4", "gemma4_31b")
"""Families of which transformers counts a video's patches on the device."""


@pytest.mark.parametrize("family", [family for family in VIDEO if family not in READS_POSITIONS])
def test_nor_with_videos(waits_of_a_step, family):
    """In each batch are videos of two lengths and a picture."""
    allowed = {SCATTER: "", **ALLOWED.get(family, {}), **WITH_VIDEOS.get(family, {})}
    waits = waits_of_a_step(family, source=OfList(VIDEOS), size=3, steps=3)
    assert unexpected(waits, allowed) == {}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_wait_for_nothing(waits_of_a_step, checkpointing):
    waits = waits_of_a_step("qwen2_5_vl", LORA, packed=True, gradient_checkpointing=checkpointing)
    assert counts(waits) == {}


@pytest.mark.parametrize(("kind", "packed"), [("soft", False), ("wasserstein", True), ("iou", True)])
def test_nor_does_the_box_loss(waits_of_a_step, kind, packed):
    assert counts(waits_of_a_step("llava", LORA, tasks=["grounding"], packed=packed, box_loss=kind)) == {}


def test_nor_where_the_box_loss_is_logged(waits_of_a_step, tmp_path):
    options = {"tasks": ["grounding"], "steps": 4, "logging": CSVLogger(tmp_path), "box_loss": "iou"}
    assert counts(waits_of_a_step("llava", LORA, **options)) == {}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_checkpointing_adds_none(waits_of_a_step, checkpointing):
    waits = waits_of_a_step("qwen3_vl", gradient_checkpointing=checkpointing)
    assert unexpected(waits, [SCATTER]) == {}
    assert len(waits) == 1


def test_nor_between_steps(waits_of_a_step, tmp_path):
    """With a logger, a progress bar and the monitor of throughput, from an optimizer to the next batch."""
    waits = waits_of_a_step(
        "llava",
        LORA,
        steps=4,
        logging=CSVLogger(tmp_path),
        callbacks=[ThroughputMonitor(), TQDMProgressBar()],
    )
    assert counts(waits) == {}


def test_a_progress_bar_shows_the_loss_of_the_step_before(module, make_quiet):
    losses, shown = [], []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            losses.append(trainer.callback_metrics["train/loss"].item())
            shown.append(trainer.progress_bar_metrics.get("train/loss"))

    data = VLMDataModule(train=Drawn("train", size=6, tasks=["vqa"]), batch_size=2)
    make_quiet(max_steps=3, callbacks=[Look()]).fit(module("llava", adapt=LORA), data)
    assert shown == [None, *losses[:2]]


@pytest.mark.parametrize("packed", [False, True])
def test_callbacks_add_one(waits_of_a_step, packed):
    """Whether a step is finite must be known before it is made. Tasks of tokens are split without a wait."""
    guard = ("read", "_local_scalar_dense", "nonfinite_guard/detection.py")
    callbacks = [GradientMonitor(every_n_steps=1), NonFiniteGuard(), GradNorm(every_n_steps=1)]
    options = {"callbacks": callbacks, "tasks": ["caption", "vqa"], "steps": 3, "packed": packed}
    waits = waits_of_a_step("qwen2_vl", **options)
    assert unexpected(waits, [SCATTER, guard]) == {}
    assert len(waits) == 2


def test_ranks_are_measured_with_one(waits_of_a_step):
    """In rows of several samples: whether the step is finite, as the gradients that are measured."""
    rank = AdaptiveLoRARank(start=4, every=4, until=4, min_rank=1, multiple_of=1)
    waits = waits_of_a_step("qwen2_vl", LORA, callbacks=[rank], steps=4, packed=True)
    assert unexpected(waits, [("read", "_local_scalar_dense", "adaptive_lora_rank/importance.py")]) == {}
    assert len(waits) == 1
