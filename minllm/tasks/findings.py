"""`python run.py task=findings`: every published finding in conf/finding, and what became of it here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from omegaconf import DictConfig, OmegaConf

from minllm.errors import UserError, printable
from minllm.files.atomic import write_text
from minllm.page.terminal import answer
from minllm.schema.building import build
from minllm.schema.groups import CONF, find_groups
from minllm.schema.options import Place, reads
from minllm.study.findings.page import Entry, in_a_terminal, to_html, to_markdown
from minllm.study.findings.rows import Row, read
from minllm.verdict.finding import entry
from minllm.verdict.finding_protocol import Finding, Preset


@reads()
def findings(cfg: DictConfig, run_dir: Path, *, ledger: Place) -> list[Row]:
    """Print the findings as a table, and write findings.html and findings.md.

    Args:
        run_dir: where the pages are written.
        ledger: the file of tests that the pages are made from.

    Raises:
        UserError: the ledger doesn't exist, or is damaged.
        OSError: the pages can't be written.
    """
    path = Path(ledger)
    if not path.exists():
        raise UserError(
            f"There is no {path}: no finding has been tested in this folder yet. Test one, such as: python sweep.py"
            " search=finding finding=gated_mlp"
        )
    rows = published(read(path))
    entries = entries_of(rows)
    pages = {"findings.html": to_html(entries, rows), "findings.md": to_markdown(entries, rows)}
    run_dir.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        write_text(run_dir / name, text)
    print(printable("\n".join(in_a_terminal(entries, rows))))
    print(f"The pages are {' and '.join(str(run_dir / name) for name in pages)}")
    answer({"status": "read", "findings": [asdict(row) for row in rows]})
    return rows


def published(rows: Sequence[Row]) -> list[Row]:
    """Return the tests of findings as their files have them, without those that the command line changed."""
    return [row for row in rows if not row.typed]


def entries_of(rows: Sequence[Row]) -> list[Entry]:
    """Return every finding of conf/finding, with a preset other than the first only if it was tested."""
    entries = []
    tested = {row.digest for row in rows}
    for name in find_groups()["finding"]:
        finding = finding_of(name)
        first, *others = (entry(name, finding, preset) for preset in get_args(Preset))
        entries += [first, *(other for other in others if other.digest in tested - {first.digest})]
    return entries


def finding_of(name: str) -> Finding:
    cfg = OmegaConf.create({"finding": OmegaConf.load(CONF / f"finding/{name}.yaml")})
    return build(cfg.finding)
