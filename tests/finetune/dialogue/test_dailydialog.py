"""DailyDialog in its three layouts, and DailyDialog++."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest

from finetune.dialogue.load import load
from pretrain.errors import UserError

TEXT = "The sky is grey . __eou__ Take a coat . __eou__\nSit ? __eou__ No . __eou__ Why ? __eou__\n"
ACTS = "1 3 \n2 1 2 \n"
EMOTIONS = "0 0 \n0 4 6 \n"


def _zip(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def _official() -> bytes:
    """The archive as it is published: a zip of zips, and the whole text beside them."""
    inner = {
        f"ijcnlp_dailydialog/{split}.zip": _zip(
            {
                f"{split}/dialogues_{split}.txt": TEXT.encode(),
                f"{split}/dialogues_act_{split}.txt": ACTS.encode(),
                f"{split}/dialogues_emotion_{split}.txt": EMOTIONS.encode(),
            }
        )
        for split in ("train", "validation", "test")
    }
    return _zip(inner | {"ijcnlp_dailydialog/dialogues_text.txt": TEXT.encode() * 3})


def test_official_zip_of_zips(tmp_path: Path) -> None:
    (tmp_path / "ijcnlp_dailydialog.zip").write_bytes(_official())
    for place in (tmp_path, tmp_path / "ijcnlp_dailydialog.zip"):
        found = load(f"dailydialog:{place}")
        assert dict(found.splits) == {"train": 2, "valid": 2, "test": 2}
        assert any("dialogues_text.txt" in file for file in found.passed_over)
    second = load(f"dailydialog:{tmp_path}", "valid")[1]
    assert second.id == "valid_1"
    assert [(turn.speaker, turn.text) for turn in second.turns] == [(0, "Sit ?"), (1, "No ."), (0, "Why ?")]
    assert dict(second.turns[1].tags) == {"act": "inform", "emotion": "happiness"}


def test_a_damaged_zip_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "train.zip"
    whole = _zip({"train/dialogues_train.txt": TEXT.encode()})
    at = whole.index(b"grey")
    for data in (whole[:at] + b"blue" + whole[at + 4 :], whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"train\.zip"):
            load(f"dailydialog:{path}")


def test_text_with_parallel_files_and_without_the_last_mark(tmp_path: Path) -> None:
    (tmp_path / "dialogues_text_En.txt").write_text("A . __eou__ B .\nC . __eou__ D . __eou__ E .")
    (tmp_path / "dialogues_topic.txt").write_text("1\n10\n")
    (tmp_path / "dialogues_action.txt").write_text("3 4\n1 1 1\n")
    (tmp_path / "dialogues_emotion.txt").write_text("0 0\n0 0 5\n")
    first, second = load(f"dailydialog:{tmp_path}")
    assert (first.topic, second.topic) == ("ordinary_life", "finance")
    assert [turn.tags["act"] for turn in first.turns] == ["directive", "commissive"]
    assert second.turns[2].tags["emotion"] == "sadness"


def test_lines_with_tabs(tmp_path: Path) -> None:
    path = tmp_path / "en_dev_human.txt"
    path.write_text("A . __eou__ B . __eou__\t6\t2 1\t0 4\n")
    (dialogue,) = load(f"dailydialog:{path}", "valid")
    assert (dialogue.topic, dialogue.turns[1].tags["emotion"]) == ("tourism", "happiness")


def test_labels_that_do_not_fit_are_left_out_and_noted(tmp_path: Path) -> None:
    (tmp_path / "dialogues_text.txt").write_text(TEXT)
    (tmp_path / "dialogues_act.txt").write_text("1 3 2\n2 1 2\n")
    found = load(f"dailydialog:{tmp_path}")
    assert [bool(dialogue.turns[0].tags) for dialogue in found] == [False, True]
    assert [(note.line, "3 labels" in note.what) for note in found.notes] == [(1, True)]
    assert not found.rejected


def test_a_line_that_is_no_dialogue_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dialogues_text.txt").write_text(f"{TEXT}no mark at all\nA . __eou__ __eou__ B .\n")
    found = load(f"dailydialog:{tmp_path}", max_rejected=0.5)
    assert [(reject.reason, reject.line) for reject in found.rejected] == [
        ("no_dialogue", 3),
        ("bad_dialogue", 4),
    ]


def test_parallel_files_of_unequal_length_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "dialogues_text.txt").write_text(TEXT)
    (tmp_path / "dialogues_act.txt").write_text("1 3\n")
    with pytest.raises(UserError, match="2 lines, but 1 of act"):
        load(f"dailydialog:{tmp_path}")


def test_plusplus_has_accepted_and_rejected_replies(tmp_path: Path) -> None:
    record = {
        "id": 7,
        "context": ["Tea ?", "Yes .", "Milk ?"],
        "positive_responses": ["Please .", "No ."],
        "adversarial_negative_responses": ["Tea grows ."],
        "random_negative_responses": ["It rains .", "Go ."],
    }
    lines = [json.dumps(record), json.dumps(record), json.dumps(record | {"id": 8, "positive_responses": []})]
    (tmp_path / "dev.json").write_text("\n".join(lines))
    found = load(f"dailydialog_plusplus:{tmp_path}", "valid", max_rejected=0.9)
    (dialogue,) = found
    reply = dialogue.turns[3]
    assert (dialogue.id, reply.speaker, reply.text) == ("valid_7", 1, "Please .")
    assert reply.accepted == ("Please .", "No .")
    assert (reply.adversarial, reply.negatives) == (("Tea grows .",), ("It rains .", "Go ."))
    assert dialogue.turns[0].accepted == ("Tea ?",)
    assert [(reject.reason, reject.line) for reject in found.rejected] == [
        ("duplicate_id", 2),
        ("bad_record", 3),
    ]
