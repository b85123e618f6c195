"""`lightning-vlm export`: from a checkpoint to a folder that others load, proved before it is there."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from lightning_vlm.data.conversation import Conversations
from lightning_vlm.data.read.readers import read
from lightning_vlm.errors import UserError
from lightning_vlm.export import prover
from lightning_vlm.export.adapter_folder import save_adapter_only
from lightning_vlm.export.held import drawn, held
from lightning_vlm.export.merge import merge, wrong_weights
from lightning_vlm.export.proof import NEW_TOKENS, Case, Proof, differences, prove
from lightning_vlm.export.quantized import check_quantized
from lightning_vlm.export.snippet import loading_lines
from lightning_vlm.export.trained import ADAPTER_ONLY, Asked, Trained, load_trained
from lightning_vlm.models.adapters.layers import adapters_of
from lightning_vlm.models.loading.load import resolve
from lightning_vlm.models.loading.quantize import Quantization
from lightning_vlm.parser import Parser


class Written(NamedTuple):
    """A folder that isn't verified yet, and what is known about it.

    Args:
        case: What it must be.
        rows: What to print about it: a few words, and a figure.
    """

    case: Case
    rows: list[tuple[str, str]]


def run(words: Sequence[str]) -> None:
    """Run the command.

    Args:
        words: What stands after `lightning-vlm export`.

    Raises:
        UserError: A user error, or a folder that isn't what was trained. Then nothing is
            left behind.
    """
    given = _parser().parse_args(list(words))
    if given.adapter_only and given.merged:
        raise UserError(f"export: found {ADAPTER_ONLY} and --merged; choose one")
    out = Path(given.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"out: found {'a folder with files' if out.is_dir() else 'a file'} at {out}; name a new folder"
        )
    if given.check_quantized is not None:
        if given.adapter_only:
            raise UserError(
                f"--check-quantized: adapters alone have nothing to quantise; leave {ADAPTER_ONLY} out"
            )
        Quantization(given.check_quantized)
    asked = Asked(Path(given.ckpt_path), given.adapter_only, given.name_or_path, given.trust_remote_code)
    source = None if given.data is None else read(given.data, image_root=given.image_root)
    console = Console()
    with console.status("loading the base model and the checkpoint"):
        trained = load_trained(asked)
    with _aside(out) as folder:
        with console.status("writing"):
            written = write(trained, folder, asked, source, given.samples, given.dtype, given.max_shard_size)
        trained.module.model = None  # the other process needs the memory
        with console.status("loading it in a fresh process"):
            (proof,) = prove([written.case])
        if proof.wrong:
            raise UserError(f"export: {folder_fails(proof)}; nothing was written")
    _tell(console, out, written, proof, given.adapter_only)
    if given.check_quantized is not None:
        check_quantized(console, out, given.check_quantized, source, trained.module)


def write(
    trained: Trained,
    folder: Path,
    asked: Asked,
    source: Conversations | None = None,
    samples: int = 4,
    dtype: str = "auto",
    max_shard_size: str = "5GB",
) -> Written:
    """Write the folder of a trained model.

    Args:
        trained: As from `load_trained`; merged in place.
        folder: That is there.
        asked: What to write.
        source: Whose questions it is to be proved on; None: drawn pictures.
        samples: How many.
        dtype: Of a merged model's weights; `auto`: of the base model's.
        max_shard_size: Of a merged model's files.
    Returns:
        What the folder must be, for `prove`.

    Raises:
        UserError: Merging gave something else than what was trained.
    """
    module = trained.module
    model: Any = module.model
    pictures = folder / "held"
    pictures.mkdir()
    conversations = drawn(samples) if source is None else source
    asks = held(module.processor, conversations, samples, pictures)
    answers = [prover.answer(model, one.inputs, NEW_TOKENS) for one in asks]
    processor, base = prover.settings(module.processor), str(resolve(module.name_or_path))
    base = str(Path(base).resolve()) if Path(base).is_dir() else base
    case = Case(folder, asks, answers, processor, trust_remote_code=asked.trust_remote_code)
    model.config.use_cache = model.config.get_text_config().use_cache = True
    if asked.adapter_only:
        save_adapter_only(trained, folder, base)
        ours = ("both" if hasattr(model, "peft_config") else "ours") if adapters_of(model) else ""
        case = case._replace(base=base, revision=module.hparams["revision"], adapters=ours)
        rows = [("base model", module.name_or_path)]
    else:
        case, rows = _write_merged(trained, case, dtype, max_shard_size)
    module.processor.save_pretrained(folder)
    if trained.quantised:
        rows.append(
            ("quantised in training", f"{trained.quantised} weights; here on the base model in 16/32 bits")
        )
    return Written(case, rows)


def _write_merged(trained: Trained, case: Case, dtype: str, shard: str) -> tuple[Case, list[tuple[str, str]]]:
    model: Any = trained.module.model
    merged = merge(model)
    after = [prover.answer(model, one.inputs, NEW_TOKENS) for one in case.held]
    wrong, off = differences(case.answers, after)
    found = wrong_weights(model, merged) + ([wrong] if wrong else [])
    if found:
        raise UserError(f"export: {folder_fails(Proof(found, off))}; nothing was written")
    rows = [("merged", f"{merged.parameters:,} parameters, logits off by {off:.1e} of the largest")]
    named: dict[str, torch.dtype] = dict(trained.dtypes)
    if dtype != "auto":
        named = {name: getattr(torch, dtype) if one.is_floating_point else one for name, one in named.items()}
    weights = model.state_dict()
    for name, value in weights.items():
        value.copy_(value.to(named[name]))
    stored = next(named[name] for name, one in model.named_parameters() if one.is_floating_point())
    if any(one != torch.float32 for one in named.values() if one.is_floating_point):
        rounded = [prover.answer(model, one.inputs, NEW_TOKENS) for one in case.held]
        _, off = differences(after, rounded)
        same = sum(torch.equal(one["ids"], other["ids"]) for one, other in zip(after, rounded, strict=True))
        rows.append(
            (
                f"rounded to {_name(stored)}",
                f"logits off by {off:.1e}; {same} of {len(after)} answers the same",
            )
        )
        after = rounded
    case = case._replace(answers=after, ties=prover.ties(model), bits=prover.bits(model), dtype="auto")
    for name, one in _floating(model):
        one.data = one.data.to(named[name])
    model.config.dtype = stored
    model.save_pretrained(case.folder, max_shard_size=shard)
    return case, rows


def _floating(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    saved = model.state_dict().keys()
    both = [*model.named_parameters(), *model.named_buffers()]
    return ((name, one) for name, one in both if name in saved and one.is_floating_point())


def folder_fails(proof: Proof) -> str:
    """What is wrong with an exported folder, in one line.

    >>> folder_fails(Proof(["a.weight changed", "b.weight changed"], 0.0))
    'it is not what was trained: a.weight changed (and 1 more)'
    """
    more = f" (and {len(proof.wrong) - 1} more)" if len(proof.wrong) > 1 else ""
    return f"it is not what was trained: {' '.join(proof.wrong[0].split())}{more}"


def _tell(console: Console, out: Path, written: Written, proof: Proof, adapter_only: bool) -> None:
    table = Table(title=f"Exported to {out}", title_justify="left", show_header=False)
    files = sorted(file for file in out.iterdir() if file.is_file())
    size = sum(file.stat().st_size for file in files)
    for row in (
        *written.rows,
        ("files", f"{len(files)}, {size / 1e6:,.1f} MB"),
        (
            "proved in a fresh process",
            f"{len(written.case.held)} samples: logits off by {proof.off:.1e} of the largest",
        ),
        ("", "the same answers, tokens, pictures, settings" + ("" if adapter_only else " and weights")),
    ):
        table.add_row(*row)
    console.print(table)
    for line in loading_lines(out, written.case):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place if all goes well, and is gone if not."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise UserError(f"out: {out} can't be written: {error.strerror}") from error
    try:
        yield folder
        shutil.rmtree(folder / "held")
        folder.chmod(0o777 & ~_umask())
        folder.replace(out)
    except OSError as error:
        raise UserError(f"out: {out} can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _parser() -> Parser:
    parser = Parser(
        prog="lightning-vlm export",
        description="Write a trained model as a folder that plain transformers load, or its adapters as one "
        "that PEFT loads, and prove it in a fresh process.",
    )
    add = parser.add_argument
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
    add("--trust_remote_code", action="store_true", help="Run Python code that comes with the model.")
    return parser


def _umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
