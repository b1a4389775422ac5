"""Figures by a BERT: BERTScore, and how alike the replies to one context are.

BERTScore is computed here and not by the `bert-score` package: under transformers 5 its last release (0.3.13)
fails on an empty reply (a tokenizer method is gone) and on tokenizers that name no greatest length.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pretrain.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

LAYERS = {
    ("roberta", 24): 17,
    ("roberta", 12): 10,
    ("bert", 24): 18,
    ("bert", 12): 9,
    ("distilbert", 6): 5,
}
"""Layer whose states BERTScore compares, by model type and depth: those that its authors chose on English."""
Pooling = Literal["cls", "mean"]
_BATCH = 64


class Encoder:
    """A transformers encoder from a folder, with its tokenizer."""

    def __init__(self, folder: Path, device: str) -> None:
        """Raises:
        UserError: the folder holds no such model.
        """
        from transformers import AutoModel, AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.model: Any = AutoModel.from_pretrained(folder, local_files_only=True).to(device).eval()
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"cannot be read as a model: {error}", where=str(folder)) from None
        self.folder, self.config = folder, self.model.config
        # RoBERTa counts positions from 2; its tables are two rows longer than its texts may be.
        self.longest = min(self.tokenizer.model_max_length, self.config.max_position_embeddings - 2)

    def states(self, texts: Sequence[str], layer: int = -1) -> list[tuple[Tensor, Tensor]]:
        """Per text its states `[tokens, d]` at a layer (0: embeddings) and which tokens are not special
        `[tokens]` bool; float32 on the model's device."""
        import torch

        # Byte-level pieces of a word differ at the start of a text, unless a space goes before it.
        spaced = [f" {text.strip()}" if text.strip() else "" for text in texts]
        found = []
        for start in range(0, len(spaced), _BATCH):
            batch = self.tokenizer(
                spaced[start : start + _BATCH],
                padding=True,
                truncation=True,
                max_length=self.longest,
                return_special_tokens_mask=True,
                return_tensors="pt",
            ).to(self.model.device)
            special = batch.pop("special_tokens_mask").bool()
            with torch.no_grad():
                states = self.model(**batch, output_hidden_states=True).hidden_states[layer].float()
            real = batch["attention_mask"].bool()
            found += [(row[seen], ~odd[seen]) for row, seen, odd in zip(states, real, special, strict=True)]
        return found


@lru_cache(maxsize=2)
def load(folder: Path, device: str) -> Encoder:
    """`Encoder`, kept for the next metric that asks for it."""
    return Encoder(folder, device)


def bertscore_layer(encoder: Encoder) -> int:
    """The layer to compare.

    Raises:
        UserError: none is known for such a model.
    """
    shape = (encoder.config.model_type, encoder.config.num_hidden_layers)
    if shape not in LAYERS:
        known = ", ".join(f"{kind} of {depth}" for kind, depth in LAYERS)
        what = f"no BERTScore layer is known for {shape[0]} of {shape[1]} layers"
        raise UserError(what, where=str(encoder.folder), mend=f"known: {known}; the papers use roberta-large")
    return LAYERS[shape]


def bertscore(replies: Sequence[str], references: Sequence[Sequence[str]], encoder: Encoder) -> float:
    """Mean F1 of greedily matched token states in percent; unweighted, not rescaled, the best reference.

    Special tokens may be matched but are not counted; an empty reply or reference scores 0.
    """
    layer = bertscore_layer(encoder)
    hypotheses = encoder.states(replies, layer)
    accepted = iter(encoder.states([one for row in references for one in row], layer))
    return 100 * statistics.fmean(
        max(_greedy_f1(reply, next(accepted)) for _ in row)
        for reply, row in zip(hypotheses, references, strict=True)
    )


def _greedy_f1(reply: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]) -> float:
    from torch.nn.functional import normalize

    if not (reply[1].any() and reference[1].any()):
        return 0.0
    cosines = normalize(reply[0], dim=-1) @ normalize(reference[0], dim=-1).T
    precision = float(cosines.max(dim=1).values[reply[1]].mean())
    recall = float(cosines.max(dim=0).values[reference[1]].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def similarity(groups: Sequence[Sequence[str]], encoder: Encoder, pooling: Pooling = "cls") -> float:
    """Mean cosine of every two texts of a group, mean over groups.

    Args:
        groups: two or more texts each.
        pooling: a text is the last state of its first token (`cls`), or the `mean` of those not special.
    """
    import torch
    from torch.nn.functional import normalize

    texts = encoder.states([text for group in groups for text in group])
    vectors = [
        states[0] if pooling == "cls" or not counted.any() else states[counted].mean(dim=0)
        for states, counted in texts
    ]
    units = iter(normalize(torch.stack(vectors), dim=-1).cpu())
    means = []
    for group in groups:
        pairs = combinations([next(units) for _ in group], 2)
        means.append(statistics.fmean(float(one @ other) for one, other in pairs))
    return statistics.fmean(means)
