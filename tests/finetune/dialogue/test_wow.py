"""Wizard of Wikipedia: what lies before the wizard; KI's word pieces; CCM's graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.dialogue import jsonarray
from finetune.dialogue.load import load
from pretrain.errors import UserError


def _entry(speaker: str, text: str, retrieved: dict[str, list[str]], **more: Any) -> dict[str, Any]:
    return {"speaker": speaker, "text": text, "retrieved_passages": [retrieved], **more}


TALK = {
    "chosen_topic": "Owl",
    "chosen_topic_passage": ["Owls hunt.", "Owls hoot."],
    "persona": "i like birds",
    "wizard_eval": 4,
    "dialog": [
        _entry("0_Apprentice", "tell me .", {"Night": ["It is dark."], "Owl": ["ignored"]}),
        _entry(
            "1_Wizard",
            "they hoot .",
            {"Moon": ["It shines."]},
            checked_sentence={"chosen_Owl_1": "Owls hoot."},
            checked_passage={"chosen_topic_0_Owl": "Owl"},
        ),
        _entry("0_Apprentice", "when ?", {"Time": ["It flies."]}),
        _entry(
            "1_Wizard",
            "no idea .",
            {},
            checked_sentence={"no_passages_used": "no_passages_used"},
            checked_passage={"no_passages_used": "no_passages_used"},
        ),
    ],
}


def test_the_wizard_sees_topic_then_what_both_retrieved(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(json.dumps([TALK]))
    (dialogue,) = load(f"wow:{tmp_path}", "train")
    assert dialogue.roles == ("apprentice", "wizard")
    assert (dialogue.topic, dict(dialogue.tags)) == ("Owl", {"persona": "i like birds", "wizard_eval": "4"})
    first, second = dialogue.turns[1], dialogue.turns[3]
    assert first.knowledge == ("Owls hunt.", "Owls hoot.", "It is dark.")
    assert (first.chosen, first.tags["title"]) == (1, "Owl")
    assert second.knowledge == ("Owls hunt.", "Owls hoot.", "It flies.", "It shines.")
    assert second.chosen is None
    assert dialogue.turns[0].knowledge == ()


def test_seen_and_unseen_are_parts_of_a_split(tmp_path: Path) -> None:
    (tmp_path / "valid_random_split.json").write_text(json.dumps([TALK]))
    (tmp_path / "valid_topic_split.json").write_text(json.dumps([TALK, TALK]))
    assert dict(load(f"wow:{tmp_path}", "valid").splits) == {"valid_seen": 1, "valid_unseen": 2}
    assert len(load(f"wow:{tmp_path}", "valid_unseen")) == 2
    with pytest.raises(UserError, match="no test split -- there is: valid_seen, valid_unseen"):
        load(f"wow:{tmp_path}", "test")


def test_an_array_is_read_element_by_element_across_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonarray, "BLOCK_BYTES", 7)
    talks = [TALK | {"persona": f"é {number}"} for number in range(3)]
    (tmp_path / "train.json").write_text(json.dumps([talks[0], {"dialog": []}, *talks[1:]], indent=1))
    found = load(f"wow:{tmp_path}", max_rejected=0.5)
    assert [dialogue.tags["persona"] for dialogue in found] == ["é 0", "é 1", "é 2"]
    (reject,) = found.rejected
    lines = (tmp_path / "train.json").read_text().split("\n")
    assert lines[(reject.line or 0) - 1 : (reject.line or 0) + 1] == [" {", '  "dialog": []']
    assert "dialogue 1" in reject.detail


@pytest.mark.parametrize("text", ["{}", "[{} {}]", "[{}", '[{"a": ]', "[{}, nonsense", ""])
def test_a_broken_array_is_one_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(UserError, match=r"train\.json:1: bad JSON"):
        load(f"wow:{tmp_path}", max_rejected=1.0)


def test_word_pieces_with_a_knowledge_item_each(tmp_path: Path) -> None:
    (tmp_path / "test.seen.src").write_bytes(b"##ing a ja ##le ##pen ##o ?\r\n i see .\r\n")
    (tmp_path / "test.seen.tgt").write_bytes(b"yes .\r\nok\r\n")
    (tmp_path / "test.seen.voken.src").write_bytes(b"0 0 9 9 9 9 0\r\n0 1\r\n")
    found = load(f"wow_ki:{tmp_path}", "test", max_rejected=0.5)
    assert dict(found.splits) == {"test_seen": 1}
    said, reply = found[0].turns
    assert (said.text, reply.text) == ("ing a jalepeno ?", "yes .")
    assert dict(zip(said.pieces, said.vokens, strict=True))["ja"] == 9
    assert reply.pieces == ("yes", ".")
    assert not reply.vokens
    assert [(reject.line, reject.detail) for reject in found.rejected] == [
        (2, "turn 0: 2 vokens for 3 pieces")
    ]
    (tmp_path / "test.seen.tgt").write_bytes(b"yes .\r\n")
    with pytest.raises(UserError, match="line 2 is not in every parallel file"):
        load(f"wow_ki:{tmp_path}")


def test_graphs_of_a_post_are_spelled_out_by_the_resource(tmp_path: Path) -> None:
    resource = {
        "csk_triples": ["owl, IsA, bird", "owl, AtLocation, tree", "cat, IsA, pet"],
        "csk_entities": ["owl", "bird", "pet"],
    }
    pair = {
        "post": ["an", "owl", "!"],
        "response": ["a", "bird", "."],
        "post_triples": [0, 1, 0],
        "all_triples": [[1, 0]],
        "all_entities": [[1, 0]],
        "response_triples": [-1, 0, -1],
    }
    (tmp_path / "resource.txt").write_text(json.dumps(resource))
    (tmp_path / "trainset.txt").write_text(
        json.dumps(pair) + "\n" + json.dumps(pair | {"all_triples": [[9]]})
    )
    found = load(f"crd:{tmp_path}", "train", max_rejected=0.5)
    post, reply = found[0].turns
    assert (post.text, reply.text) == ("an owl !", "a bird .")
    assert reply.knowledge == ("owl, AtLocation, tree", "owl, IsA, bird")
    assert reply.chosen == 1
    assert reply.entities == ("bird", "owl")
    assert "no number 9" in found.rejected[0].detail
    (tmp_path / "resource.txt").unlink()
    with pytest.raises(UserError, match=r"no resource\.txt"):
        load(f"crd:{tmp_path}")
