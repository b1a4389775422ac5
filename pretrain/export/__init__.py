"""From a checkpoint to a folder that transformers loads: no GPU, no DeepSpeed, from any ZeRO stage."""

from pretrain.export.folder import export
from pretrain.export.kind import Kind
from pretrain.export.weights import load_model, named_tensors, restore_weights

__all__ = ["Kind", "export", "load_model", "named_tensors", "restore_weights"]
