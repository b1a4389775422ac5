"""Small Dior-CVAE models and batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from finetune.batch import TurnBatch
from finetune.families.dior_cvae import DiorForConditionalGeneration
from finetune.families.dior_cvae.modeling import dior_config
from pretrain.model import MemBartConfig, MemBartForConditionalGeneration
from tests.support import tiny

SIZES: dict[str, Any] = {
    "latent_size": 4,
    "posterior_width": 16,
    "denoiser_width": 32,
    "diffusion_steps": 10,
    "beta_start": 0.01,
    "beta_end": 0.95,
    "latent_init_std": 0.2,
    "decoder_start_token_id": 2,
}


def backbone(**changes: Any) -> MemBartForConditionalGeneration:
    """The MemBART that `model` starts from."""
    torch.manual_seed(0)
    return MemBartForConditionalGeneration.from_scratch(
        MemBartConfig(**{"vocab_size": 60, **tiny.MODEL, **changes})
    )


def model(**changes: Any) -> DiorForConditionalGeneration:
    """A few thousand float32 parameters with seeded weights, in eval mode."""
    torch.manual_seed(0)
    fields = {**tiny.MODEL, "vocab_size": 60, **SIZES, **changes}
    made: DiorForConditionalGeneration = DiorForConditionalGeneration(dior_config(MemBartConfig(**fields)))
    return made.eval()


def batch(rows: int = 3, seed: int = 0, contexts: int = 9, replies: int = 7) -> TurnBatch:
    """Random turns of uneven lengths; labels begin with `<s>` and end with `</s>`."""
    generator = torch.Generator().manual_seed(seed)
    ids, mask = _padded(rows, contexts, generator, 1)
    labels, there = _padded(rows, replies, generator, -100)
    labels[:, 0] = 0
    labels[torch.arange(rows), there.sum(dim=1) - 1] = 2
    tensors = {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "memory_resets": torch.zeros(rows, dtype=torch.long),
    }
    return TurnBatch(tensors, (None,) * rows)


def _padded(rows: int, width: int, generator: torch.Generator, pad: int) -> tuple[Tensor, Tensor]:
    lengths = torch.randint(3, width + 1, (rows,), generator=generator)
    lengths[0] = width
    mask = (torch.arange(width) < lengths[:, None]).long()
    ids = torch.randint(4, 60, (rows, width), generator=generator)
    return torch.where(mask.bool(), ids, pad), mask
