"""PersuasionForGood's CSV: rows to turns, and broken rows that cost their own dialogue only."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.dialogue.load import load
from pretrain.errors import UserError

HEADER = ",Unit,Turn,B4,B2"
ROWS = [
    '0,"Hello, you.",0,0,a',
    "1,I\\'m well.,0,1,a",
    "2,And ,1,0,a",
    "3,give?,1,0,a",
    "0,Hi.,0,0,b",
    "1,Yes.,0,1,b",
]


def _write(path: Path, rows: list[str], header: str = HEADER) -> Path:
    path.write_bytes("\r\n".join([header, *rows]).encode("utf-8", "surrogateescape"))
    return path


def test_rows_are_turns_by_role(tmp_path: Path) -> None:
    first, second = load(f"persuasion:{_write(tmp_path / 'full_dialog.csv', ROWS)}")
    assert [(turn.speaker, turn.text) for turn in first.turns] == [
        (0, "Hello, you."),
        (1, "I\\'m well."),
        (0, "And "),
        (0, "give?"),
    ]
    assert (first.id, second.id, first.roles) == ("a", "b", ("persuader", "persuadee"))


def test_annotations_become_tags(tmp_path: Path) -> None:
    rows = ["0,Hello.,0,0,a,greeting,", "1,No.,0,1,a,,refuse"]
    path = _write(tmp_path / "annotated.csv", rows, f"{HEADER},er_label_1,ee_label_1")
    (dialogue,) = load(f"persuasion:{path}")
    assert [dict(turn.tags) for turn in dialogue.turns] == [
        {"er_label_1": "greeting"},
        {"ee_label_1": "refuse"},
    ]


@pytest.mark.parametrize(
    ("row", "reason", "lost"),
    [
        ('1,"never closed,0,1,a', "bad_csv", "a"),
        ("1,too,few", "bad_csv", "a"),
        ("1,who?,0,2,a", "bad_record", "a"),
        ("1, ,0,1,a", "bad_record", "a"),
        ("1,caf\udce9,0,1,a", "invalid_utf8", "a"),
    ],
)
def test_a_broken_row_costs_its_dialogue(tmp_path: Path, row: str, reason: str, lost: str) -> None:
    rows = [ROWS[0], row, *ROWS[2:]]
    found = load(f"persuasion:{_write(tmp_path / 'full_dialog.csv', rows)}")
    assert [(reject.reason, reject.line) for reject in found.rejected] == [(reason, 3)]
    assert [dialogue.id for dialogue in found] == ["b"]


def test_a_broken_row_between_dialogues_is_charged_to_the_right_one(tmp_path: Path) -> None:
    broken = "x,y"
    last_of_a = [*ROWS[:3], broken, *ROWS[4:]]
    first_of_b = [*ROWS[:4], broken, ROWS[5]]
    for rows, left in ((last_of_a, "b"), (first_of_b, "a")):
        found = load(f"persuasion:{_write(tmp_path / 'full_dialog.csv', rows)}")
        assert [dialogue.id for dialogue in found] == [left]


def test_another_csv_is_told_by_its_columns(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no column B4, B2"):
        load(f"persuasion:{_write(tmp_path / 'full_dialog.csv', [], 'Unit,x')}")
