"""A model class of somebody's own with hooks, and a module of one's own, as docs/own-model.md has them."""

import copy
import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from torch.nn.functional import cross_entropy

from lightning_vlm import FamilyHooks, LogitOptions, VLMDataModule, VLMModule
from lightning_vlm.cli import main
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.errors import DataError, UserError
from lightning_vlm.kinds import Kind
from lightning_vlm.models.family_hooks import find_family, use_hooks
from lightning_vlm.models.loading.load import load_model
from lightning_vlm.models.parts import parameters_by_part
from tests.support import own_model

TEXT = (Path(__file__).parent.parent / "docs" / "own-model.md").read_text("utf-8")
FAMILY, TRAIN = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
(MODEL,) = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "max_steps": 2,
    "default_root_dir": "runs",
}
OPTIONS = yaml.safe_load(MODEL)["model"]


@pytest.fixture(scope="module")
def peek(tmp_path_factory):
    return own_model.build(tmp_path_factory.mktemp("own") / "peek-vlm")


@pytest.fixture
def project(peek, tmp_path, monkeypatch):
    """A folder with the model and the files of the docs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("peek-vlm").symlink_to(peek)
    Path("my_family.py").write_text(FAMILY)
    Path("train.py").write_text(TRAIN)
    yield tmp_path
    for name in ("my_family", "train"):
        sys.modules.pop(name, None)


@pytest.fixture
def batch_of():
    def make(module, size=3):
        data = VLMDataModule(
            train=Drawn("train", size=size), batch_size=size, shuffle=False, processor=module.processor
        )
        return next(iter(data.train_dataloader()))

    return make


def write_config(model, **trainer):
    data = {"train": {"class_path": "Drawn", "init_args": {"size": 4}}, "batch_size": 2}
    data["val"] = {"class_path": "Drawn", "init_args": {"split": "val", "size": 2}}
    config = {"model": model, "data": data, "trainer": {**QUIET, **trainer}}
    Path("my.yaml").write_text(yaml.safe_dump(config))


def test_a_class_without_known_parts_is_refused_with_the_way_out(peek):
    for load in (load_model, lambda path, **options: VLMModule(str(path), **options).configure_model()):
        with pytest.raises(UserError, match=r"found no vision encoder and no head .* with model\.family"):
            load(peek, trust_remote_code=True)


def test_without_its_token_no_picture_has_a_place(project):
    class Half(FamilyHooks):
        parts = find_family(OPTIONS["family"]).parts

    sys.modules["my_family"].Half = Half
    with pytest.raises(UserError, match="has an image_token"):
        assert VLMModule(**{**OPTIONS, "family": "my_family.Half"}).processor
    parts = "{% for part in message.content %}{{ part.text or '<peek>' }}{% endfor %}</s>"
    template = f"{{% for message in messages %}}{parts}{{% endfor %}}"
    options = {**OPTIONS, "family": "my_family.Half", "chat_template": template}
    with pytest.raises(DataError, match=r"1 picture and 0 place"):
        Renderer(VLMModule(**options).processor).example(Drawn("train", size=1)[0])


def test_hooks_let_it_train_exactly(project, batch_of):
    module = VLMModule(**OPTIONS, adapt={"language": "lora", "projector": "full", "vision": "full"})
    module.configure_model()
    owners = {
        part: {name.split(".")[0] for name in own} for part, own in parameters_by_part(module.model).items()
    }
    assert owners == {"vision": {"eye"}, "projector": {"bridge"}, "language": {"brain"}, "head": {"mouth"}}
    module.model.eval()
    batch = batch_of(module)
    assert (batch.kinds == Kind.IMAGE).sum() == 3 * 4
    sums = module.loss_sums(batch)
    logits = module.model(**batch.inputs).logits.flatten(0, 1)
    targets = module.targets(batch)
    own = cross_entropy(logits[targets.positions], targets.labels, reduction="none")
    torch.testing.assert_close(sums.token_losses, own, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sums.loss_sum, own @ targets.weights, rtol=1e-5, atol=0)
    other = copy.deepcopy(module.model)
    assert other.get_output_embeddings() is other.mouth
    assert other.get_decoder() is not module.model.get_decoder()


LOGITS = {"scale": (None, 1.0, 100), "softcap": (0.1, 0.5, 2)}
"""Wrong answers of `logits`, and at least how far off they are, in percent."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrong", LOGITS)
def test_logits_that_the_forward_changes_otherwise_are_refused(project, wrong):
    """Before the first step: the loss would be of other logits than those that generate."""
    softcap, scale, least = LOGITS[wrong]

    class Wrong(find_family(OPTIONS["family"]).__class__):
        def logits(self, model):
            return LogitOptions(softcap, scale)

    sys.modules["my_family"].Wrong = Wrong
    module = VLMModule(**{**OPTIONS, "family": "my_family.Wrong"})
    data = VLMDataModule(train=Drawn("train", size=2), batch_size=2)
    message = r"forward gives other logits .* distance of ([\d.]+)%\); say in FamilyHooks\.logits"
    with pytest.raises(UserError, match=message) as caught:
        Trainer(**QUIET).fit(module, data)
    (distance,) = re.findall(r"of ([\d.]+)%", str(caught.value))
    assert float(distance) >= least


@pytest.mark.filterwarnings("ignore")
def test_it_trains_generates_and_exports_from_a_config(project, capsys, warm_python):
    write_config({**OPTIONS, "generation": {"max_new_tokens": 4}})
    assert main(["fit", "--config", "my.yaml"]) == 0
    (checkpoint,) = Path("runs").rglob("*.ckpt")
    assert main(["validate", "--config", "my.yaml", "--ckpt_path", str(checkpoint)]) == 0
    words = ["export", "--ckpt_path", str(checkpoint), "--out", "out", "--trust_remote_code"]
    assert main(words) == 2
    assert "say where they are with model.family" in capsys.readouterr().err
    assert main([*words, "--family", OPTIONS["family"]]) == 0
    assert Path("out/modeling_peek.py").exists()


WRONG = {
    "no_such_module.MyFamily": "no_such_module can't be imported",
    "my_family.MyFamly": "my_family has no MyFamly; did you mean MyFamily?",
    "my_family.LogitOptions": "expected a subclass of lightning_vlm.FamilyHooks",
    "MyFamily": "expected a class and its module, such as my_package.MyFamily",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_name_that_isnt_a_family_is_refused(project, name):
    with pytest.raises(UserError, match=rf"model\.family: .*{re.escape(WRONG[name])}"):
        VLMModule(**{**OPTIONS, "family": name}).configure_model()


def test_wrong_answers_of_hooks_are_refused(peek, project):
    model = load_model(peek, trust_remote_code=True, family=find_family(OPTIONS["family"])).model
    for parts, message in (
        ({"visoin": "eye"}, r"found 'visoin'; expected vision, .*; did you mean vision\?"),
        (
            {"vision": "eyes"},
            r"has no module 'eyes'; did you mean 'eye'\?|has no module 'eyes'; did you mean eye\?",
        ),
    ):
        hooks = type("MyHooks", (FamilyHooks,), {"parts": lambda self, model, parts=parts: parts})()
        with pytest.raises(UserError, match=rf"MyHooks\.parts: .*{message}"):
            use_hooks(model, hooks)
    hooks = type("MyHooks", (FamilyHooks,), {"logits": lambda self, model: 0.5})()
    with pytest.raises(UserError, match=r"MyHooks\.logits: found 0\.5; expected lightning_vlm\.LogitOptions"):
        use_hooks(model, hooks)
    hooks = type("MyHooks", (FamilyHooks,), {"picture_token": lambda self, processor: "<peak>"})
    sys.modules["my_family"].MyHooks = hooks
    with pytest.raises(UserError, match=r"picture_token: found '<peak>', which is no token"):
        assert VLMModule(**{**OPTIONS, "family": "my_family.MyHooks"}).processor


@pytest.mark.filterwarnings("ignore")
def test_a_module_of_ones_own_runs_from_a_config_and_from_python(project, batch_of):
    sys.path.insert(0, str(project))
    train = importlib.import_module("train")
    write_config({"name_or_path": "drawn-vlm"})
    words = ["fit", "--config", "my.yaml", "--model.digit_weight", "5"]
    assert main(words, module=train.CountsMatter) == 0
    one, plain = train.CountsMatter(name_or_path="drawn-vlm"), VLMModule("drawn-vlm")
    batch = batch_of(one, 8)
    ours, usual = one.targets(batch), plain.targets(batch)
    factors = ours.weights / usual.weights
    digits = [one.processor.decode(label).strip().isdigit() for label in ours.labels]
    assert factors.tolist() == [3.0 if digit else 1.0 for digit in digits]
    assert any(digits)
    assert not all(digits)
    assert one.targets(batch._replace(targets=ours)) is ours
