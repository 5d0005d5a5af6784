"""What a front end learns about a model: labels of its parameters, and what the layers do with them.

Groups, costs, criteria and plans need nothing else, so a second front end only has to fill in a `Labelling`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import Node

from deploypruner.graph.labels.atoms import Atoms, Labels
from deploypruner.records import Role


@dataclass
class StateTensor:
    """A parameter, buffer or constant of the graph; names that share one tensor share one entry.

    Args:
        names: Fully qualified names.
        tensor: The tensor itself.
        axes: Labels per axis.
        roles: Axis -> what an operator uses it for: a layer's output ("producer") or input ("consumer")
            channels, or a normalisation's scale and shift ("norm").
    """

    names: list[str]
    tensor: torch.Tensor
    axes: list[Labels]
    roles: dict[int, Role] = field(default_factory=dict)


@dataclass(frozen=True)
class Contraction:
    """A convolution or linear layer: its MACs are the product of all these axis lengths.

    Args:
        node: The call, None where the front end has no graph.
        weight: Name of the weight, "" when it is computed.
        axes: (labels, length) of each axis.
    """

    node: Node | None
    weight: str
    axes: tuple[tuple[Labels, int], ...]

    @property
    def macs(self) -> int:
        """Multiply-adds at full size, over the whole traced batch."""
        return prod(size for _, size in self.axes)


@dataclass(frozen=True)
class Residual:
    """Where a residual branch is in the graph, see `graph.branches`.

    Args:
        add: The addition.
        shortcut: Its operand that stays.
        branch: Its operand that may go.
        region: Every node that serves the branch alone, its reads of parameters included.
        atom: Removed together with the branch.
    """

    add: Node
    shortcut: Node
    branch: Node
    region: frozenset[Node]
    atom: int


@dataclass(frozen=True)
class Affine:
    """A layer whose output channel c is linear in row c of its weight and entry c of its biases.

    Args:
        weight: Parameter name.
        axis: Axis of the weight that runs over output channels.
        biases: Parameter names; several where layers share the weight.
        role: "producer" (convolution, linear) or "norm".
    """

    weight: str
    axis: int
    biases: tuple[str, ...]
    role: Role


class Labelling:
    """Labels of every parameter of a model, and what was recorded on the way.

    Attributes:
        atoms: The algebra.
        values: Node -> axis values (a list of lists for operators with several outputs); empty without a graph.
        state: id(tensor) -> StateTensor.
        statistics: Node -> labels of the axes it takes a mean or variance over, where one of them may shrink.
        contractions: Convolutions and linear layers.
        directions: Parameters divided by their own norm (weight norm): a row of zeros would give 0 / 0.
        normed: Lengths of a weight norm -> (the directions they belong to, axis the norm is not taken over).
        affines: Weight name -> layer that its channels leave through.
        unsupported: Nodes no rule covers, with the reason they were frozen for.
        residuals: Branch id -> where a residual branch is, see `graph.branches`; empty without a graph.
        counts: Call (its node, or the name of its module) -> (argument, labels): integer arguments that count the
            indices of an axis (`groups`).
    """

    def __init__(self) -> None:
        self.atoms = Atoms()
        self.values: dict[Any, Any] = {}
        self.state: dict[int, StateTensor] = {}
        self.statistics: dict[Node, list[Labels]] = {}
        self.contractions: list[Contraction] = []
        self.affines: dict[str, Affine] = {}
        self.normed: dict[str, tuple[str, int]] = {}
        self.directions: set[str] = set()
        self.unsupported: dict[Node, str] = {}
        self.residuals: dict[str, Residual] = {}
        self.counts: dict[Node | str, tuple[str, Labels]] = {}

    @property
    def all_state(self) -> dict[int, StateTensor]:
        """`state`, and what only training reads."""
        return self.state

    def dropped_nodes(self, removed: NDArray[np.bool_]) -> set[Node]:
        """Nodes of the branches that are gone with the atoms marked in `removed` (bool over atoms)."""
        return {node for r in self.residuals.values() if removed[r.atom] for node in r.region}
