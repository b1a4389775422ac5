"""Run by `test_folder.py` in a process in which DeepSpeed cannot be imported: export, load, speak, be served.

    python alone.py RUN OUT

Prints one JSON line: bytes of the weights, and the most anonymous memory that the export had beyond what the
process had before.
"""

# ruff: noqa: E402
from __future__ import annotations

import sys

sys.modules["deepspeed"] = None  # type: ignore[assignment]  # `import deepspeed` fails from here on

import json
import re
import threading
from pathlib import Path

from safetensors.torch import save_file
from transformers import AutoModelForSeq2SeqLM

from pretrain.export import export
from tests.pretrain.export.turns import three_turns


def anonymous() -> int:
    """Bytes of memory of this process that are no mapped files."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return 1024 * int(found[1])


class Peak(threading.Thread):
    """Looks every millisecond until told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.001):
            self.bytes = max(self.bytes, anonymous())


def main(run: Path, out: Path) -> None:
    before, peak = anonymous(), Peak()
    peak.start()
    export(run, out)
    peak.done.set()
    peak.join()
    said = three_turns(AutoModelForSeq2SeqLM.from_pretrained(out).eval())
    save_file({name: tensor.contiguous() for name, tensor in said.items()}, out.with_suffix(".safetensors"))
    assert sys.modules["deepspeed"] is None
    size = (out / "model.safetensors").stat().st_size
    print(json.dumps({"weights": size, "peak": peak.bytes - before}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
