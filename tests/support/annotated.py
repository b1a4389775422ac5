"""Annotations of dialogues by hand, without a retriever."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from finetune.dialogue.dialogue import Dialogue
from finetune.knowledge import artifact
from finetune.knowledge.annotations import (
    Annotations,
    Items,
    Spans,
    Table,
    fill,
    sentence_hash,
    utterance_name,
)


def write(
    folder: Path,
    annotated: Iterable[tuple[Dialogue, int, Spans]],
    keys: np.ndarray,
    sentences: Sequence[str],
    titles: Sequence[str] | None = None,
    *,
    context_turns: int = 0,
) -> Annotations:
    """A folder of the spans of some turns, with `keys` `[M, joint_size]` and sentences by row.

    Raises:
        UserError: the folder exists.
    """
    spans = {utterance_name(dialogue, turn, context_turns): found for dialogue, turn, found in annotated}
    items = Items(titles or [""] * len(sentences), sentences, [sentence_hash(text) for text in sentences])
    with artifact.making(folder) as aside:
        fill(aside, Table.of(spans), keys, items, context_turns=context_turns)
    return Annotations.open(folder)
