"""Try every class of image-text models that transformers has, tiny, and write down what came of it.

`python -m tools.every_family` prints a line for each key of transformers' table of image-text models. With
`--write docs/families.md` it puts them into the table there, in the column of the installed version.

A key with a row in `tests/support/tiny` is built from that row; any other from a configuration that is shrunk
by the names of its settings. Each is tried in a process of its own: it is loaded, its parts are found, a
sample is rendered, its loss is compared with that of its own forward, and a step is trained and answers made.
"""

import argparse
import multiprocessing
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning_vlm  # noqa: F401  # its fix of torchvision comes before all else

# isort: split
import torch
import transformers
from lightning.pytorch import Trainer
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.batch.collate import Batch
from lightning_vlm.data.conversation import Conversation, Message, Text
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.kinds import Kind
from lightning_vlm.models.loading.trainable import why_not_trainable
from lightning_vlm.models.parts import parameters_by_part
from tools.newer_classes import stood_in_for

with stood_in_for():
    from tests.support import tiny
    from tests.support.dead import DEAD
    from tests.support.packed import OfList
    from tests.support.tiny.generic import generic_family

SECONDS = 120
"""How long a class is tried."""
HEADING = "## Every image-text class of transformers"
WORKS = "works"
_ANSWER = "It is a small red circle."


class Failed(Exception):  # noqa: N818
    """A step that did not work."""


def main() -> None:
    """Try all keys, or those given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("keys", nargs="*", help="only these")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the results into the table of FILE")
    options = parser.parse_args()
    results: dict[str, str] = {}
    for key in options.keys or MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        results[key] = tried(key)
        print(f"{key}: {results[key]}", flush=True)
    works = sum(result == WORKS for result in results.values())
    print(f"transformers {transformers.__version__}: {works} of {len(results)} work")
    if options.write:
        text = options.write.read_text("utf-8")
        options.write.write_text(with_results(text, results, transformers.__version__), "utf-8")


def tried(key: str) -> str:
    """Try a class in a process of its own, and say what came of it."""
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_try_and_send, args=(key, sender))
    process.start()
    sender.close()
    result = f"it takes more than {SECONDS} s"
    if receiver.poll(SECONDS):
        try:
            result = receiver.recv()
        except EOFError:
            result = "its process ends without a word"
    process.kill()
    process.join()
    return result


def _try_and_send(key: str, sender: Any) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        with tempfile.TemporaryDirectory() as folder:
            try_here(key, Path(folder))
        sender.send(WORKS)
    except Failed as failure:
        sender.send(str(failure))


def try_here(key: str, folder: Path) -> None:
    """Try a class in this process.

    Args:
        key: Of the table of transformers.
        folder: Where its model is written.

    Raises:
        Failed: It doesn't work; says which step fails, or why the class is refused.
    """
    with _step("its configuration has no defaults", folder):
        refused = why_not_trainable(CONFIG_MAPPING[key]())
    if refused:
        reason = refused.partition(": ")[2].partition(";")[0]
        raise Failed(f"refused: {reason}")
    if key in tiny.FAMILIES:
        _try_steps(key, folder)
        return
    tiny.FAMILIES[key] = generic_family(key)
    try:
        _try_steps(key, folder)
    except Failed as failure:
        raise Failed(f"not proved; shrunk by rules, {failure}") from failure


def _try_steps(key: str, folder: Path) -> None:
    with _step("can't be built", folder):
        tiny.build(key, folder)
    template = None if tiny.FAMILIES[key].template else "plain"
    with _step("can't be loaded", folder):
        module = VLMModule(
            str(folder),
            chat_template=template,
            generation={"max_new_tokens": 4},
            no_gradient_needed=DEAD.get(key),
        )
        module.configure_model()
    with _step("parts", folder):
        parameters_by_part(module.model)
    source = OfList([_sample(0), _sample(1)])
    data = VLMDataModule(train=source, val=source, batch_size=2, shuffle=False)
    with _step("masks", folder):
        batch = _batch(module, source)
        for error in batch.skipped:
            raise error
        _check_mask(module, batch)
    with _step("loss", folder):
        _check_loss(module, batch)
    with _step("a step and answers", folder):
        quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        Trainer(fast_dev_run=True, accelerator="cpu", **quiet).fit(module, data)


@contextmanager
def _step(name: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        text = re.sub(r"\s+", " ", f"{error}").replace("|", "/").replace(f"model {str(folder)!r}: ", "")
        kind = "" if type(error).__module__.startswith("lightning_vlm") else f"{type(error).__name__}: "
        raise Failed(f"{name}: {kind}{text[:200]}") from error


def _sample(index: int) -> Conversation:
    """A picture, a question about it, and an answer."""
    picture = next(part for part in Drawn("val", size=2, tasks=["vqa"])[index].images)
    question = Message("user", (picture, Text("What is in the picture?")))
    return Conversation((question, Message("assistant", (Text(_ANSWER),))), source=f"drawn:{index}")


def _batch(module: VLMModule, source: OfList) -> Batch:
    data = VLMDataModule(train=source, batch_size=2, shuffle=False, processor=module.processor)
    return next(iter(data.train_dataloader()))


def _check_mask(module: VLMModule, batch: Batch) -> None:
    learned = batch.inputs["input_ids"][batch.kinds >= Kind.RESPONSE]
    text = module.processor.tokenizer.decode(learned, skip_special_tokens=True)
    answers = re.sub(r"<think>\s*</think>|\s", "", text)  # some templates write that no thought is there
    if answers != re.sub(r"\s", "", 2 * _ANSWER):
        raise AssertionError(f"found {text!r} where the answers should be learned")


def _check_loss(module: VLMModule, batch: Batch) -> None:
    labels = torch.where(batch.kinds >= Kind.RESPONSE, batch.inputs["input_ids"], -100)
    with torch.no_grad():
        module.model.eval()
        sums = module.loss_sums(batch)
        theirs = module.model(**batch.inputs, labels=labels, use_cache=False).loss
    ours = sums.loss_sum / sums.weight_sum
    if not torch.isclose(ours, theirs, rtol=1e-4):
        raise AssertionError(f"found {ours:.5f}, but its own forward gives {theirs:.5f}")


def with_results(text: str, results: dict[str, str], version: str) -> str:
    """The text of docs/families.md with results in the column of a version."""
    before, _, table = text.partition(HEADING)
    columns: dict[str, dict[str, str]] = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if line.startswith("| key"):
            versions = cells[1:]
            columns = {each: {} for each in versions}
        elif line.startswith("| ") and columns and not line.startswith("| ---"):
            for each, cell in zip(columns, cells[1:], strict=True):
                columns[each][cells[0]] = cell
    columns.setdefault(version, {}).update(results)
    versions = sorted(columns, reverse=True)
    keys = sorted({key for column in columns.values() for key in column})
    rows = [["key", *versions], ["---"] * (1 + len(versions))]
    for key in keys:
        rows.append([key, *(columns[each].get(key, "not in this version") for each in versions)])
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{before.rstrip()}\n\n{HEADING}\n\n{ABOUT}\n{lines}\n"


ABOUT = """\
Written by `python -m tools.every_family --write docs/families.md`: what came of each class, by version of
transformers, when it was built tiny, loaded, and taken through a mask, a loss, a step and answers.
"""

if __name__ == "__main__":
    main()
