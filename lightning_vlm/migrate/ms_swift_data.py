"""Data sets of ms-swift as sources of ours."""

import re
from typing import Any

from lightning_vlm.migrate.ours import Ours
from lightning_vlm.migrate.sources import first_rows, put_sources
from lightning_vlm.migrate.theirs import Theirs

_FILE = re.compile(r"\.(?:jsonl?|csv|tsv|parquet)$", re.IGNORECASE)


def put_data(theirs: Theirs, ours: Ours) -> bool:
    """What is learned and validated on; whether there is some to validate on."""
    train = _sources(theirs, ours, "dataset")
    put_sources(ours, "data.train", train, theirs.said("dataset", "columns"))
    if not train:
        ours.choose("data.train", "no dataset that can be read; see the end of this file")
    if theirs["strict"] is False and theirs.has("strict"):
        ours.put("data.on_bad_sample", "skip", theirs.said("strict"), "and they are counted and listed")
    val = _sources(theirs, ours, "val_dataset")
    if val:
        put_sources(ours, "data.val", val, theirs.said("val_dataset"))
        return True
    share = theirs["split_dataset_ratio"]
    if theirs.name("tuner_type") == "train_type" and not theirs.has("split_dataset_ratio"):
        ours.notes.append(
            "split_dataset_ratio isn't given: ms-swift 3.0 to 3.5 validated on 1% of the data then, which "
            "data.val: 1% does; later versions on none, as is written here"
        )
    if not share or theirs["eval_strategy"] == "no":
        return False
    ours.put("data.val", f"{100 * share:g}%", theirs.said("split_dataset_ratio"), "whole pictures at a time")
    return True


def _sources(theirs: Theirs, ours: Ours, key: str) -> list[dict[str, Any]]:
    given = theirs[key]
    sources = []
    for name in given if isinstance(given, list) else [given] if given else []:
        path, _, number = str(name).partition("#")
        if not _FILE.search(path) and not theirs.path(path).exists():
            why = "a data set of ModelScope; download it, or name one of the Hugging Face hub in an HFDataset"
            ours.leave(key, name, why)
            continue
        rows = int(number) if number.isdigit() else None
        if rows:
            ours.notes.append(
                f"{name}: there {rows:,} rows are drawn by chance (repeated, if there are fewer); here they "
                "are the first"
            )
        kind = "DataFile" if _FILE.search(path) and not path.endswith("parquet") else "HFDataset"
        arguments: dict[str, Any] = {"path": str(theirs.path(path))}
        if theirs["columns"]:
            arguments["columns"] = {str(wanted): str(there) for there, wanted in theirs["columns"].items()}
        source = {"class_path": kind, "init_args": arguments}
        sources.append(first_rows(source, rows))
    return sources
