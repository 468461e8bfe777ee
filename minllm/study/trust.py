"""Whether an arm's figures can be trusted: its models obey the laws, and it isn't below what no model can be below."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from minllm.errors import UserError
from minllm.floor import below_floor
from minllm.model.contract import Mistake
from minllm.model.laws import TURN_OFF, BrokenLaw, check_laws
from minllm.study.arms import Arm

OLDER = "made by a minllm that didn't check models"
TURNED_OFF = "trained with train.check=false"


def impossible(arm: Arm) -> str | None:
    """Return the error that an arm is below the corpus's floor; None if it isn't."""
    errors = (below_floor(run.summary) for run in arm.runs.values())
    return next(filter(None, errors), None)


def warnings(arms: Sequence[Arm]) -> list[str]:
    """Return a sentence for each arm that can't be trusted."""
    found = []
    for arm in arms:
        if error := impossible(arm):
            found.append(f"{called(arm)}: {error}")
        checked = [run.summary.get("checked") for run in arm.runs.values()]
        if not all(checked):
            reasons = [OLDER] * (None in checked) + [TURNED_OFF] * (False in checked)
            found.append(
                f"{called(arm)} is unchecked ({' and '.join(reasons)}): nobody knows whether it looks ahead, or decodes"
                " as it was trained."
            )
    return found


def refuse_broken(arms: Sequence[Arm]) -> None:
    """Raise UserError if an arm from before models were checked breaks a law."""
    for arm in arms:
        if any("checked" not in run.summary for run in arm.runs.values()):
            try:
                check_laws(arm.first.config)
            except BrokenLaw as error:
                why = str(error).removesuffix(TURN_OFF)
                raise UserError(f"{called(arm)} can't be compared. {why}") from error
            except UserError:  # a model that can't be built any more stays unchecked, which the report says
                continue


def called(arm: Arm) -> str:
    return arm.name or "The only arm"


def refuse_broken_arm(name: str, cfg: DictConfig) -> None:
    """Raise UserError if an arm's model breaks a law, such as that it may not look ahead, or has a mistake."""
    try:
        check_laws(cfg)
    except (BrokenLaw, Mistake) as error:
        raise UserError(f"Arm {name}: {error}") from error
    except UserError:
        return  # options that don't go together are refused in a trial, with what was typed for it
