"""Recurrences over time, in fast, equivalent forms.

    linear.py       h_t = a_t h_(t-1) + b_t                      RG-LRU, minGRU, and the states between chunks
    selective.py    the same with a state of N numbers per channel   Mamba
    decaying.py     S_t = a_t S_(t-1) + k_t vᵀ_t                 Mamba-2, gated linear attention
    moving_average.py   h_t = q h_(t-1) + p x_t, complex        Megalodon
    delta.py        S_t = a_t (1 - β k_t kᵀ_t) S_(t-1) + β k_t vᵀ_t    DeltaNet, gated DeltaNet

`tests/test_scans.py` compares each with a slow loop. Time is always the second dimension.
"""
