"""The label algebra on examples small enough to follow by hand."""

from __future__ import annotations

import numpy as np

from deploypruner.graph.labels.atoms import Atoms


def rows(atoms: Atoms, labels):
    """Canonical labels as sets."""
    return [set(row[row > 0].tolist()) for row in atoms.canon(labels)]


def test_an_axis_of_one_element_is_inert():
    assert Atoms().fresh(1) is None


def test_unified_axes_have_the_same_atoms_index_by_index():
    atoms = Atoms()
    a, b = atoms.fresh(3), atoms.fresh(3)
    atoms.unify(a, b, "test")
    assert rows(atoms, a) == rows(atoms, b) == [{1}, {2}, {3}]


def test_union_is_transitive_through_chains():
    atoms = Atoms()
    a, b, c, d = (atoms.fresh(2) for _ in range(4))
    atoms.unify(c, d, "test")
    atoms.unify(a, b, "test")
    atoms.unify(b, d, "test")
    assert rows(atoms, a) == rows(atoms, b) == rows(atoms, c) == rows(atoms, d)


def test_meeting_an_inert_axis_freezes_with_that_reason():
    atoms = Atoms()
    a = atoms.fresh(2)
    atoms.site = "here"
    atoms.unify(a, None, "met the input")
    assert atoms.live(a) is None
    assert atoms.reasons(a) == [("met the input", "here")] * 2


def test_what_meets_a_frozen_axis_inherits_the_first_reason():
    atoms = Atoms()
    output, stream, other = atoms.fresh(2), atoms.fresh(2), atoms.fresh(2)
    atoms.freeze(output, "model output", "the end")
    atoms.unify(stream, output, "added")
    atoms.unify(other, stream, "added again")
    assert atoms.reasons(other) == [("model output", "the end")] * 2


def test_only_the_indices_that_meet_a_frozen_one_are_frozen():
    atoms = Atoms()
    a, b = atoms.fresh(3), atoms.fresh(3)
    atoms.freeze(b[1:2], "selected")
    atoms.unify(a, b, "added")
    assert rows(atoms, a) == [{1}, set(), {3}]


def test_a_split_makes_each_channel_a_product_of_head_and_column():
    atoms = Atoms()
    channels = atoms.fresh(6)
    heads, columns = atoms.split(channels, [2, 3])
    assert heads.shape == (2, 1)
    assert columns.shape == (3, 1)
    h, c = heads[:, 0].tolist(), columns[:, 0].tolist()
    assert rows(atoms, channels) == [{h[i], c[j]} for i in range(2) for j in range(3)]


def test_removing_a_head_removes_its_columns_and_nothing_else():
    atoms = Atoms()
    channels = atoms.fresh(6)
    heads, columns = atoms.split(channels, [2, 3])
    removed = np.zeros(atoms.count, bool)
    removed[heads[1, 0]] = True
    assert atoms.gone(channels, removed).tolist() == [False] * 3 + [True] * 3
    removed[columns[0, 0]] = True
    assert atoms.gone(channels, removed).tolist() == [True, False, False, True, True, True]


def test_splitting_a_product_again_finds_the_same_factors():
    atoms = Atoms()
    channels = atoms.fresh(6)
    first = atoms.split(channels, [2, 3])
    before = atoms.count
    second = atoms.split(channels, [2, 3])
    assert atoms.count == before
    assert [rows(atoms, axis) for axis in first] == [rows(atoms, axis) for axis in second]


def test_two_incompatible_splits_give_up_factors_instead_of_being_wrong():
    atoms = Atoms()
    channels = atoms.fresh(6)
    atoms.split(channels, [2, 3])
    a, b = atoms.split(channels, [3, 2])
    flat = atoms.flatten([a, b], [3, 2])
    left = [set()] * 6 if flat is None else rows(atoms, flat)
    assert left == rows(atoms, channels)


def test_three_h_heads_and_h_heads_of_three_k_columns_agree():
    """A grouped convolution over 3h groups of k, then a chunk into q, k, v of h heads."""
    atoms = Atoms()
    channels = atoms.fresh(12)
    groups, columns = atoms.split(channels, [6, 2])
    heads, wide = atoms.split(channels, [2, 6])
    assert rows(atoms, atoms.flatten([groups, columns], [6, 2])) == rows(atoms, atoms.flatten([heads, wide], [2, 6]))
    assert any(rows(atoms, channels)[0])


def test_flatten_is_row_major():
    atoms = Atoms()
    a, b = atoms.fresh(2), atoms.fresh(3)
    assert rows(atoms, atoms.flatten([a, b], [2, 3])) == [{i, j} for i in (1, 2) for j in (3, 4, 5)]
    assert rows(atoms, atoms.flatten([a, None], [2, 3])) == [{1}] * 3 + [{2}] * 3


def test_unify_never_loses_a_tie_on_random_partitions():
    """Two independent implementations: numpy labels against a union-find written out."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        atoms, parent = Atoms(), {}
        axes = [atoms.fresh(8) for _ in range(5)]

        def find(x, parent=parent):
            while parent.get(x, x) != x:
                x = parent[x]
            return x

        for _ in range(6):
            a, b = rng.choice(5, 2, replace=False)
            p, q = rng.permutation(8)[:4], rng.permutation(8)[:4]
            atoms.unify(axes[a][p], axes[b][q], "test")
            for x, y in zip(axes[a][p, 0].tolist(), axes[b][q, 0].tolist(), strict=True):
                x, y = sorted((find(x), find(y)))
                parent[y] = x
        every = [x for axis in axes for x in axis[:, 0].tolist()]
        for x in every:
            assert atoms.canon(np.array([[x]])).item() == find(x)
