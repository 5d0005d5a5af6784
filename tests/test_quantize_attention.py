"""Attention in int8: both products around a softmax, with signed operands, in one operation of OpenVINO."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from deploypruner.errors import InputError
from deploypruner.latency.layer_times import Owners
from deploypruner.onnx_graph import operand, read_graph
from deploypruner.quantize.attention import attention_of
from deploypruner.quantize.static import calibrate, quantize_static, write_qdq
from deploypruner.runtime import runtimes
from deploypruner.target import detect
from tests.int8_nets import Net, graph_of, run

TOKENS, COLUMNS = 6, 16
needs_vnni = pytest.mark.skipif(detect().saturates, reason="8-bit products saturate on this processor")


def attending(*, mask: float | None = None) -> onnx.ModelProto:
    """q, k and v of [N, T, C] by layers of their own, scaled scores, a softmax, and a layer behind."""
    net = Net(["n", TOKENS, COLUMNS], seed=5)

    def linear(x: str) -> str:
        weight = net.rng.standard_normal((COLUMNS, COLUMNS)) / COLUMNS**0.5
        return net.add("Add", net.add("MatMul", x, net.keep(weight)), net.keep(0.1 * np.ones(COLUMNS)))

    q, k, v = (linear("x") for _ in range(3))
    scores = net.add("Div", net.add("MatMul", q, net.add("Transpose", k, perm=[0, 2, 1])), net.keep(4.0))
    if mask is not None:  # added for tokens whose first number is negative
        first = net.add("Slice", "x", *(net.keep([n], kind=np.int64) for n in (0, 1, 2)))
        away = net.add("Where", net.add("Less", first, net.keep(0.0)), net.keep(mask), net.keep(0.0))
        scores = net.add("Add", scores, net.add("Transpose", away, perm=[0, 2, 1]))
    mixed = net.add("MatMul", net.add("Softmax", scores, axis=-1), v)
    return net.model(linear(mixed))


def tokens(count: int = 8, seed: int = 0) -> np.ndarray:
    """The first number of each is 1 or -1, far from where the mask changes."""
    x = np.random.default_rng(seed).standard_normal((count, TOKENS, COLUMNS)).astype(np.float32)
    x[..., 0] = np.sign(x[..., 0])
    return x


def products(model: onnx.ModelProto) -> tuple[str, str]:
    """Names of q with k and of the softmax with v."""
    first, second = (n.name for n in model.graph.node if n.op_type == "MatMul" and _activations(model, n))
    return first, second


def _activations(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    return not {tensor.name for tensor in model.graph.initializer} & set(node.input)


def operands(path: Path, layer: str) -> list[tuple[str, int]]:
    """Type and zero point of what a product reads; nothing where it reads floats."""
    graph = graph_of(onnx.load(path))
    (node,) = (node for node in graph if node.name == layer)
    found = []
    for place in (0, 1):
        restore = operand(node, place).producer()
        if restore is not None and restore.op_type == "DequantizeLinear":
            zero = np.asarray(operand(restore, 2).const_value)
            found.append((str(zero.dtype), int(zero)))
    return found


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted - wanted.mean(0)))


def saved(tmp_path: Path, **more) -> tuple[Path, onnx.ModelProto]:
    model = attending(**more)
    onnx.save(model, tmp_path / "fp32.onnx")
    return tmp_path / "fp32.onnx", model


def test_q_k_and_v_are_signed_without_zero_points_and_the_softmax_is_not_signed(tmp_path):
    fp32, model = saved(tmp_path)
    summary = quantize_static(fp32, tmp_path / "int8.onnx", calibration=[[tokens()]])
    assert (summary.quantized, summary.left_float) == (6, {})
    first, second = products(model)
    assert operands(tmp_path / "int8.onnx", first) == [("int8", 0), ("int8", 0)]
    assert operands(tmp_path / "int8.onnx", second) == [("uint8", 0), ("int8", 0)]
    assert relative(run(onnx.load(tmp_path / "int8.onnx"), tokens()), run(model, tokens())) < 0.05


def test_either_product_can_be_left_float_alone(tmp_path):
    fp32, model = saved(tmp_path)
    calibrated = calibrate(fp32, [[tokens()]], folder=tmp_path)
    assert set(products(model)) < set(calibrated.layers)
    for kept, other in (products(model), products(model)[::-1]):
        summary = write_qdq(calibrated, tmp_path / "mixed.onnx", keep_float={kept: "asked for"})
        assert summary.left_float == {kept: "asked for"}
        assert operands(tmp_path / "mixed.onnx", kept) == []
        assert len(operands(tmp_path / "mixed.onnx", other)) == 2


@pytest.mark.parametrize("more", [{"placement": "onnxruntime"}, {"reduce_range": True}])
def test_it_stays_float_for_onnx_runtime_and_where_sums_would_saturate(tmp_path, more):
    fp32, model = saved(tmp_path)
    summary = quantize_static(fp32, tmp_path / "int8.onnx", calibration=[[tokens()]], **more)
    assert summary.left_float == dict.fromkeys(products(model), "product of two activations")
    assert summary.quantized == 4


def test_a_mask_that_is_added_to_the_scores_is_not_rounded(tmp_path):
    """In u8 a range of 1000 would leave steps of 4 for scores between -2 and 2."""
    fp32, model = saved(tmp_path, mask=-1000.0)
    graph = graph_of(model)
    assert {node.op_type for node in attention_of(graph).scores} == {"Add", "Div"}
    quantize_static(fp32, tmp_path / "int8.onnx", calibration=[[tokens()]])
    assert relative(run(onnx.load(tmp_path / "int8.onnx"), tokens()), run(model, tokens())) < 0.05


LOWEST = float(np.finfo(np.float32).min)


@pytest.mark.parametrize("mask", [-np.inf, LOWEST])  # with a score below 0, the lowest number is infinite as well
@pytest.mark.parametrize("more", [{"method": "entropy"}, {"placement": "onnxruntime"}, {"repair": True}])
def test_scores_of_masked_tokens_may_be_infinite(tmp_path, mask, more):
    x = tokens()
    x[:, 0, 0] = 1.0  # a token that is not masked in every sample
    fp32, model = saved(tmp_path, mask=mask)
    summary = quantize_static(fp32, tmp_path / "int8.onnx", calibration=[[x]] * 2, **more)
    assert summary.quantized == (4 if "placement" in more else 6)
    assert relative(run(onnx.load(tmp_path / "int8.onnx"), x), run(model, x)) < 0.05


def test_what_is_rounded_may_not_be_infinite(tmp_path):
    net = Net(["n", TOKENS, COLUMNS], seed=5)
    away = net.add("Where", net.add("Less", "x", net.keep(0.0)), net.keep(-np.inf), net.keep(0.0))
    onnx.save(net.model(net.gemm(net.add("Flatten", net.add("Add", "x", away)), 4, 96)), tmp_path / "fp32.onnx")
    with pytest.raises(InputError, match="is NaN or infinite on the calibration data"):
        quantize_static(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", calibration=[[tokens()]])


def test_a_softmax_over_classes_is_no_attention():
    net = Net(["n", COLUMNS])
    model = net.model(net.add("Softmax", net.gemm("x", 4, COLUMNS)))
    assert not attention_of(graph_of(model)).products


def test_one_pair_stands_behind_all_moves_of_the_mixture(tmp_path):
    """Transpose and reshape of heads pass floats on; what reads them rounds once."""
    net = Net(["n", 2, TOKENS, COLUMNS], seed=6)
    scores = net.add("MatMul", "x", net.add("Transpose", "x", perm=[0, 1, 3, 2]))
    mixed = net.add("MatMul", net.add("Softmax", scores, axis=-1), "x")
    rows = net.add("Reshape", net.add("Transpose", mixed, perm=[0, 2, 1, 3]), net.keep([0, 0, 32], kind=np.int64))
    model = net.model(net.add("MatMul", rows, net.keep(net.rng.standard_normal((32, 4)))))
    onnx.save(model, tmp_path / "fp32.onnx")
    x = np.random.default_rng(1).standard_normal((4, 2, TOKENS, COLUMNS)).astype(np.float32)
    quantize_static(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", calibration=[[x]])
    rounded = [n.input[0] for n in onnx.load(tmp_path / "int8.onnx").graph.node if n.op_type == "QuantizeLinear"]
    assert mixed not in rounded
    assert rows in rounded
    assert relative(run(onnx.load(tmp_path / "int8.onnx"), x), run(model, x)) < 0.05


@needs_vnni
@pytest.mark.slow
def test_openvino_runs_all_of_it_in_one_operation_on_integers(tmp_path):
    fp32, model = saved(tmp_path)
    quantize_static(fp32, tmp_path / "int8.onnx", calibration=[[tokens()]])
    nodes = runtimes.get("openvino")().profile(tmp_path / "int8.onnx", [tokens()], threads=1, calls=0)
    said = Owners(read_graph(model).graph).executed(nodes)
    first, second = (said[product] for product in products(model))
    assert first == second
    assert first.startswith("Subgraph i8,i8,i8>")
