"""HTTP inputs against a real server on this machine that breaks in every way servers break."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from pretrain.corpus import download
from pretrain.corpus.download import HttpInput, remote_size
from pretrain.errors import UserError
from tests.pretrain.corpus.conftest import jsonl, text_of
from tests.pretrain.corpus.test_formats import read

BODY = b"".join(b"%09d\n" % number for number in range(60_000))


@dataclass
class Site:
    """What the server does, and what it was asked."""

    body: bytes = BODY
    breaks: list[int] = field(default_factory=list)
    """Bytes after which each response breaks off, first response first."""
    failures: list[int] = field(default_factory=list)
    """Status codes with which the next requests are turned away."""
    ranges: bool = True
    head: int = 200
    tag: str | None = '"one"'
    asked: list[str | None] = field(default_factory=list)
    """Range header of each GET."""
    url: str = ""


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one body, badly."""

    protocol_version = "HTTP/1.1"
    site: Site

    def do_HEAD(self) -> None:
        self.send_response(self.site.head)
        self.send_header("Content-Length", str(len(self.site.body)))
        self.end_headers()

    def do_GET(self) -> None:
        site, wanted = self.site, self.headers.get("Range")
        site.asked.append(wanted)
        if site.failures:
            self.send_response(site.failures.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        found = re.fullmatch(r"bytes=(\d+)-", wanted or "")
        start = int(found[1]) if found and site.ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(site.body) - 1}/{len(site.body)}")
        if site.tag:
            self.send_header("ETag", site.tag)
        data = site.body[start:]
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if site.breaks:
            data = data[: site.breaks.pop(0)]
            self.close_connection = True
        with contextlib.suppress(ConnectionError):  # clients leave when they are told of a change
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(download, "FIRST_WAIT", 0.001)
    made = Site()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"site": made}))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_address[1]}/text.jsonl"
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(site: Site) -> bytes:
    stream = HttpInput(site.url)
    parts = []
    while data := stream.read(4096):
        parts.append(data)
    stream.close()
    return b"".join(parts)


def test_whole_in_one_go(site: Site) -> None:
    assert fetch(site) == BODY
    assert site.asked == [None]
    assert remote_size(site.url) == len(BODY)


def test_goes_on_from_the_byte_where_it_broke(site: Site) -> None:
    site.breaks = [100_000, 0, 5, 77_777]
    assert fetch(site) == BODY
    starts = [int(wanted.removeprefix("bytes=").rstrip("-")) for wanted in site.asked if wanted]
    assert starts == [100_000, 100_000, 100_005, 177_782]


def test_a_server_without_ranges_is_read_again_up_to_the_place(site: Site) -> None:
    site.ranges, site.breaks = False, [100_000, 150_000]
    assert fetch(site) == BODY


def test_a_busy_server_is_asked_again(site: Site) -> None:
    site.failures = [503, 429, 500]
    assert fetch(site) == BODY
    assert len(site.asked) == 4


def test_without_an_entity_tag(site: Site) -> None:
    site.tag, site.breaks = None, [10]
    assert fetch(site) == BODY


def test_gives_up_after_attempts_without_a_byte(site: Site) -> None:
    site.failures = [503] * 100
    with pytest.raises(UserError, match="no answer after 8 attempts"):
        fetch(site)
    assert len(site.asked) == download.ATTEMPTS


def test_a_change_in_between_is_no_silent_mixture(site: Site) -> None:
    stream = HttpInput(site.url)
    site.breaks = [1000]
    assert stream.read(1000) == BODY[:1000]
    site.tag = '"two"'
    with pytest.raises(UserError, match="changed while it was read"):
        stream.read(1000)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_refusals_are_final(site: Site, status: int) -> None:
    site.failures = [status]
    with pytest.raises(UserError, match=str(status)):
        fetch(site)
    assert len(site.asked) == 1


def test_sizes_that_servers_do_not_tell(site: Site) -> None:
    site.head = 405
    assert remote_size(site.url) is None
    site.head = 404
    with pytest.raises(UserError, match="404"):
        remote_size(site.url)


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "FIRST_WAIT", 0.001)
    with pytest.raises(UserError, match="no answer"):
        remote_size("http://127.0.0.1:9/nothing.jsonl")


def test_corpora_are_read_through_broken_connections(site: Site) -> None:
    texts = [text_of(number, 200) for number in range(3000)]
    site.body = gzip.compress(jsonl([{"text": text} for text in texts]), 1)
    site.breaks = [len(site.body) // 5] * 4
    assert read(site.url) == (texts, {"jsonl": 1}, [])
    assert len(site.asked) == 5
