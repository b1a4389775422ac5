"""Foreign models become folders of ours, every tensor accounted for; what is broken is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, BartConfig, BartForConditionalGeneration

from pretrain.corpus.tokenizer import train_tokenizer
from pretrain.errors import CheckpointError, UserError
from pretrain.importing import import_model
from pretrain.model import MemBartForConditionalGeneration
from pretrain.model.convert import is_memory, twin
from tests.support import tiny

VOCABULARY = 280
TEXT = [f"{a}{b} {b}{a}" for a in ("ka", "lo", "mi") for b in ("dan", "vel", "mor")] * 20
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def membart() -> MemBartForConditionalGeneration:
    return tiny.model(vocab_size=VOCABULARY).eval()


@pytest.fixture
def published(tmp_path: Path, membart: MemBartForConditionalGeneration) -> Path:
    """The layout in which the authors published theirs: a `.bin` with every tied name, no `model_type`."""
    folder = tmp_path / "published"
    folder.mkdir()
    fields = {
        key: value for key, value in membart.config.to_dict().items() if key not in ("model_type", "dtype")
    }
    old = {"pretrained_name": "facebook/bart-base", "normalize_before": False, "torch_dtype": "float32"}
    (folder / "config.json").write_text(
        json.dumps({**fields, **old, "auto_map": {"AutoModel": "evil.Model"}})
    )
    weights = {name: tensor.clone() for name, tensor in membart.state_dict().items()}
    torch.save({**weights, "model.encoder.version": torch.tensor([3.0])}, folder / "pytorch_model.bin")
    return folder


@pytest.fixture
def bart(tmp_path: Path) -> Path:
    """A plain BART with generation settings and a tokenizer, as the hub has them."""
    folder = tmp_path / "bart"
    torch.manual_seed(1)
    shape = {key: value for key, value in tiny.MODEL.items() if key != "memory_len"}
    model = BartForConditionalGeneration(BartConfig(vocab_size=VOCABULARY, **shape))
    model.generation_config.update(num_beams=4, no_repeat_ngram_size=3, early_stopping=True)
    model.save_pretrained(folder)
    train_tokenizer(TEXT, VOCABULARY).save(folder)
    (folder / "tokenizer.json").unlink()  # vocab.json and merges.txt alone, as of old
    (folder / "tokenizer_config.json").unlink()
    return folder


def change(folder: Path, edit: Callable[[dict[str, Any]], object], file: str = "config.json") -> None:
    """Edit the configuration, or the table of weights, of a folder."""
    path = folder / file
    content = torch.load(path) if file.endswith(".bin") else json.loads(path.read_text())
    edit(content)
    if file.endswith(".bin"):
        torch.save(content, path)
    else:
        path.write_text(json.dumps(content))


def weights_of(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    change(folder, edit, "pytorch_model.bin")


@torch.no_grad()
def test_the_authors_layout_becomes_the_same_model(
    published: Path, membart: MemBartForConditionalGeneration, tmp_path: Path
) -> None:
    made = import_model(str(published), tmp_path / "ours")
    loaded = AutoModelForSeq2SeqLM.from_pretrained(made.path).eval()
    assert type(loaded) is MemBartForConditionalGeneration
    ids = torch.arange(4, 24).view(2, 10)
    memory = membart.encode(ids.flip(0)).memory_states
    expected, found = (
        model(input_ids=ids, memory_states=memory, decoder_input_ids=ids) for model in (membart, loaded)
    )
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.memory_states, expected.memory_states)
    config = json.loads((made.path / "config.json").read_text())
    assert config["model_type"] == "membart"
    assert not {"auto_map", "pretrained_name", "torch_dtype"} & config.keys()


def test_every_tensor_is_accounted_for(published: Path, tmp_path: Path) -> None:
    made = import_model(str(published), tmp_path / "ours")
    report = json.loads((made.path / "weights.json").read_text())
    stored = load_file(made.path / "model.safetensors")
    source = torch.load(published / "pytorch_model.bin")
    assert {entry["name"] for entry in report["tensors"]} == stored.keys()
    for entry in report["tensors"]:
        assert list(stored[entry["name"]].shape) == entry["shape"]
        assert torch.equal(stored[entry["name"]], source[entry["source"]])
    assert source.keys() == {entry["source"] for entry in report["tensors"]} | report["unused"].keys()
    assert report["unused"]["model.encoder.version"] == "holds no weight"
    assert (
        report["unused"]["lm_head.weight"] == "the same matrix as model.shared.weight, which is stored once"
    )
    unused = [line.split() for line in made.weights.text.splitlines() if line.startswith("  unused")]
    assert ["lm_head.weight", "(1", "tensor):", "the", "same", "matrix"] in [words[1:7] for words in unused]
    assert {words[1] for words in unused} == report["unused"].keys()
    assert "pytorch_model.bin" in (made.path / "README.md").read_text()


def test_plain_bart_gets_a_memory_and_says_which_part_is_fresh(bart: Path, tmp_path: Path) -> None:
    made = import_model(str(bart), tmp_path / "ours", fields={"memory_len": 6}, seed=3)
    stored, source = load_file(made.path / "model.safetensors"), load_file(bart / "model.safetensors")
    for origin in made.weights.tensors:
        twins = twin(origin.name)
        if origin.source == "fresh":
            assert is_memory(origin.name)
            assert not twins
        else:
            assert torch.equal(stored[origin.name], source[origin.source])
            assert origin.source == (twins or origin.name)
            assert bool(origin.note) == bool(twins)
    assert stored["model.encoder.memory_bias"].shape == (1, 6, 16)
    again = import_model(str(bart), tmp_path / "again", fields={"memory_len": 6}, seed=3)
    other = import_model(str(bart), tmp_path / "other", fields={"memory_len": 6}, seed=4)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (made.path, again.path, other.path)]
    assert weights[0] == weights[1] != weights[2]
    settings = AutoModelForSeq2SeqLM.from_pretrained(made.path).generation_config
    assert (settings.num_beams, settings.no_repeat_ngram_size) == (4, 3)
    assert made.no_tokenizer == ""
    tokenizer = AutoTokenizer.from_pretrained(made.path)
    assert tokenizer.decode(tokenizer("kadan lo").input_ids) == "<s>kadan lo</s>"


def test_half_precision_and_other_sizes_of_memory(published: Path, tmp_path: Path) -> None:
    made = import_model(str(published), tmp_path / "ours", fields={"memory_len": 7}, dtype="bf16")
    stored = load_file(made.path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert stored["model.encoder.memory_bias"].shape == (1, 7, 16)
    [bias] = [origin for origin in made.weights.tensors if origin.name == "model.encoder.memory_bias"]
    assert bias.note == "resized from 4 slots"
    assert made.no_tokenizer == "no tokenizer in this folder"


class Trap:
    """A pickle that writes a file when it is run."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.file,))


def truncate(folder: Path) -> None:
    file = folder / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(folder: Path) -> None:
    file = folder / "pytorch_model.bin"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 64
    file.write_bytes(content)


LAYER = "model.encoder.layers.0.fc1.weight"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, r"pytorch_model\.bin: weights cannot be read"),
    "flipped": (flip, r"pytorch_model/data/\d+ is damaged"),
    "a pointer to a large file": (
        lambda f: (f / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "weights cannot be read",
    ),
    "zipped code": (
        lambda f: torch.save({LAYER: Trap(f / "sprung")}, f / "pytorch_model.bin"),
        "pickled code is never run",
    ),
    "bare code": (
        lambda f: (f / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(f / "sprung"), protocol=2)),
        "pickled code is never run",
    ),
    "nested": (
        lambda f: torch.save({"state_dict": torch.load(f / "pytorch_model.bin")}, f / "pytorch_model.bin"),
        "not a plain table of tensors",
    ),
    "no names": (
        lambda f: torch.save({7: torch.ones(2)}, f / "pytorch_model.bin"),
        "not a plain table of tensors",
    ),
    "missing": (lambda f: weights_of(f, lambda w: w.pop(LAYER)), rf"1 missing \({LAYER}\)"),
    "unexpected": (
        lambda f: weights_of(f, lambda w: w.update(head=torch.ones(2))),
        r"1 unexpected \(head\)",
    ),
    "shape": (
        lambda f: weights_of(f, lambda w: w.update({LAYER: torch.ones(2, 2)})),
        rf"1 of another shape \({LAYER} \(2, 2\) instead of \(32, 16\)\)",
    ),
    "two names": (
        lambda f: weights_of(f, lambda w: w.update({LAYER.removeprefix("model."): w[LAYER]})),
        "are the same tensor",
    ),
    "untied": (
        lambda f: weights_of(f, lambda w: w["lm_head.weight"].add_(1)),
        r"lm_head\.weight differs from model\.shared\.weight",
    ),
    "not finite": (
        lambda f: weights_of(f, lambda w: w[LAYER].fill_(float("nan"))),
        f"{LAYER} has values that are not finite",
    ),
    "integers": (
        lambda f: weights_of(f, lambda w: w.update({LAYER: w[LAYER].to(torch.int8)})),
        "is strided int8, not plain floating point",
    ),
    "sparse": (
        lambda f: weights_of(f, lambda w: w.update({LAYER: w[LAYER].to_sparse()})),
        "is sparse_coo float32, not plain floating point",
    ),
    "no weights": (lambda f: (f / "pytorch_model.bin").unlink(), r"no weights -- one of model\.safetensors"),
    "no configuration": (lambda f: (f / "config.json").unlink(), r"no usable config\.json"),
    "a list": (lambda f: (f / "config.json").write_text("[1]"), r"no usable config\.json"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "no model found"),
    "another model": (lambda f: change(f, lambda c: c.update(model_type="t5")), "a t5 model"),
    "pre-norm": (
        lambda f: change(f, lambda c: c.update(normalize_before=True)),
        "normalize_before is True: another structure than BART's",
    ),
    "quantized": (lambda f: change(f, lambda c: c.update(quantization_config={})), "a quantized model"),
    "text for a number": (
        lambda f: change(f, lambda c: c.update(memory_len="many")),
        "memory_len is 'many', not a number",
    ),
    "nothing": (lambda f: change(f, lambda c: c.update(d_model=0)), "d_model is 0"),
    "heads": (
        lambda f: change(f, lambda c: c.update(encoder_attention_heads=5)),
        "5 heads do not divide d_model 16",
    ),
    "activation": (
        lambda f: change(f, lambda c: c.update(activation_function="what")),
        "no activation function 'what'",
    ),
    "generation settings": (
        lambda f: (f / "generation_config.json").write_text("{"),
        r"generation_config\.json cannot be read",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_what_is_broken_is_refused_in_one_line(published: Path, tmp_path: Path, fault: str) -> None:
    break_it, message = BROKEN[fault]
    break_it(published)
    with pytest.raises(UserError, match=message) as refused:
        import_model(str(published), tmp_path / "ours")
    assert "\n" not in str(refused.value)
    assert not (published / "sprung").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["published"]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "the index of the weight files cannot be read"),
        ("[]", "the index of the weight files cannot be read"),
        (
            '{"metadata": {}, "weight_map": {"a": "model-1.safetensors"}}',
            r"model-1\.safetensors: weights cannot be",
        ),
    ],
)
def test_a_broken_index_is_refused(bart: Path, tmp_path: Path, index: str, message: str) -> None:
    (bart / "model.safetensors").unlink()
    (bart / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=message):
        import_model(str(bart), tmp_path / "ours")


def test_mistakes_of_the_caller_are_refused(bart: Path, tmp_path: Path) -> None:
    out = tmp_path / "ours"
    with pytest.raises(UserError, match="no field memory_length"):
        import_model(str(bart), out, fields={"memory_length": 3})
    with pytest.raises(UserError, match="memory_len is -1"):
        import_model(str(bart), out, fields={"memory_len": -1})
    with pytest.raises(UserError, match="unknown dtype 'fp8'"):
        import_model(str(bart), out, dtype="fp8")
    with pytest.raises(UserError, match="no such tokenizer folder"):
        import_model(str(bart), out, tokenizer=tmp_path / "nowhere")
    train_tokenizer(TEXT, 290).save(tmp_path / "other")
    with pytest.raises(UserError, match="the tokenizer has 290 entries, the model 280"):
        import_model(str(bart), out, tokenizer=tmp_path / "other")
    with pytest.raises(CheckpointError, match="no such folder"):
        import_model(str(tmp_path / "nowhere"), out)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="a run or a checkpoint, not a model folder -- `membart export"):
        import_model(str(tmp_path), out)
    assert not out.exists()
    out.mkdir()
    with pytest.raises(UserError, match="the output exists already"):
        import_model(str(bart), out)
