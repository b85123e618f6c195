"""Whether the loss gives a gradient to all that a run trains, now and in its later stages."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from lightning_vlm_callbacks.selectors import SelectorError, select_parameters
from torch import Tensor, nn
from typing_extensions import override

from lightning_vlm.errors import UserError
from lightning_vlm.losses.batch_loss import zero_loss
from lightning_vlm.models.sharding import is_sharded, sends_zeros, whole_parameters

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule


class GradientCoverage(Callback):
    """Stops a run in which something that trains gets no gradient.

    It checks the first backward pass that it is shown, and the next one after more or less trains. At the
    first one it also checks what only a later stage trains, so that the run doesn't stop when that stage
    begins. Looking for missing gradients would not do: batches without pictures give zeros to what they don't
    reach.

    >>> model = nn.ModuleDict({"used": nn.Linear(1, 1), "unused": nn.Linear(1, 1, bias=False)})
    >>> coverage = GradientCoverage()
    >>> coverage.start_fit(model, model, excused=[])
    >>> loss = model["used"](torch.ones(1))
    >>> coverage.before_backward(compute_loss=lambda: loss)
    >>> loss.backward()
    >>> try:
    ...     coverage.after_backward()
    ... except UserError as error:
    ...     print(str(error).split(";")[0])
    these parameters are trained, now or in a later stage, but the loss gives them no gradient: unused.weight
    """

    def __init__(self) -> None:
        self._root: nn.Module | None = None
        self._model: nn.Module | None = None
        self._excused: Sequence[str] = ()
        self._may_train: list[nn.Parameter] = []
        self._trained = 0  # how many parameters trained at the last check
        self._is_watching = False
        self._not_reached: dict[str, nn.Parameter] = {}
        self._hooks: list[Any] = []
        self._strategy: Strategy | None = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: "VLMModule") -> None:  # type: ignore[override]
        self.start_fit(pl_module, pl_module.model, pl_module.no_gradient_needed)
        self._strategy = trainer.strategy

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: "VLMModule") -> None:  # type: ignore[override]
        self.after_backward()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: "VLMModule") -> None:  # type: ignore[override]
        self.end_fit(anything_seen=pl_module.steps.tokens_seen > 0)

    def start_fit(self, root: nn.Module, model: nn.Module, excused: Sequence[str]) -> None:
        """Begin with what trains now. From now on callbacks may freeze some of it for a while.

        Args:
            root: The module whose parameters are checked.
            model: The part of it that the loss of a batch is computed with. Only this part is checked for
                later stages; weights of tasks, for example, come into the loss after that.
            excused: Selectors of parameters that may stay without gradient.
        """
        self._root = root
        self._model = model
        self._excused = excused
        self._may_train = [parameter for parameter in root.parameters() if parameter.requires_grad]
        self._trained = 0

    def before_backward(self, compute_loss: Callable[[], Tensor]) -> None:
        """Watch the backward pass that comes next if it has to be checked.

        Args:
            compute_loss: Gives the loss of the same batch once more. It is called only if a later stage
                trains more than trains now.

        Raises:
            UserError: The loss doesn't depend on something that a later stage trains.
        """
        trained = sum(parameter.requires_grad for parameter in self._may_train)
        if trained == self._trained:  # also where a step is tried outside of a fit
            return
        assert self._root is not None
        # In pieces, a parameter of a block has no place in the graph; a stage is checked when it begins.
        if not self._trained and trained < len(self._may_train) and not is_sharded(self._root):
            self._check_later_stages(compute_loss)
        self._trained = trained
        self._watch()

    def after_backward(self) -> None:
        """Check the backward pass if it was watched.

        Raises:
            UserError: Something that trains got no gradient.
        """
        if not self._is_watching:
            return
        for hook in self._hooks:
            hook.remove()
        names = list(self._not_reached)
        self._is_watching = False
        self._hooks = []
        self._not_reached = {}
        _refuse_without_gradient(names)

    def reach_all(self, root: nn.Module, loss: Tensor) -> Tensor:
        """A loss whose backward gives zeros to what it doesn't reach, if other ranks would wait for that.

        What a batch reaches may depend on more than whether it has pictures: `image_newline` of
        LLaVA-NeXT-Video has no part in a video, and Video-LLaVA has a tower for each. A rank that never sends
        a gradient leaves the others waiting. The first backward, which is watched, must show what the loss
        itself reaches.

        Args:
            root: That the loss was computed with; it may be a copy in which a step is run again.
            loss: A scalar with a graph.
        """
        waited_for = self._waited_for(root)
        missing = unreached(loss, waited_for) if waited_for else []
        return loss + zero_loss(missing) if missing else loss

    def _waited_for(self, root: nn.Module) -> list[nn.Parameter]:
        """What trains and may have to be given a zero."""
        strategy = self._strategy
        if isinstance(strategy, DDPStrategy):
            if self._is_watching or strategy._ddp_kwargs.get("find_unused_parameters"):  # DDP itself looks
                return []
            # To go through all modules of a model with adapters takes longer than the walk through its graph.
            may_train = self._may_train if root is self._root else root.parameters()
            return [parameter for parameter in may_train if parameter.requires_grad]
        if not isinstance(strategy, ModelParallelStrategy) or sends_zeros(root):
            return []
        whole = [parameter for parameter in whole_parameters(root) if parameter.requires_grad]
        if not self._is_watching:
            return whole
        excused = self._excused_parameters()  # may be reached on one rank alone even now
        return [parameter for parameter in whole if id(parameter) in excused]

    def end_fit(self, anything_seen: bool) -> None:
        """Warn if the fit has seen batches, but none that could be checked."""
        if anything_seen and not self._trained:
            rank_zero_warn("no batch had a picture, so nothing showed whether all that trains does learn")
        self._trained = 0

    def _watch(self) -> None:
        assert self._root is not None
        excused = self._excused_parameters()
        self._not_reached = {
            name: parameter
            for name, parameter in self._root.named_parameters()
            if parameter.requires_grad and id(parameter) not in excused
        }
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._strike_off(name))
            for name, parameter in self._not_reached.items()
        ]
        self._is_watching = True

    def _strike_off(self, name: str) -> Callable[[Tensor], None]:
        def reached(_: Tensor) -> None:
            self._not_reached.pop(name, None)

        return reached

    def _check_later_stages(self, compute_loss: Callable[[], Tensor]) -> None:
        assert self._root is not None
        assert self._model is not None
        of_model = {id(parameter) for parameter in self._model.parameters()}
        frozen = [parameter for parameter in self._may_train if not parameter.requires_grad]
        to_check = {id(parameter) for parameter in frozen} & (of_model - self._excused_parameters())
        for parameter in frozen:
            parameter.requires_grad_(True)
        try:
            with isolate_rng(), without_saved_tensors():  # dropout draws as if this forward hadn't been
                loss = compute_loss()
            named = self._root.named_parameters()
            names = outside_graph(loss, [(name, weight) for name, weight in named if id(weight) in to_check])
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
        _refuse_without_gradient(names)

    def _excused_parameters(self) -> set[int]:
        assert self._root is not None
        if not self._excused:
            return set()
        try:
            selected = select_parameters(self._root, self._excused)
        except SelectorError as error:
            raise UserError(f"no_gradient_needed: {error}") from None
        return {id(parameter) for parameter in selected.values()}


def without_saved_tensors() -> torch.autograd.graph.saved_tensors_hooks:
    """A context in which a forward builds its graph but keeps no activations. A backward is impossible."""

    def unpack(_: None) -> Tensor:
        raise RuntimeError("the activations of this forward were not kept")

    return torch.autograd.graph.saved_tensors_hooks(lambda _: None, unpack)


_LEAF: Any = type(torch.autograd.graph.get_gradient_edge(torch.zeros((), requires_grad=True)).node)
"""The kind of node that adds to a parameter's gradient."""


def outside_graph(loss: Tensor, parameters: Sequence[tuple[str, nn.Parameter]]) -> list[str]:
    """Names of the trained parameters that a loss doesn't depend on.

    Args:
        loss: A tensor with a graph.
        parameters: Names and parameters; frozen ones are passed over.

    >>> used, unused = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    >>> outside_graph(used(torch.ones(1)).sum(), [("used", used.weight), ("unused", unused.weight)])
    ['unused']
    """
    trained = {id(weight): name for name, weight in parameters if weight.requires_grad}
    return [trained[id(weight)] for weight in unreached(loss, [weight for _, weight in parameters])]


def unreached(loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """The trained parameters that a loss doesn't depend on.

    It runs in each step under DDP, and so does as little as it can for each of the graph's nodes.

    Args:
        loss: A tensor with a graph.
        parameters: Frozen ones are passed over.
    """
    missing = {id(parameter): parameter for parameter in parameters if parameter.requires_grad}
    waiting: list[Any] = [] if loss.grad_fn is None else [loss.grad_fn]
    seen: set[Any] = {None, *waiting}
    while waiting and missing:
        for before, _ in waiting.pop().next_functions:
            if before in seen:
                continue
            seen.add(before)
            if type(before) is _LEAF:
                missing.pop(id(before.variable), None)
            else:
                waiting.append(before)
    return list(missing.values())


def _refuse_without_gradient(names: list[str]) -> None:
    if not names:
        return
    shown = ", ".join(names[:6])
    if len(names) > 6:
        shown += f", ... ({len(names)} in all)"
    raise UserError(
        "these parameters are trained, now or in a later stage, but the loss gives them no gradient: "
        f"{shown}; freeze them in model.adapt, or list them in model.no_gradient_needed if that is right"
    )
