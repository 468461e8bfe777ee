"""Protocols on top of study and sweep: which arm is better."""
