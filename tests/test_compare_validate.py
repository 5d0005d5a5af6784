"""Builds side by side, and a build held to limits here and now."""

import json
import shutil
from dataclasses import replace

import pytest

from deploypruner.build.validated import Limits, validate
from deploypruner.errors import InputError
from deploypruner.latency.clock import current_clock
from deploypruner.records import AccuracyChange, Quality
from deploypruner.report import read_report, write_report_json
from deploypruner.report.compare import compare_html, compare_json, compare_text, compared, remarks
from tests.builds import copy_of_finished, finished, pretended, run_cli, workshop
from tests.test_report_examples import a_report, eight_rows, rows_on

WON = a_report(
    tuple(
        replace(row, evaluated=360, accuracy_ci=(96.0, 98.0), change=AccuracyChange(1, 9, 0.02, "worse"))
        for row in eight_rows()
    )
)
LOST = a_report(
    rows_on("openvino", {"dense fp32": 1.0, "dense int8": 0.5, "pruned int8": 0.6}), model={"name": "vgg"}
)


def test_a_line_says_what_a_build_ships_and_what_became_of_it():
    won, lost = compared("a", WON), compared("b", LOST)
    assert (won.artifact, won.runtime, won.median_ms, won.dense_ms) == ("pruned int8", "openvino", 0.4, 0.88)
    assert (won.accuracy, won.change, won.macs, won.lost) == ("97.2 ± 1.0 % (n = 360)", "worse", 0.25, False)
    assert (won.budget, lost.artifact, lost.lost) == ("macs 30.0 %: met", "dense int8", True)


def test_what_does_not_compare_is_said():
    said = remarks([WON, LOST])
    assert any("different models" in text for text in said)
    assert not any("different numbers of inputs" in text for text in said)  # one build does not say its number
    assert remarks([WON]) == []
    assert len(remarks([WON, WON])) == 1


@pytest.mark.parametrize("width", [None, 80])
def test_builds_are_columns_or_blocks(width):
    lines = [compared("first", WON), compared("second", LOST)]
    text = compare_text(lines, remarks([WON, LOST]), colour=False, width=width)
    assert text.isascii()
    assert "97.2 +-1.0 % (n = 360) worse" in text
    assert "dense int8 (pruning lost)" in text
    assert width is None or all(len(line) <= width for line in text.splitlines())
    page = compare_html(lines, [])
    assert page.count("<tr>") == 3
    assert '<span class="tag bad">lost</span>' in page
    lines[1] = replace(lines[1], ratio=float("nan"))
    builds = json.loads(json.dumps(compare_json(lines, ["x"]), allow_nan=False))["builds"]
    assert [build["ratio"] for build in builds] == [pytest.approx(2.2), None]


def test_four_builds_stand_side_by_side_in_80_columns_and_below_one_another_where_a_name_is_too_long():
    lines = [compared(f"builds/{i}", WON if i else LOST) for i in range(4)]
    text = compare_text(lines, [], colour=False, width=80).splitlines()
    assert text[0].split() == ["build", "builds/0", "builds/1", "builds/2", "builds/3"]
    assert max(map(len, text)) <= 80
    columns = [text[0].index(f"builds/{i}") for i in range(4)]
    speed = next(line for line in text if line.startswith("speed-up"))
    assert [speed[at:].split()[0] for at in columns] == ["2.00x", "2.20x", "2.20x", "2.20x"]
    assert sum("[2.16, 2.24]" in line for line in text) == 1
    assert any(line.startswith(" ") and line[columns[0] :].startswith("(pruning") for line in text)
    named = compare_text(
        [compared("a-name-that-no-column-holds", WON), *lines[1:]], [], colour=False, width=80
    ).splitlines()
    assert named[0] == "a-name-that-no-column-holds"


def test_the_command_shows_writes_and_replaces_nothing_of_another_kind(tmp_path):
    for name, report in (("a", WON), ("b", LOST)):
        (tmp_path / name).mkdir()
        write_report_json(report, tmp_path / name / "report.json")
    outcome = run_cli("compare", "a", "b", "--html", "c.html", "--json", "c.json", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert [b["name"] for b in json.loads((tmp_path / "c.json").read_text())["builds"]] == ["a", "b"]
    assert "2 builds side by side" in (tmp_path / "c.html").read_text()
    assert json.loads(run_cli("compare", "a", "--json", "-", folder=tmp_path).out)["format"] == 1
    run_cli("compare", "a", "--html", "c.json", folder=tmp_path).assert_error(2, "c.json", "something else")
    run_cli("compare", "none", folder=tmp_path).assert_error(2, "none")


# --------------------------------------------------------------------- validate


def clock_of(ms):
    """Every artifact takes `ms`."""
    return replace(
        current_clock(), artifacts=lambda jobs, *, threads, **more: pretended(jobs, threads=threads, ms=ms)
    )


@pytest.mark.slow
def test_a_build_is_held_to_its_limits_by_what_is_measured_now(monkeypatch):
    monkeypatch.chdir(workshop())  # where the build found its data
    row = next(row for row in read_report(finished()).rows if row.file == read_report(finished()).deploy["file"])
    share = row.accuracy / 100
    kept = validate(finished(), Limits(latency_ms=5.0, accuracy=share), clock=clock_of(4.0))
    assert kept.kept
    assert [(check.name, check.limit) for check in kept.checks] == [
        ("latency", "<= 5.00 ms"),
        ("accuracy", f">= {row.accuracy:.1f} %"),
    ]
    assert kept.checks[1].found.endswith("%, n = 19")
    slow = validate(finished(), Limits(latency_ms=3.0), clock=clock_of(4.0))
    assert (slow.kept, slow.checks[0].doubt) == (False, "")
    wrong = validate(finished(), Limits(accuracy=share + 0.01), clock=clock_of(4.0))
    assert not wrong.kept


@pytest.mark.slow
def test_the_command_ends_with_3_where_a_limit_is_not_kept():
    outcome = run_cli("validate", str(finished()), "--min-accuracy", "1")
    assert outcome.code == 3, outcome.err
    assert "NOT KEPT" in outcome.out
    assert "does not keep its accuracy" in outcome.err
    run_cli("validate", str(finished())).assert_error(2, "nothing to validate")
    run_cli("validate", str(finished()), "--max-latency", "soon").assert_error(2, "soon")


@pytest.mark.slow
def test_another_file_than_was_built_is_refused(tmp_path):
    folder = copy_of_finished(tmp_path)
    path = folder / read_report(folder).deploy["file"]
    with path.open("ab") as file:
        file.write(b" ")
    with pytest.raises(InputError, match="is not the file that was built"):
        validate(folder, Limits(latency_ms=1.0))
    path.unlink()
    with pytest.raises(InputError, match="is missing"):
        validate(folder, Limits(latency_ms=1.0))
    shutil.rmtree(folder)


def test_an_unlabelled_quality_cannot_be_held_to_an_accuracy():
    from deploypruner.build.validated import _accuracy

    with pytest.raises(InputError, match="no labels"):
        _accuracy(Quality(None, 1.0, "top-1", 5), 0.9)
    assert _accuracy(Quality(92.0, 1.0, "top-1", 50, accuracy_ci=(90.0, 94.0)), 0.92).found == "92.0 ± 2.0 %, n = 50"
