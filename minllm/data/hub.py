"""`data=tinystories` and its like: the documents of a data set on Hugging Face's hub, or of a copy on this machine.

This module's annotations are real objects, not strings, for the reason that `minllm.data.source` gives.
"""

import contextlib
import errno
import hashlib
import http.client
import json
import os
import re
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from minllm.data.source import Source, Split
from minllm.data.text import bytes_of_text, identities, is_held_out, neighbour
from minllm.errors import UserError, first_line
from minllm.options import Count, Fraction

READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".txt": "text"}
PATIENCE = 1.2  # seconds for the hub to give any answer
READ_AT_ONCE = 1000  # rows
LONGEST = 100_000  # rows of a document that ends with a separator


@dataclass(frozen=True, kw_only=True)
class Hub(Source):
    """A data set of the hub's, each row of which is a document, or a line of one if there is a `separator`.

    It's downloaded into the cache of the `datasets` library, and found there when this machine is offline. Nothing of
    it is run as code.

    The validation documents are the split `val_split`. Where that's null, or the set has the training split alone, a
    training document is held out if a hash of its text says so, as in `data=text`. Either way, `val_documents` cuts
    how many of them are read, and those left over are trained on by nobody.

    repo: the data set's name on the hub, owner/name
    name: its configuration, such as a sample of it; null if it has one alone
    revision: the branch, tag or commit. A branch may grow, and tokens already kept don't; a commit is always the same
    path: a copy on this machine, which is read instead: a folder that was downloaded or written by `save_to_disk`,
        or one .parquet, .jsonl, .json or .txt file (each line a row)
    field: the column that holds the text
    separator: what ends a document whose lines are rows; null: a row is a document
    train_split: the split to train on
    val_split: the split to validate on; null: hold documents out of the training split
    val_documents: read the first so many validation documents only; null: all
    val_fraction: about how many of the training documents are held out, where there's no split for validation
    streaming: read the set over the network as it's needed, instead of downloading all of it first
    licence: the terms that the set's owner gives
    """

    repo: str
    name: str | None = None
    revision: str = "main"
    path: str | None = None
    field: str = "text"
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
                f"data.repo={self.repo} is no data set's name on the hub, which is owner/name."
                " For a file or folder on this machine, say data.path=<path>."
            )
        if not 0 < self.val_fraction < 1:
            raise UserError(f"data.val_fraction={self.val_fraction} leaves nothing on one side. Try 0.1.")
        if self.separator == "":
            raise UserError("data.separator is empty. Name the text that ends a document, or null.")
        if self.val_split == self.train_split:
            raise UserError(
                f"data.val_split={self.val_split} is the training split too. To hold documents out of it,"
                " say data.val_split=null."
            )

    @property
    def fingerprint(self) -> str:
        """Depends on the name and revision, not on what the hub has there today; of a copy, on the files."""
        options = [self.field, self.separator, self.train_split, self.val_split]
        options += [self.val_documents, self.val_fraction, self.name]
        known = [self.repo, self.revision] if self.path is None else self.files_and_identities()
        return hashlib.sha256(json.dumps([options, known]).encode()).hexdigest()

    @property
    def terms(self) -> str:
        return self.licence

    def check(self) -> None:
        """Raise `UserError` if the copy isn't there, or neither the network nor the cache of `datasets` has the set."""
        if self.path is not None:
            self.local()
        elif not can_download():
            self.cached()

    def documents(self, split: Split) -> Iterator[str]:
        """Yield the split's documents.

        Raises:
            UserError: the set can't be had, or has no such configuration, split or column, or no document is left.
        """
        parts = self.parts()
        own = self.own_validation(parts)
        rows = parts[own if own is not None and split == "val" else self.train_split].rows
        texts = self.texts(rows)
        if own is None:
            texts = (text for text in texts if self.is_held_out(text) == (split == "val"))
        nothing = True
        for text in islice(texts, self.val_documents if split == "val" else None):
            nothing = False
            yield text
        if nothing:
            raise UserError(
                f"No document of {self.place} falls in the {'training' if split == 'train' else 'validation'} set."
                + (f" Change data.val_fraction={self.val_fraction}." if own is None else "")
            )

    def size(self, split: Split) -> int | None:
        parts = self.parts()
        own = self.own_validation(parts)
        part = parts[own if own is not None and split == "val" else self.train_split]
        if part.size is None:
            return None
        if own is not None and split == "train":
            return part.size
        share = 1.0 if own is not None else self.val_fraction if split == "val" else 1 - self.val_fraction
        if split == "val" and self.val_documents is not None:
            if part.length is None or self.separator is not None:
                return None
            share = min(share, self.val_documents / max(part.length, 1))
        return int(share * part.size)

    @property
    def place(self) -> str:
        """What is read, in words."""
        return self.repo if self.path is None else f"data.path={self.path}"

    # ---- from rows to documents ------------------------------------------------------------------------------------

    def own_validation(self, parts: "dict[str, Part]") -> str | None:
        """Return the name of the split for validation, or None if documents are to be held out of the training split."""
        self.demand(self.train_split, parts, "train_split")
        if self.val_split is None or set(parts) == {self.train_split}:
            return None
        self.demand(self.val_split, parts, "val_split")
        return self.val_split

    def demand(self, split: str, parts: "dict[str, Part]", option: str) -> None:
        if split not in parts:
            raise UserError(
                f"{self.place} has no split '{split}', only {', '.join(parts)}. Choose one: data.{option}=…"
            )

    def is_held_out(self, text: str) -> bool:
        return is_held_out(text, self.place, self.val_fraction)

    def texts(self, rows: Any) -> Iterator[str]:
        """Yield the documents in rows, but for empty ones."""
        values = self.values(rows)
        documents = values if self.separator is None else self.regrouped(values, self.separator)
        return (text for text in documents if text and not text.isspace())

    def values(self, rows: Any) -> Iterator[str]:
        """Yield the text in each row; a missing value is empty."""
        with self.in_a_sentence():
            known = rows.column_names
        if known is not None and self.field in known:
            rows = rows.select_columns([self.field])
        for batch in self.explained(rows.iter(READ_AT_ONCE)):
            if self.field not in batch:
                raise UserError(
                    f"{self.place} has no column '{self.field}', only {', '.join(batch)}. Choose one: data.field=…"
                )
            for value in batch[self.field]:
                if not isinstance(value, str | None):
                    said = json.dumps(value, default=str)[:40]
                    raise UserError(f"{self.place}: '{self.field}' is not text but {said}.")
                yield value or ""

    def regrouped(self, rows: Iterable[str], separator: str) -> Iterator[str]:
        """Join rows to the documents whose lines they are."""
        lines: list[str] = []
        for row in rows:
            *ends, rest = row.split(separator)
            for end in ends:
                yield "\n".join([*lines, end]).strip()
                lines = []
            lines.append(rest)
            if len(lines) > LONGEST:
                raise UserError(
                    f"{self.place} has no '{separator}' in {LONGEST:,} rows. If each row is a document, say"
                    " data.separator=null."
                )
        yield "\n".join(lines).strip()

    # ---- where the rows are ----------------------------------------------------------------------------------------

    def parts(self) -> "dict[str, Part]":
        """Return the set's splits by name, opened for reading."""
        if self.path is not None:
            path = self.local()
            if is_saved(path):
                return {name: mapped(rows) for name, rows in self.saved(path).items()}
            with offline(), self.in_a_sentence():
                return self.read_in_place(path)
        if not can_download():
            folder = self.cached()
            with self.in_a_sentence():
                return arrow_files(folder)
        with self.in_a_sentence():
            builder = self.builder(f"hf://datasets/{self.repo}", revision=self.revision)
            self.refuse_another_revision(builder)
            if self.streaming:
                return streamed(builder)
            builder.download_and_prepare()
            return {name: mapped(rows) for name, rows in builder.as_dataset().items()}

    def local(self) -> Path:
        """Return where the copy is, if it's something that can be read."""
        path = Path(str(self.path)).expanduser()
        if not path.exists():
            raise UserError(
                f"There is no file or folder data.path={self.path} (looked in {Path.cwd()}).{neighbour(path)}"
            )
        if path.is_file() and path.suffix not in READERS:
            raise UserError(f"{path} is not one of {', '.join(READERS)}, the kinds of file that can be read.")
        if path.is_file() and path.stat().st_size == 0:
            raise UserError(f"{path} is empty.")
        return path.resolve()

    def files_and_identities(self) -> list[list[str]]:
        path = self.local()
        files = visible_files(path) if path.is_dir() else [path]
        names = [str(file.relative_to(path)) for file in files]
        return [[name, known] for name, known in zip(names, identities(files))]

    def saved(self, path: Path) -> dict[str, Any]:
        """Return the splits of a folder that `save_to_disk` wrote."""
        with self.in_a_sentence():
            rows = library().load_from_disk(path)
        return rows if isinstance(rows, dict) else {self.train_split: rows}

    def read_in_place(self, path: Path) -> "dict[str, Part]":
        """Return the splits of a file or of a folder of files, which are read where they are and not copied."""
        if path.is_file():
            files = {self.train_split: [glob_free(path)]}
            builder = library().load_dataset_builder(READERS[path.suffix], data_files=files)
        else:
            builder = self.builder(str(path))
        sizes = {
            name: sum(bytes_of_text(Path(file), self.field) for file in files)
            for name, files in builder.config.data_files.items()
        }
        return {name: Part(rows, sizes[name]) for name, rows in streams(builder).items()}

    def builder(self, where: str, revision: str | None = None) -> Any:
        """Return what `datasets` reads a set with, of the configuration `name`."""
        try:
            return library().load_dataset_builder(where, self.name, revision=revision)
        except ValueError:
            names = library().get_dataset_config_names(where, revision=revision)
            if self.path is not None and names == ["default"]:
                return library().load_dataset_builder(where)  # a copy of one configuration's files
            if self.name in names:
                raise
            has = f"no configuration '{self.name}', only" if self.name else "several configurations:"
            raise UserError(
                f"{self.place} has {has} {', '.join(names)}. Choose one: data.name=…"
            ) from None

    def refuse_another_revision(self, builder: Any) -> None:
        """`datasets` takes whatever its cache has of a set when the hub hasn't what was asked for, and only logs it."""
        if builder.name == "cache" and self.revision != "main" and not builder.hash.startswith(self.revision):
            raise UserError(f"{self.repo} has no revision '{self.revision}'. Check data.revision.")

    def cached(self) -> Path:
        """Return the folder where `datasets` keeps the set that it made from an earlier download."""
        folders = [info.parent for info in cache_of_datasets().glob("*/*/*/*/dataset_info.json")]
        kept = [folder for folder in folders if self.is_kept_in(folder)]
        if kept:
            return max(kept, key=lambda folder: folder.stat().st_mtime)
        if is_offline():
            raise UserError(
                f"{self.repo} isn't in {cache_of_datasets()}, and HF_HUB_OFFLINE forbids to download it."
                " Unset it, or type data=tales for the built-in corpus."
            )
        folder = self.repo.partition("/")[2]
        only = f" --include '<the files of {self.name}>'" if self.name else ""
        raise UserError(
            f"This machine can't reach {endpoint()}, so {self.repo} can't be downloaded. Type data=tales for the"
            f" built-in corpus; or, where there is a network, `hf download {self.repo} --repo-type dataset{only}"
            f" --local-dir {folder}`, and here data.path={folder}"
        )

    def is_kept_in(self, folder: Path) -> bool:
        """Whether a folder <owner>___<name>/<configuration>/<version>/<commit> of the cache is this set's."""
        of_set, configuration, _, commit = folder.parts[-4:]
        return (
            letters(of_set) == letters(self.repo)
            and (self.name is None or configuration == self.name)
            and (self.revision == "main" or commit.startswith(self.revision))
            # that of somebody's own choice of files has a name with a hash
            and json.loads((folder / "dataset_info.json").read_bytes()).get("config_name") == configuration
        )

    # ---- what went wrong -------------------------------------------------------------------------------------------

    def explained(self, batches: Iterable[dict[str, list[Any]]]) -> Iterator[dict[str, list[Any]]]:
        """Pass batches on; what the library says when it can't read one becomes a sentence."""
        batches = iter(batches)
        while True:
            with self.in_a_sentence():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    @contextlib.contextmanager
    def in_a_sentence(self) -> Iterator[None]:
        """Turn what the library raises into a sentence to the user."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise UserError(self.sentence(error)) from error

    def sentence(self, error: Exception) -> str:
        from datasets.exceptions import DatasetNotFoundError

        deepest: BaseException = error
        while cause := deepest.__cause__ or deepest.__context__:
            deepest = cause
        if isinstance(deepest, OSError) and deepest.errno in (errno.ENOSPC, errno.EDQUOT):
            return (
                f"{self.place} can't be kept in {cache_of_datasets()}: {deepest.strerror}. Make room there, name"
                " another folder by HF_HOME=<folder>, or read it as it comes: data.streaming=true"
            )
        said = first_line(error)
        if isinstance(error, DatasetNotFoundError) and self.path is None:
            if "gated" in said:
                return (
                    f"{self.repo} is given only to those who accept its terms, at"
                    f" {endpoint()}/datasets/{self.repo}. Do so, then type: hf auth login"
                )
            if "Revision" in said:
                return f"{self.repo} has no revision '{self.revision}'. Check data.revision."
            return (
                f"The hub has no data set '{self.repo}', or doesn't show it to you. Check data.repo; if it's private,"
                " type: hf auth login"
            )
        return f"{self.place} can't be read: {first_line(deepest) if 'generating' in said else said}."


@dataclass(frozen=True)
class Part:
    """A split: its rows, and if they're known, how many bytes of text and how many rows it has."""

    rows: Any
    size: int | None = None
    length: int | None = None


# ---- files of this machine -----------------------------------------------------------------------------------------


def mapped(rows: Any) -> Part:
    """Return a split whose files are mapped into memory."""
    return Part(rows, sum(Path(file["filename"]).stat().st_size for file in rows.cache_files), len(rows))


def streamed(builder: Any) -> dict[str, Part]:
    """Return splits that are read over the network, and their sizes where the set says them."""
    splits = builder.info.splits or {}
    parts = {}
    for name, rows in streams(builder).items():
        said = splits.get(name)
        parts[name] = Part(rows, said.num_bytes, said.num_examples) if said else Part(rows)
    return parts


def streams(builder: Any) -> dict[str, Any]:
    """Return a set's splits, to be read from the files where they are."""
    if builder.name == "parquet":
        return {name: ParquetFiles(list(files)) for name, files in builder.config.data_files.items()}
    return builder.as_streaming_dataset()


@dataclass(frozen=True)
class ParquetFiles:
    """The rows of parquet files, with as much of a data set's interface as is needed.

    `datasets` reads them with threads that go on when a reader stops early, and that abort Python at its end if they
    are still at it. It also reads every column.
    """

    files: list[str]
    columns: list[str] | None = None

    @property
    def column_names(self) -> list[str]:
        with opened(self.files[0]) as file:
            return file.schema_arrow.names

    def select_columns(self, columns: list[str]) -> "ParquetFiles":
        return ParquetFiles(self.files, columns)

    def iter(self, batch_size: int) -> Iterator[dict[str, list[Any]]]:
        for name in self.files:
            with opened(name) as file:
                for batch in file.iter_batches(batch_size, columns=self.columns, use_threads=False):
                    yield batch.to_pydict()


@contextlib.contextmanager
def opened(name: str) -> Iterator[Any]:
    """Open a parquet file of this machine or, by hf://…, of the hub."""
    import fsspec
    from pyarrow.parquet import ParquetFile

    with fsspec.open(name) as file, ParquetFile(file) as parquet:
        yield parquet


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def arrow_files(folder: Path) -> dict[str, Part]:
    """Return the splits of a folder of the cache, without a look at the hub for anything newer."""
    splits = json.loads((folder / "dataset_info.json").read_bytes())["splits"]
    parts = {}
    for name in splits:
        is_of_split = re.compile(rf".+-{re.escape(name)}(-\d+-of-\d+)?\.arrow").fullmatch
        files = sorted(file for file in folder.iterdir() if is_of_split(file.name))
        rows = [library().Dataset.from_file(str(file)) for file in files]
        parts[name] = mapped(library().concatenate_datasets(rows))
    return parts


def visible_files(folder: Path) -> list[Path]:
    """Return a folder's files but for hidden ones, such as what git and `hf download` note down for themselves."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


def glob_free(path: Path) -> str:
    """Return a path in which `datasets` finds no pattern."""
    return re.sub(r"([*?\[])", r"[\1]", str(path))


# ---- the library, its cache and the network ------------------------------------------------------------------------


def library() -> Any:
    """Return the module `datasets`, which takes a second to import and is told to leave the talking to us."""
    import logging

    import datasets

    for name in ("datasets", "huggingface_hub.repocard"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return datasets


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Keep `datasets` from the network. It reads the environment when it's imported, so that would be too late."""
    library()
    import datasets.config
    import huggingface_hub.constants

    modules = (datasets.config, huggingface_hub.constants)
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(modules, before):
            module.HF_HUB_OFFLINE = value


def cache_of_datasets() -> Path:
    """Return where `datasets` keeps what it made, from the variables that it reads itself."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    home = os.environ.get("HF_HOME") or caches / "huggingface"
    return Path(os.environ.get("HF_DATASETS_CACHE") or Path(home) / "datasets").expanduser()


def letters(name: str) -> str:
    """What is left of a set's name in the name of its folder: TinyStories is kept in tiny_stories."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def is_offline() -> bool:
    """Whether the user has forbidden the network."""
    said = os.environ.get("HF_DATASETS_OFFLINE") or os.environ.get("HF_HUB_OFFLINE") or ""
    return said.upper() in ("1", "ON", "YES", "TRUE")


def can_download() -> bool:
    """Whether the hub answers at all. The library itself would try for half a minute.

    The thread is there because a name server that doesn't answer knows no time limit.
    """
    if is_offline():
        return False
    if "all" in urllib.request.getproxies():
        return True  # a kind of proxy that the library knows, and urllib doesn't
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(answers_to_a_request()), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return answers == [True]


def answers_to_a_request() -> bool:
    request = urllib.request.Request(endpoint(), method="HEAD", headers={"User-Agent": "minllm"})
    try:
        urllib.request.urlopen(request, timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # it's there; the library has certificates of its own
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return True
