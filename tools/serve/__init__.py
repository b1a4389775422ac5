"""`membart serve`: a local page to talk with a fine-tuned model, which shows what the memory holds."""
