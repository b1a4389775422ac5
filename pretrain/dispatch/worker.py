"""A data worker: its own process without torch, building every n-th batch of a rank ahead of the training.

Started by `workers.py` with the number of a pipe as its argument. It reads a `Task` from standard input and
writes products to the pipe. It ends when that pipe closes, and by nothing else: a termination signal sent to
the whole process group must not take the data away from a training that still wants to reach its checkpoint.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import Queue
from typing import Any

from pretrain.dispatch.producer import Order, Producer
from pretrain.errors import UserError

DEAF_TO = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


@dataclass(frozen=True)
class Task:
    """What one worker has to do: every `workers`-th timestep of the order, beginning at a state."""

    order: Order
    state: dict[str, Any]
    worker: int
    workers: int
    prefetch: int


@dataclass(frozen=True)
class Failure:
    """Why a worker could not go on: the parts of a UserError, or the traceback of a bug."""

    error: type[UserError] | None
    what: str
    where: str = ""
    mend: str = ""


def main() -> None:
    """Serve one task and exit when the reader is gone or the data have ended."""
    for number in DEAF_TO:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, DEAF_TO)
    pipe = Connection(int(sys.argv[1]), readable=False)
    try:
        task: Task = pickle.load(sys.stdin.buffer)
    except (EOFError, pickle.UnpicklingError):  # the training process ended before it could say what to do
        return
    ready: Queue[bytes | None] = Queue(maxsize=task.prefetch)
    sender = threading.Thread(target=_send, args=(pipe, ready))
    sender.start()
    try:
        _work(task, ready)
    except UserError as error:
        ready.put(pickle.dumps(Failure(type(error), error.what, error.where, error.mend)))
    except Exception:
        ready.put(pickle.dumps(Failure(None, traceback.format_exc())))
    ready.put(None)
    sender.join()


def _work(task: Task, ready: Queue[bytes | None]) -> None:
    producer = Producer(task.order)
    producer.plan.load(task.state)
    while True:
        if producer.plan.timestep % task.workers != task.worker:
            if not producer.advance():
                return
            continue
        product = producer.produce()
        ready.put(pickle.dumps(product, protocol=5))
        if product is None:
            return


def _send(pipe: Connection, ready: Queue[bytes | None]) -> None:
    while (message := ready.get()) is not None:
        try:
            pipe.send_bytes(message)
        except OSError:  # the training process has closed the pipe, or is no more
            os._exit(0)
