"""What to do about an ONNX file that a runtime refuses: one step that makes a file which it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from deploypruner.onnx_file import every_node

# What onnx defines and what ONNX Runtime adds for networks; the second is partly known to OpenVINO.
_STANDARD = frozenset({"", "ai.onnx"})
_KNOWN = _STANDARD | {"com.microsoft", "deploypruner"}
# What both runtimes compute from here on.
_OPSET = 13


def advice(path: Path) -> str:
    """One step that gives a file the runtimes take, "" where nothing about this one stands out.

    Args:
        path: The file that was refused; any suffix.
    """
    if path.suffix != ".onnx":
        return ""
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, ValueError, DecodeError):
        return ""
    looks: tuple[Callable[[onnx.ModelProto, Path], str], ...] = (_unshaped, _functions, _foreign, _fused, _plain)
    return next(filter(None, (look(model, path) for look in looks)), "")


def foreign_operations(model: onnx.ModelProto) -> dict[str, str]:
    """Operator -> its domain, for every one that onnx itself does not define."""
    own = {(function.domain, function.name) for function in model.functions}
    return {
        node.op_type: node.domain
        for node in every_node(model)
        if node.domain not in _STANDARD and (node.domain, node.op_type) not in own
    }


def _unshaped(model: onnx.ModelProto, path: Path) -> str:
    stored = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in stored and not value.type.tensor_type.HasField("shape"):
            return f"input '{value.name}' does not say how many axes it has: export it with a shape"
    return ""


def _functions(model: onnx.ModelProto, path: Path) -> str:
    if not model.functions:
        return ""
    return (
        "it calls functions of its own, which not every runtime does: "
        f"onnx.save(onnx.inliner.inline_local_functions(onnx.load({str(path)!r})), 'inlined.onnx')"
    )


def _foreign(model: onnx.ModelProto, path: Path) -> str:
    """Cut the network out from between operations that are no network's: scalers before it, classifiers behind it."""
    foreign = {op: domain for op, domain in foreign_operations(model).items() if domain not in _KNOWN}
    if not foreign:
        return ""
    op, domain = next(iter(foreign.items()))
    inputs, outputs = _network(model)
    if not (inputs and outputs):
        return f"export it without {op} ({domain}), and do in your program what that does"
    return (
        f"cut it where {op} ({domain}) begins or ends: "
        f"onnx.utils.extract_model({str(path)!r}, 'network.onnx', {inputs}, {outputs})"
    )


def _network(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    """Inputs and outputs of what stands between foreign operations; nothing where their types are not known."""
    typed = onnx.shape_inference.infer_shapes(model).graph
    known = {value.name for value in (*typed.input, *typed.output, *typed.value_info)}
    graph = model.graph
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in stored]
    behind: set[str] = set()
    outputs: list[str] = []
    for node in graph.node:
        names = [name for name in node.input if name and name not in stored]
        if behind & set(names):
            behind |= set(node.output)
        elif node.domain in _KNOWN:
            continue
        elif set(names) <= set(inputs):
            inputs = [name for name in inputs if name not in names] + list(node.output)
        else:
            outputs += [name for name in names if name not in (*inputs, *outputs)]
            behind |= set(node.output)
    outputs += [value.name for value in graph.output if value.name not in (*behind, *outputs, *inputs)]
    return (inputs, outputs) if {*inputs, *outputs} <= known else ([], [])


def _fused(model: onnx.ModelProto, path: Path) -> str:
    foreign = foreign_operations(model)
    quantized = next((n.op_type for n in every_node(model) if n.op_type.startswith(("QLinear", "QGemm"))), "")
    if quantized:
        return f"only ONNX Runtime runs {quantized}: --runtime onnxruntime; or quantize it in QDQ format"
    if foreign:
        op, domain = next(iter(foreign.items()))
        return f"give the file from before it was optimized for one runtime ({op}, {domain})"
    return ""


def _plain(model: onnx.ModelProto, path: Path) -> str:
    """Names, types and versions that a runtime is strict about."""
    names = [node.name for node in model.graph.node if node.name]
    if len(set(names)) < len(names):
        return "several of its nodes have one name: set node.name = '' for every node of model.graph, and save it"
    if any(tensor.data_type == onnx.TensorProto.DOUBLE for tensor in model.graph.initializer):
        return "its weights are float64, which runtimes do not compute in: export model.float()"
    opset = next((found.version for found in model.opset_import if found.domain in _STANDARD), _OPSET)
    if opset < _OPSET:
        return (
            f"raise its opset from {opset}: "
            f"onnx.save(onnx.version_converter.convert_version(onnx.load({str(path)!r}), {_OPSET}), 'raised.onnx')"
        )
    return ""
