"""Static quantization: u8 activations, i8 weights per channel with zero point 0, QDQ format.

Weights that are zero stay zero, whatever the scale. The arithmetic is ONNX Runtime's quantizer; the ranges,
the placement of QDQ pairs and the scale of channels without weights are decided here.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from deploypruner.atomic import unsaid_errors
from deploypruner.errors import InputError, RecipeError, nearest, said_by
from deploypruner.onnx_advice import foreign_operations
from deploypruner.onnx_file import reads, sort_nodes, write_onnx
from deploypruner.onnx_graph import Array, constant, made_by, operand, to_model
from deploypruner.progress import Progress, SilentProgress
from deploypruner.quantize.calibrate import Feeds, activation_ranges
from deploypruner.quantize.gemm import plain_gemms
from deploypruner.quantize.placement import (
    WEIGHTED,
    Placement,
    idle_tensors,
    int8_nodes,
    op_types,
    remove_pairs,
)
from deploypruner.quantize.repair import STEPS, Int8Form, Repair, RepairStep
from deploypruner.quantize.running import CalibrationBatches, input_names
from deploypruner.quantize.weight_grid import largest_by_channel
from deploypruner.recipe.sections import Method

_PLACEMENTS = ("openvino", "onnxruntime", "sparse")


@dataclass(frozen=True)
class QuantizationSummary:
    """What became int8.

    Args:
        method: Calibration method.
        samples: Calibration samples seen.
        quantized: Convolutions and matrix products that read int8 operands.
        left_float: Name of each that does not -> why.
        repair: Steps of the repair; none where it was left out.
    """

    method: Method
    samples: int
    quantized: int
    left_float: dict[str, str]
    repair: tuple[RepairStep, ...] = ()

    @staticmethod
    def from_json(found: dict[str, Any]) -> QuantizationSummary:
        """The inverse of `asdict`."""
        steps = tuple(RepairStep(**step) for step in found.get("repair", ()))
        return QuantizationSummary(**{**found, "repair": steps})


@dataclass(frozen=True)
class _Options:
    method: Method
    placement: Placement
    reduce_range: bool


def quantize_static(
    fp32: Path,
    int8: Path,
    *,
    calibration: Iterable[Feeds],
    method: Method = "minmax",
    placement: Placement = "openvino",
    reduce_range: bool = False,
    repair: bool = False,
    progress: Progress | None = None,
) -> QuantizationSummary:
    """Write `int8`, the QDQ form of `fp32`. Nothing else is left in the folder.

    Args:
        fp32: ONNX file with named nodes and inferred shapes, as `export` writes it.
        int8: File to write.
        calibration: CalibrationBatches; each one array per model input, samples on axis 0. Read once.
        method: How activation ranges follow from the data, see `activation_ranges`; "auto" chooses for each
            activation as a part of the repair, and is "minmax" without.
        placement: For which runtime the pairs stand best; both execute either, see `placement`.
        reduce_range: 7-bit weights. On x86 processors without VNNI two u8 x i8 products are summed in
            16 bits, which saturates with 8-bit weights.
        repair: Whether to repair what int8 costs, see `repair`. The data then has to be like the real inputs.
        progress: Told about its steps; None for nobody.

    Raises:
        InputError: `fp32` cannot be read, no calibration data, or values that are not finite.
        RecipeError: Unknown method or placement.
    """
    if placement not in _PLACEMENTS:
        raise RecipeError(f"no placement called '{placement}'", hint=nearest(placement, _PLACEMENTS))
    model, options = _load(fp32), _Options(method, placement, reduce_range)
    with tempfile.TemporaryDirectory(dir=int8.parent, prefix=".quantize-") as folder, unsaid_errors(Path(folder)):
        if repair:
            batches = CalibrationBatches(Path(folder), calibration, input_names(model))
            found = _repaired(model, batches, Path(folder), options=options, progress=progress or SilentProgress())
            form, samples, steps = found.form, batches.count, tuple(found.steps)
        else:
            ready = Path(folder) / "fp32.onnx"
            write_onnx(model, ready)
            plain: Method = "minmax" if method == "auto" else method
            with _quiet_logging():
                ranges, samples = activation_ranges(ready, calibration, method=plain, op_types=op_types(placement))
            form, steps = Int8Form(model, ranges), ()
    result = _quantize(form, options)
    write_onnx(to_model(result), int8)
    quantized, left_float = _account(result.graph)
    return QuantizationSummary(method, samples, quantized, left_float, steps)


def _load(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path)
        plain_gemms(model.graph)
        return onnx.shape_inference.infer_shapes(model)
    except (OSError, DecodeError, onnx.shape_inference.InferenceError) as error:
        raise InputError(f"cannot read '{path}' as ONNX: {error}", hint="export the model again") from error


def _repaired(
    model: onnx.ModelProto, batches: CalibrationBatches, folder: Path, *, options: _Options, progress: Progress
) -> Repair:
    """Every step of the repair, each kept where it helps."""
    progress.start(STEPS, "quantize")
    try:
        with _quiet_logging():
            found = Repair(
                model,
                batches,
                quantize=lambda form: to_model(_quantize(form, options)),
                chosen=partial(int8_nodes, placement=options.placement),
                op_types=op_types(options.placement),
                folder=folder,
                progress=progress,
            )
            found.equalize()
            found.calibrate(options.method)
            found.round(reduce_range=options.reduce_range)
    finally:
        progress.close()
    return found


def _quantize(form: Int8Form, options: _Options) -> ir.Model:
    model, placement = onnx.ModelProto(), options.placement
    model.CopyFrom(form.model)  # the quantizer works in place
    graph = ir.from_proto(form.model).graph
    chosen = int8_nodes(graph, placement)
    idle = idle_tensors(graph, chosen, placement)
    read_inside = _read_inside(model)
    with _quiet_logging(), _refused_by_quantizer(model):
        quantizer = QDQQuantizer(
            model,
            True,  # per channel
            options.reduce_range,
            QuantType.QInt8,
            QuantType.QUInt8,
            form.ranges,
            [],
            [node.name for node in graph if node not in chosen],
            list(op_types(placement)),
            {"TensorQuantOverrides": _channel_ranges(graph, form.weight_ranges)},
        )
        quantizer.quantize_model()
    written: onnx.GraphProto = quantizer.model.model.graph
    held = {tensor.name for tensor in written.initializer}
    written.initializer.extend(tensor for tensor in read_inside if tensor.name not in held)
    sort_nodes(written)  # pairs stand at the end
    result = ir.from_proto(quantizer.model.model)
    remove_pairs(result.graph, idle)
    result.metadata_props.clear()
    return result


def _read_inside(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Copies of the constants that graphs inside others (If, Loop) read: the quantizer takes them for unused."""
    wanted = {name for node in model.graph.node for name in set(reads(node)) - set(node.input)}
    found = []
    for tensor in model.graph.initializer:
        if tensor.name in wanted:
            found.append(onnx.TensorProto())
            found[-1].CopyFrom(tensor)
    return found


@contextmanager
def _refused_by_quantizer(model: onnx.ModelProto) -> Iterator[None]:
    """Turn what ONNX Runtime's quantizer says of a model it cannot quantize into words."""
    try:
        yield
    except (AssertionError, ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        foreign = ", ".join(f"{op} of {domain}" for op, domain in sorted(foreign_operations(model).items()))
        raise InputError(
            f"ONNX Runtime's quantizer cannot quantize the model: {said_by(error)}",
            hint=f"give the file from before it was optimized for one runtime ({foreign})"
            if foreign
            else "check its weights and ranges for values that are not finite, or give an int8 model",
        ) from error


def _channel_ranges(graph: ir.Graph, known: Mapping[str, Array]) -> dict[str, list[dict[str, Any]]]:
    """The range of each output channel of the weights, where it is not read off them: known, or weights all zero."""
    overrides = {}
    for node in graph:
        if node.op_type not in WEIGHTED or not operand(node, 1).is_initializer():
            continue
        weight = operand(node, 1)
        name, values, axis = str(weight.name), np.asarray(constant(weight)), _channel_axis(node)
        rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
        sizes = known.get(name, largest_by_channel(rows))
        if name not in known and (np.abs(rows).max(axis=1).all() or not sizes.any()):
            continue
        # Symmetric either way; where the first channel names a range, the quantizer wants one for all.
        overrides[name] = [{"axis": axis, "rmin": -size, "rmax": size} for size in sizes]
    return overrides


def _channel_axis(node: ir.Node) -> int:
    """Axis of the weight that holds output channels, as the quantizer picks it."""
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return 0 if node.op_type == "Conv" else 1


def _account(graph: ir.Graph) -> tuple[int, dict[str, str]]:
    """Count weighted nodes with int8 operands, and name the others with a reason."""
    quantized, left_float = 0, {}
    for node in graph:
        if node.op_type not in WEIGHTED:
            continue
        weight = operand(node, 1)
        if all(made_by(value, "DequantizeLinear") is not None for value in (operand(node, 0), weight)):
            quantized += 1
        elif weight.is_initializer():
            left_float[str(weight.name)] = "its input has no calibrated range"
        elif node.op_type == "MatMul":
            left_float[str(node.name)] = "product of two activations"
        else:
            left_float[str(node.name)] = "its weight is computed in the graph"
    return quantized, left_float


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """Silence ONNX Runtime's advice on the root logger, and keep it from installing a handler there."""
    root, before = logging.getLogger(), logging.root.manager.disable
    handler = logging.NullHandler()
    root.addHandler(handler)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        root.removeHandler(handler)


__all__ = ["QuantizationSummary", "quantize_static"]
