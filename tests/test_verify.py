from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from deploypruner.errors import InputError
from deploypruner.export import exporters
from deploypruner.export.to_openvino import write_ir
from deploypruner.quantize import quantize_static
from deploypruner.runtime.on_onnxruntime import OnnxRuntime
from deploypruner.target import detect
from deploypruner.verify import compare_outputs, compare_relative, flatten_outputs, verify_exports

pytestmark = pytest.mark.slow


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_largest_difference_over_all_outputs_decides() -> None:
    got, want = [array(1, 2), array(5)], [array(1, 2.5), array(4)]
    assert compare_outputs("a = b", got, want, tolerance=1.0).passed
    check = compare_outputs("a = b", got, want, tolerance=0.9, detail="batch 2")
    assert (check.name, check.max_abs_diff, check.tolerance, check.passed, check.detail) == (
        "a = b",
        1.0,
        0.9,
        False,
        "batch 2",
    )


def test_relative_error_by_hand() -> None:
    want = [array(3, 4)]
    assert compare_relative("a", [array(3, 4.5)], want, tolerance=0.1).max_abs_diff == pytest.approx(0.1)
    assert compare_relative("a", [array(0, 0)], want, tolerance=0.5).max_abs_diff == 1.0
    assert compare_relative("a", [array(0)], [array(0)], tolerance=0.0).passed
    assert compare_relative("a", [array(1)], [array(0)], tolerance=9.0).max_abs_diff == math.inf


@pytest.mark.parametrize("compare", [compare_outputs, compare_relative])
@pytest.mark.parametrize(
    ("got", "detail"),
    [
        ([np.zeros((2, 1), np.float32)], "output 0 has shape [2, 1] instead of [2]"),
        ([array(1, math.nan)], "output 0 holds NaN or infinite values"),
        ([array(1, math.inf)], "output 0 holds NaN or infinite values"),
        ([], "0 outputs instead of 1"),
    ],
)
def test_what_cannot_be_compared_fails_and_says_why(compare, got, detail: str) -> None:  # type: ignore[no-untyped-def]
    check = compare("a = b", got, [array(1, 2)], tolerance=100.0)
    assert not check.passed
    assert math.isnan(check.max_abs_diff)
    assert check.detail == detail


def test_nothing_compared_is_not_a_pass() -> None:
    assert not compare_outputs("a = b", [], [], tolerance=1.0).passed


def test_unsigned_and_bool_outputs_do_not_wrap() -> None:
    assert compare_outputs("a", [np.uint8([0])], [np.uint8([255])], tolerance=1).max_abs_diff == 255
    assert compare_outputs("a", [np.array([True])], [np.array([False])], tolerance=0).max_abs_diff == 1


def test_nested_outputs_flatten_in_order() -> None:
    first, second = torch.zeros(1), torch.ones(2, requires_grad=True)
    assert [a.tolist() for a in flatten_outputs({"a": first, "b": (second, None)})] == [[0.0], [1.0, 1.0]]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.hardswish(self.body(x)).mean((2, 3)))


FEEDS = [[np.random.default_rng(i).standard_normal((2, 3, 8, 8), dtype=np.float32)] for i in range(2)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Net, dict[str, Path]]:
    torch.manual_seed(0)
    model = Net().eval()
    folder = tmp_path_factory.mktemp("build")
    names = ("model.fp32.onnx", "model.int8.onnx", "model.int8.xml", "model.pt2")
    files = {name: folder / name for name in names}
    example = [torch.zeros(2, 3, 8, 8)]
    exporters.get("onnx")().write(model, example, files["model.fp32.onnx"], dynamic_batch=True)
    exporters.get("pt2")().write(model, example, files["model.pt2"], dynamic_batch=True)
    quantize_static(
        files["model.fp32.onnx"], files["model.int8.onnx"], calibration=FEEDS, reduce_range=detect().saturates
    )
    write_ir(files["model.int8.onnx"], files["model.int8.xml"])
    return model, files


def scaled(source: Path, target: Path, name: str, factor: float) -> Path:
    """Copy an ONNX file with one initializer multiplied."""
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(
                numpy_helper.from_array((numpy_helper.to_array(tensor) * factor).astype(np.float32), name)
            )
            onnx.save(model, target)
            return target
    raise AssertionError(f"no initializer called '{name}'")


def test_every_form_is_compared_in_every_runtime_and_passes(built: tuple[Net, dict[str, Path]]) -> None:
    model, files = built
    checks = verify_exports(model, files, FEEDS)
    assert [check.name for check in checks] == [
        "model.fp32.onnx is valid ONNX",
        "torch = model.fp32.onnx (ONNX Runtime)",
        "torch = model.fp32.onnx (OpenVINO)",
        "model.int8.onnx is valid ONNX",
        "torch ~ model.int8.onnx literal",
        "model.int8.onnx literal = ONNX Runtime",
        "model.int8.onnx literal = OpenVINO",
        "model.int8.onnx = model.int8.xml (OpenVINO)",
        "torch = model.pt2 (torch)",
    ]
    assert [check.name for check in checks if not check.passed] == []
    assert checks[1].detail == "batch 1, 3, 2"


def test_only_the_runtimes_that_are_measured_are_asked(
    built: tuple[Net, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, files = built
    monkeypatch.setattr(OnnxRuntime, "open", _not_asked)
    fp32 = {"model.fp32.onnx": files["model.fp32.onnx"]}
    checks = verify_exports(model, fp32, FEEDS, measured=("openvino",))
    assert [check.name for check in checks][1:] == ["torch = model.fp32.onnx (OpenVINO)"]
    assert all(check.passed for check in checks)


def test_a_file_that_no_measured_runtime_opens_is_still_proved(built: tuple[Net, dict[str, Path]]) -> None:
    model, files = built
    checks = verify_exports(model, {"x.xml": files["model.int8.xml"]}, FEEDS, measured=("onnxruntime",))
    assert [check.name for check in checks] == ["torch = x.xml (OpenVINO)"]


def test_a_runtime_that_fails_is_a_row_that_did_not_pass(
    built: tuple[Net, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, files = built
    monkeypatch.setattr(OnnxRuntime, "open", _not_asked)
    checks = verify_exports(model, files, FEEDS)
    failed = {check.name: check.detail for check in checks if not check.passed}
    literal = "model.int8.onnx literal"
    assert failed == dict.fromkeys(
        [
            "torch = model.fp32.onnx (ONNX Runtime)",
            f"torch ~ {literal}",
            f"{literal} = ONNX Runtime",
            f"{literal} = OpenVINO",  # there is nothing to compare it with
        ],
        "no room for 7 tensors",
    )
    assert "torch = model.fp32.onnx (OpenVINO)" in {check.name for check in checks if check.passed}


def test_a_damaged_program_is_a_row_that_did_not_pass(built: tuple[Net, dict[str, Path]], tmp_path: Path) -> None:
    half = built[1]["model.pt2"].read_bytes()
    (tmp_path / "model.pt2").write_bytes(half[: len(half) // 2])
    (check,) = verify_exports(built[0], {"model.pt2": tmp_path / "model.pt2"}, FEEDS)
    assert not check.passed
    assert math.isnan(check.max_abs_diff)
    assert str(tmp_path / "model.pt2") in check.detail


def _not_asked(*_: object, **__: object) -> None:
    raise ValueError("no room for 7 tensors\nat line 3")


def test_an_ir_without_its_onnx_is_compared_with_torch(built: tuple[Net, dict[str, Path]], tmp_path: Path) -> None:
    model, files = built
    write_ir(files["model.fp32.onnx"], tmp_path / "alone.xml")
    (check,) = verify_exports(model, {"alone.xml": tmp_path / "alone.xml"}, FEEDS)
    assert (check.name, check.passed) == ("torch = alone.xml (OpenVINO)", True)


def test_a_weight_off_by_a_thousandth_fails_fp32(built: tuple[Net, dict[str, Path]], tmp_path: Path) -> None:
    model, files = built
    path = scaled(files["model.fp32.onnx"], tmp_path / "off.onnx", "head.weight", 1.001)
    checks = verify_exports(model, {"off.onnx": path}, FEEDS)
    assert [check.passed for check in checks] == [True, False, False]  # it is valid, and wrong


def test_a_file_that_is_not_valid_fails_its_check(built: tuple[Net, dict[str, Path]], tmp_path: Path) -> None:
    model, files = built
    unsorted = onnx.load(files["model.fp32.onnx"])
    nodes = [copy.deepcopy(node) for node in unsorted.graph.node]
    del unsorted.graph.node[:]
    unsorted.graph.node.extend(nodes[::-1])
    onnx.save(unsorted, tmp_path / "off.onnx")
    first, *others = verify_exports(model, {"off.onnx": tmp_path / "off.onnx"}, FEEDS)
    assert (first.name, first.passed, first.max_abs_diff) == ("off.onnx is valid ONNX", False, 1.0)
    assert "topologically sorted" in first.detail
    assert all(check.passed for check in others)  # both runtimes sort for themselves


def test_a_wrong_scale_fails_the_literal_int8_check(built: tuple[Net, dict[str, Path]], tmp_path: Path) -> None:
    model, files = built
    path = scaled(files["model.int8.onnx"], tmp_path / "off.onnx", "head.weight_scale", 10.0)
    literal = verify_exports(model, {"off.onnx": path}, FEEDS)[1]
    assert literal.name == "torch ~ off.onnx literal"
    assert not literal.passed
    assert literal.max_abs_diff > literal.tolerance


def test_an_ir_of_another_model_fails(built: tuple[Net, dict[str, Path]], tmp_path: Path) -> None:
    model, files = built
    other = scaled(files["model.int8.onnx"], tmp_path / "other.onnx", "head.weight_scale", 1.1)
    write_ir(other, tmp_path / "model.int8.xml")
    pair = {"model.int8.onnx": files["model.int8.onnx"], "model.int8.xml": tmp_path / "model.int8.xml"}
    failed = [check.name for check in verify_exports(model, pair, FEEDS) if not check.passed]
    assert failed == ["model.int8.onnx = model.int8.xml (OpenVINO)"]


def test_a_training_module_is_compared_in_evaluation_mode_and_keeps_its_mode(
    built: tuple[Net, dict[str, Path]],
) -> None:
    model, files = built
    model.train()
    checks = verify_exports(model, {"model.pt2": files["model.pt2"]}, FEEDS)
    assert model.training
    model.eval()
    assert checks[0].passed


def test_a_fixed_batch_is_run_as_given(built: tuple[Net, dict[str, Path]]) -> None:
    model, files = built
    (check,) = verify_exports(model, {"model.pt2": files["model.pt2"]}, FEEDS, dynamic_batch=False)
    assert check.detail == "batch 2"


def test_no_inputs_is_an_error(built: tuple[Net, dict[str, Path]]) -> None:
    with pytest.raises(InputError, match="verification has no inputs"):
        verify_exports(built[0], built[1], [])
