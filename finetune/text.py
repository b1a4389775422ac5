"""A dialogue as tokens in the plain-text form of the MemBART paper (its section 4.3 and the authors' code).

    <conversation starts>\\n\\nyour persona: ...\\n\\nA:hello\\n\\nB:hi there\\n\\n

A is the other party, B the one who answers; each turn is tokenized by itself, and the history is their tokens
end to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeVar

from transformers import PreTrainedTokenizerBase

from finetune.dialogue.dialogue import Dialogue
from pretrain.errors import UserError

Item = TypeVar("Item")

PROMPT, END = "<conversation starts>", "\n\n"
OTHER, SELF = "A:", "B:"


@dataclass(frozen=True)
class Pieces:
    """A text as tokens."""

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    """Characters of the text that each token stands for; (0, 0) where the tokenizer cannot tell."""


class Place(NamedTuple):
    """Where a token of a source was said."""

    turn: int
    """Number of the turn; -1 for a mark, the prompt, a persona or a special token."""
    start: int
    end: int
    """Character offsets in the turn's text."""


NOWHERE = Place(-1, 0, 0)


class DialogueText:
    """Tokenizes turns, histories and replies with one tokenizer; remembers recent turns."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises:
        UserError: the tokenizer has no special tokens.
        """
        self.tokenizer = tokenizer
        opens, closes = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.bos: int = _first(opens, tokenizer.cls_token_id, closes)
        self.eos: int = _first(closes, tokenizer.sep_token_id, opens)
        self.pad: int = _first(tokenizer.pad_token_id, self.eos)
        self.pieces = lru_cache(maxsize=1 << 14)(self._pieces)
        # A tokenizer that drops white space writes no blank line.
        self.end = self.ids(END) or (self.eos,)
        written = [tokenizer.decode(list(self.ids(mark))) for mark in (SELF, OTHER)]
        self._marks = tuple(dict.fromkeys((SELF, OTHER, *written)))

    def ids(self, text: str) -> tuple[int, ...]:
        """A text's tokens."""
        return self.pieces(text).ids

    def _pieces(self, text: str) -> Pieces:
        told = bool(self.tokenizer.is_fast)
        made = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=told)
        ids = tuple(made["input_ids"])
        spans = tuple((a, b) for a, b in made["offset_mapping"]) if told else ((0, 0),) * len(ids)
        return Pieces(ids, spans)

    @property
    def ends(self) -> list[int]:
        """Tokens that end a reply: the tokenizer's own, and the one that the end of a turn begins with.

        Where a line break is a token (BART's), the blank line is two and a reply is over with the first:
        turns have no lines.
        """
        first = self.end[:1]
        is_end = len(self.end) == 1 or "\n" in self.tokenizer.decode(list(first))
        return list(dict.fromkeys([self.eos, *(first if is_end else ())]))

    def turn(self, dialogue: Dialogue, index: int, speaker: int) -> tuple[int, ...]:
        """Turn `index` as it stands in the history of `speaker`."""
        turn = dialogue.turns[index]
        return self.reply(turn.text, SELF if turn.speaker == speaker else OTHER)

    def reply(self, text: str, mark: str = SELF) -> tuple[int, ...]:
        """A turn with its mark and end."""
        return (*self.ids(mark), *self.ids(text), *self.end)

    def opening(self, dialogue: Dialogue, speaker: int, persona: bool) -> list[int]:
        """What stands before the first turn: the prompt and, if wanted and known, the speaker's persona."""
        found = list(self.ids(PROMPT + END))
        if persona and speaker < len(dialogue.personas):
            for sentence in dialogue.personas[speaker]:
                found += self.ids(f"your persona: {sentence}{END}")
        return found

    def history(self, dialogue: Dialogue, turn: int, persona: bool) -> list[int]:
        """All that came before turn `turn`, seen by its speaker."""
        speaker = dialogue.turns[turn].speaker
        found = self.opening(dialogue, speaker, persona)
        for index in range(turn):
            found += self.turn(dialogue, index, speaker)
        return found

    def places(self, dialogue: Dialogue, turn: int, persona: bool) -> list[Place]:
        """Where each token of `history` was said."""
        speaker = dialogue.turns[turn].speaker
        found = [NOWHERE] * len(self.opening(dialogue, speaker, persona))
        for index in range(turn):
            said = dialogue.turns[index]
            found += [NOWHERE] * len(self.ids(SELF if said.speaker == speaker else OTHER))
            found += [Place(index, start, end) for start, end in self.pieces(said.text).spans]
            found += [NOWHERE] * len(self.end)
        return found

    def source(self, history: list[int], limit: int) -> list[int]:
        """`<s>`, the last tokens of the history, `</s>`: at most `limit` tokens in all."""
        return [self.bos, *_last(history, limit - 2), self.eos]

    def source_places(self, places: list[Place], limit: int) -> list[Place]:
        """`places` cut as `source` cuts the history, special tokens included."""
        return [NOWHERE, *_last(places, limit - 2), NOWHERE]

    def decoded(self, ids: Sequence[int]) -> str:
        """Generated tokens as text, without special ones and without space around."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.strip()

    def clean(self, ids: Sequence[int]) -> str:
        """A generated reply without mark, end and special tokens."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        text = text.split(END)[0].strip()
        for mark in self._marks:
            text = text.removeprefix(mark)
        return text.strip()


def _last(items: list[Item], number: int) -> list[Item]:
    return items[max(len(items) - number, 0) :]


def _first(*tokens: int | None) -> int:
    found = next((token for token in tokens if token is not None), None)
    if found is None:
        raise UserError(
            "this tokenizer has no tokens for begin and end",
            where="tokenizer",
            mend="a folder with its tokenizer_config.json",
        )
    return int(found)
