"""A migrated run is the run that it was: against transformers' Trainer and PEFT themselves."""

import copy
import csv
import json
from pathlib import Path
from pydoc import locate

import PIL.Image
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from lightning_vlm.migrate.trainer import OPTIMIZERS
from lightning_vlm.models.loading.load import load_model, load_processor
from lightning_vlm.models.parts import find_parts
from lightning_vlm.models.plan.adapt import adapt, trainable_names
from lightning_vlm.run import run
from tests.migrate.conftest import SAMPLES, rows

STEPS = 3


def samples(processor):
    """Inputs and labels of the drawn samples, by the processor alone: the answer and its end are learned."""
    for picture, ask, answer in rows():
        content = [{"type": "image", "image": picture}, {"type": "text", "text": ask}]
        turns = [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
        options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
        whole = processor.apply_chat_template(turns, **options)
        asked = processor.apply_chat_template(turns[:1], add_generation_prompt=True, **options)
        labels = whole["input_ids"].clone()
        labels[:, : asked["input_ids"].shape[1]] = -100
        (ends,) = (labels[0] == processor.tokenizer.eos_token_id).nonzero(as_tuple=True)
        labels[:, int(ends[-1]) + 1 :] = -100
        yield {**{name: tensor[0] for name, tensor in whole.items()}, "labels": labels[0]}


def collate(batch, padding):
    longest = max(len(one["labels"]) for one in batch)
    filling = {"input_ids": padding, "attention_mask": 0, "labels": -100}
    columns = {}
    for name in batch[0]:
        tensors = [one[name] for one in batch]
        if name in filling:
            fill = filling[name]
            tensors = [torch.nn.functional.pad(one, (0, longest - len(one)), value=fill) for one in tensors]
        columns[name] = torch.stack(tensors)
    return columns


class Recording(Trainer):
    """Trainer that notes the learning rate of each step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rates = []

    def training_step(self, *args, **kwargs):
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        return super().training_step(*args, **kwargs)


@pytest.mark.parametrize("kind", ["linear", "cosine_with_min_lr"])
def test_a_run_of_trainer_ends_with_the_same_weights(migrate, kind):
    """A step has all samples, so that their order makes no difference; answers have unlike lengths."""
    arguments = TrainingArguments(
        "out",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=SAMPLES // 2,
        learning_rate=3e-3,
        weight_decay=0.02,
        adam_beta2=0.98,
        adam_epsilon=1e-4,  # so that rounding doesn't show where gradients are zero but for it
        lr_scheduler_type=kind,
        lr_scheduler_kwargs={"min_lr": 3e-4} if kind.endswith("min_lr") else None,
        warmup_steps=2,
        num_train_epochs=STEPS,
        max_grad_norm=0.5,
        save_strategy="no",
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        label_names=["labels"],
    )
    processor = load_processor("drawn-vlm")
    model = load_model("drawn-vlm").model.train()
    padding = processor.tokenizer.pad_token_id
    trainer = Recording(model, arguments, lambda batch: collate(batch, padding), list(samples(processor)))
    trainer.train()
    Path("args.json").write_text(json.dumps({"training_args": arguments.to_dict()}))

    _, text, _ = migrate("args.json")
    assert "Unknown" not in text
    monitor = "lightning.pytorch.callbacks.LearningRateMonitor"
    given = ["--model.name_or_path", "drawn-vlm", "--data.train", "data/pets.jsonl"]
    given += ["--model.no_gradient_needed", "['*.post_layernorm']"]
    mine = run(["fit", "--config", "my.yaml", *given, "--trainer.callbacks+", monitor])

    assert mine.trainer.global_step == trainer.state.global_step == STEPS
    with open("out/args/version_0/metrics.csv") as file:
        logged = list(csv.DictReader(file))
    (column,) = {name for name in logged[0] if name.startswith("lr-") and name.endswith("rest")}
    rates = [float(row[column]) for row in logged if row[column]][:: SAMPLES // 2]  # of each batch
    assert rates == pytest.approx(trainer.rates[:: SAMPLES // 2], rel=1e-6)
    for column, key in (("train/loss", "loss"), ("train/grad_norm", "grad_norm")):
        steps = [float(row[column]) for row in logged if row[column]]
        said = [one[key] for one in trainer.state.log_history if key in one]
        assert steps == pytest.approx(said, rel=1e-4), key
    theirs = dict(model.named_parameters())
    ours = dict(mine.model.model.named_parameters())
    assert {name for name, one in ours.items() if one.requires_grad} == {*theirs}
    moved = 0
    before = dict(load_model("drawn-vlm").model.named_parameters())
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-4, atol=1e-5)  # Adam enlarges rounding
        moved += float((weight - before[name]).abs().max()) > 1e-4
    assert moved > 0.9 * len(theirs)


@pytest.mark.parametrize("name", sorted({*OPTIMIZERS} - {"adamw_hf"}))  # of earlier versions
def test_optimizers_are_those_of_trainer(migrate, name):
    given = {"optim": name, "learning_rate": 3e-4}
    Path("args.json").write_text(json.dumps(given))
    config = migrate("args.json")[0]["model"]["optimizer"]
    weights = [torch.nn.Parameter(torch.zeros(2))]
    kind, options = Trainer.get_optimizer_cls_and_kwargs(TrainingArguments("out", use_cpu=True, **given))
    ours = locate(config["class_path"])(weights, **config["init_args"])
    assert settings_of(ours) == settings_of(kind(weights, **options))


def settings_of(optimizer):
    """The settings that decide an update; those of bitsandbytes also say in how many bits and where."""
    found = {key: value for key, value in optimizer.defaults.items() if key in ("lr", "betas", "eps")}
    found["betas"] = tuple(found.get("betas", ()))
    bits = getattr(getattr(optimizer, "args", None), "optim_bits", None)
    return {**found, "bits": bits, "paged": getattr(optimizer, "is_paged", None)}


@pytest.mark.parametrize(
    "target",
    ["all-linear", ["q_proj", "v_proj"], ["fc1", "out_proj", "o_proj"]],
    ids=["all", "names", "tower"],
)
def test_loras_of_trl_are_those_of_peft(migrate, target):
    given = {"use_peft": True, "lora_r": 4, "lora_target_modules": target, "model_name_or_path": "drawn-vlm"}
    Path("trl.json").write_text(json.dumps(given))
    config, _, _ = migrate("trl.json")
    ours = load_model("drawn-vlm").model
    adapt(ours, config["model"]["adapt"], find_parts(ours))
    peft = get_peft_model(load_model("drawn-vlm").model, LoraConfig(r=4, target_modules=target))
    theirs = {name for name, one in peft.named_parameters() if one.requires_grad}
    assert trainable_names(ours) == {name.removeprefix("base_model.model.") for name in theirs}


def test_what_the_page_says_of_trl_is_what_its_collator_does():
    """docs/migrate/trl.md: all tokens of a sample are learned, placeholders too; and answers are cut off."""
    pytest.importorskip("trl")
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling as Collator

    processor = load_processor("drawn-vlm")
    picture = PIL.Image.new("RGB", (64, 64), "red")
    asked = [{"type": "image"}, {"type": "text", "text": "What colour is it?"}]
    answer = [{"type": "text", "text": "red"}]
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    learned = Collator(processor)([{"images": [picture], "messages": turns}])["labels"][0]
    placeholder = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    assert (len(learned), int((learned != -100).sum())) == (32, 32)
    assert int((learned == placeholder).sum()) == 16
    long = [{"role": "assistant", "content": "red " * 20}]
    counted = []
    for length in (None, 40):
        pair = {"images": [picture], "prompt": turns[:1], "completion": long}
        collator = Collator(processor, max_length=length, completion_only_loss=True)
        counted.append(int((collator([copy.deepcopy(pair)])["labels"] != -100).sum()))
    assert counted == [23, 11]
