"""The trained model of a checkpoint, on base weights in 16 or 32 bits."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_vlm.data.conversation import Conversations
from lightning_vlm.data.pixel_budget import PixelBudget
from lightning_vlm.data.system_prompts import system_prompts_of
from lightning_vlm.data.video.sampling import VideoSampling
from lightning_vlm.errors import UserError
from lightning_vlm.export.serving import trained_sampling
from lightning_vlm.models.experts import without_base_layers
from lightning_vlm.models.loading.checkpoint import check_file, load_file
from lightning_vlm.models.plan.methods import LoraSettings
from lightning_vlm.models.plan.plan import PlanEntry, read_plan
from lightning_vlm.module import VLMModule
from lightning_vlm.training.run_state import RUN

_KNOWN = (
    *("adapt", "token_weights", "chat_template", "template_options", "revision", "dtype", "new_tokens"),
    "mask_head",
)
_BESIDE = ("adapter", "cross_modal_adapter")
"""Methods whose adapters can't be merged."""

ADAPTER_ONLY = "--adapter-only"
"""The option, as messages and the help spell it."""


class ExportRequest(NamedTuple):
    """What to export.

    Args:
        checkpoint: A file that `VLMModule` training wrote.
        adapter_only: The adapters alone, for PEFT; or else everything merged.
        name_or_path: Where the base model is now; None: where it was.
        trust_remote_code: Run Python code that comes with the model.
        source: Whose questions it is to be proved on; None: drawn pictures.
        samples: How many.
        dtype: Of a merged model's weights; `auto`: of the base model's.
        max_shard_size: Of a merged model's files.
        family: As of `VLMModule`.
    """

    checkpoint: Path
    adapter_only: bool = False
    name_or_path: str | None = None
    trust_remote_code: bool = False
    source: Conversations | None = None
    samples: int = 4
    dtype: str = "auto"
    max_shard_size: str = "5GB"
    family: str | None = None


class Trained(NamedTuple):
    """A trained model in float32.

    Args:
        module: With the model and its processor.
        starts: LoRA weights from before training where they have moved the base weights (PiSSA, OLoRA).
        dtypes: What each weight and buffer was loaded in, by its name without adapters.
        quantised: How many weights were quantised in training; here none are.
        video: How videos were sampled in training.
        pixels: How large pictures were in training.
        boxes: The name of the codec of boxes; None where there were none.
        prompts: Task -> the system prompt that it was trained with.
        run: What the checkpoint says of its run.
        saved: The checkpoint without its weights.
    """

    module: VLMModule
    starts: dict[str, Tensor]
    dtypes: dict[str, torch.dtype]
    quantised: int
    video: VideoSampling = VideoSampling()
    pixels: PixelBudget = PixelBudget()
    boxes: str | None = None
    prompts: Mapping[str, str] = MappingProxyType({})
    run: Mapping[str, Any] = MappingProxyType({})
    saved: Mapping[str, Any] = MappingProxyType({})


def load_trained(request: ExportRequest) -> Trained:
    """Load the base model again, adapt it as in training, and give it the checkpoint's weights.

    Args:
        request: Of the command.

    Raises:
        UserError: The file isn't a checkpoint of a `VLMModule`, its base model can't be loaded or has
            changed, or its plan can't be exported in this form.
    """
    saved = read_checkpoint_file(request.checkpoint)
    given = saved["hyper_parameters"]
    plan = read_plan(given["adapt"])
    refuse(plan, request.adapter_only, bool(given.get("new_tokens")))
    module = module_of(saved, request.name_or_path, request.trust_remote_code, request.family)
    module.configure_model()
    model: Any = module.model
    starts = {}
    if any(changes_base(entry) for entry in plan.values()):
        for name, weight in model.named_parameters():
            if ".lora_" in name:
                starts[name] = weight.detach().float().clone()
    module.on_load_checkpoint(saved)
    module.load_state_dict(saved["state_dict"])
    dtypes = {}
    for name, weight in model.state_dict().items():
        dtypes[without_base_layers(name)] = weight.dtype
    model.float().eval()
    quantised = saved["lightning_vlm"].get("quantised", {})
    run = run_of(saved)
    pixels = PixelBudget.read(str(run.get("data.max_pixels", "")))
    return Trained(
        module,
        starts,
        dtypes,
        len(quantised),
        trained_sampling(run),
        pixels,
        run.get("data.boxes"),
        system_prompts_of(run),
        run,
        {name: value for name, value in saved.items() if name not in ("state_dict", "optimizer_states")},
    )


def read_checkpoint_file(path: Path) -> dict[str, Any]:
    """What a checkpoint of a `VLMModule` holds.

    Args:
        path: The file.

    Raises:
        UserError: It is no such checkpoint.
    """
    check_file(path)
    saved = load_file(path)
    given = saved.get("hyper_parameters")
    if not isinstance(given, Mapping) or "name_or_path" not in given or "lightning_vlm" not in saved:
        raise UserError(f"checkpoint {path}: found none of a VLMModule; it names no base model")
    return saved


def run_of(saved: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of the run that wrote it, by the names of a config; older ones say less."""
    return dict(saved["lightning_vlm"].get(RUN, {}))


def module_of(
    saved: Mapping[str, Any],
    name_or_path: str | None = None,
    trust_remote_code: bool = False,
    family: str | None = None,
    quantised: bool = False,
) -> VLMModule:
    """The module that a checkpoint was trained with, without its model.

    Args:
        saved: As from `read_checkpoint_file`.
        name_or_path: Where the base model is now; None: where it was.
        trust_remote_code: Run Python code that comes with the model.
        family: As of `VLMModule`.
        quantised: Whether weights that were quantised in training are to be so here.
    """
    given = saved["hyper_parameters"]
    known = (*_KNOWN, "quantization") if quantised else _KNOWN
    return VLMModule(
        name_or_path or given["name_or_path"],
        **{name: given[name] for name in known if given.get(name) is not None},
        trust_remote_code=trust_remote_code,
        family=family,
    )


def changes_base(entry: PlanEntry) -> bool:
    """Whether a method has moved part of the base weights into its own, as PiSSA and OLoRA do."""
    return isinstance(entry.settings, LoraSettings) and entry.settings.changes_base


def refuse(plan: Mapping[str, PlanEntry], adapter_only: bool, new_tokens: bool) -> None:
    """Refuse, before anything is loaded, what can't be exported as asked.

    Args:
        plan: By selector.
        adapter_only: As in `ExportRequest`.
        new_tokens: Whether there are any.

    Raises:
        UserError: With the alternative.

    >>> refuse({"language": PlanEntry("adapter")}, False, False)
    Traceback (most recent call last):
    ...
    lightning_vlm.errors.UserError: export: plan['language'] is adapter, which runs beside the weights \
and can't be merged into them; use --adapter-only
    """
    beside = [key for key, entry in plan.items() if entry.method in _BESIDE]
    if not adapter_only:
        if beside:
            raise UserError(
                f"export: plan[{beside[0]!r}] is {plan[beside[0]].method}, which runs beside the weights and "
                f"can't be merged into them; use {ADAPTER_ONLY}"
            )
        return
    if not beside and not any(entry.method in ("lora", "ia3") for entry in plan.values()):
        raise UserError(f"export: nothing in the plan is an adapter; leave {ADAPTER_ONLY} out")
    if new_tokens:
        raise UserError(
            "export: new_tokens give the base model more rows, which adapters alone don't have; leave "
            f"{ADAPTER_ONLY} out"
        )
    for key, entry in plan.items():
        lora = entry.settings
        if isinstance(lora, LoraSettings) and lora.changes_base and lora.dora:
            raise UserError(
                f"export: plan[{key!r}] is DoRA with init: {lora.init}, whose changed base weights "
                f"PEFT's format can't hold; leave {ADAPTER_ONLY} out"
            )
