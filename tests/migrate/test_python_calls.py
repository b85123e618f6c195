"""Scripts and notebooks in Python: their classes of arguments are read, and nothing is run."""

import json
from pathlib import Path

import pytest

TRL = """
from trl import SFTConfig
RATE = 2e-4
model = AutoModelForImageTextToText.from_pretrained("Qwen/Qwen2.5-VL-3B-Instruct")
processor = AutoProcessor.from_pretrained("Qwen/Qwen2.5-VL-3B-Instruct")
data = load_dataset("user/data", split="train[:10%]")
config = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"])
args = SFTConfig("out", learning_rate=RATE, max_length=None, num_train_epochs=EPOCHS, **more)
"""


def test_a_script_of_trl(migrate):
    Path("a.py").write_text(TRL)
    config, _, shown = migrate("a.py")
    lora = {"lora": {"r": 16, "alpha": 32, "dropout": 0.0}}
    assert config["model"]["adapt"] == {"*.q_proj": lora, "*.v_proj": lora}
    assert config["model"]["name_or_path"] == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert config["model"]["optimizer"]["init_args"]["lr"] == 2e-4
    assert config["data"]["train"]["init_args"] == {"path": "user/data", "split": "train[:10%]"}
    assert config["data"]["max_length"] is None
    assert "SFTConfig in line 8 was read; the rest of the script isn't" in shown
    assert "line 8: **more isn't read" in shown
    assert "num_train_epochs: EPOCHS isn't said in this file" in shown


def test_arguments_of_trainer_with_lora(migrate):
    """What gets LoRA isn't in these arguments, so that it has to be written, and isn't taken as all."""
    script = "m = get_peft_model(m, LoraConfig(r=8))\na = TrainingArguments(output_dir='o', max_steps=5)"
    Path("a.py").write_text(script)
    config, _, shown = migrate("a.py")
    assert config["trainer"]["max_steps"] == 5
    assert "adapt" not in config["model"]
    assert "peft of the script" in shown
    Path("a.py").write_text(script.partition("\n")[2])
    assert migrate("a.py")[0]["model"]["adapt"] == "full"


def test_a_notebook_with_unsloth(migrate):
    code = ["%pip install unsloth\n", "!ls\n", "m = FastVisionModel.get_peft_model(m, r=16)\n"]
    cells = [{"cell_type": "markdown", "source": ["# it's"]}, {"cell_type": "code", "source": code}]
    cells.append(
        {"cell_type": "code", "source": "t = SFTTrainer(args=SFTConfig(max_steps=30, learning_rate=2e-4))"}
    )
    Path("a.ipynb").write_text(json.dumps({"cells": cells}))
    config, _, shown = migrate("a.ipynb")
    assert config["trainer"]["max_steps"] == 30
    assert "adapt" not in config["model"]
    assert "model.adapt: FastVisionModel.get_peft_model(m, r=16) says what trains" in shown


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.py", "a = (", "line 1: it can't be read as Python"),
        ("a.py", "(" * 5000, "it can't be read as Python"),
        ("a.py", "print(1)", "found none of them; expected one call of TrainingArguments"),
        ("a.py", "SFTConfig(a=1)\nSFTConfig(b=1)", "found SFTConfig in line 1, SFTConfig in line 2"),
        ("a.py", "args = TrlParser(SFTConfig).parse_args_and_config()", "come from the command that runs it"),
        ("a.ipynb", "[]", "found no notebook"),
        ("a.py", "SFTConfig(learning_rate='fast')", "learning_rate: found fast; expected a number"),
    ],
)
def test_scripts_that_cannot_be_read(migrate, name, text, expected):
    Path(name).write_text(text)
    assert expected in migrate(name, code=2)
