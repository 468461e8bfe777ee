"""Statistical protocols on top of study and sweep that decide which arm is better."""
