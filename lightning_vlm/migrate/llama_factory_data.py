"""LLaMA-Factory's data sets, by their names in `dataset_info.json`, as sources of ours."""

import json
from pathlib import Path
from typing import Any

from lightning_vlm.errors import UserError
from lightning_vlm.migrate.ours import Ours
from lightning_vlm.migrate.sources import first_rows, put_sources
from lightning_vlm.migrate.theirs import Theirs, listed
from lightning_vlm.nearest import did_you_mean

_ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}
"""Columns of LLaMA-Factory -> our names for them."""
_CHAT = ("messages", "conversations", "conversation")
_MEDIA = {"images": ("images", "image"), "videos": ("videos", "video"), "system": ("system",)}
"""Columns of LLaMA-Factory -> the names that are read by themselves."""
_TAGS = {
    "role_tag": ("role", "from"),
    "content_tag": ("content", "value"),
    "user_tag": ("user", "human"),
    "assistant_tag": ("assistant", "gpt", "model", "bot"),
    "system_tag": ("system",),
    "observation_tag": ("observation", "tool", "tool_response", "function_response"),
    "function_tag": ("function_call", "tool_call"),
}
"""Tags of LLaMA-Factory -> the words that are read by themselves."""


def put_data(theirs: Theirs, ours: Ours) -> bool:
    """What is learned and validated on; whether there is some to validate on.

    Raises:
        UserError: A name that `dataset_info.json` doesn't have.
    """
    names = listed(theirs["dataset"])
    folder = theirs.path(str(theirs["dataset_dir"]))
    if not names:
        ours.choose("data.train", "no dataset is given")
        return False
    info = _info(folder)
    if info is None:
        most = f", the first {theirs['max_samples']} rows of each" if theirs["max_samples"] else ""
        why = (
            f"dataset is {', '.join(names)}{most}; what that is says {folder / 'dataset_info.json'}: not here"
        )
        ours.choose("data.train", why)
        if listed(theirs["eval_dataset"]):
            ours.choose("data.val", f"eval_dataset is {', '.join(listed(theirs['eval_dataset']))}: likewise")
            return True
        return _share(theirs, ours)
    media = theirs["media_dir"]
    root = str(theirs.path(str(media))) if media else str(folder)
    train = _sources(theirs, ours, names, info, folder, root)
    put_sources(ours, "data.train", train, theirs.said("dataset", "max_samples"))
    if not train:
        ours.choose("data.train", "none of the data sets can be read; see the end of this file")
    held_out = listed(theirs["eval_dataset"])
    if held_out:
        val = _sources(theirs, ours, held_out, info, folder, root)
        put_sources(ours, "data.val", val, theirs.said("eval_dataset"))
        return bool(val)
    return _share(theirs, ours)


def _share(theirs: Theirs, ours: Ours) -> bool:
    """The share of the training data that is held out."""
    size = theirs["val_size"]
    if not size:
        return False
    if size >= 1:
        why = "a number of samples; here a share such as `val: 5%` is held out, or a file of its own"
        ours.leave("val_size", size, why)
        ours.choose("data.val", f"val_size was {int(size)} samples: write their share, such as 5%")
        return False
    ours.put("data.val", f"{100 * size:g}%", theirs.said("val_size"), "whole pictures at a time")
    return True


def _info(folder: Path) -> dict[str, Any] | None:
    path = folder / "dataset_info.json"
    if not path.is_file():
        return None
    try:
        info = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: broken JSON: {error}") from None
    return info if isinstance(info, dict) else None


def _sources(
    theirs: Theirs, ours: Ours, names: list[str], info: dict[str, Any], folder: Path, root: str
) -> list[dict[str, Any]]:
    sources = []
    for name in names:
        if name not in info:
            near = did_you_mean(name, info)
            raise UserError(f"dataset: found {name}, which {folder / 'dataset_info.json'} doesn't have{near}")
        source = _source(theirs, ours, name, info[name], folder, root)
        if source is not None:
            sources.append(first_rows(source, theirs["max_samples"]))
    return sources


def _source(
    theirs: Theirs, ours: Ours, name: str, entry: dict[str, Any], folder: Path, root: str
) -> dict[str, Any] | None:
    if entry.get("ranking") or (entry.get("columns") or {}).get("kto_tag"):
        ours.leave("dataset", name, "it has preferences, and answers are learned here")
        return None
    columns = _columns(ours, name, entry)
    if "hf_hub_url" in entry:
        arguments = {"path": entry["hf_hub_url"], "split": entry.get("split", "train")}
        if entry.get("subset"):
            arguments["config"] = entry["subset"]
        return {"class_path": "HFDataset", "init_args": {**arguments, **columns}}
    if "file_name" not in entry:
        kind = next(
            (key for key in ("ms_hub_url", "om_hub_url", "script_url", "cloud_file_name") if key in entry), ""
        )
        ours.leave(
            "dataset",
            name,
            f"its {kind or 'entry'} can't be read here; download it, and give the file's path",
        )
        return None
    if entry.get("num_samples"):
        why = "the first rows are taken by Slice here: {class_path: Slice, init_args: {of: ..., stop: N}}"
        ours.leave(f"{name}.num_samples", entry["num_samples"], why)
    return {
        "class_path": "DataFile",
        "init_args": {"path": str(folder / entry["file_name"]), "image_root": root, **columns},
    }


def _columns(ours: Ours, name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Names that aren't read by themselves, as `data.columns` has them."""
    given = dict(entry.get("columns") or {})
    columns: dict[str, str] = {}
    alpaca = entry.get("formatting", "alpaca") == "alpaca"
    for key, value in given.items():
        if alpaca and key in _ALPACA:
            if value != _ALPACA[key]:
                columns[_ALPACA[key]] = value
        elif key == "messages":
            if value not in _CHAT:
                columns["messages"] = value
        elif key in _MEDIA:
            if value not in _MEDIA[key]:
                columns[_MEDIA[key][0]] = value
        elif key not in ("tools",):
            ours.leave(f"{name}.columns.{key}", value, "there is no such column here")
    for key, value in (entry.get("tags") or {}).items():
        if value not in _TAGS.get(key, (value,)):
            known = " or ".join(_TAGS[key])
            ours.leave(f"{name}.tags.{key}", value, f"{known} is read here; rename it in the data")
    return {"columns": columns} if columns else {}
