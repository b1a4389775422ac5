"""The token-level retriever: words in context and sentences of knowledge in one space (section 4)."""
