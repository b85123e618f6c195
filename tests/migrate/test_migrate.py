"""What becomes of the keys of each tool."""

import json
import pickle
from pathlib import Path

import pytest

from lightning_vlm.cli import main
from lightning_vlm.migrate.command import convert
from lightning_vlm.migrate.shell import read_words
from lightning_vlm.migrate.theirs import Theirs
from lightning_vlm.migrate.tools import LABELS, tool
from tests.migrate.conftest import CASES

FILES = sorted(file.name for file in CASES.iterdir() if file.is_file())


@pytest.mark.parametrize("name", FILES)
def test_no_key_is_silent(migrate, name):
    """Each key that is given is named beside a line, at the end of the file, or as one that loses nothing."""
    _, text, shown = migrate(name)
    given = keys_of(Path(name))
    assert len(given) >= 9 or name == "trl_vlm.sh"
    comments = " ".join(line.partition("#")[2] for line in text.splitlines())
    for key in given - {"env", "seed", "model", "training_args"}:
        assert key in comments, key
    for line in text.split("Not carried over, and why:")[1:]:
        first = line.strip("# \n").partition(":")[0]
        assert first in shown


@pytest.mark.parametrize("name", LABELS)
def test_each_key_that_counts_as_carried_is_read(name, tmp_path):
    """Over some ways that a run may be, so that none is carried in name alone."""
    common = {"eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": True, "report_to": "wandb"}
    validated = {"dataset_name": "a/b", "val_dataset": ["a.jsonl"], "val_size": 0.1, "dataset": "pets"}
    ways = [
        common,
        {**common, **validated, "dataset_dir": str(CASES / "data"), "metric_for_best_model": "loss"},
        {**common, "eval_steps": None, "model_kwargs": {"max_pixels": 5}, "packing": True, "max_steps": 5},
        {"finetuning_type": "full", "tuner_type": "full", "use_peft": True, "predict_with_generate": True},
        {"finetuning_type": "freeze", "video_fps": 1.0, "image_min_pixels": 4, "video_min_pixels": 4},
        {"pissa_init": True, "load_in_4bit": True, "quantization_bit": 4, "quant_bits": 4, "strict": False},
        {"dataset_name": "a/b", "dataset": ["a.jsonl"], "optim": "adamw_torch", "eval_strategy": "epoch"},
        {"datasets": [{"path": "a"}], "test_split_size": 0.1, "eval_dataset": "a", "save_strategy": "steps"},
        {"dataset": "pets", "dataset_dir": str(CASES / "data"), "warmup_ratio": 0.1, "max_epochs": 2},
        {"dataset": "pets", "dataset_dir": str(CASES / "data"), "val_size": 0.1, "bf16": None, "fp16": None},
    ]
    read = set()
    for way in ways:
        given = {key: value for key, value in way.items() if key in tool(name).defaults}
        theirs = Theirs(tool(name), given, tmp_path / "a.yaml")
        convert(theirs)
        read |= theirs._read
    without_effect = {"llama-factory": {"gradient_checkpointing"}, "ms-swift": {"project"}}  # there, too
    assert {*tool(name).carried} - read == without_effect.get(name, set())


def keys_of(path):
    """The keys of a case, by a look at its text."""
    if path.suffix == ".json":
        given = json.loads(path.read_text())
        given |= given.pop("training_args", {})
        internal = {"global_world_size", "rank", "swift_version", "model_info", "model_type"}
        # Settings with the default of the tool make no line where ours is the same.
        return {key for key, value in given.items() if value not in (None, False, [], 0.0)} - internal
    if path.suffix == ".yaml":
        lines = path.read_text().splitlines()
        return {line.partition(":")[0] for line in lines if line[:1].isalpha()}
    words = path.read_text().replace("\\\n", " ").split()
    return {word[2:] for word in words if word.startswith("--")} - {"config_file", "num_processes"}


def test_llama_factory(migrate):
    config, text, shown = migrate("llama_factory_lora.yaml")
    model, data, trainer = config["model"], config["data"], config["trainer"]
    assert model["adapt"] == {"language": {"lora": {"r": 16, "alpha": 32, "dropout": 0.0}}}
    assert model["token_weights"] == {"box": 1.0, "entity": 1.0}
    assert model["optimizer"]["init_args"] == {"lr": 1e-4, "weight_decay": 0.0}
    assert model["schedule"]["init_args"] == {"kind": "cosine", "warmup": 0.1}
    assert model["gradient_checkpointing"] is True
    assert (data["max_length"], data["max_pixels"], data["val"]) == (1024, 200704, "25%")
    first, second = data["train"]["init_args"]["sources"]
    assert first["init_args"]["of"]["init_args"] == {"path": "data/pets.jsonl", "image_root": "data"}
    assert second["init_args"]["of"]["init_args"]["columns"] == {"instruction": "ask", "output": "reply"}
    assert first["init_args"]["stop"] == second["init_args"]["stop"] == 8
    assert (trainer["accumulate_grad_batches"], trainer["val_check_interval"]) == (2, 4)
    assert trainer["check_val_every_n_epoch"] is None
    assert trainer["max_epochs"] == 3
    assert config["seed_everything"] == 42
    assert (
        "deepspeed: examples/deepspeed/ds_z2_config.json -- several devices are set by trainer.strategy"
        in shown
    )
    assert "val_check_interval: counted in batches here" in shown
    assert "default of max_grad_norm" in text


def test_llama_factory_in_full(migrate):
    config, _, shown = migrate("llama_factory_full.yaml")
    assert config["model"]["adapt"] == {"projector": "full", "language": "full", "head": "full"}
    weights = config["model"]["token_weights"]
    assert weights == {"special": 1.0, "instruction": 1.0, "box": 1.0, "entity": 1.0}
    assert config["trainer"]["precision"] == "bf16-true"
    assert config["model"]["optimizer"]["class_path"] == "bitsandbytes.optim.PagedAdamW8bit"
    assert config["data"]["max_pixels"] == 768 * 768
    assert "lerning_rate; did you mean learning_rate?" in shown


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"lora_target": "q_proj,v_proj"}, {"language": ["q_proj", "v_proj"]}),
        ({"freeze_vision_tower": False}, {"vision": None, "language": None}),
        ({"freeze_vision_tower": False, "lora_target": "q_proj"}, {"*.q_proj": None}),
        ({"freeze_language_model": True, "freeze_vision_tower": False}, {"vision": None}),
        (
            {"freeze_language_model": True, "freeze_vision_tower": False, "lora_target": "qkv"},
            {"vision": ["qkv"]},
        ),
    ],
)
def test_what_llama_factory_gives_lora(migrate, change, expected):
    Path("a.json").write_text(json.dumps({"finetuning_type": "lora", "model_name_or_path": "a", **change}))
    config, _, _ = migrate("a.json")
    found = {part: entry["lora"].get("modules") for part, entry in config["model"]["adapt"].items()}
    assert found == expected


def test_what_llama_factory_freezes(migrate):
    given = {"finetuning_type": "freeze", "freeze_trainable_layers": 3, "freeze_trainable_modules": "mlp"}
    Path("a.json").write_text(json.dumps(given))
    assert migrate("a.json")[0]["model"]["adapt"] == {"language.layers[-3:].mlp": "full"}
    Path("a.json").write_text(json.dumps({**given, "freeze_vision_tower": False}))
    assert "freeze_vision_tower: False -- layers of these numbers" in migrate("a.json")[2]
    Path("a.json").write_text(json.dumps({**given, "freeze_language_model": True}))
    assert "found all parts frozen" in migrate("a.json", code=2)


@pytest.mark.parametrize(
    ("dataset", "why"), [("choices", "preferences"), ("scope", "download it"), ("pet", "mean pets")]
)
def test_data_sets_that_cannot_be_read(migrate, dataset, why):
    given = {"finetuning_type": "lora", "dataset": dataset, "dataset_dir": "data"}
    Path("a.json").write_text(json.dumps(given))
    shown = migrate("a.json", code=2) if dataset == "pet" else migrate("a.json")[2]
    assert why in shown


def test_a_data_set_of_the_hub(migrate):
    Path("a.json").write_text(json.dumps({"stage": "sft", "dataset": "afar", "dataset_dir": "data"}))
    arguments = {"path": "user/data", "split": "train", "config": "small"}
    assert migrate("a.json")[0]["data"]["train"] == {"class_path": "HFDataset", "init_args": arguments}


def test_ms_swift(migrate):
    config, text, shown = migrate("swift_lora.sh")
    assert config["model"]["name_or_path"] == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert config["model"]["adapt"] == {"language": {"lora": {"r": 8, "alpha": 32, "dropout": 0.05}}}
    optimizer = config["model"]["optimizer"]["init_args"]
    assert optimizer == {"lr": 1e-4, "weight_decay": 0.1, "betas": [0.9, 0.95]}
    assert config["data"]["max_pixels"] == 1003520
    assert config["trainer"]["accumulate_grad_batches"] == 8  # 16 samples of a step, 2 at a time
    assert config["trainer"]["val_check_interval"] == 16
    assert "train_type" in text
    assert "8 rows are drawn by chance" in shown
    assert "split_dataset_ratio isn't given" not in shown


def test_ms_swift_in_full_on_two_devices(migrate):
    config, _, shown = migrate("swift_full.sh")
    parts = {"vision": "full", "projector": "full", "language": "full", "head": "full"}
    assert config["model"]["adapt"] == parts
    assert config["model"]["learning_rates"] == {"vision": 1e-6}
    assert config["model"]["optimizer"]["init_args"]["lr"] == 1e-5
    assert config["trainer"]["devices"] == 2
    assert config["trainer"]["accumulate_grad_batches"] == 2  # 2 devices of 4 samples
    assert config["data"]["video"] == {"max_frames": 12, "max_pixels_per_frame": 50176}
    assert "loss_scale: last_round" in shown
    assert "kept in 32 bits here" in shown


def test_ms_swift_of_version_2(migrate):
    words = "swift sft --model_id_or_path qwen/a --sft_type lora --dataset data/pets.jsonl --batch_size 4"
    config, text, _ = migrate("--", *words.split(), "--lora_target_modules", "ALL", "--quantization_bit", "4")
    assert config["data"]["batch_size"] == 4
    assert config["trainer"]["max_epochs"] == 1
    assert config["model"]["schedule"]["init_args"] == {"kind": "cosine", "warmup": 0.05}
    assert {*config["model"]["adapt"]} == {"vision", "language"}
    assert config["model"]["quantization"] == "nf4"
    assert config["data"]["val"] == "1%"
    assert "sft_type" in text


def test_pretraining_with_ms_swift(migrate):
    config, _, shown = migrate("--", *["swift", "pt", "--model", "qwen/a", "--dataset", "data/pets.jsonl"])
    assert config["model"]["token_weights"]["instruction"] == 1.0
    assert "leaves the chat template out" in shown


def test_saved_arguments_of_ms_swift(migrate):
    config, _, _ = migrate("swift_args.json")
    assert config["trainer"]["accumulate_grad_batches"] == 16
    assert config["trainer"]["logger"]["class_path"] == "TensorBoardLogger"
    assert config["data"]["system_prompts"] == {"default": "You are a helpful assistant."}


def test_trl(migrate):
    config, _, shown = migrate("trl_lora.yaml")
    lora = {"lora": {"r": 8, "alpha": 16, "dropout": 0.05}}
    assert config["model"]["adapt"] == {"vision": lora, "projector": lora, "language": lora}
    weights = {"special": 1.0, "instruction": 1.0, "box": 1.0, "entity": 1.0}
    assert config["model"]["token_weights"] == weights
    assert config["model"]["dtype"] == "float32"
    assert config["trainer"]["precision"] == "bf16-mixed"
    assert "placeholders of pictures" in shown


def test_trl_learns_completions_alone(migrate):
    Path("p.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}))
    Path("a.yaml").write_text("use_peft: true\ndatasets: [{path: json, data_files: p.jsonl}]\n")
    weights = migrate("a.yaml")[0]["model"]["token_weights"]
    assert weights == {"response": 1.0, "box": 1.0, "entity": 1.0}


def test_the_vision_script_of_trl(migrate):
    config, text, shown = migrate("trl_vlm.sh")
    assert config["data"]["max_length"] is None
    assert config["model"]["optimizer"]["init_args"]["lr"] == 2e-5
    assert config["trainer"]["devices"] == 2
    assert "accelerate --config_file: zero3.yaml" in shown
    names = ["down_proj", "o_proj", "k_proj", "q_proj", "gate_proj", "up_proj", "v_proj"]
    assert [*config["model"]["adapt"]] == [f"*.{name}" for name in names]
    assert "sft_vlm.py sets max_length to None" in text


def test_trainer(migrate):
    config, text, shown = migrate("trainer.json")
    schedule = config["model"]["schedule"]["init_args"]
    assert schedule["kind"] == "polynomial"
    assert schedule["arguments"]["lr_end"] == pytest.approx(1e-7 / 3e-5)
    assert config["trainer"]["max_steps"] == 12
    assert config["trainer"]["callbacks"][0]["init_args"]["monitor"] == "val/loss"
    assert [one["class_path"] for one in config["trainer"]["logger"]] == ["TensorBoardLogger", "WandbLogger"]
    assert "# name_or_path:" in text
    assert "to choose before it runs" in shown
    assert "epochs; did you mean num_train_epochs?" in shown


def test_earlier_names_of_trainer(migrate):
    config, _, shown = migrate("trainer.yaml")
    assert config["model"]["schedule"]["init_args"]["warmup"] == 0.03
    assert config["data"]["batching"] == "length"
    assert config["trainer"]["limit_train_batches"] == 0.5
    assert config["trainer"]["deterministic"] is True
    assert "optim: adafactor -- this optimizer isn't here" in shown


def test_saved_arguments_that_have_a_key_under_two_names(migrate):
    """As `TrainingArguments.to_dict()` of transformers 4 gives them, in its order."""
    given = {"per_device_train_batch_size": 4, "per_gpu_train_batch_size": None, "no_cuda": False}
    given |= {"warmup_ratio": 0.1, "warmup_steps": 0, "eval_strategy": "epoch", "evaluation_strategy": None}
    for saved in (given, dict(reversed(given.items()))):
        Path("args.json").write_text(json.dumps(saved))
        config, _, _ = migrate("args.json")
        assert config["data"]["batch_size"] == 4
        assert config["model"]["schedule"]["init_args"]["warmup"] == 0.1
        assert config["trainer"]["check_val_every_n_epoch"] == 1


@pytest.mark.parametrize(
    ("given", "steps", "said"),
    [
        ({"logging_steps": 0.1, "max_steps": 50}, 5, ""),
        ({"logging_steps": 0.1}, None, "logging_steps: 0.1 -- a share of all steps"),
        ({"logging_strategy": "epoch"}, None, "logging_strategy: epoch -- a line is logged"),
    ],
)
def test_how_often_is_logged(migrate, given, steps, said):
    Path("args.json").write_text(json.dumps(given))
    config, _, shown = migrate("args.json")
    assert config["trainer"].get("log_every_n_steps") == steps
    assert said in shown


@pytest.mark.parametrize(("model", "least"), [("Qwen/Qwen2.5-VL-3B-Instruct", 3136), ("llava-1.5", None)])
def test_the_least_pixels(migrate, model, least):
    config, _, shown = migrate("--", "MIN_PIXELS=3136", "swift", "sft", "--model", model)
    assert config["data"].get("min_pixels") == least
    assert ("MIN_PIXELS: 3136 -- the processor" in shown) is (least is None)
    given = {"stage": "sft", "model_name_or_path": model, "image_min_pixels": 3136}
    Path("a.json").write_text(json.dumps(given))
    assert migrate("a.json")[0]["data"].get("min_pixels") == least


def test_defaults_are_those_of_the_tool(migrate):
    """An empty config of each tool is what the tool would do."""
    found = {}
    for name in ("trainer", "trl", "llama-factory", "ms-swift"):
        Path("empty.json").write_text("{}")
        config, _, _ = migrate("empty.json", "--from", name)
        model, trainer = config["model"], config["trainer"]
        arguments = model["optimizer"]["init_args"]
        samples = config["data"]["batch_size"] * trainer["accumulate_grad_batches"]
        found[name] = (
            arguments["lr"], arguments["weight_decay"], model["schedule"]["init_args"]["kind"],
            model["clip"], trainer["max_epochs"], samples, trainer["precision"],
        )  # fmt: skip
    assert found == {
        "trainer": (5e-5, 0.0, "linear", 1.0, 3, 8, "32-true"),
        "trl": (2e-5, 0.0, "linear", 1.0, 3, 8, "bf16-mixed"),
        "llama-factory": (5e-5, 0.0, "linear", 1.0, 3, 8, "32-true"),
        "ms-swift": (1e-4, 0.1, "cosine", 1.0, 3, 16, "bf16-mixed"),
    }


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("training_args.bin", None, "found a pickle, which runs code"),
        ("a.yaml", "stage: dpo\nfinetuning_type: lora", "found stage dpo, which is preferences"),
        ("a.sh", "swift rlhf --rlhf_type dpo --model a", "expected swift sft"),
        ("a.sh", "trl dpo --model_name_or_path a", "expected TRL's supervised fine-tuning"),
        ("a.yaml", "tuner_type: full\nfreeze_llm: true", "found all parts frozen"),
        ("a.sh", "echo hello", "found no training command"),
        ("a.yaml", "a: 1", "expected a config of trainer, trl, llama-factory, ms-swift"),
        ("a.yaml", "model: {name_or_path: drawn-vlm}", "found the section model, as in a config of ours"),
        ("a.yaml", "- 1", "found list; expected keys"),
        ("a.yaml", "a: [", "broken YAML"),
        ("a.json", "{", "broken JSON"),
        ("llama_factory_lora.yml", None, "did you mean"),
        ("data", None, "found a folder"),
    ],
)
def test_what_is_refused(migrate, name, text, expected):
    if name.endswith(".bin"):
        Path(name).write_bytes(pickle.dumps({}))
    elif text is not None:
        Path(name).write_text(text)
    assert expected in migrate(name, code=2)


def test_a_script_of_ones_own_with_keys_of_trl(migrate):
    config, _, _ = migrate(
        "--", *["python", "train.py", "--use_peft", "--lora_r", "4", "--lora_target_modules", "q_proj"]
    )
    assert config["model"]["adapt"] == {"*.q_proj": {"lora": {"r": 4, "alpha": 32, "dropout": 0.05}}}
    assert "aren't trained on here" in migrate("--", "python", "dpo_vlm.py", "--use_peft", code=2)


def test_nothing_is_overwritten(migrate):
    Path("there.yaml").write_text("mine")
    assert main(["migrate", "trainer.yaml", "--out", "there.yaml"]) == 2
    assert Path("there.yaml").read_text() == "mine"


def test_commands():
    words = "torchrun --nproc_per_node=2 train.py --use_peft --lora_r 8 --report_to wandb tensorboard"
    command = read_words(words.split(), {})
    assert command.given == {"use_peft": True, "lora_r": "8", "report_to": ["wandb", "tensorboard"]}
    assert (command.launch.devices, command.tool) == (2, None)
    command = read_words(["llamafactory-cli", "train", "a.yaml", "learning_rate=1e-5"], {})
    assert (command.tool, command.configs, command.given) == (
        "llama-factory",
        ["a.yaml"],
        {"learning_rate": "1e-5"},
    )
    command = read_words(["trl", "sft", "--config", "a.yaml", "--num_processes", "4", "--lora_r", "4"], {})
    assert (command.tool, command.configs) == ("trl", ["a.yaml"])
    command = read_words(["python", "-m", "swift.cli.sft", "--model", "a"], {})
    assert (command.tool, command.given) == ("ms-swift", {"model": "a"})


def test_fit_says_what_to_do_with_a_config_of_another_tool(here, capsys):
    assert main(["fit", "--config", "llama_factory_lora.yaml"]) == 2
    shown = capsys.readouterr().err
    assert "makes one of ours" in shown
    assert len(shown.splitlines()) <= 3
