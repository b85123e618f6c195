"""The tables of keys, against the tools' own dataclasses where they are installed."""

import ast
from dataclasses import MISSING, fields
from importlib.util import find_spec
from pathlib import Path

import pytest
import transformers
from transformers import Seq2SeqTrainingArguments, TrainingArguments

from lightning_vlm.migrate.theirs import same
from lightning_vlm.migrate.tools import LABELS, table, tool
from lightning_vlm.migrate.trainer import OPTIMIZERS

PINNED = transformers.__version__.startswith(table()["trainer"]["of"].removeprefix("transformers "))


def own_keys(name):
    """The keys that a tool's table has for itself -> defaults."""
    part = table()[name]
    keys = dict(part["carried"])
    for group in part["left_out"]:
        keys |= group["keys"]
    return keys


def of_dataclass(kind):
    """The arguments of a dataclass -> defaults."""
    found = {}
    for one in fields(kind):
        default = one.default if one.default is not MISSING else None
        if one.default_factory is not MISSING:
            default = one.default_factory()
        found[one.name] = getattr(default, "value", default)
    return found


def differences(ours, theirs):
    return {key: (ours[key], theirs[key]) for key in ours if not same(ours[key], theirs[key])}


@pytest.mark.skipif(not PINNED, reason="the table is of another version of transformers")
def test_trainer_has_exactly_these_keys():
    ours = own_keys("trainer")
    theirs = {one.name: None for one in fields(TrainingArguments) if one.init}
    assert {*ours} == {*theirs}
    assert not {*table()["trainer"]["gone"]} & {*theirs}
    assert {*table()["trainer"]["earlier"].values()} <= {*theirs}
    given = of_dataclass(TrainingArguments)
    assert differences(ours, given) == {}
    of_optim = {"adamw_hf"}  # of earlier versions
    assert {*OPTIMIZERS} - of_optim <= {one.value for one in transformers.training_args.OptimizerNames}


def test_trl_has_exactly_these_keys():
    trl = pytest.importorskip("trl")
    if trl.__version__ != table()["trl"]["of"].removeprefix("trl "):
        pytest.skip("the table is of another version of TRL")
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig

    theirs = {}
    for kind in (SFTConfig, ModelConfig, ScriptArguments, DatasetMixtureConfig):
        theirs |= of_dataclass(kind)
    assert {*own_keys("trl")} == {*theirs} - {*own_keys("trainer")}
    assert differences(own_keys("trl"), theirs) == {}
    base = {key: theirs[key] for key in own_keys("trainer")}
    assert differences({**own_keys("trainer"), **table()["trl"]["defaults"]}, base) == {}


SOURCES = {
    "llama-factory": (
        "llamafactory",
        ["hparams/*_args.py"],
        {"compute_dtype", "device_map", "model_max_length", "block_diag_attn"},
    ),
    "ms-swift": (
        "swift",
        [
            *("arguments/base_args/*.py", "arguments/tuner_args.py", "arguments/sft_args.py"),
            *("trainers/arguments.py", "ray_utils/arguments.py"),
        ],
        set(),
    ),
}
"""Tool -> its package, the files with its dataclasses, and fields of these that can't be given."""


@pytest.mark.parametrize("name", SOURCES)
def test_the_others_have_exactly_these_keys(name):
    """By their source, as these packages can't be installed beside today's transformers."""
    package, patterns, hidden = SOURCES[name]
    spec = find_spec(package)
    if spec is None:
        pytest.skip(f"{package} isn't installed")
    folder = Path(spec.origin).parent
    found = set()
    for file in [file for pattern in patterns for file in folder.glob(pattern)]:
        if file.stem == "evaluation_args":  # of another command
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not isinstance(node, ast.ClassDef):
                continue
            if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
                found |= {one.target.id for one in node.body if isinstance(one, ast.AnnAssign)}
    of_sequences = {one.name for one in fields(Seq2SeqTrainingArguments)} - {*own_keys("trainer")}
    assert {*own_keys(name)} == (found | of_sequences) - hidden - {*own_keys("trainer")}


@pytest.mark.parametrize("name", LABELS)
def test_the_tables_are_sound(name):
    known = tool(name)
    assert not {*known.carried} & {*known.left_out}
    assert {*known.earlier.values()} <= {*known.defaults}
    assert {*table()[name].get("defaults", {})} <= {*known.defaults}
    assert all(known.left_out.values())
    if name != "trainer":  # whose marks are keys of the scripts that people run it with
        assert known.marks <= known.own | {"swift_version"}
    assert known.numbers | known.mappings <= {*known.carried}
