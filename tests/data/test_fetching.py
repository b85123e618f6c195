"""Pictures from a server: only where the reader allows it, once each, never from where clouds keep keys."""

import json
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lightning_vlm.data import fetching
from lightning_vlm.data.images import load_image
from lightning_vlm.data.read.readers import read
from lightning_vlm.errors import DataError

pytestmark = pytest.mark.usefixtures("folder")


class Handler(BaseHTTPRequestHandler):
    def __init__(self, asked, *rest):
        self.asked = asked
        super().__init__(*rest)

    def do_GET(self):
        self.asked.append(self.path)
        found = Path(self.path[1:])
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", "http://" + self.path[4:])
        else:
            self.send_response(200 if found.is_file() else 404)
        self.end_headers()
        if found.is_file():
            self.wfile.write(found.read_bytes())

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def source(url, **options):
    Path("data.jsonl").write_text(json.dumps({"question": "What?", "answer": "A cat.", "image": url}))
    return read("data.jsonl", **options)


def test_pictures_are_fetched_once_and_only_when_allowed(server):
    address, asked = server
    url = f"{address}/cat.png"
    with pytest.raises(DataError, match=r"data.jsonl:1: image: found the URL .*data.allow_urls: true"):
        source(url)
    allowed = source(url, allow_urls=True)
    assert asked == []
    for _ in range(2):
        (image,) = allowed[0].images
        assert load_image(image, "data.jsonl:1", "image").getpixel((0, 0)) == (255, 0, 0)
    assert asked == ["/cat.png"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("none.png", "Not Found"),
        ("data.jsonl", "not a picture"),
        ("to/localhost:{port}/cat.png", "a private address"),  # another name may lead anywhere
    ],
)
def test_what_cannot_be_fetched(server, path, reason):
    address, _ = server
    url = f"{address}/{path.format(port=address.rpartition(':')[2])}"
    (image,) = source(url, allow_urls=True)[0].images
    with pytest.raises(DataError, match=reason) as caught:
        load_image(image, "data.jsonl:1", "image")
    assert str(caught.value).startswith("data.jsonl:1: image: found ")
    assert "\n" not in str(caught.value)


def test_a_picture_that_never_ends_is_not_taken(server, monkeypatch):
    address, _ = server
    monkeypatch.setattr(fetching, "LARGEST", 10)
    with pytest.raises(DataError, match="more than"):
        fetching.fetch(f"{address}/cat.png", "a:1", "image")


def test_addresses_of_the_local_link_are_never_asked(monkeypatch):
    """There clouds hand out credentials. Nothing is sent before the address is known."""
    sent = []

    class Socket:
        def getpeername(self):
            return ("169.254.169.254", 80)

        def close(self):
            pass

        def sendall(self, data):
            sent.append(data)

    monkeypatch.setattr("http.client.HTTPConnection.connect", lambda self: setattr(self, "sock", Socket()))
    with pytest.raises(DataError, match=r"169.254.169.254 is a private address"):
        fetching.fetch("http://metadata/latest", "a:1", "image")
    assert sent == []
