"""Where a rank stands: written by the training as it goes, read by the watchdog's thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from pretrain.attempt import Attempt

Phase = Literal[
    "start",
    "rehearsal",
    "data",
    "counting",
    "forward/backward",
    "reduction",
    "optimizer",
    "figures",
    "validation",
    "agreement",
    "save",
    "finish",
]

SLOW: frozenset[Phase] = frozenset({"start", "rehearsal", "validation", "save", "finish"})
"""Phases that may be long without a sign of progress: DeepSpeed starts, layers compile, files are written."""


@dataclass(frozen=True)
class Standing:
    """Where a rank is. All ranks pass the same phases in the same order, so places can be compared."""

    phase: Phase = "start"
    update: int = 0
    place: int = 0
    """Phases entered so far: of two ranks, the one with the smaller place is behind."""
    beats: int = 0
    """Signs of progress so far."""
    slow: bool = True
    """Whether this phase may take its time."""

    def __str__(self) -> str:
        return f"{self.phase} of update {self.update}" if self.update else self.phase


class Pulse:
    """One rank's standing. Costs next to nothing, so that it can be told often."""

    def __init__(self) -> None:
        self.standing = Standing()
        self.attempt: Attempt | None = None
        """The start of the run that this is, once it has claimed the run folder."""
        self._settled = False

    def enter(self, phase: Phase, update: int | None = None) -> None:
        """A phase begins; `update` counts from 1 and stays until another is given."""
        now = self.standing
        self.standing = Standing(
            phase,
            now.update if update is None else update,
            now.place + 1,
            now.beats + 1,
            slow=phase in SLOW or not self._settled,
        )

    def settle(self) -> None:
        """The first update is through: what was to be compiled is compiled."""
        self._settled = True

    def beat(self) -> None:
        """Progress inside a phase."""
        self.standing = replace(self.standing, beats=self.standing.beats + 1)

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, every one of its calls a sign of progress."""

        def beating(*args: Any, **kwargs: Any) -> Any:
            self.beat()
            return call(*args, **kwargs)

        return beating
