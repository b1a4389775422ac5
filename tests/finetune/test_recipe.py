"""The recipe of a fine-tune as people write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.recipe import FineTuneRecipe
from pretrain import preflight, recipe
from pretrain.errors import UserError
from tests.support import dialogues as made
from tests.support import ki


def test_memory_may_be_called_off_without_quotes(tmp_path: Path):
    for words in (["data.memory=off"], ['data.memory="off"']):
        assert recipe.load("membart", words, FineTuneRecipe).data.memory == "off"
    resolved = recipe.load("membart", ["data.memory=off"], FineTuneRecipe).to_yaml()
    (tmp_path / "again.yaml").write_text(resolved)
    assert recipe.load(str(tmp_path / "again.yaml"), [], FineTuneRecipe).data.memory == "off"


def resumed(root: Path, place: Path) -> FineTuneRecipe:
    """A recipe of family ki with its knowledge at `place`, checked against the run folder in `root`."""
    content = made.recipe("ki", "jsonl:none", root, model__knowledge=str(place))
    found = recipe.parse(content, "test", FineTuneRecipe)
    preflight.check_run_folder(found)
    return found


def test_knowledge_may_move_between_starts_of_a_run(tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    ki.write(first, ki.TALK)
    begun = resumed(tmp_path, first)
    begun.run_dir.mkdir()
    (begun.run_dir / "recipe.yaml").write_text(begun.settled().to_yaml(), encoding="utf-8")
    first.rename(second)
    assert resumed(tmp_path, second).hash() == begun.hash()
    # From the run folder alone, as `membart finetune RUN model.knowledge=...` does.
    again = recipe.load(str(begun.run_dir / "recipe.yaml"), [f"model.knowledge={second}"], FineTuneRecipe)
    assert again.hash() == begun.hash()
    assert again.model["knowledge"] == str(second)


def test_other_knowledge_is_another_recipe_wherever_it_lies(tmp_path: Path):
    place = tmp_path / "knowledge"
    ki.write(place, ki.TALK)
    begun = resumed(tmp_path, place)
    begun.run_dir.mkdir()
    (begun.run_dir / "recipe.yaml").write_text(begun.settled().to_yaml(), encoding="utf-8")
    ki.write(tmp_path / "other", ki.TALK[:2])
    with pytest.raises(UserError, match=r"another recipe .*model\.knowledge_hash"):
        resumed(tmp_path, tmp_path / "other")
    place.rename(tmp_path / "moved")
    (tmp_path / "other").rename(place)  # the old place, something else in it
    with pytest.raises(UserError, match=r"another recipe .*model\.knowledge_hash"):
        resumed(tmp_path, place)
    assert resumed(tmp_path, tmp_path / "moved").hash() == begun.hash()
