"""Whether a difference holds for other texts: hand-computed examples, resampling as an oracle, and damaged files."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t as student

from minllm.runs.documents import DOCUMENTS, DocumentLosses
from minllm.study.documents import two_way
from minllm.study.intervals import mean_of
from minllm.study.report import summary, write_report
from minllm.study.report.measures import conclusion
from tests.comparisons import comparison, with_documents


def test_two_way_by_hand():
    """Two seeds and two documents of one byte: the mean is 5, seeds ±1, documents ±2, and nothing remains."""
    found = two_way(np.array([[2.0, 6.0], [4.0, 8.0]]), np.ones(2))
    t = 12.7062
    assert found.over_seeds.value == 5 and found.documents == 2 and found.won == 0
    assert found.over_seeds.interval == pytest.approx((5 - t, 5 + t), rel=1e-4)
    assert found.over_documents.interval == pytest.approx((5 - 2 * t, 5 + 2 * t), rel=1e-4)
    # the variances 1 and 4 add up; the mean squares are 4 and 16, with Satterthwaite's degrees of freedom
    half = math.sqrt(5) * student.ppf(0.975, 20**2 / (4**2 + 16**2))
    assert found.over_both.interval == pytest.approx((5 - half, 5 + half))


def test_larger_documents_weigh_more():
    bits, sizes = np.array([[10.0, 0.0]] * 3), np.array([10.0, 90.0])
    assert two_way(bits, sizes).over_seeds.value == pytest.approx(0.1)


def simulated(random, seeds=8, documents=120, mean=-0.03, sd=(0.01, 0.05, 0.05)):
    sizes = random.integers(200, 1200, documents).astype(float)
    rates = mean + sd[0] * random.standard_normal((seeds, 1)) + sd[1] * random.standard_normal(documents)
    return (rates + sd[2] * random.standard_normal((seeds, documents))) * sizes, sizes


def test_the_interval_is_that_of_resampling_seeds_and_documents():
    random = np.random.default_rng(0)
    bits, sizes = simulated(random, seeds=30, documents=60, sd=(0.02, 0.15, 0.02))
    of_seeds = random.multinomial(30, np.full(30, 1 / 30), 4000)
    of_documents = random.multinomial(60, np.full(60, 1 / 60), 4000)
    draws = ((of_seeds / 30 @ bits) * of_documents).sum(1) / (of_documents @ sizes)
    low, high = two_way(bits, sizes).over_both.interval
    assert (high - low) / np.ptp(np.quantile(draws, [0.025, 0.975])) == pytest.approx(1, abs=0.1)


def test_only_the_interval_over_both_covers_the_mean_of_other_seeds_and_texts():
    random, covered = np.random.default_rng(4), np.zeros(3)
    for _ in range(200):
        found = two_way(*simulated(random))
        each = (found.over_seeds, found.over_documents, found.over_both)
        covered += [one.interval[0] <= -0.03 <= one.interval[1] for one in each]
    seeds, documents, both = covered / 200
    assert seeds < 0.9 and documents < 0.9 and 0.9 <= both <= 0.99


def test_one_seed_or_one_document_has_no_interval_of_both():
    bits, sizes = simulated(np.random.default_rng(0))
    one_seed, one_document = two_way(bits[:1], sizes), two_way(bits[:, :1], sizes[:1])
    assert one_seed.over_seeds.interval == one_seed.over_both.interval == (-math.inf, math.inf)
    assert math.isfinite(one_seed.over_documents.interval[0])
    assert one_document.over_both.interval == one_document.over_documents.interval == (-math.inf, math.inf)
    assert conclusion(one_seed, ("better", "worse")) == "too few seeds or documents"


@pytest.mark.parametrize("spread, said", [(0.0, "better on such texts"), (0.3, "not shown for other texts")])
def test_better_on_this_text_and_on_such_texts_are_told_apart(tmp_path, spread, said):
    one = with_documents(comparison(tmp_path, {"pre": 2.0, "none": 1.9}), spread)
    (found,) = one.measures
    assert found.by_document.documents == 40
    assert found.by_document.over_seeds.value == pytest.approx(one.contests[0].verdict.difference, abs=1e-5)
    of_pairs = mean_of(list(one.contests[0].differences.values()))
    assert found.by_document.over_seeds.interval == pytest.approx(of_pairs.interval, abs=1e-5)
    assert said in summary(one).lower()
    write_report(one, tmp_path / "report", [])
    assert all(said in (tmp_path / "report" / f"report.{kind}").read_text() for kind in ("html", "md"))


def test_a_run_of_an_older_version_has_no_documents(tmp_path):
    one = comparison(tmp_path, {"pre": 2.0, "none": 1.9})
    assert one.measures[0].by_document is None and "none-0 has no loss" in one.measures[0].no_documents


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "isn't a safetensors file"),
        (b"\xff" * 100, "isn't a safetensors file"),
        (DocumentLosses(np.ones(3), np.ones(3)).to_bytes()[:-4], "isn't a safetensors file"),
        (DocumentLosses(np.array([1.0, math.nan]), np.ones(2)).to_bytes(), "out of range"),
        (DocumentLosses(np.ones(3), np.ones(2)).to_bytes(), "type and shape"),
        (DocumentLosses(np.ones(0), np.ones(0)).to_bytes(), "out of range"),
        (DocumentLosses(np.ones(3), np.ones(3)).to_bytes(), "but its summary.json"),
    ],
)
def test_a_damaged_file_of_documents_is_named(tmp_path, content, said):
    one = with_documents(comparison(tmp_path, {"pre": 2.0, "none": 1.9}))
    folder = one.arms[0].runs[2].folder
    (folder / DOCUMENTS).write_bytes(content)
    found = one.measures[0]
    assert found.by_document is None and said in found.no_documents and str(folder) in found.no_documents


def test_documents_of_other_sizes_are_not_compared(tmp_path):
    one = with_documents(comparison(tmp_path, {"pre": 2.0, "none": 1.9}))
    run = one.arms[1].runs[3]
    known = run.documents
    other = DocumentLosses(known.nats[::-1], known.bytes[::-1])
    (run.folder / DOCUMENTS).write_bytes(other.to_bytes())
    del vars(run)["documents"]
    assert "different sizes" in one.measures[0].no_documents
