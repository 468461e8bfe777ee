"""Ctrl-C at any moment and any number of times, and what the progress bar shows."""

import io
import os
import signal

import pytest
import tqdm

from minllm.training import checkpoints, loop
from minllm.training.budget import ENDLESS, Budget
from minllm.training.checkpoints import Progress
from minllm.training.interruption import Interruption
from minllm.training.loggers import Silent
from minllm.training.loop import fit
from minllm.training.progress import ProgressBar, time_left
from tests.test_loop import figures, make_run, resumed


@pytest.fixture(autouse=True)
def usual_handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def press(times=1):
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_second_signal_acts_as_usual():
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption:
        press()
        assert interruption.signal == signal.SIGINT
        press()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_while_a_checkpoint_is_written_no_signal_stops_it(tmp_path, monkeypatch):
    save, saved = checkpoints.save, []

    def interrupted(folder, model, optimizer, progress, *options):
        press(4)
        save(folder, model, optimizer, progress, *options)
        press(4)
        saved.append(progress.step)

    run = make_run(tmp_path / "parts", eval_every=0)

    class Stop(Silent):
        def log(self, event):
            if event["step"] == 2:
                press()

    run.logger = Stop()
    monkeypatch.setattr(loop.checkpoints, "save", interrupted)
    assert fit(run) == signal.SIGINT
    assert saved == [2]
    monkeypatch.undo()
    fit(resumed(tmp_path / "parts", eval_every=0))
    fit(make_run(tmp_path / "whole", eval_every=0))
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")


def test_stopped_in_the_last_step_a_run_is_whole(tmp_path):
    run = make_run(tmp_path)

    class Stop(Silent):
        def log(self, event):
            if event["step"] == 8 and "val_loss" in event:
                press()

    run.logger = Stop()
    assert fit(run) is None and checkpoints.is_saved(run.folder.checkpoints, 8)


# ---- the progress bar ----------------------------------------------------------------------------


@pytest.fixture
def shown(monkeypatch):
    """Return what a terminal of some width shows of a run that is at some step."""

    def show(columns, step, budget, seconds=10.0):
        screen = io.StringIO()
        progress = Progress(step=step, seconds=seconds, timed_steps=step - 1, timed_seconds=seconds)
        progress.position = float(step)
        monkeypatch.setattr(tqdm.std, "_screen_shape_wrapper", lambda: lambda file: (columns, 30))
        bar = ProgressBar(shown=True, file=screen)
        bar.show(progress, budget, 3.21, 12345.6)
        bar.refresh()
        bar.close()
        return [line for line in screen.getvalue().split("\r") if "step" in line or "Training" in line]

    return show


def budget(steps=None, seconds=None, total=100):
    return Budget(steps, seconds, total if steps or seconds is None else ENDLESS)


@pytest.mark.parametrize("columns", [10, 20, 30, 40, 60, 80, 200])
@pytest.mark.parametrize("of", [budget(steps=100), budget(seconds=60.0)], ids=["steps", "minutes"])
def test_the_bar_stays_on_one_line(shown, columns, of):
    lines = shown(columns, 59, of)
    assert lines and all(len(line.rstrip("\n")) <= columns and "\n" not in line.strip() for line in lines)


def test_the_bar_says_how_much_time_is_left_where_that_is_known(shown):
    line = shown(120, 59, budget(steps=100))[-1]
    assert " 59%|" in line and "00:07 left, step 59, loss 3.210, 12,346 tokens/s" in line
    line = shown(120, 3, budget(seconds=70.0))[-1]
    assert "01:00 left, step 3" in line and "%" not in line


def test_a_time_that_is_not_known_is_not_shown(shown):
    line = shown(120, 1, budget(steps=100))[-1]
    assert "left" not in line and ", ," not in line and "| step 1, loss" in line
    assert time_left(Progress(step=1, seconds=1.0), budget(steps=100)) == ""
