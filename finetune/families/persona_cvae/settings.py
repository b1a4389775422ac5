"""The recipe's `model` section of the implicit-persona CVAE."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from finetune.families.persona_cvae.configuration import (
    Fader,
    FaderForm,
    FaderKl,
    Pairs,
    Podi,
    Reduction,
    Similarity,
    Site,
    Source,
)
from pretrain.recipe import Section

AUTHORS_PAIRS = 32 * 31
"""Ordered pairs of the released code's batch, over which it sums Eq. 4."""


class PersonaSettings(Section):
    """The `model` section. Fields of the same name in `PersonaConfig` say more."""

    config: dict[str, Any] = Field(default_factory=dict)
    """Changes to the backbone's configuration; for `scratch` the shape of a MemBART, or with
    `model_type: gpt2` of a GPT-2."""
    latents: bool = True
    """False: the plain body, the paper's ablation without latents."""
    posterior_input: Source = "profile"
    """What the recognition network reads: the other party's `profile`, or context and `response` (CVAE)."""
    inference_layers: int = Field(default=3, gt=0)
    """Layers of the prior and of the recognition network."""
    inference_init: Literal["backbone", "random"] = "backbone"
    """Start prior and recognition network from the backbone's encoder; a GPT-2 has none."""
    inference_heads: int = Field(default=8, gt=0)
    """Heads of theirs, where they are not started from the backbone."""
    inference_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout of theirs."""
    latent_scale: Literal["match_rms", "one"] = "match_rms"
    """On a MemBART scale latents to the embeddings that they stand beside."""
    latent_site: Site = "decoder"
    """Where latents stand on a MemBART: before the reply, before the context, or both."""
    inject_after: tuple[int, ...] | Literal["authors"] = "authors"
    """Blocks of the decoder, and of the encoder where latents stand there."""
    inject_weight: float = Field(default=0.5, ge=0, le=1)
    """Share of the latent in the mixture at the blocks of `inject_after`; 0 mixes nothing."""
    freeze_positions: bool = True
    """Leave the position tables as they are."""
    freeze_words: bool = False
    """Leave the table of words as it is."""

    kl_reduction: Reduction = "mean_dims"
    """A divergence is the mean, or the sum, over the dimensions of a latent."""
    kl_weight: float = Field(default=1.0, ge=0)
    """Weight of both divergences."""
    elbo_exact: bool = False
    """The ELBO per token: divergences are summed over dimensions and counted by tokens."""
    detach_zp_in_prior: bool = False
    """Cut the gradient of the fader's divergence to the posterior."""

    fader: Fader = "hidden"
    """Prior level: the hidden state (paper), one `scalar` in [0, 1] for all dimensions, or no fader."""
    fader_form: FaderForm = "level"
    """What the decoder is given: the vector as the paper has it (`level`), or its level as a `direction`,
    which a norm before a layer cannot take away."""
    fader_kl: FaderKl = "gaussian"
    """The fader's divergence: between Gaussians, or of the softmax of both vectors, as released."""
    fader_sigma: float = Field(default=0.25, gt=0)
    """Standard deviation of the fader's posterior."""
    fader_similarity: Similarity = "authors"
    """How near a reply is to the profile: as released; `pdistance`: the mean of best cosines; `overlap`: the
    share of keywords that are in the reply."""
    fader_threshold: float | Literal["auto"] = "auto"
    """`auto`: the 95th percentile of |cos| over random words of the backbone."""

    podi: Podi = "per_dim"
    """The posterior-discriminated regularizer: per dimension, by the mean or the sum of them, or none."""
    podi_lambda: float = Field(default=0.15, ge=0)
    """Its λ."""
    podi_pairs: Pairs = "all"
    """`all` pairs of a batch, or `roll`: each row with the next."""
    podi_scale: float = Field(default=AUTHORS_PAIRS, ge=0)
    """Factor on it: the ordered pairs of the released code's batch, over which that sums."""
    podi_weight: float = Field(default=1.0, ge=0)
    """Its weight in the loss."""

    remedy: Literal["none", "kla", "ca", "at", "bow"] = "none"
    """What else is done against collapse: a rising or cyclic weight of the divergences, aggressive training
    of the recognition network, or a bag-of-words loss."""
    kla_steps: int = Field(default=5000, gt=0)
    """Updates in which `remedy: kla` raises the weight of the divergences to 1."""
    ca_cycles: int = Field(default=4, gt=0)
    """Cycles of `remedy: ca`."""
    ca_rising: float = Field(default=0.5, gt=0, le=1)
    """Share of a cycle in which the weight rises."""
    at_updates: int = Field(default=1000, gt=0)
    """Updates of the aggressive phase."""
    at_inner: int = Field(default=20, gt=0)
    """Updates of the recognition network alone before one of all the rest."""
    bow: Literal["zhao", "authors"] = "zhao"
    """The head of `remedy: bow`."""
    bow_width: int = Field(default=400, gt=0)
    """Hidden units of Zhao's head."""

    min_utterances: int = Field(default=4, gt=1)
    """Utterances up to and with the reply."""
    min_response: int = Field(default=5, ge=0)
    """Words that a reply must have to be a target."""
    max_words: int = Field(default=200, gt=0)
    """Words of context and reply together; older utterances are left out, down to `min_utterances`."""
    filter_self_centred: Literal["exact", "authors", "off"] = "exact"
    """Replies that only speak of their speaker are no targets: begin with I or my and have no you (`exact`),
    or as released, where any word with i at its start counts."""

    def config_fields(self) -> dict[str, Any]:
        """Fields of `PersonaConfig`, as far as they depend on no backbone."""
        return {
            **{name: getattr(self, name) for name in _CONFIG_FIELDS},
            "bow": self.bow if self.remedy == "bow" else "off",
            "kl_reduction": "sum_dims" if self.elbo_exact else self.kl_reduction,
        }


_CONFIG_FIELDS = (
    *("latents", "posterior_input", "inference_layers", "inference_heads", "inference_dropout"),
    *("inject_weight", "latent_site", "detach_zp_in_prior", "fader", "fader_form", "fader_kl"),
    *("fader_sigma", "fader_similarity", "podi", "podi_lambda", "podi_pairs", "bow_width"),
)
