"""The recipe of a fine-tune as people write it."""

from __future__ import annotations

from pathlib import Path

from finetune.recipe import FineTuneRecipe
from pretrain import recipe


def test_memory_may_be_called_off_without_quotes(tmp_path: Path):
    for words in (["data.memory=off"], ['data.memory="off"']):
        assert recipe.load("membart", words, FineTuneRecipe).data.memory == "off"
    resolved = recipe.load("membart", ["data.memory=off"], FineTuneRecipe).to_yaml()
    (tmp_path / "again.yaml").write_text(resolved)
    assert recipe.load(str(tmp_path / "again.yaml"), [], FineTuneRecipe).data.memory == "off"
