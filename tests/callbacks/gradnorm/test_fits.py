"""Which layer is measured, what is logged, and what a resumed run continues with."""

import csv

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks import GradNorm, StagedUnfreezing, TaskWeights
from torch.utils.data import DataLoader

from tests.support.task_modules import TASKS, Sorts, data


def test_the_default_layer(fit):
    keep = fit(Sorts(), GradNorm(), max_steps=1)
    assert keep.gradnorm.layer is None

    class Lora(Sorts):
        def __init__(self):
            super().__init__()
            from peft import LoraConfig, inject_adapter_in_model

            inject_adapter_in_model(LoraConfig(r=2, target_modules=["down"]), self)

    half, frozen, seen = Lora(), Lora(), []
    half.blocks[1].requires_grad_(False)
    frozen.blocks.requires_grad_(False)
    for module in (Lora(), half, frozen, Sorts()):
        fit(module, GradNorm(), callbacks=[See(seen)], max_steps=1)
    assert seen == [
        "blocks.1.down.lora_B.default",
        "blocks.0.down.lora_B.default",
        "blocks.1.down.base_layer",
        "blocks.1.down",
    ]


class See(Callback):
    """The layer that is watched."""

    def __init__(self, seen):
        self.seen = seen

    def on_train_batch_end(self, trainer, *_):
        (gradnorm,) = (callback for callback in trainer.callbacks if isinstance(callback, GradNorm))
        self.seen.append(gradnorm._gradients.name)


def test_a_resumed_run_is_the_uninterrupted_one(make_trainer, tmp_path):
    class Forgets(Sorts):
        """After the first epoch one task is all there is, so what is known of the others is in the state."""

        def training_step(self, batch, batch_idx):
            kept = batch[2] >= (0 if self.current_epoch == 0 else 2)
            return super().training_step([column[kept] for column in batch], batch_idx)

    def run(folder):
        module, gradnorm = Forgets(adam=True), GradNorm(every_n_steps=2)
        saves = ModelCheckpoint(tmp_path / folder, every_n_train_steps=4, save_top_k=-1, filename="{step}")
        trainer = make_trainer(
            callbacks=[gradnorm, saves],
            enable_checkpointing=True,
            max_epochs=2,
            default_root_dir=tmp_path,
            accumulate_grad_batches=2,
        )
        return module, gradnorm, trainer

    loader = DataLoader(data(64), 8)
    module, gradnorm, trainer = run("whole")
    trainer.fit(module, loader)
    again, resumed, trainer = run("again")
    trainer.fit(again, loader, ckpt_path=tmp_path / "whole" / "step=4.ckpt")
    for name, value in module.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    whole, other = gradnorm._statistics.state_dict(), resumed._statistics.state_dict()
    assert (whole["norms"] > 0).all()
    for key in ("norms", "losses"):
        assert torch.equal(whole[key], other[key])
    assert torch.equal(whole["initial"]["sums"], other["initial"]["sums"])
    assert (module.tasks.weights != 1).all()


def test_a_run_resumed_in_a_later_stage_measures_the_same_layer(make_trainer, tmp_path):
    """Which layer is taken depends on what trains when the run begins: then only block 0, later both."""

    class Lora(Sorts):
        def __init__(self):
            super().__init__(adam=True)
            from peft import LoraConfig, inject_adapter_in_model

            inject_adapter_in_model(LoraConfig(r=2, target_modules=["down"]), self)
            self.head.requires_grad_(True)

    def run(folder, ckpt_path=None):
        module, gradnorm, seen = Lora(), GradNorm(), []
        stages = [{"at": 0, "train": {"blocks.0": 1.0}}, {"at": 3, "train": {"*": 1.0}}]
        saves = ModelCheckpoint(tmp_path / folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        trainer = make_trainer(
            callbacks=[StagedUnfreezing(stages, unit="step"), gradnorm, See(seen), saves],
            enable_checkpointing=True,
            max_epochs=3,
        )
        trainer.fit(module, DataLoader(data(16), 8), ckpt_path=ckpt_path)
        return module.state_dict(), set(seen)

    expected, measured = run("whole")
    resumed, again = run("again", tmp_path / "whole" / "step=4.ckpt")
    assert measured == again == {"blocks.0.down.lora_B.default"}
    for name, value in expected.items():
        assert torch.equal(value, resumed[name]), name


def test_a_checkpoint_of_other_tasks_is_refused(fit, tmp_path):
    class Other(Sorts):
        def __init__(self):
            super().__init__()
            self.tasks = TaskWeights(["near", "far", "new"])

    saves = ModelCheckpoint(tmp_path / "saved", filename="last")
    fit(Sorts(), GradNorm(), callbacks=[saves], enable_checkpointing=True)
    with pytest.raises(MisconfigurationException, match="found tasks near, far, new, but the checkpoint has"):
        fit(Other(), GradNorm(), max_epochs=2, ckpt_path=tmp_path / "saved" / "last.ckpt")


def test_logs(fit, tmp_path, monkeypatch):
    logger, wandb, sent = (
        CSVLogger(tmp_path, name="", version="run"),
        WandbLogger(offline=True, save_dir=tmp_path),
        [],
    )
    log = wandb.experiment.log  # of a real run
    monkeypatch.setattr(
        wandb.experiment, "log", lambda values, **options: (sent.append(values), log(values, **options))
    )
    fit(Sorts(), GradNorm(), logger=[logger, wandb], log_every_n_steps=2)
    wandb.experiment.finish()
    assert [values["trainer/global_step"] for values in sent if "gradnorm/weight/near" in values] == [1, 3, 5]
    with open(tmp_path / "run" / "metrics.csv", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row.get("gradnorm/weight/near")]
    assert [int(row["step"]) for row in rows] == [1, 3, 5]
    assert {key for key in rows[0] if key.startswith("gradnorm/")} == {
        *(
            f"gradnorm/{kind}/{task}"
            for kind in ("weight", "norm", "weighted_norm", "rate")
            for task in TASKS
        ),
        *(f"gradnorm/cosine/{pair}" for pair in ("near-far", "near-odd", "far-odd")),
    }
    assert -1 <= float(rows[0]["gradnorm/cosine/near-far"]) <= 1


def test_what_is_logged_is_of_its_step(fit, tmp_path):
    """Weights as they were in it, and cosines as autograd has them; nothing of a task that never was."""
    logger, dataset = CSVLogger(tmp_path, name="", version="run"), data(48, tasks=(1, 2))
    keep = fit(Sorts(), GradNorm(every_n_steps=2), dataset, logger=logger, log_every_n_steps=2)
    with open(tmp_path / "run" / "metrics.csv", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert [int(row["step"]) for row in rows] == [0, 2, 4]
    assert {key for key in rows[0] if "near" in key} == {"gradnorm/weight/near", "gradnorm/rate/near"}
    for row in rows:
        step = int(row["step"])
        model, batch = Sorts(), dataset[8 * step : 8 * step + 8]
        model.load_state_dict(keep.before[step])
        far, odd = (
            torch.autograd.grad(model.losses(batch)[batch[2] == task].sum(), model.blocks[1].down.weight)[0]
            for task in (1, 2)
        )
        cosine = torch.cosine_similarity(far.flatten(), odd.flatten(), dim=0)
        assert float(row["gradnorm/cosine/far-odd"]) == pytest.approx(cosine.item(), rel=1e-3)
        for task, name in ((1, "far"), (2, "odd")):
            weight = keep.before[step]["tasks.weights"][task].item()
            norm = keep.norms[step][task].item()
            assert float(row[f"gradnorm/weight/{name}"]) == pytest.approx(weight)
            assert float(row[f"gradnorm/norm/{name}"]) == pytest.approx(norm)
            assert float(row[f"gradnorm/weighted_norm/{name}"]) == pytest.approx(weight * norm)


class Stops(Callback):
    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = True


def test_no_hook_is_left_where_the_fit_ends_in_the_middle_of_a_step(fit):
    module = Sorts()
    fit(module, GradNorm(), callbacks=[Stops()], accumulate_grad_batches=3)
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())
    assert module.tasks.on_losses is None
