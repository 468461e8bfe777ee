"""How fast minllm is beside transformers' Llama: who competes, in which processes, and what came out."""
