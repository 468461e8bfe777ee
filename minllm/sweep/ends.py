"""The outcome of a trial whose process recorded none: a signal, its launcher or a limit ended it."""

from __future__ import annotations

import contextlib
import io
import re
import signal
from concurrent.futures import Future
from pathlib import Path

from hydra.core.utils import JobReturn

from minllm.errors import UserError, first_line
from minllm.runs.outcome import OF_THE_LAUNCHER, OUTPUT, TOO_LONG, Outcome
from minllm.sweep.processes import NO_ROOM, ProcessDied, ServerDied

TAIL = 4000  # characters of a trial's output that are shown


def without_outcome(future: Future[JobReturn], run_dir: Path) -> Outcome:
    """Return the outcome of a trial whose process recorded none.

    Raises:
        UserError: the disk is full, or no more trials can run.
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # Hydra prints a line of its own before it raises
            future.result().return_value  # noqa: B018
        return crashed("Its process ended normally but recorded no outcome", run_dir)
    except ProcessDied as death:
        return outcome_of(death, run_dir)
    except ServerDied:
        raise UserError(
            "The process that starts trials has died; it may have been killed. Run the same command again to"
            " continue."
        ) from None
    except Exception as error:
        return outcome_of_job(error, run_dir)


def outcome_of(death: ProcessDied, run_dir: Path) -> Outcome:
    if death.status == NO_ROOM:
        raise no_room(run_dir)
    if death.timed_out:
        return Outcome("pruned", reason="time", text=TOO_LONG)
    if death.killed_for_memory:
        return Outcome(
            "pruned", reason="killed", text="The kernel killed it because the machine ran out of memory."
        )
    if death.status == -signal.SIGABRT and "bad_alloc" in output_tail(run_dir):
        return Outcome("pruned", reason="memory", text="It ran out of memory in code that can't report it.")
    how = f"exit code {death.status}" if death.status > 0 else signal.Signals(-death.status).name
    return crashed(f"Its process ended with {how}", run_dir)


def outcome_of_job(error: Exception, run_dir: Path) -> Outcome:
    """Return why a trial ended from its launcher's error, which is appended to the trial's output."""
    message = f"{type(error).__name__}: {error}"
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / OUTPUT).open("a", encoding="utf-8") as output:
        output.write(message + "\n")
    state = re.search(r"\(state: (\w+)", message)  # Slurm's job state
    if "timed-out too many times" in message or (state and state[1] == "TIMEOUT"):
        return Outcome("pruned", reason="time", text=OF_THE_LAUNCHER)
    if type(error).__name__ == "OutOfMemoryError" or (state and state[1] == "OUT_OF_MEMORY"):
        return Outcome("pruned", reason="killed", text="Its launcher killed it because it ran out of memory.")
    text = f"{type(error).__name__}: {first_line(error)}. See {run_dir / OUTPUT}."
    return Outcome("failed", reason="crash", text=text)


def no_room(folder: Path) -> UserError:
    return UserError(
        f"The disk is full at {folder}. Free some space and run the same command again to continue."
    )


def crashed(text: str, run_dir: Path) -> Outcome:
    return Outcome("failed", reason="crash", text=f"{text}. See {run_dir / OUTPUT}.")


def output_tail(run_dir: Path) -> str:
    try:
        return (run_dir / OUTPUT).read_text(encoding="utf-8", errors="replace")[-TAIL:]
    except FileNotFoundError:
        return ""
