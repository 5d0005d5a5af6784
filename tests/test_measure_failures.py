"""A worker that crashes, hangs or cannot open its file is named, and the others are unharmed."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from deploypruner.errors import MeasureError
from deploypruner.measure import pair_up, time_artifacts
from deploypruner.measure.rounds import MeasuringEffort, run_rounds
from tests.timed import Scripted, Unsteady, save_conv

pytestmark = pytest.mark.slow


class Crashing(Scripted):
    """Fails in its third block."""

    def block(self, calls: int) -> list[int]:
        if self.log.count(self.name) == 2:
            raise MeasureError(f"{self.name} crashed")
        return super().block(calls)


def test_a_worker_that_fails_is_left_out_and_the_others_go_on() -> None:
    log: list[str] = []
    workers = [Scripted("a", 100, log), Crashing("b", 200, log), Scripted("c", 300, log)]
    rounds = run_rounds(workers, [10] * 3, [0] * 3, effort=MeasuringEffort(min_rounds=10))
    assert {index: error.message for index, error in rounds.failed.items()} == {1: "b crashed"}
    assert [samples.shape for samples in rounds.samples_ns] == [(10, 10), (0,), (10, 10)]
    assert log.count("b") == 2
    assert rounds.settled


def test_those_whose_baseline_fails_are_compared_with_the_first_of_them() -> None:
    log: list[str] = []
    told: list[str] = []
    workers = [Crashing("a", 100, log), Unsteady("b", 100, log), Unsteady("c", 100, log)]
    rounds = run_rounds(
        workers, [10] * 3, [0] * 3, effort=MeasuringEffort(), progress=lambda _, text: told.append(text)
    )
    # b and c are unsteady alike, so that only their ratio can be known.
    assert rounds.settled
    assert told[-1].endswith("widest interval ±0.0 %")


def test_rounds_end_where_every_worker_has_failed() -> None:
    log: list[str] = []
    rounds = run_rounds([Crashing("a", 100, log)], [1], [0], effort=MeasuringEffort())
    assert list(rounds.failed) == [0]
    assert log == ["a", "a"]


def test_a_corrupt_file_leaves_the_others_unharmed(tmp_path: Path) -> None:
    paths = [save_conv(tmp_path / "bad.onnx", 4), save_conv(tmp_path / "good.onnx", 4)]
    paths[0].write_bytes(paths[0].read_bytes()[:100])
    measured = time_artifacts(pair_up(paths, ["onnxruntime"]), budget_s=0.1)
    assert [timing.artifact.name for timing in measured.timings] == ["good.onnx"]
    assert measured.jobs == ((measured.timings[0].artifact, "onnxruntime"),)
    (failure,) = measured.failures
    assert (failure.artifact.name, failure.runtime) == ("bad.onnx", "onnxruntime")
    assert "cannot load" in failure.message
    assert failure.hint


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_worker_that_dies_while_measuring_leaves_the_others_unharmed(tmp_path: Path, victim: int) -> None:
    """Workers: one, two, and the twin of one, whose end is that of its file."""
    paths = [save_conv(tmp_path / f"{name}.onnx", 4) for name in ("one", "two")]
    killed: list[int] = []

    def kill(fraction: float, text: str) -> None:
        if not killed:
            workers = sorted(psutil.Process().children()[0].children(), key=psutil.Process.create_time)
            killed.append(workers[victim].pid)
            workers[victim].kill()

    measured = time_artifacts(pair_up(paths, ["onnxruntime"]), budget_s=0.1, progress=kill)
    dead, alive = ("two", "one") if victim == 1 else ("one", "two")
    assert [timing.artifact.name for timing in measured.timings] == [f"{alive}.onnx"]
    (failure,) = measured.failures
    assert failure.message.startswith(
        f"cannot measure '{dead}.onnx' on onnxruntime: the worker process ended (SIGKILL)"
    )
    assert measured.twin.artifact.name == f"{alive}.onnx"
    assert psutil.Process().children() == []


def test_where_nothing_can_be_measured_everything_is_named(tmp_path: Path) -> None:
    paths = [tmp_path / "one.onnx", tmp_path / "two.onnx"]
    for path in paths:
        path.write_bytes(b"junk")
    with pytest.raises(MeasureError, match=r"'one\.onnx' on onnxruntime: [\s\S]*; cannot measure 'two\.onnx'"):
        time_artifacts(pair_up(paths, ["onnxruntime"]))
