"""A dialogue as tokens in the paper's form: persona first, then turns with speaker marks, ended by `</s>`.

    <s> persona sentence ... </s> 1 how are you ? </s> 2 fine , and you ? </s> 1 great ! </s>

1 is the mark of the other party and 2 of the one who answers: BART's spare tokens where the tokenizer has
them, else the plain-text marks of `finetune.text`. The reply is `<s> words </s>`, without a mark.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from finetune.dialogue.dialogue import Dialogue
from finetune.text import OTHER, SELF, DialogueText

SPARE = ("madeupword0001", "madeupword0002")
"""Of the other party, of the one who answers; in BART's vocabulary, where no text uses them."""


class Layout:
    """Contexts and replies as token ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.text = DialogueText(tokenizer)
        vocabulary = tokenizer.get_vocab()
        self.marks: tuple[tuple[int, ...], tuple[int, ...]] = (
            ((vocabulary[SPARE[0]],), (vocabulary[SPARE[1]],))
            if all(mark in vocabulary for mark in SPARE)
            else (self.text.ids(OTHER), self.text.ids(SELF))
        )

    def context(self, dialogue: Dialogue, turn: int, persona: bool, limit: int) -> list[int]:
        """All before `turn` as its speaker sees it, in at most `limit` tokens.

        What does not fit is cut whole turns at a time from the front; of a last turn that is too long alone,
        its beginning. The persona stays, in at most half the room.
        """
        text, speaker = self.text, dialogue.turns[turn].speaker
        opening = [text.bos]
        if persona and speaker < len(dialogue.personas) and dialogue.personas[speaker]:
            for number, sentence in enumerate(dialogue.personas[speaker]):
                opening += text.ids(f" {sentence}" if number else sentence)
            opening = [*opening[: limit // 2], text.eos]
        turns = [
            (*self.marks[earlier.speaker == speaker], *text.ids(earlier.text), text.eos)
            for earlier in dialogue.turns[:turn]
        ]
        room, kept = limit - len(opening), 0
        while kept < len(turns) and sum(map(len, turns[len(turns) - kept - 1 :])) <= room:
            kept += 1
        if turns and not kept:
            return [*opening, *turns[-1][len(turns[-1]) - room :]]
        return [*opening, *(token for said in turns[len(turns) - kept :] for token in said)]

    def reply(self, words: str, limit: int) -> list[int]:
        """`<s> words </s>`, the words cut where they do not fit."""
        return [self.text.bos, *self.text.ids(words)[: limit - 2], self.text.eos]

    def clean(self, ids: list[int]) -> str:
        """A generated reply without special tokens and marks."""
        found: str = self.text.tokenizer.decode(ids, skip_special_tokens=True)
        for mark in SPARE:
            found = found.replace(mark, "")
        return found.strip()
