"""Where ranks stand, and the verdict on those that are given up: the watchdog's judgement, without a clock.

Time is told to a `Table`, and it touches neither threads nor connections; `watchdog.py` brings both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pretrain.errors import EXIT_RESTART, UserError
from pretrain.pulse import Standing
from pretrain.recipe import TrainSection

FINISHING = 900.0
"""Seconds more for the end of a run, where the tracker uploads for as long as it was told to."""
PATIENCE = 0.9
"""Share of the collective timeout after which slow phases are ended: before the transport does it."""

AGAIN = "run the same command to go on from the last checkpoint"


@dataclass(frozen=True)
class Limits:
    """Seconds after which a rank is given up."""

    silence: float = math.inf
    stall: float = math.inf
    slow: float = math.inf

    @classmethod
    def of(cls, train: TrainSection) -> Limits:
        """Those of a recipe; without a `peer_timeout` no silence is too long."""
        slow = PATIENCE * train.collective_timeout
        return cls(train.peer_timeout or math.inf, min(train.stall_seconds, slow), slow)

    def of_stall(self, standing: Standing) -> float:
        """How long a rank may stay there."""
        if standing.phase == "finish":
            return self.slow + FINISHING
        return self.slow if standing.slow else self.stall


@dataclass(frozen=True)
class Verdict:
    """Why all ranks end now."""

    ranks: tuple[int, ...]
    """Whom it is about."""
    what: str
    mend: str = AGAIN
    code: int = EXIT_RESTART
    told: bool = False
    """The rank's own last words: it is alive, and says them itself where it runs."""
    lost: bool = False
    """Its process is gone: collectives with it break by themselves, at least those of gloo."""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Verdict:
        """From its fields as JSON brings them."""
        return cls(**{**fields, "ranks": tuple(fields["ranks"])})

    def line(self, hosts: tuple[str, ...]) -> str:
        """One line for people; names hosts where there are several."""
        number = f"rank {self.ranks[0]}" if len(self.ranks) == 1 else f"ranks {_ranges(self.ranks)}"
        homes = sorted({hosts[rank] for rank in self.ranks})
        place = f" on {', '.join(homes)}" if len(set(hosts)) > 1 else ""
        return str(UserError(self.what, where=f"{number}{place}" if len(hosts) > 1 else "", mend=self.mend))


@dataclass
class _Entry:
    standing: Standing = field(default_factory=Standing)
    quiet: float = 0.0
    """Seconds since the standing last moved."""
    silent: float = 0.0
    """Seconds since the rank was last heard of."""
    done: bool = False


class Table:
    """What one rank knows of others and itself. Time is told to it: what nobody watched does not count."""

    def __init__(self, ranks: Iterable[int], limits: Limits) -> None:
        self._entries = {rank: _Entry() for rank in ranks}
        self._limits = limits

    def pass_time(self, seconds: float) -> None:
        """So long was everybody watched since the last call."""
        for entry in self._entries.values():
            entry.quiet += seconds
            entry.silent += seconds

    def hear(self, rank: int, standing: Standing, quiet: float | None = None) -> float:
        """A sign of life; returns the seconds since the rank's standing moved (`quiet` where it says so)."""
        entry = self._entries[rank]
        if quiet is not None:
            entry.quiet = quiet
        elif standing.beats != entry.standing.beats:
            entry.quiet = 0.0
        entry.standing, entry.silent = standing, 0.0
        return entry.quiet

    def farewell(self, rank: int) -> None:
        """The rank has done its work: its silence is none."""
        self._entries[rank].done = True

    def has_left(self, rank: int) -> bool:
        """Whether the rank has said farewell."""
        return self._entries[rank].done

    @property
    def all_left(self) -> bool:
        """Whether every rank has."""
        return all(entry.done for entry in self._entries.values())

    def standing(self, rank: int) -> Standing:
        """Where the rank was when it was last heard of."""
        return self._entries[rank].standing

    def silent(self) -> Verdict | None:
        """Ranks that have not been heard of for too long."""
        over = {
            rank: entry
            for rank, entry in self._entries.items()
            if not entry.done and entry.silent > self._limits.silence
        }
        if not over:
            return None
        first = next(iter(over.values()))
        return Verdict(
            tuple(over),
            f"silent {first.silent:.0f} s, last heard of in {first.standing}: frozen, or the node is lost",
        )

    def disconnected(self, broken: Mapping[int, str]) -> Verdict:
        """The cause of broken collectives that no death explains: who is behind, or the network."""
        rank, words = next(iter(broken.items()))
        behind = self._entries[self.behind]
        cause = f"a collective of rank {rank} broke ({words})" if rank != self.behind else words
        return Verdict((self.behind,), f"{cause}, in {behind.standing} for {behind.quiet:.0f} s")

    def stalled(self) -> Verdict | None:
        """The rank that all others wait for, where it has not moved for too long."""
        running = {rank: entry for rank, entry in self._entries.items() if not entry.done}
        if not running:
            return None
        rank = self.behind
        entry = running[rank]
        if entry.quiet <= self._limits.of_stall(entry.standing):
            return None
        level = len(running) > 1 and all(e.standing.place == entry.standing.place for e in running.values())
        return Verdict(
            (rank,),
            f"no progress for {entry.quiet:.0f} s in {entry.standing}"
            + (", where all ranks wait" if level else ""),
        )

    @property
    def behind(self) -> int:
        """Who is furthest behind; of equals, who has not moved for longest."""
        running = [(e.standing.place, -e.quiet, rank) for rank, e in self._entries.items() if not e.done]
        return min(running)[2]

    def __str__(self) -> str:
        return "\n".join(
            f"rank {rank}: {entry.standing}, no progress for {entry.quiet:.1f} s, "
            f"heard {entry.silent:.1f} s ago" + (", done" if entry.done else "")
            for rank, entry in self._entries.items()
        )


def _ranges(numbers: Iterable[int]) -> str:
    """0, 4-7, 9."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)
