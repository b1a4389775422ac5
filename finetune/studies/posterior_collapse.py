"""Remedies against posterior collapse on a plain sentence VAE: Table 3 of the implicit-persona paper.

The paper only says GRU, PTB and 5000 steps of annealing; sizes are those of the widely used PyTorch
Sentence-VAE. Sums are per sentence, as in an ELBO.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.families.persona_cvae import objectives
from finetune.metrics import latent, papers
from finetune.metrics.perplexity import perplexity, with_latent_cost
from pretrain.errors import UserError

PAD, START, END, UNKNOWN = range(4)
MOST_FOR_INFORMATION = 1000


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
    """Most of the updates in which training is aggressive, as a share."""
    seed: int = 1
    points: int = 40
    """Of the curve of the KL."""


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


def printed(method: Method) -> Mapping[str, float]:
    """The paper's row of a method: `perplexity`, `active_units`, `kl`."""
    (table,) = papers.tables("persona_cvae", "ptb")
    names = {"standard": "Standard VAE"}
    return table.figures(names.get(method.label, method.label.replace("Po-di ", "Po-di, lambda ")))


@dataclass(frozen=True)
class Found:
    """What a trained VAE shows on held-out sentences."""

    ppl_rec: float
    """Of reconstruction alone, which Table 3 almost certainly gives."""
    ppl_elbo: float
    active_units: int
    kl: float
    """Nats, summed over dimensions."""
    mutual_information: float
    """Of sentence and z, in nats, estimated on at most `MOST_FOR_INFORMATION` sentences."""


@dataclass(frozen=True)
class Trained:
    """A VAE in eval mode, and how its KL went: Figure 7."""

    model: SentenceVae
    curve: tuple[tuple[int, float], ...]
    """(joint update, mean KL of the batches since the point before)."""
    aggressive: int
    """Joint updates that were made aggressively."""


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
        return _summed(self.words(states[ids != PAD]), ids)

    def bag(self, ids: Tensor, z: Tensor) -> Tensor:
        """Cross-entropy of all words from z alone, `[B]`."""
        assert self.bow is not None
        return _summed(self.bow(z)[(ids != PAD).nonzero()[:, 0]], ids)


def _summed(logits: Tensor, ids: Tensor) -> Tensor:
    """Cross-entropy of each sentence, `[B]`, from the logits of its tokens alone, `[N, V]` in order."""
    there = ids != PAD
    each = nn.functional.cross_entropy(logits, ids[there], reduction="none")
    return each.new_zeros(len(ids)).index_add(0, there.nonzero()[:, 0], each)


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


def sentences_of(texts: Iterable[str]) -> list[str]:
    """Sentences of running text, tokens apart; headings of WikiText and single words are left out."""
    found = []
    for text in texts:
        for line in text.split("\n"):
            if line.strip().startswith("="):
                continue
            spaced = re.sub(r"(?<=\w)([.,;:!?])(?=\s|$)", r" \1", line)
            found += [one for one in re.split(r"(?<=[.!?])\s+", spaced.strip()) if " " in one]
    return found


def held_out(sentences: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Training, validation and test of text without splits: its last tenths are the latter two.

    Raises:
        UserError: too little text.
    """
    tenth = len(sentences) // 10
    if not tenth:
        raise UserError(f"{len(sentences)} sentences are too few", where="--text", mend="give more text")
    given = list(sentences)
    return given[: -2 * tenth], given[-2 * tenth : -tenth], given[-tenth:]


def loss(model: SentenceVae, ids: Tensor, method: Method, weight: float) -> tuple[Tensor, Tensor]:
    """Loss and KL, means over sentences; Po-di is the sum over all ordered pairs, scaled to batches of 32."""
    mean, logvar = model.recognize(ids)
    z = objectives.sample(mean, logvar, torch.randn_like(mean))
    kl = objectives.gaussian_kl(mean, logvar, torch.zeros_like(mean), torch.zeros_like(mean)).sum(dim=1)
    total = model.reconstruct(ids, z) + weight * kl
    if method.remedy == "bow":
        total = total + model.bag(ids, z)
    if method.threshold:
        pairs = ~torch.eye(len(ids), dtype=torch.bool)
        total = total + 992 * objectives.posterior_discrimination(mean, logvar, pairs, method.threshold)
    return total.mean(), kl.detach().mean()


def train(
    sentences: Sequence[str],
    words: Mapping[str, int],
    method: Method,
    sizes: Sizes,
    validation: Sequence[str] = (),
) -> Trained:
    """A VAE after `sizes.updates` joint updates.

    Aggressive training goes on, as in He et al. (2019), until an epoch brought no more mutual information on
    `validation`, but for `sizes.at_share` of the updates at most.
    """
    torch.manual_seed(sizes.seed)
    model = SentenceVae(len(words) + 4, sizes, bow=method.remedy == "bow")
    encoder = [*model.encoder.parameters(), *model.gaussian.parameters()]
    inner = torch.optim.Adam(encoder, sizes.lr)
    known = {id(parameter) for parameter in encoder}
    rest = torch.optim.Adam([p for p in model.parameters() if id(p) not in known], sizes.lr)
    stream = endless(sentences, words, sizes)
    epoch = -(-len(sentences) // sizes.batch)
    aggressive, chased, before = method.remedy == "at", 0, -math.inf
    curve: list[tuple[int, float]] = []
    recent: list[float] = []
    for update in range(sizes.updates):
        aggressive = aggressive and update < sizes.at_share * sizes.updates
        if aggressive:
            _chase(model, stream, method, inner, sizes.at_inner)
            chased += 1
        weight = 1.0
        if method.remedy == "kla":
            weight = objectives.annealed(update, sizes.kla)
        elif method.remedy == "ca":
            weight = objectives.cyclic(update, sizes.updates)
        for optimizer in (inner, rest):
            optimizer.zero_grad()
        total, kl = loss(model, next(stream), method, weight)
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        for optimizer in (rest,) if aggressive else (inner, rest):
            optimizer.step()
        recent.append(float(kl))
        if (update + 1) % max(sizes.updates // sizes.points, 1) == 0:
            curve.append((update + 1, sum(recent) / len(recent)))
            recent = []
        if aggressive and validation and (update + 1) % epoch == 0:
            now = information(model, validation, words, sizes)
            aggressive, before = now > before, now
    return Trained(model.eval(), tuple(curve), chased)


def _chase(
    model: SentenceVae, stream: Iterator[Tensor], method: Method, inner: torch.optim.Optimizer, most: int
) -> int:
    """Aggressive training (He et al. 2019): the encoder alone, until 15 updates brought no lower loss."""
    before, window = math.inf, 0.0
    for step in range(1, most + 1):
        inner.zero_grad()
        found, _ = loss(model, next(stream), method, 1.0)
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
        perplexity(nll, tokens),
        with_latent_cost(nll, kl, tokens),
        latent.active_units(torch.cat(means).numpy()),
        kl / len(sentences),
        information(model, sentences, words, sizes),
    )


@torch.no_grad()
def information(
    model: SentenceVae, sentences: Sequence[str], words: Mapping[str, int], sizes: Sizes
) -> float:
    """I(x; z) under q: mean of log q(z | x) - log q(z), with q(z) the mixture of the posteriors at hand.

    It cannot exceed the logarithm of their number. Draws are of a generator of their own, so training that
    looks at it goes on as if it had not.
    """
    training = model.training
    model.eval()
    found = [
        model.recognize(ids) for ids in batches(sentences[:MOST_FOR_INFORMATION], words, sizes, sizes.seed)
    ]
    model.train(training)
    mean, logvar = (torch.cat(parts).double() for parts in zip(*found, strict=True))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(sizes.seed), dtype=mean.dtype)
    z = objectives.sample(mean, logvar, noise)
    logs = torch.stack(
        [-0.5 * (logvar + (one - mean).square() * (-logvar).exp()).sum(dim=1) for one in z]
    )  # the constant of the Gaussian cancels
    return float((logs.diagonal() - (logs.logsumexp(dim=1) - math.log(len(z)))).mean())
