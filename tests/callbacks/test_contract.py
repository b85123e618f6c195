"""What each callback promises: callbacks times themes. What is special to one is tested elsewhere."""

import copy
import inspect
import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning_vlm_callbacks
import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

import lightning_vlm
from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from tests.support.project import Project, Samples
from tests.support.ranks import DDP

REFUSED = (MisconfigurationException, UserError)
STAGES = [{"at": 0, "train": {"head": 1.0}}, {"at": 3, "train": {"*": 0.5, "head": 1.0}}]
POINTS = [{"at": 0, "response": 1.0}, {"at": 0.5, "response": 0.5}]


class Case(NamedTuple):
    """A callback, for one run and in what it refuses.

    Args:
        options: Arguments with which it has something to do in a run of 8 steps.
        wrong: One argument that is out of range; none if all values are possible.
        whole: Whether it needs the gradient of each step, so that it refuses FSDP1, DeepSpeed and manual
            optimization.
        fsdp2: Whether it works where each rank holds pieces of the weights; docs/scale.md says so too.
    """

    options: dict[str, Any]
    wrong: dict[str, Any]
    whole: bool = True
    fsdp2: bool = True


ANY_PROJECT = {
    "StagedUnfreezing": Case({"stages": STAGES, "unit": "step"}, {"stages": STAGES, "unit": "minute"}),
    "GradientMonitor": Case({"every_n_steps": 1}, {"every_n_steps": 0}),
    "EarlyStopCheckpoint": Case({"monitor": "val/loss", "every_n_steps": 2}, {"patience": -1}, whole=False),
    "NonFiniteGuard": Case({}, {"max_in_a_row": 0}),
    "GradNorm": Case({"layer": "head"}, {"alpha": -1.0}, fsdp2=False),
    "RunReport": Case({}, {}, whole=False),
    "ThroughputMonitor": Case({"warmup_steps": 1}, {"warmup_steps": -1}, whole=False),
    "AdaptiveLoRARank": Case(
        {"budget": 18, "min_rank": 1, "multiple_of": 1, "start": 2, "every": 2, "until": 6},
        {"budget": 0},
        fsdp2=False,
    ),
}
VLM_ALONE = {
    "TokenWeightSchedule": Case({"points": POINTS}, {"points": []}, whole=False),
    "ScheduledSampling": Case({"probability": 0.5}, {"probability": 2.0}, whole=False),
    "PredictionTable": Case({"samples": 2, "keep": 2}, {"samples": 0}, whole=False),
    "VisualGainWeights": Case({}, {"least": 0.0}, whole=False),
    "AnswerWriter": Case({}, {"show": -1}, whole=False),
}
CASES = {**ANY_PROJECT, **VLM_ALONE}
KNOW_THEIR_FILES = ("EarlyStopCheckpoint", "RunReport")
"""Their state names files of the run, which only the first rank writes."""
IN_A_FIT = [name for name in CASES if name != "AnswerWriter"]


def kind_of(name):
    return getattr(lightning_vlm_callbacks if name in ANY_PROJECT else lightning_vlm, name)


def make(name, **options):
    return kind_of(name)(**{**CASES[name].options, **options})


def test_no_callback_is_left_out():
    public = {
        name
        for package in (lightning_vlm_callbacks, lightning_vlm)
        for name in package.__all__
        if inspect.isclass(getattr(package, name)) and issubclass(getattr(package, name), Callback)
    }
    assert public == CASES.keys()


# Runs


class End(NamedTuple):
    """What a run ends with.

    Args:
        trainer: The Trainer.
        module: The module.
        tensors: Weights and the optimizer's state.
        states: The states of callbacks, by their keys.
        weights: All weights after each batch, in which batch and by which name.
    """

    trainer: Any
    module: Any
    tensors: dict[str, Tensor]
    states: dict[str, Any]
    weights: dict[str, Tensor]


class Keep(Callback):
    """What replicas have, before DDP makes buffers the same again."""

    def __init__(self):
        self.weights, self.states = {}, {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        for name, value in pl_module.state_dict().items():
            self.weights[f"{trainer.current_epoch}.{batch_idx} {name}"] = value.clone()

    def on_train_end(self, trainer, pl_module):
        self.states = copy.deepcopy(
            {callback.state_key: callback.state_dict() for callback in trainer.callbacks}
        )


@pytest.fixture(scope="module")
def project(model_folder):
    """A new module and its data, of the small project or with a tiny VLM."""

    def make(name):
        if name in ANY_PROJECT:
            return Project(), Samples()
        torch.manual_seed(0)
        module = VLMModule(
            str(model_folder("llava")),
            adapt={"projector": "full", "language": {"lora": {"r": 2}}},
            optimizer=partial(torch.optim.AdamW, lr=3e-3),
            generation={"max_new_tokens": 2} if name == "PredictionTable" else None,
        )
        module.configure_model()
        data = VLMDataModule(train=Drawn("train", size=32), val=Drawn("val", size=2), batch_size=4)
        return module, data

    return make


@pytest.fixture(scope="module")
def fit(make_trainer, project):
    """Two epochs of eight micro-batches, in steps of two; a checkpoint after each step."""

    def run(name, callbacks, folder, ckpt_path=None, seed=1, **options):
        module, data = project(name)
        saves = ModelCheckpoint(
            folder / "saved", filename="{step}", every_n_train_steps=1, save_top_k=-1, save_last=False
        )
        given = {
            "max_epochs": 2,
            "accumulate_grad_batches": 2,
            "enable_checkpointing": True,
            "use_distributed_sampler": False,
            "default_root_dir": folder,
            **options,
        }
        keep = Keep()
        trainer = make_trainer(callbacks=[*callbacks, keep, saves], **given)
        torch.manual_seed(seed)
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
        optimizer = trainer.optimizers[0].state_dict()["state"]
        tensors = {name: value.clone() for name, value in module.state_dict().items()}
        for index, state in optimizer.items():
            tensors |= {f"{index}.{key}": torch.as_tensor(value).clone() for key, value in state.items()}
        return End(trainer, module, tensors, keep.states, keep.weights)

    return run


@pytest.fixture(scope="module")
def whole(fit, tmp_path_factory):
    """The uninterrupted run of a callback, in a project without a logger; its folder and the callback."""
    runs: dict[str, Any] = {}

    def of(name):
        if name not in runs:
            folder = tmp_path_factory.mktemp(name)
            callback = make(name)
            runs[name] = callback, folder, fit(name, [callback], folder)
        return runs[name]

    return of


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def flat(state, path=""):
    """The leaves of a nested state, by where they are."""
    if isinstance(state, dict | list | tuple):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return {place: leaf for key, value in items for place, leaf in flat(value, f"{path}/{key}").items()}
    return {path: state}


def assert_same_state(found, expected):
    found, expected = flat(found), flat(expected)
    assert found.keys() == expected.keys()
    for place, value in expected.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(found[place], value, rtol=0, atol=0, equal_nan=True, msg=place)
        else:
            assert found[place] == value or (found[place] != found[place] and value != value), place


@pytest.mark.parametrize("name", IN_A_FIT)
def test_a_run_without_a_logger(name, whole):
    *_, end = whole(name)
    assert end.trainer.global_step == 8
    assert all(torch.isfinite(value).all() for value in end.tensors.values())


@pytest.mark.parametrize("name", IN_A_FIT)
def test_resumed_is_uninterrupted(name, whole, fit, tmp_path):
    """Bit for bit, from the middle of either epoch."""
    callback, folder, expected = whole(name)
    for step in (3, 6):
        again = make(name)
        file = folder / "saved" / f"step={step}.ckpt"
        end = fit(name, [again], tmp_path / str(step), ckpt_path=file, seed=2)
        assert_same(end.tensors, expected.tensors)
        if name not in KNOW_THEIR_FILES:
            key = callback.state_key
            assert_same_state(end.states[key], expected.states[key])


@pytest.mark.parametrize("name", [name for name in IN_A_FIT if name not in KNOW_THEIR_FILES])
def test_a_checkpoint_saved_after_the_fit_has_its_state(name, fit, tmp_path):
    callback = make(name)
    end = fit(name, [callback], tmp_path)
    end.trainer.save_checkpoint(tmp_path / "after.ckpt")
    saved = torch.load(tmp_path / "after.ckpt", weights_only=True)["callbacks"]
    assert_same_state(saved.get(callback.state_key, {}), end.states[callback.state_key])


@pytest.mark.parametrize("name", IN_A_FIT)
def test_a_second_fit_is_like_the_first(name, whole, fit, tmp_path):
    """With the same object, and a logger."""
    callback, _, expected = whole(name)
    end = fit(name, [callback], tmp_path, logger=CSVLogger(tmp_path))
    assert_same(end.tensors, expected.tensors)
    if name not in KNOW_THEIR_FILES:
        assert_same_state(end.states[callback.state_key], expected.states[callback.state_key])


@pytest.fixture(scope="module")
def without(fit, tmp_path_factory):
    """What runs leave on a module without a callback of ours: transformers has hooks of its own."""
    return {
        name: left_behind_by_two_runs(fit, name, [], tmp_path_factory.mktemp("none"))
        for name in ("GradNorm", "ScheduledSampling")
    }


@pytest.mark.parametrize("name", IN_A_FIT)
def test_nothing_of_it_stays_on_the_module(name, fit, without, tmp_path):
    """Neither hooks nor methods that stand in for others; not after a run that fails either."""
    expected = without["GradNorm" if name in ANY_PROJECT else "ScheduledSampling"]
    assert left_behind_by_two_runs(fit, name, [make(name)], tmp_path) == expected


def left_behind_by_two_runs(fit, name, callbacks, folder):
    """One that ends, and one that fails."""
    end = fit(name, callbacks, folder / "ends")
    fails = Fails()
    with pytest.raises(RuntimeError, match="as it happens"):
        fit(name, [*callbacks, fails], folder / "fails")
    return left_behind(end.module), left_behind(fails.module)


class Fails(Callback):
    def on_before_backward(self, trainer, pl_module, loss):
        self.module = pl_module
        if trainer.global_step == 2:
            raise RuntimeError("as it happens")


def left_behind(module):
    """Hooks, and methods that an object has instead of its class."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    methods = ("forward", "train", "training_step", "on_load_checkpoint", "optimizer_step")
    found = {
        f"{name}.{key}": len(vars(child)[key])
        for name, child in module.named_modules()
        for key in hooks
        if vars(child).get(key)
    }
    for name, child in module.named_modules():
        found |= {f"{name}.{method}": 1 for method in methods if method in vars(child)}
    for name, parameter in module.named_parameters():
        if parameter._backward_hooks:
            found[name] = len(parameter._backward_hooks)
    return found


# Ranks


def test_two_ranks_agree(on_two_ranks, fit, project, tmp_path):
    """Each has its own data; weights after each batch, the optimizer's state and the callback's are equal."""
    for name in IN_A_FIT:
        project(name)  # makes the model's files before the processes part

    def on_rank():
        ends = {}
        for name in IN_A_FIT:
            callback = make(name)
            end = fit(name, [callback], tmp_path / name, max_epochs=3, **DDP)
            ends[name] = {"steps": end.trainer.global_step, **end.tensors, **end.weights}
            if name not in KNOW_THEIR_FILES:
                ends[name] |= flat(end.states[callback.state_key], "state")
        return ends

    first, second = on_two_ranks(on_rank)
    for name in IN_A_FIT:
        assert first[name]["steps"] == 6
        assert_same_state(second[name], first[name])


# Together


@pytest.mark.parametrize("names", [tuple(ANY_PROJECT), tuple(VLM_ALONE)], ids=["any project", "VLM"])
def test_all_at_once(names, fit, tmp_path):
    """And resumed in the middle of an epoch."""
    ends = []
    for ckpt_path in (None, tmp_path / "whole/saved/step=3.ckpt"):
        folder = tmp_path / ("whole" if ckpt_path is None else "again")
        ends.append(fit(names[0], [make(name) for name in names], folder, ckpt_path))
    assert ends[0].trainer.global_step == 8
    assert_same(ends[1].tensors, ends[0].tensors)


# Configs


def parse(name, config):
    vlm = name in VLM_ALONE
    return LightningCLI(
        *((VLMModule, VLMDataModule) if vlm else (Project, Samples)),
        args=["--config", str(config)],
        run=False,
        save_config_callback=None,
    )


@pytest.mark.parametrize("name", CASES)
def test_from_yaml_and_the_saved_config_again(name, model_folder, tmp_path):
    case, kind = CASES[name], kind_of(name)
    callback = {"class_path": f"{kind.__module__.split('.')[0]}.{name}", "init_args": case.options}
    config = {"trainer": {"accelerator": "cpu", "logger": False, "callbacks": [callback]}}
    if name in VLM_ALONE:
        config |= {"model": {"name_or_path": str(model_folder("llava")), "adapt": {"projector": "full"}}}
        config |= {"data": {"train": "train.jsonl"}}
    file, saved = tmp_path / "given.yaml", tmp_path / "saved.yaml"
    file.write_text(yaml.safe_dump(config))
    cli = parse(name, file)
    assert [type(found) for found in cli.trainer.callbacks if type(found) is kind] == [kind]
    saved.write_text(cli.parser.dump(cli.config, skip_none=False))
    (arguments,) = (found["init_args"] for found in yaml.safe_load(saved.read_text())["trainer"]["callbacks"])
    assert arguments.keys() == inspect.signature(kind.__init__).parameters.keys() - {"self"}
    again = parse(name, saved)
    assert again.parser.dump(again.config, skip_none=False) == saved.read_text()


@pytest.mark.parametrize("name", CASES)
def test_the_docstring_names_all_arguments_and_errors(name):
    kind = kind_of(name)
    docstring = inspect.getdoc(kind) or ""
    assert "\nRaises:\n" in docstring
    arguments = docstring.partition("\nArgs:\n")[2].partition("\nRaises:\n")[0]
    described = re.findall(r"^    (\w+): ", arguments, re.MULTILINE)
    assert described == [key for key in inspect.signature(kind.__init__).parameters if key != "self"]


# Refusals


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.wrong])
def test_an_argument_out_of_range(name):
    (wrong,) = CASES[name].wrong.keys() - CASES[name].options.keys() or list(CASES[name].wrong)[-1:]
    with pytest.raises(REFUSED) as error:
        make(name, **CASES[name].wrong)
    message = one_line(error)
    assert all(word in message for word in (wrong, "found ", "expected "))


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.whole])
def test_strategies_that_shard_the_model(name, strategy):
    """FSDP2 only by those that can't be right under it, with the reason; `test_fsdp2.py` runs the others."""
    is_fsdp2 = strategy is ModelParallelStrategy
    if is_fsdp2 and CASES[name].fsdp2:
        pytest.skip("works")
    trainer = type("T", (), {"strategy": strategy.__new__(strategy), "callbacks": []})()
    with pytest.raises(MisconfigurationException) as error:
        make(name).setup(trainer, Project(), "fit")
    why = rf"{name} .*FSDP2.*" if is_fsdp2 else ""
    assert re.match(rf"{name}: found trainer.strategy {strategy.__name__}, .*{why}; choose ", one_line(error))


def test_the_table_of_callbacks_under_fsdp2():
    page = (Path(__file__).parents[2] / "docs/scale.md").read_text("utf-8")
    table = dict(re.findall(r"^\| `(\w+)` \| (works|refused)", page, re.MULTILINE))
    assert table == {name: "works" if CASES[name].fsdp2 else "refused" for name in ANY_PROJECT}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.whole])
def test_manual_optimization(name, make_trainer):
    module = Project()
    module.automatic_optimization = False
    with pytest.raises(MisconfigurationException) as error:
        make_trainer(callbacks=[make(name)], max_steps=1).fit(module, Samples())
    assert re.match(rf"{name}: found .*manual.*expected ", one_line(error))


@pytest.mark.parametrize(
    "name", ["TokenWeightSchedule", "ScheduledSampling", "PredictionTable", "VisualGainWeights"]
)
def test_a_module_that_is_no_vlm(name, make_trainer):
    with pytest.raises(UserError) as error:
        make_trainer(callbacks=[make(name)], max_steps=1).fit(Project(), Samples())
    assert re.match(rf"{name}: found a Project; expected a VLMModule", one_line(error))
