"""What several test modules share: tiny models, tiny shard sets, and processes that talk over gloo."""
