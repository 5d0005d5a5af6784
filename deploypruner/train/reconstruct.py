"""Layer-wise reconstruction: kept weights solved anew, so that each layer gives what the dense one gave.

Layer by layer in the order of the graph, the weights of a pruned layer become the least-squares solution from its
inputs in the pruned network, whose earlier layers are solved already, to the dense layer's output at the kept
channels. The last layer of a residual branch is solved towards the dense stream behind its addition instead
(`stream`). Unlabelled samples suffice; nothing is trained.

Source:
    He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, sec. 3.1 (ii): the
    least squares, sequentially, from pruned inputs to dense outputs. Luo, Wu, Lin, "ThiNet", ICCV 2017, sec. 3.2,
    alike. Ours: corrections of the kept weights instead of weights from nothing (a ridge that pulls to the kept
    weights), groups and biases, and running all samples layer by layer with a bound on memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import Node

from deploypruner.errors import InputError
from deploypruner.graph import Graph, Keep
from deploypruner.graph.execute.float64_interpreter import Streamed
from deploypruner.graph.execute.module import TracedModule, get_state
from deploypruner.graph.inputs import tensors
from deploypruner.graph.nodes import arguments, op_name
from deploypruner.progress import Progress, SilentProgress
from deploypruner.train.batches import Batch
from deploypruner.train.least_squares import CONVOLUTIONS, NormalEquations, columns, outputs, places
from deploypruner.train.residual_stream import Aim, Stream, aim, find_stream, mean_behind
from deploypruner.train.spread import Spread

# Part of the free memory that activations may take which wait between two layers. What does not fit is computed
# again, layer after layer: with 1 GiB, 256 photographs at 224 pixels took minutes.
_MEMORY = 0.25


@dataclass(frozen=True)
class Reconstruction:
    """What was solved.

    Args:
        errors: Weight name -> squared error of the layer's output relative to the dense one's, on the samples,
            before and after it was solved; of the stream behind it where it was solved towards one.
        left: Weight name -> why a convolution or linear layer kept its weights.
        part: Of every correction that the module was left with, 0 to 1.
    """

    errors: Mapping[str, tuple[float, float]]
    left: Mapping[str, str]
    part: float = 1.0


@dataclass(frozen=True)
class _Layer:
    """One layer to be solved.

    Args:
        name: Of its weight.
        dense: The call in the dense graph.
        pruned: The same call in the pruned graph.
        kept: Output channels of the dense layer that stay.
        stream: Where its output arrives, None where it is solved towards the dense layer's own output.
    """

    name: str
    dense: Node
    pruned: Node
    kept: Tensor
    stream: Stream | None

    @property
    def target(self) -> Node:
        """What the dense network has where this layer's output arrives."""
        return self.dense if self.stream is None else self.stream.target

    @property
    def axis(self) -> int:
        """Channels of the target."""
        if self.stream is not None:
            return self.stream.axis
        return -1 if op_name(self.pruned) == "linear" else 1


def can_reconstruct(graph: Graph) -> bool:
    """Needs the graph of torch.export; the second front end has none."""
    return isinstance(graph.module, TracedModule)


@torch.no_grad()
def reconstruct(
    graph: Graph,
    keep: Keep,
    module: nn.Module,
    batches: Iterable[Batch],
    *,
    ridge: float | None = None,
    positions: int = 64,
    streams: bool = True,
    gains: bool = True,
    memory: int | None = None,
    progress: Progress | None = None,
    label: str = "reconstruct",
) -> Reconstruction:
    """Solve the convolutions and linear layers of the pruned `module` anew, in place; it is run in evaluation mode.

    Args:
        graph: The dense model.
        keep: Group id -> kept channels: what `module` was cut by.
        module: The pruned module, from `graph.cut`.
        batches: (inputs, labels or None), a few hundred samples; labels are not looked at.
        ridge: Strength of the pull towards the kept weights, relative to the mean square of an input, > 0. None for
            the one of each layer that does best on samples that were not solved for: with a fixed one and few
            samples, a classifier of many inputs learns the samples by heart.
        positions: Output positions taken of each sample, at most; the same for all samples of a batch.
        streams: Solve the last layer of a branch towards the stream; without, every layer towards its own output.
        gains: Enlarge what was solved until it varies as it should (`Spread`); without, plain least squares.
        memory: Bytes of activations kept from one layer to the next; what does not fit is computed again. None for a
            quarter of what is free. The result is the same.
        progress: Told about every layer.
        label: What the job is called there.

    Raises:
        InputError: No samples, numbers that are not finite, or a model without a graph.
    """
    if not isinstance(graph.module, TracedModule) or not isinstance(module, TracedModule):
        raise InputError(
            "layers can be reconstructed in models that torch.export traces, and this one it could not trace",
            hint="leave reconstruct out; batch norm and fine-tuning work on every model",
        )
    layers, left = _layers(graph.module, module, _gone_rows(graph, keep), streams=streams)
    samples = [tuple(inputs) for inputs, _ in batches]
    if not samples:
        raise InputError("there are no samples to reconstruct layers from", hint="check the training split")
    memory = int(_MEMORY * psutil.virtual_memory().available) if memory is None else memory
    walks = _Walks(graph.module, module, samples, memory)
    progress, errors = progress or SilentProgress(), {}
    progress.start(len(layers), label)
    try:
        for layer in layers:
            errors[layer.name] = _solve(layer, module, walks, ridge, positions, gains)
            progress.advance()
    finally:
        progress.close()
    return Reconstruction(errors, left)


def _solve(
    layer: _Layer, module: TracedModule, walks: _Walks, ridge: float | None, positions: int, enlarge: bool
) -> tuple[float, float]:
    """Correct one layer; returns its relative error before and after."""
    op, weight = op_name(layer.pruned), get_state(module, layer.name)
    shift = _shift(layer, module)
    groups = int(arguments(layer.pruned).get("groups") or 1)
    fan_in = weight[0].numel()
    shape = groups, fan_in + (shift is not None), len(weight) // groups
    sums, spread = NormalEquations(*shape), Spread(*shape) if enlarge else None
    size, factor = 0.0, torch.ones(1)
    chosen = torch.Generator().manual_seed(0)
    for number in range(len(walks)):
        x, asked = walks.at(number, layer)
        count = places(op, asked.missing)
        picked = torch.randperm(count, generator=chosen)[:positions] if count > positions else None
        rows = columns(op, arguments(layer.pruned) | {"weight": weight}, x, picked)
        if shift is not None:
            rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], dim=2)
        missing, wanted = (outputs(op, groups, part, picked) for part in (asked.missing, asked.wanted))
        sums.add(rows, missing)
        if spread is not None:
            spread.add(rows, missing, wanted)
        size += float(wanted.double().square().sum())
        factor = outputs(op, groups, asked.factor[:1], torch.tensor([0]))
    if not bool(torch.isfinite(sums.gram).all() and torch.isfinite(sums.moment).all()):
        raise InputError(
            f"the inputs or outputs of '{layer.name}' are not finite on the samples",
            hint="check the data for NaN and infinity",
        )
    correction = sums.solve(ridge)
    size = max(size, torch.finfo(torch.float64).tiny)
    errors = sums.squares / size, sums.left(correction) / size
    usable = factor[:, :1] != 0
    unit = factor[:, :1].double().masked_fill(~usable, 1)
    kept = weight.double().reshape(groups, shape[2], fan_in).mT
    gains = torch.ones_like(correction[:, :1])
    if spread is not None:
        gains = spread.gains(sums, correction, kept * unit, constant=shift is not None)[:, None]
    correction = correction / unit
    solved = kept + correction[:, :fan_in]
    weight.copy_(torch.where(usable, gains * solved, kept).mT.reshape(weight.shape).to(weight.dtype))
    if shift is not None:
        tensor, sign = shift
        means = sums.gram[:, -1:, :fan_in] / sums.gram[:, -1:, -1:]
        constant = torch.where(usable, correction[:, fan_in:] - (gains - 1) * (means @ solved), 0)
        tensor.add_(sign * constant.reshape(-1).to(tensor.dtype))
    return errors


def _shift(layer: _Layer, module: TracedModule) -> tuple[Tensor, int] | None:
    """What takes in a constant: the layer's bias, or minus the running mean of the batch norm behind it."""
    bias = arguments(layer.pruned)["bias"]
    if bias is not None:
        return get_state(module, str(bias.target)), 1
    mean = mean_behind(layer.pruned, module)
    return (get_state(module, mean), -1) if mean else None


# ---------------------------------------------------------------------- which layers


def _layers(
    dense: TracedModule, pruned: TracedModule, gone: Mapping[str, NDArray[np.bool_]], *, streams: bool
) -> tuple[list[_Layer], dict[str, str]]:
    """The layers that can be solved, in the order of the graph, and the others with the reason."""
    found, left = [], {}
    dense_nodes = {node.name: node for node in dense.graph.nodes}
    order = {node: place for place, node in enumerate(pruned.graph.nodes)}
    for node in pruned.graph.nodes:
        op = op_name(node)
        if op != "linear" and "conv" not in op:
            continue
        weight = arguments(node).get("weight")
        name = str(weight.target) if isinstance(weight, Node) and weight.op == "get_attr" else node.name
        why = _why_not(pruned, node, weight)
        if why:
            left[name] = why
            continue
        rows = int(get_state(dense, name).shape[0])
        kept = np.flatnonzero(~gone[name]) if name in gone else np.arange(rows)
        stream = find_stream(node, dense_nodes, order, pruned) if streams else None
        found.append(_Layer(name, dense_nodes[node.name], node, torch.as_tensor(kept), stream))
    return found, left


def _why_not(module: TracedModule, node: Node, weight: object) -> str:
    if op_name(node) not in ("linear", *CONVOLUTIONS):
        return f"{op_name(node)} is not solved"
    if not isinstance(weight, Node) or weight.op != "get_attr":
        return "its weight is computed"
    bias = arguments(node)["bias"]
    for source in (weight, bias):
        if source is None:
            continue
        if not isinstance(source, Node) or source.op != "get_attr":
            return "its bias is computed"
        tensor = get_state(module, str(source.target))
        if not isinstance(tensor, nn.Parameter) or not tensor.requires_grad:
            return "it is not trained"
        readers = [n for n in module.graph.nodes if n.op == "get_attr" and get_state(module, str(n.target)) is tensor]
        if sum(len(n.users) for n in readers) > 1:
            return "another layer shares its weight"
    return ""


def _gone_rows(graph: Graph, keep: Keep) -> dict[str, NDArray[np.bool_]]:
    """Parameter name -> which of its first-axis indices are removed, where some are."""
    removed = graph.removed(keep)
    found: dict[str, NDArray[np.bool_]] = {}
    for state in graph.labelling.state.values():
        gone = graph.labelling.atoms.gone(state.axes[0], removed) if state.axes else None
        if gone is not None:
            found |= dict.fromkeys(state.names, gone)
    return found


# ---------------------------------------------------------------------- running both networks side by side


class _Walk:
    """One run of a network that can stop between two calls."""

    def __init__(self, runner: Streamed, inputs: tuple[Tensor, ...]) -> None:
        self.held: dict[Node, Any] = {}
        self._steps = runner.steps(inputs, self.held)
        self._last: Node | None = None

    def to(self, node: Node) -> Any:
        """Run until `node` is done; its value, None where that was before."""
        value = None
        while self._last is not node:
            self._last, value = next(self._steps)
        return value

    @property
    def last(self) -> Node | None:
        """The last call that is done."""
        return self._last

    @property
    def bytes(self) -> int:
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(self.held)}
        return sum(storages.values())


class _Walks:
    """Both networks over all batches, each stopped where the next layer needs it."""

    def __init__(
        self, dense: TracedModule, pruned: TracedModule, samples: list[tuple[Tensor, ...]], memory: int
    ) -> None:
        self._runners = Streamed(dense, torch.float32), Streamed(pruned, torch.float32)
        self._samples = samples
        self._memory = memory
        self._waiting: dict[int, tuple[_Walk, _Walk]] = {}
        order = [node for node in pruned.graph.nodes if node.op != "get_attr"]
        self._before = dict(zip(order[1:], order, strict=False))
        self._place: dict[Node | None, int] = {node: place for place, node in enumerate(dense.graph.nodes)}

    def __len__(self) -> int:
        return len(self._samples)

    def at(self, number: int, layer: _Layer) -> tuple[Tensor, Aim]:
        """Of one batch: the pruned layer's input, and what its output should be, its weights being as they are."""
        fresh = [_Walk(runner, self._samples[number]) for runner in self._runners]
        dense, pruned = self._waiting.pop(number, fresh)
        if self._place.get(dense.last, -1) >= self._place[layer.target]:
            dense = fresh[0]  # a stream behind dropped branches lies ahead of layers beside it
        target = dense.to(layer.target).index_select(layer.axis, layer.kept)
        pruned.to(self._before[layer.pruned])  # not further: this layer's weights are about to change
        runner = self._runners[1]

        def value(node: Node) -> Any:
            return pruned.held[node] if node in pruned.held else runner.read(node)

        given = runner.call(layer.pruned, value)
        x = value(arguments(layer.pruned)["input"])
        if layer.stream is None:
            asked = Aim(target - given, target, torch.ones_like(given))
        else:
            asked = aim(layer.stream, runner, value, given=given, target=target)
        if dense.bytes + pruned.bytes + sum(w.bytes for pair in self._waiting.values() for w in pair) <= self._memory:
            self._waiting[number] = dense, pruned
        return x, asked
