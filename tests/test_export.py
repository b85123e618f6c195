"""Exported folders: proved by a process with plain transformers and PEFT, over families and methods."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from lightning_vlm import VLMModule
from lightning_vlm.cli import main
from lightning_vlm.errors import UserError
from lightning_vlm.export import command
from lightning_vlm.export.merge import merge, wrong_weights
from lightning_vlm.export.proof import prove
from lightning_vlm.export.trained import Asked, load_trained
from tests.support import tiny

pytestmark = pytest.mark.filterwarnings("ignore:Using Rank-Stabilized LoRA with rank_pattern")
LORA = {"projector": "full", "language": {"lora": {"r": 2}}}
TOWER = {"vision": {"lora": {"r": 2, "alpha": 3}}, "language.layers[0:1]": {"lora": {"r": 4}}}
MIXED = {**TOWER, "language.layers[1:2]": "full", "head": {"lora": {"r": 2}}}
ADAPTER = {"projector": "full", "language": {"adapter": {"reduction": 4}}}
BOTH = {
    **LORA,
    "language": {"lora": {"r": 2, "modules": ["q_proj"]}},
    "vision": {"adapter": {"reduction": 4}},
}


def lora(**settings):
    return {"language": {"lora": {"r": 2, **settings}}}


VARIANTS = {
    "dora": ("llava", lora(dora=True), {}, (False, True)),
    "rslora": ("qwen2_vl", lora(rslora=True), {}, (False, True)),
    "pissa": ("llava", lora(init="pissa"), {}, (False, True)),
    "pissa-niter-rslora": ("llava", lora(init="pissa_niter_4", rslora=True), {}, (False, True)),
    "olora": ("gemma3", lora(init="olora"), {}, (False, True)),
    "dora-pissa": ("llava", lora(init="pissa", dora=True), {}, (False,)),
    "orthogonal": ("smolvlm", lora(init="orthogonal"), {}, (False, True)),
    "ia3": ("qwen2_5_vl", {"language": "ia3", "projector": "full"}, {}, (False, True)),
    "mixed, tied head": ("smolvlm", {**TOWER, "language.layers[1:2]": "full"}, {}, (False, True)),
    "mixed, own head": ("llava", MIXED, {}, (False, True)),
    "full": ("qwen3_vl", "full", {}, (False,)),
    "full, tied": ("gemma3", "full", {}, (False,)),
    "new tokens": ("qwen2_vl", LORA, {"new_tokens": ["<loc_1>", "<loc_2>"]}, (False,)),
    "new tokens, tied": ("smolvlm", LORA, {"new_tokens": ["<loc_1>"]}, (False,)),
    "new tokens, uneven": ("mllama", LORA, {"new_tokens": ["<loc_1>"]}, (False,)),
    "bfloat16": ("llava", LORA, {"dtype": "bfloat16"}, (False, True)),
    "float16": ("qwen2_vl", LORA, {"dtype": "float16"}, (False, True)),
    "nf4": ("llava", LORA, {"quantization": "nf4"}, (False, True)),
    "int8": ("qwen2_5_vl", LORA, {"quantization": "int8"}, (False, True)),
    "chatml": ("smolvlm", LORA, {"chat_template": "chatml"}, (False, True)),
    "our adapters": ("llava", ADAPTER, {}, (True,)),
    "ours and LoRA": ("qwen2_vl", BOTH, {}, (True,)),
    "cross-modal": ("smolvlm", {"language.layers[1:2]": {"cross_modal_adapter": {"heads": 2}}}, {}, (True,)),
}
NO_PLACE = ("llava_next", "llava_onevision")
"""Their projector holds a bare parameter, `image_newline`, which PEFT can't save."""


@pytest.fixture(scope="module")
def checkpoint_of(model_folder, tmp_path_factory):
    """A checkpoint of a plan whose trained weights are far from their start."""

    def make(family, plan, **options):
        torch.manual_seed(0)
        if family in tiny.FAMILIES and tiny.FAMILIES[family].template is None:
            options.setdefault("chat_template", "plain")
        module = VLMModule(str(model_folder(family)), adapt=plan, **options)
        module.configure_model()
        with torch.no_grad():
            for name, one in module.named_parameters():
                if one.requires_grad:
                    change = torch.randn_like(one, dtype=torch.float32) * 0.05
                    rows = module._new_rows
                    if rows and ("embed" in name or "lm_head" in name):  # their other rows don't train
                        change[: rows.start] = 0
                    one.add_(change.to(one.dtype))
        folder = tmp_path_factory.mktemp("trained")
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.strategy.connect(module)
        module.trainer = trainer
        trainer.save_checkpoint(folder / "last.ckpt")
        return folder / "last.ckpt"

    return make


@pytest.fixture(scope="module")
def write(checkpoint_of, tmp_path_factory):
    """A folder that isn't proved yet."""

    def make(family, plan, adapter_only, dtype="auto", shard="5GB", **options):
        asked = Asked(checkpoint_of(family, plan, **options), adapter_only)
        folder = tmp_path_factory.mktemp("exported")
        return command.write(load_trained(asked), folder, asked, None, 3, dtype, shard)

    return make


@pytest.fixture(scope="module")
def proofs(write):
    """All folders, loaded in one fresh process."""
    cases = {}
    for family in tiny.FAMILIES:
        for only in (False, True):
            if not (only and family in NO_PLACE):
                cases[family, only] = write(family, LORA, only).case
    for name, (family, plan, options, kinds) in VARIANTS.items():
        for only in kinds:
            cases[name, only] = write(family, plan, only, **options).case
    cases["sharded", False] = write("llava", LORA, False, shard="100KB").case
    cases["to bfloat16", False] = write("smolvlm", LORA, False, dtype="bfloat16").case
    return dict(zip(cases, zip(cases.values(), prove(list(cases.values())), strict=True), strict=True))


MANY = [
    *((family, False) for family in tiny.FAMILIES),
    *((family, True) for family in tiny.FAMILIES if family not in NO_PLACE),
    *((name, only) for name, variant in VARIANTS.items() for only in variant[3]),
    ("sharded", False),
    ("to bfloat16", False),
]


@pytest.mark.parametrize(("name", "adapter_only"), MANY)
def test_plain_libraries_make_of_it_what_was_trained(proofs, name, adapter_only):
    case, proof = proofs[name, adapter_only]
    assert proof.wrong == []
    assert proof.off <= 1e-5
    files = {file.name for file in case.folder.iterdir()}
    assert "processor_config.json" in files
    if adapter_only:
        assert "config.json" not in files
        assert files & {"adapter_model.safetensors", "vlm_adapters.safetensors"}
    else:
        assert "generation_config.json" in files
        config = json.loads((case.folder / "config.json").read_text())
        assert "quantization_config" not in config
    if name == "sharded":
        assert sum(file.endswith(".safetensors") for file in files) > 2


def test_what_was_trained_is_not_the_base(proofs, model_folder):
    """Else a folder of the base model would pass."""
    case, _ = proofs["llava", False]
    base = case._replace(folder=model_folder("llava"))
    (proof,) = prove([base])
    assert any("logits differ" in one for one in proof.wrong)
    assert any("other weights" in one for one in proof.wrong)


@pytest.mark.parametrize("rslora", [False, True])
def test_merged_weights_are_the_formula(write, checkpoint_of, model_folder, rslora):
    plan = {"language": {"lora": {"r": 4, "alpha": 6, "rslora": rslora}}}
    folder = write("llava", plan, False).case.folder
    saved = torch.load(checkpoint_of("llava", plan), weights_only=True)["state_dict"]
    files = (folder, model_folder("llava"))
    merged, base = (load_file(one / "model.safetensors") for one in files)
    assert merged.keys() == base.keys()
    adapted = {name.split(".lora_A")[0].split(".layers.")[1]: name for name in saved if ".lora_A." in name}
    found = 0
    for name in merged:
        key = name.split(".layers.")[-1].removesuffix(".weight")
        if "vision" in name or key not in adapted:
            assert torch.equal(merged[name], base[name]), name
            continue
        a, b = saved[adapted[key]].double(), saved[adapted[key].replace("lora_A", "lora_B")].double()
        expected = base[name].double() + 6 / (2 if rslora else 4) * b @ a
        torch.testing.assert_close(merged[name].double(), expected, rtol=1e-6, atol=1e-7)
        found += 1
    assert found == len(adapted) == 14


def test_pissa_becomes_lora_on_the_original_weights(proofs):
    case, _ = proofs["pissa", True]
    config = json.loads((case.folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (4, 8, True)


def _edit(file, change):
    held = json.loads(file.read_text())
    change(held)
    file.write_text(json.dumps(held))


def _one_bit(folder):
    file = folder / "model.safetensors"
    weights = load_file(file)
    (name,) = (name for name in weights if name.endswith("patch_embedding.weight"))
    weights[name].view(torch.int32).flatten()[3] ^= 1
    save_file(weights, file, metadata={"format": "pt"})


def _renamed(folder):
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["stray"] = weights.pop(next(iter(weights)))
    save_file(weights, file, metadata={"format": "pt"})


def _template(folder):
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text() + " ")


def _scale(folder):
    _edit(folder / "adapter_config.json", lambda one: one.update(lora_alpha=5, alpha_pattern={}))


def _loose(folder):
    """Targets by their last name, as PEFT users write them: they reach the tower too."""
    _edit(folder / "adapter_config.json", lambda one: one.update(target_modules=["q_proj", "k_proj"]))


BROKEN = {
    "a bit": (False, _one_bit, "other weights: model.vision_tower"),
    "a name": (False, _renamed, "missing keys"),
    "the template": (
        False,
        _template,
        "chat template",
    ),
    "the pictures": (
        False,
        lambda folder: _edit(
            folder / "processor_config.json",
            lambda one: one["image_processor"].update(image_mean=[0.1, 0.5, 0.5]),
        ),
        "pixel_values",
    ),
    "a setting of the model": (
        False,
        lambda folder: _edit(folder / "config.json", lambda one: one["text_config"].update(rms_norm_eps=0.1)),
        "logits differ",
    ),
    "the weights' file": (False, lambda folder: (folder / "model.safetensors").unlink(), "doesn't load"),
    "the scale": (True, _scale, "logits differ"),
    "where adapters go": (True, _loose, "adapter_model.safetensors"),
}


@pytest.fixture(scope="module")
def broken(write):
    """Two folders for each way to break one, all loaded in one process."""
    cases = []
    for only, harm, _ in BROKEN.values():
        case = write("llava", lora(), only).case
        harm(case.folder)
        cases.append(case)
    return dict(zip(BROKEN, prove(cases), strict=True))


@pytest.mark.parametrize("harm", BROKEN)
def test_a_folder_that_is_not_the_model_fails(broken, harm):
    assert any(BROKEN[harm][2] in one for one in broken[harm].wrong), broken[harm]


def test_a_wrong_merge_is_found_where_it_is(checkpoint_of):
    trained = load_trained(Asked(checkpoint_of("llava", LORA)))
    model = trained.module.model
    merged = merge(model)
    assert wrong_weights(model, merged) == []
    layer = "model.language_model.layers.1.mlp.up_proj.weight"
    with torch.no_grad():
        model.get_parameter(layer)[0, 0] += 0.01
        model.get_parameter("lm_head.weight")[0, 0] += 0.01
    found = wrong_weights(model, merged)
    assert [one.split()[0] for one in found] == [layer, "lm_head.weight"]


def command_line(*words):
    return main(["export", *map(str, words)])


def run_as_printed(*outputs):
    """Run the lines that exports end with, as printed, in one new process."""
    programs = [output[re.search("^(import|from) ", output, re.MULTILINE).start() :] for output in outputs]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(programs)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_command(checkpoint_of, tmp_path, capsys, monkeypatch, model_folder):
    """From a checkpoint to a table, and the lines that it prints do load the folder."""
    checkpoint = checkpoint_of("smolvlm", LORA)
    monkeypatch.chdir(tmp_path)
    out = Path("new", "out")
    assert command_line("--ckpt_path", checkpoint, "--out", out, "--samples", 2) == 0
    shown = capsys.readouterr().out
    assert "proved in a fresh process" in shown
    assert "logits off by" in shown
    assert f'AutoModelForImageTextToText.from_pretrained("{out}")' in shown
    assert AutoModelForImageTextToText.from_pretrained(out).config.use_cache
    assert [one.name for one in out.parent.iterdir()] == ["out"]
    adapters = Path("adapters")
    adapters.mkdir()  # an empty one may be there
    assert command_line("--ckpt_path", checkpoint, "--out", adapters, "--adapter-only", "--samples", 1) == 0
    with_peft = capsys.readouterr().out
    assert f'PeftModel.from_pretrained(model, "{adapters}")' in with_peft
    run_as_printed(shown, with_peft)
    base = AutoModelForImageTextToText.from_pretrained(model_folder("smolvlm"))
    merged = PeftModel.from_pretrained(base, adapters).merge_and_unload()
    other = AutoModelForImageTextToText.from_pretrained(out)
    for (name, one), same in zip(merged.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-5, atol=1e-6, msg=name)


def test_a_run_is_proved_on_its_own_data_and_scored_quantised(tmp_path, capsys, monkeypatch):
    """A real fit of the shipped model; what quantising loses is what `test` says of the quantised folder."""
    monkeypatch.chdir(tmp_path)
    words = {
        "model.name_or_path": "drawn-vlm",
        "model.adapt": "{language: {lora: {r: 2}}}",
        "data.train": "{class_path: Drawn, init_args: {split: train, size: 16}}",
        "data.batch_size": 8,
        "trainer.max_steps": 2,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.logger": "false",
    }
    assert main(["fit", *(f"--{key}={value}" for key, value in words.items())]) == 0
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    lines = [
        {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": "red"}]}
        for n in range(3)
    ]
    Path("own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ["--ckpt_path", checkpoint, "--data", "own.jsonl", "--samples", 2, "--check-quantized", "nf4"]
    assert command_line(*words, "--out", "out") == 0
    shown = capsys.readouterr().out
    assert "2 samples: logits off by" in shown
    assert "Quantised: 3 samples" in shown
    rows = {
        line.split("│")[1].strip(): line.split("│")[2:-1]
        for line in shown.split("\n")
        if line.count("│") == 6
    }
    plain, quantised, lost = (float(rows[name][0]) for name in ("as exported", "nf4", "lost"))
    assert plain != quantised
    assert lost == pytest.approx(quantised - plain, abs=2e-4)


@pytest.fixture
def bad(checkpoint_of, tmp_path, model_folder):
    """Words of commands that can't work."""
    out = ["--out", tmp_path / "out"]
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.6"}, foreign)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")

    def words(name):
        fine = ["--ckpt_path", checkpoint_of("llava", LORA)]
        ours = ["--ckpt_path", checkpoint_of("llava", ADAPTER)]
        return {
            "no checkpoint": ["--ckpt_path", tmp_path / "none.ckpt", *out],
            "foreign": ["--ckpt_path", foreign, *out],
            "out has files": [*fine, "--out", full],
            "out is a file": [*fine, "--out", tmp_path / "file"],
            "other base": [*fine, *out, "--name_or_path", model_folder("llava_next")],
            "base gone": [*fine, *out, "--name_or_path", tmp_path / "gone"],
            "adapters merged": [*ours, *out],
            "nothing to adapt": [
                "--ckpt_path", checkpoint_of("llava", "projector-only"), *out, "--adapter-only"
            ],
            "bare parameter": [
                "--ckpt_path", checkpoint_of("llava_next", LORA), *out, "--adapter-only"
            ],
            "no method": [*fine, *out, "--check-quantized", "nf5"],
            "adapters quantised": [*fine, *out, "--check-quantized", "nf4", "--adapter-only"],
            "both": [*fine, *out, "--adapter-only", "--merged"],
            "no data": [*fine, *out, "--data", tmp_path / "none.jsonl"],
            "no dtype": [*fine, *out, "--dtype", "int4"],
            "unknown key": [*fine, *out, "--adapters", "true"],
            "nothing": [],
        }[name]  # fmt: skip

    return words


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no checkpoint", "none.ckpt: found no such file"),
        ("foreign", "none of a VLMModule"),
        ("out has files", "found a folder with files"),
        ("out is a file", "found a file"),
        ("other base", "other weights"),
        ("base gone", "no such folder"),
        ("adapters merged", "use --adapter-only"),
        ("nothing to adapt", "leave --adapter-only out"),
        ("bare parameter", "image_newline"),
        ("no method", "expected one of: nf4, int8"),
        ("adapters quantised", "leave --adapter-only out"),
        ("both", "choose one"),
        ("no data", "none.jsonl"),
        ("no dtype", "dtype"),
        ("unknown key", "adapters"),
        ("nothing", "ckpt_path"),
    ],
)
def test_what_is_refused(bad, tmp_path, capsys, name, message):
    words = bad(name)
    capsys.readouterr()  # what loading the models of the checkpoints said
    before = sorted(tmp_path.rglob("*"))
    assert command_line(*words) == 2
    told = capsys.readouterr().err.strip()
    assert message in told
    assert told.count("\n") == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failed_proof_leaves_nothing(checkpoint_of, tmp_path, capsys, monkeypatch):
    """The folder is harmed between writing and proving."""
    write = command.write

    def harmed(*arguments):
        written = write(*arguments)
        _one_bit(written.case.folder)
        return written

    monkeypatch.setattr(command, "write", harmed)
    assert command_line("--ckpt_path", checkpoint_of("llava", LORA), "--out", tmp_path / "out") == 2
    assert "is not what was trained: other weights: model.vision_tower" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_new_tokens_have_no_adapter_folder(checkpoint_of):
    checkpoint = checkpoint_of("qwen2_vl", LORA, new_tokens=["<loc_1>"])
    with pytest.raises(UserError, match="new_tokens give the base model more rows"):
        load_trained(Asked(checkpoint, adapter_only=True))
