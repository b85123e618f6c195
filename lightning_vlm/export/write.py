"""Writes a trained model as a folder, with what the folder must be."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_vlm.data.pixel_budget import PixelBudget
from lightning_vlm.data.system_prompts import write_prompts
from lightning_vlm.export.adapter_folder import save_adapter_only
from lightning_vlm.export.boxes import keep_codec, write_guide
from lightning_vlm.export.fresh_process import answer, compare_answers, describe
from lightning_vlm.export.masks import write_mask_head
from lightning_vlm.export.merge import merge
from lightning_vlm.export.probe_samples import ProbeSample, drawn_conversations, probe_samples
from lightning_vlm.export.record import Record
from lightning_vlm.export.serving import serve_as_trained
from lightning_vlm.export.snippet import Loading
from lightning_vlm.export.trained import ExportRequest, Trained
from lightning_vlm.export.verification import ExportedFolder, require_same
from lightning_vlm.models.adapters.layers import adapters_of
from lightning_vlm.models.loading.load import forgets_template, resolve

PICTURES = "pictures"
"""The folder inside the exported one, for as long as it isn't verified, of the samples' pictures."""


class Written(NamedTuple):
    """A folder that isn't verified yet, and what is known about it.

    Args:
        export: What it must be.
        rows: What to print about it: a few words, and a figure.
    """

    export: ExportedFolder
    rows: list[tuple[str, str]]


def write(trained: Trained, folder: Path, request: ExportRequest) -> Written:
    """Write the folder of a trained model.

    Args:
        trained: As from `load_trained`; merged in place.
        folder: That is there.
        request: What to write.
    Returns:
        What the folder must be, for `verify`.

    Raises:
        UserError: Merging gave something else than what was trained.
    """
    module = trained.module
    model: Any = module.model
    pictures = folder / PICTURES
    pictures.mkdir()
    source = drawn_conversations(request.samples) if request.source is None else request.source
    trained.pixels.apply(module.processor)
    keep_codec(module.processor, trained.boxes)
    of_videos = serve_as_trained(module.processor, trained.video)
    samples = probe_samples(module.processor, source, request.samples, pictures, trained.video)
    export = ExportedFolder(
        folder,
        Loading(trust_remote_code=request.trust_remote_code),
        samples,
        _answers(model, samples),
        describe(module.processor),
    )
    model.config.use_cache = model.config.get_text_config().use_cache = True
    if request.adapter_only:
        rows = [("base model", module.name_or_path)]
        export = _write_adapters(trained, export)
    else:
        export, rows = _write_merged(trained, export, request)
    module.processor.save_pretrained(folder)
    Record.of_run(trained.run, module.name_or_path, module.hparams["revision"]).save(folder)
    if trained.pixels != PixelBudget():
        rows.append(("pictures", words_of_pictures(trained.pixels)))
    of_boxes = write_guide(module.processor, trained.boxes, folder)
    if of_boxes is not None:
        rows.append(("boxes", of_boxes))
    if trained.prompts:
        rows.append(("system prompts", write_prompts(trained.prompts, folder)))
    of_masks = write_mask_head(module.mask_head, folder)
    if of_masks is not None:
        rows.append(("masks", of_masks))
    if of_videos is not None:
        rows.append(("videos", of_videos))
    if forgets_template(folder, request.trust_remote_code):
        loading = export.loading._replace(template_of_tokenizer=True)
        export = export._replace(loading=loading)
    if trained.quantised:
        rows.append(
            ("quantised in training", f"{trained.quantised} weights; here on the base model in 16/32 bits")
        )
    return Written(export, rows)


def words_of_pictures(pixels: PixelBudget) -> str:
    """What is done with pictures where the model is served."""
    if not pixels.by_detail:
        return f"the processor resizes them as trained ({pixels})"
    call = f"shrunk_to_detail(picture, {pixels.least}, {pixels.most})"
    return f"the processor doesn't shrink them by detail: call lightning_vlm.data.picture_detail.{call} first"


def _answers(model: Any, samples: Sequence[ProbeSample]) -> list[dict[str, Any]]:
    return [answer(model, sample.inputs) for sample in samples]


def _write_adapters(trained: Trained, export: ExportedFolder) -> ExportedFolder:
    module = trained.module
    model: Any = module.model
    base = str(resolve(module.name_or_path))
    if Path(base).is_dir():
        base = str(Path(base).resolve())
    save_adapter_only(trained, export.folder, base)
    loading = export.loading._replace(
        base=base,
        revision=module.hparams["revision"],
        has_peft=hasattr(model, "peft_config"),
        has_ours=bool(adapters_of(model)),
    )
    return export._replace(loading=loading)


def _write_merged(
    trained: Trained, export: ExportedFolder, request: ExportRequest
) -> tuple[ExportedFolder, list[tuple[str, str]]]:
    model: Any = trained.module.model
    parameters = merge(model)
    answers = _answers(model, export.samples)
    problems, off = compare_answers(export.answers, answers)
    require_same(problems)
    rows = [("merged", f"{parameters:,} parameters, logits off by {off:.1e} of the largest")]
    dtypes = _stored_dtypes(model, trained, request)
    first_weight, _ = next(model.named_parameters())
    stored = dtypes[first_weight]
    if any(dtype != torch.float32 for dtype in dtypes.values()):
        for name, weight in model.state_dict().items():
            weight.copy_(weight.to(dtypes.get(name, weight.dtype)))
        rounded = _answers(model, export.samples)
        name = str(stored).removeprefix("torch.")
        rows.append((f"rounded to {name}", _rounding(answers, rounded)))
        answers = rounded
    description = describe(trained.module.processor, model)
    export = export._replace(answers=answers, description=description)
    _convert(model, dtypes)
    model.config.dtype = stored
    model.save_pretrained(export.folder, max_shard_size=request.max_shard_size)
    return export, rows


def _stored_dtypes(model: Any, trained: Trained, request: ExportRequest) -> dict[str, torch.dtype]:
    """The type in which each floating-point weight and buffer is stored, by name."""
    floating = [name for name, weight in model.state_dict().items() if weight.is_floating_point()]
    if request.dtype == "auto":
        return {name: trained.dtypes[name] for name in floating}
    return dict.fromkeys(floating, getattr(torch, request.dtype))


def _rounding(exact: list[dict[str, Any]], rounded: list[dict[str, Any]]) -> str:
    _, off = compare_answers(exact, rounded)
    same = 0
    for before, after in zip(exact, rounded, strict=True):
        same += torch.equal(before["ids"], after["ids"])
    count = len(exact)
    return f"logits off by {off:.1e}; {same} of {count} answers the same"


def _convert(model: torch.nn.Module, dtypes: dict[str, torch.dtype]) -> None:
    tensors: dict[str, Tensor] = {}
    tensors.update(model.named_parameters())
    tensors.update(model.named_buffers())
    for name, tensor in tensors.items():
        if name in dtypes:
            tensor.data = tensor.data.to(dtypes[name])
