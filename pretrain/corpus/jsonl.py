"""JSON lines: C4, Pile, OpenWebText2, cc_net, Dolma, arXiv dumps and anything alike; and rows of data
sets.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pretrain.corpus.documents import BadRecordError, Block, Document, ReadOptions, Reject


def parse_jsonl(block: Block, options: ReadOptions) -> Iterator[Document | Reject]:
    """A document for each line, or the reason why there is none. Blank lines are nothing."""
    position = block.byte or 0
    for number, line in enumerate(block.payload.split(b"\n"), start=block.line or 1):
        if line.strip():
            try:
                yield Document(field_text(_load(line), options.text_field))
            except BadRecordError as error:
                yield Reject(block.file, error.reason, error.detail, number, position)
        position += len(line) + 1


def parse_rows(block: Block, options: ReadOptions) -> Iterator[Document | Reject]:
    """Documents of rows that were read elsewhere; a line holds the text alone, as JSON."""
    for line in block.payload.split(b"\n"):
        yield Document(json.loads(line))


def field_text(record: Any, path: str) -> str:
    """The text at a dotted path; lists on the way are read element by element and joined with line feeds.

    Raises BadRecordError: "missing_field" when the path leads nowhere or to something that is no text,
    "invalid_unicode" when the text holds half a surrogate pair, which JSON can spell and UTF-8 cannot.
    """
    text = "\n".join(_leaves(record, path.split("."), path))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRecordError("invalid_unicode", f"lone surrogate at character {error.start}") from None
    return text


def _load(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8").removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        raise BadRecordError("invalid_utf8", f"byte {error.start} of the line") from None
    except (ValueError, RecursionError) as error:
        raise BadRecordError("bad_json", str(error)) from None


def _leaves(value: Any, keys: list[str], path: str) -> Iterator[str]:
    if isinstance(value, list):
        for element in value:
            yield from _leaves(element, keys, path)
    elif keys:
        if not isinstance(value, dict) or keys[0] not in value:
            raise BadRecordError("missing_field", f"no {path}")
        yield from _leaves(value[keys[0]], keys[1:], path)
    elif isinstance(value, str):
        yield value
    else:
        raise BadRecordError("missing_field", f"{path} is no text but {type(value).__name__}")
