"""The page as a browser shows it: no errors, no sideways scrolling on a phone, contrast, keyboard."""

import json
import re
import subprocess
from dataclasses import replace
from functools import cache
from html import unescape

import pytest

from benchmarks.browser import BROWSER, headless
from deploypruner.records import AccuracyChange, SampleHistogram
from deploypruner.report import render_html
from deploypruner.report.compare import compare_html, compared
from deploypruner.report.roofline import bounds
from tests.test_report_examples import EXAMPLES, a_quality, a_report, eight_rows
from tests.test_report_layers import a_layer
from tests.test_report_result import LOST

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no headless Chromium: install chromium to check the page"),
]

# What a page looks like from inside; every finding is a line of text.
CHECKS = """
const found = [];
const visible = (e) => e.getClientRects().length && getComputedStyle(e).visibility !== "hidden";
const named = (e) => e.tagName.toLowerCase() + "." + e.className + " '" + e.textContent.trim().slice(0, 40) + "'";
const root = document.documentElement;
if (root.scrollWidth > root.clientWidth) {
  found.push("scrolls sideways: " + root.scrollWidth + " in " + root.clientWidth);
  for (const e of document.querySelectorAll("body *")) {
    if (!e.closest(".scroll, svg") && e.getBoundingClientRect().right > root.clientWidth + 1) found.push(named(e));
  }
}
const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
const light = (colour) => {
  const [r, g, b] = numbers(colour).slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor, [, , , alpha = 1] = numbers(colour);
    if (alpha > 0) return colour;
  }
  return "rgb(255, 255, 255)";
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const seen = new Set();
while (walker.nextNode()) {
  const e = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || seen.has(e) || e.closest("script") || !visible(e)) continue;
  seen.add(e);
  const style = getComputedStyle(e), colour = e.closest("svg") ? style.fill : style.color;
  const [a, b] = [light(colour), light(behind(e))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
  if (ratio < (large ? 3 : 4.5)) found.push("contrast " + ratio.toFixed(2) + " of " + named(e));
}
for (const e of document.querySelectorAll("a[href], button, summary")) {
  if (visible(e) && e.tabIndex < 0) found.push("cannot be reached by keyboard: " + named(e));
}
for (const e of document.querySelectorAll(".scroll, .command")) {
  if (visible(e) && (e.scrollWidth > e.clientWidth || e.scrollHeight > e.clientHeight + 1) && e.tabIndex < 0) {
    found.push("cannot be scrolled by keyboard: " + named(e));
  }
}
const table = document.querySelector("table.sortable");
if (table && table.tBodies[0].rows.length > 1) {
  const button = [...table.querySelectorAll("button")].find((b) => b.textContent === "MACs");
  const column = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[3].dataset.key));
  const before = column();
  for (const [order, sign] of [["descending", -1], ["ascending", 1]]) {
    button.focus();
    button.click();
    const now = column();
    if (button.closest("th").getAttribute("aria-sort") !== order) found.push("not said to be " + order);
    if (now.some((value, i) => i && sign * (value - now[i - 1]) < 0)) found.push("not " + order);
  }
  button.click();
  if (column().join() !== before.join()) found.push("the order of the model is lost");
}
parent.postMessage({ name: NAME, found, errors: window.errors }, "*");
"""
HARNESS = """<!doctype html><body><pre id="result"></pre>
<script>
const said = {};
addEventListener("message", (event) => {
  said[event.data.name] = [...event.data.errors, ...event.data.found];
  document.getElementById("result").textContent = JSON.stringify(said);
});
</script>
"""
FIRST = "<script>window.errors = []; addEventListener('error', (e) => window.errors.push(e.message), true);</script>"


def known(report):
    """With everything that a page can show of rows."""
    change = AccuracyChange(1, 9, 0.02, "worse")
    rows = tuple(
        replace(
            row,
            evaluated=360,
            accuracy_ci=(96.0, 98.5),
            agreement_ci=(0.97, 0.99),
            change=change,
            histogram=SampleHistogram(0.4, 0.8, (9, 4, 0, 1)),
        )
        for row in report.rows
    )
    deploy = {
        "file": "model.int8.xml",
        "files": ["model.int8.xml", "model.int8.bin"],
        "bytes": 360_000,
        "artifact": "pruned int8",
        "runtime": "openvino",
        "threads": 1,
        "version": "2026.1",
        "inputs": [
            {"name": "x", "shape": ["N", 3, 32, 32], "layout": "NCHW", "dtype": "float32", "range": [-2.1, 2.6]}
            | {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
        ],
        "classes": [f"class {i}" for i in range(30)],
        "load": ["import openvino", "model = openvino.Core()" + 10 * ".compile_model('model.int8.xml')", "model(x)"],
    }
    return replace(
        report,
        rows=rows,
        deploy=deploy,
        noise=("the machine was busy: 2.0 of 2 cores", "p95 is far above"),
        warnings=("accuracy fell by 1.2 points",),
        files=("report.json", "measurements/pruned-int8.openvino.openvino.json"),
    )


def layers(count):
    name = "features.denseblock{}.denselayer.a_module_with_a_long_name.attention.projection"
    return bounds([a_layer(name.format(i), 1000 + i * 7919 % 1000, 10 + i, 0.1 + 0.01 * i) for i in range(count)])


@cache
def pages():
    """Name -> page."""
    budget = {"kind": "macs", "requested": 0.5, "met": True, "quality": a_quality(pruned=87.0, lost=1.0, kept=True)}
    won = known(a_report(eight_rows(), layers=layers(12), budget=budget))
    return {
        "won": render_html(won),
        "lost": render_html(known(LOST["slower"])),
        "refused": render_html(EXAMPLES["refused"]),
        "a thousand layers": render_html(known(a_report(layers=layers(1000)))),
        "compared": compare_html([compared(f"builds/number-{i}", won) for i in range(4)], ["a note"]),
    }


def framed(name, page, *, width, dark):
    """The page in a window of `width` pixels, with the checks in it."""
    page = page.replace("(prefers-color-scheme: dark)", "all") if dark else page
    label = json.dumps(f"{name}, {width} px, {'dark' if dark else 'light'}")
    inside = page.replace("<head>", f"<head>{FIRST}").replace(
        "</body>", f"<script>const NAME = {label};{CHECKS}</script></body>"
    )
    text = inside.replace("&", "&amp;").replace('"', "&quot;")
    return f'<iframe width="{width}" height="900" style="border:0" srcdoc="{text}"></iframe>\n'


@cache
def seen(folder):
    """What a browser finds on each page, in each width and light: label -> lines; and what it printed."""
    settings = [(width, dark) for width in (1200, 400) for dark in (False, True)]
    frames = [framed(name, page, width=w, dark=d) for name, page in pages().items() for w, d in settings]
    file = folder / "pages.html"
    file.write_text(HARNESS + "".join(frames), encoding="utf-8")
    command = headless(
        file, folder / "profile", "--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom"
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert found is not None, done.stdout[:1000]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(unescape(found[1])), console


def test_no_page_has_errors_scrolls_sideways_is_pale_or_needs_a_mouse(tmp_path_factory):
    found, console = seen(tmp_path_factory.mktemp("browser"))
    assert len(found) == 4 * len(pages())
    assert {label: lines[:5] for label, lines in found.items() if lines} == {}
    assert console == []
