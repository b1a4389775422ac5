"""`membart demo`: the stages in order."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from tools.demo import families, pretraining
from tools.demo.stages import Demo, Stage, run_stages

STAGES: dict[str, Stage] = {
    "tokenizer": pretraining.train_tokenizer,
    "shards": pretraining.build_shards,
    "recall": pretraining.learn_to_remember,
    "pretrain": pretraining.pretrain_until_stopped,
    "resume": pretraining.resume,
    "export": pretraining.export,
    "fill": pretraining.fill_masks,
    "dialogues": families.make_dialogues,
    "knowledge": families.find_knowledge,
    **{name: families.fine_tune(name) for name in families.FAMILIES},
    "report": families.report,
}


def demo(
    folder: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("demo"),
    again: Annotated[str | None, typer.Option(help="Repeat from this stage on.")] = None,
) -> None:
    """Real text to a MemBART, interrupted and resumed, to five fine-tuned families and one report."""
    place, began = Demo(folder), time.perf_counter()
    run_stages(place, STAGES, again)
    print(f"demo: {time.perf_counter() - began:.0f} s; report: {place.report}")
    print(f"talk to it: membart serve {place.model('membart')}")
