"""Encyclopedias of every layout become items; what is no knowledge is dropped and counted."""

from __future__ import annotations

import bz2
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from finetune.knowledge.base import BaseOptions, KnowledgeBase, build, first_sentences
from finetune.knowledge.titles import Titles, write
from finetune.knowledge.wikipedia import plain_lead
from pretrain.errors import UserError

OWL = "Owls are birds from the order Strigiformes. They fly at night."
ARTICLES = [
    ("Owl", OWL),
    (
        "J. K. Rowling",
        "J. K. Rowling\n\nJoanne Rowling, known as J. K. Rowling, is a British author. She lives.",
    ),
    ("Play", "Play may refer to:\n\nplaying\ntheatre"),
    ("Mercury (disambiguation)", "Mercury is the name of several different things here."),
    ("List of owls", "This is a list of all the owls there are."),
    ("UFO", "#REDIRECT [[Unidentified flying object]]"),
    ("Stub", "A stub."),
    ("Nothing", " \n "),
]
DUMP = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/"><siteinfo><sitename>W</sitename></siteinfo>
<page><title>Owl</title><ns>0</ns><revision><text>{{Taxobox|name=Owl}}
[[File:Owl.jpg|thumb|An [[owl]] at night]]
'''Owls''' (; {{lang|la|noctua}}) are [[bird]]s from the
[[order (biology)|order]] Strigiformes.&lt;ref&gt;A book.&lt;/ref&gt; They fly.

== Life ==
They eat mice.</text></revision></page>
<page><title>Talk:Owl</title><ns>1</ns>
<revision><text>This is a page where people talk of owls.</text></revision></page>
<page><title>Owls</title><ns>0</ns><redirect title="Owl"/>
<revision><text>#REDIRECT [[Owl]]</text></revision></page>
</mediawiki>"""


def json_lines(path: Path, articles: list[tuple[str, str]]) -> Path:
    rows = [json.dumps({"title": title, "text": text}) for title, text in articles]
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def items(base: KnowledgeBase) -> list[tuple[str, str]]:
    rows = range(len(base))
    return list(zip(base.names(rows), base.sentences(rows), strict=True))


def test_an_article_gives_its_first_sentence(tmp_path: Path) -> None:
    base = build([str(json_lines(tmp_path / "wiki.jsonl", ARTICLES))], tmp_path / "base")
    assert items(base) == [
        ("Owl", "Owls are birds from the order Strigiformes."),
        ("J. K. Rowling", "Joanne Rowling, known as J. K. Rowling, is a British author."),
    ]
    dropped = {"disambiguation": 2, "list": 1, "redirect": 1, "short": 1, "empty": 1}
    assert base.manifest["dropped"] == dropped
    assert base.manifest["articles"] == len(ARTICLES)
    assert items(KnowledgeBase.open(tmp_path / "base")) == items(base)


def test_more_sentences_are_items_of_their_own_and_the_title_means_the_first(tmp_path: Path) -> None:
    source = json_lines(
        tmp_path / "wiki.jsonl", [("Fox", "Foxes are small wild dogs here. They run."), *ARTICLES[:1]]
    )
    base = build([str(source)], tmp_path / "base", BaseOptions(sentences_per_article=2))
    assert [title for title, _ in items(base)] == ["Fox", "Fox", "Owl", "Owl"]
    assert base.titles.find("owl") == 2


def test_rows_do_not_depend_on_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.knowledge.base._CHUNK", 3)
    many = [(f"{title} {n}", text) for n in range(4) for title, text in ARTICLES]
    source = json_lines(tmp_path / "wiki.jsonl", many)
    one, three = (build([str(source)], tmp_path / f"{n}", workers=n) for n in (1, 3))
    assert items(one) == items(three)
    assert one.hash == three.hash
    (tmp_path / "pages.xml").write_text(DUMP[:500], encoding="utf-8")
    with pytest.raises(UserError, match="no whole dump"):
        build([str(tmp_path / "pages.xml")], tmp_path / "base", workers=2)


@pytest.mark.parametrize("layout", ["tsv", "tsv.bz2", "jsonl", "parquet"])
def test_layouts_agree(tmp_path: Path, layout: str) -> None:
    file = tmp_path / f"wiki.{layout}"
    if layout == "jsonl":
        json_lines(file, ARTICLES[:1])
    elif layout == "parquet":
        parquet.write_table(pa.table({"title": ["Owl"], "text": [OWL]}), file)
    else:
        content = f"Owl\t{first_sentences(OWL)[0]}\n".encode()
        file.write_bytes(bz2.compress(content) if layout.endswith("bz2") else content)
    assert items(build([str(file)], tmp_path / "base")) == [
        ("Owl", "Owls are birds from the order Strigiformes.")
    ]


def test_a_dump_is_read_without_markup_and_other_namespaces(tmp_path: Path) -> None:
    (tmp_path / "pages.xml.bz2").write_bytes(bz2.compress(DUMP.encode()))
    base = build([str(tmp_path / "pages.xml.bz2")], tmp_path / "base")
    assert items(base) == [("Owl", "Owls are birds from the order Strigiformes.")]
    assert base.manifest["dropped"] == {"redirect": 1}


def test_a_torn_dump_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "pages.xml").write_text(DUMP[:500], encoding="utf-8")
    with pytest.raises(UserError, match="no whole dump"):
        build([str(tmp_path / "pages.xml")], tmp_path / "base")
    (tmp_path / "pages.xml.bz2").write_bytes(bz2.compress(DUMP.encode())[:-20])
    with pytest.raises(UserError, match="broken"):
        build([str(tmp_path / "pages.xml.bz2")], tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_malformed_lines_are_counted_and_too_many_are_refused(tmp_path: Path) -> None:
    lines = [f"Owl {n}\tOwls are birds of the night number {n}." for n in range(60)]
    (tmp_path / "wiki.tsv").write_text("\n".join([*lines, "no tab", "\tno title"]), encoding="utf-8")
    base = build([str(tmp_path / "wiki.tsv")], tmp_path / "base")
    assert (len(base), base.manifest["rejected"]) == (60, 2)
    (tmp_path / "bad.tsv").write_text("\n".join([*lines[:3], "x", "y", "z"]), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"3 of 6 records are malformed, the first: \S*bad\.tsv:4: not title TAB sentence"
    ):
        build([str(tmp_path / "bad.tsv")], tmp_path / "other")
    with pytest.raises(UserError, match="no such file"):
        build([str(tmp_path / "absent.tsv")], tmp_path / "other")
    parquet.write_table(pa.table({"name": ["Owl", "Cat", "Fox"]}), tmp_path / "other.parquet")
    with pytest.raises(
        UserError, match=r"3 of 3 records are malformed, .* needs title and text -- each needs"
    ):
        build([str(tmp_path / "other.parquet")], tmp_path / "other")
    (tmp_path / "one.tsv").write_text("no tab\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"\(1 rejected; the first: \S*one\.tsv:1: not title TAB sentence\)"):
        build([str(tmp_path / "one.tsv")], tmp_path / "other")
    (tmp_path / "short.tsv").write_text("Owl\tOwls fly.\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"no article .* \(1 short\) -- .*--min-words"):
        build([str(tmp_path / "short.tsv")], tmp_path / "other")


def test_titles_ignore_case_and_space_but_not_brackets(tmp_path: Path) -> None:
    write(
        tmp_path / "titles",
        [("Wizard  of Oz", 3), ("Play (theatre)", 4), ("STRASSE", 5), ("Owl", 9), ("owl", 7)],
    )
    titles = Titles(tmp_path / "titles")
    assert titles.find("wizard of  OZ") == 3
    assert titles.find("play") is None
    assert titles.find("play (Theatre)") == 4
    assert titles.find("straße") == 5
    assert titles.find("OWL") == 7


def test_equal_sentences_have_equal_hashes(tmp_path: Path) -> None:
    (tmp_path / "wiki.tsv").write_text(
        "A\tThis is a village in Poland.\n" * 2 + "B\tThis is a village in Peru.\n"
    )
    hashes = build([str(tmp_path / "wiki.tsv")], tmp_path / "base").hashes
    assert hashes[0] == hashes[1] != hashes[2]


def test_markup_leaves_no_trace() -> None:
    text = (
        "{{Short}}'''[[Paris|The city]]''' (''French'') is<ref name='x'>y</ref> a city.\n\n==History==\nOld."
    )
    assert plain_lead(text) == "The city (French) is a city."
