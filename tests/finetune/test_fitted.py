"""A fine-tuned model that is not there, or whose folder is damaged, is told in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finetune import fitted
from pretrain.errors import UserError
from tests.support.fitted import export
from tests.support.fitted import fitted as made


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported MemBART."""
    return export(made(), tmp_path_factory.mktemp("exported") / "model")


def test_an_exported_folder_is_the_model_again(whole: Path) -> None:
    again, before = fitted.load(whole).model.state_dict(), made().model.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in before.items())


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def torn(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (without("model.safetensors"), "no weights"),
        (torn("model.safetensors", "abc"), "cannot be loaded|cannot be read"),
        (without("config.json"), "no committed checkpoint here"),
        (torn("config.json", "{"), "config"),
        (without("recipe.yaml"), "not a fine-tuned model"),
        (torn("recipe.yaml", "a: ["), "not valid YAML"),
        (torn("recipe.yaml", "family: membart\nfoo: 1\n"), "recipe.yaml"),
        (without("tokenizer_config.json"), "no tokens for begin and end"),
        (torn("tokenizer.json", "{"), "no tokenizer"),
    ],
)
def test_a_damaged_folder_is_told_in_one_line(
    whole: Path, tmp_path: Path, harm: Callable[[Path], None], message: str
) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    harm(folder)
    with pytest.raises(UserError, match=message) as raised:
        fitted.load(folder)
    assert "\n" not in str(raised.value)


def test_no_folder_and_a_file_are_told_apart(whole: Path) -> None:
    with pytest.raises(UserError, match="no such folder -- a fine-tune's run"):
        fitted.load(whole / "nothing")
    with pytest.raises(UserError, match="a file, not a folder"):
        fitted.load(whole / "config.json")
