"""An exported folder is the trained model: same logits, same memory, same words; and no DeepSpeed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from pretrain import checkpoint
from pretrain.errors import CheckpointError, UserError
from pretrain.export import Kind, export, load_model
from pretrain.model import MemBartForConditionalGeneration
from tests.pretrain.export.turns import differing, three_turns
from tests.support import processes


def test_every_zero_stage_gives_the_same_bytes(exported: Path, job: Path, tmp_path: Path) -> None:
    assert checkpoint.resolve(job / "run").state["zero_stage"] == 1
    expected = (exported / "model.safetensors").read_bytes()
    for stage in (2, 3):
        saved = checkpoint.resolve(job / f"zero{stage}" / "run")
        assert saved.state["zero_stage"] == stage
        found = (export(saved.path, tmp_path / f"zero{stage}") / "model.safetensors").read_bytes()
        assert found == expected, f"stage {stage}"


def test_three_turns_with_memory_are_those_of_the_model_in_training(
    exported: Path, trained: Path, job: Path
) -> None:
    live = load_file(job / "live.safetensors")
    model = AutoModelForSeq2SeqLM.from_pretrained(exported).eval()
    assert type(model) is MemBartForConditionalGeneration
    assert differing(three_turns(model), live) == []
    assert differing(three_turns(load_model(checkpoint.resolve(trained))), live) == []
    forgetful = three_turns(MemBartForConditionalGeneration.from_pretrained(exported, memory_len=3).eval())
    assert "reply 2" in differing(forgetful, live), "the replies must depend on the memory"


def test_a_process_without_deepspeed_exports_in_little_memory_and_speaks_the_same(
    trained: Path, job: Path, tmp_path: Path
) -> None:
    program = Path(__file__).with_name("alone.py")
    words = [str(program), str(trained), str(tmp_path / "model")]
    output = processes.run(words, 1)[0]
    measured = json.loads(output.splitlines()[-1])
    assert measured["weights"] > 40e6
    # One model, and what the libraries take, half a model or more: a second copy makes it 2.5 and more.
    assert measured["peak"] < 2 * measured["weights"], measured
    assert differing(load_file(tmp_path / "model.safetensors"), load_file(job / "live.safetensors")) == []


def test_tied_matrices_are_stored_once_and_large_weights_are_split(
    exported: Path, trained: Path, tmp_path: Path
) -> None:
    with safe_open(exported / "model.safetensors", "pt") as tensors:
        names = set(tensors.keys())
    assert "model.shared.weight" in names
    assert (
        not {"lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"}
        & names
    )
    split = export(trained, tmp_path / "split", shard_bytes=15_000_000)
    files = sorted(split.glob("model-*.safetensors"))
    assert len(files) > 2
    assert all(file.stat().st_size < 15_100_000 for file in files)
    index = json.loads((split / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == names
    assert index["metadata"]["total_size"] == sum(
        tensor.nbytes for tensor in load_file(exported / "model.safetensors").values()
    )
    a, b = (
        MemBartForConditionalGeneration.from_pretrained(folder).state_dict() for folder in (exported, split)
    )
    assert differing(dict(b), dict(a)) == []


def test_bf16_halves_the_weights(exported: Path, trained: Path, tmp_path: Path) -> None:
    folder = export(trained, tmp_path / "half", dtype="bf16")
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}
    sizes = [(place / "model.safetensors").stat().st_size for place in (folder, exported)]
    assert sizes[0] < 0.51 * sizes[1]


def test_the_card_says_where_the_model_came_from(exported: Path, trained: Path) -> None:
    card = (exported / "README.md").read_text()
    state = checkpoint.resolve(trained).state
    for fact in (
        state["shard_set"],
        f"{state['tokens_seen']:,}",
        state["versions"]["torch"],
        "held-out perplexity with memory",
        "held-out history gain",
        "2 ranks, ZeRO-1",
    ):
        assert fact in card


def test_the_tokenizer_is_the_runs(exported: Path, trained: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert tokenizer.decode(tokenizer("ka dan").input_ids) == "<s>ka dan</s>"
    assert (exported / "merges.txt").read_bytes() == (trained / "tokenizer" / "merges.txt").read_bytes()


def test_generation_settings_are_kept(job: Path, tmp_path: Path) -> None:
    """`ranks.py` asked for three beams before it saved at stage 3."""
    run = job / "zero3" / "run"
    model = AutoModelForSeq2SeqLM.from_pretrained(export(run, tmp_path / "model"))
    assert model.generation_config.num_beams == 3
    assert model.generation_config.decoder_start_token_id == 2
    assert load_model(checkpoint.resolve(run)).generation_config.num_beams == 3


def test_a_difference_after_reloading_is_found_and_leaves_nothing(trained: Path, tmp_path: Path) -> None:
    answers = iter([torch.zeros(2), torch.tensor([0.0, 0.5])])
    with pytest.raises(CheckpointError, match=r"differs from the checkpoint by 0\.5"):
        export(trained, tmp_path / "model", kind=Kind(probe=lambda model: next(answers)))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="the output exists already"):
        export(trained, tmp_path / "taken")
    with pytest.raises(UserError, match="unknown dtype 'fp8'"):
        export(trained, tmp_path / "model", dtype="fp8")
    with pytest.raises(CheckpointError, match="no committed checkpoint here"):
        export(tmp_path, tmp_path / "model")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        export(trained, tmp_path / "file" / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]


def test_damage_is_named_and_exports_nothing(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    file = checkpoint.resolve(run).path / "frozen.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"frozen\.safetensors is damaged"):
        export(run, tmp_path / "model")
    file.write_bytes(content)
    (run / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="the tokenizer cannot be loaded"):
        export(run, tmp_path / "model")
    shutil.rmtree(run / "tokenizer")
    with pytest.raises(UserError, match="no such tokenizer folder"):
        export(run, tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
