"""Family 3, the implicit-persona CVAE: replies that care for the other party without being given a profile.

Paper: "A Personalized Dialogue Generator with Implicit User Persona Detection" (2022). On GPT-2 it is the
paper's model; on a MemBART the encoder reads the context with memory, and the latents stand at the head of
the decoder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
)

from finetune.backbone import Backbone
from finetune.batch import Example, TurnBatch
from finetune.cell import TurnCell
from finetune.dialogue.dialogue import Dialogue
from finetune.drawing import drawing, normal, row_keys
from finetune.families.persona_cvae import objectives, watch
from finetune.families.persona_cvae.configuration import (
    Bow,
    Fader,
    FaderForm,
    FaderKl,
    Pairs,
    PersonaConfig,
    Podi,
    Reduction,
    Similarity,
    Site,
    Source,
    authors_points,
)
from finetune.families.persona_cvae.layout import PersonaLayout, first_turn, self_centred
from finetune.families.persona_cvae.modeling import PersonaCvae, loss_parts
from finetune.family import Replies
from finetune.prediction import about
from finetune.recipe import DialogueSection, FineTuneRecipe, GenerationSection
from finetune.weights import FRESH, WeightMap, from_membart, load_mapped, named_tensors
from pretrain.errors import UserError
from pretrain.model import MemBartConfig, MemBartForConditionalGeneration
from pretrain.model.convert import is_memory
from pretrain.model.loss import IGNORED
from pretrain.recipe import Section

AUTHORS_PAIRS = 32 * 31
"""Ordered pairs of the released code's batch, over which it sums Eq. 4."""
_COPIED = ("layers.", "embed_positions.", "layernorm_embedding.")


class PersonaSettings(Section):
    """The `model` section. Fields of the same name in `PersonaConfig` say more."""

    config: dict[str, Any] = Field(default_factory=dict)
    """Changes to the backbone's configuration; for `scratch` the shape of a MemBART, or with
    `model_type: gpt2` of a GPT-2."""
    latents: bool = True
    posterior_input: Source = "profile"
    inference_layers: int = Field(default=3, gt=0)
    inference_init: Literal["backbone", "random"] = "backbone"
    """Start prior and recognition network from the backbone's encoder; a GPT-2 has none."""
    inference_heads: int = Field(default=8, gt=0)
    inference_dropout: float = Field(default=0.1, ge=0, lt=1)
    latent_scale: Literal["match_rms", "one"] = "match_rms"
    """On a MemBART scale latents to the embeddings that they stand beside."""
    latent_site: Site = "decoder"
    inject_after: tuple[int, ...] | Literal["authors"] = "authors"
    """Blocks of the decoder, and of the encoder where latents stand there."""
    inject_weight: float = Field(default=0.5, ge=0, le=1)
    freeze_positions: bool = True
    freeze_words: bool = False

    kl_reduction: Reduction = "mean_dims"
    kl_weight: float = Field(default=1.0, ge=0)
    elbo_exact: bool = False
    """The ELBO per token: divergences are summed over dimensions and counted by tokens."""
    detach_zp_in_prior: bool = False

    fader: Fader = "hidden"
    fader_form: FaderForm = "level"
    fader_kl: FaderKl = "gaussian"
    fader_sigma: float = Field(default=0.25, gt=0)
    fader_similarity: Similarity = "authors"
    fader_threshold: float | Literal["auto"] = "auto"
    """`auto`: the 95th percentile of |cos| over random words of the backbone."""

    podi: Podi = "per_dim"
    podi_lambda: float = Field(default=0.15, ge=0)
    podi_pairs: Pairs = "all"
    podi_scale: float = Field(default=AUTHORS_PAIRS, ge=0)
    podi_weight: float = Field(default=1.0, ge=0)

    remedy: Literal["none", "kla", "ca", "at", "bow"] = "none"
    """What else is done against collapse: a rising or cyclic weight of the divergences, aggressive training
    of the recognition network, or a bag-of-words loss."""
    kla_steps: int = Field(default=5000, gt=0)
    ca_cycles: int = Field(default=4, gt=0)
    ca_rising: float = Field(default=0.5, gt=0, le=1)
    at_updates: int = Field(default=1000, gt=0)
    """Updates of the aggressive phase."""
    at_inner: int = Field(default=20, gt=0)
    """Updates of the recognition network alone before one of all the rest."""
    bow: Literal["zhao", "authors"] = "zhao"
    """The head of `remedy: bow`."""
    bow_width: int = Field(default=400, gt=0)

    min_utterances: int = Field(default=4, gt=1)
    """Utterances up to and with the reply."""
    min_response: int = Field(default=5, ge=0)
    max_words: int = Field(default=200, gt=0)
    filter_self_centred: Literal["exact", "authors", "off"] = "exact"


_CONFIG_FIELDS = (
    *("latents", "posterior_input", "inference_layers", "inference_heads", "inference_dropout"),
    *("inject_weight", "kl_reduction", "detach_zp_in_prior", "fader", "fader_form", "fader_kl"),
    *("fader_sigma", "fader_similarity", "podi", "podi_lambda", "podi_pairs", "bow_width"),
)


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
        source, taken = self._source(backbone)
        body = source.config.to_dict()
        gpt2 = source.config.model_type == "gpt2"
        self._check_room(source.config, gpt2)
        settings = self.settings
        like_body = not gpt2 and settings.inference_init == "backbone"
        if like_body and settings.latents and settings.inference_layers > source.config.encoder_layers:
            raise UserError(
                f"model.inference_layers={settings.inference_layers}, but the backbone's encoder has "
                f"{source.config.encoder_layers}",
                where="family persona_cvae",
                mend="fewer, or model.inference_init=random",
            )
        table = source.get_input_embeddings().weight.detach()
        blocks = body["n_layer"] if gpt2 else body["decoder_layers"]

        def points(blocks: int) -> tuple[int, ...]:
            wanted = settings.inject_after
            return authors_points(blocks) if wanted == "authors" else wanted

        in_encoder = settings.latents and settings.latent_site != "decoder"
        threshold = settings.fader_threshold
        config = PersonaConfig(
            body=body,
            **{name: getattr(settings, name) for name in _CONFIG_FIELDS},
            inference_like_body=like_body,
            head_scale=1.0 if gpt2 else 0.1,
            latent_scale=1.0 if gpt2 or settings.latent_scale == "one" else _embedding_rms(source),
            latent_site=settings.latent_site,
            inject_after=points(blocks),
            inject_encoder_after=points(body.get("encoder_layers", 0)) if in_encoder else (),
            fader_threshold=objectives.random_cosine(table) if threshold == "auto" else threshold,
            bow=_bow(settings),
            bos_token_id=self.text.bos,
            eos_token_id=self.text.eos,
            pad_token_id=self.text.pad,
        )
        if settings.elbo_exact:
            config.kl_reduction = "sum_dims"
        if settings.latents and not like_body and config.width % settings.inference_heads:
            raise UserError(
                f"{config.width} units do not divide into {settings.inference_heads} heads",
                where="family persona_cvae",
                mend="model.inference_heads",
            )
        model = PersonaCvae(config)
        report = self._load(model, source, taken, like_body)
        if settings.latents:
            noise = 0.02 * table.std(dim=0) * torch.randn(2, config.width)
            with torch.no_grad():
                model.marks.slots.copy_(table.mean(dim=0) + noise)
        return model, report

    def _source(self, backbone: Backbone) -> tuple[Any, WeightMap]:
        """The backbone as a model of its own kind, and the map of its tensors."""
        changes = dict(self.settings.config)
        if backbone.is_scratch:
            kind = changes.pop("model_type", "membart")
            special = {
                "vocab_size": len(self.text.tokenizer),
                "bos_token_id": self.text.bos,
                "eos_token_id": self.text.eos,
            }
            try:
                if kind == "gpt2":
                    return self._mapped(GPT2LMHeadModel(GPT2Config(**{**special, **changes})), backbone)
                special |= {"pad_token_id": self.text.pad}
                if self.data.memory == "off":
                    changes["memory_len"] = 0
                config = MemBartConfig(**{**special, **changes})
                return self._mapped(MemBartForConditionalGeneration.from_scratch(config), backbone)
            except (TypeError, ValueError) as error:
                raise UserError(f"model.config: {error}", where="family persona_cvae") from None
        if backbone.config.model_type == "gpt2":
            return self._mapped(backbone.hub_model(GPT2LMHeadModel, **changes), backbone)
        if not backbone.is_membart:
            raise UserError(
                f"a {backbone.config.model_type} is neither GPT-2 nor BART nor MemBART",
                where=backbone.place,
                mend="give one of them",
            )
        if self.data.memory == "off":
            changes["memory_len"] = 0
        return self._mapped(backbone.membart(**changes), backbone)

    def _mapped(self, source: Any, backbone: Backbone) -> tuple[Any, WeightMap]:
        if source.config.model_type == "gpt2" and self.data.memory == "carry":
            raise UserError(
                "data.memory is 'carry', but a GPT-2 has no memory",
                where="family persona_cvae",
                mend="data.memory=reset or off; both mean the same here",
            )
        if source.config.model_type == "gpt2" and not backbone.is_scratch:
            return source, WeightMap(backbone.place, ())
        return source, from_membart(source, backbone)

    def _load(self, model: PersonaCvae, source: Any, taken: WeightMap, like_body: bool) -> WeightMap:
        """Body from the source, inference networks from its first encoder layers, the rest fresh."""
        given = named_tensors(source)
        encoder = "model.encoder."
        word_table = next(name for name, one in given.items() if one is source.get_input_embeddings().weight)

        def source_of(name: str) -> str | None:
            if name.startswith("body.lm."):
                return name.removeprefix("body.lm.")
            part, _, rest = name.partition(".")
            if name == "fader.table":
                return word_table
            if part in ("posterior", "prior") and like_body and rest.startswith(_COPIED):
                return encoder + rest
            return None

        found = load_mapped(model, given, source_of, backbone=taken.backbone, unused=lambda name: None)
        named = {origin.name: origin for origin in taken.tensors}
        rows = []
        for origin in found.tensors:
            first = named.get(origin.source)
            note = "" if origin.name.startswith("body.") or origin.source == FRESH else "a copy"
            if first is not None:
                rows.append(type(origin)(origin.name, origin.shape, first.source, note or first.note))
            else:
                rows.append(type(origin)(origin.name, origin.shape, origin.source, note))
        return WeightMap(found.backbone, tuple(rows), {**taken.unused, **found.unused})

    def _check_room(self, config: Any, gpt2: bool) -> None:
        data = self.data
        if gpt2:
            needed, there = data.context_tokens + data.target_tokens, config.n_positions
        else:
            needed = max(data.context_tokens, data.target_tokens + 2)
            if self.settings.posterior_input == "response" and self.settings.latents:
                needed = max(needed, -(-data.context_tokens // 8) * 8 + -(-data.target_tokens // 8) * 8)
            there = config.max_position_embeddings
        if needed > there:
            raise UserError(
                f"{needed} tokens do not fit the {there} positions of this {config.model_type}",
                where="family persona_cvae",
                mend="lower data.context_tokens or data.target_tokens",
            )

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
        if not gpt2 and not model.body.memory_slots:  # else weight decay would wear away what nothing uses
            for name, parameter in body.named_parameters():
                if is_memory(name):
                    parameter.requires_grad_(False)

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
        texts = self.replies(model, read, batch, how)
        live = batch.attention_mask.any(dim=1).tolist()
        assert read.memory_states is not None
        return Replies([row if ok else [] for row, ok in zip(texts, live, strict=True)], read.memory_states)

    def replies(
        self,
        model: PersonaCvae,
        read: Any,
        batch: TurnBatch,
        how: GenerationSection,
        fader: float | None = None,
    ) -> list[list[str]]:
        """Replies of each row; `fader` sets Zα to (1 + 0.25 ε) · fader, as Figure 6 does.

        Raises:
            UserError: beam search is asked for.
        """
        if not how.sample and how.beams > 1:
            raise UserError(
                "this family draws its replies, one to each draw of the latents; it has no beam search",
                where="generation",
                mend="generation.sample=true, or generation.beams=1 for the likeliest token",
            )
        keys = row_keys(batch, how.seed, how.replies)
        width, device = model.config.width, batch.input_ids.device
        noise = normal(keys, (2, width), device)
        columns = []
        for number in range(how.replies):
            drawn = noise[number :: how.replies]
            level = None if fader is None else fader * (1 + 0.25 * drawn[:, 1])
            latents = model.prior_latents(batch, drawn[:, 0], level) if model.config.latents else None
            choose = self._chooser(how, keys[number :: how.replies])
            room = self._room(model, how.max_new_tokens)
            made = model.write(read, batch, latents, choose, {self.text.eos}, room)
            columns.append([self.layout.clean(row) for row in made])
        return [list(row) for row in zip(*columns, strict=True)]

    def _room(self, model: PersonaCvae, wanted: int) -> int:
        body = model.body.lm.config
        if model.config.kind == "gpt2":
            return min(wanted, int(body.n_positions) - self.data.context_tokens)
        return min(wanted, int(body.max_position_embeddings) - 2)

    def _chooser(self, how: GenerationSection, keys: list[Any]) -> Any:
        """Repetition penalty, temperature, top-k, top-p, a draw: in this order."""
        steps = LogitsProcessorList()
        if how.repetition_penalty != 1:
            steps.append(RepetitionPenaltyLogitsProcessor(how.repetition_penalty))
        if how.sample:
            steps.extend(drawing(how, keys))
        banned = [one for one in {self.text.pad, self.text.bos} if one != self.text.eos]

        def choose(written: Tensor, scores: Tensor) -> Tensor:
            scores = scores.clone()
            scores[:, banned] = -math.inf
            return torch.as_tensor(steps(written, scores)).argmax(dim=-1)

        return choose

    @torch.no_grad()
    def figures(self, model: PersonaCvae, batch: TurnBatch, memory: Tensor) -> Mapping[str, Tensor]:
        return watch.gather(model, batch, memory)

    def summary(self, gathered: Mapping[str, Tensor]) -> Mapping[str, float]:
        return watch.summarize(gathered)


def _bow(settings: PersonaSettings) -> Bow:
    return settings.bow if settings.remedy == "bow" else "off"


def _embedding_rms(source: MemBartForConditionalGeneration) -> float:
    """Root mean square of what the decoder's embedding norm makes of the vocabulary."""
    decoder = source.model.decoder
    with torch.no_grad():
        normed = decoder.layernorm_embedding(decoder.embed_tokens.weight * decoder.embed_tokens.embed_scale)
        return float(normed.square().mean().sqrt())
