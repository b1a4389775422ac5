"""What a fine-tune refuses before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from finetune.__main__ import resolve
from finetune.job import FineTuning, make_family, read
from finetune.recipe import FineTuneRecipe
from pretrain.errors import UserError
from tests.support import dialogues as made


def test_a_role_that_no_dialogue_names_is_told_with_those_that_they_do(tmp_path: Path) -> None:
    content = made.recipe("membart", made.write(tmp_path / "data"), tmp_path, data__targets="wizzard")
    recipe = FineTuneRecipe.model_validate(content)
    family = make_family(recipe, AutoTokenizer.from_pretrained(made.tokenizer_folder()))
    with pytest.raises(UserError, match=r"nobody is called 'wizzard' .* one of last, first, both"):
        read(recipe, family, "train")


def test_replies_that_the_family_does_not_want_are_told_as_such(tmp_path: Path) -> None:
    source = made.write(tmp_path / "data")
    content = made.recipe("persona_cvae", source, tmp_path, model__min_response=99)
    recipe = FineTuneRecipe.model_validate(content)
    family = make_family(recipe, AutoTokenizer.from_pretrained(made.tokenizer_folder()))
    with pytest.raises(UserError, match=r"no reply to learn .* what the family persona_cvae asks"):
        read(recipe, family, "train")


def test_malformed_records_that_were_left_out_are_told_at_the_start(tmp_path: Path) -> None:
    source = made.write(tmp_path / "data")
    with (tmp_path / "data" / "train.jsonl").open("a") as file:
        file.write("not json\n")
    recipe = FineTuneRecipe.model_validate(made.recipe("membart", source, tmp_path))
    family = make_family(recipe, AutoTokenizer.from_pretrained(made.tokenizer_folder()))
    left_out = f"malformed records left out: 1, the first {tmp_path}/data/train.jsonl:25: bad json: "
    assert f"replies; {left_out}" in str(read(recipe, family, "train"))
    job = FineTuning(recipe, 1)
    assert f"train: {left_out}" in job.opening
    assert f"replies; {left_out}" in job.describe()
    assert "validation: " not in job.opening


def test_data_given_beside_a_recipe_whose_data_are_no_section_are_refused() -> None:
    with pytest.raises(UserError, match="'data' is a value, not a section"):
        resolve("membart", ["data=3"], "scratch", ["jsonl:somewhere"])
    assert resolve("membart", [], "scratch", ["jsonl:a b", "jsonl:é"]).data.sources == (
        "jsonl:a b",
        "jsonl:é",
    )
