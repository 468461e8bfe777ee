"""A PostgreSQL server for the tests alone: in a folder of its own, on a socket in it, gone afterwards."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

PASSWORD = "correct-horse"  # which the server takes, as it would any other


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Start a server and yield the URL of its database; skip where there's none to start."""
    programs = folder_of_programs()
    if programs is None:
        pytest.skip("PostgreSQL isn't installed: there's no initdb")
    account = unprivileged()
    # pytest's own folders are closed to other accounts, and too deep for a socket's path
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    try:
        if account:
            shutil.chown(folder, account)
        data, log = folder / "data", folder / "log"
        options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off"
        start = ["pg_ctl", "-D", data, "-w", "-l", log, "-o", options, "start"]
        for command in (["initdb", "-D", data, "-U", "tests", "-A", "trust", "--no-sync"], start):
            done = run(programs, command, account)
            if done.returncode:
                pytest.skip(f"PostgreSQL can't be started here: {command[0]} says {done.stdout[-300:]!r}")
        try:
            yield f"postgresql://tests:{PASSWORD}@/postgres?host={folder}"
        finally:
            run(programs, ["pg_ctl", "-D", data, "-m", "fast", "stop"], account)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def new_database(url: str) -> str:
    import psycopg

    name = f"db{uuid.uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return url.replace("/postgres?", f"/{name}?")


def folder_of_programs() -> Path | None:
    """Where initdb is. Debian keeps it off the path."""
    found = shutil.which("initdb")
    places = [Path(found).resolve()] if found else Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return max((place.parent for place in places), default=None)


def unprivileged() -> str | None:
    """Who is to run the server if we are root, whom it refuses."""
    if os.geteuid() != 0:
        return None
    accounts = {one.pw_name for one in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in accounts), None)


def run(programs: Path, command: list, account: str | None) -> subprocess.CompletedProcess:
    # to a file, as a server that inherits a pipe would keep it open
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        done = subprocess.run(
            [programs / command[0], *command[1:]], stdout=said, stderr=said, user=account, cwd="/"
        )
        said.seek(0)
        return subprocess.CompletedProcess(command, done.returncode, said.read())
