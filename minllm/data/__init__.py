"""From text to batches: a source's documents, the store of their tokens, and rows of tokens to learn from."""
