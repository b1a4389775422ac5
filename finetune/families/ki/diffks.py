"""A decoder that selects knowledge and copies from it: DiffKS, as the paper's rows 9 and 10 build on.

Zheng et al. (2020), "Difference-aware Knowledge Selection for Knowledge-grounded Conversation Generation", in
its disentangled form: a sentence's score is how well it fits the context, plus how it differs from what was
selected in the turns before. The reply is written from the selected sentence, by a GRU that chooses at each
token between its vocabulary and the sentence's tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from finetune.families.ki.configuration import DiffksShape, KiConfig
from finetune.families.ki.encoded import Encoded, Recurrence, run

_LEAST = 1e-30
"""Smallest share of a token next to the likeliest one."""


class DiffksBody(nn.Module):
    """Context and knowledge encoders, the selector, the copying decoder."""

    words = ""
    positions = 0

    def __init__(self, config: KiConfig) -> None:
        super().__init__()
        shape = DiffksShape.model_validate(config.shape or {})
        self.pad = config.pad_token_id
        both = 2 * shape.hidden
        self.width, self.out = both, shape.decoder
        self.history = shape.history
        self.embed_tokens = nn.Embedding(config.vocab_size, shape.embedding, config.pad_token_id)

        def reader(size: int) -> nn.GRU:
            return nn.GRU(size, shape.hidden, batch_first=True, bidirectional=True)

        self.context, self.knowledge = reader(shape.embedding), reader(shape.embedding)
        self.compare = reader(both)
        self.difference = nn.Linear(2 * both, both)
        self.query = nn.Linear(both, both, bias=False)
        self.key = nn.Linear(2 * both, both, bias=False)
        self.value = nn.Linear(both, 1, bias=False)
        self.begin = nn.Linear(2 * both, shape.decoder)
        self.decoder = nn.GRU(shape.embedding + both, shape.decoder, batch_first=True)
        self.copy = nn.Linear(both, shape.decoder)
        self.drop = nn.Dropout(shape.dropout)

    def encode(self, ids: Tensor, mask: Tensor, sentences: Tensor, before: Tensor) -> Encoded:
        """Read everything and score the sentences.

        Args:
            ids, mask: `[A, T]` the context.
            sentences: `[A, C, L]` to select from, padded; the first stands for none of them.
            before: `[A, M, L]` what earlier replies were written from, the latest first; padding where fewer.
        """
        states, final = run(self.context, self._embed(ids), mask)
        context = final[:, -1]
        read, vectors = self._read(sentences)
        there = (sentences != self.pad).any(dim=-1)
        scores = torch.einsum("ad,acd->ac", context, vectors)
        scores = scores + self._differences(vectors, there, before)
        return Encoded(
            last_hidden_state=states,
            attention_mask=mask,
            summary=context[:, None],
            scores=scores.masked_fill(~there, torch.finfo(scores.dtype).min),
            sentence_ids=sentences,
            sentence_states=read,
            sentence_vectors=vectors,
        )

    def select(self, encoded: Encoded, chosen: Tensor) -> Encoded:
        """The same with one sentence of each row, by its number `[A]`."""
        assert encoded.sentence_ids is not None
        assert encoded.sentence_states is not None
        assert encoded.sentence_vectors is not None
        rows = torch.arange(len(chosen), device=chosen.device)
        return Encoded(
            **{
                **encoded,
                "sentence_ids": encoded.sentence_ids[rows, chosen],
                "sentence_states": encoded.sentence_states[rows, chosen],
                "sentence_vectors": encoded.sentence_vectors[rows, chosen],
            }
        )

    def decode(self, ids: Tensor, encoded: Encoded, cache: Recurrence | None) -> Tensor:
        """States `[A, U, d]` after each token, with a cache of the new ones; `encoded` of `select`."""
        assert encoded.sentence_vectors is not None
        assert encoded.summary is not None
        if cache is None or cache.state is None:
            state = self.begin(torch.cat([encoded.summary[:, 0], encoded.sentence_vectors], dim=-1))
        else:
            state = cache.state
        told = encoded.sentence_vectors[:, None].expand(-1, ids.shape[1], -1)
        states, final = self.decoder(torch.cat([self._embed(ids), told], dim=-1), state[None].contiguous())
        if cache is not None:
            cache.store(final[0], ids.shape[1])
        found: Tensor = self.drop(states)
        return found

    def with_copies(self, scores: Tensor, states: Tensor, encoded: Encoded) -> Tensor:
        """Scores `[A, U, V]` of the vocabulary with those of the sentence's tokens: one softmax over both."""
        assert encoded.sentence_ids is not None
        assert encoded.sentence_states is not None
        tokens = encoded.sentence_ids
        copies = torch.einsum("aud,ald->aul", states, torch.tanh(self.copy(encoded.sentence_states)))
        copies = copies.masked_fill((tokens == self.pad)[:, None], torch.finfo(copies.dtype).min)
        top = torch.maximum(scores.amax(dim=-1), copies.amax(dim=-1)).detach()[..., None]
        places = tokens[:, None].expand_as(copies)
        shares = (scores - top).exp().scatter_add(2, places, (copies - top).exp())
        return shares.clamp(min=_LEAST).log()

    def empty_cache(self) -> Recurrence:
        return Recurrence()

    def _embed(self, ids: Tensor) -> Tensor:
        found: Tensor = self.drop(self.embed_tokens(ids))
        return found

    def _read(self, sentences: Tensor) -> tuple[Tensor, Tensor]:
        """States `[A, n, L, d]` and a vector each `[A, n, d]` of sentences `[A, n, L]`."""
        flat = sentences.flatten(0, 1)
        states, final = run(self.knowledge, self._embed(flat), (flat != self.pad).long())
        return states.unflatten(0, sentences.shape[:2]), final[:, -1].unflatten(0, sentences.shape[:2])

    def _differences(self, vectors: Tensor, there: Tensor, before: Tensor) -> Tensor:
        """How each sentence stands to those selected before, `[A, C]`; 0 where nothing was."""
        known = (before != self.pad).any(dim=-1)
        compared, _ = run(self.compare, vectors, there.long())
        _, earlier = self._read(before)
        weights = torch.tensor(self.history, device=vectors.device, dtype=vectors.dtype) * known
        pairs = earlier[:, :, None], compared[:, None]
        each = torch.tanh(self.difference(torch.cat([pairs[0] - pairs[1], pairs[0] * pairs[1]], dim=-1)))
        mixed = (each * weights[:, :, None, None]).sum(dim=1)
        found = self.value(torch.tanh(self.query(mixed) + self.key(torch.cat([compared, mixed], dim=-1))))
        return torch.as_tensor(found[..., 0] * known.any(dim=1, keepdim=True))
