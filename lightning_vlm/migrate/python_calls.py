"""The arguments of a training script in Python, or of a notebook, without running it."""

import ast
import json
from collections.abc import Iterator
from typing import Any

from lightning_vlm.errors import UserError
from lightning_vlm.migrate.shell import Command
from lightning_vlm.migrate.theirs import Launch
from lightning_vlm.migrate.unsaid import Unsaid

_CONFIGS = {
    "TrainingArguments": "trainer",
    "Seq2SeqTrainingArguments": "trainer",
    "SFTConfig": "trl",
    "SftArguments": "ms-swift",
    "TrainArguments": "ms-swift",
}
"""Class whose arguments are a config -> the tool that it is of."""
_OF_LORA = {
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "lora_target_modules",
    "modules_to_save": "lora_modules_to_save",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
    "task_type": "lora_task_type",
}
_OF_QUANTIZATION = {
    "load_in_4bit": "load_in_4bit",
    "load_in_8bit": "load_in_8bit",
    "bnb_4bit_quant_type": "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant": "use_bnb_nested_quant",
}
_PARSERS = ("HfArgumentParser", "TrlParser", "parse_args")
_LORA_DEFAULTS = {"lora_r": 8, "lora_alpha": 8, "lora_dropout": 0.0}
"""Those of PEFT's class, which aren't those of TRL's command."""


def read_python(text: str, name: str) -> Command:
    """The config in a Python file or a notebook.

    Args:
        text: What it says.
        name: Its path.

    Raises:
        UserError: It isn't Python, or has none or several of the classes that are read.

    >>> script = "RATE = 1e-4\\nargs = SFTConfig(output_dir='out', learning_rate=RATE, max_steps=args.steps)"
    >>> command = read_python(script, "a.py")
    >>> command.tool, command.given
    ('trl', {'output_dir': 'out', 'learning_rate': 0.0001, 'max_steps': 'args.steps'})
    """
    source = _source(text, name)
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f"line {error.lineno}: " if isinstance(error, SyntaxError) and error.lineno else ""
        raise UserError(f"{name}: {line}it can't be read as Python") from None
    names = _names(tree)
    calls = [(_name(node), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    configs = [(kind, node) for kind, node in calls if kind in _CONFIGS]
    if len(configs) != 1:
        found = ", ".join(f"{kind} in line {node.lineno}" for kind, node in configs) or "none of them"
        if any(kind in _PARSERS for kind, _ in calls):
            raise UserError(
                f"{name}: its arguments come from the command that runs it; give that: "
                f"lightning-vlm migrate -- python {name} --learning_rate ..."
            )
        raise UserError(f"{name}: found {found}; expected one call of {', '.join(_CONFIGS)}")
    ((kind, node),) = configs
    tool = _CONFIGS[kind]
    given = dict(_arguments(node, names, first="output_dir"))
    remarks = [f"{kind} in line {node.lineno} was read; the rest of the script isn't"]
    for keyword in node.keywords:
        if keyword.arg is None:
            remarks.append(f"line {node.lineno}: **{ast.unparse(keyword.value)[:60]} isn't read")
    by_kind = dict(reversed(calls))
    lora = by_kind.get("LoraConfig")
    if lora is not None and tool == "trl":
        named = dict(_arguments(lora, names))
        given |= {"use_peft": True, **_LORA_DEFAULTS}
        given |= {_OF_LORA.get(key, f"LoraConfig.{key}"): value for key, value in named.items()}
    elif lora is not None:
        given["peft"] = Unsaid(_short(lora))
    quantization = by_kind.get("BitsAndBytesConfig")
    if quantization is not None and tool == "trl":
        named = dict(_arguments(quantization, names))
        given |= {_OF_QUANTIZATION[key]: value for key, value in named.items() if key in _OF_QUANTIZATION}
    elif quantization is not None:
        remarks.append(f"line {quantization.lineno}: {_short(quantization)}: write it as model.quantization")
    unsloth = by_kind.get("get_peft_model")
    if unsloth is not None and unsloth.keywords:
        given["use_peft" if tool == "trl" else "peft"] = Unsaid(_short(unsloth))
    if tool == "trl":
        given |= _model_and_data(calls, names)
    return Command(tool, given, [], Launch(script=None, remarks=tuple(remarks), launcher="python"))


def _source(text: str, name: str) -> str:
    """The Python of a file; of a notebook, that of its cells without magics."""
    if not name.endswith(".ipynb"):
        return text
    try:
        cells = json.loads(text)["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{name}: found no notebook; expected cells") from None
    lines = "\n".join(sources).splitlines()
    return "\n".join("" if line.lstrip()[:1] in ("%", "!") else line for line in lines)


def _name(call: ast.Call) -> str:
    function = call.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _names(tree: ast.Module) -> dict[str, Any]:
    """Names that are given one plain value, and no other."""
    found: dict[str, Any] = {}
    several: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            key = node.targets[0].id
            several |= {key} & found.keys()
            found[key] = _value(node.value, {})
    return {key: value for key, value in found.items() if key not in several}


def _arguments(call: ast.Call, names: dict[str, Any], first: str = "") -> Iterator[tuple[str, Any]]:
    if first and call.args:
        yield first, _value(call.args[0], names)
    for keyword in call.keywords:
        if keyword.arg is not None:
            yield keyword.arg, _value(keyword.value, names)


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    """A plain value, or what is written there as one that isn't said."""
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError):
        return Unsaid(ast.unparse(node)[:60])


def _model_and_data(calls: list[tuple[str, ast.Call]], names: dict[str, Any]) -> dict[str, Any]:
    """The model and the data that the script names, if it names one of each."""
    found: dict[str, Any] = {}
    models = {}
    for kind, node in calls:
        owner = ast.unparse(node.func)
        if kind != "from_pretrained" or "Processor" in owner or "Tokenizer" in owner:
            continue
        given = dict(_arguments(node, names, first="model_name"))
        models[str(given.get("model_name"))] = given.get("model_name")
    if len(models) == 1:
        found["model_name_or_path"] = next(iter(models.values()))
    data = [dict(_arguments(node, names, first="path")) for kind, node in calls if kind == "load_dataset"]
    if (
        len(data) == 1
        and "path" in data[0]
        and data[0]["path"] not in ("json", "parquet", "csv", "imagefolder")
    ):
        found["dataset_name"] = data[0]["path"]
        if "split" in data[0]:
            found["dataset_train_split"] = data[0]["split"]
    return found


def _short(call: ast.Call) -> str:
    shown = ast.unparse(call)
    return shown if len(shown) <= 100 else f"{shown[:97]}..."
