"""`lightning-vlm init`: looks at data and writes a commented config that trains on it."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lightning_vlm_callbacks.whole_files import refusal, write_whole
from rich.console import Console

from lightning_vlm.data.conversation import Conversations
from lightning_vlm.data.read.folders import is_saved, split_of, text_files
from lightning_vlm.errors import UserError
from lightning_vlm.outputs.writable import require_writable
from lightning_vlm.parser import Parser
from lightning_vlm.planning import Choice, choose
from lightning_vlm.planning.sizes import read_memory
from lightning_vlm.published import is_published
from lightning_vlm.start.config_text import config_text, left_to_learn
from lightning_vlm.start.files import File, Splits, find_files
from lightning_vlm.start.findings import Findings, Opened
from lightning_vlm.start.look import Given, Look, look_at, open_all, quiet
from lightning_vlm.start.models import default_model
from lightning_vlm.start.picture_folder import rows_of_pictures, text_of_rows
from lightning_vlm.start.settings import samples_per_step
from lightning_vlm.start.summary import show
from lightning_vlm.start.survey import survey
from lightning_vlm.start.tokens import Tokens, measure

_GIB = 2**30


def run(words: Sequence[str]) -> None:
    """Run the command.

    Args:
        words: What stands after `lightning-vlm init`.

    Raises:
        UserError: No data, none that can be read, a model that isn't there, or a config that is.
    """
    given = parser().parse_args(list(words))
    memory = None if given.memory is None else read_memory(given.memory)
    out = Path(given.out or _name_for(given.DATA))
    require_writable("out", out)
    console = Console(stderr=True)
    made: dict[Path, str] = {}
    with console.status("looking at the data"):
        files = _files_of(given.DATA, out, made)
        looks, source, val_and_test = _open(files, Given(given.image_root, given.box_format))
        found_in_data = survey(source)
    model, why = _model(given.model, memory)
    with console.status(f"measuring lengths with {model}"), quiet():
        tokens, unreachable = _measure(model, source, found_in_data.looked_at)
    first = looks["train"][0]
    opened = {
        split: Opened(getattr(files, split), [look.root for look in looks[split]])
        for split in ("train", "val", "test")
        if getattr(files, split)
    }
    found = Findings(
        command=f"lightning-vlm init {shlex.join(words)}",
        out=str(out),
        splits=opened,
        form=first.form,
        columns=first.columns,
        unit=first.unit,
        box_format=first.box_format,
        survey=found_in_data,
        faults=[*source.skipped, *(fault for one in val_and_test for fault in one.skipped)],
        model=model,
        model_why=why,
        memory=given.memory,
        tokens=tokens,
        unreachable=unreachable,
        choice=None,
        left_out=files.left_out,
    )
    if tokens is not None:
        with console.status("planning what fits into memory"), quiet():
            found = _with_choice(found, tokens, memory)
    made[out] = config_text(found)
    was_there = _write(made)
    show(found, was_there)


def parser() -> Parser:
    """The command's options."""
    options = Parser(
        prog="lightning-vlm init",
        description="Look at data, and write a commented config that trains on it. Nothing is overwritten.",
        epilog="example: lightning-vlm init pets.jsonl --model Qwen/Qwen2.5-VL-3B-Instruct --memory 24GiB",
    )
    add = options.add_argument
    add(
        "DATA",
        nargs="+",
        help="A JSONL, JSON, CSV, parquet or arrow file, a folder with one and pictures, a data set of "
        "`datasets`, COCO, or pictures with texts or in folders of classes; or files of train, val, test.",
    )
    add(
        "--model",
        metavar="NAME",
        help="A folder, a name on the Hugging Face hub, or drawn-vlm to try things.",
    )
    add("--memory", metavar="SIZE", help="Of the GPU, such as 24GiB; without: that of this machine.")
    add("--out", metavar="FILE", help="The config to write; without: the data's name with .yaml.")
    add("--image_root", metavar="DIR", help="Where the paths of pictures begin; without: it is looked for.")
    add("--box_format", metavar="FORMAT", help="As data.box_format; without: as far as numbers prove it.")
    return options


def _name_for(given: Sequence[str]) -> str:
    """The file of the config for some data."""
    path = Path(given[0])
    name = re.sub(r"\.(?:\w{2,7})(?:\.gz)?$", "", path.name) if not path.is_dir() else path.resolve().name
    if name.lower() in ("train", "training", "data", "metadata") or split_of(name) != "train":
        name = path.resolve().parent.name or name
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('.-') or 'config'}.yaml"


def _files_of(given: Sequence[str], out: Path, made: dict[Path, str]) -> Splits:
    """The files of each split; a folder of pictures alone becomes files beside the config."""
    (folder, *others) = given
    has_rows = others or not os.path.isdir(folder) or is_saved(folder) or text_files(folder)
    rows = None if has_rows else rows_of_pictures(folder)
    if not rows:
        return find_files(given)
    files: dict[str, list[File]] = {"train": [], "val": [], "test": []}
    for split, of_split in rows.items():
        path = out.with_name(f"{out.stem}-{split}.jsonl")
        made[path] = text_of_rows(of_split)
        files[split].append(File(str(path), "DataFile"))
    if not files["train"]:
        raise UserError(
            f"{folder}: found pictures for {' and '.join(rows)} alone; expected a folder for training"
        )
    _write({path: made[path] for path in made})
    return Splits(files["train"], files["val"], files["test"], [])


def _open(files: Splits, given: Given) -> tuple[dict[str, list[Look]], Conversations, list[Conversations]]:
    """How the files of each split are read, the training data, and the others."""
    looks = {"train": [look_at(file, given) for file in files.train]}
    first = looks["train"][0]
    known = Given(given.image_root, first.box_format, first.columns)
    for split in ("val", "test"):
        looks[split] = [look_at(file, known) for file in getattr(files, split)]
    sources = [
        open_all(getattr(files, split), looks[split])
        for split in ("train", "val", "test")
        if getattr(files, split)
    ]
    return looks, sources[0], sources[1:]


def _model(given: str | None, memory: int | None) -> tuple[str, str]:
    """The model, and why this one."""
    if given is not None:
        return given, "as you named it"
    if memory is None:
        import torch

        if torch.cuda.is_available():
            memory = int(torch.cuda.mem_get_info()[1])
    name = default_model(None if memory is None else memory / _GIB)
    on = "a CPU" if memory is None else f"{memory / _GIB:.0f} GiB"
    return name, f"trains on {on}; `lightning-vlm families` lists others"


def _measure(model: str, source: Conversations, samples: Sequence[int]) -> tuple[Tokens | None, str]:
    """The lengths of samples; and why there are none if a published model can't be reached from here."""
    try:
        return measure(model, source, samples), ""
    except UserError as error:
        unreachable = re.search(
            r"hub can't be reached|local cache|network can't be reached|gated|refuses", str(error)
        )
        if is_published(model) and unreachable:
            return None, str(error)
        raise


def _with_choice(found: Findings, tokens: Tokens, memory: int | None) -> Findings:
    wished = samples_per_step(left_to_learn(found))
    choice: Choice = choose(found.model, tokens.lengths, memory, global_batch=wished)
    return replace(found, choice=choice)


def _write(files: Mapping[Path, str]) -> bool:
    """Write files, but never over others; whether all were there already, with the same text.

    Raises:
        UserError: One is there with another text, or can't be written.
    """
    for path, text in files.items():
        if path.exists() and (not path.is_file() or path.read_bytes() != text.encode()):
            raise UserError(
                f"out: found {path} already there; init overwrites nothing: name a new one with --out"
            )
    missing = {path: text for path, text in files.items() if not path.exists()}
    for path, text in missing.items():
        try:
            write_whole(path, text)
        except OSError as error:
            raise UserError(f"out: {refusal(error)}") from error
    return not missing
