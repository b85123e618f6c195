"""The help of the commands: fast, ours, and as the parsers have it."""

import shlex
import subprocess
import sys

import pytest

from lightning_vlm.cli import main
from lightning_vlm.config import COMMANDS
from lightning_vlm.config.help import REQUIRED, WIDTH, command_help, sections
from lightning_vlm.config.moved import with_meant_classes
from tests.support.parsers import command_parsers

HEAVY = (
    "torch", "torchvision", "torchmetrics", "lightning", "transformers", "peft", "bitsandbytes", "wandb",
    "datasets", "jsonargparse", "numpy", "scipy", "sklearn", "pandas", "matplotlib", "PIL", "rich", "jinja2",
)  # fmt: skip


@pytest.fixture(scope="module")
def parsers():
    """Each command's parser."""
    return command_parsers()


def action_of(parser, option):
    """What a parser has for an option; argparse has no public way to it."""
    return next((action for action in parser._actions if option in action.option_strings), None)


def test_helps_are_short_and_import_nothing_heavy():
    code = (
        "import sys\nfrom lightning_vlm.cli import main\nfrom lightning_vlm.config import COMMANDS\n"
        "assert main(['--help']) == main(['help', 'fit']) == main(['fit', '--config', 'none', '-h']) == 0\n"
        "for command in COMMANDS:\n    print('=====')\n    assert main([command, '--help']) == 0\n"
        "print('=====', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *texts, modules = done.stdout.split("=====")
    assert not {*HEAVY} & {*modules.split()}
    for text in texts:
        assert max(map(len, text.splitlines())) <= WIDTH
        assert len(text.splitlines()) < 3 * 75  # the first has three of them


@pytest.mark.parametrize("command", COMMANDS)
def test_keys_and_defaults_are_the_parsers(command, parsers):
    text = command_help(command)
    keys = {**text.keys}
    for section, shown in sections(text.shows):
        assert shown, f"help.yaml: {command} shows nothing of {section}"
        keys |= {f"{section}.{name}": key for name, key in shown.items()}
    whole = {name for name, _ in sections(text.shows)}
    assert whole >= {shown for shown in text.shows if "." not in shown}
    assert {shown for shown in text.shows if "." in shown} <= {*keys}
    parser = parsers[command]
    for name, key in keys.items():
        action = action_of(parser, f"--{name}")
        assert action is not None, f"help.yaml: {command} has no key {name}"
        if key.default == REQUIRED:
            assert action.required or name in parser._extra_required_keys, name
        else:
            assert action.default == key.default, name
        assert bool(key.value) == (action.nargs != 0), name


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_parse(command, parsers):
    examples = command_help(command).examples
    assert examples
    for example in examples:
        program, name, *words = shlex.split(example)
        assert (program, name) == ("lightning-vlm", command)
        parsers[command].parse_args(with_meant_classes(words))


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_can_be_copied(command, capsys):
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out.partition("example")[2].replace("\\\n", "").splitlines()
    printed = [shlex.split(line) for line in shown if line.startswith("  lightning-vlm")]
    assert printed == [shlex.split(example) for example in command_help(command).examples]


@pytest.mark.parametrize("command", ["preview", "families"])
def test_all_keys(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help-all"])
    assert ended.value.code == 0
    assert ("--trainer.sync_batchnorm" if command == "preview" else "--json") in capsys.readouterr().out


def test_help_of_what_is_no_command(capsys):
    assert main(["help", "fti"]) == 2
    assert "did you mean fit?" in capsys.readouterr().err
