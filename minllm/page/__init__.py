"""Output for people: Markdown, HTML, units, and text that any terminal can show."""
