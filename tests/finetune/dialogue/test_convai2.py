"""PersonaChat's numbered text: who says what, whose persona, which of many files."""

from __future__ import annotations

from pathlib import Path

from finetune.dialogue.load import load

BOTH = """\
1 your persona: i have two dogs.
2 partner's persona: i am a baker.
3 partner's persona: i live alone.
4 hello !\thi , do you have pets ?
5 no . do you ?\tyes , two dogs .
1 your persona: i paint.
2 good morning .\tgood morning to you .
"""
SELF = "1 your persona: i have two dogs.\n2 hello !\thi , pets ?\t\tno way .|hi , pets ?\n"


def test_partner_opens_and_each_has_a_persona(tmp_path: Path) -> None:
    path = tmp_path / "valid_both_original_no_cands.txt"
    path.write_text(BOTH)
    first, second = load(f"convai2:{path}")
    assert [(turn.speaker, turn.text) for turn in first.turns] == [
        (0, "hello !"),
        (1, "hi , do you have pets ?"),
        (0, "no . do you ?"),
        (1, "yes , two dogs ."),
    ]
    assert first.personas == (("i am a baker.", "i live alone."), ("i have two dogs.",))
    assert second.personas == ((), ("i paint.",))
    assert (first.id, second.id) == ("valid_0", "valid_1")


def test_candidates_stand_on_the_reply_with_the_true_one_last(tmp_path: Path) -> None:
    path = tmp_path / "train_self_original.txt"
    path.write_text(SELF)
    (dialogue,) = load(f"convai2:{path}")
    assert [turn.candidates for turn in dialogue.turns] == [(), ("no way .", "hi , pets ?")]
    assert dialogue.turns[1].text == "hi , pets ?"


def test_of_the_same_dialogues_the_file_that_tells_most_is_read(tmp_path: Path) -> None:
    for name in ("none_original", "self_original", "self_original_no_cands", "both_revised", "both_original"):
        (tmp_path / f"train_{name}.txt").write_text(SELF if "self" in name else BOTH)
    found = load(f"convai2:{tmp_path}", "train")
    assert [Path(file).name for file in found.files] == ["train_both_original.txt"]
    assert len(found.passed_over) == 4
    only = load(f"convai2:{tmp_path}/*self*", "train")
    assert [Path(file).name for file in only.files] == ["train_self_original.txt"]


def test_a_dialogue_with_a_bad_line_is_left_out_and_the_line_named(tmp_path: Path) -> None:
    good = "1 hello !\thi .\n"
    bad = {
        "no_reply": b"1 hello !\thi .\n2 no tab here\n",
        "bad_number": b"1 hello !\thi .\n3 three follows one\tyes\n",
        "invalid_utf8": b"1 hello !\thi .\n2 caf\xe9\tyes\n",
        "bad_dialogue": b"1 hello !\thi .\n2 say nothing\t\n",
    }
    path = tmp_path / "train_none_original.txt"
    path.write_bytes(good.encode() + b"".join(text + good.encode() for text in bad.values()))
    found = load(f"convai2:{path}", max_rejected=0.5)
    assert len(found) == 5
    told = [(reject.reason, reject.line) for reject in found.rejected]
    assert told == [("no_reply", 3), ("bad_number", 6), ("invalid_utf8", 9), ("bad_dialogue", 11)]
