"""A number of threads that is left open: tried, chosen, said, and the one that everything after that goes by."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import onnx
import pytest

from deploypruner.build.open_setting import SettingTried, counts_to_try, try_settings
from deploypruner.device import facts
from deploypruner.device.cores import physical_cores
from deploypruner.device.machine import Machine
from deploypruner.errors import RecipeError
from deploypruner.latency.clock import current_clock, using
from deploypruner.latency.sparse_costs import MeasuredCosts
from deploypruner.measure import Job, Measured, pair_up, time_artifacts
from deploypruner.recipe.sections import MeasureRecipe
from deploypruner.records import Artifact
from deploypruner.report import read_report
from deploypruner.sparse import library
from tests.builds import known_rates, pretended, run_cli, workshop
from tests.qdq import chain
from tests.timed import save_conv

MS = {1: 8.0, 2: 5.0, 4: 6.0}


@contextlib.contextmanager
def machine(ms: dict[int, float] = MS, *, sparse: dict[int, float] | None = None) -> Iterator[list[list[int]]]:
    """Four cores, and times that depend on nothing but threads and on whether a form is sparse."""
    asked: list[list[int]] = []

    def artifacts(jobs: Sequence[Job], *, threads: int, **_: object) -> Measured:
        asked.append(sorted({artifact.threads or threads for artifact, _ in jobs}))
        runs = []
        for job in jobs:
            own = sparse if sparse and job[0].name not in ("dense", "dense fp32", "dense int8") else ms
            runs.append(pretended([job], threads=threads, ms=own[job[0].threads or threads]).timings[0])
        return Measured(tuple(runs), runs[0], floor=0.01, settled=True)

    def costs(_: Path, __: Path, layers: Sequence[object], *, threads: int, **___: object) -> MeasuredCosts:
        asked.append([threads])
        names = [layer.name for layer in layers]  # type: ignore[attr-defined]
        return MeasuredCosts(dict.fromkeys(names, 1.0), dict.fromkeys(names, 1e9))

    clock = replace(current_clock(), artifacts=artifacts, layer_costs=costs)
    with using(clock), known_rates(), mock.patch.object(facts, "physical_cores", return_value=4):
        yield asked


@pytest.mark.parametrize(
    ("count", "tried"), [(1, (1,)), (2, (1, 2)), (4, (1, 2, 4)), (6, (1, 2, 4, 6)), (16, (1, 2, 4, 8, 16))]
)
def test_powers_of_two_and_all_cores_are_tried(count: int, tried: tuple[int, ...]) -> None:
    with mock.patch.object(facts, "physical_cores", return_value=count):
        assert counts_to_try(Machine()) == tried


def test_a_hyper_thread_is_no_core() -> None:
    cores = sys.modules[physical_cores.__module__]  # the package's own name is that of the function `measure`
    with (
        mock.patch.object(cores, "own_cores", return_value=[0, 1, 2, 3]),
        mock.patch.object(cores, "_is_second_thread", side_effect=lambda core: core >= 2),
    ):
        assert physical_cores() == 2


def test_the_fewest_of_those_that_are_as_fast_as_any_are_taken() -> None:
    jobs = [(Artifact("dense int8", Path("x.onnx"), "onnx", "int8"), "openvino")]
    for ms, fastest in ((MS, 2), ({1: 5.0, 2: 5.0, 4: 5.0}, 1), ({1: 9.0, 2: 7.0, 4: 4.0}, 4)):
        with machine(ms):
            found = try_settings(jobs, counts_to_try(Machine()), feeds=None, clock=current_clock(), more={})
        assert (found.fastest, found.ms) == (fastest, tuple(ms.items()))
        assert SettingTried.from_json(json.loads(json.dumps(found.to_json()))) == found
    said = "2 threads, left open: dense int8 on openvino takes 8.00 ms with 1, 5.00 with 2, 6.00 with 4"
    assert SettingTried(2, tuple(MS.items()), "dense int8 on openvino").sentence == said


def test_the_recipe_takes_a_number_or_the_word() -> None:
    assert MeasureRecipe(threads="auto").threads == "auto"
    with pytest.raises(RecipeError, match="--threads must be at least 1"):
        MeasureRecipe(threads=0)


def test_commands_that_time_what_is_there_take_a_number_alone(tmp_path: Path) -> None:
    outcome = run_cli("bench", "a.onnx", "--threads", "auto", folder=tmp_path)
    assert (outcome.code, "'auto' is not a valid integer range" in outcome.err) == (2, True)
    outcome = run_cli("plan", "tiny.pt2", "--threads", "auto", "--speedup", "2")
    assert outcome.code == 2
    assert "--threads auto: milliseconds are predicted for one number of threads" in outcome.err


@pytest.mark.slow
def test_each_artifact_is_timed_with_its_own_number(tmp_path: Path) -> None:
    ((artifact, runtime),) = pair_up([save_conv(tmp_path / "m.onnx", 4)], ["openvino"])
    jobs = [(replace(artifact, threads=count), runtime) for count in (1, 2)] + [(artifact, runtime)]
    found = time_artifacts(jobs, threads=2, budget_s=0.1, min_rounds=3).complete()
    assert [timing.threads for timing in found] == [1, 2, 2]
    assert [timing.settings["INFERENCE_NUM_THREADS"] for timing in found] == ["1", "2", "2"]


@pytest.mark.slow
def test_a_build_goes_by_what_its_dense_model_is_fastest_with_and_says_so() -> None:
    folder = workshop() / "open-threads"
    command = ("compile", "tiny.pt2", "--macs", "0.5", "--threads", "auto", "--runtime", "openvino", "--seconds", "1")
    command = (*command, "--out", str(folder))
    with machine() as asked:
        outcome = run_cli(*command)
    assert outcome.code == 0, outcome.err
    said = "2 threads, left open: dense int8 on openvino takes 8.00 ms with 1, 5.00 with 2, 6.00 with 4"
    assert said in outcome.err
    assert asked == [[1, 2, 4], [2]]
    report = read_report(folder)
    assert (report.settings["threads"], {row.threads for row in report.rows}) == (2, {2})
    assert report.settings["setting_tried"]["ms"] == [list(pair) for pair in MS.items()]
    assert report.deploy["threads"] == 2
    assert "'INFERENCE_NUM_THREADS': '2'" in report.deploy["load"][1]
    with machine() as asked:
        outcome = run_cli(*command, "--resume")
    assert outcome.code == 0, outcome.err
    assert [1, 2, 4] not in asked
    with machine() as asked:
        outcome = run_cli("measure", str(folder), "--seconds", "1")
    assert (outcome.code, asked) == (0, [[2]])


@pytest.mark.slow
@pytest.mark.skipif(not library.is_built(), reason="the package was installed without its sparse kernels")
@pytest.mark.parametrize(("sparse", "kept"), [({1: 3.0, 2: 4.0, 4: 5.0}, 1), ({1: 7.0, 2: 6.0, 4: 9.0}, None)])
def test_a_sparse_model_is_kept_with_its_own_number_and_only_over_the_best_dense_one(
    sparse: dict[int, float], kept: int | None, tmp_path: Path
) -> None:
    onnx.save(chain(), tmp_path / "m.onnx")
    with machine(sparse=sparse) as asked:
        outcome = run_cli("sparsify", "m.onnx", "--out", "s", "--threads", "auto", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    # The dense model with each, layers with its fastest, whole forms with each, and at the end with the best.
    assert asked == [[1, 2, 4], [2], [1, 2, 4], *([[kept]] if kept else [])]
    document = json.loads((tmp_path / "s" / "sparsify.json").read_text())
    assert document["threads"] == (kept or 2)
    assert (tmp_path / "s" / "model.sparse.onnx").exists() == (kept is not None)
    said = "of 1, 2, 4 threads the dense int8 model is fastest with 2"
    assert said in " ".join(outcome.out.split())
    assert [c["threads"] for c in document["candidates"] if c["form"] == "dense"] == [1, 2, 4]
