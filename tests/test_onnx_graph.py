"""ONNX graphs to walk and to edit: who makes and who reads a value, what is constant, what may go."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from deploypruner.errors import InputError
from deploypruner.onnx_graph import constant, made_by, read_graph, readers, remove_unused, sizes, to_model
from tests.qdq import chain
from tests.test_onnx_file import branching, diamond, kinds, model_of, value


def values_of(model: ir.Model) -> dict[str, ir.Value]:
    return ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)


def test_what_is_read_inside_a_branch_is_read_by_the_if_once():
    model = read_graph(branching())
    assert [node.op_type for node in readers(values_of(model)["a"])] == ["If"]
    assert [node.op_type for node in model.graph] == ["ReduceSum", "Greater", "Neg", "If"], "sorted"


def test_a_value_knows_its_maker_its_sizes_and_whether_it_is_constant():
    found = values_of(read_graph(chain()))
    quantize = made_by(found["x_q"], "QuantizeLinear")
    assert quantize is not None
    assert made_by(found["x_q"], "DequantizeLinear", "Conv") is None
    assert (sizes(found["x_q"]), sizes(found["x_scale"])) == ((None, 8, 6, 6), ())
    assert constant(found["x_q"]) is None
    np.testing.assert_array_equal(constant(found["x_scale"]), np.float32(0.05))


def test_constants_that_nodes_hold_are_constants():
    nodes = [helper.make_node("Constant", [], ["two"], value_float=2.0), helper.make_node("Mul", ["x", "two"], ["y"])]
    found = values_of(read_graph(model_of(nodes, [value("y")])))
    assert float(constant(found["two"])) == 2.0


def test_stored_tensors_that_are_inputs_are_constants():
    model = model_of([helper.make_node("Add", ["x", "w"], ["y"])], [value("y")], w=np.ones(2, np.float32))
    model.graph.input.append(value("w"))
    model.ir_version = 3
    made = to_model(read_graph(model))
    assert ([v.name for v in made.graph.input], made.ir_version) == (["x"], 4)
    onnx.checker.check_model(made, full_check=True)
    assert len(model.graph.input) == 2, "the given one is not changed"


def test_a_model_that_is_read_and_written_is_the_same():
    made, model = to_model(read_graph(chain())), chain()
    assert [str(node) for node in made.graph.node] == [str(node) for node in model.graph.node]
    assert list(made.graph.initializer) == list(model.graph.initializer)
    assert not {v.name for v in made.graph.value_info} & {t.name for t in model.graph.initializer}


def test_a_name_that_is_made_twice_is_named():
    model = diamond()
    model.graph.node.append(model.graph.node[1])
    with pytest.raises(InputError, match=r"not sound ONNX: .*'b'"):
        read_graph(model)


def test_an_inner_graph_that_gives_what_is_made_outside_is_refused():
    model = branching()
    other = next(a.g for a in model.graph.node[0].attribute if a.name == "else_branch")
    del other.node[:]
    other.output[0].name = "a"
    with pytest.raises(InputError, match="'else' inside of the model gives 'a', which is made outside") as found:
        read_graph(model)
    assert found.value.hint == "put an Identity into the inner graph"


def test_what_no_output_needs_goes_with_what_only_it_read():
    nodes = [
        helper.make_node("Add", ["x", "kept"], ["y"]),
        helper.make_node("Mul", ["x", "gone"], ["unused"]),
        helper.make_node("Relu", ["unused"], ["unread"]),
    ]
    model = read_graph(model_of(nodes, [value("y")], kept=np.ones(2, np.float32), gone=np.ones(2, np.float32)))
    remove_unused(model.graph)
    made = to_model(model)
    assert (kinds(made.graph), [t.name for t in made.graph.initializer]) == (["Add"], ["kept"])
    assert numpy_helper.to_array(made.graph.initializer[0]).tolist() == [1, 1]
