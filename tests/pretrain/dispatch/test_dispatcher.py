"""The dispatcher on shards on disk: documents come back whole, on any ranks, across resumes and workers."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.corpus.shardset import ShardSet, Window
from pretrain.dispatch import Batch, Dispatcher
from pretrain.dispatch.plan import merge_states, realised_mixture
from pretrain.errors import CheckpointError, UserError
from pretrain.noise import NoiseConfig, Vocabulary

SHARDS = [("a", [700, 512, 1400]), ("b", [513, 2000]), ("a", [600, 893, 1000, 512]), ("b", [900, 510])]
LAYOUT: dict[str, Any] = {"lanes": 4, "agents_per_lane": 2, "seed": 11}


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory, write_set: Callable[..., ShardSet]) -> ShardSet:
    return write_set(tmp_path_factory.mktemp("set"), SHARDS, window=Window(512, 128))


def documents(shard_set: ShardSet) -> dict[int, list[int]]:
    return {
        int(identifier): shard_set.tokens(shard, number).tolist()
        for shard in range(len(shard_set.shards))
        for number, identifier in enumerate(shard_set.index(shard).documents)
    }


def row_content(batch: Batch, row: int) -> tuple[Any, ...]:
    """A row without its padding, and its audit: what must not depend on how the rows are spread."""
    width = int(batch.attention_mask[row].sum())
    real = batch.labels[row] != -100
    return (
        batch.input_ids[row, :width].tolist(),
        batch.decoder_input_ids[row, : int(real.sum())].tolist(),
        batch.labels[row][real].tolist(),
        *(int(column[row]) for column in (batch.memory_resets, batch.lane, batch.agent)),
        *(int(column[row]) for column in (batch.document, batch.segment, batch.epoch)),
    )


def global_rows(batches: Iterable[Batch]) -> list[tuple[Any, ...]]:
    return [row_content(batch, row) for batch in batches for row in range(len(batch.agent))]


class Reader:
    """Puts documents together again from each agent's segments, following resets alone."""

    def __init__(self, overlap: int) -> None:
        self.overlap = overlap
        self.open: dict[int, list[int]] = {}
        self.names: dict[int, int] = {}
        self.done: dict[int, list[list[int]]] = defaultdict(list)

    def feed(self, batch: Batch) -> None:
        for row, agent in enumerate(batch.agent.tolist()):
            body = batch.labels[row][batch.labels[row] != -100].tolist()[1:-1]
            if batch.memory_resets[row]:
                self.close(agent)
                if body:
                    self.open[agent], self.names[agent] = body, int(batch.document[row])
            else:
                assert int(batch.document[row]) == self.names[agent]
                assert body[: self.overlap] == self.open[agent][-self.overlap :]
                self.open[agent] += body[self.overlap :]

    def close(self, agent: int) -> None:
        if agent in self.open:
            self.done[self.names[agent]].append(self.open.pop(agent))


@pytest.mark.parametrize("worlds", [[1], [2], [4], [1, 2, 4, 1], [4, 1, 2]], ids=str)
def test_an_agents_segments_give_the_documents_back(shard_set: ShardSet, worlds: list[int]):
    """Spec test 16: without overlaps, reset only at starts, also after resumes on other world sizes."""
    reader, state = Reader(128), None
    for number, world in enumerate(worlds):
        ranks = [
            Dispatcher(shard_set, **LAYOUT, epochs=1, rank=rank, world_size=world) for rank in range(world)
        ]
        for rank in ranks:
            if state is not None:
                rank.load_state_dict(json.loads(json.dumps(state)))
        last = number == len(worlds) - 1
        for _ in range(10**6 if last else 2):
            batches = [next(rank, None) for rank in ranks]
            if batches[0] is None:
                break
            for batch in batches:
                assert batch is not None
                reader.feed(batch)
        if last:
            assert [next(rank, None) for rank in ranks] == [None] * world
        state = merge_states([rank.state_dict() for rank in ranks])
    for agent in list(reader.open):
        reader.close(agent)
    assert reader.done == {name: [tokens] for name, tokens in documents(shard_set).items()}


def test_global_batches_are_the_same_on_any_world_size_and_number_of_workers(shard_set: ShardSet):
    whole = global_rows(batch for batch, _ in zip(Dispatcher(shard_set, **LAYOUT), range(12), strict=False))
    for world, workers in ((1, 1), (2, 0), (2, 2), (4, 0)):
        ranks = [
            Dispatcher(shard_set, **LAYOUT, rank=rank, world_size=world, workers=workers)
            for rank in range(world)
        ]
        rows = [row for _ in range(12) for rank in ranks for row in global_rows([next(rank)])]
        for rank in ranks:
            rank.close()
        assert rows == whole, (world, workers)


def test_the_state_tells_what_was_taken_and_not_what_workers_have_built_ahead(shard_set: ShardSet):
    plain = Dispatcher(shard_set, **LAYOUT)
    with Dispatcher(shard_set, **LAYOUT, workers=2, prefetch=8) as ahead:
        for _ in range(7):
            assert ahead.state_dict() == plain.state_dict()
            next(ahead), next(plain)
        state = json.loads(json.dumps(ahead.state_dict()))
        expected = global_rows([next(ahead) for _ in range(3)])
    resumed = Dispatcher(shard_set, **LAYOUT)
    resumed.load_state_dict(state)
    assert global_rows([next(resumed) for _ in range(3)]) == expected
    with Dispatcher(shard_set, **LAYOUT, workers=1) as elsewhere:
        next(elsewhere)
        elsewhere.load_state_dict(state)
        assert global_rows([next(elsewhere) for _ in range(3)]) == expected


def test_a_closed_dispatcher_goes_on_where_it_stood(shard_set: ShardSet):
    plain = Dispatcher(shard_set, **LAYOUT)
    again = Dispatcher(shard_set, **LAYOUT, workers=1)
    rows = []
    for _ in range(3):
        rows.append(global_rows([next(again)]))
        again.close()
    assert rows == [global_rows([next(plain)]) for _ in range(3)]


def test_a_finite_pass_ends_with_dry_rows_and_stays_ended(shard_set: ShardSet):
    for workers in (0, 2):
        with Dispatcher(shard_set, **LAYOUT, epochs=1, workers=workers) as finite:
            batches = list(finite)
            assert len(batches) == finite.plan.timesteps
            assert next(finite, None) is None
            assert not finite.worker_pids
        last = batches[-1]
        dry = last.document == -1
        assert dry.any()
        assert not dry.all()
        assert (last.segment[dry] == -1).all()
        assert (last.epoch[dry] == -1).all()
        assert (last.memory_resets[dry] == 1).all()
        assert (last.attention_mask[dry] == 0).all()
        assert (last.input_ids[dry] == 1).all()
        assert (last.decoder_input_ids[dry] == 1).all()
        assert (last.labels[dry] == -100).all()


def test_a_pass_that_has_ended_can_be_taken_up_again_where_it_was(shard_set: ShardSet):
    finite = Dispatcher(shard_set, **LAYOUT, epochs=1)
    begin = finite.state_dict()
    next(finite), next(finite)
    middle = finite.state_dict()
    rest = global_rows(finite)
    finite.load_state_dict(middle)
    assert global_rows(finite) == rest
    finite.load_state_dict(begin)
    assert global_rows(finite)[16:] == rest


def test_a_rank_whose_lanes_are_dry_waits_for_the_others_with_empty_batches(tmp_path: Path, write_set):
    shard_set = write_set(tmp_path, [("a", [9000]), ("a", [600])])
    layout = {"lanes": 2, "agents_per_lane": 1, "seed": 1, "epochs": 1, "world_size": 2}
    ranks = [list(Dispatcher(shard_set, **layout, rank=rank)) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) > 20
    quiet = min(ranks, key=lambda batches: sum(batch.target_tokens for batch in batches))[-1]
    assert quiet.input_ids.shape == (1, 8)
    assert quiet.target_tokens == quiet.attention_mask.sum() == 0


def test_shapes_types_and_frames_are_as_documented(shard_set: ShardSet):
    for batch in Dispatcher(shard_set, **LAYOUT, epochs=1):
        rows, source = batch.input_ids.shape
        target = batch.labels.shape[1]
        assert rows == 8
        assert batch.attention_mask.shape == (rows, source)
        assert batch.decoder_input_ids.shape == (rows, target)
        for column in ("memory_resets", "lane", "agent", "document", "segment", "epoch"):
            assert getattr(batch, column).shape == (rows,)
            assert getattr(batch, column).dtype == torch.int64
        for matrix in (batch.input_ids, batch.attention_mask, batch.decoder_input_ids, batch.labels):
            assert matrix.dtype == torch.int64
        assert batch.agent.tolist() == list(range(8))
        assert batch.lane.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        sizes = batch.attention_mask.sum(1)
        counts = (batch.labels != -100).sum(1)
        assert source == -(-int(sizes.max()) // 8) * 8
        assert target == -(-int(counts.max()) // 8) * 8
        assert batch.target_tokens == int(counts.sum())
        for row in range(rows):
            size, count = int(sizes[row]), int(counts[row])
            assert batch.attention_mask[row].tolist() == [1] * size + [0] * (source - size)
            if batch.document[row] >= 0:
                assert batch.input_ids[row, [0, size - 1]].tolist() == [0, 2]
                assert batch.labels[row, [0, count - 1]].tolist() == [0, 2]
                assert batch.decoder_input_ids[row, :2].tolist() == [2, 0]
                assert (
                    batch.decoder_input_ids[row, 1:count].tolist() == batch.labels[row, : count - 1].tolist()
                )
            assert (batch.input_ids[row, size:] == 1).all()
            assert (batch.decoder_input_ids[row, count:] == 1).all()
            assert (batch.labels[row, count:] == -100).all()


def test_the_source_is_the_noised_target(shard_set: ShardSet, tokenizer):
    clean = Dispatcher(shard_set, **LAYOUT, noise=NoiseConfig(mask_ratio=0))
    noised = Dispatcher(shard_set, **LAYOUT)
    for _ in range(5):
        before, after = next(clean), next(noised)
        for row in range(8):
            real = before.labels[row] != -100
            target = before.labels[row][real].tolist()
            assert before.input_ids[row][before.attention_mask[row] == 1].tolist() == target
            assert after.labels[row][after.labels[row] != -100].tolist() == target
            source = after.input_ids[row][after.attention_mask[row] == 1]
            kept = iter(target)
            assert all(token in kept for token in source.tolist() if token != tokenizer.mask)
            assert 0 < int((source == tokenizer.mask).sum()) < 0.3 * len(target)


def test_the_same_segment_gets_the_same_noise_on_any_layout_and_other_noise_in_another_epoch(
    shard_set: ShardSet,
):
    seen: dict[tuple[int, int, int], list[int]] = {}
    for lanes, agents in ((4, 2), (1, 3), (2, 1)):
        layout = {"lanes": lanes, "agents_per_lane": agents, "seed": 11, "epochs": 2}
        for batch in Dispatcher(shard_set, **layout):
            for row, (document, segment, epoch) in enumerate(
                zip(batch.document.tolist(), batch.segment.tolist(), batch.epoch.tolist(), strict=True)
            ):
                source = batch.input_ids[row][batch.attention_mask[row] == 1].tolist()
                assert seen.setdefault((document, segment, epoch), source) == source
    long = [name for name, source in seen.items() if name[2] == 0 and len(source) > 100]
    assert len(long) > 15
    assert all(seen[document, segment, 1] != seen[document, segment, 0] for document, segment, _ in long)


def test_constant_shapes(shard_set: ShardSet):
    for batch in Dispatcher(shard_set, **LAYOUT, epochs=1, static_shapes=True):
        assert batch.input_ids.shape == batch.labels.shape == (8, 512)


def test_another_window_than_the_sets(shard_set: ShardSet):
    finite = Dispatcher(shard_set, **LAYOUT, epochs=1, window=Window(66, 0))
    counts = defaultdict(int)
    for batch in finite:
        assert batch.labels.shape[1] <= 72
        for document in batch.document[batch.document >= 0].tolist():
            counts[document] += 1
    assert counts == {name: -(-len(tokens) // 64) for name, tokens in documents(shard_set).items()}


def test_recall_asks_for_the_segment_before(shard_set: ShardSet):
    window = Window(130, 0)
    texts = documents(shard_set)
    asked = 0
    for batch in Dispatcher(shard_set, **LAYOUT, epochs=1, window=window, objective="recall"):
        for row in range(8):
            document, segment = int(batch.document[row]), int(batch.segment[row])
            target = batch.labels[row][batch.labels[row] != -100].tolist()
            if segment <= 0:
                assert target == []
                assert (batch.decoder_input_ids[row] == 1).all()
            else:
                asked += 1
                body = texts[document]
                assert target == [0, *body[(segment - 1) * 128 : segment * 128], 2]
                source = batch.input_ids[row][batch.attention_mask[row] == 1].tolist()
                assert source == [0, *body[segment * 128 : (segment + 1) * 128], 2]
    assert asked > 50


def test_batches_move_and_keep_their_audit(shard_set: ShardSet):
    batch = next(Dispatcher(shard_set, **LAYOUT))
    moved = batch.to("meta")
    assert moved.input_ids.device.type == "meta"
    assert moved.input_ids.shape == batch.input_ids.shape
    assert (moved.timestep, moved.target_tokens) == (0, batch.target_tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 12}, "saved with seed 11, this run has 12"),
        ({"lanes": 2, "agents_per_lane": 4}, "saved with lanes 4, this run has 2"),
        ({"window": Window(512, 0)}, "saved with window"),
        ({"mixture": {"a": 1.0, "b": 1.0}}, "saved with mixture None"),
    ],
    ids=str,
)
def test_a_position_of_another_run_is_refused(shard_set: ShardSet, change: dict[str, Any], message: str):
    state = Dispatcher(shard_set, **LAYOUT).state_dict()
    with pytest.raises(CheckpointError, match=message):
        Dispatcher(shard_set, **(LAYOUT | change)).load_state_dict(state)


def test_a_position_in_another_shard_set_is_refused(shard_set: ShardSet, tmp_path: Path, write_set):
    other = write_set(tmp_path, SHARDS, seed=1)
    with pytest.raises(CheckpointError, match="saved with shard_set"):
        Dispatcher(other, **LAYOUT).load_state_dict(Dispatcher(shard_set, **LAYOUT).state_dict())


def test_the_state_is_small_json(shard_set: ShardSet):
    """A few dozen bytes for each agent and source of a lane, however far the run is."""
    dispatcher = Dispatcher(shard_set, **LAYOUT)
    for _ in range(200):
        next(dispatcher)
    assert len(json.dumps(dispatcher.state_dict()["lanes"])) < 4 * 200


def test_weights_are_kept_and_reported_by_tokens_or_documents(shard_set: ShardSet):
    for unit, share in (("tokens", "tokens"), ("documents", "documents")):
        dispatcher = Dispatcher(shard_set, **LAYOUT, mixture={"a": 3, "b": 1}, mixture_unit=unit)
        for _ in range(400):
            next(dispatcher)
        served = realised_mixture(dispatcher.state_dict(), ("held-out-only", "b", "a"))
        assert served["held-out-only"] == {"documents": 0, "tokens": 0, "share": 0}
        amounts = np.array([served["a"][share], served["b"][share]])
        assert amounts[0] / amounts.sum() == pytest.approx(0.75, abs=0.02)
        assert served["a"]["share"] + served["b"]["share"] == pytest.approx(1)


def test_a_weight_of_zero_leaves_a_source_out(shard_set: ShardSet):
    names = {int(name) for shard in (1, 3) for name in shard_set.index(shard).documents}
    dispatcher = Dispatcher(shard_set, **LAYOUT, mixture={"a": 0, "b": 2})
    assert {name for _ in range(30) for name in next(dispatcher).document.tolist()} == names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixture": {"a": 1}}, "differ in b"),
        ({"mixture": {"a": 1, "b": 1, "c": 1}}, "differ in c"),
        ({"mixture": {"a": 1, "b": -1}}, "zero or more"),
        ({"mixture": {"a": 0, "b": 0}}, "zero or more"),
        ({"mixture": {"a": 1, "b": 1}, "epochs": 1}, "contradict"),
        ({"split": "validation"}, "'validation' has no documents"),
        ({"world_size": 3}, "3 ranks cannot share 4 lanes"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_one_line(shard_set: ShardSet, options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message) as caught:
        Dispatcher(shard_set, **LAYOUT, **options)
    assert "\n" not in str(caught.value)


def test_the_vocabulary_of_a_real_tokenizer(tokenizer):
    vocabulary = Vocabulary.of(tokenizer)
    (dot,) = tokenizer.encode_batch(["."])[0].tolist()
    assert vocabulary.sentence_ends[dot]
    assert not vocabulary.word_starts[[0, 1, 2, 3, tokenizer.mask]].any()
    assert vocabulary.ordinary == (4, tokenizer.mask)


@pytest.mark.parametrize("option", [{"workers": -1}, {"workers": 1, "prefetch": 0}])
def test_a_number_of_workers_that_cannot_be(shard_set: ShardSet, option: dict[str, int]):
    with pytest.raises(UserError, match="must be at least"):
        Dispatcher(shard_set, **LAYOUT, **option)
