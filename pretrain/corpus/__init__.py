"""Raw corpora -> documents -> shard sets, and shard sets as training reads them."""
