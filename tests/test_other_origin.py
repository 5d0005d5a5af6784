"""ONNX files that others wrote: read as they are meant, or refused with the reason; fed with real inputs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic

from deploypruner import reading
from deploypruner.build.fitting import Said
from deploypruner.build.one_answer import distance, require_one_answer
from deploypruner.build.sparsify_inputs import named_arrays, sparsify_inputs
from deploypruner.errors import InputError
from deploypruner.measure.files import denormal_weights, detect_precision
from deploypruner.measure.inputs import random_feeds
from deploypruner.measure.trial import check_runs
from deploypruner.onnx_advice import advice
from deploypruner.onnx_file import onnx_fault, write_onnx
from deploypruner.onnx_graph import read_graph
from deploypruner.quantize.preparing import prepared
from deploypruner.quantize.static import quantize_static
from deploypruner.quantize.to_float32 import float_name
from deploypruner.recipe.data import DataSettings
from deploypruner.records import TensorSpec
from deploypruner.runtime.on_onnxruntime import OnnxRuntime
from deploypruner.runtime.on_openvino import OpenVino
from deploypruner.sparse.convert import check_convertible, sparsify
from deploypruner.sparse.qdq import read_quantize
from tests import foreign_onnx as foreign

pytestmark = pytest.mark.slow


def model(nodes: list, consts: dict[str, np.ndarray], *, opset: int = 21) -> onnx.ModelProto:
    """A model of x [b, 8, 4, 4] -> y."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", T.FLOAT, ["b", 8, 4, 4])],
        [helper.make_tensor_value_info("y", T.FLOAT, ["b", None, None, None])],
        [numpy_helper.from_array(value, name) for name, value in consts.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = 10
    return made


def symmetric() -> onnx.ModelProto:
    """A pair without zero points around a convolution whose weights are mostly zero."""
    rng = np.random.default_rng(0)
    weights = (rng.integers(-127, 128, (8, 8, 1, 1)) * (rng.random((8, 8, 1, 1)) < 0.3)).astype(np.int8)
    stored, node = {"output_dtype": T.INT8}, helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "sx"], ["xq"], **stored),
        node("DequantizeLinear", ["xq", "sx"], ["xd"]),
        node("DequantizeLinear", ["w", "sw"], ["wd"]),
        node("Conv", ["xd", "wd"], ["h"], kernel_shape=[1, 1]),
        node("QuantizeLinear", ["h", "sy"], ["yq"], **stored),
        node("DequantizeLinear", ["yq", "sy"], ["y"]),
    ]
    scales = {name: np.float32(value) for name, value in (("sx", 0.03), ("sw", 0.01), ("sy", 0.08))}
    return model(nodes, {"w": weights, **{name: np.asarray(value) for name, value in scales.items()}})


def test_int8_said_by_output_dtype_is_int8():
    first = next(node for node in read_graph(symmetric()).graph if node.op_type == "QuantizeLinear")
    assert read_quantize(first, channels_last=False).zero_point == 128, "u8 is s8 moved by 128"
    assert sparsify(symmetric(), every=True).chosen == 1


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    weights = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", T.FLOAT, ["b", 16])],
        [helper.make_tensor_value_info("y", T.FLOAT, ["b", 4])],
        [numpy_helper.from_array(weights, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    onnx.save(made, tmp_path / "fp32.onnx")
    return tmp_path / "fp32.onnx"


def test_a_dynamically_quantized_file_is_int8_and_refused_by_name(linear: Path):
    quantize_dynamic(linear, linear.with_name("dynamic.onnx"))
    path = linear.with_name("dynamic.onnx")
    assert detect_precision(path) == "int8"
    with pytest.raises(
        InputError, match=r"quantized dynamically \((DynamicQuantizeLinear|MatMulInteger)\)[\s\S]*fp32"
    ):
        check_convertible(onnx.load(path))


def test_the_operator_oriented_form_is_refused_by_name():
    nodes = [helper.make_node("QLinearConv", ["x", *"abcdefg"], ["y"])]
    with pytest.raises(InputError, match=r"operator-oriented form \(QLinearConv\)"):
        check_convertible(model(nodes, {}))


def test_shapes_of_another_file_are_not_this_ones():
    specs = [TensorSpec("x", (None, 3, None, None), "float32")]
    shapes = {"x": (1, 3, 8, 9), "images": (1, 3, 8, 9)}
    assert random_feeds(specs, shapes=shapes, others=True)[0].shape == (1, 3, 8, 9)
    with pytest.raises(InputError, match="no input called 'images'"):
        random_feeds(specs, shapes=shapes)
    with pytest.raises(InputError, match=r"input 'x' has shape .* nothing says how large"):
        random_feeds(specs, shapes={"images": (1, 3, 8, 9)}, others=True)


def test_real_inputs_by_name(tmp_path: Path):
    specs = [TensorSpec("ids", (None, 3), "int32"), TensorSpec("mask", (2, 3), "bool")]
    ids = np.arange(12).reshape(4, 3) * 1000
    np.savez(tmp_path / "d.npz", ids=ids, mask=np.ones((4, 3), np.int64))
    feeds = named_arrays(tmp_path / "d.npz", specs)
    assert feeds is not None
    assert (feeds[0].dtype, feeds[0].tolist()) == (np.int32, ids.tolist())
    assert (feeds[1].dtype, feeds[1].shape) == (np.bool_, (2, 3))
    np.savez(tmp_path / "x.npz", x=ids)
    assert named_arrays(tmp_path / "x.npz", specs) is None
    with pytest.raises(InputError, match=r"'ids' of .* has shape \[4, 3\] \(int64\), the model takes \[\?, 5\]"):
        named_arrays(tmp_path / "d.npz", [TensorSpec("ids", (None, 5), "int32")])


def test_denormal_weights_are_counted(linear: Path):
    assert denormal_weights(linear) == 0
    made = onnx.load(linear)
    weights = numpy_helper.to_array(made.graph.initializer[0]).copy()
    weights[0, :3] = (1e-40, -1e-39, 0)
    made.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w"))
    onnx.save(made, linear)
    assert denormal_weights(linear) == 2


def test_stock_onnxruntime_takes_the_symmetric_model():
    """What the tests above read is sound: not made up for them."""
    onnx.checker.check_model(symmetric(), full_check=True)
    x = np.random.default_rng(1).standard_normal((1, 8, 4, 4)).astype(np.float32)
    (y,) = onnxruntime.InferenceSession(symmetric().SerializeToString()).run(None, {"x": x})
    assert np.abs(y).max() > 0.08


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 8), (8,)])
def test_any_shape_of_a_bias_and_inputs_that_are_stored_are_prepared(shape):
    """IR version 3 lists its constants among the inputs."""
    rng = np.random.default_rng(0)
    consts = {"w": rng.standard_normal((16, 8)).astype("f"), "c": rng.standard_normal(shape).astype("f")}
    values = [helper.make_tensor_value_info(name, T.FLOAT, array.shape) for name, array in consts.items()]
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "c"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", T.FLOAT, ["b", 16]), *values],
        [helper.make_tensor_value_info("y", T.FLOAT, ["b", 8])],
        [numpy_helper.from_array(array, name) for name, array in consts.items()],
    )
    given = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)])
    given.ir_version = 3
    made = prepared(given)
    assert [value.name for value in made.graph.input] == ["x"]
    (gemm,) = [node for node in made.graph.node if node.op_type.endswith("Gemm")]
    bias = next(t for t in made.graph.initializer if t.name == gemm.input[2])
    assert list(bias.dims) == [8]
    x = {"x": rng.standard_normal((3, 16)).astype("f")}
    before, after = (onnxruntime.InferenceSession(m.SerializeToString()).run(None, x)[0] for m in (given, made))
    np.testing.assert_allclose(after, before, rtol=1e-6)


def feeds_for(path: Path, seed: int = 0) -> list[np.ndarray]:
    """A batch as the file takes it; images have a brightness, ids are large."""
    rng, found = np.random.default_rng(seed), []
    for spec in OnnxRuntime().open(path).inputs:
        shape = [size or 4 for size in spec.shape]
        if spec.dtype.startswith("float"):
            values = rng.standard_normal(shape) + 2 * rng.random((*shape[:1], *[1] * (len(shape) - 1)))
        else:
            values = rng.integers(0, 2 if spec.dtype == "bool" else 50, shape)
        found.append(np.asarray(values, spec.dtype))
    return found


@pytest.mark.parametrize("kind", foreign.QUANTIZED)
def test_the_int8_form_of_any_file_is_valid_and_answers_as_the_file_does(tmp_path: Path, kind: str):
    given, fp32, int8 = (tmp_path / f"{name}.onnx" for name in ("given", "fp32", "int8"))
    onnx.save(foreign.QUANTIZED[kind](), given)
    write_onnx(prepared(onnx.load(given)), fp32)
    found = quantize_static(fp32, int8, calibration=[feeds_for(given, seed) for seed in range(4)], placement="sparse")
    assert found.quantized == 3
    assert onnx_fault(int8) == ""
    feeds = feeds_for(given, seed=9)
    before = OnnxRuntime().open(given).run(feeds)
    after, elsewhere = OnnxRuntime().open(int8), OpenVino().open(int8)
    assert [(s.name, s.dtype) for s in after.inputs] == [(s.name, s.dtype) for s in OnnxRuntime().open(given).inputs]
    assert [array.dtype for array in after.run(feeds)] == [array.dtype for array in before]
    for wanted, got in zip(before, after.run(feeds), strict=True):
        assert distance(wanted, got) < 0.05
    assert len(elsewhere.run(feeds)) == len(before)


def test_a_scalar_input_reaches_both_runtimes(tmp_path: Path):
    onnx.save(foreign.scaled_by_a_scalar(), tmp_path / "m.onnx")
    feeds = feeds_for(tmp_path / "m.onnx")
    one, other = (r.open(tmp_path / "m.onnx").run(feeds)[0] for r in (OnnxRuntime(), OpenVino()))
    assert feeds[1].shape == ()
    assert distance(one, other) < 1e-5


def test_nothing_outside_of_a_branch_is_said(tmp_path: Path):
    with pytest.raises(InputError, match="stand inside of If or Loop"):
        prepared(foreign.branch(around=True))


def followed(hint: str, folder: Path) -> Path:
    """The file that the Python in a hint makes, the folder being the working one."""
    code = re.search(r"onnx\.(utils|save).*", hint)
    assert code is not None
    exec(code[0].replace("'network.onnx'", f"{str(folder / 'out.onnx')!r}"), {"onnx": onnx})
    return folder / "out.onnx"


@pytest.mark.parametrize("made", [foreign.zip_map, foreign.classifier])
def test_what_stands_behind_a_network_can_be_cut_off_as_the_hint_says(tmp_path: Path, made):
    onnx.save(made(), tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"extract_model\('.*m.onnx', 'network.onnx', \['x'\], \['s'\]\)") as caught:
        check_runs(tmp_path / "m.onnx", ("onnxruntime", "openvino"))
    path = followed(caught.value.hint, tmp_path)
    x = np.ones((2, *foreign.IMAGE), "f")
    (scores,) = OpenVino().open(path).run([x])
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)


def test_functions_are_inlined_as_the_hint_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import onnx.inliner

    monkeypatch.chdir(tmp_path)
    onnx.save(foreign.with_function(), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="functions of its own") as caught:
        check_runs(tmp_path / "m.onnx", ("openvino",))
    followed(caught.value.hint, tmp_path)
    check_runs(tmp_path / "inlined.onnx", ("openvino",))


def test_old_opsets_names_and_float64_have_a_hint_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "m.onnx"
    onnx.save(foreign.model(foreign.body(), foreign.WEIGHTS, opset=7), path)
    followed(advice(path), tmp_path)
    assert onnx.load("raised.onnx").opset_import[0].version == 13
    onnx.save(foreign.one_name(), path)
    assert "several of its nodes have one name" in advice(path)
    onnx.save(foreign.model(foreign.body(), {k: v.astype("d") for k, v in foreign.WEIGHTS.items()}), path)
    assert "float64" in advice(path)
    onnx.save(foreign.model(foreign.body(), foreign.WEIGHTS), path)
    assert advice(path) == ""


def test_a_size_of_zero_in_the_file_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"'x' has shape \[\?, 3, 0\] in the file, which holds no number"):
        random_feeds([TensorSpec("x", (None, 3, 0), "float32")])


def test_weights_that_are_stored_in_integers_alone_are_not_called_fp32():
    weights = np.clip(foreign.WEIGHTS["w2"] * 30, -127, 127).astype(np.int8)
    consts = {**foreign.WEIGHTS, "w2q": weights, "scale": np.asarray(np.float32(1 / 30))}
    del consts["w2"]
    nodes = [helper.make_node("DequantizeLinear", ["w2q", "scale"], ["w2"]), *foreign.body()]
    with pytest.raises(InputError, match=r"quantized in its weights alone \(DequantizeLinear\)"):
        check_convertible(foreign.model(nodes, consts))


def test_quantized_operators_inside_a_branch_are_seen():
    made = foreign.branch(around=True)
    inside = next(a.g for node in made.graph.node for a in node.attribute if a.name == "else_branch")
    inside.node[0].op_type = "ConvInteger"
    with pytest.raises(InputError, match=r"quantized dynamically \(ConvInteger\)"):
        check_convertible(made)


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [([3.0, 4.0], [3.0, 0.0], 0.8), ([3.0], [float("nan")], 1.0), ([1.0], [float("inf")], 1.0), ([0.0], [0.0], 0.0)],
)
def test_answers_of_two_runtimes_by_hand(one: list[float], other: list[float], apart: float):
    assert distance(np.array(one), np.array(other)) == apart
    assert distance(np.array(other), np.array(one)) == apart


def test_arrays_by_name_that_would_unpack_to_far_more_or_are_objects_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reading, "_SMALL_BYTES", 1000)
    specs = [TensorSpec("ids", (None, 4_000_000), "int8")]
    np.savez_compressed(tmp_path / "d.npz", ids=np.zeros((1, 4_000_000), np.int8))
    with pytest.raises(InputError, match="would unpack to"):
        named_arrays(tmp_path / "d.npz", specs)
    np.savez(tmp_path / "d.npz", ids=np.array([{}]))
    with pytest.raises(InputError, match=r"'ids' of .* cannot be read without running code: it holds Python objects"):
        named_arrays(tmp_path / "d.npz", specs)


def test_arrays_called_as_the_inputs_are_samples_and_labels(tmp_path: Path):
    onnx.save(foreign.several(), tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.standard_normal((40, *foreign.IMAGE)).astype("f"),
        "ids": rng.integers(0, 50, (40, 7)),
        "flag": np.ones((40, 1), np.uint8),
    }
    np.savez(tmp_path / "d.npz", **arrays, y=np.arange(40) % 10)
    session, data = OnnxRuntime().open(tmp_path / "m.onnx"), str(tmp_path / "d.npz")
    found = sparsify_inputs(session, data, DataSettings(), batch=None, said=Said({}))
    (train, _), (judged, labels) = found.samples[0], found.judged[0]
    assert [array.dtype.name for array in train] == ["float32", "int64", "bool"]
    splits = [[one[0][0] for one in part] for part in (found.samples, found.judged)]
    assert sum(len(images) for part in splits for images in part) == 40
    rows = [next(i for i in range(40) if (arrays["x"][i] == image).all()) for image in judged[0]]
    np.testing.assert_array_equal(judged[1], arrays["ids"][rows])
    assert labels.tolist() == [row % 10 for row in rows]
    np.savez(tmp_path / "d.npz", **(arrays | {"ids": arrays["ids"][:39]}))
    with pytest.raises(InputError, match=r"differ in their number of samples: 'x' \[40, .*'ids' \[39, 7\]"):
        sparsify_inputs(session, data, DataSettings(), batch=None, said=Said({}))
    onnx.save(foreign.scaled_by_a_scalar(), tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"input 'k' has shape \[\]"):
        sparsify_inputs(OnnxRuntime().open(tmp_path / "m.onnx"), data, DataSettings(), batch=None, said=Said({}))


def test_what_the_runtimes_understand_differently_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, x = tmp_path / "m.onnx", np.ones((2, *foreign.IMAGE), "f")
    onnx.save(foreign.model(foreign.body(), foreign.WEIGHTS), path)
    require_one_answer(path, [([x], None)], threads=1)
    wrong, opened = tmp_path / "wrong.onnx", OpenVino().open
    onnx.save(foreign.model(foreign.body(), {**foreign.WEIGHTS, "w3": -foreign.WEIGHTS["w3"]}), wrong)
    monkeypatch.setattr(OpenVino, "open", lambda self, given, threads: opened(wrong, threads=threads))
    with pytest.raises(InputError, match="disagree about output 'y'"):
        require_one_answer(path, [([x], None)], threads=1)


def test_a_float16_file_is_not_called_fp32():
    assert float_name(foreign.half()) == "float16"
    assert float_name(foreign.old()) == "fp32"
