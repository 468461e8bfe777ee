"""Data sets and tokenizers from a stand-in for Hugging Face's hub on this machine, and without any network."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from minllm.config.compose import compose
from minllm.data.hub import Hub
from minllm.errors import UserError
from minllm.files import network
from minllm.schema.building import build
from tests.commands import ROOT, python
from tests.stories import TRAIN, VAL, write_jsonl
from tests.vocabularies import byte_level

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
    return said_by(ASK, json.dumps(sources))


def said_by(program: str, *words: str) -> list[object]:
    """Run a program in a process that has imported no library of the hub's, and return the lines of JSON it prints."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".py") as script:
        script.write(program)
        script.flush()
        done = python(script.name, *words, cwd=ROOT)
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
    assert "read over the network to hold documents" in endless
    assert not list(Path(os.environ["HF_HOME"]).rglob("*.arrow"))


def test_missing_data_set_on_the_hub_is_reported(stand_in):
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
        tokenizer = minllm.load_tokenizer(name)
        found = [tokenizer.bos_id, tokenizer.eos_id, tokenizer.decode(tokenizer.encode(" a \u2581"))]
        print(json.dumps(found))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def load(*names: str) -> list[object]:
    """Load tokenizers in a new process."""
    return said_by(TELL, *names)


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


def test_missing_network_is_reported_with_a_remedy(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError) as caught:
        build(compose(["data=tinystories"]).data).check()
    assert str(caught.value) == (
        "This machine can't reach http://127.0.0.1:9, so roneneldan/TinyStories can't be downloaded. Type data=tales"
        " for the built-in corpus; or, where there is a network, `hf download roneneldan/TinyStories --repo-type"
        " dataset --local-dir TinyStories`, and here data.path=TinyStories"
    )


def test_a_name_server_that_never_answers_is_not_waited_for(monkeypatch):
    asked = threading.Event()

    def never(*_, **__):
        asked.wait()
        raise OSError

    monkeypatch.setattr("socket.getaddrinfo", never)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    try:
        with pytest.raises(UserError, match="can't reach https://huggingface.co"):
            Hub(repo="owner/set").check()
    finally:
        asked.set()


def test_a_network_that_is_forbidden_is_not_tried(stand_in, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(network, "answers_to_a_request", None)
    with pytest.raises(UserError, match="me/Lines isn't in .*, and HF_HUB_OFFLINE forbids downloading it"):
        Hub(repo="me/Lines").check()


def test_full_disk_is_reported(stand_in, monkeypatch):
    def full(self, where, **options):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("An error occurred while generating the dataset") from error

    monkeypatch.setattr(Hub, "builder", full)
    with pytest.raises(
        UserError, match="can't be kept in .*hf\\d*/datasets: No space left on device. Free some space"
    ):
        next(Hub(repo="me/Lines").documents("train"))
