"""documents.safetensors in a run's folder: the loss of each validation document at the end of training.

nats     float32: the summed loss of each document, including that of its end
bytes    int32: the size of each document in UTF-8

The documents are in the order of the validation set, which is the same in every run on the same text. Their sum is the
run's `val_bpb`, up to rounding; with them, a comparison knows how much a difference depends on the text. The file has
8 bytes per document.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

DOCUMENTS = "documents.safetensors"


@dataclass(frozen=True)
class DocumentLosses:
    """The loss of each validation document in nats, and its size in bytes."""

    nats: np.ndarray
    bytes: np.ndarray

    @property
    def bpb(self) -> float:
        """Bits per byte over all documents."""
        return float(self.nats.sum(dtype=np.float64) / np.log(2) / self.bytes.sum(dtype=np.int64))

    def to_bytes(self) -> bytes:
        """Return the content of the file."""
        return save({"nats": self.nats.astype(np.float32), "bytes": self.bytes.astype(np.int32)})

    @classmethod
    def from_bytes(cls, content: bytes) -> DocumentLosses:
        """Return the losses in a file. ValueError if it is damaged."""
        try:
            tensors = load(content)
        except (SafetensorError, ValueError, TypeError, KeyError) as error:
            raise ValueError("it isn't a safetensors file") from error
        if set(tensors) != {"nats", "bytes"}:
            raise ValueError("it doesn't have the tensors nats and bytes")
        nats, sizes = tensors["nats"], tensors["bytes"]
        if nats.dtype != np.float32 or sizes.dtype != np.int32 or nats.ndim != 1 or nats.shape != sizes.shape:
            raise ValueError("its tensors don't have the right type and shape")
        if (
            not len(nats)
            or not np.isfinite(nats).all()
            or nats.min() < 0
            or sizes.min() < 0
            or not sizes.any()
        ):
            raise ValueError("its losses or sizes are out of range")
        return cls(nats, sizes)
