"""The rank correlation of criteria with the oracle, in numbers and on the command line."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deploypruner.build.criterion import normalizer_name
from deploypruner.channels.criteria import criteria
from deploypruner.channels.criteria.magnitude import Magnitude
from deploypruner.channels.criteria.oracle import Oracle
from deploypruner.channels.criteria.random import Random
from deploypruner.channels.rank_agreement import Agreement, agreements, rank_correlation, table
from deploypruner.channels.statistics import score_groups
from deploypruner.graph import trace
from deploypruner.recipe import PruneRecipe
from tests.builds import run_cli
from tests.nets import make


def test_rank_correlation_by_hand():
    """Ranks 1 2 3 4 against 2 1 4 3: 1 - 6 * 4 / (4 * 15)."""
    a, b = torch.tensor([0.1, 2.0, 30.0, 400.0]), torch.tensor([5.0, 4.0, 7.0, 6.0])
    assert rank_correlation(a, b) == pytest.approx(0.6)
    assert rank_correlation(a, -a) == pytest.approx(-1.0)


def test_a_constant_side_has_no_rank_correlation():
    assert rank_correlation(torch.ones(3), torch.arange(3.0)) is None
    assert rank_correlation(torch.ones(1), torch.ones(1)) is None


def test_the_oracle_agrees_with_itself_and_comes_first():
    net, x = make("vgg")
    graph = trace(net, x)
    graph = replace(graph, groups=graph.groups[:1])
    named = {"magnitude": Magnitude(), "random": Random(), "oracle": Oracle(batches=1)}
    done: list[str] = []
    found = agreements(graph, named, [((x,), torch.tensor([1, 3]))], on_done=done.append)
    assert (found[0].criterion, found[0].pooled, found[0].within) == ("oracle", pytest.approx(1), pytest.approx(1))
    assert done == ["oracle", *named]


def test_a_known_truth_is_compared_with_and_not_computed_again():
    graph = trace(*make("vgg"))
    batches = [((make("vgg")[1],), torch.tensor([1, 3]))]
    truth = {group: -scores for group, scores in score_groups(graph, Magnitude(), None).items()}
    done: list[str] = []
    (found,) = agreements(graph, {"magnitude": Magnitude()}, batches, truth=truth, on_done=done.append)
    assert (found.within, done) == (pytest.approx(-1), ["magnitude"])


def test_the_table_has_one_line_per_criterion_and_a_dash_for_what_there_is_not():
    lines = table([Agreement("taylor", 0.914, 0.85, 1.5), Agreement("flat", None, None, 0.1)]).splitlines()
    assert lines[2].split() == ["taylor", "0.91", "0.85", "1.50"]
    assert lines[3].split() == ["flat", "-", "-", "0.10"]


def test_the_command_prints_the_table():
    done = run_cli(
        *("criteria-check", "tiny.pt2", "--data", "labelled.npz", "--samples", "16"),
        *("--criterion", "taylor", "--criterion", "random"),
    )
    assert done.code == 0, done.err
    assert {line.split()[0] for line in done.out.splitlines()[2:]} == {"taylor", "random"}


def test_the_command_compares_everything_that_scores_before_training():
    done = run_cli("criteria-check", "tiny.pt2", "--data", "labelled.npz", "--samples", "8")
    assert done.code == 0, done.err
    assert {line.split()[0] for line in done.out.splitlines()[2:]} == set(criteria) - {"oracle", "pdp", "dtp"}


def test_the_command_offers_the_nearest_criterion():
    done = run_cli("criteria-check", "tiny.pt2", "--data", "labelled.npz", "--criterion", "taylr")
    done.assert_error(2, "no criterion called 'taylr'", "did you mean 'taylor'?")


def test_normalizers_and_scopes_can_be_listed():
    for kind, known in (("normalizers", "lamp"), ("scopes", "isomorphic"), ("criteria", "oracle")):
        done = run_cli("list", kind)
        assert (done.code, known in {line.split()[0] for line in done.out.splitlines()}) == (0, True)


def test_the_normalizer_is_the_criterions_unless_the_recipe_names_one():
    assert normalizer_name(PruneRecipe(), "taylor") == "per_mac"
    assert normalizer_name(PruneRecipe(normalizer="lamp"), "taylor") == "lamp"


def test_the_command_line_sets_the_normalizer():
    done = run_cli("plan", "tiny.pt2", "--normalizer", "lanp")
    done.assert_error(2, "no normalizer called 'lanp'", "did you mean 'lamp'?")
