"""Patterns in the settings of a stranger's adapters, which PEFT compares with the names of all modules.

Python's regular expressions may take time without end for a name of some dozen letters, and can't be
interrupted meanwhile. So they are tried in a process of their own, which is ended when it takes too long.
"""

import json
import string
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning_vlm.errors import UserError
from lightning_vlm.nearest import shorten

SECONDS = 5
"""The most that all patterns of an adapter may take. Ordinary ones take milliseconds."""
_END = r"(.*\.)?({})$"
_FORMS: Mapping[str, str] = {
    "modules_to_save": r"(^|.*\.){}($|\..*)",
    "layers_pattern": r"(?:^|.*?\.){}\.(?P<idx>\d+)\.",
}
"""How PEFT makes a pattern of the words of a setting."""
_PLAIN = frozenset(string.ascii_letters + string.digits + "_.-/:, ")
"""Words of these alone take no time."""
_TRY = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for number, (method, pattern) in enumerate(patterns):
    print(number, flush=True)
    try:
        compare = getattr(re.compile(pattern), method)
    except Exception:
        continue
    for name in names:
        compare(name)
"""


class _Pattern(NamedTuple):
    """A pattern of the settings.

    Args:
        key: Of the setting.
        words: What stands there.
        method: Of a regular expression, which PEFT calls with each name.
        pattern: What PEFT makes of the words.
    """

    key: str
    words: str
    method: str
    pattern: str


def check_patterns(folder: Path, names: Iterable[str]) -> None:
    """Refuse adapters whose settings have a pattern that takes too long.

    A pattern that isn't one is left to PEFT, which refuses it.

    Args:
        folder: Of the adapters, with an `adapter_config.json` that is JSON.
        names: Of all modules of the base model.

    Raises:
        UserError: A pattern takes too long; its key and its first letters are named.
    """
    file = folder / "adapter_config.json"
    settings = json.loads(file.read_text("utf-8")) if file.is_file() else None
    if not isinstance(settings, dict):
        return
    found = list(_patterns(settings))
    if not found:
        return
    given = [[[one.method, one.pattern] for one in found], list(names)]
    try:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRY],
            input=json.dumps(given).encode(),
            capture_output=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        slow = found[int((error.stdout or b"0").split()[-1])]
        raise UserError(
            f"{file}: {slow.key}: found the pattern {shorten(slow.words)}, which takes more than {SECONDS} "
            "seconds to compare with the model's names; expected a list of names, such as q_proj"
        ) from None


def _patterns(settings: Mapping[str, Any]) -> Iterator[_Pattern]:
    """Each that isn't only names. Keys of `rank_pattern` and its like are compared with the ends of names."""
    for key, value in settings.items():
        form = _FORMS.get(key)
        if isinstance(value, Mapping):
            form, texts = _END, list(value)
        elif isinstance(value, str):
            texts = [value]
        elif isinstance(value, list) and form:
            texts = value
        else:
            continue
        for text in texts:
            if isinstance(text, str) and not _PLAIN.issuperset(text):
                pattern = form.replace("{}", text) if form else text
                yield _Pattern(key, text, "match" if form else "fullmatch", pattern)
