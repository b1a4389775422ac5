"""`NAME:PATH`: where files are found, which split is meant, and when enough is enough."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from finetune.dialogue.load import NAMES, READERS, Source, load
from pretrain.errors import UserError


def _line(name: str) -> str:
    turns = [{"speaker": 0, "text": f"hello {name}"}, {"speaker": 1, "text": "hi"}]
    return json.dumps({"id": name, "turns": turns}) + "\n"


def _write(path: Path, *names: str) -> Path:
    path.write_text("".join(map(_line, names)))
    return path


def test_every_name_of_the_command_line_is_there() -> None:
    assert set(NAMES) == {
        *("convai2", "dailydialog", "dailydialog_plusplus", "msc", "persuasion", "wow"),
        *("wow_ki", "crd", "ptb", "long", "jsonl", "synthetic"),
    }


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("convai:x", "no data set 'convai' -- did you mean 'convai2'"),
        ("convai2", "not NAME:PATH"),
        ("jsonl:", "no path"),
        ("jsonl:nowhere", "no such file or folder"),
        ("jsonl:here#carve=2", "no share between"),
        ("synthetic:dialogs=3", "unknown key dialogs"),
        ("synthetic:nowhere", "neither a path nor options"),
    ],
)
def test_a_wrong_source_is_one_clear_error(spec: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load(spec)
    assert message in str(error.value)


@pytest.mark.parametrize("name", sorted(READERS))
def test_a_folder_without_the_layout_says_what_was_expected(tmp_path: Path, name: str) -> None:
    (tmp_path / "README").write_text("nothing")
    with pytest.raises(UserError, match=f"no {name} files there -- expected "):
        load(f"{name}:{tmp_path}")


@pytest.mark.parametrize("name", sorted(READERS))
def test_garbage_never_gives_a_stack_trace(tmp_path: Path, name: str) -> None:
    for file in ("train.txt", "train.json", "train.jsonl", "train.src", "full_dialog.csv"):
        (tmp_path / file).write_bytes(bytes(range(256)) * 3)
        with pytest.raises(UserError):
            load(f"{name}:{tmp_path / file}")


def test_a_gzipped_file_counts_as_the_native_one(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(_line("a").encode()))
    places = (tmp_path, tmp_path / "train.jsonl", tmp_path / "train.jsonl.gz", f"{tmp_path}/*.gz")
    for place in places:
        assert [dialogue.id for dialogue in load(f"jsonl:{place}", "train")] == ["a"]
    _write(tmp_path / "train.jsonl", "plain")
    assert [dialogue.id for dialogue in load(f"jsonl:{tmp_path}")] == ["plain"]
    assert [dialogue.id for dialogue in load(f"jsonl:{tmp_path / 'train.jsonl.gz'}")] == ["a"]


def test_a_torn_gzip_is_an_error_and_not_a_short_file(tmp_path: Path) -> None:
    packed = gzip.compress(os.urandom(100) + "".join(map(_line, "abcdefgh")).encode())
    (tmp_path / "train.jsonl.gz").write_bytes(packed[:-20])
    with pytest.raises(UserError, match=r"train\.jsonl\.gz: broken gzip"):
        load(f"jsonl:{tmp_path}")


def test_splits_go_by_their_names_and_a_missing_one_lists_those_there(tmp_path: Path) -> None:
    _write(tmp_path / "train.jsonl", "a", "b")
    _write(tmp_path / "dev.jsonl", "c")
    _write(tmp_path / "more.jsonl", "d")
    everything = load(f"jsonl:{tmp_path}")
    assert dict(everything.splits) == {"train": 2, "valid": 1}
    assert [Path(file).name for file in everything.passed_over] == ["more.jsonl"]
    assert [dialogue.id for dialogue in load(f"jsonl:{tmp_path}", "valid")] == ["c"]
    with pytest.raises(UserError, match="no test split -- there is: train, valid"):
        load(f"jsonl:{tmp_path}", "test")


def test_data_without_splits_are_carved_the_same_way_every_time(tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(40)]
    path = _write(tmp_path / "mine.jsonl", *names)
    carved = {split: [d.id for d in load(f"jsonl:{path}", split)] for split in ("train", "valid", "test")}
    assert {split: len(found) for split, found in carved.items()} == {"train": 32, "valid": 4, "test": 4}
    assert sorted(name for found in carved.values() for name in found) == sorted(names)
    assert carved["train"] == [name for name in names if name in carved["train"]]
    _write(path, *reversed(names))
    assert {d.id for d in load(f"jsonl:{path}", "valid")} == set(carved["valid"])
    assert len(load(f"jsonl:{path}#carve=0.25", "test")) == 10
    with pytest.raises(UserError, match="no dev split"):
        load(f"jsonl:{path}", "dev")


def test_a_file_of_one_split_is_carved_only_when_told(tmp_path: Path) -> None:
    path = _write(tmp_path / "valid.jsonl", *"abcdefghij")
    with pytest.raises(UserError, match=r"no train split -- there is: valid; .*#carve=0\.1"):
        load(f"jsonl:{path}", "train")
    assert len(load(f"jsonl:{path}#carve=0.1", "train")) == 8
    lonely = _write(tmp_path / "one.jsonl", "a")
    with pytest.raises(UserError, match="1 dialogues are too few"):
        load(f"jsonl:{lonely}", "train")


def test_two_data_sets_in_one_folder_are_told_apart(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        _write(tmp_path / folder / "train.jsonl", folder)
    with pytest.raises(UserError, match=r"2 data sets in one folder -- name one of: .*x, .*y"):
        load(f"jsonl:{tmp_path}")


def test_malformed_records_are_skipped_up_to_a_share(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(map(_line, map(str, range(38)))) + "{\n{\n")
    found = load(f"jsonl:{path}", max_rejected=0.05)
    assert (len(found), len(found.rejected)) == (38, 2)
    with pytest.raises(
        UserError, match=r"train\.jsonl:39: 2 of 40 records are malformed, the first: bad json"
    ):
        load(f"jsonl:{path}", max_rejected=0.02)
    with pytest.raises(UserError):
        load(f"jsonl:{path}", max_rejected=0.0)


def test_a_single_malformed_record_of_few_is_skipped_unless_none_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(_line("a") + "{\n" + _line("b"))
    found = load(f"jsonl:{path}")
    assert (len(found), [reject.place for reject in found.rejected]) == (2, [f"{path}:2"])
    with pytest.raises(UserError, match="1 of 3 records are malformed"):
        load(f"jsonl:{path}", max_rejected=0)
    path.write_text(_line("a") + "{\n{\n")
    with pytest.raises(UserError, match="2 of 3 records are malformed"):
        load(f"jsonl:{path}")


def test_a_file_that_is_hopeless_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{\n" * 5000)
    with pytest.raises(UserError, match="1000 of 1000 records"):
        load(f"jsonl:{tmp_path}", max_rejected=0.5)


def test_nothing_that_can_be_read_is_an_error_whatever_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("{\n")
    with pytest.raises(UserError, match="1 of 1 records are malformed"):
        load(f"jsonl:{path}", max_rejected=1.0)
    path.write_text("\n")
    with pytest.raises(UserError, match="no dialogue in it"):
        load(f"jsonl:{path}")


def test_a_source_made_absolute_reads_the_same_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path / "mine.jsonl", *"abcdefghij")
    monkeypatch.chdir(tmp_path)
    here = Source.parse("jsonl:mine.jsonl#carve=0.2")
    absolute = str(here.absolute())
    monkeypatch.chdir("/")
    assert len(load(absolute, "test")) == 2
    assert str(Source.parse("synthetic:dialogues=3").absolute()) == "synthetic:dialogues=3"
