"""Every native format, written the way the corpora write it, read back as documents."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pretrain.corpus.documents import Document, Passage, ReadOptions, Reject
from pretrain.corpus.encode import task_items
from pretrain.corpus.formats import SPLIT
from pretrain.corpus.sources import FORMATS, SourceSpec, expand
from pretrain.corpus.tasks import tasks
from tests.pretrain.corpus.conftest import jsonl, text_of

Write = Callable[[str, bytes], Path]
TEXTS = [text_of(seed, 40) for seed in range(6)]


def read(
    *inputs: Path | str, format: str = "auto", **options: Any
) -> tuple[list[str], dict[str, int], list[Reject]]:
    """Texts, number of files by format, and rejects of a source."""
    spec = SourceSpec("test", tuple(map(str, inputs)), format, ReadOptions(**options))
    texts, formats, rejects = [], Counter[str](), []
    for task in tasks(spec, expand(spec).files):
        for item in task_items(task, formats):
            match item:
                case Document():
                    texts.append(item.text)
                case Passage():
                    texts.extend(item.lines)
                case Reject():
                    rejects.append(item)
    return texts, dict(formats), rejects


def tar_of(files: dict[str, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar archive in memory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


RECORDS = [{"text": text, "meta": {"pile_set_name": "Pile-CC"}} for text in TEXTS]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        (
            "c4-train.00000-of-01024.json.gz",
            gzip.compress(jsonl([{"url": "u", "timestamp": "t", **r} for r in RECORDS])),
        ),
        ("00.jsonl.zst", zstandard.ZstdCompressor().compress(jsonl(RECORDS))),
        (
            "openwebtext2.jsonl.zst",
            b"".join(zstandard.ZstdCompressor().compress(jsonl([r])) for r in RECORDS),
        ),
        ("en_head_0000.json.gz", gzip.compress(jsonl([{"raw_content": "no", **r} for r in RECORDS]))),
        (
            "dolma-0001.jsonl.gz",
            b"".join(gzip.compress(jsonl([{"id": "1", "source": "cc", **r}])) for r in RECORDS),
        ),
        ("plain.jsonl", jsonl(RECORDS)),
        ("no_final_newline.jsonl", jsonl(RECORDS).rstrip(b"\n")),
        ("windows.jsonl", b"\xef\xbb\xbf" + jsonl(RECORDS).replace(b"\n", b"\r\n")),
        ("disguised.txt", jsonl(RECORDS)),
    ],
)
def test_json_lines_in_all_packings(write: Write, name: str, data: bytes) -> None:
    assert read(write(name, data)) == (TEXTS, {"jsonl": 1}, [])


def test_line_separators_inside_json_strings_stay(write: Write) -> None:
    text = "one\u2028two\u2029three\x85four"
    data = ('{"text": "' + text + '"}\n').encode()
    assert read(write("cc.jsonl", data))[0] == [text]


@pytest.mark.parametrize(
    ("path", "record", "text"),
    [
        ("body", {"body": "b"}, "b"),
        ("a.b", {"a": {"b": "deep"}}, "deep"),
        ("article_text", {"article_text": ["one", "two"]}, "one\ntwo"),
        ("body_text.text", {"body_text": [{"text": "one"}, {"text": "two"}]}, "one\ntwo"),
        ("s.p", {"s": [{"p": ["a", "b"]}, {"p": ["c"]}]}, "a\nb\nc"),
    ],
)
def test_the_text_field_is_a_path(write: Write, path: str, record: dict[str, Any], text: str) -> None:
    assert read(write("a.jsonl", jsonl([record])), text_field=path)[0] == [text]


def test_openwebtext_in_every_stage_of_unpacking(write: Write, tmp_path: Path) -> None:
    texts = {f"{n:07}-{n:032x}.txt": (text + "\n").encode() for n, text in enumerate(TEXTS)}
    names = list(texts)
    inner = [lzma.compress(tar_of({name: texts[name] for name in names[at : at + 3]})) for at in (0, 3)]
    outer = tar_of({f"openwebtext/urlsf_subset{n:02}-1_data.xz": data for n, data in enumerate(inner)})
    whole = write("openwebtext.tar.xz", lzma.compress(outer))
    parts = [write(f"openwebtext/urlsf_subset{n:02}-1_data.xz", data) for n, data in enumerate(inner)]
    for name, data in texts.items():
        write(f"extracted/{name}", data)
    assert read(whole) == (TEXTS, {"tar": 1}, [])
    assert read(*parts) == (TEXTS, {"tar": 2}, [])
    assert read(tmp_path / "openwebtext") == (TEXTS, {"tar": 2}, [])
    assert read(tmp_path / "extracted") == (TEXTS, {"text": 6}, [])


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_archives(write: Write, format: int) -> None:
    files = {f"{'folder/' * 30}{n}ü.txt": text.encode() for n, text in enumerate(TEXTS)}
    texts, _, rejects = read(write("long.tar", tar_of({**files, "readme.md": b"no"}, format)))
    assert (texts, rejects) == (TEXTS, [])


def test_archives_larger_than_a_block(write: Write) -> None:
    texts = [text_of(n, 30_000) for n in range(40)]
    archive = write("big.tar", tar_of({f"{n}.txt": text.encode() for n, text in enumerate(texts)}))
    assert archive.stat().st_size > 4 << 20
    assert read(archive)[0] == texts


def wet_record(text: str, kind: str = "conversion", end: str = "\r\n", length: int | None = None) -> bytes:
    """One WARC record."""
    size = len(text.encode()) if length is None else length
    headers = [
        "WARC/1.0",
        f"WARC-Type: {kind}",
        "WARC-Target-URI: http://a.example",
        f"Content-Length: {size}",
        "",
        "",
    ]
    return end.join(headers).encode() + text.encode() + 2 * end.encode()


@pytest.mark.parametrize("end", ["\r\n", "\n"])
@pytest.mark.parametrize("pack", [bytes, lambda data: b"".join(map(gzip.compress, [data[:900], data[900:]]))])
def test_wet(write: Write, end: str, pack: Callable[[bytes], bytes]) -> None:
    bodies = [*TEXTS, "日本語\nWARC/1.0 in a line\n\nWARC/1.0\n"]
    data = wet_record("software: x", "warcinfo", end) + b"".join(wet_record(body, end=end) for body in bodies)
    texts, formats, rejects = read(write("CC-MAIN-00000.warc.wet.gz", pack(data)))
    assert (texts, formats, rejects) == ([body.strip() for body in bodies], {"wet": 1}, [])


def test_wet_whose_lengths_count_characters(write: Write) -> None:
    text = "日本語のページ"
    assert read(write("sample.warc.wet", wet_record(text, length=len(text), end="\n")))[0] == [text]


SENTENCES = [f"she said {word} to him ." for word in text_of(9, 60).lower().replace(".", "").split()]


@pytest.mark.parametrize("name", ["books_large_p1.txt", "books_large_p2.txt.gz", "elsewhere.txt"])
def test_sentence_lines(write: Write, name: str) -> None:
    data = "".join(f"{line}\n" for line in SENTENCES).encode()
    file = write(name, gzip.compress(data) if name.endswith("gz") else data)
    assert read(file) == (SENTENCES, {"sentences": 1}, [])


def test_whole_books(write: Write, tmp_path: Path) -> None:
    book = "CHAPTER I\r\n\r\nIt was a dark night.\r\nIt rained.\u2028On and on.\r\n"
    write("novels/a.txt.gz", gzip.compress(b"\xef\xbb\xbf" + book.encode()))
    write("novels/deeper/b.txt", book.replace("dark", "light").encode())
    write("novels/metadata.csv", b"id,title\n")
    write("novels/train", b"a\n")
    texts, formats, rejects = read(tmp_path / "novels")
    assert texts[0] == "CHAPTER I\n\nIt was a dark night.\nIt rained.\u2028On and on."
    assert texts[1] == texts[0].replace("dark", "light")
    assert (formats, rejects) == ({"text": 2}, [])
    assert expand(SourceSpec("x", (str(tmp_path / "novels"),))).passed_over == ["metadata.csv", "train"]


BOOK = "MOBY-DICK\n\nCall me Ishmael.\n\n*** A row of stars ***\n\nThe end."


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "The Project Gutenberg eBook of X\n\n*** START OF THE PROJECT GUTENBERG EBOOK MOBY ***\n\n\n",
            "\n\n*** END OF THE PROJECT GUTENBERG EBOOK MOBY ***\nlicence\n",
        ),
        (
            "Header\n***START OF THIS PROJECT GUTENBERG EBOOK A LONG\nTITLE IN TWO LINES***\n",
            "\nEnd of the Project Gutenberg EBook of M\n\n*** END OF THIS PROJECT GUTENBERG EBOOK M ***\n",
        ),
        ("", "\n*** END OF THE PROJECT GUTENBERG EBOOK MOBY ***\n"),
        ("", ""),
    ],
)
def test_gutenberg_frames_are_cut(write: Write, before: str, after: str) -> None:
    file = write("pg2701.txt", (before + BOOK + after).encode())
    assert read(file)[0] == [BOOK]


def test_pg19_split_folders(write: Write, tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(f"pg19/{split}/10006.txt", f"\r\n\r\n{split} book\r\n".encode())
    write("pg19/metadata.csv", b"10006,Title,1800,url\n")
    assert read(tmp_path / "pg19")[0] == ["test book", "train book"]


def test_wikitext_articles(write: Write) -> None:
    articles = [
        f"= {title} = \n \n {text} \n = = Part = = \n \n = not a title =\n {text}"
        for title, text in zip(["Homarus", "M @-@ 82 ( road )"], TEXTS[:2], strict=True)
    ]
    data = "".join(f" \n {article} \n \n" for article in articles)
    texts, formats, _ = read(write("wiki.valid.tokens", data.encode()))
    assert (texts, formats) == (articles, {"wikitext": 1})


def test_pages_between_blank_lines(write: Write) -> None:
    pages = [text.replace(". ", ".\n") for text in TEXTS]
    data = "\n\n\n".join(pages).encode()
    assert read(write("en_part_1.txt.gz", gzip.compress(data)), format="pages") == (pages, {"pages": 1}, [])
    assert (
        read(write("windows.txt", "\n\n".join(pages).replace("\n", "\r\n").encode()), format="pages")[0]
        == pages
    )


def test_blocks_do_not_change_what_large_files_hold(write: Write) -> None:
    texts = [text_of(n, 3000) for n in range(400)]
    articles = [f"= T{n} = \n \n {text}" for n, text in enumerate(texts)]
    files = {
        "large.jsonl": jsonl([{"text": text} for text in texts]),
        "large.wet": b"".join(map(wet_record, texts)),
        "large.tokens": "".join(f" \n {article} \n \n" for article in articles).encode(),
    }
    for name, data in files.items():
        file = write(name, data)
        assert file.stat().st_size > 4 << 20
        assert read(file)[0] == (articles if name.endswith("tokens") else texts)


def test_the_format_can_be_forced(write: Write) -> None:
    file = write("a.txt", b'{"text": "as it stands"}\n')
    assert read(file)[0] == ["as it stands"]
    assert read(file, format="text")[0] == ['{"text": "as it stands"}']


def test_the_formats_offered_are_those_that_exist() -> None:
    assert set(FORMATS) == {"auto", *SPLIT} - {"module"}
