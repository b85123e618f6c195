"""A resumed run says what has changed, in one line each, and nothing if nothing has."""

import copy
import re
import warnings

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import AutoProcessor

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.batch.task_sampling import TaskSampling
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.data.video.sampling import VideoSampling
from lightning_vlm.errors import UserError
from lightning_vlm.export.trained import ExportRequest, load_trained
from lightning_vlm.export.write import write
from lightning_vlm.losses.weights import KindWeights
from lightning_vlm.optim import Constant, Linear


def sgd(groups):
    return torch.optim.SGD(groups, lr=0.01)


def adamw(groups):
    return torch.optim.AdamW(groups, lr=0.01, weight_decay=0.3)


@pytest.fixture(scope="module")
def fit(module, make_quiet, tmp_path_factory):
    """One run of an epoch of 2 steps, saved at its end; then runs from there with one thing changed."""
    folder = tmp_path_factory.mktemp("saved")
    given = {"adapt": {"projector": "full"}, "schedule": Constant(), "optimizer": adamw}
    base = module("llava", **given)
    assert base.processor

    def run(model=None, data=None, ckpt_path=folder / "last.ckpt", **trainer):
        seed_everything(trainer.pop("seed", 1), verbose=False)
        mine = module("llava", **{**given, **model}) if model else copy.deepcopy(base)
        place = folder if ckpt_path is None else None
        keep = ModelCheckpoint(place, filename="last", enable_version_counter=False)
        options = {"max_epochs": 2, "enable_checkpointing": True, "callbacks": [keep], **trainer}
        samples = {"train": Drawn("train", size=4), "batch_size": 2, **(data or {})}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fitted = make_quiet(**options)
            fitted.fit(mine, VLMDataModule(**samples), ckpt_path=ckpt_path, weights_only=True)
        said = [str(warning.message) for warning in caught]
        lines = [line.split(": ", 1)[1] for line in said if line.startswith("resumed with a change")]
        return fitted, lines, said

    _, lines, _ = run(ckpt_path=None)
    assert lines == []
    run(ckpt_path=None, max_epochs=1)  # which saves the file
    return run


STEPS = "the number of optimizer steps in the whole run is 4, was 2"


CASES = {
    "nothing but the length": ({}, []),
    "batch size": (
        {"data": {"batch_size": 1}},
        ["the number of optimizer steps in the whole run is 8, was 2", "data.batch_size is 1, was 2"],
    ),
    "accumulation": (
        {"accumulate_grad_batches": 2},
        ["trainer.accumulate_grad_batches is 2, was 1"],
    ),
    "data": (
        {"data": {"train": Drawn("train", size=4, seed=3)}},
        [r"data.train is 4 samples with .*, was 4 s.*"],
    ),
    "more data": (
        {"data": {"train": Drawn("train", size=6)}},
        [
            "the number of optimizer steps in the whole run is 6, was 2",
            r"data.train is 6 samples .*, was 4 .*",
        ],
    ),
    "sampling": (
        {"data": {"sampling": TaskSampling(temperature=2.0)}},
        [r"data.sampling is TaskSampling\(score='size', temperature=2.0.*\), was not set"],
    ),
    "videos": (
        {"data": {"video": VideoSampling(fps=2)}},
        ["data.video is VideoSampling(fps=2), was VideoSampling()"],
    ),
    "order": (
        {"data": {"seed": 5, "shuffle": False}},
        ["data.shuffle is False, was True", "data.seed is 5, was 0"],
    ),
    "learning rate": (
        {"model": {"optimizer": lambda groups: torch.optim.AdamW(groups, lr=0.002, weight_decay=0.3)}},
        ["model.optimizer: the learning rate is 0.002, was 0.01"],
    ),
    "weight decay": (
        {"model": {"optimizer": lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.2)}},
        ["model.optimizer: weight_decay of 'rest' is 0.2, was 0.3"],
    ),
    "schedule": (
        {"model": {"schedule": Linear()}},
        [r"model.schedule is Linear\(.*\), was Constant\(.*\)"],
    ),
    "weights": (
        {
            "model": {
                "token_weights": KindWeights(instruction=0.5),
                "task_weights": {"caption": 2.0},
                "clip": None,
            }
        },
        [
            "model.clip is not set, was 1.0",
            "model.token_weights.instruction is 0.5, was 0.0",
            "model.task_weights.caption is 2.0, was not set",
        ],
    ),
    "precision": ({"precision": "bf16-mixed"}, ["trainer.precision is bf16-mixed, was 32-true"]),
    "seed": ({"seed": 2}, ["seed_everything is 2, was 1; dropout continues with the checkpoint's"]),
}


@pytest.mark.parametrize(("change", "expected"), CASES.values(), ids=CASES)
def test_a_line_for_each_change(fit, change, expected):
    trainer, lines, _ = fit(**change)
    lines = [line for line in lines if line != STEPS]
    assert len(lines) == len(expected), lines
    for pattern in expected:
        pattern = pattern if ".*" in pattern else re.escape(pattern)
        assert any(re.fullmatch(pattern, line) for line in lines), (pattern, lines)
    for group in trainer.optimizers[0].param_groups:
        assert group["initial_lr"] == (0.002 if "learning rate" in str(expected) else 0.01)


def test_a_finished_run_says_so(fit):
    _, lines, said = fit(max_epochs=1)
    assert lines == []
    assert any("finished run (1 epochs, 2 steps)" in line and "max_epochs above 1" in line for line in said)
    _, _, said = fit(max_steps=2)
    assert any("raise trainer.max_steps above 2" in line for line in said)
    _, _, said = fit()
    assert not any("finished run" in line for line in said)


def test_pictures_of_another_size_than_in_training(make_quiet, module, model_folder, tmp_path):
    """A budget of pixels holds in the model's processor, is exported with it, and its absence is noticed."""
    file = tmp_path / "one.ckpt"
    drawn = {"batch_size": 2, "predict": Drawn("val", size=2)}
    small = VLMDataModule(train=Drawn("train", size=2), max_pixels=4704, **drawn)
    learner = VLMModule(str(model_folder("qwen2_5_vl")), adapt={"projector": "full"})
    trainer = make_quiet(max_steps=1)
    trainer.fit(learner, small)
    assert learner.processor.image_processor.size["longest_edge"] == 4704
    trainer.save_checkpoint(file)
    for data, count in ((small, 0), (VLMDataModule(**drawn), 1)):
        fresh = VLMModule(str(model_folder("qwen2_5_vl")), adapt={"projector": "full"})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make_quiet().predict(fresh, data, ckpt_path=file, weights_only=True)
        said = [str(warning.message) for warning in caught if "in training" in str(warning.message)]
        assert len(said) == count
    assert said == [
        "data.max_pixels is the processor's own, but max_pixels 4704 in training: the model sees its "
        "samples otherwise"
    ]
    (tmp_path / "out").mkdir()
    trained = load_trained(ExportRequest(file))
    written = write(trained, tmp_path / "out", ExportRequest(file))
    assert ("pictures", "the processor resizes them as trained (max_pixels 4704)") in written.rows
    saved = AutoProcessor.from_pretrained(tmp_path / "out")
    assert saved.image_processor.size["longest_edge"] == 4704


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"optimizer": sgd}, "found SGD, but the checkpoint has the state of AdamW; resume with AdamW"),
        ({"learning_rates": {"projector": 0.1}}, r"model.learning_rates: found groups .*projector \(2\)"),
    ],
)
def test_what_an_optimizer_cannot_take_over_is_refused(fit, model, said):
    with pytest.raises(UserError, match=said):
        fit(model=model)
