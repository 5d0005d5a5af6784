"""Several budgets of one model: what they share, what each leaves, and what a kill or a refusal costs."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

import deploypruner as dp
from deploypruner.build.stage import chain
from deploypruner.errors import BudgetError, RecipeError
from deploypruner.frontier.asked import asked_points
from deploypruner.frontier.run import _gravest, _PointOutcome
from deploypruner.report import read_report, write_report_json
from deploypruner.report.compare import compare_html, compared, compared_rows
from deploypruner.report.frontier import FrontierPoint, frontier_svg, marked, of_point
from deploypruner.search.worth_file import WorthFile
from tests.builds import IMAGE, Outcome, digests, run_cli, samples, save_program, tiny
from tests.test_points import by_parameters
from tests.test_report_examples import a_report, a_row, eight_rows

COMMON = (
    *("tiny.pt2", "--data", "data.npz", "--step", "4", "--epochs", "0", "--seconds", "1"),
    *("--runtime", "onnxruntime", "--precision", "int8", "--allow-chance", "--accuracy-drop", "100"),
    *("--depth", "keep"),  # the one branch is all that time goes into: without it every budget is met alike
)
COMMAND = ("frontier", *COMMON, "--speedups", "1.3,1.6,9")


# --------------------------------------------------------------------- what was asked


def test_points_are_built_from_the_mildest_on_and_have_names_that_folders_can_have():
    assert [(p.name, str(p.budget)) for p in asked_points((3, 1.25))] == [
        ("1.25x", "--speedup 1.25"),
        ("3x", "--speedup 3"),
    ]
    names = [p.name for p in asked_points(latencies=("800us", "5ms@p95", "fastest", 12))]
    assert names == ["fastest", "12ms", "5ms-p95", "0.8ms"]
    assert asked_points((2,))[0].overrides == {"prune": {"speedup": 2}}


@pytest.mark.parametrize(
    ("speedups", "latencies", "said"),
    [
        ((), (), "got neither"),
        ((2,), ("5ms",), "got both"),
        ((2, 1.5, 2), (), "2x is asked for twice"),
        ((), ("5ms", 5), "5ms is asked for twice"),
        ((0.5,), (), "at least 1"),
        ((), ("soon",), "is not a time"),
    ],
)
def test_points_that_make_no_sense_are_refused(speedups, latencies, said):
    with pytest.raises(RecipeError, match=said):
        asked_points(speedups, latencies)


def test_the_command_refuses_before_anything_is_loaded():
    run_cli("frontier", "none.pt2").assert_error(2, "got neither", "--speedups 1.25")
    run_cli("frontier", "none.pt2", "--speedups", "1.5,fast").assert_error(2, "'fast' is not a number")
    run_cli("frontier", "--speedups", "2").assert_error(2, "no MODEL given")


# --------------------------------------------------------------------- what dominates what


def test_a_row_is_dominated_by_one_as_fast_and_as_good_that_is_better_in_one():
    times = {"a": (1.0, 90.0), "b": (2.0, 90.0), "c": (2.0, 92.0), "d": (2.04, 92.0), "e": (3.0, 91.0)}
    rows = [("", a_row(name, median_ms=ms, accuracy=best)) for name, (ms, best) in times.items()]
    found = {r.row.name: r.dominated_by for r in marked(rows, floor=0.05)}
    # d is slower than c by less than the noise: neither dominates the other.
    assert found == {"a": "", "b": "c on openvino", "c": "", "d": "", "e": "c on openvino"}
    assert {r.row.name: r.dominated_by for r in marked(rows, floor=0.01)}["d"] == "c on openvino"
    assert marked([], floor=0.0) == ()


def test_without_a_quality_nothing_is_dominated():
    rows = [("", replace(a_row("a", median_ms=ms), accuracy=None, agreement=None)) for ms in (1.0, 2.0)]
    assert [r.dominated_by for r in marked(rows, floor=0.0)] == ["", ""]
    assert frontier_svg(marked(rows, floor=0.0)) == ""


def test_the_picture_names_what_nothing_dominates_and_draws_the_rest_pale():
    builds = [("first", a_report()), ("second", a_report(tuple(_faster(row) for row in eight_rows())))]
    rows = compared_rows(builds)
    names = [r.row.name for r in rows]
    assert names.count("dense fp32") == 2  # one on each runtime, of the first build alone
    assert {"pruned int8, first", "pruned int8, second"} <= set(names)
    assert all((r.point == "") == (r.row.pattern == "dense") for r in rows)
    svg = frontier_svg(rows)
    pale = sum(bool(r.dominated_by) for r in rows)
    assert 0 < pale < len(rows)
    assert svg.count('class="pale"') == pale
    assert svg.count("<g") == len(rows)
    assert svg.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    page = compare_html([compared(*build) for build in builds], [], rows)
    assert "Artifacts of all builds" in page
    assert page.count('class="pale"') == pale
    assert "Artifacts of all builds" not in compare_html([compared(*builds[0])], [], compared_rows(builds[:1]))
    assert compared_rows([builds[0], ("other", a_report(model={"name": "vgg", "sha256": "cd"}))]) == ()


def _faster(row: Any) -> Any:
    return row if row.pattern == "dense" else replace(row, median_ms=0.7 * row.median_ms, accuracy=96.0)


def test_only_pruned_artifacts_are_called_after_their_point():
    assert [of_point("2x", a_row(name)).name for name in ("dense int8", "pruned int8")] == [
        "dense int8",
        "pruned int8, 2x",
    ]


def test_compare_writes_the_picture_and_says_where_there_is_none(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_report_json(a_report(), tmp_path / name / "report.json")
    outcome = run_cli("compare", "a", "b", "--svg", "p.svg", "--json", "-", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "pruned int8, b" in (tmp_path / "p.svg").read_text()
    assert {row["point"] for row in json.loads(outcome.out)["rows"]} == {"", "a", "b"}
    assert "dominated by pruned int8, b on openvino" in run_cli("compare", "a", "b", folder=tmp_path).out
    run_cli("compare", "a", "--svg", "p.svg", folder=tmp_path).assert_error(2, "nothing to draw", "two builds")


# --------------------------------------------------------------------- whole frontiers


def a_workshop(root: Path) -> Path:
    save_program(tiny(), root / "tiny.pt2", torch.zeros(2, *IMAGE))
    (x, y), (x_val, y_val) = samples(96), samples(32, seed=1)
    np.savez(root / "data.npz", x=x, y=y, x_val=x_val, y_val=y_val)
    return root


class Counted:
    """How often each stage ran, and how many batches of worth were measured."""

    def __init__(self, stack: ExitStack, fail: tuple[str, int] = ("", 0)) -> None:
        self.runs: dict[str, int] = {}
        self.batches, self.fail = 0, fail
        for stage in chain():
            stack.enter_context(mock.patch.object(stage, "run", self._counting(stage.name, stage.run)))
        stack.enter_context(mock.patch.object(WorthFile, "add", self._adding(WorthFile.add)))

    def _counting(self, name: str, run: Any) -> Any:
        def counted(stage: Any, build: Any) -> Any:
            self.runs[name] = self.runs.get(name, 0) + 1
            if (name, self.runs[name]) == self.fail:
                raise KeyboardInterrupt
            return run(stage, build)

        return counted

    def _adding(self, add: Any) -> Any:
        def counted(file: Any, *arguments: Any) -> None:
            self.batches += 1
            add(file, *arguments)

        return counted


@pytest.fixture(scope="module")
def whole(tmp_path_factory: Any) -> tuple[Path, Outcome, Counted]:
    """A frontier of three points, one of which is out of reach; tests read it."""
    root = a_workshop(tmp_path_factory.mktemp("frontier"))
    with ExitStack() as stack:
        counted = Counted(stack)
        outcome = by_parameters(*COMMAND, "--out", "f", folder=root)
    return root, outcome, counted


@pytest.mark.slow
def test_points_share_what_does_not_depend_on_their_budget(whole):
    _, outcome, counted = whole
    assert outcome.code == 3, outcome.err
    assert {name: counted.runs[name] for name in ("load", "trace", "score")} == {"load": 1, "trace": 1, "score": 1}
    assert counted.runs["allocate"] == 3
    assert counted.runs["measure"] == 2
    assert counted.batches == 3  # of 32 samples each: no point measures again what another one has
    for name in ("stages/scores.safetensors", "stages/worth.json", "dense.int8.onnx"):
        files = [whole[0] / "f" / name, *(whole[0] / "f/builds" / point / name for point in ("1.3x", "1.6x"))]
        assert len({path.read_bytes() for path in files}) == 1, name


@pytest.mark.slow
def test_a_point_out_of_reach_costs_no_other_and_is_said_first_in_the_table(whole):
    root, outcome, _ = whole
    document = json.loads((root / "f/frontier.json").read_text())
    points = {point["name"]: point for point in document["points"]}
    assert {name: point["status"] for name, point in points.items()} == {
        "1.3x": "kept",
        "1.6x": "kept",
        "9x": "refused",
    }
    assert "out of reach" in points["9x"]["why"]
    assert points["9x"]["folder"] == ""
    assert points["1.3x"]["seconds"] > 0
    assert "refused: 9x: --speedup 9 is out of reach" in outcome.out
    assert "1 of 3 points are not kept (9x)" in outcome.err
    page = (root / "f/frontier.html").read_text()
    assert 'href="builds/1.6x/report.html"' in page
    assert "<title>Quality against measured latency</title>" in page


@pytest.mark.parametrize(
    ("lost", "advised"), [((4.5, 13.7), "--accuracy-drop 14 in another --out"), ((4.5, float("nan")), "ask for less")]
)
def test_the_advice_is_for_every_point_that_lost_too_much(lost, advised):
    outcomes = []
    for points in (1.0, *lost):
        error = None if points == 1.0 else BudgetError("lost", hint="--speedup 1.2", finished=True)
        report = replace(a_report(), budget={"quality": {"kept": points == 1.0, "lost": points}})
        outcomes.append(_PointOutcome(FrontierPoint(f"{points}", "", "not kept", "", "", 0.0), report, error))
    gravest = _gravest(outcomes)
    assert gravest is outcomes[1].error
    assert advised in gravest.hint
    assert "--speedup" not in gravest.hint


@pytest.mark.slow
def test_every_artifact_is_timed_once_in_one_run_and_every_build_is_whole(whole):
    root, _, _ = whole
    document = json.loads((root / "f/frontier.json").read_text())
    rows = {row["name"]: row for row in document["rows"]}
    assert list(rows) == [
        *("dense fp32", "dense int8", "pruned fp32, 1.3x", "pruned int8, 1.3x"),
        *("pruned fp32, 1.6x", "pruned int8, 1.6x"),
    ]
    assert len(document["rows"]) == len(rows)
    for name, row in rows.items():
        assert (root / "f" / row["file"]).stat().st_size == row["bytes"], name
    assert rows["pruned int8, 1.6x"]["median_ms"] < rows["pruned int8, 1.3x"]["median_ms"]
    assert rows["pruned int8, 1.6x"]["ratio"] == pytest.approx(
        rows["dense fp32"]["median_ms"] / rows["pruned int8, 1.6x"]["median_ms"], rel=1e-3
    )
    for point in ("1.3x", "1.6x"):
        report = read_report(root / "f/builds" / point)
        assert report.budget["met"]
        named = {stage.name for stage in report.stages}
        assert named == {stage.name for stage in chain()} - {"report"}, "which cannot tell how long it takes itself"
        plan = next(row for row in report.rows if row.name == "pruned int8")
        assert rows[f"pruned int8, {point}"]["accuracy"] == plan.accuracy
    assert len(list((root / "f/measurements").glob("*.onnxruntime.json"))) == len(rows)


@pytest.mark.slow
def test_a_point_is_what_compile_makes(whole):
    root, _, _ = whole
    outcome = by_parameters("compile", *COMMON, "--speedup", "1.6", "--out", "alone", folder=root)
    assert outcome.code == 0, outcome.err
    names = ("plan.json", "weights.safetensors", "model.fp32.onnx", "recipe.toml")
    assert digests(root / "alone", names) == digests(root / "f/builds/1.6x", names)


@pytest.mark.slow
def test_a_finished_frontier_is_kept_and_gets_more_points(whole, tmp_path):
    root = shutil.copytree(whole[0], tmp_path / "again")
    by_parameters(*COMMAND, "--out", "f", folder=root).assert_error(2, "holds a finished frontier", "--resume adds")
    more = ("frontier", *COMMON, "--speedups", "1.45", "--out", "f", "--resume")
    with ExitStack() as stack:
        counted = Counted(stack)
        outcome = by_parameters(*more, folder=root)
    assert outcome.code == 0, outcome.err
    assert "score" not in counted.runs
    assert counted.batches == 0
    document = json.loads((root / "f/frontier.json").read_text())
    assert [point["name"] for point in document["points"]] == ["1.45x", "1.3x", "1.6x", "9x"]
    assert {row["point"] for row in document["rows"]} == {"", "1.45x", "1.3x", "1.6x"}
    other = [*COMMAND, "--out", "f", "--resume", "--epochs", "1"]
    by_parameters(*other, folder=root).assert_error(2, "epochs", "repeat the original options")
    by_parameters("compile", *COMMON, "--out", "f", folder=root).assert_error(2, "holds the files of a frontier")


@pytest.mark.slow
@pytest.mark.parametrize("killed", [("score", 1), ("recover", 2)])
def test_a_killed_frontier_goes_on_and_ends_in_the_same_plans(whole, tmp_path, killed):
    root = a_workshop(tmp_path)
    with ExitStack() as stack:
        Counted(stack, fail=killed)
        assert by_parameters(*COMMAND, "--out", "f", folder=root).code == 130
    if killed != ("score", 1):
        assert (root / "f/builds/1.3x/manifest.json").is_file()
        by_parameters(*COMMAND, "--out", "f", folder=root).assert_error(2, "that was begun", "--resume goes on")
    with ExitStack() as stack:
        counted = Counted(stack)
        outcome = by_parameters(*COMMAND, "--out", "f", "--resume", folder=root)
    assert outcome.code == 3, outcome.err
    assert counted.runs.get("score", 0) == (1 if killed[0] == "score" else 0)
    for point in ("1.3x", "1.6x"):
        names = ("plan.json", "weights.safetensors", "model.int8.onnx")
        assert digests(root / "f/builds" / point, names) == digests(whole[0] / "f/builds" / point, names)


@pytest.mark.slow
def test_from_python_a_refused_point_is_a_result(tmp_path):
    (x, y), _ = samples(96), samples(32, seed=1)
    data = (torch.from_numpy(x), torch.from_numpy(y))
    found = dp.frontier(
        tiny(),
        torch.zeros(2, *IMAGE),
        latencies=("9s", "1us"),
        data=data,
        epochs=0,
        accuracy_drop=100,
        runtimes=("onnxruntime",),
        recipe=_quick(tmp_path),
        out=tmp_path / "f",
        progress=False,
    )
    assert [(point.name, point.status) for point in found.points] == [("9000ms", "kept"), ("0.001ms", "refused")]
    assert "1 of 2 points kept" in repr(found)
    assert "pruned fp32, 9000ms" in found._repr_html_()
    with pytest.raises(RecipeError, match="needs example_inputs"):
        dp.frontier(tiny(), speedups=(2,))


def _quick(folder: Path) -> Path:
    path = folder / "quick.toml"
    path.write_text("[measure]\nseconds = 1\n[data]\nallow_chance = true\n")
    return path
