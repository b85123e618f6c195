"""Shared fixtures. Importing `lightning_vlm` first applies its fix of torchvision before all else."""

import faulthandler
import gc
import os
import sys
import tempfile

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    # There is a worker for each core, so that more threads in one would only wait for those of another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import rich

import lightning_vlm  # noqa: F401

# isort: split
# Its log handler keeps the stderr that it meets first, which must not be one that a test captures.
import lightning.pytorch  # noqa: F401

if TYPE_CHECKING:
    from tests.support.warm_python import WarmPython

rich.reconfigure(width=80)


def own_garbage_alone() -> None:
    """Collect nothing of the process that forked this one: that would end its threads and close its files."""
    gc.freeze()
    gc.enable()


# The parent unfreezes nothing: looking through all that imports have made takes most of a second.
os.register_at_fork(before=gc.disable, after_in_parent=gc.enable, after_in_child=own_garbage_alone)

HANGS_AFTER = 900
"""Seconds after which a test ends its process, which prints where it stands."""


def pytest_collection_finish() -> None:
    """Spare each collection of garbage what was there before the tests: a million objects that all stay."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """End a process whose test hangs in compiled code, where `timeout` can't interrupt it."""
    faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def keep_console() -> Iterator[None]:
    """The console that all share has 80 columns. A progress bar makes another, as wide as a test set."""
    yield
    rich.reconfigure(width=80)


@pytest.fixture(autouse=True)
def finish_wandb() -> Iterator[None]:
    """A run of Weights & Biases that a test leaves open would be continued by the next test's logger."""
    yield
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """What a test leaves, such as a process group or a thread, would be that of the next tests too."""
    from tests.support.left_behind import Surroundings

    before = Surroundings.now()
    yield
    found = before.left_since()
    if found:
        pytest.fail(f"the test leaves behind {'; '.join(found)}", pytrace=False)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of the tiny model of a family, or of the untrained `shipped` one; made when first asked for."""
    from tests.support import tiny
    from tools import shipped

    folders: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in folders:
            made = tmp_path_factory.mktemp(name)
            folders[name] = shipped.create(made) if name == "shipped" else tiny.build(name, made)
        return folders[name]

    return folder


@pytest.fixture(scope="session")
def processor_of(model_folder):
    """A new processor of a family, or of the `shipped` model; with a ready chat template if one is named."""
    from transformers import AutoProcessor

    from lightning_vlm.data.render.templates import chat_template

    def load(name, template=None):
        processor = AutoProcessor.from_pretrained(model_folder(name))
        if template:
            processor.chat_template = chat_template(template, processor)
        return processor

    return load


@pytest.fixture(scope="session")
def on_two_ranks():
    """Call a function in two processes that are the ranks of a run; a list of what each returned."""
    from tests.support.ranks import call_on_ranks

    return call_on_ranks


@pytest.fixture(scope="session")
def warm_interpreter() -> Iterator["WarmPython"]:
    """One that has imported transformers and PEFT alone, and is forked by who uses it."""
    from tests.support.warm_python import WarmPython

    with tempfile.TemporaryDirectory(prefix="warm-") as folder:
        warm = WarmPython(Path(folder))
        yield warm
        warm.end()


@pytest.fixture
def warm_python(warm_interpreter: "WarmPython") -> Iterator[None]:
    """Exports are proved by forks of it. `tests/export/test_families.py` proves two in a fresh one."""
    with warm_interpreter.used():
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--families", metavar="FILE", help="write the table of model families and checks")
    parser.addoption("--all-families", action="store_true", help="try all model families, not only a sample")
    parser.addoption("--family", action="append", help="run only what is parametrized by this model family")


def pytest_configure(config: pytest.Config) -> None:
    """Choose the families, and count what passes for each."""
    from tests.support.family_checks import FamilyChecks

    checks = FamilyChecks(
        config.getoption("--family"), config.getoption("--all-families"), config.getoption("--families")
    )
    config.pluginmanager.register(checks, "family checks")
