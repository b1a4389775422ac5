"""Shard set -> lanes -> agents -> batches. `Dispatcher` and `Batch` need torch; the plan and the workers do
not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretrain.dispatch.batch import Batch
    from pretrain.dispatch.dispatcher import Dispatcher

__all__ = ["Batch", "Dispatcher"]


def __getattr__(name: str) -> Any:
    if name == "Dispatcher":
        from pretrain.dispatch.dispatcher import Dispatcher

        return Dispatcher
    if name == "Batch":
        from pretrain.dispatch.batch import Batch

        return Batch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
