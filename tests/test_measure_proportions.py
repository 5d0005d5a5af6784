"""Intervals of shares, and whether two models differ on the same samples."""

import math
from dataclasses import replace

import numpy as np
import pytest

from deploypruner.measure import evaluate
from deploypruner.measure.proportions import changed, share_interval
from deploypruner.records import AccuracyChange
from deploypruner.report import table_rows, units
from tests.test_measure_quality import FIRST, SECOND, THIRD, Doubles, scores
from tests.test_report_examples import a_row, rows_on

Z = 1.959963984540054


def which(right, wrong):
    return np.array([True] * right + [False] * wrong)


@pytest.mark.parametrize(("right", "wrong"), [(0, 7), (358, 2), (3, 4), (50, 0)])
def test_an_interval_is_wilsons(right, wrong):
    n, share = right + wrong, right / (right + wrong)
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    assert share_interval(which(right, wrong), whole=100) == pytest.approx(
        (100 * (centre - half), 100 * (centre + half)), abs=1e-9
    )


def test_five_samples_to_none_prove_nothing_and_six_do():
    """Of pairs that differ, each is a toss of a coin: 2 / 2^5 = 0.0625, 2 / 2^6 = 0.03125."""
    same = which(90, 10)
    neither = "indistinguishable"
    for count, p, better, worse in [(5, 0.0625, neither, neither), (6, 0.03125, "better", "worse")]:
        more = np.concatenate([which(0, count), same]), np.concatenate([which(count, 0), same])
        assert changed(more[1], more[0]) == AccuracyChange(count, 0, p, better)
        assert changed(more[0], more[1]) == AccuracyChange(0, count, p, worse)


def test_a_model_compared_with_itself_is_not_different():
    assert changed(which(3, 1), which(3, 1)) == AccuracyChange(0, 0, 1.0, "indistinguishable")


def test_a_judged_artifact_has_n_intervals_and_a_verdict():
    batches = [([scores(FIRST, SECOND)], np.array([0, 1])), ([scores(THIRD, THIRD)], np.array([2, 0]))]
    reference = [[scores(FIRST, FIRST)], [scores(FIRST, THIRD)]]
    quality = evaluate(Doubles(), batches, reference=reference)
    assert quality.accuracy_ci == share_interval(which(3, 1), whole=100)
    assert quality.agreement_ci == share_interval(which(2, 2))
    # Right: ours 1, 1, 1, 0; the dense model's 1, 0, 0, 0.
    assert quality.change == AccuracyChange(2, 0, 0.5, "indistinguishable")


def test_what_is_no_share_of_samples_has_no_interval():
    rng = np.random.default_rng(0)
    batches = [([rng.standard_normal((4, 3), dtype=np.float32)], rng.standard_normal((4, 3)).astype(np.float32))]
    quality = evaluate(Doubles(), batches)
    assert quality.metric.name == "R2"
    assert (quality.accuracy_ci, quality.agreement_ci, quality.change) == (None, None, None)


def test_the_table_says_n_how_well_it_is_known_and_what_it_means():
    first, second = rows_on("openvino", {"dense fp32": 1.0, "pruned int8": 0.5})
    known = {"evaluated": 360, "accuracy_ci": (96.0, 98.0), "agreement_ci": (0.95, 0.99)}
    rows = (
        replace(first, **known, change=AccuracyChange(0, 0, 1.0, "indistinguishable")),
        replace(second, **known, change=AccuracyChange(1, 9, 0.021, "worse")),
    )
    text = table_rows(rows, colour=False)
    assert "%, n = 360" in text
    assert "97.2 +-1.0" in text
    assert "98.5 +-2.0 %" in text
    assert text.count("worse") == 1
    assert units.accuracy_verdict(rows[0]) == ""
    assert "n = 360" not in table_rows((a_row(),), colour=False)
