"""`hf://NAME[:config][:split]`: rows of a data set on the Hugging Face hub or in a folder, streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pretrain.corpus.documents import BadRecordError, Block, ReadOptions, Reject
from pretrain.corpus.jsonl import field_text
from pretrain.corpus.lines import BLOCK_BYTES
from pretrain.errors import UserError


def open_rows(address: str) -> Any:
    """The rows of `NAME[:config][:split]` (the split defaults to train) as a streaming data set.

    Raises UserError when it cannot be found or opened.
    """
    import datasets

    name, config, split = (*address.split(":"), "", "")[:3]
    try:
        return datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
    except Exception as error:  # kinds of the library, of file systems, of the hub
        raise UserError(
            f"this data set cannot be opened ({_first_line(error)})",
            where=f"hf://{address}",
            mend="check name, config and split, and whether the hub can be reached",
        ) from None


def row_blocks(address: str, options: ReadOptions) -> Iterator[Block | Reject]:
    """Blocks of texts of a data set. Raises UserError when reading stops before the end."""
    file = f"hf://{address}"
    rows = iter(open_rows(address))
    number, texts, length = 0, list[bytes](), 0
    while (row := _next_row(rows, file, number)) is not None:
        number += 1
        try:
            texts.append(_text(row, options))
        except BadRecordError as error:
            yield Reject(file, error.reason, error.detail, line=number)
            continue
        length += len(texts[-1])
        if length >= BLOCK_BYTES:
            yield Block("rows", file, b"\n".join(texts))
            texts, length = [], 0
    if texts:
        yield Block("rows", file, b"\n".join(texts))


def _next_row(rows: Iterator[Any], file: str, number: int) -> Any:
    try:
        return next(rows, None)
    except Exception as error:  # see open_rows
        raise UserError(
            f"reading stopped after row {number} ({_first_line(error)})",
            where=file,
            mend="run the same command again to go on",
        ) from None


def _text(row: Any, options: ReadOptions) -> bytes:
    text = json.dumps(field_text(row, options.text_field)).encode()
    if len(text) > options.max_document_bytes:
        raise BadRecordError("document_too_long", f"more than {options.max_document_bytes} bytes")
    return text


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().split("\n")[0]
