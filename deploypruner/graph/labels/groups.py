"""From labels to groups: which channels are interchangeable, how groups overlap, and what is frozen why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from deploypruner.graph.labels.atoms import IntArray
from deploypruner.graph.labels.axes import Axes
from deploypruner.graph.labels.labelling import Labelling, StateTensor
from deploypruner.graph.nodes import where
from deploypruner.records import Frozen, GroupKind, Member

_CHANNEL_ROLES = ("producer", "consumer")


@dataclass
class GroupInMaking:
    """A group in the making.

    Args:
        atoms: `[C]`, in the order of their first position on the first member.
        members: Every parameter axis they live on.
        outer: Groups whose blocks this one runs inside of: the heads of head columns.
        inner: Groups that run inside the blocks of this one: the columns of heads.
        counted: Arguments that count these channels: "groups" of a convolution, "num_groups" of a group norm.
    """

    atoms: IntArray
    members: list[Member]
    outer: set[int] = field(default_factory=set)
    inner: set[int] = field(default_factory=set)
    counted: set[str] = field(default_factory=set)


def find_groups(labelling: Labelling, axes: Axes) -> list[GroupInMaking]:
    """Sort all removable atoms into groups of two or more.

    Two atoms are interchangeable when they come from the same axis (family) and occupy the same parameter axes
    equally often. Within a group they are ordered by their first position on the first member, so that channel
    numbers are the row numbers a user sees in that weight.

    Returns:
        Groups in the order of the graph.
    """
    slots = list(_slots(labelling, axes))
    classes = _classes(labelling, axes, dict.fromkeys(number for _, _, number in slots))
    positions: dict[int, list[tuple[int, IntArray, IntArray]]] = {}
    groups: dict[int, GroupInMaking] = {}
    indices: dict[tuple[int, int], IntArray] = {}  # members on equal axes share one array
    for state, axis, number in slots:
        if number not in positions:
            positions[number] = list(_positions(axes.rows[number], classes))
        for name, atoms, index in positions[number]:
            if name not in groups:
                groups[name] = GroupInMaking(atoms[np.argsort(index[:, 0], kind="stable")], [])
            if (number, name) not in indices:
                indices[number, name] = index[np.searchsorted(atoms, groups[name].atoms)]
            groups[name].members.append(Member(state.names[0], axis, indices[number, name]))
    learnt = {s.names[0] for s in labelling.state.values() if isinstance(s.tensor, torch.nn.Parameter)}
    # What lives in buffers alone (position numbers beyond the example's length) costs nothing and has no score.
    found = [
        group
        for group in groups.values()
        if len(group.atoms) > 1 and any(member.parameter in learnt for member in group.members)
    ]
    _relate(labelling, axes, found)
    return found


def find_frozen(labelling: Labelling, axes: Axes) -> list[Frozen]:
    """Channels of convolutions and linear layers that cannot be removed, with the reason and the place."""
    found = []
    for state in labelling.state.values():
        for axis, role in state.roles.items():
            if role not in _CHANNEL_ROLES or state.tensor.shape[axis] < 2 or state.tensor.ndim < 2:
                continue
            number = axes.number(state.axes[axis])
            if number is not None and axes.rows[number].any(axis=1).all():
                continue  # every index can be removed
            places: Counter[tuple[str, str]] = Counter()
            for why, count in Counter(labelling.atoms.reasons(state.axes[axis])).items():
                if why is not None:
                    places[why[0], where(why[1])] += count
            found += [Frozen(state.names[0], axis, count, *place) for place, count in places.items()]
    return found


def group_kinds(found: Sequence[GroupInMaking]) -> list[GroupKind]:
    """What the channels of each group are, by how they overlap with others and what counts them."""
    outer: list[GroupKind] = [
        "channels"
        if not group.inner
        else "conv groups"
        if "groups" in group.counted
        else "norm groups"
        if "num_groups" in group.counted
        else "heads"
        for group in found
    ]
    return [
        kind
        if group.inner or not group.outer
        else "head columns"
        if any(outer[o] == "heads" for o in group.outer)
        else "group columns"
        for kind, group in zip(outer, found, strict=True)
    ]


def _slots(labelling: Labelling, axes: Axes) -> Iterator[tuple[StateTensor, int, int]]:
    """Every parameter axis that carries live atoms, with the number of that axis."""
    for state in labelling.state.values():
        for axis, labels in enumerate(state.axes):
            number = axes.number(labels)
            if number is not None:
                yield state, axis, number


def _classes(labelling: Labelling, axes: Axes, numbers: dict[int, None]) -> IntArray:
    """Atom -> class; interchangeable atoms share one. Every axis refines what the families begin."""
    everything = np.arange(axes.count)
    classes = np.where(everything > 0, labelling.atoms.family(everything), 0)
    following = int(classes.max(initial=0)) + 1
    for number in numbers:
        rows = axes.rows[number]
        touched, counts = np.unique(rows[rows > 0], return_counts=True)
        _, refined = np.unique(classes[touched] * (counts.max() + 1) + counts, return_inverse=True)
        classes[touched] = following + refined
        following += int(refined.max()) + 1
    return classes


def _positions(rows: IntArray, classes: IntArray) -> Iterator[tuple[int, IntArray, IntArray]]:
    """Classes on one axis in the order they begin: class, its atoms ascending, their positions `[C, k]`."""
    position, column = np.nonzero(rows)
    atoms = rows[position, column]
    kind = classes[atoms]
    order = np.lexsort((position, atoms, kind))
    parts = np.split(order, np.flatnonzero(np.diff(kind[order])) + 1)
    for part in sorted(parts, key=lambda p: int(position[p].min())):
        mine = atoms[part]
        distinct = mine[np.append(True, mine[1:] != mine[:-1])]
        yield int(kind[part[0]]), distinct, position[part].reshape(len(distinct), -1)


def _relate(labelling: Labelling, axes: Axes, found: list[GroupInMaking]) -> None:
    """Fill in which groups share entries of a parameter axis, the outer and the inner one, and what counts them."""
    owner = np.full(axes.count, -1)
    for i, group in enumerate(found):
        owner[group.atoms] = i
    for number in dict.fromkeys(number for _, _, number in _slots(labelling, axes)):
        rows = axes.rows[number]
        for p in range(rows.shape[1]):
            for q in range(p + 1, rows.shape[1]):
                _relate_columns(rows[:, [p, q]], owner, found)
    for argument, labels in labelling.counts.values():
        counting = axes.number(labels)
        counted = set() if counting is None else set(np.unique(owner[axes.rows[counting]]).tolist()) - {-1}
        for i in counted:
            if not found[i].inner & counted:  # a depthwise convolution over heads counts heads x columns
                found[i].counted.add(argument)


def _relate_columns(rows: IntArray, owner: IntArray, found: list[GroupInMaking]) -> None:
    """Two atoms per index: pairs of groups that meet there, the one in contiguous blocks being the outer one."""
    left, right = owner[rows[:, 0]], owner[rows[:, 1]]
    lower, upper = np.minimum(left, right), np.maximum(left, right)
    pair = np.where((lower >= 0) & (lower != upper), lower * len(found) + upper, -1)
    for code in np.unique(pair[pair >= 0]).tolist():
        a, b = divmod(code, len(found))
        if b in found[a].inner | found[a].outer:
            continue
        shared, is_a = rows[pair == code], left[pair == code] == a
        blocks = [int(np.count_nonzero(np.diff(np.where(mine, *shared.T)))) for mine in (is_a, ~is_a)]
        outer, inner = (a, b) if blocks[0] <= blocks[1] else (b, a)
        found[outer].inner.add(inner)
        found[inner].outer.add(outer)
