"""A small randomly filled model and a batch for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pretrain.model import MemBartConfig, MemBartForConditionalGeneration
from tests.pretrain.model import case

Build = Callable[..., MemBartForConditionalGeneration]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny matrices: more threads only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture
def build() -> Build:
    """`build(**config)`: a float64 model in evaluation mode, no parameter of which is 0 or 1 by accident."""

    def built(dtype: torch.dtype = torch.float64, **changes: object) -> MemBartForConditionalGeneration:
        model = MemBartForConditionalGeneration(MemBartConfig(**{**case.CONFIG, **changes}))
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_((parameter.mean() if parameter.dim() == 1 else 0) + 0.3 * noise)
        return model.to(dtype).eval()

    return built


@pytest.fixture
def recorded_model() -> Build:
    """`recorded_model(**config)`: the model of `case.py`, for the recorded numbers."""

    def built(dtype: torch.dtype = torch.float64, **changes: object) -> MemBartForConditionalGeneration:
        kernel = changes.pop("attn_implementation", "sdpa")
        config = MemBartConfig(**{**case.CONFIG, **changes}, attn_implementation=kernel)
        model = MemBartForConditionalGeneration(config)
        found = model.load_state_dict(case.weights(), strict=False)
        assert not found.unexpected_keys
        model.tie_weights()
        return model.to(dtype).eval()

    return built


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Three rows of 9, 6 and 9 tokens, memory that is not zero, nobody reset."""
    step = case.steps()[0]
    return {
        "input_ids": step["input_ids"],
        "attention_mask": step["attention_mask"],
        "memory_states": case.memory(),
        "memory_resets": torch.zeros(3, dtype=torch.long),
    }
