"""Configs of LLaMA-Factory: `train_*.yaml`, and the command line with the same keys."""

from typing import Any

from lightning_vlm.errors import UserError
from lightning_vlm.migrate.llama_factory_data import put_data
from lightning_vlm.migrate.lora import (
    put_attention,
    put_names,
    put_parts,
    put_quantization,
    put_whole,
    settings,
)
from lightning_vlm.migrate.ours import Ours
from lightning_vlm.migrate.pixels import put_pixels
from lightning_vlm.migrate.records import convert_records
from lightning_vlm.migrate.theirs import Theirs, listed
from lightning_vlm.migrate.trainer import convert_training, weigh_alike

_STAGES = {
    "pt": "pretraining on texts",
    "rm": "a reward model",
    "ppo": "rewards",
    "dpo": "preferences",
    "kto": "preferences",
}


def convert(theirs: Theirs, ours: Ours) -> None:
    """A config of LLaMA-Factory.

    Args:
        theirs: Its settings.
        ours: Our config.

    Raises:
        UserError: It isn't supervised fine-tuning.
    """
    stage = theirs["stage"]
    if stage != "sft":
        what = _STAGES.get(str(stage), "something else")
        raise UserError(
            f"{theirs.file}: found stage {stage}, which is {what}; expected sft: answers are learned here"
        )
    _model(theirs, ours)
    kind = str(theirs["finetuning_type"])
    if kind == "lora":
        _lora(theirs, ours)
    elif kind in ("full", "freeze"):
        _parts(theirs, ours, kind)
    else:
        ours.leave("finetuning_type", kind, "there is no OFT here; LoRA takes its place, so choose")
        _lora(theirs, ours)
    _tokens(theirs, ours)
    has_val = put_data(theirs, ours)
    convert_training(theirs, ours, adapters=kind not in ("full", "freeze"))
    if theirs["pure_bf16"]:
        place = next(place for place, one in enumerate(ours.settings) if one.key == "trainer.precision")
        ours.settings[place] = ours.settings[place]._replace(
            value="bf16-true", source=theirs.said("pure_bf16")
        )
    convert_records(theirs, ours, has_val=has_val, patience=theirs["early_stopping_steps"])
    if theirs["use_swanlab"]:
        ours.leave("use_swanlab", True, "SwanLab isn't a logger of Lightning's; see docs/tracking.md")


def _model(theirs: Theirs, ours: Ours) -> None:
    said = theirs.said
    name = theirs["model_name_or_path"]
    if name is None:
        ours.choose("model.name_or_path", "no model_name_or_path is given")
    else:
        ours.put("model.name_or_path", str(name), said("model_name_or_path"))
    if theirs["model_revision"] != "main":
        ours.put("model.revision", theirs["model_revision"], said("model_revision"))
    if theirs["trust_remote_code"]:
        ours.put("model.trust_remote_code", True, said("trust_remote_code"))
    put_attention(ours, theirs["flash_attn"], said("flash_attn"))
    if theirs["enable_liger_kernel"]:
        ours.put("model.kernels", "liger", said("enable_liger_kernel"))
    if theirs["moe_aux_loss_coef"] is not None:
        ours.put("model.router_aux_loss", theirs["moe_aux_loss_coef"], said("moe_aux_loss_coef"))
    if not theirs["disable_gradient_checkpointing"]:
        ours.put("model.gradient_checkpointing", True, "on unless disable_gradient_checkpointing")
    tokens = listed(theirs["add_tokens"]) + listed(theirs["add_special_tokens"])
    if tokens:
        ours.put(
            "model.new_tokens", tokens, said("add_tokens", "add_special_tokens"), "their rows train, too"
        )
    if theirs["adapter_name_or_path"]:
        why = "adapters aren't continued; merge them (llamafactory-cli export), and take that folder"
        ours.leave("adapter_name_or_path", theirs["adapter_name_or_path"], why)
    if theirs["quantization_method"] != "bnb" and theirs["quantization_bit"]:
        ours.leave(
            "quantization_method", theirs["quantization_method"], "weights are quantised by bitsandbytes here"
        )
    if theirs["quantization_type"] != "nf4":
        ours.leave("quantization_type", theirs["quantization_type"], "4 bits are nf4 here")
    double = bool(theirs["double_quantization"])
    put_quantization(
        ours, theirs["quantization_bit"], double, said("quantization_bit", "double_quantization")
    )
    if theirs["predict_with_generate"]:
        length = {"max_new_tokens": theirs["max_new_tokens"]}
        ours.put("model.generation", length, said("predict_with_generate", "max_new_tokens"))


def _lora(theirs: Theirs, ours: Ours) -> None:
    said = theirs.said
    rank = theirs["lora_rank"]
    init = ""
    if theirs["pissa_init"]:
        init = "pissa" if theirs["pissa_iter"] == -1 else f"pissa_niter_{theirs['pissa_iter']}"
    lora = settings(
        rank,
        theirs["lora_alpha"] or 2 * rank,
        theirs["lora_dropout"],
        rslora=theirs["use_rslora"],
        dora=theirs["use_dora"],
        init=init,
    )
    source = said("finetuning_type", "lora_rank", "lora_alpha", "lora_dropout", "lora_target")
    names = listed(theirs["lora_target"])
    open_parts = [] if theirs["freeze_language_model"] else ["language"]
    if not theirs["freeze_vision_tower"]:
        open_parts.insert(0, "vision")
    if names not in ([], ["all"]):
        if len(open_parts) == 2:
            put_names(ours, names, lora, source)
        else:
            lora["modules"] = names
            put_parts(ours, open_parts, {"lora": lora}, source)
    else:
        frozen = [part for part in ("vision", "projector") if part not in open_parts]
        put_parts(ours, open_parts, {"lora": lora}, source, f"{' and '.join(frozen)} frozen, as there")
    if not theirs["freeze_multi_modal_projector"]:
        why = "LLaMA-Factory's LoRA looks for no layers of the projector; projector: full trains it here"
        ours.leave("freeze_multi_modal_projector", False, why)
    put_whole(ours, listed(theirs["additional_target"]), said("additional_target"))


def _parts(theirs: Theirs, ours: Ours, kind: str) -> None:
    said = theirs.said
    frozen = {
        "vision": theirs["freeze_vision_tower"],
        "projector": theirs["freeze_multi_modal_projector"],
        "language": theirs["freeze_language_model"],
    }
    source = said(
        "finetuning_type", "freeze_vision_tower", "freeze_multi_modal_projector", "freeze_language_model"
    )
    if theirs["train_mm_proj_only"]:
        put_parts(ours, ["projector"], "full", said("train_mm_proj_only"), "all else frozen, as there")
        return
    if kind == "full":
        trained = [part for part in frozen if not frozen[part]]
        if "language" in trained:
            trained.append("head")
        left = [part for part in frozen if frozen[part]]
        put_parts(ours, trained, "full", source, f"{' and '.join(left)} frozen, as there" if left else "")
        return
    number = theirs["freeze_trainable_layers"]
    layers = f"language.layers[-{number}:]" if number > 0 else f"language.layers[:{-number}]"
    names = listed(theirs["freeze_trainable_modules"])
    where = [layers] if names in ([], ["all"]) else [f"{layers}.{name}" for name in names]
    if frozen["language"]:
        where = []
    if not frozen["vision"]:
        why = "layers of these numbers train in the tower there, too; name them, such as `vision.layers[-2:]`"
        ours.leave("freeze_vision_tower", False, why)
    if not frozen["projector"]:
        where.insert(0, "projector")
    put_parts(ours, where, "full", said("freeze_trainable_layers", "freeze_trainable_modules"))
    put_whole(ours, listed(theirs["freeze_extra_modules"]), said("freeze_extra_modules"))


def _tokens(theirs: Theirs, ours: Ours) -> None:
    said = theirs.said
    kinds: dict[str, tuple[float, str]] = {}
    if theirs["train_on_prompt"]:
        kinds = {"special": (1.0, said("train_on_prompt")), "instruction": (1.0, said("train_on_prompt"))}
    weigh_alike(ours, **kinds)
    if theirs["mask_history"]:
        why = "all answers of a conversation are learned here; give earlier turns of the data a weight of 0"
        ours.leave("mask_history", True, why)
    length = theirs["cutoff_len"]
    ours.put(
        "data.max_length",
        length,
        said("cutoff_len"),
        "there questions, answers and pictures are cut off; here the last rounds go, else the sample",
    )
    if theirs["packing"] or theirs["neat_packing"]:
        key = "neat_packing" if theirs["neat_packing"] else "packing"
        differs = "as neat_packing: no sample sees another"
        ours.put("data.batching", "packed", said(key), differs)
        tokens = length * theirs["per_device_train_batch_size"]
        ours.put("data.max_tokens", tokens, "cutoff_len × per_device_train_batch_size: as many in one row")
    if theirs["disable_shuffling"]:
        ours.put("data.shuffle", False, said("disable_shuffling"))
    if theirs["default_system"]:
        prompts: dict[str, Any] = {"default": theirs["default_system"]}
        ours.put("data.system_prompts", prompts, said("default_system"), "for conversations without one")
    if theirs["enable_thinking"] is False:
        ours.put("model.template_options", {"enable_thinking": False}, said("enable_thinking"))
    if theirs["template"]:
        why = (
            f"template: {theirs['template']} has no key here: the processor's own is used; look at `preview`"
        )
        ours.notes.append(why)
    name = theirs["model_name_or_path"]
    most = theirs["image_max_pixels"]
    put_pixels(ours, "data.max_pixels", name, most, said("image_max_pixels"), "image_max_pixels")
    if theirs.has("image_min_pixels"):
        least = theirs["image_min_pixels"]
        put_pixels(ours, "data.min_pixels", name, least, "image_min_pixels", "image_min_pixels")
    if theirs.has("video_max_pixels", "video_fps", "video_maxlen"):
        video = {
            "fps": theirs["video_fps"],
            "max_frames": theirs["video_maxlen"],
            "max_pixels_per_frame": theirs["video_max_pixels"],
        }
        ours.put(
            "data.video",
            video,
            said("video_fps", "video_maxlen", "video_max_pixels"),
            "chosen by the processor's rule",
        )
    if theirs.has("video_min_pixels"):
        ours.leave(
            "video_min_pixels", theirs["video_min_pixels"], "the processor's own least size holds here"
        )
