"""`membart keys` and `docs/recipes.md` say what every key of a recipe is."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.families import FAMILIES
from pretrain.errors import UserError
from tools.keys import keys, keys_of, reference

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


@pytest.mark.parametrize("of", ["pretrain", "finetune", *FAMILIES])
def test_every_key_says_what_it_is(of: str) -> None:
    found = keys_of(of)
    assert found
    assert [name for name, *_, text in found if not text] == []


def test_the_page_has_what_the_schemas_say() -> None:
    assert PAGE.read_text(encoding="utf-8").endswith(reference() + "\n"), (
        "docs/recipes.md is old: put the output of `membart keys all` at its end"
    )


def test_a_search_finds_by_name_and_by_text(capsys: pytest.CaptureFixture[str]) -> None:
    keys("pretrain", search="rollout")
    found = capsys.readouterr().out
    assert "`replay.horizon`" in found
    assert "`optimizer.lr`" not in found
    with pytest.raises(UserError, match="no key of ki has 'zero2'"):
        keys("ki", search="zero2")
