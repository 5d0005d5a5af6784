"""Layer-wise reconstruction: kept weights solved anew, so that each layer gives what the dense one gave.

Layer by layer in the order of the graph, the weights of a pruned layer become the least-squares solution from its
inputs in the pruned network, whose earlier layers are solved already, to the dense layer's output at the kept
channels. Unlabelled samples suffice; nothing is trained.

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
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import Node

from deploypruner.errors import InputError
from deploypruner.graph import Graph, Keep
from deploypruner.graph.inputs import tensors
from deploypruner.graph.module import TracedModule, get_state
from deploypruner.graph.nodes import arguments, op_name
from deploypruner.graph.streamed import Streamed
from deploypruner.recover.batches import Batch
from deploypruner.recover.least_squares import CONVOLUTIONS, NormalEquations, columns, outputs, places

_MEMORY = 1 << 30  # bytes of activations that may wait between two layers


@dataclass(frozen=True)
class Reconstruction:
    """What was solved.

    Args:
        errors: Weight name -> squared error of the layer's output relative to the dense one's, on the samples,
            before and after it was solved.
        left: Weight name -> why a convolution or linear layer kept its weights.
    """

    errors: Mapping[str, tuple[float, float]]
    left: Mapping[str, str]


@dataclass(frozen=True)
class _Layer:
    """One layer to be solved.

    Args:
        name: Of its weight.
        dense: The call in the dense graph.
        pruned: The same call in the pruned graph.
        kept: Output channels of the dense layer that stay.
    """

    name: str
    dense: Node
    pruned: Node
    kept: Tensor


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
    ridge: float = 0.03,
    positions: int = 64,
    memory: int = _MEMORY,
) -> Reconstruction:
    """Solve the convolutions and linear layers of the pruned `module` anew, in place; it is run in evaluation mode.

    Args:
        graph: The dense model.
        keep: Group id -> kept channels: what `module` was cut by.
        module: The pruned module, from `graph.cut`.
        batches: (inputs, labels or None), a few hundred samples; labels are not looked at.
        ridge: Strength of the pull towards the kept weights, relative to the mean square of an input, > 0. With a
            thirtieth of the default and 256 images, the classifier of a ResNet-20 tripled its norm and overfitted.
        positions: Output positions taken of each sample, at most; the same for all samples of a batch.
        memory: Bytes of activations kept from one layer to the next; what does not fit is computed again.

    Raises:
        InputError: No samples, numbers that are not finite, or a model without a graph.
    """
    if not isinstance(graph.module, TracedModule) or not isinstance(module, TracedModule):
        raise InputError(
            "layers can be reconstructed in models that torch.export traces, and this one it could not trace",
            hint="leave reconstruct out; batch norm and fine-tuning work on every model",
        )
    layers, left = _layers(graph.module, module, _gone_rows(graph, keep))
    samples = [tuple(inputs) for inputs, _ in batches]
    if not samples:
        raise InputError("there are no samples to reconstruct layers from", hint="check the training split")
    walks = _Walks(graph.module, module, samples, memory)
    errors = {layer.name: _solve(layer, module, walks, ridge, positions) for layer in layers}
    return Reconstruction(errors, left)


def _solve(layer: _Layer, module: TracedModule, walks: _Walks, ridge: float, positions: int) -> tuple[float, float]:
    """Correct one layer; returns its relative error before and after."""
    op, weight = op_name(layer.pruned), get_state(module, layer.name)
    bias_node = arguments(layer.pruned)["bias"]
    bias = None if bias_node is None else get_state(module, str(bias_node.target))
    groups = int(arguments(layer.pruned).get("groups") or 1)
    fan_in = weight[0].numel()
    sums = NormalEquations(groups, fan_in + (bias is not None), len(weight) // groups)
    size = 0.0
    chosen = torch.Generator().manual_seed(0)
    for number in range(len(walks)):
        target, x, given = walks.at(number, layer)
        target = target.index_select(-1 if op == "linear" else 1, layer.kept)
        count = places(op, target)
        picked = torch.randperm(count, generator=chosen)[:positions] if count > positions else None
        rows = columns(op, arguments(layer.pruned) | {"weight": weight}, x, picked)
        if bias is not None:
            rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], dim=2)
        wanted = outputs(op, groups, target, picked)
        sums.add(rows, wanted - outputs(op, groups, given, picked))
        size += float(wanted.double().square().sum())
    if not bool(torch.isfinite(sums.gram).all() and torch.isfinite(sums.moment).all()):
        raise InputError(
            f"the inputs or outputs of '{layer.name}' are not finite on the samples",
            hint="check the data for NaN and infinity",
        )
    correction = sums.solve(ridge)
    change = correction[:, :fan_in].mT.reshape(len(weight), fan_in)
    weight.add_(change.view(weight.shape).to(weight.dtype))
    if bias is not None:
        bias.add_(correction[:, fan_in].reshape(-1).to(bias.dtype))
    size = max(size, torch.finfo(torch.float64).tiny)
    return sums.squares / size, sums.left(correction) / size


# ---------------------------------------------------------------------- which layers


def _layers(
    dense: TracedModule, pruned: TracedModule, gone: Mapping[str, NDArray[np.bool_]]
) -> tuple[list[_Layer], dict[str, str]]:
    """The layers that can be solved, in the order of the graph, and the others with the reason."""
    found, left = [], {}
    dense_nodes = {node.name: node for node in dense.graph.nodes}
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
        found.append(_Layer(name, dense_nodes[node.name], node, torch.as_tensor(kept)))
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

    def __len__(self) -> int:
        return len(self._samples)

    def at(self, number: int, layer: _Layer) -> tuple[Tensor, Tensor, Tensor]:
        """Of one batch: the dense layer's output, and the pruned layer's input and output with its weights as are."""
        dense, pruned = self._waiting.pop(number) if number in self._waiting else self._fresh(number)
        target = dense.to(layer.dense)
        pruned.to(self._before[layer.pruned])  # not further: this layer's weights are about to change
        runner = self._runners[1]
        given = runner.call(
            layer.pruned, lambda node: pruned.held[node] if node in pruned.held else runner.read(node)
        )
        x = pruned.held[arguments(layer.pruned)["input"]]
        if dense.bytes + pruned.bytes + sum(w.bytes for pair in self._waiting.values() for w in pair) <= self._memory:
            self._waiting[number] = dense, pruned
        return target, x, given

    def _fresh(self, number: int) -> tuple[_Walk, _Walk]:
        first, second = (_Walk(runner, self._samples[number]) for runner in self._runners)
        return first, second
