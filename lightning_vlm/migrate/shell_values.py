"""What variables, sums and brackets of a shell script stand for, without running anything of it."""

import re
from bisect import bisect_left
from typing import NoReturn

from lightning_vlm.errors import UserError
from lightning_vlm.migrate.arithmetic import expr, whole_number
from lightning_vlm.migrate.unsaid import VARIABLE

LONGEST = 100_000
"""The most characters of one word."""
_MOST = 5_000_000
"""The most characters that variables put into a whole script."""
_DEEPEST = 20
"""How deep brackets with variables may stand in one another."""
_NAME = re.compile(r"[A-Za-z_]\w*")
_BRACES = re.compile(r"([A-Za-z_]\w*)(?:\[[@*]\])?(?::?([-=])(.*))?", re.DOTALL)


class Values:
    """A script, the place up to which it was read, and the variables that it has set so far.

    Args:
        text: The script.
        name: Its path, for messages.
        variables: Those that it finds set; it sets others.
    """

    def __init__(self, text: str, name: str, variables: dict[str, str]) -> None:
        self.text = text
        self.name = name
        self.place = 0
        self.variables = variables
        self.own: dict[str, str] = {}
        self.arrays: dict[str, list[str]] = {}
        self._depth = 0
        self._put_in = 0
        self._line_ends = [match.start() for match in re.finditer("\n", text)]

    def expanded(self) -> str:
        """What stands in place of `$A`, `${A:-b}`, `$((1 + 2))` or `$(expr 8 / 2)`: else that itself."""
        start = self.place
        if self.text[start] == "`":
            inside = self.until("`")
            found = expr(self._filled(inside))
        elif self.text.startswith("$((", start):
            self.place += 1
            inside = self.bracketed("(", ")")[1:-1]
            found = whole_number(self._filled(inside, arithmetic=True))
        elif self.text.startswith("$(", start):
            self.place += 1
            found = expr(self._filled(self.bracketed("(", ")")))
        elif self.text.startswith("${", start):
            self.place += 1
            found = self._braces(self.bracketed("{", "}"))
        elif match := _NAME.match(self.text, start + 1):
            self.place = match.end()
            found = self.value(match[0])
        else:
            self.place = min(len(self.text), start + 2)
            found = None
            if not VARIABLE.fullmatch(self.text[start : self.place]):
                self.place = start + 1  # a dollar, and no variable
        found = self.text[start : self.place] if found is None else found
        self._put_in += len(found)
        if self._put_in > _MOST:
            self.refuse(f"found variables that make more than {_MOST:,} characters")
        return found

    def _braces(self, inside: str) -> str | None:
        match = _BRACES.fullmatch(inside)
        if match is None:
            return None
        value = self.value(match[1])
        if value is None and match[2] is not None:
            value = self._filled(match[3]).strip("\"'")
            if match[2] == "=":
                self.variables[match[1]] = value
        return value

    def value(self, name: str) -> str | None:
        """What a variable is; None where the script doesn't say."""
        if name in self.arrays:
            return " ".join(self.arrays[name])
        return self.variables.get(name, self.own.get(name))

    def _filled(self, text: str, arithmetic: bool = False) -> str:
        """A text inside of brackets, with its variables filled in."""
        inner = Values(text, self.name, self.variables)
        inner.own, inner.arrays, inner._depth = self.own, self.arrays, self._depth + 1
        if inner._depth > _DEEPEST:
            self.refuse(f"found more than {_DEEPEST} brackets in one another")
        filled = ""
        while inner.place < len(text):
            if text[inner.place] in "$`":
                filled += inner.expanded()
            elif arithmetic and (match := _NAME.match(text, inner.place)):
                filled += self.value(match[0]) or match[0]
                inner.place = match.end()
            else:
                filled += text[inner.place]
                inner.place += 1
            if len(filled) > LONGEST:
                self.refuse(f"found variables that make a word of more than {LONGEST:,} characters")
        return filled

    def until(self, end: str) -> str:
        """What stands between this character and the next one of its kind; the place is behind it."""
        start = self.place
        found = self.text.find(end, start + 1)
        if found < 0:
            self.refuse(f"line {self.line(start)}: found a {end} that doesn't end")
        self.place = found + 1
        return self.text[start + 1 : found]

    def bracketed(self, opening: str, closing: str) -> str:
        """What stands in the bracket that begins here; the place is behind its end."""
        start = self.place
        depth = 0
        while self.place < len(self.text):
            character = self.text[self.place]
            if character == "\\":
                self.place += 1
            elif character == "'":
                self.until("'")
                continue
            depth += (character == opening) - (character == closing)
            self.place += 1
            if depth == 0:
                return self.text[start + 1 : self.place - 1]
        self.refuse(f"line {self.line(start)}: found a {opening} that doesn't end")

    def line(self, place: int) -> int:
        """The number of the line with a place of the text."""
        return bisect_left(self._line_ends, place) + 1

    def refuse(self, what: str) -> NoReturn:
        """Say why the script can't be read.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{self.name}: it can't be read as shell: {what}")
