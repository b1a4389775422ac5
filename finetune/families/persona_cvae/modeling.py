"""The implicit-persona CVAE as a model of transformers: perception, fader, injected decoder; the losses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init

from finetune.batch import TurnBatch
from finetune.families.persona_cvae import objectives
from finetune.families.persona_cvae.bodies import make_body
from finetune.families.persona_cvae.configuration import PersonaConfig
from finetune.families.persona_cvae.inference import Fader, FreshLinear, Inference, LastLinear, Marks
from pretrain.model.encoder import MemBartEncoderOutput
from pretrain.model.loss import IGNORED


@dataclass(frozen=True)
class Gaussian:
    """`[A, D]` each, float32."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """A draw; without noise from torch's generators."""
        drawn = torch.randn_like(self.mean) if noise is None else noise
        return objectives.sample(self.mean, self.logvar, drawn)


class PersonaCvae(PreTrainedModel):
    """A MemBART or GPT-2 that answers from Zp, its guess of the other party, and Zα, how much to show."""

    config: PersonaConfig
    config_class = PersonaConfig
    base_model_prefix = ""
    _no_split_modules = ("MemBartEncoderLayer", "BartEncoderLayer", "BartDecoderLayer", "GPT2Block")
    _supports_sdpa = True

    def __init__(self, config: PersonaConfig) -> None:
        super().__init__(config)
        self.body: Any = make_body(config)
        if config.latents:
            self.marks = Marks(config.width)
            self.posterior = Inference(config)
            self.prior = Inference(config)
            if config.fader != "off":
                self.fader = Fader(config)
            if config.fader == "scalar":
                self.fader_head = FreshLinear(config.width, 1)
            wide = config.latent_rows * config.width
            if config.bow == "zhao":
                self.bow_hidden = FreshLinear(wide, config.bow_width)
                self.bow_words = FreshLinear(config.bow_width, config.body_vocabulary)
            elif config.bow == "authors":
                self.bow_words = FreshLinear(wide + config.width, config.body_vocabulary)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Everything that is no part of the body, which initializes itself."""
        if isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            scale = self.config.head_scale if isinstance(module, LastLinear) else 1.0
            init.uniform_(module.weight, -bound * scale, bound * scale)
            if isinstance(module, LastLinear):
                init.zeros_(module.bias)
            elif module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=0.02)
        elif isinstance(module, Marks):
            init.zeros_(module.role)
            init.normal_(module.slots, mean=0.0, std=0.02)
        elif isinstance(module, Fader):
            init.zeros_(module.table)

    def get_input_embeddings(self) -> nn.Module:
        found: nn.Module = self.body.lm.get_input_embeddings()
        return found

    def set_input_embeddings(self, value: Any) -> None:
        self.body.lm.set_input_embeddings(value)

    # --- the networks ---

    def read(self, batch: TurnBatch, memory: Tensor) -> MemBartEncoderOutput:
        """What the encoder makes of the context and the memory before it; GPT-2 has none."""
        found: MemBartEncoderOutput = self.body.read(batch, memory, self.roles(batch))
        return found

    def roles(self, batch: TurnBatch) -> Tensor | None:
        """What is added to the embeddings of the context, `[A, L, D]`."""
        return self.marks(batch.roles) if self.config.latents else None

    def recognize(self, batch: TurnBatch) -> Gaussian:
        """q(Zp | P), or q(Zp | C, R)."""
        ids, mask = batch.profile_ids, batch.profile_mask
        if self.config.posterior_input == "response":
            spoken = batch.labels != IGNORED
            ids = torch.cat([batch.input_ids, batch.labels.masked_fill(~spoken, 0)], dim=1)
            mask = torch.cat([batch.attention_mask, spoken.long()], dim=1)
        network = self.posterior
        slots = network.slot(self.marks(None)[:1]).expand(len(ids), 1, -1)
        states = network(slots, network.enter(self.body.words(ids)), mask)
        return Gaussian(*network.head(states[:, 0]))

    def foresee(self, batch: TurnBatch) -> Gaussian:
        """p(Zp | C): the prior network's first pass."""
        return Gaussian(*self.prior.head(self._prior_states(batch, None)[:, 0]))

    def level(self, batch: TurnBatch, zp: Tensor) -> Tensor:
        """p(Zα | C, Zp): the second pass, with Zp in place of its token; `[A, D]` float32."""
        given = zp.detach() if self.config.detach_zp_in_prior else zp
        found = objectives.wide(self._prior_states(batch, given)[:, 1])
        if self.config.fader == "scalar":
            return torch.sigmoid(self.fader_head(found)).expand_as(found)
        return found

    def _prior_states(self, batch: TurnBatch, zp: Tensor | None) -> Tensor:
        network, rows = self.prior, len(batch.input_ids)
        slots = network.slot(self.marks(None)).to(self.marks.slots.dtype)
        slots = slots[: self.config.latent_rows].expand(rows, -1, -1)
        if zp is not None:
            first = (self.config.latent_scale * zp).to(slots.dtype)[:, None]
            slots = torch.cat([first, slots[:, 1:]], dim=1)
        embedded = self.body.words(batch.input_ids)
        tokens = network.enter(embedded + self.marks(batch.roles))
        found: Tensor = network(slots, tokens, batch.attention_mask)
        return found

    def alpha(self, batch: TurnBatch) -> Tensor:
        """q(Zα | P, R): how much of the profile the reply shows, `[A]`."""
        found: Tensor = self.fader(batch.keyword_ids, batch.keyword_words, batch.reply_ids, batch.reply_words)
        return found

    def latents(self, zp: Tensor, za: Tensor | None) -> Tensor:
        """Zp and Zα as the decoder's first positions, `[A, n, D]`."""
        if za is not None and self.config.fader_form == "direction":
            za = objectives.as_direction(za)
        return zp[:, None] if za is None else torch.stack([zp, za], dim=1)

    def prior_latents(
        self, batch: TurnBatch, noise: Tensor | None = None, level: Tensor | None = None
    ) -> Tensor:
        """A draw of both from the context alone; `level` `[A, D]` stands in for Zα."""
        zp = self.foresee(batch).sample(noise)
        if self.config.fader == "off":
            return self.latents(zp, None)
        return self.latents(zp, self.level(batch, zp) if level is None else level)

    # --- the reply ---

    def placed(
        self, read: MemBartEncoderOutput, batch: TurnBatch, latents: Tensor | None
    ) -> tuple[MemBartEncoderOutput, TurnBatch, Tensor | None]:
        """What the decoder is given of a context and its latents, by `latent_site`.

        Latents in the encoder take a second reading: the first one, which the memory is from, must not know
        the profile.
        """
        site = self.config.latent_site
        if latents is None or site == "decoder":
            return read, batch, latents
        again = self.body.read_again(read, batch, self.roles(batch), latents)
        return again, batch, latents if site == "both" else None

    def reply_states(self, read: MemBartEncoderOutput, batch: TurnBatch, latents: Tensor | None) -> Tensor:
        """Decoder states that predict each label, `[A, R, D]`."""
        ids, mask, more = self.body.prefix(batch, self.roles(batch))
        spoken = (batch.labels != IGNORED)[:, :-1]
        width = ids.shape[1]
        ids = torch.cat([ids, batch.labels[:, :-1].masked_fill(~spoken, 0)], dim=1)
        seen = torch.cat([mask, spoken.to(mask.dtype)], dim=1)
        places = (seen.cumsum(dim=1) - 1).clamp(min=0)
        if more is not None:
            more = nn.functional.pad(more, (0, 0, 0, spoken.shape[1]))
        number = 0 if latents is None else latents.shape[1]
        keys = nn.functional.pad(seen, (number, 0), value=1)
        states = self.body.decode(ids, places, keys, more, latents, read, None)
        return torch.cat([_last(states, mask), states[:, width:]], dim=1)

    def token_losses(self, read: MemBartEncoderOutput, batch: TurnBatch, latents: Tensor | None) -> Tensor:
        """Cross-entropy of the reply and its end, summed over each row, `[A]` float32."""
        states = self.reply_states(*self.placed(read, batch, latents))
        return self._summed(self.body.logits(states[batch.labels != IGNORED]), batch.labels)

    def _summed(self, logits: Tensor, labels: Tensor) -> Tensor:
        scored = labels != IGNORED
        nll = nn.functional.cross_entropy(objectives.wide(logits), labels[scored], reduction="none")
        rows = scored.nonzero()[:, 0]
        return nll.new_zeros(len(labels)).index_add(0, rows, nll)

    def losses(self, read: MemBartEncoderOutput, batch: TurnBatch, per_row: bool = False) -> Tensor:
        """Sums of `loss_parts` in order: `[K]`, or `[K, A]` `per_row`; 0-d or `[A]` without latents."""
        config = self.config
        if not config.latents:
            nll = self.token_losses(read, batch, None)
            return nll if per_row else nll.sum()
        live = (batch.labels != IGNORED).any(dim=1)
        before = self._prior_states(batch, None)
        q, p = self.recognize(batch), Gaussian(*self.prior.head(before[:, 0]))
        zp, za = q.sample(), None
        each = objectives.gaussian_kl(q.mean, q.logvar, p.mean, p.logvar)
        parts = {"kl_z": objectives.reduce(each, config.kl_reduction)}
        if config.fader != "off":
            alpha, level = self.alpha(batch), self.level(batch, zp)
            za = alpha[:, None].expand_as(zp)
            parts["kl_a"] = objectives.fader_kl(level, alpha, config.fader_kl, config.fader_sigma)
        if config.podi != "off":
            parts["podi"] = objectives.posterior_discrimination(
                q.mean,
                q.logvar,
                objectives.different(batch.profile_key, live),
                config.podi_lambda,
                config.podi,
                config.podi_pairs,
            )
        latents = self.latents(zp, za)
        if config.bow != "off":
            parts["bow"] = self.bag_of_words(latents, before, batch)
        found = {"nll": self.token_losses(read, batch, latents)}
        found |= {name: torch.where(live, part, part * 0) for name, part in parts.items()}
        stacked = torch.stack(list(found.values()))
        return stacked if per_row else stacked.sum(dim=1)

    def bag_of_words(self, latents: Tensor, before: Tensor, batch: TurnBatch) -> Tensor:
        """Words of the reply without their order, `[A]`.

        Zhao et al. (2017): every word from the latents alone, summed. The released code's commented form:
        the set of words from the latents and the mean state of the prior network.
        """
        if self.config.bow == "authors":
            slots = self.config.latent_rows
            there = nn.functional.pad(batch.attention_mask, (slots, 0), value=1)[..., None]
            mean = (before * there).sum(dim=1) / there.sum(dim=1)
            known = torch.cat([latents.flatten(1), objectives.wide(mean)], dim=1)
            return objectives.word_set(self.bow_words(known), batch.labels, IGNORED)
        logits = self.bow_words(torch.tanh(self.bow_hidden(latents.flatten(1))))
        rows = (batch.labels != IGNORED).nonzero()[:, 0]
        return self._summed(logits[rows], batch.labels)

    @torch.no_grad()
    def write(
        self,
        read: MemBartEncoderOutput,
        batch: TurnBatch,
        latents: Tensor | None,
        choose: Any,
        ends: set[int],
        most: int,
    ) -> list[list[int]]:
        """Token by token, each row until one of `ends`; latents are injected with the prefix only.

        Args:
            choose: (written `[A, t]`, scores `[A, V]`) -> next tokens `[A]`.
        """
        body = self.body
        read, batch, latents = self.placed(read, batch, latents)
        ids, mask, more = body.prefix(batch, self.roles(batch))
        number = 0 if latents is None else latents.shape[1]
        keys = nn.functional.pad(mask, (number, 0), value=1)
        places, cache = (mask.cumsum(dim=1) - 1).clamp(min=0), body.empty_cache()
        state = _last(body.decode(ids, places, keys, more, latents, read, cache), mask)
        written = ids.new_zeros((len(ids), 0))
        open_rows = [True] * len(ids)
        found: list[list[int]] = [[] for _ in open_rows]
        length = mask.sum(dim=1)
        for _ in range(most):
            token = choose(written, objectives.wide(body.logits(state[:, 0])))
            written = torch.cat([written, token[:, None]], dim=1)
            for row, one in enumerate(token.tolist()):
                open_rows[row] = open_rows[row] and one not in ends
                if open_rows[row]:
                    found[row].append(one)
            if not any(open_rows):
                break
            keys = nn.functional.pad(keys, (0, 1), value=1)
            state = body.decode(token[:, None], length[:, None], keys, None, None, read, cache)
            length = length + 1
        return found


def _last(states: Tensor, mask: Tensor) -> Tensor:
    """The state at each row's last real position of a prefix, `[A, 1, D]`."""
    last = (mask.sum(dim=1) - 1).clamp(min=0)
    return states[torch.arange(len(states), device=states.device), last][:, None]


def loss_parts(latents: bool, fader: bool, podi: bool, bow: bool) -> tuple[str, ...]:
    """Names of the parts of `PersonaCvae.losses`."""
    if not latents:
        return ("nll",)
    on = {"kl_a": fader, "podi": podi, "bow": bow}
    return ("nll", "kl_z", *(name for name, there in on.items() if there))


AutoModel.register(PersonaConfig, PersonaCvae)
