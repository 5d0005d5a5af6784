"""Which weights of a traced model follow a sparse pattern."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod

from torch import nn

from deploypruner.errors import InputError, RecipeError
from deploypruner.graph import Graph
from deploypruner.graph.execute.module import get_state
from deploypruner.graph.nodes import op_name
from deploypruner.recipe.sparse import KINDS, SparseSettings
from deploypruner.sparsity.patterns import Pattern


@dataclass(frozen=True)
class SparseLayer:
    """A convolution or linear layer.

    Args:
        weight: Parameter name; [O, I, *kernel] or [O, I].
        kind: One of `settings.KINDS`.
        macs: Multiply-adds of one sample in the dense model, of all calls.
    """

    weight: str
    kind: str
    macs: int

    @property
    def name(self) -> str:
        """What a user calls it."""
        return self.weight.removesuffix(".weight")


def weighted_layers(graph: Graph) -> tuple[SparseLayer, ...]:
    """Every convolution and linear layer with a weight of its own whose rows are its outputs.

    Left out: computed weights, transposed convolutions, and weights that an embedding shares.
    """
    labelling, embedded = graph.labelling, _embedded(graph)
    macs: dict[str, int] = {}
    for contraction in labelling.contractions:
        macs[contraction.weight] = macs.get(contraction.weight, 0) + contraction.macs
    names = {state.names[0]: state.names for state in labelling.state.values()}
    first, last = _ends(graph)
    found = []
    for weight in macs:
        affine = labelling.affines.get(weight)
        if affine is None or affine.axis != 0 or affine.role != "producer" or embedded & set(names[weight]):
            continue
        kind = "stem" if weight in first else "classifier" if weight in last else _kind(graph, weight)
        found.append(SparseLayer(weight, kind, macs[weight] // graph.costs.batch))
    return tuple(found)


def choose_layers(graph: Graph, settings: SparseSettings) -> tuple[SparseLayer, ...]:
    """The layers that become sparse.

    Raises:
        RecipeError: A pattern of names that matches no layer; the nearest is offered.
        InputError: No layer is left.
    """
    layers = weighted_layers(graph)
    only, excluded = _named(layers, settings.only), _named(layers, settings.exclude)
    chosen = tuple(
        layer
        for layer in layers
        if layer.kind in settings.layers and (layer in only or not settings.only) and layer not in excluded
    )
    if not chosen:
        kinds = {kind: sum(layer.kind == kind for layer in layers) for kind in KINDS}
        has = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count) or "no layer with weights"
        raise InputError(
            f"no layer of this model may become sparse: it has {has}, and --sparse-layers says "
            f"{', '.join(settings.layers)}",
            hint="name more kinds with --sparse-layers, or exclude less",
        )
    return chosen


def check_sizes(module: nn.Module, layers: Sequence[SparseLayer], pattern: Pattern) -> list[str]:
    """What a user should know of sizes that the pattern does not divide, in the pruned module.

    Raises:
        RecipeError: The pattern refuses a layer; it is named.
    """
    remarks = []
    for layer in layers:
        try:
            remark = pattern.ragged(int(get_state(module, layer.weight).shape[1]))
        except RecipeError as error:
            raise RecipeError(f"'{layer.name}': {error.message}", hint=error.hint) from None
        remarks += [f"'{layer.name}': {remark}"] if remark else []
    return remarks


def _kind(graph: Graph, weight: str) -> str:
    shape = get_state(graph.module, weight).shape
    if len(shape) == 2:
        return "linear"
    if shape[1] == 1:
        return "depthwise"
    return "1x1" if prod(shape[2:]) == 1 else "conv"


def _embedded(graph: Graph) -> set[str]:
    """Names of weights that an embedding looks up."""
    nodes = graph.labelling.values
    return {
        str(arg.target) for n in nodes if op_name(n) == "embedding" for arg in n.args[:1] if hasattr(arg, "target")
    }


def _ends(graph: Graph) -> tuple[set[str], set[str]]:
    """Weights of layers that no layer or embedding comes before, and of those that no layer comes after."""
    layers = {c.node: c.weight for c in graph.labelling.contractions if c.node is not None}
    if not layers:
        return _frozen(graph, 1, "model input"), _frozen(graph, 0, "model output")
    nodes = list(next(iter(layers)).graph.nodes)
    before: dict[object, bool] = {}
    for node in nodes:
        before[node] = any(before[n] or n in layers or op_name(n) == "embedding" for n in node.all_input_nodes)
    after: dict[object, bool] = {}
    for node in reversed(nodes):
        after[node] = any(after[user] or user in layers for user in node.users)
    first = {weight for node, weight in layers.items() if not before[node]}
    return first, {weight for node, weight in layers.items() if not after[node]}


def _frozen(graph: Graph, axis: int, reason: str) -> set[str]:
    """The same where the front end has no nodes: weights whose channels are the model's own."""
    return {f.parameter for f in graph.frozen if f.axis == axis and f.reason == reason}


def _named(layers: Sequence[SparseLayer], patterns: Collection[str]) -> set[SparseLayer]:
    found = set()
    for pattern in patterns:
        matched = {layer for layer in layers if any(fnmatchcase(part, pattern) for part in _parts(layer.weight))}
        if not matched:
            near = difflib.get_close_matches(pattern.strip("*."), [layer.name for layer in layers], n=1, cutoff=0.3)
            hint = f"did you mean '{near[0]}'?" if near else "`deploypruner plan` lists the layers"
            raise RecipeError(f"no convolution or linear layer of this model matches '{pattern}'", hint=hint)
        found |= matched
    return found


def _parts(name: str) -> list[str]:
    """ "a.b.weight" -> "a", "a.b" and "a.b.weight"."""
    pieces = name.split(".")
    return [".".join(pieces[:end]) for end in range(1, len(pieces) + 1)]
