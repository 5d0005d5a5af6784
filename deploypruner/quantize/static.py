"""Static quantization: u8 activations, i8 weights per channel with zero point 0, QDQ format.

Weights that are zero stay zero, whatever the scale. The arithmetic is ONNX Runtime's quantizer; the ranges,
the placement of QDQ pairs and the scale of channels without weights are decided here.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
from deploypruner.quantize.attention import signed_operands
from deploypruner.quantize.calibrate import Feeds, activation_ranges
from deploypruner.quantize.gemm import broad_biases, plain_gemms
from deploypruner.quantize.layers import is_transposed
from deploypruner.quantize.placement import (
    WEIGHTED,
    Placement,
    idle_tensors,
    int8_nodes,
    misquantized_in_openvino,
    op_types,
    read_unrounded,
    remove_pairs,
    rounded_tensors,
)
from deploypruner.quantize.repair import Int8Form, Repair, RepairStep, without_rounding
from deploypruner.quantize.running import CalibrationBatches, input_names
from deploypruner.quantize.weight_grid import largest_by_channel
from deploypruner.recipe.sections import Method

_PLACEMENTS: tuple[Placement, ...] = ("openvino", "onnxruntime", "sparse")


@dataclass(frozen=True)
class QuantizationSummary:
    """What became int8.

    Args:
        method: Calibration method.
        samples: Calibration samples seen.
        quantized: Convolutions and matrix products that read int8 operands.
        left_float: Name of each that does not -> why.
        repair: Steps of the repair; none where it was left out.
        weight_bits: 7 where the range of weights was reduced, else 8.
    """

    method: Method
    samples: int
    quantized: int
    left_float: dict[str, str]
    repair: tuple[RepairStep, ...] = ()
    weight_bits: int = 8

    @staticmethod
    def from_json(found: dict[str, Any]) -> QuantizationSummary:
        """The inverse of `asdict`."""
        steps = tuple(RepairStep(**step) for step in found.get("repair", ()))
        return QuantizationSummary(**{**found, "repair": steps})


def quantize_static(
    fp32: Path,
    int8: Path,
    *,
    calibration: Iterable[Feeds],
    method: Method = "minmax",
    placement: Placement = "openvino",
    reduce_range: bool = False,
    repair: bool = False,
    keep_float: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> QuantizationSummary:
    """Write `int8`, the QDQ form of `fp32`. Nothing else is left in the folder.

    Args:
        fp32: ONNX file with named nodes and inferred shapes, as `export` writes it.
        int8: File to write.
        calibration: Batches; each one array per model input, samples on axis 0. Read once.
        method: How activation ranges follow from the data, see `activation_ranges`; "auto" chooses for each
            activation as a part of the repair, and is "minmax" without.
        placement: For which runtime the pairs stand best; both execute either, see `placement`.
        reduce_range: 7-bit weights. On x86 processors without VNNI two u8 x i8 products are summed in
            16 bits, which saturates with 8-bit weights.
        repair: Whether to repair what int8 costs, see `repair`. The data then has to be like the real inputs.
        keep_float: Name of each layer (Conv, ConvTranspose, Gemm, MatMul) that stays float -> why.
        progress: Told about the steps of the repair; None for nobody.

    Raises:
        InputError: `fp32` cannot be read, no calibration data, or values that are not finite.
        RecipeError: Unknown method or placement, or no such layer.
    """
    calibrated = calibrate(
        fp32,
        calibration,
        folder=int8.parent,
        method=method,
        placements=(placement,),
        reduce_range=reduce_range,
        repair=repair,
        progress=progress,
    )
    return write_qdq(calibrated, int8, placement=placement, reduce_range=reduce_range, keep_float=keep_float)


@dataclass(frozen=True)
class Calibrated:
    """A float model with the ranges of its activations: what any mix of int8 and float is written from.

    Args:
        form: Weights and biases as int8 layers have them, and ranges.
        unrounded: The model with weights and biases as float layers have them.
        method: The ranges were found by.
        samples: They were found on.
        repair: Its steps; none where it was left out.
    """

    form: Int8Form
    unrounded: onnx.ModelProto
    method: Method
    samples: int
    repair: tuple[RepairStep, ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that can be int8, in order."""
        graph = ir.from_proto(self.form.model).graph
        chosen = int8_nodes(graph, "openvino")
        return tuple(str(node.name) for node in graph if node in chosen and node.op_type in WEIGHTED)


def calibrate(
    fp32: Path,
    calibration: Iterable[Feeds],
    *,
    folder: Path,
    method: Method = "minmax",
    placements: Sequence[Placement] = _PLACEMENTS,
    reduce_range: bool = False,
    repair: bool = False,
    progress: Progress | None = None,
) -> Calibrated:
    """Find the ranges that `write_qdq` needs, and repair what they cost.

    Args:
        fp32: As for `quantize_static`.
        calibration: As for `quantize_static`.
        folder: For temporary files.
        method: How ranges follow from the data.
        placements: That will be asked for; the repair is judged with the first.
        reduce_range: As for `quantize_static`.
        repair: As for `quantize_static`.
        progress: As for `quantize_static`.

    Raises:
        InputError: `fp32` cannot be read, no calibration data, or values that are not finite.
        RecipeError: Unknown method or placement.
    """
    for placement in placements:
        _check_placement(placement)
    model = _load(fp32)
    types = tuple(dict.fromkeys(kind for placement in placements for kind in op_types(placement)))
    rounded = partial(rounded_tensors, placements=placements, attention=not reduce_range)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".quantize-") as scratch, unsaid_errors(Path(scratch)):
        if repair:
            batches = CalibrationBatches(Path(scratch), calibration, input_names(model))
            found = Repair(
                model,
                batches,
                quantize=lambda form: to_model(_qdq(form, placement=placements[0], reduce_range=reduce_range)),
                chosen=partial(int8_nodes, placement=placements[0], attention=not reduce_range),
                op_types=types,
                rounded=rounded,
                folder=Path(scratch),
                progress=progress or SilentProgress(),
            )
            with _quiet_logging():
                found.all_steps(method, reduce_range=reduce_range)
            return Calibrated(found.form, found.unrounded, method, batches.count, tuple(found.steps))
        ready = Path(scratch) / "fp32.onnx"
        write_onnx(model, ready)
        plain: Method = "minmax" if method == "auto" else method
        with _quiet_logging():
            names = rounded(ir.from_proto(model).graph)
            ranges, samples = activation_ranges(ready, calibration, method=plain, op_types=types, rounded=names)
    return Calibrated(Int8Form(model, ranges), model, method, samples)


def write_qdq(
    calibrated: Calibrated,
    int8: Path,
    *,
    placement: Placement = "openvino",
    reduce_range: bool = False,
    keep_float: Mapping[str, str] | None = None,
    layers_alone: bool = False,
) -> QuantizationSummary:
    """Write the QDQ form of a calibrated model; see `quantize_static`.

    Args:
        calibrated: From `calibrate`.
        int8: File to write.
        placement: As for `quantize_static`.
        reduce_range: As for `quantize_static`.
        keep_float: As for `quantize_static`.
        layers_alone: No pairs but on the inputs and weights of int8 layers: to see what these cost.

    Raises:
        InputError: It cannot be quantized.
        RecipeError: Unknown placement, or no such layer.
    """
    _check_placement(placement)
    kept = dict(keep_float or {})
    _check_layers(calibrated.unrounded, kept)
    form = without_rounding(calibrated.form, calibrated.unrounded, kept) if kept else calibrated.form
    result = _qdq(form, placement=placement, reduce_range=reduce_range, kept=kept, layers_alone=layers_alone)
    write_onnx(to_model(result), int8)
    quantized, left_float = _account(result.graph, kept)
    bits = 7 if reduce_range else 8
    return QuantizationSummary(calibrated.method, calibrated.samples, quantized, left_float, calibrated.repair, bits)


def _check_placement(placement: str) -> None:
    if placement not in _PLACEMENTS:
        raise RecipeError(f"no placement called '{placement}'", hint=nearest(placement, _PLACEMENTS))


def _check_layers(model: onnx.ModelProto, names: Iterable[str]) -> None:
    """Refuse names that are no layer's: a typing error would leave the layer int8."""
    known = [node.name for node in model.graph.node if node.op_type in WEIGHTED]
    for name in names:
        if name not in known:
            raise RecipeError(f"no layer called '{name}' to keep in float", hint=nearest(name, known))


def _load(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path)
        plain_gemms(model.graph)
        model = onnx.shape_inference.infer_shapes(model)
        broad_biases(model.graph)
        return model
    except (OSError, DecodeError, onnx.shape_inference.InferenceError) as error:
        raise InputError(f"cannot read '{path}' as ONNX: {error}", hint="export the model again") from error


def _qdq(
    form: Int8Form,
    *,
    placement: Placement,
    reduce_range: bool,
    kept: Collection[str] = (),
    layers_alone: bool = False,
) -> ir.Model:
    """The QDQ graph with the pairs that a placement wants, and no others."""
    graph = ir.from_proto(form.model).graph
    chosen = int8_nodes(graph, placement, kept, attention=not reduce_range)
    if layers_alone:
        chosen = frozenset(node for node in chosen if node.op_type in WEIGHTED)
    result = _quantize(form, graph, chosen, placement=placement, reduce_range=reduce_range)
    if kept:
        read_unrounded(result.graph, graph, chosen)
    remove_pairs(result.graph, idle_tensors(graph, chosen, placement, mixed=bool(kept)))
    return result


def _quantize(
    form: Int8Form, graph: ir.Graph, chosen: Collection[ir.Node], *, placement: Placement, reduce_range: bool
) -> ir.Model:
    """The QDQ graph, every pair in it that the quantizer sets."""
    model = onnx.ModelProto()
    model.CopyFrom(form.model)  # the quantizer works in place
    read_inside = _read_inside(model)
    with _quiet_logging(), _refused_by_quantizer(model):
        quantizer = QDQQuantizer(
            model,
            True,  # per channel
            reduce_range,
            QuantType.QInt8,
            QuantType.QUInt8,
            form.ranges,
            [],
            [node.name for node in graph if node not in chosen],
            list(op_types(placement)),
            {"TensorQuantOverrides": _channel_ranges(graph, form.weight_ranges) | signed_operands(graph, chosen)},
        )
        quantizer.quantize_model()
    written: onnx.GraphProto = quantizer.model.model.graph
    held = {tensor.name for tensor in written.initializer}
    written.initializer.extend(tensor for tensor in read_inside if tensor.name not in held)
    sort_nodes(written)  # pairs stand at the end
    result = ir.from_proto(quantizer.model.model)
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
    return int(node.op_type == "ConvTranspose" or is_transposed(node))


def _account(graph: ir.Graph, keep_float: Mapping[str, str]) -> tuple[int, dict[str, str]]:
    """Count weighted nodes with int8 operands, and name the others with a reason."""
    quantized, left_float = 0, {}
    for node in graph:
        if node.op_type not in WEIGHTED:
            continue
        weight = operand(node, 1)
        if all(made_by(value, "DequantizeLinear") is not None for value in (operand(node, 0), weight)):
            quantized += 1
        elif node.name in keep_float:
            left_float[str(node.name)] = keep_float[str(node.name)]
        elif weight.is_initializer() and misquantized_in_openvino(node):
            left_float[str(node.name)] = "OpenVINO computes the reduction before it wrongly with int8 behind"
        elif weight.is_initializer():
            left_float[str(node.name)] = "its input has no calibrated range"
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


__all__ = ["Calibrated", "QuantizationSummary", "calibrate", "quantize_static", "write_qdq"]
