"""The text of a config that comes from another tool: each line with the key that it was made of."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from lightning_vlm.migrate.ours import CHOOSE, Ours, Setting, shown
from lightning_vlm.migrate.theirs import Theirs
from lightning_vlm.start.lines import WIDTH, Line, aligned, flow, scalar

_SECTIONS = ("model", "data", "trainer")


def config_text(theirs: Theirs, ours: Ours, command: str) -> str:
    """The whole config.

    Args:
        theirs: What it was made of.
        ours: Its settings.
        command: The command that writes it.
    """
    head = [
        f"From {theirs.file.name}, of {theirs.tool.label}, by `{command}`.",
        "Beside each line stands the key that it comes from; behind a semicolon, what is different here.",
    ]
    text = "".join(_comment(line) for line in [*head, *theirs.launch.remarks])
    for section in _SECTIONS:
        text += f"{section}:\n"
        text += aligned(list(_lines([one for one in ours.settings if one.path[0] == section])))
    (seed,) = (one for one in ours.settings if len(one.path) == 1)
    text += aligned([Line(f"{seed.key}: {_value(seed.value)}", _why(seed))])
    ends = _ends(theirs, ours)
    comments = "\n".join(line.partition("#")[2] for line in (text + ends).splitlines())
    as_here = theirs.read_silently(comments)
    if as_here:
        text += "\n" + _comment(f"As it is here, too: {', '.join(as_here)}.")
    return text + ends


def _ends(theirs: Theirs, ours: Ours) -> str:
    """What isn't in the config, and why, as comments."""
    text = ""
    left = left_out(theirs, ours)
    if left:
        text += "\n" + _comment("Not carried over, and why:")
        text += "".join(_comment(f"{key} -- {why}", "  ") for key, why in left.items())
    if theirs.unread():
        text += "\n" + _comment(f"Without effect beside the other keys: {', '.join(theirs.unread())}.")
    if theirs.idle():
        text += "\n" + _comment(f"Nothing is lost with {', '.join(theirs.idle())}.")
    if theirs.unsaid:
        text += "\n" + _comment(
            "Not said in this file, so that their defaults hold above; write what they are:"
        )
        text += "".join(_comment(f"{key}: {shown(key, value)}", "  ") for key, value in theirs.unsaid.items())
    if theirs.unknown:
        text += "\n" + _comment(f"{whose(theirs)}, so nothing was made of them:")
        text += "".join(_comment(sentence, "  ") for sentence in unknown(theirs))
    if ours.notes:
        text += "\n" + _comment("What is different, beside the lines above:")
        text += "".join(_comment(note, "  ") for note in ours.notes)
    return text


def left_out(theirs: Theirs, ours: Ours) -> dict[str, str]:
    """Keys of theirs with their values that something is lost with -> why."""
    given = {
        f"{theirs.name(key)}: {shown(key, theirs.given[key])}": why for key, why in theirs.left_out().items()
    }
    return {**ours.left_out, **given}


def whose(theirs: Theirs) -> str:
    """What unknown keys are."""
    own = theirs.own_script
    return f"Keys of {own} itself" if own else f"Unknown to {theirs.tool.version}"


def unknown(theirs: Theirs) -> list[str]:
    """The unknown keys, each with the nearest known one, or with its value where a script has its own."""
    if theirs.own_script:
        return [f"{key}: {shown(key, theirs.own_values[key])}" for key in theirs.unknown]
    return [f"{key}; did you mean {near}?" if near else key for key, near in theirs.unknown.items()]


def _lines(settings: Sequence[Setting]) -> Iterator[Line]:
    """The lines of a section; keys that are inside of another stand together."""
    done: set[str] = set()
    first = ("train", "val")
    for one in sorted(settings, key=lambda one: one.path[0] != "data" or one.path[1] not in first):
        if len(one.path) == 2:
            yield from _line(one, one.path[1], "")
        elif one.path[1] not in done:
            done.add(one.path[1])
            yield Line(f"{one.path[1]}:")
            for inner in settings:
                if inner.path[:2] == one.path[:2]:
                    yield from _line(inner, scalar(inner.path[2]), "  ")


def _line(one: Setting, name: str, indent: str) -> Iterator[Line]:
    if one.value == CHOOSE:
        yield Line(f"{indent}# {name}:", f"CHOOSE: {one.source}")
    elif isinstance(one.value, list) and one.value and isinstance(one.value[0], dict):
        yield Line(f"{indent}{name}:", _why(one))
        for item in one.value:
            yield Line(f"{indent}  - {flow(item)}")
    elif len(_value(one.value)) > WIDTH and isinstance(one.value, dict):
        yield Line(f"{indent}{name}:", _why(one))
        block = yaml.safe_dump(
            one.value, default_flow_style=None, sort_keys=False, width=WIDTH, allow_unicode=True
        )
        for line in block.splitlines():
            yield Line(f"{indent}  {line}")
    else:
        yield Line(f"{indent}{name}: {_value(one.value)}", _why(one))


def _value(value: Any) -> str:
    return flow(value) if isinstance(value, dict | list) else scalar(value)


def _why(one: Setting) -> str:
    return f"{one.source}; {one.differs}" if one.differs else one.source


def _comment(text: str, indent: str = "") -> str:
    start = f"# {indent}"
    lines = textwrap.wrap(text, WIDTH - len(start), subsequent_indent=indent, break_on_hyphens=False)
    return "".join(f"{start}{line}\n" for line in lines)
