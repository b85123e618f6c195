"""`--stages.NAME.KEY VALUE`: one key of one stage, on the command line."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from lightning_vlm.config.yaml_file import find, pairs, read_config
from lightning_vlm.errors import UserError
from lightning_vlm.nearest import did_you_mean

_OPTION = "--stages"
_CONFIGS = ("--config", "-c")


class StageKey(NamedTuple):
    """A key of a stage that the command line sets."""

    option: str
    """As it was written, without its value."""
    value: str


def with_stages(words: Sequence[str]) -> list[str]:
    """The words of a command line, with what they say of single stages put into the whole list of stages.

    The list is that of the last config that has one, or of `--stages`.

    Args:
        words: What stands after the command.

    Raises:
        UserError: No stages, none of that name, or a key without a value.

    >>> with_stages(["--stages", "[{name: a, steps: 1}]", "--stages.a.steps=2", "--stages.a.data.train", "a"])
    ['--stages', '[{name: a, steps: 2, data: {train: a}}]']
    """
    rest: list[str] = []
    given: list[StageKey] = []
    left = iter(words)
    for word in left:
        if not word.startswith(f"{_OPTION}."):
            rest.append(word)
            continue
        option, has_value, value = word.partition("=")
        if not has_value:
            value = next(left, "")
        if not value or value.startswith("--"):
            raise UserError(f"{option}: expected a value behind it")
        given.append(StageKey(option, value))
    if not given:
        return rest
    stages = _stages(rest)
    for key in given:
        _set(stages, key)
    return [*_without_option(rest), _OPTION, _text(stages)]


def _stages(words: Sequence[str]) -> SequenceNode:
    """The last list of stages that the words give."""
    found: Node | None = None
    for option, value in _options(words):
        if option in _CONFIGS and "://" not in value:
            found = find(read_config(value).root, ["stages"]) or found
        elif option == _OPTION:
            found = yaml.compose(value, Loader=yaml.SafeLoader)
    if not isinstance(found, SequenceNode):
        raise UserError(f"{_OPTION}.NAME.KEY: found no stages; expected a --config that has some")
    whole = _whole(found)
    assert isinstance(whole, SequenceNode)
    return whole


def _whole(node: Node) -> Node:
    """A copy in which nothing is shared, so that what one stage is given no other has."""
    if isinstance(node, SequenceNode):
        return SequenceNode(node.tag, [_whole(child) for child in node.value], flow_style=True)
    if not isinstance(node, MappingNode):
        return node
    own = [(name, value) for name, value in node.value if name.value != "<<"]
    kept = {name.value: (name, _whole(value)) for name, value in [*pairs(node), *own]}  # its own keys win
    return MappingNode(node.tag, list(kept.values()), flow_style=True)


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options, and the value behind each."""
    for place, word in enumerate(words):
        option, has_value, value = word.partition("=")
        if has_value:
            yield option, value
        elif place + 1 < len(words):
            yield option, words[place + 1]


def _without_option(words: Sequence[str]) -> list[str]:
    """The words without `--stages` and its value."""
    behind = [place for place, word in enumerate(words) if word == _OPTION]
    gone = {*behind, *(place + 1 for place in behind)}
    return [
        word for place, word in enumerate(words) if place not in gone and not word.startswith(f"{_OPTION}=")
    ]


def _set(stages: SequenceNode, key: StageKey) -> None:
    """Set one key of one stage."""
    _, name, *keys = key.option.split(".")
    named = {_name(stage): stage for stage in stages.value}
    stage = named.get(name)
    if not isinstance(stage, MappingNode):
        near = did_you_mean(name, named)
        raise UserError(f"{key.option}: there is no stage {name}, only {', '.join(named)}{near}")
    if not keys:
        raise UserError(f"{key.option}: expected a key of the stage behind it, such as {key.option}.steps")
    try:
        value = _whole(yaml.compose(key.value, Loader=yaml.SafeLoader))
    except yaml.YAMLError:
        value = ScalarNode("tag:yaml.org,2002:str", key.value, style="'")
    _put(stage, keys, value)


def _put(node: MappingNode, keys: Sequence[str], value: Node) -> None:
    first, *inside = keys
    kept = [(name, old) for name, old in node.value if name.value != first]
    if inside:
        old = next((old for name, old in node.value if name.value == first), None)
        below = (
            old if isinstance(old, MappingNode) else MappingNode("tag:yaml.org,2002:map", [], flow_style=True)
        )
        _put(below, inside, value)
        value = below
    node.value = [*kept, (ScalarNode("tag:yaml.org,2002:str", first), value)]


def _name(stage: Node) -> str:
    name = find(stage, ["name"])
    return name.value if isinstance(name, ScalarNode) else ""


def _text(stages: SequenceNode) -> str:
    """On one line."""
    return yaml.serialize(stages, width=1_000_000).strip()
