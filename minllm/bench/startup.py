"""The time from the command to the first logged step."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from minllm.schema.groups import HOME as ROOT

TINY = [
    "train.steps=1",
    "train.batch_size=2",
    "train.compile=false",
    "train.precision=fp32",
    "train.device=cpu",
]


def first_step_seconds(overrides: list[str] = TINY) -> float:
    """Return the seconds from starting `python run.py` to the first line of its metrics; the run is then killed.

    Raises:
        RuntimeError: the run ended before its first step.
    """
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder, "run", "metrics.jsonl")
        command = [sys.executable, str(ROOT / "run.py"), f"hydra.run.dir={metrics.parent}", *overrides]
        with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
            begun = time.perf_counter()
            process = subprocess.Popen(command, stdout=said, stderr=said)
            try:
                while not (metrics.exists() and metrics.stat().st_size):
                    if process.poll() is not None:
                        said.seek(0)
                        raise RuntimeError(f"the run ended before its first step:\n{said.read()[-4000:]}")
                    time.sleep(0.005)
                return time.perf_counter() - begun
            finally:
                process.kill()
                process.wait()


def import_seconds() -> float:
    """Return the seconds that `python -c "import torch"` takes."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - begun
