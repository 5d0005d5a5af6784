"""`--allow-bf16`: what is float in bf16, as one more runtime, where the processor has it and the user allows it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import deploypruner as dp
from deploypruner import runtime
from deploypruner.build.timed import no_bf16
from deploypruner.device import facts
from deploypruner.errors import InputError, RecipeError
from deploypruner.export import exporters
from deploypruner.quantize.static import calibrate, write_qdq
from deploypruner.runtime import in_float32, measured_runtimes, runtimes
from deploypruner.runtime.on_openvino import OpenVino
from deploypruner.runtime.on_openvino_bf16 import OpenVinoBf16
from deploypruner.target import Target, detect
from deploypruner.verify.exported import BF16_BOUND, verify_exports
from tests.builds import pretended_timings, run_cli, tiny
from tests.int8_nets import Net, images

WITHOUT = Target("cpu", "An Old Processor", 2, ("avx2",))
WITH = replace(WITHOUT, processor="A New Processor", bf16_features=("avx512_bf16",))
needs_bf16 = pytest.mark.skipif(not detect().multiplies_bf16, reason="this processor has no instructions for bf16")


def this_is(monkeypatch, target):
    """What this machine says of itself, to who opens a file and to who begins a build."""
    for who in (facts, runtime):
        monkeypatch.setattr(who, "detect", lambda: target)


@pytest.fixture
def without(monkeypatch):
    this_is(monkeypatch, WITHOUT)


def two_convolutions(folder: Path) -> Path:
    net = Net(["n", 3, 8, 8])
    hidden = net.add("Relu", net.conv("x", 16, 3))
    path = folder / "two.onnx"
    onnx.save(net.model(net.conv(hidden, 16, 16)), path)
    return path


def test_either_instruction_is_enough_and_arms_is_another_matter():
    assert [replace(WITHOUT, bf16_features=(flag,)).multiplies_bf16 for flag in ("avx512_bf16", "amx_bf16")] == [1, 1]
    assert not replace(WITHOUT, bf16_features=("bf16",)).multiplies_bf16
    assert not WITHOUT.multiplies_bf16


def test_it_is_measured_only_with_permission_and_beside_its_own():
    assert measured_runtimes((), allow_bf16=False, target=WITH) == ("onnxruntime", "openvino")
    assert measured_runtimes((), allow_bf16=True, target=WITH) == ("onnxruntime", "openvino", "openvino-bf16")
    assert measured_runtimes(("openvino", "torch"), allow_bf16=True, target=WITH) == (
        "openvino",
        "openvino-bf16",
        "torch",
    )
    assert measured_runtimes(("openvino-bf16", "openvino"), allow_bf16=True, target=WITH) == (
        "openvino-bf16",
        "openvino",
    )
    assert measured_runtimes(("openvino-bf16",), allow_bf16=False, target=WITH) == ("openvino-bf16",)
    assert no_bf16(True, WITH) == no_bf16(False, WITH) == ""


def test_a_processor_without_it_takes_the_permission_and_says_that_nothing_changed():
    assert measured_runtimes((), allow_bf16=True, target=WITHOUT) == ("onnxruntime", "openvino")
    assert no_bf16(True, WITHOUT) == (
        "--allow-bf16 changed nothing: An Old Processor has no instructions for bf16; all that is float ran in f32"
    )
    assert no_bf16(False, WITHOUT) == ""


def test_a_system_that_does_not_describe_its_processor_is_not_taken_for_one_without():
    undescribed = replace(WITHOUT, described=False)
    assert "does not say whether An Old Processor multiplies in bf16" in no_bf16(True, undescribed)


def test_naming_the_runtime_there_is_refused_before_openvino_falls_back_to_f32(without, tmp_path):
    with pytest.raises(InputError, match="An Old Processor has no instructions for bf16") as refused:
        OpenVinoBf16().open(two_convolutions(tmp_path))
    assert refused.value.hint == "use --runtime openvino"
    outcome = run_cli("compile", "tiny.pt2", "--runtime", "openvino-bf16", "--out", str(tmp_path / "none"))
    outcome.assert_error(2, "An Old Processor has no instructions for bf16", "use --runtime openvino")
    assert not (tmp_path / "none").exists()


def test_a_permission_that_no_named_runtime_can_use_is_a_mistake(tmp_path):
    outcome = run_cli(
        *("compile", "tiny.pt2", "--runtime", "onnxruntime", "--allow-bf16", "--out", str(tmp_path / "none"))
    )
    outcome.assert_error(2, "--allow-bf16 allows nothing in onnxruntime", "add --runtime openvino")
    assert not (tmp_path / "none").exists()


def test_python_gives_the_permission_by_the_same_name(tmp_path):
    refused = {"out": tmp_path / "none", "macs": 0.5, "runtimes": ("onnxruntime",)}
    with pytest.raises(RecipeError, match="--allow-bf16 allows nothing in onnxruntime"):
        dp.compile(tiny(), torch.zeros(2, 3, 16, 16), allow_bf16=True, **refused)


def test_the_lines_to_load_a_file_say_the_precision_that_was_timed():
    usual, other = (kind.usage(Path("m.onnx"), ["x"], threads=1)[1] for kind in (OpenVino, OpenVinoBf16))
    assert "'INFERENCE_PRECISION_HINT': 'f32'" in usual
    assert other == usual.replace("'f32'", "'bf16'")


def test_answers_in_bf16_are_compared_with_those_in_float32():
    assert [in_float32(name) for name in ("openvino-bf16", "openvino", "onnxruntime")] == [
        *("openvino", "openvino", "onnxruntime"),
    ]


@needs_bf16
@pytest.mark.slow
def test_float_layers_run_in_it_and_int8_ones_stay_int8(tmp_path):
    fp32, x = two_convolutions(tmp_path), images(4)
    calibrated = calibrate(fp32, [[x]], folder=tmp_path)
    mixed = tmp_path / "mixed.onnx"
    write_qdq(calibrated, mixed, keep_float={calibrated.layers[1]: "to see what it runs in"})

    def executed(runtime: str, file: Path) -> list[str]:
        nodes = runtimes.get(runtime)().profile(file, [x], threads=1, calls=0)
        return [node.precisions for node in nodes if node.kind.startswith("Convolution")]

    assert not any("bf16" in said for file in (fp32, mixed) for said in executed("openvino", file))
    assert all(said.endswith(">bf16") for said in executed("openvino-bf16", fp32))
    first, second = executed("openvino-bf16", mixed)
    assert first.startswith("u8,i8") or first.startswith("i8,i8")
    assert second.startswith("bf16")


@needs_bf16
@pytest.mark.slow
def test_its_rounding_is_that_of_bf16_and_passes_as_such(tmp_path):
    net = tiny()
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    exporters.get("onnx")().write(net, (torch.from_numpy(x),), tmp_path / "model.fp32.onnx", dynamic_batch=False)
    files = {"model.fp32.onnx": tmp_path / "model.fp32.onnx"}
    checks = verify_exports(net, files, [[x]], dynamic_batch=False, measured=("openvino", "openvino-bf16"))
    exact, rounded = checks[1:]
    assert (exact.name, exact.passed) == ("torch = model.fp32.onnx (OpenVINO)", True)
    assert (rounded.name, rounded.tolerance) == ("torch ~ model.fp32.onnx (OpenVINO in bf16)", BF16_BOUND)
    assert 2**-12 < rounded.max_abs_diff < BF16_BOUND


@needs_bf16
@pytest.mark.slow
def test_a_build_times_and_judges_it_as_a_candidate_of_its_own(tmp_path):
    build = tmp_path / "build"
    with pretended_timings():
        outcome = run_cli(
            *("compile", "tiny.pt2", "--data", "labelled.npz", "--epochs", "0", "--runtime", "openvino"),
            *("--allow-bf16", "--seconds", "1", "--out", str(build)),
        )
    assert outcome.code == 0, outcome.err
    report = json.loads((build / "report.json").read_text())
    rows = [(row["name"], row["runtime"]) for row in report["rows"]]
    assert rows == [
        (name, runtime)
        for runtime in ("openvino", "openvino-bf16")
        for name in ("dense fp32", "dense int8", "pruned fp32", "pruned int8")
    ]
    agreements = {(row["name"], row["runtime"]): row["agreement"] for row in report["rows"]}
    assert agreements["dense fp32", "openvino"] == 1.0
    names = [check["name"] for check in report["verification"]]
    assert "torch ~ model.fp32.onnx (OpenVINO in bf16)" in names
    assert "model.int8.onnx ~ model.int8.xml (OpenVINO in bf16)" in names
    assert report["settings"]["runtime_settings"].keys() == {"openvino", "openvino-bf16"}
    assert "openvino-bf16" in (build / "report.html").read_text()


@pytest.mark.slow
def test_a_build_on_a_processor_without_it_says_so(without, tmp_path):
    build = tmp_path / "build"
    with pretended_timings():
        outcome = run_cli(
            *("compile", "tiny.pt2", "--epochs", "0", "--runtime", "openvino", "--allow-bf16"),
            *("--seconds", "1", "--out", str(build)),
        )
    assert outcome.code == 0, outcome.err
    report = json.loads((build / "report.json").read_text())
    assert {row["runtime"] for row in report["rows"]} == {"openvino"}
    assert any(text.startswith("--allow-bf16 changed nothing: An Old Processor") for text in report["warnings"])


@pytest.mark.slow
def test_quantize_times_both_forms_in_it_or_says_why_not(tmp_path, monkeypatch):
    two_convolutions(tmp_path)
    np.savez(tmp_path / "d.npz", x=images(16), x_val=images(16, seed=1))
    asked = ("quantize", "two.onnx", "--data", "d.npz", "--no-quantize-repair", "--seconds", "1", "--allow-bf16")
    if detect().multiplies_bf16:
        outcome = run_cli(*asked, "--out", "here", folder=tmp_path)
        rows = json.loads((tmp_path / "here" / "quantize.json").read_text())["rows"]
        assert [row["runtime"] for row in rows] == ["openvino", "openvino", "openvino-bf16", "openvino-bf16"]
        assert "bf16: with INFERENCE_PRECISION_HINT=bf16 instead of f32: dense fp32 " in " ".join(outcome.out.split())
    this_is(monkeypatch, WITHOUT)
    outcome = run_cli(*asked, "--out", "there", folder=tmp_path)
    found = json.loads((tmp_path / "there" / "quantize.json").read_text())
    assert [row["runtime"] for row in found["rows"]] == ["openvino", "openvino"]
    assert any(text.startswith("--allow-bf16 changed nothing: ") for text in found["warnings"])
