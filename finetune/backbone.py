"""What a fine-tune starts from: a checkpoint of ours, an exported folder, a model of the hub, or nothing."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from finetune.configuration import own_fields
from pretrain import checkpoint, hub
from pretrain.corpus.tokenizer import TOKENIZER_FOLDER
from pretrain.errors import CheckpointError, UserError
from pretrain.export import load_model, restore_weights
from pretrain.model import MemBartConfig, MemBartForConditionalGeneration
from pretrain.tracking import spool

SCRATCH, HUB = "scratch", "hf:"


@dataclass(frozen=True)
class Extended:
    """A family's model that is a MemBART with something beside it."""

    fields: tuple[str, ...]
    """What its configuration has beside MemBART's fields."""
    prefix: str
    """How the names of the tensors begin that no MemBART has."""


EXTENDED = {"ki_membart": Extended(("ki",), "ki_head.")}
"""By `model_type`: such models serve as backbones too; what is beside the MemBART is left out."""


@dataclass(frozen=True)
class Backbone:
    """A place to start from; nothing heavy is read before it is asked for."""

    place: str
    """As in the recipe: a folder, `hf:NAME` or `scratch`."""
    saved: checkpoint.Checkpoint | None
    """The checkpoint, where the place is a run or checkpoint of ours."""
    tokenizer: PreTrainedTokenizerBase

    @property
    def is_scratch(self) -> bool:
        return self.place == SCRATCH

    @property
    def folder(self) -> str:
        """What `from_pretrained` takes; not for checkpoints of ours."""
        return self.place.removeprefix(HUB)

    @property
    def tracking_run(self) -> str | None:
        """The MLflow run that made the checkpoint: the parent of the fine-tune's."""
        if self.saved is None:
            return None
        # A slow server had perhaps not named the run yet when this was saved.
        later = spool.load(spool.progress_path(self.saved.path.parent.parent), spool.Progress)
        return self.saved.state.get("tracking_run") or (later.run_id if later else None)

    @cached_property
    def config(self) -> PreTrainedConfig:
        """Configuration of the model found there.

        Raises:
            CheckpointError: there is none.
        """
        try:
            if self.extended:
                fields = own_fields(self._stored)
                return MemBartConfig(**{k: v for k, v in fields.items() if k not in self.extended.fields})
            kind = self._stored.get("model_type", "bart")
            if kind not in CONFIG_MAPPING:
                raise CheckpointError(
                    f"a {kind} is no model to start from",
                    where=self.place,
                    mend="a pretraining, a fine-tune of membart or ki, or a model of transformers",
                )
            if self.saved is not None:
                found: PreTrainedConfig = CONFIG_MAPPING[kind].from_dict(dict(self._stored))
                return found
            return AutoConfig.from_pretrained(self.folder)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"no model configuration ({reason})", where=self.place) from None

    @property
    def extended(self) -> Extended | None:
        """What the model found there has beside a MemBART; None of all that is not such a model."""
        return EXTENDED.get(self._stored.get("model_type", ""))

    @cached_property
    def unused(self) -> dict[str, str]:
        """Tensors that `membart` leaves out, by name, with the reason."""
        if self.extended is None:
            return {}
        names = self.saved.names if self.saved is not None else self._tensors.keys()
        reason = f"a {self._stored['model_type']} has it beside its MemBART"
        return {name: reason for name in sorted(names) if name.startswith(self.extended.prefix)}

    @cached_property
    def _stored(self) -> dict[str, Any]:
        """Content of the `config.json` of a folder; empty where the place is none."""
        folder = self.saved.path if self.saved is not None else Path(self.folder)
        if self.is_scratch or not (folder / "config.json").is_file():
            return {}
        try:
            return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"config.json cannot be read ({error})", where=self.place) from None

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        """All tensors of an exported folder."""
        files = sorted(Path(self.folder).glob("*.safetensors"))
        return {name: tensor for file in files for name, tensor in load_file(file).items()}

    @property
    def is_membart(self) -> bool:
        """Whether it can carry memory, or is a BART that MemBART's memory can be added to."""
        return not self.is_scratch and self.config.model_type in ("membart", "bart")

    def membart(self, **changes: Any) -> MemBartForConditionalGeneration:
        """A MemBART from ours, the authors' layout or plain BART; float32 on the CPU.

        Of an extended model the MemBART alone.

        Args:
            changes: fields of `MemBartConfig` to set, such as `memory_len` or `dropout`.

        Raises:
            CheckpointError: the place holds nothing of the kind.
        """

        def load(folder: str) -> MemBartForConditionalGeneration:
            return MemBartForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, **changes)

        if self.saved is None and self.extended is None:
            return load(self.folder)
        with tempfile.TemporaryDirectory() as aside:
            if self.saved is None:
                self._put_membart(Path(aside))
                return load(aside)
            if self.extended is None:
                model = load_model(self.saved)
            else:
                model = MemBartForConditionalGeneration(self.config).eval()
                restore_weights(model, self.saved)
            if all(getattr(model.config, key) == value for key, value in changes.items()):
                return model
            model.save_pretrained(aside)
            return load(aside)

    def _put_membart(self, aside: Path) -> None:
        """The MemBART of an extended model's folder as a folder of its own."""
        self.config.save_pretrained(aside)
        kept = {name: tensor for name, tensor in self._tensors.items() if name not in self.unused}
        save_file(kept, aside / "model.safetensors", metadata={"format": "pt"})
        if (Path(self.folder) / "generation_config.json").is_file():
            shutil.copy(Path(self.folder) / "generation_config.json", aside)

    def hub_model(self, auto_class: Any, **changes: Any) -> PreTrainedModel:
        """Any model of transformers by one of its Auto classes; float32 on the CPU.

        Raises:
            CheckpointError: there is none of the kind.
        """
        try:
            model: PreTrainedModel = auto_class.from_pretrained(self.folder, dtype=torch.float32, **changes)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"no such model ({reason})", where=self.place) from None
        return model


def find(place: str, tokenizer: str | None = None) -> Backbone:
    """The backbone that a recipe names, with its tokenizer.

    Raises:
        UserError, CheckpointError: nothing usable there.
    """
    if place == SCRATCH:
        if tokenizer is None:
            raise UserError(
                "a model from scratch needs a tokenizer", where="backbone", mend="tokenizer=FOLDER"
            )
        return Backbone(SCRATCH, None, tokenizer_of(tokenizer))
    if place.startswith(HUB):
        hub.check(place.removeprefix(HUB))
        return Backbone(place, None, tokenizer_of(tokenizer or place.removeprefix(HUB)))
    folder = Path(place)
    if not folder.is_dir():
        raise UserError(
            "no such backbone",
            where=place,
            mend="a run, a checkpoint, an exported folder, hf:NAME or scratch",
        )
    if (folder / "config.json").is_file() and not (folder / "state.json").is_file():
        return Backbone(place, None, tokenizer_of(tokenizer or place))
    saved = checkpoint.resolve_whole(folder)
    own = saved.path.parent.parent / TOKENIZER_FOLDER
    return Backbone(place, saved, tokenizer_of(tokenizer or str(own)))


def tokenizer_of(folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, or of a model of the hub.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if Path(folder).is_file() or (folder.startswith(("/", ".", "~")) and not Path(folder).is_dir()):
        raise UserError("no such tokenizer folder", where=folder, mend="tokenizer=FOLDER")
    hub.check(folder)
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # of a damaged file the library below raises nothing more special
        reason = str(error).splitlines()[0]
        raise UserError(f"no tokenizer ({reason})", where=folder, mend="tokenizer=FOLDER") from None
