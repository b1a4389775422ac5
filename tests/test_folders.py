"""Folders that test support makes outlive forked children, not their process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PROGRAM = """
import json, multiprocessing
from tests.support.folders import temporary

def child(sender):
    own = temporary("child")
    sender.send([str(own), own.is_dir()])

mine = temporary("parent")
receiver, sender = multiprocessing.Pipe(duplex=False)
process = multiprocessing.get_context("fork").Process(target=child, args=(sender,))
process.start()
process.join()
print(json.dumps([[str(mine), mine.is_dir()], receiver.recv()]))
"""


def test_a_folder_is_gone_with_the_process_that_made_it_and_not_with_its_children(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=REPOSITORY,
        env={"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    (mine, there_after_the_child), (own, there_in_the_child) = json.loads(done.stdout)
    assert there_after_the_child
    assert there_in_the_child
    assert {Path(mine).parent, Path(own).parent} == {tmp_path}
    assert list(tmp_path.iterdir()) == []
