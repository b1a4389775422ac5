"""Family 5, Dior-CVAE: replies from latents whose prior is a diffusion model.

Paper: "Dior-CVAE: Pre-trained Language Models and Diffusion Priors for Variational Dialog Generation" (2023).
On a MemBART the context is read with memory, and the decoder sees latents, slots and tokens; on plain BART it
is the paper's model.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import BartForConditionalGeneration, PreTrainedTokenizerBase

from finetune import bodies
from finetune.backbone import Backbone
from finetune.batch import Example, TurnBatch
from finetune.cell import TurnCell
from finetune.dialogue.dialogue import Dialogue
from finetune.drawing import drawing, normal, row_keys
from finetune.families.dior_cvae import diffusion, watch
from finetune.families.dior_cvae.configuration import (
    DiorConfig,
    DropoutScope,
    Groups,
    Prior,
    TimestepSampler,
    Weighting,
)
from finetune.families.dior_cvae.layout import Layout
from finetune.families.dior_cvae.modeling import PARTS, DiorForConditionalGeneration, dior_config
from finetune.family import Replies
from finetune.generation import generate_options, of_live
from finetune.prediction import about
from finetune.recipe import DialogueSection, GenerationSection
from finetune.weights import WeightMap, all_fresh, from_backbone, load_mapped, traced
from pretrain.export import named_tensors
from pretrain.model import MemBartConfig, MemBartForConditionalGeneration
from pretrain.model.convert import is_memory
from pretrain.model.loss import IGNORED
from pretrain.recipe import Section

logger = logging.getLogger(__name__)

Schedule = Literal["scaled", "paper"]
FRESH_PREFIX = "latent."
GROUPS = ("", "latent")
"""Parameter groups that the schedule moves: the backbone's, and the key of our recipes for the rest."""


class DiorSettings(Section):
    """The `model` section. Fields of the same name in `DiorConfig` say more."""

    config: dict[str, Any] = Field(default_factory=dict)
    """Changes to the backbone's configuration, such as `memory_len` or `dropout`; the shape for `scratch`."""
    pretrained: bool = True
    """False: the backbone gives its sizes and its tokenizer, no weights (Table 3, without PLM)."""

    latent_size: int = Field(default=64, gt=0)
    """Dimensions of a group of latents."""
    groups: Groups = "all"
    """`all`: a group for each layer; `last`: one in all, from the last encoder layer, as Optimus has it."""
    posterior_width: int = Field(default=768, gt=0)
    """Hidden units of the posterior's networks."""
    latent_init_std: float = Field(default=0.02, gt=0)
    """Spread of the fresh weights; wider for narrow models, where 0.02 lets next to nothing through."""

    prior: Prior = "diffusion"
    """`standard` is Table 3 without diffusion."""
    diffusion_steps: int = Field(default=50, gt=0)
    """T; the same in training and sampling."""
    schedule: Schedule = "scaled"
    """`scaled` to the steps, 0.002 to 0.4 for 50; `paper`: as printed, leaving signal at the end."""
    beta_start: float | None = Field(default=None, gt=0, lt=1)
    """Of the schedule, unless given."""
    beta_end: float | None = Field(default=None, gt=0, lt=1)
    """The same."""
    denoiser_width: int = Field(default=1024, gt=0)
    """Hidden units of the denoiser."""
    prior_weighting: Weighting = "vlb"
    """How the denoiser's error counts: as in the bound (`vlb`), 1/(2 beta_t) (`paper`), 1/2 (`simple`)."""
    timestep_sampler: TimestepSampler = "importance"
    """How often each diffusion step is trained on: by its share in the loss, or all alike."""
    guidance_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of rows whose condition the denoiser does not see in training."""
    guidance_weight: float = 0.1
    """How far sampling goes beyond the conditional estimate, away from the unconditional one."""
    sampler_eta: float = Field(default=1.0, ge=0, le=1)
    """Noise of the reverse steps: 1 is ancestral sampling, 0 deterministic."""
    detach_latent_in_prior: bool = False
    """Cut the gradient from the prior to the posterior; an experiment only: variances run away."""

    self_infusion: bool = True
    """Latents as a prefix of the decoder's self-attention."""
    cross_infusion: bool = True
    """Latents as a row of the decoder's cross-attention memory."""
    separate_infusion_projections: bool = False
    """A projection of its own for each of the two infusions."""
    cross_memory_dropout: float = Field(default=0.7, ge=0, le=1)
    """0 is Table 3 without memory dropout."""
    cross_memory_scope: DropoutScope = "all"
    """`all` drops MemBART's slots as well, `tokens` spares them."""
    pool_memory_slots: bool = False
    """Let the context's pooling see MemBART's slots too."""

    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of a token's probability that is spread over all words."""
    kl_anneal_steps: int = Field(default=20_000, ge=0)
    """Updates in which the weight of the divergence grows from 0 to `kl_weight`."""
    kl_weight: float = Field(default=1.0, ge=0)
    """Weight of the divergence once annealing is over."""
    inverse_sqrt_after: int = Field(default=0, ge=0)
    """Updates after which the learning rate falls with the square root of their number, given
    `optimizer.schedule: constant` and as many warm-up steps; 0: never."""

    def fields(self) -> dict[str, Any]:
        """Fields of `DiorConfig`."""
        own = {name: getattr(self, name) for name in type(self).model_fields if name in _CONFIG_FIELDS}
        printed = self.schedule == "paper"
        start, end = diffusion.PAPER_BETAS if printed else diffusion.scaled_betas(self.diffusion_steps)
        own["beta_start"] = start if self.beta_start is None else self.beta_start
        own["beta_end"] = end if self.beta_end is None else self.beta_end
        return own


_CONFIG_FIELDS = set(DiorConfig.__dataclass_fields__) - set(MemBartConfig.__dataclass_fields__)


class Family:
    """See `finetune.family.Family`."""

    Settings = DiorSettings
    model_class = DiorForConditionalGeneration
    metrics: ClassVar[tuple[str, ...]] = (
        *("bleu_1_method7", "bleu_2_method7", "bleu_1", "bleu_2", "distinct_1", "distinct_2"),
        *("entropy_1_characters", "entropy_2_characters", "entropy_3_characters"),
        *("bertscore", "fed", "length"),
    )

    parts = PARTS
    numbers: Mapping[str, int | float] = {}

    def __init__(
        self, settings: DiorSettings, data: DialogueSection, tokenizer: PreTrainedTokenizerBase, steps: int
    ) -> None:
        self.settings, self.data, self.steps = settings, data, steps
        self.layout = Layout(tokenizer)
        self.text = self.layout.text
        self.pads = {"input_ids": self.text.pad, "attention_mask": 0, "labels": IGNORED}

    # --- the model ---

    def build(self, backbone: Backbone) -> tuple[DiorForConditionalGeneration, WeightMap]:
        source = self._source(backbone)
        config = dior_config(
            source.config,
            **self.settings.fields(),
            memory_len=0 if self.data.memory == "off" else source.config.memory_len,
            bos_token_id=self.text.bos,
            eos_token_id=self.text.eos,
            pad_token_id=self.text.pad,
            decoder_start_token_id=self.text.eos,
        )
        bodies.check_positions(config, max(self.data.context_tokens, self.data.target_tokens))
        if config.prior == "diffusion" and diffusion.of_config(config).leaves_signal:
            logger.warning(
                "the noise schedule leaves %.3g of the latents' variance after its last step, where sampling "
                "starts from pure noise: generated latents will not be those of training",
                float(diffusion.of_config(config).signal[-1]),
            )
        model = DiorForConditionalGeneration(config)
        if self.settings.pretrained or backbone.is_scratch:
            return model, self._load(model, source, backbone)
        unused = dict.fromkeys(named_tensors(source), "model.pretrained is false")
        return model, replace(all_fresh(model, backbone), unused=unused)

    def _source(self, backbone: Backbone) -> BartForConditionalGeneration | MemBartForConditionalGeneration:
        """The backbone as a model of its own kind."""
        changes = dict(self.settings.config)
        if self.data.memory == "off" and not backbone.is_scratch and backbone.config.model_type == "bart":
            changes.pop("memory_len", None)
            found: BartForConditionalGeneration = backbone.hub_model(BartForConditionalGeneration, **changes)
            return found
        return bodies.membart(backbone, changes, vocab_size=len(self.text.tokenizer))

    def _load(self, model: DiorForConditionalGeneration, source: nn.Module, backbone: Backbone) -> WeightMap:
        """Copy the source's weights; everything under `latent` stays fresh."""

        def unused(name: str) -> str | None:
            return "data.memory is off" if self.data.memory == "off" and is_memory(name) else None

        found = load_mapped(
            model,
            named_tensors(source),
            lambda name: None if name.startswith(FRESH_PREFIX) else name,
            backbone=backbone.place,
            unused=unused,
        )
        if not isinstance(source, MemBartForConditionalGeneration):
            return found
        whole = traced(found, from_backbone(source, backbone))
        return replace(whole, unused={}) if backbone.is_scratch else whole

    def prepare(self, model: DiorForConditionalGeneration) -> None:
        """Everything trains."""

    def cell(self, model: DiorForConditionalGeneration) -> nn.Module:
        return TurnCell(model)

    def memory_shape(self, model: DiorForConditionalGeneration) -> tuple[int, int]:
        return model.config.memory_len, model.config.d_model

    # --- examples ---

    def targets(self, dialogue: Dialogue, speaker: int) -> list[int]:
        return dialogue.answers(speaker)

    def example(self, dialogue: Dialogue, turn: int) -> Example:
        data = self.data
        context = self.layout.context(dialogue, turn, data.persona, data.context_tokens)
        return Example(
            {
                "input_ids": context,
                "attention_mask": [1] * len(context),
                "labels": self.layout.reply(dialogue.turns[turn].text, data.target_tokens),
            },
            about(dialogue, turn),
        )

    # --- the loss ---

    def count(self, batch: TurnBatch, per_row: bool = False) -> Tensor:
        """Target tokens for every part, so that the parts keep the ratio they have in Eq. 16."""
        tokens = batch.labels != IGNORED
        found = tokens.sum(dim=1) if per_row else tokens.sum()
        return found.expand(len(PARTS), *found.shape)

    def part_weights(self, update: int) -> Tensor:
        """Eq. 16 with label smoothing and annealing; past the last update, for validation, the plain ELBO."""
        if update >= self.steps:
            return torch.tensor([1.0, 0.0, 1.0, 1.0])
        smoothing, anneal = self.settings.label_smoothing, self.settings.kl_anneal_steps
        divergence = self.settings.kl_weight * (min(1.0, update / anneal) if anneal else 1.0)
        return torch.tensor([1 - smoothing, smoothing, divergence, divergence])

    def rates(self, update: int) -> Mapping[str, float]:
        start = self.settings.inverse_sqrt_after
        if not start or update < start:
            return {}
        return dict.fromkeys(GROUPS, (start / (update + 1)) ** 0.5)

    # --- replies and figures ---

    @torch.no_grad()
    def generate(
        self,
        model: DiorForConditionalGeneration,
        batch: TurnBatch,
        memory: Tensor,
        how: GenerationSection,
        key: tuple[int | str, ...],
    ) -> Replies:
        """`how.replies` samples of the latents for each row, and one reply to each.

        Draws depend on `how.seed` and on the turn that is answered, not on `key`, which counts batches: a
        reply stays the same in any batch.
        """
        read = model.read(batch, memory)
        keys = row_keys(batch, how.seed, how.replies)
        latents = self.sample_latents(model, read, batch, keys)
        texts = self.write(model, batch, read, latents, how, keys)
        assert read.memory_states is not None
        return Replies(of_live(texts, batch), read.memory_states)

    def sample_latents(
        self, model: DiorForConditionalGeneration, read: Any, batch: TurnBatch, keys: list[Any]
    ) -> Tensor:
        """Latents [n · A, L, z] of the prior, n = len(keys) / A for each row."""
        context = model.condition(read, batch.attention_mask)
        context = context.repeat_interleave(len(keys) // len(context), 0)
        found: Tensor = model.latent.prior.sample(context, normal(keys, model.noise_shape(), context.device))
        return found

    def write(
        self,
        model: DiorForConditionalGeneration,
        batch: TurnBatch,
        read: Any,
        latents: Tensor,
        how: GenerationSection,
        keys: list[Any],
    ) -> list[list[str]]:
        """Replies to each row, one for each of its latents [n · A, L, z]."""
        options = generate_options(how) | {
            "num_return_sequences": 1,
            "forced_bos_token_id": self.text.bos,
            # <s> is none of them
            "max_new_tokens": min(how.max_new_tokens + 1, model.config.max_position_embeddings),
        }
        if how.sample:
            options |= {"do_sample": False, "logits_processor": drawing(how, keys)}
            for name in ("temperature", "top_k", "top_p"):
                options.pop(name)
        else:
            options["num_beams"] = how.beams
        made = model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            encoder_outputs=read,
            latents=latents,
            decoder_start_token_id=self.text.eos,
            eos_token_id=self.text.eos,
            pad_token_id=self.text.pad,
            **options,
        )
        texts = [self.layout.clean(row) for row in made.tolist()]
        each = len(texts) // len(batch.input_ids)
        return [texts[at : at + each] for at in range(0, len(texts), each)]

    @torch.no_grad()
    def figures(
        self, model: DiorForConditionalGeneration, batch: TurnBatch, memory: Tensor
    ) -> Mapping[str, Tensor]:
        return watch.gather(model, batch, memory, seed=0)

    def summary(self, gathered: Mapping[str, Tensor]) -> Mapping[str, float]:
        return watch.summarize(gathered)


__all__ = ["DiorSettings", "Family"]
