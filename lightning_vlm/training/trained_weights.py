"""The weights of a module that its checkpoints keep: those that ever train."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from lightning_vlm_callbacks.adaptive_lora_rank.lora_layers import RANKS, fit_ranks
from torch import Tensor, nn

from lightning_vlm.models.loading.checkpoint import check_keys
from lightning_vlm.models.loading.initial import check_missing_weights_train
from lightning_vlm.models.plan.adapt import trainable_names, trained_buffers
from lightning_vlm.training.weight_averaging import FrozenWeightsWarning, load_averages, save_averages

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule


class TrainedWeights:
    """Keeps what trains now, or in a later stage, in checkpoints, and leaves out the frozen base model.

    Args:
        root: The module, with its model just adapted. What trains in that now is kept from now on.

    Raises:
        UserError: A weight that the model's files lack doesn't train.
    """

    def __init__(self, root: "VLMModule") -> None:
        self.names = {f"model.{name}" for name in trainable_names(root.model)}
        self.names |= {f"mask_head.{name}" for name in trainable_names(root.mask_head or nn.Module())}
        """Names of the parameters that ever train."""
        check_missing_weights_train(root.loaded.missing, root, root.no_gradient_needed)
        self._root = root
        self._buffers = list(trained_buffers(root.model))
        self._warning = FrozenWeightsWarning()

    def buffers(self) -> dict[str, Tensor]:
        """The buffers that belong to what trains, such as the statistics of a norm."""
        return {name: self._root.model.get_buffer(name) for name in self._buffers}

    def keep_in(self, checkpoint: dict[str, Any], trainer: Trainer) -> None:
        """Leave only what ever trains in a checkpoint, of averaged weights too."""
        save_averages(trainer, checkpoint, self.names)
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in state if name in self.names}
        frozen = {name for name, _ in self._root.named_parameters()} - self.names
        self._warning.warn_once(checkpoint, frozen)

    def prepare_load(
        self, checkpoint: dict[str, Any], buffers: Mapping[str, Tensor], trainer: Trainer | None
    ) -> None:
        """Make a module fit a checkpoint, before Lightning loads its weights.

        Args:
            checkpoint: May have LoRA layers of other ranks, and averaged weights.
            buffers: As `buffers` gave them when it was saved.
            trainer: None where only weights are loaded.
        """
        for name, buffer in self.buffers().items():
            if name in buffers:
                buffer.copy_(buffers[name])
        if RANKS in checkpoint:
            fit_ranks(self._root, checkpoint)
            self.names &= {name for name, _ in self._root.named_parameters()}
        load_averages(trainer, checkpoint, self.names)

    def check(self, state_dict: Mapping[str, Any]) -> None:
        """Whether weights are just those that are kept.

        Raises:
            UserError: Names or shapes that don't fit, all of them listed.
        """
        check_keys(state_dict, self._root.state_dict(), self.names)
