"""W&B, held against the files that it writes offline."""

import json
import struct
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from minllm.config.compose import compose
from minllm.errors import UserError
from minllm.files.names import short
from minllm.grid.table import name_for_logger
from minllm.training.loggers import Silent, WandB
from tests.commands import python
from tests.test_readme import TINY
from tests.tiny import tiny_cfg

wandb = pytest.importorskip("wandb")

BLOCK, HEADER = 32768, 7


def records(file: Path):
    """Yield the records of a .wandb file: LevelDB's log format, after 7 bytes that say what it is."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, pending = file.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # a block's rest that is too short for a header is padding
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        pending += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(pending)
            pending = b""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Log a small run offline; return the run's folder and the records of its file."""
    run_dir = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_API_KEY", raising=False)
        patch.setenv("HOME", str(run_dir))
        patch.setenv("NETRC", str(run_dir / "none"))
        logger = WandB(project="tests", mode="auto", group=None)
        line = logger.start(tiny_cfg("model/attn=mqa", "norm=post"), run_dir)
        logger.log({"step": 2, "tokens": 64, "seconds": 0.5, "train_loss": 3.0, "lr": 0.1})
        logger.log({"step": 2, "tokens": 64, "seconds": 0.6, "val_loss": 2.5, "val_bpb": 1.5})
        logger.samples(2, [("Once", " upon a time")])
        logger.log({"step": 4, "tokens": 128, "seconds": 0.9, "train_loss": 2.0, "lr": 0.2})
        logger.samples(4, [("Once", " there was")])
        logger.finish({"val_loss": 2.5, "choices": {"norm": "post"}})
        wandb.teardown()  # waits for the process that writes, as the end of a program does
    (file,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    return run_dir, line, list(records(file))


def run_record(written):
    return next(record.run for record in written[2] if record.WhichOneof("record_type") == "run")


def config(written):
    return {update.key: json.loads(update.value_json) for update in run_record(written).config.update}


def history(written):
    """Every logged row, as {name: value}."""
    rows = [record.history for record in written[2] if record.WhichOneof("record_type") == "history"]
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row.item}
        for row in rows
    ]


def test_without_an_account_it_is_offline_and_says_so(written):
    assert "offline" in written[1] and "no API key" in written[1]


def test_the_configuration_is_nested_and_the_choices_are_keys_and_tags(written):
    assert config(written)["model"]["attn"]["n_heads"] == 4
    assert config(written)["choices"]["attn"] == "mqa" and config(written)["choices"]["norm"] == "post"
    assert {"attn=mqa", "norm=post"} <= set(run_record(written).tags)
    assert "attn=mqa" in run_record(written).run_group
    assert 0 < len(run_record(written).job_type) <= 64


@pytest.fixture
def asked(monkeypatch):
    """What wandb.init is asked, once for each run; nothing is written."""

    class Run:
        url = "https://wandb.example/run"

        def define_metric(self, *args, **options):
            pass

    calls = []
    monkeypatch.setattr(wandb, "init", lambda **options: calls.append(options) or Run())
    return calls


def test_runs_that_differ_in_their_seed_are_one_group_and_one_arm(asked, tmp_path):
    for seed in (0, 1):
        cfg = OmegaConf.merge(tiny_cfg(), {"seed": seed})
        WandB(project="tests", mode="offline", group=None).start(cfg, tmp_path / str(seed))
    one, other = asked
    assert (one["group"], one["job_type"]) == (other["group"], other["job_type"]) and one["id"] != other["id"]


def test_tags_are_the_choices_and_the_words_of_ones_own(asked, tmp_path):
    cfg = OmegaConf.merge(tiny_cfg("norm=post"), {"tags": ["mine", "x" * 100]})
    WandB(project="tests", mode="offline", group=None).start(cfg, tmp_path)
    tags = asked[0]["tags"]
    assert tags[:2] == ["norm=post", "mine"] and max(map(len, tags)) == 64 and len(tags) == 3


def test_tags_are_what_was_typed_or_is_not_the_default(asked, tmp_path):
    WandB(project="tests", mode="offline", group=None).start(compose(["logger=wandb"]), tmp_path)
    words = ["norm=pre", "model/attn=mqa", "task=train", "logger=wandb", "experiment=none", "seed=3"]
    WandB(project="tests", mode="offline", group=None).start(compose(words), tmp_path)
    plain, typed = asked
    assert plain["tags"] == [] and (plain["group"], plain["job_type"]) == ("default", "default")
    assert sorted(typed["tags"]) == ["attn=mqa", "norm=pre"]
    assert typed["config"]["choices"]["schedule"] == "cosine"


def test_a_long_name_is_cut_and_stays_its_own():
    assert short("x" * 64, 64) == "x" * 64
    assert len(short("x" * 65, 64)) == 64 and short("x" * 65, 64) != short("x" * 66, 64)


@pytest.mark.parametrize(
    ("varied", "arm"),
    [
        (["model/attn=mqa", "seed=1"], "model/attn=mqa"),
        (["model/attn=mqa", "optim.lr=0.1"], "model/attn=mqa optim.lr=0.1"),
        (["seed=1"], None),
    ],
)
def test_a_grid_is_one_group_of_its_arms(varied, arm):
    cfg = compose(["logger=wandb"])
    name_for_logger(cfg, "a grid", varied)
    assert (cfg.logger.group, cfg.logger.job_type) == ("a grid", arm)


def test_a_grid_keeps_the_names_that_were_given():
    cfg = compose(["logger=wandb", "logger.group=mine", "logger.job_type=old"])
    name_for_logger(cfg, "a grid", ["seed=1"])
    assert (cfg.logger.group, cfg.logger.job_type) == ("mine", "old")
    silent = compose()
    name_for_logger(silent, "a grid", ["seed=1"])
    assert "group" not in silent.logger


@pytest.mark.slow  # a grid
def test_run_py_names_the_runs_of_a_grid(tmp_path):
    words = ["-m", "model/attn=mha,mqa", "logger=wandb", "logger.mode=offline", *TINY, "train.steps=2"]
    done = python("run.py", *words, cwd=tmp_path, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    (grid,) = tmp_path.glob("outputs/*/*-grid-*")
    runs = [
        next(record.run for record in records(file) if record.HasField("run"))
        for file in grid.glob("*/wandb/offline-run-*/run-*.wandb")
    ]
    (group,) = {run.run_group for run in runs}
    assert group.startswith(f"{grid.parent.name} ") and group.endswith(" attn=mha,mqa")
    assert sorted(run.job_type for run in runs) == ["model/attn=mha", "model/attn=mqa"]


def test_metrics_have_steps_and_tokens_as_axes(written):
    rows = [row for row in history(written) if "train_loss" in row]
    assert [(row["_step"], row["tokens"], row["train_loss"]) for row in rows] == [(2, 64, 3.0), (4, 128, 2.0)]
    assert any(row.get("val_bpb") == 1.5 and row["_step"] == 2 for row in history(written))
    metrics = [record.metric for record in written[2] if record.WhichOneof("record_type") == "metric"]
    assert any(metric.glob_name == "*" and metric.step_metric == "tokens" for metric in metrics)


def test_samples_are_a_table(written):
    tables = [json.loads(path.read_text()) for path in written[0].rglob("*.table.json")]
    rows = [row for table in tables for row in table["data"]]
    assert [2, "Once", " upon a time"] in rows and [4, "Once", " there was"] in rows
    assert tables[0]["columns"] == ["step", "prompt", "text"]


def test_the_summary_is_that_of_the_run(written):
    updates = {}
    for record in written[2]:
        if record.WhichOneof("record_type") == "summary":
            updates |= {item.key: json.loads(item.value_json) for item in record.summary.update}
    assert updates["val_loss"] == 2.5


def test_an_api_key_means_online_and_is_not_written(asked, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret-of-forty-characters")
    line = WandB(project="tests", mode="auto", group="mine").start(tiny_cfg(), tmp_path)
    assert asked[0]["mode"] == "online" and asked[0]["group"] == "mine" and "https://wandb.example" in line
    assert "secret" not in str(asked) + line


def test_no_logger_writes_nothing(tmp_path):
    logger = Silent()
    assert logger.start(tiny_cfg(), tmp_path) is None
    logger.log({"step": 1})
    logger.samples(1, [("", "text")])
    logger.finish({})
    assert not list(tmp_path.iterdir())


class Down:
    """A run of W&B's whose service has gone."""

    url = "https://wandb.example/run"
    summary: dict = {}

    def define_metric(self, *args, **options):
        pass

    def log(self, *args, **options):
        raise ConnectionResetError("the service\x1b[31m is down")

    def finish(self, **options):
        raise wandb.Error("the service is down")


def test_a_service_that_fails_while_a_run_trains_is_told_once_and_costs_nothing(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(wandb, "init", lambda **options: Down())
    logger = WandB(project="tests", mode="offline", group=None)
    logger.start(tiny_cfg(), tmp_path)
    for step in (1, 2):
        logger.log({"step": step})
        logger.samples(step, [("", "text")])
    logger.finish({})
    assert capsys.readouterr().out.count("Weights & Biases failed: the service\\x1b[31m is down") == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"project": "a/b"}, "Invalid project name"),
        ({"project": "x" * 200}, "128 characters"),
        ({"tags": [""]}, "Tag at index"),
        ({"key": "short"}, "40\\+ characters"),
    ],
    ids=str,
)
def test_what_the_service_refuses_is_a_sentence_and_leaves_nothing(tmp_path, monkeypatch, changed, said):
    changed = dict(changed)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", changed.pop("key", "k" * 40))
    cfg = OmegaConf.merge(tiny_cfg(), {"tags": changed.pop("tags", [])})
    run = tmp_path / "run"
    run.mkdir()
    mode = "online" if "40" in said else "offline"
    logger = WandB(**{"project": "tests", "mode": mode, "group": None, **changed})
    with pytest.raises(UserError, match=f"Weights & Biases can't be used: .*{said}.*logger=none"):
        logger.start(cfg, run)
    assert not list(run.iterdir())


def test_what_a_failed_start_has_written_is_removed_again(tmp_path, monkeypatch):
    (tmp_path / "wandb/offline-run-1").mkdir(parents=True)
    (tmp_path / "wandb/latest-run").symlink_to("offline-run-1")

    def init(**options):
        (tmp_path / "wandb/run-2/files").mkdir(parents=True)
        (tmp_path / "wandb/latest-run").unlink()
        (tmp_path / "wandb/latest-run").symlink_to("run-2")
        raise wandb.errors.CommError("no such host")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(UserError, match="no such host"):
        WandB(project="tests", mode="offline", group=None).start(tiny_cfg(), tmp_path)
    assert sorted(path.name for path in (tmp_path / "wandb").iterdir()) == ["latest-run", "offline-run-1"]
    assert (tmp_path / "wandb/latest-run").readlink() == Path("offline-run-1")
