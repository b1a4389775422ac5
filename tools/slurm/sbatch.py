"""Jobs as sbatch lines, and their submission."""

from __future__ import annotations

import hashlib
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pretrain.errors import UserError
from tools.slurm import lead, queue, record
from tools.slurm.chain import Job, Task
from tools.slurm.pipeline import FINETUNE, Pipeline, Stage, Training
from tools.slurm.record import Submitted
from tools.slurm.site import SCRIPTS, Site


@dataclass(frozen=True)
class Submission:
    """Everything that a line of a pipeline depends on."""

    pipeline: Pipeline
    site: Site
    here: Path
    """The folder of PIPELINE.yaml: jobs run there, so that relative paths mean the same in both."""
    tasks: tuple[Task, ...]
    """All of the pipeline."""

    def line(self, job: Job, ids: Mapping[str, str]) -> list[str]:
        """The words of one sbatch; `ids` has the job ids of earlier ones by label."""
        pipeline, stage = self.pipeline, getattr(self.pipeline.stages, job.stage)
        array = job.tasks[0].number > 0
        words = [
            "sbatch",
            "--parsable",
            f"--job-name={pipeline.name}-{job.stage}",
            f"--chdir={self.here}",
            f"--output={pipeline.folder}/logs/%x-{'%A_%a' if array else '%j'}.out",
            *self._resources(stage),
            *self._placing(job, stage),
        ]
        if array:
            finetune = pipeline.stages.finetune
            limit = finetune.at_once if finetune and job.stage == FINETUNE else None
            numbers = ",".join(str(task.number) for task in job.tasks)
            words.append(f"--array={numbers}{f'%{limit}' if limit else ''}")
        if job.dependency:
            dependency = job.dependency
            for label, number in ids.items():
                dependency = dependency.replace(f"{{{label}}}", number)
            words.append(f"--dependency={dependency}")
            if not dependency.startswith("afterany"):
                words.append("--kill-on-invalid-dep=yes")
        words += [f"--export={self._environment(stage)}", str(SCRIPTS / f"{job.stage}.sbatch")]
        return [*words, *(["--tasks", str(self._table(job.stage)[0])] if array else job.tasks[0].words)]

    def write_tables(self) -> None:
        """The tables of all stages that are arrays. A table is named by its content, and never changes."""
        for stage in dict.fromkeys(task.stage for task in self.tasks if task.number):
            path, content = self._table(stage)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")

    def _table(self, stage: str) -> tuple[Path, str]:
        """Line N has the words of array task N, separated by tabs."""
        rows = {task.number: task.words for task in self.tasks if task.stage == stage and task.number}
        for word in (word for words in rows.values() for word in words):
            if not word or set(word) & {"\t", "\n"}:
                raise UserError(
                    f"'{word}' is empty or has a tab in it", where=f"stages.{stage}", mend="change it"
                )
        content = "".join("\t".join(rows[number]) + "\n" for number in sorted(rows))
        mark = hashlib.sha256(content.encode()).hexdigest()[:8]
        return self.pipeline.folder / "tasks" / f"{stage}-{mark}.tsv", content

    def _resources(self, stage: Stage) -> list[str]:
        nodes, tasks = stage.layout
        words = [f"--nodes={nodes}", f"--ntasks-per-node={tasks}"]
        if stage.gpus_per_node:
            kind = self.site.value("SITE_GPU_TYPE")
            words.append(f"--gpus-per-node={f'{kind}:' if kind else ''}{stage.gpus_per_node}")
        options = {"cpus-per-task": stage.cpus_per_task, "mem": stage.memory, "time": stage.time}
        return words + [f"--{name}={value}" for name, value in options.items() if value is not None]

    def _placing(self, job: Job, stage: Stage) -> list[str]:
        words = self.site.options(stage.partition)
        away = [self.site.value("SITE_EXCLUDE"), *_excluded(job)]
        if any(away):
            words.append(f"--exclude={','.join(filter(None, away))}")
        if isinstance(stage, Training):
            default = self.site.lead_seconds
            seconds = max(lead.seconds(task.run, default, stage.seconds) for task in job.tasks)
            words.append(f"--signal=B:USR1@{seconds}")
        return [*words, *stage.sbatch]

    def _environment(self, stage: Stage) -> str:
        values = ["ALL", f"MEMBART_HOME={SCRIPTS.parent}"]
        if self.site.file is not None:
            values.append(f"MEMBART_SITE={self.site.file.resolve()}")
        if isinstance(stage, Training) and not stage.preflight:
            values.append("MEMBART_PREFLIGHT=off")
        return ",".join(values)


def dry(submission: Submission, jobs: list[Job]) -> list[str]:
    """The lines as they could be typed; `JOBID-OF-LINE-1` stands for what the first one will answer."""
    ids = {job.label: f"JOBID-OF-LINE-{number}" for number, job in enumerate(jobs, start=1)}
    return [shlex.join(submission.line(job, ids)) for job in jobs]


def submit(submission: Submission, jobs: list[Job]) -> list[Submitted]:
    """Submit jobs in order and record them; all or none.

    Raises:
        UserError: the folder cannot be written, or Slurm refuses a job: those before it are cancelled.
    """
    folder = submission.pipeline.folder
    _rehearse(submission, jobs)
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        submission.write_tables()
    except OSError as error:
        raise UserError(
            f"cannot be written: {error.strerror}", where=str(folder), mend="give another `folder`"
        ) from None
    ids: dict[str, str] = {}
    made: list[Submitted] = []
    for job in jobs:
        for task in job.tasks:
            _let_go(task)
        words = submission.line(job, ids)
        try:
            ids[job.label] = queue.submit(words)
        except UserError:
            queue.cancel(reversed(ids.values()))
            raise
        now, text = time.strftime("%Y-%m-%dT%H:%M:%S"), shlex.join(words)
        made += [
            Submitted(task.stage, task.name, ids[job.label], task.number, now, text) for task in job.tasks
        ]
    record.add(folder, made)
    return made


def _rehearse(submission: Submission, jobs: list[Job]) -> None:
    """Ask Slurm whether it would take each job, before any is in the queue."""
    for job in jobs:
        first, *rest = submission.line(job, {})
        words = [first, "--test-only", *(word for word in rest if not word.startswith("--dependency="))]
        try:
            queue.call(words)
        except queue.RefusedError as error:
            raise UserError(
                error.what, where=f"stages.{job.stage}", mend=f"line: {shlex.join(words)}"
            ) from None


def _let_go(task: Task) -> None:
    """A kill switch of before does not count for what is submitted now."""
    (task.run / "control" / "stop").unlink(missing_ok=True)


def _excluded(job: Job) -> list[str]:
    """Nodes that failed a preflight of these tasks."""
    files = [task.jobs / "excluded" for task in job.tasks]
    return sorted({node for file in files if file.is_file() for node in file.read_text().split()})
