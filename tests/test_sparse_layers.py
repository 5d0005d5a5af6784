"""Which layers follow a sparse pattern: found in any traced model, chosen by kind and by name."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from deploypruner.errors import InputError, RecipeError
from deploypruner.graph import Graph, trace
from deploypruner.recipe.sparse import SparseSettings
from deploypruner.sparsity.patterns import make_pattern
from deploypruner.sparsity.training.layers import check_sizes, choose_layers, weighted_layers


class Zoo(nn.Module):
    """One layer of every kind, an embedding that shares its weight, and an attention in between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.depth = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.point = nn.Conv2d(8, 12, 1)
        self.grouped = nn.Conv2d(12, 12, 3, 1, 1, groups=3)
        self.up = nn.ConvTranspose2d(12, 12, 2, 2)
        self.table = nn.Embedding(5, 12)
        self.tied = nn.Linear(12, 5, bias=False)
        self.tied.weight = self.table.weight
        self.mix = nn.Linear(12, 12)
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 4)
        self.other_head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.grouped(self.point(self.depth(self.stem(x)).relu()).relu())
        x = self.up(x).flatten(2).transpose(1, 2)
        x = x + self.table(torch.arange(x.shape[1], device=x.device) % 5)
        scores = self.tied(x).softmax(-1).mean(-1, keepdim=True)
        x = self.norm(x + self.mix(x) * scores).mean(1)
        return self.head(x), self.other_head(x)


@functools.cache
def zoo() -> Graph:
    """Traced once; choosing layers leaves it as it is."""
    return trace(Zoo().eval(), (torch.randn(2, 3, 8, 8),))


def test_kinds_are_found_whatever_the_model() -> None:
    kinds = {layer.name: layer.kind for layer in weighted_layers(zoo())}
    assert kinds == {
        "stem": "stem",
        "depth": "depthwise",
        "point": "1x1",
        "grouped": "conv",
        "mix": "linear",
        "head": "classifier",
        "other_head": "classifier",
    }


def test_stem_depthwise_and_classifier_stay_dense_unless_asked() -> None:
    graph = zoo()
    assert [layer.name for layer in choose_layers(graph, SparseSettings())] == ["point", "grouped", "mix"]
    every = SparseSettings(layers=("stem", "depthwise", "classifier", "1x1"))
    assert [layer.name for layer in choose_layers(graph, every)] == ["stem", "depth", "point", "head", "other_head"]
    assert [layer.name for layer in choose_layers(graph, SparseSettings(layers=("1x1",)))] == ["point"]


def test_names_narrow_the_choice() -> None:
    graph = zoo()
    assert [layer.name for layer in choose_layers(graph, SparseSettings(only=("mi*", "point")))] == ["point", "mix"]
    assert [layer.name for layer in choose_layers(graph, SparseSettings(exclude=("po*", "mix")))] == ["grouped"]


def test_the_multiply_adds_of_a_layer_are_those_of_one_sample() -> None:
    found = {layer.name: layer.macs for layer in weighted_layers(zoo())}
    assert found["point"] == 8 * 12 * 4 * 4
    assert found["mix"] == 12 * 12 * 64


def test_residual_streams_to_the_output_have_no_other_classifier_than_the_last_layer() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            x = x + self.b(x).relu()
            return x + self.c(x).relu()

    kinds = [layer.kind for layer in weighted_layers(trace(Features().eval(), (torch.randn(2, 8),)))]
    assert kinds == ["stem", "linear", "classifier"]


def test_a_name_that_matches_nothing_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"no convolution or linear layer .* 'pint'[\s\S]*did you mean 'point'"):
        choose_layers(zoo(), SparseSettings(only=("pint",)))


def test_a_model_without_a_layer_of_the_kinds_asked_for_is_refused_with_what_it_has() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    with pytest.raises(InputError, match=r"it has 1 stem, 1 classifier, and --sparse-layers says 1x1, conv, linear"):
        choose_layers(trace(net, (torch.randn(2, 4),)), SparseSettings())


def test_sizes_a_pattern_does_not_divide_are_refused_or_said_with_the_layer() -> None:
    net = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    graph = trace(net, (torch.randn(2, 4),))
    layers = choose_layers(graph, SparseSettings())
    with pytest.raises(RecipeError, match=r"'2': 10 inputs are no multiple of 4, which pattern 2:4 needs"):
        check_sizes(graph.module, layers, make_pattern("2:4"))
    assert check_sizes(graph.module, layers, make_pattern("1x4")) == [
        "'2': 10 inputs are no multiple of 4: the last block of each row holds 2"
    ]
    assert check_sizes(graph.module, layers, make_pattern("unstructured")) == []
