"""What a language model and its head compute for a token."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_vlm.models.operations.part import (
    Cost,
    UncountableError,
    Window,
    check_trial,
    cost_of,
    find_attentions,
)
from lightning_vlm.models.operations.trace import Trace, trace
from lightning_vlm.models.parts import find_parts

TOKENS = 8
"""Of the trial."""


def language_cost(model: PreTrainedModel, below: bool) -> Cost:
    """What the language model computes for a token, seen in a trial of some tokens.

    Args:
        model: The model.
        below: Whether the features of pictures among the tokens have a gradient.

    Raises:
        UncountableError: It has something whose operations aren't known.
    """
    decoder: Any = model.get_decoder()
    windows = _windows(decoder.config)
    ids = torch.arange(TOKENS, device=model.device)[None]

    def run() -> Tensor:
        embedded = model.get_input_embeddings()(ids)
        if below and not embedded.requires_grad:
            embedded = embedded.detach().requires_grad_()
        return decoder(inputs_embeds=embedded, use_cache=False).last_hidden_state

    seen = try_out(decoder, run, "language model")
    parts = find_parts(model)
    _refuse_unseen(model, parts["language"], seen)
    (layers,) = parts["language.layers"]
    attentions = find_attentions(seen.calls, model.get_submodule(layers), windows, "language model")
    if not has_quantised(decoder):
        check_trial(seen, attentions, dict.fromkeys(windows, float(TOKENS**2)), "language model")
    return cost_of(seen, TOKENS, attentions)


def head_cost(model: PreTrainedModel, below: bool) -> Cost:
    """What the head computes for a token.

    Args:
        model: The model.
        below: Whether what it reads has a gradient.
    """
    head = model.get_output_embeddings()
    width = model.config.get_text_config().hidden_size
    hidden = torch.zeros(1, width, dtype=model.dtype, device=model.device, requires_grad=below)
    return cost_of(try_out(head, lambda: head(hidden), "head"), 1)


def _refuse_unseen(model: PreTrainedModel, paths: Sequence[str], seen: Trace) -> None:
    called = {call.module for call in seen.calls}
    for path in paths:
        node = operator.attrgetter(path)(model)
        for name, module in node.named_modules() if isinstance(node, nn.Module) else ():
            if isinstance(module, nn.Linear) and module not in called:
                raise UncountableError(f"{name} of the language model isn't used by text alone")


def try_out(module: nn.Module, run: Callable[[], Tensor], name: str) -> Trace:
    """Trace a part of a model.

    Raises:
        UncountableError: The trial fails; a model may fail in any way.
    """
    try:
        return trace(module, run)
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), "")
        found = f"{type(error).__name__}: {first_line}"
        raise UncountableError(f"a trial of the {name} ends in {found}") from error


def has_quantised(module: nn.Module) -> bool:
    """Whether any layer is quantised: PyTorch's count doesn't know their kernels."""
    return any(
        isinstance(inner, nn.Linear) and not inner.weight.is_floating_point() for inner in module.modules()
    )


def _windows(config: Any) -> Sequence[Window]:
    """How far each layer's attention looks."""
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_causal", True) is False:
        raise UncountableError("the language model isn't a causal decoder")
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return [window] * config.num_hidden_layers
    windows: dict[str, Window] = {"full_attention": None, "sliding_attention": window}
    unknown = set(kinds) - windows.keys()
    if unknown:
        raise UncountableError(f"the language model has layers of {', '.join(sorted(unknown))}")
    return [windows[kind] for kind in kinds]
