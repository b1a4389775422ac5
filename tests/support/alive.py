"""The bytes of all tensors that are alive, and what a step needs to be measured so."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretrain.dispatch.batch import Batch
from pretrain.rehearsal import full_batch


class Alive(TorchDispatchMode):
    """Inside, follows every storage that an operator makes or that was there before; views count once.

    Workspace that a kernel frees before it returns is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, int] = {}
        self.bytes = self.peak = 0
        gc.collect()  # what an earlier test left in cycles must not be freed while we measure
        for thing in gc.get_objects():
            if issubclass(type(thing), Tensor):
                self._see(thing)
        self.restart()

    def restart(self) -> None:
        """Look for a new peak from here on."""
        self.peak = self.bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for thing in tree_leaves(made):
            if isinstance(thing, Tensor):
                self._see(thing)
        self.peak = max(self.peak, self.bytes)
        return made

    def _see(self, tensor: Tensor) -> None:
        if tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            weakref.finalize(storage, self._forget, key)
        self.bytes += size - self._known.get(key, 0)
        self._known[key] = size

    def _forget(self, key: int) -> None:
        self.bytes -= self._known.pop(key)


def padded(agents: int, width: int) -> Batch:
    """A batch of full targets whose sources have padding, as noise leaves them."""
    batch = full_batch(agents, width)
    batch.attention_mask[:, -width // 4 :] = 0
    return batch


def no_gradients(module: torch.nn.Module) -> None:
    """Zeros in place of what an earlier step would have left."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
