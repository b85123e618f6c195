"""A shell script taken apart into commands and their words, without running anything of it."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from lightning_vlm.migrate.shell_values import LONGEST, Values
from lightning_vlm.migrate.unsaid import VARIABLE

ASSIGNED = re.compile(r"([A-Za-z_]\w*)(\+?)=(.*)", re.DOTALL)
"""A word that gives a variable a value."""
_CONTINUED = re.compile(r"\\[ \t]*\n")
_COMMENTS_INSIDE = re.compile(r"(?:[ \t]*#[^\n]*\n)+(?=[ \t]*--?\w)")
_WORDS_OF_ARRAY = re.compile(r'"\$\{([A-Za-z_]\w*)\[@\]\}"')
_HEREDOC = re.compile(r"<<-?[ \t]*(['\"]?)([A-Za-z_]\w*)\1")
_OPERATORS = ";|&()\n"
_DECLARING = ("export", "local", "readonly", "declare", "typeset")
_KEYWORDS = {
    "if",
    "then",
    "elif",
    "else",
    "fi",
    "while",
    "until",
    "do",
    "done",
    "esac",
    "{",
    "}",
    "!",
    "time",
}
"""Words before a command that aren't part of it."""


class Simple(NamedTuple):
    """One command of a script.

    Args:
        words: Its words, with the variables that the script sets filled in.
        environment: Variables that are exported, or stand before it.
        line: Where it begins.
        broken: Lines inside of it that end it in a shell, and that were read over.
    """

    words: list[str]
    environment: Mapping[str, str]
    line: int
    broken: tuple[int, ...] = ()


def simple_commands(text: str, name: str, known: Mapping[str, str] | None = None) -> Iterator[Simple]:
    r"""The commands of a script, one after the other.

    Args:
        text: The script.
        name: Its path, for messages.
        known: Variables that it finds set, such as `HOME`.

    Raises:
        UserError: Quotes or brackets that don't end, or variables that make a word too long.

    >>> script = 'A=$((2 * 4))\nX=${X:-b} \\\nrun --a "$A c" $D >log 2>&1 | tee log'
    >>> [(command.words, command.environment) for command in simple_commands(script, "a.sh")]
    [(['run', '--a', '8 c', '$D'], {'X': 'b'}), (['tee', 'log'], {})]
    """
    return _Reader(text.replace("\r\n", "\n"), name, dict(known or {})).commands()


class _Reader(Values):
    """Goes through a script once, character by character."""

    def __init__(self, text: str, name: str, variables: dict[str, str]) -> None:
        super().__init__(text, name, variables)
        self.exported: set[str] = set()
        self.heredocs: list[str] = []

    def commands(self) -> Iterator[Simple]:
        while self.place < len(self.text):
            if self._skip_between():
                continue
            start = self.place
            words, own, broken = self._command()
            if words and words[0] in _DECLARING:
                self._declare(words)
                continue
            if not words:  # variables of the script alone
                self.variables |= own
                continue
            exported = {key: self.variables[key] for key in self.exported if key in self.variables}
            yield Simple(words, exported | own, self.line(start), tuple(broken))

    def _declare(self, words: list[str]) -> None:
        for word in words[1:]:
            found = ASSIGNED.fullmatch(word)
            if found:
                self.variables[found[1]] = found[3]
            if words[0] == "export" and (found or word.isidentifier()):
                self.exported.add(found[1] if found else word)

    def _skip_between(self) -> bool:
        """Pass over blanks, operators and comments between commands; whether there was something."""
        character = self.text[self.place]
        if character == "\n":
            self._end_line()
        elif character in " \t;|&()":
            self.place += 1
        elif match := _CONTINUED.match(self.text, self.place):
            self.place = match.end()
        elif character == "#":
            self._to_line_end()
        else:
            return False
        return True

    def _end_line(self) -> None:
        """Pass the end of a line, and the texts (`<<EOF`) that follow it."""
        self.place += 1
        for word in self.heredocs:
            end = re.compile(rf"^\t*{word}[ \t]*$", re.MULTILINE).search(self.text, self.place)
            self.place = end.end() if end else len(self.text)
        self.heredocs = []

    def _to_line_end(self) -> None:
        end = self.text.find("\n", self.place)
        self.place = len(self.text) if end < 0 else end

    def _command(self) -> tuple[list[str], dict[str, str], list[int]]:
        """The words of the command that begins here, and the variables before it."""
        words: list[str] = []
        own = self.own = {}
        broken: list[int] = []
        while self.place < len(self.text):
            character = self.text[self.place]
            if match := _CONTINUED.match(self.text, self.place):
                if match[0].strip("\\\r\n"):
                    broken.append(self.line(self.place))
                self.place = match.end()
                self._skip_comments(broken)
            elif character in " \t":
                self.place += 1
            elif character in "<>":
                self._redirect()
            elif character in _OPERATORS:
                break
            elif character == "#":
                self._to_line_end()
            else:
                before = self.place
                found = self._word(assigns=not words or words[0] in _DECLARING)
                split = ASSIGNED.fullmatch(found[0]) if not words and len(found) == 1 else None
                if split and ASSIGNED.match(self.text, before):
                    own[split[1]] = (self.value(split[1]) or "" if split[2] else "") + split[3]
                elif words or found[:1] == [] or found[0] not in _KEYWORDS:
                    words += found
        return words, own, broken

    def _skip_comments(self, broken: list[int]) -> None:
        """Comments between the lines of one command, where options follow: a shell would end it there."""
        if match := _COMMENTS_INSIDE.match(self.text, self.place):
            broken.append(self.line(self.place))
            self.place = match.end()

    def _redirect(self) -> None:
        """Pass over `>log`, `2>&1`, `<<EOF` and `<(...)`."""
        if match := _HEREDOC.match(self.text, self.place):
            self.heredocs.append(match[2])
            self.place = match.end()
            return
        while self.place < len(self.text) and self.text[self.place] in "<>&| \t":
            self.place += 1
        if self.place < len(self.text) and self.text[self.place] == "(":
            self.bracketed("(", ")")
        elif self.place < len(self.text) and self.text[self.place] not in _OPERATORS:
            self._word(assigns=False)

    def _word(self, assigns: bool) -> list[str]:
        """The word that begins here: several, or none, where a variable without quotes is split."""
        start = self.place
        done: list[str] = []
        word: str | None = None
        while self.place < len(self.text):
            character = self.text[self.place]
            if character in " \t\n;|&)" or _CONTINUED.match(self.text, self.place):
                break
            if character in "<>":
                if word is not None and word.isdecimal() and self.text[start : self.place] == word:
                    word = None  # the 2 of 2>&1
                break
            if character == "(":
                if assigns and (split := ASSIGNED.fullmatch(self.text[start : self.place])):
                    self._array(split[1], adds=bool(split[2]))
                    return []
                break
            if character == "'":
                word = (word or "") + self.until("'")
            elif character == '"':
                word = self._double(word, done)
            elif character == "\\" and self.place + 1 == len(self.text):
                self.place += 1  # the last line is continued, and there is no other
            elif character == "\\":
                word = (word or "") + self.text[self.place + 1 : self.place + 2]
                self.place += 2
            elif character in "$`":
                assigning = assigns and ASSIGNED.fullmatch(self.text[start : self.place])
                value = self.expanded()
                word = (word or "") + value if assigning else self._split(value, word, done)
            else:
                word = (word or "") + character
                self.place += 1
            if len(word or "") > LONGEST:
                self.refuse(f"found variables that make a word of more than {LONGEST:,} characters")
        return done if word is None else [*done, word]

    @staticmethod
    def _split(value: str, word: str | None, done: list[str]) -> str | None:
        """Put a value that stands without quotes behind a word: it begins others at its blanks."""
        if VARIABLE.fullmatch(value):
            return (word or "") + value
        parts = value.split()
        if not parts:
            return word
        for part in parts[:-1]:
            done.append((word or "") + part)
            word = None
        return (word or "") + parts[-1]

    def _double(self, word: str | None, done: list[str]) -> str | None:
        """What stands in double quotes; `"${words[@]}"` is several words."""
        array = _WORDS_OF_ARRAY.match(self.text, self.place)
        if array and array[1] in self.arrays:
            self.place = array.end()
            done += self.arrays[array[1]]
            return word
        start = self.place
        self.place += 1
        inside = ""
        while self.place < len(self.text) and self.text[self.place] != '"':
            character = self.text[self.place]
            if self.text.startswith("\\\n", self.place):
                self.place += 2
            elif character == "\\" and self.text[self.place + 1 : self.place + 2] in ('"', "\\", "$", "`"):
                inside += self.text[self.place + 1]
                self.place += 2
            elif character in "$`":
                inside += self.expanded()
            else:
                inside += character
                self.place += 1
            if len(inside) > LONGEST:
                self.refuse(f"found variables that make a word of more than {LONGEST:,} characters")
        if self.place >= len(self.text):
            self.refuse(f"line {self.line(start)}: found a \" that doesn't end")
        self.place += 1
        return (word or "") + inside

    def _array(self, name: str, adds: bool) -> None:
        """Read `(a b)` behind `name=`."""
        start = self.place
        self.place += 1
        words = list(self.arrays.get(name, [])) if adds else []
        while self.place < len(self.text) and self.text[self.place] != ")":
            character = self.text[self.place]
            if match := _CONTINUED.match(self.text, self.place):
                self.place = match.end()
            elif character in " \t\n;|&<>":
                self.place += 1
            elif character == "#":
                self._to_line_end()
            else:
                words += self._word(assigns=False)
                if self.place < len(self.text) and self.text[self.place] == "(":
                    self.bracketed("(", ")")
        if self.place >= len(self.text):
            self.refuse(f"line {self.line(start)}: found a ( that doesn't end")
        self.place += 1
        self.arrays[name] = words
