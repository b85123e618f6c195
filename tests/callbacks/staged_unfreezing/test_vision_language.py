"""Ready plans and LoRA in vision-language models."""

from copy import deepcopy

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks import StagedUnfreezing
from lightning_vlm_callbacks.selectors import select_parameters
from lightning_vlm_callbacks.staged_unfreezing.stages import (
    PLANS,
    plan,
)

from lightning_vlm import VLMDataModule
from lightning_vlm.data.drawn import Drawn
from tests.support.staged import (
    FULL,
    Save,
    assert_same,
    drawn,
    end_of,
    state_of,
    stub,
)

# By the first letters of the parts; V is the last half of the tower's layers, v the rest of the tower.
TRAINS = {
    "projector-then-language": {0: "p", 20: "plh"},
    "vision-last-layers": {0: "plh", 50: "plhV", 80: "plhvV"},
    "medical": {0: "p", 30: "pV", 70: "pvV"},
    "qwen-vl-3-stage": {0: "pvV", 65: "plhvV", 90: "plh"},
}


@pytest.mark.parametrize("family", ["llava", "smolvlm", "qwen2_5_vl"])
@pytest.mark.parametrize("name", TRAINS)
def test_ready_plans(vlm, family, name):
    module = vlm(family)
    blocks = module.get_submodule(module.parts["vision.layers"][0])
    while len(blocks) < 8:  # the tiny ones have two
        blocks.append(deepcopy(blocks[0]))
    last = set(select_parameters(module, "vision.layers[50%:]"))
    parts = {part[0]: set(select_parameters(module, part)) for part in FULL}
    parts |= {"v": parts["v"] - last, "V": last}
    trainer = stub(module)
    staged = StagedUnfreezing(name)
    staged.on_train_start(trainer, module)
    for step, letters in TRAINS[name].items():
        for trainer.global_step in (max(step - 1, 0), step):
            staged.on_train_batch_start(trainer, module, None, 0)
        wanted = set().union(*(parts[letter] for letter in letters))
        assert {name for name, one in module.named_parameters() if one.requires_grad} == wanted
    assert StagedUnfreezing(plan(name)).stages == staged.stages
    plan(name)[0]["train"].clear()
    assert plan(name) == PLANS[name]


def test_no_graph_is_kept_for_a_frozen_tower(vlm, make_trainer):
    module, seen, sizes = vlm(), [], []
    tower = module.get_submodule(module.parts["vision"][0])
    tower.register_forward_hook(lambda *call: seen.append(call[-1].last_hidden_state.requires_grad))
    training_step = module.training_step

    def counted(batch, batch_idx):
        kept = {}

        def pack(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = training_step(batch, batch_idx)
        sizes.append(sum(kept.values()))
        return loss

    module.training_step = counted
    before = {name: one.detach().clone() for name, one in module.named_parameters() if "vision" in name}
    now = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            names = [
                name for name, one in before.items() if not torch.equal(pl_module.get_parameter(name), one)
            ]
            now.append(sorted({"layers.1." in name for name in names}))

    others = {"projector": 1.0, "language": 1.0, "head": 1.0}
    stages = [
        {"at": 0, "train": others},
        {"at": 2, "train": {**others, "vision.layers[-1:]": 0.1}},
        {"at": 4, "train": {**others, "vision": 0.1}},
    ]
    data = VLMDataModule(train=Drawn("train", size=2), batch_size=2)  # the same batch six times
    trainer = make_trainer(
        max_epochs=6,
        callbacks=[StagedUnfreezing(stages, "step"), Look()],
        limit_val_batches=0,
    )
    trainer.fit(module, data)
    later_stages_checked = [True]  # a forward of the first batch that keeps no activations
    assert seen == [False, *later_stages_checked, False] + [True] * 4
    assert sizes[0] == sizes[1] < sizes[2] == sizes[3] < sizes[4] == sizes[5]
    assert now == [[], [], [True], [True], [False, True], [False, True]]


def test_lora_that_begins_later_is_trained_and_resumed(vlm, make_trainer, tmp_path):
    """B is zero at first; a plan by name leaves the head out, which LoRA has frozen."""

    def fit(*callbacks, **options):
        module = vlm(adapt={"projector": "full", "language": {"lora": {"r": 2, "dropout": 0.1}}})
        start = state_of(module)
        staged = StagedUnfreezing("projector-then-language", warmup_steps=2)
        trainer = make_trainer(
            max_epochs=1, accumulate_grad_batches=2, callbacks=[staged, *callbacks], limit_val_batches=0
        )
        data = VLMDataModule(train=Drawn("train", size=20), batch_size=2)
        seed_everything(1, verbose=False)
        trainer.fit(module, data, weights_only=True, **options)
        return end_of(trainer, module), start

    whole, start = fit(Save(tmp_path))  # 5 steps; LoRA from the second on
    moved = {name for name, value in start.items() if not torch.equal(value, whole[name])}
    ever = {name for name in start if "lora_" in name or "connector" in name}
    assert moved == ever
    for step in (1, 3):
        assert_same(fit(ckpt_path=tmp_path / f"{step}.ckpt")[0], whole)


def test_a_written_head_that_lora_has_frozen_is_an_error(vlm, make_trainer):
    module = vlm(adapt={"projector": "full", "language": {"lora": {"r": 2}}})
    trainer = make_trainer(callbacks=[StagedUnfreezing(plan("projector-then-language"))], max_steps=9)
    with pytest.raises(MisconfigurationException, match=r"stages\[1\]: found 'head'.*frozen by the module"):
        trainer.fit(module, drawn())
