"""The configuration of the implicit-persona CVAE: a body, and what its latents add."""

from __future__ import annotations

from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig

from finetune.configuration import check_choices
from pretrain.errors import UserError

Fader = Literal["hidden", "scalar", "off"]
FaderKl = Literal["gaussian", "authors_softmax"]
Similarity = Literal["authors", "pdistance", "overlap"]
Podi = Literal["per_dim", "mean_dim", "sum_dim", "off"]
Pairs = Literal["all", "roll"]
Reduction = Literal["mean_dims", "sum_dims"]
Source = Literal["profile", "response"]
FaderForm = Literal["level", "direction"]
Bow = Literal["zhao", "authors", "off"]
Site = Literal["decoder", "encoder", "both"]

_CHOICES = {
    "fader": Fader,
    "fader_kl": FaderKl,
    "fader_similarity": Similarity,
    "podi": Podi,
    "podi_pairs": Pairs,
    "kl_reduction": Reduction,
    "posterior_input": Source,
    "fader_form": FaderForm,
    "bow": Bow,
    "latent_site": Site,
}
FADER_LEVELS = 10
"""Most keywords of a profile."""


class PersonaConfig(PreTrainedConfig):
    """Fields of the latents; `body` is the whole configuration of a MemBART or GPT-2.

    Raises `UserError` for a value that the model cannot honour.
    """

    model_type = "persona_cvae"

    tie_word_embeddings: bool = True
    body: dict[str, Any] | None = None
    latents: bool = True
    """False: the plain body, the paper's ablation without latents."""
    posterior_input: str = "profile"
    """What the recognition network reads: the other party's `profile`, or context and `response` (CVAE)."""
    inference_layers: int = 3
    inference_like_body: bool = True
    """Layers shaped like the body's encoder and started from it; False: the paper's."""
    inference_heads: int = 8
    inference_dropout: float = 0.1
    head_scale: float = 1.0
    """Factor on the fresh weights of the last layer of the two heads."""
    latent_scale: float = 1.0
    """Factor on latents where they enter the decoder or the prior network."""
    latent_site: str = "decoder"
    """Where latents stand on a MemBART: before the reply, before the context, or both."""
    inject_encoder_after: tuple[int, ...] = ()
    """Encoder blocks, from 0, likewise, where latents stand before the context."""
    inject_after: tuple[int, ...] = ()
    """Decoder blocks, from 0, after which the latents are mixed into their own positions."""
    inject_weight: float = 0.5
    """Share of the latent in the mixture; 0 mixes nothing."""
    kl_reduction: str = "mean_dims"
    detach_zp_in_prior: bool = False
    """Cut the gradient of the fader's divergence to the posterior."""

    fader: str = "hidden"
    """Prior level: the hidden state (paper), one `scalar` in [0, 1] for all dimensions, or no fader."""
    fader_form: str = "level"
    """What the decoder is given: the vector Zα as the paper has it, or its level as a direction, which a norm
    before a layer cannot take away."""
    fader_kl: str = "gaussian"
    fader_sigma: float = 0.25
    fader_similarity: str = "authors"
    fader_threshold: float = 0.4
    """From this similarity on one keyword decides alone."""

    podi: str = "per_dim"
    podi_lambda: float = 0.15
    podi_pairs: str = "all"
    bow: str = "off"
    """Bag-of-words head: that of Zhao et al. (2017), or the released code's commented one."""
    bow_width: int = 400
    """Hidden units of Zhao's."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.inject_after = tuple(self.inject_after)
        self.inject_encoder_after = tuple(self.inject_encoder_after)
        check_choices(self, _CHOICES, "PersonaConfig")
        if self.body is not None:
            self._check_blocks("decoder", self.inject_after, self.decoder_layers)
            if self.latent_site != "decoder":
                if self.kind == "gpt2":
                    raise UserError(
                        f"latent_site is '{self.latent_site}', but a GPT-2 has no encoder",
                        where="PersonaConfig",
                        mend="latent_site: decoder; there latents stand before context and reply",
                    )
                self._check_blocks("encoder", self.inject_encoder_after, int(self.body["encoder_layers"]))

    def _check_blocks(self, part: str, points: tuple[int, ...], blocks: int) -> None:
        outside = [block for block in points if not 0 <= block < blocks]
        if outside:
            raise UserError(
                f"no {part} block {outside[0]} among {blocks}",
                where="PersonaConfig",
                mend="blocks count from 0: see inject_after",
            )

    @property
    def kind(self) -> str:
        """`membart` or `gpt2`."""
        assert self.body is not None, "a configuration without a body builds no model"
        return str(self.body["model_type"])

    @property
    def width(self) -> int:
        """d_model, and the size of both latents."""
        assert self.body is not None
        return int(self.body["n_embd" if self.kind == "gpt2" else "d_model"])

    @property
    def decoder_layers(self) -> int:
        assert self.body is not None
        return int(self.body["n_layer" if self.kind == "gpt2" else "decoder_layers"])

    @property
    def body_vocabulary(self) -> int:
        assert self.body is not None
        return int(self.body["vocab_size"])

    @property
    def latent_rows(self) -> int:
        """Positions that latents take: Zp and Zα."""
        return 0 if not self.latents else 1 if self.fader == "off" else 2


def authors_points(blocks: int) -> tuple[int, ...]:
    """Four points of the released code for 24 blocks, scaled: 24 -> 4 10 16 22, 12 -> 1 4 7 10.

    Shallow decoders have fewer; after the last block a latent could reach nothing.
    """
    found = {int(blocks * (k + 0.85) // 4) - 1 for k in range(4)}
    return tuple(sorted(point for point in found if 0 <= point < blocks - 1))


AutoConfig.register("persona_cvae", PersonaConfig)
