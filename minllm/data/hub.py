"""`data=tinystories` and similar: the documents of a data set on the Hugging Face Hub, or of a local copy.

This module's annotations are real objects, not strings, for the reason that `minllm.data.source` gives.
"""

import contextlib
import errno
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from minllm.data.huggingface import (
    Part,
    arrow_files,
    cache_of_datasets,
    cached_folders,
    library,
    mapped,
    offline,
    streamed,
    streams,
)
from minllm.data.source import SPLIT_NAMES, Source, Split, at_least_one, expanded, unescaped
from minllm.data.text import bytes_of_text, check_division, identities, is_held_out, readable, refuse_unfit
from minllm.errors import UserError, first_line, neighbour
from minllm.files.filetypes import refuse_nuls, refuse_other_kinds
from minllm.files.network import can_download, endpoint, forbidden_by
from minllm.schema.options import Count, Fraction, Name, Place

READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".txt": "text"}
READ_AT_ONCE = 1000  # rows
LONGEST = 100_000  # maximum rows of a document that ends with a separator


@dataclass(frozen=True, kw_only=True)
class Hub(Source):
    """A data set on the hub. Each row is a document, or a line of one if there is a `separator`.

    It's downloaded into the cache of the `datasets` library, and read from there when this machine is offline. No code
    from the data set is run.

    The validation documents are those of the split `val_split`. If that's null, or the set has only a training split,
    training documents are held out by a hash of their text, as in `data=text`. In both cases the first `val_documents`
    are used, and the others are never trained on.

    repo: the data set's name on the hub, owner/name
    name: its configuration, such as a sample of it; null if it has only one
    revision: the branch, tag or commit. Tokens already encoded aren't updated when a branch grows
    path: a local copy to read instead: a folder that was downloaded or written by `save_to_disk`, or one .parquet,
        .jsonl, .json or .txt file (each line a row)
    field: the column that holds the text
    separator: the text that ends a document whose lines are rows; null: each row is a document
    train_split: the split to train on
    val_split: the split to validate on; null: hold documents out of the training split
    val_documents: use only this many validation documents, from the first; null: all
    val_fraction: approximate share of training documents held out if there's no validation split
    streaming: read the set over the network as needed, instead of downloading all of it first
    licence: the terms given by the owner of the set
    """

    repo: Name
    name: Name | None = None
    revision: Name = "main"
    path: Place | None = None
    field: Name = "text"
    separator: str | None = None
    train_split: str = "train"
    val_split: str | None = "validation"
    val_documents: Count | None = None
    val_fraction: Fraction = 0.1
    streaming: bool = False
    licence: str = "not said"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", self.repo):
            raise UserError(
                f"data.repo={self.repo} is not the name of a data set on the hub, which has the form owner/name."
                " For a local file or folder, type data.path=<path>."
            )
        check_division(self.separator, self.val_fraction)
        if self.val_split == self.train_split:
            raise UserError(
                f"data.val_split={self.val_split} is also the training split. To hold documents out of it,"
                " type data.val_split=null."
            )

    @functools.cached_property
    def fingerprint(self) -> str:
        """Depends on the name and revision, not on the hub's current content; for a local copy, on its files."""
        options = [self.field, self.separator, self.train_split, self.val_split]
        options += [self.val_documents, self.val_fraction, self.name]
        known = [self.repo, self.revision] if self.path is None else self.files_and_identities()
        return hashlib.sha256(json.dumps([options, known]).encode()).hexdigest()

    @property
    def terms(self) -> str:
        return self.licence

    def check(self) -> None:
        """Raise `UserError` if the copy doesn't exist, or neither the hub nor the cache of `datasets` is available."""
        if self.path is not None:
            self.local()
        elif not can_download():
            self.cached()

    def documents(self, split: Split) -> Iterator[str]:
        """Yield the split's documents.

        Raises:
            UserError: the set isn't available, has no such configuration, split or column, or the split is empty.
        """
        part, is_shared = self.part_with(split)
        texts = self.texts(part.rows)
        if is_shared:
            texts = (text for text in texts if self.is_held_out(text) == (split == "val"))
        remedy = f" Change data.val_fraction={self.val_fraction}." if is_shared else ""
        yield from at_least_one(
            islice(texts, self.val_documents if split == "val" else None),
            f"{self.place} has no {SPLIT_NAMES[split]} documents.{remedy}",
        )

    def size(self, split: Split) -> int | None:
        part, is_shared = self.part_with(split)
        share = 1.0
        if is_shared:
            share = self.val_fraction if split == "val" else 1 - self.val_fraction
        if split == "val" and self.val_documents is not None:
            if part.length is None or self.separator is not None:
                return None
            share = min(share, self.val_documents / max(part.length, 1))
        return None if part.size is None else int(share * part.size)

    @property
    def place(self) -> str:
        """The name of the data set or of its local copy, for error messages."""
        return self.repo if self.path is None else f"data.path={self.path}"

    # ---- from rows to documents ------------------------------------------------------------------------------------

    def part_with(self, split: Split) -> tuple[Part, bool]:
        """Return the part of the set that has a split's documents, and whether it has those of the other split too."""
        parts = self.parts
        self.require_split(self.train_split, parts, "train_split")
        if self.val_split is None or set(parts) == {self.train_split}:
            self.refuse_reading_everything()
            return parts[self.train_split], True
        self.require_split(self.val_split, parts, "val_split")
        return parts[self.train_split if split == "train" else self.val_split], False

    def refuse_reading_everything(self) -> None:
        if self.streaming and self.path is None and self.val_documents is None:
            raise UserError(
                f"{self.repo} has no validation split, and all of it would be read over the network to hold documents"
                " out. Give their number: data.val_documents=500"
            )

    def require_split(self, split: str, parts: dict[str, Part], option: str) -> None:
        if split not in parts:
            raise UserError(
                f"{self.place} has no split '{split}', only {', '.join(parts)}. Choose one: data.{option}=…"
            )

    def is_held_out(self, text: str) -> bool:
        return is_held_out(text, self.place, self.val_fraction)

    def texts(self, rows: Any) -> Iterator[str]:
        """Yield the non-empty documents in rows."""
        values = self.values(rows)
        documents = values if self.separator is None else self.join_rows(values, unescaped(self.separator))
        return (text for text in documents if text and not text.isspace())

    def values(self, rows: Any) -> Iterator[str]:
        """Yield the text of each row; empty for a missing value."""
        return (text or "" for (text,) in self.columns(rows, {"field": self.field}))

    def columns(self, rows: Any, names: Mapping[str, str]) -> Iterator[tuple[str | None, ...]]:
        """Yield the texts in some columns of each row, None for a missing value.

        Args:
            names: each column, by the name of the option that gives it.
        """
        with self.as_user_errors():
            known = rows.column_names
        if known is not None and set(names.values()) <= set(known):
            rows = rows.select_columns(list(names.values()))
        for batch in self.read_batches(rows.iter(READ_AT_ONCE)):
            for option, name in names.items():
                if name not in batch:
                    raise UserError(
                        f"{self.place} has no column '{name}', only {', '.join(batch)}. Choose one: data.{option}=…"
                    )
            for values in zip(*(batch[name] for name in names.values())):
                for name, value in zip(names.values(), values):
                    self.refuse_other_values(name, value)
                yield values

    def refuse_other_values(self, name: str, value: Any) -> None:
        if not isinstance(value, str | None):
            shown = json.dumps(value, default=str)[:40]
            raise UserError(f"{self.place}: '{name}' is not text but {shown}.")
        refuse_nuls(value or "", self.place)

    def join_rows(self, rows: Iterable[str], separator: str) -> Iterator[str]:
        """Join rows, which are lines, into documents."""
        lines: list[str] = []
        for row in rows:
            *ends, rest = row.split(separator)
            for end in ends:
                yield "\n".join([*lines, end]).strip()
                lines = []
            lines.append(rest)
            if len(lines) > LONGEST:
                raise UserError(
                    f"{self.place} has no '{separator}' in {LONGEST:,} rows. If each row is a document, type"
                    " data.separator=null."
                )
        yield "\n".join(lines).strip()

    # ---- where the rows are ----------------------------------------------------------------------------------------

    @functools.cached_property
    def parts(self) -> dict[str, Part]:
        """The set's splits by name, opened for reading; cached, so that all are of the same commit."""
        if self.path is not None:
            path = self.local()
            if is_saved(path):
                return {name: mapped(rows) for name, rows in self.saved(path).items()}
            with offline(), self.as_user_errors():
                return self.read_in_place(path)
        if not can_download():
            folder = self.cached()
            with self.as_user_errors():
                return arrow_files(folder)
        with self.as_user_errors():
            builder = self.builder(f"hf://datasets/{self.repo}", revision=self.revision)
            self.refuse_another_revision(builder)
            if self.streaming:
                return streamed(builder)
            builder.download_and_prepare()
            return {name: mapped(rows) for name, rows in builder.as_dataset().items()}

    def local(self) -> Path:
        """Return the path of the local copy. UserError if it can't be read."""
        path = expanded(str(self.path), "data.path")
        with readable(path):
            if not path.exists():
                raise UserError(
                    f"There is no file or folder data.path={self.path} (looked in {Path.cwd()}).{neighbour(path)}"
                )
            if not path.is_dir():
                refuse_unfit(path, READERS)
                refuse_other_kinds(path)
        return path.resolve()

    def files_and_identities(self) -> list[list[str]]:
        path = self.local()
        files = visible_files(path) if path.is_dir() else [path]
        names = [str(file.relative_to(path)) for file in files]
        return [[name, known] for name, known in zip(names, identities(files))]

    def saved(self, path: Path) -> dict[str, Any]:
        """Return the splits of a folder that `save_to_disk` wrote."""
        with self.as_user_errors():
            rows = library().load_from_disk(path)
        return rows if isinstance(rows, dict) else {self.train_split: rows}

    def read_in_place(self, path: Path) -> dict[str, Part]:
        """Return the splits of a file or a folder of files, which are read in place."""
        if path.is_file():
            files = {self.train_split: [escaped_glob(path)]}
            builder = library().load_dataset_builder(READERS[path.suffix], data_files=files)
        else:
            builder = self.builder(str(path))
        sizes = {
            name: sum(bytes_of_text(Path(file), self.field) for file in files)
            for name, files in builder.config.data_files.items()
        }
        return {name: Part(rows, sizes[name]) for name, rows in streams(builder).items()}

    def builder(self, where: str, revision: str | None = None) -> Any:
        """Return the `datasets` builder of the configuration `name`."""
        try:
            return library().load_dataset_builder(where, self.name, revision=revision)
        except ValueError:
            names = library().get_dataset_config_names(where, revision=revision)
            if self.path is not None and names == ["default"]:
                return library().load_dataset_builder(where)  # a copy of one configuration's files
            if self.name in names or (self.name is None and len(names) == 1):
                raise  # a different problem
            has = f"no configuration '{self.name}', only" if self.name else "several configurations:"
            raise UserError(f"{self.place} has {has} {', '.join(names)}. Choose one: data.name=…") from None

    def refuse_another_revision(self, builder: Any) -> None:
        """Raise UserError if `datasets` fell back to another revision in its cache, which it only logs."""
        if builder.name == "cache" and self.revision != "main" and not builder.hash.startswith(self.revision):
            raise UserError(f"{self.repo} has no revision '{self.revision}'. Check data.revision.")

    def cached(self) -> Path:
        """Return the folder where `datasets` has cached the set after an earlier download."""
        folders = cached_folders(self.repo, self.name, self.revision)
        if len(names := sorted({folder.parts[-3] for folder in folders})) > 1:
            raise UserError(
                f"{self.repo} has several configurations: {', '.join(names)}. Choose one: data.name=…"
            )
        if folders:
            return max(folders, key=lambda folder: folder.stat().st_mtime)
        if variable := forbidden_by():
            raise UserError(
                f"{self.repo} isn't in {cache_of_datasets()}, and {variable} forbids downloading it."
                " Unset it, or type data=tales for the built-in corpus."
            )
        folder = self.repo.partition("/")[2]
        only = f" --include '<the files of {self.name}>'" if self.name else ""
        raise UserError(
            f"This machine can't reach {endpoint()}, so {self.repo} can't be downloaded. Type data=tales for the"
            f" built-in corpus; or, where there is a network, `hf download {self.repo} --repo-type dataset{only}"
            f" --local-dir {folder}`, and here data.path={folder}"
        )

    # ---- errors ----------------------------------------------------------------------------------------------------

    def read_batches(self, batches: Iterable[dict[str, list[Any]]]) -> Iterator[dict[str, list[Any]]]:
        """Yield the batches; turn the library's errors into UserErrors."""
        batches = iter(batches)
        while True:
            with self.as_user_errors():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    @contextlib.contextmanager
    def as_user_errors(self) -> Iterator[None]:
        """Turn any error of the library into a UserError."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise UserError(self.message(error)) from error

    def message(self, error: Exception) -> str:
        from datasets.exceptions import DatasetNotFoundError

        chain: list[BaseException] = [error]
        while cause := chain[-1].__cause__ or chain[-1].__context__:
            chain.append(cause)
        full = (errno.ENOSPC, errno.EDQUOT)
        reasons = [error.strerror for error in chain if isinstance(error, OSError) and error.errno in full]
        if reasons:
            return (
                f"{self.place} can't be kept in {cache_of_datasets()}: {reasons[0]}. Free some space, set"
                " HF_HOME=<folder> to another folder, or don't store it: data.streaming=true"
            )
        message = first_line(error)
        if isinstance(error, DatasetNotFoundError) and self.path is None:
            if "gated" in message:
                return (
                    f"{self.repo} is gated: accept its terms at"
                    f" {endpoint()}/datasets/{self.repo}, then type: hf auth login"
                )
            if "Revision" in message:
                return f"{self.repo} has no revision '{self.revision}'. Check data.revision."
            return (
                f"The hub has no data set '{self.repo}', or you have no access to it. Check data.repo; if it's private,"
                " type: hf auth login"
            )
        return f"{self.place} can't be read: {first_line(chain[-1]) if 'generating' in message else message}."


# ---- local files --------------------------------------------------------------------------------------------------


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def visible_files(folder: Path) -> list[Path]:
    """Return a folder's files except hidden ones, such as those of git and `hf download`."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


def escaped_glob(path: Path) -> str:
    """Return a path with glob characters escaped for `datasets`."""
    return re.sub(r"([*?\[])", r"[\1]", str(path))
