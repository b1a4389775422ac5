"""Replies word by word: contexts are encoded and projected once, what was written is cached."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from finetune.batch import TurnBatch
from finetune.families.fusion.modeling import FusionModel
from finetune.families.fusion.stack import Context, LayerCache


class Writer:
    """Log-probabilities of the next token of many begun replies; implements `search.Scorer`."""

    def __init__(self, model: FusionModel, contexts: Sequence[Context], batch: TurnBatch) -> None:
        self.model, self.contexts = model, list(contexts)
        self.cache = [LayerCache() for _ in range(model.shape.layers)]
        prefix = torch.tensor(model.config.reply_prefix, device=batch.labels.device)
        self._examples = torch.arange(len(batch.labels), device=prefix.device)
        self._ids = prefix.expand(len(batch.labels), -1)
        self._kinds = torch.full_like(self._ids, model.config.reply_type)
        real = torch.ones_like(self._ids)
        if not self.contexts:  # one sequence: the decoder reads it all
            self._ids = torch.cat([batch.input_ids, self._ids], dim=1)
            self._kinds = torch.cat([batch.types, self._kinds], dim=1)
            real = torch.cat([batch.attention_mask, real], dim=1)
        self.seen = real

    def start(self) -> Tensor:
        """Of the first token, `[A, V]` float32 log-probabilities."""
        places = (self.seen.cumsum(dim=1) - 1).clamp(min=0)
        states = self.model.decode(self._ids, self._kinds, places, self.seen, self.contexts, self.cache)
        # Their keys and values are in the cache now.
        self.contexts = [Context(one.states[:, :0], one.mask, one.present) for one in self.contexts]
        return self._scores(states)

    def step(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Of the token after `tokens` `[N]`, with which the replies `rows` `[N]` go on, `[N, V]`."""
        examples = self._examples[rows]
        moved = not torch.equal(examples, self._examples)
        for layer in self.cache:
            layer.reorder(rows, moved)
        if moved:  # beams of one example change places at every step; what they attend to stays
            self.contexts = [one.rows(rows) for one in self.contexts]
            self._examples = examples
        self.seen = self.seen[rows]
        places = self.seen.sum(dim=1, keepdim=True)
        self.seen = torch.nn.functional.pad(self.seen, (0, 1), value=1)
        kinds = torch.full_like(tokens, self.model.config.reply_type)
        states = self.model.decode(
            tokens[:, None], kinds[:, None], places, self.seen, self.contexts, self.cache
        )
        return self._scores(states)

    def _scores(self, states: Tensor) -> Tensor:
        return torch.log_softmax(self.model.logits(states[:, -1]).float(), dim=-1)
