"""A finished build measured again: its times are the new ones, and nothing else of it is written."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploypruner.build.again import _certified, require_promised
from deploypruner.errors import BudgetError
from deploypruner.latency.clock import current_clock, using
from deploypruner.measure import Job, Measured
from deploypruner.recipe.reading import overlay, read_recipe
from deploypruner.records import Artifact, Setting, Timing
from deploypruner.report import read_report
from tests.builds import COMPILE, copy_of_finished, digests, finished, pretended_timings, run_cli
from tests.test_pipeline import SAID, done_before

pytestmark = pytest.mark.slow

MS = {"dense fp32": 4.0, "dense int8": 2.0, "pruned fp32": 3.0, "pruned int8": 1.0}


class Machine:
    """Every artifact takes its own time; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], int, float]] = []

    def __call__(self, jobs: Sequence[Job], *, threads: int, budget_s: float, **_: object) -> Measured:
        self.asked.append(([f"{a.path.name} {runtime}" for a, runtime in jobs], threads, budget_s))
        assert all(artifact.path.is_file() for artifact, _ in jobs)
        timings = [
            Timing(a, runtime, threads, np.full((10, 5), round(1e6 * MS[a.name] / threads)), 0.1, 1, 1 << 20)
            for a, runtime in jobs
        ]
        return Measured(tuple(timings), timings[0], floor=0.03, settled=False)


@pytest.fixture
def machine():
    found = Machine()
    finished()  # made by this machine's own clock, whichever test comes first
    with using(replace(current_clock(), artifacts=found)):
        yield found


def everything(folder: Path) -> dict[str, str]:
    """Name -> sha256 of all but what a measurement writes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
        and path.parent.name != "measurements"
        and path.name not in ("report.json", "report.html", "manifest.json", "written.json", "log.txt")
    }


def test_times_are_renewed_and_nothing_else(tmp_path, machine):
    folder = copy_of_finished(tmp_path)
    before, files = read_report(folder), everything(folder)
    outcome = run_cli("measure", str(folder), "--seconds", "30", "--threads", "2", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "2 threads" in outcome.out
    after = read_report(folder)
    assert machine.asked[0][1:] == (2, 30.0)
    assert {row.name: row.median_ms for row in after.rows} == {name: ms / 2 for name, ms in MS.items()}
    assert {row.name: row.ratio for row in after.rows} == {name: 4.0 / ms for name, ms in MS.items()}
    assert [(r.name, r.accuracy, r.agreement) for r in after.rows] == [
        (r.name, r.accuracy, r.agreement) for r in before.rows
    ]
    assert after.deploy["load"][0].endswith("options.intra_op_num_threads = 2")
    assert (after.deploy["inputs"], after.deploy["classes"]) == (before.deploy["inputs"], before.deploy["classes"])
    assert everything(folder) == files
    assert (after.verification, after.layers, after.budget) == (before.verification, before.layers, before.budget)
    samples = json.loads((folder / "measurements" / "pruned-int8.onnx.onnxruntime.json").read_text())
    assert samples["samples_ns"] == [[500_000] * 5] * 10
    assert samples["artifact"]["path"] == "model.int8.onnx"
    listed = json.loads((folder / "manifest.json").read_text())["sha256"]
    for name in ("report.json", "report.html", "measurements/run.json"):
        assert listed[name] == hashlib.sha256((folder / name).read_bytes()).hexdigest()


def test_the_file_to_ship_is_the_one_that_is_fastest_now(tmp_path, machine, monkeypatch):
    folder = copy_of_finished(tmp_path)
    assert run_cli("measure", str(folder), folder=tmp_path).code == 0
    assert read_report(folder).deploy["file"] == "model.int8.onnx"
    monkeypatch.setitem(MS, "pruned fp32", 0.25)
    assert run_cli("measure", str(folder), folder=tmp_path).code == 0
    deploy = read_report(folder).deploy
    assert (deploy["file"], deploy["artifact"]) == ("model.fp32.onnx", "pruned fp32")
    assert deploy["bytes"] == (folder / "model.fp32.onnx").stat().st_size


def test_a_warning_that_asks_for_more_time_names_a_command_that_works_and_goes_when_it_is_followed(tmp_path, machine):
    folder = copy_of_finished(tmp_path)
    run_cli("measure", "build", folder=tmp_path)
    (said,) = [text for text in read_report(folder).noise if "ended before every ratio" in text]
    assert said.endswith("or give more time: `deploypruner measure build --seconds 180`")
    outcome = run_cli(*said.split("`")[1].split()[1:], folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert machine.asked[-1][2] == 180.0
    (again,) = [text for text in read_report(folder).noise if "ended before every ratio" in text]
    assert again.endswith("`deploypruner measure build --seconds 540`")


def test_another_runtime_is_timed_beside_what_was_measured_before(tmp_path, machine):
    folder = copy_of_finished(tmp_path)
    before = read_report(folder)
    outcome = run_cli("measure", str(folder), "--runtime", "openvino")
    assert outcome.code == 0, outcome.err
    after = read_report(folder)
    assert after.rows[: len(before.rows)] == before.rows
    new = after.rows[len(before.rows) :]
    assert {row.name: row.median_ms for row in new} == MS
    assert {row.runtime for row in new} == {"openvino"}
    assert any(text.startswith("timed and not judged: 'dense fp32' on openvino") for text in after.warnings)
    assert any(text.startswith("of an earlier run") for text in after.warnings)


def test_a_build_that_was_moved_is_measured_where_it_is(tmp_path, machine):
    moved = shutil.copytree(finished(), tmp_path / "elsewhere" / "mine")
    assert run_cli("measure", "mine", folder=moved.parent).code == 0
    assert machine.asked[0][0] == [
        "dense.fp32.onnx onnxruntime",
        "dense.int8.onnx onnxruntime",
        "model.fp32.onnx onnxruntime",
        "model.int8.onnx onnxruntime",
    ]
    (moved / "model.int8.onnx").unlink()
    outcome = run_cli("measure", "mine", folder=moved.parent)
    outcome.assert_error(2, "mine lacks model.int8.onnx, which its report is about")


def test_what_is_no_finished_build_is_named(tmp_path):
    run_cli("measure", str(tmp_path)).assert_error(2, "is not a finished build folder", "`compile` made")
    run_cli("measure", str(tmp_path), "--runtime", "tvm").assert_error(2, "no runtime called 'tvm'")


def test_a_resumed_build_may_be_measured_for_longer(tmp_path):
    folder = copy_of_finished(tmp_path)
    command = [word if word != "1" else "60" for word in COMPILE]
    with pretended_timings():
        outcome = run_cli(*command, "--out", str(folder), "--resume")
    assert outcome.code == 0, outcome.err
    assert done_before(outcome.err) == SAID
    assert digests(folder) == digests(finished())
    assert json.loads((folder / "measurements" / "run.json").read_text())["seconds"] == 60


def test_the_certificate_is_that_of_the_new_measurement(tmp_path):
    """8 ms against 2: 4 times as fast."""
    artifacts = [Artifact("dense int8", Path("a"), "onnx", "int8", "dense")]
    artifacts += [Artifact("pruned int8", Path("b"), "onnx", "int8", "channel")]
    timings = tuple(
        Timing(a, "openvino", 1, np.full((10, 5), round(1e6 * ms)), 0.1, 1, 1)
        for a, ms in zip(artifacts, (8.0, 2.0), strict=True)
    )
    run = Measured(timings, timings[0], floor=0.01, settled=True)
    setting = Setting("openvino", "int8")
    budget = {"kind": "speedup", "dense_ms": 7.0, "met": None, "doubt": "busy", "requested": 3.0}
    for asked, met in ((3.0, True), (5.0, False)):
        recipe = overlay(read_recipe(None, {}), {"prune": {"speedup": asked}})
        found = _certified(budget, run, setting, recipe=recipe, name="")
        assert (found["met"], found["measured"], found["certified"]) == (met, 4.0, 4.0)
        assert (found["artifact"], found["doubt"]) == ("pruned int8 on openvino", "")
    lost = {"kept": False}
    assert _certified({**budget, "quality": lost}, run, setting, recipe=recipe, name="")["met"] is False


def test_a_budget_that_is_not_certified_is_said_after_the_table(tmp_path):
    folder = copy_of_finished(tmp_path)
    report = read_report(folder)
    require_promised(report, folder)  # of multiply-adds
    (folder / "recipe.toml").write_text('[prune]\nlatency = "5ms"\n')
    about = {"kind": "latency", "requested": 5.0, "measured": 4.9, "certified": None, "met": None, "doubt": "busy"}
    with pytest.raises(BudgetError, match=r"5ms cannot be certified: busy .*measured 4\.9 ms\)[\s\S]*--seconds 60`"):
        require_promised(replace(report, budget=about), folder)
    require_promised(replace(report, budget={**about, "certified": 4.95, "met": True}), folder)
    assert math.isclose(report.budget["requested"], 0.5)
