"""Shared fixtures. Importing `lightning_vlm` first applies its fix of torchvision before all else."""

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    # There is a worker for each core, so that more threads in one would only wait for those of another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import lightning_vlm  # noqa: F401

# isort: split
# Its log handler keeps the stderr that it meets first, which must not be one that a test captures.
import lightning.pytorch  # noqa: F401


@pytest.fixture(autouse=True)
def finish_wandb() -> Iterator[None]:
    """A run of Weights & Biases that a test leaves open would be continued by the next test's logger."""
    yield
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()


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


CHECKS = {
    "parts": "models/test_parts.py",
    "LoRA where meant": "models/test_adapt.py",
    "masks": "data/render/test_renderer.py",
    "batches": "data/batch/test_collate.py",
    "loss, gradients": "module/test_loss.py",
    "normalisation": "module/test_normalisation.py",
    "first step, mixed batches": "module/test_families.py",
    "generation": "module/test_scoring.py",
    "resume": "module/test_killed.py",
    "every method": "models/test_methods.py",
    "quantised": "module/test_quantized.py",
    "new tokens": "module/test_new_tokens.py",
    "scheduled sampling": "module/test_scheduled_sampling.py",
    "several answers": "module/test_ranking.py",
    "tasks, GradNorm": "module/test_tasks.py",
    "packing": "module/test_packed.py",
    "video": "module/test_video.py",
    "experts": "models/test_experts.py",
}
"""The columns of the table of families, and where each is tested."""
OF_ALL_FAMILIES = ("masks", "first step, mixed batches", "experts")
"""What `make test` tries with every family, because it is all about what a family's own classes do. The other
checks run on `SAMPLE` of `tests/support/tiny`, and on all families with `make test-all`."""
_ABOUT = """\
# What is proved for each model family

Written by `pytest tests --families docs/families.md`: how many tests of each check pass on a tiny model of
the family, made of its real classes, processor and a chat template in the shape of its published one. Known
limits: LLaVA and LLaVA-NeXT read the tower one layer early, so its last layer and norm never learn
(LLaVA-OneVision: its norm). PaliGemma can't process text without a picture. Pixtral's template drops system
turns, and Qwen3-VL's drops the pictures in them; such data is refused. LLaVA-OneVision's generation prompt
differs from the beginning of the answers in its template; a warning says so. PaliGemma, Gemma 3 and Mllama
can't be packed exactly (docs/packing.md): they train by tokens, and a line says so.

"""
_passed: Counter[tuple[str, str]] = Counter()
_failed: set[tuple[str, str]] = set()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--families", metavar="FILE", help="write the table of model families and checks")
    parser.addoption("--all-families", action="store_true", help="try all model families, not only a sample")
    parser.addoption("--family", action="append", help="run only what is parametrized by this model family")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to count tests that run in other processes, and families that there aren't."""
    if config.getoption("--families") and config.getoption("numprocesses", None):
        raise pytest.UsageError("--families counts tests in one process; leave out --numprocesses")
    if config.getoption("--family"):
        from tests.support.tiny import FAMILIES

        unknown = set(config.getoption("--family")) - FAMILIES.keys()
        if unknown:
            raise pytest.UsageError(f"--family: found {', '.join(unknown)}; choose {', '.join(FAMILIES)}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what isn't asked for: most checks see in a sample of families what they can see in all."""
    chosen = config.getoption("--family")
    if config.getoption("--all-families") or config.getoption("--families"):
        return
    kept, left_out = [], []
    for item in items:
        families = _families_of(item)
        asked_for = any(family in chosen for family in families) if chosen else _is_in_sample(item, families)
        (kept if asked_for else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


def _families_of(item: pytest.Item) -> list[str]:
    """The model families that a test is parametrized by."""
    from tests.support.tiny import FAMILIES

    values = getattr(item, "callspec", None) and item.callspec.params.values()
    return [value for value in values or () if isinstance(value, str) and value in FAMILIES]


def _is_in_sample(item: pytest.Item, families: list[str]) -> bool:
    from tests.support.tiny import SAMPLE

    if all(family in SAMPLE for family in families):
        return True
    file = item.path.as_posix()
    return any(file.endswith(f"tests/{CHECKS[check]}") for check in OF_ALL_FAMILIES)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """Count tests by family and check."""
    report = yield
    families = _families_of(item)
    for check, file in CHECKS.items():
        for family in families:
            if item.path.as_posix().endswith(f"tests/{file}"):
                _passed[family, check] += report.when == "call" and report.passed
                if report.failed:
                    _failed.add((family, check))
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    file = session.config.getoption("--families")
    if not file:
        return
    from tests.support.tiny import FAMILIES

    rows = [["family", *CHECKS], ["---"] * (1 + len(CHECKS))]
    for family in FAMILIES:
        cells = [
            "FAILED" if (family, check) in _failed else str(_passed[family, check] or "-") for check in CHECKS
        ]
        rows.append([family, *cells])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    written = Path(file)
    before = written.read_text("utf-8") if written.exists() else ""
    _, heading, every_class = before.partition("\n## Every")  # written by tools/every_family.py
    written.write_text(_ABOUT + table + "\n" + heading + every_class, "utf-8")
