"""Multi-Session Chat: sessions joined from files that each know a part."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from finetune.dialogue.load import load

PERSONAS = [["I am A."], ["I am B."]]


def _texts(session: int, turns: int) -> list[dict[str, Any]]:
    # The names of speakers are numbers of crowd workers in some files, and tell nothing.
    return [{"text": f"session {session} turn {turn} ", "id": "47123"} for turn in range(turns)]


def _meeting(name: str, session: int) -> dict[str, Any]:
    earlier = [
        {"dialog": _texts(number, 3), "personas": [[], []], "time_num": number, "time_unit": "days"}
        for number in range(1, session)
    ]
    return {
        "dialog": _texts(session, 3),
        "metadata": {"initial_data_id": name, "session_id": session - 1},
        "personas": [["A knows."], [f"B before {session}."]],
        "previous_dialogs": earlier,
        "init_personas": PERSONAS,
    }


def _summary(name: str, session: int) -> dict[str, Any]:
    upper = [{"text": turn["text"].upper()} for turn in _texts(session, 3)]
    return {"dialog": upper, "initial_data_id": name, "init_personachat": {"init_personas": PERSONAS}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Sessions 2 and 3 as dialogues, 1 to 4 as summaries, gzipped."""
    for kind, sessions, make in (
        ("msc_dialogue", (2, 3), _meeting),
        ("msc_personasummary", (1, 2, 3, 4), _summary),
    ):
        for session in sessions:
            path = tmp_path / kind / f"session_{session}" / "valid.txt.gz"
            path.parent.mkdir(parents=True)
            text = "".join(json.dumps(make(name, session)) + "\n" for name in ("valid_0", "valid_1"))
            path.write_bytes(gzip.compress(text.encode()))
    return tmp_path


def test_sessions_are_joined_from_the_best_file_for_each(root: Path) -> None:
    found = load(f"msc:{root}", "valid")
    assert [dialogue.id for dialogue in found] == ["valid_0", "valid_1"]
    dialogue = found[0]
    assert [turn.session for turn in dialogue.turns] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert [turn.speaker for turn in dialogue.turns] == [0, 1, 0] * 4
    texts = [turn.text for turn in dialogue.turns]
    assert texts[3] == "session 2 turn 0 "
    assert texts[0] == "session 1 turn 0 "
    assert texts[9] == "SESSION 4 TURN 0 "
    assert dialogue.personas == (("I am A.",), ("I am B.",))
    assert [session.gap for session in dialogue.sessions] == ["", "1 days", "2 days", ""]
    assert dialogue.sessions[2].personas == (("A knows.",), ("B before 3.",))


def test_a_session_that_is_nowhere_ends_the_dialogue_and_is_noted(root: Path) -> None:
    for session in (2, 3):
        for kind in ("msc_dialogue", "msc_personasummary"):
            (root / kind / f"session_{session}" / "valid.txt.gz").unlink()
    found = load(f"msc:{root}")
    assert {turn.session for turn in found[0].turns} == {0}
    assert "session 2 is missing" in found.notes[0].what


def test_one_session_file_knows_what_came_before(root: Path) -> None:
    found = load(f"msc:{root}/msc_dialogue/session_3/valid.txt")
    assert len(found[0].turns) == 9


def test_a_malformed_line_is_told(root: Path) -> None:
    path = root / "msc_dialogue" / "session_2" / "valid.txt.gz"
    path.write_bytes(
        gzip.compress(gzip.decompress(path.read_bytes()) + b'{"dialog": [{"text": "x"}]}\n{"dial\n')
    )
    found = load(f"msc:{root}", max_rejected=0.9)
    assert [(reject.reason, reject.line) for reject in found.rejected] == [("bad_record", 3), ("bad_json", 4)]
    assert "metadata" in found.rejected[0].detail


def test_one_file_of_all_turns(tmp_path: Path) -> None:
    turns = [{"text": f"t{n}", "turn_id": n, "session": 1 + n // 2, "role": "47"} for n in (2, 0, 1, 3)]
    (tmp_path / "my_msc_samples.json").write_text(json.dumps({"test_0": turns, "test_1": [{"text": "x"}]}))
    found = load(f"msc:{tmp_path}", max_rejected=0.9)
    assert [(turn.text, turn.speaker, turn.session) for turn in found[0].turns] == [
        ("t0", 0, 0),
        ("t1", 1, 0),
        ("t2", 0, 1),
        ("t3", 1, 1),
    ]
    assert "test_1" in found.rejected[0].detail
