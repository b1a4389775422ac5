"""A vocabulary head with what label smoothing needs, without the full matrix of logits."""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.model.loss import IGNORED, VocabularyHead, summed_cross_entropy


class SmoothedHead(VocabularyHead):
    """A head that also gives the cross-entropy against the uniform distribution over the vocabulary.

    Label smoothing with share e is then (1 - e) times the first sum plus e times the second.
    """

    def forward(
        self,
        hidden: Tensor,
        bias: Tensor | None = None,
        labels: Tensor | None = None,
        form: str = "plain",
        smoothing: bool = False,
    ) -> Tensor:
        """As `VocabularyHead`; with `smoothing` both sums, `[2]`.

        -mean_v log p_v exceeds -log p_y by the label's logit minus the mean logit, and the mean logit is that
        of the mean row of the weights.
        """
        if labels is None or not smoothing:
            return super().forward(hidden, bias, labels, form)
        nll = summed_cross_entropy(hidden, self.weight, labels, bias, form)
        scored = labels != IGNORED
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            rows, weight, wanted = hidden[scored].to(wide), self.weight.to(wide), labels[scored]
            excess = (rows * (weight[wanted] - weight.mean(dim=0))).sum()
            if bias is not None:
                excess = excess + (bias[wanted] - bias.mean()).sum()
        return torch.stack([nll, nll + excess])

    def losses(self, hidden: Tensor, labels: Tensor, bias: Tensor | None, form: str, per_row: bool) -> Tensor:
        """Both sums over hidden [B, R, d] and labels [B, R]: `[2]`, or `[2, B]` `per_row`."""
        if not per_row:
            found: Tensor = self(hidden, bias, labels, form, True)
            return found
        rows = zip(hidden, labels, strict=True)
        return torch.stack([self(row, bias, wanted, form, True) for row, wanted in rows], dim=1)
