"""`lightning-vlm recipes`: the configs that come with the package, by name; or one, to read or to copy."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_vlm.config.shipped import Shipped, find_config, find_script, scripts, shipped, unknown
from lightning_vlm.errors import UserError
from lightning_vlm.light_parser import LightParser
from lightning_vlm.nearest import nearest

_WIDEST = 200
"""The width of the table where the output is no terminal, so that lines stay in one piece."""


def run(words: Sequence[str]) -> None:
    """Print the table of all, or of those in a folder, or one config as it is.

    Args:
        words: What stands after `lightning-vlm recipes`.

    Raises:
        UserError: There is no config and no folder of that name.
    """
    name = parser().parse_args(list(words)).name
    every = {**shipped(), **scripts()}
    chosen = [one for known, one in every.items() if name is None or Path(known).parent == Path(name)]
    if chosen:
        _show(chosen)
        return
    path = find_config(name) or find_script(name)
    if path is None:
        folders = {known.rpartition("/")[0] for known in every} - {""}
        meant = None if "/" in name else nearest(name, folders)
        if meant is not None:
            raise UserError(f"recipes {name}: found no config and no folder; did you mean {meant}?")
        raise unknown(name)
    print(path.read_text("utf-8"), end="")


def _show(chosen: Sequence[Shipped]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDEST)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", no_wrap=True)
    table.add_column("what it is for")
    for one in chosen:
        table.add_row(Text(one.name), Text(one.purpose))
    console.print(table)
    print("\nUse some:       lightning-vlm fit --config NAME --config NAME ...    (later ones win)")
    print("To change one:  lightning-vlm recipes NAME > my.yaml")


def parser() -> LightParser:
    """The command's options."""
    options = LightParser(prog="lightning-vlm recipes", description=__doc__)
    options.add_argument(
        "name", nargs="?", help="of one to print, such as recipes/qlora; or a folder of them"
    )
    return options
