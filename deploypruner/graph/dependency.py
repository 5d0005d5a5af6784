"""A traced model as everything after it sees it: groups of channels, what is frozen, and the cost of any plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils import _pytree as pytree

from deploypruner.graph.atoms import IntArray
from deploypruner.graph.cost import CostModel
from deploypruner.graph.groups import find_frozen, find_groups, share_entries
from deploypruner.graph.inputs import Inputs, batch_size
from deploypruner.graph.joint import JointAxis
from deploypruner.graph.labelling import Labelling
from deploypruner.records import Cost, Frozen, Group

FrontEnd = Literal["torch.export", "torch-pruning"]

Keep = Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Graph:
    """A traced model, its groups of channels and what is frozen.

    Args:
        module: The dense model as a trainable module with the user's parameter names.
        example_inputs: What it was traced with; the batch is axis 0.
        dynamic_batch: Whether any batch size runs.
        groups: Prunable groups, in the order of the graph.
        frozen: Channels that cannot be removed, each with `.reason` and `.where`.
        remarks: What a user should know about the capture.
        labelling: Labels of every parameter, and of every tensor where the front end knows them.
        costs: Counts MACs and parameters of any plan.
        atoms: Group id -> its atoms `[C]`.
        front_end: What traced the model.
        cut: Bool over atoms -> a new module without everything that carries a marked atom.
    """

    module: nn.Module
    example_inputs: Inputs
    dynamic_batch: bool
    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    remarks: tuple[str, ...]
    labelling: Labelling
    costs: CostModel
    atoms: Mapping[str, IntArray]
    front_end: FrontEnd
    cut: Callable[[NDArray[np.bool_]], nn.Module]

    def group(self, group_id: str) -> Group:
        """The group called `group_id`."""
        return next(g for g in self.groups if g.id == group_id)

    def removed(self, keep: Keep) -> NDArray[np.bool_]:
        """Bool over atoms: everything not in `keep`; groups that `keep` does not name stay whole."""
        removed = np.zeros(self.labelling.atoms.count, bool)
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
        values = [*self.labelling.values.values(), *(s.axes for s in self.labelling.state.values())]
        for axis in pytree.tree_leaves(values, is_leaf=lambda v: not isinstance(v, list)):
            labels = axis.joint.block.reshape(-1, axis.joint.block.shape[-1]) if isinstance(axis, JointAxis) else axis
            if labels is None or id(labels) in seen:
                continue
            seen.add(id(labels))
            rows = self.labelling.atoms.canon(labels)
            if removed[rows].any(axis=1).all():
                for atom in rows[0][removed[rows[0]]].tolist():
                    group_id, channel = owner[atom]
                    found.setdefault(group_id, set()).add(channel)
        return found


def assemble(
    module: nn.Module,
    labelling: Labelling,
    *,
    example_inputs: Inputs,
    dynamic_batch: bool,
    remarks: tuple[str, ...],
    front_end: FrontEnd,
    cut: Callable[[NDArray[np.bool_]], nn.Module],
) -> Graph:
    """What a front end learnt, as a graph; see `Graph` for the arguments."""
    costs = CostModel(labelling, batch_size(example_inputs))
    groups, atoms = _groups(labelling, costs)
    unsupported = dict.fromkeys(labelling.unsupported.values())
    return Graph(
        module=module,
        example_inputs=example_inputs,
        dynamic_batch=dynamic_batch,
        groups=groups,
        frozen=tuple(find_frozen(labelling)),
        remarks=(*remarks, *(f"{why}: everything it touches is frozen" for why in unsupported)),
        labelling=labelling,
        costs=costs,
        atoms=atoms,
        front_end=front_end,
        cut=cut,
    )


def _groups(labelling: Labelling, costs: CostModel) -> tuple[tuple[Group, ...], dict[str, IntArray]]:
    found = [(atoms, members) for atoms, members in find_groups(labelling) if len(atoms) > 1]
    owner = {int(a): i for i, (atoms, _) in enumerate(found) for a in atoms}
    secondary = {
        min((owner[a], owner[b]), key=lambda i: (len(found[i][0]), -i))
        for a, b in share_entries(labelling)
        if a in owner and b in owner and owner[a] != owner[b]
    }
    shrinking = {
        int(a)
        for axes in labelling.statistics.values()
        for labels in axes
        if (rows := labelling.atoms.live(labels)) is not None
        for a in np.unique(rows)
    }
    whole, groups, by_id = costs.macs(), [], dict[str, IntArray]()
    for i, (atoms, members) in enumerate(found):
        group_id = f"{members[0].parameter}:{members[0].axis}"
        if group_id in by_id:
            group_id += f"#{i}"
        removed = np.zeros(labelling.atoms.count, bool)
        removed[atoms[0]] = True
        saved = whole - costs.macs(removed)
        statistics = bool(shrinking & set(atoms.tolist()))
        groups.append(Group(group_id, len(atoms), members, float(saved), statistics, i in secondary))
        by_id[group_id] = atoms
    return tuple(groups), by_id
