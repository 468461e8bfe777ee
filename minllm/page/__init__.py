"""What a person reads: Markdown, HTML, units, and text that any terminal can show."""
