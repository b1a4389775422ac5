"""Which nodes are bad, and why; the examination itself runs in tests/slurm."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pretrain.errors import UserError
from tests.support import tiny
from tools.slurm.preflight import facts, gpus, inputs
from tools.slurm.preflight.facts import Facts, Limits
from tools.slurm.preflight.network import neighbours
from tools.slurm.preflight.verdict import Links, of_facts, of_links

LIMITS = Limits()


def nodes(**changes: Facts) -> list[Facts]:
    """n1 to n4, alike but for the changes."""

    def usual(name: str) -> Facts:
        return Facts(name, (), {"torch": "2.9"}, {"/shards": "abc"}, (600.0, 610.0))

    return [changes.get(name, usual(name)) for name in ("n1", "n2", "n3", "n4")]


def test_like_nodes_are_good() -> None:
    assert of_facts(nodes(), LIMITS) == {}


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (Facts("n2", ("no room",)), "no room"),
        (Facts("n2", (), {"torch": "2.8"}, {"/shards": "abc"}), "torch is 2.8, on most nodes 2.9"),
        (Facts("n2", (), {"torch": "2.9"}, {"/shards": "xyz"}), "/shards is not what most nodes read"),
        (Facts("n2", (), {}, {"/shards": "abc"}), "torch is absent, on most nodes 2.9"),
        (
            Facts("n2", (), {"torch": "2.9"}, {"/shards": "abc"}, (600.0, 200.0)),
            r"GPU 1 does 200.0 TFLOP/s, the others 6\d\d",
        ),
    ],
)
def test_the_odd_one_out_is_named_with_its_fault(odd: Facts, said: str) -> None:
    faults = of_facts(nodes(n2=odd), LIMITS)
    assert list(faults) == ["n2"]
    [found] = faults["n2"]
    assert re.search(said, found)


def test_a_node_with_a_fault_of_its_own_casts_no_doubt_on_others() -> None:
    """Of two nodes one has not mounted the shards: there is no majority, and no need of one."""
    pair = [Facts("n1", (), {}, {"/shards": "abc"}), Facts("n2", ("/shards is empty",), {}, {})]
    assert of_facts(pair, LIMITS) == {"n2": ["/shards is empty"]}


def test_where_half_disagrees_with_half_all_are_named() -> None:
    pair = [Facts("n1", (), {}, {"/shards": "abc"}), Facts("n2", (), {}, {"/shards": "xyz"})]
    assert list(of_facts(pair, LIMITS)) == ["n1", "n2"]


def ring(**speeds: dict[str, float]) -> list[Links]:
    """n1 - n2 - n3 - n4 - n1 at 10 GB/s but for the changes; 0 is a failure."""
    usual = {"n1": {"n2": 10.0, "n4": 10.0}, "n2": {"n1": 10.0, "n3": 10.0}}
    usual |= {"n3": {"n4": 10.0, "n2": 10.0}, "n4": {"n3": 10.0, "n1": 10.0}}
    return [
        Links(
            node,
            {other: speed for other, speed in found.items() if speed},
            {other: "it did not end" for other, speed in found.items() if not speed},
        )
        for node, found in (usual | speeds).items()
    ]


def test_a_node_whose_links_all_fail_or_crawl_is_bad_and_its_neighbours_are_not() -> None:
    assert of_links(ring(), LIMITS) == {}
    dead = ring(n2={"n1": 0, "n3": 0}, n1={"n2": 0, "n4": 10.0}, n3={"n4": 10.0, "n2": 0})
    assert list(of_links(dead, LIMITS)) == ["n2"]
    slow = ring(n2={"n1": 1.0, "n3": 1.1}, n1={"n2": 1.0, "n4": 10.0}, n3={"n4": 10.0, "n2": 1.1})
    faults = of_links(slow, LIMITS)
    assert list(faults) == ["n2"]
    assert "slow network: 1 GB/s with n1, 1.1 GB/s with n3; at least 2.77 is expected" in faults["n2"][0]


def test_a_floor_for_bandwidth_counts_even_when_all_are_slow() -> None:
    assert list(of_links(ring(), Limits(gb_per_second=20))) == ["n1", "n2", "n3", "n4"]


@pytest.mark.parametrize("count", range(2, 10))
def test_every_node_has_a_neighbour_and_neighbours_agree(count: int) -> None:
    partners = [neighbours(count, index) for index in range(count)]
    assert all(partners)
    assert all(index in partners[other] for index, found in enumerate(partners) for other in found)
    assert all(index not in found for index, found in enumerate(partners))


@pytest.fixture
def recipe(tmp_path: Path, shards: Path) -> Callable[[Path], list[str]]:
    def words(folder: Path) -> list[str]:
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(tiny.recipe(folder, tmp_path)))
        return ["pretrain", str(file)]

    return words


def test_the_same_shards_have_the_same_fingerprint_wherever_they_lie(
    recipe: Callable[[Path], list[str]], shards: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(shards, tmp_path / "copy")
    (one,), (other,) = (inputs.fingerprints(recipe(folder))[0].values() for folder in (shards, copy))
    assert one == other


def test_shards_that_are_away_or_cut_are_named(
    recipe: Callable[[Path], list[str]], shards: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(shards, tmp_path / "copy")
    tar = next((copy / "train").glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-512])
    found, [problem] = inputs.fingerprints(recipe(copy))
    assert (found, tar.name in problem, "bytes instead of" in problem) == ({}, True, True)
    shutil.rmtree(copy)
    copy.mkdir()
    [problem] = inputs.fingerprints(recipe(copy))[1]
    assert "no shard set here" in problem


def test_other_folders_differ_by_what_is_in_them_and_must_not_be_empty(tmp_path: Path) -> None:
    for name, text in (("a", "x"), ("b", "x"), ("c", "xy")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.txt").write_text(text)
    a, b, c = (inputs.of_files(tmp_path / name) for name in "abc")
    assert (a == b, a == c) == (True, False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="the folder is empty -- mount"):
        inputs.of_files(tmp_path / "empty")


def test_what_a_fine_tune_reads_is_found_in_its_words(tmp_path: Path) -> None:
    for name in ("talks", "knowledge"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text("x")
    talks, knowledge = tmp_path / "talks", tmp_path / "knowledge"
    data = ["--data", f"jsonl:{talks}#carve=0.2", "--data", "synthetic:dialogues=50"]
    words = ["finetune", "ki", "--from", "scratch", *data, f"model.knowledge={knowledge}"]
    found, problems = inputs.fingerprints(words)
    assert (sorted(found), problems) == (sorted([str(talks), str(knowledge)]), [])
    shutil.rmtree(knowledge)
    assert str(knowledge) in inputs.fingerprints(words)[1][0]


def test_want_of_room_is_a_fault_of_the_node(tmp_path: Path) -> None:
    saved = tmp_path / "run" / "checkpoints" / "step-00000010"
    saved.mkdir(parents=True)
    (saved / "a").write_bytes(bytes(1000))
    assert facts.last_checkpoint_bytes(tmp_path / "run") == 1000
    assert facts.disks(tmp_path / "run", Limits(free_gb=0, tmp_gb=0)) == []
    [problem] = facts.disks(tmp_path / "run", Limits(free_gb=1e9, tmp_gb=0))
    assert "GB free, 1000000000.0 GB are needed" in problem


def test_limits_come_from_the_site_file() -> None:
    assert Limits.read({"SITE_MIN_FREE_GB": "7", "SITE_SLOW_SHARE": ""}) == Limits(free_gb=7)
    with pytest.raises(UserError, match="SITE_MIN_FREE_GB=much is not a number"):
        Limits.read({"SITE_MIN_FREE_GB": "much"})


NVIDIA_SMI = """\
#!/bin/sh
cat <<END
GPU-a, 570.1, 4, 0, No, No, No, Not Active
GPU-b, 570.1, 40960, 3, No, No, Yes, [N/A]
END
"""


def test_the_drivers_account_of_gpus_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(NVIDIA_SMI)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    problems, driver = gpus.by_driver(expected=4)
    assert driver == "570.1"
    assert problems == [
        "GPU 1: uncorrected memory errors (ecc.errors.uncorrected.volatile.total: 3)",
        "GPU 1: memory rows wait for remapping (remapped_rows.pending: Yes)",
        "GPU 1: 40960 MB are in use by something else",
        "2 GPUs instead of 4",
    ]
    tool.write_text("#!/bin/sh\necho Unable to determine the device handle; exit 9\n")
    assert gpus.by_driver(expected=4)[0] == ["nvidia-smi fails: Unable to determine the device handle"]


def test_no_gpu_is_looked_at_where_none_is_asked_for() -> None:
    assert gpus.examine(expected=0) == gpus.Cards()
