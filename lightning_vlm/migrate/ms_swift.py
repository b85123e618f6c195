"""Commands and saved arguments of ms-swift: `swift sft ...`, `args.json`, and its YAML; versions 2 to 4."""

import re
from pathlib import Path
from typing import Any

from lightning_vlm.errors import UserError
from lightning_vlm.migrate.lora import (
    put_attention,
    put_names,
    put_parts,
    put_quantization,
    put_whole,
    settings,
)
from lightning_vlm.migrate.ms_swift_data import put_data
from lightning_vlm.migrate.ours import Ours
from lightning_vlm.migrate.pixels import put_pixels
from lightning_vlm.migrate.records import convert_records
from lightning_vlm.migrate.theirs import Theirs, listed, plain
from lightning_vlm.migrate.trainer import convert_training, weigh_alike

_VIDEO = {
    "FPS": "fps",
    "NFRAMES": "num_frames",
    "FPS_MIN_FRAMES": "min_frames",
    "FPS_MAX_FRAMES": "max_frames",
    "VIDEO_MAX_PIXELS": "max_pixels_per_frame",
    "VIDEO_MIN_PIXELS": "min_pixels_per_frame",
    "VIDEO_TOTAL_PIXELS": "max_pixels",
}
"""Environment variables of ms-swift -> keys of `data.video`."""
_TOKENS = {
    "IMAGE_MAX_TOKEN_NUM": "MAX_PIXELS",
    "IMAGE_MIN_TOKEN_NUM": "MIN_PIXELS",
    "VIDEO_MAX_TOKEN_NUM": "VIDEO_MAX_PIXELS",
    "VIDEO_MIN_TOKEN_NUM": "VIDEO_MIN_PIXELS",
}
"""Variables that say in tokens what others say in pixels; they are read for Qwen's models alone."""
VARIABLES = {"MAX_PIXELS", "MIN_PIXELS", *_VIDEO, *_TOKENS}
"""Environment variables of ms-swift that are read here."""


def convert(theirs: Theirs, ours: Ours) -> None:
    """Settings of ms-swift.

    Args:
        theirs: Its settings.
        ours: Our config.

    Raises:
        UserError: They aren't of `swift sft`.
    """
    command = theirs.launch.script
    if command not in (None, "sft", "pt") and not str(command).endswith(".py"):
        raise UserError(f"{theirs.file}: found swift {command}; expected swift sft: answers are learned here")
    environment = _in_pixels(theirs, {**theirs.launch.environment, **_of_model(theirs)})
    full = theirs["tuner_type"] == "full"
    _model(theirs, ours)
    _what_trains(theirs, ours, full)
    _tokens(theirs, ours)
    _pixels(theirs, ours, environment)
    has_val = put_data(theirs, ours)
    rate = theirs["learning_rate"]
    convert_training(theirs, ours, adapters=not full, rate=rate or (1e-5 if full else 1e-4))
    convert_records(theirs, ours, has_val=has_val, patience=theirs["early_stop_interval"] or None)
    if full:
        ours.notes.append(
            "weights that train are kept in 32 bits here; ms-swift keeps them as loaded, mostly in 16 bits, "
            "unless DeepSpeed trains them"
        )


def _of_model(theirs: Theirs) -> dict[str, str]:
    given = theirs["model_kwargs"]
    return {str(key).upper(): str(value) for key, value in given.items()} if isinstance(given, dict) else {}


def _in_pixels(theirs: Theirs, environment: dict[str, str]) -> dict[str, float]:
    """The numbers of the variables that are read; those in tokens as pixels, of which a token has 28² or 32².

    Raises:
        UserError: One isn't a number.
    """
    numbers: dict[str, float] = {}
    side = 32 if re.search(r"qwen3|qwen-?3", str(theirs["model"]), re.IGNORECASE) else 28
    for name, value in environment.items():
        if name not in VARIABLES:
            continue
        number = plain(value)
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise UserError(f"{theirs.file}: {name}: found {value}; expected a number")
        numbers[_TOKENS.get(name, name)] = number * side**2 if name in _TOKENS else number
    return numbers


def _model(theirs: Theirs, ours: Ours) -> None:
    said = theirs.said
    name = theirs["model"]
    if name is None:
        ours.choose("model.name_or_path", "no model is given, or only a model_type of ms-swift 2")
        if theirs["model_type"]:
            ours.leave("model_type", theirs["model_type"], "write the model's name on the Hugging Face hub")
    else:
        differs = "" if theirs["use_hf"] else "a name of ModelScope there, of the Hugging Face hub here"
        ours.put(
            "model.name_or_path", str(name), said("model"), differs if not Path(str(name)).exists() else ""
        )
    if theirs["model_revision"]:
        ours.put("model.revision", theirs["model_revision"], said("model_revision"))
    put_attention(ours, theirs["attn_impl"], said("attn_impl"))
    if theirs["gradient_checkpointing"]:
        ours.put("model.gradient_checkpointing", True, said("gradient_checkpointing"))
    ours.put("model.router_aux_loss", theirs["router_aux_loss_coef"], said("router_aux_loss_coef"))
    tokens = listed(theirs["new_special_tokens"])
    if tokens:
        ours.put("model.new_tokens", tokens, said("new_special_tokens"), "their rows train, too")
    if theirs["adapters"]:
        why = "adapters aren't continued; merge them (swift export --merge_lora true), and take that folder"
        ours.leave("adapters", theirs["adapters"], why)
    bits = theirs["quant_bits"]
    if bits and theirs["quant_method"] not in (None, "bnb"):
        ours.leave("quant_method", theirs["quant_method"], "weights are quantised by bitsandbytes here")
    double = bool(theirs["bnb_4bit_use_double_quant"])
    put_quantization(ours, bits, double, said("quant_bits", "bnb_4bit_use_double_quant"))
    if theirs["predict_with_generate"]:
        ours.put("model.generation", {"max_new_tokens": theirs["max_new_tokens"]}, said("max_new_tokens"))


def _what_trains(theirs: Theirs, ours: Ours, full: bool) -> None:
    said = theirs.said
    frozen = {
        "vision": theirs["freeze_vit"],
        "projector": theirs["freeze_aligner"],
        "language": theirs["freeze_llm"],
    }
    trained = [part for part in frozen if not frozen[part]]
    left = [part for part in frozen if frozen[part]]
    alike = f"{' and '.join(left)} frozen, as there" if left else ""
    source = said("tuner_type", "freeze_vit", "freeze_aligner", "freeze_llm")
    if full:
        put_parts(ours, trained + (["head"] if "language" in trained else []), "full", source, alike)
    else:
        kind = str(theirs["tuner_type"])
        if kind != "lora":
            why = "there is no such method here; LoRA takes its place, so choose"
            if kind == "adalora":
                why = "AdaptiveLoRARank is the callback for that here, beside LoRA"
            ours.leave(theirs.name("tuner_type"), kind, why)
        _lora(theirs, ours, trained, alike)
    for part, key in (("vision", "vit_lr"), ("projector", "aligner_lr")):
        if theirs[key] is not None and part in trained:
            ours.put(f"model.learning_rates.{part}", theirs[key], said(key))


def _lora(theirs: Theirs, ours: Ours, trained: list[str], alike: str) -> None:
    said = theirs.said
    differs = ""
    init = str(theirs["init_weights"]).lower()
    lora = settings(
        theirs["lora_rank"],
        theirs["lora_alpha"],
        theirs["lora_dropout"],
        rslora=theirs["use_rslora"],
        dora=theirs["use_dora"],
        init="" if init == "true" else init,
    )
    if init in ("loftq", "lora-ga", "false"):
        ours.leave("init_weights", init, "LoRA begins at zero here, or by gaussian, pissa, olora, orthogonal")
        del lora["init"]
    keys = (
        "tuner_type",
        "lora_rank",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "freeze_vit",
        "freeze_aligner",
    )
    source = said(*keys)
    names = listed(theirs["target_modules"])
    if theirs["target_regex"]:
        why = "name layers by selectors of model.adapt, as `language.layers[-4:]`; all-linear takes its place"
        ours.leave("target_regex", theirs["target_regex"], why)
        names = ["all-linear"]
    if names == ["DEFAULT"]:
        differs = (
            "DEFAULT depends on the model in ms-swift 2: queries, keys and values of most; here all layers"
        )
    for name in ("all-embedding", "all-router"):
        if name in names:
            names.remove(name)
            ours.leave(
                "target_modules", name, "LoRA goes into linear layers here; routers are language.routers"
            )
    if names in (["all-linear"], ["ALL"], ["DEFAULT"]):
        put_parts(ours, trained, {"lora": lora}, source, alike, differs)
    else:
        put_names(ours, names, lora, source)
    whole = [name for name in listed(theirs["modules_to_save"]) if not name.startswith("all-")]
    put_whole(ours, whole, said("modules_to_save"))
    groups = [name for name in listed(theirs["modules_to_save"]) if name.startswith("all-")]
    if groups:
        ours.leave(
            "modules_to_save", ", ".join(groups), "name them by selectors under model.adapt, each: full"
        )


def _tokens(theirs: Theirs, ours: Ours) -> None:
    said = theirs.said
    scale = str(theirs["loss_scale"]).removesuffix("+ignore_empty_think")
    kinds: dict[str, tuple[float, str]] = {}
    if scale == "all" or theirs.launch.script == "pt":
        source = said("loss_scale") if scale == "all" else "swift pt learns all words"
        kinds = {"special": (1.0, source), "instruction": (1.0, source)}
        if theirs.launch.script == "pt":
            ours.notes.append("swift pt leaves the chat template out by itself; here it stays")
    elif scale != "default":
        why = "all answers are learned here, each word alike; `weight` of a turn in the data weighs it"
        ours.leave("loss_scale", scale, why)
    weigh_alike(ours, **kinds)
    length = theirs["max_length"]
    strategy = theirs["truncation_strategy"] or "delete"
    differs = "longer samples lose their last rounds before they are left out; there they are left out"
    if strategy != "delete":
        differs = (
            f"truncation_strategy {strategy} cuts tokens off there; here the last rounds, and never a picture"
        )
    if length is not None:
        ours.put("data.max_length", length, said("max_length"), differs)
    if theirs["packing"]:
        ours.put("data.batching", "packed", said("packing"), "no sample sees another, as there")
        tokens = theirs["packing_length"] or length
        if tokens:
            ours.put(
                "data.max_tokens",
                tokens * theirs["per_device_train_batch_size"],
                "packing_length × batch size",
            )
        else:
            ours.choose(
                "data.max_tokens", "packed rows are as long as the model can read there; such as 8192"
            )
    if theirs["system"]:
        prompts = {"default": str(theirs["system"])}
        ours.put("data.system_prompts", prompts, said("system"), "for conversations without one")
    if theirs["enable_thinking"] is not None:
        options = {"enable_thinking": theirs["enable_thinking"]}
        ours.put("model.template_options", options, said("enable_thinking"))
    if theirs["acc_strategy"] == "seq":
        ours.leave(
            "acc_strategy", "seq", "a step's loss is the mean over all its words here, not over samples"
        )
    mixed = theirs["dataset_shuffle"]
    if not theirs["train_dataloader_shuffle"]:
        differs = "mixed once there (dataset_shuffle), and here as the files have it" if mixed else ""
        ours.put("data.shuffle", False, said("train_dataloader_shuffle", "dataset_shuffle"), differs)


def _pixels(theirs: Theirs, ours: Ours, environment: dict[str, float]) -> None:
    given = {**theirs.launch.environment, **_of_model(theirs)}
    names = {pixels: tokens for tokens, pixels in _TOKENS.items() if tokens in given}
    most, source, said = theirs["max_pixels"], theirs.said("max_pixels"), "max_pixels"
    if "MAX_PIXELS" in environment:
        most = min(int(most), environment["MAX_PIXELS"]) if most else environment["MAX_PIXELS"]
        source = said = names.get("MAX_PIXELS", "MAX_PIXELS")
    put_pixels(ours, "data.max_pixels", theirs["model"], most, source, said)
    least = environment.get("MIN_PIXELS")
    name = names.get("MIN_PIXELS", "MIN_PIXELS")
    put_pixels(ours, "data.min_pixels", theirs["model"], least, name, name)
    video = {ours_: environment[name] for name, ours_ in _VIDEO.items() if name in environment}
    if video:
        numbers: dict[str, Any] = {key: value if key == "fps" else int(value) for key, value in video.items()}
        said = ", ".join(names.get(name, name) for name in _VIDEO if name in environment)
        ours.put("data.video", numbers, said)
