"""Figures 5 and 6 of the implicit-persona paper: what is counted, on models and profiles made for it."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.studies.persona_cvae import Perceived, Study, category
from pretrain.errors import UserError
from tests.support import dialogues as made
from tests.support import fitted


def test_a_profile_is_of_the_category_with_most_of_its_words() -> None:
    assert category(["i have a dog and a cat .", "i like pizza ."]) == "animals"
    assert category(["i read ."]) == "other"


def test_neighbours_of_one_category_are_told_from_chance() -> None:
    means = np.array([[0.0, 0], [0.1, 0], [5, 5], [5.1, 5], [9, -9]])
    apart = Perceived(means, ("food", "food", "work", "work", "other"))
    same, chance = apart.purity()
    assert chance == pytest.approx(1 / 3)
    assert same == pytest.approx(1 / 3)  # only three others: all are neighbours
    many = Perceived(
        np.repeat(means[:4:2], 7, axis=0) + np.arange(14)[:, None] * 1e-3, ("food",) * 7 + ("work",) * 7
    )
    assert many.purity() == (1.0, pytest.approx(84 / 182))
    assert many.flat(1).shape == (14, 2)


def test_replies_that_name_the_profile_show_it() -> None:
    study = Study(fitted.fitted("persona_cvae"))
    profile = ["i like green tea ."]
    hit, none = study.shown(profile, ["tea is fine", "..."])
    assert hit == pytest.approx(1)
    assert none == 0


def test_models_that_cannot_be_studied_are_refused() -> None:
    with pytest.raises(UserError, match="family membart"):
        Study(fitted.fitted("membart"))
    with pytest.raises(UserError, match="without latents"):
        Study(fitted.fitted("persona_cvae", model__latents=False))
    plain = Study(fitted.fitted("persona_cvae", model__fader="off"))
    with pytest.raises(UserError, match="without fader"):
        plain.swept([0.0], sources=(), split="valid", agents=1, most=1, resources=None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no map"):
        Study(fitted.fitted("persona_cvae")).perceived(made.dialogues(1), 9)
