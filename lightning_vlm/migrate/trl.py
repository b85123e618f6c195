"""Configs and commands of TRL: SFTConfig, ModelConfig and what its scripts read beside them."""

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
from lightning_vlm.migrate.ours import Ours
from lightning_vlm.migrate.records import convert_records
from lightning_vlm.migrate.sources import first_row, put_sources
from lightning_vlm.migrate.theirs import Theirs, listed
from lightning_vlm.migrate.trainer import convert_training, weigh_alike

_VLM_SCRIPTS = ("sft_vlm.py", "sft_vlm_gemma3.py")
"""TRL's example scripts that set `max_length` to None."""

_OTHER_SCRIPTS = (
    "dpo",
    "grpo",
    "kto",
    "rloo",
    "reward",
    "distillation",
    "gkd",
    "online_dpo",
    "orpo",
    "cpo",
    "ppo",
)
"""What TRL's scripts begin with that don't learn answers."""


def convert(theirs: Theirs, ours: Ours) -> None:
    """A config of TRL.

    Args:
        theirs: Its settings.
        ours: Our config.

    Raises:
        UserError: It trains by preferences or rewards.
    """
    if theirs.launch.script and Path(theirs.launch.script).name.startswith(_OTHER_SCRIPTS):
        raise UserError(
            f"{theirs.file}: found {theirs.launch.script}; expected TRL's supervised fine-tuning (sft): "
            "preferences and rewards aren't trained on here"
        )
    _model(theirs, ours)
    _what_trains(theirs, ours)
    _tokens(theirs, ours)
    has_val = _data(theirs, ours)
    convert_training(theirs, ours, adapters=bool(theirs["use_peft"]))
    if theirs["gradient_checkpointing"]:
        ours.put("model.gradient_checkpointing", True, theirs.said("gradient_checkpointing"))
    convert_records(theirs, ours, has_val=has_val)


def _model(theirs: Theirs, ours: Ours) -> None:
    said = theirs.said
    more = dict(theirs["model_init_kwargs"] or {})
    name = theirs["model_name_or_path"]
    if name is None:
        ours.choose("model.name_or_path", "no model_name_or_path is given: it stands in the script")
    else:
        ours.put("model.name_or_path", str(name), said("model_name_or_path"))
    revision = more.pop("revision", theirs["model_revision"])
    if revision not in (None, "main"):
        ours.put("model.revision", revision, said("model_revision"))
    if more.pop("trust_remote_code", theirs["trust_remote_code"]):
        ours.put("model.trust_remote_code", True, said("trust_remote_code"))
    dtype = more.pop("dtype", more.pop("torch_dtype", theirs["dtype"])) or "auto"
    ours.put("model.dtype", str(dtype).removeprefix("torch."), said("dtype"))
    put_attention(
        ours, more.pop("attn_implementation", theirs["attn_implementation"]), said("attn_implementation")
    )
    if theirs["router_aux_loss_coef"] is not None:
        ours.put("model.router_aux_loss", theirs["router_aux_loss_coef"], said("router_aux_loss_coef"))
    if theirs["chat_template"]:
        ours.put("model.chat_template", str(theirs["chat_template"]), said("chat_template"))
    if theirs["chat_template_path"]:
        why = "give the text of the template, or the name of a ready one, as model.chat_template"
        ours.leave("chat_template_path", theirs["chat_template_path"], why)
    for key, value in more.items():
        ours.leave(f"model_init_kwargs.{key}", value, "there is no such key of model here")
    bits = 4 if theirs["load_in_4bit"] else 8 if theirs["load_in_8bit"] else None
    source = said("load_in_4bit" if bits == 4 else "load_in_8bit", "use_bnb_nested_quant")
    put_quantization(ours, bits, bool(theirs["use_bnb_nested_quant"]), source)
    if bits:
        ours.notes.append("LoRA is float32 on quantised weights here; TRL makes it bfloat16")
    if bits == 4 and theirs["bnb_4bit_quant_type"] != "nf4":
        ours.leave("bnb_4bit_quant_type", theirs["bnb_4bit_quant_type"], "4 bits are nf4 here")


def _what_trains(theirs: Theirs, ours: Ours) -> None:
    if not theirs["use_peft"] and "use_peft" in theirs.unsaid:
        ours.choose("model.adapt", f"{theirs.unsaid['use_peft']} says what trains: see docs/what-trains.md")
        return
    if not theirs["use_peft"]:
        source = theirs.said("use_peft") if theirs.has("use_peft") else "no use_peft: all weights train"
        ours.put("model.adapt", "full", source, "the tower and the projector too, as there")
        return
    said = theirs.said
    source = said("use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
    lora = settings(
        theirs["lora_r"],
        theirs["lora_alpha"],
        theirs["lora_dropout"],
        rslora=theirs["use_rslora"],
        dora=theirs["use_dora"],
    )
    names = listed(theirs["lora_target_modules"])
    if not names:
        where = "PEFT has no default for most of these models, and stops; for the others it is this"
        lora["modules"] = ["q_proj", "v_proj"]
        put_parts(ours, ["language"], {"lora": lora}, source, differs=where)
    elif names == ["all-linear"]:
        where = (
            "all-linear goes into the tower and the projector there, too; without their lines they are frozen"
        )
        put_parts(ours, ["vision", "projector", "language"], {"lora": lora}, source, where)
    else:
        put_names(ours, names, lora, source)
    put_whole(ours, listed(theirs["lora_modules_to_save"]), said("lora_modules_to_save"))
    if theirs["lora_target_parameters"]:
        why = "experts that share one tensor get LoRA by the selector of their layer here"
        ours.leave("lora_target_parameters", theirs["lora_target_parameters"], why)


def _tokens(theirs: Theirs, ours: Ours) -> None:
    said = theirs.said
    answers = theirs["assistant_only_loss"] or theirs["completion_only_loss"]
    pairs = theirs["completion_only_loss"] is None and _has_completions(theirs)
    if answers or pairs:
        key = "assistant_only_loss" if theirs["assistant_only_loss"] else "completion_only_loss"
        weigh_alike(ours, response=(1.0, said(key)))
    else:
        why = (
            "assistant_only_loss is off: TRL learns questions and template too; leave it out to learn answers"
        )
        weigh_alike(ours, special=(1.0, why), instruction=(1.0, "likewise"))
        ours.notes.append(
            "TRL also counts the placeholders of pictures as words to learn, where a data set has messages; "
            "no weight can be given to them here"
        )
    packing = theirs["packing"]
    length = theirs["max_length"]
    source = said("max_length")
    if theirs.launch.script and Path(theirs.launch.script).name in _VLM_SCRIPTS:
        length, source = None, f"{Path(theirs.launch.script).name} sets max_length to None"
    differs = ""
    if length is not None:
        differs = (
            "TRL cuts the end off, answers too; here the last rounds are left out, and a picture is never cut"
        )
    ours.put("data.max_length", length, source, differs)
    if packing:
        if theirs["packing_strategy"] != "bfd":
            ours.leave("packing_strategy", theirs["packing_strategy"], "no sample is cut to fill a row here")
        why = "TRL packs texts alone, and refuses pictures; here no packed sample sees another"
        ours.put("data.batching", "packed", said("packing"), why)
        ours.put(
            "data.max_tokens", (length or 1024) * theirs["per_device_train_batch_size"], "max_length × batch"
        )


def _has_completions(theirs: Theirs) -> bool:
    """Whether the data, where it lies here, has prompts and completions, of which TRL learns the latter."""
    names = [theirs["dataset_name"]]
    for one in _mixture(theirs):
        names += listed(one.get("data_files") or one.get("path"))
    for name in names:
        first = first_row(theirs.path(str(name))) if name else {}
        if "prompt" in first and "completion" in first:
            return True
    return False


def _data(theirs: Theirs, ours: Ours) -> bool:
    """The data; whether there is some to validate on."""
    validates = theirs["eval_strategy"] != "no"
    mixture = _mixture(theirs)
    if mixture:
        source = theirs.said("datasets", "dataset_mixture")
        put_sources(ours, "data.train", [_source(theirs, ours, one) for one in mixture], source)
        share = theirs["test_split_size"] or (theirs["dataset_mixture"] or {}).get("test_split_size") or 0
        if share:
            value = f"{100 * share:g}%" if share < 1 else None
            if value is None:
                ours.leave(
                    "test_split_size", share, "a share such as 10% is held out here, or a file of its own"
                )
                return False
            ours.put("data.val", value, "test_split_size", "whole pictures at a time")
        return bool(share) and share < 1
    name = theirs["dataset_name"]
    if name is None:
        ours.choose("data.train", "no dataset_name is given: the data stands in the script")
        return False
    arguments: dict[str, Any] = {"path": str(theirs.path(str(name)))}
    if theirs["dataset_config"]:
        arguments["config"] = theirs["dataset_config"]
    train = {"class_path": "HFDataset", "init_args": {**arguments, "split": theirs["dataset_train_split"]}}
    ours.put("data.train", train, theirs.said("dataset_name", "dataset_config", "dataset_train_split"))
    if validates:
        val = {"class_path": "HFDataset", "init_args": {**arguments, "split": theirs["dataset_test_split"]}}
        ours.put("data.val", val, theirs.said("dataset_test_split"), "validated on, as eval_strategy says")
    if theirs["shuffle_dataset"]:
        ours.notes.append("shuffle_dataset mixes rows once; here each epoch has an order of its own anyway")
    return validates


def _mixture(theirs: Theirs) -> list[dict[str, Any]]:
    """The sources of `datasets`, or of `dataset_mixture`, as alignment-handbook and open-r1 have it."""
    sources = list(theirs["datasets"] or [])
    names = {"id": "path", "config": "name", "weight": "fraction"}
    for one in listed_sources((theirs["dataset_mixture"] or {}).get("datasets")):
        sources.append({names.get(key, key): value for key, value in one.items()})
    return sources


def listed_sources(value: Any) -> list[dict[str, Any]]:
    """Those of a list that have keys."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _source(theirs: Theirs, ours: Ours, one: dict[str, Any]) -> dict[str, Any]:
    files = one.get("data_files")
    for key in ("columns", "fraction", "data_dir"):
        if one.get(key) and not (key == "fraction" and one[key] == 1):
            ours.leave(f"datasets.{key}", one[key], "files are read whole here, as they are")
    if isinstance(files, str):
        return {"class_path": "DataFile", "init_args": {"path": str(theirs.path(files))}}
    if files:
        ours.leave("datasets.data_files", files, "write a DataFile for each of them under data.train")
    arguments = {"path": str(theirs.path(str(one.get("path")))), "split": one.get("split", "train")}
    if one.get("name"):
        arguments["config"] = one["name"]
    return {"class_path": "HFDataset", "init_args": arguments}
