"""The plain-text form of a dialogue, as the MemBART paper's authors lay it out."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.families.membart import Family, MemBartSettings
from finetune.recipe import DialogueSection
from finetune.text import DialogueText
from tests.support import dialogues as made

TALK = Dialogue(
    "d",
    (Turn(0, "hello, i am anna."), Turn(1, "nice to meet you."), Turn(0, "how are you?"), Turn(1, "fine.")),
    ((), ("i like coffee.",)),
)


@pytest.fixture(scope="module")
def text() -> DialogueText:
    return DialogueText(AutoTokenizer.from_pretrained(made.tokenizer_folder()))


def family(text: DialogueText, **data: object) -> Family:
    return Family(MemBartSettings(), DialogueSection.model_validate(data), text.tokenizer, 1)


def decode(text: DialogueText, ids: list[int]) -> str:
    return str(text.tokenizer.decode(ids))


def test_a_history_is_prompt_persona_and_marked_turns(text: DialogueText) -> None:
    assert decode(text, text.history(TALK, 3, persona=True)) == (
        "<conversation starts>\n\nyour persona: i like coffee.\n\n"
        "A:hello, i am anna.\n\nB:nice to meet you.\n\nA:how are you?\n\n"
    )
    assert "persona" not in decode(text, text.history(TALK, 3, persona=False))


def test_the_one_who_answers_is_b_whoever_opened(text: DialogueText) -> None:
    assert decode(text, text.history(TALK, 2, persona=False)).endswith(
        "B:hello, i am anna.\n\nA:nice to meet you.\n\n"
    )


def test_each_turn_is_tokenized_by_itself(text: DialogueText) -> None:
    parts = [text.turn(TALK, index, 1) for index in range(3)]
    assert text.history(TALK, 3, persona=False) == [*text.opening(TALK, 1, False), *sum(parts, ())]


def test_the_source_is_the_end_of_the_history_within_the_limit(text: DialogueText) -> None:
    history = text.history(TALK, 3, persona=True)
    assert text.source(history, 10) == [0, *history[-8:], 2]
    assert text.source(history, 1000) == [0, *history, 2]


def test_the_target_starts_from_bos_and_ends_with_the_turns_own_end(text: DialogueText) -> None:
    example = family(text, context_tokens=16).example(TALK, 3)
    labels, start = example.fields["labels"], example.fields["decoder_input_ids"]
    assert isinstance(labels, list)
    assert isinstance(start, list)
    assert decode(text, labels) == "B:fine.\n\n"
    assert start == [0, *labels[:-1]]
    content = [token for token, kept in zip(labels, example.fields["content"], strict=True) if kept]  # type: ignore[arg-type]
    assert decode(text, content) == "fine."
    assert len(example.fields["input_ids"]) == 16  # type: ignore[arg-type]


def test_a_text_is_read_block_by_block_and_every_later_token_is_a_target_once(text: DialogueText) -> None:
    book = Dialogue("book", (Turn(0, " ".join(["hello, i am anna."] * 20)),))
    model = family(text, context_tokens=16)
    tokens = text.tokenizer(book.turns[0].text, add_special_tokens=False)["input_ids"]
    blocks = [model.example(book, number) for number in model.targets(book, 0)]
    written = [token for block in blocks for token in block.fields["labels"]]  # type: ignore[union-attr]
    read = [token for block in blocks for token in block.fields["input_ids"][1:-1]]  # type: ignore[index]
    assert written == tokens[14:]
    assert read == tokens[: len(read)]


def test_a_generated_reply_loses_its_mark_and_all_after_its_end(text: DialogueText) -> None:
    ids = [0, *text.ids("B:"), *text.ids("fine."), *text.ids("\n\n"), *text.ids("A:"), 2]
    assert text.clean(ids) == "fine."


def test_a_reply_ends_with_the_first_token_of_the_blank_line(text: DialogueText) -> None:
    assert text.ends == [text.eos, text.end[0]]
    assert "\n" in decode(text, [text.end[0]])
    lines = Tokenizer(models.BPE({"\n": 0, "a": 1, "<s>": 2, "</s>": 3}, []))
    plain = PreTrainedTokenizerFast(tokenizer_object=lines, bos_token="<s>", eos_token="</s>")
    assert DialogueText(plain).end == (0, 0), "a line break is a token, the blank line two"
    assert DialogueText(plain).ends == [3, 0]
