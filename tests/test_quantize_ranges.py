"""Each activation's range is the one with which what follows is computed best."""

from __future__ import annotations

import numpy as np
import pytest

from deploypruner.quantize.choose_ranges import Histogram, choose_ranges
from deploypruner.quantize.layers import layers_of
from tests.int8_nets import Net, graph_of


def test_candidates_by_hand():
    """A million values from 0 to 1 in equal numbers and ten at 100: percentiles cut the ten off, min-max does not."""
    found = Histogram(0.0, 100.0)
    found.add(np.linspace(0, 1, 1_000_000))
    found.add(np.full(10, 100.0))
    ranges = found.candidates()
    assert ranges["minmax"] == (0.0, 100.0)
    assert ranges["percentile 99.9"][1] == pytest.approx(1.0, abs=0.2)
    assert ranges["percentile 99.999"][1] == 100.0  # of ten in a million, half of one in 100 000 stays
    assert ranges["mse"][1] < 100
    assert all(low <= 0 <= high for low, high in ranges.values())
    assert found.mean_square((0.0, 100.0)) > found.mean_square(ranges["mse"])


def test_an_outlier_that_no_layer_looks_at_is_cut_off_and_one_that_counts_is_not():
    """Channel 0 has values to 100, channel 1 to 1; the layer reads one of them."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (64, 2, 4, 4)).astype(np.float32)
    x[:2, 0] *= 100
    chosen = {}
    for weights in ([0.0, 1.0], [1.0, 0.0]):
        net = Net(["n", 2, 4, 4])
        model = net.model(net.add("Conv", "x", net.keep(np.reshape(weights, (1, 2, 1, 1)))))
        graph = graph_of(model)
        layers = layers_of(graph, list(graph))
        found = {"x": Histogram(0.0, 100.0)}
        found["x"].add(x)
        (choice,) = choose_ranges(model, layers, found, [[x]], others=()).values()
        chosen[weights[0]] = choice
    assert chosen[0.0].range[1] < 90
    assert chosen[0.0].error < 0.8
    assert chosen[1.0].range[1] == pytest.approx(100, rel=0.1)
