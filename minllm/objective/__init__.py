"""What a model learns: how a batch becomes a loss."""
