"""Writes `configs/models/` and the table of docs/models.md, of what is known elsewhere:

- which families there are, and what each can: `lightning_vlm/families.yaml`
- shapes: `tools/published_shapes.yaml`; what they cost: `tools/model_memory.yaml`
- what can't learn, and what needs a picture: the facts of the tests in `tests/support/`

    python -m tools.model_fragments
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_vlm.data.boxes.codecs import CODECS, NO_FORMAT
from lightning_vlm.planning.terminal import short
from lightning_vlm.published import Family, families
from tests.support import tiny
from tests.support.dead import DEAD
from tests.support.pictures import NEEDS_PICTURES
from tests.support.tiny import timm_towers
from tools.model_memory import COUNTED, known
from tools.published_shapes import Published, published

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs" / "models"
PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- table: python -m tools.model_fragments -->\n", "<!-- end of table -->"
_WIDTH = 116
_LAST_LAYER = {"instructblip": ("layer.1.", "layer.11.")}
"""Names in a tiny model, and what they are in the published one, where that has more layers."""


def fragment(row: Published) -> str:
    """The text of a config."""
    return "\n".join([*_head(row), *_settings(row), ""])


def _head(row: Published) -> Iterator[str]:
    family = families()[row.family]
    facts = known().get(row.name)
    size = f", {short(_total(facts))} parameters" if facts else ""
    sees = "pictures and videos" if family.video else "pictures"
    yield f"# {row.checkpoint}{size}: {sees}."
    yield f"#   lightning-vlm fit --config models/{row.name} --config recipes/lora --data.train train.jsonl"
    for sentence in (*_sizes(row, facts), *_pictures(row, family), *_limits(row, family)):
        yield from _wrapped(sentence)


def _total(facts: dict[str, Any]) -> int:
    return sum(facts["parts"].values())


def _sizes(row: Published, facts: dict[str, Any] | None) -> Iterator[str]:
    if facts is None:
        yield "Size and memory aren't known here: `plan` in place of `fit` counts both, of its config.json."
        return
    parts = ", ".join(f"{name} {short(count)}" for name, count in facts["parts"].items())
    four = gib(facts["bytes_4"])
    yield f"Parameters: {parts}. Weights: {gib(facts['bytes'])} in 16 bits, {four} with nf4."
    held = [f"{gib(facts['held'][name])} with recipes/{name}" for name in COUNTED]
    yield f"Memory, as `plan` counts it: weights, gradients and AdamW take {' and '.join(held)}."
    if COUNTED[0] in facts:
        steps = [f"{gib(facts[name]['bytes'])} ({facts[name]['batch']} at a time)" for name in COUNTED]
        sample = f"samples of {facts['tokens']['sample']:,} tokens with a picture of 1024×768 pixels"
        yield f"A whole step on {sample} takes {' and '.join(steps)}; CUDA has 0.5 GiB more."
    else:
        yield "Activations come on top: `plan` in place of `fit` counts them on your data."


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.1f} GiB"


def _pictures(row: Published, family: Family) -> Iterator[str]:
    facts = known().get(row.name)
    codec = CODECS[family.codec or NO_FORMAT]
    if family.codec:
        yield f"Boxes: as published, by themselves (`{codec.name}`: {codec.form}, {codec.scale})."
    else:
        yield f"Boxes: it has no format of its own, and learns plain lists (`{codec.name}`: {codec.form})."
    if facts and facts["tokens"]["picture"] > 1:
        large = facts["tokens"]["large"]
        more = "" if large == facts["tokens"]["picture"] else f", a large one {large:,}"
        yield f"Tokens: a picture of 1024×768 pixels costs {facts['tokens']['picture']:,}{more}."


def _limits(row: Published, family: Family) -> Iterator[str]:
    if row.gated:
        yield "Gated: accept the licence on the hub, then `hf auth login`."
    yield from row.note
    if tiny.FAMILIES[row.family].processor.__module__ == timm_towers.__name__:
        yield 'Its tower is of timm: pip install "lightning-vlm[timm]".'
    if row.family == "smolvlm":
        yield 'Its processor needs num2words: pip install "lightning-vlm[smolvlm]".'
    if row.family in NEEDS_PICTURES:
        yield "Each sample needs a picture in its first question."
    if not family.packing:
        yield "Its samples can't be packed exactly: `data.batching: packed` trains by tokens."
    if family.nf4:
        yield f"nf4 leaves {family.nf4} in 16 bits."
    if row.source == "memory":
        yield "Its shape is as known to us; it was not read from the hub."
    elif row.source == "copies":
        yield "Its shape is that of copies of its config.json in public code; it was not read from the hub."
    elif row.source:
        yield f"Its shape is that of {row.source}."


def _wrapped(sentence: str) -> Iterator[str]:
    line = "#"
    for word in sentence.split(" "):
        if len(line) + 1 + len(word) > _WIDTH:
            yield line
            line = "#  "
        line += f" {word}"
    yield line


def _settings(row: Published) -> Iterator[str]:
    yield "model:"
    yield f"  name_or_path: {row.checkpoint}"
    if tiny.FAMILIES[row.family].template is None:
        yield "  chat_template: plain  # it comes without one"
    if row.family in DEAD:
        yield "  no_gradient_needed:  # as published, nothing uses what these compute"
        old, new = _LAST_LAYER.get(row.family, ("", ""))
        for selector in DEAD[row.family]:
            yield f'    - "{selector.replace(old, new) if old else selector}"'
    if row.max_pixels:
        facts = known().get(row.name)
        tokens = f"at most {facts['tokens']['large']:,} tokens a picture" if facts else "of each picture"
        yield "data:"
        yield f"  max_pixels: {row.max_pixels}  # {tokens}; without it, many more"
    yield "trainer:"
    yield "  precision: bf16-mixed  # what is frozen is kept in 16 bits, what trains in 32"


def table() -> str:
    """The table of docs/models.md."""
    lines = ["| config | checkpoint | parameters | 16 bits | nf4 | LoRA | QLoRA | video | boxes | packed |"]
    lines.append("| --- | --- | --: | --: | --: | --: | --: | --- | --- | --- |")
    for row in published().values():
        family, facts = families()[row.family], known().get(row.name, {})
        sizes = (
            [short(_total(facts)), _number(facts["bytes"]), _number(facts["bytes_4"])] if facts else [""] * 3
        )
        runs = [_number(facts["held"][name]) if facts else "" for name in COUNTED]
        can = ["yes" if family.video else "", family.codec, "yes" if family.packing else ""]
        cells = [f"`models/{row.name}`", row.checkpoint, *sizes, *runs, *can]
        lines.append("| " + " | ".join(cell or "-" for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _number(size: int) -> str:
    return f"{size / 2**30:.1f}"


def files() -> dict[Path, str]:
    """All that is written, by path."""
    found = {CONFIGS / f"{name}.yaml": fragment(row) for name, row in published().items()}
    page = PAGE.read_text("utf-8")
    found[PAGE] = re.sub(f"(?<={re.escape(BEGIN)}).*?(?={END})", lambda _: table(), page, flags=re.DOTALL)
    return found


if __name__ == "__main__":
    CONFIGS.mkdir(exist_ok=True)
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
