"""The analyses of the Dior-CVAE paper on an untrained model whose latents are heard."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from finetune import backbone as backbones
from finetune.dialogue import jsonl
from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.families.dior_cvae import DiorSettings, Family
from finetune.fitted import Fitted
from finetune.recipe import FineTuneRecipe
from finetune.studies.dior_cvae import Study, drawn_references, equal_pairs, reference_curve
from pretrain import recipe as recipes
from pretrain.errors import UserError
from tests.support import dialogues as made
from tests.support import families

REFERENCES = ("fine, and you?", "i like coffee.", "yes, it is.")


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three dialogues that end in a turn with three accepted replies, as `NAME:PATH`."""
    folder = tmp_path_factory.mktemp("talks")
    found = []
    for number, dialogue in enumerate(made.dialogues(3, seed=2)):
        last = Turn(1, REFERENCES[0], references=REFERENCES)
        found.append(Dialogue(f"talk-{number}", (*dialogue.turns[:-1], last), dialogue.personas))
    jsonl.write(folder / "test.jsonl", found)
    return f"jsonl:{folder}"


def study(prior: str = "diffusion", memory: str = "carry") -> Study:
    changes = families.TINY["dior_cvae"] | {"model__latent_init_std": 1.0, "model__prior": prior}
    content = made.recipe("dior_cvae", "jsonl:none", Path("none"), data__memory=memory, **changes)
    recipe = recipes.parse(content, "test", FineTuneRecipe)
    tokenizer = backbones.find("scratch", str(made.tokenizer_folder()))
    family = Family(DiorSettings.model_validate(recipe.model), recipe.data, tokenizer.tokenizer, 10)
    torch.manual_seed(0)
    model, _ = family.build(tokenizer)
    return Study(Fitted(recipe, family, model.eval(), tokenizer.tokenizer, Path("none"), None))


def test_replies_change_with_the_denoising_steps_and_end_at_the_sampled_one(talks):
    subject = study()
    asked = subject.last_turns(talks, "test", 2)
    assert [one.dialogue.id for one in asked] == ["talk-0", "talk-1"]
    recipe = subject.fitted.recipe
    for one in asked:
        said = subject.denoised(one, [1, 5, 10])
        memory = one.read.memory_states
        assert memory is not None
        whole = subject.family.write(
            subject.model,
            one.batch,
            one.read,
            subject.family.sample_latents(
                subject.model, one.read, one.batch, [(recipe.generation.seed, one.dialogue.id, one.turn, 0)]
            ),
            recipe.generation,
            [(0,)],
        )
        assert said[2] == whole[0][0]
        assert subject.denoised(one, [10], state=False) == said[2:]
    assert len({text for one in asked for text in subject.denoised(one, [1, 5, 10])}) > 1


def test_steps_that_do_not_exist_are_refused(talks):
    (asked,) = study().last_turns(talks, "test", 1)
    with pytest.raises(UserError, match="none of the 10"):
        study().denoised(asked, [11])
    with pytest.raises(UserError, match="standard"):
        study("standard").denoised(asked, [1])


def test_memory_is_carried_through_earlier_turns_where_it_was_in_training(talks):
    carry, reset = (study(memory=kind).last_turns(talks, "test", 3) for kind in ("carry", "reset"))
    for one, other in zip(carry, reset, strict=True):
        assert one.read.memory_states is not None
        assert other.read.memory_states is not None
        assert torch.equal(one.batch.input_ids, other.batch.input_ids)
        assert not torch.allclose(one.read.memory_states, other.read.memory_states)


def test_losses_of_references_are_means_of_likelihoods_over_the_prior(talks):
    subject = study()
    (asked,) = subject.last_turns(talks, "test", 1, references=3)
    alone, tokens = subject.reference_losses(asked, 1, seed=5)
    many, again = subject.reference_losses(asked, 4, seed=5)
    assert len(alone) == len(many) == 3
    assert tokens == again == [len(subject.family.layout.reply(text, 16)) for text in REFERENCES]
    keys = [(5, asked.dialogue.id, asked.turn, number) for number in range(4)]
    latents = subject.family.sample_latents(subject.model, asked.read, asked.batch, keys)
    labels = torch.tensor([subject.family.layout.reply(REFERENCES[1], 16)])
    each = [
        float(subject.model.token_losses(asked.read, labels, latents[number : number + 1])[0].detach())
        for number in range(4)
    ]
    assert alone[1] == pytest.approx(each[0], rel=1e-4)
    assert many[1] == pytest.approx(-math.log(sum(math.exp(-nats) for nats in each) / 4), rel=1e-4)


def test_too_few_references_are_told(talks):
    with pytest.raises(UserError, match="4 accepted replies"):
        study().last_turns(talks, "test", 1, references=4)


def test_the_curve_counts_tokens_of_the_references_it_drew(talks):
    losses, tokens = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [[1, 1, 2], [2, 2, 4]]
    curve = reference_curve(losses, tokens, 3, seed=1)
    assert curve[2] == pytest.approx(math.exp(21 / 12))
    assert curve == reference_curve(losses, tokens, 3, seed=1)
    asked = study().last_turns(talks, "test", 2, references=3)
    drawn = [drawn_references(asked, count, seed=1) for count in (1, 2, 3)]
    for one, two, three in zip(*drawn, strict=True):
        assert one == two[:1]
        assert two == three[:2]
        assert set(three) == set(REFERENCES)


def test_equal_pairs_are_counted_word_by_word():
    assert equal_pairs([("a b", "a  b", "c")]) == pytest.approx(100 / 3)
    assert equal_pairs([("a",)]) == 0.0
