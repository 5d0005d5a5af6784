"""A .pt2 file: a torch.export program with its example inputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.export import ExportedProgram

from deploypruner.errors import InputError
from deploypruner.graph.inputs import Inputs
from deploypruner.pt2 import read_program
from deploypruner.ranges import check_shape
from deploypruner.sources.found import FoundModel, ModelRequest, Shapes
from deploypruner.sources.torch_file import Kind, kind_of

if TYPE_CHECKING:
    from torch.fx import Node

# Operators that behave differently in training, and the position of the argument that says so.
_TRAINING_ARGUMENT = {torch.ops.aten.dropout.default: 2, torch.ops.aten.batch_norm.default: 5}


def load_program(request: ModelRequest) -> FoundModel:
    """Load a .pt2 file.

    Raises:
        InputError: It is missing, damaged, another kind of file, exported in training mode or in half
            precision, mixes positional and keyword inputs, or does not take the shape given with --input-shape.
    """
    path = Path(request.source)
    kind = kind_of(path)
    if kind is Kind.DAMAGED:
        raise InputError(f"'{path}' is truncated or corrupt", hint="export or copy it again")
    if kind is not Kind.PROGRAM:
        hint = "rename it to .pt" if kind in (Kind.ZIP, Kind.LEGACY) else "save one with torch.export.save"
        raise InputError(f"'{path}' is {kind.value}, not a torch.export program", hint=hint)
    program = read_program(path)
    _check_exported_for_inference(program, path)
    return FoundModel(program, path.stem, example_inputs=_example_inputs(program, request))


def _check_exported_for_inference(program: ExportedProgram, path: Path) -> None:
    for node in program.graph.nodes:
        position = _TRAINING_ARGUMENT.get(node.target) if node.op == "call_function" else None
        if position is not None and len(node.args) > position and node.args[position] is True:
            raise InputError(
                f"'{path}' was exported in training mode: '{node.name}' is active",
                hint="call model.eval() before torch.export.export",
            )
    for name, tensor in program.state_dict.items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise InputError(
                f"'{path}' was exported in {str(tensor.dtype).removeprefix('torch.')} ('{name}')",
                hint="export it again in float32: the graph of a program has its types fixed",
            )


def _example_inputs(program: ExportedProgram, request: ModelRequest) -> Inputs:
    """The program's own inputs, or new ones of the asked shape where its dynamic dimensions allow that."""
    nodes = _inputs(program)
    keywords = _keywords(program, request.source)
    stored = program.example_inputs
    flat = None if stored is None else (*stored[0], *stored[1].values())
    if flat is not None and not all(isinstance(value, Tensor) for value in flat):
        raise InputError(f"'{request.source}' takes inputs that are not tensors", hint="export it with tensors only")
    kept = None if flat is None else tuple(value.detach().cpu() for value in flat)
    shapes = tuple(tuple(value.shape) for value in kept) if kept else tuple(map(_smallest_shape, nodes))
    if request.input_shapes is not None:
        _check_shapes(request.input_shapes, nodes, request.source)
        if request.input_shapes != shapes:
            kept, shapes = None, request.input_shapes
    values = kept or tuple(_values(shape, node.meta["val"].dtype) for shape, node in zip(shapes, nodes, strict=True))
    return dict(zip(keywords, values, strict=True)) if keywords else values


def _keywords(program: ExportedProgram, source: str) -> tuple[str, ...]:
    """Names of the keyword inputs, in the program's order; empty where all are positional."""
    spec = program.call_spec.in_spec
    if spec is None or spec.num_children != 2:
        return ()
    names = tuple(map(str, spec.child(1).context or ()))
    if names and spec.child(0).num_children:
        raise InputError(
            f"'{source}' was exported with positional and keyword inputs ({', '.join(names)})",
            hint="export it with one kind: torch.export.export(model, (x, y)) or (model, (), {'x': x, 'y': y})",
        )
    return names


def _inputs(program: ExportedProgram) -> list[Node]:
    names = set(program.graph_signature.user_inputs)
    return [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]


def _smallest_shape(node: Node) -> tuple[int, ...]:
    """Dynamic dimensions at the size they were exported with."""
    return tuple(size if isinstance(size, int) else int(size) for size in node.meta["val"].shape)


def _check_shapes(asked: Shapes, nodes: list[Node], source: str) -> None:
    taken = [[size if isinstance(size, int) else None for size in node.meta["val"].shape] for node in nodes]
    fits = len(asked) == len(taken) and all(
        len(shape) == len(own) and all(o in (None, s) for s, o in zip(shape, own, strict=True))
        for shape, own in zip(asked, taken, strict=True)
    )
    if not fits:
        given = ", ".join(str(list(shape)) for shape in asked)
        own_text = ", ".join(str(own).replace("None", "any") for own in taken)
        raise InputError(
            f"--input-shape says {given}, but '{source}' was exported for {own_text}",
            hint="leave --input-shape out: a .pt2 file carries its own example inputs",
        )


def _values(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if shape:
        check_shape("--input-shape", shape, hint="leave it out: a .pt2 file carries its own example inputs")
    generator = torch.Generator().manual_seed(0)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=dtype)
    return torch.randint(0, 2, shape, generator=generator, dtype=dtype)
