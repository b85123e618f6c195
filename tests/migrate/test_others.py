"""What isn't read is known by its name all the same, and values of a wrong kind by their key."""

import json
from pathlib import Path

import pytest
import yaml


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"base_model": "a/b", "sequence_len": 512, "adapter": "lora", "datasets": [{"path": "c"}]},
            "a config of Axolotl, which isn't read; `lightning-vlm init DATA --model a/b`",
        ),
        ({"recipe": "x", "model": {"_target_": "nemo.Model"}}, "a config of NeMo AutoModel"),
        (
            {"model": {"model_name": "a/b"}, "training": {"output_dir": "c"}},
            "of Oumi, which isn't read; `lightning-vlm init DATA --model a/b`",
        ),
        ({"model": {"_component_": "a.b"}, "epochs": 1}, "a config of torchtune"),
        ({"model": "a", "train_dataset": "b.yaml", "learning_rate": 1e-4}, "a config of LLaMA-Factory's v1"),
        ({"model": "a", "lr": 1e-4, "micro_batch_size": 1}, "a config of Megatron-SWIFT"),
        ({"compute_environment": "LOCAL_MACHINE", "num_processes": 2}, "a file of Accelerate"),
        ({"zero_optimization": {"stage": 3}}, "a file of DeepSpeed"),
        ({"architectures": ["A"], "model_type": "b"}, "a file of a model"),
        ({"model_name_or_path": "a", "beta": 0.1}, "found beta, which trains by preferences"),
        ({"model_name_or_path": "a", "infer_backend": "vllm"}, "`lightning-vlm chat` does this here"),
        ({"model_name_or_path": "a", "export_dir": "c"}, "`lightning-vlm export` does this here"),
    ],
)
def test_other_configs_are_refused_by_name(migrate, config, expected):
    Path("a.yaml").write_text(yaml.safe_dump(config))
    shown = migrate("a.yaml", code=2)
    assert expected in shown
    assert len(shown.splitlines()) <= 3


@pytest.mark.parametrize(
    ("tool", "given", "expected"),
    [
        ("trl", {"learning_rate": "fast"}, "learning_rate: found fast; expected a number"),
        ("trl", {"eval_steps": [1, 2]}, "eval_steps: found [1, 2]; expected a number"),
        ("trl", {"packing": "perhaps"}, "packing: found perhaps; expected true or false"),
        ("trl", {"datasets": ["a"]}, "datasets: found ['a']; expected a list of sources"),
        ("trl", {"model_init_kwargs": "auto"}, "model_init_kwargs: found auto; expected keys with values"),
        ("trainer", {"optim": ["adamw_torch", "sgd"]}, "optim: found adamw_torch sgd; expected one value"),
        ("ms-swift", {"lr_scheduler_kwargs": 1}, "lr_scheduler_kwargs: found 1; expected keys with values"),
        ("ms-swift", {"per_device_train_batch_size": 0}, "found 0; expected 1 sample or more"),
        ("ms-swift", {"learning_rate": True}, "learning_rate: found True; expected a number"),
        ("ms-swift", {"model_kwargs": {"max_pixels": "big"}}, "MAX_PIXELS: found big; expected a number"),
        ("llama-factory", {"dataset": {"a": 1}}, "dataset: found {'a': 1}; expected a word, or several"),
    ],
)
def test_values_of_a_wrong_kind(migrate, tool, given, expected):
    Path("a.json").write_text(json.dumps(given))
    assert expected in migrate("a.json", "--from", tool, code=2)


def test_words_for_true_and_false_and_nothing(migrate):
    given = {"use_peft": "yes", "packing": "no", "learning_rate": None, "max_length": None, "bf16": "n"}
    Path("a.json").write_text(json.dumps(given))
    config, _, _ = migrate("a.json", "--from", "trl")
    assert [*config["model"]["adapt"]] == ["language"]
    assert config["model"]["optimizer"]["init_args"]["lr"] == 2e-5
    assert (config["data"]["max_length"], config["trainer"]["precision"]) == (None, "32-true")


def test_other_spellings_of_options(migrate):
    words = "trl sft --lora-r 4 --use-peft --no_gradient_checkpointing --no-bf16 --num_processes 3"
    config, _, shown = migrate("--", *words.split(), "--accelerate_config", "zero2")
    assert config["model"]["adapt"]["language"]["lora"]["r"] == 4
    assert "gradient_checkpointing" not in config["model"]
    assert config["trainer"]["devices"] == 3
    assert "trl --accelerate_config: zero2 -- several devices" in shown
    assert "unknown to" not in shown


def test_what_a_script_leaves_open(migrate):
    """The default stands, and the key is named with what is written there."""
    script = (
        "MODEL=${1}\nMAX_PIXELS=$P swift sft --model $MODEL --dataset $D --gradient_accumulation_steps $N\n"
    )
    Path("a.sh").write_text(script + " ")
    config, text, shown = migrate("a.sh")
    assert config["trainer"]["accumulate_grad_batches"] == 16
    for said in ("model: ${1}", "dataset: $D", "gradient_accumulation_steps: $N"):
        assert f"{said} isn't said in this file" in shown
        assert said in text
    assert "# name_or_path:" in text


def test_a_script_of_ones_own(migrate):
    """Its keys aren't Trainer's: they are shown as they are, and what trains isn't guessed."""
    words = "torchrun --nproc_per_node $GPUS llava/train/train_mem.py --data_path a.json --image_folder b"
    more = "--model_name_or_path c --lora_enable True --lora_r 128 --version v1 --learning_rate 2e-4"
    Path("a.sh").write_text(f"{words} {more}")
    config, text, shown = migrate("a.sh")
    assert (config["data"]["train"], config["data"]["image_root"]) == ("a.json", "b")
    assert config["model"]["name_or_path"] == "c"
    assert "adapt" not in config["model"]
    assert "model.adapt: lora_enable, lora_r of the script say what trains" in shown
    assert "Keys of train_mem.py itself" in shown
    assert "version: v1" in text
    assert "torchrun --nproc_per_node: $GPUS" in shown


def test_secrets_are_not_written(migrate):
    words = "WANDB_API_KEY=abc123 MY_TOKEN=abc123 swift sft --model a --hub_token abc123"
    _, text, shown = migrate("--", *words.split(), "--swanlab_token", "abc123", "--my_api_key", "abc123")
    assert "hub_token: (not shown)" in shown
    written = text.partition("\nmodel:")[2]  # the head has the command as it was typed
    assert "abc123" not in written + shown


@pytest.mark.parametrize(
    ("model", "side"), [("Qwen/Qwen3-VL-4B-Instruct", 32), ("Qwen/Qwen2.5-VL-3B-Instruct", 28)]
)
def test_pixels_in_tokens(migrate, model, side):
    """A token of Qwen3-VL has 32² pixels, of Qwen2.5-VL 28²."""
    words = f"IMAGE_MAX_TOKEN_NUM=1024 VIDEO_MAX_TOKEN_NUM=128 FPS_MAX_FRAMES=16 swift sft --model {model}"
    config, text, _ = migrate("--", *words.split())
    assert config["data"]["max_pixels"] == 1024 * side**2
    assert config["data"]["video"] == {"max_frames": 16, "max_pixels_per_frame": 128 * side**2}
    assert "IMAGE_MAX_TOKEN_NUM" in text


def test_what_was_held_out_by_versions_3(migrate):
    words = ["swift", "sft", "--model", "a", "--dataset", "data/pets.jsonl"]
    assert "3.0 to 3.5 validated on 1%" in migrate("--", *words, "--train_type", "lora")[2]
    assert "3.0 to 3.5 validated on 1%" not in migrate("--", *words, "--tuner_type", "lora")[2]


def test_mixtures_of_alignment_handbook(migrate):
    sources = [{"id": "user/a", "config": "c", "split": "train_sft", "columns": ["messages"], "weight": 0.5}]
    given = {"dataset_mixture": {"datasets": sources, "test_split_size": 0.1}, "chat_template": "{{ x }}"}
    Path("a.yaml").write_text(yaml.safe_dump({**given, "model_name_or_path": "b"}))
    config, _, shown = migrate("a.yaml")
    arguments = {"path": "user/a", "split": "train_sft", "config": "c"}
    assert config["data"]["train"] == {"class_path": "HFDataset", "init_args": arguments}
    assert config["data"]["val"] == "10%"
    assert config["model"]["chat_template"] == "{{ x }}"
    assert "datasets.fraction: 0.5" in shown


def test_earlier_keys_of_llama_factory(migrate):
    given = {
        "stage": "sft",
        "finetuning_type": "full",
        "image_resolution": 262144,
        "train_mm_proj_only": True,
    }
    given |= {"model_name_or_path": "Qwen/a", "dataset": "b", "dataset_dir": "c", "max_samples": 9}
    Path("a.json").write_text(json.dumps(given))
    config, _, shown = migrate("a.json")
    assert config["model"]["adapt"] == {"projector": "full"}
    assert config["data"]["max_pixels"] == 262144
    assert "dataset is b, the first 9 rows of each" in shown
