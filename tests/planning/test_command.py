"""`lightning-vlm plan` on a tiny model, whose few layers are soon counted."""

import json
import re

import pytest
import yaml

from lightning_vlm import cli
from lightning_vlm.planning import terminal

DATA = ["--data.train", "{class_path: Drawn, init_args: {size: 40}}", "--trainer.max_epochs", "1"]
FEW = ["--scan", "10", "--compare", "false"]


@pytest.fixture
def plan(capsys, monkeypatch, tmp_path, model_folder):
    """Runs the command in an empty folder; returns the exit code, what it printed, and its errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words):
        code = cli.main(["plan", "--model.name_or_path", str(model_folder("llava")), *FEW, *DATA, *words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def lines(err):
    """The lines of an error, without what Lightning logs at the start of any command."""
    return [line for line in err.strip().splitlines() if not line.startswith(("Seed", "GPU"))]


def test_all_methods_side_by_side(plan, monkeypatch):
    shown = []

    def show(planned, console):
        shown.append(planned)
        show_planned(planned, console)

    show_planned = terminal.show
    monkeypatch.setattr(terminal, "show", show)
    code, out, _ = plan("--memory", "1GiB", "--compare", "true")
    found = shown[0].as_json()
    assert code == 0
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == [
        "as configured",
        "full",
        "lora r=64",
        "lora r=8",
        "qlora r=64",
        "qlora r=16",
        "adapter",
        "projector",
    ]
    assert all(re.search(rf"^ {name} ", out, re.MULTILINE) for name in rows)
    assert rows["full"]["trained"] > rows["lora r=64"]["trained"] > rows["as configured"]["trained"]
    assert rows["qlora r=16"]["need"]["weights"] < rows["as configured"]["need"]["weights"]
    assert not rows["qlora r=64"]["counted"]
    more = rows["qlora r=64"]["trained"] - rows["qlora r=16"]["trained"]
    assert more == rows["lora r=64"]["trained"] - rows["as configured"]["trained"]
    assert found["need"]["peak"] <= found["room"]
    for row in rows.values():
        assert row["fit"]["recomputed"] > row["fit"]["kept"] > 0


def test_a_written_config_fits_and_runs(plan, tmp_path, capsys):
    options = ["--trainer.logger", "false", "--trainer.enable_checkpointing", "false"]
    code, out, err = plan("--memory", "640MiB", "--batch", "20", "--out", "planned.yaml", *options)
    assert (code, max(map(len, out.splitlines()))) == (0, 80), err
    assert "set " in out
    text = (tmp_path / "planned.yaml").read_text()
    assert "# expected peak" in text
    fit = ["fit", "--config", "planned.yaml", "--trainer.max_steps", "1", "--trainer.accelerator", "cpu"]
    assert cli.main(fit) == 0, capsys.readouterr().err
    capsys.readouterr()
    code = cli.main(["plan", "--config", "planned.yaml", "--memory", "640MiB", "--compare", "false"])
    assert code == 0
    assert "fits as it is" in capsys.readouterr().out
    code, _, err = plan("--out", "planned.yaml")
    assert code == 2
    assert err.strip().endswith("planned.yaml, which is there already; name a new file")


@pytest.mark.parametrize(
    ("memory", "said"),
    [
        ("24", "found '24' without a unit; did you mean 24GiB?"),
        ("24 Gigs", "found the unit 'Gigs' in '24 Gigs'"),
        ("lots", "found 'lots'; expected a number and its unit, such as 24GiB"),
        ("3KB", "less than a MiB"),
        ("100MiB", "CUDA alone takes about 0.5 of a GPU"),
    ],
)
def test_an_amount_that_is_none(plan, memory, said):
    code, _, err = plan("--memory", memory)
    assert code == 2
    assert said in err
    assert len(lines(err)) <= 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.name_or_path", "nowhere/to-be-found"], "nowhere/to-be-found"),
        (["--aim", "qualiti"], "quality"),
        (["--scan", "0"], "scan: found 0; expected at least 1"),
        (["--batch", "0"], "batch: found 0; expected at least 1"),
        (["--out", "nowhere/plan.yaml"], "out: found no folder nowhere"),
    ],
)
def test_bad_input(plan, words, said):
    code, _, err = plan("--memory", "2GiB", *words)
    assert code == 2
    assert said in err
    assert len(lines(err)) <= 3


def test_real_steps_are_measured(plan):
    code, out, _ = plan("--measure", "true", "--memory", "2GiB", "--json", "true")
    found = json.loads(out)
    assert code == 0
    assert found["epoch"]["measured"]
    assert found["epoch"]["seconds"] > 0
    assert found["epoch"]["steps"] == 5


def test_the_config_as_it_is_written(plan):
    words = ["--data.batch_size", "3", "--model.gradient_checkpointing", "true", "--memory", "2GiB"]
    code, out, _ = plan(*words)
    assert code == 0
    assert re.search(r"^written  3 at a time, recomputing: at most 0.5 GiB at once, which fits *$", out, re.M)
    code, out, _ = plan("--data.batch_size", "100000", "--memory", "600MiB")
    assert code == 0
    assert re.search(r"^written  100000 at a time: at most .* GiB at once, which doesn't fit *$", out, re.M)


def test_a_stage_is_planned_by_its_own_words(plan, tmp_path):
    """Its steps are those of its own accumulation, and what is set is set in it."""
    last = "{name: b, steps: 2, accumulate: 8, learning_rate: 1.0e-5, data: {batch_size: 2}}"
    words = ["--stages", f"[{{name: a, steps: 4}}, {last}]", "--trainer.max_epochs", "null"]
    code, out, err = plan(*words, "--memory", "1GiB", "--out", "planned.yaml", "--json", "true")
    assert code == 0, err
    found = json.loads(out)
    assert found["samples"] == 16
    assert found["written"]["samples"] == 2
    assert found["changes"] == {"stages.b.data.batch_size": 16, "stages.b.accumulate": 1}
    first, second = yaml.safe_load((tmp_path / "planned.yaml").read_text())["stages"]
    assert (second["data"]["batch_size"], second["accumulate"]) == (16, 1)
    assert first.get("accumulate") is None
