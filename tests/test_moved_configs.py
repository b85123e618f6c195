"""Configs and states of callbacks as the version before callbacks became folders saved them; they lie in
`earlier_version`."""

from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from lightning_vlm.cli import main
from lightning_vlm.config.class_names import find_class
from lightning_vlm.config.moved import MOVED, REMOVED, modernize
from lightning_vlm.config.yaml_file import read_config
from lightning_vlm.data.conversation import Conversations

SAVED = Path(__file__).parent / "earlier_version"
EXACT_RESUME = ("position", "ranks")
"""State of EarlyStopCheckpoint that belongs to one run and one machine: random states, places in the data."""


@pytest.mark.parametrize("name", ["all", "tasks"])
def test_a_saved_config_fits_and_the_saved_state_of_callbacks_is_resumed(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = str(SAVED / f"{name}.yaml")
    assert main(["fit", "--config", config]) == 0
    assert "no longer" not in capsys.readouterr().err
    checkpoint = next(Path("runs").rglob("last.ckpt"))
    content = torch.load(checkpoint, weights_only=True)
    earlier = torch.load(SAVED / f"{name}.pt", weights_only=True)
    assert earlier.keys() <= content["callbacks"].keys()
    for key, state in earlier.items():
        own = {field: content["callbacks"][key][field] for field in EXACT_RESUME if field in state}
        content["callbacks"][key] = {**state, **own}
    torch.save(content, checkpoint)

    resume = ["--ckpt_path", str(checkpoint), "--trainer.max_steps", "15"]
    assert main(["fit", "--config", config, *resume]) == 0, capsys.readouterr().err
    files = [path for path in Path("runs").rglob("*.ckpt") if not path.is_symlink()]
    last = torch.load(max(files, key=lambda path: path.stat().st_mtime), weights_only=True)
    assert last["global_step"] == 15
    if name == "tasks":
        assert torch.equal(last["callbacks"]["GradNorm"]["weights"], earlier["GradNorm"]["weights"])
        assert main(["validate", "--config", config, "--ckpt_path", str(checkpoint)]) == 0


def test_a_moved_class_on_the_command_line_is_named_with_its_new_path(capsys):
    old = "lightning_vlm.token_weight_schedule.TokenWeightSchedule"
    assert main(["fit", "--trainer.callbacks", old]) == 2
    expected = f"there is no class {old}; did you mean {MOVED[old]}?"
    assert expected in capsys.readouterr().err


def test_each_moved_class_is_where_the_table_says():
    for path in MOVED.values():
        assert find_class(path, [Callback, Conversations]).__name__ == path.rpartition(".")[2]


def test_a_removed_key_is_reported_only_if_it_was_set(tmp_path):
    name, keys = next(iter(REMOVED.items()))
    key, (default, instead) = next(iter(keys.items()))
    file = tmp_path / "config.yaml"
    for value, sentences in (
        (default, []),
        ("3", [f"{name} no longer has the key {key}, which is ignored; {instead}"]),
    ):
        file.write_text(f"callbacks: [{{class_path: x.{name}, init_args: {{{key}: {value}, kept: 1}}}}]")
        config = read_config(str(file))
        assert modernize(config.root) == sentences
        assert yaml.safe_load(yaml.serialize(config.root))["callbacks"][0]["init_args"] == {"kept": 1}
