"""What the paper's bodies make of a source, and the state of a recurrent decoder between two tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers.modeling_outputs import ModelOutput


@dataclass
class Encoded(ModelOutput):
    """A source as its decoder wants it; all `[A, ...]`, so that beams can repeat it."""

    last_hidden_state: Tensor | None = None
    """`[A, T, d]`: what the head of knowledge internalization reads."""
    attention_mask: Tensor | None = None
    """`[A, T]`, nonzero where the decoder may look."""
    memory_states: Tensor | None = None
    """`[A, 0, d]`: these bodies carry nothing."""
    gate: Tensor | None = None
    summary: Tensor | None = None
    """Recurrent bodies: `[A, n, d]` final states."""
    scores: Tensor | None = None
    """DiffKS: `[A, C]` of the knowledge sentences, the lowest number for those that are padding."""
    sentence_ids: Tensor | None = None
    """DiffKS: `[A, C, L]`; once one is selected `[A, L]`, as the next two without C."""
    sentence_states: Tensor | None = None
    """DiffKS: `[A, C, L, d]`."""
    sentence_vectors: Tensor | None = None
    """DiffKS: `[A, C, d]`."""


class Recurrence:
    """The cache that transformers' generation hands back and forth for a recurrent decoder."""

    is_compileable = False

    def __init__(self) -> None:
        self.state: Tensor | None = None
        """`[rows, ...]`."""
        self._tokens = 0

    def store(self, state: Tensor, tokens: int) -> None:
        """Keep the state after `tokens` more of them."""
        self.state, self._tokens = state, self._tokens + tokens

    def get_seq_length(self) -> int:
        """Tokens read so far."""
        return self._tokens

    def reorder_cache(self, beams: Tensor) -> None:
        """Take the rows of the beams that live on."""
        assert self.state is not None
        self.state = self.state.index_select(0, beams)


def run(network: nn.GRU | nn.LSTM, embedded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """A bidirectional network over sequences [N, T, e] that are padded on the right.

    Returns:
        outputs `[N, T, 2h]`, zero on padding; final states of every layer, directions side by side,
        `[N, layers, 2h]`, of an LSTM its hidden and then its cell states, `[N, 2 layers, 2h]`. A row that is
        all padding counts as one token of it, with outputs of zero.
    """
    lengths = mask.sum(dim=1).clamp(min=1).cpu()
    packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
    outputs, final = network(packed)
    states, _ = pad_packed_sequence(outputs, batch_first=True, total_length=embedded.shape[1])
    parts = final if isinstance(final, tuple) else (final,)
    # [layers * 2, N, h] -> [N, layers, 2h]
    sides = [part.unflatten(0, (-1, 2)).permute(2, 0, 1, 3).flatten(2) for part in parts]
    return states * mask[..., None].to(states.dtype), torch.cat(sides, dim=1)
