"""What may ask a run to save or to end between two updates: signals to any rank, files in the run folder."""

from __future__ import annotations

import contextlib
import time
from enum import IntEnum

from pretrain import distributed
from pretrain.attempt import Attempt
from pretrain.distributed import World
from pretrain.errors import PreemptedError, StoppedError
from pretrain.signals import StopRequest

FOLDER = "control"


class Request(IntEnum):
    """Asked of all ranks; of several the largest counts."""

    NONE = 0
    SAVE = 1
    """`RUN/control/save`: save now and go on."""
    PREEMPT = 2
    """A stop signal: save and end, to be run again."""
    STOP = 3
    """`RUN/control/stop`: save and end, and stay ended."""

    @property
    def ends(self) -> bool:
        """Whether training stops for it."""
        return self >= Request.PREEMPT


_FILES = {Request.STOP: "stop", Request.SAVE: "save"}


class Control:
    """One rank's ear: every rank hears signals; rank 0 also looks for files, and for a newer start."""

    def __init__(self, attempt: Attempt, world: World, *, every: float = 1.0) -> None:
        """Rank 0 looks for files once in `every` seconds at most: a file system may be slow to answer."""
        self._attempt, self._world, self._every = attempt, world, every
        self._folder = attempt.run_dir / FOLDER
        self._looked = -every
        self._signals = StopRequest()
        if world.is_first:
            with contextlib.suppress(OSError):  # a run that cannot write says so elsewhere
                self._folder.mkdir(exist_ok=True)

    def agree(self) -> Request:
        """What any rank has heard. Collective: the one reduction that an update pays for being asked."""
        return Request(distributed.largest(self.heard(), self._world.device))

    def heard(self) -> Request:
        """What this rank has heard."""
        asked = Request.PREEMPT if self._signals.name else Request.NONE
        if not self._world.is_first:
            return asked
        if self._attempt.superseded:
            return Request.PREEMPT  # the save then finds that it may not write, and says so
        now = time.monotonic()
        if now - self._looked >= self._every:
            self._looked = now
            found = [request for request, name in _FILES.items() if (self._folder / name).exists()]
            asked = max([asked, *found])
        return asked

    def clear(self, request: Request) -> None:
        """Rank 0 takes away the file of a request that is met, and `save` with every larger one."""
        if self._world.is_first:
            for other, name in _FILES.items():
                if other <= request:
                    with contextlib.suppress(OSError):
                        (self._folder / name).unlink(missing_ok=True)

    def ending(self, request: Request, saved: str) -> PreemptedError:
        """The exception that ends training for a request; `saved` is what became of the save."""
        if request == Request.STOP:
            return StoppedError(f"control/stop: {saved}")
        return PreemptedError(f"{self._signals.name or 'a signal to another rank'}: {saved}")
