"""A target turn as the sequences of its sources: persona, history, reply; or as one sequence.

Two styles, told apart by the tokenizer. A GPT-2's gets the paper's nine special tokens; contexts are bare
words, the reply is `<bos> words <eos>`. Any other keeps its own; contexts stand in `<s> </s>`, as in
pretraining, and the reply is `</s> <s> words </s>`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from finetune.batch import Example
from finetune.dialogue.dialogue import Dialogue
from finetune.families.fusion.configuration import INFO, TALKER1, TALKER2
from finetune.prediction import about, persona
from finetune.recipe import DialogueSection
from finetune.text import DialogueText
from pretrain.errors import UserError
from pretrain.model.loss import IGNORED

ROLES = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
MARKS = (*("<info_bos>", "<info_eos>", "<talker1_bos>", "<talker1_eos>", "<talker2_bos>", "<talker2_eos>"),)
_OPENINGS = ("<info_bos>", "<talker1_bos>", "<talker2_bos>")
_CLOSINGS = ("<info_eos>", "<talker1_eos>", "<talker2_eos>")
_LAST_STOP = re.compile(r"(?<=\w)\.$")


class FusionLayout:
    """Examples of the fields `input_ids` (history), `attention_mask`, `types`, `labels` and, where sources
    are apart, `persona_ids`, `persona_mask`. Empty persona or history: the row lacks that source."""

    def __init__(
        self,
        data: DialogueSection,
        tokenizer: PreTrainedTokenizerBase,
        *,
        authors_tokens: bool,
        single: bool,
        ends: bool,
        types_from_vocabulary: bool,
        max_history: int,
    ) -> None:
        """Special tokens that are wanted and missing are added to `tokenizer`.

        Args:
            authors_tokens: the paper's special tokens for any tokenizer.
            single: one sequence instead of sources.
            ends: marks around the persona and each utterance.
            max_history: utterances that are kept.
        """
        self.data, self.single, self.ends, self.max_history = data, single, ends, max_history
        if authors_tokens or tokenizer.bos_token_id == tokenizer.eos_token_id:
            tokenizer.add_special_tokens(ROLES)
        self.is_bare = tokenizer.bos_token == ROLES["bos_token"]
        """Whether contexts are bare words: the style of the paper."""
        if self.is_bare or single or ends or types_from_vocabulary:
            tokenizer.add_tokens(list(MARKS), special_tokens=True)
        self.text = DialogueText(tokenizer)
        vocabulary = tokenizer.get_vocab()
        self.marks: Mapping[str, int] = {mark: vocabulary[mark] for mark in MARKS if mark in vocabulary}
        special = {*tokenizer.all_special_ids, *self.marks.values()}
        self.special = tuple(sorted(special | {vocabulary.get("<|endoftext|>", self.text.eos)}))
        self.prefix = (self.text.bos,) if self.is_bare else (self.text.eos, self.text.bos)
        self.pads: dict[str, int] = {
            "input_ids": self.text.pad,
            "attention_mask": 0,
            "types": INFO,
            "labels": IGNORED,
        }
        if not single:
            self.pads |= {"persona_ids": self.text.pad, "persona_mask": 0}

    @property
    def type_tokens(self) -> tuple[int, ...]:
        """Of the four token types, the words whose rows the released code takes."""
        return (*(self.marks[mark] for mark in _OPENINGS), self.text.bos)

    def check(self, body: Any, place: str) -> None:
        """Refuse a body that this tokenizer is not made for, or whose attention the model does not have.

        Args:
            body: its configuration.
            place: where it is, for people.

        Raises:
            UserError: says what does not fit.
        """
        gpt2 = body.model_type == "gpt2"
        if gpt2 and not self.is_bare:
            raise UserError(
                "a GPT-2 reads the paper's special tokens, this tokenizer has others",
                where=place,
                mend="model.special_tokens=authors",
            )
        if not gpt2 and self.is_bare:
            raise UserError(
                "this tokenizer has a GPT-2's marks, the backbone has a BART's",
                where=place,
                mend="give the backbone's own tokenizer, and model.special_tokens=auto",
            )
        ours = {*ROLES.values(), *MARKS}
        vocabulary = self.text.tokenizer.get_vocab().items()
        beyond = [word for word, number in vocabulary if number >= body.vocab_size and word not in ours]
        if beyond or (not gpt2 and body.eos_token_id != self.text.eos):
            raise UserError(
                f"the tokenizer ({len(beyond)} words more, end {self.text.eos}) is not that of the model "
                f"({body.vocab_size} words, end {body.eos_token_id})",
                where=place,
                mend="give the model's own tokenizer",
            )
        if gpt2 and (body.scale_attn_by_inverse_layer_idx or not body.scale_attn_weights):
            raise UserError(
                "this GPT-2 scales its attention in a way of its own", where=place, mend="give another"
            )

    def example(self, dialogue: Dialogue, turn: int) -> Example:
        """One target turn with the sources it is answered from."""
        ids, kinds = self.sequence(dialogue, turn) if self.single else self.history(dialogue, turn)
        fields: dict[str, Sequence[int]] = {
            "input_ids": ids,
            "attention_mask": [1] * len(ids),
            "types": kinds,
            "labels": self.reply(dialogue.turns[turn].text),
        }
        if not self.single:
            known = self.persona(dialogue, turn)
            fields |= {"persona_ids": known, "persona_mask": [1] * len(known)}
        return Example(fields, about(dialogue, turn))

    def reply(self, words: str) -> list[int]:
        """What the decoder writes: the words and the end."""
        return [*self.text.ids(words)[: self.data.target_tokens - 1], self.text.eos]

    def persona(self, dialogue: Dialogue, turn: int) -> list[int]:
        """The speaker's sentences end to end, their first tokens."""
        return self._wrapped(self._persona(dialogue, turn)[: self._room])

    def history(self, dialogue: Dialogue, turn: int) -> tuple[list[int], list[int]]:
        """The latest utterances end to end, their last tokens; and the type of each."""
        ids: list[int] = []
        kinds: list[int] = []
        for index in range(max(turn - self.max_history, 0), turn):
            kind = self._talker(dialogue, index, turn)
            said = self._within(self.text.ids(dialogue.turns[index].text), kind)
            ids += said
            kinds += [kind] * len(said)
        room = self._room
        ids, kinds = ids[max(len(ids) - room, 0) :], kinds[max(len(kinds) - room, 0) :]
        if not ids or self.is_bare:
            return ids, kinds
        return self._wrapped(ids), [kinds[0], *kinds, kinds[-1]]

    def sequence(self, dialogue: Dialogue, turn: int) -> tuple[list[int], list[int]]:
        """Persona and history in one, each utterance after the mark of its speaker."""
        ids = self._persona(dialogue, turn)
        kinds = [TALKER1] * len(ids)
        for index in range(max(turn - self.max_history, 0), turn):
            kind = self._talker(dialogue, index, turn)
            said = [self.marks[_OPENINGS[kind]], *self.text.ids(dialogue.turns[index].text)]
            ids += said
            kinds += [kind] * len(said)
        room = self.data.context_tokens - (1 if self.is_bare else 2)
        ids, kinds = ids[max(len(ids) - room, 0) :], kinds[max(len(kinds) - room, 0) :]
        last = [] if self.is_bare else [self.text.eos]
        return [self.text.bos, *ids, *last], [TALKER1, *kinds, *(kinds[-1:] or [TALKER1])[: len(last)]]

    @property
    def _room(self) -> int:
        return self.data.context_tokens - (0 if self.is_bare else 2)

    def _persona(self, dialogue: Dialogue, turn: int) -> list[int]:
        if not self.data.persona:
            return []
        sentences = persona(dialogue, dialogue.turns[turn].speaker)
        # Utterances of ConvAI2 have spaces before their punctuation, persona sentences have none.
        ids = [token for one in sentences for token in self.text.ids(_LAST_STOP.sub(" .", one))]
        return self._within(ids, INFO) if ids and not self.single else ids

    def _talker(self, dialogue: Dialogue, index: int, turn: int) -> int:
        same = dialogue.turns[index].speaker == dialogue.turns[turn].speaker
        return TALKER1 if same else TALKER2

    def _within(self, ids: Sequence[int], kind: int) -> list[int]:
        if not self.ends:
            return list(ids)
        return [self.marks[_OPENINGS[kind]], *ids, self.marks[_CLOSINGS[kind]]]

    def _wrapped(self, ids: list[int]) -> list[int]:
        return ids if self.is_bare or not ids else [self.text.bos, *ids, self.text.eos]
