"""NonFiniteGuard with vision-language models."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning_vlm_callbacks import NonFiniteBundle, NonFiniteGuard
from lightning_vlm_callbacks.nonfinite_guard.batches import check_batch

from tests.support.nonfinite import assert_same, optimizer_state

# isort: split
from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.optim import Constant

pytestmark = pytest.mark.filterwarnings(
    "ignore:NonFiniteGuard", "ignore:.*val_dataloader", "ignore:.*LeafSpec"
)


@pytest.fixture(scope="module")
def vlm(model_folder):
    def make(**options):
        torch.manual_seed(0)
        adapt = {"projector": "full", "language": {"lora": {"r": 2}}}
        given = {"adapt": adapt, "schedule": Constant(), **options}
        made = VLMModule(str(model_folder("smolvlm")), **given)
        made.configure_model()
        return made

    return make


class Without(Drawn):
    """Drawn samples but some."""

    def __init__(self, size, skipped=()):
        super().__init__("train", size=size, tasks=["vqa", "caption"])
        self.kept = [index for index in range(size) if index not in skipped]

    def __len__(self):
        return len(self.kept)

    def __getitem__(self, index):
        return super().__getitem__(self.kept[index])


def drawn(module, size, batch_size=4, skipped=()):
    source = Without(size, skipped)
    return VLMDataModule(train=source, batch_size=batch_size, shuffle=False, processor=module.processor)


class SpoilPixels(Callback):
    """NaN into one picture of a micro-batch."""

    def __init__(self, batch_idx):
        self.batch_idx = batch_idx

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == self.batch_idx:
            batch.inputs["pixel_values"].view(-1)[0] = torch.nan


def test_check_batch_of_a_vlm(vlm):
    module = vlm()
    batch = next(iter(drawn(module, 4).train_dataloader()))
    assert check_batch(batch, module) == []
    size = module.model.get_input_embeddings().num_embeddings
    batch.inputs["input_ids"][0, 3] = size
    pixels = batch.inputs["pixel_values"]
    pixels[1] = -1.0
    targets = module.targets(batch)
    batch = batch._replace(targets=targets._replace(weights=targets.weights * 0))
    found = check_batch(batch, module)
    assert len(found) == 3, found
    assert f"expected 0 to {size - 1}" in found[0]
    assert "pictures [5, 6, 7, 8, 9] of 20 are one colour (-1)" in found[1]
    assert "targets.weights: nothing is supervised" in found[2]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_vlm_is_as_if_it_had_never_seen_the_batch(vlm, make_trainer, tmp_path, precision):
    """Micro-batch 3, the second of step 1, is bad. VLMModule clips by itself, and divides by the true weights
    of all micro-batches: a replay that counted into its sums would change the next step."""
    runs = []
    for spoil, skipped in ((3, ()), (None, range(4, 8))):
        module, guard = vlm(clip=0.5), NonFiniteGuard(dirpath=tmp_path)
        trainer = make_trainer(
            max_epochs=1,
            accumulate_grad_batches=2,
            use_distributed_sampler=False,
            precision=precision,
            callbacks=[guard, SpoilPixels(spoil)],
        )
        trainer.fit(module, drawn(module, 16, 2, skipped))
        weights = {name: one.detach() for name, one in module.named_parameters()}
        runs.append(
            (weights, optimizer_state(trainer.optimizers[0]), guard.skipped, module.steps.tokens_seen)
        )
    assert [one[2] for one in runs] == [1, 0]
    assert_same(runs[0][0], runs[1][0])
    assert_same(runs[0][1], runs[1][1])
    text = (tmp_path / "step-00000001-rank0" / "report.md").read_text()
    assert "batch 3: the loss is NaN or infinite" in text
    assert "- inputs.pixel_values: 1 of " in text
    assert "NaN or infinity comes into model.model (SmolVLMModel) from outside any module." in text
    bundle = NonFiniteBundle.load(tmp_path / "step-00000001-rank0" / "bundle.pt")
    with pytest.warns(UserWarning, match=r"the module has no tasks\.weights"):  # which only a fit knows
        found = bundle.replay(vlm())
    assert str(found) in text
    assert set(bundle.batch.tasks) <= {"vqa", "caption"}


def test_a_module_of_a_vlm_is_named(vlm, make_trainer, tmp_path):
    module = vlm()
    layer = module.get_submodule(module.parts["language.layers"][0])[1].mlp
    name = next(name for name, one in module.named_modules() if one is layer)
    layer.register_forward_hook(lambda _, __, output: output / 0 if module.global_step == 1 else None)
    make_trainer(
        max_steps=2, use_distributed_sampler=False, callbacks=[NonFiniteGuard(dirpath=tmp_path)]
    ).fit(module, drawn(module, 8))
    text = (tmp_path / "step-00000001-rank0" / "report.md").read_text()
    assert f"NaN or infinity comes out of {name} ({type(layer).__name__}), whose inputs are finite" in text
