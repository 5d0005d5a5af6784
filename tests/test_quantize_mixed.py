"""Some layers stay float: which pairs then stand, what it says, and that both runtimes compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from deploypruner.errors import RecipeError
from deploypruner.onnx_graph import made_by, operand, read_graph
from deploypruner.quantize import quantize_static
from deploypruner.runtime import runtimes
from deploypruner.runtime.on_onnxruntime import OnnxRuntime

SHAPE = (3, 4, 4)
CHANNELS = 4


def text_file(path: Path, body: str, **weights: np.ndarray) -> Path:
    """An ONNX file from x [n, 3, 4, 4] to z, its nodes named after what they write."""
    listed = ", ".join(f"float[{','.join(map(str, value.shape))}] {name}" for name, value in weights.items())
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        net (float[n, 3, 4, 4] x) => (float[n, p, q, r] z) <{listed}> {{ {body} }}"""
    )
    del model.graph.initializer[:]
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    for node in model.graph.node:
        node.name = f"make_{node.output[0]}"
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def weight(seed: int, inputs: int = CHANNELS) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((CHANNELS, inputs, 1, 1), dtype=np.float32)


def chain(path: Path) -> Path:
    """Three convolutions with a Relu behind each of the first two."""
    body = "a = Conv (x, u) b = Relu (a) c = Conv (b, v) d = Relu (c) z = Conv (d, w)"
    return text_file(path, body, u=weight(0, 3), v=weight(1), w=weight(2))


def residual(path: Path) -> Path:
    """A convolution, two residual ones, a last one: x - a - b=relu ; e = relu(b + c) ; h = relu(e + f); z."""
    body = """a = Conv (x, u) b = Relu (a) c = Conv (b, v) d = Add (b, c) e = Relu (d)
              f = Conv (e, w) g = Add (e, f) h = Relu (g) z = Conv (h, y)"""
    return text_file(path, body, u=weight(0, 3), v=weight(1), w=weight(2), y=weight(3))


def batches(count: int = 4) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(5)
    return [[rng.standard_normal((8, *SHAPE), dtype=np.float32)] for _ in range(count)]


def paired(path: Path) -> set[str]:
    """Activations behind which a pair stands, by their names in the file."""
    graph = read_graph(onnx.load(path)).graph
    return {str(operand(node, 0).name) for node in graph if node.op_type == "QuantizeLinear"}


def int8_layers(path: Path) -> set[str]:
    graph = read_graph(onnx.load(path)).graph
    return {
        str(node.name)
        for node in graph
        if node.op_type == "Conv" and all(made_by(operand(node, place), "DequantizeLinear") for place in (0, 1))
    }


def answers(path: Path, runtime: str = "onnxruntime") -> np.ndarray:
    return runtimes.get(runtime)().open(path).run(batches()[0])[0]


def test_a_layer_that_stays_float_has_its_weights_in_float_and_its_reason_in_the_summary(tmp_path):
    fp32, int8 = chain(tmp_path / "a.onnx"), tmp_path / "b.onnx"
    said = quantize_static(fp32, int8, calibration=batches(), keep_float={"make_c": "costs 0.8 points"})
    assert said.left_float == {"make_c": "costs 0.8 points"}
    assert said.quantized == 2
    assert int8_layers(int8) == {"make_a", "make_z"}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(int8).graph.initializer}
    np.testing.assert_array_equal(stored["v"], weight(1))


def test_between_an_int8_layer_and_a_float_one_no_pair_stands_in_openvino(tmp_path):
    fp32, int8 = chain(tmp_path / "a.onnx"), tmp_path / "b.onnx"
    quantize_static(fp32, int8, calibration=batches(), keep_float={"make_c": ""})
    assert paired(int8) == {"x", "d"}  # what the two int8 layers read
    quantize_static(fp32, int8, calibration=batches(), keep_float={"make_c": ""}, placement="onnxruntime")
    assert paired(int8) == {"x", "a", "d", "z_QuantizeLinear_Input"}  # int8 there only with a pair behind


def test_a_sum_for_float_layers_alone_has_no_pair(tmp_path):
    fp32, int8 = residual(tmp_path / "a.onnx"), tmp_path / "b.onnx"
    quantize_static(fp32, int8, calibration=batches(), keep_float={"make_f": "", "make_z": ""})
    # c is int8 and so is the sum it goes into, b + c; what comes after is float.
    assert paired(int8) == {"x", "b", "c"}
    quantize_static(fp32, int8, calibration=batches(), keep_float={"make_c": "", "make_f": ""})
    # The first sum is float; the second is not, as an int8 layer reads it, and so are its two terms.
    assert paired(int8) == {"x", "e", "f", "h"}


def test_with_every_layer_float_the_file_computes_what_the_float_file_does(tmp_path):
    fp32, int8 = residual(tmp_path / "a.onnx"), tmp_path / "b.onnx"
    names = ("make_a", "make_c", "make_f", "make_z")
    said = quantize_static(fp32, int8, calibration=batches(), keep_float=dict.fromkeys(names, "all"))
    assert said.quantized == 0
    assert not paired(int8)
    np.testing.assert_array_equal(answers(int8), answers(fp32))


@pytest.mark.parametrize("keep", [("make_a",), ("make_c",), ("make_f",), ("make_c", "make_f"), ("make_a", "make_z")])
@pytest.mark.parametrize("placement", ["openvino", "onnxruntime", "sparse"])
def test_both_runtimes_compute_a_mixed_file_as_it_is_written(tmp_path, keep, placement):
    fp32, int8 = residual(tmp_path / "a.onnx"), tmp_path / "b.onnx"
    reasons = dict.fromkeys(keep, "")
    quantize_static(fp32, int8, calibration=batches(), keep_float=reasons, placement=placement)
    literal = OnnxRuntime().open(int8, literal=True).run(batches()[0])[0]
    size = np.abs(literal).max()
    for runtime in ("onnxruntime", "openvino"):
        # A few steps of rounding, as each runtime sums in its own order; a Relu that got lost would be many.
        assert np.abs(answers(int8, runtime) - literal).max() < 0.05 * size
    assert np.abs(literal - answers(fp32)).max() < 0.1 * size


def test_no_float_layers_is_the_file_as_ever(tmp_path):
    fp32 = residual(tmp_path / "a.onnx")
    quantize_static(fp32, tmp_path / "b.onnx", calibration=batches())
    quantize_static(fp32, tmp_path / "c.onnx", calibration=batches(), keep_float={})
    assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "c.onnx").read_bytes()


def test_a_layer_that_does_not_exist_is_no_silent_nothing(tmp_path):
    with pytest.raises(RecipeError, match=r"no layer called 'make_q' to keep in float[\s\S]*did you mean 'make_"):
        quantize_static(
            chain(tmp_path / "a.onnx"), tmp_path / "b.onnx", calibration=batches(), keep_float={"make_q": ""}
        )


@pytest.mark.parametrize(("seven_bits", "saturated"), [(False, True), (True, False)])
def test_a_file_whose_products_saturate_in_16_bits_does_not_with_weights_of_7(tmp_path, seven_bits, saturated):
    """Every input and weight is as large as it gets: 2 x 255 x 127 = 64770 beyond 32767, 2 x 255 x 64 = 32640 not."""
    file = text_file(tmp_path / "a.onnx", "z = Conv (x, u)", u=np.ones((CHANNELS, 3, 1, 1), np.float32))
    quantize_static(
        file, tmp_path / "b.onnx", calibration=[[np.ones((1, *SHAPE), np.float32)]], reduce_range=seven_bits
    )
    stored = [numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "b.onnx").graph.initializer]
    weights = next(values for values in stored if values.dtype == np.int8 and values.ndim == 4).astype(int)
    pairs = 255 * weights[:, 0::2][:, :1] + 255 * weights[:, 1::2]  # what vpmaddubsw adds
    assert bool((pairs > 2**15 - 1).any()) == saturated
