"""The models that families are built around: a MemBART or a GPT-2, of a backbone or from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from finetune.backbone import Backbone
from finetune.configuration import BAD_CONFIG, bad_config, check_known
from finetune.text import DialogueText
from pretrain.errors import UserError
from pretrain.model import MemBartConfig, MemBartForConditionalGeneration
from pretrain.model.convert import is_memory


def membart(backbone: Backbone, changes: Mapping[str, Any], **fresh: Any) -> MemBartForConditionalGeneration:
    """A MemBART, float32 on the CPU.

    Args:
        changes: the recipe's `model.config`, on top of the backbone's configuration; for `scratch` the shape.
        fresh: fields for `scratch` that `changes` may overrule, such as the vocabulary.

    Raises:
        UserError: fields that contradict each other, or a backbone that is neither MemBART nor BART.
    """
    check_known(changes, MemBartConfig())
    if backbone.is_scratch:
        try:
            return MemBartForConditionalGeneration.from_scratch(MemBartConfig(**{**fresh, **changes}))
        except BAD_CONFIG as error:
            raise bad_config(error) from None
    if not backbone.is_membart:
        raise UserError(
            f"a {backbone.config.model_type} cannot become a MemBART",
            where=backbone.place,
            mend="give a MemBART or a BART, or take the family baseline",
        )
    return backbone.membart(**changes)


def membart_or_gpt2(
    backbone: Backbone, changes: Mapping[str, Any], text: DialogueText, memory: str
) -> MemBartForConditionalGeneration | GPT2LMHeadModel:
    """A MemBART, without slots where `memory` is off, or a GPT-2; float32 on the CPU.

    Args:
        changes: as of `membart`; for `scratch` with `model_type: gpt2` the shape of a GPT-2.
        text: for `scratch`: its vocabulary, and its special tokens.
        memory: the recipe's `data.memory`.

    Raises:
        UserError: as of `membart`; or a GPT-2 that is to carry memory.
    """
    fields = dict(changes)
    special = {"vocab_size": len(text.tokenizer), "bos_token_id": text.bos, "eos_token_id": text.eos}
    kind = fields.pop("model_type", "membart") if backbone.is_scratch else backbone.config.model_type
    if kind == "gpt2":
        if memory == "carry":
            raise UserError(
                "data.memory is 'carry', but a GPT-2 has no memory",
                where=backbone.place,
                mend="data.memory=reset or off; both mean the same here",
            )
        check_known(fields, GPT2Config())
        if not backbone.is_scratch:
            return cast(GPT2LMHeadModel, backbone.hub_model(GPT2LMHeadModel, **fields))
        try:
            return GPT2LMHeadModel(GPT2Config(**{**special, **fields}))
        except BAD_CONFIG as error:
            raise bad_config(error) from None
    if kind != "membart" and not backbone.is_membart:
        raise UserError(
            f"a {kind} is neither GPT-2 nor BART nor MemBART", where=backbone.place, mend="give one of them"
        )
    if memory == "off":
        fields["memory_len"] = 0
    return membart(backbone, fields, **special, pad_token_id=text.pad)


def check_positions(config: Any, needed: int) -> None:
    """Refuse a model with fewer positions than `needed` tokens.

    Raises:
        UserError: says how many there are.
    """
    there = config.max_position_embeddings
    if needed > there:
        raise UserError(
            f"{needed} tokens do not fit the {there} positions of this {config.model_type}",
            mend="lower data.context_tokens or data.target_tokens",
        )


def rest_memory(model: nn.Module) -> None:
    """Do not train memory that nothing uses: weight decay would wear it away."""
    for name, parameter in model.named_parameters():
        if is_memory(name):
            parameter.requires_grad_(False)
