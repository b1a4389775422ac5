"""A conversation of three turns with any copy of a model, to compare copies by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def three_turns(model: Any) -> dict[str, Tensor]:
    """Logits, memory and a greedy reply at each of three turns of two rows; the second row is shorter."""
    memory, seen = model.construct_memory(2), dict[str, Tensor]()
    for turn in range(3):
        ids = torch.randint(4, model.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(turn))
        mask = torch.ones_like(ids)
        mask[1, 6:] = 0
        out = model(input_ids=ids, attention_mask=mask, memory_states=memory, decoder_input_ids=ids)
        seen[f"reply {turn}"] = model.generate(ids, attention_mask=mask, memory_states=memory, max_length=12)
        memory = out.memory_states
        seen[f"logits {turn}"], seen[f"memory {turn}"] = out.logits, memory
    return seen


def differing(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Names of what is not equal to the last bit."""
    assert found.keys() == expected.keys()
    return [name for name in expected if not torch.equal(found[name], expected[name])]
