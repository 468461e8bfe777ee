"""Run folders on disk: their contents, how they are found, and how trials ended."""
