"""The demo's stages are separate: what is done is skipped, a failed one is taken up, `again` repeats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pretrain.errors import UserError
from tools.demo.stages import Demo, Stage, run_stages


class Recorded:
    """Three stages that note their names; the second fails while a file `broken` lies in the folder."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.stages: dict[str, Stage] = {name: self._stage(name) for name in "abc"}

    def _stage(self, name: str) -> Stage:
        def run(place: Demo) -> dict[str, Any]:
            self.ran.append(name)
            if name == "b" and (place.folder / "broken").exists():
                raise UserError("no luck")
            return {}

        return run


def test_done_stages_are_skipped_and_a_failed_one_is_taken_up_again(tmp_path: Path) -> None:
    place, made = Demo(tmp_path), Recorded()
    (tmp_path / "broken").touch()
    with pytest.raises(UserError, match="no luck"):
        run_stages(place, made.stages)
    assert made.ran == ["a", "b"]
    (tmp_path / "broken").unlink()
    run_stages(place, made.stages)
    assert made.ran == ["a", "b", "b", "c"]
    run_stages(place, made.stages)
    assert made.ran == ["a", "b", "b", "c"]


def test_again_repeats_a_stage_and_all_after_it(tmp_path: Path) -> None:
    place, made = Demo(tmp_path), Recorded()
    run_stages(place, made.stages)
    run_stages(place, made.stages, again="b")
    assert made.ran == ["a", "b", "c", "b", "c"]
    with pytest.raises(UserError, match="no stage 'z' -- one of a, b, c"):
        run_stages(place, made.stages, again="z")
