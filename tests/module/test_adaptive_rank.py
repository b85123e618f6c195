"""AdaptiveLoRARank in a VLMModule: resumed, loaded, exported, beside other callbacks."""

import json
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_vlm_callbacks import AdaptiveLoRARank, GradNorm
from lightning_vlm_callbacks.adaptive_lora_rank.lora_layers import RANKS, lora_layers
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.cli import main
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.models.loading.quantize import Quantization
from lightning_vlm.optim import Constant


def plan_of(**lora):
    return {
        "projector": "full",
        "vision.layers[0:2]": {"lora": {"r": 2, **lora}},
        "language": {"lora": {"r": 4, **lora}},
    }


PLAN = plan_of(dropout=0.1)
NF4 = Quantization("nf4", ["language"], compute_dtype="float32")


class Widths(Callback):
    """What is clipped, and whether all that trains has a gradient, in each step."""

    def __init__(self):
        self.missing, self.unclipped = [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        trains = [one for one in module.parameters() if one.requires_grad]
        self.missing += [one for one in trains if one.grad is None or one.grad.shape != one.shape]
        clipped = {id(one) for group in module.steps.clip_groups[0].values() for one in group}
        self.unclipped += [one for one in trains if id(one) not in clipped]


@pytest.fixture
def fit(module, make_quiet):
    def run(folder, callbacks=(), ckpt_path=None, least=1, plan=PLAN, **options):
        trainer_options = {key: options.pop(key) for key in ("strategy", "devices") if key in options}
        one = module("llava", adapt=plan, optimizer=partial(torch.optim.AdamW, lr=3e-3), **options)
        one.schedule = Constant()
        rank = AdaptiveLoRARank(min_rank=least, max_rank=8, multiple_of=1, start=2, every=2, until=4)
        saves = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        watch = Widths()
        trainer = make_quiet(
            max_steps=6,
            callbacks=[rank, *callbacks, watch, saves],
            enable_checkpointing=True,
            **trainer_options,
        )
        data = VLMDataModule(train=Drawn("train", size=12, seed=1), batch_size=2, shuffle=False)
        trainer.fit(one, data, ckpt_path=ckpt_path, weights_only=True)
        assert not watch.missing
        assert not watch.unclipped
        return one

    return run


def ranks_of(one):
    return {name: lora.rank for name, lora in lora_layers(one).items()}


def state(one):
    return {name: weight for name, weight in one.state_dict().items() if name in one.trained.names}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name


@pytest.mark.parametrize("least", [1, 0])
@pytest.mark.parametrize("options", [{}, {"quantization": NF4}], ids=["float", "nf4"])
def test_resumed_is_uninterrupted(fit, tmp_path, least, options):
    whole = fit(tmp_path, least=least, **options)
    ranks = ranks_of(whole)
    assert len(set(ranks.values())) > 1
    for step in (1, 3, 5):
        resumed = fit(tmp_path / "again", least=least, ckpt_path=tmp_path / f"step={step}.ckpt", **options)
        assert ranks_of(resumed) == ranks
        assert_equal(state(whole), state(resumed))
    loaded = VLMModule.load_from_checkpoint(tmp_path / "step=6.ckpt", weights_only=True)
    assert ranks_of(loaded) == ranks
    assert_equal(state(whole), state(loaded))


def test_validated_as_trained(fit, tmp_path, make_quiet, module):
    """By a Trainer without the callback, on a module of the first ranks."""
    whole = fit(tmp_path)
    data = VLMDataModule(val=Drawn("val", size=4), batch_size=4)
    losses = []
    for one, path in ((whole, None), (module("llava", adapt=PLAN), tmp_path / "step=6.ckpt")):
        (scores,) = make_quiet().validate(one, data, ckpt_path=path, weights_only=True, verbose=False)
        losses.append(scores["val/loss"])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("lora", "merged"), [({}, True), ({"rslora": True}, False), ({"init": "pissa"}, False)], ids=str
)
def test_exported(fit, tmp_path, lora, merged, capsys, warm_python):
    """The proof of the export is its own: a process without us compares logits, answers and weights."""
    whole = fit(tmp_path, least=1 if lora else 0, plan=plan_of(**lora))
    exports = {"adapter": ["--adapter-only"], **({"merged": []} if merged else {})}
    for name, more in exports.items():
        path = str(tmp_path / "step=6.ckpt")
        arguments = ["export", "--ckpt_path", path, "--out", str(tmp_path / name), *more]
        assert main(arguments) == 0, capsys.readouterr()
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert len(set(config["rank_pattern"].values())) > 1
    base = AutoModelForImageTextToText.from_pretrained(whole.name_or_path)
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    found = {name.removeprefix("base_model."): lora.rank for name, lora in lora_layers(loaded).items()}
    first = {"vision": 2, "language": 4} if lora.get("init") else {}  # PiSSA's first rank comes on top
    expected = {
        name: rank + next((more for part, more in first.items() if part in name), 0)
        for name, rank in ranks_of(whole).items()
    }
    assert found == expected


def test_two_ranks_agree(fit, tmp_path, on_two_ranks):
    def run():
        one = fit(tmp_path, strategy="ddp", devices=2)
        return [state(one), ranks_of(one)]

    first, second = on_two_ranks(run)
    assert first[1] == second[1]
    assert len(set(first[1].values())) > 1
    assert_equal(first[0], second[0])


def test_beside_gradnorm(fit, tmp_path):
    """Its layer, a LoRA B, changes its width."""
    gradnorm = GradNorm(layer="language.layers[0].self_attn.q_proj.lora_B.default")
    whole = fit(tmp_path, callbacks=[gradnorm])
    assert whole.tasks.weights.unique().numel() > 1
    assert torch.load(tmp_path / "step=6.ckpt", weights_only=True)[RANKS] == ranks_of(whole)
