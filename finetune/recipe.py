"""The recipe of a fine-tune: a family, where it starts, and its dialogues; the rest is every run's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from finetune.dialogue.load import Source
from finetune.knowledge import artifact
from pretrain.recipe import ReplaySection, RunRecipe, Section

Memory = Literal["carry", "reset", "off"]
PLACES = {"knowledge": "knowledge_hash"}
"""Settings of families that name a folder with a manifest, and those that say what it holds."""


class DialogueSection(Section):
    sources: tuple[str, ...] = ()
    """Dialogues as `NAME:PATH`; several are joined."""
    memory: Memory = "carry"
    """`carry`: memory flows from turn to turn of a dialogue; `reset`: fresh for each reply; `off`: no memory,
    plain BART."""
    lanes: int = Field(default=4, gt=0)
    """Groups of agents with a dialogue queue of their own; fixed for the life of a run, on any ranks."""
    agents_per_lane: int = Field(default=4, gt=0)
    """Batch rows of a lane: each follows one dialogue at a time."""
    context_tokens: int = Field(default=512, gt=8)
    """Longest input of the encoder, special tokens included; older tokens are cut."""
    target_tokens: int = Field(default=128, gt=3)
    """Longest reply, special tokens included; the rest is cut."""
    persona: bool = True
    """Give the speaker's own persona at the start of the history."""
    targets: str = "last"
    """Whose turns are replies to learn: `last` those of the speaker who does not open, `first` of the one
    who does, `both` each in a pass of its own; or those of a role that the dialogues name, e.g. `wizard`."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the training dialogues; given, it decides `train.steps`."""
    max_dialogues: int | None = Field(default=None, gt=0)
    """Use only so many of each source and split."""
    validation_dialogues: int | None = Field(default=None, gt=0)
    """Validate on only so many."""
    max_rejected: float = Field(default=0.05, ge=0, le=1)
    """Share of a source's records that may be malformed; a single one always may, unless this is 0."""

    @field_validator("memory", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        """YAML reads a bare `off` as false."""
        return "off" if value is False else value


class GenerationSection(Section):
    beams: int = Field(default=4, gt=0)
    """Width of the beam search; 1 takes the likeliest token each time."""
    sample: bool = False
    """Draw tokens instead of searching; `top_k`, `top_p` and `temperature` are used then."""
    top_k: int = Field(default=0, ge=0)
    """Draw among the so many likeliest tokens; 0: all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw among the likeliest tokens that together have this probability."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides the logits before a draw."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """Divides the scores of tokens that were said before; 1: none."""
    length_penalty: float = 1.0
    """Exponent of the length by which beams are normalized; families may define another form."""
    max_new_tokens: int = Field(default=64, gt=0)
    """Longest reply."""
    replies: int = Field(default=1, gt=0)
    """Replies per context."""
    seed: int = 1
    """Of everything that is drawn."""


class FineTuneRecipe(RunRecipe):
    """A fine-tune."""

    family: str
    """One of `finetune.families.FAMILIES`."""
    backbone: str = "scratch"
    """A run folder or checkpoint of ours, an exported folder, `hf:NAME` or `scratch`."""
    tokenizer: str | None = None
    """Tokenizer folder for `scratch`; other backbones bring theirs."""
    model: dict[str, Any] = Field(default_factory=dict)
    """The family's own settings; see its `Settings`."""
    data: DialogueSection = DialogueSection()
    generation: GenerationSection = GenerationSection()
    replay: ReplaySection = ReplaySection(horizon=1)

    @field_validator("model")
    @classmethod
    def _with_whole_paths(cls, model: dict[str, Any]) -> dict[str, Any]:
        """A run is resumed from anywhere: a folder among the settings is named in full, with what it holds.

        What a recipe says of it stays, so that a run's own recipe goes on meaning what the run began with.
        """
        found = dict(model)
        for place, content in PLACES.items():
            if isinstance(model.get(place), str):
                folder = Path(model[place]).resolve()
                held = model.get(content) or artifact.content_hash(folder)
                found |= {place: str(folder)} | ({content: held} if held else {})
            else:
                found.pop(content, None)
        return found

    transport: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **RunRecipe.transport,
        "data": ("sources", "max_rejected", "validation_dialogues"),
    }
    reporting: ClassVar[tuple[str, ...]] = (*RunRecipe.reporting, "generation", "backbone", "tokenizer")

    @property
    def agents(self) -> int:
        return self.data.lanes * self.data.agents_per_lane

    @property
    def lanes(self) -> int:
        return self.data.lanes

    def hash(self) -> str:
        """As of every run; a folder among the settings counts by what it holds, not by where it is."""
        known = {place for place, content in PLACES.items() if self.model.get(content)}
        model = {key: value for key, value in self.model.items() if key not in known}
        return super(FineTuneRecipe, self.model_copy(update={"model": model})).hash()

    def settled(self) -> FineTuneRecipe:
        """The same with absolute paths, so that the run folder alone resumes it from anywhere."""
        sources = tuple(str(Source.parse(source).absolute()) for source in self.data.sources)
        places: dict[str, Any] = {"data": self.data.model_copy(update={"sources": sources})}
        for key in ("backbone", "tokenizer"):
            value = getattr(self, key)
            if value and Path(value).exists():
                places[key] = str(Path(value).resolve())
        return self.model_copy(update=places)
