"""Contexts with two replies each: the diffusion prior finds both, a prior without context does not."""

from __future__ import annotations

import pytest
import torch

from finetune.batch import TurnBatch
from finetune.families.dior_cvae.modeling import DiorForConditionalGeneration
from tests.support import dior

CONTEXTS, SAMPLES, UPDATES = 16, 5, 200
KL_WEIGHT = 0.0005
"""Little: in so few updates the denoiser is poor, and its errors would flatten the latents."""


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Contexts [16, 4] and replies [16, 2, 3] of random tokens."""
    generator = torch.Generator().manual_seed(3)
    contexts = torch.randint(4, 60, (CONTEXTS, 4), generator=generator)
    return contexts, torch.randint(4, 60, (CONTEXTS, 2, 3), generator=generator)


def learn(prior: str) -> DiorForConditionalGeneration:
    model = dior.model(
        prior=prior,
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "denoiser_width"), 64),
        **dict.fromkeys(("d_model", "posterior_width"), 32),
        **dict.fromkeys(("init_std", "latent_init_std"), 0.1),
        memory_len=0,
        max_position_embeddings=16,
        diffusion_steps=20,
        beta_start=0.002,
        beta_end=0.6,
        cross_memory_dropout=0.9,
    ).train()
    contexts, replies = data()
    ids = contexts.repeat_interleave(2, 0)
    rows = len(ids)
    ends = torch.zeros(rows, 1, dtype=torch.long)
    batch = TurnBatch(
        {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": torch.cat([ends, replies.flatten(0, 1), ends + 2], dim=1),
        },
        (None,) * rows,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=8e-3, fused=True)
    torch.manual_seed(5)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, UPDATES)
    for _ in range(UPDATES):
        read = model.encode(batch.input_ids, batch.attention_mask)
        nll, _, negxent, reg = model.losses(read, batch) / rows
        optimizer.zero_grad()
        (nll + KL_WEIGHT * (negxent + reg)).backward()
        optimizer.step()
        decay.step()
    return model.eval()


def contexts_with_both(model: DiorForConditionalGeneration) -> int:
    contexts, replies = data()
    torch.manual_seed(7)
    made = [
        model.generate(input_ids=contexts, max_new_tokens=5, forced_bos_token_id=0, forced_eos_token_id=None)
        for _ in range(SAMPLES)
    ]
    found = 0
    for row in range(CONTEXTS):
        said = {tuple(sample[row, 2:5].tolist()) for sample in made}
        found += all(tuple(reply) in said for reply in replies[row].tolist())
    return found


@pytest.mark.punish
def test_samples_of_the_diffusion_prior_give_both_replies_of_most_contexts():
    diffusion, standard = (contexts_with_both(learn(prior)) for prior in ("diffusion", "standard"))
    assert diffusion >= CONTEXTS // 2
    assert standard < diffusion
