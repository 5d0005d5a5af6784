"""What the measurements say, in sentences: which artifact to deploy, or that none is worth it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploypruner.records import Row
from deploypruner.report import units
from deploypruner.report.advice import NextStep, for_accuracy, for_time
from deploypruner.report.document import Report
from deploypruner.report.gains import EAGER, best_dense, eager, gains
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
        sentence: The result: milliseconds, what the gain is made of, and the accuracy.
        notes: What a sceptical reader would ask next.
        lost: Was pruning not worth it: did it make nothing faster, or cost more of the accuracy than it may?
        fell: Is the accuracy of what is recommended measurably lower than the dense model's, though no lower than it
            may be?
        steps: What to try then, the most promising first.
    """

    recommended: Row | None
    sentence: str
    notes: tuple[str, ...]
    lost: bool = False
    fell: bool = False
    steps: tuple[NextStep, ...] = ()

    @property
    def bad(self) -> bool:
        """Is it bad news, which stands first and in red?"""
        return self.lost or self.fell


def budget_verdict(report: Report, found: Headline) -> tuple[str, str]:
    """Is the budget met, and the colour of that: good only beside a network that was worth pruning.

    Returns:
        The word, and "good", "bad" or "unsure".
    """
    word, labelled = units.budget_verdict(report.budget), report.budget.get("quality")
    if word != "met":
        return word, "bad"
    return (word, "good") if labelled and not found.bad else (word, "unsure")


def group_rows(rows: Sequence[Row]) -> tuple[RuntimeGroup, ...]:
    """Group rows by runtime and threads, in order of first appearance."""
    keys = dict.fromkeys((row.runtime, row.threads) for row in rows)
    return tuple(_group(key, [row for row in rows if (row.runtime, row.threads) == key]) for key in keys)


def heading(group: RuntimeGroup) -> str:
    """ "openvino, 1 thread"; of torch also that it is eager mode, which is what most people run so far."""
    name = f"{EAGER} eager, what runs before any export" if group.runtime == EAGER else group.runtime
    return f"{name}, {group.threads} thread{'' if group.threads == 1 else 's'}"


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
    base = best_dense(report.rows)
    faster = [(group, row) for group, row in faster if base is None or row.median_ms < base.median_ms]
    if units.is_refused(report.budget):
        kept = min(faster, key=lambda pair: pair[1].median_ms, default=None)
        return Headline(
            recommended=None if kept is None else kept[1],
            sentence=f"no pruned artifact is worth having: {units.quality_sentence(report.budget['quality'])}",
            notes=()
            if kept is None
            else (f"Until then ship {_won(kept[1], base or kept[0].baseline, report.rows)}.",),
            lost=True,
            steps=for_accuracy(report),
        )
    if not faster:
        return _nothing_faster(pairs, base, report)
    group, best = min(faster, key=lambda pair: pair[1].median_ms)
    if best.pattern == "dense" and (pruned := _fastest_pruned(pairs)) is not None:
        return _dense_won(report, (group, best), pruned)
    won, notes = _won(best, base or group.baseline, report.rows), _all_notes(best, group, report.rows)
    if units.accuracy_verdict(best) != "worse":
        return Headline(best, won, notes)
    how = ", no further than it may" if report.budget.get("quality") else ""
    return Headline(best, f"accuracy fell{how}: {won}", notes, fell=True, steps=for_accuracy(report))


def _fastest_pruned(pairs: Sequence[tuple[RuntimeGroup, Row]]) -> Row | None:
    return min((row for _, row in pairs if row.pattern != "dense"), key=lambda row: row.median_ms, default=None)


def _dense_won(report: Report, winner: tuple[RuntimeGroup, Row], pruned: Row) -> Headline:
    """The dense model in another precision beats, or is all that is left of, the pruned ones."""
    group, best = winner
    same, base = pruned.same_precision, best_dense(report.rows) or group.baseline
    compared = (
        ""
        if same is None
        else f", {units.ratio_with_interval(same.ratio, same.ratio_ci)} the speed of {same.against}"
    )
    if pruned.median_ms < best.median_ms:
        how = f"{pruned.name} on {pruned.runtime} loses more than it may"
    else:
        how = f"the fastest pruned artifact, {pruned.name} on {pruned.runtime}, takes {_ms(pruned)} ms{compared}"
    return Headline(
        recommended=best,
        sentence=f"pruning lost: {how}; ship {_won(best, base, report.rows)}",
        notes=_all_notes(best, group, report.rows),
        lost=True,
        steps=for_time(report) if pruned.median_ms >= best.median_ms else for_accuracy(report),
    )


def _won(best: Row, base: Row | None, rows: Sequence[Row]) -> str:
    speed = "" if base is None else f"{_ms(base)} -> {_ms(best)} ms: {gains(base, best, rows)} · "
    return f"{best.name} on {best.runtime}: {speed}{_quality(best, base)}"


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


def _nothing_faster(pairs: Sequence[tuple[RuntimeGroup, Row]], base: Row | None, report: Report) -> Headline:
    group, best = min(pairs, key=lambda pair: pair[1].median_ms)
    pruned = _fastest_pruned(pairs) is not None
    steps = for_time(report) if pruned else ()
    if base is not None and base.runtime != best.runtime:
        link = {"faster": "", "slower": ", slower than the dense fp32 model there"}
        how = link.get(best.verdict, ", indistinguishable from the dense fp32 model there")
        return Headline(
            recommended=None,
            sentence=f"nothing is faster than the dense fp32 model on {base.runtime}, {_ms(base)} ms: the closest, "
            f"{best.name} on {best.runtime}, takes {_ms(best)} ms{how}, {_quality(best, base)}",
            notes=(f"Deploy the dense model on {base.runtime}.",),
            lost=pruned,
            steps=steps,
        )
    word = "slower" if best.verdict == "slower" else "indistinguishable from it"
    return Headline(
        recommended=None,
        sentence=f"nothing is faster than {_baseline_name(group)}: the closest, {best.name} on {best.runtime}, "
        f"runs at {units.ratio_with_interval(best.ratio, best.ratio_ci)} of its speed ({word}), "
        f"{_quality(best, group.baseline)}",
        notes=("Deploy the dense model: no artifact of this build is measurably faster.",),
        lost=pruned,
        steps=steps,
    )


def _ms(row: Row) -> str:
    return units.significant(row.median_ms)


def _all_notes(best: Row, group: RuntimeGroup, rows: Sequence[Row]) -> tuple[str, ...]:
    return (_paired(best, group), *_notes(best, rows))


def _paired(best: Row, group: RuntimeGroup) -> str:
    """The same gain measured side by side, which its verdict rests on."""
    ratio = units.ratio_with_interval(best.ratio, best.ratio_ci)
    return f"Side by side it is {ratio} faster than {_baseline_name(group)} on {best.runtime}."


def _notes(best: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    notes = []
    if (today := eager(rows)) is not None and today.runtime != best.runtime:
        times = f"{units.significant(today.median_ms)} ms, {units.ratio(today.median_ms / best.median_ms)} this"
        notes.append(f"The dense model in torch eager, operator by operator, takes {times}.")
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


def _quality(row: Row, base: Row | None) -> str:
    """ "accuracy 98.9 -> 99.4 % (± 0.9, n = 360, indistinguishable)", or the agreement where nothing is labelled."""
    n = units.evaluated([row])
    if row.accuracy is not None:
        unit = row.metric.unit
        before = None if base is None else base.accuracy
        values = [units.accuracy(value, unit) for value in (before, row.accuracy) if value is not None]
        named = " ".join(filter(None, (row.metric.name, units.of_output(row))))
        known = (units.give_or_take(row.accuracy_ci, whole=1.0).strip(), n, units.accuracy_verdict(row))
        return f"{named} {' -> '.join(values)}{' %' if unit == '%' else ''}{_bracketed(known)}"
    if row.agreement is not None:
        agreed = units.agreement_text(row.agreement, row.agreement_kind)
        return f"{agreed}{_bracketed((units.give_or_take(row.agreement_ci).strip(), n))}"
    return "accuracy not measured"


def _bracketed(parts: Sequence[str]) -> str:
    said = ", ".join(filter(None, parts))
    return f" ({said})" if said else ""
