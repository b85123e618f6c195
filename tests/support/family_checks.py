"""Which model families tests run on, and the table of what is proved for each: a plugin of pytest."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.tiny import FAMILIES, KINDS, SAMPLE

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
    "export": "export/test_families.py",
    "video": "module/test_video.py",
    "experts": "models/test_experts.py",
}
"""The columns of the table of families, and where each is tested."""
OF_ALL_FAMILIES = ("masks", "first step, mixed batches", "experts")
"""What `make test` tries with every family, because it is all about what a family's own classes do. The other
checks run on `SAMPLE` of `tests/support/tiny`, tests of all families on its `KINDS`, and with `make test-all`
on all."""
OF_KINDS = ("test_no_answer_sees_what_it_is_to_say", "test_answers_in_a_mixed_batch_are_those_of_each_alone")
"""Tests of these checks that run on `KINDS` all the same. What a family could do wrong in them, other tests
notice: masks and token types that aren't the processor's, and samples that change one another in a batch."""
_ABOUT = """\
# What is proved for each model family

Written by `pytest tests --families=docs/families.md -n auto`: how many tests of each check pass on a tiny
model of the family, made of its real classes, processor and a chat template in the shape of its published
one; `-` where a check has none for it. `lightning-vlm families` lists checkpoints, and how they write boxes.

What some families can't, by nature; a run says it, or refuses:

- **No gradient ever reaches** the tower's last layer and norm in LLaVA, LLaVA-NeXT, ViP-LLaVA,
  LLaVA-NeXT-Video and Video-LLaVA, which read it one layer early; its norm in LLaVA-OneVision, Aya Vision and
  Granite Vision 4; `query_1024_resolution` of DeepSeek-OCR 2 where pictures are small. HunYuan-VL's mark
  between pictures is read by nobody: `projector: full` needs
  `no_gradient_needed: [model.model.vision_tower.patch_merger.image_sep]`.
- **Packing** can't be exact where pictures see one another both ways (PaliGemma, Gemma 3 and 4, Molmo 2), by
  cross-attention (Mllama), with convolutions, linear attention or attention in chunks (LFM2-VL, LFM3-VL,
  Qwen3.5, MiniCPM-V 4.6, Llama 4), or without positions that masks are made from (Kosmos-2, BLIP-2,
  InstructBLIP, HunYuan-VL): these train by tokens (docs/packing.md).
- **Turns**: PaliGemma, GOT-OCR 2, Kosmos-2, BLIP-2 and InstructBLIP need a picture, the last three exactly
  one, in the first question. Pixtral's and Molmo 2's templates refuse system turns, Qwen3-VL's drops their
  pictures; GLM-4.6V's and GLM-OCR's refuse empty answers, DeepSeek-VL's an empty last one, MiniCPM-V 4.6's a
  picture without words. Qwen3.5 and MiniCPM-V 4.6 write earlier answers otherwise once later ones follow:
  several rounds become several samples.
- **Prompts** of LLaVA-OneVision and Molmo 2 differ from the beginning of the answers in their templates.
- **Videos**: SmolVLM and the GLM line take one medium a sample; LLaVA's kin and InternVL as many frames in
  each video of a sample. VideoLLaMA 3's must be decoded to know how many tokens they cost (docs/video.md).
  MiniCPM-V 4.6 and Perception LM take pictures only, as do all that have `-` under video below. None
  takes sound: the part that hears it, in Gemma 3n and 4, stays as it is.
- **Adapters alone** can't be exported where the projector holds a bare parameter (LLaVA-NeXT,
  LLaVA-NeXT-Video, LLaVA-OneVision, Granite Vision 4, DeepSeek-OCR 2, Kosmos-2, BLIP-2, InstructBLIP): merge.
- **Adapters** don't go into the towers of Gemma 3n and FastVLM, which are made of convolutions; `ia3` not
  into towers that make queries, keys and values at once (the Qwen-VL and GLM lines, ERNIE 4.5 VL, EXAONE 4.5,
  BLIP-2, InstructBLIP, GOT-OCR 2, Perception LM, FastVLM) or wrap their layers (Gemma 4); cross-modal
  adapters not into Mllama, Granite Vision 4, Kosmos-2 or Gemma 3n, parallel ones not into BLIP-2; LoRA and
  nf4 not into Ovis 2's projector and Gemma 3n's layers that mix its streams. Experts in one tensor stay in 16
  bits.
- **New tokens** can't be added to Gemma 3n, which takes every id behind its own for one of sound.
- **Memory and speed**: the towers of Mllama, Perception LM, FastVLM and Gemma 3n keep all activations under
  gradient checkpointing. GOT-OCR 2's classes have no `sdpa`. Operations aren't counted for Mllama, Gemma 3n
  and 4, Idefics2, Granite Vision 4, GOT-OCR 2, Qwen3.5, MiniCPM-V 4.6, LFM2-VL, LFM3-VL, Ovis 2, Molmo 2,
  FastVLM, Kosmos-2, BLIP-2, InstructBLIP and mixtures of experts.

"""


class FamilyChecks:
    """Chooses the tests of families, and counts them.

    Args:
        families: The only ones that are asked for; None leaves the choice to `every`.
        every: Whether every check runs on every family, not only on `SAMPLE`.
        file: Where the table goes. Then nothing runs but what it counts, unless `every` is true too. None
            writes none.

    Raises:
        pytest.UsageError: There is no such family.
    """

    def __init__(self, families: Sequence[str] | None, every: bool, file: str | None) -> None:
        unknown = set(families or ()) - FAMILIES.keys()
        if unknown:
            raise pytest.UsageError(f"--family: found {', '.join(unknown)}; choose {', '.join(FAMILIES)}")
        self._families = families
        self._every = every
        self._file = file
        self._passed: Counter[tuple[str, str]] = Counter()
        self._failed: set[tuple[str, str]] = set()

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out what isn't asked for."""
        named = defaultdict(set)
        for item in items:
            named[_test_of(item)].update(_families_of(item))
        kept, left_out = [], []
        for item in items:
            sample = KINDS if len(named[_test_of(item)]) > len(KINDS) else SAMPLE
            (kept if self._is_wanted(item, sample) else left_out).append(item)
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept

    def _is_wanted(self, item: pytest.Item, sample: Sequence[str]) -> bool:
        families = _families_of(item)
        if self._families:
            return any(family in self._families for family in families)
        check = _check_of(item)
        if self._every:
            return True
        if self._file:
            return bool(families) and check is not None
        if all(family in sample for family in families):
            return True
        return check in OF_ALL_FAMILIES and not _test_of(item).endswith(OF_KINDS)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
        """Note what a test counts for, so that the process which writes the table knows it."""
        report = yield
        check = _check_of(item)
        report.counts_for = [[family, check] for family in _families_of(item)] if check else []
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test, which another process may have run."""
        for family, check in getattr(report, "counts_for", ()):
            self._passed[family, check] += report.when == "call" and report.passed
            if report.failed:
                self._failed.add((family, check))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the table."""
        if self._file is None or hasattr(session.config, "workerinput"):
            return
        rows = [["family", *CHECKS], ["---"] * (1 + len(CHECKS))]
        for family in FAMILIES:
            rows.append([family, *(self._cell(family, check) for check in CHECKS)])
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        written = Path(self._file)
        before = written.read_text("utf-8") if written.exists() else ""
        _, heading, every_class = before.partition("\n## Every")  # written by tools/every_family.py
        written.write_text(_ABOUT + table + "\n" + heading + every_class, "utf-8")

    def _cell(self, family: str, check: str) -> str:
        if (family, check) in self._failed:
            return "FAILED"
        return str(self._passed[family, check] or "-")


def _test_of(item: pytest.Item) -> str:
    """The test that an item is a case of."""
    return item.nodeid.partition("[")[0]


def _families_of(item: pytest.Item) -> list[str]:
    """The model families that a test is parametrized by."""
    values = getattr(item, "callspec", None) and item.callspec.params.values()
    return [value for value in values or () if isinstance(value, str) and value in FAMILIES]


def _check_of(item: pytest.Item) -> str | None:
    """The check that a test belongs to."""
    file = item.path.as_posix()
    return next((check for check, name in CHECKS.items() if file.endswith(f"tests/{name}")), None)
