"""Int8 or float for every layer: times and errors that a reader can add up."""

from __future__ import annotations

import itertools

import pytest

from deploypruner.search.precision import (
    LayerCosts,
    border_ms,
    by_worth,
    fastest_mix,
    fewest,
    without_losing_islands,
)

LAYERS = ("a", "b", "c", "d")


def costs(*, border: float = 0.1, **int8: float) -> LayerCosts:
    """A chain of four layers of 1 ms each in float."""
    return LayerCosts(
        as_float=dict.fromkeys(LAYERS, 1.0),
        as_int8={layer: int8.get(layer, 0.5) for layer in LAYERS},
        borders=dict.fromkeys(itertools.pairwise(LAYERS), border),
    )


def test_the_time_of_a_mix_is_that_of_its_layers_and_of_every_border():
    found = costs(b=1.5)
    assert found.ms(()) == pytest.approx(0.5 + 1.5 + 0.5 + 0.5)
    assert found.ms(LAYERS) == pytest.approx(4.0)
    assert found.ms({"b"}) == pytest.approx(0.5 + 1.0 + 0.5 + 0.5 + 2 * 0.1)
    assert found.ms({"a", "b"}) == pytest.approx(1.0 + 1.0 + 0.5 + 0.5 + 0.1)


def test_a_layer_that_is_slower_in_int8_stays_float_without_being_asked():
    assert fastest_mix(costs(b=1.5), LAYERS) == {"b"}
    assert fastest_mix(costs(), LAYERS) == frozenset()


def test_an_island_that_costs_more_at_its_borders_than_it_gives_is_joined():
    assert fastest_mix(costs(b=1.15), LAYERS) == frozenset()  # saves 0.15, and two borders are 0.2
    # b and d save 0.5 each; c would save 0.05 as int8 and needs two borders more for it.
    assert fastest_mix(costs(b=1.5, d=1.5, c=0.95), LAYERS) == {"b", "c", "d"}


def test_a_difference_that_noise_can_make_is_none():
    assert fastest_mix(costs(border=0.0, b=1.04), LAYERS) == frozenset()
    assert not costs(b=1.04).slower("b")
    assert costs(b=1.06).slower("b")


def test_forced_layers_stay_float_and_what_lies_between_them_joins_if_that_is_faster():
    assert fastest_mix(costs(), LAYERS, forced={"b"}) == {"b"}
    assert fastest_mix(costs(c=0.9), LAYERS, forced={"b", "d"}) == {"b", "c", "d"}  # 0.1 saved, 0.2 of borders


def test_an_island_that_does_not_pay_as_it_was_measured_goes_back_to_int8():
    found = costs(b=1.5)
    paid = {"a": 0.6, "b": 1.0, "c": 0.6, "d": 0.5}  # 2.2 of the three around it, 2.5 before
    lost = {"a": 0.9, "b": 1.0, "c": 0.7, "d": 0.5}  # 2.6
    assert without_losing_islands(frozenset("b"), found, paid) == {"b"}
    assert without_losing_islands(frozenset("b"), found, lost) == frozenset()
    assert without_losing_islands(frozenset("b"), found, lost, forced={"b"}) == {"b"}


def test_layers_become_float_by_error_for_each_millisecond_of_int8():
    errors = {"a": 0.12, "b": 0.3, "c": 0.2, "d": 0.0}
    found = costs(b=0.7, a=0.9, d=1.2)  # int8 saves 0.1, 0.3, 0.5, -0.2
    # 0.12 / 0.1, 0.3 / 0.3, 0.2 / 0.5; d would cost no time in float, and no error in int8.
    assert by_worth(LAYERS, errors, found) == ["a", "b", "c", "d"]
    assert by_worth(LAYERS, {**errors, "d": 0.01}, found) == ["d", "a", "b", "c"]  # 0.01 / 0.001
    assert by_worth(LAYERS, errors, None) == ["b", "c", "a", "d"]


@pytest.mark.parametrize("needed", range(1, 20))
def test_the_fewest_float_layers_are_found_in_a_few_trials(needed):
    tried = []

    def keeps(count: int) -> bool:
        tried.append(count)
        return count >= needed

    assert fewest(20, keeps) == needed
    assert len(tried) <= 10
    assert len(set(tried)) == len(tried)


def test_where_only_all_float_would_do_there_is_no_mix():
    assert fewest(20, lambda count: False) is None
    assert fewest(1, lambda count: False) is None


def test_a_conversion_is_expected_to_take_time_by_its_numbers():
    assert border_ms("openvino", {("a", "b"): 1_000_000}) == {("a", "b"): pytest.approx(0.202)}
    assert border_ms("onnxruntime", {("a", "b"): 1_000_000}) == {("a", "b"): pytest.approx(0.902)}
