"""Models of `transformers`, as the presets of this project: `python run.py task=import from=<folder>`.

    families/llama.py    one module for each `model_type`: which weight is which, and what would be typed
    settings.py          reads a config.json, and refuses what is left unread
    table.py             fills a model with weights by a family's table, and refuses what is left over
    folder.py            the folder that `save_pretrained` wrote

A family is found by its module's name, so that a new one is a new file and no other is edited.
"""
