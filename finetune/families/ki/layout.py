"""Examples: the plain-text form of `finetune.layout`, items of its tokens, sentences to select from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import groupby

import numpy as np
from transformers import PreTrainedTokenizerBase

from finetune.batch import Example
from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.families.ki.alignment import NONE, Policy, token_items
from finetune.families.ki.configuration import DiffksShape
from finetune.knowledge.annotations import Annotations, utterance_name
from finetune.layout import ReplyLayout
from finetune.recipe import DialogueSection
from pretrain.errors import UserError

ITEMS = "knowledge_ids"
"""Field of an example: for each source token a row of the keys, -1 for none."""


@dataclass(frozen=True)
class _Utterance:
    """A turn; its name stands for its text and for what was read before it."""

    name: int
    source: int
    """Identity of the annotations."""
    dialogue: Dialogue = field(compare=False)
    turn: int = field(compare=False)
    annotations: Annotations = field(compare=False)


class KiLayout:
    """Fields of `ReplyLayout`; `ITEMS` where `annotations` are set; and for DiffKS

    - `sentence_ids`: candidates end to end, each padded to `sentence_tokens`; the first stands for none of
      them and is the end token alone;
    - `before_ids`: what the speaker's earlier replies were written from, the latest first, in the same form;
    - `chosen`: number of the candidate that the reply was written from, 0 where nobody knows.
    """

    def __init__(
        self,
        data: DialogueSection,
        tokenizer: PreTrainedTokenizerBase,
        policy: Policy,
        sentences: DiffksShape | None,
    ) -> None:
        self.plain = ReplyLayout(data, tokenizer)
        self.text, self.policy, self.sentences = self.plain.text, policy, sentences
        self.annotations: Annotations | None = None
        self._items = lru_cache(maxsize=1 << 14)(self._items_of)
        self.numbers: Mapping[str, int | float] = {} if sentences is None else {"chosen": 0}

    @property
    def pads(self) -> Mapping[str, int]:
        """Token sequences of an example; those of training only while there are annotations."""
        found = dict(self.plain.pads)
        if self.sentences is not None:
            found |= {"sentence_ids": self.text.pad, "before_ids": self.text.pad}
        if self.annotations is not None:
            found[ITEMS] = NONE
        return found

    def example(self, dialogue: Dialogue, turn: int) -> Example:
        """One reply; see the class.

        Raises:
            UserError: a turn in its context was not annotated, or the dialogue is a text.
        """
        found = self.plain.example(dialogue, turn)
        more: dict[str, list[int] | int] = {}
        if self.annotations is not None:
            more[ITEMS] = self.items(self.annotations, dialogue, turn)
        if self.sentences is not None:
            more |= self._candidates(self.sentences, dialogue, turn)
        return replace(found, fields={**found.fields, **more})

    def items(self, annotations: Annotations, dialogue: Dialogue, turn: int) -> list[int]:
        """The item of each token of `input_ids`."""
        if len(dialogue.turns) == 1:
            raise UserError(
                "a text is no dialogue: it has no utterances to internalize",
                where=f"dialogue {dialogue.id}",
                mend="leave model.knowledge out",
            )
        found: list[int] = []
        for said, places in groupby(self.plain.places(dialogue, turn), key=lambda place: place.turn):
            number = len(list(places))
            if said < 0:
                found += [NONE] * number
                continue
            name = utterance_name(dialogue, said, annotations.manifest.context_turns)
            # Of a turn that does not fit whole, the end is there.
            found += self._items(_Utterance(name, id(annotations), dialogue, said, annotations))[-number:]
        return found

    def _items_of(self, said: _Utterance) -> list[int]:
        """The item of each token of a turn."""
        text = said.dialogue.turns[said.turn].text
        known = said.annotations.of(said.dialogue, said.turn)
        found: list[int] = token_items(text, self.text.pieces(text).spans, known, self.policy).tolist()
        return found

    def _candidates(self, shape: DiffksShape, dialogue: Dialogue, turn: int) -> dict[str, list[int] | int]:
        target = dialogue.turns[turn]
        room = shape.sentences - 1
        rows = [self._nothing(shape), *(self._sentence(shape, one) for one in target.knowledge[:room])]
        chosen = 0 if target.chosen is None or target.chosen >= room else target.chosen + 1
        earlier = [
            one for one in reversed(dialogue.turns[:turn]) if one.speaker == target.speaker and one.knowledge
        ]
        before = [self._told(shape, one) for one in earlier[: len(shape.history)]]
        before += [[self.text.pad] * shape.sentence_tokens] * (len(shape.history) - len(before))
        return {
            "sentence_ids": [token for row in rows for token in row],
            "before_ids": [token for row in before for token in row],
            "chosen": chosen,
        }

    def _told(self, shape: DiffksShape, turn: Turn) -> list[int]:
        return (
            self._nothing(shape)
            if turn.chosen is None
            else self._sentence(shape, turn.knowledge[turn.chosen])
        )

    def _sentence(self, shape: DiffksShape, sentence: str) -> list[int]:
        ids = list(self.text.ids(sentence) or (self.text.eos,))[: shape.sentence_tokens]
        return ids + [self.text.pad] * (shape.sentence_tokens - len(ids))

    def _nothing(self, shape: DiffksShape) -> list[int]:
        return [self.text.eos] + [self.text.pad] * (shape.sentence_tokens - 1)


def hashes_of(annotations: Annotations, items: np.ndarray) -> np.ndarray:
    """Hash of each item's sentence, shaped as `items`; of no meaning where there is none."""
    return np.asarray(annotations.hashes)[np.maximum(items, 0)]
