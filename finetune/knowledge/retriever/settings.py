"""Settings of a retriever and of its training. The paper gives the structure and the loss; margin, heads and
optimizer are those of Tan and Bansal (2020), whom it follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, ValidationError

from pretrain import recipe
from pretrain.errors import UserError
from pretrain.recipe import Section

WHERE = "retriever settings"


class RetrieverSettings(Section):
    """Set on the command line as `key=value`."""

    joint_size: int = Field(default=64, gt=1)
    """Of the space that words and sentences share; the paper's parameter counts say 64."""
    head_size: int = Field(default=256, gt=0)
    head_dropout: float = Field(default=0.3, ge=0, lt=1)
    max_tokens: int = Field(default=64, gt=2)
    """A sentence is cut to so many tokens."""
    margin: float = Field(default=0.5, gt=0)
    mask_title: float = Field(default=0.0, ge=0, le=1)
    """Chance that the title is hidden from the sentence encoder, so that it alone does not solve the task."""
    hide_context: float = Field(default=0.0, ge=0, le=1)
    """Chance that the word encoder sees only the title, or a few words in a row, so that it must know them.
    Not in the paper, whose encoders know words beforehand."""
    lr: float = Field(default=2e-5, gt=0)
    head_lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises; then it falls to zero."""
    clip: float = Field(default=5.0, gt=0)
    batch: int = Field(default=256, gt=1)
    """Sentences of a step; negatives are drawn among them."""
    epochs: float = Field(default=1.0, gt=0)
    steps: int = Field(default=0, ge=0)
    """Instead of epochs; 0: as `epochs` says."""
    held_out: int = Field(default=1000, ge=0)
    """Sentences kept out for validation, at most a twentieth of all."""
    validate_every: int = Field(default=500, gt=0)
    """Steps between validations; each also saves."""
    patience: int = Field(default=3, ge=0)
    """Stop after so many validations in a row without a better recall; 0: never."""
    seed: int = 1

    @classmethod
    def of(cls, overrides: Sequence[str]) -> RetrieverSettings:
        """Defaults with `key=value` changes.

        Raises:
            UserError: an unknown key or a bad value.
        """
        content: dict[str, Any] = {}
        for override in overrides:
            recipe.apply(content, override)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            mend = f"known: {', '.join(cls.model_fields)}" if first["type"] == "extra_forbidden" else ""
            raise UserError(f"{key}: {first['msg']}", where=WHERE, mend=mend) from None
