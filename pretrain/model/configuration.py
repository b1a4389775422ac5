"""The configuration of MemBART: BART's fields and what the memory adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from transformers import AutoConfig, BartConfig

from pretrain.errors import UserError
from pretrain.model.options import LossForm, MemoryAttention, Variant


class MemBartConfig(BartConfig):
    """BART's fields plus the memory's.

    `init_std` is also the spread of a fresh `memory_bias`: 0.01 in the released base model, 0.001 in large.

    Raises `UserError` for a value that the model cannot honour.
    """

    model_type = "membart"

    memory_len: int = 128
    """Number of slots. The released base model has 64, the large one 128."""
    variant: str = "membart"
    """Which structure: one of `VARIANTS`."""
    memory_attention: str = "mask"
    """How the dual stream is computed, `mask` (one call over memory and text) or `split`; equal numbers."""
    loss_impl: str = "chunked"
    """How `token_loss` projects to the vocabulary, `chunked` (a block of logits at a time) or `plain`."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for field, kind in (
            ("variant", Variant),
            ("memory_attention", MemoryAttention),
            ("loss_impl", LossForm),
        ):
            if getattr(self, field) not in get_args(kind):
                allowed = ", ".join(get_args(kind))
                raise UserError(
                    f"{field} is {getattr(self, field)!r}", where="MemBartConfig", mend=f"one of: {allowed}"
                )
        least = 1 if self.is_memformer else 0  # a Memformer's reader needs something to read
        if self.memory_len < least:
            raise UserError(
                f"memory_len is {self.memory_len}", where="MemBartConfig", mend=f"{least} or more"
            )
        if not self.tie_word_embeddings:
            raise UserError(
                "the head is tied to the embedding", where="MemBartConfig", mend="tie_word_embeddings true"
            )
        if self.encoder_layerdrop or self.decoder_layerdrop:
            raise UserError(
                "LayerDrop cannot be replayed",
                where="MemBartConfig",
                mend="set encoder_layerdrop and decoder_layerdrop to 0",
            )

    @property
    def is_memformer(self) -> bool:
        """Whether memory is read between sublayers and written by a module of its own."""
        return self.variant.startswith("memformer")

    @property
    def needs_joint_mask(self) -> bool:
        """Whether memory and text attend in one call under one square mask."""
        return self.variant == "shared" or (self.variant == "membart" and self.memory_attention == "mask")

    @property
    def decoder_slots(self) -> int:
        """Rows of the encoder's output that are memory: the Memformers' decoder sees token states only."""
        return 0 if self.is_memformer else self.memory_len


def make_config(fields: Mapping[str, Any]) -> MemBartConfig:
    """The configuration with these fields, which a person wrote.

    Raises:
        UserError: a value of a wrong type, or one that the model cannot honour.
    """
    plain = MemBartConfig()
    for name, value in fields.items():
        if isinstance(getattr(plain, name, None), int | float) and isinstance(value, str | dict | list):
            raise UserError(f"{name} is {value!r}, not a number", mend="correct the field")
    try:
        return MemBartConfig(**fields)
    except UserError:
        raise
    except Exception as error:  # transformers checks types and values in ways of its own
        raise UserError(" ".join(str(error).split()), mend="correct the field") from None


AutoConfig.register("membart", MemBartConfig)
