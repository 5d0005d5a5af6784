"""What graphs, plans and builds look like in a notebook or at a prompt: a line, and a table."""

import re
from html import unescape

import numpy as np
import pytest
import torch

import deploypruner as dp
from deploypruner.compiled import CompiledBuild
from deploypruner.figures import scaled
from deploypruner.notebook import html_table
from deploypruner.records import Member
from tests.builds import IMAGE, tiny
from tests.test_report_examples import a_report


@pytest.fixture(scope="module")
def graph():
    return dp.trace(tiny(), torch.zeros(2, *IMAGE))


def test_numbers_are_short():
    assert [scaled(n) for n in (27_182_000, 1234, 12, 2.5e9)] == ["27.2 M", "1.23 k", "12", "2.50 G"]


def test_a_table_is_escaped_and_of_many_rows_the_first_are_shown():
    text = html_table("<a>", ("x", "y"), [("<b>", i) for i in range(203)])
    assert "<a>" not in text
    assert text.count("&lt;b&gt;") == 200
    assert text.endswith("<p>and 3 more</p>")


def test_a_graph_and_its_groups_are_a_line_each(graph):
    cost = graph.cost()
    assert f"{scaled(cost.macs)} MACs" in repr(graph)
    for group in graph.groups:
        assert len(repr(group)) < 200
        assert repr(group).startswith(f"Group('{group.id}', {group.size} channels, {len(group.members)} members")
        assert all(len(repr(member)) < 150 for member in group.members)
        assert group.id in graph._repr_html_()
    assert repr(Member("a.weight", 1, np.zeros((4, 9), np.int64))) == "Member('a.weight', axis 1, 4 channels of 9)"


def test_a_plan_is_a_line_and_a_table_of_what_stays(graph):
    plan = dp.plan(graph, budget=dp.Budget(macs=0.5))
    assert "\n" not in repr(plan)
    assert f"({plan.macs_after / plan.macs_before:.3f})" in repr(plan)
    narrower = next(group for group in plan.groups if len(group.keep) < group.size)
    assert repr(narrower) == f"GroupPlan('{narrower.id}', {narrower.size} -> {len(narrower.keep)} channels)"
    assert f">{len(narrower.keep)}</td>" in plan._repr_html_()


def test_a_build_is_its_result_and_its_rows(graph, tmp_path):
    report = a_report()
    build = CompiledBuild(tmp_path, report, tiny(), dp.plan(graph, budget=dp.Budget(macs=0.5)))
    assert repr(build).startswith(f"CompiledBuild('{tmp_path}': pruned int8 on openvino: 0.880 -> 0.400 ms")
    page = build._repr_html_()
    assert page.count("<tr>") == 1 + len(report.rows)
    assert "report.html" in page


def test_the_report_of_a_build_is_inline_and_keeps_to_itself(graph, tmp_path):
    build = CompiledBuild(tmp_path, a_report(), tiny(), dp.plan(graph, budget=dp.Budget(macs=0.5)))
    assert "<iframe" not in build._repr_html_()  # its folder is gone
    (tmp_path / "report.html").write_text('<style>p {color: "red"}</style><p>±1</p>', encoding="utf-8")
    shown = build._repr_html_()
    (inside,) = re.findall(r'<details>.*<iframe srcdoc="([^"]*)"', shown)
    assert unescape(inside) == '<style>p {color: "red"}</style><p>±1</p>'
    assert "<style>" not in shown
