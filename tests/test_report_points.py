"""Points on the way in the picture, the table and the sentence of a report."""

from __future__ import annotations

from typing import Any

import pytest

from deploypruner.build.points import fastest_keeping, point_sentence
from deploypruner.errors import InputError
from deploypruner.report import render_html
from deploypruner.report.document import from_json, to_json
from deploypruner.report.points import points_sentence, points_text, way_marks
from deploypruner.report.scatter import in_picture
from tests.test_report_examples import a_report, a_row, eight_rows


def a_point(name: str, ms: float | None = 0.5, lost: float | None = 1.5, **changes: Any) -> dict[str, Any]:
    return {
        **{"id": name, "what": "plan by scores", "kind": "plan", "runtime": "openvino", "precision": "int8"},
        **{"latency_ms": ms, "latency_basis": "measured on the way", "measured": True},
        **{"metric": "accuracy", "value": 90.0, "lost": lost, "labelled": True, "samples": 512},
        "quality_basis": "in float, repaired and not trained, on training samples held out",
        **{"bytes": 70_000, "bytes_of": "its weights", "macs": 9_000_000, "params": 70_000},
        **{"weights": "repaired", "artifact": "", "plan": "points/plan-1.json", "floats": []},
        **changes,
    }


POINTS = (
    a_point("final", 0.4, 0.6, kind="finished", artifact="model.int8.xml"),
    a_point("plan-1"),
    a_point("plan-2", 0.45, 2.0, measured=False, latency_basis="predicted"),
    a_point("deep", 0.3, 40.0),
    a_point("unknown", 0.3, None),
)


def test_a_mark_is_the_dense_model_less_what_was_lost():
    marks = way_marks(POINTS, eight_rows())
    assert [(mark.ms, round(mark.value, 6), mark.measured) for mark in marks] == [
        (0.5, 96.3, True),
        (0.45, 95.8, False),
        (0.3, 57.8, True),
    ]
    assert marks[1].text == (
        "plan-2, plan by scores: 0.450 ms predicted; 2.0 points lost in float, repaired and not trained, "
        "on training samples held out"
    )
    assert [mark.value for mark in in_picture(eight_rows(), marks)] == [pytest.approx(96.3), pytest.approx(95.8)]


def test_agreement_is_no_accuracy():
    rows = [a_row(), a_row("pruned int8", median_ms=0.4)]
    assert way_marks([a_point("x", labelled=False, metric="cosine")], rows) == []
    assert len(way_marks([a_point("x", labelled=False, metric="top-1")], rows)) == 1


def test_the_page_and_the_json_have_all_of_them():
    report = a_report(points=POINTS)
    page = render_html(report)
    assert page.count('class="way timed"') == 2 * 1 + 1, "in both sizes, and in the legend"
    assert page.count('class="way"') == 2 * 1 + 1
    assert "1 more lie outside the picture" in page
    assert all(f">{point['id']}</td>" in page for point in POINTS)
    assert "model.int8.xml</td>" in page
    assert "made when exported</td>" in page
    assert from_json(to_json(report)).points == POINTS
    assert points_sentence(report.points).startswith(
        "4 candidates from the way here are kept beside these artifacts, 3"
    )
    assert points_sentence(POINTS[:1]) == ""
    assert "plan-1    0.500 ms measured on the way; accuracy 90.0, 1.5 points lost" in points_text(POINTS)


def test_a_damaged_point_is_named():
    document = to_json(a_report(points=POINTS))
    document["points"][1]["latency_ms"] = "soon"
    with pytest.raises(InputError, match=r"points\.latency_ms"):
        from_json(document)


def test_the_fastest_that_keeps_the_accuracy_was_measured():
    found = fastest_keeping(POINTS, 1.75)
    assert found is not None
    assert found["id"] == "final"
    assert point_sentence(found).startswith(
        "plan by scores on openvino (point final): 0.4 ms measured on the way, loses"
    )
    assert fastest_keeping(POINTS, 0.5) is None
    assert fastest_keeping(POINTS[2:3], 3.0) is None, "that was only predicted"
