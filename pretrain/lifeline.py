"""A line between every rank and rank 0, beside the collectives: it carries signs of life and last words.

Collectives tell of a dead peer late, in the words of a transport, or never (NCCL waits). A socket that the
kernel closes tells at once and of whom. Messages are JSON objects, one a line; nothing is pickled, and who
does not know the token, which travels through the process group, is not listened to.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pretrain.errors import UserError

Message = dict[str, Any]
Event = tuple[int, Message | None]
"""What a rank said, or None: its connection has ended."""

_LONGEST = 1 << 16
_WELCOME: Message = {"welcome": True}


@dataclass(frozen=True)
class Address:
    """Where rank 0 listens: the names it may be reached by, in the order to try them."""

    hosts: tuple[str, ...]
    port: int
    token: str


class Line(Protocol):
    """One rank's end."""

    def poll(self, seconds: float) -> list[Event]:
        """What has come; waits for it so long at most. One thread only."""

    def tell(self, message: Message) -> None:
        """To rank 0, or from rank 0 to all. Never waits, never fails: who is gone hears nothing."""

    def close(self) -> None:
        """Hang up."""


class Hub:
    """Rank 0's end: every other rank connects to it."""

    def __init__(self, hosts: Sequence[str]) -> None:
        """Listen on a free port; `hosts` are this machine's names."""
        self._listener = socket.create_server(("", 0), backlog=4096)
        self._listener.setblocking(False)
        names = tuple(dict.fromkeys(hosts))
        self.address = Address(names, self._listener.getsockname()[1], secrets.token_hex(16))
        self._peers: dict[int, _Connection] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)

    def poll(self, seconds: float) -> list[Event]:
        events: list[Event] = []
        for key, _ in self._selector.select(seconds):
            if key.data is None:
                self._accept()
            else:
                events += self._hear(key.data)
        return events

    def tell(self, message: Message) -> None:
        for peer in list(self._peers.values()):
            peer.send(message)

    def close(self) -> None:
        for key in list(self._selector.get_map().values()):
            self._selector.unregister(key.fileobj)
            if key.data is not None:
                key.data.close()
        self._listener.close()
        self._selector.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            stream, _ = self._listener.accept()
            self._selector.register(stream, selectors.EVENT_READ, _Connection(stream))

    def _hear(self, peer: _Connection) -> list[Event]:
        events: list[Event] = []
        for message in peer.receive():
            if peer.rank is None:
                self._admit(peer, message)
            else:
                events.append((peer.rank, message))
        if not peer.open:
            self._selector.unregister(peer.stream)
            peer.close()
            if peer.rank is not None:
                self._peers.pop(peer.rank, None)
                events.append((peer.rank, None))
        return events

    def _admit(self, peer: _Connection, message: Message) -> None:
        rank, token = message.get("rank"), str(message.get("token"))
        if isinstance(rank, int) and hmac.compare_digest(token.encode(), self.address.token.encode()):
            peer.rank = rank
            self._peers[rank] = peer
            peer.send(_WELCOME)
        else:
            peer.open = False


class Spoke:
    """Any other rank's end: connected to rank 0."""

    def __init__(self, rank: int, address: Address, timeout: float) -> None:
        """Raises UserError where rank 0 does not answer within `timeout` seconds."""
        self._peer = _connect(rank, address, timeout)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._peer.stream, selectors.EVENT_READ)

    def poll(self, seconds: float) -> list[Event]:
        if not self._peer.open:
            time.sleep(seconds)
            return []
        events: list[Event] = []
        if self._selector.select(seconds):
            events += [(0, message) for message in self._peer.receive()]
            if not self._peer.open:
                events.append((0, None))
        return events

    def tell(self, message: Message) -> None:
        self._peer.send(message)

    def close(self) -> None:
        self._selector.close()
        self._peer.close()


class Alone:
    """The line of a rank without peers."""

    def poll(self, seconds: float) -> list[Event]:
        time.sleep(seconds)
        return []

    def tell(self, message: Message) -> None:
        """Nobody hears."""

    def close(self) -> None:
        """Nothing."""


class _Connection:
    """Messages over a socket."""

    def __init__(self, stream: socket.socket) -> None:
        stream.setblocking(False)
        self.stream = stream
        self.open = True
        self.rank: int | None = None
        self._received = b""

    def send(self, message: Message) -> None:
        # What does not fit into the buffers of a peer that has stopped reading is not for its ears.
        with contextlib.suppress(OSError):
            self.stream.send(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[Message]:
        """What has come; `open` is False when no more will."""
        try:
            data = self.stream.recv(_LONGEST)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            data = b""
        *lines, self._received = (self._received + data).split(b"\n")
        self.open = bool(data) and len(self._received) < _LONGEST
        return [message for line in lines if (message := _parse(line)) is not None]

    def close(self) -> None:
        self.stream.close()


def _parse(line: bytes) -> Message | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def _connect(rank: int, address: Address, timeout: float) -> _Connection:
    until = time.monotonic() + timeout
    problem = "nobody answers"
    while True:
        for host in address.hosts:
            try:
                stream = socket.create_connection((host, address.port), timeout=10)
                stream.sendall(json.dumps({"rank": rank, "token": address.token}).encode() + b"\n")
                if stream.recv(len(json.dumps(_WELCOME)) + 1):
                    return _Connection(stream)
                stream.close()
            except OSError as error:
                problem = str(error)
        if time.monotonic() > until:
            raise UserError(
                f"cannot reach rank 0 at {' or '.join(address.hosts)}, port {address.port}: {problem}",
                where=f"rank {rank}",
                mend="let the nodes of a job connect to one another on any port, or set train.peer_timeout=0",
            )
        time.sleep(0.2)
