"""Layers that compute nothing: weights that are all zero, and outputs that are the same whatever comes in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import onnx
import onnx_ir as ir

from deploypruner.onnx_graph import Array, constant, operand, read_graph, readers
from deploypruner.quantize.calibrate import Feeds, sample_count
from deploypruner.quantize.islands import ACTIVATIONS, WEIGHTED
from deploypruner.quantize.running import run

# Samples that are compared, and layers whose tensors are held at once.
_SAMPLES, _TOGETHER = 16, 8
_FOLLOWING = ACTIVATIONS | {"BatchNormalization", "HardSwish", "LeakyRelu"}


@dataclass(frozen=True)
class IdleLayers:
    """What computes nothing.

    Args:
        zero: Names of layers whose weights are all zero.
        constant: Of other layers whose outputs, after their activations, do not differ between samples, though their
            inputs do.
        samples: That were compared.
    """

    zero: tuple[str, ...]
    constant: tuple[str, ...]
    samples: int


@dataclass(frozen=True)
class _Candidate:
    layer: str
    before: str
    after: str


def idle_layers(model: onnx.ModelProto, calibration: Iterable[Feeds]) -> IdleLayers:
    """Look for layers that do not depend on the inputs.

    Args:
        model: In float.
        calibration: Batches that fit it; only the first samples are looked at.

    Raises:
        InputError: The model cannot be read or run.
    """
    layers = [node for node in read_graph(model).graph if node.op_type in WEIGHTED]
    stored = [(node, values) for node in layers if (values := constant(operand(node, 1))) is not None]
    zero = [node for node, values in stored if values.size and not values.any()]
    watched = [
        _Candidate(_called(node), str(operand(node, 0).name), _end(node))
        for node, _ in stored
        if node not in zero and not operand(node, 0).is_initializer()
    ]
    batches = list(_first(calibration))
    samples = sum(map(sample_count, batches))
    starts = range(0, len(watched), _TOGETHER) if samples > 1 else ()
    found = [
        watch.layer for start in starts for watch in _constant(model, batches, watched[start : start + _TOGETHER])
    ]
    return IdleLayers(tuple(map(_called, zero)), tuple(found), samples)


def _called(node: ir.Node) -> str:
    """A file of another origin need not name its nodes."""
    return str(node.name or operand(node, 1).name)


def _first(calibration: Iterable[Feeds]) -> Iterator[Feeds]:
    """Batches of the first samples, at least one of them whole."""
    seen = 0
    for feeds in islice(calibration, _SAMPLES):
        if seen >= _SAMPLES:
            return
        seen += sample_count(feeds)
        yield feeds


def _end(node: ir.Node) -> str:
    """What the layer gives, after its activation."""
    value = node.outputs[0]
    while len(after := readers(value)) == 1 and after[0].op_type in _FOLLOWING and not value.is_graph_output():
        value = after[0].outputs[0]
    return str(value.name)


def _constant(model: onnx.ModelProto, batches: Sequence[Feeds], watched: Sequence[_Candidate]) -> list[_Candidate]:
    names = list(dict.fromkeys(name for watch in watched for name in (watch.before, watch.after)))
    first: dict[str, Array] = {}
    varies: set[str] = set()
    for arrays in run(model, batches, names):
        for name, array in zip(names, arrays, strict=True):
            if not array.ndim:
                continue
            rows = array.reshape(len(array), -1)
            known = first.setdefault(name, rows[:1].copy())
            if known.shape[1] != rows.shape[1] or not np.array_equal(rows, np.broadcast_to(known, rows.shape)):
                varies.add(name)
    return [watch for watch in watched if watch.before in varies and watch.after not in varies]
