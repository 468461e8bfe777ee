"""Finding the files of a Hugging Face tokenizer: in a folder, or downloaded from the hub into its cache."""

from __future__ import annotations

import re
from pathlib import Path

from minllm.data.source import expanded
from minllm.errors import UserError, first_line, neighbour
from minllm.files.network import can_download, endpoint, forbidden_by

FILES = FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"


def find_folder(name: str, revision: str) -> Path:
    """Return the folder of a tokenizer's files: `name` itself, or a folder in the hub's cache."""
    folder = expanded(name, "tokenizer.name")
    if folder.exists():
        return folder
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):  # not a valid name on the hub
        raise UserError(f"There is no folder '{name}' (looked in {Path.cwd()}).{neighbour(folder)}")
    return in_cache(name, revision) or download(name, revision)


def in_cache(name: str, revision: str) -> Path | None:
    """Return the tokenizer's folder in the hub's cache; None if it isn't there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if (folder / FILE).is_file() else None


def download(name: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    here = f"There is no folder '{name}' (looked in {Path.cwd()}),"
    if variable := forbidden_by():
        raise UserError(f"{here} and {variable} forbids looking for it on the hub.{neighbour(Path(name))}")
    if not can_download():
        raise UserError(
            f"{here} and this machine can't reach {endpoint()} to look for a tokenizer of that name."
            f"{neighbour(Path(name))} Where there is a network, type `hf download {name} {' '.join(FILES)} --local-dir"
            f" {Path(name).name}`, copy the folder here, and type tokenizer.name={Path(name).name}"
        )
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=FILES))
    except RevisionNotFoundError as error:
        raise UserError(
            f"{name} has no revision '{revision}' on the hub. Check tokenizer.revision."
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{here} and the hub has no model '{name}', or you have no access to it.{neighbour(Path(name))} Check"
            " tokenizer.name; if it's private, type: hf auth login"
        ) from error
    except HfHubHTTPError as error:
        raise UserError(
            f"'{name}' can't be downloaded from the hub: {first_line(error)}. If it is gated, accept its terms at"
            f" {endpoint()}/{name}, then type: hf auth login"
        ) from error
