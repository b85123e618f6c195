"""`lightning-vlm export`: from a checkpoint to a folder that others load, proved before it is there."""

import errno
import glob
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning_vlm_callbacks.folder_lock import NAME as LOCK
from lightning_vlm_callbacks.folder_lock import FolderLock, is_locked
from lightning_vlm_callbacks.whole_files import naming, refusal
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError

from lightning_vlm.counted import counted
from lightning_vlm.data.read.readers import read
from lightning_vlm.errors import UserError
from lightning_vlm.export.card import Card, write_card
from lightning_vlm.export.history import history_of
from lightning_vlm.export.push import Target, check_target, push
from lightning_vlm.export.quantized import check_quantized
from lightning_vlm.export.record import public_name
from lightning_vlm.export.snippet import loading_lines
from lightning_vlm.export.trained import ADAPTER_ONLY, ExportRequest, load_trained
from lightning_vlm.export.verification import require_same, verify
from lightning_vlm.export.write import PICTURES, Written, write
from lightning_vlm.models.loading.quantize import Quantization
from lightning_vlm.models.shipped import SHIPPED
from lightning_vlm.outputs.writable import require_writable
from lightning_vlm.parser import Parser
from lightning_vlm.terminal import short_path


def run(words: Sequence[str]) -> None:
    """Run the command.

    Args:
        words: What stands after `lightning-vlm export`.

    Raises:
        UserError: A user error, or a folder that isn't what was trained. Then nothing is
            left behind.
    """
    given = parser().parse_args(list(words))
    out = Path(given.out)
    _check_options(given, out)
    target = None if given.push is None else Target(given.push, given.public)
    if target is not None:
        check_target(target)
    request = ExportRequest(
        Path(given.ckpt_path),
        given.adapter_only,
        given.name_or_path,
        given.trust_remote_code,
        None if given.data is None else read(given.data, image_root=given.image_root),
        given.samples,
        given.dtype,
        given.max_shard_size,
        given.family,
    )
    console = Console()
    with console.status("loading the base model and the checkpoint"):
        trained = load_trained(request)
    base = trained.module.name_or_path
    if target is not None and request.adapter_only and (public_name(base) is None or base in SHIPPED):
        raise UserError(
            f"push: adapters need a base model that others can load, and {base} is on this machine; leave "
            f"{ADAPTER_ONLY} out, or name the base on the hub with --name_or_path"
        )
    with folder_beside(out) as folder:
        with console.status("writing"):
            written = write(trained, folder, request)
        architecture, tower = _kind_of(trained.module.model)
        trained.module.unload_model()  # the other process needs the memory
        with console.status("loading it in a fresh process"):
            (verification,) = verify([written.export])
        require_same(verification.problems)
        card = Card(
            trained,
            history_of(request.checkpoint, trained.saved),
            written.export.loading,
            written.rows,
            len(written.export.samples),
            verification.off,
            architecture,
            tower,
            _adapters_in(folder),
        )
        written.rows.append(("model card", write_card(card, folder)))
    _show(console, out, written, verification.off)
    if target is not None:
        with console.status("uploading"):
            address = push(out, target)
        console.print(f"uploaded: {address}", highlight=False, markup=False, soft_wrap=True)
    if given.check_quantized is not None:
        check_quantized(console, out, given.check_quantized, request.source, trained.module)


def _kind_of(model: Any) -> tuple[str, str]:
    """The architecture of a model, and the type of its vision encoder."""
    vision = getattr(model.config, "vision_config", None)
    return type(model).__name__, str(getattr(vision, "model_type", ""))


def _adapters_in(folder: Path) -> dict[str, Any] | None:
    file = folder / "adapter_config.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else None


def _check_options(given: Any, out: Path) -> None:
    if given.public and given.push is None:
        raise UserError("public: found --public without --push; add --push user/name")
    if given.adapter_only and given.merged:
        raise UserError(f"export: found {ADAPTER_ONLY} and --merged; choose one")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        found = "a folder with files" if out.is_dir() else "a file"
        raise UserError(f"out: found {found} at {out}; name a new folder")
    require_writable("out", out / "config.json" if out.exists() else out)
    if not re.fullmatch(r"\d+ ?[KMGT]i?B", given.max_shard_size, re.IGNORECASE):
        raise UserError(f"max_shard_size: found {given.max_shard_size}; expected a size such as 5GB or 500MB")
    if given.check_quantized is not None:
        if given.adapter_only:
            raise UserError(
                f"--check-quantized: adapters alone have nothing to quantise; leave {ADAPTER_ONLY} out"
            )
        Quantization(given.check_quantized)  # refuses an unknown method


def _show(console: Console, out: Path, written: Written, off: float) -> None:
    export = written.export
    files = [file for file in out.iterdir() if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    same = "the same answers, tokens, pictures, settings"
    if export.loading.base is None:
        same += " and weights"
    table = Table(title=f"Exported to {out}", title_justify="left", show_header=False)
    for name, figure in written.rows:
        table.add_row(name, figure)
    table.add_row("files", f"{len(files)}, {size / 1e6:,.1f} MB")
    samples = f"{counted(len(export.samples), 'sample')}: logits off by {off:.1e} of the largest"
    table.add_row("proved in a fresh process", samples)
    table.add_row("", same)
    console.print(table)
    for line in loading_lines(out, export.loading):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def folder_beside(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place if all goes well, and is gone if not."""
    try:
        with naming(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            _remove_unfinished(out)
            folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
            lock = FolderLock(folder)
    except OSError as error:
        raise UserError(f"out: {refusal(error)}") from error
    try:
        with naming(out):
            yield folder
            shutil.rmtree(folder / PICTURES)
            folder.chmod(0o777 & ~_umask())
            lock.release()
            folder.replace(out)
    except OSError as error:
        raise UserError(f"out: {refusal(error)}") from error
    except SafetensorError as error:
        if "No space left on device" not in str(error):
            raise
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out))
        raise UserError(f"out: {refusal(full)}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_unfinished(out: Path) -> None:
    """Remove what exports to a folder have left that were killed.

    Raises:
        UserError: Another process is writing there.
    """
    for folder in out.parent.glob(f".{glob.escape(out.name)}-????????"):
        if not (folder / LOCK).is_file():  # then it isn't of an export
            continue
        if is_locked(folder):
            raise UserError(f"out: another export is writing {out}; wait for it, or name another folder")
        shutil.rmtree(folder)
        rank_zero_info(f"removed {short_path(folder)}, which an export that was killed has left")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def parser() -> Parser:
    """The command's options."""
    options = Parser(
        prog="lightning-vlm export",
        description="Write a trained model as a folder that plain transformers load, or its adapters as one "
        "that PEFT loads, and prove it in a fresh process.",
    )
    add = options.add_argument
    add("--ckpt_path", required=True, metavar="FILE", help="A checkpoint of fit.")
    add("--out", required=True, metavar="DIR", help="The folder to make.")
    add("--adapter_only", ADAPTER_ONLY, action="store_true", help="Write the adapters alone, for PEFT.")
    add(
        "--merged",
        action="store_true",
        help="Write the whole model, adapters merged (so it is without either).",
    )
    add("--name_or_path", metavar="MODEL", help="Where the base model is now, if it has moved.")
    add(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="Of a merged model's weights; auto: as the base model's.",
    )
    add("--max_shard_size", default="5GB", metavar="SIZE", help="Of a merged model's files.")
    add("--data", metavar="FILE", help="Samples to prove it on; without: drawn pictures.")
    add("--image_root", metavar="DIR", help="The folder that their pictures' paths begin at.")
    add("--samples", type=int, default=4, metavar="N", help="How many of them.")
    add(
        "--check_quantized",
        "--check-quantized",
        metavar="METHOD",
        help="nf4 or int8: report what quantising loses.",
    )
    add("--push", metavar="USER/NAME", help="Upload it to the hub, private, once it is proved.")
    add("--public", action="store_true", help="With --push: let anyone see it.")
    add("--trust_remote_code", action="store_true", help="Run Python code that comes with the model.")
    add("--family", metavar="CLASS", help="As model.family in the config that it was trained with.")
    return options
