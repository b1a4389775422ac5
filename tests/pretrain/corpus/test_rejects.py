"""Bad records: each is told with file, position and reason, and what is good around it is kept."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pretrain.corpus.documents import InputFile, ReadOptions
from pretrain.corpus.encode import Task, task_items
from tests.pretrain.corpus.conftest import jsonl, text_of
from tests.pretrain.corpus.test_formats import TEXTS, read, tar_of, wet_record

Write = Callable[[str, bytes], Path]
GOOD = jsonl([{"text": "before"}])
AFTER = jsonl([{"text": "after"}])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "broken \xff\xfe"}', "invalid_utf8"),
        (b'{"text": "cut', "bad_json"),
        (b"not json at all", "bad_json"),
        (b"[" * 200_000, "bad_json"),
        (b'{"txt": "wrong name"}', "missing_field"),
        (b'{"text": null}', "missing_field"),
        (b'{"text": {"deep": 1}}', "missing_field"),
        (b'["text"]', "missing_field"),
        (b'{"text": "half \\ud83d"}', "invalid_unicode"),
        (b'{"text": "' + b"x" * 300_000 + b'"}', "line_too_long"),
    ],
)
def test_bad_json_lines(write: Write, line: bytes, reason: str) -> None:
    file = write("a.jsonl", GOOD + line + b"\n" + AFTER)
    texts, _, rejects = read(file, max_document_bytes=250_000)
    assert texts == ["before", "after"]
    assert [(r.file, r.reason, r.line, r.byte) for r in rejects] == [(str(file), reason, 2, len(GOOD))]
    assert [
        r.line for r in read(write("first.jsonl", line + b"\n" + GOOD), max_document_bytes=250_000)[2]
    ] == [1]


@pytest.mark.parametrize(
    ("name", "pack", "reason"),
    [
        ("a.jsonl.gz", gzip.compress, "broken_gzip"),
        ("a.jsonl.zst", zstandard.ZstdCompressor().compress, "broken_zstd"),
        ("a.jsonl.xz", lzma.compress, "broken_xz"),
    ],
)
def test_truncated_files_keep_their_whole_records(
    write: Write, name: str, pack: Callable[[bytes], bytes], reason: str
) -> None:
    texts = [text_of(n, 60) for n in range(6000)]
    packed = pack(jsonl([{"text": text} for text in texts]))
    found, _, rejects = read(write(name, packed[: len(packed) * 2 // 3]))
    assert found == texts[: len(found)]
    assert 3000 < len(found) < 5000
    assert [(r.reason, r.line) for r in rejects] == [(reason, None)]
    assert rejects[0].byte


def _archive() -> bytes:
    return tar_of({f"{n}.txt": text.encode() for n, text in enumerate(TEXTS)})


@pytest.mark.parametrize(
    ("damage", "kept", "detail"),
    [
        (lambda data: data[: 1024 * 3 + 100], 3, "without its end mark"),
        (lambda data: data[: 1024 * 3 + 600], 3, "inside a member"),
        (lambda data: data[: 1024 * 6], 6, "without its end mark"),
        (lambda data: data[: 1024 * 2 + 5] + b"\xff\xff" + data[1024 * 2 + 7 :], 2, "bad checksum"),
    ],
)
def test_broken_archives(write: Write, damage: Callable[[bytes], bytes], kept: int, detail: str) -> None:
    assert len(_archive()) > 1024 * 6
    texts, _, rejects = read(write("a.tar", damage(_archive())))
    assert texts == TEXTS[:kept]
    assert [r.reason for r in rejects] == ["broken_tar"]
    assert detail in rejects[0].detail


def test_a_broken_archive_inside_an_archive(write: Write) -> None:
    good, bad = lzma.compress(_archive()), lzma.compress(_archive())[:300]
    outer = tar_of({"urlsf_subset00-1_data.xz": bad, "urlsf_subset01-1_data.xz": good})
    file = write("openwebtext.tar", outer)
    texts, _, rejects = read(file)
    assert texts[-6:] == TEXTS
    assert [(r.file, r.reason) for r in rejects] == [(f"{file}!urlsf_subset00-1_data.xz", "broken_xz")]


def test_archives_without_text_or_with_a_giant(write: Write) -> None:
    assert [r.reason for r in read(write("a.tar", tar_of({"main.tex": b"no"})))[2]] == ["no_text"]
    texts, _, rejects = read(
        write("b.tar", tar_of({"a.txt": b"x" * 5000, "b.txt": b"ok"})), max_document_bytes=4096
    )
    assert texts == ["ok"]
    assert [(r.reason, r.byte) for r in rejects] == [("document_too_long", 0)]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("latin.txt", "café au lait".encode("latin-1"), "invalid_utf8"),
        ("long.txt", b"word " * 1000, "document_too_long"),
        ("paper.txt", b"%PDF-1.7\n", "unknown_format"),
        ("table.jsonl", b"PAR1....", "unknown_format"),
        ("binary.txt", b"ab\0cd", "unknown_format"),
        ("array.json", b'[\n {"text": "x"}\n]\n', "unknown_format"),
        ("array.json.gz", gzip.compress(b'[{"text": "x"}, {"text": "y"}]'), "unknown_format"),
    ],
)
def test_bad_text_files(write: Write, name: str, data: bytes, reason: str) -> None:
    texts, _, rejects = read(write(name, data), max_document_bytes=4096)
    assert texts == []
    assert [r.reason for r in rejects] == [reason]


@pytest.mark.parametrize(
    ("record", "detail"),
    [
        (wet_record("<html>", "response"), "raw HTML"),
        (wet_record("cut", length=100), "of 100 bytes"),
        (b"WARC/1.0\r\nWARC-Type: conversion\r\n", "no WARC header"),
    ],
)
def test_bad_warc_records(write: Write, record: bytes, detail: str) -> None:
    data = wet_record("before") + record + wet_record("after")
    texts, _, rejects = read(write("a.wet", data))
    assert texts == ["before", "after"]
    assert [(r.reason, r.line, r.byte) for r in rejects] == [("bad_warc", 8, len(wet_record("before")))]
    assert detail in rejects[0].detail


def test_one_bad_line_among_sentences(write: Write) -> None:
    data = b"good one .\nbad \xff one .\nanother .\n"
    texts, _, rejects = read(write("books_large_p1.txt", data))
    assert texts == ["good one .", "another ."]
    assert [(r.reason, r.line, r.byte) for r in rejects] == [("invalid_utf8", 2, 11)]


def test_a_file_without_permission_or_gone(write: Write, tmp_path: Path) -> None:
    gone = InputFile("file", "gone.txt", str(tmp_path / "gone.txt"), 3)
    found: list[Any] = list(task_items(Task("auto", ReadOptions(), files=(gone,))))
    assert [(r.file, r.reason) for r in found] == [("gone.txt", "unreadable")]
