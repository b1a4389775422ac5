"""From a backbone to the model: its configuration, and which tensor starts from which (fact sheet, 3.10)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from pydantic import ValidationError
from transformers import AutoModel, PreTrainedModel

from finetune import bodies
from finetune.backbone import Backbone
from finetune.batch import MULTIPLE
from finetune.configuration import own_fields
from finetune.families.ki.configuration import (
    HEAD,
    SHAPES,
    BertShape,
    Head,
    KiConfig,
    KiMemBartConfig,
    TransformerShape,
)
from finetune.families.ki.initial import as_fairseq
from finetune.families.ki.modeling import KiMemBart, KiSeq2Seq
from finetune.families.ki.settings import KiSettings
from finetune.recipe import DialogueSection
from finetune.text import DialogueText
from finetune.weights import WeightMap, all_fresh, from_backbone, load_mapped, traced
from pretrain.errors import UserError
from pretrain.export import named_tensors
from pretrain.recipe import Section

_ENCODER = "body.encoder."


def build(
    settings: KiSettings, data: DialogueSection, text: DialogueText, backbone: Backbone
) -> tuple[KiMemBart | KiSeq2Seq, WeightMap]:
    """The model with the backbone's weights, on the CPU in float32, and where each tensor came from.

    Raises:
        UserError: a backbone that the body cannot start from, a shape that cannot be, or no knowledge there.
    """
    head = _head(settings)
    if settings.body in ("membart", "bart"):
        model, report = _membart(settings, data, text, backbone, head)
    else:
        model, report = _own(settings, text, backbone, head)
    longest = positions(model)
    source, target = (-(-n // MULTIPLE) * MULTIPLE for n in (data.context_tokens, data.target_tokens))
    if longest and max(source, target) > longest:
        raise UserError(
            f"data.context_tokens={source} or data.target_tokens={target} exceeds the model's "
            f"{longest} positions",
            where="family ki",
            mend="lower them",
        )
    assert model.generation_config is not None
    model.generation_config.decoder_start_token_id = text.bos
    return model, report


def positions(model: KiMemBart | KiSeq2Seq) -> int:
    """Longest source or target; 0 where there is no limit."""
    if isinstance(model, KiMemBart):
        return model.config.max_position_embeddings
    return int(model.body.positions)


def shape_of(body: str, content: Mapping[str, Any]) -> Section:
    """`model.config` as the sizes of one of the paper's bodies.

    Raises:
        UserError: an unknown field or a bad value.
    """
    try:
        return SHAPES[body].model_validate(dict(content))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(["model.config", *map(str, first["loc"])])
        raise UserError(
            f"recipe key '{key}': {first['msg']}",
            where=f"family ki, body {body}",
            mend=f"its fields: {', '.join(SHAPES[body].model_fields)}",
        ) from None


def _head(settings: KiSettings) -> dict[str, Any] | None:
    """Of the configuration; None without knowledge."""
    if not settings.internalizes:
        return None
    manifest = settings.annotations().manifest
    head = Head(
        size=manifest.joint_size,
        dropout=settings.head_dropout,
        margin=settings.margin,
        normalize=settings.normalize_f1,
        knowledge=manifest.hash,
    )
    return asdict(head)


def _membart(
    settings: KiSettings,
    data: DialogueSection,
    text: DialogueText,
    backbone: Backbone,
    head: dict[str, Any] | None,
) -> tuple[KiMemBart, WeightMap]:
    changes = dict(settings.config)
    if data.memory == "off" or not settings.memory:
        changes["memory_len"] = 0
    source = bodies.membart(backbone, changes, vocab_size=len(text.tokenizer))
    model = KiMemBart(KiMemBartConfig(**own_fields(source.config.to_dict()), ki=head))
    model.generation_config = source.generation_config
    found = load_mapped(
        model,
        named_tensors(source),
        lambda name: None if name.startswith(HEAD) else name,
        backbone=backbone.place,
        unused=lambda name: None,
    )
    return model, traced(found, from_backbone(source, backbone))


def _own(
    settings: KiSettings, text: DialogueText, backbone: Backbone, head: dict[str, Any] | None
) -> tuple[KiSeq2Seq, WeightMap]:
    """One of the paper's bodies: from scratch, or `bert` around a pretrained encoder."""
    body, changes = settings.body, dict(settings.config)
    source: PreTrainedModel | None = None
    if not backbone.is_scratch:
        _check_encoder(body, backbone)
        source = backbone.hub_model(AutoModel)
        changes["encoder"] = {**source.config.to_dict(), **changes.get("encoder", {})}
    shape = shape_of(body, changes)
    config = KiConfig(
        kind=body,
        shape=shape.model_dump(mode="json"),
        ki=head,
        vocab_size=len(text.tokenizer) if source is None else source.config.vocab_size,
        num_hidden_layers=shape.layers if isinstance(shape, TransformerShape | BertShape) else 1,
        bos_token_id=text.bos,
        eos_token_id=text.eos,
        pad_token_id=text.pad,
        decoder_start_token_id=text.bos,
    )
    try:
        with torch.random.fork_rng(devices=[]):  # the body is drawn anew, the same with and without a head
            model = KiSeq2Seq(config)
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"model.config: {error}", where=f"family ki, body {body}") from None
    as_fairseq(model, body)
    if source is None:
        return model, all_fresh(model, backbone)
    report = load_mapped(
        model,
        named_tensors(source),
        lambda name: name.removeprefix(_ENCODER) if name.startswith(_ENCODER) else None,
        backbone=backbone.place,
        unused=lambda name: "every token is read, no pooled one" if name.startswith("pooler.") else None,
    )
    return model, report


def _check_encoder(body: str, backbone: Backbone) -> None:
    """Only `bert` has a backbone: a BERT or ERNIE of the hub."""
    if body == "bert" and backbone.saved is None and backbone.config.model_type in ("bert", "ernie"):
        return
    kind = "checkpoint of ours" if backbone.saved is not None else backbone.config.model_type
    wanted = "hf: and a BERT or ERNIE" if body == "bert" else "scratch"
    raise UserError(
        f"the body '{body}' cannot start from a {kind}", where=backbone.place, mend=f"--from {wanted}"
    )
