"""One turn of a model without memory, from inputs padded as it wants them.

Two kinds of models read the same example. An encoder-decoder reads the source and writes the target. A
causal model reads them as one sequence: the source without its `</s>`, aligned on the right, and then the
target, so that targets begin at the same place in every row and logits are made of them alone. A dry row
reads a token of padding, so that no row attends to nothing; its labels are all ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from finetune.batch import TurnBatch
from finetune.families.baseline.models import attention_window, check_room
from pretrain import replay
from pretrain.model.loss import IGNORED


class BaselineCell(nn.Module):
    """See `pretrain.replay.Cell`; the memory, which has no slots, goes through untouched."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, batch: TurnBatch, memory: Tensor, key: replay.Key, *, loss: bool = True, per_row: bool = False
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        gate = memory.new_zeros(())
        if not loss:
            return None, memory, gate
        replay.seed(*key, 1)
        nll = token_loss(self.model, batch, batch.labels)
        return nll if per_row else nll.sum(), memory, gate


def token_loss(model: Any, batch: TurnBatch, labels: Tensor) -> Tensor:
    """Cross-entropy of `labels` `[A, T]`, those of the batch or some of them; summed over each row, `[A]`."""
    scores = logits(model, batch).flatten(0, 1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    nll = cross_entropy(scores, labels.flatten(), ignore_index=IGNORED, reduction="none")
    return nll.view(labels.shape).sum(dim=1)


def logits(model: Any, batch: TurnBatch) -> Tensor:
    """Scores of every target token after those before it, `[A, T, vocabulary]`."""
    check_room(model.config, *_lengths(model, batch))
    if model.config.is_encoder_decoder:
        out = model(**prompt(model, batch), decoder_input_ids=batch.decoder_input_ids, use_cache=False)
        return out.logits
    begun = prompt(model, batch)
    # Each token but the last is read to score the next; the first target follows from the source.
    ids = torch.cat([begun["input_ids"], batch.decoder_input_ids[:, 1:]], dim=1)
    mask = torch.cat([begun["attention_mask"], (batch.labels[:, 1:] != IGNORED).long()], dim=1)
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)
    width = batch.labels.shape[1]
    out = model(
        input_ids=ids, attention_mask=mask, position_ids=places, logits_to_keep=width, use_cache=False
    )
    return out.logits[:, -width:]


def prompt(model: Any, batch: TurnBatch) -> Mapping[str, Tensor]:
    """What the model reads before its first target token, as arguments of its forward or `generate`."""
    ids, mask = batch.input_ids, batch.attention_mask
    if not model.config.is_encoder_decoder:
        return _on_the_right(ids, (mask.sum(dim=1) - 1).clamp(min=1))
    first = torch.arange(mask.shape[1], device=mask.device) == 0
    mask = torch.where(first, 1, mask)
    window = attention_window(model.config)
    if window == 1:
        return {"input_ids": ids, "attention_mask": mask}
    more = -ids.shape[1] % window
    mask = pad(mask, (0, more))
    return {
        "input_ids": pad(ids, (0, more), value=model.config.pad_token_id),
        "attention_mask": mask,
        "global_attention_mask": pad(first.long(), (0, more)).expand_as(mask),
    }


def _on_the_right(ids: Tensor, lengths: Tensor) -> Mapping[str, Tensor]:
    """The first `lengths` `[A]` tokens of each row, with the padding before them."""
    width = ids.shape[1]
    places = torch.arange(width, device=ids.device) - (width - lengths)[:, None]
    return {
        "input_ids": ids.gather(1, places.clamp(min=0)),
        "attention_mask": (places >= 0).long(),
    }


def _lengths(model: Any, batch: TurnBatch) -> tuple[int, int]:
    """Tokens of source and target as positions count them: padding is no token to a causal model."""
    if model.config.is_encoder_decoder:
        return batch.input_ids.shape[1], batch.labels.shape[1]
    rows = [example.fields for example in batch.examples if example is not None]
    longest = max(((len(row["input_ids"]), len(row["labels"])) for row in rows), key=sum, default=(0, 0))  # type: ignore[arg-type]
    return longest
