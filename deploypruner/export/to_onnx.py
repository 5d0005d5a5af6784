"""ONNX: one file both runtimes read, and what the quantizer starts from."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import ClassVar

import onnx
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from deploypruner.errors import TraceError, said_by
from deploypruner.export import Exporter, exporters
from deploypruner.export.alike import write_alike
from deploypruner.export.by_running import onnx_by_running
from deploypruner.export.known_faults import avoid_known_faults
from deploypruner.export.layer_names import name_layers
from deploypruner.export.program import capture, quiet, with_reshapes
from deploypruner.graph.inputs import Inputs
from deploypruner.graph.nodes import op_name, where
from deploypruner.graph.open_axes import OpenAxis
from deploypruner.graph.recurrent import open_sequences
from deploypruner.onnx_file import LARGEST_BYTES, write_onnx

# 20 is the first opset with Gelu as one operator, which both runtimes fuse; 18 spells it out in five.
OPSET = 20


@exporters.register("onnx")
class Onnx(Exporter):
    """ONNX, one file below 2 GB, batch norm folded into the convolution before it."""

    suffix: ClassVar[str] = ".onnx"
    format: ClassVar[str] = "onnx"
    from_module: ClassVar[bool] = False

    def write(
        self,
        module: torch.nn.Module,
        example_inputs: Inputs,
        path: Path,
        *,
        dynamic_batch: bool,
        open_axes: Sequence[OpenAxis] = (),
    ) -> None:
        """See `Exporter.write`; inputs keep their argument names, outputs are "output" or "output_0", ...

        The ONNX optimizer (onnxscript's) folds batch norm into convolutions; nothing here does.

        A user's own class that torch.export cannot capture is written as one run of it (`by_running`).

        Raises:
            TraceError: Not capturable, an operator without ONNX counterpart, or 2 GB and more of weights.
        """
        _check_size(module)
        try:
            program = capture(module, example_inputs, dynamic_batch=dynamic_batch, open_axes=open_axes)
        except TraceError as error:
            if isinstance(module, torch.fx.GraphModule) or open_axes:
                raise
            model = onnx_by_running(module, example_inputs, dynamic_batch=dynamic_batch, refused=error.message)
        else:
            _check_pooling(program, open_axes)
            model = _convert(with_reshapes(program), open_axes)
        _name_axes(model, open_axes)
        write_onnx(avoid_known_faults(name_layers(_tidy(model), module)), path)


def _check_pooling(program: ExportedProgram, open_axes: Sequence[OpenAxis]) -> None:
    """Refuse what torch.onnx writes with the window of the example's size, without a word: wrong at any other."""
    for node in program.graph.nodes if open_axes else ():
        if "adaptive" not in op_name(node):
            continue
        read, sizes = node.args[0].meta["val"], node.args[1]
        lengths = read.shape[-len(sizes) :]
        if any(isinstance(length, torch.SymInt) and size != 1 for length, size in zip(lengths, sizes, strict=True)):
            axes = _places(open_axes)
            raise TraceError(
                f"the model cannot be converted to ONNX with {axes} open: the windows of {op_name(node)} to "
                f"{list(sizes)} at {where(node) or node.name} depend on the size",
                hint=f"--dynamic none fixes {axes} at the example's length; pooling to 1 may do with open ones",
            )


def _convert(program: ExportedProgram, open_axes: Sequence[OpenAxis]) -> onnx.ModelProto:
    inputs = _user_inputs(program)
    with quiet(), open_sequences(), redirect_stdout(io.StringIO()):
        try:
            converted = torch.onnx.export(
                program,
                input_names=inputs,
                output_names=_output_names(program, taken=inputs),
                opset_version=OPSET,
                dynamo=True,
                optimize=True,
                verbose=False,
            )
        except Exception as error:
            raise _refused(program, error, open_axes) from error
    assert converted is not None, "torch.onnx.export returned nothing"
    write_alike(converted.model.graph)
    return converted.model_proto


def _refused(program: ExportedProgram, error: Exception, open_axes: Sequence[OpenAxis]) -> TraceError:
    """What the exporter could not translate, and where in the user's code it stands."""
    said = str(error.__cause__ or error).strip()
    named = re.search(r"target=torch\.ops\.([\w.]+)", said)
    hint = "the pruned weights are saved; dp.restore puts them into your class"
    while_open = ""
    if open_axes:
        axes = _places(open_axes)
        while_open = f" with {axes} open"
        hint = f"--dynamic none fixes {axes} at the example's length; other operations may do with open ones"
    if named is None:
        return TraceError(
            f"the model cannot be converted to ONNX{while_open}: {said_by(error.__cause__ or error)}", hint=hint
        )
    operation = named[1].removesuffix(".default")
    kind = operation.split(".")[1].strip("_")
    # The exporter takes operators apart: the one that it names may be a piece of the user's.
    nodes = [
        n for n in program.graph.nodes if n.op == "call_function" and kind.startswith(op_name(n).strip("_") or "?")
    ]
    place = f" at {where(nodes[0])}" if nodes and where(nodes[0]) else ""
    return TraceError(
        f"the model cannot be converted to ONNX{while_open}: it has no counterpart of {operation}{place}",
        hint=hint
        if open_axes
        else "write it with other operations; the pruned weights are saved, and dp.restore puts them into your class",
    )


def _places(open_axes: Sequence[OpenAxis]) -> str:
    """ "axis 2 of 'x' and axis 3 of 'x'"."""
    return " and ".join(dict.fromkeys(axis.where for axis in open_axes))


def _user_inputs(program: ExportedProgram) -> list[str]:
    specs = program.graph_signature.input_specs
    return [spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT]


def _output_names(program: ExportedProgram, *, taken: Sequence[str]) -> list[str]:
    stem = "result" if any(name.startswith("output") for name in taken) else "output"
    tree = program.call_spec.out_spec
    count = tree.num_leaves if tree is not None else len(pytree.tree_leaves(program.graph_signature.user_outputs))
    return [stem] if count == 1 else [f"{stem}_{i}" for i in range(count)]


def _check_size(module: torch.nn.Module) -> None:
    size = sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])
    if size > LARGEST_BYTES:
        raise TraceError(
            f"the model holds {size / 1e9:.1f} GB of weights, and one ONNX file ends at 2 GB",
            hint="prune it further, or export pt2 only",
        )


def _name_axes(model: onnx.ModelProto, open_axes: Sequence[OpenAxis]) -> None:
    """Call open axes by their names, in place, wherever torch.export's symbols stand.

    Raises:
        TraceError: The conversion made a number of one of them.
    """
    graph = model.graph
    shapes = [value.type.tensor_type.shape.dim for value in graph.input]
    symbols = {shapes[a.tensor][a.axis].dim_param: a for a in reversed(open_axes)}
    for symbol, axis in symbols.items():
        if not symbol or symbol.isdigit():
            raise TraceError(
                f"{axis.where} does not stay open on the way to ONNX: it becomes {axis.length}",
                hint="--dynamic none fixes all sizes at the example's; or leave this axis out of --dynamic",
            )
    first = [dims[0].dim_param for dims in shapes if dims and dims[0].dim_param]
    batches = {s: f"batch_{i}" if i else "batch" for i, s in enumerate(dict.fromkeys(first))}
    names = {**batches, **{symbol: axis.name for symbol, axis in symbols.items()}}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), dim.dim_param)


def _tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop source paths and stack traces, in place."""
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        del value.metadata_props[:]
    for holder in (model, graph, *graph.node, *graph.initializer):
        del holder.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
    return model
