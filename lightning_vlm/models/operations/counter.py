"""What a batch of a vision-language model costs, from its sizes and the weights that train."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor
from transformers import PreTrainedModel

from lightning_vlm.data.batch.picture_sizes import VIDEO_FRAMES, PictureSizes
from lightning_vlm.models.operations.language import head_cost, language_cost
from lightning_vlm.models.operations.part import Cost, UncountableError, Window
from lightning_vlm.models.operations.vision import Tower, trace_vision

_PIXELS = {"pixel_values", "pixel_values_images"}


class OperationCounter:
    """Counts the floating point operations that a batch needs, forward and backward, on the host.

    Counted are products of matrices and convolutions over the tokens and pictures that there are (no
    padding), by the true shapes of the modules that make them, and attention by pairs of tokens: half of
    length² where it is causal, less in a sliding window. The head counts at targets only. Gradients count
    where they are needed: those of a matrix where it trains, those of what it reads where something before it
    trains (so LoRA costs two thirds of full training, and a frozen tower a third). Nothing that is computed a
    second time counts, and neither do norms, activations, rotary embeddings, the loss and the optimizer.
    Tokens of a picture that see one another both ways are counted as if they were causal.

    The modules and how often each is called are seen in a trial: the language model on a few tokens, the
    tower on one picture. PyTorch's own count of the trial must agree; where it doesn't (mixtures of experts,
    linear attention, ...), or the trial isn't possible, operations are unknown and `why` says so.

    Args:
        model: In a fit, adapted, on its device.
        context: What its forward runs in, such as autocast.
    """

    def __init__(
        self, model: PreTrainedModel, context: Callable[[], AbstractContextManager] = nullcontext
    ) -> None:
        self.why = ""
        """Why operations are unknown; empty if they aren't."""
        self._model, self._context = model, context
        self._weights = list(model.parameters())
        self._begin()

    def count(
        self, lengths: Sequence[int], pictures: PictureSizes, targets: int, inputs: Mapping[str, Tensor]
    ) -> float | None:
        """The operations of a batch; None if they are unknown.

        Args:
            lengths: The tokens of each sample.
            pictures: The sizes of its pictures.
            targets: How many tokens have a loss.
            inputs: What the model's forward takes. Its values are read only for the first picture of a fit,
                and after a change of what trains.
        """
        if self._state() != self._known_state:
            self._weights = list(self._model.parameters())
            self._begin()
        if self.why or not lengths:
            return None if self.why else 0.0
        try:
            return self._count(lengths, pictures, targets, inputs)
        except UncountableError as error:
            self.why = str(error)
            return None

    def _begin(self) -> None:
        """Forget what the model computes, since weights train now that didn't, or the other way round."""
        self.why = ""
        self._known_state = self._state()
        self._tower: Tower | None = None
        self._costs: dict[bool, tuple[Cost, Cost]] = {}

    def _state(self) -> list[int]:
        """What costs depend on and can change in a fit: which weights train, and how large they are."""
        return [weight.numel() if weight.requires_grad else 0 for weight in self._weights]

    def _count(
        self, lengths: Sequence[int], pictures: PictureSizes, targets: int, inputs: Mapping[str, Tensor]
    ) -> float:
        total, below = 0.0, False
        if VIDEO_FRAMES in inputs and not pictures.video_grids:
            raise UncountableError("frames of videos go another way than pictures, which isn't counted")
        is_sized = bool(pictures.tiles or pictures.grids or pictures.video_grids)
        if not is_sized and not _PIXELS.isdisjoint(inputs):
            raise UncountableError("patches of its pictures are filled up to one number, which isn't counted")
        if is_sized:
            if self._tower is None:
                with self._context():
                    self._tower = trace_vision(self._model, inputs, pictures)
            total += _operations(self._tower.cost, self._tower.rows(pictures), self._tower.pairs(pictures))
            below = self._tower.cost.has_gradient
        elif "pixel_values" in inputs:
            raise UncountableError("the sizes of its pictures aren't known")
        language, head = self._text_costs(below)
        pairs = {window: causal_pairs(lengths, window) for window in language.per_pair}
        return total + _operations(language, sum(lengths), pairs) + head.per_row * targets

    def _text_costs(self, below: bool) -> tuple[Cost, Cost]:
        """Of the language model and the head."""
        if below not in self._costs:
            with self._context():
                language = language_cost(self._model, below)
                self._costs[below] = language, head_cost(self._model, language.has_gradient)
        return self._costs[below]


def causal_pairs(lengths: Sequence[int], window: Window = None) -> float:
    """Pairs of tokens that causal attention compares: half of length², or less in a sliding window.

    >>> causal_pairs([4, 10]), causal_pairs([4, 10], window=4)
    (58.0, 40.0)
    """
    pairs = 0.0
    for length in lengths:
        if window is None or length <= window:
            pairs += length**2 / 2
        else:
            pairs += window * length - window**2 / 2
    return pairs


def _operations(cost: Cost, rows: float, pairs: Mapping[Window, float]) -> float:
    attention = sum(operations * pairs[window] for window, operations in cost.per_pair.items())
    return cost.per_row * rows + attention
