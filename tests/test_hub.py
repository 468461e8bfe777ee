"""Data sets of Hugging Face's hub: from copies on this machine, and from a stand-in for the hub on this machine."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from minllm import network
from minllm.config import build, compose, validate
from minllm.data import hub as hub_module
from minllm.data.hub import Hub
from minllm.data.tales import Tales
from minllm.data.text import TextFiles
from minllm.errors import UserError
from tests.test_import import byte_level

REPOSITORY = Path(__file__).resolve().parents[1]
TRAIN = [f"Story {number} – once upon a time" for number in range(60)]
VAL = [f"Held-out story {number}" for number in range(9)]
SETS = ("tinystories", "tinystories_v2", "tinystories_instruct", "fineweb_edu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keep what `datasets` does out of the home, and this machine's variables out of the tests."""
    offline = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    for name in ("HF_ENDPOINT", "HF_DATASETS_CACHE", *offline):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def both(source: Hub) -> tuple[list[str], list[str]]:
    return list(source.documents("train")), list(source.documents("val"))


def local(path: Path, **options) -> Hub:
    return Hub(repo="owner/set", path=str(path), **options)


def write_parquet(path: Path, texts: list[str | None], **columns) -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, **columns}), path)


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, "n": 1}) + "\n" for text in texts))
    return path


@pytest.fixture
def downloaded(tmp_path) -> Path:
    """A folder as `hf download` leaves TinyStories."""
    folder = tmp_path / "TinyStories"
    write_parquet(folder / "data/train-00000-of-00002.parquet", [*TRAIN[:40], "", None])
    write_parquet(folder / "data/train-00001-of-00002.parquet", TRAIN[40:])
    write_parquet(folder / "data/validation-00000-of-00001.parquet", VAL)
    (folder / "README.md").write_text("---\nlicense: cdla-sharing-1.0\n---\nStories.\n")
    (folder / ".cache").mkdir()
    (folder / ".cache/lock").write_text("hidden")
    return folder


# ---- copies on this machine -----------------------------------------------------------------------------------------


def test_a_downloaded_folder_has_its_own_splits(downloaded):
    assert both(local(downloaded)) == (TRAIN, VAL)
    assert not list((Path(os.environ["HF_HOME"])).rglob("*.arrow")), "nothing is copied"


def test_the_first_validation_documents_are_always_the_same(downloaded):
    assert both(local(downloaded, val_documents=4)) == (TRAIN, VAL[:4])


def test_without_a_split_for_validation_a_hash_holds_documents_out(downloaded, tmp_path):
    train, val = both(local(downloaded, val_split=None))
    assert sorted(train + val) == sorted(TRAIN) and 1 < len(val) < 20
    short = both(local(downloaded, val_split=None, val_documents=2))
    assert short == (train, val[:2]), "the others are not trained on"
    alone = write_jsonl(tmp_path / "alone.jsonl", TRAIN[:30])
    assert both(local(alone)) == (
        [text for text in train if text in TRAIN[:30]],
        [t for t in val if t in TRAIN[:30]],
    )


@pytest.mark.parametrize("name", ["a.jsonl", "odd[1]*.jsonl", "a.json", "a.parquet", "a.txt"])
def test_one_file_of_any_kind_will_do(tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".parquet":
        write_parquet(path, TRAIN)
    elif path.suffix == ".json":
        path.write_text(json.dumps([{"text": text} for text in TRAIN]))
    elif path.suffix == ".txt":
        path.write_text("\n\n".join(TRAIN))
    else:
        write_jsonl(path, TRAIN)
    train, val = both(local(path))
    assert sorted(train + val) == sorted(TRAIN) and val


def test_the_readme_names_configurations(downloaded, tmp_path):
    configs = "configs:\n" + "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {pattern}\n"
        for name, pattern in (("half", "data/train-00000*"), ("all", "data/train*"))
    )
    (downloaded / "README.md").write_text(f"---\n{configs}---\n")
    train, val = both(local(downloaded, name="half"))
    assert sorted(train + val) == sorted(TRAIN[:40])
    with pytest.raises(UserError, match="no configuration 'third', only half, all. Choose one: data.name=…"):
        both(local(downloaded, name="third"))
    with pytest.raises(UserError, match="several configurations: half, all. Choose one: data.name=…"):
        both(local(downloaded))


def test_a_configuration_whose_files_alone_were_downloaded(tmp_path):
    """`hf download HuggingFaceFW/fineweb-edu --include 'sample/10BT/*'` leaves no README."""
    write_parquet(tmp_path / "edu/sample/10BT/000.parquet", TRAIN, url=["…"] * 60)
    train, val = both(local(tmp_path / "edu", name="sample-10BT", val_split=None))
    assert sorted(train + val) == sorted(TRAIN)


def test_what_save_to_disk_wrote(tmp_path):
    import datasets

    splits = {"train": TRAIN, "validation": VAL}
    saved = datasets.DatasetDict(
        {name: datasets.Dataset.from_dict({"text": texts}) for name, texts in splits.items()}
    )
    saved.save_to_disk(tmp_path / "two")
    saved["train"].save_to_disk(tmp_path / "one")
    assert both(local(tmp_path / "two")) == (TRAIN, VAL)
    train, val = both(local(tmp_path / "one"))
    assert sorted(train + val) == sorted(TRAIN)
    assert local(tmp_path / "two").size("train") > sum(map(len, TRAIN))


def test_rows_that_are_lines_are_joined_to_documents(tmp_path):
    """As in TinyStories-Instruct: a row is a line, a blank line a blank row, and a mark ends the document."""
    stories = [f"Words: cat, {number}\nStory:\n\nThe cat sat.\n\nThe end." for number in range(9)]
    for name in ("train", "valid"):
        text = "\n<|endoftext|>\n".join(stories) + "\n<|endoftext|>\n"
        (tmp_path / f"Instruct-{name}.txt").write_text(text)
    assert both(local(tmp_path, separator="<|endoftext|>")) == (stories, stories)
    assert list(local(tmp_path, separator="<|endoftext|>", val_documents=2).documents("val")) == stories[:2]


def test_a_mark_that_never_comes_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_module, "LONGEST", 20)
    path = write_jsonl(tmp_path / "a.jsonl", TRAIN)
    with pytest.raises(UserError, match="has no '#' in 20 rows. If each row is a document"):
        both(local(path, separator="#"))


def test_stopping_early_ends_well(downloaded):
    """`datasets` itself would abort Python here, now and then."""
    program = (
        "from minllm.data.hub import Hub; import sys;"
        "print(next(Hub(repo='a/b', path=sys.argv[1]).documents('train')))"
    )
    command = [sys.executable, "-c", program, str(downloaded)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, TRAIN[0] + "\n", "")


def test_sizes_are_about_right(downloaded, tmp_path):
    train, val = (sum(len(text.encode()) for text in texts) for texts in (TRAIN, VAL))
    source = local(downloaded)
    assert train <= source.size("train") < 2 * train + 500 and val <= source.size("val") < 2 * val + 500
    held_out = local(downloaded, val_split=None, val_fraction=0.25)
    assert held_out.size("train") == pytest.approx(0.75 * source.size("train"), abs=1)
    assert local(downloaded, val_documents=2).size("val") is None, "nobody has counted the rows"
    path = write_jsonl(tmp_path / "a.jsonl", TRAIN)
    assert TextFiles(path=str(path), val_fraction=0.25).size("val") == path.stat().st_size // 4
    tales = Tales(train_stories=200)
    told = sum(len(text.encode()) for text in tales.documents("train"))
    assert tales.size("train") == pytest.approx(told, rel=0.05)


# ---- fingerprints ---------------------------------------------------------------------------------------------------


def test_the_fingerprint_follows_what_is_read_and_nothing_else(downloaded):
    before = local(downloaded).fingerprint
    assert (
        local(downloaded, seq_len=8, streaming=True, licence="other", cache="elsewhere").fingerprint == before
    )
    assert Hub(repo="other/name", path=str(downloaded)).fingerprint == before
    for option in ({"val_documents": 3}, {"field": "n"}, {"val_split": None}, {"separator": "#"}):
        assert local(downloaded, **option).fingerprint != before
    (downloaded / ".cache/lock").write_text("changed")
    assert local(downloaded).fingerprint == before
    write_parquet(downloaded / "data/validation-00000-of-00001.parquet", VAL[1:])
    assert local(downloaded).fingerprint != before


def test_of_the_hub_it_is_the_name_and_the_revision():
    before = Hub(repo="owner/set").fingerprint
    for option in ({"repo": "owner/other"}, {"revision": "v2"}, {"name": "small"}, {"train_split": "all"}):
        assert Hub(**{"repo": "owner/set", **option}).fingerprint != before


def test_large_files_are_known_by_size_and_time(tmp_path, monkeypatch):
    monkeypatch.setattr("minllm.data.text.HASHED", 1000)
    (tmp_path / "large.txt").write_text("x" * 2000)
    small = write_jsonl(tmp_path / "small.jsonl", TRAIN[:1])
    before = local(tmp_path).fingerprint
    os.utime(small, ns=(1, 1))
    assert local(tmp_path).fingerprint == before
    os.utime(tmp_path / "large.txt", ns=(1, 1))
    assert local(tmp_path).fingerprint != before


def test_fingerprints_and_checks_import_nothing_heavy(downloaded):
    program = (
        "from minllm.data.hub import Hub; import sys;"
        "source = Hub(repo='a/b', path=sys.argv[1]); source.check(); source.fingerprint;"
        "print({'datasets', 'huggingface_hub', 'pyarrow', 'torch'} & set(sys.modules) or 'little')"
    )
    command = [sys.executable, "-c", program, str(downloaded)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.stdout == "little\n", done.stderr


# ---- what can be wrong with a copy ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"field": "story"}, "no column 'story', only text. Choose one: data.field=…"),
        ({"train_split": "test"}, "no split 'test', only train, validation. Choose one: data.train_split=…"),
        ({"val_split": "dev"}, "no split 'dev', only train, validation. Choose one: data.val_split=…"),
        ({"val_split": None, "val_fraction": 1e-9}, "falls in the validation set. Change data.val_fraction"),
    ],
)
def test_what_a_set_does_not_have_is_said(downloaded, options, says):
    with pytest.raises(UserError, match=says):
        both(local(downloaded, **options))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("bad.jsonl", b'{"text": "a"}\n{"text": oops}\n', "can't be read: JSON parse error"),
        ("number.jsonl", b'{"text": 5}\n', "'text' is not text but 5"),
        ("fields.jsonl", b'{"story": "a"}\n', "no column 'text', only story"),
        ("empty.jsonl", b"", "is empty"),
        ("blank.txt", b"\n\n\n", "falls in the training set"),
        ("latin.txt", b"caf\xe9\n", "can't be read: 'utf-8' codec can't decode byte 0xe9"),
        ("bad.parquet", b"no parquet", "can't be read: Parquet"),
        ("words.doc", b"words", "is not one of .parquet, .jsonl, .json, .txt"),
        ("folder/words.doc", b"words", "can't be read: No .*data files"),
    ],
)
def test_a_copy_that_cannot_be_read_is_said(tmp_path, name, content, says):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        both(local(tmp_path / Path(name).parts[0]))


def test_a_mistyped_path_has_a_suggestion(downloaded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        Hub(repo="owner/set", path="Tinystoreis").check()
    assert str(caught.value) == (
        f"There is no file or folder data.path=Tinystoreis (looked in {tmp_path}). Did you mean 'TinyStories'?"
    )
    write_jsonl(tmp_path / "stories.jsonl", TRAIN)
    with pytest.raises(UserError, match="Did you mean 'stories.jsonl'?"):
        list(TextFiles(path="storys.jsonl").documents("val"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"repo": "./here"}, "no data set's name on the hub, which is owner/name.*data.path=<path>"),
        ({"val_fraction": 0.0}, "leaves nothing on one side"),
        ({"separator": ""}, "data.separator is empty"),
        ({"val_split": "train"}, "is the training split too"),
    ],
)
def test_options_that_cannot_be_are_refused(options, says):
    with pytest.raises(UserError, match=says):
        Hub(**{"repo": "owner/set", **options})


@pytest.mark.parametrize("data", SETS)
def test_the_options_of_conf_are_sources(data):
    cfg = compose([f"data={data}", "data.path=/nowhere", "data.stride=64"])
    validate(cfg)
    source = build(cfg.data)
    assert isinstance(source, Hub) and source.terms in ("CDLA-Sharing-1.0", "ODC-By 1.0")
    assert set(cfg.data) - {"_target_"} == set(Hub.__dataclass_fields__), "all can be overridden"


# ---- the hub --------------------------------------------------------------------------------------------------------

COMMIT = "a" * 40


class StandIn(BaseHTTPRequestHandler):
    """As much of the hub as its libraries ask for, with two sets, a tokenizer, and a set that is gated."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, _, query = self.path.partition("?")
        found = re.fullmatch(
            r"(?:/api)?(?:/datasets|/models)?/(me/\w+)/?(resolve|tree|revision)?/?(\w+)?/?(.*)", path
        )
        files = self.server.sets.get(found[1]) if found else None
        if found and found[1] == "me/Gated":
            self.send(403 if found[2] == "resolve" else 200, b"{}", error="GatedRepo")
        elif files is None:
            self.send(404, error="RepoNotFound")
        elif found[3] not in (None, "main", COMMIT):
            self.send(404, error="RevisionNotFound")
        elif found[2] == "resolve":
            content = files.get(found[4])
            self.send(404, error="EntryNotFound") if content is None else self.send_range(content)
        elif found[2] == "tree":
            self.send(200, json.dumps(listing(files, found[4])).encode())
        else:
            names = [{"rfilename": name} for name in files] if path.startswith("/api/models") else []
            self.send(200, json.dumps({"id": found[1], "sha": COMMIT, "siblings": names}).encode())

    do_GET = do_HEAD = do_POST = answer

    def send_range(self, content: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        etag = hashlib.sha256(content).hexdigest()
        part = content[int(asked[1]) : int(asked[2]) + 1] if asked else content
        self.send(206 if asked else 200, part, ETag=f'"{etag}"')

    def send(self, status: int, content: bytes = b"", *, error: str = "", **headers: str) -> None:
        self.send_response(status)
        said = {
            "X-Error-Code": error,
            "X-Repo-Commit": COMMIT,
            "Content-Length": str(len(content)),
            **headers,
        }
        for name, value in said.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def listing(files: dict[str, bytes], folder: str) -> list[dict[str, object]]:
    """Return what the hub says of a folder: its files and its folders."""
    beside = [name for name in files if os.path.dirname(name) == folder]
    folders = {os.path.dirname(name) for name in files if not folder} - {""}
    return [
        *({"type": "file", "path": name, "size": len(files[name]), "oid": COMMIT} for name in beside),
        *({"type": "directory", "path": name, "size": 0, "oid": COMMIT} for name in folders),
    ]


@pytest.fixture
def stand_in(downloaded, tmp_path, monkeypatch) -> Iterator[ThreadingHTTPServer]:
    """A server on this machine, to which `HF_ENDPOINT` points."""
    files = {
        str(file.relative_to(downloaded)): file.read_bytes()
        for file in downloaded.rglob("data/*")
        if file.is_file()
    }
    lines = write_jsonl(tmp_path / "lines.jsonl", TRAIN).read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    byte_level().save(str(tmp_path / "tokenizer.json"))
    tokenizer = {
        "tokenizer.json": (tmp_path / "tokenizer.json").read_bytes(),
        "tokenizer_config.json": b'{"bos_token": "<|pad|>", "eos_token": "<|endoftext|>"}',
        "model.bin": b"large",
    }
    server.sets = {"me/TinyStories": files, "me/Lines": {"lines.jsonl": lines}, "me/Model": tokenizer}
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


ASK = """
import itertools, json, sys
from minllm.data.hub import Hub
from minllm.errors import UserError

for options in json.loads(sys.argv[1]):
    first = options.pop("first", None)
    try:
        source = Hub(**options)
        source.check()
        found = [list(itertools.islice(source.documents(split), first)) for split in ("train", "val")]
        print(json.dumps([*found, source.size("train")]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def ask(*sources: dict[str, object]) -> list[object]:
    """Read sources in a new process, since the library reads the environment when it's imported."""
    command = [sys.executable, "-c", ASK, json.dumps(sources)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_set_of_the_hub_is_downloaded_once_and_then_needs_no_network(stand_in):
    tiny = {"repo": "me/TinyStories"}
    (train, val, size), gone = ask(tiny, {"repo": "me/TinyStories", "revision": "gone"})
    assert (train, val) == (TRAIN, VAL) and size > 1000
    assert gone == "me/TinyStories has no revision 'gone'. Check data.revision."
    stand_in.shutdown()
    stand_in.server_close()
    of_commit = {**tiny, "revision": COMMIT[:8], "name": "default", "val_documents": 2}
    offline, exact, other = ask(tiny, of_commit, {**tiny, "name": "other"})
    assert offline == [TRAIN, VAL, size] and exact == [TRAIN, VAL[:2], size]
    assert other.startswith("This machine can't reach http://127.0.0.1")


def test_a_set_of_the_hub_is_read_over_the_network(stand_in):
    parquet = {"repo": "me/TinyStories", "streaming": True}
    lines = {"repo": "me/Lines", "streaming": True, "val_documents": 5}
    whole, early, held_out, endless = ask(
        parquet, {**parquet, "first": 3}, lines, {**lines, "val_documents": None}
    )
    assert whole[:2] == [TRAIN, VAL] and early[:2] == [TRAIN[:3], VAL[:3]]
    assert not set(held_out[0]) & set(held_out[1]) and 0 < len(held_out[1]) <= 5
    assert "read over the network to its end" in endless
    assert not list(Path(os.environ["HF_HOME"]).rglob("*.arrow"))


def test_what_the_hub_does_not_have_is_said(stand_in):
    missing, gated, name, split = ask(
        {"repo": "me/Missing"},
        {"repo": "me/Gated"},
        {"repo": "me/Lines", "name": "other"},
        {"repo": "me/TinyStories", "val_split": "dev", "streaming": True},
    )
    assert missing.startswith("The hub has no data set 'me/Missing'") and "Check data.repo" in missing
    assert "accept its terms" in gated and gated.endswith("hf auth login")
    assert name == "me/Lines has no configuration 'other', only default. Choose one: data.name=…"
    assert "no split 'dev', only train, validation" in split


TELL = """
import json, sys
import minllm.tokenizer
from minllm.errors import UserError

for name in sys.argv[1:]:
    try:
        tokenizer = minllm.tokenizer.load(name)
        found = [tokenizer.bos_id, tokenizer.eos_id, tokenizer.decode(tokenizer.encode(" a \u2581"))]
        print(json.dumps(found))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def load(*names: str) -> list[object]:
    """Load tokenizers in a new process."""
    command = [sys.executable, "-c", TELL, *names]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_tokenizer_of_the_hub_is_downloaded_once_and_then_needs_no_network(stand_in):
    found, missing, lines, path = load("me/Model", "me/Missing", "me/Lines", "./me/Model")
    assert found == [0, 1, " a \u2581"]
    assert "the hub has no model 'me/Missing'" in missing
    assert "There is no tokenizer.json" in lines
    assert path.startswith("There is no folder './me/Model'") and "hub" not in path
    assert not list(Path(os.environ["HF_HOME"]).rglob("model.bin"))
    stand_in.shutdown()
    stand_in.server_close()
    again, other = load("me/Model", "me/Other")
    assert again == found and "can't reach http://127.0.0.1" in other


# ---- no network -----------------------------------------------------------------------------------------------------


def test_without_network_it_says_so_at_once_and_what_to_type(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        build(compose(["data=tinystories"]).data).check()
    assert time.monotonic() - start < 2
    assert str(caught.value) == (
        "This machine can't reach http://127.0.0.1:9, so roneneldan/TinyStories can't be downloaded. Type data=tales"
        " for the built-in corpus; or, where there is a network, `hf download roneneldan/TinyStories --repo-type"
        " dataset --local-dir TinyStories`, and here data.path=TinyStories"
    )


def test_a_name_server_that_never_answers_is_not_waited_for(monkeypatch):
    asked = threading.Event()

    def never(*_, **__):
        asked.wait(10)
        raise OSError

    monkeypatch.setattr("socket.getaddrinfo", never)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    start = time.monotonic()
    with pytest.raises(UserError, match="can't reach https://huggingface.co"):
        Hub(repo="owner/set").check()
    assert time.monotonic() - start < 2
    asked.set()


def test_a_network_that_is_forbidden_is_not_tried(stand_in, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(network, "answers_to_a_request", None)
    with pytest.raises(UserError, match="me/Lines isn't in .*, and HF_HUB_OFFLINE forbids downloading it"):
        Hub(repo="me/Lines").check()


def test_a_full_disk_is_said(stand_in, monkeypatch):
    def full(self, where, **options):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("An error occurred while generating the dataset") from error

    monkeypatch.setattr(Hub, "builder", full)
    with pytest.raises(
        UserError, match="can't be kept in .*hf/datasets: No space left on device. Make room there"
    ):
        next(Hub(repo="me/Lines").documents("train"))
