"""The papers' analyses of fine-tuned models, as functions; `membart study` runs them."""
