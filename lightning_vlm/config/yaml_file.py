"""Config files: read strictly, so that what YAML would take in silence is refused with its file and line."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from lightning_vlm.config.shipped import find_config, unknown
from lightning_vlm.errors import UserError
from lightning_vlm.nearest import one_line
from lightning_vlm.terminal import short_path

MAX_BYTES = 1_000_000
"""No config is longer; a longer file is data, and reading it as YAML would take minutes."""
MAX_NODES = 100_000
"""The most values of a config after its aliases are expanded."""


class Config(NamedTuple):
    """A config file that is sound YAML with a mapping at its top.

    Args:
        name: The file, as the user named it if that is its path.
        root: The mapping, whose nodes know their lines.
        file: The file; None if the config was written out on the command line.
    """

    name: str
    root: MappingNode
    file: Path | None = None

    def at(self, node: Node) -> str:
        """`file:line` of a node, for the beginning of a message."""
        return f"{self.name}:{node.start_mark.line + 1}"


def read_config(name: str) -> Config:
    """Read a config file, or a config that is written out on the command line.

    Args:
        name: The file's path, or the name of a config that comes with the package, as of `find_config`; or
            YAML with `{` or a line break in it.

    Raises:
        UserError: There is no such file; it isn't UTF-8, isn't YAML, is empty, isn't a mapping or is too
            long; it has a key twice, aliases that multiply, or objects of Python.
    """
    if "{" in name or "\n" in name:
        return _parse("--config", name)
    path = find_config(name)
    if path is None and Path(name).is_dir():
        raise UserError(f"config {name}: found a folder; expected a YAML file{_config_in(Path(name))}")
    if path is None:
        raise unknown(name)
    name = name if path == Path(name) else short_path(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(
                f"config {name}: found {size / 1e6:,.1f} MB; expected a YAML file of at most 1 MB"
            )
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = f"{error.object[error.start]:#04x}"
        raise UserError(
            f"{name}:{line}: found the byte {byte}, which is not UTF-8; save the file as UTF-8"
        ) from None
    except OSError as error:
        raise UserError(f"config {name}: it can't be read: {error.strerror}") from error
    return _parse(name, text)._replace(file=path)


def _parse(name: str, text: str) -> Config:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None or (isinstance(root, ScalarNode) and root.value == ""):
            raise UserError(f"config {name}: found nothing in it; expected keys such as model, data, trainer")
        if not isinstance(root, MappingNode):
            is_list = isinstance(root, SequenceNode)
            found = "a list" if is_list else f"only the text {one_line(root.value, 40)!r}"
            raise UserError(f"config {name}: found {found}; expected keys such as model, data, trainer")
        config = Config(name, root)
        _check_nodes(config)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise UserError(f"{place}: broken YAML: {_problem(error)}") from None
    except yaml.YAMLError as error:
        raise UserError(f"config {name}: broken YAML: {one_line(str(error), 400)}") from None
    except RecursionError:
        raise UserError(f"config {name}: found values nested too deeply; expected a few levels") from None
    return config


def _problem(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or error.context or "it can't be read"
    if r"'\t'" in problem:
        return "found a tab; indent with spaces"
    if "mapping values are not allowed" in problem:
        return "found a second ':' on the line; put the value in quotes, or the key on a line of its own"
    if "expected a single document" in (error.context or ""):
        return "found a second document after '---'; give each its own file and --config"
    context = f" {error.context}" if error.context and error.problem else ""
    return f"{problem}{context}"


def _check_nodes(config: Config) -> None:
    """Refuse duplicate keys, objects of Python, and aliases that multiply or contain themselves."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: Node) -> int:
        if id(node) in open_nodes:
            raise UserError(f"{config.at(node)}: found an alias inside of what it stands for")
        if id(node) in sizes:
            return sizes[id(node)]
        if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
            shown = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise UserError(f"{config.at(node)}: found the tag {shown}; expected plain values")
        open_nodes.add(id(node))
        if isinstance(node, MappingNode):
            _check_keys(config, node)
        total = 1 + sum(size(child) for child in _children(node))
        open_nodes.discard(id(node))
        if total > MAX_NODES:
            raise UserError(
                f"{config.at(node)}: found aliases that expand to more than {MAX_NODES:,} values; "
                "write the values out"
            )
        sizes[id(node)] = total
        return total

    size(config.root)


def _children(node: Node) -> Iterator[Node]:
    if isinstance(node, SequenceNode):
        yield from node.value
    elif isinstance(node, MappingNode):
        for key, value in node.value:
            yield key
            yield value


def _check_keys(config: Config, node: MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, ScalarNode):
            raise UserError(f"{config.at(key)}: found a list or mapping as a key; expected a name")
        line = key.start_mark.line + 1
        if key.value in lines and key.value != "<<":
            raise UserError(
                f"{config.at(key)}: found the key {key.value} a second time (first on line "
                f"{lines[key.value]}); expected each key once"
            )
        lines.setdefault(key.value, line)


def pairs(node: MappingNode) -> Iterator[tuple[ScalarNode, Node]]:
    """The keys and values of a mapping, with what `<<` merges into it."""
    for key, value in node.value:
        if key.value != "<<":
            yield key, value
            continue
        for merged in value.value if isinstance(value, SequenceNode) else [value]:
            if isinstance(merged, MappingNode):
                yield from pairs(merged)


def find(node: Node, keys: Sequence[str]) -> Node | None:
    """The node of the key that a path of keys leads to, through lists and `init_args` on the way."""
    if not keys:
        return node
    if isinstance(node, SequenceNode):
        found = (find(item, keys) for item in node.value)
        return next(filter(None, found), None)
    if not isinstance(node, MappingNode):
        return None
    for key, value in pairs(node):
        written = key.value.removesuffix("+").split(".")
        if written == list(keys[: len(written)]):
            return find(value, keys[len(written) :]) or key
        inside = find(value, keys) if key.value == "init_args" else None
        if inside is not None:
            return inside
    return None


def _config_in(folder: Path) -> str:
    configs = [entry for entry in _entries(folder) if entry.suffix in (".yaml", ".yml")]
    return f" such as {configs[0]}" if configs else ""


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
