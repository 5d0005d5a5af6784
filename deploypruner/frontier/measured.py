"""All artifacts of a frontier in one interleaved run, with the quality that each build found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from deploypruner.build.again import kept_feeds, kept_jobs
from deploypruner.build.folder import BuildFolder
from deploypruner.build.timed import keep_run
from deploypruner.latency.clock import Clock
from deploypruner.measure import Job, find_doubts, make_rows
from deploypruner.progress import Progress, percent
from deploypruner.records import Quality, Row
from deploypruner.report import Report
from deploypruner.report.frontier import FrontierRow, marked, of_point, rows_of


@dataclass(frozen=True)
class TimedTogether:
    """One run.

    Args:
        rows: Of every artifact, with what dominates it.
        floor: Noise floor, relative.
        noise: What casts doubt on the times, and what could not be timed.
    """

    rows: tuple[FrontierRow, ...]
    floor: float
    noise: tuple[str, ...]


@dataclass(frozen=True)
class TimedEntry:
    """An artifact of one build and what is known of it.

    Args:
        point: Name, "" for the dense model.
        job: As it is timed, the artifact under a name of its own.
        quality: As its build found it.
        file: Within the frontier.
    """

    point: str
    job: Job
    quality: Quality
    file: str


def entries_of(folder: BuildFolder, reports: Mapping[str, tuple[str, Report]]) -> list[TimedEntry]:
    """Every artifact once: the dense ones of the first build, the pruned ones of all.

    Args:
        folder: Of the frontier.
        reports: Point -> its folder within that, and its report.

    Raises:
        InputError: A file is gone.
    """
    found: list[TimedEntry] = []
    shown = rows_of([(point, report) for point, (_, report) in reports.items()])
    rows = {(point, row.name, row.runtime): row for point, row in shown}
    for point, (inner, report) in reports.items():
        for artifact, runtime in kept_jobs(BuildFolder(folder.path(inner)), report):
            row = rows.get((point, artifact.name, runtime))
            if row is None:
                continue
            named = replace(artifact, name=of_point(point, row).name)
            file = str(artifact.path.relative_to(folder.root))
            found.append(TimedEntry("" if row.pattern == "dense" else point, (named, runtime), _quality(row), file))
    return found


def time_together(
    entries: Sequence[TimedEntry],
    folder: BuildFolder,
    *,
    threads: int,
    seconds: float,
    longer: str,
    seed: int,
    fed_by: BuildFolder,
    clock: Clock,
    progress: Progress,
) -> TimedTogether:
    """Time every artifact side by side, and keep the raw samples in the frontier's folder.

    Args:
        entries: What to time; the first of a runtime is its baseline.
        folder: Of the frontier.
        threads: Of every runtime.
        seconds: Of rounds, after which none starts.
        longer: How to time for longer.
        seed: Of the order and the intervals.
        fed_by: Build whose inputs they are called with.
        clock: Says how long things take.
        progress: Told how far it is.

    Raises:
        MeasureError: Nothing could be run.
    """
    machine = clock.machine.environment()
    with percent(progress, "measure") as told:
        measured = clock.artifacts(
            [entry.job for entry in entries],
            threads=threads,
            budget_s=seconds,
            seed=seed,
            progress=told,
            **kept_feeds(fed_by),
        )
    known = {(entry.job[0].name, entry.job[1]): entry for entry in entries}
    qualities = [known[artifact.name, runtime].quality for artifact, runtime in measured.jobs]
    rows = make_rows(measured.timings, qualities, floor=measured.floor, seed=seed)
    pairs = []
    for row in rows:
        entry = known[row.name, row.runtime]
        pairs.append((entry.point, replace(row, file=entry.file)))
    failures = [failure.message for failure in measured.failures]
    warnings = find_doubts(measured, machine, longer=longer)
    keep_run(folder, measured, seconds=seconds, warnings=[*failures, *warnings])
    return TimedTogether(marked(pairs, floor=measured.floor), measured.floor, (*failures, *warnings))


def _quality(row: Row) -> Quality:
    return Quality(
        row.accuracy,
        row.agreement,
        row.agreement_kind,
        row.evaluated,
        metric=row.metric,
        outputs=row.outputs,
        agreement_ci=row.agreement_ci,
        accuracy_ci=row.accuracy_ci,
        change=row.change,
    )
