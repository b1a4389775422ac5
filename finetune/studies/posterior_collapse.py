"""Remedies against posterior collapse on a plain sentence VAE: Table 3 of the implicit-persona paper.

The paper only says GRU, PTB and 5000 steps of annealing; sizes are those of the widely used PyTorch
Sentence-VAE. Sums are per sentence, as in an ELBO.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.families.persona_cvae import objectives
from finetune.metrics import latent

PAD, START, END, UNKNOWN = range(4)
IGNORED = -100


@dataclass(frozen=True)
class Sizes:
    """Of model and training."""

    embedding: int = 300
    hidden: int = 256
    latent: int = 32
    batch: int = 32
    words: int = 60
    """Longest sentence; the rest is cut."""
    vocabulary: int = 10_000
    dropout: float = 0.5
    lr: float = 1e-3
    updates: int = 2000
    kla: int = 5000
    at_inner: int = 100
    """Most updates of the encoder before one of the decoder."""
    at_share: float = 0.25
    """Share of the updates in which training is aggressive."""
    seed: int = 1


@dataclass(frozen=True)
class Method:
    """A row of Table 3."""

    label: str
    remedy: str = "none"
    threshold: float = 0.0
    """λ of Po-di; 0: none."""


METHODS = (
    Method("standard"),
    Method("KLA", "kla"),
    Method("CA", "ca"),
    Method("AT", "at"),
    Method("BOW", "bow"),
    *(Method(f"Po-di {threshold:.2f}", threshold=threshold) for threshold in (0.12, 0.15, 0.18, 0.21)),
)
PAPER: Mapping[str, tuple[float, int, float]] = {
    "standard": (58.391, 0, 0.049),
    "KLA": (53.564, 3, 2.508),
    "CA": (51.547, 2, 3.767),
    "AT": (50.000, 6, 5.320),
    "BOW": (48.637, 11, 11.165),
    "Po-di 0.12": (48.467, 13, 14.727),
    "Po-di 0.15": (47.674, 14, 16.096),
    "Po-di 0.18": (45.925, 14, 22.047),
    "Po-di 0.21": (46.883, 14, 25.126),
}
"""Perplexity, active units, KL."""


@dataclass(frozen=True)
class Found:
    """What a trained VAE shows on held-out sentences."""

    ppl_rec: float
    """Of reconstruction alone, which Table 3 almost certainly gives."""
    ppl_elbo: float
    active_units: int
    kl: float
    """Nats, summed over dimensions."""


class SentenceVae(nn.Module):
    """GRU encoder, N(0, I) prior, GRU decoder that starts from z."""

    def __init__(self, vocabulary: int, sizes: Sizes, bow: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, sizes.embedding, padding_idx=PAD)
        self.encoder = nn.GRU(sizes.embedding, sizes.hidden, batch_first=True)
        self.gaussian = nn.Linear(sizes.hidden, 2 * sizes.latent)
        self.start = nn.Linear(sizes.latent, sizes.hidden)
        self.decoder = nn.GRU(sizes.embedding, sizes.hidden, batch_first=True)
        self.words = nn.Linear(sizes.hidden, vocabulary)
        self.dropout = nn.Dropout(sizes.dropout)
        self.bow = (
            nn.Sequential(nn.Linear(sizes.latent, 400), nn.Tanh(), nn.Linear(400, vocabulary))
            if bow
            else None
        )

    def recognize(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Sentences `[B, L]` padded on the right -> mean and log variance `[B, D]`."""
        lengths = (ids != PAD).sum(dim=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embed(ids), lengths, batch_first=True, enforce_sorted=False
        )
        mean, logvar = self.gaussian(self.encoder(packed)[1][0]).chunk(2, dim=-1)
        return mean, logvar.clamp(-objectives.LOG_VARIANCE_LIMIT, objectives.LOG_VARIANCE_LIMIT)

    def reconstruct(self, ids: Tensor, z: Tensor) -> Tensor:
        """Cross-entropy of each sentence and its end, `[B]`."""
        begun = nn.functional.pad(ids[:, :-1], (1, 0), value=START)
        states, _ = self.decoder(self.dropout(self.embed(begun)), torch.tanh(self.start(z))[None])
        return self._summed(self.words(states), ids)

    def bag(self, ids: Tensor, z: Tensor) -> Tensor:
        """Cross-entropy of all words from z alone, `[B]`."""
        assert self.bow is not None
        return self._summed(self.bow(z)[:, None].expand(-1, ids.shape[1], -1), ids)

    def _summed(self, logits: Tensor, ids: Tensor) -> Tensor:
        wanted = ids.masked_fill(ids == PAD, IGNORED)
        each = nn.functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
        return each.sum(dim=1)


def vocabulary(sentences: Sequence[str], most: int) -> dict[str, int]:
    """Numbers of the most frequent words, after those of the four marks."""
    counts = Counter(word for sentence in sentences for word in sentence.split())
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[: most - 4]
    return {word: number for number, word in enumerate(ranked, start=4)}


def batches(sentences: Sequence[str], words: Mapping[str, int], sizes: Sizes, seed: int) -> Iterator[Tensor]:
    """One pass in a seeded order: `[B, L]` with the end mark, padded."""
    order = torch.randperm(len(sentences), generator=torch.Generator().manual_seed(seed)).tolist()
    for at in range(0, len(order), sizes.batch):
        rows = [
            [*(words.get(word, UNKNOWN) for word in sentences[n].split()[: sizes.words]), END]
            for n in order[at : at + sizes.batch]
        ]
        width = max(map(len, rows))
        yield torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


def endless(sentences: Sequence[str], words: Mapping[str, int], sizes: Sizes) -> Iterator[Tensor]:
    """Pass after pass."""
    epoch = 0
    while True:
        yield from batches(sentences, words, sizes, sizes.seed + epoch)
        epoch += 1


def loss(model: SentenceVae, ids: Tensor, method: Method, weight: float) -> Tensor:
    """Mean over sentences; Po-di is the sum over all ordered pairs, scaled to batches of 32."""
    mean, logvar = model.recognize(ids)
    z = objectives.sample(mean, logvar, torch.randn_like(mean))
    kl = objectives.gaussian_kl(mean, logvar, torch.zeros_like(mean), torch.zeros_like(mean)).sum(dim=1)
    total = model.reconstruct(ids, z) + weight * kl
    if method.remedy == "bow":
        total = total + model.bag(ids, z)
    if method.threshold:
        pairs = ~torch.eye(len(ids), dtype=torch.bool)
        total = total + 992 * objectives.posterior_discrimination(mean, logvar, pairs, method.threshold)
    return total.mean()


def train(sentences: Sequence[str], words: Mapping[str, int], method: Method, sizes: Sizes) -> SentenceVae:
    """A VAE trained for `sizes.updates` joint updates."""
    torch.manual_seed(sizes.seed)
    model = SentenceVae(len(words) + 4, sizes, bow=method.remedy == "bow")
    encoder = [*model.encoder.parameters(), *model.gaussian.parameters()]
    inner = torch.optim.Adam(encoder, sizes.lr)
    known = {id(parameter) for parameter in encoder}
    rest = torch.optim.Adam([p for p in model.parameters() if id(p) not in known], sizes.lr)
    stream = endless(sentences, words, sizes)
    for update in range(sizes.updates):
        aggressive = method.remedy == "at" and update < sizes.at_share * sizes.updates
        if aggressive:
            _chase(model, stream, method, inner, sizes.at_inner)
        weight = 1.0
        if method.remedy == "kla":
            weight = objectives.annealed(update, sizes.kla)
        elif method.remedy == "ca":
            weight = objectives.cyclic(update, sizes.updates)
        for optimizer in (inner, rest):
            optimizer.zero_grad()
        loss(model, next(stream), method, weight).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        for optimizer in (rest,) if aggressive else (inner, rest):
            optimizer.step()
    return model.eval()


def _chase(
    model: SentenceVae, stream: Iterator[Tensor], method: Method, inner: torch.optim.Optimizer, most: int
) -> int:
    """Aggressive training (He et al. 2019): the encoder alone, until 15 updates brought no lower loss."""
    before, window = math.inf, 0.0
    for step in range(1, most + 1):
        inner.zero_grad()
        found = loss(model, next(stream), method, 1.0)
        found.backward()
        inner.step()
        window += float(found.detach())
        if step % 15 == 0:
            if not window < before:  # a diverged loss is no progress either
                return step
            before, window = window, 0.0
    return most


@torch.no_grad()
def evaluate(model: SentenceVae, sentences: Sequence[str], words: Mapping[str, int], sizes: Sizes) -> Found:
    """Perplexities, active units and KL; latents are seeded draws of the posterior."""
    torch.manual_seed(sizes.seed)
    nll = kl = tokens = 0.0
    means = []
    for ids in batches(sentences, words, sizes, 0):
        mean, logvar = model.recognize(ids)
        nll += float(model.reconstruct(ids, objectives.sample(mean, logvar, torch.randn_like(mean))).sum())
        zeros = torch.zeros_like(mean)
        kl += float(objectives.gaussian_kl(mean, logvar, zeros, zeros).sum())
        tokens += float((ids != PAD).sum())
        means.append(mean)
    return Found(
        math.exp(nll / tokens),
        math.exp((nll + kl) / tokens),
        latent.active_units(torch.cat(means).numpy()),
        kl / len(sentences),
    )
