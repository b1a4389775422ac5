"""Masks to add to attention scores."""

from __future__ import annotations

import torch

from finetune.masks import causal, hide

STATES = torch.zeros(2, 3, 4)


def test_hidden_scores_are_the_lowest_finite_numbers():
    mask = hide(torch.tensor([True, False]), STATES)
    assert mask.tolist() == [torch.finfo(torch.float32).min, 0]
    assert torch.softmax(hide(torch.ones(4, dtype=torch.bool), STATES), dim=0).tolist() == [0.25] * 4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert hide(torch.tensor([True]), STATES).dtype == torch.bfloat16


def test_later_keys_and_padding_are_hidden_and_those_of_a_cache_seen():
    seen = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 0]])
    open_keys = (causal(seen, STATES) == 0)[:, 0].int().tolist()
    assert open_keys[0] == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert open_keys[1] == [[0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 0]]
