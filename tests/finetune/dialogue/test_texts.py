"""Texts for language modelling: sentences, books, papers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from finetune.dialogue.load import load


def test_a_sentence_of_the_treebank_is_a_turn(tmp_path: Path) -> None:
    (tmp_path / "ptb.valid.txt").write_text(" a <unk> fell N points \n no it did n't \n")
    found = load(f"ptb:{tmp_path}", "valid")
    assert [dialogue.turns[0].text for dialogue in found] == ["a <unk> fell N points", "no it did n't"]


def test_books_in_folders_with_their_titles(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text('1,"One, a Book",1900,http://x\n2,Two,1901,http://y\n')
    for split, number in (("train", 1), ("test", 2)):
        (tmp_path / split).mkdir()
        (tmp_path / split / f"{number}.txt.gz").write_bytes(
            gzip.compress(b"\xef\xbb\xbfA line.\r\nAnother.\r\n")
        )
    (book,) = load(f"long:{tmp_path}", "train")
    assert (book.id, book.topic, book.turns[0].text) == ("1", "One, a Book", "A line.\nAnother.")
    assert [book.id for book in load(f"long:{tmp_path}")] == ["1", "2"]


def test_books_with_lists_of_their_splits(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("Words.")
    (tmp_path / "train").write_text('["train/0.txt"]')
    (tmp_path / "validation").write_text('["validation/2.txt"]')
    (tmp_path / "test").write_text('["test/1.txt"]')
    assert [load(f"long:{tmp_path}", split)[0].id for split in ("train", "valid", "test")] == ["0", "2", "1"]


def test_papers_have_their_formulas_put_back(tmp_path: Path) -> None:
    paper = {
        "paper_id": "2212.1",
        "metadata": {"title": "On\n  Sums"},
        "body_text": [{"text": "Let {{formula:f}} be {{cite:c}} small."}, {"text": "Done."}],
        "ref_entries": {"f": {"latex": " x_1 "}, "t": {"caption": "no formula"}},
    }
    other = {"article_id": "a", "article_text": ["one .", "two ."]}
    path = tmp_path / "papers.jsonl"
    path.write_text("\n".join(map(json.dumps, (paper, other, {"title": "no text"}))))
    found = load(f"long:{path}", max_rejected=0.5)
    assert [(dialogue.id, dialogue.topic, dialogue.turns[0].text) for dialogue in found] == [
        ("2212.1", "On Sums", "Let x_1 be small.\nDone."),
        ("a", "", "one .\ntwo ."),
    ]
    assert [(reject.reason, reject.line) for reject in found.rejected] == [("missing_field", 3)]
