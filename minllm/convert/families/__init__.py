"""One module for each `model_type` of transformers, with

TABLE         minllm's parameter names → those of transformers (`minllm.convert.table`), without the family's PREFIX
PREFIX        the prefix of the names in transformers, except the head's
to_overrides  returns the overrides for a config.json: the preset, and the options that differ from it
"""
