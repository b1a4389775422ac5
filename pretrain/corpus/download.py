"""Reading over HTTP: a stream that goes on from the byte where its connection broke."""

from __future__ import annotations

import re
from typing import Any

import requests
import tenacity
import urllib3

from pretrain.errors import UserError

ATTEMPTS = 8
"""Attempts without a single new byte before giving up; the waits between them double up to `LONGEST_WAIT`."""
FIRST_WAIT, LONGEST_WAIT = 0.2, 30.0
TIMEOUT = (10.0, 60.0)
"""Seconds to connect, and seconds without a byte."""
AGAIN = "check address and network, then run the same command again: it goes on where it was"
PLAIN = {"Accept-Encoding": "identity"}
RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}


class HttpInput:
    """The bytes of one address, in order, as if the connection never broke.

    A new connection asks for the rest by `Range`; a server that sends the whole again is read up to where
    we were. Raises UserError when the address refuses, changes meanwhile, or brings nothing new in
    `ATTEMPTS` attempts.
    """

    def __init__(self, url: str):
        self.position = 0
        self._url = url
        self._session = requests.Session()
        self._response: requests.Response | None = None
        self._known: tuple[str | None, int | None] = (None, None)
        # What tells that the address still holds the same bytes: its ETag (or date) and its length.

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; empty at the end."""
        return bytes(_retrying(self._url)(self._read_once, size))

    def close(self) -> None:
        """Let go of the connection."""
        self._drop()
        self._session.close()

    def _read_once(self, size: int) -> bytes:
        response = self._response or self._connect()
        self._response = response
        try:
            data: bytes = response.raw.read(size, decode_content=False)
        except (urllib3.exceptions.HTTPError, requests.RequestException, OSError) as error:
            self._drop()
            raise _BrokenError(error) from None
        self.position += len(data)
        return data

    def _connect(self) -> requests.Response:
        headers = {**PLAIN, **({"Range": f"bytes={self.position}-"} if self.position else {})}
        response = _request(self._session, "GET", self._url, headers)
        start, total = _range(response)
        found = (response.headers.get("ETag") or response.headers.get("Last-Modified"), total)
        pairs = zip(self._known, found, strict=True)
        same = all(old is None or new is None or old == new for old, new in pairs)
        if not same or response.status_code == 416 or start > self.position:
            response.close()
            raise UserError("changed while it was read", where=self._url, mend="build again with --restart")
        self._known = found
        self._skip(response, self.position - start)
        return response

    def _skip(self, response: requests.Response, count: int) -> None:
        while count > 0:
            try:
                data = response.raw.read(min(count, 1 << 20), decode_content=False)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise _BrokenError(error) from None
            if not data:
                raise UserError("became shorter while it was read", where=self._url, mend="use --restart")
            count -= len(data)

    def _drop(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None


def remote_size(url: str) -> int | None:
    """Bytes at an address, None when the server does not tell. Raises UserError when it cannot be reached."""
    with requests.Session() as session:
        response = _retrying(url)(_request, session, "HEAD", url, PLAIN)
        length = response.headers.get("Content-Length", "")
        return int(length) if response.ok and length.isdigit() else None


class _BrokenError(Exception):
    """The connection failed in a way that may pass."""


def _request(session: requests.Session, method: str, url: str, headers: dict[str, str]) -> requests.Response:
    try:
        response = session.request(
            method, url, headers=headers, stream=True, timeout=TIMEOUT, allow_redirects=True
        )
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _BrokenError(error) from None
    except requests.RequestException as error:
        raise UserError(f"cannot be asked for ({error})", where=url, mend="check the address") from None
    if response.status_code in RETRIED_STATUS:
        response.close()
        raise _BrokenError(f"status {response.status_code}")
    unasked = method == "HEAD" and response.status_code in (403, 405, 501)  # some servers answer GET only
    if not response.ok and response.status_code != 416 and not unasked:
        response.close()
        raise UserError(f"the server says {response.status_code} {response.reason}", where=url, mend=AGAIN)
    return response


def _range(response: requests.Response) -> tuple[int, int | None]:
    """First byte that the response holds, and the length of the whole."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if response.status_code == 206 and found:
        return int(found[1]), int(found[2]) if found[2] != "*" else None
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _retrying(url: str) -> tenacity.Retrying:
    def give_up(state: tenacity.RetryCallState) -> Any:
        reason = state.outcome.exception() if state.outcome else ""
        raise UserError(f"no answer after {ATTEMPTS} attempts ({reason})", where=url, mend=AGAIN)

    return tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT),
        retry=tenacity.retry_if_exception_type(_BrokenError),
        retry_error_callback=give_up,
    )
