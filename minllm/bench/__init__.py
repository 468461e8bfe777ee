"""Benchmarks of minllm against transformers' models: contestants, worker processes and results."""
