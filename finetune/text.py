"""A dialogue as tokens in the plain-text form of the MemBART paper (its section 4.3 and the authors' code).

    <conversation starts>\\n\\nyour persona: ...\\n\\nA:hello\\n\\nB:hi there\\n\\n

A is the other party, B the one who answers; each turn is tokenized by itself, and the history is their tokens
end to end.
"""

from __future__ import annotations

from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from finetune.dialogue.dialogue import Dialogue

PROMPT, END = "<conversation starts>", "\n\n"
OTHER, SELF = "A:", "B:"


class DialogueText:
    """Tokenizes turns, histories and replies with one tokenizer; remembers recent turns."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.bos: int = _required(tokenizer.bos_token_id, tokenizer.eos_token_id)
        self.eos: int = _required(tokenizer.eos_token_id, tokenizer.bos_token_id)
        self.pad: int = _required(tokenizer.pad_token_id, tokenizer.eos_token_id)
        self.ids = lru_cache(maxsize=1 << 14)(self._ids)

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @property
    def ends(self) -> list[int]:
        """Tokens that end a reply: the tokenizer's own, and the blank line where it is one token."""
        blank = self.ids(END)
        return [self.eos, *(blank if len(blank) == 1 else ())]

    def turn(self, dialogue: Dialogue, index: int, speaker: int) -> tuple[int, ...]:
        """Turn `index` as it stands in the history of `speaker`."""
        turn = dialogue.turns[index]
        return self.reply(turn.text, SELF if turn.speaker == speaker else OTHER)

    def reply(self, text: str, mark: str = SELF) -> tuple[int, ...]:
        """A turn with its mark and end."""
        return (*self.ids(mark), *self.ids(text), *self.ids(END))

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

    def source(self, history: list[int], limit: int) -> list[int]:
        """`<s>`, the last tokens of the history, `</s>`: at most `limit` tokens in all."""
        return [self.bos, *history[max(len(history) - (limit - 2), 0) :], self.eos]

    def clean(self, ids: list[int]) -> str:
        """A generated reply without mark, end and special tokens."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        text = text.split(END)[0].strip()
        for mark in (SELF, OTHER):
            text = text.removeprefix(mark)
        return text.strip()


def _required(token: int | None, instead: int | None) -> int:
    found = token if token is not None else instead
    assert found is not None, "a tokenizer has at least an end token"
    return int(found)
