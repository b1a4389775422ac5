"""The sentence VAE and its remedies."""

from __future__ import annotations

import random

import pytest
import torch

from finetune.studies import posterior_collapse as study

SIZES = study.Sizes(
    embedding=16, hidden=16, latent=4, batch=16, dropout=0.0, updates=40, at_inner=30, lr=5e-3
)
RNG = random.Random(0)
SENTENCES = [" ".join(RNG.choice("abcdefgh") for _ in range(RNG.randint(2, 6))) for _ in range(128)]
WORDS = study.vocabulary(SENTENCES, 100)


@pytest.fixture(scope="module")
def found() -> dict[str, study.Found]:
    return {
        method.label: study.evaluate(study.train(SENTENCES, WORDS, method, SIZES), SENTENCES, WORDS, SIZES)
        for method in study.METHODS
        if method.label in ("standard", "BOW", "Po-di 0.15")
    }


def test_rows_are_those_of_the_paper() -> None:
    assert {method.label for method in study.METHODS} == set(study.PAPER)


def test_podi_keeps_a_kl_that_the_plain_vae_loses(found: dict[str, study.Found]) -> None:
    assert found["Po-di 0.15"].kl > found["standard"].kl
    assert found["Po-di 0.15"].active_units >= found["standard"].active_units
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
