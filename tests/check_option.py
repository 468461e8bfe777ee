"""`make check option=model/attn=mqa`: what every option must prove, for one option, which may stand outside.

OPTION is what would be typed for run.py: a choice, the overrides it needs, and `--config-dir` and `extensions` for code
from elsewhere.
"""

import inspect
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tests.test_every_option as laws
from minllm.errors import UserError
from tests.tiny import completed, options, tiny_cfg


def refusal() -> str | None:
    """Return why OPTION can't be checked, or None."""
    try:
        tiny_cfg(*overrides())
    except UserError as error:
        return str(error)
    names = [override.lstrip("+") for override in overrides()]
    if any(re.match(r"(model|norm|experiment)\b", name) for name in names):
        return None
    return (
        f"option={os.environ['OPTION']} isn't an option of a model, such as model/attn=mqa, and `make check` tests only"
        " those. For others, put the files into minllm/ and conf/, and type: make test"
    )


@pytest.fixture(scope="module", autouse=True)
def fit() -> None:
    """Stop with exit code 2 if OPTION can't be checked."""
    if sentence := refusal():
        pytest.exit(sentence, returncode=2)


def overrides() -> tuple[str, ...]:
    """Return OPTION as overrides; a choice alone is completed with the options that it needs."""
    typed = shlex.split(os.environ["OPTION"])
    folders = [Path(after) for flag, after in zip(typed, typed[1:]) if flag == "--config-dir"]
    typed = [word for word in typed if word != "--config-dir" and Path(word) not in folders]
    sys.path.append(os.getcwd())
    search = [f"hydra.searchpath=[{','.join(f'file://{folder.resolve()}' for folder in folders)}]"]
    return (*search, *typed) if folders else completed(typed[0]) + tuple(typed[1:])


def cases() -> Iterator[Any]:
    """Yield each law, that of learning with each objective."""
    for name, law in vars(laws).items():
        if name.startswith("test_") and "choices" in (names := inspect.signature(law).parameters):
            name = name.removeprefix("test_")
            yield pytest.param(law, {}, id=name)
            if "objective" in names:
                for objective in options("objective"):
                    if objective != laws.OBJECTIVE:
                        yield pytest.param(law, {"objective": objective}, id=f"{name}-{objective}")


each_case = pytest.mark.parametrize(("law", "values"), list(cases()))


@each_case
def test_it_obeys(law, values, request):
    fixtures = inspect.signature(law).parameters.keys() - {"choices", "objective"}
    law(overrides(), **values, **{name: request.getfixturevalue(name) for name in fixtures})
