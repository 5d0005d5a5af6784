"""SparseLinear inside OpenVINO against its formula in numpy and torch, and what it refuses."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from deploypruner.onnx_graph import read_graph
from deploypruner.sparse.layer import NO_LIMIT
from deploypruner.sparse.library import is_built
from deploypruner.sparse.linear import ACTIVATIONS, LinearLayer
from deploypruner.sparse.match import match
from deploypruner.sparse.packed import pack
from deploypruner.sparse.rewrite import rewrite
from tests.kernel_cases import DOMAIN
from tests.sparse_reference import run_reference
from tests.test_kernels_openvino import compiled

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_built(), reason="the package was built without its sparse kernels"),
]


def layer(rng: np.random.Generator, *, ones: int = 0, **changed: int | float) -> onnx.ModelProto:
    """[N, I, 1, ...] with `ones` ones to as many outputs; `changed` replaces attributes."""
    inputs, outputs = (int(n) for n in rng.integers(1, 100, 2))
    weights = (rng.integers(-127, 128, (outputs, inputs)) * (rng.random((outputs, inputs)) < rng.random())).astype(
        np.int8
    )
    packed = pack(weights[:, :, None, None])
    stored = {
        "mask": packed.mask,
        "values": packed.values,
        "scale": rng.uniform(1e-4, 1e-3, outputs).astype(np.float32),
        "bias": rng.integers(-9000, 9000, outputs).astype(np.int32),
    }
    said = {
        "channels_in": inputs, "channels_out": outputs, "step": 0.05, "zero_point": int(rng.integers(256)),
        "activation": int(rng.integers(len(ACTIVATIONS))), "low": -0.5, "high": 6.0, "slope": 1 / 6,
    } | changed  # fmt: skip
    node = helper.make_node("SparseLinear", ["x", *stored], ["y"], domain=DOMAIN, **said)
    value = helper.make_tensor_value_info
    given, made = (["n", channels, *[1] * ones] for channels in (inputs, outputs))
    graph = helper.make_graph(
        [node], "linear", [value("x", TensorProto.FLOAT, given)], [value("y", TensorProto.FLOAT, made)],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )  # fmt: skip
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)], ir_version=8
    )


@pytest.mark.parametrize("threads", ["1", "2"])
def test_inside_openvino_it_is_its_formula_in_numpy(threads: str) -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        model = layer(rng, ones=2 * (seed % 2))
        shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:]
        x = rng.normal(0, 4, (1 + seed % 3, *shape)).astype(np.float32)
        (wanted,) = run_reference(model, {"x": x})
        found = compiled(model.SerializeToString(), INFERENCE_NUM_THREADS=threads)([x])[0]
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6, err_msg=f"seed {seed}")


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("hard-sigmoid", torch.nn.functional.hardsigmoid),
        ("hard-swish", torch.nn.functional.hardswish),
        ("sigmoid", torch.sigmoid),
        ("swish", torch.nn.functional.silu),
    ],
)
def test_activations_are_torchs(name: str, function) -> None:
    rng = np.random.default_rng(5)
    plain, bent = (
        layer(np.random.default_rng(5), activation=ACTIVATIONS.index(kind), low=-NO_LIMIT, high=NO_LIMIT)
        for kind in ("", name)
    )
    x = rng.normal(0, 4, (3, plain.graph.input[0].type.tensor_type.shape.dim[1].dim_value)).astype(np.float32)
    v, y = (compiled(model.SerializeToString())([x])[0] for model in (plain, bent))
    np.testing.assert_allclose(y, function(torch.from_numpy(v).double()).numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"channels_in": 0}, "sizes must be positive"),
        ({"channels_in": 101}, "needs float32"),
        ({"channels_out": 101}, "scale and bias need one number"),
        ({"step": 0.0}, "needs a positive step"),
        ({"zero_point": 256}, "zero point in 0..255"),
        ({"activation": 6}, "there is no such activation"),
        ({"low": 7.0}, "the lower limit not above the other"),
    ],
)
def test_a_layer_that_contradicts_itself_is_refused_when_it_is_read(changed, said: str) -> None:
    with pytest.raises(RuntimeError, match=said):
        compiled(layer(np.random.default_rng(0), **changed).SerializeToString())


def test_two_linear_layers_in_a_row_by_hand() -> None:
    """Quantized with a step of 1: 2 * 3 - 4 = 2 through a relu, then 2 * 5 = 10, and -4 is clipped to 0."""
    step = numpy_helper.from_array(np.float32(1.0), "step")
    points = [numpy_helper.from_array(np.array(0, kind), name) for name, kind in (("u8", np.uint8), ("s8", np.int8))]
    weights = {"a": [[3, 0], [0, 1]], "b": [[5, 7]]}
    matrices = {f"{name}.weight_quantized": np.array(rows, np.int8) for name, rows in weights.items()}
    stored = [numpy_helper.from_array(rows, name) for name, rows in matrices.items()]
    stored += [numpy_helper.from_array(np.array([-4, -4], np.float32), "bias"), step, *points]
    nodes = []
    for name, source in (("a", "x"), ("b", "relu")):
        nodes += [
            helper.make_node("QuantizeLinear", [source, "step", "u8"], [f"{source}_q"]),
            helper.make_node("DequantizeLinear", [f"{source}_q", "step", "u8"], [f"{source}_dq"]),
            helper.make_node("DequantizeLinear", [f"{name}.weight_quantized", "step", "s8"], [f"{name}.weight"]),
            helper.make_node("Gemm", [f"{source}_dq", f"{name}.weight", *["bias"] * (name == "a")], [name], transB=1),
        ]
        nodes += [helper.make_node("Relu", ["a"], ["relu"])] if name == "a" else []
    value = helper.make_tensor_value_info
    inputs, outputs = value("x", TensorProto.FLOAT, ["n", 2]), value("b", TensorProto.FLOAT, ["n", 1])
    graph = helper.make_graph(nodes, "two", [inputs], [outputs], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    read = read_graph(model)
    found = match(read.graph)
    assert [(type(one), one.name, one.activation) for one in found.layers] == [
        (LinearLayer, "a", "clip"),
        (LinearLayer, "b", ""),
    ]
    sparse = rewrite(read, found.layers)
    assert [node.op_type for node in sparse.graph.node] == ["SparseLinear", "SparseLinear"]
    assert compiled(sparse.SerializeToString())([np.array([[2, 0]], np.float32)])[0].tolist() == [[10]]
