"""NaN, infinity and overflow, planted where a real one would come from, in one micro-batch of a run."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from lightning_vlm import VLMModule
from lightning_vlm.data.batch.collate import Batch

MARK = 0.123456789
"""A number of a picture by which a model's hooks know the batch, also when it is run again."""
VALUES = {"nan": torch.nan, "+inf": torch.inf, "-inf": -torch.inf, "overflow": 1e30}
"""What is planted; 1e30 is finite in float32 and infinite in float16."""
MODULES = (
    "vision embedding",
    "vision attention",
    "vision MLP",
    "vision norm",
    "projector",
    "token embedding",
    "language attention",
    "language MLP",
    "language norm",
    "LoRA A",
    "LoRA B",
    "LM head",
)
OF_BATCH = ("pixels", "loss weights")
HOOKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step")


class Fault(NamedTuple):
    """A number that isn't one.

    Args:
        place: One of `MODULES`, `OF_BATCH`, `HOOKS`, or `training_step`.
        way: `forward`, `backward`, or `hook` where there is only one way.
        value: Of `VALUES`.
    """

    place: str
    way: str
    value: str

    def __str__(self) -> str:
        return f"{self.value} in {self.place}" + (f", {self.way}" if self.way != "hook" else "")


def all_faults() -> list[Fault]:
    """Each value at each place, each way; overflow where a dtype of half precision may make it."""
    found = []
    for place in (*MODULES, "training_step"):
        for way in ("forward", "backward"):
            found += [Fault(place, way, value) for value in VALUES]
    found.remove(Fault("token embedding", "forward", "overflow"))  # it is float32, and a norm comes next
    for place in (*OF_BATCH, *HOOKS):
        found += [Fault(place, "hook", value) for value in ("nan", "+inf", "-inf")]
    return found


def path_of(place: str, module: VLMModule) -> str:
    """The name of the module of a model that is meant by one of `MODULES`; "" for the LightningModule."""
    first = {part: module.parts[f"{part}.layers"][0] + ".0" for part in ("vision", "language")}
    if place == "vision embedding":
        return _child(module, module.parts["vision"][0], "embed")
    if place == "projector":
        return module.parts["projector"][0]
    if place == "LM head":
        return _name_of(module, module.model.get_output_embeddings())
    if place == "token embedding":
        return _name_of(module, module.model.get_input_embeddings())
    if place.startswith("LoRA"):
        wanted = f"lora_{place[-1]}.default"
        names = [name for name, _ in module.named_modules() if name.endswith(wanted)]
        return next((name for name in names if name.startswith(first["language"])), "")
    if place in MODULES:
        part, kind = place.split()
        return _child(module, first[part], {"attention": "attn", "MLP": "mlp", "norm": "norm"}[kind])
    return ""


def _child(root: nn.Module, parent: str, word: str) -> str:
    names = [name for name, _ in root.get_submodule(parent).named_children() if word in name]
    return f"{parent}.{names[0]}"


def _name_of(root: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in root.named_modules() if module is wanted)


class FaultyModule(VLMModule):
    """A VLMModule whose training_step may spoil its loss."""

    spoil: Callable[[Tensor], Tensor] | None = None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss if self.spoil is None else self.spoil(loss)


class PlantedFault(Callback):
    """Plants a fault into a micro-batch. The place has its hooks in all others too, which then do nothing.

    Args:
        fault: What, and where.
        number: Which micro-batch of the epoch; -1 is none.
        rank: On which process.
    """

    def __init__(self, fault: Fault, number: int, rank: int = 0) -> None:
        self.fault = fault
        self.number = number
        self.rank = rank
        self.path = ""
        """The module that it is planted in."""
        self.sources: list[str] = []
        """The samples of the micro-batch."""
        self.times = 0
        """How often it was."""
        self._value = VALUES[fault.value]
        self._now = SimpleNamespace(marked=False, due=False)

    def on_fit_start(self, trainer: Trainer, pl_module: FaultyModule) -> None:  # type: ignore[override]
        self.path = path_of(self.fault.place, pl_module)
        now, plant = self._now, self._plant

        def look(_: nn.Module, __: Any, given: dict[str, Any]) -> None:
            pixels = given.get("pixel_values")
            now.marked = pixels is not None and bool((pixels == MARK).any())

        def spoil(_: nn.Module, __: Any, output: Any) -> Any:
            if not now.marked:
                return None
            if isinstance(output, tuple):
                return (plant(output[0]), *output[1:])
            return plant(output)

        base: nn.Module = getattr(pl_module.model, pl_module.model.base_model_prefix)
        base.register_forward_pre_hook(look, with_kwargs=True)
        if self.fault.place in MODULES:
            pl_module.get_submodule(self.path).register_forward_hook(spoil)
        elif self.fault.place == "training_step":
            pl_module.spoil = lambda loss: plant(loss) if now.marked else loss

    def _plant(self, output: Tensor) -> Tensor:
        if self.fault.way == "backward":
            if output.requires_grad:
                output = output * 1  # a view for a hook of its own
                output.register_hook(self._spoiled)
            return output
        return self._spoiled(output)

    def _spoiled(self, tensor: Tensor) -> Tensor:
        """The tensor with its numbers made bad: all of a gradient, else its first row; or all too large."""
        self.times += 1
        if self.fault.value == "overflow":
            return tensor * self._value
        if self.fault.way == "backward":  # that of the first token may go nowhere but into frozen embeddings
            return torch.full_like(tensor, self._value)
        spoiled = tensor.clone()
        rows = spoiled.view(-1, spoiled.shape[-1]) if spoiled.ndim else spoiled.view(1, 1)
        rows[0] = self._value  # one logit of -inf would be no fault
        return spoiled

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, pl_module: VLMModule, batch: Batch, batch_idx: int
    ) -> None:
        self._now.due = batch_idx == self.number and trainer.global_rank == self.rank
        if not self._now.due:
            return
        self.sources = list(batch.sources)
        self.times += self.fault.place in OF_BATCH
        if self.fault.place == "loss weights":
            assert batch.targets is not None
            batch.targets.weights[0] = self._value
        is_pixels = self.fault.place == "pixels"
        batch.inputs["pixel_values"].view(-1)[0] = self._value if is_pixels else MARK

    def on_before_backward(self, trainer: Trainer, pl_module: VLMModule, loss: Tensor) -> None:  # type: ignore[override]
        if self._now.due and self.fault.place == "on_before_backward":
            loss.register_hook(self._spoiled)

    def on_after_backward(self, trainer: Trainer, pl_module: VLMModule) -> None:  # type: ignore[override]
        if self._now.due and self.fault.place == "on_after_backward":
            self._spoil_gradient(pl_module)

    def on_before_optimizer_step(  # type: ignore[override]
        self, trainer: Trainer, pl_module: VLMModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if self._now.due and self.fault.place == "on_before_optimizer_step":
            self._spoil_gradient(pl_module)

    def _spoil_gradient(self, module: VLMModule) -> None:
        gradient = next(weight.grad for weight in module.parameters() if weight.grad is not None)
        gradient.view(-1)[0] = self._value
        self.times += 1
