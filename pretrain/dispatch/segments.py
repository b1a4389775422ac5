"""How a document falls into overlapping segments. Pure arithmetic, on single lengths and on arrays of them.

A document ends with the first window that reaches its end; that last one may be short and is kept: 1,000
tokens under 512/128 are (0, 510) (382, 892) (764, 1000). Nothing that was shown is shown again in a window of
its own.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pretrain.corpus.shardset import Window

Length = TypeVar("Length", int, NDArray[np.int64])


def segment_count(length: Length, window: Window) -> Length:
    """Segments of a document of `length` body tokens: none if it is empty, one if it fits a window."""
    beyond = -(-(length - window.body) // window.step)
    if isinstance(length, int):
        return 1 + max(beyond, 0) if length else 0
    return np.where(length == 0, 0, 1 + np.maximum(beyond, 0))


def segment_bounds(length: Length, index: Length, window: Window) -> tuple[Length, Length]:
    """(start, stop) of segment `index` in a document of `length` body tokens."""
    start = index * window.step
    stop = start + window.body
    return start, min(stop, length) if isinstance(stop, int) else np.minimum(stop, length)
