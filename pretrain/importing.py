"""A foreign model as a folder of ours: the authors' published layout, their trainer's dump, or plain BART.

Nothing in the source is executed: safetensors, or `.bin` files under `weights_only` loading.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.activations import ACT2FN
from transformers.utils.hub import cached_file

from pretrain.corpus.tokenizer import load_tokenizer
from pretrain.errors import CheckpointError, UserError
from pretrain.export.folder import check_room, complete_or_absent, known_dtype
from pretrain.export.kind import probe
from pretrain.export.weights import GENERATION_FILE, named_tensors
from pretrain.files import digest
from pretrain.model import convert
from pretrain.model.configuration import MemBartConfig, make_config
from pretrain.model.modeling import MemBartForConditionalGeneration
from pretrain.model.origins import WeightMap, trace
from pretrain.modelcard import MEMORY_USAGE
from pretrain.provenance import versions

_SIZES = (
    "vocab_size",
    "d_model",
    "max_position_embeddings",
    "encoder_layers",
    "decoder_layers",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
)
_OTHER_MODELS: Mapping[str, Any] = {
    "normalize_before": False,
    "add_final_layer_norm": False,
    "add_bias_logits": False,
    "normalize_embedding": True,
    "static_position_embeddings": False,
}
"""Switches of older BART configurations: any other value is another function, such as mBART's."""
_NOT_OURS = ("auto_map", "_name_or_path", "pretrained_name", "torch_dtype", "dtype", *_OTHER_MODELS)
"""Fields of a foreign configuration that must not travel: `auto_map` names code to run."""


@dataclass(frozen=True)
class Imported:
    """What an import made."""

    path: Path
    weights: WeightMap
    no_tokenizer: str
    """Why the folder has no tokenizer; empty where it has one."""


def import_model(
    source: str,
    out: Path,
    *,
    fields: Mapping[str, Any] | None = None,
    tokenizer: Path | None = None,
    dtype: str = "fp32",
    seed: int = 0,
) -> Imported:
    """Read a model, fit it into MemBART, and write it as `export` writes one, with `weights.json`.

    The folder appears only when what was loaded back from it has the same bits.

    Args:
        source: a folder, or a name on the hub.
        fields: `MemBartConfig` fields that replace the source's, such as `memory_len`.
        tokenizer: folder to take it from; unset: the source, where it has one.
        dtype: `fp32` or `bf16`.
        seed: of the tensors that plain BART does not have.

    Raises:
        UserError, CheckpointError: `out` exists; or the source is no such model, is damaged, or does not fit.
    """
    as_dtype = known_dtype(dtype)
    with complete_or_absent(out) as aside:
        found = convert.read_checkpoint(source)
        _check_files(found)
        _check_values(found)
        config = _config(found, dict(fields or {}))
        config.architectures = [MemBartForConditionalGeneration.__name__]
        with torch.device("meta"):
            shapes = {
                name: tensor.shape
                for name, tensor in MemBartForConditionalGeneration(config).state_dict().items()
            }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fitted = convert.fit(found, shapes, memory_len=config.memory_len, init_std=config.init_std)
            model = MemBartForConditionalGeneration.from_pretrained(
                None, config=config, state_dict=fitted, dtype=as_dtype
            )
        generation = convert.read_generation_config(source)
        if generation is not None:
            model.generation_config = generation
        elif _home(source, GENERATION_FILE):
            raise CheckpointError(f"{GENERATION_FILE} cannot be read", where=source, mend="mend or remove it")
        check_room(aside, sum(place.nbytes for place in named_tensors(model).values()))
        try:
            model.save_pretrained(aside)
        except ValueError as error:  # generation settings that contradict each other
            reason = " ".join(str(error).split())
            raise UserError(f"generation settings: {reason}", where=source, mend="correct them") from None
        no_tokenizer = _take_tokenizer(source, tokenizer, config.vocab_size, aside)
        report = trace(found, fitted, {name: place.shape for name, place in named_tensors(model).items()})
        report.save(aside)
        (aside / "README.md").write_text(_card(found, report, config, out.name), encoding="utf-8")
        _verify(model, fitted, aside, as_dtype)
    return Imported(out, report, no_tokenizer)


def _check_files(found: convert.Checkpoint) -> None:
    """The checksums that a zipped `.bin` carries; its reader does not look at them."""
    for file in found.files:
        if zipfile.is_zipfile(file):
            try:
                with zipfile.ZipFile(file) as archive:
                    damaged = archive.testzip()
            except Exception as error:  # its header may claim anything
                damaged = f"the archive ({error})"
            if damaged is not None:
                raise CheckpointError(f"{damaged} is damaged", where=file, mend="fetch the file again")


def _check_values(found: convert.Checkpoint) -> None:
    for name, tensor in found.weights.items():
        if tensor.layout != torch.strided or not tensor.is_floating_point():
            kind = f"{tensor.layout} {tensor.dtype}".replace("torch.", "")
            raise CheckpointError(
                f"{found.names[name]} is {kind}, not plain floating point", where=found.name
            )
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{found.names[name]} has values that are not finite", where=found.name, mend="a broken model"
            )


def _config(found: convert.Checkpoint, fields: dict[str, Any]) -> MemBartConfig:
    """The source's configuration with `fields` in place.

    Raises:
        UserError: of another model, or a field that MemBART does not have or cannot honour.
    """
    for field, ours in _OTHER_MODELS.items():
        if found.config.get(field, ours) != ours:
            raise CheckpointError(
                f"{field} is {found.config[field]}: another structure than BART's", where=found.name
            )
    if "quantization_config" in found.config:
        raise CheckpointError("a quantized model", where=found.name, mend="give it in floating point")
    known = MemBartConfig().to_dict()
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise UserError(f"no field {', '.join(unknown)}", mend="fields are those of MemBartConfig")
    own = {key: value for key, value in found.config.items() if key not in _NOT_OURS and key != "model_type"}
    wanted = {**own, **fields}
    try:
        config = make_config(wanted)
    except UserError as error:
        raise UserError(error.what, where=found.name, mend=f"{error.mend}, or give FIELD=VALUE") from None
    for field in _SIZES:
        if not getattr(config, field) > 0:
            raise UserError(f"{field} is {getattr(config, field)}", where=found.name, mend="1 or more")
    for heads in (config.encoder_attention_heads, config.decoder_attention_heads):
        if config.d_model % heads:
            raise UserError(f"{heads} heads do not divide d_model {config.d_model}", where=found.name)
    if config.activation_function not in ACT2FN:
        raise UserError(f"no activation function '{config.activation_function}'", where=found.name)
    return config


def _take_tokenizer(source: str, given: Path | None, vocab_size: int, folder: Path) -> str:
    """Write the tokenizer that was given, or the source's own; returns why there is none, or nothing.

    Raises:
        UserError: the one given is unusable, or one has ids that the model does not.
    """
    try:
        tokenizer = load_tokenizer(
            given or _home(source, "vocab.json") or _home(source, "tokenizer.json") or source
        )
    except UserError as error:
        if given is not None:
            raise
        return error.what
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} entries, the model {vocab_size}",
            where=str(given or source),
            mend="give the model's own with --tokenizer",
        )
    tokenizer.save(folder)
    return ""


def _home(source: str, name: str) -> Path | None:
    """The folder, local or of the hub's cache, in which a file of the source lies."""
    found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    return Path(found).parent if found else None


def _verify(model: Any, fitted: Mapping[str, Tensor], folder: Path, dtype: torch.dtype) -> None:
    """What is loaded back must have the source's bits in every tensor, and the model's in the logits."""
    loaded = MemBartForConditionalGeneration.from_pretrained(folder, dtype=dtype, local_files_only=True)
    found = named_tensors(loaded)
    differing = [
        name
        for name, made in named_tensors(model).items()
        if not torch.equal(fitted.get(name, made).to(dtype), found[name])
    ]
    if differing or not torch.equal(probe(model.eval()), probe(loaded.eval())):
        raise CheckpointError(
            f"what was written differs: {', '.join(differing[:3]) or 'logits'}",
            where=str(folder),
            mend="report this; nothing was imported",
        )


def _card(found: convert.Checkpoint, report: WeightMap, config: MemBartConfig, name: str) -> str:
    """Where the weights came from, file by file."""
    files = [(Path(file).name, Path(file).stat().st_size, digest(Path(file))) for file in found.files]
    kind = "plain BART: its memory has not been trained" if found.is_plain_bart else "a MemBART"
    rows = [
        ("imported from", f"{found.name}, {kind}"),
        *((f"`{file}`", f"{size:,} bytes, sha256 `{mark}`") for file, size, mark in files),
        ("memory slots", str(config.memory_len)),
        ("imported with", ", ".join(f"{package} {version}" for package, version in versions().items())),
    ]
    table = "\n".join(f"| {label} | {value} |" for label, value in rows)
    return (
        "---\nlibrary_name: transformers\ntags: [membart, memory, dialogue]\n---\n\n"
        f"# {name}\n\nA MemBART for `pretrain.model.MemBartForConditionalGeneration`.\n\n"
        f"| | |\n| --- | --- |\n{table}\n\n## Use\n\n{MEMORY_USAGE}\n## Weights\n\n```\n{report.text}\n```\n"
    )
