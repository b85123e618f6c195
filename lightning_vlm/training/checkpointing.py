"""What a `VLMModule` writes into checkpoints and reads from them."""

from collections import Counter
from typing import TYPE_CHECKING, Any, Self

from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn

from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.task_table import OTHER
from lightning_vlm.models.loading.checkpoint import base_of, check_base

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule

KEY = "lightning_vlm"
"""Where a checkpoint keeps what is ours."""


class LoadedWithoutCode(LightningModule):
    """A module whose `load_from_checkpoint` runs no code that the checkpoint brings or names.

    Lightning gives the arguments that a checkpoint has to the class, and unpickles whatever comes from an
    address. A stranger's checkpoint would so trust the stranger.
    """

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **options: Any) -> Self:
        """As Lightning's, but only a caller can name a `family`, set `trust_remote_code` or unpickle code.

        Args:
            checkpoint_path: The file.
            args: As Lightning's.
            options: As Lightning's: arguments of the class, in place of those that the checkpoint has.
        """
        trusted = {"family": None, "trust_remote_code": False, "weights_only": True}
        return super().load_from_checkpoint(checkpoint_path, *args, **{**trusted, **options})


def fill_checkpoint(module: "VLMModule", checkpoint: dict[str, Any]) -> None:
    """Keep only what ever trains; the rest is the base model's, whose identity is kept instead.

    Args:
        module: That is saved.
        checkpoint: As Lightning has made it.
    """
    module.trained.keep_in(checkpoint, module.trainer)
    own = base_of(module.name_or_path, module.loaded.fingerprint)
    own |= module.callbacks.run_state.save(module.trainer, checkpoint, module.trained.buffers())
    if module.tasks is not None:
        module.steps.log.write(module.trainer)  # a run that is killed and resumed here keeps it
        log = module.steps.log.state_dict()
        own["tasks"] = {**module.tasks.state(), "log": log, "samples": _samples_of_tasks(module)}
    checkpoint[KEY] = own


def _samples_of_tasks(module: "VLMModule") -> dict[str, int]:
    """How many samples of each task are trained on, for people; nothing where that isn't known."""
    data = getattr(module.trainer, "datamodule", None)
    if not isinstance(data, VLMDataModule):
        return {}
    names, of = data.task_table
    if OTHER in names:
        return {}
    counts = Counter(of)
    return {name: counts[number] for number, name in enumerate(names)}


def read_checkpoint(module: "VLMModule", checkpoint: dict[str, Any]) -> None:
    """Take over what `fill_checkpoint` wrote, before Lightning loads the weights.

    Args:
        module: With its model.
        checkpoint: As Lightning has it, perhaps from an older version, which wrote less.

    Raises:
        UserError: It is a checkpoint of another base model, or its tasks or options don't fit.
    """
    own = check_base(checkpoint.get(KEY), module.name_or_path, module.loaded.fingerprint)
    trainer = module._trainer  # None where only weights are loaded
    module.trained.prepare_load(checkpoint, own.get("buffers", {}), trainer)
    module.callbacks.run_state.load(trainer, checkpoint, own)
    if module.tasks is not None and module.trainer.state.fn == TrainerFn.FITTING:
        saved = own.get("tasks", {})
        module.tasks.load_state(saved)
        module.steps.log.load_state_dict(saved.get("log", {}))
