"""`make check option=model/attn=mqa`: what every option must prove, for one option, which may stand outside.

OPTION is what would be typed for run.py: a choice, the overrides it needs, and `--config-dir` and `extensions` for code
from elsewhere.
"""

import inspect
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tests.test_every_option as laws
from minllm.cli.main import check_flags, check_folders, config_dirs
from minllm.errors import UserError
from tests.tiny import completed, options, valid_cfg


def refusal() -> str | None:
    """Return why OPTION can't be checked, or None."""
    try:
        chosen = overrides()
        valid_cfg(*chosen)
    except UserError as error:
        return str(error)
    if any(re.match(r"\+*(model|norm|experiment)\b", override) for override in chosen):
        return None
    return (
        f"`make check` tests options of models, such as model/attn=mqa, and {os.environ['OPTION']} isn't one;"
        " `make test` tests all options in conf/."
    )


@pytest.fixture(scope="module", autouse=True)
def fit() -> None:
    """Stop with exit code 2 if OPTION can't be checked."""
    if sentence := refusal():
        pytest.exit(sentence, returncode=2)


def overrides() -> tuple[str, ...]:
    """Return OPTION as overrides; a choice alone is completed with the options that it needs."""
    try:
        typed = shlex.split(os.environ["OPTION"])
    except ValueError as error:
        raise UserError(f"option={os.environ['OPTION']} can't be read: {error}.") from error
    check_flags(typed)
    check_folders(typed)
    folders = config_dirs(typed)
    chosen = [arg for arg in typed if not arg.startswith("-") and arg not in folders]
    if not chosen:
        raise UserError("option= is empty. Type an option of a model: make check option=model/attn=mqa")
    if not folders:
        return completed(chosen[0]) + tuple(chosen[1:])
    return (
        f"hydra.searchpath=[{','.join(f'file://{Path(folder).resolve()}' for folder in folders)}]",
        *chosen,
    )


def cases() -> Iterator[Any]:
    """Yield each law; that of learning once for each objective."""
    for name, law in vars(laws).items():
        if name.startswith("test_") and "choices" in (parameters := inspect.signature(law).parameters):
            for objective in options("objective") if "objective" in parameters else [None]:
                values = {"objective": objective} if objective else {}
                yield pytest.param(law, values, id=" ".join([name.removeprefix("test_"), *values.values()]))


each_case = pytest.mark.parametrize(("law", "values"), list(cases()))


@each_case
def test_it_obeys(law, values, request):
    fixtures = inspect.signature(law).parameters.keys() - {"choices", "objective"}
    law(overrides(), **values, **{name: request.getfixturevalue(name) for name in fixtures})
