"""Settings and configurations that cannot be: each is named with its key, in one line."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer

from finetune import bodies
from finetune.backbone import SCRATCH, Backbone
from finetune.configuration import settings_of
from finetune.families.fusion import FusionSettings
from finetune.text import DialogueText
from pretrain.errors import UserError
from tests.support import dialogues as made
from tests.support import tiny


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"fusionn": "sw"}, "family fusion: unknown recipe key 'model.fusionn' -- did you mean 'fusion'"),
        ({"loss_weights": {"replay": 1}}, r"unknown recipe key 'model.loss_weights.replay' .* 'reply'"),
        ({"fusion": "sum"}, "recipe key 'model.fusion': Input should be 'avg'"),
        ({"fusion_gain": 0}, "recipe key 'model.fusion_gain': Input should be greater than 0"),
    ],
)
def test_a_setting_that_is_unknown_or_does_not_fit_is_named(content: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings_of(FusionSettings, content, "model", "family fusion")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_lenn": 2}, "a membart has no 'model.config.memory_lenn' -- did you mean 'memory_len'"),
        ({"d_model": 15}, "model.config: .*embed_dim.* 15"),
        ({"d_model": "big"}, "model.config: Field 'd_model' .*'big'"),
        ({"memory_len": -1}, "memory_len is -1"),
        ({"model_type": "t5"}, "a t5 is neither GPT-2 nor BART nor MemBART"),
        ({"model_type": "gpt2", "n_embd": "wide"}, "model.config: Field 'n_embd' .*'wide'"),
        ({"model_type": "gpt2", "d_ff": 3}, "a gpt2 has no 'model.config.d_ff'"),
    ],
)
def test_a_shape_that_cannot_be_is_told_in_one_line(changes: dict[str, Any], message: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made.tokenizer_folder())
    shape = {} if "model_type" in changes else tiny.MODEL
    with pytest.raises(UserError, match=message) as raised:
        bodies.membart_or_gpt2(
            Backbone(SCRATCH, None, tokenizer), {**shape, **changes}, DialogueText(tokenizer), "reset"
        )
    assert "\n" not in str(raised.value)
