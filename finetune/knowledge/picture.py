"""Figure 2: where a word lies among the words of its knowledge and the words it is said with."""

from __future__ import annotations

import io
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.cluster.vq import kmeans2
from transformers import AutoModel

from finetune import backbone, fitted
from finetune.dialogue.dialogue import Dialogue
from finetune.knowledge.annotations import Annotations, annotated_turns
from finetune.knowledge.words import StopWords, words
from pretrain import checkpoint, recipe
from pretrain.errors import UserError
from pretrain.files import write_atomically
from pretrain.plots import BLUE, GREEN, GREY, VERMILION
from pretrain.recipe import RECIPE_FILE

CLUSTERS = 3
MOST_COMPANIONS = 30


@dataclass(frozen=True)
class Neighbourhood:
    """A word, the words of its knowledge, and the words it is said with; lower case, the word in none."""

    word: str
    sentence: str
    knowledge: tuple[str, ...]
    companions: tuple[str, ...]
    """Those it is said with most."""
    unheard: tuple[str, ...]
    """Words of the knowledge that are never said with the word: what only knowledge can bring near."""

    @property
    def all(self) -> list[str]:
        """Every word once, the word itself first."""
        return list(dict.fromkeys([self.word, *self.knowledge, *self.companions]))


@dataclass(frozen=True)
class Map:
    """The words of a neighbourhood as one model sees them."""

    name: str
    vectors: np.ndarray
    """`[n, d]` in the order of `Neighbourhood.all`."""

    def distance(self, first: int, second: int) -> float:
        """Euclidean, of the whole vectors."""
        return float(np.linalg.norm(self.vectors[first] - self.vectors[second]))


def neighbourhood(
    word: str, annotations: Annotations, dialogues: Iterable[Dialogue], most: int = MOST_COMPANIONS
) -> Neighbourhood:
    """What a word was annotated with most often, and the `most` words that are most often said with it.

    Raises:
        UserError: the word has no knowledge in these dialogues.
    """
    word = word.lower()
    items: Counter[int] = Counter()
    companions: Counter[str] = Counter()
    stop = StopWords()
    for dialogue in dialogues:
        for turn in annotated_turns(dialogue):
            text = dialogue.turns[turn].text
            said = [each.text.lower() for each in words(text)]
            if word not in said:
                continue
            companions.update({other for other in said if other != word and other not in stop})
            spans = annotations.of(dialogue, turn)
            for start, end, item in zip(spans.starts, spans.ends, spans.items.tolist(), strict=True):
                items[item] += text[start:end].lower() == word
    if not items or not max(items.values()):
        raise UserError(f"'{word}' has no knowledge", where=str(annotations.folder), mend="another --word")
    sentence = annotations.sentences[items.most_common(1)[0][0]]
    told = dict.fromkeys(each.text.lower() for each in words(sentence))
    knowledge = tuple(each for each in told if each != word and each not in stop)
    ranked = sorted(companions, key=lambda other: (-companions[other], other))
    unheard = tuple(other for other in knowledge if other not in companions)
    return Neighbourhood(word, sentence, knowledge, tuple(ranked[:most]), unheard)


def word_vectors(place: str, found: Sequence[str]) -> np.ndarray:
    """`[n, d]` float32: for each word the mean of the input embeddings of its tokens.

    Raises:
        UserError, CheckpointError: no model there.
    """
    model, tokenizer = _model(place)
    table = model.get_input_embeddings().weight.detach()
    rows = []
    for word in found:
        ids = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        rows.append(table[torch.tensor(ids or [tokenizer.unk_token_id])].mean(dim=0).float().numpy())
    return np.stack(rows)


def draw(around: Neighbourhood, maps: Sequence[Map], out: Path) -> Path:
    """A PNG with a panel for each model: two principal components, three clusters, lines to unheard words."""
    figure = Figure(figsize=(7 * len(maps), 6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for number, each in enumerate(maps):
        _panel(figure.add_subplot(1, len(maps), number + 1), around, each)
    title = textwrap.shorten(f"{around.word}: “{around.sentence}”", 200, placeholder=" …")
    figure.suptitle(textwrap.fill(title, 80 * len(maps)), fontsize=10)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, drawn.getvalue())
    return out


def plane(vectors: np.ndarray) -> np.ndarray:
    """`[n, 2]` the first two principal components of `[n, d]`."""
    centred = vectors - vectors.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    found: np.ndarray = centred @ axes[:2].T
    return found


def distances(around: Neighbourhood, each: Map) -> Mapping[str, float]:
    """From the word to every word of its knowledge that it is never said with."""
    places = around.all
    return {other: each.distance(0, places.index(other)) for other in around.unheard}


def _panel(axes: Axes, around: Neighbourhood, each: Map) -> None:
    points = plane(each.vectors)
    count = min(CLUSTERS, len(points))
    _, clusters = kmeans2(points, count, seed=1, minit="++")
    told = set(around.knowledge)
    for place, (word, (x, y)) in enumerate(zip(around.all, points, strict=True)):
        colour = (BLUE, GREEN, VERMILION)[int(clusters[place])]
        axes.scatter(x, y, s=60 if place == 0 else 14, color=colour, marker="*" if place == 0 else "o")
        weight = "bold" if place == 0 or word in told else "normal"
        axes.annotate(word, (x, y), (3, 3), textcoords="offset points", fontsize=7, weight=weight)
    for word in around.unheard:
        end = points[around.all.index(word)]
        axes.plot([points[0, 0], end[0]], [points[0, 1], end[1]], color=GREY, linewidth=0.4, zorder=0)
    far = distances(around, each)
    mean = f", mean distance to unheard knowledge {np.mean(list(far.values())):.3f}" if far else ""
    axes.set_title(f"{each.name}{mean}", fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])


def _model(place: str) -> tuple[Any, Any]:
    """A fine-tuned model, or anything that a fine-tune can start from, with its tokenizer."""
    folder = Path(place)
    if folder.is_dir():
        exported = (folder / "config.json").is_file() and not (folder / "state.json").is_file()
        home = folder if exported else checkpoint.resolve_whole(folder).path
        if (home / RECIPE_FILE).is_file() and "family" in recipe.read(str(home / RECIPE_FILE)):
            model = fitted.load(folder)
            return model.model, model.tokenizer
    start = backbone.find(place)
    if start.is_membart:
        return start.membart(), start.tokenizer
    return start.hub_model(AutoModel), start.tokenizer
