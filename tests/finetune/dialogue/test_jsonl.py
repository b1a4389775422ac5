"""Our own format: everything survives the way out and in; mistakes are named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.dialogue import jsonl
from finetune.dialogue.dialogue import Dialogue, Session, Turn
from finetune.dialogue.load import load

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
TEXTS = st.lists(TEXT, max_size=3).map(tuple)
TAGS = st.dictionaries(TEXT, TEXT, max_size=2)
TURNS = st.builds(
    Turn,
    speaker=st.integers(0, 3),
    text=TEXT.map(lambda text: f"\u2028{text}."),
    references=TEXTS,
    negatives=TEXTS,
    knowledge=st.just(("a", "b")),
    chosen=st.sampled_from([None, 0, 1]),
    pieces=st.just(("p", "##q")),
    vokens=st.sampled_from([(), (0, 7)]),
    tags=TAGS,
)
DIALOGUES = st.builds(
    Dialogue,
    id=TEXT,
    turns=st.lists(TURNS, min_size=1, max_size=3).map(tuple),
    personas=st.lists(TEXTS, max_size=2).map(tuple),
    sessions=st.just((Session("", ((), ("x",))),)),
    topic=TEXT,
    tags=TAGS,
)


@settings(max_examples=40, deadline=None)
@given(st.lists(DIALOGUES, min_size=1, max_size=4, unique_by=lambda dialogue: dialogue.id))
def test_what_is_written_is_read(tmp_path_factory: object, dialogues: list[Dialogue]) -> None:
    path = tmp_path_factory.getbasetemp() / "round.jsonl"  # type: ignore[attr-defined]
    assert jsonl.write(path, dialogues) == len(dialogues)
    found = load(f"jsonl:{path}")
    assert list(found) == dialogues


def test_defaults_are_left_out() -> None:
    assert jsonl.plain(Dialogue("a", (Turn(0, "hi"),))) == {
        "id": "a",
        "turns": [{"speaker": 0, "text": "hi"}],
    }


def test_mistakes_are_named_with_their_line_and_place(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    lines = [
        '{"turns": [{"speaker": 0, "text": "hi"}]}',
        '{"turns": [{"speaker": 0}]}',
        '{"turns": [{"speaker": 0, "text": "hi", "txt": "?"}]}',
        '{"turns": [{"speaker": 0, "text": "hi"}], "persona": []}',
        "",
        '{"turns": []}',
        '{"turns": [{"speaker": 0, "text": "hi", "chosen": 0}]}',
        '{"turns": [{"speaker": 0, "text": "hi"}',
        "[1]",
        '{"turns": [{"speaker": 0, "text": "\\ud800"}]}',
    ]
    path.write_text("\n".join(lines))
    found = load(f"jsonl:{path}", max_rejected=0.95)
    assert [dialogue.id for dialogue in found] == ["mine_1"]
    told = {reject.line: (reject.reason, reject.detail) for reject in found.rejected}
    assert told[2] == ("bad_record", "turns.0.text: Field required")
    assert "turns.0.txt" in told[3][1]
    assert "persona" in told[4][1]
    assert told[6] == ("bad_dialogue", "no turn")
    assert told[7] == ("bad_dialogue", "turn 0: chosen is 0 of 0 knowledge sentences")
    assert told[8][0] == told[10][0] == "bad_json"
    assert told[9][0] == "bad_record"
    assert len(told) == 8


def test_every_field_is_documented() -> None:
    page = Path(__file__).parents[3] / "docs" / "dialogues.md"
    text = page.read_text(encoding="utf-8")
    for kind in (Dialogue, Turn, Session):
        for field in dataclasses.fields(kind):
            assert f"`{field.name}`" in text
