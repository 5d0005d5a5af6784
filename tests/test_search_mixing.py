"""Which layers of a file stay float: a net with one fragile layer, and runtimes whose times a test gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from deploypruner.latency.clock import current_clock
from deploypruner.latency.layer_times import LayerRun
from deploypruner.measure import Measured
from deploypruner.quantize.sensitivity import output_divergence
from deploypruner.quantize.static import calibrate, write_qdq
from deploypruner.records import Timing
from deploypruner.runtime.on_onnxruntime import OnnxRuntime
from deploypruner.search.gaps import Gap
from deploypruner.search.mixes import MixRequest
from deploypruner.search.mixing import mix
from tests.test_quantize_mixed import batches, int8_layers, text_file, weight

LAYERS = ("make_a", "make_c", "make_e", "make_z")


def fragile(path: Path) -> Path:
    """Four convolutions in a row; the third reads one channel 1000 times larger than the others."""
    first, second, third, last = (weight(seed, inputs)[:, :, 0, 0] for seed, inputs in enumerate((3, 4, 4, 4)))
    spread = np.diag([1000.0, 1.0, 1.0, 1.0])
    matrices = {"u": first, "v": spread @ second, "w": third @ np.linalg.inv(spread), "y": last}
    return text_file(
        path,
        "a = Conv (x, u) c = Conv (a, v) e = Conv (c, w) z = Conv (e, y)",
        **{name: matrix.astype(np.float32)[:, :, None, None] for name, matrix in matrices.items()},
    )


class Times:
    """A clock: milliseconds of layers in float and in int8, 0.001 for every layer before another precision."""

    def __init__(self, as_float: Mapping[str, float], as_int8: Mapping[str, float]) -> None:
        self.as_float, self.as_int8 = as_float, as_int8
        self.raced: list[list[set[str]]] = []

    def runs(self, path: Path) -> dict[str, LayerRun]:
        int8 = int8_layers(path) if "QuantizeLinear" in {n.op_type for n in onnx.load(path).graph.node} else set()
        return {
            layer: LayerRun((self.as_int8 if layer in int8 else self.as_float)[layer], layer in int8, "")
            for layer in LAYERS
        }

    def layer_times(self, files: Sequence[Path], fp32: Path, setting, **_) -> list[dict[str, LayerRun]]:
        return [self.runs(path) for path in files]

    def artifacts(self, jobs, *, threads, **_) -> Measured:
        timings = []
        for artifact, runtime in jobs:
            ms = sum(run.ms for run in self.runs(artifact.path).values())
            ns = np.full((10, 5), round(1e6 * ms))
            timings.append(Timing(artifact, runtime, threads, ns, load_s=0.1, warmup=1, peak_rss_bytes=1))
        return Measured(tuple(timings), timings[0], floor=0.01, settled=True)


EVEN = dict.fromkeys(LAYERS, 1.0)
HALF = dict.fromkeys(LAYERS, 0.5)


def request(tmp_path: Path, *, allowed: float | None, times: Times | None = None, **more) -> MixRequest:
    fp32, int8 = fragile(tmp_path / "fp32.onnx"), tmp_path / "int8.onnx"
    calibrated = calibrate(fp32, batches(), folder=tmp_path)
    write_qdq(calibrated, int8)
    wanted = OnnxRuntime().open(fp32).run(batches()[0])[0]

    def lost(path: Path, runtime: str) -> Gap:
        """Percent of the output that is wrong."""
        error = 100 * output_divergence(OnnxRuntime().open(path).run(batches()[0])[0], wanted, classes=False)
        return Gap("accuracy", 100.0, 100.0 - error, error, labelled=True)

    times = times or Times(EVEN, HALF)
    return MixRequest(
        fp32,
        int8,
        calibrated,
        tmp_path,
        timed=more.pop("timed", ("openvino",)),
        judged="onnxruntime",
        lost=lost if allowed is not None else None,
        allowed=allowed,
        samples=batches(1),
        clock=replace(current_clock(), layer_times=times.layer_times, artifacts=times.artifacts),
        **more,
    )


def test_the_fragile_layer_alone_stays_float_and_says_why(tmp_path):
    found = mix(request(tmp_path, allowed=1.0))
    said = "for the accuracy: 100.0 % of the error that int8 makes at the outputs"
    assert found.shared.keep_float == {"make_e": said}
    assert found.accuracy["int8"] > 10 > 1.0 >= found.accuracy["mixed"]
    # Three layers of 0.5 ms and one of 1 ms, with 0.001 for every layer before one of another precision.
    (tried,) = found.accuracy["trials"]
    assert tried.pop("predicted_ms") == pytest.approx(2.5, abs=0.01)
    assert tried == {"float_layers": 1, "lost": found.accuracy["mixed"], "layers": ["make_e"]}
    assert found.accuracy["needed"] is None
    assert found.shared.why == "1 layer stays float for the accuracy; 1.60 times as fast as float in OpenVINO"
    assert max(found.errors, key=lambda layer: found.errors[layer]) == "make_e"


def test_int8_within_the_bound_and_nowhere_slower_stays_as_it_is(tmp_path):
    found = mix(request(tmp_path, allowed=99.0))
    assert not found.shared.keep_float
    assert not found.errors
    assert found.shared.why == "every layer that can be is int8"
    assert found.accuracy["float"] is None


def test_a_layer_that_int8_slows_down_stays_float_with_both_times(tmp_path):
    times = Times(EVEN, {**HALF, "make_c": 1.4})
    found = mix(request(tmp_path, allowed=99.0, times=times))
    assert found.shared.keep_float == {"make_c": "int8 is not faster here: 1.4 against 1 ms in OpenVINO"}
    # 1.4 + 3 * 0.5 = 2.9 against 1 + 3 * 0.5 = 2.5 and 4.
    assert found.shared.against["openvino"]["int8"].ratio == pytest.approx(2.9 / 2.5)
    assert found.shared.against["openvino"]["float"].ratio == pytest.approx(4 / 2.5)


def test_without_data_only_time_is_looked_at(tmp_path):
    found = mix(request(tmp_path, allowed=None, times=Times(EVEN, {**HALF, "make_c": 1.4})))
    assert set(found.shared.keep_float) == {"make_c"}
    assert found.accuracy == {}


def test_a_bound_that_no_mix_meets_says_which_drop_is_needed(tmp_path):
    """Not even the float file: it is judged against another model."""
    asked = request(tmp_path, allowed=0.5)

    def lost(path: Path, runtime: str) -> Gap:
        return Gap("accuracy", 90.0, 87.87, 2.13 if path == asked.fp32 else 4.0, labelled=True)

    found = mix(replace(asked, lost=lost))
    assert not found.shared.keep_float
    assert found.accuracy["needed"] == 2.13
    said = (
        "no int8 file loses at most 0.5 points of accuracy: the pruned model in float already loses 2.13; "
        "--accuracy-drop 2.2 is needed"
    )
    assert found.remarks == (said,)


def test_agreement_in_place_of_labels_is_said(tmp_path):
    asked = request(tmp_path, allowed=0.5)
    found = mix(replace(asked, lost=lambda path, runtime: Gap("top-1", 100.0, 96.0, 4.0, labelled=False)))
    assert "0.5 points of agreement with the dense model (top-1; the data has no labels)" in found.remarks[0]
    found = mix(replace(asked, lost=lambda path, runtime: Gap("relative error", 100.0, 96.0, 4.0, labelled=False)))
    assert "0.5 points of relative error against the dense model (the data has no labels)" in found.remarks[0]


def test_where_only_all_float_would_keep_it_the_int8_file_stays_and_the_drop_is_said(tmp_path):
    asked = request(tmp_path, allowed=0.5)

    def lost(path: Path, runtime: str) -> Gap:
        return Gap("accuracy", 90.0, 87.0, 0.0 if path == asked.fp32 else 3.0, labelled=True)

    found = mix(replace(asked, lost=lost))
    assert not found.shared.keep_float
    assert "no mix with an int8 layer keeps it; --accuracy-drop 3 is needed" in found.remarks[0]


def test_a_runtime_gets_its_own_file_where_the_shared_one_costs_it_a_tenth(tmp_path):
    """Here both runtimes take the same for a layer, so the shared file is as good, and there is one."""
    found = mix(request(tmp_path, allowed=99.0, timed=("openvino", "onnxruntime")))
    assert not found.own
    times = Times(EVEN, {**HALF, "make_c": 2.5})  # in ONNX Runtime, and OpenVINO is not measured
    found = mix(request(tmp_path, allowed=99.0, timed=("onnxruntime",), times=times))
    assert not found.shared.keep_float
    own = found.own["onnxruntime"]
    assert set(own.keep_float) == {"make_c"}
    # 2.5 + 3 * 0.5 = 4 of the shared file against 2.5.
    assert own.why.startswith("the shared file takes ONNX Runtime 1.60 times as long; 1 stays float")


def test_a_runtime_that_is_timed_alone_gets_its_own_file_for_less(tmp_path):
    """1.15 + 3 * 0.5 = 2.65 of the shared file against 2.5: nothing else would have to run that one."""
    times = Times(EVEN, {**HALF, "make_c": 1.15})
    found = mix(request(tmp_path, allowed=99.0, timed=("onnxruntime",), times=times))
    assert found.own["onnxruntime"].why.startswith("the shared file takes ONNX Runtime 1.06 times as long")
