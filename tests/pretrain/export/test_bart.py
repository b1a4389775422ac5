"""The backbone as plain BART: the MemBART function without slots, and nothing of the memory."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, BartForConditionalGeneration

from pretrain import checkpoint
from pretrain.errors import UserError
from pretrain.export.bart import PlainBart, to_bart
from pretrain.model import MemBartForConditionalGeneration
from pretrain.model.convert import is_memory


@pytest.fixture(scope="module")
def plain(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> PlainBart:
    return to_bart(trained, tmp_path_factory.mktemp("bart") / "model")


@torch.no_grad()
def test_it_is_the_membart_without_slots(plain: PlainBart, exported: Path) -> None:
    bart = AutoModelForSeq2SeqLM.from_pretrained(plain.path).eval()
    assert type(bart) is BartForConditionalGeneration
    ours = MemBartForConditionalGeneration.from_pretrained(exported, memory_len=0).eval()
    remembering = MemBartForConditionalGeneration.from_pretrained(exported).eval()
    ids = torch.randint(4, bart.config.vocab_size, (2, 20), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    words = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :7]}
    expected = ours(**words).logits
    # Padding is hidden in two ways, so the sums of attention may be rounded in two ways.
    assert torch.allclose(bart(**words).logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    told = [model.generate(ids, attention_mask=mask, max_length=12) for model in (bart, ours, remembering)]
    assert torch.equal(told[0], told[1])
    assert not torch.equal(told[0], told[2]), "with its slots the model says something else"


def test_what_is_dropped_is_said_plainly(plain: PlainBart, exported: Path) -> None:
    kept = load_file(plain.path / "model.safetensors")
    everything = load_file(exported / "model.safetensors")
    assert set(plain.dropped) == everything.keys() - kept.keys()
    assert all(is_memory(name) for name in plain.dropped)
    assert plain.dropped_parameters == sum(everything[name].numel() for name in plain.dropped)
    assert all(torch.equal(everything[name], tensor) for name, tensor in kept.items())
    assert plain.moved > 0.01 > plain.difference
    card = (plain.path / "README.md").read_text()
    assert (
        f"{len(plain.dropped)} memory tensors ({plain.dropped_parameters:,} parameters) are left out" in card
    )
    config = json.loads((plain.path / "config.json").read_text())
    assert config["model_type"] == "bart"
    assert not {"memory_len", "variant", "memory_attention", "loss_impl"} & config.keys()
    assert AutoTokenizer.from_pretrained(plain.path)("ka").input_ids


def test_a_structure_that_reads_its_slots_between_barts_layers_is_refused(
    trained: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    saved = checkpoint.resolve(run)
    file, mark = saved.path / "config.json", saved.path / "COMMIT.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "variant": "memformer"}))
    content = json.loads(mark.read_text())
    content["files"][file.name] = asdict(checkpoint.mark(file))
    mark.write_text(json.dumps(content))
    with pytest.raises(UserError, match="a memformer reads its slots between BART's layers"):
        to_bart(run, tmp_path / "bart")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
