"""LoRA's rank moves to the layers that need it while the model trains."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_vlm_callbacks.adaptive_lora_rank.activation import Activation
from lightning_vlm_callbacks.adaptive_lora_rank.allocation import check_bounds
from lightning_vlm_callbacks.adaptive_lora_rank.budget import (
    Bounds,
    check_groups,
    check_schedule,
    describe_steps,
    group_layers,
    rank_update_steps,
    share_ranks,
    split,
)
from lightning_vlm_callbacks.adaptive_lora_rank.importance import Fisher, Importance, Sensitivity
from lightning_vlm_callbacks.adaptive_lora_rank.lora_layers import (
    RANKS,
    LoraLayer,
    check_ranks,
    describe_fixed,
    describe_ranks,
    lora_layers,
    set_ranks,
)
from lightning_vlm_callbacks.adaptive_lora_rank.replicas import ranks_before_weights, synchronise_ranks
from lightning_vlm_callbacks.packed_rows import packed_lengths
from lightning_vlm_callbacks.requirements import (
    require_full_gradients,
    require_initialized,
    require_lightning,
    require_plain_optimizers,
    require_single_closure,
)
from lightning_vlm_callbacks.run_report import record_event
from lightning_vlm_callbacks.runs import log_metrics, loss_scaler
from lightning_vlm_callbacks.selectors import select_modules
from lightning_vlm_callbacks.trackers import log_table

__all__ = ["AdaptiveLoRARank"]

NEEDS_WHOLE = "changes the sizes of LoRA weights, which FSDP2 has cut by their first sizes"
_MEASURED_STEPS = 8
"""How many steps before a change importance is measured."""


class AdaptiveLoRARank(Callback):
    """Moves a budget of rank between the LoRA layers of a model, by their measured importance.

    Begin with one rank for all. From `start` to `until` the importance of layers is measured in the 8 steps
    before each change, and the budget is shared in proportion (`allocate_ranks`). Layers really grow and
    shrink, with their optimizer state: growing changes nothing that is computed, shrinking leaves the nearest
    matrix of its rank (`resize_lora`). Parameters stay the same objects, so that optimizer groups, schedulers
    and hooks stay valid; under DDP the module is wrapped again. A layer that another callback has frozen
    keeps its rank.

    For any module with plain LoRA of PEFT around linear layers; that on single parameters (experts) stays as
    it is. Ranks are in the checkpoint; on resume, layers get them before the weights are loaded (see also
    `fit_ranks` in `lora_layers.py`). PEFT's config is kept up to date, so that it loads what it saves.

    The idea is that of AdaLoRA (Zhang et al. 2023, https://arxiv.org/abs/2303.10512). PEFT's AdaLoRA masks
    directions and frees no memory, needs a call in the training loop and doesn't save its state.

    Args:
        budget: Total rank, or with `unit="parameters"` the parameters of A and B; None: as at the start.
        min_rank: The least rank of every layer. With 0, a layer may lose its adapter permanently.
        max_rank: The most rank of every layer. No layer gets more than its width.
        multiple_of: Ranks are multiples of this. Ranks of 8 or 16 suit tensor cores.
        importance: `fisher`: how many directions a layer uses, and what they are worth to the loss.
            `sensitivity`: what AdaLoRA measures, of whole layers; it costs least. `activation`: EVA's, which
            looks at inputs only. The classes in `importance.py` and `activation.py` say more.
        start: The first change is after this many steps; below 1 it is a share of the run.
        every: Steps from one change to the next; below 1 it is a share of the run.
        until: The last step with a change; below 1 it is a share of the run. Ranks stay fixed afterwards.
        groups: Selector -> share of the budget, such as `{vision: 1, language: 3}`: rank moves within each.
        unit: Of the budget. A rank of a wide layer has more parameters than one of a narrow layer, so a
            budget of ranks doesn't fix the memory that adapters need, while one of parameters does.

    Raises:
        MisconfigurationException: An argument is out of range. Or, when the fit begins: there are no LoRA
            layers, or such as can't be resized (DoRA); the budget is less than `min_rank` needs; the schedule
            lies beyond the end of the run; one device or DDP isn't the strategy.
        SelectorError: A group's selector finds nothing.
        ModuleNotFoundError: PEFT isn't installed.
    """

    def __init__(
        self,
        budget: int | None = None,
        min_rank: int = 4,
        max_rank: int = 64,
        multiple_of: int = 4,
        importance: Literal["fisher", "sensitivity", "activation"] = "fisher",
        start: float = 0.1,
        every: float = 0.05,
        until: float = 0.7,
        groups: dict[str, float] | None = None,
        unit: Literal["rank", "parameters"] = "rank",
    ) -> None:
        super().__init__()
        check_bounds(min_rank, max_rank, multiple_of)
        if budget is not None and budget < 1:
            raise MisconfigurationException(f"budget: found {budget}; expected 1 or more, or None")
        if importance not in ("fisher", "sensitivity", "activation"):
            raise MisconfigurationException(
                f"importance: found {importance!r}; expected fisher, sensitivity or activation"
            )
        if unit not in ("rank", "parameters"):
            raise MisconfigurationException(f"unit: found {unit!r}; expected rank or parameters")
        check_schedule(start=start, every=every, until=until)
        check_groups(groups or {})
        self.budget = budget
        self.importance = importance
        self.groups = groups
        self.bounds = Bounds(min_rank, max_rank, multiple_of, parameters=unit == "parameters")
        self.start = start
        self.every = every
        self.until = until
        self._loaded: dict[str, Any] = {}
        self._unwrap_loading: Callable[[], None] | None = None
        self._importance: Importance | None = None
        self._history: list[tuple[int, dict[str, int]]] = []
        self._measuring = False
        self._last = 0

    # Hooks

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        require_lightning("AdaptiveLoRARank", trainer)
        self._end()
        self._unwrap_loading = ranks_before_weights(pl_module)
        if stage == "fit":
            require_full_gradients("AdaptiveLoRARank", trainer, pl_module, NEEDS_WHOLE)

    def check_selectors(self, root: nn.Module, may_train: Collection[nn.Parameter] = ()) -> None:
        """Raise a SelectorError if a group finds nothing in a model; `may_train` doesn't matter here."""
        select_modules(root, list(self.groups or {}))

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        require_initialized("AdaptiveLoRARank", pl_module)
        require_single_closure("AdaptiveLoRARank", trainer.optimizers)
        require_plain_optimizers("AdaptiveLoRARank", trainer.optimizers)
        layers = lora_layers(pl_module)
        self._begin(trainer, layers)
        self._groups = group_layers(pl_module, layers, self.groups)
        self._shared_ranks(layers, dict.fromkeys(layers, 0.0))  # refuses a budget that can't be met
        self._steps = rank_update_steps(trainer, self.start, self.every, self.until)
        rank_zero_info(
            f"AdaptiveLoRARank: {len(layers)} LoRA layers, {describe_ranks(layers)}; ranks change after "
            f"{describe_steps(self._steps)}{describe_fixed(pl_module)}"
        )
        record_event(trainer, "ranks", describe_ranks(layers), ranks=self._history[-1][1])
        if self._history[-1][0] < trainer.global_step in self._steps:
            # The checkpoint was saved after the step and before the change that follows it.
            self._change_ranks(trainer, pl_module)

    @override
    def on_train_batch_start(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any, batch_idx: int
    ) -> None:
        assert self._importance is not None
        self._importance.packed_lengths = packed_lengths(batch)
        step = trainer.global_step
        if not self._measuring and any(due - _MEASURED_STEPS <= step < due for due in self._steps):
            self._importance.begin()
            self._measuring = True

    @override
    def on_before_optimizer_step(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", optimizer: Optimizer
    ) -> None:
        if self._measuring and self._importance is not None:
            scaler = loss_scaler(trainer)
            self._importance.end(1.0 if scaler is None else scaler.get_scale(), trainer.world_size)
            self._measuring = False

    @override
    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        # A module may skip the last step to be measured; the ranks then change after the next one.
        if not self._measuring and any(self._last < due <= step for due in self._steps):
            self._last = step
            self._change_ranks(trainer, pl_module)

    @override
    def on_train_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        rows = [[step, name, rank] for step, ranks in self._history for name, rank in ranks.items()]
        log_table(trainer, "adaptive_lora_rank/ranks", ["step", "layer", "rank"], rows)

    @override
    def on_exception(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException
    ) -> None:
        self._end()

    @override
    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        self._end()

    @override
    def on_save_checkpoint(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", checkpoint: dict[str, Any]
    ) -> None:
        if self._history:
            checkpoint[RANKS] = dict(self._history[-1][1])

    @override
    def state_dict(self) -> dict[str, Any]:
        if self._importance is None:
            return self._loaded
        return {
            "budget": self._budget,
            "history": [[step, dict(ranks)] for step, ranks in self._history],
            "kept": self._importance.state_dict(),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    # A run

    def _begin(self, trainer: "pl.Trainer", layers: Mapping[str, LoraLayer]) -> None:
        if not layers:
            raise MisconfigurationException(
                "AdaptiveLoRARank: found no linear layer with LoRA; expected PEFT's adapters in the module "
                "when training begins"
            )
        self._budget = self.bounds.cost(layers) if self.budget is None else self.budget
        self._history = [(trainer.global_step, {name: lora.rank for name, lora in layers.items()})]
        self._last = trainer.global_step
        self._measuring = False
        self._importance = self._new_importance(layers)
        if self._loaded:
            self._restore(self._loaded, layers)
            self._importance.load_state_dict(self._loaded["kept"])
            self._loaded = {}

    def _new_importance(self, layers: Mapping[str, LoraLayer]) -> Importance:
        if self.importance == "activation":
            return Activation(layers, self.bounds.max_rank + 8)
        return Fisher(layers) if self.importance == "fisher" else Sensitivity(layers)

    def _restore(self, state: Mapping[str, Any], layers: Mapping[str, LoraLayer]) -> None:
        self._history = [(step, dict(ranks)) for step, ranks in state["history"]]
        check_ranks(layers, self._history[-1][1])
        if self.budget is None:
            self._budget = state["budget"]

    def _end(self) -> None:
        """Leave the module as it was found, except for its ranks."""
        if self._importance is not None:
            self._importance.stop()
        if self._unwrap_loading is not None:
            self._unwrap_loading()
            self._unwrap_loading = None

    # A change of ranks

    def _change_ranks(self, trainer: "pl.Trainer", root: "pl.LightningModule") -> None:
        """Score the layers, share the budget and resize. All ranks of a distributed run do the same."""
        importance = self._importance
        assert importance is not None
        layers = lora_layers(root)
        scores = importance.scores(layers, sum(lora.rank for lora in layers.values()))
        wanted = trainer.strategy.broadcast(self._shared_ranks(layers, scores))
        changed = set_ranks(root, wanted, trainer.optimizers, seed=trainer.global_step)
        layers = lora_layers(root)
        importance.reset(layers)
        if changed:
            synchronise_ranks(trainer, root, [layers[name] for name in changed if name in layers])
        self._history.append((trainer.global_step, {**self._history[-1][1], **wanted}))
        self._log_change(trainer, layers, len(changed))

    def _shared_ranks(self, layers: Mapping[str, LoraLayer], scores: Mapping[str, float]) -> dict[str, int]:
        shares = list(self.groups.values()) if self.groups else [1.0]
        return share_ranks(scores, layers, self._groups, split(self._budget, shares), self.bounds)

    def _log_change(self, trainer: "pl.Trainer", layers: Mapping[str, LoraLayer], changed: int) -> None:
        message = f"{changed} of {len(self._history[-1][1])} layers changed"
        record_event(trainer, "ranks", message, ranks=self._history[-1][1])
        rank_zero_info(f"AdaptiveLoRARank: step {trainer.global_step}, {message}; {describe_ranks(layers)}")
        parameters = sum(lora.rank * lora.cost for lora in layers.values())
        metrics = {"adaptive_lora_rank/changed": changed, "adaptive_lora_rank/parameters": parameters}
        # They belong to the step that was made last: a run that is resumed behind it keeps them.
        log_metrics(trainer, metrics, trainer.global_step - 1)
