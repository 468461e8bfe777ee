"""The rows of local or remote parquet files, read in batches of about a thousand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minllm.errors import UserError


@dataclass(frozen=True)
class ParquetFiles:
    """The rows of parquet files, with the part of the `datasets` interface that is needed here.

    `datasets` reads every column, with threads that can abort Python at exit if a reader stops early.
    """

    files: list[str]
    columns: list[str] | None = None

    @property
    def column_names(self) -> list[str]:
        with opened(self.files[0]) as file:
            return file.schema_arrow.names

    def select_columns(self, columns: list[str]) -> ParquetFiles:
        return ParquetFiles(self.files, columns)

    def iter(self, batch_size: int) -> Iterator[dict[str, list[Any]]]:
        for name in self.files:
            with opened(name) as file:
                first = 0
                for batch in file.iter_batches(batch_size, columns=self.columns, use_threads=False):
                    yield {
                        column: values(batch.column(index), f"{name}, column '{column}'", first)
                        for index, column in enumerate(batch.schema.names)
                    }
                    first += batch.num_rows


def values(column: Any, place: str, first: int) -> list[Any]:
    """Return a column's values as Python objects.

    Args:
        place: the location, for error messages.
        first: the number of its first row, from 0.
    """
    try:
        return column.to_pylist()
    except UnicodeDecodeError as error:
        row = next(row for row, value in enumerate(column) if not is_text(value))
        raise UserError(
            f"{place}, row {first + row + 1:,}: the text is not UTF-8: byte {error.start:,} is"
            f" 0x{error.object[error.start]:02x}. Rewrite the file with text in UTF-8, or leave that row out."
        ) from error


def is_text(value: Any) -> bool:
    try:
        value.as_py()
    except UnicodeDecodeError:
        return False
    return True


@contextlib.contextmanager
def opened(name: str) -> Iterator[Any]:
    """Open a parquet file on this machine or, as hf://…, on the hub."""
    import fsspec
    from pyarrow.parquet import ParquetFile

    # with pre_buffer, I/O threads read ahead; one that still holds a buffer of `file` at exit can abort Python
    with fsspec.open(name) as file, ParquetFile(file, pre_buffer=False) as parquet:
        yield parquet


def bytes_of_column(path: Path, column: str) -> int:
    """Return roughly how many bytes a column holds; the file size if the file can't be read."""
    from pyarrow import ArrowException
    from pyarrow.parquet import read_metadata

    try:
        metadata = read_metadata(path)
    except (ArrowException, OSError):
        return path.stat().st_size
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    columns = [group.column(index) for group in groups for index in range(group.num_columns)]
    return sum(chunk.total_uncompressed_size for chunk in columns if chunk.path_in_schema == column)
