"""Numbered tasks in worker processes, results in order.

PyTorch's DataLoader does the work: its workers run on one thread each, end when their parent dies, and share
what was loaded before they were forked (models, memory-mapped indexes).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from pretrain.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    work: Callable[[int], Result], tasks: Sequence[int], workers: int, begin: Callable[[], None] | None = None
) -> Iterator[Result]:
    """`work(task)` for each task, in their order, in `workers` processes; 0: in this one.

    Args:
        begin: called once in every process before its first task.

    Raises:
        UserError: as `work` raises it, or a worker died.
    """
    begin = begin or _nothing
    if not workers or not tasks:
        begin()
        yield from map(work, tasks)
        return
    yield from _loaded(_Tasks(work), min(workers, len(tasks)), begin, list(tasks))


def streamed(
    source: Callable[[], Iterator[Item]], work: Callable[[Item], Result], workers: int
) -> Iterator[Result]:
    """`work(item)` for each item that `source()` yields, in their order, in `workers` processes.

    Every process reads the source for itself and works on every n-th item: right where reading is cheap.

    Raises:
        UserError: as `source` or `work` raises it, or a worker died.
    """
    if workers <= 1:
        yield from map(work, source())
    else:
        yield from _loaded(_Share(source, work), workers, _nothing)


def _loaded(
    dataset: Dataset[Any], workers: int, begin: Callable[[], None], tasks: list[int] | None = None
) -> Iterator[Any]:
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # the user said how many
    loader: DataLoader[Any] = DataLoader(
        dataset,
        sampler=tasks,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_Begin(begin),
        multiprocessing_context="fork",
    )
    try:
        for result in loader:
            if isinstance(result, _Refused):
                raise UserError(result.what, where=result.where, mend=result.mend)
            yield result
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a worker process died (out of memory?)",
            mend="run the same command again to go on, perhaps with fewer --workers",
        ) from None


@dataclass(frozen=True)
class _Refused:
    """A `UserError` on its way to the parent."""

    what: str
    where: str
    mend: str


class _Tasks(Dataset[Any], Generic[Result]):
    def __init__(self, work: Callable[[int], Result]) -> None:
        self.work = work

    def __getitem__(self, task: int) -> Result | _Refused:
        try:
            return self.work(task)
        except UserError as error:
            return _Refused(error.what, error.where, error.mend)


class _Share(IterableDataset[Any]):
    def __init__(self, source: Callable[[], Iterator[Any]], work: Callable[[Any], Any]) -> None:
        self.source, self.work = source, work

    def __iter__(self) -> Iterator[Any]:
        mine = get_worker_info()
        assert mine is not None
        try:
            yield from map(self.work, islice(self.source(), mine.id, None, mine.num_workers))
        except UserError as error:
            yield _Refused(error.what, error.where, error.mend)


class _Begin:
    def __init__(self, begin: Callable[[], None]) -> None:
        self.begin = begin

    def __call__(self, worker: int) -> None:
        torch.set_num_threads(1)
        self.begin()


def _as_it_is(result: Any) -> Any:
    return result


def _nothing() -> None:
    pass
