"""A QDQ graph as a torch module: rounded wherever the file rounds, with weights in float behind the rounding.

What is trained is thus what is exported, batch norm folded and every pair in its place: no second opinion on where an
integer kernel begins; roundings that a runtime leaves out (`left_out`) are left out here, too. Gradients pass a
rounding as if it were not there, and stop where it saturates (the straight-through estimator; Jacob et al. 2018,
arXiv:1712.05877, section 3). Scales stay those of the file.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from deploypruner.errors import InputError
from deploypruner.onnx_file import write_onnx
from deploypruner.onnx_graph import Array, constant, made_by, operand, optional, read_graph
from deploypruner.qat.operators import OPERATORS
from deploypruner.quantize.weight_grid import MULTIPLES, REDUCED

# Where a stored tensor of floats is a weight: operator -> places of its inputs.
_TRAINED = {
    "Add": (0, 1),
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
}
_RESTORE, _ROUND = "DequantizeLinear", "QuantizeLinear"


@dataclass(frozen=True)
class Stored:
    """Integers of the file and what they stand for.

    Args:
        name: Of the stored integers.
        scale: Float32, one number or one per index of `axis`.
        axis: Of the scale.
        low: Smallest integer.
        high: Largest integer.
        dtype: Of the integers.
    """

    name: str
    scale: Array
    axis: int
    low: int
    high: int
    dtype: np.dtype[Any]

    def steps(self, dims: int) -> Array:
        """The scale for a tensor of so many axes."""
        shape = [-1 if place == self.axis % dims and self.scale.size > 1 else 1 for place in range(dims)]
        return self.scale.reshape(shape)

    def integers(self, values: Array) -> Array:
        """What the file holds for these floats."""
        steps = self.steps(values.ndim) if values.ndim else self.scale.reshape(())
        found: Array = np.clip(np.rint(values / steps), self.low, self.high).astype(self.dtype)
        return found


@dataclass(frozen=True)
class _Program:
    """Nodes in their order; shared by copies of a module, which have tensors of their own."""

    nodes: tuple[ir.Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last_use: dict[str, int]

    def __deepcopy__(self, memo: dict[int, Any]) -> _Program:
        return self


class QdqModule(nn.Module):
    """What a QDQ file computes, to be trained.

    Args:
        path: The file; float layers, several inputs and outputs are fine.
        zeros: The float file it was made from: weights that are exactly zero there stay zero.
        unrounded: Names of QuantizeLinear nodes that clip alone, as `left_out` gives them.

    Raises:
        InputError: The file is no sound ONNX, or has an operator that is not known here; it is named.
    """

    def __init__(self, path: Path, *, zeros: Path | None = None, unrounded: Collection[str] = ()) -> None:
        super().__init__()
        self._path = path
        self._unrounded = frozenset(unrounded)
        graph = read_graph(onnx.load(path)).graph
        _check_known(graph)
        self._stored: dict[str, Stored] = {}  # value that integers are restored to -> what is stored
        self._names: dict[str, str] = {}  # value of the graph -> attribute that holds it
        kept = {} if zeros is None else _zeros(zeros)
        for node in graph:
            if node.op_type == _RESTORE and (integers := constant(node.inputs[0])) is not None:
                self._add_integers(node, integers, kept)
        trained = {id(value) for node in graph for value in _weights(node)}
        for value in graph.initializers.values():
            self._add_floats(value, trained=id(value) in trained)
        for node in graph:
            if node.op_type == "Constant":
                self._add_floats(node.outputs[0], trained=False)
        nodes = tuple(node for node in graph if str(node.outputs[0].name) not in self._names)
        last_use = {str(v.name): place for place, node in enumerate(nodes) for v in node.inputs if v is not None}
        outputs = tuple(str(value.name) for value in graph.outputs)
        last_use |= dict.fromkeys(outputs, len(nodes))
        self._program = _Program(nodes, tuple(str(v.name) for v in graph.inputs), outputs, last_use)

    @property
    def integer_layers(self) -> int:
        """Stored integers that train, biases left out."""
        return sum(stored.dtype != np.int32 for stored in self._stored.values())

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The outputs of the file for inputs in its order."""
        program = self._program
        if len(inputs) != len(program.inputs):
            raise InputError(f"the file has {len(program.inputs)} inputs, got {len(inputs)}")
        values: dict[str, Any] = dict(zip(program.inputs, inputs, strict=True))
        for place, node in enumerate(program.nodes):
            read = [None if v is None or not v.name else self._value(str(v.name), values) for v in node.inputs]
            found = self._computed(node, read)
            outputs = found if isinstance(found, tuple) else (found,)
            values |= {str(v.name): part for v, part in zip(node.outputs, outputs, strict=False)}
            for value in node.inputs:
                if value is not None and program.last_use.get(str(value.name)) == place:
                    values.pop(str(value.name), None)
        found = tuple(self._value(name, values) for name in program.outputs)
        return found[0] if len(found) == 1 else found

    def save(self, path: Path) -> None:
        """Write the file with the weights as they are now, rounded."""
        model = onnx.load(self._path)
        held = {tensor.name: tensor for tensor in model.graph.initializer}
        for name, attribute in self._names.items():
            stored = self._stored.get(name)
            found = getattr(self, attribute)
            if not isinstance(found, nn.Parameter):
                continue
            values = self._masked(attribute, found).detach().cpu().numpy()
            target = held[name if stored is None else stored.name]
            new = values if stored is None else stored.integers(values)
            target.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(new), target.name))
        write_onnx(model, path)

    def _add_integers(self, node: ir.Node, integers: Array, kept: dict[str, Array]) -> None:
        """Stored integers become a parameter of the floats that they stand for."""
        point = constant(optional(node, 2))
        scale = np.asarray(constant(node.inputs[1]), np.float32)
        name, output = str(operand(node, 0).name), str(node.outputs[0].name)
        if point is not None and point.any():
            raise InputError(f"weight '{name}' has zero points, which quantization-aware training does not know")
        low, high = np.iinfo(integers.dtype).min, np.iinfo(integers.dtype).max
        if integers.dtype == np.int8:
            high = REDUCED if int(np.abs(integers.astype(np.int32)).max(initial=0)) <= REDUCED else MULTIPLES
            low = -high
        stored = Stored(name, scale, node.attributes.get_int("axis", 1), low, high, integers.dtype)
        steps = stored.steps(integers.ndim) if integers.ndim else scale.reshape(())
        number = len(self._stored)
        self._stored[output] = stored
        self._names[output] = f"weight_{number}"
        self.register_parameter(f"weight_{number}", nn.Parameter(torch.from_numpy(integers * steps).float()))
        self.register_buffer(f"steps_{number}", torch.from_numpy(np.array(steps)), persistent=False)
        zero = kept.get(name.removesuffix("_quantized"))
        if zero is not None and zero.shape == integers.shape and zero.any():
            self.register_buffer(f"weight_{number}_kept", torch.from_numpy(~zero).float(), persistent=False)

    def _add_floats(self, value: ir.Value, *, trained: bool) -> None:
        """A stored tensor of the file becomes a parameter where layers compute with it, else a buffer."""
        found, name = constant(value), str(value.name)
        if found is None or name in self._names:
            return
        tensor, attribute = torch.from_numpy(np.array(found)), f"stored_{len(self._names)}"
        self._names[name] = attribute
        if trained and tensor.is_floating_point() and tensor.numel() > 1:
            self.register_parameter(attribute, nn.Parameter(tensor))
        else:
            self.register_buffer(attribute, tensor, persistent=False)

    def _value(self, name: str, values: dict[str, Any]) -> Any:
        if name in values:
            return values[name]
        attribute = self._names[name]
        found = self._masked(attribute, getattr(self, attribute))
        stored = self._stored.get(name)
        return (
            found if stored is None else _rounded(found, getattr(self, attribute.replace("weight", "steps")), stored)
        )

    def _masked(self, attribute: str, values: Tensor) -> Tensor:
        kept = getattr(self, f"{attribute}_kept", None)
        return values if kept is None else values * kept

    def _computed(self, node: ir.Node, read: list[Any]) -> Any:
        if node.op_type == _RESTORE:  # of what was rounded: in floats already
            return read[0]
        if node.op_type == _ROUND:
            return _on_grid(node, read[0], clips_alone=node.name in self._unrounded)
        return OPERATORS[node.op_type](node, read)


def _on_grid(node: ir.Node, x: Tensor, *, clips_alone: bool) -> Tensor:
    """The floats that an activation's integers stand for, or all between the first and the last of them."""
    scale, point = constant(node.inputs[1]), constant(optional(node, 2))
    assert scale is not None, "checked"
    kind = np.dtype(np.uint8) if point is None else point.dtype
    zero = 0 if point is None else int(point.reshape(-1)[0])
    low, high, step = np.iinfo(kind).min, np.iinfo(kind).max, float(scale.reshape(-1)[0])
    if clips_alone:
        return x.float().clamp((low - zero) * step, (high - zero) * step)
    return torch.fake_quantize_per_tensor_affine(x.float(), step, zero, low, high)


def _rounded(values: Tensor, steps: Tensor, stored: Stored) -> Tensor:
    """Floats on the grid of the stored integers; gradients pass where they are within its ends."""
    inside = values.clamp(stored.low * steps, stored.high * steps)
    return inside + (torch.round(inside / steps) * steps - inside).detach()


def _weights(node: ir.Node) -> list[ir.Value]:
    places = _TRAINED.get(node.op_type, ())
    return [value for place in places if (value := optional(node, place)) is not None and value.is_initializer()]


def _check_known(graph: ir.Graph) -> None:
    """Refuse what the module could not compute, before anything is trained.

    Raises:
        InputError: An operator, or a pair, that is not known.
    """
    hint = "leave out --qat; the file itself is fine"
    for node in graph:
        known = node.op_type in OPERATORS or node.op_type in (_ROUND, _RESTORE, "Constant")
        if node.domain not in ("", "ai.onnx") or not known:
            raise InputError(f"quantization-aware training does not know {node.op_type} ('{node.name}')", hint=hint)
        stored = node.op_type == _RESTORE and constant(node.inputs[0]) is not None
        if node.op_type == _RESTORE and not stored and made_by(operand(node, 0), _ROUND) is None:
            raise InputError(f"'{node.name}' restores integers that the graph did not round", hint=hint)
        scale = constant(node.inputs[1]) if node.op_type in (_ROUND, _RESTORE) else np.ones(1)
        if scale is None or (node.op_type == _ROUND and scale.size != 1):
            raise InputError(f"'{node.name}' has no single stored scale", hint=hint)


def _zeros(path: Path) -> dict[str, Array]:
    """Stored floats of a file -> where they are exactly zero."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    return {name: values == 0 for name, values in found.items() if values.dtype.kind == "f"}
