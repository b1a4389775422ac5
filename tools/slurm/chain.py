"""What of a pipeline is still to do, in which jobs, and what waits for what.

A fine-tune, its evaluation and its export have the same number in their arrays, so that each waits for its
own (`aftercorr`) and a family that fails takes no other one down.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.slurm.pipeline import (
    ANNOTATIONS,
    EVALUATE,
    EXPORT,
    FINETUNE,
    KNOWLEDGE,
    PRETRAIN,
    REPORT,
    STAGES,
    Finetune,
    Knowledge,
    Pipeline,
    recipe_words,
)

Key = tuple[str, str]
"""A stage, and the name of the run it works on."""


@dataclass(frozen=True)
class Task:
    """One run's part of a stage."""

    stage: str
    name: str
    run: Path
    words: tuple[str, ...]
    """Arguments of the job script."""
    number: int = 0
    """In the array; 0: a job of its own."""
    after: tuple[Key, ...] = ()
    """The tasks that must have ended well."""

    @property
    def key(self) -> Key:
        """Names the task within the pipeline."""
        return self.stage, self.name

    @property
    def jobs(self) -> Path:
        """What its jobs leave; see slurm/lib.sh."""
        return self.run.with_name(f"{self.run.name}.jobs") / self.stage

    @property
    def done(self) -> bool:
        """Whether a job of it has ended well."""
        return (self.jobs / "done").is_file()


@dataclass(frozen=True)
class Active:
    """A task that Slurm has already."""

    job: str
    number: int


@dataclass(frozen=True)
class Job:
    """One sbatch: a task, or an array of them."""

    tasks: tuple[Task, ...]
    dependency: str = ""
    """As `--dependency` takes it; `{KEY}` stands for the id of another job of the list."""

    @property
    def stage(self) -> str:
        """Of all its tasks."""
        return self.tasks[0].stage

    @property
    def label(self) -> str:
        """Names the job within the list."""
        return f"{self.stage}:{'+'.join(task.name for task in self.tasks)}"


def tasks(pipeline: Pipeline, here: Path) -> list[Task]:
    """All tasks of a pipeline in order; `here` is the folder of its file."""
    stages, made = pipeline.stages, list[Task]()
    tracked = (f"tracking.experiment={pipeline.name}",)
    if stages.pretrain is not None:
        run = pipeline.run(PRETRAIN)
        words = (str(run), recipe_words(stages.pretrain.recipe, here), *tracked, *stages.pretrain.set)
        made.append(Task(PRETRAIN, PRETRAIN, run, words))
        if stages.export is not None:
            out = str(pipeline.model(PRETRAIN))
            words = (str(run), out, *stages.export.words)
            made.append(Task(EXPORT, PRETRAIN, run, words, after=(_PRETRAINED,)))
    if stages.finetune is not None:
        made += _of_families(pipeline, stages.finetune, here, tracked)
    runs = list(dict.fromkeys(task.run for task in made))
    if stages.knowledge is not None:
        made.append(_of_knowledge(pipeline, stages.knowledge))
    if stages.report is not None:
        made.append(Task(REPORT, "all", runs[0], ("--out", str(pipeline.report), *map(str, runs))))
    return sorted(made, key=lambda task: STAGES.index(task.stage))


_PRETRAINED: Key = (PRETRAIN, PRETRAIN)
_KNOWN: Key = (KNOWLEDGE, KNOWLEDGE)


def _of_knowledge(pipeline: Pipeline, stage: Knowledge) -> Task:
    words = [str(pipeline.knowledge), *stage.inputs]
    if stage.index is not None:
        words += ["--index", stage.index]
    if stage.start is not None:
        words += ["--from", str(pipeline.run(PRETRAIN)) if stage.start == PRETRAIN else stage.start]
    words += [word for setting in stage.set for word in ("--set", setting)]
    families = pipeline.stages.finetune.families if pipeline.stages.finetune else {}
    sources = dict.fromkeys(source for name in stage.readers for source in families[name].data)
    words += [word for source in sources for word in ("--data", source)]
    after = (_PRETRAINED,) if stage.start == PRETRAIN else ()
    return Task(KNOWLEDGE, KNOWLEDGE, pipeline.knowledge, (*words, "--", *stage.words), after=after)


def _of_families(
    pipeline: Pipeline, finetune: Finetune, here: Path, tracked: tuple[str, ...]
) -> Iterable[Task]:
    stages = pipeline.stages
    start = finetune.start or str(pipeline.run(PRETRAIN))
    readers = stages.knowledge.readers if stages.knowledge else ()
    for number, (name, family) in enumerate(finetune.families.items(), start=1):
        run = pipeline.run(name)
        data = [word for source in family.data for word in ("--data", source)]
        words = [recipe_words(family.family or name, here), "--from", start, *data, *tracked]
        after = (_PRETRAINED,) if stages.pretrain is not None else ()
        if name in readers:
            words.append(f"{ANNOTATIONS}={pipeline.knowledge / 'annotations'}")
            after = (*after, _KNOWN)
        yield Task(FINETUNE, name, run, (str(run), *words, *family.set), number, after)
        after = ((FINETUNE, name),)
        if stages.evaluate is not None:
            yield Task(EVALUATE, name, run, (str(run), *stages.evaluate.words), number, after)
            after = ((EVALUATE, name),)
        if stages.export is not None:
            words = [str(run), str(pipeline.model(name)), *stages.export.words]
            yield Task(EXPORT, name, run, tuple(words), number, after)


def plan(wanted: Iterable[Task], active: Mapping[Key, Active]) -> list[Job]:
    """The jobs to submit, in order: what is neither done nor in the queue.

    A report is drawn again whenever anything is submitted before it, and when it has not been drawn.
    """
    jobs: list[Job] = []
    home: dict[Key, str] = {}
    everything = list(wanted)
    for _, of_stage in itertools.groupby(everything, key=lambda task: task.stage):
        groups: dict[tuple[bool, str], list[Task]] = {}
        for task in of_stage:
            if task.stage == REPORT:
                if task.key not in active and (jobs or active or not task.done):
                    groups[False, _after_any(everything, active, home)] = [task]
            elif task.key not in active and not task.done:
                groups.setdefault((task.number > 0, _after(task, active, home)), []).append(task)
        for (_, dependency), members in groups.items():
            job = Job(tuple(members), dependency)
            jobs.append(job)
            home.update((task.key, job.label) for task in members)
    return jobs


def _after(task: Task, active: Mapping[Key, Active], home: Mapping[Key, str]) -> str:
    """How sbatch is told to wait for the tasks before this one; empty when all are done."""
    return ",".join(filter(None, (_after_one(task, key, active, home) for key in task.after)))


def _after_one(task: Task, key: Key, active: Mapping[Key, Active], home: Mapping[Key, str]) -> str:
    if key in home:
        # Tasks of arrays wait for the one of their own number; of others there is one.
        kind = "afterok" if key in (_PRETRAINED, _KNOWN) else "aftercorr"
        return f"{kind}:{{{home[key]}}}"
    if key not in active:
        return ""
    parent = active[key]
    if parent.number == 0:
        return f"afterok:{parent.job}"
    if parent.number == task.number:
        return f"aftercorr:{parent.job}"
    return f"afterok:{parent.job}_{parent.number}"


def _after_any(tasks: Iterable[Task], active: Mapping[Key, Active], home: Mapping[Key, str]) -> str:
    """After all jobs that work on a run of the pipeline, however they end."""
    places = [
        f"{{{home[task.key]}}}" if task.key in home else active[task.key].job
        for task in tasks
        if task.key in home or task.key in active
    ]
    return ":".join(["afterany", *dict.fromkeys(places)]) if places else ""
