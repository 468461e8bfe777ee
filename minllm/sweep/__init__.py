"""Searches: many runs of one configuration, each a trial that learns from those before it."""
