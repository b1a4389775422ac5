"""One trained run, the same state from every ZeRO stage, and its export: made once for all tests here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from pretrain.export import export
from tests.pretrain.export import ranks
from tests.support import forked, tiny

WIDE = {
    **tiny.MODEL,
    "d_model": 256,
    "encoder_ffn_dim": 2560,
    "decoder_ffn_dim": 2560,
    "memory_len": 16,
    "init_std": 0.15,
}
"""Ten million parameters, 40 MB: much against the noise of a process. What it says depends on its memory."""


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """As in the other processes: the last bit of a sum depends on how many threads share it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A folder with a run of two updates on two ranks, and more of it; see `ranks.py`."""
    folder = tmp_path_factory.mktemp("job")
    content = tiny.recipe(
        shards,
        folder,
        model__config=WIDE,
        model__frozen=["embed_positions"],
        data__lanes=2,
        data__agents_per_lane=1,
        replay__horizon=2,
        optimizer__lr=1e-4,
        train__steps=2,
        train__deepspeed="zero1",
        train__rehearse=False,
        validation__every=0,
        validation__max_timesteps=2,
        tracking__mlflow=False,
    )
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    forked.run(ranks.main, (str(file), folder), 2)
    return folder


@pytest.fixture(scope="session")
def trained(job: Path) -> Path:
    """The run, at ZeRO stage 1; its position tables did not train."""
    return job / "run"


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Path:
    return export(trained, tmp_path_factory.mktemp("exported") / "model")
