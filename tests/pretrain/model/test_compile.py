"""The encoder and the decoder are each one graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pretrain.model import MemBartForConditionalGeneration
from tests.pretrain.model import case


@pytest.mark.parametrize("form", ["mask", "split"])
def test_a_training_step_has_no_break(
    build: Callable[..., MemBartForConditionalGeneration], batch: dict[str, Tensor], form: str
) -> None:
    """`aot_eager` traces forward and backward as the real backends do, but generates no code."""
    step = case.steps()[0]
    found = []
    for compiled in (False, True):
        model = build(memory_attention=form, encoder_layers=1, decoder_layers=1).train()
        if compiled:
            torch._dynamo.reset()
            model.model.encoder.compile(fullgraph=True, backend="aot_eager")
            model.model.decoder.compile(fullgraph=True, backend="aot_eager")
        memory = batch["memory_states"].clone().requires_grad_()
        encoded = model.encode(**{**batch, "memory_states": memory})
        loss = model.token_loss(encoded, step["decoder_input_ids"], step["labels"])
        (loss + encoded.memory_states.sum()).backward()
        found.append([loss.detach(), memory.grad, *(p.grad for p in model.parameters())])
    for plain, graph in zip(*found, strict=True):
        torch.testing.assert_close(graph, plain, rtol=0, atol=1e-11)
