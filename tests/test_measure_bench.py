"""Files of any origin, measured side by side, in Python and on the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from deploypruner.cli.bench import _as_text
from deploypruner.errors import InputError
from deploypruner.measure import bench, detect_precision, openers, pair_up
from deploypruner.measure.inputs import random_feeds
from deploypruner.measure.rows import file_bytes
from deploypruner.measure.shapes import side_by_side
from deploypruner.records import TensorSpec
from tests.builds import run_cli

pytestmark = pytest.mark.slow

FLOAT, HALF, INT, BOOL = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL


def save_linear(path: Path, shape: list[int | str], kind: int = FLOAT) -> Path:
    """y = x @ W, W a 3 x 2 matrix."""
    weight = np.ones((3, 2), dtype=np.float16 if kind == HALF else np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, [*shape[:-1], 2])],
        [numpy_helper.from_array(weight, "w")],
    )
    return save(graph, path)


def save_words(path: Path) -> Path:
    """An embedding of ten rows, and a mask: both of any batch and any length."""
    sizes = ["batch", "length"]
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["found"]),
            helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
            helper.make_node("Cast", ["column"], ["kept"], to=FLOAT),
            helper.make_node("Mul", ["found", "kept"], ["y"]),
        ],
        "words",
        [helper.make_tensor_value_info("ids", INT, sizes), helper.make_tensor_value_info("mask", BOOL, sizes)],
        [helper.make_tensor_value_info("y", FLOAT, [*sizes, 4])],
        [
            numpy_helper.from_array(np.ones((10, 4), dtype=np.float32), "table"),
            numpy_helper.from_array(np.array([-1]), "last"),
        ],
    )
    return save(graph, path)


def save(graph: onnx.GraphProto, path: Path) -> Path:
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def save_program(path: Path) -> Path:
    torch.export.save(torch.export.export(nn.Linear(3, 2).eval(), (torch.zeros(1, 3),)), path)
    return path


def jobs(paths: list[Path], names: list[str] | None = None) -> list[tuple[str, str]]:
    return [(artifact.name, runtime) for artifact, runtime in pair_up(paths, names)]


def test_each_file_is_timed_where_it_would_be_deployed(tmp_path: Path) -> None:
    model, program = save_linear(tmp_path / "m.onnx", [1, 3]), save_program(tmp_path / "m.pt2")
    assert jobs([model]) == [("m.onnx", "onnxruntime"), ("m.onnx", "openvino")]
    assert jobs([program]) == [("m.pt2", "torch")]
    assert jobs([model, program]) == [("m.onnx", "onnxruntime"), ("m.onnx", "openvino"), ("m.pt2", "torch")]
    assert jobs([model, program], ["torch", "openvino"]) == [("m.pt2", "torch"), ("m.onnx", "openvino")]
    assert openers() == {".onnx", ".xml"}
    assert openers(["torch"]) == {".pt2"}


def test_a_file_none_of_the_runtimes_opens_names_one_that_does(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"openvino cannot open '.*m\.pt2'[\s\S]*hint: use --runtime torch"):
        pair_up([save_program(tmp_path / "m.pt2")], ["openvino"])


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [
        save_linear(tmp_path / folder / "m.onnx", [1, 3]) for folder in ("a", "b") if not (tmp_path / folder).mkdir()
    ]
    names = [name for name, _ in jobs([*paths, paths[0]], ["openvino"])]
    assert names == [str(paths[0]), str(paths[1]), f"{paths[0]} (2)"]


def test_everything_is_in_the_json(tmp_path: Path) -> None:
    good = save_linear(tmp_path / "good.onnx", [8, 3])
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"junk")
    found = bench([good, bad], runtimes=["onnxruntime"], budget_s=0.1, seed=3)
    told = json.loads(json.dumps(found.as_json()))
    (row,) = told["rows"]
    assert row["name"] == "good.onnx"
    assert row["settings"]["fed x"] == "8x3 float32"
    samples = np.array(row["samples_ns"])
    assert samples.size == row["samples"]
    assert row["median_ms"] == np.median(samples) / 1e6
    assert len(told["twin"]["samples_ns"]) == len(samples)
    assert [failure["name"] for failure in told["failures"]] == ["bad.onnx"]
    asked = {"threads": 1, "seconds": 0.1, "interval": 0.02, "input_shapes": {}, "seed": 3, "target": "cpu"}
    assert told["settings"] == asked
    assert told["environment"]["cpu"]
    assert {"noise_floor", "warnings", "conditions", "certifiable", "reason", "settled"} <= set(told)


def test_half_precision_several_inputs_and_open_sizes_are_fed(tmp_path: Path) -> None:
    words = save_words(tmp_path / "words.onnx")
    shapes = {"ids": [2, 7], "mask": [2, 7]}
    found = bench([words], runtimes=["onnxruntime", "openvino"], input_shapes=shapes, budget_s=0.1)
    assert [timing.settings["fed ids"] for timing in found.measured.timings] == ["2x7 int64"] * 2
    half = save_linear(tmp_path / "half.onnx", ["batch", 3], HALF)
    found = bench([half], runtimes=["onnxruntime", "openvino"], budget_s=0.1)
    assert [timing.settings["fed x"] for timing in found.measured.timings] == ["1x3 float16"] * 2


def test_a_program_is_measured_by_torch(tmp_path: Path) -> None:
    found = bench([save_program(tmp_path / "m.pt2")], budget_s=0.1)
    assert [(row.runtime, row.format, row.precision) for row in found.rows] == [("torch", "pt2", "fp32")]


def test_an_open_size_that_nobody_named_is_asked_for() -> None:
    specs = [TensorSpec("ids", (None, None), "int64"), TensorSpec("mask", (None, None), "bool")]
    with pytest.raises(InputError, match=r"'ids' has shape \[\?, \?\][\s\S]*hint: give it: --input-shape ids=1,128"):
        random_feeds(specs)
    with pytest.raises(InputError, match=r"hint: give it: --input-shape mask=4,128"):
        random_feeds(specs, shapes={"ids": [4, 9]})


def test_inputs_that_are_not_named_take_the_batch_of_those_that_are() -> None:
    specs = [TensorSpec("ids", (None, None), "int64"), TensorSpec("age", (None, 1), "float32")]
    assert [array.shape for array in random_feeds(specs, shapes={"ids": [4, 9]})] == [(4, 9), (4, 1)]
    assert random_feeds(specs[1:])[0].shape == (1, 1)


def test_weights_in_other_files_count(tmp_path: Path) -> None:
    path = save_linear(tmp_path / "m.onnx", [1, 3])
    inside = file_bytes(path)
    assert inside == path.stat().st_size
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="elsewhere.weights", size_threshold=0)
    beside = (tmp_path / "elsewhere.weights").stat().st_size
    assert beside >= 24
    assert file_bytes(path) == path.stat().st_size + beside
    found = bench([path], runtimes=["onnxruntime"], budget_s=0.1)
    assert found.rows[0].bytes == file_bytes(path)


def test_precision_of_a_program_is_told_by_its_graph(tmp_path: Path) -> None:
    assert detect_precision(save_program(tmp_path / "m.pt2")) == "fp32"
    (tmp_path / "junk.pt2").write_bytes(b"junk")
    assert detect_precision(tmp_path / "junk.pt2") == "fp32"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    save_linear(folder / "m.onnx", [1, 3])
    save_words(folder / "words.onnx")
    (folder / "bad.onnx").write_bytes(b"junk")
    return folder


QUICK = ("--runtime", "onnxruntime", "--seconds", "1", "--interval", "1000")


def test_what_fails_is_shown_under_the_table_and_ends_in_an_error(folder: Path) -> None:
    outcome = run_cli("bench", "m.onnx", "bad.onnx", *QUICK, "--json", "found.json", folder=folder)
    assert outcome.code == 2
    assert outcome.err.startswith("error: 1 of 2 artifacts could not be measured\n\nhint: ")
    assert "\n  m.onnx " in outcome.out
    assert "\nfailed: cannot measure 'bad.onnx' on onnxruntime: " in outcome.out
    told = json.loads((folder / "found.json").read_text())
    assert [row["name"] for row in told["rows"]] == ["m.onnx"]
    assert "cannot load 'bad.onnx'" in told["failures"][0]["message"]


def test_json_on_stdout_is_nothing_else(folder: Path) -> None:
    outcome = run_cli("bench", "m.onnx", *QUICK, "--json", "-", folder=folder)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["rows"][0]["name"] == "m.onnx"
    assert "m.onnx" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("words.onnx", *QUICK), ("input 'ids' has shape [?, ?]", "--input-shape ids=1,128")),
        (("m.onnx", *QUICK, "--input-shape", "x=2,3"), ("input 'x' has shape [1, 3], asked for [2, 3]", "fixed")),
        (("m.onnx", *QUICK, "--input-shape", "y=1,3"), ("no input called 'y'",)),
        (("m.onnx", *QUICK, "--input-shape", "x=0,3"), ("'x=0,3' is not NAME=1,3,224,224",)),
        (("m.onnx", *QUICK, "--json", "no/where.json"), ("cannot write 'no/where.json'",)),
        (("m.onnx", "--interval", "0"), ("0.0 is not in the range 0<x<=2147483647",)),
        (("m.onnx", "--runtime", "torch"), ("torch cannot open 'm.onnx'", "use --runtime onnxruntime")),
    ],
)
def test_a_mistake_is_named_with_what_to_try(folder: Path, arguments: tuple[str, ...], said: tuple[str, ...]) -> None:
    run_cli("bench", *arguments, folder=folder).assert_error(2, *said)


def test_torch_is_listed_as_a_runtime() -> None:
    assert "torch " in run_cli("list", "runtimes").out


def net(path: Path, name: str, sizes: list[int | str], weight: np.ndarray) -> Path:
    """`name` [N, 3, H, W] -> mean over the picture -> scores [N, K] by `weight` [3, K]."""
    nodes = [
        helper.make_node("GlobalAveragePool", [name], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info(name, FLOAT, sizes)]
    outputs = [helper.make_tensor_value_info("y", FLOAT, [sizes[0], weight.shape[1]])]
    return save(helper.make_graph(nodes, "net", inputs, outputs, [numpy_helper.from_array(weight, "w")]), path)


RIGHT = np.eye(3, dtype=np.float32)


def test_files_that_call_their_input_otherwise_or_leave_its_size_open_run_side_by_side(tmp_path: Path) -> None:
    fixed = net(tmp_path / "fixed.onnx", "image", [1, 3, 4, 5], RIGHT)
    opened = net(tmp_path / "open.onnx", "x", ["N", 3, "H", "W"], RIGHT)
    for files in ([fixed, opened], [opened, fixed]):
        found = bench(files, runtimes=["onnxruntime"], budget_s=0.1)
        fed = {key: size for t in found.measured.timings for key, size in t.settings.items() if "fed " in key}
        assert fed == {"fed image": "1x3x4x5 float32", "fed x": "1x3x4x5 float32"}
        assert found.settings["input_shapes"] == {"x": [1, 3, 4, 5]}
    other = net(tmp_path / "other.onnx", "input", ["N", 3, "H", "W"], RIGHT)
    found = bench([opened, other], runtimes=["onnxruntime"], input_shapes={"x": [2, 3, 6, 7]}, budget_s=0.1)
    assert found.settings["input_shapes"] == {"x": [2, 3, 6, 7], "input": [2, 3, 6, 7]}
    with pytest.raises(InputError, match="no file has an input called 'y'"):
        bench([opened, other], runtimes=["onnxruntime"], input_shapes={"y": [2, 3, 6, 7]}, budget_s=0.1)


def test_sizes_are_taken_from_the_same_place_where_they_fit(tmp_path: Path) -> None:
    words = save_words(tmp_path / "words.onnx")  # two inputs, both [?, ?]
    fixed = net(tmp_path / "fixed.onnx", "image", [1, 3, 4, 5], RIGHT)
    assert side_by_side(pair_up([words, fixed], ["onnxruntime"]), {"ids": [2, 9]}) == {"ids": (2, 9)}
    assert side_by_side(pair_up([words], ["onnxruntime"]), {"nobody": [1]}) == {"nobody": (1,)}
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    jobs = pair_up([tmp_path / "junk.onnx", fixed], ["onnxruntime"])
    assert side_by_side(jobs, {"image": [1, 3, 4, 5]}) == {"image": (1, 3, 4, 5)}


def test_with_data_every_file_is_judged_and_a_column_without_values_is_left_out(tmp_path: Path) -> None:
    """The class is the brightest channel; the second file takes the third for the second and gets a third wrong."""
    net(tmp_path / "right.onnx", "image", ["N", 3, 4, 5], RIGHT)
    wrong = RIGHT.copy()
    wrong[:, 1] = 0  # what is green is called red
    net(tmp_path / "wrong.onnx", "x", ["N", 3, 4, 5], wrong)
    y = np.arange(60) % 3
    x = np.zeros((60, 3, 4, 5), np.float32)
    x[np.arange(60), y] = 1
    np.savez(tmp_path / "data.npz", x=x, y=y, x_val=x[:30], y_val=y[:30])
    files = ("right.onnx", "wrong.onnx")
    outcome = run_cli("bench", *files, *QUICK, "--data", "data.npz", "--json", "found.json", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    right, bad = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert (right["accuracy"], right["agreement"]) == (100.0, 1.0)
    assert (bad["accuracy"], bad["agreement"]) == (pytest.approx(200 / 3), pytest.approx(2 / 3))
    assert "accuracy" in outcome.out
    assert "66.7" in outcome.out
    assert "MACs" not in outcome.out
    plain = run_cli("bench", *files, *QUICK, folder=tmp_path)
    assert plain.code == 0, plain.err
    for head in ("accuracy", "top-1", "MACs", "params"):
        assert head not in plain.out


def test_noise_is_one_line_for_all_rows(tmp_path: Path) -> None:
    found = bench([save_linear(tmp_path / "a.onnx", [1, 3])], runtimes=["onnxruntime"], budget_s=0.1)
    noise = (
        "the machine was busy throughout: others; stop other programs, or give more time: `deploypruner bench a`",
        "two speeds in the samples of 'a' on onnxruntime, 'b' on onnxruntime, as when the processor rests; fix it",
        "two workers of the same file differ by up to 8.0 %, so smaller differences are not called; stop",
    )
    measured = replace(found.measured, floor=0.08)
    text = _as_text(replace(found, noise=noise, warnings=(*noise, "3 weights are denormal"), measured=measured))
    lines = text.splitlines()[-2:]
    assert lines[0] == "warning: 3 weights are denormal"
    assert lines[1] == (
        "noise: differences below 8.0 % are not called; the machine was busy throughout; two speeds in the samples "
        "of 'a' on onnxruntime, 'b' on onnxruntime; two workers of the same file differ by up to 8.0 %; longer: "
        "`deploypruner bench a`"
    )
