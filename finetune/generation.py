"""The recipe's `generation` section as options of transformers' `generate`."""

from __future__ import annotations

from typing import Any

from finetune.recipe import GenerationSection


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
