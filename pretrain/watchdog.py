"""Notices that a rank died or hangs, says which and where, and ends all ranks instead of letting them wait.

A thread of every rank tells rank 0 where its training stands (`pulse.py`, over `lifeline.py`); rank 0 tells
the others that it lives. Four things end a run: a connection that closed without a farewell (a killed
process), silence (a frozen process, a lost node), a standing that does not move, and a rank's own last words.
Rank 0 decides which came first and tells all, so that one line names one cause. The main thread may be inside
a collective that will never return: the process ends from here.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from pretrain import distributed, status
from pretrain.distributed import World
from pretrain.errors import EXIT_FAILURE, UserError
from pretrain.lifeline import Address, Alone, Hub, Line, Message, Spoke
from pretrain.pulse import Pulse, Standing
from pretrain.recipe import RunRecipe
from pretrain.standings import Limits, Table, Verdict

TICK = 0.2
"""Seconds between two looks."""
BEAT = 1.0
"""Seconds between two signs of life."""
GATHERING = 0.5
"""Seconds in which losses count as one event: a node that dies takes several ranks."""
SETTLING = 3.0
"""Seconds that a broken collective waits for its cause to be told."""
GRACE = 5.0
"""Seconds for a main thread whose collective broke to come out of training and close what it can."""

LOGS = "watchdog"


class Watchdog:
    """One rank's. `start` it inside the process group; end it with `done`, `leave` or `fail`."""

    def __init__(
        self,
        rank: int,
        hosts: tuple[str, ...],
        pulse: Pulse,
        line: Line,
        limits: Limits,
        run_dir: Path,
    ) -> None:
        """`hosts` are those of all ranks."""
        self._rank, self._hosts, self._pulse, self._line = rank, hosts, pulse, line
        self._run_dir, self._limits = run_dir, limits
        self._decides = not isinstance(line, Spoke)
        watched = set(range(len(hosts))) if isinstance(line, Hub) else {rank}
        self._table = Table(sorted(watched if self._decides else {0, rank}), limits)
        self._to_say: deque[Message] = deque()
        self._verdict: Verdict | None = None
        self._lost, self._lost_for = list[int](), 0.0
        self._broken, self._broken_for = dict[int, str](), 0.0
        self._frozen = 0.0
        self._parked = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    @classmethod
    def start(cls, recipe: RunRecipe, world: World, pulse: Pulse) -> Watchdog:
        """Connect the ranks and watch over them. Collective.

        Raises:
            UserError: rank 0 cannot be reached.
        """
        limits = Limits.of(recipe.train)
        host = socket.gethostname()
        watching = world.size > 1 and math.isfinite(limits.silence)
        hub = Hub((world.address, host)) if watching and world.is_first else None
        known = distributed.gather((host, asdict(hub.address) if hub else None))
        hosts, address = tuple(home for home, _ in known), known[0][1]
        line: Line = hub or Alone()
        if watching and not world.is_first:
            line = Spoke(world.rank, Address(**address), timeout=limits.silence)
        return cls(world.rank, hosts, pulse, line, limits, recipe.run_dir)

    def done(self) -> None:
        """This rank has done its work. Returns when all have: a launcher may kill those who come late."""
        self._to_say.append({"bye": True})
        self._thread.join()

    def leave(self, error: UserError, code: int) -> int:
        """End all ranks for an error of this one; returns the code where there are no others."""
        what = f"{error.where}: {error.what}" if error.where else error.what
        words = Verdict((self._rank,), what, error.mend, code, told=True)
        if len(self._hosts) > 1:
            self._park({"words": asdict(words)})
        self.done()
        print(f"error: {words.line(self._hosts)}", file=sys.stderr)
        status.remember(self._pulse.attempt, status.of(code), words.what)
        return code

    def fail(self, error: Exception) -> int:
        """End all ranks for an exception: a bug, with its trace, or a collective that broke with a peer."""
        if len(self._hosts) > 1 and distributed.is_broken_collective(error):
            self._park({"broken": distributed.reason(error)})
        traceback.print_exception(error)
        return self.leave(UserError(f"{type(error).__name__}: {error}"), EXIT_FAILURE)

    def _park(self, last: Message) -> NoReturn:
        """The main thread has nothing more to do: the watching thread ends the process."""
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        self._to_say.append(last)
        self._parked.set()
        self._thread.join()
        os._exit(EXIT_FAILURE)

    def _run(self) -> None:
        before, told = time.monotonic(), -math.inf
        while True:
            events = self._line.poll(TICK)
            now = time.monotonic()
            # A suspended process, or one without a processor, must not take its own absence for another's.
            absent, before = now - before, now
            passed = min(absent, 2 * TICK)
            self._frozen = max(self._frozen, absent)
            self._table.pass_time(passed)
            quiet = self._table.hear(self._rank, self._pulse.standing)
            for rank, message in events:
                self._hear(rank, message)
            if now - told >= BEAT:
                told = now
                self._line.tell({"standing": asdict(self._pulse.standing), "quiet": quiet})
            while self._to_say:
                self._say(self._to_say.popleft())
            if self._table.has_left(self._rank) and (self._table.all_left or self._lost):
                self._line.close()
                return
            verdict = self._verdict or self._decide(passed)
            if verdict is not None:
                self._end(verdict)

    def _say(self, message: Message) -> None:
        if self._decides or "bye" in message:
            self._hear(self._rank, message)
        if not self._decides or "bye" in message:
            self._line.tell(message)

    def _hear(self, rank: int, message: Message | None) -> None:
        if message is None:
            if not self._table.has_left(rank):
                self._lost.append(rank)
        elif "standing" in message:
            self._table.hear(rank, Standing(**message["standing"]), message["quiet"])
        elif "bye" in message:
            self._table.farewell(rank)
        elif "broken" in message:
            self._broken[rank] = message["broken"]
        elif "verdict" in message:
            self._verdict = Verdict.of(message["verdict"])
        elif "words" in message and self._verdict is None:
            self._verdict = Verdict.of(message["words"])

    def _decide(self, passed: float) -> Verdict | None:
        if self._lost:
            self._lost_for += passed
            return self._loss() if self._lost_for >= GATHERING else None
        if not self._decides:
            return self._table.silent()
        if self._broken:
            self._broken_for += passed
            if self._broken_for >= SETTLING:
                return self._table.disconnected(self._broken)
        return self._table.silent() or self._table.stalled()

    def _loss(self) -> Verdict:
        if self._frozen > self._limits.silence:
            return Verdict((self._rank,), f"was frozen for {self._frozen:.0f} s, and the others have ended")
        last = self._table.standing(self._lost[0])
        gone = "the process is gone" if len(self._lost) == 1 else "the processes are gone"
        return Verdict(tuple(sorted(self._lost)), f"{gone}, last heard of in {last}", lost=True)

    def _end(self, verdict: Verdict) -> NoReturn:
        """Tell the others, leave traces in the run folder, and end this process."""
        if self._decides:
            self._line.tell({"verdict": asdict(verdict)})
        line = verdict.line(self._hosts)
        # A file system or a terminal that hangs may be the cause: nothing here waits for it for long.
        if not verdict.told and self._run_dir.is_dir():
            _try(lambda: self._write_log(line), GRACE)
            line += f"; the stacks of all threads are in {self._run_dir / LOGS}"
        if verdict.lost:
            self._parked.wait(GRACE)
        if self._speaks(verdict):
            _try(lambda: print(f"error: {line}", file=sys.stderr, flush=True), GRACE)
        survivors = [rank for rank in range(len(self._hosts)) if verdict.told or rank not in verdict.ranks]
        if isinstance(self._line, Alone) or self._rank == min(survivors, default=-1):
            _try(lambda: status.remember(self._pulse.attempt, status.of(verdict.code), line), GRACE)
        elif isinstance(self._line, Spoke) and 0 in survivors:
            self._wait_for_rank_0()
        os._exit(verdict.code)

    def _wait_for_rank_0(self) -> None:
        """It writes the status; a launcher that kills the rest as soon as one ends must not be too early."""
        until = time.monotonic() + 2 * GRACE
        while time.monotonic() < until:
            if any(message is None for _, message in self._line.poll(TICK)):
                return

    def _speaks(self, verdict: Verdict) -> bool:
        """One rank of a node says it; where the rank that it is about can, that one."""
        mine = self._hosts[self._rank]
        if isinstance(self._line, Alone):
            return True
        if verdict.told and mine == self._hosts[verdict.ranks[0]]:
            return self._rank == verdict.ranks[0]
        here = [rank for rank, host in enumerate(self._hosts) if host == mine and rank not in verdict.ranks]
        return self._rank == min(here, default=self._rank)

    def _write_log(self, line: str) -> None:
        """What is known, and where every thread of this process is, into the run folder."""
        folder = self._run_dir / LOGS
        folder.mkdir(exist_ok=True)
        with (folder / f"rank-{self._rank:05d}.log").open("a", encoding="utf-8") as log:
            log.write(
                f"{time.strftime('%Y-%m-%d %H:%M:%S')} pid {os.getpid()} on {self._hosts[self._rank]}\n"
            )
            log.write(f"{line}\n{self._table}\n")
            log.flush()
            faulthandler.dump_traceback(log, all_threads=True)
            log.write("\n")


def _try(action: Callable[[], None], seconds: float) -> None:
    """Do it in a thread of its own and wait so long at most."""
    worker = threading.Thread(target=action, daemon=True)
    worker.start()
    worker.join(seconds)
