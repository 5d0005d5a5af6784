"""A traced model as everything after it sees it: groups of channels, what is frozen, and the cost of any plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from deploypruner.figures import scaled
from deploypruner.graph.inputs import Inputs, batch_size
from deploypruner.graph.labels.atoms import IntArray
from deploypruner.graph.labels.axes import Axes, Stack
from deploypruner.graph.labels.branches import parameters_of
from deploypruner.graph.labels.cost import CostModel, MacsTally
from deploypruner.graph.labels.groups import find_frozen, find_groups, group_kinds
from deploypruner.graph.labels.labelling import Affine, Labelling, Residual
from deploypruner.graph.labels.lazy_axes import JointAxis
from deploypruner.graph.labels.output_layers import find_last_affines
from deploypruner.graph.nodes import where
from deploypruner.graph.open_axes import OpenAxis
from deploypruner.notebook import html_table
from deploypruner.records import Branch, Check, Cost, Frozen, Group

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
        branches: Residual branches, in the order of the graph: each may go as a whole.
        frozen: Channels that cannot be removed, each with `.reason` and `.where`.
        remarks: What a user should know about the capture.
        labelling: Labels of every parameter, and of every tensor where the front end knows them.
        axes: Every labelled axis once, for counting.
        costs: Counts MACs and parameters of any plan.
        atoms: Group id -> its atoms `[C]`; branch id -> its one atom `[1]`.
        front_end: What traced the model.
        cut: Bool over atoms -> a new module without everything that carries a marked atom.
        check: Traced module against the user's, on the example inputs; None where they are one and the same.
        part: Name of the only sub-module that could be traced, "" for the whole model. Inputs, costs and `cut` are
            the part's; names of parameters are those they have in the whole.
        whole: The model around the part, in eval mode and with shared weights; None without a part.
        trains_differently: How `module` differs from the user's in training mode, or why that is not known; "" where
            it does not differ.
        open_axes: Axes of the inputs beside the batch that stay open in everything made from the graph.
    """

    module: nn.Module
    example_inputs: Inputs
    dynamic_batch: bool
    groups: tuple[Group, ...]
    branches: tuple[Branch, ...]
    frozen: tuple[Frozen, ...]
    remarks: tuple[str, ...]
    labelling: Labelling
    axes: Axes
    costs: CostModel
    atoms: Mapping[str, IntArray]
    front_end: FrontEnd
    cut: Callable[[NDArray[np.bool_]], nn.Module]
    check: Check | None = None
    part: str = ""
    whole: nn.Module | None = None
    trains_differently: str = ""
    open_axes: tuple[OpenAxis, ...] = ()

    def __repr__(self) -> str:
        cost = self.cost()
        name = f" of {self.part!r}" if self.part else ""
        return (
            f"Graph{name}({len(self.groups)} groups, {len(self.branches)} residual branches, "
            f"{sum(entry.count for entry in self.frozen)} channels frozen, {scaled(cost.macs)} MACs, "
            f"{scaled(cost.params)} parameters)"
        )

    def _repr_html_(self) -> str:
        """In a notebook: every group."""
        rows = [(g.id, g.kind, g.size, scaled(g.macs_per_channel), len(g.members)) for g in self.groups]
        return html_table(repr(self), ("group", "kind", "channels", "MACs each", "members"), rows)

    def group(self, group_id: str) -> Group:
        """The group called `group_id`."""
        return self._by_id[group_id]

    def removed(self, keep: Keep) -> NDArray[np.bool_]:
        """Bool over atoms: everything not in `keep`; groups and branches that `keep` does not name stay whole.

        A branch whose id `keep` gives no index goes, with all there is in it.
        """
        removed = np.zeros(self.labelling.atoms.count, bool)
        for group_id, kept in keep.items():
            atoms = self.atoms[group_id]
            removed[atoms] = True
            removed[atoms[np.asarray(kept, np.int64)]] = False
        return removed

    @property
    def residuals(self) -> Mapping[str, Residual]:
        """Branch id -> where it is in `module.graph`."""
        return self.labelling.residuals

    def branch(self, branch_id: str) -> Branch:
        """The branch called `branch_id`."""
        return next(branch for branch in self.branches if branch.id == branch_id)

    def dropped(self, keep: Mapping[str, Sized]) -> tuple[str, ...]:
        """Ids of the branches that a plan leaves out, in the order of the graph."""
        return tuple(branch.id for branch in self.branches if branch.id in keep and not len(keep[branch.id]))

    def cost(self, keep: Keep | None = None) -> Cost:
        """Predicted cost of one sample when only `keep` is kept (None: the dense model).

        `nonzero` counts the dense model's weights for None, and equals `params` for a plan.
        """
        if keep is None:
            counted = {id(s.tensor): s.tensor for s in self.labelling.state.values()}
            parameters = [t for t in counted.values() if isinstance(t, nn.Parameter)]
            nonzero = sum(int(torch.count_nonzero(p)) for p in parameters)
            return Cost(self.costs.macs(), self.costs.params(), nonzero)
        removed = self.removed(keep)
        params = self.costs.params(removed)
        return Cost(self.costs.macs(removed), params, params)

    def tally(self) -> MacsTally:
        """A running count of the MACs for plans that change group by group; every group is whole at first."""
        return MacsTally(self.costs, self.atoms)

    def emptied(self, keep: Keep, order: Keep | None = None) -> dict[str, set[int]]:
        """Channels that must stay so that no axis of any tensor ends up without an index.

        Args:
            keep: Group id -> kept channels.
            order: Group id -> all its channels, the ones to put back first in front; by number where not given.

        Returns:
            Group id -> channels to put back, empty where every axis keeps an index.
        """
        removed, place = self.removed(keep), np.zeros(self.labelling.atoms.count)
        for group, atoms in self.atoms.items():
            first = atoms[order[group]] if order is not None and group in order else atoms
            place[first] = np.arange(len(atoms)) / len(atoms)
        found: dict[str, set[int]] = {}
        axes, stack = self._vulnerable
        for axis in np.flatnonzero(stack.kept(removed) == 0).tolist():
            rows = axes[axis]
            best = rows[np.where(removed[rows], place[rows], 0).max(axis=1).argmin()]
            for atom in best[removed[best]].tolist():
                group, channel = self._place[atom]
                found.setdefault(group, set()).add(channel)
        return found

    def last_affines(self, group: Group) -> tuple[Affine, ...]:
        """The layers through which the group's channels leave: a gate of zero on all of them closes the channel.

        Without a graph to follow: its normalisations, or its producers where it has none. Found once: training with
        gates asks in every step.
        """
        if group.id not in self._last_affines:
            self._last_affines[group.id] = find_last_affines(self, group)
        return self._last_affines[group.id]

    @cached_property
    def _last_affines(self) -> dict[str, tuple[Affine, ...]]:
        return {}

    @cached_property
    def _by_id(self) -> dict[str, Group]:
        return {group.id: group for group in self.groups}

    @cached_property
    def _place(self) -> dict[int, tuple[str, int]]:
        """Atom -> its group and channel."""
        return {a: (group, c) for group, atoms in self.atoms.items() for c, a in enumerate(atoms.tolist())}

    @cached_property
    def _vulnerable(self) -> tuple[list[IntArray], Stack]:
        """Axes of any tensor on which every index may vanish."""
        axes = self.axes
        values = [*self.labelling.values.values(), *(s.axes for s in self.labelling.state.values())]
        numbers = set()
        for axis in pytree.tree_leaves(values, is_leaf=lambda v: not isinstance(v, list)):
            labels = axis.joint.block.reshape(-1, axis.joint.block.shape[-1]) if isinstance(axis, JointAxis) else axis
            numbers.add(axes.number(labels))
        rows = [axes.rows[number] for number in sorted(n for n in numbers if n is not None)]
        rows = [r for r in rows if r.any(axis=1).all()]
        return rows, Stack(rows)


def assemble(
    module: nn.Module,
    labelling: Labelling,
    *,
    example_inputs: Inputs,
    dynamic_batch: bool,
    remarks: tuple[str, ...],
    front_end: FrontEnd,
    cut: Callable[[NDArray[np.bool_]], nn.Module],
    check: Check | None = None,
    trains_differently: str = "",
    open_axes: tuple[OpenAxis, ...] = (),
) -> Graph:
    """What a front end learnt, as a graph; see `Graph` for the arguments."""
    axes = Axes(labelling.atoms)
    costs = CostModel(labelling, axes, batch_size(example_inputs))
    groups, atoms = _groups(labelling, axes, costs)
    atoms |= {name: np.array([residual.atom]) for name, residual in labelling.residuals.items()}
    unsupported = dict.fromkeys(labelling.unsupported.values())
    return Graph(
        module=module,
        example_inputs=example_inputs,
        dynamic_batch=dynamic_batch,
        groups=groups,
        branches=_branches(module, labelling, groups, costs),
        frozen=tuple(find_frozen(labelling, axes)),
        remarks=(*remarks, *(f"{why}: everything it touches is frozen" for why in unsupported)),
        labelling=labelling,
        axes=axes,
        costs=costs,
        atoms=atoms,
        front_end=front_end,
        cut=cut,
        check=check,
        trains_differently=trains_differently,
        open_axes=open_axes,
    )


def _groups(labelling: Labelling, axes: Axes, costs: CostModel) -> tuple[tuple[Group, ...], dict[str, IntArray]]:
    """The groups of a labelling as records, and the atoms of each."""
    found = find_groups(labelling, axes)
    names: dict[str, int] = {}
    on_axis: Counter[str] = Counter()
    for i, group in enumerate(found):
        name = f"{group.members[0].parameter}:{group.members[0].axis}"
        on_axis[name] += 1
        names[name if on_axis[name] == 1 else f"{name}#{on_axis[name]}"] = i
    atoms = {name: found[i].atoms for name, i in names.items()}
    ids, tally, statistics = list(names), MacsTally(costs, atoms), _statistics(labelling, axes)
    whole, groups = costs.macs(), []
    for (name, i), kind in zip(names.items(), group_kinds(found), strict=True):
        group, size = found[i], len(found[i].atoms)
        partners = sorted(group.inner | group.outer)
        saved = whole - tally.keep(name, np.arange(1, size))
        tally.keep(name, np.arange(size))
        groups.append(
            Group(
                id=name,
                size=size,
                members=tuple(group.members),
                macs_per_channel=float(saved),
                changes_statistics=bool(statistics[group.atoms].any()),
                secondary=any((size, -i) < (len(found[p].atoms), -p) for p in partners),
                kind=kind,
                partners=tuple(ids[p] for p in partners),
            )
        )
    return tuple(groups), atoms


def _branches(
    module: nn.Module, labelling: Labelling, groups: Sequence[Group], costs: CostModel
) -> tuple[Branch, ...]:
    """The residual branches of a labelling as records."""
    found = []
    for name, residual in labelling.residuals.items():
        assert isinstance(module, GraphModule), "only an exported graph has residual branches"
        removed = np.zeros(labelling.atoms.count, bool)
        removed[residual.atom] = True
        parameters = parameters_of(module, module.graph, residual)
        found.append(
            Branch(
                id=name,
                parameters=parameters,
                groups=tuple(g.id for g in groups if all(m.parameter in parameters for m in g.members)),
                macs=costs.macs() - costs.macs(removed),
                params=costs.params() - costs.params(removed),
                where=where(residual.add),
            )
        )
    return tuple(found)


def _statistics(labelling: Labelling, axes: Axes) -> NDArray[np.bool_]:
    """Bool over atoms: does a mean or variance run over them?"""
    found = np.zeros(axes.count, bool)
    for number in dict.fromkeys(axes.number(labels) for over in labelling.statistics.values() for labels in over):
        if number is not None:
            found[axes.rows[number]] = True
    found[0] = False
    return found
