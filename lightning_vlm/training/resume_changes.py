"""What differs between a resumed run and the run it continues: a line for each, or an error."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.errors import UserError
from lightning_vlm.optim import settle_rates
from lightning_vlm.training.elastic import ElasticResume
from lightning_vlm.training.run_facts import describe_run, facts_of_data

RUN = "run"
"""The key under which a checkpoint says what the run was made with."""


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each value that isn't what it was.

    Args:
        before: As from `describe_run`, out of a checkpoint; values that it doesn't have are ignored.
        now: The same of the resumed run.

    >>> changes({"data.batch_size": 8, "data.seed": 0}, {"data.batch_size": 4, "data.seed": 0})
    ['data.batch_size is 4, was 8']
    """
    known = {_argument(name) for name in before}
    lines = []
    for name in dict.fromkeys([*before, *now]):
        was = before.get(name)
        value = now.get(name)
        if was == value or _argument(name) not in known:
            continue
        if name != "seed_everything":
            lines.append(f"{name} is {_shown(value)}, was {_shown(was)}")
        elif was is not None and value is not None:
            lines.append(f"{name} is {value}, was {was}; dropout continues with the checkpoint's")
    return lines


def _argument(name: str) -> str:
    """The argument that a value belongs to, such as `model.adapt` for all that is below it."""
    first_two = name.split(".")[:2]
    return ".".join(first_two)


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)


def ended(trainer: Trainer, checkpoint: Mapping[str, Any]) -> str | None:
    """Why a run that is resumed from a checkpoint has nothing left to train; None if it has."""
    if trainer.state.fn != TrainerFn.FITTING or "loops" not in checkpoint:
        return None
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    steps = checkpoint["global_step"]
    if 0 <= trainer.max_steps <= steps:
        limit = f"trainer.max_steps above {steps}"
    elif trainer.max_epochs is not None and 0 <= trainer.max_epochs <= epochs:
        limit = f"trainer.max_epochs above {epochs}"
    else:
        return None
    return (
        f"the checkpoint is of a finished run ({epochs} epochs, {steps} steps), so that nothing will be "
        f"trained; raise {limit} to go on"
    )


class RunChanges:
    """Compares a run with the one that it continues."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        """What this run is made with, for its checkpoints."""
        self._of_stage: tuple[int, dict[str, Any]] = -1, {}
        self._before: Mapping[str, Any] | None = None
        self._groups: list[tuple[str, int]] = []
        self._options: list[dict[str, Any]] = []

    def load(self, trainer: Trainer, checkpoint: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Keep what a checkpoint says of its run, and say so if that run has ended.

        Args:
            trainer: That of the resumed run.
            checkpoint: As Lightning has it.
            facts: Those that were saved in it; none if an older version did.
        """
        self._before = facts
        states = checkpoint.get("optimizer_states", [])
        self._groups = []
        if len(states) == 1:
            self._groups = _groups(states[0]["param_groups"])
        line = ended(trainer, checkpoint)
        if line is not None:
            rank_zero_warn(line)

    def configured(self, optimizer: Optimizer) -> None:
        """Keep the options of an optimizer, before the state of a checkpoint is loaded into it."""
        self._options = []
        for group in optimizer.param_groups:
            options = {name: value for name, value in group.items() if name != "params"}
            self._options.append(options)

    def check_optimizer(self, optimizers: Sequence[Optimizer]) -> None:
        """Whether the optimizer can take over the state of the checkpoint, before it is loaded.

        Raises:
            UserError: It is another optimizer, or has other groups of parameters.
        """
        if self._before is None or not self._groups or len(optimizers) != 1:
            return
        was = self._before.get("model.optimizer")
        name = type(optimizers[0]).__name__
        if was not in (None, name):
            raise UserError(
                f"model.optimizer: found {name}, but the checkpoint has the state of {was}; resume with "
                f"{was}, or begin a new run"
            )
        now = _groups(optimizers[0].param_groups)
        if now != self._groups:
            raise UserError(
                f"model.learning_rates: found groups of parameters {_counted(now)}, but the checkpoint has "
                f"{_counted(self._groups)}; resume with the selectors that it was trained with"
            )

    def facts_now(self, trainer: Trainer) -> dict[str, Any]:
        """The facts for a checkpoint that is saved now: of a run in stages also those of its stage's data."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, VLMDataModule) or data.stages is None or not self.facts:
            return self.facts
        if self._of_stage[0] != data.stages.now:
            self._of_stage = data.stages.now, facts_of_data(data)
        return {**self.facts, **self._of_stage[1]}

    def start(self, trainer: Trainer, model: Mapping[str, Any], steps: int, elastic: ElasticResume) -> None:
        """Say what has changed, when everything is as it was; options of the optimizer are as given now.

        Args:
            trainer: Of the run.
            model: Arguments of the module, by name.
            steps: The optimizer steps of the whole run.
            elastic: Knows what goes together with another number of processes.
        """
        self.facts = describe_run(trainer, model, steps)
        before = self._before
        self._before = None
        if before is None:
            return
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, VLMDataModule) and data.stages is not None:  # data are compared by stages
            before = {name: before[name] for name in before if not name.startswith("data.")}
        before = {name: before[name] for name in before if name not in elastic.expected}
        lines = [*elastic.lines, *changes(before, self.facts)]
        if len(trainer.optimizers) == 1 and self._options:
            schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
            lines += keep_given_options(trainer.optimizers[0], self._options, schedulers)
        for line in lines:
            rank_zero_warn(f"resumed with a change: {line}")


def _groups(groups: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """The name of each group of an optimizer, or its number, and how many parameters it has."""
    named = []
    for number, group in enumerate(groups):
        name = str(group.get("name", number))
        named.append((name, len(group["params"])))
    return named


def _counted(groups: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in groups)


def keep_given_options(
    optimizer: Optimizer, given: Sequence[Mapping[str, Any]], schedulers: Sequence[Any]
) -> list[str]:
    """Let the config decide on learning rates and other options of an optimizer, not the checkpoint.

    Args:
        optimizer: With the state of a checkpoint, in which options are saved too.
        given: The options of each of its groups as they were before.
        schedulers: Those that scale its learning rates.

    Returns:
        A line for each option that isn't what it was.
    """
    groups_of_change: dict[tuple[str, str], list[str]] = {}
    for number, (group, options) in enumerate(zip(optimizer.param_groups, given, strict=True)):
        group_name = str(group.get("name", number))
        for name, value in options.items():
            was = group.get(name)
            if name in ("lr", "name") or was == value:
                continue
            shown = "the learning rate" if name == "initial_lr" else name
            change = f"is {value}, was {_shown(was)}"
            groups_of_change.setdefault((shown, change), []).append(group_name)
            group[name] = value
    if not groups_of_change:
        return []
    for scheduler in schedulers:
        if isinstance(scheduler, LambdaLR):
            scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
            settle_rates(scheduler)
    lines = []
    for (shown, change), groups in groups_of_change.items():
        where = ""
        if len(groups) < len(given):
            where = " of " + " and of ".join(repr(name) for name in groups)
        lines.append(f"model.optimizer: {shown}{where} {change}")
    return lines
