"""The configuration of Dior-CVAE: MemBART's fields and what latents, prior and infusion add."""

from __future__ import annotations

from typing import Any, Literal

from transformers import AutoConfig

from finetune.configuration import check_choices
from pretrain.errors import UserError
from pretrain.model import MemBartConfig

Prior = Literal["diffusion", "standard", "conditional"]
Groups = Literal["all", "last"]
Weighting = Literal["vlb", "paper", "simple"]
TimestepSampler = Literal["importance", "uniform"]
DropoutScope = Literal["all", "tokens"]

_CHOICES = {
    "prior": Prior,
    "groups": Groups,
    "prior_weighting": Weighting,
    "timestep_sampler": TimestepSampler,
    "cross_memory_scope": DropoutScope,
}
_WHERE = "DiorConfig"


class DiorConfig(MemBartConfig):
    """MemBART's fields plus those of the latent variables. `memory_len` 0 is plain BART's encoder.

    Raises `UserError` for a value that the model cannot honour.
    """

    model_type = "dior_cvae"

    latent_size: int = 64
    """Dimensions of one group."""
    groups: str = "all"
    """`all`: one group a layer; `last`: one group in all, from the last encoder layer (as Optimus has it)."""
    posterior_width: int = 768
    """Hidden units of the posterior's networks."""
    latent_init_std: float = 0.02
    """Spread of the fresh weights of everything that BART does not have."""

    prior: str = "diffusion"
    """`diffusion`; `standard`: N(0, I) whatever the context; `conditional`: a Gaussian of the context."""
    diffusion_steps: int = 50
    beta_start: float = 0.002
    beta_end: float = 0.4
    denoiser_width: int = 1024
    prior_weighting: str = "vlb"
    """How the denoiser's error counts: `vlb` as in the bound, `paper` 1/(2 beta_t), `simple` 1/2."""
    timestep_sampler: str = "importance"
    """How often each diffusion step is trained on; the expectation of the loss is the same."""
    guidance_dropout: float = 0.1
    """Share of rows whose condition the denoiser does not see in training."""
    guidance_weight: float = 0.1
    """How far sampling goes beyond the conditional estimate, away from the unconditional one."""
    sampler_eta: float = 1.0
    """Noise of the reverse steps: 1 is ancestral sampling, 0 deterministic."""
    detach_latent_in_prior: bool = False
    """Cut the gradient from the prior to the posterior; an experiment only: variances run away."""

    self_infusion: bool = True
    """Latents as a prefix of the decoder's self-attention."""
    cross_infusion: bool = True
    """Latents as a row of the decoder's cross-attention memory."""
    separate_infusion_projections: bool = False
    """A projection of its own for each of the two."""
    cross_memory_dropout: float = 0.7
    """Share of the cross-attention memory that the decoder does not see in training."""
    cross_memory_scope: str = "all"
    """`all` drops MemBART's slots as well, `tokens` spares them."""
    pool_memory_slots: bool = False
    """Let the context's pooling see MemBART's slots too, beside the tokens of each layer."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        check_choices(self, _CHOICES, _WHERE)
        for field in ("latent_size", "posterior_width", "denoiser_width", "diffusion_steps"):
            if getattr(self, field) < 1:
                raise _refused(f"{field} is {getattr(self, field)}", "1 or more")
        for field in ("guidance_dropout", "cross_memory_dropout", "sampler_eta"):
            if not 0 <= getattr(self, field) <= 1:
                raise _refused(f"{field} is {getattr(self, field)}", "from 0 to 1")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise _refused(f"beta runs from {self.beta_start} to {self.beta_end}", "0 < start <= end < 1")
        if not (self.self_infusion or self.cross_infusion):
            raise _refused(
                "no infusion is left, so the latents would be idle",
                "keep self_infusion or cross_infusion; without latents take the family membart",
            )
        if not self.cross_infusion and self.cross_memory_dropout == 1:
            raise _refused(
                "nothing is left in the cross-attention memory",
                "cross_memory_dropout below 1, or cross_infusion",
            )
        if self.groups == "all" and self.encoder_layers != self.decoder_layers:
            raise _refused(
                f"{self.encoder_layers} encoder layers cannot feed {self.decoder_layers} decoder layers",
                "groups: last",
            )

    @property
    def latent_groups(self) -> int:
        """Groups of latents, L."""
        return self.encoder_layers if self.groups == "all" else 1

    @property
    def latent_total(self) -> int:
        """Dimensions of all groups together."""
        return self.latent_groups * self.latent_size


def _refused(what: str, mend: str) -> UserError:
    return UserError(what, where=_WHERE, mend=mend)


AutoConfig.register("dior_cvae", DiorConfig)
