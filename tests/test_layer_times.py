"""Whose time an executed operation is: names as both runtimes gave them for one small net."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from deploypruner.latency.layer_times import Owners, _runs
from deploypruner.latency.probes import Profile
from deploypruner.onnx_graph import read_graph
from deploypruner.runtime import NodeTime
from tests.test_quantize_attention import attending, products
from tests.test_quantize_mixed import residual

LAYERS = ("make_a", "make_c", "make_f", "make_z")


@pytest.fixture
def owners(tmp_path) -> Owners:
    return Owners(read_graph(onnx.load(residual(tmp_path / "a.onnx"))).graph)


def node(
    name: str, ns: float = 1000.0, *origins: str, kind: str = "Reorder", precisions: str = "f32>f32"
) -> NodeTime:
    return NodeTime(name, kind, (), precisions, ns, origins)


OPENVINO = {
    ("x_QuantizeLinear", "x_QuantizeLinear"): "make_a",
    ("make_a", "make_a", "b_QuantizeLinear"): "make_a",
    ("make_c", "make_c", "Multiply_12", "make_d", "e_QuantizeLinear"): "make_c",
    ("make_f/WithoutBiases", "make_f/WithoutBiases", "make_g"): "make_f",
    ("output_original", "z_original", "z/DequantizationSubtract"): "make_z",
}
ONNXRUNTIME = {
    ("b_nchwc",): "make_a",  # the convolution with its Relu, called after what it writes
    ("v_DequantizeLinear",): "make_c",  # weights that are made float in every inference
    ("make_c",): "make_c",
    ("Transpose after make_c",): "make_c",
    ("e_DequantizeLinear/duplicated",): "make_c",
    ("ReorderOutput after h_nchwc",): "make_f",
    ("z_QuantizeLinear_Input_nchwc",): "make_z",
}


@pytest.mark.parametrize(("names", "layer"), [*OPENVINO.items(), *ONNXRUNTIME.items()])
def test_an_operation_belongs_to_the_layer_it_computes_or_comes_after(owners, names, layer):
    assert owners.of(node(names[0], 1.0, *names[1:])) == layer


def test_what_has_no_known_name_belongs_to_the_layer_before(owners):
    nodes = [node("Reorder_1", 5.0), node("make_a", 10.0), node("Reorder_2", 7.0), node("make_c", 20.0)]
    assert owners.sums(nodes) == {"make_a": 22.0, "make_c": 20.0}


def test_borders_are_between_layers_and_of_the_numbers_that_pass(owners):
    """4 channels of 4 x 4 pixels; b goes around the second convolution, e around the third."""
    assert owners.layers == LAYERS
    assert owners.borders["make_a", "make_c"] == 4 * 4 * 4
    assert set(owners.borders) == {
        ("make_a", "make_c"), ("make_c", "make_f"), ("make_f", "make_z"),
    }  # fmt: skip


def test_times_are_of_the_least_disturbed_turn_and_add_up_to_the_latency(owners):
    def turn(first: float, second: float, total: float) -> Profile:
        nodes = (
            node("make_a", first, kind="Convolution", precisions="u8,i8>u8"),
            node("make_c", second, kind="Convolution+Add", precisions="f32,f32>f32"),
        )
        return Profile(np.array([[total, 1.0]] * 3), nodes)

    found = _runs([turn(3000.0, 1000.0, 8e6), turn(9000.0, 1000.0, 9e6)], owners)
    # 3000 and 1000 of 4000 counted, of 8 ms without counters.
    assert found["make_a"].ms == pytest.approx(6.0)
    assert found["make_c"].ms == pytest.approx(2.0)
    assert (found["make_a"].int8, found["make_c"].int8) == (True, False)
    assert found["make_c"].executed == "Convolution+Add f32,f32>f32"


def test_both_products_of_attention_name_the_operation_that_computes_them():
    graph = read_graph(attending()).graph
    first, second = products(attending())
    whole = node("div_8", 9.0, "div_8", "softmax_9", second, kind="Subgraph", precisions="i8,i8,i8>f32")
    found = Owners(graph).executed([whole])
    assert found == dict.fromkeys((first, second), "Subgraph i8,i8,i8>f32")


def test_what_is_computed_before_the_first_layer_belongs_to_it():
    weights = helper.make_tensor("w", onnx.TensorProto.FLOAT, [2, 2], [1.0, 2.0, 3.0, 4.0])
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="make_a"),
        helper.make_node("Sigmoid", ["x"], ["b"], name="make_b"),
        helper.make_node("Add", ["a", "b"], ["c"], name="make_c"),
        helper.make_node("MatMul", ["c", "w"], ["y"], name="make_y"),
    ]
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 2]) for name in "xy")
    owners = Owners(read_graph(helper.make_model(helper.make_graph(nodes, "g", [x], [y], [weights]))).graph)
    assert owners.sums([node("make_a", 3.0), node("make_c", 5.0), node("make_y", 7.0)]) == {"make_y": 15.0}
