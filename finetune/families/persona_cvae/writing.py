"""Replies token by token, one to each draw of the latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from finetune.batch import TurnBatch
from finetune.drawing import RowKey, normal, processors, row_keys
from finetune.families.persona_cvae.layout import PersonaLayout
from finetune.families.persona_cvae.modeling import PersonaCvae
from finetune.recipe import GenerationSection
from finetune.text import DialogueText
from pretrain.errors import UserError


def replies(
    model: PersonaCvae,
    layout: PersonaLayout,
    read: Any,
    batch: TurnBatch,
    how: GenerationSection,
    fader: float | None = None,
) -> list[list[str]]:
    """`how.replies` replies of each row, dry ones too.

    Args:
        read: what `model.read` made of the batch.
        fader: sets Zα to (1 + 0.25 ε) · fader, as Figure 6 does.

    Raises:
        UserError: beam search is asked for.
    """
    if not how.sample and how.beams > 1:
        raise UserError(
            "this family draws its replies, one to each draw of the latents; it has no beam search",
            where="generation",
            mend="generation.sample=true, or generation.beams=1 for the likeliest token",
        )
    keys = row_keys(batch, how.seed, how.replies)
    noise = normal(keys, (2, model.config.width), batch.input_ids.device)
    room = _room(model, layout.data.context_tokens, how.max_new_tokens)
    columns = []
    for number in range(how.replies):
        drawn = noise[number :: how.replies]
        level = None if fader is None else fader * (1 + 0.25 * drawn[:, 1])
        latents = model.prior_latents(batch, drawn[:, 0], level) if model.config.latents else None
        choose = chooser(layout.text, how, keys[number :: how.replies])
        made = model.write(read, batch, latents, choose, {layout.text.eos}, room)
        columns.append([layout.text.decoded(row) for row in made])
    return [list(row) for row in zip(*columns, strict=True)]


def _room(model: PersonaCvae, context: int, wanted: int) -> int:
    """Tokens that fit after what stands before a reply."""
    held = context if model.config.kind == "gpt2" else 2
    return min(wanted, int(model.body.lm.config.max_position_embeddings) - held)


def chooser(
    text: DialogueText, how: GenerationSection, keys: Sequence[RowKey]
) -> Callable[[Tensor, Tensor], Tensor]:
    """What picks next tokens `[A]`, given those written `[A, t]` and the scores `[A, V]`.

    Penalty, temperature, top-k, top-p, a draw: in this order; padding and the beginning are never written.
    """
    steps = processors(how, keys)
    banned = [one for one in {text.pad, text.bos} if one != text.eos]

    def choose(written: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, banned] = -torch.inf
        return torch.as_tensor(steps(written, scores)).argmax(dim=-1)

    return choose
