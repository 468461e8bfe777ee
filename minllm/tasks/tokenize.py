"""`task=tokenize`: train tokenizers on a corpus, and keep them where `tokenizer.folder` finds them.

python run.py task=tokenize name=tales                     # makes the tokenizers that come with minllm again
python run.py task=tokenize data=text data.path=notes.txt name=notes 'sizes=[1000]'
python run.py tokenizer.folder=tokenizers/notes_1000 data=text data.path=notes.txt
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from minllm.config import build
from minllm.errors import UserError
from minllm.options import Count
from minllm.tokenizer.sentencepiece import SentencePiece, write_folder
from minllm.tokenizer.training import PATTERN, train


def tokenize(
    cfg: DictConfig, run_dir: Path, *, name: str, sizes: list[Count], documents: Count, folder: str
) -> dict[str, float]:
    """Train a tokenizer of each size on `cfg.data`, and return the bytes of held-out text to a token of each.

    Args:
        cfg: the composed configuration; only its `data` counts.
        run_dir: unused: a tokenizer isn't a run.
        name: what the corpus is to be called: the folders are `<name>_<size>`.
        sizes: vocabulary sizes. The smaller ones are the beginning of the largest.
        documents: how many of the training documents to learn from, at most.
        folder: where to put them.

    Raises:
        UserError: the corpus can't be read or is too small for the sizes, or the folder can't be written.
    """
    import sentencepiece

    if not sizes:
        raise UserError("sizes is empty. Name at least one vocabulary size, such as 'sizes=[2048]'.")
    source = build(cfg.data)
    texts = Counted(islice(source.documents("train"), documents))
    models = train(texts, sizes)
    held_out = list(islice(source.documents("val"), 1_000))
    measured = {}
    for size, model in models.items():
        place = Path(folder) / f"{name}_{size}"
        metadata: dict[str, Any] = {
            "name": place.name,
            "kind": "sentencepiece BPE",
            "vocab_size": size,
            "corpus": cfg.data._target_,
            "corpus_fingerprint": source.fingerprint,
            "documents": texts.documents,
            "bytes": texts.bytes,
            "pattern": PATTERN,
            "sha256": hashlib.sha256(model).hexdigest(),
            "sentencepiece": sentencepiece.__version__,
        }
        write_folder(place, metadata, model)
        measured[place.name] = round(bytes_per_token(SentencePiece(place, folder=""), held_out), 4)
        write_folder(place, {**metadata, "held_out_bytes_per_token": measured[place.name]}, model)
        print(f"{place}: {measured[place.name]:.2f} bytes to a token. To use it: tokenizer.folder={place}")
    return measured


class Counted:
    """Texts that count themselves as they pass."""

    def __init__(self, texts: Iterator[str]) -> None:
        self.texts, self.documents, self.bytes = texts, 0, 0

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            self.documents += 1
            self.bytes += len(text.encode())
            yield text


def bytes_per_token(tokenizer: SentencePiece, texts: list[str]) -> float:
    tokens = sum(map(len, tokenizer.encode_batch(texts)))
    return sum(len(text.encode()) for text in texts) / tokens
