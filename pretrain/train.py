"""Training: the loop, and the run that it moves forward one rollout at a time."""

from __future__ import annotations

import collections
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pretrain import checkpoint, distributed, export, flops, snapshot, status
from pretrain.attempt import Attempt
from pretrain.console import Console
from pretrain.control import Control
from pretrain.distributed import World
from pretrain.engine import Engine, learning_rate
from pretrain.errors import CheckpointError, DivergedError, PreemptedError
from pretrain.job import Batch, Job, Validation
from pretrain.meter import Meter
from pretrain.pulse import Pulse
from pretrain.rehearsal import rehearse
from pretrain.replay import RolloutResult, back_propagate, loss_coefficients
from pretrain.reporting import console, keep_artifacts, node_sampler, start_tracker, upload_seconds
from pretrain.saver import Save, Saver
from pretrain.tracking import NullTracker, Status, Tracker


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    updates: int
    validation: Validation
    checkpoint: checkpoint.Checkpoint


def train(job: Job, world: World, pulse: Pulse | None = None) -> Outcome:
    """Run a job to its last update. Collective: every rank calls it, inside a process group.

    Args:
        pulse: where this rank tells where it stands; see `pretrain.watchdog`.

    Raises:
        PreemptedError: a stop signal came, or `control/stop` (then StoppedError); the run was saved, or its
            last checkpoint is named.
        DivergedError: too many updates in a row were not finite.
        SupersededError: a newer start of the run owns its folder.
        CheckpointError: every checkpoint there is damaged, or the last one could not be written.
        UserError: the run folder cannot be written, or is not shared by all ranks.
    """
    recipe = job.recipe
    pulse = pulse or Pulse()
    mine = pulse.attempt = snapshot.claim(recipe.run_dir)
    control = Control(mine, world)
    if world.is_first:
        status.remember(mine, "running")
    run = Run(job, world, mine, pulse)
    tracker = start_tracker(job, run.update) if world.is_first else NullTracker()
    ended: Status = "FAILED"
    try:
        with console(job, run.update, world) as progress, node_sampler(job, world):
            if tracker.view:
                progress.message(f"{recipe.name}: MLflow: {tracker.view}")
            if run.largest_memory:
                progress.message(f"the largest batch takes {run.largest_memory / 2**30:.1f} GiB of a GPU")
            validation = loop(run, control, tracker, progress)
        validation = validation or run.validate()
        pulse.enter("finish")
        saved = checkpoint.resolve(recipe.run_dir)
        keep_artifacts(job, tracker, saved)
        ended = "FINISHED"
        return Outcome(run.update, validation, saved)
    except PreemptedError:
        ended = "KILLED"
        raise
    finally:
        run.close()
        if not mine.superseded:  # else the tracked run is a newer start's
            tracker.finish(ended, timeout=upload_seconds(job, ended))


def loop(run: Run, control: Control, tracker: Tracker | NullTracker, progress: Console) -> Validation | None:
    """Update until the run is finished, and save; returns the last validation on the way. Collective.

    Raises:
        PreemptedError, DivergedError, SupersededError, CheckpointError: as `train` says.
    """
    recipe, pulse = run.recipe, run.pulse
    validation: Validation | None = None
    last: Save | None = None

    def log(kind: str, figures: dict[str, float]) -> None:
        # Records of a newer attempt must not be mixed with ours.
        if run.world.is_first and not run.attempt.superseded:
            tracker.log(run.update, kind, figures)

    asked = control.agree()
    while not (run.finished or asked.ends):
        run.advance()
        pulse.enter("figures")
        if run.due(recipe.train.log_every):
            figures = run.meter.read()
            log("train", figures)
            progress.update(
                run.update,
                loss=figures["loss"],
                tokens_per_second=figures["tokens_per_second"],
                skipped=run.skipped,
            )
        improved = False
        if run.due(recipe.validation.every):
            validation = run.validate()
            log("validation", validation.metrics())
            improved = run.note(validation)
        pulse.enter("agreement")
        asked = control.agree()
        if run.finished or asked.ends:
            last = run.save_and_wait(tracker.run_id)
        elif asked or run.due(recipe.checkpoint.every) or (improved and recipe.validation.keep_best):
            control.clear(asked)
            run.save(tracker.run_id)
        for save in run.saver.poll()[-1:]:  # a figure has one value an update
            log("checkpoint", save.metrics())
        pulse.settle()
    if last is None and not run.finished:
        distributed.on_first(run.attempt.require_newest)  # as a save would have found out
    control.clear(asked)
    if not run.finished:
        nothing = f"before update {run.update + 1}, nothing to save"
        raise control.ending(asked, last.summary if last else nothing)
    if last and not last.path:
        raise CheckpointError(
            last.summary, where=recipe.name, mend="see to it and run the same command again"
        )
    return validation


class Run:
    """Everything that moves in training: weights and optimizer, data position, agents' memory, counters."""

    def __init__(self, job: Job, world: World, mine: Attempt, pulse: Pulse) -> None:
        """Build the run, from its newest whole checkpoint if it has one. Collective."""
        self.job, self.recipe, self.world, self.pulse = job, job.recipe, world, pulse
        self.attempt = mine
        resume = snapshot.find(mine)
        cell = job.cell()
        model: Any = cell.model
        self.config = model.config
        if resume:
            export.restore_weights(model, resume)
        self.engine = Engine(cell, job.recipe, world)
        self.stream = job.stream("train", world)
        self.lanes: list[int] = self.stream.lane.unique().tolist()
        self.memory = torch.zeros(len(self.stream.lane), *job.memory_shape, device=world.device)
        self.update, self.skipped, self.skipped_in_a_row, self.tokens_seen = 0, 0, 0, 0
        self.best: dict[str, float] | None = None
        """`loss` and `update` of the best validation so far."""
        self.since_best = 0
        self.meter = Meter(world.device, job.segment_flops(model), flops.peak(world.device), job.parts)
        self.largest_memory = 0
        """Bytes of a GPU that the rehearsal took; 0 where there was none."""
        if self.recipe.train.rehearse:
            pulse.enter("rehearsal")
            self.largest_memory = rehearse(job, world, self.engine, self.back_propagate)
        if resume:
            snapshot.restore(self, resume)
        if world.is_first:
            job.begin_folder()
            checkpoint.set_aside(mine, self.update)
        self.origin = snapshot.origin()
        self.saver = Saver(mine, world, self.recipe.checkpoint)
        self.saver.reserve(snapshot.size(self.engine, self.memory))
        self.position = self.stream.state_dict()
        self._batches = iter(self.stream)
        self._repeated: collections.deque[Batch] = collections.deque()
        self._positions = collections.deque([self.position], maxlen=job.recipe.replay.time_overlap + 1)

    @property
    def finished(self) -> bool:
        """Whether the last update is made, or patience is at its end."""
        patience = self.recipe.validation.patience
        return self.update >= self.recipe.train.steps or bool(patience and self.since_best >= patience)

    def due(self, every: int) -> bool:
        """Whether what comes every so many updates, and after the last, comes now; 0: after the last only."""
        return self.update == self.recipe.train.steps or bool(every and self.update % every == 0)

    def advance(self) -> None:
        """One optimizer step: a rollout of `horizon` timesteps of all agents. Collective."""
        began = time.perf_counter()
        enter = self.pulse.enter
        enter("data", self.update + 1)
        replay = self.recipe.replay
        rollout = self._next_rollout()
        waited = time.perf_counter() - began

        enter("counting")
        counts = torch.stack([self.job.count(batch) for batch in rollout])
        counts = distributed.total(counts.to(self.world.device))
        coefficients = loss_coefficients(counts, replay.loss_weights) * self.engine.loss_scale
        coefficients = coefficients * self.job.part_weights(self.update).to(self.world.device)
        enter("forward/backward")
        results = self.back_propagate(rollout, coefficients)
        enter("optimizer")
        lr = learning_rate(self.recipe.optimizer, self.update - self.skipped, self.recipe.train.steps)
        rates = self.job.rates(self.update)
        norm = self.engine.step(lr, rates)
        if norm is None:
            self._skip(rollout)
        else:
            self.memory = torch.cat([result.carried(replay.time_overlap) for result in results])
            self.skipped_in_a_row = 0
        self.update += 1
        self.tokens_seen += int(counts.view(len(rollout), -1)[:, 0].sum())
        self.meter.add(
            rollout=rollout,
            results=results,
            counts=counts,
            loss_scale=self.engine.loss_scale,
            learning_rates=self.engine.learning_rates(lr, rates),
            gradient_norm=norm,
            skipped=self.skipped,
            waited=waited,
            seconds=time.perf_counter() - began,
        )

    def back_propagate(self, rollout: Sequence[Batch], coefficients: Tensor) -> list[RolloutResult]:
        """The gradients of a rollout, reduced and ready for a step; a result per agent chunk. Collective."""
        replay = self.recipe.replay
        results = []
        self.engine.train()
        with self.engine.accumulation():
            for number, rows in enumerate(self._agent_chunks()):
                results.append(
                    back_propagate(
                        self.pulse.around(self.engine),
                        [batch.rows(rows).to(self.world.device) for batch in rollout],
                        self.memory[rows],
                        coefficients,
                        [
                            (self.recipe.train.seed, self.update, self.lanes[0], number, t)
                            for t in range(len(rollout))
                        ],
                        self.engine.backward,
                        mode=replay.mode,
                        last=number == replay.agent_chunks - 1,
                    )
                )
            self.pulse.enter("reduction")
        return results

    def validate(self) -> Validation:
        """The job's held-out figures. Collective."""
        self.pulse.enter("validation")
        self.engine.train(False)
        return self.job.validate(self.pulse.around(self.engine), self.world)

    def note(self, found: Validation) -> bool:
        """Remember a validation; True when it is the best so far."""
        if self.best is not None and not found.loss < self.best["loss"]:
            self.since_best += 1
            return False
        self.best, self.since_best = {"loss": found.loss, "update": self.update}, 0
        return True

    def save(self, tracking_run: str | None) -> None:
        """Begin a checkpoint of this moment; `saver.poll` tells how it ended. Collective."""
        self.pulse.enter("save")
        self.saver.save(self.update, lambda: snapshot.contents(self, tracking_run))

    def save_and_wait(self, tracking_run: str | None) -> Save:
        """Write and commit a checkpoint of this moment, or say why it failed. Collective."""
        self.save(tracking_run)
        ended = self.saver.finish()
        assert ended is not None, "a save that began has ended"
        return ended

    def close(self) -> None:
        """End threads and workers; a save in flight is given up."""
        self.saver.close()
        self.stream.close()

    def _next_rollout(self) -> list[Batch]:
        """The next `horizon` batches; the first `time_overlap` are the last ones of the rollout before."""
        rollout = list(self._repeated)
        overlap = self.recipe.replay.time_overlap
        while len(rollout) < self.recipe.replay.horizon:
            rollout.append(next(self._batches))
            self._positions.append(self.stream.state_dict())
        self.position = self._positions[0]  # before the batches that the next rollout repeats
        self._repeated.clear()
        self._repeated.extend(rollout[len(rollout) - overlap :] if overlap else ())
        return rollout

    def _agent_chunks(self) -> list[slice]:
        size = len(self.memory) // self.recipe.replay.agent_chunks
        return [slice(i * size, (i + 1) * size) for i in range(self.recipe.replay.agent_chunks)]

    def _skip(self, rollout: list[Batch]) -> None:
        """Count an update whose gradients were not finite.

        Its data are consumed; its memory, which may not be finite either, is dropped: agents go on with the
        memory from before, or afresh where a document began.
        """
        began = torch.stack([batch.memory_resets for batch in rollout]).any(dim=0).to(self.world.device)
        self.memory = torch.where(began[:, None, None], torch.zeros_like(self.memory), self.memory)
        self.skipped += 1
        self.skipped_in_a_row += 1
        limit = self.recipe.train.max_skipped_in_a_row
        if self.skipped_in_a_row >= limit:
            self.pulse.enter("save")
            self.saver.finish()
            good = checkpoint.latest(self.recipe.run_dir)
            raise DivergedError(
                f"loss or gradient was not finite in {limit} updates in a row, up to update {self.update}",
                where=self.recipe.name,
                mend=f"lower optimizer.lr; the last good checkpoint is {good.path if good else 'none'}",
            )
