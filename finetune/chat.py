"""A conversation with a fine-tuned model that keeps its memory from turn to turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from finetune.batch import TurnBatch, collate
from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.family import Replies
from finetune.fitted import Fitted

PERSON, MODEL = 0, 1
Held = Literal["whole", "start", "end", "none"]
"""How much of a text the model reads at its next answer: all of it, only its start or its end, nothing."""


@dataclass(frozen=True)
class Window:
    """What the model reads at its next answer; whatever else it knows is in memory."""

    turns: tuple[Held, ...]
    persona: tuple[Held, ...]


class Chat:
    """One conversation; the history grows, the memory flows."""

    def __init__(self, fitted: Fitted, persona: tuple[str, ...] = (), seed: int = 1) -> None:
        """`persona` is the model's own."""
        self.fitted = fitted
        self.how = fitted.recipe.generation.model_copy(update={"seed": seed})
        self.persona = persona
        self.memory: Tensor
        self.turns: list[Turn]
        self.reset()

    @property
    def carries(self) -> bool:
        """Whether memory flows from turn to turn."""
        return self.fitted.recipe.data.memory == "carry" and self.memory.shape[1] > 0

    def reset(self) -> None:
        """Forget everything that was said."""
        self.turns, self.memory = [], self.fitted.memory(1)

    def say(self, text: str) -> list[str]:
        """Tell the model something; its replies, best first, of which the first joins the history."""
        self.hear(text)
        try:
            replies = self.answer().texts[0]
        except BaseException:
            self.turns.pop()
            raise
        self.reply(replies[0] if replies else "")
        return replies

    def hear(self, text: str) -> None:
        """The person's turn joins the history."""
        self.turns.append(Turn(PERSON, text))

    def reply(self, text: str) -> None:
        """The model's turn joins the history."""
        self.turns.append(Turn(MODEL, text))

    def answer(self) -> Replies:
        """What the model says next, for one row; the memory moves on, the history does not."""
        replies = self._generate(self.batch(), self.memory)
        if self.fitted.recipe.data.memory == "carry":
            self.memory = replies.memory
        return replies

    def answer_afresh(self) -> Replies:
        """What it would say next if memory were reset at this turn: from the window alone. Nothing moves."""
        return self._generate(self.batch().with_resets(), self.fitted.memory(1))

    def batch(self) -> TurnBatch:
        """The turn that the model is about to answer."""
        family = self.fitted.family
        example = family.example(self._dialogue(), len(self.turns))
        first = all(turn.speaker == PERSON for turn in self.turns)
        reset = int(first or self.fitted.recipe.data.memory != "carry")
        return collate([example], [reset], family.pads, family.numbers)

    def window(self) -> Window:
        """What the next answer reads of each turn and persona sentence.

        Found by trial, so it holds for the layout of any family: the end of a text is read where one more
        word there changes what the model gets, and its start where another first letter does. Where the end
        is not read, the start too is tried with one more word: a longer text never brings in what was out.
        """
        talk, persona = self._dialogue(), self.persona
        base = self._fields(talk)

        def with_turn(at: int, text: str) -> Dialogue:
            turns = list(talk.turns)
            turns[at] = dataclasses.replace(turns[at], text=text)
            return dataclasses.replace(talk, turns=tuple(turns))

        def with_sentence(at: int, text: str) -> Dialogue:
            return dataclasses.replace(talk, personas=((), (*persona[:at], text, *persona[at + 1 :])))

        def held(text: str, changed: Callable[[str], Dialogue]) -> Held:
            if self._fields(changed(f"{text} x")) == base:
                return "none" if self._fields(changed(f"x {text}")) == base else "start"
            other = "y" if text.startswith("x") else "x"
            return "end" if self._fields(changed(other + text[1:])) == base else "whole"

        return Window(
            tuple(held(turn.text, partial(with_turn, at)) for at, turn in enumerate(self.turns)),
            tuple(held(text, partial(with_sentence, at)) for at, text in enumerate(persona)),
        )

    def _fields(self, dialogue: Dialogue) -> dict[str, object]:
        return dict(self.fitted.family.example(dialogue, len(self.turns)).fields)

    def _dialogue(self) -> Dialogue:
        # A dialogue of one turn would be a text for language modelling.
        rest = () if self.turns else (Turn(PERSON, ""),)
        return Dialogue(id="chat", turns=(*self.turns, Turn(MODEL, ""), *rest), personas=((), self.persona))

    def _generate(self, batch: TurnBatch, memory: Tensor) -> Replies:
        fitted, key = self.fitted, ("chat", len(self.turns))
        on_device = batch.to(fitted.model.device)
        return fitted.family.generate(fitted.model, on_device, memory, self.how, key)


def continue_dialogue(fitted: Fitted, dialogue: Dialogue, seed: int = 1) -> list[str]:
    """Replies to the end of a dialogue; every earlier turn of that role goes through the memory first."""
    last = dialogue.turns[-1]
    mine = next((turn.speaker for turn in dialogue.turns if turn.speaker != last.speaker), last.speaker + 1)
    persona = dialogue.personas[mine] if mine < len(dialogue.personas) else ()
    chat = Chat(fitted, tuple(persona), seed)
    for turn in dialogue.turns:
        speaker = MODEL if turn.speaker == mine else PERSON
        if speaker == MODEL:
            chat.answer()
        chat.turns.append(dataclasses.replace(turn, speaker=speaker))
    return chat.answer().texts[0]
