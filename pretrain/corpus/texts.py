"""The raw texts of sources, in build order: what a tokenizer is trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pretrain.corpus.documents import Document, Passage
from pretrain.corpus.encode import task_items
from pretrain.corpus.sources import SourceSpec, expand
from pretrain.corpus.tasks import tasks


def source_texts(sources: Sequence[SourceSpec], *, max_characters: int | None = None) -> Iterator[str]:
    """Texts of all documents, long or short; stops after the one that reaches `max_characters`.

    Bad records are passed over in silence: the build that follows reports them.
    """
    seen = 0
    for spec in sources:
        for task in tasks(spec, expand(spec).files):
            for item in task_items(task):
                if isinstance(item, Document | Passage):
                    text = item.text if isinstance(item, Document) else "\n".join(item.lines)
                    yield text
                    seen += len(text)
                    if max_characters is not None and seen >= max_characters:
                        return
