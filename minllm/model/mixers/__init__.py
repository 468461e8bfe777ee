"""Modules that mix a sequence over time; each remembers what it must in a State."""
