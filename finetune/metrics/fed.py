"""FED: how unlikely a dialogue model finds it that somebody complains about a reply (Mehri, Eskenazi 2020).

An aspect has follow-up sentences, praises and complaints. Its score is the model's mean loss on the
conversation with a complaint, less that with a praise; those that Dior-CVAE averages have no praises. The
sentences belong to FED's release and are read from a file:

    {"relevant": {"positive": [], "negative": ["...", ...]}, "correct": {...}, ...}
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pretrain.errors import UserError

ASPECTS = ("relevant", "correct", "coherent", "error recovery", "consistent", "diverse")
"""Those that Dior-CVAE's figure is the mean of."""
_BATCH = 8
FollowUps = Mapping[str, Mapping[str, Sequence[str]]]


class Judge:
    """A causal language model of dialogue (DialoGPT) from a folder, with its tokenizer."""

    def __init__(self, folder: Path, device: str) -> None:
        """Raises:
        UserError: the folder holds no such model.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"cannot be read as a language model: {error}", where=str(folder)) from None
        self.model.to(device).eval()
        self.end: int = self.tokenizer.eos_token_id

    def losses(self, turns: Sequence[str], sentences: Sequence[str]) -> list[float]:
        """Mean loss per token (nats) of the turns and then each sentence, an end token before every one.

        The oldest tokens are cut where the model has too few positions.
        """
        import torch
        from torch.nn.functional import cross_entropy

        said = [token for turn in turns for token in self._ids(turn)]
        rows = [torch.tensor(self._cut([*said, *self._ids(sentence)])) for sentence in sentences]
        found = []
        for start in range(0, len(rows), _BATCH):
            some = rows[start : start + _BATCH]
            lengths = torch.tensor([len(row) for row in some])
            ids = torch.nn.utils.rnn.pad_sequence(some, batch_first=True, padding_value=self.end)
            mask = torch.arange(ids.shape[1]) < lengths[:, None]
            labels = ids.masked_fill(~mask, -100)[:, 1:].to(self.model.device)
            with torch.no_grad():
                logits = self.model(
                    input_ids=ids.to(self.model.device), attention_mask=mask.long().to(self.model.device)
                ).logits
            each = cross_entropy(logits[:, :-1].float().transpose(1, 2), labels, reduction="none").sum(dim=1)
            found += (each.cpu() / (lengths - 1)).tolist()
        return found

    def _ids(self, turn: str) -> list[int]:
        return [self.end, *self.tokenizer(turn, add_special_tokens=False)["input_ids"]]

    def _cut(self, ids: list[int]) -> list[int]:
        longest = self.model.config.max_position_embeddings
        return ids if len(ids) <= longest else [self.end, *ids[-(longest - 1) :]]


@lru_cache(maxsize=1)
def load(folder: Path, device: str) -> Judge:
    """`Judge`, kept for the next group of replies."""
    return Judge(folder, device)


def read_follow_ups(path: Path) -> FollowUps:
    """Follow-up sentences by aspect.

    Raises:
        UserError: no such file, another form, or one of `ASPECTS` without complaints.
    """
    mend = 'a JSON object: aspect -> {"positive": [...], "negative": [...]}'
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = TypeAdapter(dict[str, dict[str, list[str]]]).validate_python(content, strict=True)
    except (OSError, ValueError, ValidationError) as error:
        raise UserError(f"cannot be read as follow-ups: {error}", where=str(path), mend=mend) from None
    for aspect in ASPECTS:
        if not found.get(aspect, {}).get("negative"):
            raise UserError(f"no negative follow-up of the aspect {aspect!r}", where=str(path), mend=mend)
    return found


def fed(
    conversations: Sequence[Sequence[str]],
    judge: Judge,
    follow_ups: FollowUps,
    aspects: Sequence[str] = ASPECTS,
) -> float:
    """Mean over conversations and aspects.

    Args:
        conversations: turns oldest first, the reply to judge last.
    """
    kinds = [(aspect, kind) for aspect in aspects for kind in ("negative", "positive")]
    sentences = [sentence for aspect, kind in kinds for sentence in follow_ups[aspect].get(kind, ())]

    def score(turns: Sequence[str]) -> float:
        losses = iter(judge.losses(turns, sentences))
        total = 0.0
        for aspect, kind in kinds:
            some = [next(losses) for _ in follow_ups[aspect].get(kind, ())]
            if some:
                total += statistics.fmean(some) * (1 if kind == "negative" else -1)
        return total / len(aspects)

    return statistics.fmean(map(score, conversations))
