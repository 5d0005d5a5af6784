"""What training under a pattern left: how many weights are zero, layer by layer, as the report has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from deploypruner.graph import Graph
from deploypruner.graph.execute.module import get_state
from deploypruner.sparsity.patterns import AUTO
from deploypruner.sparsity.training import SparseRegime
from deploypruner.sparsity.training.existing import GIVEN, ExistingZeros
from deploypruner.sparsity.training.layers import check_sizes, weighted_layers


@dataclass(frozen=True)
class ZeroLayer:
    """Zeros of one layer.

    Args:
        name: Of the layer.
        kind: "conv", "linear", ...
        weights: How many it has.
        zeros: How many of them are zero.
        pattern: They follow.
    """

    name: str
    kind: str
    weights: int
    zeros: int
    pattern: str


@dataclass(frozen=True)
class Zeros:
    """Zeros inside kept layers.

    Args:
        pattern: Registered name, "auto", or "given" where the user's model brought them along.
        schedule: That made them, "kept" where they were there.
        sparsity: Share that was asked for, 0..1.
        distribution: Of that share over the layers.
        zeros: How many.
        weights: Of the layers they are in.
        remarks: What the pattern could not do.
        layers: Each of them.
    """

    pattern: str
    schedule: str
    sparsity: float
    distribution: str
    zeros: int
    weights: int
    remarks: tuple[str, ...]
    layers: tuple[ZeroLayer, ...]

    @staticmethod
    def from_json(found: dict[str, Any]) -> Zeros:
        """As `dataclasses.asdict` gave it."""
        layers = tuple(ZeroLayer(**layer) for layer in found["layers"])
        return Zeros(**{**found, "remarks": tuple(found["remarks"]), "layers": layers})


def count_zeros(graph: Graph, module: nn.Module, regime: SparseRegime, *, schedule: str, auto: bool) -> Zeros:
    """Count the zeros of the layers of a regime.

    Args:
        graph: The traced dense model.
        module: The pruned one, trained.
        regime: What made them, or kept them.
        schedule: Its name.
        auto: Did every layer get its own pattern?
    """
    given = isinstance(regime, ExistingZeros)
    layers: list[ZeroLayer] = []
    remarks: list[str] = []
    asked = 0.0
    for layer in (layer for layer in weighted_layers(graph) if layer.weight in regime.names):
        weight = get_state(module, layer.weight)
        zeros = weight.numel() - int(torch.count_nonzero(weight))
        pattern = GIVEN if given else str(regime.pattern_of(layer.weight))
        layers.append(ZeroLayer(layer.name, layer.kind, weight.numel(), zeros, pattern))
        remarks += check_sizes(module, [layer], regime.pattern_of(layer.weight))
        asked += regime.sparsity_of(layer.weight) * weight.numel()
    weights = sum(layer.weights for layer in layers)
    return Zeros(
        pattern=GIVEN if given else AUTO if auto else layers[0].pattern,
        schedule=schedule,
        sparsity=asked / weights,
        distribution=AUTO if auto else regime.settings.distribution,
        zeros=sum(layer.zeros for layer in layers),
        weights=weights,
        remarks=tuple(remarks),
        layers=tuple(layers),
    )


def describe_zeros(found: Zeros) -> str:
    """One line: how many weights are zero."""
    share, layers = found.zeros / found.weights, len(found.layers)
    line = (
        f"{found.pattern} ({found.schedule}): {100 * share:.1f} % of the weights of {layers} "
        f"layer{'' if layers == 1 else 's'} are zero"
    )
    return line + (f" ({found.remarks[0]})" if found.remarks else "")
