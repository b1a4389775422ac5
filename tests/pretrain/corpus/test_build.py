"""Building: the same bytes whatever happens, nothing twice, nothing half-written."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from pretrain.corpus import lines, tasks
from pretrain.corpus.build import BuildProgress, BuildReport, build
from pretrain.corpus.documents import ReadOptions, document_id, is_held_out
from pretrain.corpus.shardset import ShardSet, Window
from pretrain.corpus.sources import SourceSpec
from pretrain.corpus.tokenizer import Tokenizer, train_tokenizer
from pretrain.errors import UserError
from tests.pretrain.corpus.conftest import jsonl, text_of

Write = Callable[[str, bytes], Path]
TEXTS = [text_of(number, 60) for number in range(300)]


SMALL_UNITS = ((tasks, "SMALL_FILE", 20_000), (tasks, "GROUP_BYTES", 8_000), (lines, "BLOCK_BYTES", 16_000))
"""Files count as large and blocks as full at sizes that suit small corpora."""


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in SMALL_UNITS:
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def corpus(tmp_path: Path, write: Write) -> list[SourceSpec]:
    """Many small files, a large one, short documents, duplicates and bad records."""
    for number in range(0, 200, 10):
        write(f"web/{number:03}.jsonl", jsonl([{"text": text} for text in TEXTS[number : number + 10]]))
    write("web/bad.jsonl", b"bad\n" + jsonl([{"text": "too short"}, {"text": TEXTS[3]}]))
    long = [" ".join(TEXTS[at : at + 5]) + f" {at}" for at in range(190)]
    write("large/a.jsonl", jsonl([{"text": text} for text in long]))
    write("books/a.txt.gz", gzip.compress((" ".join(TEXTS[200:]) + ".").encode()))
    write("books/b.txt", TEXTS[7].encode())
    return [
        SourceSpec("web", (str(tmp_path / "web"),)),
        SourceSpec("large", (str(tmp_path / "large"),)),
        SourceSpec("books", (str(tmp_path / "books"),)),
    ]


def make(sources: list[SourceSpec], tokenizer: Tokenizer, out: Path, **changes: Any) -> BuildReport:
    """A build with options that suit small corpora."""
    options: dict[str, Any] = {"min_tokens": 20, "held_out": 0.1, "shard_tokens": 10_000, "workers": 1}
    return build(sources, tokenizer, out, **{**options, "max_reject_rate": 0.05, **changes})


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a set."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_bytes_do_not_depend_on_the_number_of_workers(
    corpus: list[SourceSpec], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    one = make(corpus, tokenizer, tmp_path / "one", workers=1)
    two = make(corpus, tokenizer, tmp_path / "two", workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert one.documents == two.documents == 200 + 190 + 1
    assert len(ShardSet.open(one.out).shards) > 10
    assert not (tmp_path / "one.building").exists()


def test_losses_are_counted_by_reason_and_the_mixture_is_told(
    corpus: list[SourceSpec], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    manifest = make(corpus, tokenizer, tmp_path / "set").manifest
    web, large, books = (manifest["sources"][name] for name in ("web", "large", "books"))
    assert web["dropped"] == {"too_short": 1, "duplicate": 1}
    assert web["rejected"] == {"bad_json": 1}
    assert books["dropped"] == {"duplicate": 1}
    assert web["formats"] == {"jsonl": 21}
    assert books["formats"] == {"text": 2}
    tokens = sum(source["tokens"] for source in manifest["sources"].values())
    assert large["share_of_tokens"] == pytest.approx(large["tokens"] / tokens, abs=1e-6)
    assert large["share_of_documents"] == pytest.approx(190 / 391, abs=1e-6)
    window = Window()
    shards = ShardSet.open(tmp_path / "set")
    for name, source in manifest["sources"].items():
        lengths = [
            int(length)
            for number, info in enumerate(shards.shards)
            if info.source == name
            for length in shards.lengths(number)
        ]
        counted = (len(lengths), sum(lengths), sum(window.segments(length) for length in lengths))
        assert counted == (source["documents"], source["tokens"], source["segments"])
    assert manifest["command"].startswith("membart shards build --source web --input ")
    rejects = [json.loads(line) for line in (tmp_path / "set/rejects.jsonl").read_text().split("\n") if line]
    assert [(r["source"], Path(r["file"]).name, r["line"], r["byte"], r["reason"]) for r in rejects] == [
        ("web", "bad.jsonl", 1, 0, "bad_json")
    ]


def test_the_held_out_split_is_stable_when_sources_grow(
    tokenizer: Tokenizer, tmp_path: Path, write: Write
) -> None:
    def held_out(texts: list[str], name: str, share: float) -> set[int]:
        file = write(f"{name}.jsonl", jsonl([{"text": text} for text in texts]))
        make([SourceSpec("web", (str(file),))], tokenizer, tmp_path / name, held_out=share)
        shards = ShardSet.open(tmp_path / name)
        return {
            int(document)
            for shard in shards.select("validation")
            for document in shards.index(shard).documents
        }

    small, large = held_out(TEXTS[:100], "small", 0.2), held_out(TEXTS[50:] + TEXTS[:50], "large", 0.2)
    assert small == {d for text in TEXTS[:100] if is_held_out(d := document_id(text.encode()), 0.2)}
    assert small < large
    assert large < held_out(TEXTS, "more", 0.4)
    assert 30 < len(large) < 90
    assert held_out(TEXTS, "none", 0.0) == set()


def test_sentence_lines_become_documents_of_the_budget(
    tokenizer: Tokenizer, tmp_path: Path, write: Write
) -> None:
    lines = " ".join(TEXTS).lower().replace(".", " .\n").split("\n")
    lines = [line.strip() for line in lines if line.strip()]
    file = write("books_large_p1.txt", "".join(f"{line}\n" for line in lines).encode())
    source = SourceSpec("books", (str(file),), read=ReadOptions(document_tokens=400))
    report = make([source], tokenizer, tmp_path / "set", held_out=0.0)
    assert report.manifest["sources"]["books"]["read"]["document_tokens"] == 400
    shards = ShardSet.open(tmp_path / "set")
    documents = [
        shards.tokens(shard, number)
        for shard in shards.select("train")
        for number in range(shards.shards[shard].documents)
    ]
    texts = [tokenizer.decode(tokens) for tokens in documents]
    assert " ".join(texts) == " ".join(lines)
    lengths = [len(tokens) for tokens in documents]
    assert sum(360 <= length <= 440 for length in lengths) >= 0.9 * len(lengths)
    assert min(lengths) >= 266  # the rest of a file is spread over its last documents
    for text, tokens in zip(texts, documents, strict=True):
        assert tokens.tolist() == tokenizer.encode_batch([text])[0].tolist()


def test_limits_stop_a_source_at_the_same_document(
    tokenizer: Tokenizer, tmp_path: Path, write: Write
) -> None:
    file = write("a.jsonl", jsonl([{"text": text} for text in TEXTS]))
    for name, workers in (("one", 1), ("two", 2)):
        sources = [
            SourceSpec("few", (str(file),), max_documents=7),
            SourceSpec("some", (str(file),), max_tokens=2000),
        ]
        make(sources, tokenizer, tmp_path / name, workers=workers)
    manifest = ShardSet.open(tmp_path / "one").manifests[0]
    assert manifest["sources"]["few"]["documents"] == 7
    some = manifest["sources"]["some"]
    assert some["dropped"]["duplicate"] == 7
    assert 2000 <= some["tokens"] < 2300
    assert content(tmp_path / "one") == content(tmp_path / "two")


DRIVER = """
import json, os, resource, signal, sys
from pathlib import Path
from pretrain.corpus import build as module, lines, tasks
from pretrain.corpus.sources import SourceSpec
from pretrain.corpus.state import BuildState
from pretrain.errors import UserError

def die():
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    plan = json.loads(sys.argv[1])
    sources = [SourceSpec(name, tuple(inputs)) for name, inputs in plan["sources"]]
    tasks.SMALL_FILE, tasks.GROUP_BYTES, lines.BLOCK_BYTES = 20_000, 8_000, 16_000
    module.SAVE_SECONDS = plan.get("save_seconds", 0.0)
    if "file_size" in plan:
        resource.setrlimit(resource.RLIMIT_FSIZE, (plan["file_size"], resource.RLIM_INFINITY))
    calls, saves = 0, 0
    commit = BuildState.save
    def save(self, note):
        global saves
        saves += 1
        if saves == plan.get("die_before_save"):
            die()
        commit(self, note)
        if saves == plan.get("die_after_save"):
            die()
    BuildState.save = save
    def progress(now):
        global calls
        calls += 1
        if plan.get("tell"):
            print(calls, flush=True)
            sys.stdin.readline()
        if calls == plan.get("die_at_task"):
            die()
    try:
        report = module.build(sources, plan["tokenizer"], plan["out"], min_tokens=20, held_out=0.1,
                              shard_tokens=10_000, workers=plan["workers"], max_reject_rate=0.05,
                              progress=progress)
    except UserError as error:
        sys.exit(str(error))
    print("resumed" if report.resumed else "fresh")
"""


def start(sources: list[SourceSpec], folder: Path, out: Path, **plan: Any) -> subprocess.Popen[str]:
    """The driver above in a process of its own, with the given faults."""
    script = out.with_suffix(".py")
    script.write_text(DRIVER)
    inputs = [(spec.name, list(spec.inputs)) for spec in sources]
    words = {"sources": inputs, "tokenizer": str(folder), "out": str(out), "workers": 1, **plan}
    return subprocess.Popen(
        [sys.executable, str(script), json.dumps(words)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(*args: Any, **plan: Any) -> tuple[int, str, str]:
    """Exit code, output and errors of the driver."""
    process = start(*args, **plan)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_kill_9_at_many_moments_changes_no_byte(
    corpus: list[SourceSpec], tokenizer: Tokenizer, tokenizer_folder: Path, tmp_path: Path
) -> None:
    make(corpus, tokenizer, tmp_path / "whole")
    out = tmp_path / "killed"
    faults: list[dict[str, int]] = [
        {"die_before_save": 1},
        {"die_at_task": 1},
        {"die_before_save": 3},
        {"die_at_task": 9},
        {"die_after_save": 4},
        {"die_at_task": 5, "save_seconds": 1000},
        {"die_before_save": 2, "save_seconds": 1000},
    ]
    for fault in faults:
        assert run(corpus, tokenizer_folder, out, **fault)[0] == -signal.SIGKILL
        assert not out.exists()
    assert run(corpus, tokenizer_folder, out)[:2] == (0, "resumed\n")
    assert content(out) == content(tmp_path / "whole")


def test_workers_end_with_a_killed_parent_and_the_build_goes_on(
    corpus: list[SourceSpec], tokenizer: Tokenizer, tokenizer_folder: Path, tmp_path: Path
) -> None:
    make(corpus, tokenizer, tmp_path / "whole")
    out = tmp_path / "killed"
    process = start(corpus, tokenizer_folder, out, workers=2, tell=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 2
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert run(corpus, tokenizer_folder, out, workers=2)[0] == 0
    assert content(out) == content(tmp_path / "whole")


def test_a_dead_worker_ends_the_build_with_one_line(
    corpus: list[SourceSpec], tokenizer_folder: Path, tmp_path: Path
) -> None:
    large = corpus[1:2]  # many more tasks than the workers may do before the first result is taken
    process = start(large, tokenizer_folder, tmp_path / "set", workers=2, tell=True)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "1\n"
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    for worker in workers:
        worker.kill()
    out, err = process.communicate("\n" * 10_000, timeout=60)
    assert process.returncode == 1
    assert len(out.split()) < 20
    assert err.strip().endswith(
        "run the same command again to go on from the last saved point, perhaps with fewer --workers"
    )
    assert "a worker process died" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("size", [3_000, 30_000, 60_000])
def test_a_full_disk_is_told_and_survived(
    corpus: list[SourceSpec], tokenizer: Tokenizer, tokenizer_folder: Path, tmp_path: Path, size: int
) -> None:
    out = tmp_path / "set"
    code, _, err = run(corpus, tokenizer_folder, out, file_size=size)
    assert code == 1
    assert "run the same command again" in err
    assert len(err.strip().split("\n")) == 1
    assert not out.exists()
    assert run(corpus, tokenizer_folder, out)[0] == 0
    make(corpus, tokenizer, tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")


def test_too_many_bad_records_fail_the_build_and_say_where(
    tokenizer: Tokenizer, tmp_path: Path, write: Write
) -> None:
    lines = [json.dumps({"text": text}).encode() for text in TEXTS]
    file = write("a.jsonl", b"\n".join(line if n % 10 else b"bad" for n, line in enumerate(lines)))
    source = [SourceSpec("web", (str(file),))]
    with pytest.raises(
        UserError, match=r"30 of 300 records are bad, more than 5.00% \(30 bad_json\)"
    ) as caught:
        make(source, tokenizer, tmp_path / "set")
    assert "rejects.jsonl" in str(caught.value)
    assert not (tmp_path / "set").exists()
    assert len((tmp_path / "set.building/rejects.jsonl").read_text().strip().split("\n")) == 30
    report = make(source, tokenizer, tmp_path / "set", max_reject_rate=0.2)
    assert (report.documents, report.resumed) == (270, True)


def test_many_bad_records_stop_a_long_build_early(tokenizer: Tokenizer, tmp_path: Path, write: Write) -> None:
    bad = write("0.jsonl", b"bad\n" * 2000)
    rest = [write(f"{n}.jsonl", jsonl([{"text": "x" * 1_100_000}])) for n in range(1, 4)]
    seen: list[BuildProgress] = []
    with pytest.raises(UserError, match="2000 of 2000 records"):
        make(
            [SourceSpec("web", (str(bad), *map(str, rest)))],
            tokenizer,
            tmp_path / "set",
            progress=seen.append,
        )
    assert len(seen) <= 1


def test_progress_reaches_the_whole(corpus: list[SourceSpec], tokenizer: Tokenizer, tmp_path: Path) -> None:
    seen: list[BuildProgress] = []
    report = make(corpus, tokenizer, tmp_path / "set", progress=seen.append)
    assert [s.done_bytes for s in seen] == sorted(s.done_bytes for s in seen)
    assert seen[-1].done_bytes == seen[-1].total_bytes
    assert (seen[-1].documents, seen[-1].tokens, seen[-1].rejects) == (report.documents, report.tokens, 1)


def test_a_finished_set_is_recognized_and_nothing_else_is_overwritten(
    corpus: list[SourceSpec], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    make(corpus, tokenizer, out)
    before = content(out)
    assert not make(corpus, tokenizer, out).built
    with pytest.raises(UserError, match="another shard set is here"):
        make(corpus[:1], tokenizer, out)
    with pytest.raises(UserError, match="another shard set is here"):
        make(corpus, tokenizer, out, min_tokens=21)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("dear")
    with pytest.raises(UserError, match="not empty and no shard set"):
        make(corpus, tokenizer, tmp_path / "full")
    assert content(out) == before
    assert content(tmp_path / "full") == {"letter.txt": b"dear"}
    assert not list(tmp_path.glob("*.building"))


def test_an_unfinished_build_of_something_else(
    corpus: list[SourceSpec], tokenizer: Tokenizer, tokenizer_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    run(corpus, tokenizer_folder, out, die_at_task=2)
    with pytest.raises(UserError, match="unfinished build of other inputs or options"):
        make(corpus[1:], tokenizer, out)
    assert make(corpus[1:], tokenizer, out, restart=True).documents == 192
    assert not [name for name in content(out) if "web" in name]


def test_two_builds_at_once(
    corpus: list[SourceSpec], tokenizer: Tokenizer, tokenizer_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    process = start(corpus, tokenizer_folder, out, tell=True)
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(UserError, match="another build is writing here"):
        make(corpus, tokenizer, out)
    process.communicate("\n" * 10_000)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"min_tokens": 0}, "min_tokens must be at least 1"),
        ({"held_out": 1.0}, "held_out must be at least 0 and below 1"),
        ({"shard_tokens": 0}, "shard_tokens must be at least 1"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"max_reject_rate": 1.5}, "max_reject_rate must be from 0 to 1"),
        ({"sources": []}, "nothing to build"),
        ({"sources": [SourceSpec("a", ("x",)), SourceSpec("a", ("y",))]}, "two sources have one name"),
        ({"sources": [SourceSpec("a", ("nowhere.txt",))]}, "no such input: nowhere.txt"),
        ({"sources": [SourceSpec("a", ("*.nothing",))]}, r"no such input: \*.nothing"),
        ({"sources": [SourceSpec("a", ("ftp://host/x",))]}, "unknown kind of input ftp://"),
        ({"sources": [SourceSpec("a", (".",))]}, r"no text file among the inputs \(notes.md"),
        ({"tokenizer": "nowhere"}, "no such tokenizer folder"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(
    corpus: list[SourceSpec],
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    said: str,
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here/notes.md").write_text("no corpus")
    monkeypatch.chdir(tmp_path / "here")
    arguments = {"sources": corpus, "tokenizer": tokenizer, **changes}
    with pytest.raises(UserError, match=said) as caught:
        make(arguments.pop("sources"), arguments.pop("tokenizer"), tmp_path / "set", **arguments)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("set*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("bad name", ("x",)), "bad source name"),
        (("", ("x",)), "bad source name"),
        (("a/b", ("x",)), "bad source name"),
        (("a", ()), "source without input"),
        (("a", ("x",), "parquet"), "unknown format 'parquet'"),
    ],
)
def test_impossible_sources(arguments: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        SourceSpec(*arguments)


def test_everything_filtered_away(tokenizer: Tokenizer, tmp_path: Path, write: Write) -> None:
    file = write("a.jsonl", jsonl([{"text": "short"}] * 3))
    with pytest.raises(UserError, match=r"no document is left after filtering \(3 too_short\)"):
        make([SourceSpec("web", (str(file),))], tokenizer, tmp_path / "set")
    assert not list(tmp_path.glob("set*"))


def test_an_unwritable_place(corpus: list[SourceSpec], tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        make(corpus, tokenizer, tmp_path / "file" / "set")


def test_a_tokenizer_that_changed_between_two_runs(
    corpus: list[SourceSpec], tokenizer: Tokenizer, tokenizer_folder: Path, tmp_path: Path
) -> None:
    run(corpus, tokenizer_folder, tmp_path / "set", die_at_task=2)
    with pytest.raises(UserError, match="other inputs or options"):
        make(corpus, train_tokenizer([text_of(1)], 300), tmp_path / "set")


def test_memory_stays_flat_while_the_input_grows(
    tokenizer_folder: Path, tmp_path: Path, write: Write
) -> None:
    peaks = []
    for name, times in (("small", 5), ("large", 50)):
        junk = [{"text": TEXTS[number], "junk": "x" * (1 << 20)} for number in range(times)]
        file = write(f"{name}.jsonl", jsonl(list(junk)))
        script = (
            "import re, sys; from pretrain.corpus.build import build; "
            "from pretrain.corpus.sources import SourceSpec; "
            "build([SourceSpec('a', (sys.argv[1],))], sys.argv[2], sys.argv[3], min_tokens=20, workers=1); "
            "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
        )
        words = [sys.executable, "-c", script, str(file), str(tokenizer_folder), str(tmp_path / name)]
        peaks.append(int(subprocess.check_output(words)))
    assert peaks[1] - peaks[0] < 15 << 10  # KiB; the large input has 45 MiB more
