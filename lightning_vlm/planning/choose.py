"""The choice for a model and the lengths of its samples, before there is a config."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.optim import AdamW

from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.errors import UserError
from lightning_vlm.module import VLMModule
from lightning_vlm.planning.asked import CONTEXT, room_of
from lightning_vlm.planning.choice import (
    ENOUGH_TOKENS,
    GLOBAL_BATCH,
    LEARNING_RATES,
    Choice,
    micro_batches,
    scaled_learning_rate,
)
from lightning_vlm.planning.methods import ORDERS, Aim, Fit, adapt_of, compared, pick
from lightning_vlm.planning.samples import made_batches
from lightning_vlm.planning.search import Counts
from lightning_vlm.planning.step import CountedStep, skeleton


def choose(
    model: str,
    lengths: Sequence[int],
    memory: int | None = None,
    *,
    global_batch: int = GLOBAL_BATCH,
    picture: tuple[int, int] | None = (640, 480),
    aim: Aim = "merge",
    **options: Any,
) -> Choice:
    """The method, batch and precision for a model on some data.

    Steps of the model without weights are counted, on a made sample as long as the longest one.

    Args:
        model: As `model.name_or_path`.
        lengths: The tokens of samples, pictures included; some hundreds are enough.
        memory: The bytes of a GPU; None is the device of this machine.
        global_batch: Samples of an optimizer step.
        picture: Width and height of the picture in a sample; None is none.
        aim: What matters.
        options: Of the `VLMModule`, such as `revision`, `trust_remote_code` or `chat_template`.

    Raises:
        UserError: No such model, no lengths, or a model that can't be made without weights.

    >>> choose("drawn-vlm", [100, 120], memory=2**31).batch_size
    32
    """
    if not lengths or max(lengths) < 1:
        raise UserError("plan: found no lengths of samples; expected those of some training samples")
    room = room_of(memory)
    precision = _precision(room.on_gpu)
    module = VLMModule(model, **options)
    renderer = Renderer(module.processor)
    methods = compared()
    fits: dict[str, Fit] = {}
    counts: dict[str, Counts] = {}
    enough = math.ceil(min(global_batch, ENOUGH_TOKENS / statistics.mean(lengths)) / 2)
    picked = pick(aim, fits, enough)
    for name in ORDERS[aim]:
        method = methods[name]
        try:
            shaped = skeleton(module.source, method, precision, module.processor)
        except UserError as error:
            if str(error).startswith("plan"):  # a method that the model can't have
                continue
            raise
        step = CountedStep(shaped, precision, AdamW, accumulates=True)
        counts[name] = Counts(step, made_batches(renderer, shaped, max(lengths), picture, module.targets))
        kept = counts[name].largest(False, room.room, global_batch)
        again = counts[name].largest(True, room.room, global_batch) if kept < enough else 0
        fits[name] = Fit(kept, again)
        picked = pick(aim, fits, enough)
        if picked.name is not None:
            break
    name = picked.name or min(counts, key=lambda one: counts[one].need(True, 1).peak)
    fitting = 1 if picked.name is None else max(fits[name])
    size, accumulate = micro_batches(global_batch, fitting)
    method = methods[name]
    peak = counts[name].need(picked.recompute, size).peak + (CONTEXT if room.on_gpu else 0)
    typical = int(statistics.median(lengths))
    choice = Choice(
        adapt=adapt_of(method),
        quantization=method.quantization.method if method.quantization else None,
        batch_size=size,
        accumulate=accumulate,
        recompute=picked.recompute,
        precision=precision,
        learning_rate=scaled_learning_rate(LEARNING_RATES[name.split(" ")[0]], size * accumulate),
        gib=peak / 2**30,
        fits=picked.name is not None,
        reasons=picked.reasons,
    )
    more = [
        f"samples have up to {max(lengths):,} tokens, {typical:,} in the middle",
        f"{size} × {accumulate} samples make steps of {size * accumulate}",
        f"expected peak {choice.gib:.1f} GiB of {room.whole / 2**30:.1f}",
    ]
    if not choice.fits:
        more.append("no method fits: smaller pictures, shorter samples or a smaller model are needed")
    return replace(choice, reasons=(*picked.reasons, *more))


def _precision(on_gpu: bool) -> str:
    """For a GPU that isn't here it is taken to have bfloat16, as all of them do since 2020."""
    if not on_gpu:
        return "32-true"
    is_old = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
    return "16-mixed" if is_old else "bf16-mixed"
