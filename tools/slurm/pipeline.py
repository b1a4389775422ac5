"""PIPELINE.yaml: which models come out, and on what they are made."""

from __future__ import annotations

import difflib
import math
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from finetune.families import FAMILIES
from pretrain.errors import UserError
from pretrain.recipe import Section

PRETRAIN, KNOWLEDGE, FINETUNE, EVALUATE, EXPORT, REPORT = STAGES = (
    "pretrain", "knowledge", "finetune", "evaluate", "export", "report",
)  # fmt: skip
_TIME = re.compile(r"(\d+-)?\d+(:\d{1,2}){0,2}")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
ANNOTATIONS = "model.knowledge"
"""The key of a fine-tune's recipe that names the folder of `membart ki annotate`."""


class Stage(Section):
    """What one job of a stage gets: one process on one node, unless it trains."""

    gpus_per_node: int = Field(default=0, ge=0)
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
    def layout(self) -> tuple[int, int]:
        """Nodes, and processes on each."""
        return 1, 1

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
    """A stage of many ranks that saves and goes on."""

    nodes: int = Field(default=1, gt=0)
    tasks_per_node: int | None = Field(default=None, gt=0)
    """Ranks of a node; unset: one a GPU, or one."""
    preflight: bool = True
    """Examine the nodes before each start."""

    @property
    def layout(self) -> tuple[int, int]:
        """Nodes, and ranks on each."""
        return self.nodes, self.tasks_per_node or self.gpus_per_node or 1


class Pretrain(Training):
    """The pretraining, one run."""

    recipe: str
    """A shipped recipe or a YAML file."""
    set: tuple[str, ...] = ()
    """Changes to it, as `key.sub=value`."""


class Knowledge(Stage):
    """Sentences for the words of dialogues (docs/knowledge.md)."""

    inputs: tuple[str, ...] = ()
    """Encyclopedias, of which a knowledge base, a retriever and an index are made."""
    index: str | None = None
    """Instead of them, an index that is there already."""
    start: str | None = Field(default=None, alias="from")
    """What the retriever starts from: `pretrain` is this pipeline's; unset: as `train-retriever` has it."""
    set: tuple[str, ...] = ()
    """The retriever's settings, as `key=value`."""
    words: tuple[str, ...] = ()
    """Further words for `membart ki annotate`."""
    readers: tuple[str, ...] = Field(default=("ki",), alias="for", min_length=1)
    """The fine-tunes whose dialogues are annotated, and which learn from it."""

    @model_validator(mode="after")
    def _of_one_kind(self) -> Knowledge:
        if bool(self.inputs) == (self.index is not None):
            raise ValueError("an index is made of `inputs`, or is there as `index`: give one of them")
        if self.index is not None and (self.start is not None or self.set):
            raise ValueError("`from` and `set` are for a new retriever: an index has one")
        return self


class Family(Section):
    """One fine-tune."""

    family: str | None = None
    """One of the five, or a YAML file of one; unset: the fine-tune's name."""
    data: tuple[str, ...] = ()
    """Dialogues as `NAME:PATH`."""
    set: tuple[str, ...] = ()


class Finetune(Training):
    """All fine-tunes."""

    start: str | None = Field(default=None, alias="from")
    """What the families start from; unset: the pretraining of this pipeline."""
    families: dict[str, Family] = Field(min_length=1)
    """Fine-tunes by name; each is one task of the array."""
    at_once: int | None = Field(default=None, gt=0)
    """Most tasks that run at a time."""


class Evaluate(Stage):
    """Scores of every fine-tune."""

    words: tuple[str, ...] = ()
    """Further words for `membart evaluate`."""


class Export(Stage):
    """A model folder of every run."""

    words: tuple[str, ...] = ()
    """Further words for `membart export`, e.g. `--dtype`, `bf16`."""


class Stages(Section):
    """What is made, in this order."""

    pretrain: Pretrain | None = None
    knowledge: Knowledge | None = None
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
        if self.knowledge is not None:
            self._knowledge_has_readers(self.knowledge)
        return self

    def _knowledge_has_readers(self, knowledge: Knowledge) -> None:
        families = self.finetune.families if self.finetune else {}
        absent = [name for name in knowledge.readers if name not in families]
        if absent:
            raise ValueError(f"knowledge is for '{absent[0]}', and there is no such fine-tune")
        for name in knowledge.readers:
            if not families[name].data:
                raise ValueError(f"knowledge is for the dialogues of '{name}', which has no data")
            if any(word.startswith(f"{ANNOTATIONS}=") for word in families[name].set):
                raise ValueError(f"'{name}' sets {ANNOTATIONS} and has knowledge made: do one of both")
        if knowledge.start == PRETRAIN and self.pretrain is None:
            raise ValueError("knowledge starts from pretrain, and there is no pretrain")


class Pipeline(Section):
    """All of the file."""

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

    @property
    def knowledge(self) -> Path:
        """The folder of the knowledge base and of all that is made of it."""
        return self.folder / "knowledge"

    @property
    def report(self) -> Path:
        """The page about all runs."""
        return self.folder / "report.html"


def load(path: Path) -> Pipeline:
    """Read PIPELINE.yaml; relative paths are relative to its folder.

    Raises:
        UserError: not readable, a key twice, an unknown key (the nearest is suggested), or a bad value.
    """
    content = _content(path)
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
    if stages.knowledge is not None:
        from finetune.knowledge.retriever.settings import RetrieverSettings

        RetrieverSettings.of(stages.knowledge.set)
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


def _check_lanes(lanes: int, stage: Training, where: str) -> None:
    ranks = math.prod(stage.layout)
    if lanes % ranks:
        raise UserError(
            f"{ranks} ranks do not divide {lanes} lanes",
            where=where,
            mend="change nodes, gpus_per_node, tasks_per_node or data.lanes",
        )


class _Loader(yaml.BaseLoader):
    """Text only, since YAML 1.1 takes 12:00:00 for the number 43200; and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' is there twice", node.value[number][0].start_mark
                )
        return super().construct_mapping(node, deep)


def _content(path: Path) -> Any:
    """Plain content of a YAML file.

    Raises:
        UserError: not readable, no text, or no YAML.
    """
    mend = "name a pipeline file; slurm/pipeline.example.yaml is one"
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path), mend=mend) from None
    except UnicodeDecodeError:
        raise UserError("not a text in UTF-8", where=str(path), mend=mend) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        raise UserError(f"not valid YAML: {error.problem}", where=place, mend="mend the file") from None
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {error}", where=str(path), mend="mend the file") from None


_KINDS = {
    "missing": "has to be there",
    "model_type": "is a section of keys and values; {} where it has none",
    "dict_type": "is a section of keys and values",
    "tuple_type": "is a list; write [one] or [one, two]",
}
"""What pydantic says in words of Python."""


def _refusal(error: ValidationError, path: Path) -> UserError:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        known = _keys(place[:-1])
        near = difflib.get_close_matches(place[-1], known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
        return UserError(f"unknown key '{'.'.join(place)}'", where=str(path), mend=hint)
    problem = _KINDS.get(first["type"], first["msg"].removeprefix("Value error, "))
    return UserError(
        f"{'.'.join(place) or 'a pipeline'}: {problem}", where=str(path), mend="see slurm/README.md"
    )


def _keys(place: list[str]) -> list[str]:
    """Keys of the section at `place`."""
    sections: dict[tuple[str, ...], type[Section]] = {
        (): Pipeline, ("stages",): Stages, ("stages", PRETRAIN): Pretrain, ("stages", KNOWLEDGE): Knowledge,
        ("stages", FINETUNE): Finetune, ("stages", EVALUATE): Evaluate, ("stages", EXPORT): Export,
        ("stages", REPORT): Stage,
    }  # fmt: skip
    section = sections.get(tuple(place), Family)
    return [field.alias or name for name, field in section.model_fields.items()]
