from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deploypruner.errors import InputError
from deploypruner.measure import (
    describe_file,
    detect_precision,
    environment,
    find_warnings,
    make_rows,
    read_timing,
    write_timing,
)
from deploypruner.measure.warnings import is_bimodal
from deploypruner.records import Artifact, Cost, Precision, Quality, Timing

QUIET = {"busy_cores": 0.1, "cores": 4}


def timing(
    name: str,
    ms: float,
    *,
    path: Path = Path("m"),
    runtime: str = "openvino",
    precision: Precision = "fp32",
    pattern: str = "dense",
    threads: int = 1,
) -> Timing:
    artifact = Artifact(name, path, "onnx", precision, pattern, Cost(macs=10, params=5, nonzero=4))
    samples = np.full((10, 20), round(ms * 1e6), dtype=np.int64)
    return Timing(artifact, runtime, threads, samples, 0.5, 7, 1000, {"NUM_STREAMS": "1"})


def with_samples(samples_ns: np.ndarray) -> Timing:
    return dataclasses.replace(timing("m", 1.0), samples_ns=samples_ns.astype(np.int64))


@pytest.fixture
def four(tmp_path: Path) -> list[Timing]:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"x" * 123)
    return [
        timing("pruned int8", 1.0, path=path, precision="int8", pattern="channel"),
        timing("dense int8", 2.0, path=path, precision="int8"),
        timing("dense fp32", 4.0, path=path),
        timing("pruned fp32", 8.0, path=path, pattern="channel"),
    ]


def test_the_dense_fp32_row_comes_first_and_ratios_are_against_it(four: list[Timing]) -> None:
    rows = make_rows(four, [None] * 4, floor=0.01)
    assert [(row.name, row.ratio, row.verdict) for row in rows] == [
        ("dense fp32", 1.0, "indistinguishable"),
        ("pruned int8", 4.0, "faster"),
        ("dense int8", 2.0, "faster"),
        ("pruned fp32", 0.5, "slower"),
    ]


def test_same_precision_is_against_dense_of_that_precision(four: list[Timing]) -> None:
    rows = {row.name: row.same_precision for row in make_rows(four, [None] * 4, floor=0.01)}
    assert rows["dense fp32"] is None
    assert rows["dense int8"] is None
    assert rows["pruned int8"] is not None
    assert (rows["pruned int8"].against, rows["pruned int8"].ratio) == ("dense int8", 2.0)
    assert rows["pruned fp32"] is not None
    assert (rows["pruned fp32"].against, rows["pruned fp32"].ratio) == ("dense fp32", 0.5)


def test_each_runtime_has_its_own_baseline(four: list[Timing]) -> None:
    path = four[0].artifact.path
    dense = timing("dense fp32", 3.0, path=path, runtime="onnxruntime")
    pruned = timing("pruned fp32", 1.0, path=path, runtime="onnxruntime", pattern="channel")
    mixed = [pruned, *four, dense]
    rows = make_rows(mixed, [None] * 6, floor=0.01)
    assert [row.runtime for row in rows] == ["onnxruntime"] * 2 + ["openvino"] * 4
    assert [row.ratio for row in rows][:3] == [1.0, 3.0, 1.0]
    assert rows[1].same_precision is not None
    assert rows[1].same_precision.ratio == 3.0


def test_without_a_dense_row_of_its_precision_there_is_no_such_comparison(four: list[Timing]) -> None:
    rows = make_rows([four[2], four[0]], [None] * 2, floor=0.01)
    assert [(row.name, row.same_precision) for row in rows] == [("dense fp32", None), ("pruned int8", None)]


def test_without_a_dense_row_the_first_is_the_baseline(four: list[Timing]) -> None:
    rows = make_rows([four[3], four[0]], [None] * 2, floor=0.01)
    assert [(row.name, row.ratio) for row in rows] == [("pruned fp32", 1.0), ("pruned int8", 8.0)]


def test_a_row_carries_quality_cost_and_memory(four: list[Timing]) -> None:
    quality = Quality(accuracy=91.5, agreement=0.98, agreement_kind="top-1", samples=50)
    row = make_rows(four[2:], [None, quality], floor=0.01)[1]
    assert (row.name, row.accuracy, row.agreement, row.agreement_kind) == ("pruned fp32", 91.5, 0.98, "top-1")
    assert (row.macs, row.params, row.nonzero, row.bytes, row.peak_rss_bytes) == (10, 5, 4, 123, 1000)
    assert (row.median_ms, row.p95_ms, row.p99_ms, row.samples) == (8.0, 8.0, None, 200)


def test_the_weights_of_an_ir_count_as_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "m.xml").write_bytes(b"x" * 10)
    (tmp_path / "m.bin").write_bytes(b"x" * 90)
    assert make_rows([timing("m", 1.0, path=tmp_path / "m.xml")], [None], floor=0.01)[0].bytes == 100


def test_a_timing_survives_the_disk(tmp_path: Path) -> None:
    before = timing("dense fp32", 1.5)
    write_timing(before, tmp_path / "t.json")
    after = read_timing(tmp_path / "t.json")
    assert np.array_equal(after.samples_ns, before.samples_ns)
    same = {field.name: getattr(before, field.name) for field in dataclasses.fields(before)}
    same.pop("samples_ns")
    assert all(getattr(after, name) == value for name, value in same.items())


@pytest.mark.parametrize("text", ["{}", "[]"])
def test_a_file_that_is_no_timing_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"t\.json' does not hold a timing"):
        read_timing(path)


def save_onnx(path: Path, *nodes: onnx.NodeProto) -> Path:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    onnx.save(helper.make_model(helper.make_graph(list(nodes), "g", [x], [y])), path)
    return path


def test_precision_of_onnx_is_told_by_its_operators_not_its_names(tmp_path: Path) -> None:
    plain = helper.make_node("Relu", ["x"], ["y"], name="DequantizeLinear")
    quantized = helper.make_node("DequantizeLinear", ["x", "s"], ["y"], name="plain")
    assert detect_precision(save_onnx(tmp_path / "a.onnx", plain)) == "fp32"
    assert detect_precision(save_onnx(tmp_path / "b.onnx", quantized)) == "int8"


@pytest.mark.parametrize(
    ("layer", "precision"),
    [
        ('<layer type="FakeQuantize"/>', "int8"),
        ('<layer type="Const"><data element_type="i8"/></layer>', "int8"),
        ('<layer type="Const"><data element_type="f32"/></layer>', "fp32"),
        ('<layer type="Parameter"><data element_type="u8"/></layer>', "fp32"),
    ],
)
def test_precision_of_an_ir_is_told_by_its_layers(tmp_path: Path, layer: str, precision: str) -> None:
    (tmp_path / "m.xml").write_text(f"<net><layers>{layer}</layers></net>")
    artifact = describe_file(tmp_path / "m.xml")
    assert (artifact.precision, artifact.format, artifact.name) == (precision, "openvino", "m.xml")


def test_a_damaged_ir_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.xml").write_text("<net><lay")
    with pytest.raises(InputError, match=r"m\.xml' is not a readable OpenVINO IR"):
        describe_file(tmp_path / "m.xml")


@pytest.mark.parametrize(("name", "message"), [("m.bin", "cannot be measured"), ("m.onnx", "no model file")])
def test_a_file_that_cannot_be_measured_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        describe_file(tmp_path / name)


def test_the_environment_is_json_and_states_versions() -> None:
    facts = json.loads(json.dumps(environment()))
    assert facts["cores"] >= 1
    assert facts["versions"]["numpy"] == np.__version__
    assert facts["time_utc"].endswith("+00:00")


def test_a_quiet_run_has_no_warnings() -> None:
    rng = np.random.default_rng(0)
    steady = with_samples(1e6 * rng.normal(1, 0.02, size=(20, 20)))
    assert find_warnings([steady], QUIET, settled=True, floor=0.01) == []


def test_a_busy_machine_is_named_with_its_numbers() -> None:
    busy = {"busy_cores": 3.9, "cores": 4}
    (text,) = find_warnings([timing("m", 1.0)], busy, settled=True, floor=0.01)
    assert "3.9 of 4 cores in use, 1 more needed" in text


def test_more_threads_than_cores_names_the_number_to_try() -> None:
    (text,) = find_warnings([timing("m", 1.0, threads=8)], QUIET, settled=True, floor=0.01)
    assert "8 threads share 4 cores" in text
    assert "--threads 4" in text


def test_an_ended_budget_asks_for_time() -> None:
    (text,) = find_warnings([timing("m", 1.0)], QUIET, settled=False, floor=0.03)
    assert "noise floor 3.0 %" in text
    assert "give more time" in text


def test_a_long_tail_is_named() -> None:
    samples = np.full((10, 20), 1_000_000)
    samples[:, :2] = 3_000_000
    (text,) = find_warnings([with_samples(samples)], QUIET, settled=True, floor=0.01)
    assert "p95 is far above the median (3.0x for 'm' on openvino)" in text


def test_two_speeds_are_named() -> None:
    samples = np.where(np.arange(200).reshape(10, 20) % 3, 1_000_000, 1_300_000)
    (text,) = find_warnings([with_samples(samples)], QUIET, settled=True, floor=0.01)
    assert "two speeds in the samples of 'm' on openvino" in text


@pytest.mark.parametrize("shape", ["normal", "uniform", "lognormal", "exponential"])
def test_one_hump_is_not_two(shape: str) -> None:
    rng = np.random.default_rng(5)
    noise = {
        "normal": rng.normal(1, 0.1, 2000),
        "uniform": rng.uniform(1, 2, 2000),
        "lognormal": rng.lognormal(0, 0.3, 2000),
        "exponential": 1 + rng.exponential(0.2, 2000),
    }[shape]
    assert not is_bimodal((1e6 * noise).astype(np.int64))
