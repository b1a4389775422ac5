"""The recipe: a validated description of a run, read from YAML and `key.sub=value` overrides."""

from __future__ import annotations

import difflib
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, overload

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pretrain.errors import UserError
from pretrain.noise import NoiseConfig

RECIPE_FILE = "recipe.yaml"
"""The resolved recipe in a run folder, a checkpoint and an exported model."""


class Section(BaseModel):
    """Base of every recipe section: immutable, unknown keys refused; a name may look like a number."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True
    )


class ModelSection(Section):
    """What is trained."""

    init: str = "scratch"
    """`scratch`, or a folder or hub name of a BART or MemBART checkpoint."""
    variant: str | None = None
    """The structure, one of `MemBartConfig.variant`; unset: `config`'s, or the checkpoint's own."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Fields of `MemBartConfig`: the whole shape for `scratch`, else changes to the checkpoint's config."""
    frozen: tuple[str, ...] = ()
    """Parameters that do not train, by the ending of their dotted module path, e.g. `embed_positions`."""
    gradient_checkpointing: bool = False
    """Recompute each layer inside a timestep too; stacks with replay."""

    @model_validator(mode="after")
    def _one_variant(self) -> ModelSection:
        named = self.config.get("variant", self.variant)
        if self.variant not in (None, named):
            raise ValueError(f"variant is {self.variant}, config.variant {named}")
        return self

    @property
    def fields(self) -> dict[str, Any]:
        """`config` with the variant in it."""
        return self.config if self.variant is None else {**self.config, "variant": self.variant}


class DataSection(Section):
    """What it is trained on, and how texts are dealt to agents."""

    shards: tuple[str, ...]
    """Shard-set folders made by `membart shards build`; several are joined into one mixture."""
    mixture: dict[str, float] | None = None
    """Weight of each source; unset: every source by its size."""
    mixture_unit: Literal["tokens", "documents"] = "tokens"
    """What the weights of `mixture` are shares of."""
    lanes: int = Field(gt=0)
    """Groups of agents with a document queue of their own; fixed for the life of a run, on any ranks."""
    agents_per_lane: int = Field(gt=0)
    """Batch rows of a lane: each follows one document at a time."""
    window: int | None = Field(default=None, gt=2)
    """Tokens of a segment, `<s>` and `</s>` included; unset: the shard set's."""
    overlap: int | None = Field(default=None, ge=0)
    """Tokens shared with the segment before; unset: the shard set's."""
    objective: Literal["denoise", "recall"] = "denoise"
    """`denoise` restores the segment; `recall` asks for the segment before (Appendix A)."""
    static_shapes: bool = False
    """Pad every batch to the window, so that `torch.compile` sees one shape."""
    workers: int = Field(default=1, ge=0)
    """Prefetching processes of a rank; 0 prepares batches in the training process."""
    on_bad_shard: Literal["stop", "skip"] = "stop"
    """An unreadable shard or document ends the run by its name, or is left out and reported once."""
    max_bad_documents: float = Field(default=0.01, ge=0, le=1)
    """Share of a lane's documents that `skip` may leave out before the run stops all the same."""


class ReplaySection(Section):
    """How gradients pass through memory."""

    mode: Literal["replay", "checkpoint", "bptt"] = "replay"
    """`replay`: Algorithm 1; `checkpoint`: recompute each timestep; `bptt`: keep every activation."""
    horizon: int = Field(default=6, gt=0)
    """Timesteps of one rollout: one optimizer step back-propagates through them."""
    loss_weights: Literal["uniform", "geometric"] = "uniform"
    """`uniform`: mean over all target tokens; `geometric`: 2^t-weighted means of the timesteps."""
    time_overlap: int = Field(default=0, ge=0)
    """Timesteps that the next rollout repeats."""
    agent_chunks: int = Field(default=1, gt=0)
    """Pieces into which a rank's agents are cut: gradient accumulation, less activation memory."""

    @model_validator(mode="after")
    def _overlap_shorter_than_horizon(self) -> ReplaySection:
        if self.time_overlap >= self.horizon:
            raise ValueError(f"time_overlap ({self.time_overlap}) must be below horizon ({self.horizon})")
        return self


class OptimizerSection(Section):
    """AdamW and its learning rate."""

    lr: float = Field(gt=0)
    """Peak learning rate of AdamW."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW."""
    eps: float = Field(default=1e-8, gt=0)
    """Of AdamW."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW; biases and LayerNorms are spared."""
    rates: dict[str, float] = Field(default_factory=dict)
    """Factors on `lr` for modules, by a part of their dotted path; the first that fits counts."""
    decay_all: bool = False
    """Also decay biases and LayerNorms, as the authors do."""
    gradient_clipping: float = Field(default=0.0, ge=0)
    """Largest global gradient norm; 0 does not clip."""
    warmup_steps: int = Field(default=0, ge=0)
    """Updates in which the learning rate grows linearly to `lr`."""
    schedule: Literal["linear", "constant"] = "linear"
    """After the warm-up: linearly to zero at the last update, or constant."""


class TrainSection(Section):
    """How long, on what, and when a run is given up."""

    steps: int = Field(gt=0)
    """Optimizer steps (updates) of the whole run."""
    seed: int = 1
    """Of weights, noise, dropout and the order of documents."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16` runs matrix products under autocast over fp32 weights."""
    deepspeed: str = "zero2"
    """A name in `ds_configs/`, or the path of a DeepSpeed JSON."""
    compile: bool = False
    """`torch.compile` the layers; worth it with `data.static_shapes` and many updates."""
    log_every: int = Field(default=1, gt=0)
    """Updates between records of the training figures."""
    max_skipped_in_a_row: int = Field(default=20, gt=0)
    """Stop after so many updates in a row whose loss or gradient was not finite."""
    collective_timeout: int = Field(default=1800, gt=0)
    """Seconds after which a collective that a rank has not joined ends the run."""
    stall_seconds: int = Field(default=600, gt=0)
    """Seconds without progress after which a rank is given up and all end (exit 4). Starting, the first
    update, validating and saving may take nine tenths of `collective_timeout`."""
    peer_timeout: int = Field(default=120, ge=0)
    """Seconds of silence after which a rank's process counts as frozen or its node as lost; a killed process
    is noticed at once. 0: ranks do not watch over one another."""
    rehearse: bool = True
    """Train on a made-up batch of the largest shape before data are read, without a trace, so that want of
    memory shows at once."""


class ValidationSection(Section):
    """When held-out figures are taken, and what follows from them."""

    every: int = Field(default=0, ge=0)
    """Updates between validations; 0: only at the end."""
    max_timesteps: int = Field(default=64, gt=0)
    """Timesteps of one validation: the same held-out segments each time."""
    keep_best: bool = False
    """Save after a validation that beats all before, and never prune that checkpoint."""
    patience: int = Field(default=0, ge=0)
    """Stop after so many validations in a row without a new best; 0: never."""


class CheckpointSection(Section):
    """When checkpoints are written, and which are kept."""

    every: int = Field(default=1000, gt=0)
    """Updates between checkpoints."""
    asynchronous: bool = True
    """Training goes on while a copy of a rank's optimizer state, in host memory, is written."""
    keep_last: int = Field(default=2, ge=2)
    """Newest checkpoints that are kept."""
    keep_every: int = Field(default=0, ge=0)
    """Also keep each checkpoint whose update is a multiple of this; 0: none."""


class TrackingSection(Section):
    """What is told of the run, and where."""

    experiment: str = "membart"
    """Name of the MLflow experiment."""
    mlflow: bool = True
    """Send figures to MLflow; `metrics.jsonl` is written either way."""
    artifacts: Literal["none", "plots", "checkpoints"] = "plots"
    """What MLflow gets at the end of the run: `plots` and what the last checkpoint says of itself, or all of
    the last checkpoint's files too."""


class RunRecipe(Section, ABC):
    """What every run has, whatever it trains; pretraining and fine-tuning add their model and data."""

    name: str
    """The run's folder below `root`, and its name in MLflow."""
    root: str = "runs"
    """Folder of runs; this run is `root/name`, the local MLflow store `root/mlflow.db`."""
    replay: ReplaySection = ReplaySection()
    optimizer: OptimizerSection
    train: TrainSection
    validation: ValidationSection = ValidationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    tracking: TrackingSection = TrackingSection()

    reporting: ClassVar[tuple[str, ...]] = ("name", "root", "tracking", "checkpoint", "validation")
    """Sections that do not change what is computed."""
    transport: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "train": (
            "log_every",
            "collective_timeout",
            "stall_seconds",
            "peer_timeout",
            "rehearse",
            "deepspeed",
            "compile",
        )
    }
    """Fields that do not change what is computed, by section; a subclass adds its own."""

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return Path(self.root) / self.name

    @property
    @abstractmethod
    def agents(self) -> int:
        """Rows of the global batch."""

    @property
    @abstractmethod
    def lanes(self) -> int:
        """Groups of agents that move between ranks as a whole."""

    def hash(self) -> str:
        """Identity of what the run computes: everything but names, places and reporting."""
        identity = self.model_dump(mode="json", exclude=set(self.reporting))
        for section, fields in self.transport.items():
            for field in fields:
                identity[section].pop(field)
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def to_yaml(self) -> str:
        """Every field, set or not, as `load` reads it."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


class Recipe(RunRecipe):
    """Pretraining."""

    model: ModelSection
    data: DataSection
    noise: NoiseConfig = NoiseConfig()

    transport: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **RunRecipe.transport,
        "data": ("shards", "workers", "on_bad_shard", "max_bad_documents"),
    }

    @property
    def agents(self) -> int:
        return self.data.lanes * self.data.agents_per_lane

    @property
    def lanes(self) -> int:
        return self.data.lanes


Schema = TypeVar("Schema", bound=RunRecipe)


def shipped(package: str = "pretrain") -> list[str]:
    """Names of the recipes that come with a package."""
    folder = resources.files(package) / "recipes"
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


@overload
def load(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe: ...
@overload
def load(name_or_path: str, overrides: Sequence[str], schema: type[Schema]) -> Schema: ...
def load(
    name_or_path: str, overrides: Sequence[str] = (), schema: type[RunRecipe] | None = None
) -> RunRecipe:
    """The recipe of a shipped name or a YAML file, with `key.sub=value` overrides applied.

    Args:
        schema: `Recipe` unless given; shipped names are looked up beside the module that defines it.

    Raises:
        UserError: no such recipe, bad YAML, an unknown key (the nearest is suggested) or a bad value.
    """
    wanted = schema or Recipe
    content = read(name_or_path, wanted.__module__.partition(".")[0])
    for override in overrides:
        apply(content, override)
    return parse(content, name_or_path, wanted)


_WANTED = {
    "tuple_type": ("a list is wanted", "[A,B]"),
    "model_type": ("a section, not a value", "VALUE"),
    "dict_type": ("a section, not a value", "VALUE"),
}
"""What pydantic says in the words of Python, by type of error: the problem, and what belongs behind `=`."""


def locate(name: str) -> tuple[str, list[str]]:
    """What `load` takes where `name` may also be a run folder: then its recipe, and where the folder is now.

    Raises:
        UserError: a checkpoint or a model folder, which holds a recipe too, but is no run to go on with.
    """
    folder = Path(name).resolve()
    if not (folder / RECIPE_FILE).is_file():
        return name, []
    if (folder / "config.json").is_file():
        raise UserError(
            "this is a checkpoint or an exported model, not a run",
            where=name,
            mend=f"name the run folder to go on with it, or {name}/{RECIPE_FILE} to train anew by its recipe",
        )
    return str(folder / RECIPE_FILE), [f"root={folder.parent}", f"name={folder.name}"]


@overload
def parse(content: dict[str, Any], origin: str) -> Recipe: ...
@overload
def parse(content: dict[str, Any], origin: str, schema: type[Schema]) -> Schema: ...
def parse(content: dict[str, Any], origin: str, schema: type[RunRecipe] | None = None) -> RunRecipe:
    """Validate a recipe given as plain data; `origin` is where error messages say it came from."""
    wanted = schema or Recipe
    try:
        return wanted.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        if first["type"] == "extra_forbidden":
            raise UserError(
                f"unknown recipe key '{key}'{more}", where=origin, mend=_suggest(first["loc"], wanted)
            ) from None
        problem, value = _WANTED.get(first["type"], (first["msg"].removeprefix("Value error, "), "VALUE"))
        if first["type"] in ("value_error", "model_type", "dict_type"):  # of several keys of a section
            change = f"{key}.KEY".lstrip(".")
        else:
            change = key
        raise UserError(
            f"recipe key '{key}': {problem}{more}" if key else f"{problem}{more}",
            where=origin,
            mend=f"set it with {change}={value} or in the file",
        ) from None


def read(name_or_path: str, package: str = "pretrain") -> dict[str, Any]:
    """The plain content of a shipped recipe or a YAML file.

    Raises:
        UserError: no such recipe, or not a YAML mapping.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise UserError(
                "no such recipe file", where=str(path), mend=f"shipped recipes: {', '.join(shipped(package))}"
            )
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"cannot be read: {error}", where=str(path), mend="give a UTF-8 YAML file"
            ) from None
    elif name_or_path in shipped(package):
        text = (resources.files(package) / "recipes" / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    elif path.is_dir():
        raise UserError(
            f"this folder is no run: it has no {RECIPE_FILE}",
            where=name_or_path,
            mend=f"name a run folder, a YAML file or one of: {', '.join(shipped(package))}",
        )
    else:
        near = difflib.get_close_matches(name_or_path, shipped(package), n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UserError(
            f"no recipe '{name_or_path}'",
            mend=f"{hint}give a YAML file or one of: {', '.join(shipped(package))}",
        )
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        problem = str(error).replace('in "<unicode string>", ', "")
        raise UserError(f"not valid YAML: {problem}", where=name_or_path, mend="mend the file") from None
    if not isinstance(content, dict):
        raise UserError(
            "a recipe is a mapping of keys to values", where=name_or_path, mend="see `--print-recipe`"
        )
    return content


def apply(content: dict[str, Any], override: str) -> None:
    """Put one `key.sub=value` into plain content.

    Raises:
        UserError: not of that form, or not valid YAML.
    """
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise UserError(f"override '{override}' is not key=value", mend="for example train.steps=100")
    *parents, leaf = key.split(".")
    node = content
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(
                f"override '{override}': '{parent}' is a value, not a section", mend="check the key"
            )
        node = child
    try:
        node[leaf] = _scalar(value)
    except yaml.YAMLError:
        raise UserError(f"override '{override}': the value is not valid YAML", mend="quote it") from None


def _scalar(value: str) -> Any:
    """YAML 1.1 reads `3e-5` as text; a number is meant."""
    parsed = yaml.safe_load(value)
    if isinstance(parsed, str):
        try:
            return float(parsed)
        except ValueError:
            return parsed
    return parsed


def _suggest(location: tuple[int | str, ...], schema: type[RunRecipe]) -> str:
    section: Any = schema
    for part in location[:-1]:
        section = section.model_fields[part].annotation
    known = list(section.model_fields)
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    return (
        f"did you mean '{'.'.join([*map(str, location[:-1]), near[0]])}'?"
        if near
        else f"known: {', '.join(known)}"
    )
