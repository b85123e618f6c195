"""What trains in each stage of a run: StagedUnfreezing whose stages are those of the data module."""

from collections.abc import Mapping

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning_vlm_callbacks.selectors import select_parameters
from lightning_vlm_callbacks.staged_unfreezing import StagedUnfreezing
from lightning_vlm_callbacks.staged_unfreezing.entries import StageEntry
from lightning_vlm_callbacks.staged_unfreezing.staged_run import StagedRun
from rich import print as rich_print
from torch import nn
from torch.nn import Parameter

from lightning_vlm.data.stages.staged_data import StagedData
from lightning_vlm.errors import UserError
from lightning_vlm.training.stages.stage import Stage
from lightning_vlm.training.stages.table import look_at, stage_table


class StageUnfreezing(StagedUnfreezing):
    """Trains what each stage of a run says, at its rates; stages begin where those of the data do.

    Args:
        data: The stages of the run's data module.
    """

    def __init__(self, data: StagedData) -> None:
        self._data = data
        self._all: list[Stage] = [stage for stage in data.stages if isinstance(stage, Stage)]
        # Where they begin is known only when the data are.
        super().__init__(
            [{"at": number, "train": stage.scales} for number, stage in enumerate(self._all)], unit="step"
        )

    def starts(self, trainer: Trainer) -> list[int | None]:
        """The first step of each stage."""
        return [span.first_step for span in self._data.plan.spans]

    def entries(
        self, root: nn.Module, may_train: set[Parameter], rates: Mapping[Parameter, float]
    ) -> list[list[StageEntry]]:
        """What each stage trains; the scale of a rate that a stage gives is over the optimizer's own."""
        of_stages = []
        for stage, entries in zip(self._all, super().entries(root, may_train, rates), strict=True):
            entries = [self._at_rate(entry, stage.learning_rate, rates) for entry in entries]
            for selector, rate in (stage.learning_rates or {}).items():
                found = set(select_parameters(root, selector).values())
                taken: dict[Parameter, float] = {}
                for entry in entries:
                    for parameter in found & set(entry.scales):
                        entry.scales.pop(parameter)
                        taken[parameter] = 1.0
                if not taken:
                    raise UserError(
                        f"stages.{stage.name}.learning_rates: found {selector}, of which nothing trains in "
                        f"this stage; add it to stages.{stage.name}.train, or leave it out"
                    )
                entries.append(self._at_rate(StageEntry(selector, 1.0, taken), rate, rates))
            of_stages.append(entries)
        return of_stages

    def _at_rate(self, entry: StageEntry, rate: float | None, rates: Mapping[Parameter, float]) -> StageEntry:
        if rate is None:
            return entry
        scales = {}
        for parameter, scale in entry.scales.items():
            scales[parameter] = scale * rate / rates.get(parameter, rate)
        return entry._replace(scales=scales)

    def show(
        self, trainer: Trainer, root: nn.Module, run: StagedRun, rates: Mapping[Parameter, float]
    ) -> None:
        """One table of all stages: their data and what trains in them."""
        looks = look_at(self._data, root)  # on all ranks alike
        if trainer.is_global_zero:
            rich_print(stage_table(self._data, looks, run.entries, rates))

    def name(self, stage: int) -> str:
        """As the config calls it."""
        return self._all[stage].name

    def say(self, stage: int, step: int) -> None:
        """One line where a stage begins, and where a resumed run goes on in it."""
        span = self._data.plan.spans[stage]
        trains = [entry.selector for entry in self._run.entries[stage] if entry.scales]
        what = ", ".join(trains).replace("*", "all that model.adapt lets train")
        goes_on = "" if step == span.first_step else f" goes on at step {step:,}, and"
        number = f"Stage {stage + 1} of {len(self._all)}, {span.name}"
        rank_zero_info(f"{number},{goes_on} ends at step {span.end:,}; it trains {what}")
