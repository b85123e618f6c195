"""Pictures from the network, for data whose reader was allowed to fetch them."""

import hashlib
import http.client
import ipaddress
import os
import tempfile
import time
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning_vlm.errors import DataError

LARGEST = 64 << 20
"""The most bytes of a picture that is fetched."""
SECONDS = 20.0
"""How long a server may be silent."""
LONGEST = 120.0
"""How many seconds a picture may take as a whole."""


def fetch(url: str, source: str, key: str, what: str = "picture", largest: int = 0) -> bytes:
    """The bytes that a http or https address gives. Each is fetched once and kept in the cache folder.

    Addresses of the local link, at which clouds hand out credentials, are never asked, and a public address
    can't redirect to a private one.

    Args:
        url: The address.
        source: `file:line` for errors.
        key: Which part of the sample it is, for errors.
        what: What errors call it.
        largest: The most bytes; 0 is `LARGEST`.

    Raises:
        DataError: The server can't be reached, refuses, is silent, or sends more than `largest` bytes.
    """
    largest = largest or LARGEST
    kept = _cache_folder() / hashlib.sha256(url.encode()).hexdigest()
    if kept.is_file():
        return kept.read_bytes()
    try:
        data = _download(url, largest)
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", None) or error
        shown = repr(url if len(url) < 80 else f"{url[:77]}...")
        expected = f"a {what} of at most {largest >> 20} MiB that the server sends"
        raise DataError(source, key, f"the URL {shown} ({reason})", expected) from None
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as file:
        file.write(data)
    os.replace(file.name, kept)  # atomic, as other processes may fetch the same file
    return data


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "lightning_vlm", "pictures")


def _download(url: str, largest: int) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _HTTP, _HTTPS)
    request = urllib.request.Request(url, headers={"User-Agent": "lightning-vlm"})
    with opener.open(request, timeout=SECONDS) as answer:
        data = bytearray()
        end = time.monotonic() + LONGEST
        while piece := answer.read1(1 << 16):
            data += piece
            if len(data) > largest:
                raise ValueError(f"more than {largest >> 20} MiB")
            if time.monotonic() > end:
                raise ValueError(f"not there after {LONGEST:.0f} seconds")
    return bytes(data)


class _Connection(http.client.HTTPConnection):
    """A connection that is closed before any request if its address isn't allowed."""

    def __init__(self, *given: Any, must_be_public: bool = False, **more: Any) -> None:
        super().__init__(*given, **more)
        self._must_be_public = must_be_public

    def connect(self) -> None:
        super().connect()
        # The address of the connection itself, as its name may have been resolved to another one before.
        address = ipaddress.ip_address(self.sock.getpeername()[0].partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        if address.is_link_local or (self._must_be_public and not address.is_global):
            self.close()
            raise ValueError(f"{address} is a private address")


class _SecureConnection(_Connection, http.client.HTTPSConnection):
    pass


class _HTTP(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(partial(_Connection, must_be_public=_is_elsewhere(request)), request)


class _HTTPS(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(partial(_SecureConnection, must_be_public=_is_elsewhere(request)), request)


def _is_elsewhere(request: urllib.request.Request) -> bool:
    """Whether a redirect led to another host than the one that stands in the data."""
    return urlsplit(request.full_url).hostname != request.origin_req_host
