"""What one rank's device holds at its fullest, predicted from shapes before anything is built.

Bytes, for weights in float32 and matrix products in float32 or, under autocast, bfloat16. docs/planning.md
derives each line; the tests compare with the tensors of real steps. Not counted: the CUDA context, the
libraries' own buffers and what an allocator loses to fragmentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pretrain.model.configuration import MemBartConfig
from pretrain.model.loss import block_rows
from pretrain.recipe import RunRecipe
from pretrain.replay import Mode

WIDE = 4
"""Bytes of a float32: weights, gradients, moments, residual stream, norms and memory at any precision."""
INDEX = 8
"""Bytes of a token id."""
_DEEPSPEED_BUCKET = 500_000_000
"""Elements that DeepSpeed reduces at a time where its JSON does not say."""


@dataclass(frozen=True)
class Sizes:
    """Parameters by what happens to them."""

    parameters: int
    trainable: int
    linear: int
    """Of `nn.Linear` modules: autocast copies these, and DeepSpeed sends them in its dtype."""
    trainable_linear: int
    largest: int
    """The largest that trains."""
    embedding_trains: bool

    @classmethod
    def of(cls, model: Any) -> Sizes:
        """Counted on a `MemBartForConditionalGeneration`, of the meta device for example."""
        every = list(model.parameters())
        # DeepSpeed asks for the class itself: the tied head, a subclass, stays in float32.
        linear = [p for module in model.modules() if type(module) is nn.Linear for p in module.parameters()]
        return cls(
            parameters=sum(p.numel() for p in every),
            trainable=sum(p.numel() for p in every if p.requires_grad),
            linear=sum(p.numel() for p in linear),
            trainable_linear=sum(p.numel() for p in linear if p.requires_grad),
            largest=max((p.numel() for p in every if p.requires_grad), default=0),
            embedding_trains=model.model.shared.weight.requires_grad,
        )


@dataclass(frozen=True)
class Zero:
    """How DeepSpeed spreads the state of training over the ranks."""

    stage: int
    world: int
    offload_optimizer: bool
    offload_parameters: bool
    bucket: int
    """Elements reduced at a time."""

    @classmethod
    def of(cls, config: Mapping[str, Any], world: int) -> Zero:
        """From a DeepSpeed JSON."""
        zero = config.get("zero_optimization", {})

        def leaves_device(section: str) -> bool:
            return (zero.get(section) or {}).get("device", "none") != "none"

        return cls(
            stage=zero.get("stage", 0),
            world=world,
            offload_optimizer=leaves_device("offload_optimizer"),
            offload_parameters=leaves_device("offload_param"),
            bucket=int(zero.get("reduce_bucket_size", _DEEPSPEED_BUCKET)),
        )

    def share(self, elements: int) -> int:
        """Of elements that are cut up over the ranks, those of one."""
        return -(-elements // self.world)


@dataclass(frozen=True)
class Rank:
    """What one rank trains."""

    config: MemBartConfig
    sizes: Sizes
    zero: Zero
    agents: int
    chunks: int
    """Pieces of the agents, back-propagated one after the other."""
    source: int
    """Tokens of a segment in the encoder, padding included."""
    target: int
    """In the decoder."""
    horizon: int
    mode: Mode
    half: bool
    """Whether matrix products are in bfloat16."""
    checkpointing: bool
    """Whether each layer is recomputed."""

    @classmethod
    def of(
        cls,
        recipe: RunRecipe,
        config: MemBartConfig,
        sizes: Sizes,
        zero: Zero,
        window: int,
        checkpointing: bool,
    ) -> Rank:
        """A rank of `recipe` on segments of `window` tokens on both sides."""
        replay = recipe.replay
        return cls(
            config=config,
            sizes=sizes,
            zero=zero,
            agents=recipe.agents // zero.world,
            chunks=replay.agent_chunks,
            source=window,
            target=window,
            horizon=replay.horizon,
            mode=replay.mode,
            half=recipe.train.precision == "bf16",
            checkpointing=checkpointing,
        )

    @property
    def rows(self) -> int:
        """Agents that are back-propagated together."""
        return self.agents // self.chunks

    @property
    def narrow(self) -> int:
        """Bytes of a number in matrix products."""
        return 2 if self.half else WIDE

    @property
    def casts(self) -> bool:
        """Whether each matrix product keeps a copy of its input in its own dtype."""
        return self.half and self.zero.stage < 3

    @property
    def together(self) -> int:
        """Timesteps whose activations are alive at once."""
        return self.horizon if self.mode == "bptt" else 1


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank by part; a moment's peak is the sum of the parts alive in it."""

    parameters: int
    copies: int
    """Weights as matrix products read them, beside the parts above: autocast's, or gathered at ZeRO-3."""
    gradients: int
    optimizer: int
    buckets: int
    """Reduction buffers that stay between steps (ZeRO-3)."""
    memories: int
    """Every agent's memory at each timestep of the rollout, and their gradient."""
    activations: int
    """What the fullest moment of a timestep keeps for its backward pass."""
    logits: int
    """The loss: a block of logits, and the gradients made with it."""
    reduction: int
    """Beside gradients, while they are reduced."""
    update: int
    """Beside what is held between steps, while the optimizer runs."""
    validation: int
    """The same, while held-out segments are scored: all agents together, without gradient."""
    host: int
    """In the machine's memory instead of the device's."""

    @property
    def held(self) -> int:
        """Between steps."""
        return self.parameters + self.optimizer + self.buckets

    @property
    def moments(self) -> dict[str, int]:
        """Peak of each moment of a step."""
        backward = self.held + self.gradients + self.memories
        return {
            "timestep": backward + self.copies + self.activations + self.logits,
            "reduction": backward + self.reduction,
            "update": self.held + self.memories + self.update,
            "validation": self.held + self.memories + self.validation,
        }

    @property
    def peak(self) -> int:
        """Of the fullest moment."""
        return max(self.moments.values())

    @property
    def parts(self) -> dict[str, int]:
        """Of a timestep: they add up to its peak."""
        return {
            "parameters": self.parameters,
            "weight copies": self.copies,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "buckets": self.buckets,
            "memories": self.memories,
            "activations": self.activations,
            "logits": self.logits,
        }


def memory(rank: Rank) -> Memory:
    """Predict the memory of `rank`."""
    sizes, zero = rank.sizes, rank.zero
    own, whole = WIDE * zero.share(sizes.trainable), WIDE * sizes.trainable
    reduced = zero.bucket * (WIDE + (rank.narrow if rank.half else 0))  # a buffer for each dtype
    parameters, buckets, host = WIDE * sizes.parameters, 0, 0
    if zero.stage == 0:
        optimizer, reduction, update = 2 * whole, WIDE * min(sizes.trainable, zero.bucket), 2 * whole
    elif zero.stage < 3:
        # Stage 1 and 2 hold their buffers in float32 whatever they send.
        optimizer, update = 3 * own, 4 * own
        reduction = own + WIDE * zero.bucket * (2 if rank.half else 1)
    else:
        # The partition that reduced gradients wait in is there from the start.
        parameters, optimizer, update = WIDE * zero.share(sizes.parameters), 4 * own, 3 * own
        buckets, reduction = reduced, reduced
    if zero.offload_optimizer:
        # Also the partition's gradients, a staging copy of it, and what the optimizer needs to work.
        optimizer, host, update = 0, 7 * own, 0
        if zero.stage < 3:  # staged one parameter at a time, on both sides
            buckets, host = WIDE * sizes.largest, host + WIDE * sizes.largest
            reduction -= own
    if zero.offload_parameters:
        parameters, host = 0, host + parameters
    timestep = _timestep(rank)
    return Memory(
        parameters=parameters,
        copies=timestep.copies,
        gradients=whole,
        optimizer=optimizer,
        buckets=buckets,
        # One that entered each timestep, the last one, and gradients coming and going.
        memories=WIDE * rank.agents * rank.config.memory_len * rank.config.d_model * (rank.horizon + 3),
        activations=timestep.activations,
        logits=timestep.logits,
        reduction=reduction,
        update=update,
        validation=_validation(rank),
        host=host,
    )


def _copies(rank: Rank) -> int:
    """Of one forward pass."""
    sizes, zero = rank.sizes, rank.zero
    if zero.stage == 3 and zero.world > 1:
        # Our models are below stage3_max_live_parameters: a forward pass ends with all of it gathered.
        return rank.narrow * sizes.linear + WIDE * (sizes.parameters - sizes.linear)
    return 2 * sizes.linear if rank.half else 0


@dataclass(frozen=True)
class _Kept:
    """Bytes that the forward pass of one row leaves for its backward pass."""

    encoder_layer: int
    decoder_layer: int
    around: int
    """Embeddings, gate, the encoder's output, the mask of the dual stream."""
    encoder_input: int
    """All that remains of a layer that is recomputed."""
    decoder_input: int


def _kept(rank: Rank) -> _Kept:
    """One term a saved tensor, in the order of the forward pass."""
    c, n, s, t = rank.config, rank.narrow, rank.source, rank.target
    width, slots, visible = c.d_model, c.memory_len, rank.source + c.decoder_slots
    norm = WIDE * width + 8  # its input, mean and deviation
    dropped = width if c.dropout else 0  # the mask of an output, a byte an element

    def fed(products: int) -> int:
        """A wide state that so many products read: autocast casts it for each, else they share it."""
        return n * width * products if rank.casts else WIDE * width

    def attention(heads: int, products: int) -> int:
        """Of a query: input, query, result, the softmax's normalizer; at three products key and value too."""
        return fed(products) + n * width * (1 + products) + WIDE * heads

    def network(inner: int) -> int:
        """Input, both sides of the activation, norm."""
        return fed(1) + 2 * n * inner + norm + dropped + (inner if c.activation_dropout else 0)

    def read(length: int) -> int:
        """Key and value of a sequence that the products of all layers read."""
        return length * (2 * n * width + (fed(2) if rank.casts else 0))

    block = attention(c.encoder_attention_heads, 3) + norm + dropped + network(c.encoder_ffn_dim)
    if c.is_memformer:
        reader = attention(c.encoder_attention_heads, 1) + dropped
        reader += norm if c.variant == "memformer" else n * width
        layer = s * (block + reader) + read(slots)
        # The writer: keys and values of both streams, queries and result of the slots.
        tail = (s + slots) * (fed(2) + 2 * n * width) + slots * (fed(1) + 2 * n * width) + _softmax(rank)
    else:
        layer = (s + slots) * block
        if c.variant == "membart" and c.needs_joint_mask:
            layer += (s + slots) * n * width  # the result once more, cut into the streams
        elif c.variant == "membart":
            layer += (s + slots) * 2 * n * width + _softmax(rank)  # keys and values once more
        # The gate's candidate, both sides of its activation, and the mixture of old and new.
        tail = slots * (fed(1) + 2 * n * width + 2 * WIDE * width)
    if c.needs_joint_mask:
        tail += n * (s + slots) ** 2
    if not rank.casts:
        tail += WIDE * width * visible  # one for every layer's keys and values
    padding = n * visible  # the mask of a query
    crossed = attention(c.decoder_attention_heads, 1) + norm + dropped + padding
    decoder = attention(c.decoder_attention_heads, 3) + norm + dropped + crossed + network(c.decoder_ffn_dim)
    return _Kept(
        encoder_layer=layer,
        decoder_layer=t * decoder + read(visible),
        around=(s + t + slots) * norm + WIDE * width * slots + tail,
        encoder_input=WIDE * width * (s + slots),
        decoder_input=WIDE * width * t,
    )


def _softmax(rank: Rank) -> int:
    """Weights of the slots over text and themselves, and without themselves; wide too where they are cast."""
    weights = rank.config.encoder_attention_heads * rank.config.memory_len * rank.source
    return weights * (2 * rank.narrow + (WIDE if rank.half else 0))


@dataclass(frozen=True)
class _Loss:
    kept: int
    """Until the backward pass."""
    passing: int
    """Only while the loss is made."""


def _loss(rank: Rank, tokens: int) -> _Loss:
    """Of so many target tokens together."""
    c, n = rank.config, rank.narrow
    table = c.vocab_size * c.d_model
    # As the product makes them, cast to float32, and their log-softmax.
    logit = n + (WIDE if rank.half else 0) + WIDE
    states = tokens * c.d_model * (2 * WIDE + (n if rank.half else 0))
    cast = n * table if rank.half else 0
    if c.loss_impl == "plain":
        logits = WIDE * tokens * c.vocab_size
        return _Loss(kept=logits + cast, passing=2 * logits + states)
    block = min(tokens, block_rows(c.vocab_size)) * c.vocab_size
    gradients = n * tokens * c.d_model + (WIDE * table if rank.sizes.embedding_trains else 0)
    return _Loss(kept=gradients, passing=logit * block + states + cast)


@dataclass(frozen=True)
class _Moment:
    """The parts that differ between the moments of a timestep."""

    copies: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.copies + self.activations + self.logits


def _timestep(rank: Rank) -> _Moment:
    """The fuller of two moments: the loss is made, or the backward pass enters a layer."""
    c, rows, kept = rank.config, rank.rows, _kept(rank)
    tokens, copies, loss = rows * rank.target, _copies(rank), _loss(rank, rows * rank.target)
    ids = 2 * INDEX * rows * rank.horizon * (rank.source + rank.target)
    losses = loss.kept * (1 if rank.mode == "replay" else rank.horizon)
    working = tokens * (rank.narrow * c.decoder_ffn_dim + 2 * WIDE * c.d_model)
    if rank.checkpointing:
        encoder, decoder = c.encoder_layers * kept.encoder_input, c.decoder_layers * kept.decoder_input
        layers = encoder + decoder
        # By the time an encoder layer is recomputed, the decoder's inputs are gone.
        working += rows * max(kept.decoder_layer, kept.encoder_layer - decoder)
        cached = rank.zero.stage == 3 or rank.mode == "checkpoint"
        left = copies if cached else copies // (c.encoder_layers + c.decoder_layers)
    else:
        layers = c.encoder_layers * kept.encoder_layer + c.decoder_layers * kept.decoder_layer
        left = copies * (rank.together if rank.casts else 1)
    alive = rank.together * rows * (layers + kept.around)
    summing = 0
    if rank.horizon > 1 and (rank.mode == "checkpoint" or (rank.mode == "bptt" and rank.checkpointing)):
        # One backward pass over several timesteps sums a weight's gradients before it adds them to the old
        # ones; meanwhile the last timestep has given back what it kept.
        table = c.vocab_size * c.d_model if rank.sizes.embedding_trains else 0
        given_back = loss.kept + (rows * (layers + kept.around) if rank.mode == "bptt" else 0)
        summing = max(0, WIDE * (rank.sizes.trainable - table) - given_back)
    entering = _Moment(left, alive + working + summing + ids, losses)
    # A timestep that is recomputed as a whole keeps the gradients that its loss made, and no more.
    at_loss = _Moment(
        copies if rank.checkpointing else left,
        (0 if rank.mode == "checkpoint" else alive) + ids,
        losses + loss.passing,
    )
    return max(entering, at_loss, key=lambda moment: moment.total)


def _validation(rank: Rank) -> int:
    """All agents pass together without gradient: one layer at work, and one row's logits at a time."""
    kept, width = _kept(rank), rank.config.d_model
    states = WIDE * width * (rank.source + rank.config.decoder_slots + rank.target)
    passing = rank.agents * (max(kept.encoder_layer, kept.decoder_layer) + states)
    return _copies(rank) + passing + _loss(rank, rank.target).passing
