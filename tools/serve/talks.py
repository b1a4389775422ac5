"""The conversations of the page: each has its chat and what is known of its last reply."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from finetune.chat import MODEL, Chat, Held, Window
from finetune.fitted import Fitted
from finetune.recipe import GenerationSection
from tools.serve.watch import Attention, Seen, watching

TALKS = 16
"""Conversations kept; past that, the one that has been silent longest is forgotten."""
TURNS = 200
"""Turns of one conversation, the model's among them."""

_ORDER: tuple[Held, ...] = ("none", "start", "end", "whole")
_PLACES = {
    "window": "in the context window",
    "edge": "its beginning has left the context window",
    "edge_held": "its beginning has left the context window: only memory holds that",
    "cut": "its end does not fit the context window",
    "memory": "has left the context window: only memory holds it",
    "memory_part": "only memory holds it, and of a part that was never read nothing does",
    "lost": "has left the context window: forgotten",
    "unread": "was never read: the message after it fills the context window",
    "next": "will be read with the next message",
}


class RefusedError(Exception):
    """A request that cannot be served now, with the status code that says so."""

    def __init__(self, status: int, what: str) -> None:
        self.status = status
        super().__init__(what)


class Talk:
    """One conversation."""

    def __init__(self, fitted: Fitted, persona: tuple[str, ...]) -> None:
        self.chat = Chat(fitted, persona)
        self.lock = threading.Lock()
        self._afresh: dict[int, str] = {}
        self._read: list[Held] = []
        self._window = Window((), ())
        self._seen: Seen | None = None

    def say(self, text: str, how: GenerationSection, compare: bool) -> None:
        """Answer a message, and if wanted once more with memory reset; a failure leaves all as it was."""
        chat, before = self.chat, self.chat.memory
        if len(chat.turns) + 2 > TURNS:
            raise RefusedError(409, f"this conversation has its {TURNS} turns: reset it")
        chat.how = how
        chat.hear(text)
        try:
            window, batch = chat.window(), chat.batch()
            afresh = chat.answer_afresh() if compare and chat.carries else None
            with watching(chat.fitted.model) as record:
                replies = chat.answer()
            seen = record.seen(batch, replies, text, chat.fitted.tokenizer)
        except BaseException:
            chat.turns.pop()
            chat.memory = before
            raise
        chat.reply(replies.texts[0][0])
        if afresh is not None:
            self._afresh[len(chat.turns) - 1] = afresh.texts[0][0]
        self._window, self._seen = window, seen
        known = len(self._read)
        most = [max(pair, key=_ORDER.index) for pair in zip(self._read, window.turns, strict=False)]
        self._read = [*most, *window.turns[known:]]

    def state(self) -> dict[str, Any]:
        """The conversation as JSON: its turns, where each is held, what the last reply did with the slots."""
        chat, window = self.chat, self._window
        turns = []
        for at, turn in enumerate(chat.turns):
            place = self._place(window.turns[at], self._read[at]) if at < len(window.turns) else "next"
            row = {"who": "model" if turn.speaker == MODEL else "you", "text": turn.text}
            turns.append({**row, "afresh": self._afresh.get(at), "place": place, "note": _PLACES[place]})
        persona = [
            {"text": text, "place": (place := self._place(held, "whole")), "note": _PLACES[place]}
            for text, held in zip(chat.persona, window.persona, strict=False)
        ]
        persona += [
            {"text": text, "place": "next", "note": _PLACES["next"]} for text in chat.persona[len(persona) :]
        ]
        return {
            "turns": turns,
            "persona": persona,
            "seen": None if self._seen is None else seen_json(self._seen),
        }

    def _place(self, held: Held, read: Held) -> str:
        """Where a text is: what of it the last reply read, and the most that any reply did."""
        if held == "whole":
            return "window"
        if held == "start":
            return "cut"
        if held == "end":
            return "edge_held" if self.chat.carries and read == "whole" else "edge"
        if read == "none":
            return "unread"
        if not self.chat.carries:
            return "lost"
        return "memory" if read == "whole" else "memory_part"


class Talks:
    """All conversations; one reply is made at a time."""

    def __init__(self, fitted: Fitted, limit: int = TALKS) -> None:
        self.fitted, self._limit = fitted, limit
        self._talks: OrderedDict[str, Talk] = OrderedDict()
        self._lock, self._model = threading.Lock(), threading.Lock()

    def open(self, persona: tuple[str, ...]) -> tuple[str, Talk]:
        """A new conversation and the name that it goes by, which nobody can guess."""
        name, talk = secrets.token_urlsafe(16), Talk(self.fitted, persona)
        with self._lock:
            self._talks[name] = talk
            while len(self._talks) > self._limit:
                self._talks.popitem(last=False)
        return name, talk

    def find(self, name: str) -> Talk:
        """A conversation by its name."""
        with self._lock:
            if name not in self._talks:
                raise RefusedError(404, "the server does not have this conversation any more")
            self._talks.move_to_end(name)
            return self._talks[name]

    def replace(self, name: str, persona: tuple[str, ...]) -> Talk:
        """Begin a conversation anew under its name."""
        with self.alone(self.find(name)):
            talk = Talk(self.fitted, persona)
            with self._lock:
                self._talks[name] = talk
            return talk

    @contextmanager
    def alone(self, talk: Talk) -> Iterator[None]:
        """Inside, nothing else happens to this conversation."""
        if not talk.lock.acquire(blocking=False):
            raise RefusedError(409, "the last message is still being answered")
        try:
            yield
        finally:
            talk.lock.release()

    def say(self, name: str, text: str, how: GenerationSection, compare: bool) -> Talk:
        """Answer a message when the model is free."""
        talk = self.find(name)
        with self.alone(talk), self._model:
            talk.say(text, how, compare)
        return talk


def seen_json(seen: Seen) -> dict[str, Any]:
    """Figures of a reply as JSON, to five places."""
    return {
        "gate": None if seen.gate is None else _rounded(seen.gate.tolist()),
        "reading": _attention_json(seen.reading),
        "writing": _attention_json(seen.writing),
        "notes": list(seen.notes),
    }


def _attention_json(found: Attention | None) -> dict[str, Any] | None:
    if found is None:
        return None
    layers = [_rounded(layer) for layer in found.layers.tolist()]
    mean = _rounded(found.layers.mean(dim=0).tolist())
    return {
        "layers": layers,
        "mean": mean,
        "tokens": found.tokens,
        "who": found.who,
        "even": round(found.even, 5),
    }


def _rounded(numbers: list[float]) -> list[float]:
    return [round(number, 5) for number in numbers]
