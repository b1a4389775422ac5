"""From gathered rows to the padded arrays of a batch, encoder and decoder side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pretrain.dispatch.gather import Rows
from pretrain.dispatch.lanes import I64

BOS, PAD, EOS, IGNORE = 0, 1, 2, -100


@dataclass(frozen=True)
class Layout:
    """How wide a batch is: its longest row rounded up to `multiple`, or always `fixed` tokens."""

    multiple: int = 8
    fixed: int | None = None

    def encoder_side(self, rows: Rows) -> tuple[I64, I64]:
        """`<s> x </s>` and its mask, both `[A, S]`; a dry row is all padding."""
        live = np.flatnonzero(rows.segment >= 0)
        sizes = np.zeros_like(rows.source_lengths)
        sizes[live] = rows.source_lengths[live] + 2
        place = np.arange(self._width(sizes))
        mask = place < sizes[:, None]
        ids = np.full(mask.shape, PAD)
        ids[:, 1:][place[:-1] < rows.source_lengths[:, None]] = rows.source
        ids[live, 0] = BOS
        ids[live, sizes[live] - 1] = EOS
        return ids, mask.astype(np.int64)

    def decoder_side(self, rows: Rows) -> tuple[I64, I64]:
        """`</s> <s> x` and the labels `<s> x </s>`, both `[A, D]`.

        A row of which nothing is asked is padding and ignored labels.
        """
        asked = np.flatnonzero(rows.target_lengths)
        sizes = np.zeros_like(rows.target_lengths)
        sizes[asked] = rows.target_lengths[asked] + 2
        width = self._width(sizes)
        inside = np.arange(width - 1) < rows.target_lengths[:, None]
        labels = np.full((len(sizes), width), IGNORE)
        labels[:, 1:][inside] = rows.target
        labels[asked, 0] = BOS
        labels[asked, sizes[asked] - 1] = EOS
        ids = np.full((len(sizes), width), PAD)
        ids[:, 2:][inside[:, :-1]] = rows.target
        ids[asked, 0] = EOS
        ids[asked, 1] = BOS
        return ids, labels

    def _width(self, sizes: NDArray[np.int64]) -> int:
        return self.fixed or max(-(-int(sizes.max()) // self.multiple), 1) * self.multiple
