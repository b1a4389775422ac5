"""Words in context as vectors, to look knowledge up with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from finetune.knowledge.retriever.model import STRIDE, WINDOW, Retriever
from finetune.knowledge.words import Word

BATCH_TEXTS = 32


@dataclass(frozen=True)
class Query:
    """A text and the words of it that are looked up."""

    text: str
    words: Sequence[Word]


@torch.no_grad()
def vectors(retriever: Retriever, queries: Sequence[Query]) -> list[np.ndarray]:
    """For each query `[words, joint_size]` float32: unit vectors, or zeros where a word has no token.

    A word is the mean of the head's outputs at its tokens, before they are scaled to unit length. Of a text
    longer than the encoder reads, windows are encoded, and a word is taken from the one in which it stands
    most in the middle.
    """
    pieces = [
        (number, start, text)
        for number, query in enumerate(queries)
        for start, text in windows(retriever, query.text)
    ]
    found = [np.zeros((len(query.words), retriever.settings.joint_size), np.float32) for query in queries]
    best = [np.full(len(query.words), -1.0) for query in queries]
    order = sorted(range(len(pieces)), key=lambda piece: len(pieces[piece][2]))
    device = next(retriever.parameters()).device
    for at in range(0, len(order), BATCH_TEXTS):
        rows = [pieces[piece] for piece in order[at : at + BATCH_TEXTS]]
        texts = retriever.encode([text for _, _, text in rows], longest=retriever.longest)
        outputs = retriever.token_outputs(texts.to(device)).float().cpu().numpy()
        real, offsets = texts.real.numpy(), texts.offsets.numpy()
        for row, (number, start, text) in enumerate(rows):
            for place, word in enumerate(queries[number].words):
                begin, end = word.start - start, word.end - start
                centrality = min(begin, len(text) - end)
                if centrality <= best[number][place]:
                    continue
                overlap = np.minimum(offsets[row, :, 1], end) - np.maximum(offsets[row, :, 0], begin)
                mine = real[row] & (overlap > 0)
                if mine.any():
                    mean = outputs[row, mine].mean(axis=0)
                    found[number][place] = mean / max(float(np.linalg.norm(mean)), 1e-12)
                    best[number][place] = centrality
    return found


def windows(retriever: Retriever, text: str) -> list[tuple[int, str]]:
    """Pieces of a text that the encoder can read, with the character each begins at; mostly all of it."""
    specials = retriever.tokenizer.num_special_tokens_to_add()
    offsets = retriever.offsets(text)
    if len(offsets) <= retriever.longest - specials:
        return [(0, text)]
    most = min(WINDOW, retriever.longest) - specials
    stride = max(min(STRIDE, most // 2), 1)
    found = []
    for first in range(0, len(offsets) - most + stride, stride):
        first = min(first, len(offsets) - most)
        inside = offsets[first : first + most]
        found.append((inside[0][0], text[inside[0][0] : inside[-1][1]]))
    return found
