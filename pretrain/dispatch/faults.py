"""What a run tolerates of broken shards: which documents were left out, and when it is too many.

Everything is counted by lane, so that the decision is the same on any number of ranks and survives a resume.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pretrain.errors import ShardError

OnBadShard = Literal["stop", "skip"]


@dataclass(frozen=True, slots=True)
class Fault:
    """A document (or with `document` -1 the rest of a shard) that was left out, and why."""

    shard: int
    document: int
    what: str


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How much a lane may lose: a share of the documents that fall to it, and so many faults in a row."""

    fraction: float = 0.01
    in_a_row: int = 100

    def check(self, lane: int, lost: int, in_a_row: int, documents: float, latest: Fault) -> None:
        """Raise ShardError when a lane that has lost `lost` of `documents` has lost too much."""
        if in_a_row >= self.in_a_row:
            problem = f"{in_a_row} unreadable documents or shards in a row"
        elif lost > self.fraction * documents:
            problem = f"{lost} of {documents:.0f} documents unreadable, more than {self.fraction:.2%}"
        else:
            return
        raise ShardError(
            f"lane {lane} has met {problem}; the latest: {latest.what}",
            where="dispatcher",
            mend="restore the shards (`membart shards verify` lists all damage) and resume",
        )
