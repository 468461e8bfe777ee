"""Converts models of `transformers` to presets of minllm: `python run.py task=import from=<folder>`.

    families/llama.py    one module for each `model_type`: the table of weight names, and the overrides
    settings.py          reads a config.json, and rejects settings that weren't read
    table.py             copies weights into a model by a family's table, and rejects unused ones
    folder.py            the folder that `save_pretrained` wrote

A family is found by its module's name, so a new one needs only a new file.
"""
