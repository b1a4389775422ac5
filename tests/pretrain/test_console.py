"""One line that moves on a terminal, few plain lines in a log."""

from __future__ import annotations

import io
import logging
import re

import pytest

from pretrain.console import Console, short_number


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_plain_lines_at_intervals_and_the_last_one() -> None:
    log = io.StringIO()
    with Console(50, interval=3600, stream=log) as console:
        for step in range(1, 51):
            console.update(step, loss=5 / step, tokens_per_second=51234.0)
        console.message("saved")
    first, last, message = log.getvalue().splitlines()
    assert re.fullmatch(r"step 1/50  loss 5\.000  tok/s 51\.2k  ETA \d\d:\d\d", first)
    assert re.fullmatch(r"step 50/50  loss 0\.100  tok/s 51\.2k  ETA 00:00", last)
    assert message == "saved"


def test_every_update_is_a_line_when_the_interval_is_zero() -> None:
    log = io.StringIO()
    console = Console(8, step=5, interval=0, label="tiny", stream=log)
    for step in (5, 6, 7, 8):
        console.update(step, loss=1.0, tokens_per_second=10.0)
    lines = log.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["5/8", "6/8", "7/8", "8/8"]
    assert lines[0].startswith("tiny ")
    assert lines[0].endswith("ETA ?"), "nothing was made yet that the time left could be reckoned from"


def test_the_time_left_counts_only_steps_made_since_a_resume() -> None:
    log = io.StringIO()
    console = Console(1100, step=1000, interval=0, stream=log)
    console._began -= 100.0  # 100 seconds for the first ten steps
    console.update(1010, loss=1.0, tokens_per_second=10.0)
    assert re.search(r"ETA 15:0\d$", log.getvalue())


def test_a_terminal_gets_one_bar() -> None:
    screen = Terminal()
    with Console(10, step=4, stream=screen) as console:
        console.update(5, loss=2.5, tokens_per_second=1500.0)
        console.message("saved step-5")
        console.update(10, loss=2.25, tokens_per_second=1500.0)
    frames = [frame for frame in re.split(r"[\r\n]", screen.getvalue()) if frame.strip()]
    assert "saved step-5" in frames
    bars = [frame for frame in frames if frame != "saved step-5"]
    assert all(bar.startswith("step:") for bar in bars)
    assert "4/10" in bars[0]
    assert "10/10" in bars[-1]
    assert "loss=2.250" in bars[-1]
    assert "tok/s=1.50k" in bars[-1]
    assert screen.getvalue().count("\n") == 2, "the message, and the end of the bar"


def test_warnings_are_lines_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    screen, log = Terminal(), io.StringIO()
    for stream in (screen, log):
        with Console(10, stream=stream):
            logging.getLogger("pretrain.tracking").warning("the server is %s", "away")
            logging.getLogger("pretrain.tracking").info("not for the console")
    assert [frame for frame in re.split(r"[\r\n]", screen.getvalue()) if "server" in frame] == [
        "warning: the server is away"
    ]
    assert log.getvalue() == "warning: the server is away\n"
    assert not logging.getLogger("pretrain").handlers, "closed consoles leave nothing behind"


def test_numbers_have_three_digits() -> None:
    assert [short_number(value) for value in (7.0, 999.4, 51234.0, 2.5e6)] == [
        "7.00",
        "999",
        "51.2k",
        "2.50M",
    ]
