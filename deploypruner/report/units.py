"""What a report has in its cells: metrics, agreement, verdicts, each as a person reads it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from deploypruner.figures import UNKNOWN, scaled, significant
from deploypruner.records import RELATIVE_ERROR as RELATIVE_ERROR
from deploypruner.records import Row


def percent(value: float | None) -> str:
    """One decimal, for a value that is already in percent; the sign is left to the column or sentence."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:.1f}"


def accuracy(value: float | None, unit: str) -> str:
    """A metric's value: in percent with one decimal and without the sign, a plain number with three digits."""
    if unit == "%" or value is None:
        return percent(value)
    return significant(value) if value >= 0 else f"-{significant(-value)}"


def agreement(value: float | None, kind: str) -> str:
    """Agreement with the dense fp32 model: shares as "99.1 %", cosine as "0.9987", a relative error as that error."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if kind == RELATIVE_ERROR:
        return f"{100 * (1 - value):.1f} %"
    return f"{value:.4f}" if kind == "cosine" else f"{100 * value:.1f} %"


def agreement_head(rows: Iterable[Row]) -> tuple[str, str]:
    """Heading of the column, and what the numbers in it are: "agreement" and "top-1", "difference" for errors."""
    kinds = _kinds(rows)
    return "difference" if kinds == [RELATIVE_ERROR] else "agreement", kinds[0] if len(kinds) == 1 else ""


def agreement_cell(row: Row, rows: Iterable[Row]) -> str:
    """What a row has in that column; with its kind where those of the rows differ, for an error is no agreement."""
    text = agreement(row.agreement, row.agreement_kind)
    if text != UNKNOWN and text.endswith(" %"):
        text = text.removesuffix(" %") + give_or_take(row.agreement_ci) + " %"
    return text if len(_kinds(rows)) < 2 or text == UNKNOWN else f"{row.agreement_kind} {text}"


def metric_unit(rows: Iterable[Row]) -> str:
    """What stands under the name of the metric: its unit, of several outputs the one it is of, and n."""
    rows = list(rows)
    row = next((row for row in rows if row.accuracy is not None), None)
    if row is None:
        return ""
    return ", ".join(filter(None, (row.metric.unit, of_output(row), evaluated(rows))))


def evaluated(rows: Iterable[Row]) -> str:
    """ "n = 360", the inputs behind accuracy and agreement; "" where nobody noted it."""
    counts = sorted({row.evaluated for row in rows if row.evaluated})
    return f"n = {' to '.join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))}" if counts else ""


def give_or_take(interval: tuple[float, float] | None, *, whole: float = 100.0) -> str:
    """ " ± 0.9", half of a 95 % interval in percent; "" without one.

    Args:
        interval: Lower and upper end.
        whole: What one unit of it is in percent: 1 for percent, 100 for shares.
    """
    return "" if interval is None else f" ± {whole * (interval[1] - interval[0]) / 2:.1f}"


def accuracy_cell(row: Row) -> str:
    """A row's metric and how well it is known: "99.4 ± 0.9"."""
    text = accuracy(row.accuracy, row.metric.unit)
    return text if text == UNKNOWN else text + give_or_take(row.accuracy_ci, whole=1.0)


def quality_cell(row: Row) -> str:
    """Accuracy with its unit, else agreement by its name, for an error is no accuracy: "97.2 ± 1.0 % (n = 360)"."""
    n = evaluated([row])
    if row.accuracy is not None:
        text = f"{accuracy_cell(row)} {row.metric.unit}".rstrip()
    else:
        text = agreement_cell(row, [row])
        if text != UNKNOWN:
            of = "" if row.agreement_kind == RELATIVE_ERROR else " agreement"
            text = f"{row.agreement_kind}{of} {text}"
    return f"{text} ({n})" if n else text


def accuracy_verdict(row: Row) -> str:
    """better, worse or indistinguishable from the dense fp32 model; "" for that model itself, and where unknown."""
    itself = (row.pattern, row.precision) == ("dense", "fp32")
    return "" if row.change is None or itself else row.change.verdict


def of_output(row: Row) -> str:
    """ "of OUTPUT" that the metric of a row is about, "" where there is one output only or it is the user's own."""
    scored = [output.output for output in row.outputs if output.accuracy is not None]
    own = row.metric.points is None
    return f"of {scored[0]}" if len(row.outputs) > 1 and scored and not own else ""


def _kinds(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row.agreement_kind for row in rows if row.agreement is not None))


def agreement_text(value: float | None, kind: str) -> str:
    """The same as part of a sentence: "top-1 agreement with the dense model 99.1 %"."""
    if kind == RELATIVE_ERROR:
        return f"relative error against the dense model {agreement(value, kind)}"
    return f"{kind} agreement with the dense model {agreement(value, kind)}"


def ratio(value: float | None) -> str:
    """A speed-up: "2.31x", below one "0.87x"."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:.{_ratio_decimals(value)}f}x"


def ratio_with_interval(value: float, interval: tuple[float, float]) -> str:
    """A speed-up and its 95 % interval at the same number of decimals: "2.31x [2.27, 2.36]"."""
    if not all(math.isfinite(number) for number in (value, *interval)):
        return ratio(value)
    decimals = _ratio_decimals(value)
    return f"{value:.{decimals}f}x [{interval[0]:.{decimals}f}, {interval[1]:.{decimals}f}]"


def _ratio_decimals(value: float) -> int:
    if value == 0 or 0.1 <= abs(value) < 10:
        return 2
    return max(0, 2 - math.floor(math.log10(abs(value))))


def difference(value: float) -> str:
    """A tiny absolute difference: "2.1e-15", "0", "not a number"."""
    if not math.isfinite(value):
        return "not a number"
    return "0" if value == 0 else f"{value:.1e}"


def seconds(value: float) -> str:
    """A duration: "412 ms", "12.3 s", "2 min 05 s", "1 h 04 min"; below a millisecond "< 1 ms"."""
    if not math.isfinite(value):
        return UNKNOWN
    if 0 < value < 0.001:
        return "< 1 ms"
    if value < 0.9995:
        return f"{significant(1000 * value)} ms"
    if value < 59.95:
        return f"{significant(value)} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def change(before: float, after: float) -> str:
    """Relative change in whole percent with its sign: "−70 %"; "unchanged"; "-" from zero."""
    if before == after:
        return "unchanged"
    return UNKNOWN if before == 0 else f"{100 * (after / before - 1):+.0f} %".replace("-", "\N{MINUS SIGN}")


def budget_value(kind: str, value: object) -> str:
    """A budget's number in the unit of its kind.

    Args:
        kind: "latency" (milliseconds), "speedup" (times), "macs" (fraction of the dense model, or a
            count when above 1); other kinds are printed as bare numbers.
        value: The number; text is printed as it is, None as "-".
    """
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if kind.startswith("latency"):
        return f"{significant(value)} ms"
    if kind == "speedup":
        return ratio(value)
    if kind == "macs":
        return f"{100 * value:.1f} %" if value <= 1 else scaled(value)
    return significant(value)


def points(value: float) -> str:
    """Points of a metric with one decimal, as in the table; two digits where that would say 0.0: "0.6", "0.012"."""
    return f"{value:.2g}" if 0 < abs(value) < 0.05 else f"{value:.1f}"


def plain_text(value: object) -> str:
    """Any JSON value on one line: lists joined by commas, dicts as key=value, None as "-"."""
    if value is None or value in ("", [], {}):
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}={plain_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        if all(isinstance(item, dict) for item in value):
            return "; ".join(map(plain_text, value))
        if all(isinstance(item, int) for item in value):
            return "x".join(str(item) for item in value) if len(value) > 1 else str(value[0])
        return ", ".join(plain_text(item) for item in value)
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def budget_sentence(budget: dict[str, Any]) -> str:
    """What was asked, predicted, measured and certified: "latency: requested 5.00 ms, predicted 4.60 ms"."""
    kind = str(budget.get("kind", ""))
    name = {"macs": "MACs relative to dense", "speedup": "speed-up"}.get(kind, kind)
    if budget.get("quantile", 0.5) != 0.5:
        name += f" (p{100 * budget['quantile']:.0f})"
    if isinstance(where := budget.get("setting"), dict):
        threads = f"{where['threads']} thread{'' if where['threads'] == 1 else 's'}"
        floats = len(where.get("floats") or ())
        mixed = f" with {floats} layer{'' if floats == 1 else 's'} float" if floats else ""
        name += f" of {where['precision']}{mixed} on {where['runtime']}, {threads}"
    parts = [
        f"{key} {budget_value(kind, budget[key])}"
        for key in ("requested", "predicted", "measured", "certified")
        if budget.get(key) is not None
    ]
    doubt = f"; {budget['doubt']}" if budget.get("doubt") else ""
    quality = budget.get("quality")
    lost = f"; {quality_sentence(quality)}" if quality else ""
    return f"{name}: {', '.join(parts) or 'nothing requested'}{doubt}{lost}"


def is_refused(budget: dict[str, Any]) -> bool:
    """Is more of the quality lost than is allowed?"""
    quality = budget.get("quality")
    return quality is not None and quality != {} and not quality["kept"]


def quality_sentence(quality: dict[str, Any]) -> str:
    """What was lost and what may be: "accuracy fell from 88.0 to 2.4 %, 85.6 points where 3 are allowed"."""
    kind, unit = quality["kind"], quality.get("unit", "%")
    labelled = is_labelled(quality)
    error = not labelled and kind == RELATIVE_ERROR
    name = kind if labelled else f"agreement with the dense model ({kind})"
    name = "relative error against the dense model" if error else name
    name += f" of output '{quality['output']}'" if quality.get("output") else ""
    dense, pruned, lost = (quality[key] for key in ("dense", "pruned", "lost"))
    allowed = f"{quality['allowed']:g} {'is' if quality['allowed'] == 1 else 'are'} allowed"
    if pruned is None or lost is None or not math.isfinite(lost):
        return f"{name} is not a number any more, where {quality['allowed']:g} points may be lost"
    if error:
        grew = f"{name} is {100 - pruned:.1f} %"
        return f"{grew} where {quality['allowed']:g} {'is' if quality['allowed'] == 1 else 'are'} allowed"
    before, after = (accuracy(value, unit) for value in (dense, pruned))
    after += " %" if unit == "%" else ""
    if lost <= 0:
        return f"{name} {before} -> {after}, nothing lost where {allowed}"
    if quality["kept"]:
        return f"{name} {before} -> {after}, {points(lost)} points lost where {allowed}"
    went = "fell" if pruned < dense else "rose"
    return f"{name} {went} from {before} to {after}, {points(lost)} points where {allowed}"


def is_labelled(quality: dict[str, Any]) -> bool:
    """Is a budget's quality the metric on labels, and not agreement with the dense model?"""
    return bool(quality.get("labelled", quality["kind"] == "accuracy"))


def budget_verdict(budget: dict[str, Any]) -> str:
    """ "met", "NOT MET", or "NOT CERTIFIED" where the machine was too busy to tell; "REFUSED" for a ruined model."""
    met = budget.get("met")
    if is_refused(budget):
        return "REFUSED"
    return "met" if met else "NOT CERTIFIED" if met is None else "NOT MET"
