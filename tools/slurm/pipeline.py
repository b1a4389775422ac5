"""PIPELINE.yaml: which models come out, and on what they are made."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from finetune.families import FAMILIES
from pretrain.errors import UserError
from pretrain.recipe import Section

PRETRAIN, FINETUNE, EVALUATE, EXPORT, REPORT = STAGES = (
    "pretrain", "finetune", "evaluate", "export", "report",
)  # fmt: skip
_TIME = re.compile(r"(\d+-)?\d+(:\d{1,2}){0,2}")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


class Stage(Section):
    """What one job of a stage gets."""

    nodes: int = Field(default=1, gt=0)
    gpus_per_node: int = Field(default=0, ge=0)
    tasks_per_node: int | None = Field(default=None, gt=0)
    """Ranks of a node; unset: one a GPU, or one."""
    cpus_per_task: int | None = Field(default=None, gt=0)
    memory: str | None = None
    """Of a node, as sbatch's `--mem` takes it, e.g. `500G`."""
    time: str | None = None
    """Longest duration of a start: `minutes`, `hours:minutes:seconds` or `days-hours:minutes:seconds`."""
    partition: str | None = None
    """Another than the site's."""
    sbatch: tuple[str, ...] = ()
    """Further words for sbatch."""

    @field_validator("time")
    @classmethod
    def _a_duration(cls, value: str | None) -> str | None:
        if value is not None and not _TIME.fullmatch(value):
            raise ValueError(f"'{value}' is no duration such as 90, 12:00:00 or 2-00:00:00")
        return value

    @property
    def ranks_per_node(self) -> int:
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def seconds(self) -> int | None:
        """`time` in seconds."""
        if self.time is None:
            return None
        days, _, rest = self.time.rpartition("-")
        parts = [int(part) for part in rest.split(":")]
        if days:
            parts += [0] * (3 - len(parts))
        elif len(parts) < 3:
            parts = [0, *parts, *[0] * (2 - len(parts))]
        hours, minutes, seconds = parts
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


class Training(Stage):
    """A stage that saves and goes on."""

    preflight: bool = True
    """Examine the nodes before each start."""


class Pretrain(Training):
    recipe: str
    """A shipped recipe or a YAML file."""
    set: tuple[str, ...] = ()
    """Changes to it, as `key.sub=value`."""


class Family(Section):
    """One fine-tune."""

    family: str | None = None
    """One of the five, or a YAML file of one; unset: the fine-tune's name."""
    data: tuple[str, ...] = ()
    """Dialogues as `NAME:PATH`."""
    set: tuple[str, ...] = ()


class Finetune(Training):
    start: str | None = Field(default=None, alias="from")
    """What the families start from; unset: the pretraining of this pipeline."""
    families: dict[str, Family] = Field(min_length=1)
    """Fine-tunes by name; each is one task of the array."""
    at_once: int | None = Field(default=None, gt=0)
    """Most tasks that run at a time."""


class Evaluate(Stage):
    words: tuple[str, ...] = ()
    """Further words for `membart evaluate`."""


class Export(Stage):
    words: tuple[str, ...] = ()
    """Further words for `membart export`, e.g. `--dtype`, `bf16`."""


class Stages(Section):
    pretrain: Pretrain | None = None
    finetune: Finetune | None = None
    evaluate: Evaluate | None = None
    export: Export | None = None
    report: Stage | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Stages:
        if self.pretrain is None and self.finetune is None:
            raise ValueError("neither pretrain nor finetune: there is nothing to make")
        if self.evaluate is not None and self.finetune is None:
            raise ValueError("evaluate scores fine-tunes, and there is no finetune")
        if self.finetune is not None and (self.finetune.start is None) == (self.pretrain is None):
            raise ValueError(
                "fine-tunes start from a pretrain stage or from `finetune.from`: give one of them"
            )
        return self


class Pipeline(Section):
    name: str
    """Of the jobs and of the MLflow experiment."""
    folder: Path
    """Everything goes there; on a file system that all nodes share."""
    site: Path | None = None
    """A copy of slurm/site.example.env; unset: MEMBART_SITE, else slurm/site.env."""
    stages: Stages

    @field_validator("name")
    @classmethod
    def _a_plain_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError(f"'{value}' is no plain name of letters, digits, '.', '_' and '-'")
        return value

    def run(self, name: str) -> Path:
        """The run folder of the pretraining (`pretrain`) or of a fine-tune."""
        return self.folder / "runs" / name

    def model(self, name: str) -> Path:
        """Where a run is exported to."""
        return self.folder / "models" / name


def load(path: Path) -> Pipeline:
    """Read PIPELINE.yaml; relative paths are relative to its folder.

    Raises:
        UserError: not readable, an unknown key (the nearest is suggested), or a bad value.
    """
    try:
        # Text only: YAML 1.1 takes 12:00:00 for the number 43200.
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path), mend="name a pipeline file") from None
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {error}", where=str(path), mend="mend the file") from None
    try:
        pipeline = Pipeline.model_validate(content)
    except ValidationError as error:
        raise _refusal(error, path) from None
    here = path.resolve().parent
    site = None if pipeline.site is None else here / pipeline.site
    return pipeline.model_copy(update={"folder": here / pipeline.folder, "site": site})


def check(pipeline: Pipeline, path: Path) -> None:
    """What can be known before a job waits for hours: that recipes resolve, and ranks divide lanes.

    Raises:
        UserError: the first thing that does not fit.
    """
    from pretrain import recipe as recipes

    stages, here = pipeline.stages, path.resolve().parent
    if stages.pretrain is not None:
        wanted = stages.pretrain
        found = recipes.load(recipe_words(wanted.recipe, here), wanted.set)
        _check_lanes(found.lanes, wanted, f"{path}: stages.pretrain")
    if stages.finetune is None:
        return
    from finetune.recipe import FineTuneRecipe

    for name, task in stages.finetune.families.items():
        where = f"{path}: stages.finetune.families.{name}"
        if not _NAME.fullmatch(name) or name == PRETRAIN:
            raise UserError(f"'{name}' is no name for a fine-tune", where=where, mend="take another one")
        family = recipe_words(task.family or name, here)
        if family not in FAMILIES and not Path(family).is_file():
            near = difflib.get_close_matches(family, FAMILIES, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise UserError(
                f"no family '{family}'", where=where, mend=f"{hint}family: one of {', '.join(FAMILIES)}"
            )
        _check_lanes(recipes.load(family, task.set, FineTuneRecipe).lanes, stages.finetune, where)


def recipe_words(recipe: str, here: Path) -> str:
    """A recipe file as an absolute path; a shipped recipe's name as it is."""
    file = here / recipe
    return str(file.resolve()) if file.is_file() else recipe


def _check_lanes(lanes: int, stage: Stage, where: str) -> None:
    ranks = stage.nodes * stage.ranks_per_node
    if lanes % ranks:
        raise UserError(
            f"{ranks} ranks do not divide {lanes} lanes",
            where=where,
            mend="change nodes, gpus_per_node or data.lanes",
        )


def _refusal(error: ValidationError, path: Path) -> UserError:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        known = _keys(place[:-1])
        near = difflib.get_close_matches(place[-1], known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
        return UserError(f"unknown key '{'.'.join(place)}'", where=str(path), mend=hint)
    problem = first["msg"].removeprefix("Value error, ")
    return UserError(
        f"{'.'.join(place) or 'the file'}: {problem}", where=str(path), mend="see slurm/README.md"
    )


def _keys(place: list[str]) -> list[str]:
    """Keys of the section at `place`."""
    if not place:
        return list(Pipeline.model_fields)
    if place == ["stages"]:
        return list(STAGES)
    if len(place) == 4:
        return list(Family.model_fields)
    stage: Any = {
        PRETRAIN: Pretrain, FINETUNE: Finetune, EVALUATE: Evaluate, EXPORT: Export, REPORT: Stage,
    }[place[1]]  # fmt: skip
    return [field.alias or name for name, field in stage.model_fields.items()]
