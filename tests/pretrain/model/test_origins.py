"""The map of where weights came from, as a person reads it and as a file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from pretrain.model.origins import FRESH, WEIGHTS_FILE, Origin, WeightMap

MAP = WeightMap(
    "bart/",
    (
        Origin("shared.weight", (4, 2), "shared.weight"),
        Origin("layers.0.mem_k.weight", (2, 2), "layers.0.k.weight", "a copy of its twin"),
        Origin("layers.1.mem_k.weight", (2, 2), "layers.1.k.weight", "a copy of its twin"),
        Origin("layers.0.gate.bias", (2,), FRESH, "drawn"),
        Origin("layers.1.gate.bias", (2,), FRESH, "drawn"),
        Origin("head.bias", (), FRESH),
    ),
    {"lm_head.weight": "the same matrix as shared.weight", "version": "holds no weight"},
)


def test_what_is_not_as_in_the_source_has_a_line_whatever_its_layer() -> None:
    assert MAP.text.splitlines() == [
        "weights from bart/: 3 tensors (16 parameters), 3 fresh (5)",
        "  taken   layers.0.mem_k.weight and 1 more: a copy of its twin",
        "  fresh   layers.*.gate.bias (2 tensors): drawn",
        "  fresh   head.bias (1 tensor)",
        "  unused  lm_head.weight (1 tensor): the same matrix as shared.weight",
        "  unused  version (1 tensor): holds no weight",
    ]


def test_the_file_has_every_tensor(tmp_path: Path) -> None:
    MAP.save(tmp_path)
    content = json.loads((tmp_path / WEIGHTS_FILE).read_text(encoding="utf-8"))
    assert content == json.loads(json.dumps(asdict(MAP)))
    assert {row["name"] for row in content["tensors"]} == {origin.name for origin in MAP.tensors}
