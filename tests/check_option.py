"""`make check option=model/attn=mqa`: what every option must prove, for one option, which may stand outside.

OPTION is what would be typed for run.py: a choice, the overrides it needs, and `--config-dir` and `extensions` for code
from elsewhere.
"""

import argparse
import inspect
import os
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

import tests.test_every_option as laws
from minllm.config.compose import existing_folder
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
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config-dir", action="append", default=[])
    try:
        flags, typed = parser.parse_known_args(shlex.split(os.environ["OPTION"]))
    except (ValueError, argparse.ArgumentError) as error:
        raise UserError(f"option={os.environ['OPTION']} can't be read: {error}.") from error
    if not typed:
        raise UserError("option= is empty. Type an option of a model: make check option=model/attn=mqa")
    if not flags.config_dir:
        return completed(typed[0]) + tuple(typed[1:])
    folders = ",".join(f"file://{existing_folder(folder)}" for folder in flags.config_dir)
    return (f"hydra.searchpath=[{folders}]", *typed)


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
