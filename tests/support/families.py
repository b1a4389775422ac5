"""Changes to `tests.support.dialogues.recipe` with which each family trains in a second or two."""

from __future__ import annotations

from typing import Any

from tests.support import ki

TINY: dict[str, dict[str, Any]] = {
    "tests.support.unigram": {"model": {}, "data__memory": "reset"},
    "membart": {},
    "dior_cvae": {
        "model__latent_size": 4,
        "model__posterior_width": 16,
        "model__denoiser_width": 32,
        "model__diffusion_steps": 10,
        "model__latent_init_std": 0.2,
        "model__kl_anneal_steps": 4,
        "optimizer__rates": {"latent": 2.0},
    },
    "fusion": {
        "model__fusion": "sw",
        "model__aux_loss": "mlm",
        "data__targets": "both",
        "optimizer__rates": {"fusion": 5.0},
    },
    "persona_cvae": {
        "model__inference_layers": 2,
        "model__min_utterances": 2,
        "model__min_response": 1,
        "model__filter_self_centred": "off",
        "data__targets": "both",
        "optimizer__rates": {"posterior": 2.0},
        "generation__sample": True,
        "generation__replies": 2,
    },
    "ki": {
        "model__knowledge": ki.folder(),
        "data__lanes": 2,
        "data__agents_per_lane": 2,
        "optimizer__rates": {"ki_head": 2.0},
    },
    "baseline": {
        "model__config": {
            "model_type": "led",
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "max_encoder_position_embeddings": 64,
            "max_decoder_position_embeddings": 64,
            "attention_window": 8,
            "init_std": 0.2,
            "dropout": 0.1,
        },
        "data__memory": "reset",
    },
}
