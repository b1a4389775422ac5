"""`membart shards` as typed at a shell."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shlex
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from pretrain.corpus.shardset import ShardSet
from pretrain.corpus.tokenizer import load_tokenizer, train_tokenizer
from pretrain.errors import UserError
from tools.bench.shards import measure
from tools.shards import app

WORDS = [
    "a",
    "quiet",
    "harbour",
    "where",
    "grey",
    "gulls",
    "cried",
    "over",
    "wet",
    "stones",
    "and",
    "somebody",
    "sang",
    "of",
    "home",
]
END = ["--tokenizer", "tokenizer", "--out", "o"]
SCRIPT = """
import sys
from pretrain.errors import UserError
from tools.bench.shards import measure
from tools.shards import app
try:
    app(prog_name="membart shards")
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


def shards(*words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `membart shards WORDS`."""
    command = [sys.executable, "-c", SCRIPT, *map(str, words)]
    path = str(Path(__file__).parents[2])
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "120"},
    )


def here(*words: str | Path) -> Result:
    """The same inside this process; a mistake is its exception."""
    return CliRunner().invoke(app, [str(word) for word in words])


def text(number: int) -> str:
    return (
        " ".join(WORDS[(number * 7 + k * (number % 5 + 1)) % len(WORDS)] for k in range(80)) + f" {number}."
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora, a tokenizer, and the set that the command makes of them."""
    home = tmp_path_factory.mktemp("home")
    for name in ("web1", "web2"):
        lines = [json.dumps({"body": {"text": text(n + 40 * (name == "web2"))}}) for n in range(40)]
        (home / f"{name}.jsonl").write_text("\n".join(lines))
    (home / "book.txt").write_text(" ".join(text(number) for number in range(200, 230)))
    train_tokenizer([text(number) for number in range(20)], 300).save(home / "tokenizer")
    done = shards(
        "build", "--source", "web", "--text-field", "body.text", "--input", "web1.jsonl", "web2.jsonl",
        "--source", "books", "--format=text", "--input", "book.txt",
        "--tokenizer", "tokenizer", "--out", "set", "--min-tokens", "20", "--held-out", "0.2",
        "--workers", "1", "--window", "64", "--overlap", "16",
        cwd=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "web: 80 documents (98.8%)" in done.stdout
    assert "nothing dropped" in done.stdout
    assert "Traceback" not in done.stderr
    return home


def test_options_belong_to_the_source_before_them(home: Path) -> None:
    manifest = ShardSet.open(home / "set").manifests[0]
    web, books = manifest["sources"]["web"]["read"], manifest["sources"]["books"]["read"]
    assert (web["inputs"], web["text_field"]) == (["web1.jsonl", "web2.jsonl"], "body.text")
    assert web["format"] == "auto"
    assert (books["inputs"], books["text_field"], books["format"]) == (["book.txt"], "text", "text")


def test_the_recorded_command_builds_the_same_set(home: Path) -> None:
    manifest = ShardSet.open(home / "set").manifests[0]
    words = shlex.split(manifest["command"])
    assert words[:2] == ["membart", "shards"]
    done = shards(*words[2:], "--tokenizer", "tokenizer", "--out", "again", "--workers", "2", cwd=home)
    assert done.returncode == 0, done.stderr
    assert (home / "again/manifest.json").read_bytes() == (home / "set/manifest.json").read_bytes()


def test_building_again_is_recognized(home: Path) -> None:
    words = shlex.split(ShardSet.open(home / "set").manifests[0]["command"])[2:]
    done = shards(*words, "--tokenizer", "tokenizer", "--out", "set", cwd=home)
    assert (done.returncode, "holds this set already" in done.stdout) == (0, True)


def test_verify(home: Path, tmp_path: Path) -> None:
    done = shards("verify", home / "set")
    assert done.returncode == 0
    assert "81 documents" in done.stdout
    copy = ShardSet.open(shutil.copytree(home / "set", tmp_path / "set"))
    data = bytearray(copy.path(0).read_bytes())
    data[int(copy.index(0).offsets[1])] ^= 1
    copy.path(0).write_bytes(data)
    done = shards("verify", tmp_path / "set")
    assert done.returncode == 2
    assert f"{copy.shards[0].name}, document 1 (id " in done.stdout + done.stderr
    assert done.stderr.strip().split("\n")[-1].startswith("error: ")


def test_stats_as_text_json_and_picture(home: Path, tmp_path: Path) -> None:
    done = here("stats", home / "set", "--batch", "4", "--horizon", "2", "--plot", tmp_path / "lengths.png")
    assert done.exit_code == 0
    assert "an epoch of train, 4 agents, horizon 2" in done.stdout
    assert (tmp_path / "lengths.png").stat().st_size > 1000
    found = json.loads(here("stats", home / "set", "--json").stdout)
    assert sum(row["documents"] for row in found["sources"]) == 81
    done = here("stats", home / "set", "--plot", tmp_path / "nowhere/lengths.png")
    assert isinstance(done.exception, UserError)


def test_peek_shows_segments_with_their_noise(home: Path) -> None:
    first = here("peek", home / "set", "--document", "0", "--count", "2")
    assert first.exit_code == 0
    clean = [line for line in first.stdout.split("\n") if line.startswith("clean")]
    noised = [line for line in first.stdout.split("\n") if line.startswith("noised")]
    assert len(clean) == len(noised) == 2
    assert all("<mask>" in line for line in noised)
    assert not any("<mask>" in line for line in clean)
    assert here("peek", home / "set", "--document", "0", "--count", "2").stdout == first.stdout
    assert here("peek", home / "set", "--document", "0", "--count", "2", "--seed", "1").stdout != first.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["peek", "set", "--document", "99999"], "train has"),
        (["peek", "set", "--segment", "99999"], "segments -- --segment 0 to"),
        (["peek", "set", "--split", "test"], "no split 'test'"),
        (["stats", "nowhere"], "no shard set here"),
        (["verify", "."], "no shard set here"),
        (["build", "--input", "x", "--source", "a", *END], "before any --source"),
        (["build", "--source", "a", *END], "source without input"),
        (["build", "--source", "a", "--input", "x", *END], "no such input: x"),
        (["build", "--source", "a", "--input", "x", "--format", "word", *END], "unknown format"),
        (["build", "--source", "docs", "--tokenizer", "nowhere", "--out", "o"], "no such tokenizer folder"),
        (["build", "--source", "docs", *END, "--window", "2"], "impossible"),
        (["tokenizer", "--source", "docs", "--out", "tokenizer"], "not empty"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(
    home: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(home)
    done = here(*words)
    assert isinstance(done.exception, UserError)
    assert said in str(done.exception)
    assert not list(home.glob("o*"))


def test_a_mistake_is_one_line_with_exit_code_2(home: Path) -> None:
    done = shards("build", "--source", "a", "--input", "x", "--tokenizer", "t", "--out", "o", cwd=home)
    assert done.returncode == 2
    assert done.stderr == "error: a: no such input: x -- check the path or the glob\n"


def test_a_tokenizer_of_ones_own(home: Path) -> None:
    done = shards(
        "tokenizer", "--source", "web", "--text-field", "body.text", "--input", "web1.jsonl",
        "--vocab-size", "280", "--out", "mine", cwd=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert load_tokenizer(home / "mine").vocab_size == 280


def test_a_bar_on_a_terminal(home: Path) -> None:
    """On a terminal progress is one line that is drawn again and again, with rates."""
    words = [sys.executable, "-c", SCRIPT, "build", "--source", "web", "--text-field", "body.text"]
    words += ["--input", "web1.jsonl", "--tokenizer", "tokenizer", "--out", "seen", "--min-tokens", "20"]
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
    path = str(Path(__file__).parents[2])
    done = subprocess.run(
        [*words, "--workers", "1"], stdout=subprocess.DEVNULL, stderr=follower, cwd=home,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "TERM": "xterm"},
    )  # fmt: skip
    os.close(follower)
    shown = os.read(leader, 1 << 16).decode()
    os.close(leader)
    assert done.returncode == 0
    assert "documents/s" in shown
    assert "tokens/s" in shown
    assert "web" in shown


def test_build_speed_is_measured_against_the_library_alone(tmp_path: Path) -> None:
    texts = [text(number) + f" {number}" for number in range(300)]
    tokenizer = train_tokenizer(texts[:20], 300)
    found = measure(texts, tokenizer, tmp_path, workers=1, rounds=1)
    assert found.tokens == sum(map(len, tokenizer.encode_batch(texts)))
    assert found.characters == sum(map(len, texts))
    assert found.ratio == pytest.approx(found.build / found.encode_batch)
    assert found.encode_batch > found.tokens / 60
