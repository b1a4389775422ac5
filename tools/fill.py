"""`membart fill`: mend the masks of held-out documents, with memory and without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def fill(
    model: Annotated[Path, typer.Argument(help="An exported model folder.")],
    shards: Annotated[Path, typer.Argument(help="A shard set folder; its held-out split is read.")],
    out: Annotated[
        Path | None, typer.Option(help="Also write the samples as a report section (JSON).")
    ] = None,
    segment: Annotated[
        int, typer.Option(min=1, help="Show segments from this index of their document on.")
    ] = 4,
    show: Annotated[int, typer.Option(min=1, help="Number of segments to show.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the order and the noise.")] = 0,
) -> None:
    """Read held-out documents segment by segment; print some as the model mends them."""
    import torch

    from pretrain.corpus.shardset import ShardSet
    from pretrain.corpus.tokenizer import load_tokenizer
    from pretrain.dispatch import Dispatcher
    from pretrain.errors import UserError
    from pretrain.model import MemBartForConditionalGeneration

    shard_set = ShardSet.open(shards)
    tokenizer = shard_set.tokenizer()
    if load_tokenizer(model).fingerprint != shard_set.tokenizer_hash:
        raise UserError(
            f"made with another tokenizer than {model}", where=str(shards), mend="name the model's own set"
        )
    network = MemBartForConditionalGeneration.from_pretrained(model).eval()
    memory, shown, lines = network.construct_memory(1), 0, list[str]()
    with Dispatcher(
        shard_set, lanes=1, agents_per_lane=1, seed=seed, split="validation", epochs=1
    ) as held_out:
        for batch in held_out:
            start, mask = network.construct_memory(1), batch.attention_mask
            showing = int(batch.segment) >= segment and shown < show
            if showing:
                shown += 1
                lines += ["", f"document {int(batch.document):016x}, segment {int(batch.segment)}"]
                lines += [f"  {'masked':>13}: {tokenizer.decode(batch.input_ids[mask.bool()].tolist())}"]
                lines += [f"  {'original':>13}: {tokenizer.decode(batch.labels[batch.labels >= 0].tolist())}"]
            for name, states in (("memory reset", start), ("with memory", memory)):
                with torch.no_grad():
                    encoded = network.encode(batch.input_ids, mask, states, batch.memory_resets)
                    if showing:
                        nll = network.token_loss(encoded, batch.decoder_input_ids, batch.labels)
                        mended = network.generate(
                            batch.input_ids, attention_mask=mask, encoder_outputs=encoded,
                            max_length=shard_set.window.size, do_sample=False,
                        )  # fmt: skip
                        text = tokenizer.decode(mended[0].tolist())
                        lines += [
                            f"  {name:>13}: {text}  ({float(nll) / batch.target_tokens:.3f} nats/token)"
                        ]
            memory = encoded.memory_states
            if shown == show and not showing:
                break
    text = "\n".join(lines).strip() or f"no held-out document has {segment + 1} segments"
    print(text)
    if out is not None:
        section = {"title": "Masks of held-out documents, mended", "text": text}
        out.write_text(json.dumps(section, indent=1), encoding="utf-8")
