"""The parsers of the commands."""

from argparse import ArgumentParser
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from lightning_vlm.config import COMMANDS


def command_parsers() -> dict[str, ArgumentParser]:
    """Each command's parser."""
    from lightning_vlm import run

    class ParsedError(Exception):
        pass

    class ParserOnly(run.VLMCLI):
        def parse_arguments(self, parser: Any, args: Sequence[str]) -> None:
            raise ParsedError(self._subcommand_parsers[args[0]])

    kept = run.VLMCLI
    run.VLMCLI = ParserOnly  # type: ignore[misc]
    found: dict[str, ArgumentParser] = {}
    try:
        for name in run.VLMCLI.subcommands():
            try:
                run.run([name])
            except ParsedError as parsed:
                (found[name],) = parsed.args
    finally:
        run.VLMCLI = kept  # type: ignore[misc]
    for name, command in COMMANDS.items():
        if command.module is not None:
            found[name] = import_module(command.module).parser()
    return found
