"""A checkpoint is complete or absent, a damaged one is refused by name, and any world size can read it."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from pretrain import attempt, checkpoint
from pretrain.attempt import Attempt
from pretrain.errors import CheckpointError, SupersededError
from tests.pretrain import checkpoint_reader, checkpoint_writer
from tests.pretrain.checkpoint_writer import WEIGHT, updates, write
from tests.support import faults, forked, runs


@pytest.fixture
def mine(tmp_path: Path) -> Attempt:
    return attempt.claim(tmp_path)


@pytest.mark.parametrize("cuts", [(), (5,), (1, 2, 11)])
def test_slices_do_not_depend_on_how_ranks_cut_a_parameter(mine: Attempt, cuts: tuple[int, ...]) -> None:
    saved = write(mine, 4, cuts)
    assert torch.equal(saved.slice("master", "layer.weight", 3, 6), WEIGHT[3:9])
    assert torch.equal(saved.slice("exp_avg", "layer.weight", 0, 12), WEIGHT + 100)
    weights = dict(saved.weights({"layer.weight": torch.Size([3, 4]), "bias": torch.Size([1])}))
    assert torch.equal(weights["layer.weight"], WEIGHT.view(3, 4))
    assert weights["bias"] == 7


def test_missing_elements_are_named(mine: Attempt) -> None:
    saved = write(mine, 4)
    with pytest.raises(CheckpointError, match=r"master of other: 2 of 2 elements are missing"):
        saved.slice("master", "other", 0, 2)
    with pytest.raises(CheckpointError, match=r"4 of 6 elements are missing"):
        saved.slice("master", "layer.weight", 10, 6)


def test_memory_is_found_by_lane(mine: Attempt) -> None:
    saved = write(mine, 4)
    assert saved.memory([1, 0]).flatten(1).mean(dim=1).tolist() == [1, 1, 0, 0]
    with pytest.raises(CheckpointError, match=r"no memory of lanes \[2\]"):
        saved.memory([0, 2])


def test_an_unfinished_checkpoint_does_not_exist(mine: Attempt, tmp_path: Path) -> None:
    write(mine, 4)
    draft = checkpoint.Draft(mine, 8)
    draft.begin()
    draft.text("state.json", "{}")
    assert checkpoint.resolve(tmp_path).update == 4


def test_the_commit_mark_decides_not_the_pointer(mine: Attempt, tmp_path: Path) -> None:
    write(mine, 4)
    newer = write(mine, 8)
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000008\n"
    (tmp_path / "checkpoints" / "latest").write_text("step-00000099\n")
    assert checkpoint.resolve(tmp_path).update == 8
    (newer.path / "COMMIT.json").unlink()
    assert checkpoint.resolve(tmp_path).update == 4


def test_others_may_read_what_the_umask_lets_them(mine: Attempt) -> None:
    saved = write(mine, 4)
    assert len({file.stat().st_mode for file in saved.path.iterdir()}) == 1


def test_every_damage_is_refused_by_name_and_the_one_before_is_taken(mine: Attempt, tmp_path: Path) -> None:
    write(mine, 4)
    saved = write(mine, 8)
    saved.verify()
    for file in sorted(saved.path.iterdir()):
        content = file.read_bytes()
        flipped = bytes([*content[:-2], content[-2] ^ 1, content[-1]])
        for broken in (None, b"", content[:1], content[: len(content) // 2], content[:-1], flipped):
            file.unlink()
            if broken is not None:
                file.write_bytes(broken)
            found = checkpoint.newest_whole(tmp_path)
            assert found.checkpoint is not None
            assert found.checkpoint.update == 4
            [(refused, error)] = found.refused
            assert refused.update == 8
            assert file.name in error.what
            assert str(saved.path) in str(error)
            if broken is not flipped:
                assert checkpoint.newest_whole(tmp_path, thorough=False).checkpoint == found.checkpoint
            file.write_bytes(content)
    assert checkpoint.newest_whole(tmp_path).checkpoint == saved
    shutil.copy(saved.path / "frozen.safetensors", saved.path / "optimizer-00009.safetensors")
    with pytest.raises(CheckpointError, match=r"optimizer-00009\.safetensors is not part of it"):
        saved.verify()


def test_who_names_a_run_gets_its_newest_whole_checkpoint_and_who_names_a_checkpoint_that_one(
    mine: Attempt, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(CheckpointError, match="no committed checkpoint here"):
        checkpoint.resolve_whole(tmp_path)
    older, newer = write(mine, 4), write(mine, 8)
    assert checkpoint.resolve_whole(tmp_path) == newer
    assert not caplog.messages
    (newer.path / "state.json").unlink()
    assert checkpoint.resolve_whole(tmp_path) == older
    [told] = caplog.messages
    assert told == f"{newer.path} is refused: state.json is missing; going back to step-00000004"
    with pytest.raises(CheckpointError, match=r"step-00000008: state\.json is missing"):
        checkpoint.resolve_whole(newer.path)


def test_where_nothing_whole_is_left_every_damage_is_told(mine: Attempt, tmp_path: Path) -> None:
    assert checkpoint.newest_whole(tmp_path).checkpoint is None
    for update, name in ((4, "state.json"), (8, "frozen.safetensors")):
        (write(mine, update).path / name).unlink()
    with pytest.raises(CheckpointError) as told:
        checkpoint.newest_whole(tmp_path)
    assert "step-00000008: frozen.safetensors is missing; step-00000004: state.json is missing" in str(
        told.value
    )


def test_a_damaged_checkpoint_is_put_aside_and_its_update_saved_again(mine: Attempt, tmp_path: Path) -> None:
    write(mine, 4)
    (write(mine, 8).path / "state.json").write_text("?")
    checkpoint.set_aside(mine, 4)
    assert updates(tmp_path) == [4]
    aside = tmp_path / "checkpoints" / "damaged" / "step-00000008"
    assert (aside / "state.json").read_text() == "?"
    write(mine, 6)
    assert aside.exists()
    write(mine, 8).verify()
    assert not aside.exists()
    assert updates(tmp_path) == [4, 6, 8]


def test_a_checkpoint_of_the_same_update_is_replaced(mine: Attempt, tmp_path: Path) -> None:
    (write(mine, 4).path / "state.json").write_text("?")
    write(mine, 4).verify()
    assert updates(tmp_path) == [4]


def test_pruning_keeps_the_last_every_nth_and_the_best(mine: Attempt, tmp_path: Path) -> None:
    for update in (2, 4, 6, 8, 10, 12, 14):
        write(mine, update)
    checkpoint.prune(mine, keep_last=2, keep_every=4, best=6)
    assert updates(tmp_path) == [4, 6, 8, 12, 14]
    assert list(mine.staging.iterdir()) == []


def test_a_superseded_start_neither_commits_nor_prunes(mine: Attempt, tmp_path: Path) -> None:
    for update in (2, 4, 6):
        write(mine, update)
    draft = checkpoint.Draft(mine, 8)
    draft.begin()
    written = draft.text("state.json", "{}")
    newer = attempt.claim(tmp_path)
    for refused in (
        lambda: draft.commit(written),
        checkpoint.Draft(mine, 10).begin,
        lambda: checkpoint.prune(mine, keep_last=2, keep_every=0),
        lambda: checkpoint.set_aside(mine, 2),
    ):
        with pytest.raises(SupersededError, match=r"attempt 1 .* was superseded by attempt 2"):
            refused()
    assert updates(tmp_path) == [2, 4, 6]
    # As an NFS client sees it that does not know of the newer start yet: the folder is gone all the same.
    (tmp_path / "attempts" / f"{newer.number:06d}.json").unlink()
    with pytest.raises(OSError, match="step-00000008"):
        draft.commit(written)
    assert updates(tmp_path) == [2, 4, 6]


def test_a_folder_without_checkpoints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no committed checkpoint here"):
        checkpoint.resolve(tmp_path)


def test_kill_9_at_any_moment_of_a_save_leaves_two_whole_checkpoints(tmp_path: Path) -> None:
    """Just before every change of a file or folder, from claiming the run to the end of pruning."""
    [said] = forked.run(checkpoint_writer.killed_everywhere, (tmp_path,), 1)
    *killed, undisturbed = [json.loads(line) for line in said.splitlines()]
    assert len(killed) > 30
    for left in killed:
        assert left["status"] == -signal.SIGKILL
        assert left["whole"] in ([2, 4, 6], [2, 4, 6, 8], [4, 6, 8], [6, 8])
        assert left["newest"] == max(left["whole"])
        assert left["then"] == [left["newest"], 10]
        assert left["names"][0] == "latest"
        assert len(left["names"]) == 4, "nothing half-written stays once there is a new start"
    assert {tuple(left["whole"]) for left in killed} == {(2, 4, 6), (2, 4, 6, 8), (4, 6, 8), (6, 8)}
    assert undisturbed["status"] == 0
    assert undisturbed["whole"] == [6, 8]


def test_a_disk_that_fills_up_at_any_byte_costs_that_checkpoint_only(tmp_path: Path) -> None:
    [said] = forked.run(checkpoint_writer.fill, (tmp_path,), 1)
    report = json.loads(said)
    assert report["refused"] >= 20
    assert report["kept"] == [2, 4]
    assert report["then"] == [4, 8]


def test_nothing_in_a_checkpoint_is_pickled(tmp_path: Path, shards: Path) -> None:
    """Every file of a real run's checkpoint is plain, and a process that cannot unpickle reads all of it."""
    file = runs.recipe_file(tmp_path, shards, train__steps=2, validation={"every": 0, "max_timesteps": 1})
    forked.run(forked.pretrain, (str(file),), 1)
    saved = checkpoint.resolve(tmp_path / "run").path
    readers: dict[str, Callable[[bytes], object]] = {
        ".safetensors": safetensors.torch.load,
        ".json": json.loads,
        ".yaml": yaml.safe_load,
    }
    for path in saved.iterdir():
        assert readers[path.suffix](path.read_bytes()), path.name
    cannot_unpickle = faults.At("pickle.find_class", "", checkpoint_reader.refuse)
    forked.run(checkpoint_reader.main, (tmp_path / "run",), 1, cannot_unpickle)
