"""Our own format: a dialogue a line, with the fields of `Dialogue` and `Turn` as keys; unknown keys are
refused.

    {"id": "a", "turns": [{"speaker": 0, "text": "hello !"}, {"speaker": 1, "text": "hi ."}],
     "personas": [[], ["i paint ."]]}

Only `turns` with `speaker` and `text` must be there; without `id` the line number names the dialogue. A
folder has `train.jsonl`, `valid.jsonl`, `test.jsonl`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from finetune.dialogue.dialogue import Dialogue
from finetune.dialogue.files import File, Part, by_split
from finetune.dialogue.records import Item, Line, from_json, from_lines, from_python
from pretrain.errors import UserError

LAYOUT = "dialogues.jsonl, or train.jsonl, valid.jsonl, test.jsonl"


def parts(files: Sequence[File]) -> list[Part]:
    """Files of JSON lines by split."""
    return by_split(files, r".*\.jsonl")


def read(part: Part) -> Iterator[Item]:
    """Dialogues in the order of the lines."""
    for file in part.files:
        yield from from_lines(file, partial(_dialogue, file.path.stem))


def write(path: Path, dialogues: Iterable[Dialogue]) -> int:
    """Write dialogues; the number of them. The file is complete or as it was before.

    Raises:
        UserError: it cannot be written.
    """
    aside = path.with_name(f"{path.name}.part")
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("w", encoding="utf-8", newline="\n") as file:
            for dialogue in dialogues:
                file.write(json.dumps(plain(dialogue), ensure_ascii=False) + "\n")
                count += 1
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # a file stands where a folder should
            aside.unlink(missing_ok=True)
        raise UserError(f"cannot be written ({error.strerror or error})", where=str(path)) from None
    return count


def plain(value: Any) -> Any:
    """A dialogue, or a part of one, as JSON; fields that are as they would be without a word are left out."""
    if is_dataclass(value):
        told = [(each.name, getattr(value, each.name), _default(each)) for each in fields(value)]
        return {name: plain(inner) for name, inner, default in told if inner != default}
    if isinstance(value, Mapping):
        return dict(value)
    return [plain(inner) for inner in value] if isinstance(value, tuple) else value


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _dialogue(stem: str, line: Line) -> Dialogue:
    value = from_json(TypeAdapter(dict[str, Any]), line.text())
    return from_python(Dialogue, {"id": f"{stem}_{line.number}", **value})
