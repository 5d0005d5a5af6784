"""How a plan was chosen and what it lost: in the words of the terminal and of the page."""

import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from deploypruner.build.stages.allocate import Allocate
from deploypruner.records import Setting
from deploypruner.report import LayerWidth, from_json, headline, render_html, table, to_json, units
from deploypruner.report.chosen import branches_gone, chosen_sentence, objective_name, pool_lines
from deploypruner.search.found import SearchResult
from deploypruner.search.loop import Round
from deploypruner.search.pool import PoolEntry
from tests.test_report_examples import (
    EXAMPLES,
    a_cut_report,
    a_quality,
    a_report,
    a_time_budget,
    an_entry,
    eight_rows,
    page_of,
    ruined_rows,
)

RED = "\x1b[1;31m"
GONE = "3 residual branches gone: layer1.0-1, layer2.2"


def plain(page):
    """What a reader sees of a page, tags away."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.partition("</style>")[2]))


# ---------------------------------------------------------------------- sentences


def test_a_judged_plan_says_by_what_it_won_and_what_is_gone():
    text = "by measured worth, the best of 2 plans judged by loss before training"
    assert chosen_sentence(EXAMPLES["judged"]) == f"{text}; {GONE}"
    trained = a_time_budget(
        dropped=[], pool=[an_entry(trained=0.25), an_entry("scores", trained=0.5), an_entry("lamp")]
    )
    assert chosen_sentence(a_report(budget=trained)) == (
        "by measured worth, the best of 3 plans judged by loss before training, 2 of them after a brief training too"
    )


def test_the_plan_itself_is_judged_too_and_what_was_cut_for_want_of_time_is_said():
    dense = {"kind": "loss", "loss": 0.2438, "top1": 90.06, "samples": 512}
    judged = {"verdict": {**dense, "loss": 0.3125, "top1": 88.25}, "dense": dense, "allowed": None, "accepted": True}
    text = "by measured worth, the best of 2 plans judged by loss before training"
    has = "it has loss 0.312 and 88.2 % top-1 before training, the dense model 0.244 and 90.1 %"
    cut = "the time for the search (--search-minutes 2) ended: 6 of 16 plans judged"
    budget = a_time_budget(dropped=[], judged=judged, cut=cut)
    assert chosen_sentence(a_report(budget=budget)) == f"{text}; {has} top-1; {cut}"
    assert "it was judged in the same way, see above." in plain(render_html(a_report(budget=budget)))
    ruined = {**judged, "verdict": {**dense, "loss": None, "top1": 9.5}, "allowed": 3.0, "accepted": False}
    said = chosen_sentence(a_report(budget=a_time_budget(dropped=[], judged=ruined)))
    assert "it has loss that is not finite and 9.5 % top-1" in said
    assert said.endswith("more than the 3 points that may be lost without training")


def test_where_nothing_was_judged_the_sentence_says_what_decided_and_why():
    budget = a_time_budget(pool=[], judged_by="", objective="scores", dropped=["a.0"])
    assert chosen_sentence(a_report(budget=budget)) == (
        "by scores alone: without data no plan can be judged, so nothing is known about accuracy; "
        "1 residual branch gone: a.0"
    )
    with_data = a_report(budget={**budget, "dropped": []}, settings={"data": "digits"})
    assert chosen_sentence(with_data) == "by scores alone: no plan was judged before training"
    alone = a_time_budget(pool=[an_entry()], dropped=[])
    assert chosen_sentence(a_report(budget=alone)) == "by measured worth, the only plan there was to judge"


def test_a_budget_of_multiply_adds_or_an_older_report_has_no_such_sentence():
    old = {"kind": "speedup", "requested": 2.0, "measured": 2.1, "certified": 2.04, "met": True, "importance": 0.99}
    for report in (a_report(), a_report(budget=old), a_report(budget={})):
        assert chosen_sentence(report) == ""
        assert "chosen:" not in table(report, colour=False)
        assert "How the plan was chosen" not in render_html(report)


def test_names_of_branches_and_objectives():
    assert branches_gone([]) == ""
    assert branches_gone(["blocks.0.attn", "blocks.1.attn", "blocks.3.mlp"]) == (
        "3 residual branches gone: blocks.0-1.attn, blocks.3.mlp"
    )
    assert objective_name("scores, every branch kept") == "scores with every branch kept"
    assert objective_name("perturbed 3") == "worths changed at random (no. 3)"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "accuracy fell from 88.0 to 2.4 %, 85.6 points where 3 are allowed"),
        ({"pruned": 86.5, "lost": 1.5, "kept": True}, "accuracy 88.0 -> 86.5 %, 1.5 points lost where 3 are allowed"),
        ({"pruned": 88.5, "lost": -0.5, "kept": True}, "accuracy 88.0 -> 88.5 %, nothing lost where 3 are allowed"),
        (
            {"kind": "top-1", "dense": 100.0, "pruned": 50.0, "lost": 50.0, "allowed": 1.0},
            "agreement with the dense model (top-1) fell from 100.0 to 50.0 %, 50.0 points where 1 is allowed",
        ),
        (
            {"kind": "cosine", "dense": 100.0, "pruned": math.nan, "lost": math.nan, "allowed": 10.0},
            "agreement with the dense model (cosine) is not a number any more, where 10 points may be lost",
        ),
    ],
)
def test_what_was_lost_by_hand(changes, text):
    quality = a_quality(**changes)
    assert units.quality_sentence(quality) == text
    report = a_cut_report(a_time_budget(quality=quality))  # a NaN is null from here on
    assert units.quality_sentence(report.budget["quality"]) == text
    assert text in re.sub(r"\s+", " ", table(report, colour=False))


def test_the_pool_as_lines():
    budget = a_time_budget(
        objective="scores",
        pool=[an_entry("scores", trained=0.25), an_entry(loss=None, top1=None, dropped=[], full=False)],
    )
    first, second = pool_lines(budget)
    assert (first.objective, first.predicted, first.loss, first.top1, first.trained) == (
        *("scores", "0.412", "0.500", "84.2", "0.250"),
    )
    assert (first.gone, first.full, first.taken) == ("layer1.0-1", True, True)
    assert (second.loss, second.top1, second.trained) == ("not finite", "-", "")
    assert (second.gone, second.full, second.taken) == ("", False, False)


# ---------------------------------------------------------------------- the terminal


def test_a_ruined_model_is_refused_in_red_and_nothing_says_met():
    text = table(EXAMPLES["refused"], colour=True)
    lost = "accuracy fell from 88.0 to 2.4 %, 85.6 points where 3 are allowed"
    lines = text.splitlines()
    assert lines[2] == f"{RED}result: no pruned artifact is worth having: {lost}\x1b[0m"
    assert lines[3].startswith("next: deploypruner compile nets:resnet")
    # Faster than what it is compared with, not than the ruined model.
    assert any(line.startswith("note: Until then ship dense int8 on openvino: ") and " -> " in line for line in lines)
    (budget,) = (line for line in lines if line.startswith("budget:"))
    assert "requested 2.00x, measured 2.10x, certified 2.04x" in budget
    assert budget.endswith(f"{lost}: {RED}REFUSED\x1b[0m")
    assert not re.search(r"\bmet\b", text)


def test_a_kept_model_has_its_numbers_first_and_says_met_with_its_loss():
    lines = table(EXAMPLES["judged"], colour=False).splitlines()
    assert lines.index(next(x for x in lines if x.startswith("result:"))) > 5
    (number,) = (n for n, line in enumerate(lines) if line.startswith("budget:"))
    assert lines[number].endswith("accuracy 88.0 -> 86.5 %, 1.5 points lost where 3 are allowed: met")
    assert lines[number + 1] == f"chosen: {chosen_sentence(EXAMPLES['judged'])}"


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", ["judged", "refused", "unjudged"])
def test_sentences_are_wrapped_and_a_verdict_stays_in_one_piece(name, width):
    text = table(EXAMPLES[name], colour=False, width=width)
    assert max(map(len, text.splitlines())) <= width
    late = table(a_report(budget={**a_time_budget(), "met": None}), colour=False, width=width)
    assert "NOT CERTIFIED" in late
    assert "NOT_CERTIFIED" not in late


# ---------------------------------------------------------------------- the page


def test_the_refusal_is_the_first_thing_on_the_page_and_nothing_says_met():
    page = page_of("refused")
    words = plain(page)
    assert words.strip().startswith("REFUSED No pruned artifact is worth having: accuracy fell from 88.0 to 2.4 %")
    assert "<title>refused: resnet20" in page
    assert '<p class="headline failed">' in page
    assert page.count('<p class="headline') == 1
    assert not re.search(r"\bmet\b", words)
    # The row that is worth having is marked, and those that are not are marked too.
    assert page.count(">loses too much<") == 4
    assert page.count(">recommended<") == 1


def test_a_row_that_loses_too_much_is_marked_where_the_budget_is_kept_as_well():
    rows = tuple(replace(r, accuracy=60.0) if r.name == "pruned int8" else r for r in eight_rows())
    budget = a_time_budget(quality=a_quality(artifact="pruned fp32", pruned=86.5, lost=1.5, kept=True))
    assert render_html(a_cut_report(budget, rows=rows)).count(">loses too much<") == 2
    assert ">loses too much<" not in page_of("judged")
    assert ">loses too much<" not in page_of("unjudged")


def test_layers_that_are_gone_are_struck_and_counted_apart():
    page = page_of("judged").replace("<wbr>", "")
    assert re.findall(r'title="conv, gone with (layer1\.\d)"><del>([^<]*)</del>', page) == [
        ("layer1.0", "layer1.0.conv1"),
        ("layer1.1", "layer1.1.conv1"),
    ]
    assert page.count("64 → <b>gone</b>") == 4  # beside the bars, and in the table
    words = plain(page)
    assert "Layers narrowed 9 of 12; 2 are gone" in words
    assert "Residual branches gone 3 layer1.0-1, layer2.2" in words
    assert "Struck through" not in page_of("eight rows")


def test_the_pool_is_a_folded_table():
    page = page_of("judged")
    folded = page[page.index("All 2 plans that were judged") :].partition("</details>")[0]
    assert page.count("<details open") == 1  # the layers in numbers
    assert re.findall(r'<tr[^>]*><td>([^<]*)(?: <span class="tag met">taken</span>)?</td>', folded) == [
        "measured worth",
        "scores with every branch kept",
    ]
    assert folded.count(">taken<") == 1
    assert folded.count("<small>fewer images</small>") == 1
    assert '<td class="names">layer1.0-1</td>' in folded
    assert "judged before training" not in page_of("unjudged")
    assert "without data no plan can be judged" in page_of("unjudged")


def test_importance_is_not_sold_as_quality():
    words = plain(page_of("judged"))
    assert "importance by the criterion" in words
    assert "importance kept" not in words


def test_every_new_name_is_escaped():
    evil = "<script>alert('x & y')</script>"
    entry = an_entry(evil, dropped=[evil])
    budget = a_time_budget(objective=evil, judged_by=evil, dropped=[evil], pool=[entry, an_entry()])
    budget["quality"] = a_quality(kind=evil)
    layers = (LayerWidth("a", "conv", 8, 0, branch=f'"{evil}'),)
    page = render_html(replace(a_cut_report(budget, rows=ruined_rows()), layers=layers))
    assert page.count("<script") == 1  # ours, which sorts
    assert "gone with &#34;&lt;script&gt;" in page
    text = table(a_cut_report({**budget, "objective": "a\x1b[31m", "dropped": ["b\x07"]}), colour=False)
    assert not {"\x1b", "\x07"} & set(text)


# ---------------------------------------------------------------------- the stage's line


@pytest.mark.parametrize(
    ("judged", "dropped", "said"),
    [
        (
            16,
            ("layer1.0", "layer2.2"),
            "in 2 rounds, best of 16 plans judged, 2 branches gone, 20.00 -> 9.00 M MACs (0.450)",
        ),
        (1, ("layer1.0",), "in 2 rounds, best of 1 plan judged, 1 branch gone, 20.00 -> 9.00 M MACs (0.450)"),
        (0, (), "in 2 rounds, no plan judged, 20.00 -> 9.00 M MACs (0.450)"),
    ],
)
def test_the_stage_says_in_one_line_what_is_gone_and_what_was_judged(judged, dropped, said):
    entry = PoolEntry("scores", 1.0, 0.9, (), loss=0.1, top1=None, full=True)
    line = Round({}, importance=0.9, predicted_ms=1.0, measured_ms=1.1, measured=2.0, bound=1.9, met=True)
    found = SearchResult(
        Setting("openvino", "int8"), 2.0, 1.0, measured_ms=1.1, rounds=(line, line), pool=(entry,) * judged
    )
    plan = SimpleNamespace(groups=(), macs_before=20_000_000, macs_after=9_000_000, dropped=dropped)
    text = Allocate().document(SimpleNamespace(planned=plan, found=found))
    assert text == f"2 -> 1.1 ms (int8 on openvino, 1 thread) {said}"


# ---------------------------------------------------------------------- older files


def test_a_report_of_an_earlier_version_reads_and_renders():
    data = to_json(EXAMPLES["judged"])
    for name in ("quality", "dropped", "objective", "judged_by", "pool"):
        del data["budget"][name]
    for layer in data["layers"]:
        del layer["branch"]
    old = from_json(data)
    assert "2 are gone" in plain(render_html(old))
    assert "certified 2.04x: met" in table(old, colour=False)
    assert headline(old).recommended is not None
    data = to_json(EXAMPLES["judged"])
    for entry in data["budget"]["pool"]:
        del entry["trained"]
    assert render_html(from_json(data)) == page_of("judged")
