"""Pictures are answered without a data file, and a checkpoint without its config."""

import shutil
from pathlib import Path

import pytest

from lightning_vlm import VLMDataModule
from lightning_vlm.cli import main
from lightning_vlm.data.asked import ask
from lightning_vlm.data.read.picture_files import PictureFiles
from tests.predict.conftest import ASK


def test_a_folder_of_pictures(photos, predict, rows_of, capsys, caplog):
    assert predict("--data.predict", "photos/", "--prompt", ASK, "--out", "a.jsonl") == 0
    rows = rows_of("a.jsonl")
    assert [row["id"] for row in rows] == ["0.png", "2.png", "4.png", "sub/1.png", "sub/3.png"]
    assert rows[3]["images"] == ["photos/sub/1.png"]
    assert rows[0]["prompt"] == f"<image> {ASK}"
    assert all(row["answer"] and row["reference"] is None for row in rows)
    out = capsys.readouterr().out
    assert "photos/: 7 pictures; 1 other file is left out" in caplog.text
    assert "5 in a.jsonl; 2 skipped" in out
    for name in ("broken.jpg", "phone.heic"):
        assert f"photos/{name}: " in out

    # A picture alone is answered likewise.
    assert predict("--data.predict", "photos/sub/1.png", "--prompt", ASK, "--out", "b.jsonl") == 0
    (row,) = rows_of("b.jsonl")
    assert (row["id"], row["answer"]) == ("1.png", rows[3]["answer"])


@pytest.mark.parametrize(
    ("given", "prompt", "message"),
    [
        ("photos", None, "data.predict: found pictures in photos, and no question about them; add --prompt"),
        ("photos/0.png", None, "found pictures in photos/0.png, and no question"),
        ("photo", "What?", "data.predict: found no picture or folder photo; did you mean photos?"),
        ("photos/broken.jpg", "What?", "'broken.jpg', which is not a picture"),
        ("photos", "  ", "prompt: found an empty text"),
        ("questions.jsonl", "What?", "prompt: questions.jsonl has questions of its own; leave --prompt out"),
        (None, "What?", "prompt: it asks about pictures; name one or their folder"),
        ("empty", "What?", "data.predict: found no picture in empty, none among 1 file"),
    ],
)
def test_what_is_refused(questions, predict, capsys, given, prompt, message):
    Path("empty").mkdir()
    Path("empty/notes.txt").touch()
    words = ["--data.predict", given] if given else []
    assert predict(*words, *(["--prompt", prompt] if prompt is not None else [])) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error


def test_links_lead_nowhere_else(photos):
    Path("secret").mkdir()
    shutil.copy("photos/0.png", "secret/0.png")
    Path("photos/link").symlink_to(Path("secret").absolute(), target_is_directory=True)
    Path("photos/.hidden.png").touch()
    names = [sample.id for sample in PictureFiles("photos", ASK)]
    assert names == sorted(["0.png", "2.png", "4.png", "broken.jpg", "phone.heic", "sub/1.png", "sub/3.png"])


def test_a_folder_with_a_data_file_has_questions_of_its_own(photos):
    Path("photos/metadata.jsonl").write_text("{}\n")
    data = VLMDataModule(predict="photos")
    ask(data, None)
    assert data.given["predict"] == "photos"


def test_a_checkpoint_knows_its_settings(questions, predict, rows_of, capsys, caplog):
    words = (
        *("--model.adapt", "{projector: full, language: {lora: {r: 2}}}"),
        *("--model.generation", "{max_new_tokens: 1}", "--model.scores", "[anls]"),
        *("--data.train", "questions.jsonl", "--data.batch_size", "2", "--data.max_length", "512"),
        *("--trainer.max_steps", "1", "--trainer.accelerator", "cpu"),
    )
    assert main(["fit", "--model.name_or_path", "drawn-vlm", *words]) == 0
    capsys.readouterr()
    (checkpoint,) = Path("lightning_logs").rglob("*.ckpt")
    config = checkpoint.parent.parent / "config.yaml"
    both = ("--config", str(config), "--ckpt_path", checkpoint, "--data.predict", "questions.jsonl")
    assert predict(*both, "--out", "both.jsonl", model=()) == 0

    alone = ("--ckpt_path", checkpoint, "--data.predict", "questions.jsonl")
    assert predict(*alone, "--out", "alone.jsonl", model=()) == 0
    assert f"drawn-vlm, with the settings of {checkpoint} and {config}" in caplog.text
    assert rows_of("alone.jsonl") == rows_of("both.jsonl")
    assert rows_of("alone.jsonl")[0]["scores"].keys() == {"anls"}
    assert [row["id"] for row in rows_of("alone.jsonl")] == [f"q{number}" for number in range(5)]

    shutil.copy(checkpoint, "moved.ckpt")
    assert predict("--ckpt_path", "moved.ckpt", *alone[2:], "--out", "moved.jsonl", model=()) == 0
    assert rows_of("moved.jsonl")[0]["scores"].keys() == {"exact_match", "token_f1"}
    assert predict("--ckpt_path", "questions.jsonl", *alone[2:], model=()) == 2
    assert "checkpoint questions.jsonl: " in capsys.readouterr().err
