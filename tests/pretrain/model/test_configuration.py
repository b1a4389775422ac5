"""Sizes, choices and what an import costs."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from pretrain.errors import UserError
from pretrain.model import (
    VARIANTS,
    MemBartConfig,
    MemBartForConditionalGeneration,
    freeze_as_authors,
)

BASE = {
    "d_model": 768,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_ffn_dim": 3072,
    "decoder_ffn_dim": 3072,
    "encoder_attention_heads": 12,
    "decoder_attention_heads": 12,
    "memory_len": 64,
}
LARGE = {"memory_len": 128}
BART_BASE = 139_420_416


def skeleton(**fields: object) -> MemBartForConditionalGeneration:
    with torch.device("meta"):
        return MemBartForConditionalGeneration(MemBartConfig(**fields))


def count(model: MemBartForConditionalGeneration, trainable: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


@pytest.mark.parametrize(
    ("fields", "parameters", "trainable", "entries"),
    [(BASE, 182_589_697, 142_410_241, 366), (LARGE, 558_629_889, 505_057_281, 714)],
    ids=["base", "large"],
)
def test_sizes_of_the_released_models(
    fields: dict[str, int], parameters: int, trainable: int, entries: int
) -> None:
    model = skeleton(**fields)
    assert count(model) == parameters
    assert len(model.state_dict()) == entries
    freeze_as_authors(model)
    assert count(model, trainable=True) == trainable


@pytest.mark.parametrize(
    ("variant", "added"),
    [
        # gate, memory norm, bias
        ("shared", 591_361 + 1_536 + 64 * 768),
        # per layer a reader and its norm; a writer, memory norm, bias
        ("memformer", 6 * (4 * 590_592 + 1_536) + 4 * 590_592 + 1_536 + 64 * 768),
        # per layer a reader and one number
        ("memformer_rezero", 6 * (4 * 590_592 + 1) + 4 * 590_592 + 1_536 + 64 * 768),
    ],
)
def test_what_the_variants_add_to_bart(variant: str, added: int) -> None:
    assert count(skeleton(**BASE, variant=variant)) == BART_BASE + added


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"variant": "membert"}, "variant is 'membert'.*one of: membart, shared"),
        ({"memory_attention": "flash"}, "memory_attention is 'flash'"),
        ({"loss_impl": "fused"}, "loss_impl is 'fused'"),
        ({"memory_len": -1}, "memory_len is -1"),
        ({"memory_len": 0, "variant": "memformer"}, "memory_len is 0.*1 or more"),
        ({"encoder_layerdrop": 0.1}, "LayerDrop cannot be replayed"),
        ({"tie_word_embeddings": False}, "tied to the embedding"),
    ],
)
def test_what_cannot_be_honoured_is_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        MemBartConfig(**wrong)


def test_the_authors_leftover_fields_are_kept_and_ignored() -> None:
    config = MemBartConfig(**BASE, normalize_before=False, pretrained_name="facebook/bart-base")
    assert config.to_dict()["pretrained_name"] == "facebook/bart-base"
    assert config.model_type == "membart"


def test_naming_the_package_loads_no_heavy_library() -> None:
    code = "import sys, pretrain.model as m; m.VARIANTS; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert VARIANTS == ("membart", "shared", "memformer", "memformer_rezero")
