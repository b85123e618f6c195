"""The loss of a batch: which tokens are learned, what the model makes of them, and the share of each task."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from lightning_vlm.data.batch.collate import Batch, Targets
from lightning_vlm.data.batch.image_groups import split_by_image_count
from lightning_vlm.data.task_table import OTHER
from lightning_vlm.losses.box_loss import BoxLoss, BoxLosses, box_losses
from lightning_vlm.losses.coordinates import Candidates
from lightning_vlm.losses.language import LossSums, head_cross_entropy
from lightning_vlm.losses.tasks import FixedWeights, make_task_weights, task_index
from lightning_vlm.losses.weights import LEAST_WEIGHT, KindWeights, token_weights
from lightning_vlm.models.attention import kernel_takes_lengths, takes_lengths, varlen_lengths
from lightning_vlm.models.logits import logit_options
from lightning_vlm.models.picture_inputs import pictures_on_host
from lightning_vlm.models.replaced import replaced


class TaskSums(NamedTuple):
    """The loss of a training batch, and its parts by task.

    Args:
        loss_sum: Scalar with a graph: Σ wℓ with the weights of tasks.
        sums: Tensor of shape [tasks], detached: Σ wℓ of each task, before its weight, box loss and all.
        counts: Tensor of shape [tasks], detached: Σ w.
    """

    loss_sum: Tensor
    sums: Tensor
    counts: Tensor


class MaskLosses(NamedTuple):
    """The losses of the masks of a batch.

    Args:
        losses: Tensor of shape [masks], with a graph, before their weights.
        weights: Tensor of shape [masks]: those of their tokens; 0 where these aren't learned.
        samples: Tensor of shape [masks], int64: which sample each belongs to.
    """

    losses: Tensor
    weights: Tensor
    samples: Tensor


def find_targets(batch: Batch, table: KindWeights) -> Targets:
    """The tokens of a batch that have weight, each at the position that predicts it.

    Args:
        batch: On the CPU, or the host waits for its device.
        table: The weight of each kind of token.
    """
    if not batch.kinds.numel():  # the batch has only prompts
        none = torch.zeros(0, dtype=torch.int64)
        return Targets(none, none, torch.zeros(0))
    weights = token_weights(batch.kinds, table, batch.factors).flatten()
    assert batch.sequences is not None
    weights[batch.sequences.cu_seq_lens[:-1].long()] = 0  # nothing predicts the first token of a sample
    weights = pad(weights[1:], (0, 1))
    (positions,) = (weights >= LEAST_WEIGHT).nonzero(as_tuple=True)
    return Targets(positions, batch.inputs["input_ids"].flatten()[positions + 1], weights[positions])


def last_hidden_states(
    model: PreTrainedModel, batch: Batch, before_forward: Callable[[Tensor], None] | None = None
) -> Tensor:
    """What the head of a model gets.

    Args:
        model: Its head isn't called.
        batch: May take several forward passes, as `split_by_image_count` says.
        before_forward: Called before each of them with the rows of the batch that it computes.

    Returns:
        Tensor of shape [batch, length, hidden].
    """
    base = getattr(model, model.base_model_prefix, None)
    if base is None and not batch.tokens:  # every sample was skipped, and some of these models need a picture
        return _nothing(model, batch)

    def forward(options: dict[str, Any]) -> Tensor:
        if base is None:
            return _what_the_head_gets(model, options)
        if not batch.tokens and "mm_token_type_ids" in signature(base.forward).parameters:
            # Molmo 2 asks for it in training, and a batch whose samples were all skipped has none.
            options["mm_token_type_ids"] = torch.zeros_like(options["input_ids"])
        return base(**options).last_hidden_state

    return _in_groups(model, batch, forward, before_forward)


def own_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The logits that a model's own forward gives: a Tensor of shape [batch, length, vocabulary]."""
    return _in_groups(model, batch, lambda options: model(**options).logits)


def _in_groups(
    model: PreTrainedModel,
    batch: Batch,
    forward: Callable[[dict[str, Any]], Tensor],
    before_forward: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """What a forward makes of the rows of a batch, in their order."""
    pictures = batch.picture_inputs
    groups = split_by_image_count(batch.inputs, pictures.counts if pictures else None)
    found = []
    with _lengths_of(model, batch), pictures_on_host(model, batch.inputs, pictures) as on_host:
        for rows, inputs in groups:
            if before_forward is not None:
                before_forward(rows)
            found.append(forward({**inputs, **on_host, "use_cache": False, "return_dict": True}))
    if len(groups) == 1:
        return found[0]
    order = torch.cat([rows for rows, _ in groups]).argsort()
    return torch.cat(found)[order]


def _nothing(model: PreTrainedModel, batch: Batch) -> Tensor:
    width = model.get_output_embeddings().in_features
    return zero_loss(model.parameters()).expand(*batch.inputs["input_ids"].shape, width)


def _what_the_head_gets(model: PreTrainedModel, options: Mapping[str, Any]) -> Tensor:
    """The last hidden states of a model that has no base model inside (BLIP-2, Kosmos-2).

    Its head belongs to a language model of its own. The head gives back what it gets for once.
    """
    found: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        found.append(hidden)
        return hidden

    with replaced(model.get_output_embeddings(), "forward", keep):
        model(**options)
    return found[0]


def _lengths_of(model: PreTrainedModel, batch: Batch) -> AbstractContextManager[None]:
    """Give the language model the lengths of samples: packed ones always, so that no mask of length × length
    is made, and padded ones where the kernel then computes no padding."""
    if batch.sequences is None or not takes_lengths(model):
        return nullcontext()
    if not (batch.is_packed or kernel_takes_lengths(model)):
        return nullcontext()
    return varlen_lengths(model, *batch.sequences)


def target_losses(model: PreTrainedModel, hidden: Tensor, targets: Targets) -> LossSums:
    """Weighted losses of targets, summed. Logits exist only where a token has weight, in chunks.

    Args:
        model: Its head is called.
        hidden: Tensor of shape [batch, length, hidden], as from `last_hidden_states`.
        targets: Of the same batch.

    Returns:
        As `head_cross_entropy`, with one token loss for each target.
    """
    chosen = hidden.flatten(0, 1).index_select(0, targets.positions)
    head: nn.Module = model.get_output_embeddings()
    options = logit_options(model)._asdict()
    return head_cross_entropy(chosen, head, targets.labels, targets.weights, **options)


def target_box_losses(
    model: PreTrainedModel, hidden: Tensor, targets: Targets, candidates: Candidates, options: BoxLoss
) -> BoxLosses:
    """The box loss of targets that are tokens of coordinates (`targets.numbers`).

    Args:
        model: Its head is called.
        hidden: Tensor of shape [batch, length, hidden], as from `last_hidden_states`.
        targets: Of the same batch, on the same device.
        candidates: The tokens that numbers are made of, likewise.
        options: Which loss.
    """
    assert targets.numbers is not None
    chosen = hidden.flatten(0, 1).index_select(0, targets.positions[targets.numbers.places])
    head = model.get_output_embeddings()
    return box_losses(chosen, head, targets.numbers, candidates, options, logit_options(model))


def task_sums(
    model: PreTrainedModel,
    batch: Batch,
    targets: Targets,
    tasks: FixedWeights | None,
    boxes: Callable[[PreTrainedModel, Tensor, Targets], BoxLosses | None] | None = None,
    masks: Callable[[Tensor, Batch, Targets], MaskLosses | None] | None = None,
) -> TaskSums:
    """The loss of a training batch, and its parts by task; no second pass for them.

    Args:
        model: In a fit.
        batch: On the device of the model.
        targets: What is learned from it.
        tasks: The weights of tasks; None outside of a fit, where no task has a weight.
        boxes: The box loss of the model, of the last hidden states and targets, if there is one.
        masks: The losses of masks, of the last hidden states, if the model makes any.

    Raises:
        UserError: A sample's task isn't one of the training data's.
    """
    device = batch.inputs["input_ids"].device
    if tasks is None:
        tasks = make_task_weights(None, [OTHER]).to(device)
    task_of_sample = torch.tensor([task_index(task, tasks.names) for task in batch.tasks] or [-1])
    sample_of_target = batch.samples.flatten()[targets.positions]
    task_of_target = task_of_sample.to(device, non_blocking=True)[sample_of_target]

    def announce(rows: Tensor) -> None:
        # GradNorm's layers read it during the forward.
        tasks.rows = _task_of_tokens(batch, task_of_sample) if batch.is_packed else task_of_sample[rows]

    hidden = last_hidden_states(model, batch, announce)
    weights = targets.weights * tasks.weights[task_of_target]
    loss_sum, _, token_losses = target_losses(model, hidden, targets._replace(weights=weights))
    of_boxes = boxes(model, hidden, targets) if boxes is not None else None
    if of_boxes is not None and targets.numbers is not None:
        places, added = targets.numbers.places, of_boxes.added
        loss_sum = loss_sum + (weights[places] * added).sum()
        token_losses = token_losses.index_add(0, places, added.detach())
    zeros = torch.zeros_like(tasks.weights)
    token_sums = (token_losses * targets.weights).to(zeros.dtype)
    sums = zeros.index_add(0, task_of_target, token_sums)
    counts = zeros.index_add(0, task_of_target, targets.weights)
    of_masks = masks(hidden, batch, targets) if masks is not None else None
    if of_masks is not None:
        task_of_mask = task_of_sample.to(device, non_blocking=True)[of_masks.samples]
        weighted = of_masks.weights * of_masks.losses
        loss_sum = loss_sum + (weighted * tasks.weights[task_of_mask]).sum()
        sums = sums.index_add(0, task_of_mask, weighted.detach().to(zeros.dtype))
    tasks.add(sums, counts)
    regularizer = tasks.regularizer(sums, counts)
    if regularizer is not None:
        loss_sum = loss_sum + regularizer
    return TaskSums(loss_sum, sums, counts)


def _task_of_tokens(batch: Batch, task_of_sample: Tensor) -> Tensor:
    """The task of each token of a packed batch: a Tensor of shape [1, length], on the CPU."""
    return task_of_sample.repeat_interleave(torch.tensor(batch.lengths))[None]


def zero_loss(parameters: Iterable[nn.Parameter]) -> Tensor:
    """A zero whose backward reaches all parameters that train, so that DDP waits for none of them."""
    # One value of each: a sum over all could overflow, and 0 times infinity is NaN.
    firsts = [parameter.flatten()[0].float() for parameter in parameters if parameter.requires_grad]
    return 0 * torch.stack(firsts).sum() if firsts else torch.zeros(())


def has_pictures(batch: Batch) -> bool:
    """Whether the model sees a picture in a batch."""
    return any(name.startswith(("pixel_values", "image")) for name in batch.inputs)
