"""`lightning-vlm compare` on a short run of the shipped model."""

import json
import shutil
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.cli import main
from lightning_vlm.compare.answering import AnsweringModule
from lightning_vlm.models.shipped import SHIPPED
from tests.support.comparisons import CHECKPOINT


def scores_of(found, name, part="all"):
    (of_set,) = [one for one in found["sets"] if one["name"] == name]
    return of_set["scores"][part]


def test_a_checkpoint_against_its_base(folder):
    """A short training gains on its task, forgets another, and both are said."""
    found = json.loads((folder / "both.json").read_text())
    base, tuned = found["models"]
    assert (base["label"], base["against"], tuned["label"], tuned["against"]) == (
        "base",
        None,
        "tuned",
        "base",
    )
    assert base["trained"] == 0 < tuned["trained"] < base["parameters"] < tuned["parameters"]
    assert tuned["method"] == "projector full, language lora r=8"
    assert tuned["step"] == 20
    assert min(tuned["answers_per_second"], tuned["tokens_per_second"]) > 0
    gain = scores_of(found, "val")["exact_match"]["tuned"]["difference"]
    assert gain["verdict"] == "better"
    assert 0 < gain["interval"][0] <= gain["value"] <= gain["interval"][1]
    loss = scores_of(found, "val")["loss"]["tuned"]["difference"]
    assert loss["verdict"] == "better"
    assert loss["interval"][1] < 0
    assert scores_of(found, "general")["loss"]["tuned"]["difference"]["verdict"] == "worse"
    assert any(text.startswith("gain: tuned against base, val: exact match +") for text in found["findings"])
    assert any(text.startswith("forgetting: tuned against base, general") for text in found["findings"])


def test_the_scores_are_those_of_test(folder):
    """The same numbers, and their sums over samples, as `Trainer.test` has them."""
    found = json.loads((folder / "both.json").read_text())
    module = VLMModule(
        "drawn-vlm",
        adapt={"projector": "full", "language": {"lora": {"r": 8}}},
        generation={"max_new_tokens": 6},
    )
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    data = VLMDataModule(test="val.jsonl", batch_size=16)
    (expected,) = trainer.test(module, data, ckpt_path=CHECKPOINT, verbose=False, weights_only=True)
    for name, models in scores_of(found, "val").items():
        assert models["tuned"]["estimate"]["value"] == pytest.approx(expected[f"test/{name}"], rel=1e-6), name


def test_files_of_answers_are_the_models_to_the_digit(folder, compared):
    """Those that `compare` kept have the losses, too."""
    whole = json.loads((folder / "both.json").read_text())["sets"]
    words = ("kept/base.jsonl", "kept/tuned.jsonl", "--config", "runs/version_0/config.yaml")
    assert compared(*words, "--data", "val", "general=general.jsonl")["sets"] == whole
    mixed = compared("kept/base.jsonl", CHECKPOINT, "--data", "val", "general=general.jsonl")
    assert mixed["sets"] == whole


def test_what_predict_wrote_is_the_model(folder, compared):
    words = ("--config", "runs/version_0/config.yaml", "--ckpt_path", CHECKPOINT)
    assert main(["predict", *words, "--data.predict", "val.jsonl", "--out", "predicted.jsonl"]) == 0
    found = compared("kept/tuned.jsonl", "predicted.jsonl", "--common")
    scores = scores_of(found, "answers")
    for name in ("exact_match", "token_f1"):
        assert scores[name]["predicted"]["difference"] == {"value": 0, "interval": [0, 0], "verdict": "same"}
    assert found["sets"][0]["samples"] == 24
    assert found["sets"][0]["left_out"] == 24


def test_a_model_against_itself_differs_by_nothing(compared):
    """Under another name, with its losses."""
    found = compared(f"one={CHECKPOINT}", f"other={CHECKPOINT}", "--samples", "8")
    assert [model["label"] for model in found["models"]] == ["one", "other"]
    for models in scores_of(found, "val").values():
        assert models["other"]["difference"] == {"value": 0, "interval": [0, 0], "verdict": "same"}
    assert found["sets"][0]["samples"] == 8
    assert found["sets"][0]["changed"]["other"]["won"] == found["sets"][0]["changed"]["other"]["lost"] == 0


def test_the_page_and_the_terminal(folder, capsys):
    words = ("kept/base.jsonl", "kept/tuned.jsonl", "--changed", "3", "--out", "new/page.html")
    assert main(["compare", *words, "--json", "found.json"]) == 0
    shown = capsys.readouterr().out
    assert "exact match" in shown
    assert "better" in shown
    assert "forgetting  not measured" in shown
    assert max(map(len, shown.splitlines())) <= 80
    page = Path("new/page.html").read_text()
    changed = json.loads(Path("found.json").read_text())["sets"][0]["changed"]["tuned"]
    assert changed["won"] > 3
    assert "Won, the first 3" in page
    assert page.count("<section>") == 3 + min(changed["lost"], 3)
    assert "data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_checkpoint_alone_needs_data(folder, tmp_path, compared, capsys):
    """Without the config of its run beside it, the checkpoint has all but the data."""
    alone = shutil.copy(CHECKPOINT, tmp_path / "alone.ckpt")
    assert main(["compare", str(alone)]) == 2
    assert "no config of a run beside a checkpoint; give --data FILE" in capsys.readouterr().err
    found = compared(str(alone), "--data", "val.jsonl", "--max_new_tokens", "6", "--batch_size", "16")
    whole = json.loads((folder / "both.json").read_text())
    assert scores_of(found, "val") == scores_of(whole, "val")


@pytest.fixture
def bad(folder):
    """Files that can't be compared."""
    rows = [json.loads(line) for line in Path("kept/tuned.jsonl").read_text().splitlines()]
    files = {
        "few": rows[:5],
        "other": [{**row, "source": row["source"].replace("val", "vol")} for row in rows[:24]],
        "changed": [{**rows[0], "reference": "lukewarm"}, *rows[1:24]],
        "asked": [{**rows[0], "prompt": "Is it cold?"}, *rows[1:]],
        "unknown": [{**row, "reference": None, "scores": {}} for row in rows],
    }
    for name, lines in files.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    Path("torn.jsonl").write_text(Path("few.jsonl").read_text() + "{")
    prompts = [json.loads(line) for line in Path("val.jsonl").read_text().splitlines()]
    for row in prompts:
        row["messages"] = row["messages"][:1]
    Path("prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    Path("adapters").mkdir(exist_ok=True)
    Path("adapters/adapter_config.json").write_text("{}")
    Path("bad.yaml").write_text("data: [1]")
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "found no model; expected two or more"),
        (["--data", "val.jsonl", CHECKPOINT], "found no model before --data"),
        (["drawn-vlm"], "found one model, drawn-vlm"),
        (["base", "drawn-vlm"], "found base, but no checkpoint"),
        (["runs/version_0/checkpoints/lost.ckpt"], "did you mean runs/version_0/checkpoints/last.ckpt?"),
        (["runs/version_0"], "did you mean runs/version_0/checkpoints/last.ckpt?"),
        (["adapters", "drawn-vlm"], "adapters without their model"),
        (["runs/version_0/config.yaml", "drawn-vlm"], "give a checkpoint of its run"),
        (["val.jsonl", "drawn-vlm"], "isn't a file of answers that predict wrote; give samples by --data"),
        ([CHECKPOINT, "--data", "vol.jsonl"], "did you mean val.jsonl?"),
        ([CHECKPOINT, "--data", "val.jsonl", "val"], "two sets of the name val"),
        ([CHECKPOINT, "--data", "test"], "the config has train, val"),
        ([CHECKPOINT, "--config", "bad.yaml"], "found no section data"),
        ([CHECKPOINT, "--config", "none.yaml"], "found no such file"),
        ([CHECKPOINT, "--scores", "anl"], "did you mean anls?"),
        ([CHECKPOINT, "--quantized", "nf5"], "expected one of: nf4, int8"),
        ([CHECKPOINT, "--samples", "0"], "--samples: found 0; expected at least 1"),
        ([CHECKPOINT, "--out", "runs"], "found the folder runs"),
        ([CHECKPOINT, "--dta", "val"], "dta"),
        (["kept/base.jsonl", "few.jsonl"], "found 43 samples that not all files have answered, and 5"),
        (["kept/base.jsonl", "few.jsonl", "--data", "val.jsonl"], "no answer to 19 of the 24 samples of val"),
        (["kept/base.jsonl", "other.jsonl", "--data", "val.jsonl"], "answers to other samples (vol.jsonl:1"),
        (["kept/base.jsonl", "other.jsonl"], "no sample of answers that all models have answered"),
        (["kept/base.jsonl", "changed.jsonl", "--data", "val.jsonl"], "another right answer to val.jsonl:1"),
        (["kept/base.jsonl", "asked.jsonl"], "different prompts of val.jsonl:1"),
        (["unknown.jsonl", "unknown.jsonl"], "no right answer in answers"),
        (["kept/base.jsonl", "torn.jsonl"], "torn.jsonl:6: found no answer"),
        (["kept/base.jsonl", "kept/tuned.jsonl", "--quantized", "nf4"], "found only files of answers"),
    ],
)
def test_what_is_refused(bad, capsys, words, message):
    assert main(["compare", *words]) == 2
    printed = capsys.readouterr().err.strip()
    assert message in printed
    assert printed.count("\n") <= 2


def test_data_without_right_answers_is_refused(bad, capsys):
    assert main(["compare", CHECKPOINT, "--data", "prompts.jsonl"]) == 2
    printed = capsys.readouterr().err.strip()
    assert "prompts" in printed
    assert printed.count("\n") <= 2


def test_methods_and_folders(folder, compared, capsys):
    """QLoRA beside LoRA and a folder: the base is quantised as its checkpoint's was, and that is said."""
    words = ("--config", "runs/version_0/config.yaml", "--model.adapt", "qlora", "--trainer.max_steps", "1")
    logger = "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: ., name: qlora}}"
    assert main(["fit", *words, "--trainer.logger", logger]) == 0
    capsys.readouterr()
    qlora = "qlora/version_0/checkpoints/last.ckpt"
    models = ("base", qlora, CHECKPOINT, f"plain={SHIPPED['drawn-vlm']}", "drawn-vlm")
    found = compared(*models, "--samples", "8")
    shown = capsys.readouterr().out
    labels = ["base", "qlora", "runs", "plain", "drawn-vlm"]
    assert [model["label"] for model in found["models"]] == labels
    assert "base is in nf4, as its checkpoint was trained on it" in " ".join(shown.split())
    assert "qlora: projector full, language lora r=16 on nf4; step 1" in shown
    loss = {label: scores_of(found, "val")["loss"][label]["estimate"]["value"] for label in labels}
    assert loss["plain"] == loss["drawn-vlm"] != loss["base"]
    sizes = {model["label"]: model["size"] for model in found["models"]}
    assert sizes["base"] < sizes["qlora"] < sizes["plain"] < sizes["runs"]


def test_ctrl_c_is_said(folder, monkeypatch, capsys):
    def stop(module, batch, batch_idx):
        raise KeyboardInterrupt

    monkeypatch.setattr(AnsweringModule, "predict_step", stop)
    assert main(["compare", "a=drawn-vlm", "b=drawn-vlm", "--data", "val.jsonl"]) == 130
    assert "stopped by Ctrl-C" in capsys.readouterr().err


def test_boxes_of_drawn_data(folder, compared):
    """Data of a class in a config, whose pictures are bytes; answers that are kept have their scores."""
    drawn = (
        "{class_path: Drawn, init_args: {split: val, size: 9, tasks: [grounding, referring, vqa], rounds: 1}}"
    )
    Path("drawn.yaml").write_text(f"model: {{generation: {{max_new_tokens: 24}}}}\ndata:\n  val: {drawn}\n")
    words = ("--config", "drawn.yaml", "--answers", "drawn")
    whole = compared("one=drawn-vlm", "two=drawn-vlm", *words)
    assert {"grounding", "vqa", "referring"} <= whole["sets"][0]["scores"].keys()
    assert {"miou", "acc@0.5"} <= scores_of(whole, "val", "grounding").keys()
    files = compared("one=drawn/one.jsonl", "two=drawn/two.jsonl", *words[:2], "--data", "val")
    assert files["sets"] == whole["sets"]
    assert "data:image/png" not in Path("compare.html").read_text()  # nothing has changed
    rows = [json.loads(line) for line in Path("drawn/two.jsonl").read_text().splitlines()]
    for row in rows:
        row["answer"], row["scores"] = "<script>alert(1)</script>", {}
    Path("wrong.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    compared("one=drawn-vlm", "wrong.jsonl", *words[:2], "--data", "val")
    page = Path("compare.html").read_text()
    assert "data:image/png" in page
    assert "&lt;script&gt;" in page
    assert "<script" not in page
