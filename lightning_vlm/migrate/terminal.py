"""What `lightning-vlm migrate` says: what became of each key."""

import textwrap

from rich.console import Console

from lightning_vlm.migrate.config_text import left_out, unknown, whose
from lightning_vlm.migrate.ours import CHOOSE, Ours, shown
from lightning_vlm.migrate.theirs import Theirs


def show(theirs: Theirs, ours: Ours, out: str, console: Console) -> None:
    """Print it.

    Args:
        theirs: What was read.
        ours: What was made of it.
        out: Where it was written.
        console: Where to print.
    """

    def say(text: str) -> None:
        inner = " " * (len(text) - len(text.lstrip(" "))) + "  "
        lines = textwrap.wrap(text, max(console.width, 30), subsequent_indent=inner, break_on_hyphens=False)
        for line in lines:
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    def head(text: str) -> None:
        console.print(f"\n{text}", highlight=False, markup=False, soft_wrap=True)

    chosen = [one for one in ours.settings if one.value == CHOOSE]
    differing = [one for one in ours.settings if one.differs]
    left = left_out(theirs, ours)
    made = len(ours.settings) - len(chosen)
    say(
        f"{theirs.file.name}: {len(theirs.given)} keys of {theirs.tool.label} -> {made} of ours; "
        f"defaults as in {theirs.tool.version}"
    )
    for remark in theirs.launch.remarks:
        say(f"  {remark}")
    idle = theirs.idle()
    if idle:
        say(f"  nothing is lost with {', '.join(idle)}")
    if theirs.unread():
        say(f"  without effect beside the others: {', '.join(theirs.unread())}")
    if differing:
        head("different here")
        for one in differing:
            say(f"  {one.key}: {one.differs}")
    for note in ours.notes:
        say(f"  {note}")
    if left:
        head("not carried over")
        for key, why in left.items():
            say(f"  {key} -- {why}")
    if theirs.unknown:
        head(whose(theirs).lower() if theirs.own_script is None else whose(theirs))
        for sentence in unknown(theirs):
            say(f"  {sentence}")
    if chosen or theirs.unsaid:
        head("to choose before it runs")
        for one in chosen:
            say(f"  {one.key}: {one.source}")
        for key, value in theirs.unsaid.items():
            say(f"  {key}: {shown(key, value)} isn't said in this file; see the end of the config")
    head(f"config  {out}")
    for command in ("lint", "plan", "fit"):
        console.print(
            f"  lightning-vlm {command} --config {out}", highlight=False, markup=False, soft_wrap=True
        )
