"""Training learns, logs what it promises, and ends clearly when it cannot go on."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from pretrain.corpus.shardset import ShardSet
from pretrain.errors import EXIT_DIVERGED, EXIT_USER_ERROR
from pretrain.report import write_report
from tests.pretrain import rates_ranks
from tests.support import forked, runs
from tests.support.runs import records


def test_a_run_learns_and_logs_what_it_promises(tmp_path: Path, shards: Path) -> None:
    file = runs.recipe_file(tmp_path, shards, train__steps=30)
    forked.run(forked.pretrain, (str(file),), 1)
    found = records(tmp_path / "run")
    assert found["train", 30]["loss"] < 0.8 * found["train", 1]["loss"]
    promised = {
        "loss", "perplexity", "tokens_per_second", "step_seconds", "target_tokens", "memory_gradient_norm",
        "gate_mean", "data_wait_share", "padding_share", "memory_bytes", "learning_rate", "skipped_steps",
        "gradient_norm",
    }  # fmt: skip
    assert promised <= found["train", 30].keys()
    assert {"validation/perplexity", "validation/perplexity_reset", "validation/history_gain"} <= found[
        "validation", 30
    ].keys()


def test_the_logged_learning_rates_are_those_in_force(tmp_path: Path, shards: Path) -> None:
    """Of the schedule, the recipe's factors and the job's own."""
    file = runs.recipe_file(
        tmp_path,
        shards,
        train__steps=3,
        validation={"every": 0, "max_timesteps": 1},
        optimizer={"lr": 1.0e-3, "schedule": "constant", "rates": {"decoder": 0.1}},
    )
    forked.run(rates_ranks.main, (file,), 1)
    for update in range(3):
        logged = records(tmp_path / "run")["train", update + 1]
        assert logged["learning_rate"] == pytest.approx(1e-3 * (1 - 0.25 * update))
        assert logged["learning_rate/decoder"] == pytest.approx(1e-3 * 0.1 * 0.5)


def test_a_diverging_run_stops_and_names_its_last_good_checkpoint(tmp_path: Path, shards: Path) -> None:
    """A rate that throws the weights out of float32 makes every later loss non-finite."""
    file = runs.recipe_file(
        tmp_path,
        shards,
        train__steps=20,
        checkpoint__every=1,
        train__max_skipped_in_a_row=3,
        optimizer__lr=1e30,
        optimizer__warmup_steps=0,
    )
    [(code, output)] = forked.start(forked.pretrain, (str(file),), 1).wait()
    assert code == EXIT_DIVERGED, output
    [line] = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "not finite in 3 updates in a row, up to update 3" in line
    assert "the last good checkpoint is" in line
    assert "step-00000003" in line
    assert records(tmp_path / "run")["train", 3]["skipped_steps"] == 2


def break_a_document(shards: Path, folder: Path) -> Path:
    """A copy of the shard set in which the tokens of one training document are flipped."""
    copy = shutil.copytree(shards, folder / "broken")
    opened = ShardSet.open(copy)
    shard = opened.select("train")[0]
    offset = int(opened.index(shard).offsets[1])
    content = bytearray(opened.path(shard).read_bytes())
    content[offset] ^= 1
    opened.path(shard).write_bytes(content)
    return copy


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_broken_document_ends_the_run_by_name_or_is_gone_round(
    tmp_path: Path, shards: Path, policy: str
) -> None:
    broken = break_a_document(shards, tmp_path)
    file = runs.recipe_file(
        tmp_path,
        broken,
        data__on_bad_shard=policy,
        data__max_bad_documents=0.5,
        data__workers=1,
        validation__every=0,
        train__steps=25,
    )
    ended = forked.start(forked.pretrain, (str(file),), 2).wait()
    said = "".join(output for _, output in ended)
    assert "train/made-000000" in said
    assert "do not match their checksum" in said
    if policy == "stop":
        assert [code for code, _ in ended] == [EXIT_USER_ERROR] * 2
        [line] = [line for line in said.splitlines() if "rror" in line or "rank" in line]
        assert line.startswith("error: rank ")
        assert "membart shards verify" in line
    else:
        assert [code for code, _ in ended] == [0, 0]
        assert records(tmp_path / "run").keys() >= {("train", 25)}
        assert said.count("left out: ") == 1, "whichever rank had to leave it out"
        for facts in (said, write_report(tmp_path / "run").text):
            assert re.search(r"realised mixture \(tokens\):? +made 100.0%", facts)
            assert re.search(r"documents left out \(unreadable\):? +1", facts)
