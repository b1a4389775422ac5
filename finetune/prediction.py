"""A target turn as people and metrics see it."""

from __future__ import annotations

from finetune.dialogue.dialogue import Dialogue
from finetune.metrics.prediction import Prediction


def about(dialogue: Dialogue, turn: int) -> Prediction:
    """The turn with its context and accepted replies; nothing is predicted yet."""
    target = dialogue.turns[turn]
    partner = next((t.speaker for t in reversed(dialogue.turns[:turn]) if t.speaker != target.speaker), None)
    return Prediction(
        dialogue=dialogue.id,
        turn=turn,
        context=tuple(earlier.text for earlier in dialogue.turns[:turn]),
        replies=(),
        references=tuple(dict.fromkeys((target.text, *target.accepted))),
        persona=persona(dialogue, target.speaker),
        partner_persona=persona(dialogue, partner),
        knowledge=tuple(target.knowledge),
        chosen=target.chosen,
        entities=target.entities,
        session=target.session,
    )


def persona(dialogue: Dialogue, speaker: int | None) -> tuple[str, ...]:
    """What is known about a speaker; empty where nothing is."""
    known = speaker is not None and speaker < len(dialogue.personas)
    return tuple(dialogue.personas[speaker]) if known else ()  # type: ignore[index]
