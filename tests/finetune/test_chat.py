"""A chat: what the next answer reads of it, what it would be without memory, what a failure leaves."""

from __future__ import annotations

import pytest
import torch

from finetune.chat import MODEL, PERSON, Chat
from finetune.dialogue.dialogue import Turn
from tests.support.fitted import fitted

SAID = ["hello, i am anna.", "nice to meet you.", "do you like tea?", "i like coffee.", "what is my name?"]
CARRIES = ("membart", "fusion", "persona_cvae", "ki", "dior_cvae")


def chat(family: str, **changes: object) -> Chat:
    """A conversation of five turns, the last of them the person's."""
    talk = Chat(fitted(family, **changes), ("i sing in a band.",))
    for number, text in enumerate(SAID):
        (talk.hear if number % 2 == 0 else talk.reply)(text)
    return talk


def read(talk: Chat) -> str:
    """What the encoder is given, as text."""
    tokenizer, tensors = talk.fitted.tokenizer, talk.batch().tensors
    rows = [tensors[name][0] for name in ("input_ids", "persona_ids") if name in tensors]
    found = "".join(tokenizer.decode(row[row != tokenizer.pad_token_id]) for row in rows)
    return found.replace(" .", ".")  # fusion parts a persona sentence from its stop


@pytest.mark.parametrize("family", [*CARRIES, "baseline"])
@pytest.mark.parametrize("tokens", [12, 24, 40])
def test_the_window_is_what_the_family_reads(family: str, tokens: int) -> None:
    talk = chat(family, data__context_tokens=tokens)
    window, found = talk.window(), read(talk)
    for text, held in zip((*SAID, *talk.persona), (*window.turns, *window.persona), strict=True):
        assert (held == "whole") == (text in found)
        if held == "end":  # it is the first that there is room for
            assert any(
                f"{special}{text[at:]}" in found for at in range(1, len(text)) for special in ("<s>", "</s>")
            )
        if held == "start":
            assert any(f"<s>{text[:at]}" in found for at in range(1, len(text)))
    assert window.turns[-1] != "none"


def test_a_message_that_fills_the_window_is_read_without_its_beginning() -> None:
    talk = chat("membart", data__context_tokens=12)
    talk.reply("yes, it is.")
    talk.hear("nice weather today. how are you? what do you do? i sing in a band.")
    assert talk.window().turns == ("none",) * 6 + ("end",)


@pytest.mark.parametrize("family", CARRIES)
def test_afresh_is_the_answer_of_one_who_remembers_nothing(family: str) -> None:
    talk, texts = chat(family), []
    talk.turns = talk.turns[:1]
    talk.answer()
    talk.turns += [Turn(number % 2, text) for number, text in enumerate(SAID)][1:3]
    before = talk.memory
    afresh = talk.answer_afresh()
    assert talk.memory is before
    kept = talk.answer()
    assert talk.memory is kept.memory
    assert not torch.allclose(afresh.memory, kept.memory)
    other = Chat(talk.fitted, talk.persona)
    other.turns = list(talk.turns)
    stranger = other.answer()
    texts = [afresh.texts, stranger.texts]
    assert texts[0] == texts[1]
    torch.testing.assert_close(afresh.memory, stranger.memory)


def test_a_failed_answer_leaves_the_chat_as_it_was() -> None:
    talk = Chat(fitted())
    talk.say(SAID[0])
    turns, memory, how = list(talk.turns), talk.memory, talk.how
    talk.how = how.model_copy(update={"max_new_tokens": 0})
    with pytest.raises(ValueError, match="max_new_tokens"):
        talk.say(SAID[2])
    assert talk.turns == turns
    assert torch.equal(talk.memory, memory)
    talk.how = how
    assert talk.say(SAID[2])
    assert [turn.speaker for turn in talk.turns] == [PERSON, MODEL, PERSON, MODEL]


@pytest.mark.parametrize(
    ("family", "memory", "carries"),
    [
        ("membart", "carry", True),
        ("membart", "reset", False),
        ("membart", "off", False),
        ("baseline", "off", False),
    ],
)
def test_who_carries_memory(family: str, memory: str, carries: bool) -> None:
    assert Chat(fitted(family, data__memory=memory)).carries is carries


def test_one_who_speaks_first_reads_the_opening_as_in_training() -> None:
    talk = Chat(fitted("membart", data__context_tokens=40), ("i sing in a band.",))
    assert read(talk) == "<s><conversation starts>\n\nyour persona: i sing in a band.\n\n</s>"
    assert len(talk.answer().texts) == 1
