"""The tools whose configs are read: their keys, the defaults of these, and which can't be carried over."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

_FILE = Path(__file__).with_name("keys.yaml")
_GONE = "only earlier versions of theirs have it"
LABELS = {
    "trainer": "transformers' Trainer",
    "trl": "TRL",
    "llama-factory": "LLaMA-Factory",
    "ms-swift": "ms-swift",
}
"""What `--from` may be, and the tools' names."""


class Tool(NamedTuple):
    """A tool, and what is known of its keys.

    Args:
        name: As `--from` has it.
        version: Of what the keys were taken.
        own: The keys that Trainer doesn't have, under all names.
        marks: Keys that say that a config is of it; Trainer's has none.
        carried: Keys that become keys of ours -> defaults.
        left_out: Keys that don't -> why.
        harmless: Those of them with which nothing is lost.
        defaults: All keys -> defaults.
        earlier: Names of earlier versions -> names of today.
        numbers: Keys that have a number where they have a value; those with a number as default do anyway.
        mappings: Keys that have keys of their own.
    """

    name: str
    version: str
    own: frozenset[str]
    marks: frozenset[str]
    carried: Mapping[str, Any]
    left_out: Mapping[str, str]
    harmless: frozenset[str]
    defaults: Mapping[str, Any]
    earlier: Mapping[str, str]
    numbers: frozenset[str]
    mappings: frozenset[str]

    @property
    def label(self) -> str:
        """Its name for people."""
        return LABELS[self.name]

    @property
    def names(self) -> list[str]:
        """All names that a key may have."""
        return [*self.carried, *self.left_out, *self.earlier]


@cache
def table() -> dict[str, Any]:
    """What `keys.yaml` says."""
    return yaml.safe_load(_FILE.read_text("utf-8"))


@cache
def tool(name: str) -> Tool:
    """A tool by its name.

    >>> tool("trl").defaults["learning_rate"], tool("trainer").defaults["learning_rate"]
    (2e-05, 5e-05)
    """
    own = table()[name]
    base = table()[own["base"]] if "base" in own else {}
    carried: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    defaults: dict[str, Any] = {}
    earlier: dict[str, str] = {}
    harmless: set[str] = set()
    numbers: set[str] = set()
    mappings: set[str] = set()
    carried |= own.get("also", {})
    defaults |= own.get("also", {})
    for part in (base, own):
        numbers |= {*part.get("numbers", ())}
        mappings |= {*part.get("mappings", ())}
        carried |= part.get("carried", {})
        left_out |= dict.fromkeys(part.get("gone", {}), _GONE)
        harmless |= {*part.get("gone", {})}
        defaults |= part.get("gone", {}) | part.get("carried", {})
        earlier |= part.get("earlier", {})
        for group in part.get("left_out", []):
            left_out |= dict.fromkeys(group["keys"], group["because"])
            defaults |= group["keys"]
            if group.get("harmless"):
                harmless |= {*group["keys"]}
    # A tool may read what Trainer has under a name of its own.
    left_out = {key: why for key, why in left_out.items() if key not in carried}
    earlier = {key: now for key, now in earlier.items() if key not in carried}
    names = {*own["carried"], *own.get("also", {}), *own.get("earlier", {})}
    names |= {key for group in own["left_out"] for key in group["keys"]}
    return Tool(
        name=name,
        version=own["of"],
        own=frozenset(names - {*base["gone"], *base["earlier"]}) if base else frozenset(own["also"]),
        marks=frozenset(own.get("marks", ())),
        carried=carried,
        left_out=left_out,
        harmless=frozenset(harmless),
        defaults=defaults | own.get("defaults", {}),
        earlier=earlier,
        numbers=frozenset(numbers),
        mappings=frozenset(mappings),
    )
