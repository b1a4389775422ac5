"""The card of an exported model: what it is, where it came from, how to use it."""

from __future__ import annotations

from typing import Any

import yaml
from transformers import PreTrainedConfig

from pretrain.checkpoint import Checkpoint
from pretrain.recipe import RECIPE_FILE
from pretrain.tracking import METRICS_FILE, read_records

MEMORY_USAGE = """\
```python
import torch
from transformers import AutoTokenizer
from pretrain.model import MemBartForConditionalGeneration

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = MemBartForConditionalGeneration.from_pretrained(FOLDER)
memory = model.construct_memory(1)
for text in ("An earlier segment of a document.", "A later one with a <mask> in it."):
    batch = tokenizer(text, return_tensors="pt")
    encoded = model.encode(**batch, memory_states=memory)
    memory = encoded.memory_states
print(tokenizer.batch_decode(model.generate(**batch, encoder_outputs=encoded, max_length=64)))
```
"""
_LABELS = {
    "validation/perplexity": "held-out perplexity with memory",
    "validation/perplexity_reset": "held-out perplexity, memory reset at every step",
}
_PER_SEGMENT = "validation/history_gain_by_segment/"


def render(saved: Checkpoint, config: PreTrainedConfig, *, about: str = "", usage: str = "") -> str:
    """Markdown with a metadata header.

    Args:
        about: first paragraph; unset: what the configuration tells.
        usage: section on use; unset: MemBART's, for a model with slots.
    """
    recipe: dict[str, Any] = yaml.safe_load((saved.path / RECIPE_FILE).read_text(encoding="utf-8"))
    slots = getattr(config, "memory_len", 0)
    if not about:
        carries = f" whose encoder carries {slots} memory slots from segment to segment" if slots else ""
        about = f"A {config.model_type} model{carries}. Loading it needs the `membart` package."
    usage = usage or (MEMORY_USAGE if config.model_type == "membart" else "")
    table = "\n".join(f"| {label} | {value} |" for label, value in _rows(saved, recipe, slots))
    parts = [
        f"---\nlibrary_name: transformers\ntags: [{config.model_type}, memory, dialogue]\n---\n",
        f"# {recipe['name']}\n\n{about}\n\n| | |\n| --- | --- |\n{table}\n",
        f"## Use\n\n{usage}" if usage else "",
        f"## Recipe\n\n```yaml\n{yaml.safe_dump(recipe, sort_keys=False)}```\n",
    ]
    return "\n".join(filter(None, parts))


def _rows(saved: Checkpoint, recipe: dict[str, Any], slots: int) -> list[tuple[str, str]]:
    state = saved.state
    versions = ", ".join(f"{name} {version}" for name, version in state["versions"].items())
    rows = [
        ("recipe", f"{recipe['name']}, update {state['update']:,} of {recipe['train']['steps']:,}"),
        ("family", recipe.get("family")),
        ("initialised from", recipe.get("backbone") or recipe.get("model", {}).get("init")),
        ("target tokens seen", f"{state['tokens_seen']:,}"),
        ("data", f"`{state['shard_set']}`"),
        ("memory slots", str(slots) if slots else None),
        ("trained with", f"{versions}; {state['world_size']} ranks, ZeRO-{state['zero_stage']}"),
        ("source", _source(state["git"])),
        ("MLflow run", state["tracking_run"]),
        *_validation(saved),
    ]
    return [(label, value) for label, value in rows if value]


def _source(git: dict[str, Any] | None) -> str | None:
    if not git:
        return None
    return f"commit `{git['commit']}`" + (" with uncommitted changes" if git["dirty"] else "")


def _validation(saved: Checkpoint) -> list[tuple[str, str]]:
    """The newest held-out figures that are not from after the checkpoint."""
    metrics = saved.path.parent.parent / METRICS_FILE
    records = [record for record, _ in read_records(metrics) if record] if metrics.is_file() else []
    records = [record for record in records if record.kind == "validation" and record.step <= saved.update]
    if not records:
        return []
    newest = records[-1]
    return [
        (_label(name), f"{value:.4g} (update {newest.step})")
        for name, value in newest.metrics.items()
        if not name.startswith(_PER_SEGMENT)
    ]


def _label(metric: str) -> str:
    return _LABELS.get(metric, "held-out " + metric.removeprefix("validation/").replace("_", " "))
