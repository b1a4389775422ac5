"""The sentence VAE and its remedies."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from finetune.studies import posterior_collapse as study
from pretrain.errors import UserError

SIZES = study.Sizes(
    embedding=16, hidden=16, latent=4, batch=16, dropout=0.0, updates=40, at_inner=30, lr=5e-3
)
RNG = random.Random(0)
SENTENCES = [" ".join(RNG.choice("abcdefgh") for _ in range(RNG.randint(2, 6))) for _ in range(128)]
WORDS = study.vocabulary(SENTENCES, 100)


@pytest.fixture(scope="module")
def found() -> dict[str, study.Found]:
    return {
        method.label: study.evaluate(
            study.train(SENTENCES, WORDS, method, SIZES).model, SENTENCES, WORDS, SIZES
        )
        for method in study.METHODS
        if method.label in ("standard", "BOW", "Po-di 0.15")
    }


def test_rows_are_those_of_the_paper() -> None:
    ours = [study.printed(method) for method in study.METHODS]
    assert [row["active_units"] for row in ours] == [0, 3, 2, 6, 11, 13, 14, 14, 14]


def test_podi_keeps_a_kl_that_the_plain_vae_loses(found: dict[str, study.Found]) -> None:
    assert found["Po-di 0.15"].kl > found["standard"].kl
    assert found["Po-di 0.15"].active_units >= found["standard"].active_units
    assert found["Po-di 0.15"].mutual_information > found["standard"].mutual_information
    assert all(one.ppl_elbo >= one.ppl_rec for one in found.values())


def test_a_pass_has_every_sentence_once_with_its_end() -> None:
    rows = [row for ids in study.batches(SENTENCES, WORDS, SIZES, 3) for row in ids.tolist()]
    assert len(rows) == len(SENTENCES)
    assert all(row.count(study.END) == 1 for row in rows)


def test_the_chase_of_the_encoder_ends_and_leaves_the_decoder_alone() -> None:
    torch.manual_seed(0)
    model = study.SentenceVae(len(WORDS) + 4, SIZES)
    before = model.words.weight.clone()
    stream = study.endless(SENTENCES, WORDS, SIZES)
    still = torch.optim.SGD([*model.gaussian.parameters()], lr=0.0)
    assert study._chase(model, stream, study.METHODS[3], still, 100) <= 100
    uphill = torch.optim.SGD([*model.gaussian.parameters()], lr=0.5, maximize=True)
    assert study._chase(model, stream, study.METHODS[3], uphill, 100) <= 30
    assert torch.equal(before, model.words.weight)


def test_aggressive_training_ends_when_it_brings_no_more_information() -> None:
    aggressive = study.Method("AT", "at")
    quick = replace(SIZES, updates=24, at_inner=1, at_share=1.0, points=4)
    stuck = study.train(SENTENCES, WORDS, aggressive, replace(quick, lr=0.0), SENTENCES)
    assert stuck.aggressive == 16  # two epochs of 8: the second told no more than the first
    assert [update for update, _ in stuck.curve] == [6, 12, 18, 24]
    assert study.train(SENTENCES, WORDS, aggressive, replace(quick, at_share=0.25)).aggressive == 6


def test_information_is_none_where_posteriors_are_one_and_the_logarithm_of_their_number_at_most() -> None:
    torch.manual_seed(0)
    model = study.SentenceVae(len(WORDS) + 4, SIZES)
    with torch.no_grad():
        for parameter in model.gaussian.parameters():
            parameter.zero_()
        assert study.information(model, SENTENCES, WORDS, SIZES) == pytest.approx(0, abs=1e-6)
        model.gaussian.weight[: SIZES.latent].normal_(std=1000.0)
    different = [" ".join(word) for word in ("ab", "cd", "ef", "gh")]
    assert study.information(model, different, WORDS, SIZES) == pytest.approx(math.log(4), rel=1e-3)


def test_running_text_is_cut_into_sentences_and_its_end_is_held_out() -> None:
    text = [" = Title = \n Tea is hot . Is it ?\nOh. It is, i say!", "So it is ."]
    found = study.sentences_of(text)
    assert found == ["Tea is hot .", "Is it ?", "Oh .", "It is , i say !", "So it is ."]
    parts = study.held_out([str(n) for n in range(25)])
    assert [len(part) for part in parts] == [21, 2, 2]
    assert parts[2] == ["23", "24"]
    with pytest.raises(UserError, match="too few"):
        study.held_out(found)
