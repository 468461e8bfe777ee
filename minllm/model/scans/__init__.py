"""Recurrences over time, in forms that are fast and give the same numbers.

    linear.py       h_t = a_t h_(t-1) + b_t                      RG-LRU, minGRU, and the states between chunks
    selective.py    the same with a state of N numbers a channel   Mamba
    decaying.py     S_t = a_t S_(t-1) + k_t vᵀ_t                 Mamba-2, gated linear attention
    moving_average.py   h_t = q h_(t-1) + p x_t, complex        Megalodon
    delta.py        S_t = a_t (1 - β k_t kᵀ_t) S_(t-1) + β k_t vᵀ_t    DeltaNet, gated DeltaNet

Each has a slow, literal loop beside it in `tests/test_scans.py`. Time is always the second dimension.
"""
