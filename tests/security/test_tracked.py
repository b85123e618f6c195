"""What a tracker gets that nobody asked it to keep: no secrets, no rows and no pictures."""

import json
from pathlib import Path

import PIL.Image
import pytest

from lightning_vlm.cli import main
from lightning_vlm.export.history import public
from lightning_vlm.outputs.secrets import is_secret, without_secrets

WORDS = {
    "a question": "canaryquestion",
    "an answer": "canaryanswer",
    "a variable": "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",
    "a password": "canarypassword",
}


def test_weights_and_biases_gets_what_was_asked_for(tmp_path, monkeypatch):
    """By the bytes of all that its run has written for the upload."""
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HF_TOKEN", WORDS["a variable"])
    monkeypatch.setenv("OPENAI_API_KEY", WORDS["a variable"])
    PIL.Image.new("RGB", (32, 32), "red").save("a.png")
    row = {"question": WORDS["a question"], "answer": WORDS["an answer"], "image": "a.png"}
    Path("d.jsonl").write_text(f"{json.dumps(row)}\n" * 2)
    logger = ["--trainer.logger", "WandbLogger", "--trainer.logger.save_dir", "runs"]
    data = ["--data.train", "d.jsonl", "--data.val", "d.jsonl", "--data.batch_size", "2"]
    # Nothing opens it in a fit.
    data += ["--data.predict", f"https://me:{WORDS['a password']}@example.com/asked.jsonl"]
    model = ["--model.name_or_path", "drawn-vlm", "--model.generation", "{max_new_tokens: 2}"]
    run = ["--trainer.max_steps", "1", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", *model, *data, *run, *logger, "--trainer.enable_checkpointing", "false"]) == 0
    import wandb

    wandb.finish()
    (folder,) = Path("runs/wandb").glob("offline-run-*")
    written = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert any(b"drawn-vlm" in content for content in written.values())
    for what, word in WORDS.items():
        found = [str(path) for path, content in written.items() if word.encode() in content]
        # W&B keeps the words of the command itself, which SECURITY.md says.
        assert found == [] or (what == "a password" and found == [str(folder / "files/wandb-metadata.json")])


SECRET = [
    *("password", "PASSWORD", "db_password", "api_key", "apikey", "hf_token", "token", "client_secret"),
    *("aws_secret_access_key", "credentials", "auth_token", "private_key"),
]
HARMLESS = [
    *(
        "new_tokens",
        "token_weights",
        "max_new_tokens",
        "answer_tokens",
        "image_token",
        "eos_token",
        "max_tokens",
    ),
    *("key", "keys", "monitor", "hub_model_id", "pad_token"),
]


@pytest.mark.parametrize("name", SECRET)
def test_secret_keys(name):
    assert is_secret(name)
    assert without_secrets([{name: "canary"}, {"deeper": {name: ["canary"]}}]) == [
        {name: "***"},
        {"deeper": {name: "***"}},
    ]
    assert public({name: "canary"}) == {}


@pytest.mark.parametrize("name", HARMLESS)
def test_keys_that_are_no_secret(name):
    assert without_secrets({name: "kept"}) == {name: "kept"} == public({name: "kept"})


@pytest.mark.parametrize(
    "text",
    [
        *(
            "http://me:canary@host/x",
            "postgresql+psycopg2://me:canary@host/runs",
            "see ftp://canary@host now",
        ),
        *("hf_canarycanarycanarycanary", "use sk-canarycanarycanarycanary", "ghp_canarycanarycanarycanary"),
    ],
)
def test_secrets_inside_texts(text):
    assert "canary" not in str(without_secrets({"logger": [text]}))
    assert "canary" not in str(public({"logger": [text]}))
