"""Files are replaced whole or not at all."""

from __future__ import annotations

import hashlib
import resource

import pytest

from pretrain import files


def test_a_file_is_replaced_by_the_very_bytes(tmp_path):
    file = tmp_path / "state.json"
    files.write_atomically(file, "one\r\nzwölf\n")
    assert file.read_bytes() == b"one\r\nzw\xc3\xb6lf\n"
    files.write_atomically(file, b"\x00\x01")
    assert file.read_bytes() == b"\x00\x01"
    assert list(tmp_path.iterdir()) == [file]
    assert files.digest(file) == hashlib.sha256(b"\x00\x01").hexdigest()


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "state.json"
    files.write_atomically(file, "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            files.write_atomically(file, "new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
