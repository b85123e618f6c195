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
_NO_CONFIGS = {
    ".ckpt": "--ckpt_path",
    ".jsonl": "--data.train",
    ".csv": "--data.train",
    ".parquet": "--data.train",
}
"""Files that are no configs, and the option that takes them."""
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
    if "://" in name:
        raise UserError(f"config {name}: found an address; expected a file, so download it first")
    if path is None and Path(name).is_dir():
        raise UserError(f"config {name}: found a folder; expected a YAML file{_config_in(Path(name))}")
    if path is None:
        raise unknown(name)
    name = name if path == Path(name) else short_path(path)
    if path.suffix in _NO_CONFIGS:
        raise UserError(
            f"config {name}: expected a YAML file; did you mean {_NO_CONFIGS[path.suffix]} {name}?"
        )
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(
                f"config {name}: found {size / 1e6:,.1f} MB; expected a YAML file of at most 1 MB"
            )
        content = path.read_bytes()
        if b"\0" in content and not content.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise UserError(f"config {name}: found a file that holds no text; expected a YAML file")
        text = content.decode("utf-8-sig")
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
        if yaml.__with_libyaml__:  # the parser reads it so, and is a little stricter
            yaml.compose(text, Loader=yaml.CSafeLoader)
        config = Config(name, root)
        _check_nodes(config)
    except yaml.MarkedYAMLError as error:
        raise UserError(broken(name, text, error)) from None
    except yaml.YAMLError as error:
        raise UserError(f"config {name}: broken YAML: {one_line(str(error), 400)}") from None
    except RecursionError:
        raise UserError(f"config {name}: found values nested too deeply; expected a few levels") from None
    return config


def broken(name: str, text: str, error: yaml.MarkedYAMLError) -> str:
    """Where a file stops being YAML, and what is wrong there."""
    mark, problem = _problem(error, text.splitlines())
    place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    return f"{place}: broken YAML: {problem}"


def _problem(error: yaml.MarkedYAMLError, lines: Sequence[str]) -> tuple[yaml.Mark | None, str]:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context or "it can't be read"
    context = error.context or ""
    if "mapping values are not allowed" in problem:
        before = lines[mark.line][: mark.column] if mark and mark.line < len(lines) else ""
        if ":" not in before:
            return mark, "the line is indented further than the key above, which has a value; align the two"
        return (
            mark,
            "found a second ':' on the line; put the value in quotes, or the key on a line of its own",
        )
    for words, meaning, is_begin in _MEANINGS:
        if words in f"{context}; {problem}":
            return error.context_mark if is_begin else mark, meaning
    more = f" {context}" if context and error.problem else ""
    return mark, f"{problem}{more}"


_MEANINGS = (
    (r"'\t'", "found a tab; indent with spaces", False),
    ("found '<stream end>'", "the file ends in the middle of a value", False),
    ("could not find expected ':'", "expected 'key: value', with a blank behind the ':'", True),
    ("a single document", "found a second document after '---'; give each its own file and --config", False),
    ("found unexpected ':'", "expected a value, or null, with a blank behind the ':'", False),
    ("while parsing a flow mapping", "this { is never closed, or a comma is missing in it", True),
    ("while parsing a flow sequence", "this [ is never closed, or a comma is missing in it", True),
    ("scanning a quoted scalar", "this quote is never closed", True),
    ("unknown escape character", r"found \ in double quotes; use single quotes, or / in paths", False),
    ("cannot start any token", "a value can't begin with this character; put it in quotes", False),
    ("while scanning an alias", "a value that begins with * must be in quotes", False),
    ("while parsing a block", "the line fits neither the keys nor the list above; align it with them", False),
)
"""Words of PyYAML, what they mean, and whether the place to look at is where the construct begins."""


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


def find_class_path(node: Node, name: str) -> Node | None:
    """The first node whose `class_path` is a class of this name."""
    if isinstance(node, MappingNode):
        for key, value in pairs(node):
            if key.value == "class_path" and str(value.value).rpartition(".")[2] == name:
                return value
    children = (find_class_path(child, name) for child in _children(node))
    return next(filter(None, children), None)


def _config_in(folder: Path) -> str:
    configs = [entry for entry in _entries(folder) if entry.suffix in (".yaml", ".yml")]
    return f" such as {configs[0]}" if configs else ""


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
