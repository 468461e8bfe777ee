"""One module for each `model_type` of transformers, with

TABLE    our names → theirs (`minllm.convert.table`); theirs are written without the family's PREFIX
PREFIX   what their names begin with, all but the head's
typed    what would be typed for a config.json: the preset, and what differs from it
"""
