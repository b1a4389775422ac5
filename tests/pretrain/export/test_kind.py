"""Other models than MemBART go the same way: found through the Auto classes, or described."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BartConfig, GPT2Config, GPT2LMHeadModel

from pretrain.checkpoint import Checkpoint
from pretrain.errors import CheckpointError
from pretrain.export import Kind, export
from pretrain.export.kind import DEFAULT, probe
from pretrain.model import MemBartForConditionalGeneration
from tests.support import tiny


def checkpoint_of(folder: Path, config: object) -> Checkpoint:
    (folder / "config.json").write_text(json.dumps(config))
    return Checkpoint(folder)


def test_a_causal_model_is_found_by_its_type_and_probed(tmp_path: Path) -> None:
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=12, vocab_size=30)
    found = DEFAULT.config(checkpoint_of(tmp_path, config.to_dict()))
    assert found.architectures == ["GPT2LMHeadModel"]
    model = DEFAULT.build(found).eval()
    assert type(model) is GPT2LMHeadModel
    seen = probe(model)
    assert seen.shape == (2, 2, 12, 30)
    assert torch.equal(seen, probe(model))
    model.transformer.wpe.weight.data[3, 1] += 0.1
    assert not torch.equal(seen, probe(model))


def test_an_encoder_decoder_is_found_before_its_decoder_alone(tmp_path: Path) -> None:
    content = BartConfig(**{key: value for key, value in tiny.MODEL.items() if key != "memory_len"}).to_dict()
    assert DEFAULT.config(checkpoint_of(tmp_path, content)).architectures == ["BartForConditionalGeneration"]


def test_the_probe_carries_memory() -> None:
    model = tiny.model().eval()
    seen = probe(model)
    with torch.no_grad():
        model.model.encoder.memory_gate_net.dense2.bias.fill_(-30.0)  # keep the old memory
    assert not torch.equal(seen[1], probe(model)[1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model_type": "nobodys"}, "nobody knows the model type 'nobodys'"),
        ({"model_type": "vit"}, "no model that writes text is known for ViTConfig"),
        ({}, r"config\.json cannot be read: KeyError\('model_type'\)"),
        (["membart"], r"config\.json cannot be read: TypeError"),
    ],
)
def test_what_nobody_knows_is_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        DEFAULT.config(checkpoint_of(tmp_path, content))


def test_a_kind_brings_its_class_its_probe_and_its_files(trained: Path, tmp_path: Path) -> None:
    probed = []

    def mine(model: MemBartForConditionalGeneration) -> torch.Tensor:
        probed.append(type(model))
        return model.model.shared.weight[:2].float()

    class Mine(MemBartForConditionalGeneration):
        pass

    def extras(saved: Checkpoint, folder: Path) -> None:
        (folder / "extra.txt").write_text(saved.path.name)

    folder = export(trained, tmp_path / "model", kind=Kind(Mine, mine, extras))
    assert probed == [Mine, Mine]
    assert (folder / "extra.txt").read_text() == "step-00000002"
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Mine"]
