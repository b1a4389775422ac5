"""The backbone of a MemBART as a plain BART: the slots and their stream are left out."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BartConfig, BartForConditionalGeneration

from pretrain import checkpoint, modelcard
from pretrain.errors import CheckpointError, UserError
from pretrain.export import folder, weights
from pretrain.export.kind import DEFAULT
from pretrain.model.configuration import MemBartConfig
from pretrain.model.convert import is_memory

TOLERANCE = 1e-4
"""Of the largest logit: two ways to compute the same attention differ by rounding, in float32."""

_USAGE = """\
```python
from transformers import AutoTokenizer, BartForConditionalGeneration

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = BartForConditionalGeneration.from_pretrained(FOLDER)
batch = tokenizer("A text with a <mask> in it.", return_tensors="pt")
print(tokenizer.batch_decode(model.generate(**batch, max_length=64)))
```
"""


@dataclass(frozen=True)
class PlainBart:
    """What became of a MemBART without its memory."""

    path: Path
    dropped: tuple[str, ...]
    """Names of the tensors that BART has no place for."""
    dropped_parameters: int
    difference: float
    """Largest difference of the logits from MemBART's without slots: rounding."""
    moved: float
    """Largest difference from MemBART's with its slots, over two timesteps: what leaving them out changes."""

    @property
    def text(self) -> str:
        """The loss in two plain sentences."""
        equal = f"to {self.difference:.1g}" if self.difference else "bit for bit"
        return (
            f"{len(self.dropped)} memory tensors ({self.dropped_parameters:,} parameters) are left out: "
            "this BART carries nothing from one text to the next. "
            f"Its logits equal those of the MemBART without slots {equal}, and are "
            f"up to {self.moved:.2g} away from those with slots, with which it was trained."
        )


def to_bart(source: Path, out: Path, *, dtype: str = "fp32") -> PlainBart:
    """Write the backbone of a checkpoint as a folder that `BartForConditionalGeneration` loads.

    The folder appears only when the BART loaded from it gives the logits of the checkpoint's model with its
    slots taken out.

    Raises:
        UserError, CheckpointError: as for `export`; and a structure that cannot do without slots.
    """
    as_dtype = folder.known_dtype(dtype)
    with folder.complete_or_absent(out) as aside:
        saved = checkpoint.resolve_whole(source)
        ours = DEFAULT.config(saved)
        if not isinstance(ours, MemBartConfig):
            raise UserError(f"a {ours.model_type} model has no BART inside", where=str(saved.path))
        if ours.is_memformer:
            raise UserError(
                f"a {ours.variant} reads its slots between BART's layers: without them it is no model",
                where=str(saved.path),
                mend="export it as it is",
            )
        config = plain_config(ours)
        config.dtype = as_dtype
        with torch.device("meta"):
            skeleton = BartForConditionalGeneration(config)
        shapes = {name: place.shape for name, place in weights.named_tensors(skeleton).items()}
        folder.check_room(aside, sum(shape.numel() for shape in shapes.values()) * as_dtype.itemsize)
        folder.save_settings(saved, config, skeleton.generation_config, aside)
        weights.write(saved, shapes, aside, dtype=as_dtype)

        model = weights.load_model(saved).to(as_dtype).float()
        dropped = {
            name: place.numel() for name, place in weights.named_tensors(model).items() if is_memory(name)
        }
        with_slots = DEFAULT.probe(model)
        take_slots_out(model)
        without = DEFAULT.probe(model)
        del model
        bart = BartForConditionalGeneration.from_pretrained(aside, dtype=torch.float32, local_files_only=True)
        found = DEFAULT.probe(bart.eval())
        made = PlainBart(
            out,
            tuple(dropped),
            sum(dropped.values()),
            difference=float((found - without).abs().max()),
            moved=float((found - with_slots).abs().max()),
        )
        if not made.difference <= TOLERANCE * float(without.abs().max()):
            raise CheckpointError(
                f"the BART differs from the model without slots by {made.difference:.3g}",
                where=str(out),
                mend="report this; nothing was exported",
            )
        about = f"The backbone of a MemBART of {ours.memory_len} slots as a plain BART. {made.text}"
        card = modelcard.render(saved, config, about=about, usage=_USAGE)
        (aside / "README.md").write_text(card, encoding="utf-8")
    return made


def plain_config(config: MemBartConfig) -> BartConfig:
    """BART's part of a MemBART configuration."""
    added = {field.name for field in fields(MemBartConfig)} - {field.name for field in fields(BartConfig)}
    own = {key: value for key, value in config.to_dict().items() if key not in (*added, "model_type")}
    plain = BartConfig.from_dict(own)
    plain.architectures = ["BartForConditionalGeneration"]
    return plain


def take_slots_out(model: Any) -> None:
    """Leave a MemBART, in place, with zero slots: the plain BART function."""
    encoder = model.model.encoder
    encoder.memory_bias = nn.Parameter(encoder.memory_bias.detach()[:, :0])
    model.config.memory_len = 0
