"""`make check option=model/attn=mqa`: what every option must prove, for one option, which may stand outside.

OPTION is what would be typed for run.py: a choice, the overrides it needs, and `--config-dir` and `extensions` for code
from elsewhere.
"""

import inspect
import os
import shlex
import sys
from pathlib import Path

import pytest

import tests.test_every_option as laws
from tests.tiny import completed, options


def overrides() -> tuple[str, ...]:
    """Return OPTION as overrides; a choice alone is completed with the options that it needs."""
    typed = shlex.split(os.environ["OPTION"])
    folders = [Path(after) for flag, after in zip(typed, typed[1:]) if flag == "--config-dir"]
    typed = [word for word in typed if word != "--config-dir" and Path(word) not in folders]
    sys.path.append(os.getcwd())
    search = [f"hydra.searchpath=[{','.join(f'file://{folder.resolve()}' for folder in folders)}]"]
    return (*search, *typed) if folders else completed(typed[0]) + tuple(typed[1:])


LAWS = [
    law
    for name, law in vars(laws).items()
    if name.startswith("test_") and "choices" in inspect.signature(law).parameters
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.removeprefix("test_"))
def test_it_obeys(law, tmp_path):
    values = {"choices": overrides(), "tmp_path": tmp_path}
    names = inspect.signature(law).parameters
    for objective in options("objective") if "objective" in names else [None]:
        law(**{name: objective if name == "objective" else values[name] for name in names})
