"""Examples, filters, settings, decoding, figures, and that the regularizer keeps the latent alive."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.backbone import Backbone
from finetune.batch import collate
from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.families.persona_cvae import Family, writing
from finetune.families.persona_cvae.layout import first_turn, profile_key, self_centred
from finetune.recipe import FineTuneRecipe, GenerationSection
from pretrain import replay
from pretrain.errors import UserError
from tests.support import dialogues as made
from tests.support import persona

TALK = Dialogue(
    "d",
    tuple(
        Turn(n % 2, text) for n, text in enumerate(("hello bob", "hi anna", "do you like tea", "yes i do"))
    ),
    (("i like tea .",), ("i sing in a band .",)),
)


def spelled(which: Family, text: str) -> list[int]:
    return [*which.text.ids(text), which.text.eos]


def test_utterances_are_closed_and_those_of_the_other_party_are_marked() -> None:
    which = persona.family()
    example = which.example(TALK, 3)
    first, second, third = (spelled(which, turn.text) for turn in TALK.turns[:3])
    assert example.fields["input_ids"] == [which.text.bos, *first, *second, *third]
    roles = [0, *[1] * len(first), *[0] * len(second), *[1] * len(third)]
    assert example.fields["roles"] == roles
    assert example.fields["labels"] == spelled(which, "yes i do")


def test_the_profile_is_that_of_the_one_who_is_answered() -> None:
    which = persona.family()
    for turn, sentence in ((3, "i like tea ."), (2, "i sing in a band .")):
        example = which.example(TALK, turn)
        assert example.fields["profile_ids"] == [which.text.bos, *spelled(which, sentence)]
        assert example.fields["profile_key"] == profile_key((sentence,))


def test_long_contexts_lose_whole_utterances_in_front() -> None:
    long = Dialogue("d", tuple(Turn(n % 2, f"say {n} times tea") for n in range(12)), TALK.personas)
    which = persona.family()
    ids = which.example(long, 11).fields["input_ids"]
    assert isinstance(ids, list)
    assert len(ids) <= which.data.context_tokens
    last = spelled(which, "say 10 times tea")
    assert ids[-len(last) :] == last
    assert first_turn(long, 11, 16, 4) == 8
    assert first_turn(long, 11, 15, 4) is None


@pytest.mark.parametrize(
    ("text", "exact", "authors"),
    [
        ("i am tall", True, True),
        ("it is late", False, True),
        ("i'm tall", True, True),
        ("myself included", True, True),
        ("i like your hat", False, False),
        ("what about me", False, False),
    ],
)
def test_the_filter_of_self_centred_replies(text: str, exact: bool, authors: bool) -> None:
    assert self_centred(text, "exact") is exact
    assert self_centred(text, "authors") is authors
    assert not self_centred(text, "off")


def test_targets_are_late_long_and_have_a_profile() -> None:
    which = persona.family(min_utterances=4, min_response=3)
    assert which.targets(TALK, 1) == [3]
    assert which.targets(TALK, 0) == []
    assert persona.family(min_utterances=4, min_response=4).why_not(TALK, 3) == "short"
    assert which.why_not(Dialogue("d", TALK.turns), 3) == "no profile"


def test_schedules_weigh_the_divergences_until_the_last_update() -> None:
    rising = persona.family(remedy="kla", kla_steps=50)
    weights = [float(rising.part_weights(t)[1]) for t in (0, 25, 50, 100)]
    assert weights == [0, 0.5, 1, 1]
    cycles = persona.family(remedy="ca")  # of 100 updates
    assert float(cycles.part_weights(25)[1]) == 0
    assert float(cycles.part_weights(100)[1]) == 1
    assert float(rising.part_weights(0)[3]) == 992


def test_aggressive_training_moves_the_recognition_network_alone() -> None:
    which = persona.family(remedy="at", at_updates=12, at_inner=3)
    moves = [which.rates(update) for update in range(4)]
    assert [move["posterior"] for move in moves] == [1, 1, 1, 0]
    assert [move[""] for move in moves] == [0, 0, 0, 1]
    assert which.rates(12) == {}


def test_a_recipe_that_undoes_a_remedy_in_silence_is_refused() -> None:
    def recipe(**changes: Any) -> FineTuneRecipe:
        content = made.recipe("persona_cvae", "jsonl:none", Path("runs"), **changes)
        return FineTuneRecipe.model_validate(content)

    with pytest.raises(UserError, match="no group of its own"):
        persona.family(remedy="at").check(recipe(), 1)
    persona.family(remedy="at").check(recipe(optimizer__rates={"posterior": 1.0}), 1)
    alone = {"data__lanes": 2, "data__agents_per_lane": 2, "replay__agent_chunks": 2}
    with pytest.raises(UserError, match="leave one in each"):
        persona.family().check(recipe(**alone), 2)
    persona.family().check(recipe(**alone), 1)
    persona.family(podi="off").check(recipe(**alone), 2)


def test_the_level_of_a_reply_is_one_for_a_word_of_the_profile_and_has_no_gradient() -> None:
    which, model = persona.built(fader_threshold=0.9)

    def level(profile: str, reply: str) -> float:
        talk = Dialogue("d", (*TALK.turns[:3], Turn(1, reply)), ((profile,), ("i sing .",)))
        batch = collate([which.example(talk, 3)], [1], which.pads, which.numbers)
        found = model.alpha(batch)
        assert not found.requires_grad
        assert torch.equal(found, model.alpha(batch))
        assert 0 <= float(found) <= 1
        return float(found)

    assert level("i like tea .", "tea is what i drink") == pytest.approx(1)
    assert level("tea .", "coffee with tea") == pytest.approx(1)  # first in its line: still with a space
    assert level("i am what it is .", "i am") == 0  # stop words alone
    tea, band, both = (level(one, "coffee") for one in ("tea .", "band .", "tea band ."))
    assert max(tea, band) < 0.9
    assert both == pytest.approx((tea + band) / 2, abs=1e-5)


def test_switches_change_the_parts() -> None:
    assert persona.family(latents=False).parts == ("nll",)
    assert persona.family(fader="off", podi="off", remedy="bow").parts == ("nll", "kl_z", "bow")


def test_the_cvae_baseline_and_the_scalar_fader_train() -> None:
    variants: tuple[dict[str, Any], ...] = (
        {"posterior_input": "response", "fader": "off", "podi": "off", "remedy": "bow", "bow_width": 8},
        {"fader": "scalar", "inference_init": "random"},
        {"remedy": "bow", "bow": "authors", "fader_form": "direction", "latent_site": "both"},
    )
    for settings in variants:
        which, model = persona.built(**settings)
        batch = persona.batch(which, dry=1)
        model.losses(model.read(batch, persona.memory(which, model, 4)), batch).sum().backward()
        idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert idle == []


def test_losses_are_sums_of_their_rows() -> None:
    which, model = persona.built()
    batch = persona.batch(which, dry=1)
    found = []
    for per_row in (False, True):
        replay.seed("rows")
        found.append(model.losses(model.read(batch, persona.memory(which, model, 4)), batch, per_row))
    assert torch.allclose(found[0], found[1].sum(dim=1))
    assert (found[1][:, 3] == 0).all()
    assert torch.equal(which.count(batch), which.count(batch, per_row=True).sum(dim=1))


def test_bf16_leaves_the_delicate_parts_wide() -> None:
    which, model = persona.built("gpt2")
    batch = persona.batch(which)
    with torch.autocast("cpu", torch.bfloat16):
        q = model.recognize(batch)
        losses = model.losses(model.read(batch, persona.memory(which, model, 3)), batch)
    assert q.mean.dtype == losses.dtype == torch.float32
    assert torch.isfinite(losses).all()


def test_the_order_of_the_filters_and_banned_tokens() -> None:
    which, _ = persona.built()
    how = GenerationSection(sample=True, beams=1, top_k=2, top_p=0.01, repetition_penalty=2.0)
    choose = writing.chooser(which.text, how, [("k", 0)])
    scores = torch.full((1, 8), -9.0)
    scores[0, 4], scores[0, 5], scores[0, which.text.pad] = 3.0, 2.0, 99.0
    assert choose(torch.empty(1, 0, dtype=torch.long), scores).tolist() == [4]
    assert choose(torch.tensor([[4]]), scores).tolist() == [5]  # 3 / 2 is less than 2
    negative = torch.full((1, 8), -9.0)
    negative[0, 4], negative[0, 5] = -1.0, -1.5
    assert choose(torch.tensor([[4]]), negative).tolist() == [5]  # -1 becomes -2


def test_beam_search_and_memory_on_a_gpt2_are_refused() -> None:
    which, model = persona.built()
    batch = persona.batch(which)
    with pytest.raises(UserError, match="draws its replies"):
        which.generate(model, batch, persona.memory(which, model, 3), GenerationSection(), ("k",))
    with pytest.raises(UserError, match="no memory"):
        persona.built("gpt2", memory="carry")
    which = persona.family("gpt2", config={**persona.GPT2, "n_positions": 32})
    with pytest.raises(UserError, match="do not fit"):
        which.build(Backbone("scratch", None, which.text.tokenizer))


def test_weights_say_what_is_a_copy_of_the_encoder(tmp_path: Path) -> None:
    which, model = persona.built()
    model.body.lm.save_pretrained(tmp_path)
    which = persona.family(config={})
    again, report = which.build(Backbone(str(tmp_path), None, which.text.tokenizer))
    origins = {origin.name: origin for origin in report.tensors}
    name = "posterior.layers.0.fc1.weight"
    assert origins[name].source == "model.encoder.layers.0.fc1.weight"
    assert torch.equal(dict(again.named_parameters())[name], again.body.lm.model.encoder.layers[0].fc1.weight)
    assert origins["marks.role"].source == "fresh"
    assert origins["fader.table"].note == "a copy"
    assert set(dict(again.named_parameters())) <= set(origins)


def test_podi_keeps_the_latent_alive_and_the_level_follows_the_target() -> None:
    ends = {}
    for form in ("off", "per_dim"):
        which, model = persona.built("gpt2", podi=form, inference_layers=1, inference_dropout=0.0)
        batches = [persona.batch(which, rows=8, seed=seed) for seed in range(4)]
        memory = persona.memory(which, model, 8)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
        model.train()
        for step in range(60):
            batch = batches[step % 4]
            replay.seed("overfit", step)
            parts = model.losses(model.read(batch, memory), batch) / which.count(batch)
            optimizer.zero_grad()
            (parts * which.part_weights(step)).sum().backward()
            optimizer.step()
        model.eval()
        gathered = [which.figures(model, batch, memory) for batch in batches]
        joined = {name: torch.cat([one[name] for one in gathered]) for name in gathered[0]}
        ends[form] = which.summary(joined)
    assert ends["per_dim"]["kl"] > ends["off"]["kl"]
    assert ends["per_dim"]["active_units"] >= ends["off"]["active_units"]
    assert ends["per_dim"]["fader_pearson"] > 0.3
    assert all(math.isfinite(value) for value in ends["per_dim"].values())
