"""Adapters on quantised weights: as on the same weights in float32, trained, resumed, on two ranks."""

import json
from pathlib import Path

import PIL.Image
import pytest
import torch
import yaml
from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant
from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.cli import main
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from lightning_vlm.models.loading.quantize import Quantization, quantised_layers
from lightning_vlm.optim import Constant
from tests.support import tiny

pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
FAMILIES = tuple(tiny.FAMILIES)
PLAN = {"projector": "full", "language": {"lora": {"r": 2, "dropout": 0.2}}}
NF4 = Quantization("nf4", compute_dtype="float32")


def weights_of(one):
    return {name: p.detach().clone() for name, p in one.named_parameters()}


def values(layer):
    """What a quantised layer holds, by the functions of bitsandbytes."""
    if layer.weight.dtype == torch.int8:
        scales = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB
        return int8_vectorwise_dequant(layer.weight.data, scales)
    return dequantize_4bit(layer.weight.data, layer.weight.quant_state)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_quantised_model_is_the_model_with_rounded_weights(module, batch_of, family):
    """Logits, and gradients of LoRA in vision and language, are those of a float model with these weights."""
    parts = ["vision", "language"] + ([] if family in ("gemma3", "ovis2") else ["projector"])
    plan = {"vision": {"lora": {"r": 2}}, "language": {"lora": {"r": 2}}}
    one = module(family, adapt=plan, quantization=Quantization("nf4", parts, compute_dtype="float32"))
    plain = module(family, adapt=plan)
    batch = batch_of(plain, size=2)
    layers = quantised_layers(one.model)
    assert len(layers) >= 20
    with torch.no_grad():
        before = plain.model(**batch.inputs, use_cache=False).logits
        for name in layers:
            plain.model.get_submodule(name).weight.copy_(values(one.model.get_submodule(name)))
        for each in (one, plain):
            for at, weight in enumerate(p for p in each.parameters() if p.requires_grad):
                weight.normal_(std=0.05, generator=torch.Generator().manual_seed(at))
        logits = [each.model(**batch.inputs, use_cache=False).logits for each in (one, plain)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, logits[0], rtol=1e-2, atol=1e-3)
    for each in (one, plain):
        each.loss_sums(batch).loss_sum.backward()
    expected = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in one.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max(), msg=name
        )


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_int8_is_that_up_to_the_rounding_of_what_goes_in(module, batch_of, family, caplog):
    one, plain = (module(family, adapt=PLAN, quantization=method) for method in ("int8", None))
    with torch.no_grad():
        batch = batch_of(plain)
        for name in quantised_layers(one.model):
            plain.model.get_submodule(name).weight.copy_(values(one.model.get_submodule(name)))
        logits = [each.model(**batch.inputs, use_cache=False).logits for each in (one, plain)]
    off = (logits[0] - logits[1]).norm() / logits[1].norm()
    assert 1e-4 < off < 3e-2
    assert not caplog.records  # each call of each layer would tell that it casts


@pytest.mark.parametrize(("family", "method"), [*((f, "nf4") for f in FAMILIES), ("qwen2_5_vl", "int8")])
def test_each_family_learns(module, make_quiet, listed, family, method):
    """Under gradient checkpointing. The first step stops the run where LoRA gets no gradient."""
    # The first stages of FastVLM's tower have no linear layer.
    layers = "vision.layers[-1:]" if family == "fast_vlm" else "vision.layers[:1]"
    adapt = {"language": {"lora": {"r": 2}}, layers: {"lora": {"r": 2}}}
    # Those that have less of it say so.
    checkpointing = family not in ("mllama", "fast_vlm") and method == "nf4"
    one = module(family, adapt=adapt, quantization=method, gradient_checkpointing=checkpointing)
    one.schedule = Constant()
    start = weights_of(one)
    drawn = Drawn("train", size=20, tasks=["vqa"], rounds=1)
    source = listed([sample for sample in drawn if sample.messages[0].role == "user"][:2])
    make_quiet(max_steps=2).fit(one, VLMDataModule(train=source, batch_size=1))
    for name, weight in one.named_parameters():
        assert torch.equal(weight, start[name]) is not weight.requires_grad, name


class Losses(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *args):
        self.seen.append(trainer.callback_metrics["train/loss"].item())


def fit(make_quiet, one, folder, ckpt_path=None, **options):
    seed_everything(1)
    keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    losses = Losses()
    trainer = make_quiet(enable_checkpointing=True, callbacks=[keep, losses], **{"max_epochs": 6, **options})
    data = VLMDataModule(train=Drawn("train", size=4), val=Drawn("val", size=2), batch_size=2)
    trainer.fit(one, data, ckpt_path=ckpt_path, weights_only=True)
    return weights_of(one), losses.seen


OPTIMIZERS = {
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=1e-2),
    "AdamW8bit": lambda groups: AdamW8bit(groups, lr=1e-2, min_8bit_size=64),
    "PagedAdamW8bit": lambda groups: PagedAdamW8bit(groups, lr=1e-2, min_8bit_size=64),
}


@pytest.fixture(scope="module", params=["nf4 AdamW", "nf4 AdamW8bit", "nf4 PagedAdamW8bit", "int8 AdamW"])
def trained(request, module, make_quiet, tmp_path_factory):
    """A run of 12 steps, with validation on the way."""
    method, optimizer = request.param.split()
    folder = tmp_path_factory.mktemp("trained")

    def fresh():
        choice = NF4 if method == "nf4" else method
        return module("llava", adapt=PLAN, quantization=choice, optimizer=OPTIMIZERS[optimizer])

    one = fresh()
    start = weights_of(one)
    end, losses = fit(make_quiet, one, folder)
    return one, fresh, start, end, losses, folder


def test_the_loss_falls_and_quantised_weights_stay_bit_for_bit(trained, request):
    eight_bit = "8bit" in request.node.callspec.params["trained"]
    one, _, start, end, losses, _ = trained
    assert sum(losses[-2:]) < sum(losses[:2]) - 0.4
    trains = {name for name, p in one.named_parameters() if p.requires_grad}
    assert {name for name in start if not torch.equal(start[name], end[name])} == trains
    assert sum(not p.is_floating_point() for p in one.parameters()) == 14
    state = next(iter(one.optimizers().optimizer.state.values()))
    assert any(value.dtype == torch.uint8 for value in state.values() if torch.is_tensor(value)) == eight_bit


def test_a_resumed_run_is_the_same_bit_for_bit(trained, make_quiet, tmp_path):
    _, fresh, _, end, _, folder = trained
    resumed, _ = fit(make_quiet, fresh(), tmp_path, folder / "step=5.ckpt")
    for name, weight in end.items():
        assert torch.equal(resumed[name], weight), name


def test_a_checkpoint_loads_onto_its_quantised_base_and_onto_that_in_float(trained, module, batch_of):
    one, _, _, end, _, folder = trained
    path = folder / "step=12.ckpt"
    assert not any("base_layer" in name for name in torch.load(path, weights_only=True)["state_dict"])
    again = VLMModule.load_from_checkpoint(path)
    assert again.source.quantization == one.source.quantization
    batch = batch_of(one)
    with torch.no_grad():
        logits = [each.model.eval()(**batch.inputs).logits for each in (one, again)]
    assert torch.equal(*logits)
    plain = VLMModule.load_from_checkpoint(path, quantization=None)
    assert not quantised_layers(plain.model)
    for name, weight in plain.named_parameters():
        if weight.requires_grad:
            assert torch.equal(weight, end[name])
    with torch.no_grad():
        off = (plain.model.eval()(**batch.inputs).logits - logits[0]).norm() / logits[0].norm()
    assert 1e-3 < off < 0.5


def test_another_base_or_quantisation_is_refused(trained, tmp_path):
    one, _, _, _, _, folder = trained
    path = folder / "step=12.ckpt"
    other = str(tiny.build("llava", tmp_path, seed=9))
    for options in ({}, {"quantization": None}):
        with pytest.raises(UserError, match=r"model\.name_or_path .* has other weights"):
            VLMModule.load_from_checkpoint(path, name_or_path=other, **options)
    switched = "int8" if one.source.quantization.method == "nf4" else "nf4"
    with pytest.raises(UserError, match=f"model.quantization gives 14 weights in {switched}"):
        VLMModule.load_from_checkpoint(path, quantization=switched)


def test_weights_in_full_cannot_train(module):
    for selector in ("language", "*.q_proj"):  # refused without the model, and with it
        with pytest.raises(UserError, match=r"quantised weights.*can't train; use lora"):
            module("llava", adapt={selector: "full"}, quantization="nf4")


def test_the_plan_by_name_quantises(folder):
    assert VLMModule(str(folder("llava")), adapt="qlora").source.quantization == Quantization("nf4")
    given = VLMModule(str(folder("llava")), adapt="qlora", quantization="int8")
    assert given.source.quantization.method == "int8"
    assert VLMModule(str(folder("llava")), adapt="lora").source.quantization is None


def test_bfloat16(module, make_quiet, tmp_path):
    """As on a GPU: a model in bfloat16, autocast, and weights that are multiplied in bfloat16."""
    one = module("qwen2_5_vl", adapt=PLAN, quantization="nf4", dtype="bfloat16")
    start = weights_of(one)
    _, losses = fit(make_quiet, one, tmp_path, precision="bf16-mixed", max_epochs=2)
    assert losses[-1] < losses[0]
    frozen = [(name, p) for name, p in one.named_parameters() if not p.requires_grad]
    assert all(torch.equal(p, start[name]) and p.dtype == start[name].dtype for name, p in frozen)


def test_replicas_agree(on_two_ranks, module, make_quiet):
    plan = {
        "projector": "full",
        "language": {"lora": {"r": 2}},
    }  # without dropout, which differs between ranks
    methods = ("nf4", "int8")
    module("llava")  # its folder, before the processes part

    def fit_all():
        ends = {}
        for method in methods:
            one = module("llava", adapt=plan, quantization=NF4 if method == "nf4" else method)
            data = VLMDataModule(train=Drawn("train", size=8), val=Drawn("val", size=2), batch_size=1)
            make_quiet(max_epochs=2, devices=2, strategy="ddp").fit(one, data)
            ends[method] = weights_of(one)
        return ends

    first, second = on_two_ranks(fit_all)
    for method in methods:
        start = weights_of(module("llava", adapt=plan, quantization=NF4 if method == "nf4" else method))
        for name, weight in first[method].items():
            assert torch.equal(weight, second[method][name]), name
            assert torch.equal(weight, start[name]) is not ("lora_" in name or "projector" in name), name


QUANTISATIONS = ["nf4", {"method": "nf4", "parts": ["language.layers[:1]"], "compute_dtype": "float32"}]


@pytest.mark.parametrize("quantization", QUANTISATIONS)
def test_from_a_config(folder, tmp_path, monkeypatch, capsys, quantization):
    """With an optimizer of bitsandbytes by its class path; what was trained can be scored."""
    monkeypatch.chdir(tmp_path)
    PIL.Image.new("RGB", (40, 30), "red").save("cat.png")
    question = [{"type": "image", "path": "cat.png"}, {"type": "text", "text": "What?"}]
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "cat"}]
    Path("data.jsonl").write_text("\n".join([json.dumps({"messages": turns})] * 4))
    config = {
        "model": {
            "name_or_path": str(folder("smolvlm")),
            "adapt": "qlora",
            "quantization": quantization,
            "optimizer": {
                "class_path": "bitsandbytes.optim.PagedAdamW8bit",
                "init_args": {"lr": 0.01, "weight_decay": 0.1},
            },
        },
        "data": {"train": "data.jsonl", "test": "data.jsonl", "batch_size": 2},
        "trainer": {
            "max_steps": 2,
            "logger": False,
            "accelerator": "cpu",
            "callbacks": [
                {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "runs", "filename": "last"}}
            ],
        },
    }
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "config.yaml"]) == 0, capsys.readouterr().err
    saved = torch.load("runs/last.ckpt", weights_only=True)
    assert len(saved["lightning_vlm"]["quantised"]) == (14 if quantization == "nf4" else 7)
    assert main(["test", "--config", "config.yaml", "--ckpt_path", "runs/last.ckpt"]) == 0
    assert "perplexity" in capsys.readouterr().out
    for wrong, said in (
        ("nf5", "quantization: found nf5; expected nf4, int8, or some of the keys"),
        ({"method": "nf4", "bits": 4}, "there is no key model.quantization.bits"),
        ({"parts": ["visoin"]}, "quantization.parts: selector 'visoin'"),
    ):
        config["model"]["quantization"] = wrong
        Path("config.yaml").write_text(yaml.safe_dump(config))
        assert main(["fit", "--config", "config.yaml"]) == 2
        (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("lightning-vlm: ")]
        assert said in line
