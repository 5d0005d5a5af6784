"""An ONNX graph with an index: who makes a tensor, who reads it, what is constant, how large it is."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from deploypruner.errors import InputError
from deploypruner.onnx_file import reads, topological

Array = NDArray[Any]
Shape = tuple[int | None, ...]


class OnnxGraph:
    """A read-only view of a model's main graph.

    Args:
        model: Not changed; shapes are inferred in a copy.

    Attributes:
        nodes: In topological order, otherwise the file's; quantizers append their pairs at the end.
        inputs: Names of the model's inputs, initializers left out.
        outputs: Names of the model's outputs.

    Raises:
        InputError: The model is not sound ONNX: a missing tensor, an operator this onnx does not know at its opset.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        try:
            self.model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        except onnx.shape_inference.InferenceError as error:
            said = str(error).strip().splitlines()[-1]
            raise InputError(f"the model is not sound ONNX: {said}", hint="export it again") from error
        graph = self.model.graph
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = [value.name for value in graph.input if value.name not in self._tensors]
        self.outputs = [value.name for value in graph.output]
        self._makers: dict[str, onnx.NodeProto] = {}
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self._unsorted = list(graph.node)
        for node in self._unsorted:
            for name in filter(None, node.output):
                self._makers[name] = node
            for name in dict.fromkeys(reads(node)):
                self._readers[name].append(node)
        values = (*graph.input, *graph.output, *graph.value_info)
        self._shapes = {value.name: _shape(value) for value in values}
        self._check_inputs()
        self.nodes = topological(self._unsorted)

    def maker(self, name: str) -> onnx.NodeProto | None:
        """The node that computes `name`, None for an input or an initializer."""
        return self._makers.get(name)

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """Nodes that read `name`, each once, in the file's order."""
        return self._readers.get(name, [])

    def shape(self, name: str) -> Shape | None:
        """Its dimensions, None for one that is open; None where nothing is known."""
        return self._shapes.get(name)

    def constant(self, name: str) -> Array | None:
        """The value of an initializer or a Constant node, None for anything else."""
        if name in self._tensors:
            return numpy_helper.to_array(self._tensors[name])
        maker = self._makers.get(name)
        if maker is not None and maker.op_type == "Constant":
            value = attribute(maker, "value", None)
            return None if value is None else numpy_helper.to_array(value)
        return None

    def _check_inputs(self) -> None:
        known = {*self.inputs, *self._tensors, *self._makers}
        for node in self._unsorted:
            missing = [name for name in node.input if name and name not in known]
            if missing:
                raise InputError(
                    f"the model is incomplete: {node.op_type} '{node.name}' reads '{missing[0]}', which is neither "
                    "computed nor stored",
                    hint="export it again, weights included",
                )


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """The value of an attribute: bytes become text, repeated values a list."""
    for found in node.attribute:
        if found.name == name:
            value = onnx.helper.get_attribute_value(found)
            return value.decode() if isinstance(value, bytes) else value
    return default


def scalar(value: Array | None) -> float | None:
    """The one number of an array, None where it has none or several."""
    return None if value is None or value.size != 1 else float(np.asarray(value).reshape(-1)[0])


def _shape(value: onnx.ValueInfoProto) -> Shape | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    return tuple(int(dim.dim_value) if dim.HasField("dim_value") else None for dim in dims)
