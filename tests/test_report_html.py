"""The page: self-contained, escaped, and pictures in which nothing hides anything."""

import itertools
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest

from deploypruner.records import ACCURACY, Check, Frozen
from deploypruner.report import LayerWidth, render_html
from deploypruner.report.axis import Axis, tick_labels
from deploypruner.report.bars import width_bars
from deploypruner.report.labels import Box, place_labels
from deploypruner.report.page import typeset
from deploypruner.report.scatter import cuts_zero_off, quality_axis, scatter, spread
from tests.test_report_examples import EXAMPLES, a_report, a_row, eight_rows, page_of, rows_on, without_labels

VOID = {"meta", "line", "rect", "circle", "wbr"}


class Page(HTMLParser):
    """Tags must nest; texts and attributes are kept."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.attributes = [], [], []
        self.feed(text)
        assert self.open == [], f"tags left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data):
        self.texts.append(data)


@pytest.mark.parametrize("name", EXAMPLES)
def test_tags_nest_and_nothing_comes_from_elsewhere(name):
    page = Page(page_of(name))
    names = {key for key, _ in page.attributes}
    assert names.isdisjoint({"src", "href", "xlink:href", "srcset"})
    assert not any("http" in (value or "") or "url(" in (value or "") for _, value in page.attributes)
    assert "@import" not in "".join(page.texts)


def test_every_name_is_escaped():
    evil = "<script>alert('x & y')</script>"
    report = a_report(
        (a_row(evil, pattern="dense"), a_row("pruned int8", median_ms=0.5, runtime=evil)),
        model={"name": evil, evil: evil},
        command=evil,
        layers=(LayerWidth(evil, evil, 8, 4),),
        frozen=(Frozen(evil, 0, 1, evil, evil),),
        verification=(Check(evil, 0.0, 1.0, True, evil),),
        warnings=(evil,),
        settings={evil: [evil]},
    )
    page = render_html(report)
    assert page.count("<script") == 1  # ours, which sorts
    assert page.count("&lt;script&gt;") >= 10


def test_the_headline_is_the_first_thing_said():
    page = render_html(a_report())
    sentence = re.search(r'<p class="headline good">(.*?)</p>', page).group(1)
    assert sentence.startswith("pruned int8 on openvino: 0.880 → 0.400\xa0ms: int8 1.5x, pruning 1.5x")
    assert page.count(">recommended<") == 1


def test_a_command_is_broken_between_words_only_and_copied_whole():
    command = "deploypruner compile nets:resnet --macs 0.3 --data 'my data'"
    page = render_html(a_report(command=command))
    shown = re.search(r'<pre class="command words">(.*?)</pre>', page).group(1)
    assert shown.startswith("<span>deploypruner</span> <span>compile</span>")
    assert unescape(re.sub("</?span>", "", shown)) == command


def test_columns_of_the_page_without_any_value_are_left_out():
    assert "p99" not in render_html(a_report())
    assert '<th scope="col">p99' in render_html(a_report((a_row(p99_ms=3.0),)))
    layer = {"name": "conv", "error": None, "times": {}, "precision": "int8", "reason": ""}
    file = {"file": "model.int8.onnx", "runtime": "", "int8": 1, "float": 0, "why": "all", "left_float": {}}
    found = {"layers": [layer], "files": [{**file, "float_all_the_same": {}}]}
    page = render_html(a_report(precision=found))
    assert "error of int8 alone" not in page
    assert '<th scope="col">why</th></tr></thead>\n<tbody>\n<tr><td>conv' not in page
    found["layers"][0].update(error=0.5, reason="it is slower")
    page = render_html(a_report(precision=found))
    assert re.search(
        r"<tr><td>conv</td><td class=\"number\">5.0e-01</td><td>int8</td><td>it is slower</td></tr>", page
    )


def test_settings_with_parts_are_one_line_a_part():
    steps = [{"name": "rounding", "done": "3 of 4 layers"}, {"name": "bias"}]
    page = render_html(a_report(settings={"quantization": {"dense": {"samples": 8}, "pruned": {"repair": steps}}}))
    assert "<dt>quantization, dense</dt><dd>samples=8</dd>" in page
    assert "<dd>repair=name=rounding, done=3 of 4 layers; name=bias</dd>" in page


def test_no_row_is_marked_recommended_when_none_is():
    assert ">recommended<" not in page_of("slower")
    assert "Nothing is faster than the dense fp32 model" in page_of("slower")
    assert ">recommended<" not in page_of("failed")
    assert "Verification failed: 1 of 1 checks disagree" in page_of("failed")


def test_frozen_channels_are_counted_by_reason():
    frozen = [Frozen(f"block{i}.weight", 0, 32, "mixed by a roll", f"net.py:{i}") for i in range(5)]
    page = render_html(a_report(frozen=(Frozen("fc.weight", 0, 10, "model output", ""), *frozen)))
    cells = re.findall(r"<tr><td>([^<]*)</td><td class=\"number\">(\d+)</td><td class=\"names\">([^<]*)", page)
    assert cells == [
        ("mixed by a roll", "160", "block0.weight, block1.weight, block2.weight and 2 more"),
        ("model output", "10", "fc.weight"),
    ]


def test_a_report_without_quality_has_no_scatter_and_says_so_in_the_headline():
    page = page_of("no quality")
    assert 'class="scatter"' not in page
    assert "accuracy not measured" in page


def test_the_scatter_shows_one_marker_per_row_with_its_shape_colour_and_fill():
    picture = str(scatter(eight_rows(), width=760, height=400))
    marks = re.findall(r'class="mark (\w+) (\w+)" (cx|x)=', picture)
    assert len(marks) == 8
    assert marks.count(("pruned", "filled", "x")) == 1
    assert marks.count(("dense", "hollow", "cx")) == 1


def test_accuracy_is_drawn_only_where_every_row_has_it():
    rows = eight_rows()
    assert quality_axis(rows).title == "accuracy, %"
    assert quality_axis((replace(rows[0], accuracy=None), *rows[1:])).title == "top-1 agreement with dense, %"
    assert quality_axis(tuple(without_labels(row) for row in rows)).title == "cosine agreement with dense"


def test_the_caption_says_where_the_axis_leaves_zero_out():
    rows = eight_rows()
    assert cuts_zero_off(rows)
    errors = tuple(
        replace(row, accuracy=None, agreement=agreement, agreement_kind="relative error")
        for row, agreement in zip(rows[:2], (1.0, 0.2), strict=True)
    )
    assert not cuts_zero_off(errors)  # the dense model's own error is 0


def test_the_spread_is_median_to_p95_or_the_interval_of_the_ratio():
    rows = rows_on("openvino", {"dense fp32": 1.0, "pruned fp32": 0.5})
    assert spread(rows[1], rows) == pytest.approx((0.5, 0.55))
    bare = tuple(replace(row, p95_ms=None) for row in rows)
    assert spread(bare[1], bare) == pytest.approx((1 / 2.04, 1 / 1.96))
    assert spread(bare[0], bare) is None


@pytest.mark.parametrize("width", [350, 760])
def test_labels_hide_neither_each_other_nor_a_marker(width):
    anchors = [(60.0 + 31 * i % 97, 120.0 + 17 * i % 60) for i in range(8)]
    markers = [Box(x - 7, y - 7, x + 7, y + 7) for x, y in anchors]
    bounds = Box(40, 18, width, 350)
    labels = place_labels(anchors, [(140.0, 15.0)] * 8, obstacles=markers, bounds=bounds)
    assert all(a.overlap(b) == 0 for a, b in itertools.combinations(labels, 2))
    assert all(label.overlap(marker) == 0 for label in labels for marker in markers)
    assert all(bounds.holds(label) for label in labels)


def test_ticks_are_round_and_inside_the_axis():
    assert Axis(0.0, 1.15, 0, 100).ticks(5) == [0.0, 0.5, 1.0]
    assert Axis(96.83, 98.1, 0, 100).ticks(5) == [97.0, 97.5, 98.0]
    assert Axis(0.8, 30.0, 0, 100, logarithmic=True).ticks(4) == [1, 2, 5, 10, 20]
    assert tick_labels([0.0, 0.25, 0.5]) == ["0.00", "0.25", "0.50"]


def test_an_axis_maps_its_ends_to_its_pixels():
    assert [Axis(0, 2, 10, 110).pixel(v) for v in (0, 1, 2)] == [10, 60, 110]
    assert [Axis(1, 100, 0, 100, logarithmic=True).pixel(v) for v in (1, 10, 100)] == pytest.approx([0, 50, 100])


def test_bars_share_one_scale():
    bars = width_bars((LayerWidth("a", "conv", 100, 50), LayerWidth("b", "conv", 200, 200)))
    assert re.findall(r'width="([\d.]+)%" height="9"/>', str(bars.shown[0].bar)) == ["50.00", "25.00"]
    assert (bars.shown[0].change, bars.changed) == ("−50 %", 1)


def test_of_300_layers_the_40_that_lost_most_are_shown_and_all_are_kept():
    bars = width_bars(EXAMPLES["300 layers"].layers)
    assert [bar.layer.name for bar in bars.shown] == [f"l{i}" for i in range(260, 300)]
    assert page_of("300 layers").count("<td>linear</td>") == 300
    assert "<summary>All 300 layers in numbers</summary>" in page_of("300 layers")


def test_a_metric_keeps_its_spelling_at_the_start_of_a_heading():
    masks = replace(ACCURACY, name="mIoU")
    page = render_html(a_report([replace(row, metric=masks) for row in eight_rows()]))
    assert "<h2>mIoU against latency</h2>" in page
    assert "<h2>Accuracy against latency</h2>" in render_html(a_report())


def test_an_option_in_a_sentence_is_not_torn_at_its_hyphens_and_the_rest_is_escaped():
    assert typeset("--accuracy-drop 2 -> <b> ± 1 %, well-kept") == (
        '<span class="option">--accuracy-drop</span> 2 → &lt;b&gt; ±\N{NO-BREAK SPACE}1\N{NO-BREAK SPACE}%, well-kept'
    )
