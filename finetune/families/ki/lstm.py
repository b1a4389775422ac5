"""Seq2Seq: a bidirectional LSTM, and an LSTM that attends to it, as fairseq builds them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from finetune.families.ki.configuration import KiConfig, LstmShape
from finetune.families.ki.encoded import Encoded, Recurrence, run


class LstmBody(nn.Module):
    """Two layers each way; the decoder is fed with what it attended to a token before."""

    words = ""
    positions = 0
    """0: there are none, a source may have any length."""

    def __init__(self, config: KiConfig) -> None:
        super().__init__()
        shape = LstmShape.model_validate(config.shape or {})
        hidden, self.layers = shape.hidden, shape.layers
        self.width, self.out = 2 * hidden, hidden
        self.embed_tokens = nn.Embedding(config.vocab_size, shape.embedding, config.pad_token_id)
        self.encoder = nn.LSTM(
            shape.embedding,
            hidden,
            shape.layers,
            batch_first=True,
            bidirectional=True,
            dropout=shape.dropout if shape.layers > 1 else 0.0,
        )
        self.bridge = nn.Linear(2 * hidden, hidden)
        self.cells = nn.ModuleList(
            nn.LSTMCell(hidden + (0 if number else shape.embedding), hidden) for number in range(shape.layers)
        )
        self.query = nn.Linear(hidden, 2 * hidden, bias=False)
        self.attended = nn.Linear(3 * hidden, hidden, bias=False)
        self.drop = nn.Dropout(shape.dropout)

    def encode(self, ids: Tensor, mask: Tensor) -> Encoded:
        states, final = run(self.encoder, self.drop(self.embed_tokens(ids)), mask)
        return Encoded(last_hidden_state=self.drop(states), attention_mask=mask, summary=final)

    def decode(self, ids: Tensor, encoded: Encoded, cache: Recurrence | None) -> Tensor:
        """States `[A, U, d]` after each of the tokens; with a cache, of the new ones."""
        assert encoded.last_hidden_state is not None
        assert encoded.attention_mask is not None
        source = encoded.last_hidden_state
        hidden = (encoded.attention_mask == 0) & encoded.attention_mask.any(dim=1, keepdim=True)
        state = self._begin(encoded) if cache is None or cache.state is None else cache.state
        # [A, 2 layers + 1, h]: hidden states, cell states, what was attended to.
        *parts, fed = state.unbind(dim=1)
        hs, cs = parts[: self.layers], parts[self.layers :]
        found = []
        for token in self.drop(self.embed_tokens(ids)).unbind(dim=1):
            below = torch.cat([token, fed], dim=-1)
            for number, cell in enumerate(self.cells):
                hs[number], cs[number] = cell(below, (hs[number], cs[number]))
                below = self.drop(hs[number])
            scores = torch.einsum("ad,atd->at", self.query(below), source)
            shares = scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(dim=-1)
            context = torch.einsum("at,atd->ad", shares, source)
            fed = self.drop(torch.tanh(self.attended(torch.cat([below, context], dim=-1))))
            found.append(fed)
        if cache is not None:
            cache.store(torch.stack([*hs, *cs, fed], dim=1), ids.shape[1])
        return torch.stack(found, dim=1)

    def _begin(self, encoded: Encoded) -> Tensor:
        """The encoder's final states of each layer, made narrower; nothing attended to yet."""
        assert encoded.summary is not None
        state = self.bridge(encoded.summary)
        return torch.cat([state, torch.zeros_like(state[:, :1])], dim=1)

    def empty_cache(self) -> Recurrence:
        return Recurrence()
