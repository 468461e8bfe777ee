"""Texts from the records of .jsonl, .json, .csv and .parquet files, which are read incrementally except for .json."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minllm.data.parquet import ParquetFiles
from minllm.errors import UserError
from minllm.files.filetypes import decode, refuse_nuls

LONGEST_FIELD = 1 << 26  # characters in a field of a .csv file
ALL_KEYS = 20  # maximum number of keys that an error message lists

Record = dict[str, Any]


def texts(path: Path, keys: Mapping[str, str], meaning: str) -> Iterator[tuple[tuple[str | None, ...], str]]:
    """Yield (texts, location) of each record of a file: the values of some keys, None for null.

    Args:
        keys: each key or column, by the name of the option that gives it.
        meaning: the meaning of the option, for error messages.

    Raises:
        UserError: the file is malformed, or a record lacks a key or has a value that isn't text.
    """
    for record, place in records(path, keys):
        yield tuple(text_of(record, key, place, option, meaning) for option, key in keys.items()), place


def records(path: Path, keys: Mapping[str, str]) -> Iterator[tuple[Record, str]]:
    """Yield (record, location) of each record of a file."""
    if path.suffix == ".parquet":
        return parquet_rows(path, keys)
    if path.suffix == ".csv":
        return csv_rows(path, keys)
    if path.suffix == ".json" and begins_with_bracket(path):
        return json_items(path, keys)
    return json_lines(path, keys)


def text_of(record: Record, key: str, place: str, option: str, meaning: str) -> str | None:
    """Return a record's text under a key. UserError if there is none, or it isn't text."""
    if key not in record:
        has = f"only {listed(record)}" if record else "and is empty"
        raise UserError(f"{place} has no '{key}', {has}. Give {meaning}: data.{option}=…")
    text = record[key]
    if not isinstance(text, str | None):
        value = json.dumps(text, default=str)[:40]
        raise UserError(f"{place}: '{key}' is not text but {value}. Give {meaning}: data.{option}=…")
    if text is not None:
        refuse_nuls(text, place)
    return text


def listed(names: Any) -> str:
    names = list(map(str, names))
    return ", ".join(names[:ALL_KEYS]) + (", …" if len(names) > ALL_KEYS else "")


def text_from(block: bytes, path: Path, start: int) -> str:
    """Return the text of a file's bytes from `start` on, without a byte order mark."""
    text = decode(block, path, start)
    return text.removeprefix("\ufeff") if start == 0 else text


# ---- JSON ---------------------------------------------------------------------------------------------------------


def json_lines(path: Path, keys: Mapping[str, str]) -> Iterator[tuple[Record, str]]:
    """Yield the object in each line; blank lines are skipped."""
    for number, line in enumerate(lines(path), 1):
        if line.strip():
            place = f"{path}, line {number:,}"
            yield checked_object(parsed(line, place), place, keys), place


def lines(path: Path) -> Iterator[str]:
    start = 0
    with path.open("rb") as file:
        for line in file:
            yield text_from(line, path, start)
            start += len(line)


def begins_with_bracket(path: Path) -> bool:
    return next((line for line in lines(path) if line.strip()), "").lstrip().startswith("[")


def json_items(path: Path, keys: Mapping[str, str]) -> Iterator[tuple[Record, str]]:
    """Yield the objects of a list, which is the whole file."""
    for number, value in enumerate(parsed(text_from(path.read_bytes(), path, 0), str(path)), 1):
        place = f"{path}, item {number:,}"
        yield checked_object(value, place, keys), place


def parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f", line {error.lineno:,}" if "\n" in text.rstrip() else ""
        raise UserError(f"{place}{at} is not JSON: {error.msg}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON: {error}.") from error


def checked_object(value: Any, place: str, keys: Mapping[str, str]) -> Record:
    if not isinstance(value, dict):
        example = ", ".join(f'"{key}": "…"' for key in keys.values())
        raise UserError(f"{place} is not an object such as {{{example}}}.")
    return value


# ---- tables -------------------------------------------------------------------------------------------------------


def csv_rows(path: Path, keys: Mapping[str, str]) -> Iterator[tuple[Record, str]]:
    """Yield the rows of a file with commas whose first line names the columns; blank lines are skipped."""
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(lines(path), strict=True)
    columns = header(path, reader, keys)
    while True:
        place = f"{path}, line {reader.line_num + 1:,}"  # a row may have several lines
        if (row := next_row(reader, place)) is None:
            return
        if row and len(row) != len(columns):
            raise UserError(
                f"{place} has {len(row)} values for {len(columns)} columns. Put values with commas in double quotes."
            )
        if row:
            yield dict(zip(columns, row)), place


def header(path: Path, reader: Any, keys: Mapping[str, str]) -> list[str]:
    """Return the names of the columns. UserError unless each key is one of them."""
    columns = next_row(reader, f"{path}, line 1") or []
    for option, key in keys.items():
        if columns.count(key) != 1:
            problem = f"several columns '{key}'" if key in columns else f"no column '{key}'"
            raise UserError(
                f"{path} has {problem}, only {listed(columns)}. Its first line must name the columns; choose one:"
                f" data.{option}=…"
            )
    return columns


def next_row(reader: Any, place: str) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        raise UserError(f"{place} is not CSV: {error}.") from error


def parquet_rows(path: Path, keys: Mapping[str, str]) -> Iterator[tuple[Record, str]]:
    """Yield the rows with the columns that the keys name."""
    import pyarrow

    file = ParquetFiles([str(path)], list(keys.values()))
    try:
        names = file.column_names
        for option, key in keys.items():
            if key not in names:
                raise UserError(
                    f"{path} has no column '{key}', only {', '.join(names)}. Choose one: data.{option}=…"
                )
        number = 0
        for batch in file.iter(1000):
            for values in zip(*batch.values()):
                number += 1
                yield dict(zip(batch, values)), f"{path}, row {number:,}"
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} can't be read as a parquet file: {str(error).splitlines()[0]}") from error
