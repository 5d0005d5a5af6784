from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest

from deploypruner.device.cores import pick_cores
from deploypruner.errors import InputError, MeasureError, RecipeError
from deploypruner.measure import measure, pair_up, process, time_artifacts
from deploypruner.measure.inputs import random_feeds
from deploypruner.measure.process import Worker
from deploypruner.measure.rounds import MeasuringEffort, block_calls, run_rounds
from deploypruner.measure.worker import block, warm_up
from deploypruner.records import TensorSpec
from tests.timed import Scripted, Unsteady, save_conv

pytestmark = pytest.mark.slow


def open_worker(path: Path, runtime: str = "onnxruntime") -> Worker:
    (artifact, name), *_ = pair_up([path], [runtime])
    worker = Worker(artifact, name, threads=1)
    with ExitStack() as failed:
        failed.callback(worker.close)  # its pipes would be found open by whatever test runs later
        worker.ask(do="load", runtime=name)
        worker.ask(do="open", path=str(path), threads=1, seed=0, shapes={}, feeds=None)
        failed.pop_all()
    return worker


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def run_scripted(seed: int = 0, **effort: float) -> tuple[list[str], object]:
    log: list[str] = []
    workers = [Scripted(name, ns, log) for name, ns in (("a", 100), ("b", 200), ("c", 300))]
    rounds = run_rounds(workers, [10, 10, 10], [0, 0, 0], effort=MeasuringEffort(min_rounds=10, **effort), seed=seed)
    return log, rounds


def test_each_round_has_each_job_once() -> None:
    log, rounds = run_scripted()
    assert len(log) == 30
    assert all(sorted(log[start : start + 3]) == ["a", "b", "c"] for start in range(0, 30, 3))
    assert [samples.shape for samples in rounds.samples_ns] == [(10, 10)] * 3
    assert [int(samples[0, 0]) for samples in rounds.samples_ns] == [100, 200, 300]


def test_the_order_changes_between_rounds_and_follows_the_seed() -> None:
    log = run_scripted(seed=1)[0]
    assert len({tuple(log[start : start + 3]) for start in range(0, 30, 3)}) > 1
    assert log == run_scripted(seed=1)[0]
    assert log != run_scripted(seed=2)[0]


def test_rounds_end_with_the_budget_where_no_interval_gets_narrow() -> None:
    log: list[str] = []
    seconds = iter(range(10_000))
    told: list[tuple[float, str]] = []
    rounds = run_rounds(
        [Scripted("a", 100, log), Unsteady("b", 100, log)],
        [5, 5],
        [0, 0],
        effort=MeasuringEffort(min_rounds=10, budget_s=60),
        progress=lambda fraction, text: told.append((fraction, text)),
        clock=lambda: float(next(seconds)),
    )
    assert not rounds.settled
    assert 20 <= len(rounds.samples_ns[0]) <= 60
    assert told[-1][0] == pytest.approx(1.0, abs=0.05)
    assert "widest interval ±" in told[-1][1]


def test_the_fewest_rounds_are_run_whatever_they_take() -> None:
    log: list[str] = []
    seconds = iter(range(0, 1_000_000, 1000))
    rounds = run_rounds(
        [Scripted("a", 100, log), Unsteady("b", 100, log)],
        [1, 1],
        [0, 0],
        effort=MeasuringEffort(min_rounds=10, budget_s=1),
        clock=lambda: float(next(seconds)),
    )
    assert len(rounds.samples_ns[0]) == 10


def test_rounds_go_on_until_a_p95_is_carried() -> None:
    log: list[str] = []
    rounds = run_rounds([Scripted("a", 100, log)], [5], [0], effort=MeasuringEffort(min_rounds=10))
    assert rounds.samples_ns[0].size == 100


@pytest.mark.parametrize(
    ("call_ms", "calls"),
    [(1.0, 20), (10.0, 3), (0.001, 1000)],
)
def test_a_block_lasts_about_20_ms(call_ms: float, calls: int) -> None:
    assert block_calls([call_ms * 1e6], MeasuringEffort()) == [calls]


def test_blocks_are_shortened_alike_to_fit_the_fewest_rounds() -> None:
    # 10 rounds x 2 jobs x (5 + 1) calls x 0.2 s = 24 s, twice the budget: 2 calls per block.
    assert block_calls([2e8, 2e8], MeasuringEffort(min_rounds=10, budget_s=12)) == [2, 2]
    assert block_calls([6e10], MeasuringEffort(min_rounds=10, budget_s=12)) == [1]


@pytest.mark.parametrize(("effort", "message"), [({"min_rounds": 1}, "min_rounds"), ({"budget_s": 0}, "budget_s")])
def test_an_effort_out_of_range_is_refused(effort: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        MeasuringEffort(**effort)


def test_a_block_makes_one_call_that_is_not_counted() -> None:
    calls: list[int] = []
    samples = block(lambda: calls.append(1), 7)
    assert (len(samples), len(calls)) == (7, 8)
    assert all(isinstance(ns, int) and ns >= 0 for ns in samples)


def test_warm_up_keeps_to_its_bounds_and_reports_its_calls() -> None:
    calls: list[int] = []
    told = warm_up(lambda: calls.append(1), max_s=60, max_calls=12)
    assert told["calls"] == len(calls) == 12
    calls.clear()
    assert warm_up(lambda: time.sleep(0.001) or calls.append(1), max_s=0.0, max_calls=12)["calls"] == len(calls)


def test_random_feeds_fit_their_specs_and_follow_the_seed() -> None:
    specs = [
        TensorSpec("image", (None, 3, 4), "float32"),
        TensorSpec("ids", (None, None), "int64"),
        TensorSpec("mask", (2,), "bool"),
    ]
    image, ids, mask = random_feeds(specs, shapes={"ids": [1, 50]}, seed=3)
    assert [(a.shape, a.dtype.name) for a in (image, ids, mask)] == [
        ((1, 3, 4), "float32"),
        ((1, 50), "int64"),
        ((2,), "bool"),
    ]
    assert set(ids.ravel().tolist()) == {0, 1}
    assert np.array_equal(image, random_feeds(specs[:1], seed=3)[0])


def test_a_shape_the_model_contradicts_is_refused() -> None:
    specs = [TensorSpec("image", (None, 3), "float32")]
    with pytest.raises(InputError, match=r"input 'image' has shape \[\?, 3\], asked for \[1, 4\]"):
        random_feeds(specs, shapes={"image": [1, 4]})
    with pytest.raises(InputError, match=r"no input called 'imag'[\s\S]*did you mean 'image'\?"):
        random_feeds(specs, shapes={"imag": [1, 3]})


def test_cores_are_this_processs_own() -> None:
    cores = pick_cores(1)
    assert len(cores) == 1
    assert set(cores) <= os.sched_getaffinity(0)


def test_real_artifacts_on_both_runtimes(tmp_path: Path) -> None:
    paths = [save_conv(tmp_path / "small.onnx", 4), save_conv(tmp_path / "large.onnx", 64)]
    rows = measure(paths, runtime=["openvino", "onnxruntime"], budget_s=0.3)
    assert [(row.runtime, row.name) for row in rows] == [
        ("openvino", "small.onnx"),
        ("openvino", "large.onnx"),
        ("onnxruntime", "small.onnx"),
        ("onnxruntime", "large.onnx"),
    ]
    assert [row.verdict for row in rows] == ["indistinguishable", "slower"] * 2
    for small, large in (rows[:2], rows[2:]):
        assert 0 < small.median_ms < large.median_ms
        assert large.ratio_ci[0] <= large.ratio <= large.ratio_ci[1] < 1
        assert small.peak_rss_bytes > 10e6


def test_a_timing_says_how_it_was_taken(tmp_path: Path) -> None:
    jobs = pair_up([save_conv(tmp_path / "m.onnx", 4, batch="N")], ["onnxruntime"])
    x = np.ones((1, 4, 32, 32), dtype=np.float32)
    measured = time_artifacts(jobs, budget_s=0.1, min_rounds=3, feeds=[x])
    (timing,) = measured.timings
    assert len(timing.samples_ns) == len(measured.twin.samples_ns) >= 3
    assert measured.floor >= 0
    assert (timing.threads, timing.runtime) == (1, "onnxruntime")
    assert timing.settings["intra_op_num_threads"] == "1"
    assert timing.load_s > 0
    assert timing.warmup >= 5


def test_a_large_parent_does_not_count_as_the_workers_memory(tmp_path: Path) -> None:
    ballast = np.ones(60_000_000)
    with open_worker(save_conv(tmp_path / "m.onnx", 4)) as worker:
        assert worker.ask(do="memory")["peak_rss_bytes"] < ballast.nbytes


def test_a_corrupt_file_is_reported_with_names_and_no_worker_is_left(tmp_path: Path) -> None:
    good, bad = save_conv(tmp_path / "good.onnx", 4), tmp_path / "bad.onnx"
    bad.write_bytes(good.read_bytes()[:100])
    with pytest.raises(MeasureError, match=r"cannot measure 'bad\.onnx' on onnxruntime: .*cannot load '.*bad"):
        measure([good, bad], runtime="onnxruntime")
    assert psutil.Process().children() == []


def test_a_killed_worker_is_reported_with_names(tmp_path: Path) -> None:
    with open_worker(save_conv(tmp_path / "m.onnx", 4)) as worker:
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(MeasureError, match=r"'m\.onnx' on onnxruntime: the worker process ended \(SIGKILL\)"):
            worker.block(5)


def test_a_crash_repeats_the_workers_last_words(tmp_path: Path) -> None:
    with (
        open_worker(save_conv(tmp_path / "m.onnx", 4)) as worker,
        pytest.raises(MeasureError, match=r"\(exit code 1\); its last words: AssertionError: unknown message"),
    ):
        worker.ask(do="dance")


def test_a_hanging_worker_is_reported_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_worker(save_conv(tmp_path / "m.onnx", 4)) as worker:
        monkeypatch.setitem(process.REPLY_TIMEOUTS_S, "block", 0.2)
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(MeasureError, match=r"'m\.onnx' on onnxruntime: no answer to 'block' in 0\.2 s"):
            worker.block(5)
    assert not is_running(worker.pid)


def test_an_interrupt_leaves_no_process_behind(tmp_path: Path) -> None:
    def interrupt(fraction: float, text: str) -> None:
        (agent,) = psutil.Process().children()
        assert len(agent.children()) == 2
        raise KeyboardInterrupt

    jobs = pair_up([save_conv(tmp_path / "m.onnx", 4)], ["onnxruntime"])
    with pytest.raises(KeyboardInterrupt):
        time_artifacts(jobs, progress=interrupt)
    assert psutil.Process().children() == []


def test_a_worker_ends_when_its_parent_is_killed() -> None:
    code = (
        "import sys, os, signal; from pathlib import Path; from deploypruner.records import Artifact;"
        "from deploypruner.measure.process import Worker;"
        "a = Artifact('m', Path('m.onnx'), 'onnx', 'fp32');"
        "w = Worker(a, 'onnxruntime', threads=1);"
        "w.ask(do='memory'); print(w.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", code]
    parent = subprocess.run(command, capture_output=True, text=True, check=False)
    assert parent.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while is_running(int(parent.stdout)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(int(parent.stdout))


def test_what_a_library_prints_does_not_reach_the_protocol() -> None:
    code = (
        "import os; from deploypruner.measure.worker import _claim_stdout; replies = _claim_stdout();"
        "os.write(1, b'noise'); print('more', flush=True); replies.write('reply'); replies.flush()"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "reply"
    assert told.stderr == "noisemore\n"


def test_a_worker_imports_neither_torch_nor_a_runtime() -> None:
    heavy = {"torch", "onnx", "scipy", "openvino", "onnxruntime", "matplotlib"}
    code = f"import sys, deploypruner.measure.worker; print(sorted({heavy!r} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_no_files_are_refused() -> None:
    with pytest.raises(InputError, match="no artifacts to measure"):
        measure([])


def test_a_runtime_that_cannot_open_the_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.xml").write_text("<net/>")
    with pytest.raises(InputError, match=r"onnxruntime cannot open '.*m\.xml'"):
        measure(tmp_path / "m.xml", runtime="onnxruntime")


@pytest.mark.parametrize(
    ("effort", "message"), [({"narrow": 0.0}, "the interval must be > 0"), ({"quantile": 1.0}, "quantile must be in")]
)
def test_an_interval_or_quantile_out_of_range_is_refused(effort: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        MeasuringEffort(**effort)


def test_rounds_go_on_until_the_interval_asked_for_is_known() -> None:
    def count(narrow: float) -> int:
        seconds = iter(range(10_000))
        workers = [Scripted("a", 100, []), Unsteady("b", 100, [])]
        effort = MeasuringEffort(min_rounds=10, budget_s=60, narrow=narrow)
        rounds = run_rounds(workers, [10, 10], [0, 0], effort=effort, clock=lambda: float(next(seconds)))
        return len(rounds.samples_ns[0])

    assert count(2.0) == 10
    assert count(0.02) > 20


def test_a_block_may_take_long_where_its_calls_do(tmp_path: Path) -> None:
    with open_worker(save_conv(tmp_path / "m.onnx", 4)) as worker:
        assert worker._patience({"do": "block", "calls": 10}) == process.REPLY_TIMEOUTS_S["block"]
        worker._call_ns = 10e9
        assert worker._patience({"do": "block", "calls": 10}) == 2000.0
