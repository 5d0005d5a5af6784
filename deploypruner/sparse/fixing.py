"""An ONNX model with open axes, for one length of each: what kernels that are made for one size start from."""

from __future__ import annotations

from collections.abc import Mapping

import onnx


def fixed_at(model: onnx.ModelProto, lengths: Mapping[str, int]) -> onnx.ModelProto:
    """A copy of the model in which axes of these names have these lengths; the batch stays as it is.

    Args:
        model: Open axes of its inputs have names (dim_param).
        lengths: Name -> length.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.value_info[:]  # inferred anew from the inputs
    for value in made.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in lengths:
                dim.dim_value = lengths[dim.dim_param]
    kept = {d.dim_param for value in made.graph.input for d in value.type.tensor_type.shape.dim if d.dim_param}
    for value in made.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in lengths:
                dim.dim_value = lengths[dim.dim_param]
            elif dim.dim_param and dim.dim_param not in kept:
                dim.Clear()
    return made
