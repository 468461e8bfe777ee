"""Where pairs come from: files of every format, sets of the hub, and strings that are made up."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from minllm.data.pairs import Pairs
from minllm.data.reverse import Reverse
from minllm.data.source import Pair, PairSource
from minllm.errors import UserError

# ---- files ---------------------------------------------------------------------------------------------------------

QUESTIONS = [{"source": f"Question {n},\nnaïve?", "target": f'"Answer" {n}', "n": n} for n in range(120)]


def written(folder: Path, name: str, records: list[dict]) -> str:
    import csv

    import pyarrow
    import pyarrow.parquet

    path = folder / name
    if name.endswith(".jsonl"):
        path.write_text("\n".join(map(json.dumps, records)) + "\n\n", encoding="utf-8")
    elif name.endswith(".json"):
        path.write_text(json.dumps(records, indent=1), encoding="utf-8")
    elif name.endswith(".csv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return str(path)


def both(source: PairSource) -> tuple[list[Pair], list[Pair]]:
    return list(source.pairs("train")), list(source.pairs("val"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_all_formats_hold_the_same_pairs(tmp_path, name):
    train, val = both(Pairs(path=written(tmp_path, name, QUESTIONS)))
    assert Counter(train + val) == Counter(Pair(one["source"] + "\n", one["target"]) for one in QUESTIONS)
    assert 3 < len(val) < 30
    assert (train, val) == both(Pairs(path=written(tmp_path, "again.jsonl", QUESTIONS)))


def test_a_json_file_of_lines_is_read_as_such(tmp_path):
    lines = Path(written(tmp_path, "a.jsonl", QUESTIONS)).rename(tmp_path / "b.json")
    assert len(sum(both(Pairs(path=str(lines))), [])) == len(QUESTIONS)


def test_keys_separator_and_number_of_pairs(tmp_path):
    records = [{"en": f"a{n}", "de": f"b{n}"} for n in range(100)]
    path = written(tmp_path, "a.jsonl", records)
    source = Pairs(path=path, source_key="en", target_key="de", separator=r" =>\t", val_documents=2)
    train, val = both(source)
    assert len(val) == 2 and train[0] == Pair("a0 =>\t", "b0")
    other = Pairs(path=path, source_key="de", target_key="en", separator="")
    assert Pair("b7", "a7") in sum(both(other), [])
    changes = [{"separator": "x"}, {"source_key": "de", "target_key": "en"}, {"val_fraction": 0.5}, {}]
    assert (
        len(
            {
                Pairs(path=path, **{"source_key": "en", "target_key": "de"} | more).fingerprint
                for more in changes
            }
        )
        == 4
    )


def test_pairs_with_the_same_source_are_in_the_same_split(tmp_path):
    records = [{"source": f"q{n // 4}", "target": f"a{n}"} for n in range(400)]
    train, val = both(Pairs(path=written(tmp_path, "a.jsonl", records), val_fraction=0.3))
    assert val and not {pair.given for pair in train} & {pair.given for pair in val}


GOOD = b'{"source": "a", "target": "b"}\n'


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", GOOD + b'{"source": "a"}\n', "line 2 has no 'target', only source. .* data.target_key=…"),
        ("a.jsonl", GOOD + b'{"target": "a"}\n', "line 2 has no 'source', only target. .* data.source_key=…"),
        ("a.jsonl", GOOD + b'{"source": "a", "target": ""}\n', "line 2: 'target' is empty"),
        ("a.jsonl", GOOD + b'{"source": null, "target": "b"}\n', "line 2: 'source' is null"),
        (
            "a.jsonl",
            GOOD + b'{"source": "a", "target": ["b"]}\n',
            r"line 2: 'target' is not text but \[\"b\"\]",
        ),
        ("a.jsonl", GOOD + b"\n{]\n", "line 3 is not JSON"),
        ("a.jsonl", GOOD + b'["a", "b"]\n', 'line 2 is not an object such as {"source": "…", "target"'),
        ("a.jsonl", b'{"source": "a", "target": "\\ud800"}\n', "line 1: the text has an unpaired surrogate"),
        ("a.jsonl", GOOD * 9, "has no (training|validation) pairs"),
        ("a.json", b'[{"source": "a", "target": "b"}, {"source": "a"}]', "item 2 has no 'target'"),
        ("a.json", b'[{"source": "a", "target": "b"},\n{"source": }]', "line 2 is not JSON"),
        ("a.json", b'["a"]', "item 1 is not an object"),
        ("a.json", b"[]", "has no training pairs"),
        ("a.csv", b"source;target\na;b\n", "has no column 'source', only source;target"),
        ("a.csv", b"source,target,source\na,b,c\n", "several columns 'source'"),
        ("a.csv", b"source,target\na,b\nc\n", "line 3 has 1 values for 2 columns"),
        ("a.csv", b'source,target\n"a\nb",c\nd,e,f\n', "line 4 has 3 values for 2 columns"),
        ("a.csv", b'source,target\na,"b\n', "line 2 is not CSV"),
        ("a.csv", b"source,target\na,\n", "line 2: 'target' is empty"),
        ("a.csv", b"source,target\na,\xe9\n", "byte 16 is 0xe9"),
        ("a.csv", b"\n", "has no column 'source'"),
        ("a.parquet", b"not parquet", "can't be read as a parquet file"),
        ("a.txt", b"a\tb\n", "only .jsonl, .json, .csv, .parquet files"),
        ("a.jsonl", None, "There is no file"),
    ],
)
def test_files_that_hold_no_pairs_are_rejected_with_the_place(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        both(Pairs(path=str(tmp_path / name)))


def test_a_parquet_file_with_other_values_names_the_row(tmp_path):
    path = written(tmp_path, "a.parquet", [{"source": "a", "target": "b"}, {"source": "c", "target": None}])
    with pytest.raises(UserError, match="row 2: 'target' is null"):
        both(Pairs(path=path))
    with pytest.raises(UserError, match="no column 'answer', only source, target. .*data.target_key"):
        both(Pairs(path=path, target_key="answer"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "data.path=pairs.jsonl or data.repo=owner/name"),
        ({"path": "a.jsonl", "source_key": "x", "target_key": "x"}, "are both 'x'"),
        ({"path": "a.jsonl", "val_fraction": 0.0}, "data.val_fraction=0.0"),
        ({"path": "a.jsonl", "name": "en-de"}, "data.name has no effect on files"),
        ({"repo": "nothing"}, "not the name of a data set"),
        ({"repo": "a/b", "path": ["a", "b"]}, "one folder or file"),
    ],
)
def test_options_that_contradict_each_other_are_rejected(options, says):
    with pytest.raises(UserError, match=says):
        Pairs(**options)


def test_a_set_of_the_hub_with_its_own_validation_split(tmp_path):
    (tmp_path / "copy").mkdir()
    written(tmp_path / "copy", "train.jsonl", QUESTIONS)
    written(tmp_path / "copy", "validation.jsonl", QUESTIONS[:3])
    source = Pairs(repo="me/questions", path=str(tmp_path / "copy"), separator="|")
    source.check()
    train, val = both(source)
    assert train == [Pair(one["source"] + "|", one["target"]) for one in QUESTIONS] and val == train[:3]
    held_out = Pairs(repo="me/questions", path=str(tmp_path / "copy"), val_split=None)
    train, val = both(held_out)
    assert len(train) + len(val) == len(QUESTIONS) and val
    with pytest.raises(UserError, match="no column 'question', only .* data.source_key"):
        both(Pairs(repo="me/questions", path=str(tmp_path / "copy"), source_key="question"))
    with pytest.raises(UserError, match="'n' is not text but 0"):
        both(Pairs(repo="me/questions", path=str(tmp_path / "copy"), target_key="n"))


# ---- strings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "answer"),
    [("reverse", lambda text: text[::-1]), ("copy", str), ("sort", lambda text: "".join(sorted(text)))],
)
def test_strings_are_reversed_copied_or_sorted(op, answer):
    source = Reverse(op=op, alphabet="abcd", min_length=2, max_length=7, train_pairs=300, val_pairs=50)
    train, val = both(source)
    assert len(train) == 300 and len(set(val)) == len(val) == 50 and not set(train) & set(val)
    for given, target in train + val:
        assert given.endswith(":") and 2 <= len(given) - 1 <= 7 and target == answer(given[:-1])
    assert {len(given) - 1 for given, _ in train} == set(range(2, 8))
    assert source.floor_bits_per_byte() == 0 and both(source) == (train, val)
    assert source.fingerprint != Reverse(op=op).fingerprint


def test_sorting_follows_the_alphabet():
    pairs = Reverse(op="sort", alphabet="zay", min_length=5, max_length=6, train_pairs=9, val_pairs=2).pairs(
        "train"
    )
    assert all(target == "".join(sorted(given[:-1], key="zay".index)) for given, target in pairs)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"alphabet": "aba"}, "each once"),
        ({"alphabet": "a"}, "two or more"),
        ({"min_length": 5, "max_length": 4}, "greater than data.max_length=4"),
        ({"separator": ""}, "data.separator=''"),
        ({"separator": "a"}, "without characters of data.alphabet"),
        ({"alphabet": "ab", "max_length": 3, "val_pairs": 20}, "too few strings of 1 to 3"),
    ],
)
def test_strings_that_cannot_be_made_are_rejected(options, says):
    with pytest.raises(UserError, match=says):
        list(Reverse(**options).pairs("val"))
