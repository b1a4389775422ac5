"""From a backbone to the model: its configuration, and which tensor starts from which."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from finetune import bodies
from finetune.backbone import Backbone
from finetune.batch import MULTIPLE
from finetune.families.persona_cvae import objectives
from finetune.families.persona_cvae.configuration import PersonaConfig, authors_points
from finetune.families.persona_cvae.modeling import PersonaCvae
from finetune.families.persona_cvae.settings import PersonaSettings
from finetune.recipe import DialogueSection
from finetune.text import DialogueText
from finetune.weights import WeightMap, from_backbone, load_mapped, traced
from pretrain.errors import UserError
from pretrain.export import named_tensors
from pretrain.model import MemBartForConditionalGeneration
from pretrain.model.origins import FRESH

_COPIED = ("layers.", "embed_positions.", "layernorm_embedding.")
"""What the inference networks take of the encoder."""
_ENCODER = "model.encoder."


def build(
    settings: PersonaSettings, data: DialogueSection, text: DialogueText, backbone: Backbone
) -> tuple[PersonaCvae, WeightMap]:
    """The model with the backbone's weights, on the CPU in float32, and where each tensor came from.

    Raises:
        UserError: a backbone that cannot be this family's body, or that is too small for the settings.
    """
    source = bodies.membart_or_gpt2(backbone, settings.config, text, data.memory)
    bodies.check_positions(source.config, _positions(settings, data, source.config.model_type))
    like_body = source.config.model_type != "gpt2" and settings.inference_init == "backbone"
    config = _configuration(settings, text, source, like_body)
    _check_inference(settings, config)
    model = PersonaCvae(config)
    report = _load(model, source, like_body, from_backbone(source, backbone))
    if settings.latents:
        table = source.get_input_embeddings().weight.detach()
        noise = 0.02 * table.std(dim=0) * torch.randn(2, config.width)
        with torch.no_grad():
            model.marks.slots.copy_(table.mean(dim=0) + noise)
    return model, report


def _configuration(
    settings: PersonaSettings, text: DialogueText, source: Any, like_body: bool
) -> PersonaConfig:
    gpt2 = source.config.model_type == "gpt2"
    threshold = settings.fader_threshold
    if threshold == "auto":
        threshold = objectives.random_cosine(source.get_input_embeddings().weight.detach())
    in_encoder = settings.latents and settings.latent_site != "decoder"

    def points(blocks: int) -> tuple[int, ...]:
        wanted = settings.inject_after
        return authors_points(blocks) if wanted == "authors" else wanted

    return PersonaConfig(
        body=source.config.to_dict(),
        **settings.config_fields(),
        inference_like_body=like_body,
        head_scale=1.0 if gpt2 else 0.1,
        latent_scale=1.0 if gpt2 or settings.latent_scale == "one" else _embedding_rms(source),
        inject_after=points(source.config.n_layer if gpt2 else source.config.decoder_layers),
        inject_encoder_after=points(0 if gpt2 else source.config.encoder_layers) if in_encoder else (),
        fader_threshold=threshold,
        bos_token_id=text.bos,
        eos_token_id=text.eos,
        pad_token_id=text.pad,
    )


def _check_inference(settings: PersonaSettings, config: PersonaConfig) -> None:
    """That prior and recognition network can be shaped as they are wanted."""
    if not settings.latents:
        return
    if config.inference_like_body:
        assert config.body is not None
        wanted, there = settings.inference_layers, config.body["encoder_layers"]
        if wanted > there:
            raise UserError(
                f"model.inference_layers={wanted}, but the backbone's encoder has {there}",
                where="family persona_cvae",
                mend="fewer, or model.inference_init=random",
            )
    elif config.width % settings.inference_heads:
        raise UserError(
            f"{config.width} units do not divide into {settings.inference_heads} heads",
            where="family persona_cvae",
            mend="model.inference_heads",
        )


def _load(model: PersonaCvae, source: Any, like_body: bool, first: WeightMap) -> WeightMap:
    """Body from the source, inference networks from its first encoder layers, the rest fresh."""
    given = named_tensors(source)
    word_table = next(name for name, one in given.items() if one is source.get_input_embeddings().weight)

    def source_of(name: str) -> str | None:
        if name.startswith("body.lm."):
            return name.removeprefix("body.lm.")
        part, _, rest = name.partition(".")
        if name == "fader.table":
            return word_table
        if part in ("posterior", "prior") and like_body and rest.startswith(_COPIED):
            return _ENCODER + rest
        return None

    found = load_mapped(model, given, source_of, backbone=first.source, unused=lambda name: None)
    rows = (
        origin
        if origin.name.startswith("body.") or origin.source == FRESH
        else dataclasses.replace(origin, note="a copy")
        for origin in found.tensors
    )
    return traced(dataclasses.replace(found, tensors=tuple(rows)), first)


def _positions(settings: PersonaSettings, data: DialogueSection, kind: str) -> int:
    """Most positions that the longest input takes."""
    if kind == "gpt2":
        return data.context_tokens + data.target_tokens
    needed = max(data.context_tokens, data.target_tokens + 2)
    if settings.latents and settings.posterior_input == "response":  # which reads both, each padded
        padded = (-(-length // MULTIPLE) * MULTIPLE for length in (data.context_tokens, data.target_tokens))
        needed = max(needed, sum(padded))
    return needed


def _embedding_rms(source: MemBartForConditionalGeneration) -> float:
    """Root mean square of what the decoder's embedding norm makes of the vocabulary."""
    decoder = source.model.decoder
    with torch.no_grad():
        normed = decoder.layernorm_embedding(decoder.embed_tokens.weight * decoder.embed_tokens.embed_scale)
        return float(normed.square().mean().sqrt())
