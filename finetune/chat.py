"""A conversation with a fine-tuned model that keeps its memory from turn to turn."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from finetune.batch import TurnBatch, collate
from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.fitted import Fitted

PERSON, MODEL = 0, 1


class Chat:
    """One conversation; the history grows, the memory flows."""

    def __init__(self, fitted: Fitted, persona: tuple[str, ...] = (), seed: int = 1) -> None:
        """`persona` is the model's own."""
        self.fitted = fitted
        self._how = fitted.recipe.generation.model_copy(update={"seed": seed})
        self._personas = ((), persona)
        self.memory: Tensor
        self.turns: list[Turn]
        self.reset()

    def reset(self) -> None:
        """Forget everything that was said."""
        self.turns, self.memory = [], self.fitted.memory(1)

    def say(self, text: str) -> list[str]:
        """Tell the model something; its replies, best first, of which the first joins the history."""
        self.turns.append(Turn(PERSON, text))
        replies = self.answer()
        self.turns.append(Turn(MODEL, replies[0] if replies else ""))
        return replies

    def answer(self) -> list[str]:
        """What the model says next; the memory moves on, the history does not."""
        batch = self.batch().to(self.fitted.model.device)
        key = ("chat", len(self.turns))
        replies = self.fitted.family.generate(self.fitted.model, batch, self.memory, self._how, key)
        if self.fitted.recipe.data.memory == "carry":
            self.memory = replies.memory
        return replies.texts[0]

    def batch(self) -> TurnBatch:
        """The turn that the model is about to answer."""
        family = self.fitted.family
        dialogue = Dialogue(id="chat", turns=(*self.turns, Turn(MODEL, "")), personas=self._personas)
        example = family.example(dialogue, len(self.turns))
        first = all(turn.speaker == PERSON for turn in self.turns)
        reset = int(first or self.fitted.recipe.data.memory != "carry")
        return collate([example], [reset], family.pads, family.numbers)


def continue_dialogue(fitted: Fitted, dialogue: Dialogue, seed: int = 1) -> list[str]:
    """Replies to the end of a dialogue; every earlier turn of that role goes through the memory first."""
    last = dialogue.turns[-1]
    mine = next((turn.speaker for turn in dialogue.turns if turn.speaker != last.speaker), last.speaker + 1)
    persona = dialogue.personas[mine] if mine < len(dialogue.personas) else ()
    chat = Chat(fitted, tuple(persona), seed)
    replies: list[str] = []
    for turn in dialogue.turns:
        speaker = MODEL if turn.speaker == mine else PERSON
        if speaker == MODEL:
            chat.answer()
        chat.turns.append(dataclasses.replace(turn, speaker=speaker))
    replies = chat.answer()
    return replies
