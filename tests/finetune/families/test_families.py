"""Families by name."""

from __future__ import annotations

import pytest

from finetune.families import family_class
from pretrain.errors import UserError


def test_a_family_is_found_by_its_name() -> None:
    assert family_class("membart").__module__ == "finetune.families.membart"


def test_a_misspelt_family_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no family 'menbart' -- did you mean 'membart'\?"):
        family_class("menbart")


def test_a_users_own_family_is_a_module_with_a_dot_in_its_name() -> None:
    assert family_class("tests.support.unigram").__module__ == "tests.support.unigram"
    with pytest.raises(UserError, match=r"family tests\.none: no module 'tests\.none' -- put its folder"):
        family_class("tests.none")
    with pytest.raises(UserError, match=r"family tests\.support\.tiny: the module has no class Family"):
        family_class("tests.support.tiny")
