"""The model on both bodies: positions, injection, causality, gradients; generation sees no secrets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from finetune.backbone import Backbone
from finetune.batch import TurnBatch, collate
from finetune.families.persona_cvae import Family, PersonaCvae
from finetune.recipe import GenerationSection
from pretrain import replay
from pretrain.errors import UserError
from pretrain.model.attention import build_masks
from pretrain.model.loss import IGNORED
from tests.support import dialogues as made
from tests.support import persona

KINDS = ("membart", "gpt2")
Pairs = dict[str, tuple[Family, PersonaCvae]]
PAPER = GenerationSection(sample=True, beams=1, top_k=4, top_p=0.8, max_new_tokens=10, replies=2)


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return {kind: persona.built(kind) for kind in KINDS}


def changed(batch: TurnBatch, **tensors: Tensor) -> TurnBatch:
    return TurnBatch({**batch.tensors, **tensors}, batch.examples)


def fixed(model: PersonaCvae, rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 2, model.config.width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_the_reply_and_its_end_and_the_loss_is_theirs(pairs: Pairs, kind: str) -> None:
    which, model = pairs[kind]
    batch = persona.batch(which, rows=2)
    read = model.read(batch, persona.memory(which, model, 2))
    latents = fixed(model, 2)
    logits = model.body.logits(model.reply_states(read, batch, latents))
    for row, example in enumerate(batch.examples):
        assert example is not None
        reply = list(which.text.ids(example.about.references[0]))
        wanted = batch.labels[row][batch.labels[row] != IGNORED].tolist()
        assert wanted == [*reply, which.text.eos]
        logs = logits[row].log_softmax(-1)
        mine = -sum(logs[place, token] for place, token in enumerate(wanted))
        assert torch.allclose(mine, model.token_losses(read, batch, latents)[row], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_label_sees_only_what_is_before_it_and_the_latents(pairs: Pairs, kind: str) -> None:
    which, model = pairs[kind]
    batch = persona.batch(which)
    read, latents = model.read(batch, persona.memory(which, model, 3)), fixed(model, 3)
    states = model.reply_states(read, batch, latents)
    labels = batch.labels.clone()
    labels[:, 2] = 50
    other = model.reply_states(read, changed(batch, labels=labels), latents)
    assert torch.allclose(states[:, :3], other[:, :3], atol=1e-6)
    assert not torch.allclose(states[:, 3], other[:, 3], atol=1e-4)
    moved = latents.clone()
    moved[:, 0] = fixed(model, 3, seed=1)[:, 0]
    other = model.reply_states(read, batch, moved)
    assert not torch.allclose(states[:, 0], other[:, 0], atol=1e-4)


def test_a_gpt2_cannot_see_the_level_of_a_constant_fader(pairs: Pairs) -> None:
    """Its norms stand before what they feed and take the mean away; a MemBART's stand after."""
    for kind, visible in (("gpt2", False), ("membart", True)):
        which, model = pairs[kind]
        batch = persona.batch(which)
        read, latents = model.read(batch, persona.memory(which, model, 3)), fixed(model, 3)
        found = []
        for level in (0.3, 0.9):
            latents[:, 1] = level
            found.append(model.reply_states(read, batch, latents))
        assert torch.allclose(found[0], found[1], atol=1e-3) is not visible


def test_a_gpt2_sees_the_level_as_a_direction() -> None:
    which, model = persona.built("gpt2", fader_form="direction")
    batch = persona.batch(which)
    read, zp = model.read(batch, persona.memory(which, model, 3)), fixed(model, 3)[:, 0]
    low, high = (
        model.reply_states(read, batch, model.latents(zp, torch.full_like(zp, level))) for level in (0.3, 0.9)
    )
    assert not torch.allclose(low, high, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_neighbours_change_nothing(pairs: Pairs, kind: str) -> None:
    which, model = pairs[kind]
    together = persona.batch(which, dry=1)
    replay.seed("x")
    q, p = model.recognize(together), model.foresee(together)
    memory = persona.memory(which, model, 1)
    for row in range(3):
        alone = collate([together.examples[row]], [1], which.pads, which.numbers)
        assert torch.allclose(model.recognize(alone).mean[0], q.mean[row], atol=1e-5)
        assert torch.allclose(model.foresee(alone).logvar[0], p.logvar[row], atol=1e-5)
        assert torch.allclose(
            model.token_losses(model.read(alone, memory), alone, fixed(model, 4)[row : row + 1])[0],
            model.token_losses(
                model.read(together, memory.expand(4, -1, -1)), together, fixed(model, 4)
            )[row],
            rtol=1e-4,
        )  # fmt: skip
    texts = which.generate(model, together, memory.expand(4, -1, -1), PAPER, ("a",)).texts
    assert texts[3] == []
    alone = collate([together.examples[1]], [1], which.pads, which.numbers)
    assert which.generate(model, alone, memory, PAPER, ("b",)).texts[0] == texts[1]
    assert len(texts[0]) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_cached_writing_is_that_of_whole_sequences(pairs: Pairs, kind: str) -> None:
    which, model = pairs[kind]
    batch = persona.batch(which)
    read, latents = model.read(batch, persona.memory(which, model, 3)), fixed(model, 3)
    seen: list[Tensor] = []

    def choose(written: Tensor, scores: Tensor) -> Tensor:
        seen.append(scores)
        return scores.argmax(-1)

    rows = model.write(read, batch, latents, choose, set(), 6)
    labels = torch.tensor(rows)
    whole = model.body.logits(model.reply_states(read, changed(batch, labels=labels), latents))
    assert torch.allclose(torch.stack(seen, dim=1), whole, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_generation_sees_neither_profile_nor_reply(pairs: Pairs, kind: str) -> None:
    which, model = pairs[kind]
    batch = persona.batch(which)
    memory = persona.memory(which, model, 3)
    secret = ("profile_ids", "keyword_ids", "reply_ids", "labels")
    poisoned = changed(batch, **{name: torch.full_like(batch.tensors[name], 77) for name in secret})
    ours, theirs = (which.generate(model, one, memory, PAPER, ("a",)).texts for one in (batch, poisoned))
    assert ours == theirs


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_go_where_the_paper_sends_them(pairs: Pairs, kind: str) -> None:
    which, model = pairs[kind]
    batch = persona.batch(which)
    # Profiles of their own for each row, near one another: Po-di has something to say.
    batch = changed(batch, profile_key=torch.arange(3))
    decoder = model.body.lm.transformer.h if kind == "gpt2" else model.body.lm.model.decoder.layers
    parts = {"decoder": decoder, "posterior": model.posterior.layers, "prior": model.prior.layers}
    reached = {}
    for number, name in enumerate(which.parts):
        model.zero_grad()
        replay.seed("gradients")
        model.losses(model.read(batch, persona.memory(which, model, 3)), batch)[number].backward()
        reached[name] = {
            part
            for part, module in parts.items()
            if any(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())
        }
    assert reached == {
        "nll": {"decoder", "posterior"},
        "kl_z": {"posterior", "prior"},
        "kl_a": {"posterior", "prior"},
        "podi": {"posterior"},
    }


def test_the_fader_can_be_cut_from_the_posterior() -> None:
    which, model = persona.built("gpt2", detach_zp_in_prior=True)
    batch = persona.batch(which)
    model.losses(model.read(batch, persona.memory(which, model, 3)), batch)[2].backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in model.posterior.layers.parameters())


def test_prior_and_posterior_share_nothing_of_their_own() -> None:
    _, model = persona.built("gpt2")
    prior, posterior = dict(model.prior.named_parameters()), dict(model.posterior.named_parameters())
    assert {p.data_ptr() for p in prior.values()}.isdisjoint(p.data_ptr() for p in posterior.values())
    assert not torch.equal(prior["layers.0.fc1.weight"], posterior["layers.0.fc1.weight"])


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_tables_get_no_gradient(pairs: Pairs, kind: str) -> None:
    _, model = pairs[kind]
    body = model.body.lm
    tables = [body.transformer.wpe] if kind == "gpt2" else [body.model.decoder.embed_positions]
    assert not any(table.weight.requires_grad for table in tables)
    assert body.get_input_embeddings().weight.requires_grad


def test_injection_is_that_of_a_model_unrolled_by_hand() -> None:
    which, model = persona.built("gpt2")
    batch = persona.batch(which, rows=1)
    latents = fixed(model, 1)
    body = model.body.lm.transformer
    length = int(batch.attention_mask.sum())
    ids = torch.cat([batch.input_ids[:, :length], batch.labels[:, :3]], dim=1)
    states = body.wte(ids) + body.wpe(torch.arange(ids.shape[1])[None])
    states[:, :length] += batch.roles[:, :length, None] * model.marks.role
    states = torch.cat([latents, states], dim=1)
    for number, block in enumerate(body.h):
        later = torch.ones(states.shape[1], states.shape[1]).triu(1) * -1e30
        states = block(states, attention_mask=later[None, None])
        if number in (0, 1, 3, 4):
            states = torch.cat([0.5 * states[:, :2] + 0.5 * latents, states[:, 2:]], dim=1)
    wanted = body.ln_f(states)[:, 2 + length - 1 :]
    read = model.read(batch, persona.memory(which, model, 1))
    short = changed(batch, labels=batch.labels[:, :4])
    assert torch.allclose(model.reply_states(read, short, latents), wanted, atol=1e-4)
    model.body.points = frozenset((5,))  # after the last block nothing is reached
    late = model.reply_states(read, short, latents)
    model.body.points, model.body.weight = frozenset((0, 1, 3, 4)), 0.0
    assert torch.allclose(model.reply_states(read, short, latents), late, atol=1e-6)


def test_latents_on_a_membart_have_no_position_and_bypass_the_norm() -> None:
    which, model = persona.built()
    batch = persona.batch(which, rows=1)
    latents = fixed(model, 1)
    lm = model.body.lm
    decoder = lm.model.decoder
    reply = batch.labels[:, :3]
    ids = torch.cat([torch.tensor([[2, 0]]), reply], dim=1)
    positions = decoder.embed_positions.weight[2 : 2 + ids.shape[1]]
    states = decoder.layernorm_embedding(decoder.embed_tokens(ids) + positions)
    states = torch.cat([model.config.latent_scale * latents, states], dim=1)
    read = model.read(batch, persona.memory(which, model, 1))
    cross = ((1 - read.attention_mask.float()) * -1e30)[:, None, None].expand(-1, 1, states.shape[1], -1)
    later = torch.ones(states.shape[1], states.shape[1]).triu(1) * -1e30
    for number, layer in enumerate(decoder.layers):
        states = layer(states, later[None, None], read.last_hidden_state, cross)
        if number in model.config.inject_after:
            mixed = 0.5 * states[:, :2] + 0.5 * model.config.latent_scale * latents
            states = torch.cat([mixed, states[:, 2:]], dim=1)
    short = changed(batch, labels=batch.labels[:, :4])
    assert torch.allclose(model.reply_states(read, short, latents), states[:, 3:], atol=1e-4)


@pytest.mark.parametrize("site", ["encoder", "both"])
def test_latents_before_the_context_reach_the_reply_and_no_memory(site: str) -> None:
    which, model = persona.built("membart", memory="carry", latent_site=site)
    batch = persona.batch(which)
    memory = torch.randn(3, *which.memory_shape(model), generator=torch.Generator().manual_seed(0))
    read, latents = model.read(batch, memory), fixed(model, 3)
    again, _, left = model.placed(read, batch, latents)
    assert (left is None) == (site == "encoder")
    encoder = model.body.lm.model.encoder
    slots = torch.cat([model.config.latent_scale * latents, encoder.embed_tokens(batch.input_ids)], dim=1)
    context = encoder._enter_tokens(None, slots[:, 2:] + model.marks(batch.roles))
    states = torch.cat([slots[:, :2], context], dim=1)
    carried = encoder._enter_memory(memory, batch.memory_resets, 3)
    mask = torch.nn.functional.pad(batch.attention_mask, (2, 0), value=1)
    masks = build_masks(mask, carried.shape[1], states, joint=encoder.config.needs_joint_mask)
    for number, layer in enumerate(encoder.layers):
        states, carried, _ = layer(states, carried, masks)
        if number in model.config.inject_encoder_after:
            states = torch.cat([(states[:, :2] + slots[:, :2]) / 2, states[:, 2:]], dim=1)
    assert model.config.inject_encoder_after
    assert torch.allclose(again.last_hidden_state[:, -states.shape[1] :], states, atol=1e-5)

    found = model.token_losses(read, batch, latents)
    assert not torch.allclose(found, model.token_losses(read, batch, fixed(model, 3, seed=1)), rtol=1e-4)
    alone = collate([batch.examples[1]], [1], which.pads, which.numbers)
    mine = model.token_losses(model.read(alone, memory[1:2]), alone, latents[1:2])
    assert torch.allclose(mine[0], found[1], rtol=1e-4)

    poisoned = changed(batch, profile_ids=torch.full_like(batch.profile_ids, 77))
    ours, theirs = (which.generate(model, one, memory, PAPER, ("a",)) for one in (batch, poisoned))
    assert ours.texts == theirs.texts
    assert torch.equal(ours.memory, read.memory_states)
    rows = model.write(read, batch, latents, lambda _, scores: scores.argmax(-1), set(), 4)
    logits = model.body.logits(
        model.reply_states(*model.placed(read, changed(batch, labels=torch.tensor(rows)), latents))
    )
    assert logits.argmax(-1).tolist() == rows


def test_a_gpt2_has_no_encoder_for_latents() -> None:
    with pytest.raises(UserError, match="no encoder"):
        persona.built("gpt2", latent_site="encoder")


def test_injection_touches_the_latents_positions_alone() -> None:
    _, model = persona.built("gpt2")
    states, latents = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)), fixed(model, 2)
    mixed = model.body.inject(states, latents, 0)
    assert torch.equal(mixed[:, 2:], states[:, 2:])
    assert torch.allclose(mixed[:, :2], (states[:, :2] + latents) / 2)
    assert torch.equal(model.body.inject(states, latents, 2), states)


def test_without_latents_a_gpt2_is_itself(tmp_path: Path) -> None:
    reference = persona.gpt2()
    reference.save_pretrained(tmp_path)
    which = persona.family("gpt2", latents=False, config={})
    model, report = which.build(Backbone(f"hf:{tmp_path}", None, which.text.tokenizer))
    assert isinstance(model.body.lm, GPT2LMHeadModel)
    assert all(origin.source != "fresh" for origin in report.tensors)
    batch = persona.batch(which, rows=1)
    length = int(batch.attention_mask.sum())
    labels = batch.labels[batch.labels != IGNORED]
    ids = torch.cat([batch.input_ids[0, :length], labels[:-1]])[None]
    logits = reference(ids).logits[0, length - 1 :]
    wanted = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    model.eval()
    found = model.losses(model.read(batch, torch.zeros(1, 0, 16)), batch)
    assert torch.allclose(found, wanted, rtol=1e-5)


def test_without_latents_a_membart_is_itself() -> None:
    which, model = persona.built("membart", memory="carry", latents=False)
    batch = persona.batch(which)
    memory = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(0))
    batch = changed(batch, memory_resets=torch.zeros(3, dtype=torch.long))
    lm = model.body.lm
    encoded = lm.encode(batch.input_ids, batch.attention_mask, memory, batch.memory_resets)
    start = torch.tensor([2, 0]).expand(3, 2)
    ids = torch.cat([start, batch.labels[:, :-1].clamp(min=0)], dim=1)
    labels = torch.nn.functional.pad(batch.labels, (1, 0), value=IGNORED)
    read = model.read(batch, memory)
    assert torch.allclose(model.losses(read, batch), lm.token_loss(encoded, ids, labels), rtol=1e-5)
    assert torch.equal(read.memory_states, encoded.memory_states)


@pytest.mark.parametrize("site", ["decoder", "both"])
def test_gradients_through_memory_are_those_of_plain_backpropagation(site: str) -> None:
    which, model = persona.built("membart", memory="carry", latent_site=site)
    talk = made.dialogues(2, seed=3)
    rollout = []
    for step in range(2):
        examples = [which.example(d, which.targets(d, 1)[step]) for d in talk]
        rollout.append(collate(examples, [int(step == 0)] * 2, which.pads, which.numbers))
    keys = [("t", step) for step in range(2)]
    coefficients = torch.tensor([[1.0, 1, 1, 9]] * 2)
    found = []
    for mode in ("replay", "bptt"):
        model.zero_grad()
        replay.back_propagate(
            which.cell(model),
            rollout,
            persona.memory(which, model, 2),
            coefficients,
            keys,  # type: ignore[arg-type]
            lambda scalar, last: scalar.backward(),
            mode=mode,  # type: ignore[arg-type]
        )
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in found[0].items():
        assert gradient is not None, name
        assert torch.allclose(gradient, found[1][name], rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_rebuilds_the_model(pairs: Pairs, kind: str, tmp_path: Path) -> None:
    _, model = pairs[kind]
    model.save_pretrained(tmp_path)
    again = PersonaCvae.from_pretrained(tmp_path)
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert again.config.inject_after == model.config.inject_after
