"""Pictures from the network, for data whose reader was allowed to fetch them."""

import hashlib
import http.client
import os
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

from lightning_vlm.data.public_addresses import is_link_local, is_public
from lightning_vlm.errors import DataError

LARGEST = 64 << 20
"""The most bytes of a picture that is fetched."""
SECONDS = 20.0
"""How long a server may be silent."""
LONGEST = 120.0
"""How many seconds a picture may take as a whole, redirects and headers included."""
REDIRECTS = 5
"""How many times a server may send the request elsewhere."""
_ELSEWHERE = (301, 302, 303, 307, 308)
_IN_PLACE = "!$%&'()*+,/:;=?@[]~"
"""The characters of an address that stay as they are."""


def fetch(
    url: str, source: str, key: str, what: str = "picture", largest: int = 0, private: bool = False
) -> bytes:
    """The bytes that a http or https address gives. Each is fetched once and kept in the cache folder.

    A private address, such as that of this machine or of the network behind a firewall, is only asked with
    `private`, and no server can redirect to one. The link-local addresses, at which clouds hand out
    credentials, are never asked. A name is resolved once, and the connection goes to the address that was
    checked.

    Args:
        url: The address.
        source: `file:line` for errors.
        key: Which part of the sample it is, for errors.
        what: What errors call it.
        largest: The most bytes; 0 is `LARGEST`.
        private: Whether the address itself may be a private one.

    Raises:
        DataError: The server can't be reached or may not be asked, refuses, takes too long, or sends more
            than `largest` bytes.
    """
    largest = largest or LARGEST
    kept = _cache_folder() / hashlib.sha256(url.encode()).hexdigest()
    if kept.is_file():
        return kept.read_bytes()
    try:
        data = _download(url, largest, private)
    except (OSError, ValueError, http.client.HTTPException) as error:
        shown = repr(url if len(url) < 80 else f"{url[:77]}...")
        reason = " ".join(str(error).split()) or type(error).__name__
        expected = f"a {what} of at most {largest >> 20} MiB that the server sends"
        raise DataError(source, key, f"the URL {shown} ({reason[:200]})", expected) from None
    with suppress(OSError):  # what can't be kept, as on a full disk, is fetched again
        _keep(kept, data)
    return data


def _keep(kept: Path, data: bytes) -> None:
    """Write a file at once, as other processes may fetch the same one."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    file = tempfile.NamedTemporaryFile(dir=kept.parent, delete=False)  # noqa: SIM115  # closed below
    try:
        with file:
            file.write(data)
        os.replace(file.name, kept)
    except OSError:
        os.unlink(file.name)
        raise


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "lightning_vlm", "pictures")


def _download(url: str, largest: int, private: bool) -> bytes:
    """What an address gives, behind all redirects."""
    end = time.monotonic() + LONGEST
    first_host = urlsplit(url).hostname
    for _ in range(REDIRECTS + 1):
        address = urlsplit(url)
        connection = _Connection(url, private and address.hostname == first_host)
        with closing(connection), _time_limit(connection, end):
            path = quote(address.path or "/", safe=_IN_PLACE)
            query = f"?{quote(address.query, safe=_IN_PLACE)}" if address.query else ""
            connection.request("GET", f"{path}{query}", headers={"User-Agent": "lightning-vlm"})
            answer = connection.getresponse()
            where = answer.getheader("Location")
            if answer.status in _ELSEWHERE and where:
                url = urljoin(url, where)
                continue
            if answer.status != http.client.OK:
                raise ValueError(f"the server answers {answer.status} {answer.reason}")
            return _content(answer, largest)
    raise ValueError(f"more than {REDIRECTS} redirects")


def _content(answer: http.client.HTTPResponse, largest: int) -> bytes:
    data = bytearray()
    while piece := answer.read1(1 << 16):
        data += piece
        if len(data) > largest:
            raise ValueError(f"more than {largest >> 20} MiB")
    if answer.length:
        raise ValueError(f"{answer.length:,} bytes fewer than the server promised")
    return bytes(data)


@contextmanager
def _time_limit(connection: "_Connection", end: float) -> Iterator[None]:
    """Cut a connection off at a time, however slowly its server sends headers or content.

    The timeout of a socket is about each read alone, and a server may send a byte before each of them ends.
    """
    late = threading.Event()

    def cut_off() -> None:
        late.set()
        connection.cut_off()

    timer = threading.Timer(max(0.0, end - time.monotonic()), cut_off)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, ValueError, http.client.HTTPException):
        if not late.is_set():
            raise
    finally:
        timer.cancel()
    if late.is_set():
        raise ValueError(f"not there after {LONGEST:.0f} seconds")


class _Connection(http.client.HTTPConnection):
    """A connection to an address that may be asked. Nothing is sent to any other.

    Args:
        url: Of the scheme http or https.
        private: Whether its address may be a private one.

    Raises:
        ValueError: It is no such URL.
    """

    def __init__(self, url: str, private: bool) -> None:
        address = urlsplit(url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError(f"a redirect to {url[:80]!r}, which is no http or https address")
        self._secure = address.scheme == "https"
        self._private = private
        self._open: socket.socket | None = None
        self.default_port = 443 if self._secure else 80
        super().__init__(address.hostname, address.port or self.default_port, timeout=SECONDS)

    def connect(self) -> None:
        """Connect to one of the first addresses of the host, if all that it has may be asked."""
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        for *_, place in found:
            self._check(str(place[0]))
        failure = OSError(f"{self.host} has no address")
        for family, kind, protocol, _, place in found[:3]:
            self.sock = self._open = socket.socket(family, kind, protocol)
            self.sock.settimeout(SECONDS)
            try:
                self.sock.connect(place)
                break
            except OSError as error:
                self.sock.close()
                failure = error
        else:
            raise failure
        if self._secure:
            context = ssl.create_default_context()
            self.sock = self._open = context.wrap_socket(
                self.sock, server_hostname=self.host, do_handshake_on_connect=False
            )
            self.sock.do_handshake()

    def cut_off(self) -> None:
        """End whatever waits for the server, from another thread."""
        if self._open is not None:  # `sock` has gone as soon as the answer is read
            with suppress(OSError):  # it may be closed already
                socket.socket.shutdown(self._open, socket.SHUT_RDWR)

    def _check(self, address: str) -> None:
        if is_link_local(address):
            raise ValueError(f"{address} is a link-local address, which is never asked")
        if not self._private and not is_public(address):
            fix = "data.allow_urls: private allows those that stand in the data"
            raise ValueError(f"{address} is a private address; {fix}")
