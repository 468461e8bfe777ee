"""`task=tokenizer`: train tokenizers on a corpus, or show how one tokenizes a text.

python run.py task=tokenizer 'tokenizer.sizes=[512,1024,2048,4096]'        # recreates those that come with minllm
python run.py task=tokenizer data=text data.path=notes.txt 'tokenizer.sizes=[1000]'
python run.py tokenizer.folder=tokenizers/notes-bpe-1000 data=text data.path=notes.txt
python run.py task=tokenizer tokenizer=bytes 'tokenizer.show="Once upon a time"'
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig

from minllm.data.source import Source, expanded
from minllm.data.text import TextFiles, find_files
from minllm.data.writing import with_progress
from minllm.errors import UserError
from minllm.schema.building import build
from minllm.schema.options import Count, In, Name, Place, reads
from minllm.tokenizer.sentencepiece import METADATA, SentencePiece, write_folder
from minllm.tokenizer.show import print_pieces
from minllm.tokenizer.training import Algorithm, pattern_of, train

HELD_OUT = 1_000  # validation documents for measuring compression


@reads("data", "tokenizer")
def train_or_show(
    cfg: DictConfig,
    run_dir: Path,
    *,
    sizes: Annotated[list[Count] | None, In("tokenizer")] = None,
    show: Annotated[str | None, In("tokenizer")] = None,
    algorithm: Annotated[Algorithm, In("tokenizer")] = "bpe",
    corpus: Annotated[Name | None, In("tokenizer")] = None,
    max_documents: Annotated[Count, In("tokenizer")] = 100_000,
    into: Annotated[Place, In("tokenizer")] = "tokenizers",
) -> dict[str, float] | list[int]:
    """Train a tokenizer of each size on `cfg.data`, or show the tokens of a text.

    Args:
        cfg: the composed configuration; only its `data` and `tokenizer` are used.
        run_dir: unused.
        sizes: vocabulary sizes. With byte-pair encoding, the smaller ones are prefixes of the largest.
        show: the text to tokenize.
        algorithm: byte-pair encoding within words, or a unigram model of whole texts.
        corpus: the name of the corpus; null: the choice of `data=`, or the file name for data=text.
        max_documents: maximum number of training documents to learn from.
        into: the parent of the new folders, which are named `<corpus>-<algorithm>-<size>`.

    Returns:
        Bytes of held-out text per token, by folder name; or the text's tokens.

    Raises:
        UserError: the corpus can't be read or is too small for the sizes, or a folder can't be written.
    """
    if bool(sizes) == (show is not None):
        raise UserError(
            "task=tokenizer trains or shows: type 'tokenizer.sizes=[512,4096]' to train tokenizers on data=…, or"
            " 'tokenizer.show=\"Once upon a time\"' to see how tokenizer=… tokenizes a text."
        )
    if show is not None:
        return print_pieces(build(cfg.tokenizer), show)
    source = build(cfg.data)
    name = f"{corpus_name(corpus, cfg, source)}-{algorithm}"
    return trained(source, name, sizes, algorithm, max_documents, expanded(into, "tokenizer.into"))


def trained(
    source: Source, name: str, sizes: Sequence[int], algorithm: Algorithm, documents: int, into: Path
) -> dict[str, float]:
    """Write a folder for each size, and return the bytes of held-out text per token of each."""
    for size in sizes:
        refuse_another(into / f"{name}-{size}", source)
    read = with_progress(itertools.islice(source.documents("train"), documents), "Reading", None)
    texts = Counted(read)
    models = train(texts, sizes, algorithm)
    held_out = list(itertools.islice(source.documents("val"), HELD_OUT))
    corpus = {
        "name": name.rpartition("-")[0],
        "hash": source.fingerprint,
        "terms": source.terms,
        "documents": texts.documents,
        "bytes": texts.bytes,
    }
    measured = {}
    for size, model in models.items():
        place = into / f"{name}-{size}"
        metadata = described(model, place.name, algorithm, corpus)
        measured[place.name] = metadata["held_out_bytes_per_token"] = measure(metadata, model, held_out)
        write_folder(place, metadata, model)
    print("\n".join(table(measured, into)))
    return measured


def refuse_another(place: Path, source: Source) -> None:
    """Raise UserError instead of replacing a tokenizer trained on another corpus, which runs may need."""
    try:
        before = json.loads((place / METADATA).read_bytes())["corpus"]["hash"]
    except (OSError, ValueError, LookupError, TypeError):
        return  # missing or damaged
    if before != source.fingerprint:
        raise UserError(
            f"The tokenizer in {place} was trained on different text. Give the new one another name"
            " with tokenizer.corpus=<name>, or remove that folder."
        )


def corpus_name(given: str | None, cfg: DictConfig, source: Source) -> str:
    """Return the name of a corpus for folder names."""
    name = cfg.choices["data"] if given is None else given
    if given is None and isinstance(source, TextFiles):
        files = find_files(source.path)
        name = files[0].stem if len(files) == 1 else ""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(
            "The tokenizers' folders need a name for the corpus. Type tokenizer.corpus=<name>, made of letters,"
            " digits, dots, dashes and underscores."
        )
    return name


class Counted:
    """An iterator of texts that counts documents and bytes."""

    def __init__(self, texts: Iterator[str]) -> None:
        self.texts, self.documents, self.bytes = texts, 0, 0

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            self.documents += 1
            self.bytes += len(text.encode())
            yield text


def described(model: bytes, name: str, algorithm: Algorithm, corpus: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer's metadata, without its compression."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [processor.id_to_piece(token) for token in range(processor.vocab_size())]
    return {
        "name": name,
        "algorithm": algorithm,
        "vocab_size": len(pieces),
        "corpus": corpus,
        "pattern": pattern_of(algorithm),
        "sha256": hashlib.sha256(model).hexdigest(),
        "pieces_sha256": hashlib.sha256(json.dumps(pieces).encode()).hexdigest(),
        "versions": {"sentencepiece": sentencepiece.__version__},
    }


def measure(metadata: dict[str, Any], model: bytes, texts: list[str]) -> float:
    """Return the average number of bytes of `texts` per token."""
    tokens = sum(map(len, SentencePiece.of(metadata, model).encode_batch(texts)))
    return round(sum(len(text.encode()) for text in texts) / tokens, 4)


def table(measured: dict[str, float], into: Path) -> list[str]:
    rows = [(name.rpartition("-")[2], f"{ratio:.2f}", into / name) for name, ratio in measured.items()]
    return [
        f"{'tokens':>6}  bytes per token, held out  folder",
        *(f"{size:>6}  {ratio:>25}  {place}" for size, ratio, place in rows),
        f"To use one: tokenizer.folder={rows[-1][2]}",
    ]
