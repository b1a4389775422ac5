"""A made-up encyclopedia, and what `membart ki` makes of it: small enough to train in seconds."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.knowledge.base import KnowledgeBase, build
from finetune.knowledge.index import KnowledgeIndex
from finetune.knowledge.index import build as build_index
from finetune.knowledge.retriever.model import Retriever
from finetune.knowledge.retriever.settings import RetrieverSettings
from finetune.knowledge.retriever.train import train
from tests.support import tiny
from tests.support.folders import temporary

SETTINGS = (
    *("joint_size=64", "head_size=128", "head_dropout=0.0", "margin=0.2", "lr=6e-3", "head_lr=6e-3"),
    *("batch=64", "steps=100", "validate_every=50", "max_tokens=24", "weight_decay=0", "held_out=0"),
)
"""Learns 64 sentences in seconds."""
_KINDS = ("bird", "fish", "tree", "stone", "song", "river", "king", "tool")
_PLACES = ("north", "south", "hills", "desert", "coast", "forest", "city", "islands")
_SOUNDS = ("ba", "do", "fi", "gu", "ka", "lo", "me", "su")


def articles() -> list[tuple[str, str]]:
    """64 titles with their sentences; no two share kind and place."""
    return [
        (
            f"{_SOUNDS[row]}{_SOUNDS[column]}n",
            f"A {_SOUNDS[row]}{_SOUNDS[column]}n is a {kind} of the {place}.",
        )
        for row, kind in enumerate(_KINDS)
        for column, place in enumerate(_PLACES)
    ]


def table(file: Path) -> Path:
    """The articles as `title<TAB>sentence`."""
    file.write_text("".join(f"{title}\t{sentence}\n" for title, sentence in articles()), encoding="utf-8")
    return file


def dialogues() -> list[Dialogue]:
    """Talk about the articles; titles, other content words and stop words."""
    said = [
        Turn(number % 2, f"have you heard of the {title} in the {_PLACES[number % 8]}?")
        for number, (title, _) in enumerate(articles())
    ]
    return [Dialogue(f"talk-{at}", tuple(said[at : at + 4])) for at in range(0, len(said), 4)]


@cache
def model_folder() -> Path:
    """An exported MemBART of two layers with a tokenizer that splits the made-up titles."""
    from pretrain.corpus.tokenizer import train_tokenizer

    folder = temporary("knowledge")
    texts = [sentence for _, sentence in articles()] + [
        turn.text for dialogue in dialogues() for turn in dialogue.turns
    ]
    train_tokenizer(texts, 330).save(folder)
    tiny.model(vocab_size=330, d_model=32, max_position_embeddings=40, init_std=0.1).save_pretrained(folder)
    return folder


@cache
def base() -> KnowledgeBase:
    """The knowledge base of the articles."""
    folder = temporary("knowledge")
    return build([str(table(folder / "wiki.tsv"))], folder / "base")


@cache
def retriever_folder() -> Path:
    """A retriever that knows the articles."""
    import torch

    out = temporary("knowledge") / "retriever"
    train(base(), str(model_folder()), out, RetrieverSettings.of(SETTINGS), device=torch.device("cpu"))
    return out


@cache
def retriever() -> Retriever:
    """The same, open."""
    return Retriever.open(retriever_folder())


@cache
def index() -> KnowledgeIndex:
    """Exact search over the articles."""
    out = temporary("knowledge") / "index"
    return build_index(base().folder, retriever_folder(), out)
