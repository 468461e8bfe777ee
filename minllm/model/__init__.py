"""The model; read `lm.py` first."""
