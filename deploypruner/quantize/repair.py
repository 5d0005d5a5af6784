"""Post-training repair: what brings an int8 network back to the float one's answers, in order of cost.

Every step is judged by the error of the whole network's outputs, on calibration samples that it did not see, and
undone where that did not fall. Labels are not needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.calibrate import TensorsData

from deploypruner.onnx_file import write_onnx
from deploypruner.onnx_graph import Array, to_model
from deploypruner.progress import Progress
from deploypruner.quantize.calibrate import activation_ranges
from deploypruner.quantize.choose_ranges import choose_ranges, histograms
from deploypruner.quantize.equalize import ROOMS, SIZES, equalizing_factors, scaled_ranges
from deploypruner.quantize.homogeneous import scalable_channels
from deploypruner.quantize.layers import WeightedLayer, layers_of, sampled_rows
from deploypruner.quantize.placement import WEIGHTED
from deploypruner.quantize.plain_clips import plain_clips
from deploypruner.quantize.rounding import ActivationGrid, Rounded, rounded
from deploypruner.quantize.running import CalibrationBatches, channel_statistics, output_error, run
from deploypruner.quantize.scaling import Scalable, rescale
from deploypruner.quantize.weight_grid import largest_by_channel, weight_steps
from deploypruner.recipe.sections import Method

# Samples that judge at most, and that layers' inputs are sampled from; rows of these inputs.
_JUDGING, _SAMPLED = 64, 64
_ROWS, _JUDGING_ROWS = 2048, 512
# What equalization may move the float network's outputs by, relative to their spread: rounding of float32 weights.
_SAME_FUNCTION = 1e-3
# What a range has to lower the error to, relative to min-max, to be taken; which is best for the network is measured.
_GAINS = (0.98, 0.8, 0.5)
# Error of outputs that are not finite, which JSON has no number for.
_WORST = 1e30
# Nodes that an int8 kernel absorbs: what stands before them is not rounded.
_ABSORBED = ("Relu", "Clip")


@dataclass(frozen=True)
class RepairStep:
    """One step of the repair.

    Args:
        name: "clips", "equalization", "calibration", "rounding" or "bias correction".
        done: What was done, in words.
        before: Error of the int8 outputs on samples that judge, relative to the spread of the float ones.
        after: With this step; None where there was nothing to do.
        kept: Whether it stayed: the error fell.
    """

    name: str
    done: str
    before: float
    after: float | None
    kept: bool


@dataclass(frozen=True)
class Int8Form:
    """What an int8 model is made from.

    Args:
        model: fp32, weights and biases as they are to be quantized.
        ranges: Of the activations.
        weight_ranges: Name of a stored weight -> largest absolute value of each output channel, where it is not to
            be read off the weight.
    """

    model: onnx.ModelProto
    ranges: TensorsData
    weight_ranges: Mapping[str, Array] = field(default_factory=dict)


_STEPS = 4  # for the progress

Quantizer = Callable[[Int8Form], onnx.ModelProto]
Chosen = Callable[[ir.Graph], Collection[ir.Node]]
RoundedNames = Callable[[ir.Graph], Collection[str]]


class Repair:
    """Repairs one network.

    Args:
        model: fp32, nodes named and shapes inferred.
        batches: Calibration data.
        quantize: Makes the int8 model.
        chosen: The nodes of an fp32 graph that become int8.
        op_types: Operators whose inputs and outputs have ranges.
        rounded: Names of the tensors of an fp32 graph that may have to be int8, in whatever runtime.
        folder: For working files.
        progress: Told about the steps.

    Attributes:
        form: What the steps so far made.
        unrounded: The float model, scaled, before weights were rounded and biases corrected.
        error: Of the outputs.
        steps: That were done.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        batches: CalibrationBatches,
        *,
        quantize: Quantizer,
        chosen: Chosen,
        op_types: Sequence[str],
        rounded: RoundedNames,
        folder: Path,
        progress: Progress,
    ) -> None:
        self._batches, self._quantize, self._chosen, self._progress = batches, quantize, chosen, progress
        self._op_types, self._rounded, self._folder = op_types, rounded, folder
        self._fit, self._judging = batches.split(_JUDGING)
        model = _unshared(model)
        self._expected = list(run(model, batches.some(self._judging)))
        self.form = Int8Form(model, self._ranges(model, "minmax"))
        self.unrounded = model
        self.error = self._judge(self.form)
        self.steps: list[RepairStep] = []

    def all_steps(self, method: Method, *, reduce_range: bool) -> None:
        """Every step, each kept where it helps."""
        clipped, count = plain_clips(self.form.model)
        self._progress.start(_STEPS + (count > 0), "quantize")
        try:
            if count:
                self.clip(clipped, count)
            self.equalize()
            self.calibrate(method)
            self.unrounded = self.form.model
            self.round(reduce_range=reduce_range)
        finally:
            self._progress.close()

    def clip(self, model: onnx.ModelProto, count: int) -> None:
        """Take the network whose bounds by channel are plain clips, see `plain_clips`."""
        said = f"{count} bound{'' if count == 1 else 's'} that differed by channel made one"
        if output_error(self._expected, run(model, self._batches.some(self._judging))) > _SAME_FUNCTION:
            self._none("clips", "the float network with one bound for all channels gives other answers")
        else:
            self._try("clips", {said: Int8Form(model, self._ranges(model, "minmax"))})

    def equalize(self) -> None:
        """Bring the channels of one tensor to one range."""
        graph = ir.from_proto(self.form.model).graph
        found, read = scalable_channels(graph), self._read(graph)
        if not found.sets:
            self._none("equalization", "no channels can be scaled")
            return
        seen = channel_statistics(self.form.model, found.axes, self._batches.some(self._fit))
        before, forms = _plain(self.form.ranges), {}
        clipped = bool(np.isfinite(found.bounds).any())
        rooms = list(ROOMS if clipped else ROOMS[:1])
        for size in SIZES:
            said = f"{found.sets} sets of channels that share a factor, sized by {size}"
            model = None
            for room in tuple(rooms):
                factors = equalizing_factors(graph, found, seen, size=size, read=read, room=room)
                model = self._scaled(found, factors)
                if model is not None:
                    break
                if clipped:  # samples that judge reach what clips bound, by whatever size channels are divided
                    rooms.remove(room)
            if model is None and clipped:
                said = f"{said}, those in front of clips left alone"
                factors = equalizing_factors(graph, found, seen, size=size, read=read, room=ROOMS[0])
                factors = np.where(np.isfinite(found.bounds), 1.0, factors)
                model = self._scaled(found, factors)
            if model is None:
                continue
            after = scaled_ranges(found, {n: own for n, own in seen.items() if n in before}, factors)
            forms[said] = Int8Form(model, _as_ranges(before | after))
        if not forms:
            self._none("equalization", "the scaled float network gives other answers")
        else:
            self._try("equalization", forms)

    def _scaled(self, found: Scalable, factors: Array) -> onnx.ModelProto | None:
        """The float network with its channels divided, None where its answers on samples that judge are others."""
        scaled = ir.from_proto(self.form.model)
        rescale(scaled.graph, found, factors)
        model = to_model(scaled)
        moved = output_error(self._expected, run(model, self._batches.some(self._judging)))
        return model if moved <= _SAME_FUNCTION else None

    def calibrate(self, method: Method) -> None:
        """Find the ranges of the activations by a method, or choose one for each of them."""
        model = self.form.model
        if method != "auto":
            if method != "minmax":
                self.form = replace(self.form, ranges=self._ranges(model, method))
                self.error = self._judge(self.form)
            return
        graph = ir.from_proto(model).graph
        nodes, read = self._chosen(graph), self._read(graph)
        before = _plain(self.form.ranges)
        found = histograms(model, {n: ends for n, ends in before.items() if n in read}, self._samples())
        others = {str(v.name) for node in nodes if node.op_type not in WEIGHTED for v in node.inputs if v is not None}
        choices = choose_ranges(model, layers_of(graph, nodes), found, self._samples(), others=others)
        forms = {}
        for gain in _GAINS:
            taken = {name: choice for name, choice in choices.items() if choice.error < gain}
            if taken:
                ranges = _as_ranges(before | {name: choice.range for name, choice in taken.items()})
                counts = Counter(choice.method.split()[0] for choice in taken.values())
                said = ", ".join(f"{way} for {count}" for way, count in sorted(counts.items()))
                forms[f"{said} of {len(choices)} activations"] = replace(self.form, ranges=ranges)
        if not forms:
            self._none("calibration", f"min-max for all {len(choices)} activations")
        else:
            self._try("calibration", forms)

    def round(self, *, reduce_range: bool) -> None:
        """Round weights for the sake of what layers compute, and correct their biases."""
        base, ranges = self.form, _plain(self.form.ranges)
        graph = ir.from_proto(base.model).graph
        layers = [layer for layer in layers_of(graph, self._chosen(graph)) if layer.input in ranges]
        rows = sampled_rows(base.model, layers, self._samples(), rows=_ROWS, seed=0)
        judging = self._batches.samples(base.model, self._judging, _JUDGING)
        other = sampled_rows(base.model, layers, judging, rows=_JUDGING_ROWS, seed=1)
        found = [
            rounded(
                layer,
                seen,
                unseen,
                grid=ActivationGrid(*ranges[layer.input]),
                steps=weight_steps(layer.matrix, reduce_range=reduce_range),
            )
            for (layer, seen), (_, unseen) in zip(rows, other, strict=True)
        ]
        kept = False
        better = [one for one in found if one.adapted is not None]
        if better:
            kept = self._try("rounding", {f"{len(better)} of {len(found)} layers": with_rounding(base, better)})
        else:
            self._none("rounding", f"to the nearest is best in all {len(found)} layers")
        shifts = [(one.layer, one.shifts[kept and one.adapted is not None]) for one in found]
        moved = [(layer, shift) for layer, shift in shifts if shift is not None and layer.takes_bias]
        if moved:
            form = replace(self.form, model=with_shifts(self.form.model, moved))
            self._try("bias correction", {f"{len(moved)} of {len(found)} layers": form})
        else:
            self._none("bias correction", f"right already in all {len(found)} layers")

    def _ranges(self, model: onnx.ModelProto, method: Method) -> TensorsData:
        ready = self._folder / "fp32.onnx"
        write_onnx(model, ready)
        found, _ = activation_ranges(
            ready,
            self._batches.some(self._fit),
            method=method,
            op_types=self._op_types,
            rounded=self._rounded(ir.from_proto(model).graph),
        )
        return found

    def _samples(self) -> list[Sequence[Array]]:
        return list(self._batches.samples(self.form.model, self._fit, _SAMPLED))

    def _read(self, graph: ir.Graph) -> frozenset[str]:
        """Names of the tensors that are rounded: what int8 operators read."""
        nodes = [node for node in self._chosen(graph) if node.op_type not in _ABSORBED]
        return frozenset(str(value.name) for node in nodes for value in node.inputs if value is not None)

    def _judge(self, form: Int8Form) -> float:
        error = output_error(self._expected, run(self._quantize(form), self._batches.some(self._judging)))
        return min(error, _WORST)

    def _none(self, name: str, done: str) -> None:
        self.steps.append(RepairStep(name, done, self.error, None, False))
        self._progress.advance(text=f"{name}: {done}")

    def _try(self, name: str, forms: Mapping[str, Int8Form]) -> bool:
        """Keep the best of some forms, under what it does in words, if it is better than what there is."""
        errors = {done: self._judge(form) for done, form in forms.items()}
        best = min(errors, key=errors.__getitem__)
        kept = errors[best] < self.error
        self.steps.append(RepairStep(name, best, self.error, errors[best], kept))
        text = f"{name}: {best}, output error {self.error:.2g} -> {errors[best]:.2g}"
        self._progress.advance(text=text if kept else f"{text}, left out")
        if kept:
            self.form, self.error = forms[best], errors[best]
        return kept


def with_rounding(form: Int8Form, found: Sequence[Rounded]) -> Int8Form:
    """The form with these layers' weights on their grid, rounded for their outputs."""
    model = onnx.ModelProto()
    model.CopyFrom(form.model)
    sizes = dict(form.weight_ranges)
    values = {}
    for one in found:
        assert one.adapted is not None, "only layers that are better with it are given"
        values[one.layer.weight] = one.layer.stored(one.adapted)
        sizes[one.layer.weight] = largest_by_channel(one.layer.matrix.reshape(one.layer.outputs, -1))
    _store(model.graph, values)
    return replace(form, model=model, weight_ranges=sizes)


def without_rounding(form: Int8Form, unrounded: onnx.ModelProto, layers: Collection[str]) -> Int8Form:
    """The form with the weights and biases that these layers had before rounding: they stay float."""
    model = onnx.ModelProto()
    model.CopyFrom(form.model)
    before = {node.name: node for node in unrounded.graph.node}
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in unrounded.graph.initializer}
    taken, added = set[str](), set[str]()
    for node in model.graph.node:
        if node.name in layers:
            taken |= set(before[node.name].input) & values.keys()
            added |= set(node.input) - set(before[node.name].input)
            node.input[:] = before[node.name].input
    _store(model.graph, {name: values[name] for name in taken})
    for place in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[place].name in added:
            del model.graph.initializer[place]
    sizes = {name: size for name, size in form.weight_ranges.items() if name not in taken}
    return replace(form, model=model, weight_ranges=sizes)


def with_shifts(model: onnx.ModelProto, shifts: Sequence[tuple[WeightedLayer, Array]]) -> onnx.ModelProto:
    """The model with something added to biases; a convolution without one gets it."""
    moved = onnx.ModelProto()
    moved.CopyFrom(model)
    nodes = {node.name: node for node in moved.graph.node}
    stored = {tensor.name: tensor for tensor in moved.graph.initializer}
    values = {}
    for layer, shift in shifts:
        if layer.bias:
            values[layer.bias] = numpy_helper.to_array(stored[layer.bias]) + shift
            continue
        name = f"{layer.weight}_bias"
        nodes[str(layer.node.name)].input.append(name)
        moved.graph.initializer.append(numpy_helper.from_array(shift.astype(np.float32), name))
    _store(moved.graph, values)
    return moved


def _store(graph: onnx.GraphProto, values: Mapping[str, Array]) -> None:
    for tensor in graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name].astype(np.float32), tensor.name))


def _unshared(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with vectors that several nodes read stored once for each: each may need another scale."""
    own = onnx.ModelProto()
    own.CopyFrom(model)
    vectors = {t.name: t for t in own.graph.initializer if len(t.dims) == 1 and t.data_type == onnx.TensorProto.FLOAT}
    seen: set[str] = set()
    for node in own.graph.node:
        for place, name in enumerate(node.input):
            if name in vectors and name in seen:
                node.input[place] = f"{name}_{node.name}_{place}"
                own.graph.initializer.append(
                    numpy_helper.from_array(numpy_helper.to_array(vectors[name]), node.input[place])
                )
            seen.add(name)
    return own


def _plain(ranges: TensorsData) -> dict[str, tuple[float, float]]:
    ends = {name: data.range_value for name, data in ranges.items()}
    return {name: (float(np.min(low)), float(np.max(high))) for name, (low, high) in ends.items()}


def _as_ranges(ends: Mapping[str, tuple[float, float]]) -> TensorsData:
    arrays = {name: (np.array(low, np.float32), np.array(high, np.float32)) for name, (low, high) in ends.items()}
    return TensorsData(CalibrationMethod.MinMax, arrays)
