"""How fast minllm is beside transformers' models: who competes, in which processes, and what came out."""
