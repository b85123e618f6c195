"""What of a config is secret: it stays on this machine."""

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
"""Stands in the place of a secret."""
_NAME = re.compile(
    r"(.*[_.-])?(password|passwd|passphrase|secret|credentials?|api_?key|(access|secret|private|auth)_key|"
    r"(auth|access|api|hf|hub|bearer|secret)_token|token)",
    re.IGNORECASE,
)
_SPECIAL_TOKEN = re.compile(r"(.*_)?(image|video|pad|eos|bos|unk|sep|cls|mask)_token", re.IGNORECASE)
_IN_ADDRESS = re.compile(r"(\b\w+://)[^/@\s]+@")
_BY_ITSELF = re.compile(r"\b(hf_\w{20,}|gh[pousr]_\w{20,}|sk-[\w-]{20,}|AKIA[A-Z0-9]{16})")
"""Keys of services, whose first letters say what they are."""


def is_secret(name: str) -> bool:
    """Whether the name of a key says that its value is secret.

    >>> [name for name in ("password", "hf_token", "api_key", "new_tokens", "eos_token") if is_secret(name)]
    ['password', 'hf_token', 'api_key']
    """
    return _NAME.fullmatch(name) is not None and _SPECIAL_TOKEN.fullmatch(name) is None


def without_credentials(text: str) -> str:
    """A text without the passwords of addresses and without keys of services.

    >>> without_credentials("postgresql://me:1234@db.example/runs")
    'postgresql://***@db.example/runs'
    """
    text = _IN_ADDRESS.sub(rf"\1{HIDDEN}@", text)
    return _BY_ITSELF.sub(HIDDEN, text)


def without_secrets(value: Any, name: str = "") -> Any:
    """A config with `***` in the place of each secret.

    Args:
        value: The config, or a part of it.
        name: The key of the part.

    >>> without_secrets({"logger": {"tracking_uri": "http://me:1234@host", "api_key": "abc"}, "seed": 0})
    {'logger': {'tracking_uri': 'http://***@host', 'api_key': '***'}, 'seed': 0}
    """
    if isinstance(value, Mapping):
        return {key: without_secrets(inner, str(key)) for key, inner in value.items()}
    if value is not None and is_secret(name):
        return HIDDEN
    if isinstance(value, list | tuple):
        return [without_secrets(inner, name) for inner in value]
    return without_credentials(value) if isinstance(value, str) else value
