"""Whether the runs of arms can be compared by a metric, which is checked before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from omegaconf import DictConfig

from minllm.data.probe import Probe
from minllm.errors import UserError
from minllm.schema.building import build
from minllm.study.metric import METRICS, Metric, Name, up_to_early_ends
from minllm.training.answers import refuse_hidden_answers, why_none


def metric_of(name: Name, cfgs: Mapping[str, DictConfig]) -> Metric:
    """Return the metric of a verdict about these arms. UserError if their runs wouldn't have it, or not alike."""
    for arm, cfg in cfgs.items():
        if METRICS[name].is_share and (why := why_without(name, cfg)):
            raise UserError(
                f"search.metric={name} needs runs with a {name}, and those of arm {arm} would have none: {why}. Choose"
                " search.metric=val_bpb, or data with answers, such as data=probe/mqar_small."
            )
    refuse_early_ends(name, cfgs.values())
    return up_to_early_ends(METRICS[name], cfgs.values())


def why_without(name: Name, cfg: DictConfig) -> str | None:
    """Return why a run has no such accuracy, as a clause; None if it has one. UserError if it can't be trained."""
    source, objective = build(cfg.data), build(cfg.objective)
    refuse_hidden_answers(source, objective)
    if why := why_none(source, objective):
        return why
    has_several = name == "val_exact" and isinstance(source, Probe) and not source.has_unique_answers
    return "answers other than the one that is learned may be right" if has_several else None


def refuse_early_ends(name: Name, cfgs: Iterable[DictConfig]) -> None:
    """Raise UserError if runs may end after different numbers of steps, unless what they are compared by allows it."""
    ends = [cfg.train.stop_at_accuracy for cfg in cfgs]
    if any(ends) and name != "val_accuracy":
        raise UserError(
            f"train.stop_at_accuracy={next(filter(None, ends)):g} ends runs after different numbers of steps, after"
            f" which {name} can't be compared. Leave it out."
        )
    if len(set(ends)) > 1:
        raise UserError(
            "All arms must end at the same accuracy: put train.stop_at_accuracy outside arms, or leave it out."
        )
