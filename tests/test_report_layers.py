"""Layers in numbers: what bounds them, names that can be pasted, samples as a picture."""

import re

import numpy as np
import pytest
import torch

from deploypruner.build.layer_table import layer_weights
from deploypruner.channels.constraints import parameters_named
from deploypruner.errors import RecipeError
from deploypruner.export.to_onnx import Onnx
from deploypruner.graph import trace
from deploypruner.measure.statistics import histogram
from deploypruner.records import SampleHistogram
from deploypruner.report import LayerWidth, render_html
from deploypruner.report.bars import histogram as picture
from deploypruner.report.layers import breakable, layer_table
from deploypruner.report.roofline import bounds
from tests.builds import IMAGE, Tiny, tiny
from tests.test_report_examples import a_report


def a_layer(name, macs, params, ms):
    return LayerWidth(name, "conv", 64, 32, macs=(2 * macs, macs), params=(2 * params, params), ms=(2 * ms, ms))


def test_a_layer_is_bound_by_what_it_has_most_of_beside_the_best_layer():
    """Rates a ms: MACs 100, 10 and 5 of 100; weights 1, 10 and 0.1 of 10."""
    layers = [a_layer("a", 100, 1, 1.0), a_layer("b", 10, 10, 1.0), a_layer("c", 50, 1, 10.0)]
    unknown = LayerWidth("d", "conv", 8, 8)
    assert [layer.bound for layer in bounds([*layers, unknown])] == ["compute", "memory", "overhead", ""]
    assert bounds([unknown]) == (unknown,)


def test_the_table_has_times_only_where_something_was_timed():
    layers = (a_layer("layer1.conv", 3_000_000, 1000, 0.25), a_layer("fc", 1000, 1000, 0.75))
    table = layer_table(layers)
    assert [head for head, _ in table.heads][5:8] == ["dense", "pruned", "share"]
    assert [cell.text for cell in table.lines[0]][2:8] == [
        *("64 → <b>32</b>", "6.00 M → <b>3.00 M</b>", "2.00 k → <b>1.00 k</b>", "0.500", "0.250", "25.0 %"),
    ]
    assert [line[6].key for line in table.lines] == [0.25, 0.75]
    without = layer_table([LayerWidth("a", "conv", 4, 4), LayerWidth("b", "conv", 4, 0, branch="b")])
    assert [head for head, _ in without.heads] == ["layer", "kind", "channels", "MACs", "params"]
    assert without.lines[1][2].text == "4 → <b>gone</b>"


def test_a_name_is_broken_between_its_words_and_copied_whole():
    name = "features.a_module<b>.conv"
    assert str(breakable(name)) == "features.<wbr>a_<wbr>module&lt;b&gt;.<wbr>conv"
    assert re.sub("<wbr>", "", str(breakable("x.weight:0"))) == "x.weight:0"


class Deep(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(Tiny().body for _ in range(5))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def test_names_of_tables_can_be_pasted_into_exclude():
    graph = trace(Deep(), torch.zeros(1, 16, 8, 8))
    printed = "blocks.0-1,3.weight:0"
    assert parameters_named(graph, [printed])[printed] == {f"blocks.{i}.weight" for i in (0, 1, 3)}
    for group in graph.groups:
        assert parameters_named(graph, [group.id])[group.id] == {group.id.rpartition(":")[0]}
    with pytest.raises(RecipeError, match=r"no module of this model matches 'blocks\.7-9'"):
        parameters_named(graph, ["blocks.7-9"])


def test_samples_are_a_histogram_to_twice_the_median():
    found = histogram(np.array([[1, 1, 1, 1], [2, 2, 2, 30]], np.int64) * 1_000_000)
    assert (found.low_ms, found.high_ms, sum(found.counts)) == (1.0, 3.0, 8)
    assert (found.counts[0], found.counts[10], found.counts[-1]) == (4, 3, 1)
    assert sum(histogram(np.full((3, 2), 5_000_000)).counts) == 6
    drawn = str(picture(SampleHistogram(1.0, 3.0, (4, 0, 1))))
    assert drawn.count("<rect") == 2
    assert "5 samples, 1.00 to 3.00 ms" in drawn
    assert picture(None) == ""


def test_layers_of_a_file_are_known_by_the_weights_that_they_read(tmp_path):
    path = tmp_path / "a.onnx"
    Onnx().write(tiny(), (torch.zeros(1, *IMAGE),), path, dynamic_batch=True)
    assert sorted(layer_weights(path).values()) == ["body.weight", "head.weight", "stem.weight"]


def test_a_thousand_layers_are_one_page_of_less_than_a_megabyte():
    layers = tuple(a_layer(f"blocks.{i}.mlp.fc1", 1000 + i, 10, 0.01) for i in range(1000))
    page = render_html(a_report(layers=layers))
    assert page.count('data-key="0.01"') == 1000
    assert page.count('<svg class="bar"') < 100
    assert len(page) < 1_000_000
