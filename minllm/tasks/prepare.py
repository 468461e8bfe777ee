"""`task=prepare`: encode a corpus in advance, show how it is packed into rows, and remove stored tokens.

python run.py task=prepare data=text data.path=notes.txt tokenizer=bytes
python run.py task=prepare remove=others
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from minllm.data.packing import layout
from minllm.data.source import PACKINGS, SPLITS, Source, expanded
from minllm.data.store import UNFINISHED, Store, is_being_built, open_store, place_of, read_store
from minllm.errors import UserError, printable
from minllm.schema.building import build
from minllm.schema.options import Name, reads

# matches only folders of stores
NAME = re.compile(rf"[0-9a-f]{{16}}(\.\w+{re.escape(UNFINISHED)})?")


@reads("data", "tokenizer")
def prepare(cfg: DictConfig, run_dir: Path, *, remove: Name | list[Name] | None = None) -> dict[str, Any]:
    """Encode `cfg.data` with `cfg.tokenizer` if necessary, and print its contents; or remove token stores.

    Args:
        run_dir: unused.
        remove: the names of stores to remove, or `others` for all except this corpus's. Nothing is encoded then.

    Returns:
        The size of each store on disk in bytes, by name.

    Raises:
        UserError: the corpus can't be read or its tokens can't be written, or there's no store of that name.
    """
    source, tokenizer = build(cfg.data), build(cfg.tokenizer)
    if remove is not None:
        names = [remove] if isinstance(remove, str) else remove
        for store in select_stores(names, stores_in(source.cache), place_of(source, tokenizer).name):
            remove_store(store.folder)
            print(printable(f"Removed{store}"))
    else:
        store = open_store(source, tokenizer)
        print("\n".join(contents(store)))
        print("\n".join(["", *shares(store, source)]))
    stores = stores_in(source.cache)
    print(printable("\n".join(["", f"Stores of tokens in {source.cache}:", *map(str, stores)])))
    return {store.folder.name: store.size for store in stores}


def remove_store(folder: Path) -> None:
    """Remove a store; it's renamed first, so that a killed process leaves an unfinished store."""
    if not folder.name.endswith(UNFINISHED):
        folder = folder.rename(folder.with_name(f"{folder.name}.removed{UNFINISHED}"))
    shutil.rmtree(folder)


def contents(store: Store) -> Iterator[str]:
    """Yield a line with the size of each split. UserError if any part of the store is damaged."""
    for split in SPLITS:
        documents = store.split(split)
        documents.check(0, len(documents.tokens))
        known = store.metadata["splits"][split]
        given = int(documents.lengths.sum()) - documents.targets
        text, part = ("text", "") if documents.given is None else ("targets", f" ({given:,} of them given)")
        yield (
            f"{split:5}  {known['documents']:,} documents, {known['bytes'] / 1e6:,.2f} MB of {text},"
            f" {known['tokens']:,} tokens{part}, {known['bytes'] / (known['tokens'] - given):.2f} bytes per token"
        )


def shares(store: Store, source: Source) -> Iterator[str]:
    """Yield a table of how each packing uses the training documents."""
    documents = store.split("train")
    yield f"{f'rows of {source.seq_len}':14}{'rows':>12}{'padding':>10}{'truncated':>12}{'cut off':>10}"
    for packing in PACKINGS:
        rows = layout(packing, documents, source)
        share = rows.shares()
        columns = f"{share.padding:10.1%}{share.truncated:12.1%}{share.beheaded:10.1%}"
        yield f"{packing:14}{rows.rows:12,}{columns}"


@dataclass(frozen=True)
class CachedStore:
    """A folder in the cache: a store, or an unfinished one left by a killed process."""

    folder: Path
    size: int
    made: datetime
    what: str

    def __str__(self) -> str:
        return f"  {self.folder.name:28}{self.size / 1e6:12,.2f} MB  {self.made:%Y-%m-%d %H:%M}  {self.what}"


def stores_in(cache: str) -> list[CachedStore]:
    """Return the stores in the cache, newest first, except those that another process is building."""
    paths = expanded(cache, "data.cache").glob("*")
    folders = (path for path in paths if path.is_dir() and not path.is_symlink())
    matches = {path: NAME.fullmatch(path.name) for path in folders}
    stores = [path for path, match in matches.items() if match and not (match[1] and is_being_built(path))]
    return sorted(map(describe, stores), key=lambda store: store.made, reverse=True)


def describe(folder: Path) -> CachedStore:
    size = sum(file.lstat().st_size for file in folder.rglob("*"))
    made = datetime.fromtimestamp(folder.stat().st_mtime)
    if folder.name.endswith(UNFINISHED):
        return CachedStore(folder, size, made, "unfinished")
    try:
        known = read_store(folder).metadata
    except UserError:
        return CachedStore(folder, size, made, "damaged, or of another version of minllm")
    options = known["options"]
    corpus = options.get("path") or options.get("repo") or known["source"]
    tokens = sum(split["tokens"] for split in known["splits"].values())
    what = f"{corpus}: {tokens:,} tokens of {known['tokenizer']}, {known['vocab_size']:,}"
    return CachedStore(folder, size, made, what)


def select_stores(names: Sequence[str], stores: Sequence[CachedStore], own: str) -> list[CachedStore]:
    """Return the stores with these names. UserError if one doesn't exist."""
    if "others" in names:
        return [store for store in stores if store.folder.name != own]
    known = {store.folder.name: store for store in stores}
    if unknown := [name for name in names if name not in known]:
        raise UserError(
            f"There is no store '{unknown[0]}'. Type remove=others, or one of: {', '.join(known) or 'none is left'}."
        )
    return [known[name] for name in names]
