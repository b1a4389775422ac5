"""What a fine-tune starts from: a checkpoint of ours, an exported folder, a model of the hub, or nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from pretrain import checkpoint
from pretrain.corpus.tokenizer import TOKENIZER_FOLDER
from pretrain.errors import CheckpointError, UserError
from pretrain.export import load_model, named_tensors
from pretrain.model import MemBartForConditionalGeneration
from pretrain.tracking import spool

SCRATCH, HUB = "scratch", "hf:"


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
            if self.saved is not None:
                with tempfile.TemporaryDirectory() as empty:
                    content = (self.saved.path / "config.json").read_text(encoding="utf-8")
                    (Path(empty) / "config.json").write_text(content, encoding="utf-8")
                    return AutoConfig.from_pretrained(empty)
            return AutoConfig.from_pretrained(self.folder)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"no model configuration ({reason})", where=self.place) from None

    @property
    def is_membart(self) -> bool:
        """Whether it can carry memory, or is a BART that MemBART's memory can be added to."""
        return not self.is_scratch and self.config.model_type in ("membart", "bart")

    def membart(self, **changes: Any) -> MemBartForConditionalGeneration:
        """A MemBART from ours, the authors' layout or plain BART; float32 on the CPU.

        Args:
            changes: fields of `MemBartConfig` to set, such as `memory_len` or `dropout`.

        Raises:
            CheckpointError: the place holds nothing of the kind.
        """
        if self.saved is None:
            return MemBartForConditionalGeneration.from_pretrained(
                self.folder, dtype=torch.float32, **changes
            )
        model = load_model(self.saved)
        if all(getattr(model.config, key) == value for key, value in changes.items()):
            return model
        with tempfile.TemporaryDirectory() as aside:
            model.save_pretrained(aside)
            return MemBartForConditionalGeneration.from_pretrained(aside, dtype=torch.float32, **changes)

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

    def weights(self, model: torch.nn.Module) -> Mapping[str, Tensor]:
        """Tensors of a model made by `membart` or `hub_model`, tied ones once, by name."""
        return named_tensors(model)


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
        return Backbone(SCRATCH, None, _tokenizer(tokenizer))
    if place.startswith(HUB):
        return Backbone(place, None, _tokenizer(tokenizer or place.removeprefix(HUB)))
    folder = Path(place)
    if not folder.is_dir():
        raise UserError(
            "no such backbone",
            where=place,
            mend="a run, a checkpoint, an exported folder, hf:NAME or scratch",
        )
    if (folder / "config.json").is_file() and not (folder / "state.json").is_file():
        return Backbone(place, None, _tokenizer(tokenizer or place))
    saved = checkpoint.resolve_whole(folder)
    own = saved.path.parent.parent / TOKENIZER_FOLDER
    return Backbone(place, saved, _tokenizer(tokenizer or str(own)))


def _tokenizer(folder: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"no tokenizer ({reason})", where=folder, mend="tokenizer=FOLDER") from None
