"""A pattern's mask is the best its shape allows, in the layout the kernels read, at exactly the count asked for."""

from __future__ import annotations

from itertools import combinations, product

import pytest
import torch
from torch import Tensor

from deploypruner.errors import RecipeError
from deploypruner.recipe.sparse import DISTRIBUTIONS
from deploypruner.sparsity.patterns import as_weight, by_tap, make_pattern, patterns, sparse_patterns
from deploypruner.sparsity.patterns.distribution import units_to_keep

NAMES = [*(name for name in patterns if name != "N:M"), "2:4", "1:4"]
SHAPES = [(20, 72, 3, 3), (16, 64, 1, 1), (33, 128), (8, 12, 5)]


def saliency(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.01


def at(name: str, values: Tensor, sparsity: float = 0.75) -> tuple[int, Tensor]:
    pattern = make_pattern(name)
    keep = units_to_keep(pattern, [values], sparsity, distribution="uniform")[0]
    return keep, pattern.units(values).mask(values, keep)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_weight_is_in_one_unit_and_the_mask_keeps_whole_units(name: str, shape: tuple[int, ...]) -> None:
    values = saliency(*shape)
    units = make_pattern(name).units(values)
    assert int(units.sizes().sum()) == values.numel()
    assert int(units.sizes().min()) >= 1
    keep, mask = at(name, values)
    whole = units.total(mask.double())
    assert bool(((whole == 0) | (whole == units.sizes())).all())
    assert bool(((whole > 0).sum(dim=1) == keep).all())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_sparsity_is_never_below_what_was_asked_and_within_a_unit_of_it(
    name: str, shape: tuple[int, ...]
) -> None:
    values = saliency(*shape)
    _, mask = at(name, values, 0.75)
    zeros = int((~mask).sum())
    asked = round((make_pattern(name).sparsity or 0.75) * values.numel())
    assert asked <= zeros <= asked + int(make_pattern(name).units(values).sizes().max())


@pytest.mark.parametrize("name", NAMES)
def test_relabelling_outputs_relabels_the_mask(name: str) -> None:
    values = saliency(16, 8, 3)
    drawn = torch.Generator().manual_seed(1)
    order = torch.arange(1)
    for size in (4, 2, 2):  # groups of four outputs, and in them of two, which some patterns keep together
        order = torch.cat([size * index + torch.randperm(size, generator=drawn) for index in order])
    assert torch.equal(at(name, values[order])[1], at(name, values)[1][order])


def best_by_enumeration(values: Tensor, allowed: list[Tensor]) -> float:
    return max(float(values[mask].sum()) for mask in allowed)


def test_unstructured_keeps_the_largest() -> None:
    values = saliency(2, 4)
    keep, mask = at("unstructured", values, 0.5)
    choices = [
        torch.zeros(8, dtype=torch.bool).index_fill(0, torch.tensor(c), True) for c in combinations(range(8), 4)
    ]
    assert keep == 4
    assert float(values[mask].sum()) == best_by_enumeration(values, [c.view(2, 4) for c in choices])


def test_n_of_m_keeps_the_largest_of_every_run() -> None:
    values = saliency(1, 8)
    _, mask = at("2:4", values)
    runs = [torch.zeros(4, dtype=torch.bool).index_fill(0, torch.tensor(c), True) for c in combinations(range(4), 2)]
    allowed = [torch.cat(pair)[None] for pair in product(runs, runs)]
    assert float(values[mask].sum()) == best_by_enumeration(values, allowed)


def test_blocks_keep_the_largest_sums() -> None:
    values = saliency(3, 8)
    keep, mask = at("1x4", values, 0.5)
    allowed = []
    for blocks in combinations(range(6), 3):
        chosen = torch.zeros(6, dtype=torch.bool).index_fill(0, torch.tensor(blocks), True)
        allowed.append(chosen.repeat_interleave(4).view(3, 8))
    assert keep == 3
    assert float(values[mask].sum()) == pytest.approx(best_by_enumeration(values, allowed))


def test_blocks_of_four_outputs_keep_the_largest_sums_and_the_last_group_is_narrower() -> None:
    values = saliency(6, 8)  # groups of 4 and of 2 outputs, two blocks each
    mask = make_pattern("4x4").units(values).mask(values, 2)
    parts = [values[rows, columns] for rows in (slice(0, 4), slice(4, 6)) for columns in (slice(0, 4), slice(4, 8))]
    best = max(float(one.sum() + other.sum()) for one, other in combinations(parts, 2))
    assert float(values[mask].sum()) == pytest.approx(best)
    assert torch.equal(mask[0], mask[3])
    assert torch.equal(mask[4], mask[5])


def test_a_last_output_alone_has_blocks_of_its_own_where_others_come_in_pairs() -> None:
    values = saliency(3, 8)  # a pair and one output, two blocks each
    mask = make_pattern("2x4").units(values).mask(values, 2)
    parts = [values[rows, columns] for rows in (slice(0, 2), slice(2, 3)) for columns in (slice(0, 4), slice(4, 8))]
    best = max(float(one.sum() + other.sum()) for one, other in combinations(parts, 2))
    assert float(values[mask].sum()) == pytest.approx(best)
    assert torch.equal(mask[0], mask[1])


@pytest.mark.parametrize(("name", "outputs", "kept"), [("2x4", 2, 81), ("4x4", 4, 40)])
def test_outputs_share_their_blocks_at_every_tap(name: str, outputs: int, kept: int) -> None:
    values = saliency(12, 20, 3, 3)
    keep, mask = at(name, values, 0.7)
    blocks = by_tap(mask).reshape(12 // outputs, outputs, 9, 5, 4)
    assert torch.equal(blocks, blocks[:, :1, :, :, :1].expand_as(blocks))
    assert keep == kept  # of 270 blocks of 8 weights, 0.3 * 2160 / 8 = 81; of 135 of 16, 0.3 * 2160 / 16 = 40.5
    assert make_pattern(name).ragged(10) == "10 inputs are no multiple of 4: the last block of each row holds 2"


@pytest.mark.parametrize("keep", [1, 2, 3, 5])
def test_nm64_keeps_the_largest_sum_that_any_numbers_of_steps_allow(keep: int) -> None:
    # Two blocks of 16 outputs (the second with 2), two windows (the second of 8 inputs): steps per block 16 and 2.
    values = saliency(18, 72)
    mask = make_pattern("nm64").units(values).mask(values, keep)

    def value(block: int, window: int, steps: int) -> float:
        part = values[16 * block : 16 * block + 16, 64 * window : 64 * window + 64]
        return float(part.sort(dim=1, descending=True).values[:, : 4 * steps].sum())

    cells = list(product(range(2), range(2)))
    best = max(
        sum(value(block, window, n) for (block, window), n in zip(cells, steps, strict=True))
        for steps in product(range(keep + 1), repeat=4)
        if sum(steps) == keep and steps[1] <= 2 and steps[3] <= 2
    )
    assert float(values[mask].sum()) == pytest.approx(best)


def test_nm64_has_the_same_count_in_all_rows_of_a_block_and_window_at_one_tap() -> None:
    values = saliency(32, 128, 3, 3)
    _, mask = at("nm64", values, 0.7)
    counts = by_tap(mask).reshape(2, 16, 9, 2, 64).sum(dim=4)
    assert torch.equal(counts, counts[:, :1].expand_as(counts))
    assert set((counts % 4).unique().tolist()) == {0}
    assert len(counts.unique()) > 1


def test_runs_of_inputs_are_neighbours_at_one_tap() -> None:
    values = torch.zeros(1, 8, 1, 2)
    values[0, 4:, 0, 1] = 1.0  # the second block of the second tap
    mask = make_pattern("1x4").units(values).mask(values, 1)
    assert torch.equal(mask, values.bool())
    assert torch.equal(as_weight(by_tap(values), values.shape), values)


def test_equal_units_stay_in_order() -> None:
    assert at("unstructured", torch.ones(1, 4), 0.5)[1].tolist() == [[True, True, False, False]]


def test_global_takes_one_threshold_and_uniform_one_sparsity() -> None:
    small, large = saliency(8, 8), saliency(8, 8, seed=1) + 10
    pattern = make_pattern("unstructured")
    assert units_to_keep(pattern, [small, large], 0.5, distribution="uniform") == [32, 32]
    assert units_to_keep(pattern, [small, large], 0.5, distribution="global") == [1, 64]
    joined = torch.cat([small.flatten(), large.flatten()])
    counts = units_to_keep(pattern, [small, large], 0.25, distribution="global")
    threshold = joined.sort(descending=True).values[95]
    assert counts == [int((small >= threshold).sum()), int((large >= threshold).sum())]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_n_of_m_is_the_same_in_every_layer(distribution: str) -> None:
    layers = [saliency(4, 8), saliency(4, 8) + 10]
    assert units_to_keep(make_pattern("1:4"), layers, 0.9, distribution=distribution) == [1, 1]


def test_ninety_percent_of_a_thousand_leaves_a_hundred() -> None:
    assert units_to_keep(make_pattern("unstructured"), [saliency(10, 100)], 0.9, distribution="uniform") == [100]


def test_a_list_names_one_sparse_pattern_beside_channel() -> None:
    assert sparse_patterns(("channel",)) == ()
    assert [str(p) for p in sparse_patterns(("channel", "2:4"))] == ["2:4"]
    assert next(iter(patterns.describe())) == "channel"
    assert all(str(make_pattern(name)) == name for name in NAMES)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("nm46",), r"no pattern called 'nm46'[\s\S]*did you mean 'nm64'\?"),
        (("N:M",), r"no pattern called 'N:M'"),
        (("4:4",), r"pattern 4:4 must keep at least 1 and fewer than 4 of 4 weights"),
        (("0:4",), r"pattern 0:4 must keep"),
        (("2:4", "nm64"), r"one sparse pattern, not 2:4 and nm64"),
        (("2:4", "2:4"), r"names '2:4' twice"),
        ((), r"names nothing"),
    ],
)
def test_names_that_make_no_pattern_are_refused(names: tuple[str, ...], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        sparse_patterns(names)


def test_n_of_m_refuses_inputs_it_does_not_divide_and_others_say_what_they_do() -> None:
    with pytest.raises(RecipeError, match=r"10 inputs are no multiple of 4, which pattern 2:4 needs"):
        make_pattern("2:4").units(saliency(4, 10))
    assert make_pattern("1x4").ragged(10) == "10 inputs are no multiple of 4: the last block of each row holds 2"
    assert make_pattern("nm64").ragged(66) == "66 inputs are no multiple of 4: the last step of each window holds 2"
    assert [make_pattern(name).ragged(64) for name in NAMES] == [""] * len(NAMES)
