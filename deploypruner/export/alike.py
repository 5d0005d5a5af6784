"""The same operations in the files of all plans, so that a template can be learnt from a few (`latency.template`)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from deploypruner.onnx_graph import operand


def write_alike(graph: ir.Graph) -> None:
    """Write, in place, what torch.onnx writes in two ways as widths happen to be equal or not, in one way.

    A reshape to the sizes that are there already is left out: attention is taken apart with one where the widths of
    queries and values differ. A split says its sizes: where all are equal torch.onnx gives their number instead.
    """
    for node in graph:
        if node.op_type == "Reshape":
            _drop_if_idle(graph, node)
        elif node.op_type == "Split" and "num_outputs" in node.attributes:
            _say_sizes(graph, node)


def _drop_if_idle(graph: ir.Graph, node: ir.Node) -> None:
    read, shape, made = operand(node, 0), operand(node, 1), node.outputs[0]
    if made.is_graph_output() or read.shape is None or read.shape != made.shape:
        return
    if not all(isinstance(size, int) or size.value for size in read.shape):  # two unknown sizes are not equal
        return
    made.replace_all_uses_with(read)
    graph.remove(node, safe=True)
    if shape.is_initializer() and not shape.uses():
        del graph.initializers[str(shape.name)]


def _say_sizes(graph: ir.Graph, node: ir.Node) -> None:
    axis = node.attributes.get_int("axis", 0)
    sizes = [None if value.shape is None else value.shape[axis] for value in node.outputs]
    if not all(isinstance(size, int) for size in sizes):
        return
    stored = ir.Value(name=f"{node.outputs[0].name}_sizes", const_value=ir.tensor(np.array(sizes, np.int64)))
    graph.register_initializer(stored)
    del node.attributes["num_outputs"]
    node.resize_inputs(2)
    node.replace_input_with(1, stored)
