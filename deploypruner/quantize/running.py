"""An fp32 or int8 model run on calibration data: outputs, ranges of channels, tensors inside, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from deploypruner.errors import InputError, said_by
from deploypruner.onnx_graph import Array
from deploypruner.quantize.calibrate import Feeds, check_feeds, check_some, sample_count
from deploypruner.runtime.on_onnxruntime import load_errors


class CalibrationBatches:
    """Calibration batches that are read several times: kept in files, one in memory at a time.

    Args:
        folder: Where the files go.
        batches: As `quantize_static` gets them; read once, here.
        names: Of the model's inputs.

    Raises:
        InputError: No batch, a batch that does not fit the inputs, or values that are not finite.
    """

    def __init__(self, folder: Path, batches: Iterable[Feeds], names: Sequence[str]) -> None:
        self._files: list[Path] = []
        self._counts: list[int] = []
        for index, feeds in enumerate(batches):
            check_feeds(feeds, names, index)
            self._files.append(folder / f"batch-{index}.npz")
            self._counts.append(sample_count(feeds))
            np.savez(self._files[-1], *feeds)
        check_some(self.count)

    @property
    def count(self) -> int:
        """Of samples."""
        return sum(self._counts)

    def some(self, places: Iterable[int]) -> Iterator[Feeds]:
        """The batches of these numbers."""
        for place in places:
            with np.load(self._files[place]) as arrays:
                yield [arrays[f"arr_{index}"] for index in range(len(arrays.files))]

    def split(self, most: int) -> tuple[list[int], list[int]]:
        """Numbers of the batches to find ranges from and of those that judge: the last quarter, `most` samples.

        A single batch does both.
        """
        total = len(self._files)
        judging = total
        while judging > total - max(1, total // 4) and sum(self._counts[judging - 1 :]) <= max(
            most, self._counts[judging - 1]
        ):
            judging -= 1
        return list(range(judging)) or [0], list(range(judging, total))

    def samples(self, model: onnx.ModelProto, places: Sequence[int], most: int) -> Iterator[Feeds]:
        """At most so many samples of these batches, one by one where the model takes any number, else batches."""
        is_open = all(
            value.type.tensor_type.shape.dim and not value.type.tensor_type.shape.dim[0].HasField("dim_value")
            for value in model.graph.input
        )
        seen = 0
        for feeds in self.some(places):
            count = sample_count(feeds)
            for at in range(count) if is_open else (0,):
                if seen >= most:
                    return
                yield [array[at : at + 1] for array in feeds] if is_open else feeds
                seen += 1 if is_open else count


def input_names(model: onnx.ModelProto) -> list[str]:
    """Of what has to be fed."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value.name for value in model.graph.input if value.name not in stored]


def run(model: onnx.ModelProto, batches: Iterable[Feeds], names: Sequence[str] = ()) -> Iterator[list[Array]]:
    """Run a model on every batch with ONNX Runtime, one thread for each that the process may use.

    Args:
        model: Any.
        batches: Arrays for its inputs.
        names: Tensors inside to give; none for the model's outputs.

    Raises:
        InputError: ONNX Runtime cannot load it.
    """
    if names:
        shown = onnx.ModelProto()
        shown.CopyFrom(model)
        del shown.graph.output[:]
        shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        model = shown
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except load_errors() as error:
        raise InputError(f"ONNX Runtime cannot load the model: {said_by(error)}", hint="export it again") from error
    inputs = [value.name for value in session.get_inputs()]
    for feeds in batches:
        yield session.run(list(names) or None, dict(zip(inputs, feeds, strict=True)))


# The first opset whose reductions read their axes.
_AXES_ARE_INPUTS = 18


@dataclass(frozen=True)
class ChannelStatistics:
    """What the channels of one tensor were, in float64.

    Args:
        low: Least values [C].
        high: Largest values [C].
        mean_square: [C], up to a factor that all channels have in common.
    """

    low: Array
    high: Array
    mean_square: Array


_REDUCTIONS = ("ReduceMin", "ReduceMax", "ReduceSumSquare")


def channel_statistics(
    model: onnx.ModelProto, axes: Mapping[str, int], batches: Iterable[Feeds]
) -> dict[str, ChannelStatistics]:
    """Every channel over all batches, the reductions being part of the graph.

    Args:
        model: fp32 with inferred shapes.
        axes: Name of a tensor -> axis of its channels.
        batches: Arrays for its inputs.
    """
    reduced = onnx.ModelProto()
    reduced.CopyFrom(model)
    typed = {v.name: v.type.tensor_type for v in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    opset = max(found.version for found in model.opset_import if found.domain in ("", "ai.onnx"))
    names = [name for name in axes if name in typed and len(typed[name].shape.dim)]
    for name in names:
        others = [place for place in range(len(typed[name].shape.dim)) if place != axes[name]]
        _reduce(reduced.graph, name, others, opset)
    outputs = [f"{name}_{kind}" for name in names for kind in _REDUCTIONS]
    sums: dict[str, tuple[Array, Array, Array]] = {}
    batches_seen = 0
    for values in run(reduced, batches, outputs) if names else ():
        batches_seen += 1
        for place, name in enumerate(names):
            low, high, square = (np.asarray(value, float) for value in values[3 * place : 3 * place + 3])
            before = sums.get(name, (low, high, np.zeros_like(square)))
            sums[name] = np.minimum(before[0], low), np.maximum(before[1], high), before[2] + square
    return {name: ChannelStatistics(low, high, squares / batches_seen) for name, (low, high, squares) in sums.items()}


def _reduce(graph: onnx.GraphProto, name: str, axes: Sequence[int], opset: int) -> None:
    """Compute a tensor's reductions over these axes, in place."""
    for kind in _REDUCTIONS:
        output = f"{name}_{kind}"
        node = helper.make_node(kind, [name], [output], keepdims=0)
        if opset >= _AXES_ARE_INPUTS:
            node.input.append(f"{output}_axes")
            graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), node.input[1]))
        else:
            node.attribute.append(helper.make_attribute("axes", list(axes)))
        graph.node.append(node)


def output_error(expected: Sequence[list[Array]], found: Iterable[list[Array]]) -> float:
    """Root of the mean square that an answer is off, relative to the spread of the expected ones over the samples.

    Args:
        expected: Outputs of the fp32 model, batch by batch.
        found: Of another form.

    Returns:
        The mean over all outputs that are floating-point numbers; 0 where there are none. Infinity for NaN.
    """
    places = [place for place, array in enumerate(expected[0]) if array.dtype.kind == "f"]
    off, spread = np.zeros(len(places)), np.zeros(len(places))
    wholes = [np.concatenate([answers[place].reshape(-1) for answers in expected]) for place in places]
    means = [_mean_answer([answers[place] for answers in expected]) for place in places]
    for answers, others in zip(expected, found, strict=True):
        for index, place in enumerate(places):
            off[index] += float(np.square(others[place].astype(float) - answers[place]).sum())
            spread[index] += float(np.square(answers[place] - means[index]).sum())
    if not places:
        return 0.0
    largest = np.array([float(np.square(whole.astype(float)).sum()) for whole in wholes])
    spread = np.where(spread > 1e-12 * largest, spread, largest)  # a single sample has no spread
    errors = np.sqrt(off / np.maximum(spread, np.finfo(float).tiny))
    return float(np.mean(errors)) if np.isfinite(errors).all() else float("inf")


def _mean_answer(answers: Sequence[Array]) -> Array:
    """Over all samples where they lie on axis 0 of equal shapes, else 0: sequences of several lengths."""
    if any(array.shape[1:] != answers[0].shape[1:] or not array.ndim for array in answers):
        return np.zeros(())
    return np.asarray(sum(array.astype(float).sum(axis=0) for array in answers) / sum(len(a) for a in answers))
