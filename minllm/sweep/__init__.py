"""A search: many runs, whose settings are chosen in the light of those that are done."""
