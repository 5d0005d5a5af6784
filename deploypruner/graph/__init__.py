"""The dependency graph: which channels of a model must be removed together, and which cannot be removed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from deploypruner.graph.atoms import IntArray
from deploypruner.graph.capture import capture
from deploypruner.graph.cost import CostModel
from deploypruner.graph.groups import find_frozen, find_groups, share_entries
from deploypruner.graph.joint import JointAxis
from deploypruner.graph.module import TracedModule
from deploypruner.graph.propagate import Tracing
from deploypruner.records import Cost, Frozen, Group

Keep = Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Graph:
    """A traced model, its groups of channels and what is frozen.

    Args:
        module: The graph as a trainable module with the user's parameter names (copies of the weights).
        example_inputs: What it was traced with; the batch is axis 0.
        dynamic_batch: Whether any batch size runs.
        groups: Prunable groups, in the order of the graph.
        frozen: Channels that cannot be removed, each with `.reason` and `.where`.
        remarks: What a user should know about the capture.
        tracing: Labels of every tensor.
        costs: Counts MACs and parameters of any plan.
        atoms: Group id -> its atoms `[C]`.
    """

    module: TracedModule
    example_inputs: tuple[Any, ...]
    dynamic_batch: bool
    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    remarks: tuple[str, ...]
    tracing: Tracing
    costs: CostModel
    atoms: Mapping[str, IntArray]

    def group(self, group_id: str) -> Group:
        """The group called `group_id`."""
        return next(g for g in self.groups if g.id == group_id)

    def removed(self, keep: Keep) -> NDArray[np.bool_]:
        """Bool over atoms: everything not in `keep`; groups that `keep` does not name stay whole."""
        removed = np.zeros(self.tracing.atoms.count, bool)
        for group_id, kept in keep.items():
            atoms = self.atoms[group_id]
            removed[atoms] = True
            removed[atoms[kept]] = False
        return removed

    def cost(self, keep: Keep | None = None) -> Cost:
        """Predicted cost of one sample when only `keep` is kept (None: the dense model).

        `nonzero` counts the dense model's weights for None, and equals `params` for a plan.
        """
        if keep is None:
            parameters = {id(p): p for p in self.module.parameters()}.values()
            nonzero = sum(int(torch.count_nonzero(p)) for p in parameters)
            return Cost(self.costs.macs(), self.costs.params(), nonzero)
        removed = self.removed(keep)
        params = self.costs.params(removed)
        return Cost(self.costs.macs(removed), params, params)

    def emptied(self, keep: Keep) -> dict[str, set[int]]:
        """Group id -> channels that must stay so that no axis of any tensor ends up without an index."""
        removed = self.removed(keep)
        owner = {int(a): (group_id, c) for group_id, atoms in self.atoms.items() for c, a in enumerate(atoms)}
        found: dict[str, set[int]] = {}
        seen: set[int] = set()
        for axis in pytree.tree_leaves(list(self.tracing.values.values()), is_leaf=lambda v: not isinstance(v, list)):
            labels = axis.joint.block.reshape(-1, axis.joint.block.shape[-1]) if isinstance(axis, JointAxis) else axis
            if labels is None or id(labels) in seen:
                continue
            seen.add(id(labels))
            rows = self.tracing.atoms.canon(labels)
            if removed[rows].any(axis=1).all():
                for atom in rows[0][removed[rows[0]]].tolist():
                    group_id, channel = owner[atom]
                    found.setdefault(group_id, set()).add(channel)
        return found


def trace(model: nn.Module | ExportedProgram, example_inputs: Any) -> Graph:
    """Find out which channels of a model can be removed, and what must go with each of them.

    Args:
        model: A module in any mode, or a program from torch.export; it is not changed.
        example_inputs: One tensor or a tuple of positional inputs, batch on axis 0.

    Returns:
        The graph: `graph.groups` can be pruned, `graph.frozen` cannot, each entry with its reason.

    Raises:
        TraceError: torch.export cannot capture the model.
    """
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    captured = capture(model, inputs)
    tracing = Tracing(captured.module)
    costs = CostModel(tracing, _batch(captured.example_inputs))
    groups, atoms = _groups(tracing, costs)
    unsupported = dict.fromkeys(tracing.unsupported.values())
    return Graph(
        module=captured.module,
        example_inputs=captured.example_inputs,
        dynamic_batch=captured.dynamic_batch,
        groups=groups,
        frozen=tuple(find_frozen(tracing)),
        remarks=(*captured.remarks, *(f"{why}: everything it touches is frozen" for why in unsupported)),
        tracing=tracing,
        costs=costs,
        atoms=atoms,
    )


def _batch(example_inputs: tuple[Any, ...]) -> int:
    tensors = [t for t in pytree.tree_leaves(example_inputs) if isinstance(t, torch.Tensor) and t.ndim]
    return int(tensors[0].shape[0]) if tensors else 1


def _groups(tracing: Tracing, costs: CostModel) -> tuple[tuple[Group, ...], dict[str, IntArray]]:
    found = [(atoms, members) for atoms, members in find_groups(tracing) if len(atoms) > 1]
    owner = {int(a): i for i, (atoms, _) in enumerate(found) for a in atoms}
    secondary = {
        min((owner[a], owner[b]), key=lambda i: (len(found[i][0]), -i))
        for a, b in share_entries(tracing)
        if a in owner and b in owner and owner[a] != owner[b]
    }
    shrinking = {
        int(a)
        for axes in tracing.statistics.values()
        for labels in axes
        if (rows := tracing.atoms.live(labels)) is not None
        for a in np.unique(rows)
    }
    whole, groups, by_id = costs.macs(), [], dict[str, IntArray]()
    for i, (atoms, members) in enumerate(found):
        group_id = f"{members[0].parameter}:{members[0].axis}"
        if group_id in by_id:
            group_id += f"#{i}"
        removed = np.zeros(tracing.atoms.count, bool)
        removed[atoms[0]] = True
        saved = whole - costs.macs(removed)
        statistics = bool(shrinking & set(atoms.tolist()))
        groups.append(Group(group_id, len(atoms), members, float(saved), statistics, i in secondary))
        by_id[group_id] = atoms
    return tuple(groups), by_id
