"""Every kind of checkpoint a model can start from, and those that are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForSeq2SeqLM, BartConfig, BartForConditionalGeneration

from pretrain.errors import CheckpointError, UserError
from pretrain.model import MemBartConfig, MemBartForConditionalGeneration, MemBartModel
from pretrain.model.convert import TIED, is_memory, resize_memory_bias, twin
from tests.pretrain.model import case

Build = Callable[..., MemBartForConditionalGeneration]
load = MemBartForConditionalGeneration.from_pretrained
BART = {key: value for key, value in case.CONFIG.items() if key not in ("memory_len", "init_std")}


@pytest.fixture
def bart(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A plain BART folder and its weights under the names of the model with a head."""
    torch.manual_seed(0)
    model = BartForConditionalGeneration(BartConfig(**BART, init_std=0.05))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "bart")
    return tmp_path / "bart", model.state_dict()


@pytest.fixture
def ours(tmp_path: Path, build: Build) -> tuple[Path, MemBartForConditionalGeneration]:
    model = build(torch.float32)
    model.save_pretrained(tmp_path / "ours")
    return tmp_path / "ours", model


def publish(folder: Path, weights: dict[str, Tensor], **changes: object) -> Path:
    """As the authors uploaded theirs: one .bin with all tied copies, a config.json without a model_type."""
    folder.mkdir(parents=True)
    config = {**case.CONFIG, "normalize_before": False, "pretrained_name": "some/bart", **changes}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def same(model: MemBartForConditionalGeneration, other: MemBartForConditionalGeneration) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


def test_memory_starts_as_a_copy_of_bart(bart: tuple[Path, dict[str, Tensor]]) -> None:
    folder, weights = bart
    model = load(folder, memory_len=200, init_std=0.01)
    state = model.state_dict()
    for name, tensor in weights.items():
        assert torch.equal(state[name], tensor), name
    twins = [name for name in state if twin(name)]
    assert len(twins) == 16 * case.CONFIG["encoder_layers"]
    for name in twins:
        assert torch.equal(state[name], weights[twin(name)])
        assert state[name].data_ptr() != state[twin(name)].data_ptr()
    assert state["model.encoder.memory_bias"].std() == pytest.approx(0.01, rel=0.1)
    assert state["model.encoder.memory_gate_net.dense.weight"].std() == pytest.approx(0.01, rel=0.1)
    assert not state["model.encoder.memory_gate_net.dense.bias"].any()
    assert (state["model.encoder.memory_layer_norm.weight"] == 1).all()
    gate = model.encode(case.steps()[0]["input_ids"], case.steps()[0]["attention_mask"]).gate
    assert (gate - 0.5).abs().max() < 0.1
    assert model.config.model_type == "membart"


def test_a_hub_name_works_like_a_folder(tmp_path: Path, bart: tuple[Path, dict[str, Tensor]]) -> None:
    folder, weights = bart
    kept = tmp_path / "cache" / "models--some--bart"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0" * 40, encoding="ascii")
    shutil.copytree(folder, kept / "snapshots" / ("0" * 40))
    model = load("some/bart", cache_dir=tmp_path / "cache", local_files_only=True, memory_len=4)
    assert torch.equal(model.model.shared.weight, weights["model.shared.weight"])
    with pytest.raises(CheckpointError, match="no model found"):
        load("some/other", cache_dir=tmp_path / "cache", local_files_only=True)


def test_trained_memory_survives_another_load(ours: tuple[Path, MemBartForConditionalGeneration]) -> None:
    folder, model = ours
    assert same(load(folder), model)
    assert same(AutoModelForSeq2SeqLM.from_pretrained(folder), model)
    assert isinstance(AutoConfig.from_pretrained(folder), MemBartConfig)


def test_saved_file_has_the_published_names_once(ours: tuple[Path, MemBartForConditionalGeneration]) -> None:
    folder, model = ours
    stored = load_file(folder / "model.safetensors")
    assert stored.keys() == case.weights().keys()
    again = load(folder)
    tied = {again.get_parameter(name).data_ptr() for name in (*TIED, "model.shared.weight")}
    assert len(tied) == 1
    step = case.steps()[0]
    given = {
        "input_ids": step["input_ids"],
        "attention_mask": step["attention_mask"],
        "decoder_input_ids": step["decoder_input_ids"],
    }
    assert torch.equal(again(**given).logits, model(**given).logits)


def test_save_in_several_files(tmp_path: Path, build: Build) -> None:
    model = build(torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert same(load(tmp_path), model)


@pytest.mark.parametrize(
    "renamed",
    [
        lambda name: name,
        lambda name: name.removeprefix("model."),
        lambda name: f"recurrent_training_cell.cell.{name}",
        lambda name: f"recurrent_training_cell.cell.{name.removeprefix('model.')}",
    ],
    ids=["published", "no prefix", "trainer", "trainer without prefix"],
)
@pytest.mark.parametrize("tied_copies", [True, False])
def test_the_authors_layouts(
    tmp_path: Path, build: Build, renamed: Callable[[str], str], tied_copies: bool
) -> None:
    model = build(torch.float32)
    weights = {
        renamed(name): tensor
        for name, tensor in model.state_dict().items()
        if tied_copies or name not in TIED
    }
    folder = publish(tmp_path / "theirs", weights)
    assert same(load(folder), model)
    assert load(folder).generation_config.decoder_start_token_id == 2


def test_a_dump_without_the_head(tmp_path: Path, build: Build) -> None:
    model = build(torch.float32)
    with torch.no_grad():
        model.final_logits_bias.zero_()
    weights = model.model.state_dict()
    assert same(load(publish(tmp_path / "theirs", weights)), model)
    bare = MemBartModel.from_pretrained(tmp_path / "theirs")
    assert torch.equal(bare.encoder.memory_bias, model.model.encoder.memory_bias)


def test_more_slots_are_copies_told_apart_by_noise(
    ours: tuple[Path, MemBartForConditionalGeneration],
) -> None:
    folder, model = ours
    trained = model.model.encoder.memory_bias
    wider = load(folder, memory_len=12, init_std=0.01)
    bias = wider.model.encoder.memory_bias
    assert wider.config.memory_len == 12
    assert wider.construct_memory(2).shape == (2, 12, case.CONFIG["d_model"])
    assert torch.equal(bias[:, :5], trained)
    noise = torch.cat([bias[:, 5:10] - trained, bias[:, 10:] - trained[:, :2]], dim=1)
    assert noise.std().item() == pytest.approx(0.01, rel=0.3)
    assert torch.equal(load(folder, memory_len=3).model.encoder.memory_bias, trained[:, :3])


def test_slots_do_not_come_from_nothing() -> None:
    with pytest.raises(UserError, match="no slots to repeat"):
        resize_memory_bias(torch.zeros(1, 0, 4), 3, 0.01)


def test_a_wrong_memory_len_in_the_config_is_refused(tmp_path: Path, build: Build) -> None:
    folder = publish(tmp_path / "theirs", build(torch.float32).state_dict(), memory_len=8)
    with pytest.raises(CheckpointError, match=r"memory_len 8, memory_bias has shape \(1, 5, 24\)"):
        load(folder)


def test_weights_that_do_not_fit_are_named_in_one_line(tmp_path: Path, build: Build) -> None:
    weights = build(torch.float32).state_dict()
    del weights["model.encoder.layers.1.mem_fc1.bias"]
    weights["model.encoder.layers.0.fc1.weight"] = torch.zeros(2, 2)
    weights["classifier.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        load(publish(tmp_path / "theirs", weights))
    line = str(caught.value)
    assert "\n" not in line
    assert "1 missing (model.encoder.layers.1.mem_fc1.bias)" in line
    assert "1 unexpected (classifier.weight)" in line
    assert "1 of another shape (model.encoder.layers.0.fc1.weight (2, 2) instead of (40, 24))" in line


def test_a_checkpoint_that_lost_its_memory_is_no_plain_bart(tmp_path: Path, build: Build) -> None:
    weights = {
        name: tensor for name, tensor in build(torch.float32).state_dict().items() if not is_memory(name)
    }
    with pytest.raises(CheckpointError, match="39 missing"):
        load(publish(tmp_path / "theirs", weights))


def test_untied_copies_are_refused(tmp_path: Path, build: Build) -> None:
    weights = {name: tensor.clone() for name, tensor in build(torch.float32).state_dict().items()}
    weights["lm_head.weight"][3] += 1
    with pytest.raises(CheckpointError, match=r"lm_head.weight differs from model.shared.weight"):
        load(publish(tmp_path / "theirs", weights))


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, bart: tuple[Path, dict[str, Tensor]]) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        load(tmp_path / "nowhere")
    folder, _ = bart
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="weights cannot be read"):
        load(folder)
    (folder / "config.json").write_text('{"model_type": "t5"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="a t5 model"):
        load(folder)
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text('{"model_type": "bart"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="no weights"):
        load(folder)


def test_bin_files_run_no_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    folder = publish(tmp_path / "theirs", {"model.shared.weight": Trap()})  # type: ignore[dict-item]
    with pytest.raises(CheckpointError, match="weights cannot be read"):
        load(folder)
    assert not (tmp_path / "sprung").exists()


def test_generation_settings_travel(tmp_path: Path, build: Build) -> None:
    model = build(torch.float32)
    model.generation_config.update(decoder_start_token_id=0, max_new_tokens=9)
    model.save_pretrained(tmp_path)
    assert load(tmp_path).generation_config.max_new_tokens == 9
    assert load(tmp_path).generation_config.decoder_start_token_id == 0


def test_load_in_half_precision(ours: tuple[Path, MemBartForConditionalGeneration]) -> None:
    folder, _ = ours
    assert {p.dtype for p in load(folder, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_from_scratch_is_sound_and_follows_the_seed() -> None:
    config = MemBartConfig(**{**case.CONFIG, "init_std": 0.02, "d_model": 48, "memory_len": 64})
    torch.manual_seed(3)
    model = MemBartForConditionalGeneration.from_scratch(config)
    torch.manual_seed(3)
    assert same(model, MemBartForConditionalGeneration.from_scratch(config))
    state = model.state_dict()
    for name, tensor in state.items():
        origin = twin(name)
        if origin:
            assert torch.equal(tensor, state[origin])
            assert tensor.data_ptr() != state[origin].data_ptr()
        elif name.endswith("_proj.weight") or name.endswith("memory_bias"):
            assert tensor.std() == pytest.approx(0.02, rel=0.1)
    out = model(input_ids=case.steps()[0]["input_ids"], labels=case.steps()[0]["input_ids"])
    assert out.loss.item() == pytest.approx(torch.tensor(60.0).log().item(), rel=0.1)


def test_weights_of_another_structure_are_refused(ours: tuple[Path, MemBartForConditionalGeneration]) -> None:
    with pytest.raises(CheckpointError, match="unexpected"):
        load(ours[0], variant="shared")


def test_a_bare_safetensors_of_bart_without_prefix(
    tmp_path: Path, bart: tuple[Path, dict[str, Tensor]]
) -> None:
    folder, weights = bart
    bare = {
        name.removeprefix("model."): tensor.clone()
        for name, tensor in weights.items()
        if name.startswith("model.")
    }
    save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})
    model = load(folder, memory_len=4)
    assert torch.equal(model.model.shared.weight, weights["model.shared.weight"])
