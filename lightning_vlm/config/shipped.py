"""The configs that come with the package, which `--config` finds by name: `recipes/qlora`."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from lightning_vlm.errors import UserError
from lightning_vlm.nearest import did_you_mean, nearest

SUFFIXES = (".yaml", ".yml")
_SCRIPTS = (".py", ".sbatch", ".yml")
"""What starts a run elsewhere, beside the configs; these end with `.yaml`."""
_FOLDER = "configs"


class Shipped(NamedTuple):
    """A config that comes with the package.

    Args:
        name: Its name, such as `recipes/qlora`.
        path: Its file.
    """

    name: str
    path: Path

    @property
    def purpose(self) -> str:
        """What it is for: the first line of its head."""
        lines = self.path.read_text("utf-8").splitlines()
        first = next(line for line in lines if not line.startswith("#!"))
        return first.lstrip('#"').strip().rstrip(":.")


def folder() -> Path:
    """Where they are: inside the package, or beside it in a copy of the repository."""
    package = Path(__file__).parent.parent
    inside = package / _FOLDER
    return inside if inside.is_dir() else package.parent / _FOLDER


@cache
def shipped() -> dict[str, Shipped]:
    """All of them by name: those at the top, then folder by folder.

    >>> shipped()["quickstart"].purpose
    'Fine-tune the small model inside the package on easy-VQA, on a CPU'
    """
    root = folder()
    paths = sorted(root.glob("*.yaml")) + sorted(root.glob("*/*.yaml"))
    names = [path.relative_to(root).with_suffix("").as_posix() for path in paths]
    return {name: Shipped(name, path) for name, path in zip(names, paths, strict=True)}


def find_config(name: str) -> Path | None:
    """The file that a name means, or None: the user's own if there is one, else one of `shipped`.

    Args:
        name: A path, or a name of `shipped`; both with or without `.yaml`.

    >>> find_config("recipes/callbacks").name
    'callbacks.yaml'
    """
    for path in (Path(name), Path(f"{name}.yaml")):
        if path.exists() and not path.is_dir():
            return path
    known = shipped().get(_plain(name))
    return known.path if known else None


@cache
def scripts() -> dict[str, Shipped]:
    """What starts a run elsewhere, by name with its ending.

    >>> list(scripts())
    ['scale/many-nodes.sbatch', 'scale/ray_train.py', 'scale/skypilot.yml']
    """
    paths = sorted(path for path in folder().glob("*/*") if path.suffix in _SCRIPTS)
    names = [path.relative_to(folder()).as_posix() for path in paths]
    return {name: Shipped(name, path) for name, path in zip(names, paths, strict=True)}


def find_script(name: str) -> Path | None:
    """The file of one of `scripts`, or None."""
    known = scripts().get(name.removeprefix(f"{_FOLDER}/"))
    return known.path if known else None


def unknown(name: str) -> UserError:
    """The error of a name that `find_config` doesn't find, with the nearest ones and where it looked."""
    near = list(_near(name))
    hint = f"; did you mean {' or '.join(near)}?" if near else _no_folder(Path(name).parent)
    looked = f"looked here and in {folder()}, which `lightning-vlm recipes` lists"
    return UserError(f"config {name}: found no such file{hint} ({looked})")


def _near(name: str) -> Iterator[str]:
    """A file beside the one that a name would be, and at most two names of `shipped`."""
    path = Path(name)
    beside = [entry.name for entry in _entries(path.parent) if entry.is_file() and entry.suffix in SUFFIXES]
    file = nearest(path.name, beside)
    if file is not None:
        yield str(path.parent / file)
    whole = nearest(_plain(name), shipped())
    yield from list(dict.fromkeys([*([whole] if whole else []), *_of_last_word(name)]))[:2]


def _no_folder(place: Path) -> str:
    """What is wrong with the folder of a file that isn't there; or nothing."""
    if place.is_dir():
        return ""
    beside = [entry.name for entry in _entries(place.parent) if entry.is_dir()]
    return f"; there is no folder {place}{did_you_mean(place.name, beside)}"


def _of_last_word(name: str) -> Iterator[str]:
    """Names whose last word is that of this name, or near it, in whatever folder they are."""
    last = {known: known.rpartition("/")[2] for known in shipped()}
    word = nearest(_plain(name).rpartition("/")[2], last.values())
    yield from (known for known, its_last in last.items() if its_last == word)


def _plain(name: str) -> str:
    """A name as `shipped` has it.

    >>> _plain("configs/recipes/qlora.yaml"), _plain("./quickstart")
    ('recipes/qlora', 'quickstart')
    """
    path = Path(name)
    short = path.with_suffix("") if path.suffix in SUFFIXES else path
    return short.as_posix().removeprefix(f"{_FOLDER}/")


def _entries(place: Path) -> list[Path]:
    try:
        return sorted(place.iterdir())
    except OSError:
        return []
