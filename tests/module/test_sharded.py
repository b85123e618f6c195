"""A model cut into pieces over processes (FSDP2): the update is that of one process."""

import pytest
import torch
from lightning.pytorch import Callback

from lightning_vlm import VLMModule
from lightning_vlm.errors import UserError
from lightning_vlm.step import own_share
from lightning_vlm.training.sharding_refusals import refuse_when_sharded
from tests.support.packed import OfList
from tests.support.ranks import call_on_ranks
from tests.support.sharded import Fit, distance, run_fit
from tools.reliability.sharded import mixed

FULL = {"language": "full", "projector": "full"}
TIED = {
    "language.layers": {"lora": {"r": 2, "dora": True}},
    "model.language_model.embed_tokens": "full",  # the head, too
}


@pytest.mark.parametrize(
    ("family", "adapt"),
    [("llava", "lora"), ("qwen2_vl", FULL), ("llava_onevision", TIED), ("qwen3_vl_moe", "lora")],
)
def test_the_update_is_that_of_one_process(folder, family, adapt):
    fit = Fit(folder(family), family, adapt)
    (alone,) = call_on_ranks(run_fit, 1, fit, ranks=1)
    for found in call_on_ranks(run_fit, 2, fit):
        assert distance(found["weights"], alone["weights"]) < 1e-6
        for name, value in alone["logged"].items():
            assert found["logged"][name].item() == pytest.approx(value.item(), rel=1e-5), name


def test_four_bits_are_cut_and_read_again(folder):
    """QLoRA: each process has half of the codes between steps, and the update is that of one process."""
    options = {"quantization": {"method": "nf4", "compute_dtype": "float32"}}
    fit = Fit(folder("llava"), "llava", "lora", options=options)

    def on_rank(ranks):
        kept = Kept()
        found = run_fit(ranks, fit._replace(trainer={"callbacks": [kept]}))
        return {**found, "codes": kept.codes}

    (alone,) = call_on_ranks(on_rank, 1, ranks=1)
    for found in call_on_ranks(on_rank, 2):
        assert distance(found["weights"], alone["weights"]) < 1e-6
        assert 2 * found["codes"] == alone["codes"] > 0


@pytest.mark.parametrize("adapt", ["lora", {"language": {"lora": {"r": 2, "rslora": True}}}])
def test_batches_of_text_alone_keep_processes_in_step(folder, adapt):
    """A process without pictures gathers and sends the same weights as the others; a hang ends the test.

    With the second plan nothing trains outside of the blocks.
    """
    fit = Fit(folder("llava"), "llava", adapt, steps=2, source=OfList(mixed(pictures=10, texts=6)))
    (alone,) = call_on_ranks(run_fit, 1, fit, ranks=1)
    for found in call_on_ranks(run_fit, 2, fit):
        assert distance(found["weights"], alone["weights"]) < 1e-6


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_differs_by_its_rounding(folder, precision):
    """By no more than micro-batches half as large change the update of one process, twice."""
    fit = Fit(folder("llava"), "llava", FULL, steps=2, trainer={"precision": precision})
    (alone,) = call_on_ranks(run_fit, 1, fit, ranks=1)
    (halves,) = call_on_ranks(run_fit, 1, fit._replace(batch=2, accumulate=4), ranks=1)
    expected = distance(halves["weights"], alone["weights"])
    for found in call_on_ranks(run_fit, 2, fit):
        assert distance(found["weights"], alone["weights"]) <= 2 * expected


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"quantization": "int8"}, "quantization int8"),
        ({"new_tokens": ["<seg>"]}, "new_tokens"),
        ({"gradient_checkpointing": "auto"}, "gradient_checkpointing auto"),
        ({"task_weights": "uncertainty"}, "task_weights uncertainty"),
    ],
)
def test_what_cannot_be_right_is_refused(folder, make_quiet, options, found):
    """Before anything is loaded; meshes of one process say it too."""
    module = VLMModule(str(folder("llava")), **options)
    trainer = make_quiet()
    trainer.strategy.connect(module)
    module._device_mesh = {"tensor_parallel": OneOf(1)}
    with pytest.raises(UserError, match=f"^ModelParallelStrategy: found model.{found}"):
        refuse_when_sharded(trainer, fits=True)


def test_tensor_parallelism_is_refused(folder, make_quiet):
    module = VLMModule(str(folder("llava")))
    trainer = make_quiet()
    trainer.strategy.connect(module)
    module._device_mesh = {"tensor_parallel": OneOf(2)}
    with pytest.raises(UserError, match=r"tensor_parallel_size 2.*set tensor_parallel_size: 1"):
        refuse_when_sharded(trainer, fits=False)


class Kept(Callback):
    """Counts what this process keeps of weights in 4 bits between steps."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        weights = [weight for weight in pl_module.parameters() if weight.dtype == torch.uint8]
        self.codes = sum(own_share(weight).numel() for weight in weights)


class OneOf:
    """A dimension of a mesh, by its size."""

    def __init__(self, size):
        self._size = size

    def size(self):
        return self._size
