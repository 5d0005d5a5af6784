"""From labels to groups: which channels are interchangeable, and what is frozen for which reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from deploypruner.graph.atoms import IntArray
from deploypruner.graph.labelling import Labelling, StateTensor
from deploypruner.graph.nodes import where
from deploypruner.graph.rules.contraction import SPATIAL
from deploypruner.records import Frozen, Member

_CHANNEL_ROLES = ("producer", "consumer")


def find_groups(labelling: Labelling) -> list[tuple[IntArray, tuple[Member, ...]]]:
    """Sort all removable atoms into groups.

    Two atoms are interchangeable when they come from the same axis (family) and occupy the same parameter axes
    equally often. Within a group they are ordered by their first position on the first member, so that channel
    numbers are the row numbers a user sees in that weight.

    Returns:
        Per group its atoms `[C]` and its members, in the order of the graph.
    """
    slots = list(_slots(labelling))
    everything = np.arange(labelling.atoms.count)
    classes = np.where(everything > 0, labelling.atoms.family(everything), 0)
    next_class = int(classes.max(initial=0)) + 1
    on_some_axis = np.zeros(labelling.atoms.count, bool)
    for _, _, atoms, _ in slots:
        touched, counts = np.unique(atoms, return_counts=True)
        on_some_axis[touched] = True
        _, refined = np.unique(np.stack([classes[touched], counts]), axis=1, return_inverse=True)
        classes[touched] = next_class + refined.reshape(-1)
        next_class = int(classes.max()) + 1
    groups: dict[int, tuple[IntArray, list[Member]]] = {}
    for state, axis, atoms, positions in slots:
        for group in dict.fromkeys(classes[atoms].tolist()):
            mine = classes[atoms] == group
            order, members = groups.setdefault(group, (_in_order(atoms[mine], positions[mine]), []))
            members.append(Member(state.names[0], axis, _index(order, atoms[mine], positions[mine])))
    return [(order, tuple(members)) for order, members in groups.values()]


def find_frozen(labelling: Labelling) -> list[Frozen]:
    """Channels of convolutions and linear layers that cannot be removed, with the reason and the place."""
    found = []
    for state in labelling.state.values():
        for axis, role in state.roles.items():
            if role not in _CHANNEL_ROLES or state.tensor.shape[axis] < 2 or state.tensor.ndim < 2:
                continue
            reasons = Counter(
                (why[0], where(why[1])) for why in labelling.atoms.reasons(state.axes[axis]) if why is not None
            )
            found += [
                Frozen(state.names[0], axis, count, reason, place)
                for (reason, place), count in reasons.items()
                if reason != SPATIAL
            ]
    return found


def share_entries(labelling: Labelling) -> set[tuple[int, int]]:
    """Pairs of atoms that meet on one index of some parameter axis (a head and a column)."""
    pairs: set[tuple[int, int]] = set()
    for state in labelling.state.values():
        for labels in state.axes:
            rows = labelling.atoms.live(labels)
            if rows is None or rows.shape[1] == 1:
                continue
            for p in range(rows.shape[1]):
                for q in range(p + 1, rows.shape[1]):
                    both = rows[(rows[:, p] > 0) & (rows[:, q] > 0)]
                    pairs.update(map(tuple, np.unique(both[:, [p, q]], axis=0).tolist()))
    return pairs


def _slots(labelling: Labelling) -> Iterator[tuple[StateTensor, int, IntArray, IntArray]]:
    """Every parameter axis that carries live atoms, as parallel arrays of atoms and their positions."""
    for state in labelling.state.values():
        for axis, labels in enumerate(state.axes):
            rows = labelling.atoms.live(labels)
            if rows is None:
                continue
            position, column = np.nonzero(rows)
            yield state, axis, rows[position, column], position


def _in_order(atoms: IntArray, positions: IntArray) -> IntArray:
    """Distinct atoms in the order of their first position."""
    ordered = atoms[np.argsort(positions, kind="stable")]
    _, first = np.unique(ordered, return_index=True)
    return ordered[np.sort(first)]


def _index(order: IntArray, atoms: IntArray, positions: IntArray) -> IntArray:
    """[C, k] positions of each atom of `order`."""
    by_atom = np.lexsort((positions, atoms))
    grouped = positions[by_atom].reshape(len(order), -1)
    return grouped[np.searchsorted(np.sort(order), order)]
