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
        hidden = shape.hidden
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
        self.decoder = AttendingDecoder(shape)
        self.drop = nn.Dropout(shape.dropout)

    def encode(self, ids: Tensor, mask: Tensor) -> Encoded:
        states, final = run(self.encoder, self.drop(self.embed_tokens(ids)), mask)
        return Encoded(last_hidden_state=self.drop(states), attention_mask=mask, summary=final)

    def decode(self, ids: Tensor, encoded: Encoded, cache: Recurrence | None) -> Tensor:
        """States `[A, U, d]` after each of the tokens; with a cache, of the new ones."""
        assert encoded.last_hidden_state is not None
        assert encoded.attention_mask is not None
        seen = encoded.attention_mask != 0
        hidden = ~seen & seen.any(dim=1, keepdim=True)
        state = self._begin(encoded) if cache is None or cache.state is None else cache.state
        tokens = self.drop(self.embed_tokens(ids))
        states, state = self.decoder(tokens, encoded.last_hidden_state, hidden, state)
        if cache is not None:
            cache.store(state, ids.shape[1])
        found: Tensor = states
        return found

    def _begin(self, encoded: Encoded) -> Tensor:
        """The encoder's final states of each layer, made narrower; nothing attended to yet."""
        assert encoded.summary is not None
        state = self.bridge(encoded.summary)
        return torch.cat([state, torch.zeros_like(state[:, :1])], dim=1)

    def empty_cache(self) -> Recurrence:
        return Recurrence()


class AttendingDecoder(nn.Module):
    """Token by token: LSTM layers, then attention over the source, whose outcome enters the next token.

    Weights are its own, not those of cells inside: ZeRO-3 gathers a module's weights at each call, and ranks
    whose replies differ in length would call cells a different number of times.
    """

    def __init__(self, shape: LstmShape) -> None:
        super().__init__()
        hidden, self.layers = shape.hidden, shape.layers
        for number in range(shape.layers):
            size = hidden if number else hidden + shape.embedding
            setattr(self, f"input_{number}", nn.Parameter(torch.zeros(4 * hidden, size)))
            setattr(self, f"state_{number}", nn.Parameter(torch.zeros(4 * hidden, hidden)))
            setattr(self, f"input_bias_{number}", nn.Parameter(torch.zeros(4 * hidden)))
            setattr(self, f"state_bias_{number}", nn.Parameter(torch.zeros(4 * hidden)))
        self.query = nn.Parameter(torch.zeros(2 * hidden, hidden))
        self.attended = nn.Parameter(torch.zeros(hidden, 3 * hidden))
        self.dropout = shape.dropout

    def forward(self, tokens: Tensor, source: Tensor, hidden: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """States after each token, and the state after the last.

        Args:
            tokens: `[A, U, e]`.
            source: `[A, T, 2h]`; `hidden` `[A, T]` bool, what of it is not attended to.
            state: `[A, 2 layers + 1, h]`: hidden states, cell states, what was attended to.

        Returns:
            `[A, U, h]` and `[A, 2 layers + 1, h]`.
        """
        *parts, fed = state.unbind(dim=1)
        hs, cs = parts[: self.layers], parts[self.layers :]
        found = []
        for token in tokens.unbind(dim=1):
            below = torch.cat([token, fed], dim=-1)
            for number in range(self.layers):
                names = ("input", "state", "input_bias", "state_bias")
                weights = [getattr(self, f"{name}_{number}") for name in names]
                hs[number], cs[number] = torch.lstm_cell(below, (hs[number], cs[number]), *weights)
                below = self._drop(hs[number])
            scores = torch.einsum("ad,atd->at", nn.functional.linear(below, self.query), source)
            shares = scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(dim=-1)
            context = torch.einsum("at,atd->ad", shares, source)
            both = torch.cat([below, context], dim=-1)
            fed = self._drop(torch.tanh(nn.functional.linear(both, self.attended)))
            found.append(fed)
        return torch.stack(found, dim=1), torch.stack([*hs, *cs, fed], dim=1)

    def _drop(self, states: Tensor) -> Tensor:
        return nn.functional.dropout(states, self.dropout, self.training)
