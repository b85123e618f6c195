"""Pictures from a server: only where the reader allows it, once each, within limits, and never from where
clouds keep keys. The servers are real ones of this machine, so most tests allow private addresses."""

import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import PIL.Image
import pytest

from lightning_vlm.data import fetching
from lightning_vlm.data.images import load_image
from lightning_vlm.data.public_addresses import is_link_local, is_public
from lightning_vlm.data.read.readers import read
from lightning_vlm.errors import DataError


class Handler(BaseHTTPRequestHandler):
    """Serves the files of the working directory, and answers badly under some paths."""

    def __init__(self, asked, *rest):
        self.asked = asked
        super().__init__(*rest)

    def do_GET(self):
        self.asked.append(self.path)
        first, _, rest = self.path[1:].partition("/")
        if first == "to":
            self._answer(302, rest if "://" in rest or rest.startswith("//") else f"/{rest}")
        elif first == "loop":
            self._answer(302, "/loop")
        elif first == "slow-header":
            self._drip(b"HTTP/1.0 200 OK\r\nX-Long: ")
        elif first == "slow-body":
            self._drip(b"HTTP/1.0 200 OK\r\n\r\n")
        elif first == "short":
            self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\nabc")
        elif first == "endless":
            self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + b"\x89PNG" * 1_000_000)
        elif Path(self.path[1:]).is_file():
            self._answer(200)
            self.wfile.write(Path(self.path[1:]).read_bytes())
        else:
            self._answer(404)

    def _answer(self, code, location=None):
        self.send_response(code)
        if location:
            self.send_header("Location", location)
        self.end_headers()

    def _drip(self, start):
        """Send a byte again and again, each before a timeout of a single read would end."""
        self.wfile.write(start)
        for _ in range(200):
            try:
                self.wfile.write(b"x")
                self.wfile.flush()
            except OSError:
                return
            time.sleep(0.02)

    def log_message(self, *_):
        pass


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a picture, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    PIL.Image.new("RGB", (2, 2), (255, 0, 0)).save("cat.png")


@pytest.fixture
def server(place):
    asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, asked))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def source(url, **options):
    Path("data.jsonl").write_text(json.dumps({"question": "What?", "answer": "A cat.", "image": url}))
    return read("data.jsonl", **options)


def fetch(url, **options):
    return fetching.fetch(url, "a.jsonl:1", "image", **options)


def refused(url, **options):
    with pytest.raises(DataError) as caught:
        fetch(url, **options)
    message = str(caught.value)
    assert message.startswith("a.jsonl:1: image: found the URL '")
    assert "\n" not in message
    return message


def test_pictures_are_fetched_once_and_only_when_allowed(server):
    address, asked = server
    url = f"{address}/cat.png"
    with pytest.raises(DataError, match=r"data.jsonl:1: image: found the URL .*data.allow_urls: true"):
        source(url)
    allowed = source(url, allow_urls="private")
    assert asked == []
    for _ in range(2):
        (image,) = allowed[0].images
        assert load_image(image, "data.jsonl:1", "image").getpixel((0, 0)) == (255, 0, 0)
    assert asked == ["/cat.png"]


def test_this_machine_is_asked_only_where_private_addresses_are_allowed(server):
    address, asked = server
    (image,) = source(f"{address}/cat.png", allow_urls=True)[0].images
    with pytest.raises(DataError, match=r"127.0.0.1 is a private address; data.allow_urls: private allows"):
        load_image(image, "data.jsonl:1", "image")
    assert asked == []


LOCAL = {
    "a name": "localhost",
    "a decimal number": "2130706433",
    "a hexadecimal number": "0x7f000001",
    "octal digits": "0177.0.0.1",
    "two numbers": "127.1",
    "any address": "0.0.0.0",
    "IPv6": "[::1]",
    "IPv4 in IPv6": "[::ffff:127.0.0.1]",
    "IPv4 in IPv6, in digits": "[::ffff:7f00:1]",
}


@pytest.mark.parametrize("host", LOCAL.values(), ids=LOCAL)
def test_no_spelling_of_this_machine_is_public(server, host):
    address, asked = server
    refused(f"http://{host}:{address.rpartition(':')[2]}/cat.png")
    assert asked == []


@pytest.mark.parametrize(
    "address",
    [
        *("10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "127.0.0.1", "0.0.0.0", "169.254.169.254"),
        *("224.0.0.1", "255.255.255.255", "::", "::1", "fc00::1", "fd00:ec2::254", "fe80::1%eth0", "ff02::1"),
        *("::ffff:10.0.0.1", "::10.0.0.1", "64:ff9b::10.0.0.1", "2002:a00:1::"),
    ],
)
def test_private_addresses(address):
    assert not is_public(address)


def test_public_addresses():
    for address in ("93.184.215.14", "2606:2800:21f:cb07::1", "64:ff9b::93.184.215.14"):
        assert is_public(address)
    assert not is_link_local("10.0.0.1")


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]", "2852039166", "[fd00:ec2::254]"]
)
@pytest.mark.parametrize("private", [False, True])
def test_addresses_of_the_local_link_are_never_asked(place, host, private):
    """There clouds hand out credentials."""
    assert "link-local" in refused(f"http://{host}/latest/meta-data", private=private)


def test_a_name_is_resolved_once(server, monkeypatch):
    """A server of names that says a public address first and a private one then is asked only once, and the
    connection goes to what it said."""
    resolved, connected = [], []

    def resolve(host, port, **_):
        resolved.append(host)
        address = "93.184.215.14" if len(resolved) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    class Unconnected(socket.socket):
        def connect(self, place):
            connected.append(place[0])
            raise OSError("not here")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "socket", Unconnected)
    assert "not here" in refused("http://rebinding.example/cat.png")
    assert (resolved, connected) == (["rebinding.example"], ["93.184.215.14"])


def test_one_private_address_of_a_name_is_enough_to_refuse_it(place, monkeypatch):
    both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 80)) for one in ("93.184.215.14", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    assert "10.0.0.1 is a private address" in refused("http://two.example/cat.png")


REDIRECTS = {
    "to a private address": ("to/http://localhost:{port}/cat.png", "private address"),
    "to the local link": ("to/http://169.254.169.254/latest", "link-local"),
    "to a file": ("to/file:///etc/passwd", "no http or https address"),
    "to FTP": ("to/ftp://127.0.0.1:{port}/cat.png", "no http or https address"),
    "to Gopher": ("to/gopher://127.0.0.1:{port}/_", "no http or https address"),
    "to data": ("to/data://image/png;base64,AAAA", "no http or https address"),
    "without end": ("loop", "more than 5 redirects"),
}


@pytest.mark.parametrize(("path", "reason"), REDIRECTS.values(), ids=REDIRECTS)
def test_redirects_that_are_not_followed(server, path, reason):
    address, asked = server
    url = f"{address}/{path.format(port=address.rpartition(':')[2])}"
    assert reason in refused(url, private=True)
    assert "/cat.png" not in asked


def test_redirects_that_are_followed(server):
    address, asked = server
    assert fetch(f"{address}/to/to/cat.png", private=True) == Path("cat.png").read_bytes()
    assert asked == ["/to/to/cat.png", "/to/cat.png", "/cat.png"]


BAD = {
    "missing": ("none.png", "the server answers 404"),
    "cut short": ("short", "997 bytes fewer than the server promised"),
    "too large": ("endless", "more than 1 MiB"),
}


@pytest.mark.parametrize(("path", "reason"), BAD.values(), ids=BAD)
def test_what_a_server_sends_badly(server, path, reason):
    address, _ = server
    assert reason in refused(f"{address}/{path}", private=True, largest=1 << 20)
    assert not Path("cache").exists()


@pytest.mark.parametrize("path", ["slow-header", "slow-body"])
def test_the_time_limit_is_one_of_the_whole(server, monkeypatch, path):
    """Each byte comes in time."""
    address, _ = server
    monkeypatch.setattr(fetching, "LONGEST", 0.3)
    start = time.monotonic()
    assert "not there after 0 seconds" in refused(f"{address}/{path}", private=True)
    assert time.monotonic() - start < 1.5


def test_a_silent_server(place, monkeypatch):
    monkeypatch.setattr(fetching, "SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "timed out" in refused(f"http://127.0.0.1:{silent.getsockname()[1]}/cat.png", private=True)


def test_what_is_no_picture(server):
    address, _ = server
    (image,) = source(f"{address}/data.jsonl", allow_urls="private")[0].images
    with pytest.raises(DataError, match=r"data.jsonl:1: image: found .*not a picture"):
        load_image(image, "data.jsonl:1", "image")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_a_certificate_that_nobody_vouches_for(place):
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "key.pem"]
    certificate = ["-x509", "-out", "c.pem", "-days", "1", "-subj", "/CN=127.0.0.1"]
    subprocess.run(["openssl", "req", *key, *certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("c.pem", "key.pem")
    asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, asked))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        url = f"https://127.0.0.1:{server.server_port}/cat.png"
        assert "CERTIFICATE_VERIFY_FAILED" in refused(url, private=True)
        assert asked == []
    finally:
        server.shutdown()
        server.server_close()
