"""What DeepSpeed itself says of a configuration, before anything starts."""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import KeysView
from typing import Any

import torch
from pydantic import ValidationError

from pretrain.errors import UserError

_READ_ELSEWHERE = ("data_parallel_size", "sequence_parallel_size")
"""Top-level keys that `deepspeed.initialize` reads itself, and its configuration does not."""


def refuse_unknown_keys(config: dict[str, Any], where: str) -> None:
    """DeepSpeed passes over a top-level key that it does not know without a word.

    Raises:
        UserError: there is such a key.
    """
    known = known_keys()
    for key in config:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            mend = f"did you mean '{near[0]}'?" if near else "remove it"
            raise UserError(f"DeepSpeed has no key '{key}'", where=where, mend=mend)


@functools.cache
def known_keys() -> tuple[str, ...]:
    """Every top-level key that the installed DeepSpeed asks a configuration for."""
    quiet()
    from deepspeed.runtime.config import DeepSpeedConfig

    content = _Recording(train_micro_batch_size_per_gpu=1)
    DeepSpeedConfig(content)
    return (*content.asked, *_READ_ELSEWHERE)


def ask(config: dict[str, Any], where: str) -> None:
    """Let DeepSpeed read a configuration, as it does at the start of training.

    Raises:
        UserError: it refuses.
    """
    quiet()
    from deepspeed.runtime.config import DeepSpeedConfig

    # The ranks need not be here yet; without this number DeepSpeed does not compare theirs with it.
    content = _Recording({key: value for key, value in config.items() if key != "train_batch_size"})
    try:
        DeepSpeedConfig(content)
    except ValidationError as error:
        first = error.errors()[0]
        path = _path(config, next(reversed(content.asked)), first["loc"])
        raise UserError(f"'{path}': {first['msg']}", where=where, mend="mend the file") from None
    except Exception as error:  # what its readers stumble over in a wrong value may be of any kind
        section, reason = next(reversed(content.asked)), str(error) or type(error).__name__
        raise UserError(f"'{section}': {reason}", where=where, mend="mend the file") from None


def has_async_io() -> bool:
    """Whether DeepSpeed can build the operator on this machine that offloading to NVMe needs."""
    quiet()
    from deepspeed.ops.op_builder import AsyncIOBuilder

    return bool(AsyncIOBuilder().is_compatible(verbose=False))


def quiet() -> None:
    """What must be set before DeepSpeed is first imported."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")


class _Recording(dict[str, Any]):
    """A configuration that remembers which of its keys somebody asked for, the latest last.

    A copy of it, as DeepSpeed makes one, shares that record.
    """

    def __init__(self, *content: dict[str, Any], **more: Any) -> None:
        super().__init__(*content, **more)
        self.asked: dict[str, None] = {}

    def _note(self, key: Any) -> None:
        self.asked.pop(key, None)
        self.asked[key] = None

    def __contains__(self, key: object) -> bool:
        self._note(key)
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self._note(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None, /) -> Any:
        self._note(key)
        return super().get(key, default)

    def keys(self) -> Any:
        return KeysView(self)


def _path(config: dict[str, Any], section: str, inner: tuple[int | str, ...]) -> str:
    """The dotted path of a value in the file, which DeepSpeed reports from its section, or from the top."""
    inside = config.get(section)
    is_inside = not inner or (isinstance(inside, dict) and inner[0] in inside)
    return ".".join(map(str, inner if not is_inside and inner[0] in config else (section, *inner)))
