"""What `lightning-vlm migrate` says: what became of each key."""

from rich.console import Console

from lightning_vlm.migrate.config_text import left_out, unknown
from lightning_vlm.migrate.ours import CHOOSE, Ours
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
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    chosen = [one for one in ours.settings if one.value == CHOOSE]
    differing = [one for one in ours.settings if one.differs]
    left = left_out(theirs, ours)
    made = len(ours.settings) - len(chosen)
    say(
        f"{theirs.file.name}: {len(theirs.given)} keys of {theirs.tool.label} -> {made} of ours; "
        f"defaults as in {theirs.tool.version}"
    )
    idle = theirs.idle()
    if idle:
        say(f"  nothing is lost with {', '.join(idle)}")
    if theirs.unread():
        say(f"  without effect beside the others: {', '.join(theirs.unread())}")
    if differing:
        say("\ndifferent here")
        for one in differing:
            say(f"  {one.key}: {one.differs}")
    for note in ours.notes:
        say(f"  {note}")
    if left:
        say("\nnot carried over")
        for key, why in left.items():
            say(f"  {key} -- {why}")
    if theirs.unknown:
        say(f"\nunknown to {theirs.tool.version}")
        for sentence in unknown(theirs):
            say(f"  {sentence}")
    if chosen:
        say("\nto choose before it runs")
        for one in chosen:
            say(f"  {one.key}: {one.source}")
    say(f"\nconfig  {out}")
    for command in ("lint", "plan", "fit"):
        say(f"  lightning-vlm {command} --config {out}")
