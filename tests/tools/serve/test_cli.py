"""`membart serve` before it serves: where it listens, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.errors import UserError
from tools.serve import cli


def test_no_other_machine_is_let_in_unasked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--host 0\.0\.0\.0: others could talk .* --allow-remote"):
        cli.serve(tmp_path, host="0.0.0.0", port=0)
    with pytest.raises(UserError, match="no committed checkpoint here"):
        cli.serve(tmp_path, host="0.0.0.0", allow_remote=True, port=0)


def test_a_taken_port_is_one_clear_line() -> None:
    with cli.listen("127.0.0.1", 0) as door:
        port = door.getsockname()[1]
        with pytest.raises(
            UserError, match=rf"127\.0\.0\.1:{port}: cannot listen there: Address already in use"
        ):
            cli.listen("127.0.0.1", port)


def test_names_of_this_machine_are_added_only_where_others_may_call() -> None:
    assert set(cli.names("localhost")) == {"127.0.0.1", "localhost", "::1"}
    assert {"10.0.0.7", "localhost"} <= set(cli.names("10.0.0.7"))
    assert "*" not in cli.names("0.0.0.0")
