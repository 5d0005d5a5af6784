"""What the measurements say, in sentences: which artifact to deploy, or that none is worth it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploypruner.records import Row
from deploypruner.report import units
from deploypruner.report.document import Report
from deploypruner.search.kept import row_kept


@dataclass(frozen=True)
class RuntimeGroup:
    """Rows measured side by side: same runtime, same threads.

    Args:
        runtime: Registered runtime name.
        threads: Threads it was given.
        baseline: The row all ratios of this group are against, None when it is not among them.
        rows: The baseline first, then the order of the report.
    """

    runtime: str
    threads: int
    baseline: Row | None
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Headline:
    """The result of a build.

    Args:
        recommended: The fastest row measured faster than the dense fp32 model on its own runtime; None when
            there is none or a verification failed.
        sentence: The result with its interval and its accuracy.
        notes: What a sceptical reader would ask next.
    """

    recommended: Row | None
    sentence: str
    notes: tuple[str, ...]


def group_rows(rows: Sequence[Row]) -> tuple[RuntimeGroup, ...]:
    """Group rows by runtime and threads, in order of first appearance."""
    keys = dict.fromkeys((row.runtime, row.threads) for row in rows)
    return tuple(_group(key, [row for row in rows if (row.runtime, row.threads) == key]) for key in keys)


def headline(report: Report) -> Headline:
    """Say what was gained, or that nothing was."""
    failed = [check for check in report.verification if not check.passed]
    if failed:
        names = ", ".join(f"'{check.name}'" for check in failed)
        return Headline(
            recommended=None,
            sentence=f"verification failed: {len(failed)} of {len(report.verification)} checks disagree "
            f"({names}), so no artifact is recommended",
            notes=(),
        )
    groups = group_rows(report.rows)
    pairs = [(group, row) for group in groups for row in group.rows if row is not group.baseline]
    if not pairs:
        return Headline(recommended=None, sentence="only the baseline was measured: nothing to compare", notes=())
    faster = [(group, row) for group, row in pairs if row.verdict == "faster" and keeps(row, group, report)]
    if units.is_refused(report.budget):
        kept = min(faster, key=lambda pair: pair[1].median_ms, default=None)
        return Headline(
            recommended=None if kept is None else kept[1],
            sentence=f"no pruned artifact is worth having: {units.quality_sentence(report.budget['quality'])}",
            notes=()
            if kept is None
            else (f"{kept[1].name} on {kept[1].runtime} is faster and keeps it: deploy that.",),
        )
    if not faster:
        return _nothing_faster(pairs)
    group, best = min(faster, key=lambda pair: pair[1].median_ms)
    sentence = (
        f"{best.name} on {best.runtime}: {units.ratio(best.ratio)} faster than {_baseline_name(group)} "
        f"{_interval(best)}, {_quality(best, group.baseline)}"
    )
    return Headline(recommended=best, sentence=sentence, notes=_notes(best, report.rows))


def keeps(row: Row, group: RuntimeGroup, report: Report) -> bool:
    """Does this row lose no more than the report allows? Yes where nothing is known of it."""
    quality = report.budget.get("quality")
    if not quality:
        return True
    # Reports of earlier versions do not say what the user allowed; what counts there is allowed of either.
    judged = row_kept(row, group.rows, drop=quality.get("drop", quality["allowed"]))
    return judged is None or judged.kept


def _group(key: tuple[str, int], rows: list[Row]) -> RuntimeGroup:
    # A row compared with itself is exactly 1 with an interval of no width; `bench` may put any file first.
    itself = [row for row in rows if row.ratio == 1.0 and tuple(row.ratio_ci) == (1.0, 1.0)]
    dense = [row for row in rows if row.pattern == "dense" and row.precision == "fp32"]
    baseline = next(iter(itself + dense), None)
    ordered = sorted(rows, key=lambda row: row is not baseline)
    return RuntimeGroup(runtime=key[0], threads=key[1], baseline=baseline, rows=tuple(ordered))


def _nothing_faster(pairs: list[tuple[RuntimeGroup, Row]]) -> Headline:
    group, best = max(pairs, key=lambda pair: pair[1].ratio)
    word = "slower" if best.verdict == "slower" else "indistinguishable from it"
    return Headline(
        recommended=None,
        sentence=f"nothing is faster than {_baseline_name(group)}: the closest, {best.name} on {best.runtime}, "
        f"runs at {units.ratio_with_interval(best.ratio, best.ratio_ci)} of its speed ({word}), "
        f"{_quality(best, group.baseline)}",
        notes=("Deploy the dense model: no artifact of this build is measurably faster.",),
    )


def _notes(best: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    notes = []
    if best.pattern == "dense" and any(row.pattern != "dense" for row in rows):
        notes.append(f"No pruned artifact was faster than {best.name}, which is not pruned.")
    same = best.same_precision
    if same is not None and same.verdict != "faster":
        verb = "is slower than" if same.verdict == "slower" else "cannot be told from"
        notes.append(
            f"At the same precision it {verb} {same.against}: "
            f"{units.ratio_with_interval(same.ratio, same.ratio_ci)}. The gain is the precision's, not pruning's."
        )
    quickest = min(rows, key=lambda row: row.median_ms)
    if quickest.median_ms < best.median_ms:
        notes.append(
            f"{quickest.name} on {quickest.runtime} has a lower median, {units.significant(quickest.median_ms)} ms "
            f"against {units.significant(best.median_ms)} ms, but was not measured faster than its own baseline."
        )
    return tuple(notes)


def _baseline_name(group: RuntimeGroup) -> str:
    if group.baseline is None or (group.baseline.pattern, group.baseline.precision) == ("dense", "fp32"):
        return "the dense fp32 model"
    return group.baseline.name


def _interval(row: Row) -> str:
    return units.ratio_with_interval(row.ratio, row.ratio_ci).partition(" ")[2]


def _quality(row: Row, baseline: Row | None) -> str:
    if row.accuracy is not None:
        name, unit = row.metric.name, row.metric.unit
        sign = " %" if unit == "%" else ""
        dense = baseline.accuracy if baseline else None
        beside = f" (dense {units.accuracy(dense, unit)}{sign})" if dense is not None else ""
        named = " ".join(filter(None, (name, units.of_output(row))))
        return f"{named} {units.accuracy(row.accuracy, unit)}{sign}{beside}"
    if row.agreement is not None:
        return units.agreement_text(row.agreement, row.agreement_kind)
    return "accuracy not measured"
