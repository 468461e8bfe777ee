"""A comparison as a report at Weights & Biases: its text and the curves of its arms, next to the runs themselves."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re

from minllm.errors import first_line
from minllm.study.comparison import Comparison
from minllm.training.loggers import GROUP_LIMIT, has_api_key, short

TITLE_LIMIT = 128


def publish_if_mirrored(comparison: Comparison, markdown: str) -> str | None:
    """Make a report if Weights & Biases has the runs, and return a message about it; None if it doesn't have them."""
    loggers = [run.cfg.get("logger") or {} for arm in comparison.arms for run in arm.runs.values()]
    projects = {(logger["project"], logger.get("group")) for logger in loggers if "project" in logger}
    if not projects or any(logger.get("mode") == "offline" for logger in loggers):
        return None
    if len(projects) > 1 or None in next(iter(projects)):
        return "W&B: no report, because the runs aren't in one group. Train them with the same logger.group=<name>."
    ((project, group),) = projects
    return publish(project=project, entity=None, group=group, title=comparison.headline, markdown=markdown)


def publish(*, project: str, entity: str | None, group: str, title: str, markdown: str) -> str:
    """Make a report of a finished comparison, and return a line with its address, or with the reason for its absence.

    The comparison is valid without the report, so errors aren't raised.

    Args:
        project: where the runs are.
        entity: the user or team that owns the project; None is the account's default.
        group: the runs' group, as `logger.group` names it.
        title: the report's heading.
        markdown: the report's text, above the curves.
    """
    if importlib.util.find_spec("wandb_workspaces") is None:
        return "W&B: no report, because wandb-workspaces isn't installed. Type: pip install -e '.[wandb]'"
    if not has_api_key():
        return "W&B: no report, because there is no API key. Type: wandb login"
    try:
        # the library prints the address to stderr too
        with contextlib.redirect_stderr(io.StringIO()):
            address = _save(project, entity, group, title, markdown)
    except Exception as error:  # any error of the service, the network or the library
        return f"W&B: no report, because of an error: {without_secrets(first_line(error))}"
    return f"W&B: the report is at {address}"


def _save(project: str, entity: str | None, group: str, title: str, markdown: str) -> str:
    """Write the report, and return its address."""
    import wandb
    import wandb_workspaces.reports.v2 as reports

    entity = entity or wandb.Api().default_entity
    runs = reports.Runset(
        entity=entity,
        project=project,
        name=group,
        filters=f"Metric('Group') == {short(group, GROUP_LIMIT)!r}",
        groupby=["JobType"],
    )
    curves = reports.LinePlot(
        title="Bits per byte on the validation set: each arm's mean, and its seeds' range",
        x="tokens",
        y=["val_bpb"],
        groupby="JobType",
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        layout=reports.Layout(w=24, h=12),
    )
    blocks = [reports.MarkdownBlock(markdown), reports.PanelGrid(runsets=[runs], panels=[curves])]
    report = reports.Report(project=project, entity=entity, title=title[:TITLE_LIMIT], blocks=blocks)
    return report.save().url


def without_secrets(text: str) -> str:
    """Return a message without anything that may be an API key or a password in a URL."""
    text = re.sub(r"//[^/@\s]+@", "//…@", text)
    return re.sub(r"[\w-]{40,}", "…", text)
