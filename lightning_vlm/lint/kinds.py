"""What `lint` can find: one table, which `docs/lint.md` has too."""

from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]


class Kind(NamedTuple):
    """A kind of finding.

    Args:
        severity: `error`: training stops at it. `warning`: training goes on, and learns or scores what is
            probably wrong, or leaves a sample out. `note`: worth knowing.
        means: What it is.
        fix: What to do.
        drops: Whether `--fix` leaves the row out.
    """

    severity: Severity
    means: str
    fix: str
    drops: bool = False


KINDS = {
    "broken_file": Kind("error", "a file that can't be read to its end", "mend the file there"),
    "no_samples": Kind("error", "a file without a sample", "check the path"),
    "bad_row": Kind("error", "a row that can't be read", "write what is expected there", True),
    "missing_file": Kind(
        "error",
        "a picture or video that isn't where the row says",
        "correct the path, or data.image_root",
        True,
    ),
    "unreadable_picture": Kind("error", "a file that is no picture", "save the picture again", True),
    "truncated_picture": Kind(
        "error", "a picture whose file breaks off", "copy or download the file again", True
    ),
    "picture_too_large": Kind("error", "a picture of too many pixels", "make it smaller", True),
    "picture_count": Kind(
        "error", "more or fewer pictures than places for them", "write a place for each picture", True
    ),
    "no_answer": Kind("error", "a sample without a turn of the assistant", "add the answer", True),
    "box_outside": Kind(
        "error", "a box that reaches beyond its picture", "correct it, or data.bad_boxes: clip", True
    ),
    "box_inverted": Kind(
        "error", "a box whose corners are exchanged", "exchange them, or data.bad_boxes: clip", True
    ),
    "box_without_area": Kind("error", "a box without width or height", "leave it out", True),
    "box_without_picture": Kind("error", "a box in a picture that isn't there", "add the picture", True),
    "special_token": Kind(
        "error", "a label or tool that spells a special token", "write other words there", True
    ),
    "not_rendered": Kind(
        "error", "a sample that the template or the processor refuses", "write what is expected there", True
    ),
    "unknown_task": Kind(
        "error", "a weight for a task that the data hasn't, or none for one that it has", "correct its name"
    ),
    "empty_answer": Kind("warning", "an answer without a word", "write the answer, or drop the row", True),
    "nothing_learned": Kind(
        "warning", "a sample none of whose tokens has weight", "raise a weight, or drop the row", True
    ),
    "too_long": Kind(
        "warning",
        "a sample that is left out, as it doesn't fit into max_length",
        "raise data.max_length, or lower data.max_pixels",
        True,
    ),
    "role_order": Kind(
        "warning",
        "turns in another order than question and answer",
        "write them in turn, ending with an answer",
    ),
    "special_text": Kind(
        "warning",
        "a text that spells a special token, which stays text",
        "a picture is a part or a column of its own; else leave it out",
    ),
    "blank_picture": Kind(
        "warning",
        "a picture that is black, white or of one colour",
        "replace the file, or drop the row",
        True,
    ),
    "extreme_ratio": Kind("warning", "a picture more than ten times as long as wide", "cut it"),
    "tiny_picture": Kind("warning", "a picture with a side of fewer than 10 pixels", "replace the file"),
    "tiny_box": Kind("warning", "a box that is a hair in its picture", "check its unit, or leave it out"),
    "duplicate_sample": Kind(
        "warning", "the same words about the same picture as in another row", "drop all but one", True
    ),
    "leaked_sample": Kind(
        "warning",
        "a sample of validation or test that is learned too",
        "drop it from the training data",
        True,
    ),
    "leaked_picture": Kind(
        "warning",
        "a picture of validation or test that is learned from too",
        "hold out whole pictures (data.val: 10% does)",
    ),
    "unused_task": Kind(
        "warning", "scores or a system prompt of a task that the data hasn't", "correct its name"
    ),
    "similar_tasks": Kind("warning", "a task whose name is almost that of another", "give both one name"),
    "cut": Kind("note", "a sample that loses its last rounds to max_length", "raise data.max_length"),
    "huge_picture": Kind(
        "note", "a picture of more than 16 megapixels, which is slow to open", "save it smaller"
    ),
    "duplicate_picture": Kind("note", "the same picture under another name", "name one of the two"),
    "unbalanced_tasks": Kind(
        "note", "a task that is hardly seen beside the others", "data.sampling: uniform"
    ),
}
"""By name, what training stops at first."""
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


def markdown_table() -> str:
    """The table as docs/lint.md has it.

    >>> print(markdown_table().splitlines()[2])
    | `broken_file` | error | a file that can't be read to its end | mend the file there | no |
    """
    lines = ["| kind | severity | what it is | what to do | `--fix` drops the row |", "|---|---|---|---|---|"]
    for name, kind in KINDS.items():
        drops = "yes" if kind.drops else "no"
        lines.append(f"| `{name}` | {kind.severity} | {kind.means} | {kind.fix} | {drops} |")
    return "\n".join(lines)
