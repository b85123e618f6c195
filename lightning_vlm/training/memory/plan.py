"""What is left to memory to decide is decided before a fit begins, and remembered by its checkpoints."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.errors import UserError
from lightning_vlm.models.recompute import use_gradient_checkpointing
from lightning_vlm.training.memory.decide import Decider, Decision, gib
from lightning_vlm.training.memory.meter import meter_of
from lightning_vlm.training.memory.trial import state_bytes, without_a_trace

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule

AUTO = "auto"
TOKENS, PATCHES, RECOMPUTE = "data.max_tokens", "data.max_patches", "model.gradient_checkpointing"


class MemoryPlan(Callback):
    """Settles `data.max_tokens: auto` and `model.gradient_checkpointing: auto`.

    Both are decided by steps that are measured, on all ranks alike. Checkpoints keep what was decided, and a
    run that continues from one doesn't measure again: it would have other batches.
    """

    def __init__(self) -> None:
        self.limit: int | None = None
        """The bytes that training may use; None is all that are free."""
        self.settled: dict[str, Any] = {}
        """What was `auto`, by its key in a config, such as `data.max_tokens`; empty if nothing was."""
        self._in_force: dict[str, Any] = {}
        self._of_checkpoint: Mapping[str, Any] = {}

    def settle(self, module: "VLMModule") -> None:
        """Decide what is `auto`. Every rank must call it, before anyone asks how many batches there are.

        Args:
            module: On its device, before its optimizer is made.

        Raises:
            UserError: What has to fit doesn't; or there are no data to measure with.
        """
        data = getattr(module.trainer, "datamodule", None)
        batching = data.batching if isinstance(data, VLMDataModule) else None
        if batching is not None:
            batching.check_model(module.model)
        finds_size = batching is not None and batching.max_tokens == AUTO
        given = module.source.gradient_checkpointing
        self.settled = {}
        if finds_size or given == AUTO:
            if not isinstance(data, VLMDataModule):
                raise UserError(
                    "model.gradient_checkpointing: found auto without a VLMDataModule, whose longest samples "
                    "are measured; set true or false"
                )
            decision = self._continued(finds_size) or self._measured(module, data, finds_size)
            self._of_checkpoint = {}
            self._apply(decision, module, data)
            rank_zero_info(f"Memory: {decision.words}")
        self._in_force = {}
        if batching is not None and (batching.by_tokens or self.settled):
            recompute = self.settled.get(RECOMPUTE, given)
            self._in_force = {
                TOKENS: batching.max_tokens,
                PATCHES: batching.max_patches,
                RECOMPUTE: recompute,
            }

    def _continued(self, finds_size: bool) -> Decision | None:
        """What the run decided that this one continues; None if it has nothing to say."""
        was = self._of_checkpoint
        if not was or (finds_size and was[TOKENS] is None):
            return None
        size = (was[TOKENS], was[PATCHES]) if finds_size else None
        each = [f"{TOKENS} {size[0]:,}"] if size else []
        words = ", ".join([*each, f"{RECOMPUTE} {str(was[RECOMPUTE]).lower()}"])
        return Decision(was[RECOMPUTE], size, f"{words}, as in the run that goes on")

    def _measured(self, module: "VLMModule", data: VLMDataModule, finds_size: bool) -> Decision:
        given = module.source.gradient_checkpointing
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        coming = state_bytes(module.optimizer, trained)
        processes = module.trainer.num_devices
        try:
            with meter_of(module.device, coming, self.limit, processes) as meter, without_a_trace(module):
                choices = [False, True] if given == AUTO else [bool(given)]
                decider = Decider(module, data, meter, choices)
                return decider.size() if finds_size else decider.recompute()
        except torch.OutOfMemoryError:
            raise UserError(
                f"out of memory before the first step: the optimizer will need {gib(coming)} besides the "
                "model; train less of it, with model.adapt: lora or qlora"
            ) from None

    def _apply(self, decision: Decision, module: "VLMModule", data: VLMDataModule) -> None:
        if module.source.gradient_checkpointing == AUTO:
            use_gradient_checkpointing(module.model, decision.recompute)
            self.settled[RECOMPUTE] = decision.recompute
        if decision.size is None:
            return
        tokens, patches = decision.size
        if data.batching.max_patches is None and patches is not None:
            data.batching.max_patches = self.settled[PATCHES] = patches
        self.settled[TOKENS] = tokens
        data.set_max_tokens(tokens)

    @override
    def state_dict(self) -> dict[str, Any]:
        return dict(self._in_force)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._of_checkpoint = dict(state_dict)
