"""The analyses of the Dior-CVAE paper: what denoising steps do (Table 8), many references (Figure 3)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from finetune.batch import TurnBatch, collate
from finetune.dialogue.dialogue import Dialogue
from finetune.dialogue.load import load
from finetune.drawing import normal, row_keys
from finetune.families.dior_cvae import DiorForConditionalGeneration, Family
from finetune.families.dior_cvae.prior import DiffusionPrior
from finetune.fitted import Fitted
from pretrain.errors import UserError
from pretrain.model.encoder import MemBartEncoderOutput


@dataclass(frozen=True)
class Asked:
    """A turn that is to be answered, with the context read and the memory of the dialogue before it."""

    dialogue: Dialogue
    turn: int
    batch: TurnBatch
    """One row."""
    read: MemBartEncoderOutput

    @property
    def context(self) -> tuple[str, ...]:
        """What was said before, oldest first."""
        return tuple(turn.text for turn in self.dialogue.turns[: self.turn])


class Study:
    """A fine-tuned Dior-CVAE that answers questions about itself."""

    def __init__(self, fitted: Fitted) -> None:
        """Raises:
        UserError: a model of another family.
        """
        if not isinstance(fitted.family, Family):
            raise UserError(
                f"a model of the family {fitted.recipe.family}",
                where=str(fitted.place),
                mend="give a run of dior_cvae",
            )
        self.fitted: Fitted = fitted
        self.family: Family = fitted.family
        self.model: DiorForConditionalGeneration = fitted.model

    def last_turns(self, source: str, split: str | None, count: int, references: int = 1) -> list[Asked]:
        """The last turns of the first `count` dialogues where that has so many accepted replies.

        Raises:
            UserError: there is none.
        """
        found = []
        for dialogue in load(source, split):
            turn = len(dialogue.turns) - 1
            if turn > 0 and len(dialogue.turns[turn].accepted) >= references:
                found.append(self.ask(dialogue, turn))
                if len(found) == count:
                    break
        if not found:
            raise UserError(
                f"no dialogue ends in a turn with {references} accepted replies",
                where=source,
                mend="dailydialog_plusplus has five" if references > 1 else "give other data",
            )
        return found

    @torch.no_grad()
    def ask(self, dialogue: Dialogue, turn: int) -> Asked:
        """Read the context of a turn; where memory is carried, after all earlier turns of its speaker."""
        family, model = self.family, self.model
        before = [at for at in family.targets(dialogue, dialogue.turns[turn].speaker) if at < turn]
        carried = self.fitted.recipe.data.memory == "carry"
        memory = self.fitted.memory(1)
        for number, at in enumerate([*(before if carried else ()), turn]):
            example = family.example(dialogue, at)
            batch = collate([example], [int(number == 0)], family.pads, family.numbers).to(model.device)
            read = model.read(batch, memory)
            assert read.memory_states is not None
            memory = read.memory_states
        return Asked(dialogue, turn, batch, read)

    # --- Table 8 ---

    @torch.no_grad()
    def denoised(self, asked: Asked, steps: Sequence[int], state: bool = True) -> list[str]:
        """What is said from the latents after so many reverse steps, the same noise for all.

        Args:
            steps: ascending numbers of steps done; T steps are a whole sampling.
            state: decode the latents as they stand, still noisy; else the denoiser's estimate at that step.

        Raises:
            UserError: no diffusion prior, or a number that is no step.
        """
        prior = self.model.latent.prior
        if not isinstance(prior, DiffusionPrior):
            raise UserError(f"the prior is {self.model.config.prior}", mend="give a model with diffusion")
        most = self.model.config.diffusion_steps
        wrong = [number for number in steps if not 1 <= number <= most]
        if wrong:
            raise UserError(f"step {wrong[0]} is none of the {most}", mend=f"numbers from 1 to {most}")
        how = self.fitted.recipe.generation.model_copy(update={"replies": 1})
        keys = row_keys(asked.batch, how.seed, 1)
        context = self.model.condition(asked.read, asked.batch.attention_mask)
        noise = normal(keys, self.model.noise_shape(), context.device)
        found = {}
        for done, step in enumerate(prior.reverse(context, noise), 1):
            if done in steps:
                latents = step.state if state else step.estimate
                groups = latents.unflatten(1, (self.model.config.latent_groups, -1))
                texts = self.family.write(self.model, asked.batch, asked.read, groups, how, keys)
                found[done] = texts[0][0]
        return [found[number] for number in steps]

    # --- Figure 3 ---

    @torch.no_grad()
    def reference_losses(self, asked: Asked, samples: int, seed: int) -> tuple[list[float], list[int]]:
        """Of every accepted reply -log p(r | c) in nats, and its tokens.

        The likelihood is the mean over `samples` latents of the prior, the same ones for all replies.
        """
        labels = self._labels(asked)
        keys = row_keys(asked.batch, seed, samples)
        latents = self.family.sample_latents(self.model, asked.read, asked.batch, keys)
        losses, tokens = [], []
        for row in labels:
            rows = row.expand(samples, -1)
            nll = self.model.token_losses(repeated(asked.read, samples), rows, latents, per_row=True)[0]
            losses.append(float(math.log(samples) - torch.logsumexp(-nll.double(), dim=0)))
            tokens.append(int((row != -100).sum()))
        return losses, tokens

    def _labels(self, asked: Asked) -> list[Tensor]:
        """Labels of every accepted reply, `[R]` each."""
        limit = self.fitted.recipe.data.target_tokens
        target = asked.dialogue.turns[asked.turn]
        return [
            torch.tensor(self.family.layout.reply(text, limit), device=self.model.device)
            for text in target.accepted
        ]


def repeated(read: MemBartEncoderOutput, times: int) -> MemBartEncoderOutput:
    """What the decoder needs of one read context, for so many rows."""
    assert read.last_hidden_state is not None
    assert read.attention_mask is not None
    return MemBartEncoderOutput(
        last_hidden_state=read.last_hidden_state.expand(times, -1, -1),
        attention_mask=read.attention_mask.expand(times, -1),
    )


def reference_curve(
    losses: Sequence[Sequence[float]], tokens: Sequence[Sequence[int]], most: int, seed: int
) -> list[float]:
    """Perplexity of one to `most` references of each context, drawn without replacement: Figure 3.

    Args:
        losses, tokens: of each context all its references, `most` of them at least.
    """
    orders = [list(order) for order in _orders([len(row) for row in losses], seed)]
    curve = []
    for count in range(1, most + 1):
        nats = sum(row[at] for row, order in zip(losses, orders, strict=True) for at in order[:count])
        number = sum(row[at] for row, order in zip(tokens, orders, strict=True) for at in order[:count])
        curve.append(math.exp(min(nats / number, 700.0)))
    return curve


def drawn_references(asked: Sequence[Asked], count: int, seed: int) -> list[tuple[str, ...]]:
    """The references of each context that `reference_curve` looks at for `count`."""
    accepted = [one.dialogue.turns[one.turn].accepted for one in asked]
    orders = _orders([len(texts) for texts in accepted], seed)
    return [tuple(texts[at] for at in order[:count]) for texts, order in zip(accepted, orders, strict=True)]


def _orders(lengths: Sequence[int], seed: int) -> Iterator[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    for length in lengths:
        yield torch.randperm(length, generator=generator).tolist()


def equal_pairs(groups: Sequence[Sequence[str]]) -> float:
    """Share of pairs of replies to one context that are word for word the same, in percent."""
    pairs = [one.split() == other.split() for group in groups for one, other in combinations(group, 2)]
    return 100 * sum(pairs) / len(pairs) if pairs else 0.0


__all__ = ["Asked", "Study", "drawn_references", "equal_pairs", "reference_curve"]
