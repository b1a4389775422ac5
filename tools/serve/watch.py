"""What a reply did with the memory: the gate of every slot, and the attention that slots got.

Nothing is computed a second time. While a reply is made, the attention runs in the plain form, which keeps
its weights, and hooks on the modules read them. So the figures are those of that reply, in any family whose
encoder is ours and whose decoder has BART's cross-attention or fusion's; where either is not so, it is said.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.models.bart.modeling_bart import BartAttention

from finetune.batch import TurnBatch
from finetune.families.fusion.stack import SourceAttention
from finetune.family import Replies
from pretrain.model.attention import recorded_attention
from pretrain.model.encoder import MemBartEncoder, MemBartEncoderOutput


@dataclass(frozen=True)
class Attention:
    """Shares of attention mass, means over heads and over the tokens that look."""

    layers: Tensor
    """`[layers, slots]` float32 on the CPU: what each slot got."""
    tokens: int
    """How many tokens looked."""
    who: str
    """Which they are."""
    even: float
    """What a slot would get if these tokens looked at everything alike."""


@dataclass(frozen=True)
class Seen:
    """One reply. What could not be seen is None, and `notes` says why."""

    gate: Tensor | None
    """`[slots]` share of new content in each slot."""
    reading: Attention | None
    """The encoder, reading the message, at the slots as earlier turns left them."""
    writing: Attention | None
    """The decoder, writing the reply, at the slots as this turn left them."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Read:
    """One call of the encoder."""

    output: MemBartEncoderOutput
    mask: Tensor | None
    given: bool
    """Whether the decoder is given the slots too."""


@dataclass
class Record:
    """What the hooks gathered; `seen` makes sense of it."""

    reads: list[_Read] = field(default_factory=list)
    writes: dict[str, list[Tensor]] = field(default_factory=dict)
    """By decoder layer, of each step, `[rows, keys]`: where its newest position looked, mean over heads."""
    sources: dict[str, Tensor] = field(default_factory=dict)
    """By decoder layer what its keys are made of, `[keys, d]`."""
    beams: Tensor | None = None
    """`[steps]` the row that each token of the reply was found in; -1 after its end."""
    written: list[int] | None = None
    """Tokens of the reply and whatever was written after it; None where only the reply was."""

    def seen(
        self, batch: TurnBatch, replies: Replies, message: str, tokenizer: PreTrainedTokenizerBase
    ) -> Seen:
        """The figures of the first reply to `message`, which `batch`, one row, was made from."""
        memory, reply = replies.memory, replies.texts[0][0]
        if not memory.shape[1]:
            return Seen(None, None, None, ("The model has no memory slots.",))
        read = next((one for one in self.reads if _same(one.output.memory_states, memory)), None)
        if read is None:
            note = "This family's encoder does not report its gate and its attention to the slots."
            return Seen(None, None, None, (note,))
        assert read.output.gate is not None
        gate, reading = (
            read.output.gate[0, :, 0].float().cpu(),
            _reading(read, batch, tokenizer(message, add_special_tokens=False)["input_ids"]),
        )
        writing = self._writing(read, self._length(reply, tokenizer))
        if isinstance(writing, str):
            return Seen(gate, reading, None, (writing,))
        return Seen(gate, reading, writing, ())

    def _length(self, reply: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
        """How many tokens the reply is; None: all that were written.

        Where the mark that ends a reply is no token of its own, a model writes on, and the rest is cut off.
        """
        written = self.written or []
        for number in range(1, len(written)):
            if reply and reply in tokenizer.decode(written[:number], skip_special_tokens=True):
                return number
        return None

    def _writing(self, read: _Read, length: int | None) -> Attention | str:
        """The decoder's attention in the first steps, or why there is none."""
        if not read.given:
            return "The decoder is not given the slots: what they hold reaches it through the encoder."
        encoded, layers, steps, even = read.output, [], 0, 0.0
        assert encoded.memory_states is not None
        assert encoded.last_hidden_state is not None
        visible, slots = encoded.last_hidden_state[0], encoded.memory_states.shape[1]
        for name, source in self.sources.items():
            first = _place(source, visible)
            if first is None:
                continue
            rows = self._rows(self.writes[name])
            if rows is None:
                return "The decoder's attention is shown for one beam only: this family's beams are its own."
            rows = rows[:length]
            layers.append(rows[:, first : first + slots].mean(dim=0))
            hidden = 0 if encoded.attention_mask is None else int((encoded.attention_mask[0] == 0).sum())
            steps, even = len(rows), 1 / (len(source) - hidden)
        if not layers:
            return (
                "What the decoder looks at is not shown: this family's attentions to the slots are its own."
            )
        return Attention(torch.stack(layers), steps, "tokens of the reply", even)

    def _rows(self, steps: list[Tensor]) -> Tensor | None:
        """`[steps, keys]` of the row that became the reply."""
        if self.beams is not None:
            chosen = [(step, int(row)) for step, row in zip(steps, self.beams, strict=False) if row >= 0]
            return torch.stack([step[row] for step, row in chosen])
        return torch.cat(steps) if all(len(step) == 1 for step in steps) else None


def _reading(read: _Read, batch: TurnBatch, said: Sequence[int]) -> Attention:
    found = read.output.attentions
    assert found is not None
    assert read.output.memory_states is not None
    slots = read.output.memory_states.shape[1]
    # A Memformer's reader has slots as keys only; MemBART's attention has slots and tokens on both sides.
    keys = found[0].shape[-1]
    tokens = found[0].shape[-2] - (slots if keys > slots else 0)
    real = torch.ones(tokens, dtype=torch.bool) if read.mask is None else read.mask[0].bool().cpu()
    looking, who = real, "tokens of the window"
    span = _span(batch, tokens, said)
    if span is not None:
        looking, who = torch.zeros_like(real), "tokens of the message"
        looking[span] = True
    layers = [
        weights[0, :, -tokens:, :slots].float().mean(dim=0).cpu()[looking].mean(dim=0) for weights in found
    ]
    visible = slots + (int(real.sum()) if keys > slots else 0)
    return Attention(torch.stack(layers), int(looking.sum()), who, 1 / visible)


def _span(batch: TurnBatch, tokens: int, said: Sequence[int]) -> slice | None:
    """Where the message stands in what the encoder read; of one cut at its start, what is left."""
    for tensor in batch.tensors.values():
        if tensor.dim() != 2 or tensor.shape[1] != tokens:
            continue
        row = tensor[0].tolist()
        for start in range(tokens - len(said), -1, -1):
            if said and row[start : start + len(said)] == list(said):
                return slice(start, start + len(said))
        for cut in range(1, len(said)):  # then it fills the window from its first place on, after <s>
            if row[1 : 1 + len(said) - cut] == list(said[cut:]):
                return slice(1, 1 + len(said) - cut)
    return None


def _place(source: Tensor, visible: Tensor) -> int | None:
    """Where the rows of `visible` begin in `source`; None where they are not in it."""
    for first in range(len(source) - len(visible) + 1):
        if _same(source[first : first + len(visible)], visible.to(source.dtype)):
            return first
    return None


def _same(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and one.shape == other.shape and torch.equal(one, other)


@contextmanager
def watching(model: nn.Module) -> Iterator[Record]:
    """Inside, the encoder's steps and the decoder's cross-attention of `model` are recorded."""
    record, encoders = Record(), [m for m in model.modules() if isinstance(m, MemBartEncoder)]
    inside = {id(part) for encoder in encoders for part in encoder.modules()}
    with ExitStack() as stack:
        for encoder in encoders:
            handle = encoder.register_forward_pre_hook(_ask, with_kwargs=True)
            stack.callback(handle.remove)
            handle = encoder.register_forward_hook(_note_read(record), with_kwargs=True)
            stack.callback(handle.remove)
        for name, part in model.named_modules():
            if not encoders or id(part) in inside or not isinstance(part, BartAttention | SourceAttention):
                continue
            stack.enter_context(recorded_attention(part.config))
            if isinstance(part, SourceAttention):  # which is given keys and values that were made before
                handle = part.k.register_forward_hook(_note_source(record, name))
                stack.callback(handle.remove)
            handle = part.register_forward_hook(_note_write(record, name), with_kwargs=True)
            stack.callback(handle.remove)
        if encoders and hasattr(model, "generate"):
            stack.enter_context(_told_beams(model, record))
        yield record


def _ask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "output_attentions": True}


def _note_read(record: Record) -> Any:
    def hook(module: Any, args: Any, kwargs: Mapping[str, Any], output: MemBartEncoderOutput) -> None:
        given = bool(module.config.decoder_slots)
        record.reads.append(_Read(output, kwargs.get("attention_mask"), given))

    return hook


def _note_write(record: Record, name: str) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: tuple[Tensor, Tensor]) -> None:
        source = kwargs.get("key_value_states")
        if source is not None:
            record.sources.setdefault(name, source[0])
        if name not in record.sources or output[1] is None:
            return
        record.writes.setdefault(name, []).append(output[1][:, :, -1].float().mean(dim=1).cpu())

    return hook


def _note_source(record: Record, name: str) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        record.sources.setdefault(name, args[0][0])

    return hook


@contextmanager
def _told_beams(model: Any, record: Record) -> Iterator[None]:
    """Inside, `model.generate` also leaves in `record` which beam each token of the reply came from."""
    plain = model.generate

    def generate(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        made = plain(*args, **kwargs, return_dict_in_generate=True)
        beams = made.get("beam_indices")
        record.beams = None if beams is None else beams[0].cpu()
        sequences: Tensor = made.sequences
        record.written = sequences[0, 1:].tolist()  # what it starts from is not written
        return sequences

    model.generate = types.MethodType(generate, model)
    try:
        yield
    finally:
        del model.generate


__all__ = ["Attention", "Record", "Seen", "watching"]
