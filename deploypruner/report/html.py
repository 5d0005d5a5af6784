"""The report as one HTML page that opens offline: nothing from elsewhere, and one small script that sorts a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from deploypruner.records import ACCURACY, Check, Comparison, Cost, Frozen, Row
from deploypruner.report import units
from deploypruner.report.bars import histogram, share_bar, width_bars
from deploypruner.report.bounds import bounds_sentence
from deploypruner.report.chosen import chosen_sentence, pool_lines
from deploypruner.report.document import Report
from deploypruner.report.headline import Headline, RuntimeGroup, budget_verdict, group_rows, heading, headline, keeps
from deploypruner.report.layers import layer_table
from deploypruner.report.marks import legend, way_legend
from deploypruner.report.noise import noise_sentence
from deploypruner.report.outputs import output_lines
from deploypruner.report.page import resource, style, template
from deploypruner.report.points import point_lines, points_sentence, way_marks
from deploypruner.report.precision import (
    precision_lines,
    precision_own,
    precision_runtimes,
    precision_sentence,
)
from deploypruner.report.ranges import collapse
from deploypruner.report.repaired import settings_sentence, weight_bits
from deploypruner.report.scatter import cuts_zero_off, in_picture, quality_axis, scatter, spread
from deploypruner.report.ship import classes_sentence, input_sentence, pixels_sentence, ship_sentence
from deploypruner.report.sparse import assigned_sentence, sparse_lines, sparse_sentence

_GLYPHS = {"faster": "▲", "better": "▲", "slower": "▼", "worse": "▼", "indistinguishable": "≈", "baseline": ""}
_NAMED = 3


@dataclass(frozen=True)
class _Verdict:
    """A speed-up in words: numbers, verdict, the glyph that repeats it, and the row compared with."""

    numbers: str
    word: str
    glyph: str
    against: str = ""


@dataclass(frozen=True)
class _Line:
    """One table line."""

    row: Row
    recommended: bool
    refused: bool
    speed: _Verdict
    same: _Verdict | None
    accuracy: _Verdict | None


@dataclass(frozen=True)
class _FrozenReason:
    """All channels frozen for one reason."""

    reason: str
    channels: int
    parameters: tuple[str, ...]
    where: tuple[str, ...]

    @property
    def examples(self) -> str:
        """The first parameters, and how many more there are."""
        more = len(self.parameters) - _NAMED
        return ", ".join(self.parameters[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def render_html(report: Report) -> str:
    """Return the page; the same report gives the same text, and every name in it is escaped."""
    result = headline(report)
    return template("template.html.j2").render(
        report=report,
        style=style(),
        u=units,
        share_bar=share_bar,
        collapse=collapse,
        heading=heading,
        histogram=histogram,
        result=result,
        refused=units.is_refused(report.budget),
        budget=budget_verdict(report, result),
        ship=ship_sentence(report.deploy) if report.deploy else "",
        ship_inputs=[input_sentence(entry) for entry in report.deploy.get("inputs", ())],
        pixels=pixels_sentence(report.deploy["pixels"]) if "pixels" in report.deploy else "",
        ship_classes=classes_sentence(report.deploy.get("classes", ())),
        noise=noise_sentence(report).rpartition(";")[0],
        groups=[(group, _lines(group, result, report), _samples(group)) for group in group_rows(report.rows)],
        threads=_threads(report.rows),
        histograms=any(row.histogram is not None for row in report.rows),
        p99=any(row.p99_ms is not None for row in report.rows),
        labelled=any(row.accuracy is not None for row in report.rows),
        metric=next((row.metric for row in report.rows if row.accuracy is not None), ACCURACY),
        metric_unit=units.metric_unit(report.rows),
        evaluated=units.evaluated(report.rows),
        agreement_column=units.agreement_head(report.rows),
        by_output=output_lines(report.rows),
        picture=_picture(report, result),
        points=point_lines(report.points),
        points_said=points_sentence(report.points),
        costs=_costs(report.dense, report.pruned),
        widths=width_bars(report.layers),
        layers=layer_table(report.layers),
        script=Markup(resource("sort.js")),
        branches=list(report.budget.get("dropped") or ()),
        bounds=bounds_sentence(report.budget),
        chosen=chosen_sentence(report),
        pool=pool_lines(report.budget),
        failed=[check for check in report.verification if not check.passed],
        checks=[(check, _check_word(check)) for check in report.verification],
        frozen=_by_reason(report.frozen),
        precision=precision_sentence(report.precision),
        precision_heads=(precision_runtimes(report.precision), precision_own(report.precision)),
        precision_lines=precision_lines(report.precision),
        modules={layer.node: layer.name for layer in report.layers if layer.node},
        sparse=sparse_sentence(report.sparse),
        assigned=assigned_sentence(report.sparse),
        repaired=settings_sentence(report.settings),
        weight_bits=weight_bits(report.settings),
        sparse_lines=sparse_lines(report.sparse),
        stage_seconds=sum(stage.seconds for stage in report.stages),
    )


def _lines(group: RuntimeGroup, result: Headline, report: Report) -> list[_Line]:
    return [
        _Line(
            row,
            recommended=row is result.recommended,
            refused=row.pattern != "dense" and not keeps(row, group, report),
            speed=_speed(row, group),
            same=_same(row, group),
            accuracy=_accuracy(row),
        )
        for row in group.rows
    ]


def _samples(group: RuntimeGroup) -> str:
    counts = [row.samples for row in group.rows]
    return f"{min(counts)} samples" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)} samples"


def _threads(rows: Sequence[Row]) -> str:
    counts = sorted({row.threads for row in rows})
    return f"timed on {', '.join(map(str, counts))} thread{'' if counts == [1] else 's'}"


def _speed(row: Row, group: RuntimeGroup) -> _Verdict:
    if row is group.baseline:
        return _Verdict(units.ratio(row.ratio), "baseline", _GLYPHS["baseline"])
    return _Verdict(units.ratio_with_interval(row.ratio, row.ratio_ci), row.verdict, _GLYPHS[row.verdict])


def _same(row: Row, group: RuntimeGroup) -> _Verdict | None:
    same: Comparison | None = row.same_precision
    if same is None or same.against == row.name:
        return None
    if group.baseline is not None and same.against == group.baseline.name:
        return None
    numbers = units.ratio_with_interval(same.ratio, same.ratio_ci)
    return _Verdict(numbers, same.verdict, _GLYPHS[same.verdict], same.against)


def _accuracy(row: Row) -> _Verdict | None:
    """Against the dense fp32 model; how that was found in the place of numbers."""
    word, change = units.accuracy_verdict(row), row.change
    if not word or change is None:
        return None
    samples = f"{change.gained} samples are right here alone, {change.lost} in the dense model alone"
    return _Verdict(f"{samples}; p = {change.p:.2g}", word, _GLYPHS[word])


def _picture(report: Report, result: Headline) -> dict[str, Any] | None:
    """Both sizes of the scatter with its legend, None where there is no quality to draw."""
    rows = report.rows
    quality = quality_axis(rows)
    if quality is None:
        return None
    drawn = [row for row in rows if quality.value(row) is not None]
    found = way_marks(report.points, drawn)
    way = in_picture(rows, found)
    return {
        "title": quality.title.partition(",")[0],
        "better": "up" if quality.upward else "down",
        "wide": scatter(rows, width=760, height=400, emphasis=result.recommended, way=way),
        "narrow": scatter(rows, width=350, height=400, emphasis=result.recommended, way=way),
        "legend": [*legend(drawn), *way_legend({mark.measured for mark in way})],
        "left_out": ", ".join(f"{row.name} on {row.runtime}" for row in rows if row not in drawn),
        "spread": _spread_caption(drawn),
        "way": _way_caption(len(way), len(found)),
        "cut": cuts_zero_off(rows, found),
    }


def _way_caption(drawn: int, known: int) -> str:
    if not known:
        return ""
    outside = "" if drawn == known else f" {known - drawn} more lie outside the picture."
    if not drawn:
        return f"{known} candidates on the way lie outside the picture."
    return (
        "Small marks are candidates on the way: what each lost against the dense model, mostly before training and "
        f"on other samples, is taken off the dense model's value here; point at one to see what it is.{outside}"
    )


def _spread_caption(rows: Sequence[Row]) -> str:
    if any(row.p95_ms is not None for row in rows):
        return (
            "The line beside a marker reaches from the median to the 95th percentile; one without an end mark leaves "
            "the picture."
        )
    if any(spread(row, rows) is not None for row in rows):
        return "The line through a marker is the 95 % interval of its speed-up, applied to the baseline's median."
    return ""


def _costs(dense: Cost, pruned: Cost) -> list[tuple[str, str, str, str]]:
    pairs = [("MACs", dense.macs, pruned.macs), ("Parameters", dense.params, pruned.params)]
    if dense.nonzero != dense.params or pruned.nonzero != pruned.params:
        pairs.append(("Nonzero parameters", dense.nonzero, pruned.nonzero))
    return [
        (name, units.scaled(before), units.scaled(after), units.change(before, after))
        for name, before, after in pairs
    ]


def _check_word(check: Check) -> str:
    return "ok" if check.passed else "FAILED"


def _by_reason(frozen: Sequence[Frozen]) -> list[_FrozenReason]:
    reasons = dict.fromkeys(entry.reason for entry in frozen)
    grouped = [
        _FrozenReason(
            reason=reason,
            channels=sum(entry.count for entry in frozen if entry.reason == reason),
            parameters=tuple(dict.fromkeys(entry.parameter for entry in frozen if entry.reason == reason)),
            where=tuple(dict.fromkeys(entry.where for entry in frozen if entry.reason == reason and entry.where)),
        )
        for reason in reasons
    ]
    return sorted(grouped, key=lambda group: (-group.channels, group.reason))
