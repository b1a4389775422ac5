"""What `pretrain.export` must know to export a fine-tuned model of any family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
)

from finetune.families import family_class
from pretrain.export import Kind

SERVER = "finetune.serving"


def kind_of(family: str) -> Kind:
    """The kind of a family's models; also registers them with the Auto classes.

    Models that transformers knows as writers of text are compared by their logits, others, whose forward pass
    takes a family's own batches, tensor by tensor.

    Raises:
        UserError: no such family.
    """
    model_class = family_class(family).model_class
    config_class = getattr(model_class, "config_class", None)
    known = (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING)
    if config_class is None or any(config_class in mapping for mapping in known):
        return Kind(server=SERVER)
    return Kind(model_class=model_class, probe=tensors, server=SERVER)


def tensors(model: Any) -> Tensor:
    """All stored tensors of a model end to end, float32."""
    return torch.cat([tensor.detach().float().flatten() for tensor in model.state_dict().values()])
