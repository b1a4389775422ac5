"""MemBART written a second time, from the equations, to check the model against.

One row at a time, padding cut off instead of masked, one slot and one position at a time, plain matrix
products in float64; nothing of transformers and nothing of `pretrain`. Slow on purpose.

`python -m tests.pretrain.model.reference` records the numbers of `case.py` in `fixture/expected.npz`.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

RECORDED = Path(__file__).parent / "fixture" / "expected.npz"
Weights = dict[str, Tensor]


class Reference:
    def __init__(self, weights: Weights, config: dict) -> None:
        self.weights = weights
        self.config = config

    def affine(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        spread = torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
        return centred / spread * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
        """One query [d] over keys and values [n, d]."""
        size = len(query) // heads
        mixed = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = keys[:, part] @ query[part] / math.sqrt(size)
            weights = torch.exp(scores - scores.max())
            mixed.append((weights / weights.sum()) @ values[:, part])
        return torch.cat(mixed)

    def feed_forward(self, first: str, second: str, x: Tensor) -> Tensor:
        inner = self.affine(first, x)
        return self.affine(second, 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2))))

    def embed(self, side: str, ids: Tensor) -> Tensor:
        words = self.weights["model.shared.weight"][ids]
        places = self.weights[f"model.{side}.embed_positions.weight"][2 : 2 + len(ids)]
        return self.norm(f"model.{side}.layernorm_embedding", words + places)

    def encode(self, ids: Tensor, memory: Tensor, reset: bool) -> dict[str, Tensor]:
        """Real tokens [s] and memory [L, d] of one row."""
        top, heads = "model.encoder", self.config["encoder_attention_heads"]
        h = self.embed("encoder", ids)
        old = torch.zeros_like(memory) if reset else memory
        kept = self.norm(f"{top}.memory_layer_norm", old + self.weights[f"{top}.memory_bias"][0])
        m = kept
        for layer in range(self.config["encoder_layers"]):
            at = f"{top}.layers.{layer}"
            key, value, query = (self.affine(f"{at}.self_attn.{x}_proj", h) for x in "kvq")
            mem_key, mem_value, mem_query = (self.affine(f"{at}.self_attn.mem_{x}_proj", m) for x in "kvq")
            everything = torch.cat([mem_key, key]), torch.cat([mem_value, value])
            token_mix = [self.attend(q, *everything, heads) for q in query]
            slot_mix = [
                self.attend(q, torch.cat([mem_key[[i]], key]), torch.cat([mem_value[[i]], value]), heads)
                for i, q in enumerate(mem_query)
            ]
            if token_mix:
                h = h + self.affine(f"{at}.self_attn.out_proj", torch.stack(token_mix))
                h = self.norm(f"{at}.self_attn_layer_norm", h)
                h = self.norm(f"{at}.final_layer_norm", h + self.feed_forward(f"{at}.fc1", f"{at}.fc2", h))
            m = m + self.affine(f"{at}.self_attn.mem_out_proj", torch.stack(slot_mix))
            m = self.norm(f"{at}.mem_self_attn_layer_norm", m)
            m = m + self.feed_forward(f"{at}.mem_fc1", f"{at}.mem_fc2", m)
            m = self.norm(f"{at}.mem_final_layer_norm", m)
        net = f"{top}.memory_gate_net"
        gate = 1 / (1 + torch.exp(-self.feed_forward(f"{net}.dense", f"{net}.dense2", m)))
        memory = gate * m + (1 - gate) * kept
        return {"memory": memory, "gate": gate, "states": torch.cat([memory, h])}

    def decode(self, ids: Tensor, states: Tensor) -> Tensor:
        """Logits [n, vocab] after each of the ids [n], reading encoder states [L + s, d]."""
        heads = self.config["decoder_attention_heads"]
        x = self.embed("decoder", ids)
        for layer in range(self.config["decoder_layers"]):
            at = f"model.decoder.layers.{layer}"
            key, value, query = (self.affine(f"{at}.self_attn.{p}_proj", x) for p in "kvq")
            mixed = [self.attend(q, key[: i + 1], value[: i + 1], heads) for i, q in enumerate(query)]
            x = x + self.affine(f"{at}.self_attn.out_proj", torch.stack(mixed))
            x = self.norm(f"{at}.self_attn_layer_norm", x)
            key, value = (self.affine(f"{at}.encoder_attn.{p}_proj", states) for p in "kv")
            mixed = [self.attend(q, key, value, heads) for q in self.affine(f"{at}.encoder_attn.q_proj", x)]
            x = x + self.affine(f"{at}.encoder_attn.out_proj", torch.stack(mixed))
            x = self.norm(f"{at}.encoder_attn_layer_norm", x)
            x = self.norm(f"{at}.final_layer_norm", x + self.feed_forward(f"{at}.fc1", f"{at}.fc2", x))
        return x @ self.weights["model.shared.weight"].T + self.weights["final_logits_bias"][0]

    def greedy(self, states: Tensor, start: int, end: int, length: int) -> list[int]:
        """Ids from `start` on, `end` forced at the last place."""
        made = [start]
        while made[-1] != end and len(made) < length:
            best = int(self.decode(torch.tensor(made), states)[-1].argmax())
            made.append(end if len(made) == length - 1 else best)
        return made


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over the labels that are not -100."""
    total = torch.zeros((), dtype=logits.dtype)
    for row, label in zip(logits, labels, strict=True):
        if label >= 0:
            shifted = row - row.max()
            total = total + torch.log(torch.exp(shifted).sum()) - shifted[label]
    return total


def run(
    weights: Weights, config: dict, steps: list[dict[str, Tensor]], memory: Tensor
) -> dict[str, np.ndarray]:
    """Everything worth comparing: losses are means over a step's labels, gradients those of their sum.

    `steps` hold input_ids, attention_mask, resets, decoder_input_ids, decoder_attention_mask, labels. Rows of
    padding are left at 0 in what is returned.
    """
    weights = {
        name: w.double().clone().requires_grad_("logits_bias" not in name) for name, w in weights.items()
    }
    model = Reference(weights, config)
    found: dict[str, Tensor] = {}
    memory = memory.double().requires_grad_()
    entering, total = [memory], torch.zeros((), dtype=torch.float64)
    for t, step in enumerate(steps):
        seen, seen_by = step["attention_mask"].bool(), step["decoder_attention_mask"].bool()
        rows = [
            model.encode(step["input_ids"][b][seen[b]], entering[-1][b], bool(step["resets"][b]))
            for b in range(len(seen))
        ]
        slots, width = entering[-1].shape[1:]
        states = torch.zeros(len(seen), slots + seen.shape[1], width, dtype=torch.float64)
        logits = torch.zeros(*seen_by.shape, config["vocab_size"], dtype=torch.float64)
        nll, count = torch.zeros((), dtype=torch.float64), int((step["labels"] >= 0).sum())
        for b, row in enumerate(rows):
            states[b, : len(row["states"])] = row["states"].detach()
            if seen_by[b].any():
                out = model.decode(step["decoder_input_ids"][b][seen_by[b]], row["states"])
                logits[b, : len(out)] = out.detach()
                nll = nll + negative_log_likelihood(out, step["labels"][b][seen_by[b]])
            if seen[b].any():
                ids = model.greedy(row["states"].detach(), 0, config["eos_token_id"], 12)
                found[f"{t}.greedy.{b}"] = torch.tensor(ids)
        total = total + nll / max(count, 1)
        entering.append(torch.stack([row["memory"] for row in rows]))
        entering[-1].retain_grad()
        found[f"{t}.memory"] = entering[-1]
        found[f"{t}.gate"] = torch.stack([row["gate"] for row in rows])
        found[f"{t}.states"], found[f"{t}.logits"], found[f"{t}.loss"] = states, logits, nll / max(count, 1)
    total.backward()
    for name, weight in weights.items():
        if weight.requires_grad and name not in TIED:
            found[f"grad.{name}"] = weight.grad
    found["grad.memory"] = memory.grad
    return {name: tensor.detach().numpy() for name, tensor in found.items()}


TIED = ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")


def main() -> None:
    from tests.pretrain.model import case

    found = run(case.weights(), case.CONFIG, case.steps(), case.memory())
    kept = {name: value for name, value in found.items() if not name.startswith("grad.model")}
    norms = {name: np.linalg.norm(value) for name, value in found.items() if name.startswith("grad.model")}
    RECORDED.parent.mkdir(exist_ok=True)
    np.savez_compressed(RECORDED, **kept, **norms)


if __name__ == "__main__":
    main()
