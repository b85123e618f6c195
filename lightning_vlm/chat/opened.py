"""A model by any name, ready to be asked as it was trained."""

import json
import logging
import re
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks.checkpoint_files import newness
from lightning_vlm_callbacks.sharded_checkpoints import is_sharded
from transformers import PreTrainedModel, ProcessorMixin

from lightning_vlm.chat.base import Switch, switch_of
from lightning_vlm.data.pixel_budget import PixelBudget
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.data.system_prompts import FILE as PROMPTS
from lightning_vlm.data.system_prompts import KEY as PROMPTS_KEY
from lightning_vlm.data.system_prompts import system_prompts_of
from lightning_vlm.errors import UserError
from lightning_vlm.export.record import Record
from lightning_vlm.export.serving import trained_sampling
from lightning_vlm.export.trained import changes_base, module_of, read_checkpoint_file, run_of
from lightning_vlm.models.adapters import load_adapters
from lightning_vlm.models.adapters.layers import SETTINGS, adapters_of
from lightning_vlm.models.loading.load import load_processor
from lightning_vlm.models.loading.peft_adapter import load_peft_adapter
from lightning_vlm.models.mask_head import WEIGHTS, MaskHead, load_mask_head
from lightning_vlm.models.plan.plan import read_plan
from lightning_vlm.module import VLMModule

_PEFT = "adapter_config.json"
_AS_TRAINED = ("bf16-mixed", "16-mixed", "bf16-true", "16-true")
"""Precisions in which a model answers as it was trained; else in that of its weights."""


class Where(NamedTuple):
    """How models are opened.

    Args:
        device: `auto`, `cpu`, `cuda`, ...; as Lightning's `accelerator`.
        trust_remote_code: Run Python code that comes with the model.
        family: As of `VLMModule`.
        base: The base model, where nothing says it or it has moved.
    """

    device: str = "auto"
    trust_remote_code: bool = False
    family: str | None = None
    base: str | None = None


class OpenedModel:
    """A model that can be asked.

    Args:
        title: What people call it.
        model: In eval mode, on its device.
        processor: Of the model.
        run: What is known of its training, by the names of a config.
        trainer: Whose device and precision it has.
        mask_head: Makes masks of answers, if there is one.
        switch: Turns the model into its base model and back; None where that takes another model.
        base: The name of the base model; None where nothing is known.
    """

    def __init__(
        self,
        title: str,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        run: Mapping[str, Any],
        trainer: Trainer,
        mask_head: MaskHead | None = None,
        switch: Switch | None = None,
        base: str | None = None,
    ) -> None:
        self.title = title
        self.model = model
        self.processor = processor
        self.run = run
        self.trainer = trainer
        self.mask_head = mask_head
        self.switch = switch
        self.base = base
        self.lock = threading.Lock()
        """Held while it answers: it may be its base model meanwhile."""
        self.device: torch.device = trainer.strategy.root_device
        model.to(self.device).eval()  # type: ignore[arg-type]
        trainer.precision_plugin.convert_module(model)
        if mask_head is not None:
            mask_head.to(self.device).eval()

    @cached_property
    def renderer(self) -> Renderer:
        """What turns conversations into prompts, as in training."""
        pixels = PixelBudget.read(str(self.run.get("data.max_pixels", "")))
        pixels.apply(self.processor)
        renderer = Renderer(self.processor, None, trained_sampling(self.run), self.run.get("data.boxes"))
        renderer.open_picture = pixels.open_picture
        return renderer

    @property
    def context_length(self) -> int | None:
        """The most tokens that the language model has positions for; None where it doesn't say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def system_prompts(self) -> dict[str, str]:
        """The system prompt of each task, where training gave some."""
        return system_prompts_of(self.run)

    def computing(self) -> AbstractContextManager[None]:
        """The precision that it answers in."""
        return self.trainer.precision_plugin.forward_context()

    def as_base(self) -> AbstractContextManager[None]:
        """A context in which the model is its base model."""
        return nullcontext() if self.switch is None else self.switch.off()


def open_model(name: str, where: Where, with_base: bool = False) -> OpenedModel:
    """Open a model.

    Args:
        name: A checkpoint, an exported folder, a folder of adapters, the name of a model on the hub, or of a
            shipped one.
        where: How.
        with_base: Whether what is needed to be its base model is kept.

    Raises:
        UserError: There is no such model, or it can't be loaded.
    """
    path = Path(name)
    if path.is_file() or path.suffix == ".ckpt" or is_sharded(path):
        return _checkpoint(path, where, with_base)
    if path.is_dir() and ((path / _PEFT).exists() or (path / SETTINGS).exists()):
        return _adapters(path, where)
    if path.is_dir() and not (path / "config.json").exists():
        newest = newest_checkpoint(path)
        hint = f"; did you mean {newest}?" if newest else ""
        raise UserError(f"{path}: found a folder without config.json, adapters or a checkpoint's name{hint}")
    return _whole(name, where)


def open_base(opened: OpenedModel, where: Where) -> OpenedModel:
    """The base model of another, to be asked beside it: the same one if it can be switched.

    Raises:
        UserError: Nothing says which it is, or it can't be loaded.
    """
    if where.base is None and opened.switch is not None:
        return opened
    name = where.base or opened.base
    if name is None:
        raise UserError(f"--base: {opened.title} doesn't say what its base model is; write --base MODEL")
    template: Any = opened.processor.chat_template
    module = _module(name, where, chat_template=template)
    return OpenedModel(name, module.model, module.processor, opened.run, opened.trainer, base=name)


def _checkpoint(path: Path, where: Where, with_base: bool) -> OpenedModel:
    saved = read_checkpoint_file(path)
    run = run_of(saved)
    module = module_of(saved, where.base, where.trust_remote_code, where.family, quantised=True)
    trainer = _trainer(where, run)
    module.trainer = trainer  # its precision decides what weights are kept in
    module.configure_model()
    module.trainer = None
    switch = None
    own = adapters_of(module.model)
    plan = read_plan(saved["hyper_parameters"]["adapt"])
    switchable = not own and not module.source.new_tokens and not any(map(changes_base, plan.values()))
    if with_base and switchable:
        switch = switch_of(module.model, module.trained.names, module.trained.buffers())
    module.on_load_checkpoint(saved)
    module.load_state_dict(saved["state_dict"])
    return OpenedModel(
        path.name, module.model, module.processor, run, trainer, module.mask_head, switch, module.name_or_path
    )


def _adapters(folder: Path, where: Where) -> OpenedModel:
    record = Record.load(folder)
    base = where.base or _base_of_adapters(folder) or record.base
    if base is None:
        raise UserError(f"{folder}: found adapters that don't say what their base model is; add --base MODEL")
    module = _module(base, where, revision=None if where.base else record.revision)
    model: Any = module.model
    if (folder / _PEFT).exists():
        model = load_peft_adapter(model, folder, base)
    has_ours = (folder / SETTINGS).exists()
    if has_ours:
        load_adapters(model, folder)
    processor = load_processor(folder) if _has_processor(folder) else module.processor
    switch = None if has_ours else switch_of(model, (), {})
    run = _run_of_folder(folder)
    return OpenedModel(
        folder.name, model, processor, run, _trainer(where, run), _mask_head(folder), switch, base
    )


def _whole(name: str, where: Where) -> OpenedModel:
    folder = Path(name)
    record = Record.load(folder) if folder.is_dir() else Record()
    module = _module(name, where)
    title = folder.name if folder.is_dir() else name
    run = _run_of_folder(folder)
    return OpenedModel(
        title, module.model, module.processor, run, _trainer(where, run), _mask_head(folder), base=record.base
    )


def _run_of_folder(folder: Path) -> dict[str, Any]:
    """What an exported folder says of its training; of any other nothing is known."""
    run = Record.load(folder).run
    try:
        prompts = json.loads((folder / PROMPTS).read_text("utf-8"))
    except (OSError, ValueError):
        return run
    return run | {f"{PROMPTS_KEY}.{task}": text for task, text in prompts.items()}


def _module(name: str, where: Where, **options: Any) -> VLMModule:
    module = VLMModule(
        name,
        adapt={"language": "frozen"},
        trust_remote_code=where.trust_remote_code,
        family=where.family,
        **options,
    )
    module.configure_model()
    return module


def _trainer(where: Where, run: Mapping[str, Any]) -> Trainer:
    precision = str(run.get("trainer.precision"))
    options: dict[str, Any] = {"precision": precision} if precision in _AS_TRAINED else {}
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")  # which says what devices there are
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        return Trainer(
            accelerator=where.device,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )
    except (MisconfigurationException, ValueError) as error:
        raise UserError(
            f"device: found {where.device}, which torch can't use here; expected auto, cpu, or cuda or mps "
            "where there is a GPU"
        ) from error
    finally:
        logger.setLevel(level)


def _base_of_adapters(folder: Path) -> str | None:
    try:
        found = json.loads((folder / _PEFT).read_text("utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError):
        return None
    return str(found) if found else None


def _has_processor(folder: Path) -> bool:
    return (folder / "tokenizer_config.json").exists()


def _mask_head(folder: Path) -> MaskHead | None:
    return load_mask_head(str(folder)) if (folder / WEIGHTS).exists() else None


def newest_checkpoint(folder: Path) -> Path | None:
    """Of several runs the clock says which is newest, but for those that a logger has numbered."""
    found = [file for file in folder.rglob("*.ckpt") if file.is_file() or is_sharded(file)]
    last = max(found, key=lambda file: file.stat().st_mtime, default=None)
    if last is None:
        return None
    runs, _ = _run_of(last)
    if runs is not None:  # a clock may have been set back
        last = max((file for file in found if _run_of(file)[0] == runs), key=lambda file: _run_of(file)[1])
    return max((file for file in found if file.parent == last.parent), key=newness)


def _run_of(file: Path) -> tuple[Path | None, int]:
    """The folder of numbered runs that a file lies in, and the number of its run."""
    for folder in file.parents:
        if number := re.fullmatch(r"version_(\d+)", folder.name):
            return folder.parent, int(number[1])
    return None, -1
