"""Controls: the same words with other knowledge (Table 5), or only some of the words (Figure 3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from finetune.knowledge.annotations import Annotations, Table
from pretrain import counter
from pretrain.errors import UserError

Control = Literal["none", "random", "sentence", "factual", "linguistic"]
CONTROLS: tuple[Control, ...] = get_args(Control)


def controlled(annotations: Annotations, kind: Control, seed: int = 1) -> Annotations:
    """Annotations with other items; all but the spans is shared with the original.

    `random` shuffles the items over all words of the whole folder, so each item stays as frequent as it was.
    `sentence` gives all words of an utterance its most frequent item, of equally frequent ones the first;
    words without knowledge (stop words) stay without. `factual` keeps nouns and proper nouns only,
    `linguistic` the rest. Coverage is that of the original for the first two, and adds up to it for the
    others.

    Raises:
        UserError: no such control, or words were not tagged and it needs that.
    """
    table = annotations.table
    spans = table.spans
    if kind == "none":
        return annotations
    if kind == "random":
        items = np.asarray(spans.items)[counter.permutation(len(spans.items), seed)]
        table = replace(table, spans=replace(spans, items=items))
    elif kind == "sentence":
        table = replace(table, spans=replace(spans, items=_most_frequent(table)))
    elif kind in ("factual", "linguistic"):
        if spans.nouns is None:
            raise UserError(
                f"no parts of speech, which {kind} knowledge needs",
                where=str(annotations.folder),
                mend="annotate again with --pos",
            )
        table = _kept(table, spans.nouns if kind == "factual" else ~spans.nouns)
    else:
        raise UserError(f"no control '{kind}'", mend=f"one of: {', '.join(CONTROLS)}")
    return replace(annotations, table=table, control=kind)


def _most_frequent(table: Table) -> np.ndarray:
    """`[S]` int64: for each span the item that most spans of its utterance have."""
    items, owners = np.asarray(table.spans.items), table.owners
    order = np.lexsort((items, owners))
    pairs = np.stack([owners[order], items[order]])
    begins = np.flatnonzero(np.append(True, (np.diff(pairs) != 0).any(axis=0))[: len(items)])
    counts = np.diff(np.append(begins, len(items)))
    first = np.minimum.reduceat(order, begins) if len(begins) else order
    # Of each utterance the group with the highest count; of equal ones the one that came first.
    ranked = np.lexsort((first, -counts, pairs[0, begins]))
    utterances, leaders = np.unique(pairs[0, begins][ranked], return_index=True)
    winners = np.zeros(len(table.utterances), np.int64)
    winners[utterances] = pairs[1, begins][ranked][leaders]
    return winners[owners]


def _kept(table: Table, wanted: np.ndarray) -> Table:
    """The table with some of its spans."""
    before = np.concatenate([[0], np.cumsum(wanted)]).astype(np.int64)
    return replace(table, offsets=before[table.offsets], spans=table.spans.rows(wanted))
