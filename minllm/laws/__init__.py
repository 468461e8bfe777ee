"""Laws that every model must obey, checked on a small copy before training."""
