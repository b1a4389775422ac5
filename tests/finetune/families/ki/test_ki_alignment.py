"""Words to tokens: the fact sheet's test 10. The number of its section 10 stands beside each test."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.families.ki.alignment import NONE, token_items
from finetune.families.ki.layout import ITEMS, KiLayout
from finetune.families.ki.objective import ANCHOR, NEGATIVE, PAIRED, POSITIVE, KiHead, internalization
from finetune.knowledge.annotations import Spans
from finetune.knowledge.words import words
from finetune.recipe import DialogueSection
from pretrain.errors import UserError
from tests.support import dialogues as made
from tests.support import ki

TEXT = "Unbelievable,  coffee!! \U0001f600 the na\u00efve band's   weather."
TALK = Dialogue("d", (Turn(0, TEXT), Turn(1, "nice to meet you."), Turn(0, "how are you?"), Turn(1, "fine.")))


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> KiLayout:
    tokenizer = AutoTokenizer.from_pretrained(made.tokenizer_folder())
    found = KiLayout(DialogueSection(context_tokens=200), tokenizer, "all", None)
    found.annotations = ki.write(tmp_path_factory.mktemp("knowledge") / "folder", [TALK])
    return found


def words_of_tokens(text: str, spans: tuple[tuple[int, int], ...]) -> list[str]:
    """Of each token the word that its first character other than white space is in."""
    firsts = [next((at for at in range(*span) if not text[at].isspace()), -1) for span in spans]
    return [next((w.text for w in words(text) if w.start <= at < w.end), "") for at in firsts]


def test_every_piece_of_a_word_has_its_item(layout):  # 10
    vocabulary: dict[str, int] = {}
    known = ki.known(TEXT, vocabulary)
    spans = layout.text.pieces(TEXT).spans
    owners = words_of_tokens(TEXT, spans)
    items = token_items(TEXT, spans, known)
    assert items.tolist() == [vocabulary.get(owner, NONE) for owner in owners]
    assert owners.count("Unbelievable") > 1
    assert {"coffee", "band", "weather", "na\u00efve"} <= set(owners)
    assert (items == NONE).any()


def test_only_the_first_piece_of_a_word_under_that_policy(layout):
    vocabulary: dict[str, int] = {}
    known, spans = ki.known(TEXT, vocabulary), layout.text.pieces(TEXT).spans
    every, first = (token_items(TEXT, spans, known, policy) for policy in ("all", "first"))
    kept = np.flatnonzero(first != NONE)
    assert len(kept) == len(vocabulary)
    assert first[kept].tolist() == every[kept].tolist()
    assert all(every[place - 1] != every[place] for place in kept if place)


def test_white_space_in_a_tokens_characters_counts_for_nothing():
    known = Spans.of([(0, 5, 7, True, 1.0), (7, 13, 8, True, 1.0)])
    trimmed = token_items("hello  coffee", [(0, 5), (7, 13)], known)
    assert token_items("hello  coffee", [(0, 5), (5, 13)], known).tolist() == trimmed.tolist() == [7, 8]


def test_a_token_belongs_to_the_word_it_shares_most_with_be_it_a_stop_word():
    known = Spans.of([(4, 7, 5, True, 1.0)])
    assert token_items("the sea", [(0, 5), (5, 7)], known).tolist() == [NONE, 5]
    assert token_items("the sea", [(0, 6)], known).tolist() == [NONE]
    assert token_items("the sea", [(1, 7)], known).tolist() == [5]
    assert token_items("big sea", [(3, 3), (0, 0)], known).tolist() == [NONE, NONE]


def test_two_words_of_one_title_share_its_item():
    known = Spans.of([(0, 8, 3, True, 1.0)])
    assert token_items("new york is big", [(0, 3), (4, 8), (9, 11)], known).tolist() == [3, 3, NONE]


def test_items_and_tokens_are_cut_together_at_every_length(layout):  # 10
    whole = layout.example(TALK, 3).fields
    tokens, items = list(whole["input_ids"]), list(whole[ITEMS])
    assert len(tokens) == len(items)
    assert items[0] == items[-1] == NONE
    tokenizer = layout.text.tokenizer
    for limit in range(9, len(tokens) + 3):
        short = KiLayout(DialogueSection(context_tokens=limit), tokenizer, "all", None)
        short.annotations = layout.annotations
        fields = short.example(TALK, 3).fields
        kept = min(limit, len(tokens)) - 2
        assert list(fields["input_ids"])[1:-1] == tokens[1:-1][-kept:]
        assert list(fields[ITEMS]) == [NONE, *items[1:-1][-kept:], NONE]


def test_marks_prompt_and_persona_have_no_item(layout):
    with_persona = Dialogue("p", TALK.turns, ((), ("coffee band weather",)))
    fields = layout.example(with_persona, 3).fields
    words_before = layout.text.opening(with_persona, 1, persona=True)
    assert len(words_before) > len(layout.text.opening(TALK, 1, persona=True))
    assert set(fields[ITEMS][: len(words_before) + 2]) == {NONE}
    assert any(item != NONE for item in fields[ITEMS])


def test_padding_on_either_side_gives_one_loss():  # 10
    torch.manual_seed(0)
    head = KiHead(6, 4, 0.0, True)
    states, near, far = torch.randn(2, 3, 6), torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    kind = torch.tensor([[0, PAIRED, PAIRED], [PAIRED, 0, 0]])
    found = []
    for side in ((0, 2), (2, 0)):
        fields = {
            ANCHOR: torch.nn.functional.pad(kind, side),
            POSITIVE: torch.nn.functional.pad(near, (0, 0, *side)),
            NEGATIVE: torch.nn.functional.pad(far, (0, 0, *side)),
        }
        padded = torch.nn.functional.pad(states, (0, 0, *side), value=9.0)
        found.append(internalization(head, padded, fields, 0.1))
    assert torch.equal(*found)
    assert bool(found[0][0].any())


def test_what_was_not_annotated_is_named(layout):
    with pytest.raises(UserError, match="turn 0 was not annotated"):
        layout.example(Dialogue("other", (Turn(0, "who?"), Turn(1, "me."))), 1)


def test_a_text_is_refused(layout):
    text = Dialogue("text", (Turn(0, "word " * 900),))
    with pytest.raises(UserError, match="no dialogue"):
        layout.example(text, 1)
