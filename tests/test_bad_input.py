"""Bad samples, files, checkpoints and options, through the command: one line with the place, what was found
and what to write. Mistakes in configs are in `test_config_errors.py`."""

import json
import os
from pathlib import Path

import PIL.Image
import pytest
import torch

from lightning_vlm.cli import main
from tools import shipped


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(shipped.create(tmp_path_factory.mktemp("base")))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with pictures of all sorts."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    PIL.Image.new("RGB", (64, 64), "red").save("a.jpg")
    data = Path("a.jpg").read_bytes()
    Path("cut.jpg").write_bytes(data[: len(data) // 2])
    PIL.Image.new("1", (20_000, 20_000)).save("bomb.png")
    PIL.Image.new("RGB", (8, 8)).save("../outside.png")
    os.symlink("../outside.png", "link.png")
    return tmp_path


def ask(picture="a.jpg", **more):
    user = {
        "role": "user",
        "content": [{"type": "image", "path": picture}, {"type": "text", "text": "What?"}],
    }
    return {"messages": [user, {"role": "assistant", "content": "Red"}], **more}


def turns(*roles):
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


def fit(base, *words):
    off = ("logger", "enable_checkpointing", "enable_progress_bar")
    off = [word for key in off for word in (f"--trainer.{key}", "false")]
    return main(["fit", "--model.name_or_path", base, "--trainer.max_steps", "1", *off, *words])


def complaint(capsys):
    """The one line of complaint."""
    err = capsys.readouterr().err
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("lightning-vlm: error: ")]
    assert err.rstrip().endswith(line)  # nothing comes after it
    return line


SAMPLES = {
    "missing picture": (ask("no.jpg"), "messages[0].content[0].path: found 'no.jpg', which does not exist"),
    "truncated JPEG": (ask("cut.jpg"), "'cut.jpg', which cannot be decoded (Truncated"),
    "image bomb": (ask("bomb.png"), "expected at most 64000000 pixels"),
    "outside the root": (ask("../outside.png"), "which is outside '.'; expected a path below the image root"),
    "link out of the root": (ask("link.png"), "found 'link.png', which is outside '.'"),
    "only system turns": (turns("system", "system"), "messages: found only a system turn; expected at least"),
    "unknown role": (turns("usr", "assistant"), "did you mean 'user'?"),
    "no assistant turn": (turns("user"), "found no assistant turn; expected at least one answer"),
    "placeholders": (
        {
            "image": "a.jpg",
            "conversations": [{"from": "human", "value": "<image><image>"}, {"from": "gpt", "value": "x"}],
        },
        "found 1 picture and 2 places",
    ),
    "unknown key": (ask(wieght=2), "wieght: found an unknown key"),
    "negative weight": (ask(weight=-1), "weight: found -1.0; expected a finite number >= 0"),
    "not a number": (ask(weight=float("nan")), "weight: found nan; expected a finite number >= 0"),
}


@pytest.mark.parametrize(("sample", "expected"), SAMPLES.values(), ids=SAMPLES)
def test_bad_sample_is_named_by_file_and_line(project, base, capsys, sample, expected):
    Path("data.jsonl").write_text(f"{json.dumps(sample)}\n{json.dumps(sample)}\n")
    assert fit(base, "--data.train", "data.jsonl", "--data.batch_size", "2", "--data.shuffle", "false") == 2
    line = complaint(capsys)
    assert "data.jsonl:1: " in line
    assert expected in line


def test_bad_samples_are_skipped_and_counted(project, base):
    bad = [sample for sample, _ in SAMPLES.values()]
    Path("data.jsonl").write_text("\n".join(map(json.dumps, [ask(), *bad, ask()])))
    words = ("--data.train", "data.jsonl", "--data.on_bad_sample", "skip", "--data.batch_size", "20")
    assert fit(base, *words, "--trainer.default_root_dir", "out") == 0
    report = Path("out/skipped_fit_0.jsonl").read_text().splitlines()
    assert sorted(int(json.loads(line)["source"].split(":")[1]) for line in report) == list(range(2, 14))


def test_all_faults_of_a_file_are_printed(project, base, capsys):
    """Rows as other trainers write them, of which three are bad, and a line that is no JSON."""
    rows = [
        {"messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "Red"}]},
        {"question": "What?", "answer": "Red", "image": "b.jpg"},
        {"query": "What?", "response": "Red", "weight": 1e38},
        {"frage": "What?", "antwort": "Red"},
    ]
    rows[0]["images"] = ["a.jpg"]
    Path("data.jsonl").write_text("\n".join([*map(json.dumps, rows), "{"]))
    assert fit(base, "--data.train", "data.jsonl") == 2
    lines = capsys.readouterr().err.rstrip().split("\n")[-4:]
    assert "data.jsonl:2: image: found 'b.jpg', which does not exist" in lines[0]
    assert "(data.image_root); did you mean 'a.jpg'?" in lines[0]
    assert lines[1].startswith("data.jsonl:3: weight: found 1e+38; expected at most 1,000,000")
    assert lines[2].startswith("data.jsonl:4: found a row with the keys 'frage', 'antwort'; expected a known")
    assert lines[3].startswith("data.jsonl:5: column 2: found broken JSON")


FILES = {
    "empty": ("", "data.jsonl: found no samples; expected at least one"),
    "null": ("null", "data.jsonl"),
    "bad JSON": (f"{json.dumps(ask())}\n{{'messages': ", "data.jsonl:2: column 2: found broken JSON"),
}


@pytest.mark.parametrize(("text", "expected"), FILES.values(), ids=FILES)
def test_bad_file(project, base, capsys, text, expected):
    Path("data.jsonl").write_text(text)
    assert fit(base, "--data.train", "data.jsonl") == 2
    assert expected in complaint(capsys)


KEYS = {
    "shortened key": (["--model.learning_rate", "1"], "did you mean model.learning_rates?"),
    "selector": (["--model.adapt", "{visoin: full}"], "selector 'visoin'"),
    "no model": (["--model.name_or_path", "none"], "model 'none': no such folder"),
    "no data": (["--data.train", "none.jsonl"], "none.jsonl: found no such file"),
    "the Trainer's clipping": (["--trainer.gradient_clip_val", "1.0"], "clip with model.clip"),
    "kind's weight": (["--model.token_weights.response", "-1"], "response"),
    "report without answers": (["--report", "true"], "set model.generation"),
    "a folder as checkpoint": (["--ckpt_path", "."], "checkpoint .: found a folder"),
    "no checkpoint": (["--ckpt_path", "none.ckpt"], "checkpoint none.ckpt: found no such file"),
    "class": (
        ["--data.train", "Drwan", "--data.train.size", "5"],
        "data.train: there is no class Drwan; did you mean Drawn?",
    ),
}


@pytest.mark.parametrize(("words", "expected"), KEYS.values(), ids=KEYS)
def test_bad_option(project, base, capsys, monkeypatch, words, expected):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Path("data.jsonl").write_text(json.dumps(ask()))
    assert fit(base, "--data.train", "data.jsonl", *words) == 2
    assert expected in complaint(capsys)


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


CHECKPOINTS = {
    "text": ("hello", "a file that torch can't read"),
    "another's": ({"state_dict": {}}, "found no checkpoint of Lightning"),
    "pickled code": ({"state_dict": Evil()}, "found pickled code, which is not run"),
}


@pytest.mark.parametrize(("content", "expected"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_bad_checkpoint(project, base, capsys, content, expected):
    Path("data.jsonl").write_text(json.dumps(ask()))
    if isinstance(content, str):
        Path("x.ckpt").write_text(content)
    else:
        torch.save(content, "x.ckpt")
    assert fit(base, "--data.train", "data.jsonl", "--ckpt_path", "x.ckpt") == 2
    line = complaint(capsys)
    assert "checkpoint x.ckpt: found" in line
    assert expected in line
    assert not Path("evil").exists()


def test_the_last_checkpoint_is_no_file(project, base):
    """Lightning looks for it; without any, the run begins at the start."""
    Path("data.jsonl").write_text(json.dumps(ask()))
    assert fit(base, "--data.train", "data.jsonl", "--ckpt_path", "last") == 0


def test_unknown_family(project, base, capsys):
    shipped.create(Path("model"))
    config = json.loads(Path("model/config.json").read_text())
    Path("model/config.json").write_text(json.dumps({**config, "model_type": "foonet"}))
    Path("data.jsonl").write_text(json.dumps(ask()))
    assert fit("model", "--data.train", "data.jsonl") == 2
    assert "foonet" in complaint(capsys)
