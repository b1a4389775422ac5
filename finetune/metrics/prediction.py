"""What a model answered to one target turn, with all that a metric may look at; kept as JSONL, one a line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import TypeAdapter, ValidationError

from pretrain.errors import UserError
from pretrain.files import write_atomically


@dataclass(frozen=True)
class Prediction:
    """One target turn. All texts are as people see them: no role marks, no special tokens."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    dialogue: str
    """Name of the dialogue, unique in its data."""
    turn: int
    """Number of the target turn in its dialogue, from 0."""
    context: tuple[str, ...]
    """The turns before it, oldest first."""
    replies: tuple[str, ...]
    """What the model said: one reply, or N independent draws."""
    references: tuple[str, ...]
    """What is accepted as an answer; the reply of the dialogue itself comes first."""
    persona: tuple[str, ...] = ()
    """Sentences about the one who answers."""
    partner_persona: tuple[str, ...] = ()
    """Sentences about the one who is answered."""
    knowledge: tuple[str, ...] = ()
    """Sentences or facts that the reply may draw on."""
    chosen: int | None = None
    """Index of the one in `knowledge` behind the reference; None where there is none."""
    selected: int | None = None
    """Index of the one that the model picked, -1 where it picked none; None if it does not pick."""
    entities: tuple[str, ...] = ()
    """Entities of the knowledge graphs that were retrieved for the context."""
    session: int = 0

    def first_reference(self) -> Prediction:
        """The same with the dialogue's own reply as the only reference."""
        return replace(self, references=self.references[:1])


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """One JSON object a line; the file is complete or absent."""
    lines = (json.dumps(asdict(prediction), ensure_ascii=False) for prediction in predictions)
    write_atomically(path, "".join(f"{line}\n" for line in lines))


def read_predictions(path: Path) -> list[Prediction]:
    """Predictions as `write_predictions` leaves them; fields with a default may be missing.

    Raises:
        UserError: no such file, or a line that is not a prediction.
    """
    try:
        # Only "\n" ends a line: replies may hold the other characters that `splitlines` breaks at.
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from None
    return [_read(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


_SCHEMA = TypeAdapter(Prediction)


def _read(line: bytes, where: str) -> Prediction:
    try:
        prediction = _SCHEMA.validate_json(line, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"not a prediction: {place} {first['msg']}", where=where) from None
    for name in ("chosen", "selected"):
        number = getattr(prediction, name)
        if number is not None and not -1 <= number < len(prediction.knowledge):
            raise UserError(
                f"not a prediction: {name} is {number} of {len(prediction.knowledge)} sentences", where=where
            )
    return prediction
