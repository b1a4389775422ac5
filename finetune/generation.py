"""Replies by transformers' `generate`, as the recipe's `generation` section wants them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from finetune.batch import TurnBatch
from finetune.recipe import GenerationSection
from finetune.text import DialogueText
from pretrain import replay


def write_replies(
    model: Any,
    batch: TurnBatch,
    encoded: Any,
    text: DialogueText,
    how: GenerationSection,
    key: tuple[int | str, ...],
    positions: int = 0,
) -> list[list[str]]:
    """`how.replies` replies of each row in the plain-text form of `finetune.text`; none of a dry row.

    Args:
        encoded: what the encoder made of the batch, as `model.generate` takes it.
        key: what all randomness is drawn from, beside `how.seed`.
        positions: as of `generate_options`.
    """
    replay.seed(how.seed, *key)
    made = model.generate(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        encoder_outputs=encoded,
        decoder_start_token_id=text.bos,
        eos_token_id=text.ends,
        pad_token_id=text.pad,
        **generate_options(how, positions),
    )
    return as_replies(made, text, how.replies, batch)


def as_replies(made: Tensor, text: DialogueText, each: int, batch: TurnBatch) -> list[list[str]]:
    """Generated tokens `[A * each, T]` as `each` texts of every row, in the plain-text form."""
    texts = [text.clean(row) for row in made.tolist()]
    return of_live([texts[at : at + each] for at in range(0, len(texts), each)], batch)


def of_live(texts: list[list[str]], batch: TurnBatch) -> list[list[str]]:
    """Texts of each row, empty for dry ones, which read nothing."""
    live = batch.attention_mask.any(dim=1).tolist()
    return [row if ok else [] for row, ok in zip(texts, live, strict=True)]


def generate_options(how: GenerationSection, positions: int = 0) -> dict[str, Any]:
    """Keywords for `generate`; a checkpoint's own generation settings never shine through.

    Args:
        positions: those of the decoder, which no reply outgrows; 0 where it has no limit.
    """
    shared: dict[str, Any] = {
        "max_new_tokens": min(how.max_new_tokens, positions or how.max_new_tokens),
        "num_return_sequences": how.replies,
        "repetition_penalty": how.repetition_penalty,
        "no_repeat_ngram_size": 0,
        "forced_bos_token_id": None,
        "forced_eos_token_id": None,
        "min_length": 0,
    }
    if how.sample:
        return {
            **shared,
            "do_sample": True,
            "num_beams": 1,
            "temperature": how.temperature,
            "top_k": how.top_k,
            "top_p": how.top_p,
        }
    return {
        **shared,
        "do_sample": False,
        "num_beams": max(how.beams, how.replies),
        "length_penalty": how.length_penalty,
        "early_stopping": False,
    }
