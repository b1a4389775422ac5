"""MemBART pretraining: raw corpora to shards, shards to synchronized batches, batches to a model folder."""

__version__ = "0.1.0"
