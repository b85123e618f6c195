"""What lint calls clean is rendered without a bad sample, and each row that it calls an error is one."""

from pathlib import Path
from random import Random

import pytest

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.lint.run import lint
from tests.lint.planted import chat, cut_off, draw_pictures, write_lines

CHANGES = {
    "nothing": lambda row, rng: None,
    "path": lambda row, rng: row["messages"][0]["content"][0].update(path="none.jpg"),
    "box": lambda row, rng: row["messages"][1]["content"].append(
        {"type": "box", "box": [round(rng.uniform(-0.2, 1.2), 2) for _ in range(4)]}
    ),
    "long": lambda row, rng: row["messages"][1]["content"].append(
        {"type": "text", "text": "word " * rng.randrange(90)}
    ),
    "turn": lambda row, rng: row["messages"].pop(rng.randrange(2)),
    "weight": lambda row, rng: row["messages"][1].update(weight=rng.choice([0, 0.5, -1])),
    "words": lambda row, rng: row["messages"][1].update(
        content=rng.choice(["", "<image>", "<|im_end|>", "fine"])
    ),
}


@pytest.mark.parametrize("seed", range(6))
def test_what_is_found_is_what_training_meets(tmp_path, monkeypatch, seed):
    monkeypatch.chdir(tmp_path)
    rng = Random(seed)
    names = draw_pictures(Path("."), 12, start=20 * seed)
    for name in rng.sample(names, 2 * (seed % 2)):
        cut_off(Path(name))
    rows = [chat(rng.choice(names), f"It is {place}.", question=f"What is {place}?") for place in range(40)]
    for row in rows:
        if seed:  # without a change, all are clean
            CHANGES[rng.choice(list(CHANGES))](row, rng)
    write_lines(Path("train.jsonl"), rows)
    module = VLMModule("drawn-vlm", adapt="full")
    report = lint(module, VLMDataModule(train="train.jsonl", max_length=64), workers=0)

    data = VLMDataModule(train="train.jsonl", max_length=64, on_bad_sample="skip", processor=module.processor)
    met = {error.source for error in data.source("train").skipped}
    batches = data.rendered("train", learn=True, prompts=False)
    for sample in range(len(batches.source)):
        met |= {error.source for error in batches[[sample]].skipped}
    left_out = {"too_long"}
    named = {
        row
        for one in report.findings
        if one.about.severity == "error" or one.kind in left_out
        for row in one.drops
    }
    assert named == met
    assert bool(report.findings) == bool(seed)
