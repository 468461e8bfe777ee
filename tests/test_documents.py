"""The loss of each validation document, which a run records at its end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import minllm
from minllm.config.compose import perform
from minllm.data.batches import Validation, open_data
from minllm.data.store import Documents
from minllm.objective.causal import Causal
from minllm.runs.documents import DOCUMENTS, DocumentLosses
from minllm.runs.folder import RunDir
from minllm.schema.building import build
from minllm.training import checkpoints
from minllm.training.evaluation import evaluate
from tests.tiny import unjudged

WORDS = [
    *("tokenizer=tales_512", "data.train_stories=40", "data.val_stories=5", "data.seq_len=32"),
    *("model.dim=16", "model.n_layers=1", "train.steps=4", "train.batch_size=4", "train.device=cpu"),
    *(
        "train.precision=fp32",
        "train.compile=false",
        "train.check=false",
        "sample.max_new_tokens=4",
        "schedule=constant",
    ),
]


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return [*WORDS, f"data.cache={tmp_path / 'stores'}"]


def train(words, *more, run_dir):
    return minllm.train(unjudged(*words, *more), Path(run_dir))


def recorded(run) -> DocumentLosses:
    return DocumentLosses.from_bytes(Path(run, DOCUMENTS).read_bytes())


def loaded(run):
    """Return a run's last model, its objective, its validation set and its tokenizer."""
    model, tokenizer, cfg = checkpoints.load(run, which="last")
    corpus = open_data(build(cfg.data), tokenizer)
    return model, build(cfg.objective), corpus, tokenizer


def test_a_run_records_each_document(words):
    summary = train(words, run_dir="run")
    found = recorded("run")
    assert len(found.nats) == 5 and found.bpb == pytest.approx(summary["val_bpb"], rel=1e-6)
    model, objective, corpus, tokenizer = loaded("run")
    documents, validation = corpus.store.split("val"), corpus.validation(3)
    ends = [*zip(documents.starts, documents.starts[1:])]
    texts = [tokenizer.decode(documents.tokens[start:end]) for start, end in ends]
    assert found.bytes.tolist() == [len(text.encode()) for text in texts]
    for place, (start, end) in enumerate(ends):
        length = documents.lengths[[place]]
        tokens = documents.tokens[start : end + 1]
        one = Documents(tokens, np.array([0, len(tokens) - 1]), length, len(texts[place].encode()))
        by_itself = Validation(one, 32, 16, tokenizer.pad_id, batch_size=1)
        nats = evaluate(model, objective, by_itself, torch.device("cpu"), "fp32")["val_loss"] * length
        assert found.nats[place] == pytest.approx(nats.item(), rel=1e-5)
    assert len(validation.windows.starts) > 20  # documents have several windows, which overlap


def test_recording_changes_no_metric(words):
    train(words, run_dir="run")
    model, objective, corpus, _ = loaded("run")
    for rows in (1, 3, 64):
        nats = np.zeros(5)
        validation = corpus.validation(rows)
        arguments = model, objective, validation, torch.device("cpu"), "fp32"
        assert evaluate(*arguments, nats) == evaluate(*arguments)
        assert nats == pytest.approx(recorded("run").nats, rel=1e-5)


def test_every_seed_and_packing_has_the_documents_in_the_same_order(words):
    for run, more in {
        "a": ["seed=1"],
        "b": ["seed=2", "data.packing=pack"],
        "c": ["tokenizer=bytes"],
    }.items():
        train(words, *more, run_dir=run)
    assert recorded("a").bytes.tolist() == recorded("b").bytes.tolist() == recorded("c").bytes.tolist()
    assert not np.array_equal(recorded("a").nats, recorded("b").nats)


def test_a_resumed_run_records_what_a_whole_one_does(words):
    train(words, "train.steps=6", run_dir="whole")
    train(words, run_dir="parts")
    shorter = recorded("parts")
    minllm.train(minllm.compose(["resume=parts", "train.steps=6"]))
    assert np.array_equal(recorded("parts").nats, recorded("whole").nats)
    assert not np.array_equal(recorded("parts").nats, shorter.nats)


def test_a_run_killed_after_its_last_evaluation_has_its_documents(words, monkeypatch):
    """The line of metrics is there, so the resumed run doesn't evaluate again."""

    def killed(self, summary):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunDir, "summary", killed)
        train(words, run_dir="run")
    summary = minllm.train(minllm.compose(["resume=run"]))
    assert recorded("run").bpb == pytest.approx(summary["val_bpb"], rel=1e-6)


def test_a_run_killed_before_its_last_line_of_metrics_evaluates_again(words, monkeypatch):
    def killed(self, event):
        if "val_loss" in event:
            raise KeyboardInterrupt

    train(words, "train.steps=2", run_dir="run")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunDir, "event", killed)
        minllm.train(minllm.compose(["resume=run", "train.steps=4"]))
    summary = minllm.train(minllm.compose(["resume=run", "train.steps=4"]))
    assert recorded("run").bpb == pytest.approx(summary["val_bpb"], rel=1e-6)


def test_only_the_run_itself_writes_the_file(words):
    train(words, run_dir="run")
    before = Path("run", DOCUMENTS).read_bytes()
    train(words, "init_from=run", "train.steps=1", "seed=5", run_dir="second")
    perform(minllm.compose(["task=evaluate", "run=run", "data.val_stories=3"]), Path("unused"))
    assert Path("run", DOCUMENTS).read_bytes() == before
    assert recorded("second").bpb != recorded("run").bpb and len(recorded("second").nats) == 5


def test_memory_that_runs_out_counts_no_document_twice(words, monkeypatch):
    genuine, calls = Causal.nats, []

    def hungry(self, model, batch, noise):
        calls.append(len(batch.tokens_BT))
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return genuine(self, model, batch, noise)

    train(words, run_dir="plain")
    monkeypatch.setattr(Causal, "nats", hungry)
    train(words, run_dir="run")
    assert calls[:4] == [4, 4, 4, 2]
    assert recorded("run").nats == pytest.approx(recorded("plain").nats, rel=1e-5)


def test_the_file_is_small():
    assert len(DocumentLosses(np.ones(2000), np.ones(2000)).to_bytes()) < 16_500
