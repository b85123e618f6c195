"""`lightning-vlm families`: which model families are proved, and what each can do."""

import json
import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from lightning_vlm.data.boxes.codecs import CODECS, NO_FORMAT
from lightning_vlm.errors import UserError
from lightning_vlm.light_parser import LightParser
from lightning_vlm.nearest import did_you_mean
from lightning_vlm.published import Family, families

_WIDEST = 200
"""The width of the table where the output is no terminal, so that names stay in one piece."""
_MOST_IN_DETAIL = 5
"""Up to so many families, all that is known of each is printed."""


def run(words: Sequence[str]) -> None:
    """Print the table, or what is known of the families that match a word.

    Args:
        words: What stands after `lightning-vlm families`.

    Raises:
        UserError: No family matches.
    """
    options = parser().parse_args(list(words))
    every = families()
    chosen = [one for one in every.values() if options.word is None or _matches(one, options.word)]
    if not chosen:
        beginnings = [re.split(r"[\d_.-]", name)[0] for name in every]
        hint = did_you_mean(options.word, [*every, *beginnings])
        raise UserError(f"families: none of {len(every)} matches {options.word!r}{hint}")
    if options.json:
        print(json.dumps([one._asdict() for one in chosen], indent=2))
        return
    console = Console()
    if len(chosen) <= _MOST_IN_DETAIL:
        for one in chosen:
            console.print(*_details(one), sep="\n", soft_wrap=True, highlight=False, markup=False)
        return
    console.print(_table(chosen), width=None if console.is_terminal else _WIDEST)
    print("\nAll that is known of some:  lightning-vlm families WORD      What is proved: docs/families.md")


def _matches(family: Family, word: str) -> bool:
    names = (family.name, *family.checkpoints)
    return any(word.lower() in name.lower() for name in names)


def _details(family: Family) -> list[str]:
    """All that is known of a family, in lines."""
    but = f", but {family.nf4}" if family.nf4 else ""
    return [
        family.name,
        f"  video      {'yes' if family.video else 'no: several pictures at most'}",
        f"  packing    {'yes' if family.packing else 'no: data.batching: packed trains by tokens'}",
        f"  nf4, int8  yes{but}",
        f"  boxes      {_boxes(family)}",
        f"  try        {', '.join(family.checkpoints) or 'no published checkpoint is known'}",
    ]


def _boxes(family: Family) -> str:
    """How it writes boxes, with an example."""
    codec = CODECS[family.codec or NO_FORMAT]
    form = f"{codec.name}: {codec.form}, {codec.scale}"
    return form if family.codec else f"none of its own is known; {form}"


def _table(chosen: Sequence[Family]) -> Table:
    """A line for each family."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("family", "video", "packed", "nf4", "boxes", "try"):
        table.add_column(name, overflow="fold")
    for one in chosen:
        table.add_row(
            one.name,
            "yes" if one.video else "-",
            "yes" if one.packing else "-",
            "part" if one.nf4 else "yes",
            one.codec or "-",
            one.checkpoints[0] if one.checkpoints else "-",
        )
    return table


def parser() -> LightParser:
    """The command's options."""
    options = LightParser(prog="lightning-vlm families", description=__doc__)
    options.add_argument("word", nargs="?", help="part of a family's or a checkpoint's name, such as qwen")
    options.add_argument("--json", action="store_true", help="print JSON, for programs")
    return options
