"""Laws that every model must obey, checked on a small specimen before training."""
