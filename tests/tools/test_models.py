"""The device that commands take."""

from __future__ import annotations

import pytest
import torch

from pretrain.errors import UserError
from tools.models import find_device


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "--device: no device 'gpu' -- cpu, cuda or cuda:N"),
        ("meta", "no device 'meta'"),
        ("cuda:99", "no CUDA device on this machine|no device 'cuda:99'"),
    ],
)
def test_a_device_that_is_not_there_is_told_in_one_line(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_device(name)


def test_without_a_name_it_is_the_best_there_is() -> None:
    assert find_device("").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert find_device("cpu") == torch.device("cpu")
