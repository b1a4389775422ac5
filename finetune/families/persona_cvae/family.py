"""Family 3, the implicit-persona CVAE: replies that care for the other party without being given a profile.

Paper: "A Personalized Dialogue Generator with Implicit User Persona Detection" (2022). On GPT-2 it is the
paper's model; on a MemBART the encoder reads the context with memory, and the latents stand at the head of
the decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from finetune import bodies
from finetune.backbone import Backbone
from finetune.batch import Example, TurnBatch
from finetune.cell import TurnCell
from finetune.dialogue.dialogue import Dialogue
from finetune.families.persona_cvae import building, objectives, watch, writing
from finetune.families.persona_cvae.layout import PersonaLayout, first_turn, self_centred
from finetune.families.persona_cvae.modeling import PersonaCvae, loss_parts
from finetune.families.persona_cvae.settings import PersonaSettings
from finetune.family import Replies
from finetune.generation import of_live
from finetune.prediction import about
from finetune.recipe import DialogueSection, FineTuneRecipe, GenerationSection
from finetune.weights import WeightMap
from pretrain.errors import UserError
from pretrain.model.loss import IGNORED


class Family:
    """See `finetune.family.Family`."""

    Settings = PersonaSettings
    model_class = PersonaCvae
    metrics: ClassVar[tuple[str, ...]] = (
        *("distinct_1", "distinct_2", "distinct_2_per_word", "p_distance", "f1", "length"),
    )

    def __init__(
        self, settings: PersonaSettings, data: DialogueSection, tokenizer: PreTrainedTokenizerBase, steps: int
    ) -> None:
        if not settings.latents and settings.remedy != "none":
            raise UserError(
                f"remedy '{settings.remedy}' without latents",
                where="family persona_cvae",
                mend="remedy: none",
            )
        self.settings, self.data, self.steps = settings, data, steps
        self.layout = PersonaLayout(data, tokenizer, settings.max_words, settings.min_utterances)
        self.text, self.pads, self.numbers = self.layout.text, self.layout.pads, self.layout.numbers
        self.parts = loss_parts(
            settings.latents, settings.fader != "off", settings.podi != "off", settings.remedy == "bow"
        )

    # --- the model ---

    def build(self, backbone: Backbone) -> tuple[PersonaCvae, WeightMap]:
        return building.build(self.settings, self.data, self.text, backbone)

    def check(self, recipe: FineTuneRecipe, world_size: int) -> None:
        """See `finetune.family.Checking`: aggressive training needs a group of parameters of its own, and
        Po-di needs company."""
        settings = self.settings
        if settings.remedy == "at" and "posterior" not in recipe.optimizer.rates:
            raise UserError(
                "remedy 'at' moves the recognition network alone, which is in no group of its own",
                where="family persona_cvae",
                mend="optimizer.rates.posterior=1.0",
            )
        rows = recipe.agents // world_size // recipe.replay.agent_chunks
        if settings.latents and settings.podi != "off" and settings.podi_weight and rows < 2:
            raise UserError(
                f"Po-di tells the dialogues of a chunk apart, and {recipe.agents} agents on {world_size} "
                f"ranks in {recipe.replay.agent_chunks} chunks leave one in each",
                where="family persona_cvae",
                mend="more data.agents_per_lane, fewer replay.agent_chunks, or model.podi=off",
            )

    def prepare(self, model: PersonaCvae) -> None:
        """Freeze what the recipe says, and memory that nothing uses."""
        body = model.body.lm
        gpt2 = model.config.kind == "gpt2"
        if self.settings.freeze_positions:
            tables = (
                [body.transformer.wpe]
                if gpt2
                else [body.model.encoder.embed_positions, body.model.decoder.embed_positions]
            )
            for table in tables:
                table.requires_grad_(False)
        if self.settings.freeze_words:
            body.get_input_embeddings().requires_grad_(False)
        if not model.body.memory_slots:
            bodies.rest_memory(body)

    def cell(self, model: PersonaCvae) -> nn.Module:
        return TurnCell(model)

    def memory_shape(self, model: PersonaCvae) -> tuple[int, int]:
        return model.body.memory_slots, model.config.width

    # --- examples ---

    def targets(self, dialogue: Dialogue, speaker: int) -> list[int]:
        """Turns of the speaker that are late and long enough and, by the filter, not about himself alone."""
        return [
            index
            for index, turn in enumerate(dialogue.turns)
            if turn.speaker == speaker and not self.why_not(dialogue, index)
        ]

    def why_not(self, dialogue: Dialogue, turn: int) -> str:
        """Why a turn is no reply to learn; empty if it is one."""
        settings = self.settings
        text = dialogue.turns[turn].text
        if turn + 1 < settings.min_utterances:
            return "early"
        needs_profile = settings.latents and settings.posterior_input == "profile"
        if needs_profile and not about(dialogue, turn).partner_persona:
            return "no profile"
        if len(text.split()) < settings.min_response:
            return "short"
        if self_centred(text, settings.filter_self_centred):
            return "self-centred"
        if first_turn(dialogue, turn, settings.max_words, settings.min_utterances) is None:
            return "long"
        return ""

    def example(self, dialogue: Dialogue, turn: int) -> Example:
        return self.layout.example(dialogue, turn)

    # --- the loss ---

    def count(self, batch: TurnBatch, per_row: bool = False) -> Tensor:
        """Tokens for the cross-entropies, live examples for the rest (tokens with `elbo_exact`)."""
        tokens = (batch.labels != IGNORED).sum(dim=1)
        examples = (tokens > 0).to(tokens.dtype)
        by_part = {"nll": tokens, "bow": tokens if self.settings.bow == "zhao" else examples}
        if self.settings.elbo_exact:
            by_part |= {"kl_z": tokens, "kl_a": tokens}
        found = torch.stack([by_part.get(name, examples) for name in self.parts])
        if len(self.parts) == 1:
            found = found[0]
        return found if per_row else found.sum(dim=-1)

    def part_weights(self, update: int) -> Tensor:
        """Schedules included; from the last update on, for validation, the final weights."""
        settings = self.settings
        kl = settings.kl_weight
        if update < self.steps:
            if settings.remedy == "kla":
                kl *= objectives.annealed(update, settings.kla_steps)
            elif settings.remedy == "ca":
                kl *= objectives.cyclic(update, self.steps, settings.ca_cycles, settings.ca_rising)
        weights = {
            "nll": 1.0,
            "kl_z": kl,
            "kl_a": kl,
            "podi": settings.podi_scale * settings.podi_weight,
            "bow": 1.0,
        }
        found = torch.tensor([weights[name] for name in self.parts])
        return found[0] if len(self.parts) == 1 else found

    def rates(self, update: int) -> Mapping[str, float]:
        """Aggressive training: `at_inner` updates of the recognition network, then one of all the rest."""
        settings = self.settings
        if settings.remedy != "at" or update >= settings.at_updates:
            return {}
        inner = update % (settings.at_inner + 1) < settings.at_inner
        return {"posterior": float(inner), "": float(not inner)}

    # --- replies and figures ---

    @torch.no_grad()
    def generate(
        self,
        model: PersonaCvae,
        batch: TurnBatch,
        memory: Tensor,
        how: GenerationSection,
        key: tuple[int | str, ...],
    ) -> Replies:
        """`how.replies` draws of both latents for each row, and one reply to each.

        Draws depend on `how.seed` and the turn that is answered, so a reply is the same in any batch. Neither
        profile nor reply is looked at.
        """
        read = model.read(batch, memory)
        texts = writing.replies(model, self.layout, read, batch, how)
        assert read.memory_states is not None
        return Replies(of_live(texts, batch), read.memory_states)

    @torch.no_grad()
    def figures(self, model: PersonaCvae, batch: TurnBatch, memory: Tensor) -> Mapping[str, Tensor]:
        return watch.gather(model, batch, memory)

    def summary(self, gathered: Mapping[str, Tensor]) -> Mapping[str, float]:
        return watch.summarize(gathered)
