"""Migrated configs run: the data is looked at, and two steps are trained."""

import re
from pathlib import Path

import pytest

from lightning_vlm.cli import main

RUNS = {
    "llama_factory_lora.yaml": [],
    "swift_lora.sh": [],
    "trl_lora.yaml": [],
    "trainer.yaml": [
        *("--data.train", "data/pets.jsonl", "--model.name_or_path", "drawn-vlm", "--data.batch_size", "2"),
        *("--model.no_gradient_needed", "['*.post_layernorm']"),
    ],
}
"""Case -> what can't run here, in its place."""
HERE = [
    *("--trainer.devices", "1", "--trainer.accelerator", "cpu", "--trainer.precision", "32-true"),
    *("--data.num_workers", "0", "--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "runs"),
]


@pytest.mark.parametrize("name", RUNS)
def test_a_migrated_config_trains(migrate, name, capsys):
    """The hub's models become the shipped one before it is migrated; one case is linted, too."""
    text = Path(name).read_text()
    text = re.sub(r"Qwen/[\w.-]+", "drawn-vlm", text)
    Path(name).write_text(text)
    migrate(name)
    given = ["--config", "my.yaml", *RUNS[name], *HERE]
    if name == "llama_factory_lora.yaml":
        assert main(["lint", *given, "--workers", "1"]) == 0
    few = ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "1"]
    assert main(["fit", *given, *few]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["llama_factory_full.yaml", "swift_full.sh", "swift_args.json", "trl_vlm.sh"]
)
def test_the_others_are_configs(migrate, name, capsys):
    migrate(name)
    given = ["--config", "my.yaml", "--model.name_or_path", "drawn-vlm"]
    with pytest.raises(SystemExit) as ended:
        main(["fit", *given, "--print_config"])
    assert ended.value.code == 0, capsys.readouterr().err
