"""Whether an arm's metrics can be trusted: its model obeys the laws, and its loss isn't below the corpus's floor."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from minllm.data.floor import below_floor
from minllm.errors import UserError
from minllm.laws.laws import TURN_OFF, BrokenLaw, check_laws
from minllm.model.contract import Mistake
from minllm.schema.checking import validate
from minllm.study.arms import Arm

OLDER = "trained by an older minllm that didn't check models"
TURNED_OFF = "trained with train.check=false"


def impossible(arm: Arm) -> str | None:
    """Return the error message if an arm is below the corpus's floor, else None."""
    errors = (below_floor(run.summary) for run in arm.runs.values())
    return next(filter(None, errors), None)


def warnings(arms: Sequence[Arm]) -> list[str]:
    """Return a warning for each arm that can't be trusted."""
    sentences = []
    for arm in arms:
        if error := impossible(arm):
            sentences.append(f"{arm_name(arm)}: {error}")
        checked = [run.summary.get("checked") for run in arm.runs.values()]
        if not all(checked):
            reasons = [OLDER] * (None in checked) + [TURNED_OFF] * (False in checked)
            sentences.append(
                f"{arm_name(arm)} is unchecked ({' and '.join(reasons)}): it may look ahead, or decode differently from"
                " how it was trained."
            )
    return sentences


def refuse_broken(arms: Sequence[Arm]) -> None:
    """Raise UserError if an arm whose model wasn't checked when it was trained breaks a law."""
    for arm in arms:
        if any("checked" not in run.summary for run in arm.runs.values()):
            try:
                validate(arm.first.config)
                check_laws(arm.first.config)
            except BrokenLaw as error:
                why = str(error).removesuffix(TURN_OFF)
                raise UserError(f"{arm_name(arm)} can't be compared. {why}") from error
            except (
                UserError
            ):  # a model that can no longer be built stays unchecked, and the report warns about it
                continue


def arm_name(arm: Arm) -> str:
    return arm.name or "The only arm"


def refuse_broken_arm(name: str, cfg: DictConfig) -> None:
    """Raise UserError if an arm's model breaks a law, for example by looking ahead, or has a mistake."""
    try:
        validate(cfg)
        check_laws(cfg)
    except (BrokenLaw, Mistake) as error:
        raise UserError(f"Arm {name}: {error}") from error
    except UserError:
        return  # incompatible options are rejected by the trial itself, which names its overrides
