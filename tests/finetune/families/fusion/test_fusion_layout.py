"""Dialogues as the sequences of their sources (number 16 of the fact sheet's tests)."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.families.fusion import Family, FusionSettings
from finetune.families.fusion.configuration import TALKER1, TALKER2
from finetune.families.fusion.layout import MARKS
from finetune.recipe import DialogueSection
from finetune.stream import units
from tests.support import dialogues as made
from tests.support import fusion

TALK = Dialogue(
    "d",
    tuple(Turn(n % 2, f"say {n} times tea") for n in range(12)),
    (("i am anna.",), ("i like tea.", "i sing !")),
)


def family(kind: str = "gpt2", context: int = 64, **settings: Any) -> Family:
    data = DialogueSection(memory="reset", context_tokens=context, target_tokens=24, targets="both")
    return Family(FusionSettings(**settings), data, fusion.tokenizer(kind), steps=9)


def fields(which: Family, turn: int = 11, talk: Dialogue = TALK) -> dict[str, list[int]]:
    return {name: list(ids) for name, ids in which.example(talk, turn).fields.items()}  # type: ignore[arg-type]


def ids(which: Family, *texts: str) -> list[int]:
    return [token for text in texts for token in which.text.ids(text)]


def test_only_the_latest_seven_utterances_are_kept():
    which = family()
    said = [turn.text for turn in TALK.turns]
    assert fields(which)["input_ids"] == ids(which, *said[4:11])
    assert fields(which, turn=2)["input_ids"] == ids(which, *said[:2])
    assert fields(family(max_history=2))["input_ids"] == ids(which, *said[9:11])


def test_the_nearest_utterance_and_every_second_before_it_are_the_partners():
    which = family()
    wanted: list[int] = []
    for distance in range(7, 0, -1):
        kind = TALKER2 if distance % 2 else TALKER1
        wanted += [kind] * len(which.text.ids(TALK.turns[11 - distance].text))
    assert fields(which)["types"] == wanted


def test_persona_sentences_are_spaced_like_utterances_and_joined_without_a_gap():
    which = family()
    assert fields(which)["persona_ids"] == ids(which, "i like tea .", "i sing !")
    assert fields(which, turn=10)["persona_ids"] == ids(which, "i am anna .")


def test_the_reply_is_its_words_and_the_end():
    which = family()
    assert fields(which)["labels"] == [*ids(which, "say 11 times tea"), which.text.eos]
    assert which.config.reply_prefix == (which.text.bos,)


def test_long_histories_lose_their_first_tokens_and_long_personas_their_last():
    which, short = family(), family(context=10)
    assert fields(short)["input_ids"] == fields(which)["input_ids"][-10:]
    assert fields(short)["types"] == fields(which)["types"][-10:]
    long = Dialogue("d", TALK.turns, (("i am anna.",), ("i like tea.", "i sing in a band of ten people.")))
    assert fields(short, talk=long)["persona_ids"] == fields(which, talk=long)["persona_ids"][:10]
    wrapped = fields(family("membart", context=10))["input_ids"]
    assert len(wrapped) == 10


def test_contexts_of_a_bart_stand_between_its_ends():
    which = family("membart", context=96)
    found = fields(which)
    bos, eos = which.text.bos, which.text.eos
    assert found["persona_ids"] == [bos, *ids(which, "i like tea .", "i sing !"), eos]
    assert found["input_ids"] == [bos, *ids(which, *(t.text for t in TALK.turns[4:11])), eos]
    assert found["types"][0] == found["types"][1]
    assert found["types"][-1] == TALKER2
    assert which.config.reply_prefix == (eos, bos)
    assert not set(MARKS) & set(which.text.tokenizer.get_vocab())


def test_a_source_without_a_sentence_is_absent():
    for kind in ("gpt2", "membart"):
        found = fields(family(kind), turn=0, talk=Dialogue("d", TALK.turns))
        assert found["persona_ids"] == found["persona_mask"] == []
        assert found["input_ids"] == found["attention_mask"] == found["types"] == []


def test_the_papers_nine_tokens_are_single_words_of_a_gpt2():
    which = family()
    names = ("<pad>", "<bos>", "<eos>", *MARKS)
    tokens = [which.text.tokenizer.convert_tokens_to_ids(name) for name in names]
    assert len(set(tokens)) == 9
    assert set(tokens) <= set(which.layout.special)
    assert which.text.decoded([*ids(which, "i like tea"), *tokens]) == "i like tea"
    words = len(which.text.tokenizer)
    again = Family(FusionSettings(), which.data, which.text.tokenizer, steps=9)
    assert again.layout.is_bare
    assert len(again.text.tokenizer) == words


def test_marks_may_enclose_persona_and_utterances():
    which = family(start_end=True, max_history=2)
    mark = which.layout.marks
    assert fields(which)["input_ids"] == [
        *(mark["<talker1_bos>"], *ids(which, "say 9 times tea"), mark["<talker1_eos>"]),
        *(mark["<talker2_bos>"], *ids(which, "say 10 times tea"), mark["<talker2_eos>"]),
    ]
    assert fields(which)["persona_ids"][0] == mark["<info_bos>"]


def test_one_sequence_has_persona_and_marked_utterances():
    which = family(inputs="single", fusion="none", max_history=2)
    mark = which.layout.marks
    persona = ids(which, "i like tea .", "i sing !")
    nine = [mark["<talker1_bos>"], *ids(which, "say 9 times tea")]
    ten = [mark["<talker2_bos>"], *ids(which, "say 10 times tea")]
    found = fields(which)
    assert found["input_ids"] == [which.text.bos, *persona, *nine, *ten]
    ours = 1 + len(persona) + len(nine)
    assert found["types"] == [TALKER1] * ours + [TALKER2] * len(ten)
    assert which.config.reply_prefix == (mark["<talker1_bos>"],)
    assert "persona_ids" not in found


def test_both_speakers_answer_but_for_the_first_utterance():
    talk = [TALK, *made.dialogues(2)]
    turns = sum(len(dialogue.turns) for dialogue in talk)
    openings = len(talk)
    for targets, wanted in (("last", turns // 2), ("both", turns - openings)):
        which = family()
        data = which.data.model_copy(update={"targets": targets})
        found = units(talk, which, data)
        assert sum(len(unit.turns) for unit in found) == wanted


@pytest.mark.parametrize("persona", [True, False])
def test_the_persona_can_be_left_out(persona: bool):
    which = family()
    which.layout.data = which.data.model_copy(update={"persona": persona})
    assert bool(fields(which)["persona_ids"]) is persona
