"""The parser of commands that need neither Lightning nor jsonargparse, whose imports take seconds."""

import argparse
from typing import NoReturn

from lightning_vlm.errors import UserError
from lightning_vlm.nearest import did_you_mean


class LightParser(argparse.ArgumentParser):
    """As argparse's, but errors are raised, in one line with the nearest option.

    >>> parser = LightParser(prog="lightning-vlm families")
    >>> _ = parser.add_argument("--json", action="store_true")
    >>> parser.parse_args(["--jsn"])
    Traceback (most recent call last):
    lightning_vlm.errors.UserError: there is no option --jsn; did you mean --json?
    """

    def error(self, message: str) -> NoReturn:
        """Raise a `UserError`."""
        words = message.removeprefix("unrecognized arguments: ").split()
        if not message.startswith("unrecognized arguments: ") or not words:
            raise UserError(message)
        if words[0].startswith("-"):
            options = [option for action in self._actions for option in action.option_strings]
            raise UserError(f"there is no option {words[0]}{did_you_mean(words[0], options)}")
        raise UserError(f"found {' '.join(words)} behind what {self.prog} takes; expected one name")
