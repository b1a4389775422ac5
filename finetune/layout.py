"""A target turn as source and target of a sequence-to-sequence model, as in the MemBART paper.

The source is the end of the whole history, so that neighbouring inputs overlap; the target is the turn with
its role mark and end. Layout of the authors' agent.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from finetune.batch import Example, TurnBatch
from finetune.dialogue.dialogue import Dialogue
from finetune.metrics.prediction import Prediction
from finetune.prediction import about
from finetune.recipe import DialogueSection
from finetune.text import SELF, DialogueText, Place
from pretrain.model.loss import IGNORED


class ReplyLayout:
    """Examples of the fields `input_ids`, `attention_mask`, `decoder_input_ids`, `labels` and `content`.

    `content` is 1 on the labels between role mark and end.
    """

    def __init__(self, data: DialogueSection, tokenizer: PreTrainedTokenizerBase) -> None:
        self.data, self.text = data, DialogueText(tokenizer)
        self._documents = lru_cache(maxsize=64)(self._tokenize)
        self.pads: Mapping[str, int] = {
            "input_ids": self.text.pad,
            "attention_mask": 0,
            "decoder_input_ids": self.text.pad,
            "labels": IGNORED,
            "content": 0,
        }

    def targets(self, dialogue: Dialogue, speaker: int) -> list[int]:
        """Every turn of the speaker; of a text for language modelling, its blocks from the second on."""
        if len(dialogue.turns) == 1:
            return list(range(1, -(-len(self._tokens(dialogue)) // (self.data.context_tokens - 2))))
        return [index for index, turn in enumerate(dialogue.turns) if turn.speaker == speaker]

    def example(self, dialogue: Dialogue, turn: int) -> Example:
        """A target turn, or a block of a text."""
        if len(dialogue.turns) == 1:
            return self._block(dialogue, turn)
        text, data = self.text, self.data
        source = text.source(text.history(dialogue, turn, data.persona), data.context_tokens)
        target = list(text.reply(dialogue.turns[turn].text))[: data.target_tokens]
        mark, body = len(text.ids(SELF)), len(text.ids(SELF)) + len(text.ids(dialogue.turns[turn].text))
        return Example(
            {
                "input_ids": source,
                "attention_mask": [1] * len(source),
                # The decoder starts from <s>, not from </s> as in denoising, and writes no second <s>.
                "decoder_input_ids": [text.bos, *target[:-1]],
                "labels": target,
                "content": [int(mark <= place < body) for place in range(len(target))],
            },
            about(dialogue, turn),
        )

    def places(self, dialogue: Dialogue, turn: int) -> list[Place]:
        """Where each token of the example's `input_ids` was said; not for a text's blocks."""
        found = self.text.places(dialogue, turn, self.data.persona)
        return self.text.source_places(found, self.data.context_tokens)

    def _block(self, dialogue: Dialogue, number: int) -> Example:
        """The encoder reads a block, the decoder writes the one after it; every token is written once."""
        text, body, tokens = self.text, self.data.context_tokens - 2, self._tokens(dialogue)
        source = [text.bos, *tokens[(number - 1) * body : number * body], text.eos]
        target = list(tokens[number * body : (number + 1) * body])
        return Example(
            {
                "input_ids": source,
                "attention_mask": [1] * len(source),
                "decoder_input_ids": [text.bos, *target[:-1]],
                "labels": target,
                "content": [1] * len(target),
            },
            Prediction(dialogue.id, number, (), (), (text.tokenizer.decode(target),)),
        )

    def _tokens(self, dialogue: Dialogue) -> tuple[int, ...]:
        return self._documents(dialogue.turns[0].text)

    def _tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(self.text.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def count_targets(batch: TurnBatch, per_row: bool = False) -> Tensor:
    """Target tokens of a batch, 0-d or `[A]`."""
    found = batch.labels != IGNORED
    return found.sum(dim=1) if per_row else found.sum()


def content_labels(batch: TurnBatch) -> Tensor:
    """The labels with role marks and ends ignored."""
    return batch.labels.masked_fill(batch.content == 0, IGNORED)


def content_figures(nll: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What `content_summary` sums: cross-entropy `[A]` of `content_labels`, and how many they are."""
    return {"content_nll": nll, "content_tokens": (labels != IGNORED).sum(dim=1)}


def content_summary(gathered: Mapping[str, Tensor]) -> dict[str, float]:
    """Perplexity of the words alone: role marks and ends are nearly free and flatter the plain one."""
    mean = gathered["content_nll"].double().sum() / gathered["content_tokens"].sum().clamp(min=1)
    return {"perplexity_content": float(torch.exp(mean))}
