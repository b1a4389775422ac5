"""Any checkpoint MemBART can start from, turned into weights that fit: ours, the authors', or plain BART.

Nothing here knows the model's classes: weights are name -> tensor, what they must fit is name -> shape. Names
are those of `MemBartForConditionalGeneration`.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig
from transformers.modeling_utils import load_state_dict
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from pretrain import hub
from pretrain.errors import CheckpointError, UserError

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
SHARED = "model.shared.weight"
TIED = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
MEMORY_BIAS = "model.encoder.memory_bias"
FREE_OF_CHOICE = ("final_logits_bias",)
"""Tensors a checkpoint may lack: zeros then."""

_TRAINER_PREFIX = "recurrent_training_cell.cell."
_LEFTOVERS = ("encoder.version", "decoder.version", "model.encoder.version", "model.decoder.version")


@dataclass(frozen=True)
class Checkpoint:
    """What was found under a folder or hub name; `config` is the content of its config.json."""

    name: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    files: tuple[str, ...]
    """Where the weights were read."""
    names: dict[str, str]
    """Of each tensor of `weights`, its name in the files."""
    leftovers: tuple[str, ...]
    """Tensors of the files that no model needs."""

    @property
    def is_plain_bart(self) -> bool:
        """Neither its configuration nor its weights know of a memory."""
        return "memory_len" not in self.config and not any(is_memory(name) for name in self.weights)


def is_memory(name: str) -> bool:
    """True for a tensor that plain BART does not have: by our rule, a part of its name starts with `mem`."""
    return any(part.startswith(("mem_", "memory_")) for part in name.split("."))


def twin(name: str) -> str | None:
    """The token stream's tensor that a memory-stream tensor starts from, None where there is none."""
    return name.replace(".mem_", ".") if ".mem_" in name else None


def check_place(name: str) -> None:
    """Refuse what cannot hold a model; what may be a name on the hub is left to it.

    Raises:
        CheckpointError: no such folder, one of a run or a checkpoint, or one without a configuration.
    """
    folder = Path(name)
    if not folder.is_dir():
        hub.refuse_path(name)
    elif (folder / "checkpoints").is_dir() or (folder / "COMMIT.json").is_file():
        raise CheckpointError(
            "this is a run or a checkpoint, not a model folder",
            where=name,
            mend=f"`membart export {name} OUT`, then name OUT",
        )
    elif not (folder / "config.json").is_file():
        raise CheckpointError("no usable config.json", where=name, mend="a model folder has one")


def read_checkpoint(name: str, **where: Any) -> Checkpoint:
    """Config and weights of a local folder or a hub name; `where` are the hub options of `from_pretrained`.

    `.bin` files are read without running their pickle code. Raises `CheckpointError` when nothing is usable.
    """
    if "subfolder" not in where:
        check_place(name)
    if not where:
        hub.check(name)
    try:
        config, _ = PreTrainedConfig.get_config_dict(name, **where)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _nothing_found(name, error) from error
    if not isinstance(config, dict) or not config:
        raise CheckpointError("no usable config.json", where=name, mend="a model folder has one")
    if config.get("model_type", "bart") not in ("bart", "membart"):
        raise CheckpointError(f"a {config['model_type']} model", where=name, mend="give a BART or a MemBART")
    try:
        paths = _weight_paths(name, where)
    except OSError as error:
        raise _nothing_found(name, error) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            "the index of the weight files cannot be read", where=name, mend="fetch it again"
        ) from error
    weights: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    leftovers = []
    for path in paths:
        for stored, tensor in _read_file(path).items():
            standard = standard_name(stored)
            if standard is None:
                leftovers.append(stored)
                continue
            if standard in weights:
                raise CheckpointError(f"{names[standard]} and {stored} are the same tensor", where=name)
            # the files are mapped into memory: a model must not change when its file is written anew
            weights[standard], names[standard] = tensor.clone(), stored
    return Checkpoint(name, config, weights, tuple(paths), names, tuple(leftovers))


def _nothing_found(name: str, error: Exception) -> CheckpointError:
    reason = str(error).partition("\n")[0]
    mend = "name a folder with config.json and weights, or a model of the hub"
    return CheckpointError(f"no model found ({reason})", where=name, mend=mend)


def _read_file(path: str) -> dict[str, Tensor]:
    try:
        weights = load_state_dict(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "weights cannot be read: damaged, or more than tensors; pickled code is never run",
            where=path,
            mend="fetch the file again, or save the model's state_dict as safetensors",
        ) from error
    except Exception as error:  # a broken or foreign file makes the readers raise nearly anything
        raise CheckpointError("weights cannot be read", where=path, mend="fetch the file again") from error
    if not isinstance(weights, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in weights.items()
    ):
        raise CheckpointError("not a plain table of tensors", where=path, mend="save the model's state_dict")
    return dict(weights)


def _weight_paths(name: str, where: Mapping[str, Any]) -> list[str]:
    for file in WEIGHT_FILES:
        path = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **where)
        if path is None:
            continue
        return get_checkpoint_shard_files(name, path, **where)[0] if file.endswith(".json") else [path]
    raise CheckpointError("no weights", where=name, mend=f"one of {', '.join(WEIGHT_FILES)}")


def read_generation_config(name: str, **where: Any) -> GenerationConfig | None:
    """The generation settings beside a checkpoint, None without such a file."""
    try:
        return GenerationConfig.from_pretrained(name, **where)
    except OSError:
        return None


def standard_name(stored: str) -> str | None:
    """A name of a bare model or of the authors' trainer as the model with head has it; None: a leftover."""
    name = stored.removeprefix(_TRAINER_PREFIX)
    if name in _LEFTOVERS:
        return None
    return f"model.{name}" if name.startswith(("encoder.", "decoder.", "shared.")) else name


def fit(
    checkpoint: Checkpoint, expected: Mapping[str, torch.Size], *, memory_len: int, init_std: float
) -> dict[str, Tensor]:
    """The checkpoint's weights for a model that has the tensors `expected`.

    - One shared matrix stands for all its tied copies, which must be equal.
    - Plain BART: memory-stream tensors start as copies of their twins; those without a twin are left out,
      to be drawn by the model.
    - Another `memory_len` than the checkpoint's: see `resize_memory_bias`.

    Raises `CheckpointError` naming every kind of tensor that does not fit.
    """
    weights = dict(checkpoint.weights)
    _untie(weights, checkpoint.name)
    fresh: set[str] = set()
    if checkpoint.is_plain_bart:
        for name in expected:
            origin = twin(name)
            if origin is not None and origin in weights:
                # a tensor of its own: the loader may adopt what it is given
                weights[name] = weights[origin].clone()
        fresh = {name for name in expected if is_memory(name)}
    elif MEMORY_BIAS in weights:
        weights[MEMORY_BIAS] = _memory_bias(checkpoint, weights[MEMORY_BIAS], memory_len, init_std)
    absent = expected.keys() - weights.keys() - fresh - set(TIED) - set(FREE_OF_CHOICE)
    surplus = weights.keys() - expected.keys()
    shapes = {
        f"{name} {tuple(weights[name].shape)} instead of {tuple(expected[name])}"
        for name in weights.keys() & expected.keys()
        if weights[name].shape != expected[name]
    }
    faults = [_count("missing", absent), _count("unexpected", surplus), _count("of another shape", shapes)]
    if any(faults):
        raise CheckpointError(
            "the weights do not fit: " + "; ".join(filter(None, faults)),
            where=checkpoint.name,
            mend="check the configuration (variant, sizes) against the checkpoint",
        )
    return weights


def resize_memory_bias(bias: Tensor, memory_len: int, init_std: float) -> Tensor:
    """[1, L, d] -> [1, memory_len, d]: trained slots repeated in turn, N(0, init_std²) added to repeats.

    Without the noise a slot and its repeat would stay equal for ever. Fewer slots: the first ones are kept.
    """
    trained = bias.shape[1]
    if memory_len and not trained:
        raise UserError(
            "no slots to repeat", where="memory_bias", mend="start from a checkpoint with a memory"
        )
    resized = bias[:, torch.arange(memory_len) % max(trained, 1)]
    copies = resized[:, trained:]
    return torch.cat([resized[:, :trained], copies + init_std * torch.randn_like(copies)], dim=1)


def _memory_bias(checkpoint: Checkpoint, bias: Tensor, memory_len: int, init_std: float) -> Tensor:
    claimed = checkpoint.config.get("memory_len", bias.shape[1])
    if bias.dim() != 3 or bias.shape[1] != claimed:
        raise CheckpointError(
            f"config.json says memory_len {claimed}, memory_bias has shape {tuple(bias.shape)}",
            where=checkpoint.name,
            mend="correct memory_len in config.json",
        )
    return bias if bias.shape[1] == memory_len else resize_memory_bias(bias, memory_len, init_std)


def _untie(weights: dict[str, Tensor], where: str) -> None:
    """Leaves `SHARED` alone of the tied matrices."""
    copies = {name: weights.pop(name) for name in TIED if name in weights}
    for name, tensor in copies.items():
        if not torch.equal(weights.setdefault(SHARED, tensor), tensor):
            raise CheckpointError(f"{name} differs from {SHARED}, they are one matrix here", where=where)


def _count(kind: str, names: Iterable[str], shown: int = 3) -> str:
    listed = sorted(names)
    if not listed:
        return ""
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return f"{len(listed)} {kind} ({', '.join(listed[:shown])}{more})"
