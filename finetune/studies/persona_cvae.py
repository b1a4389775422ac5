"""What the latents of an implicit-persona CVAE do: the sweep of the fader (Figure 6) and the map of the
perception variable (Figure 5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.batch import Example, TurnBatch, collate
from finetune.dialogue.dialogue import Dialogue
from finetune.evaluate import timesteps
from finetune.families.persona_cvae import Family, PersonaCvae
from finetune.families.persona_cvae.layout import content_words
from finetune.families.persona_cvae.writing import replies
from finetune.fitted import Fitted
from finetune.metrics import Resources
from finetune.metrics import evaluate as measure
from finetune.metrics.prediction import Prediction
from pretrain.errors import UserError

METRICS = ("length", "distinct_2", "p_distance")
NEIGHBOURS = 5
OTHER = "other"
CATEGORIES: Mapping[str, tuple[str, ...]] = {
    "animals": ("dog", "dogs", "cat", "cats", "pet", "pets", "horse", "horses", "animal", "animals", "puppy"),
    "family": ("mother", "mom", "father", "dad", "married", "wife", "husband", "kids", "children", "brother",
               "sister", "son", "daughter", "parents", "family"),
    "food": ("food", "eat", "eating", "pizza", "meat", "vegan", "vegetarian", "cook", "cooking", "bake",
             "baking", "chocolate", "cheese", "coffee", "restaurant"),
    "music": ("music", "band", "guitar", "piano", "sing", "singing", "singer", "song", "songs", "concert",
              "concerts", "drums", "rock", "country", "violin"),
    "sports": ("sports", "football", "basketball", "soccer", "baseball", "hockey", "tennis", "golf", "run",
               "running", "gym", "swim", "swimming", "team", "yoga"),
    "work": ("work", "job", "teacher", "nurse", "lawyer", "engineer", "office", "school", "college",
             "student", "business", "store", "career", "doctor", "army"),
}  # fmt: skip
"""Ours, by words; the paper lets a zero-shot classifier sort the profiles into six kinds that it draws."""


class Study:
    """A fine-tuned implicit-persona CVAE that answers questions about itself."""

    def __init__(self, fitted: Fitted) -> None:
        """Raises:
        UserError: a model of another family, or without latents.
        """
        if not isinstance(fitted.family, Family):
            raise UserError(
                f"a model of the family {fitted.recipe.family}",
                where=str(fitted.place),
                mend="give a run of persona_cvae",
            )
        self.fitted: Fitted = fitted
        self.family: Family = fitted.family
        self.model: PersonaCvae = fitted.model
        if not self.model.config.latents:
            raise UserError("a model without latents", where=str(fitted.place), mend="model.latents=true")

    # --- Figure 6 ---

    def swept(
        self,
        levels: Sequence[float],
        *,
        sources: Sequence[str],
        split: str,
        agents: int,
        most: int,
        resources: Resources,
    ) -> list[Swept]:
        """Answer the first `most` target turns of a split at every level of the fader, Zp from the prior.

        All levels see the same draws.

        Raises:
            UserError: a model without a fader.
        """
        if self.model.config.fader == "off":
            raise UserError("a model without fader", where=str(self.fitted.place), mend="model.fader=hidden")
        found: list[list[Prediction]] = [[] for _ in levels]
        shown: list[list[float]] = [[] for _ in levels]
        how = self.fitted.recipe.generation
        for batch, read in self._read(sources, split, agents):
            rows = [row for row, example in enumerate(batch.examples) if example is not None]
            rows = rows[: most - len(found[0])]
            for place, level in enumerate(levels):
                texts = replies(self.model, self.family.layout, read, batch, how, fader=level)
                for row in rows:
                    example = batch.examples[row]
                    assert example is not None
                    found[place].append(replace(example.about, replies=tuple(texts[row])))
                    shown[place] += self.shown(example.about.partner_persona, texts[row])
            if len(found[0]) >= most:
                break
        swept = []
        for level, predictions, similarities in zip(levels, found, shown, strict=True):
            report = measure(predictions, list(METRICS), resources)
            values = {**report.values, "shown": float(np.mean(similarities))}
            swept.append(Swept(level, len(predictions), values, dict(report.unavailable)))
        return swept

    @torch.no_grad()
    def shown(self, profile: Sequence[str], replies: Sequence[str]) -> list[float]:
        """The fader's recognition on given replies: how much of a profile each shows, in [0, 1]."""
        layout = self.family.layout
        levels = []
        keyword_ids, keywords = layout.pieces(layout.keywords(profile))
        for reply in replies:
            reply_ids, reply_words = layout.pieces(content_words([reply]))
            if not keyword_ids or not reply_ids:
                levels.append(0.0)
                continue
            given = (keyword_ids, keywords, reply_ids, reply_words)
            level = self.model.fader(*(torch.tensor([one], device=self.model.device) for one in given))
            levels.append(float(level))
        return levels

    @torch.no_grad()
    def _read(self, sources: Sequence[str], split: str, agents: int) -> Iterator[tuple[TurnBatch, object]]:
        """Timesteps with what the encoder made of them; the memory goes on as in training."""
        batches = timesteps(self.fitted, split, sources=sources, agents=agents)[2]
        memory = self.fitted.memory(agents)
        for cpu_batch in batches:
            batch = cpu_batch.to(self.model.device)
            read = self.model.read(batch, memory)
            assert read.memory_states is not None
            memory = read.memory_states
            yield batch, read

    # --- Figure 5 ---

    @torch.no_grad()
    def perceived(self, dialogues: Sequence[Dialogue], most: int) -> Perceived:
        """Posterior means of the first `most` different profiles that somebody answers.

        Raises:
            UserError: a posterior that reads replies, or fewer than three profiles.
        """
        if self.model.config.posterior_input != "profile":
            raise UserError(
                "its posterior reads replies, not profiles", mend="a model with model.posterior_input=profile"
            )
        examples: dict[object, Example] = {}
        for dialogue in dialogues:
            for speaker in (0, 1):
                for turn in self.family.targets(dialogue, speaker)[:1]:
                    example = self.family.example(dialogue, turn)
                    examples.setdefault(example.fields["profile_key"], example)
        chosen = list(examples.values())[:most]
        if len(chosen) < 3:
            raise UserError(f"{len(chosen)} profiles make no map", mend="give more dialogues")
        means = []
        for start in range(0, len(chosen), 32):
            part = chosen[start : start + 32]
            batch = collate(part, [1] * len(part), self.family.pads, self.family.numbers)
            means.append(self.model.recognize(batch.to(self.model.device)).mean.cpu())
        return Perceived(
            torch.cat(means).double().numpy(),
            tuple(category(example.about.partner_persona) for example in chosen),
        )


@dataclass(frozen=True)
class Swept:
    """Replies at one level of the fader."""

    level: float
    contexts: int
    values: dict[str, float]
    """Metrics, and `shown`: the fader's own similarity of reply and profile."""
    unavailable: dict[str, str]


@dataclass(frozen=True)
class Perceived:
    """Profiles as the recognition network sees them."""

    means: NDArray[np.float64]
    """`[N, D]`."""
    categories: tuple[str, ...]

    def flat(self, seed: int) -> NDArray[np.float64]:
        """t-SNE, `[N, 2]`."""
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(self.means) - 1) / 3)
        found: NDArray[np.float64] = TSNE(perplexity=perplexity, random_state=seed).fit_transform(self.means)
        return found

    def purity(self) -> tuple[float, float]:
        """Share of the nearest neighbours of a profile that are of its category, and that of any others.

        Profiles of no category are left out of both.
        """
        known = [place for place, name in enumerate(self.categories) if name != OTHER]
        names = np.array([self.categories[place] for place in known])
        means = self.means[known]
        if len(known) < 2:
            return float("nan"), float("nan")
        squares = np.square(means).sum(axis=1)
        apart = squares[:, None] + squares[None] - 2 * means @ means.T
        np.fill_diagonal(apart, np.inf)
        nearest = np.argsort(apart, axis=1)[:, : min(NEIGHBOURS, len(known) - 1)]
        same = names[:, None] == names[None]
        by_chance = (same.sum() - len(names)) / (len(names) * (len(names) - 1))
        return float(np.take_along_axis(same, nearest, axis=1).mean()), float(by_chance)


def category(profile: Sequence[str]) -> str:
    """The category with most words in a profile, the first one of equals; `other` if none has any."""
    said = [word for sentence in profile for word in sentence.lower().split()]
    hits = {name: sum(word in words for word in said) for name, words in CATEGORIES.items()}
    best = max(hits, key=lambda name: hits[name])
    return best if hits[best] else OTHER
