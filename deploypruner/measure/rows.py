"""Report rows: speed and quality of every artifact, side by side with its baseline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deploypruner.measure.baselines import Job, baseline_index, dense_index
from deploypruner.measure.files import needed_beside
from deploypruner.measure.statistics import compare, histogram, median_ms, quantile_ms
from deploypruner.records import ACCURACY, Comparison, Quality, Row, Timing


def make_rows(
    timings: Sequence[Timing], qualities: Sequence[Quality | None], *, floor: float, seed: int = 0
) -> list[Row]:
    """Return one row per timing, runtimes together, each runtime's baseline first.

    The baseline of a runtime is its dense fp32 artifact, or the first one there. Its own row has
    ratio 1 and is indistinguishable from itself. `same_precision` compares a row with the dense artifact
    of its precision on its runtime; dense rows have none.

    Args:
        timings: Of one run.
        qualities: One per timing, in the same order; None where nothing was evaluated.
        floor: Noise floor of the run, from `time_artifacts`.
        seed: Seed of the bootstrap.

    Raises:
        InputError: An artifact's file is gone.
        MeasureError: The timings are not of one run.
    """
    jobs: list[Job] = [(timing.artifact, timing.runtime) for timing in timings]
    order: list[int] = []
    for runtime in dict.fromkeys(timing.runtime for timing in timings):
        first = baseline_index(jobs, runtime)
        same = [index for index, (_, name) in enumerate(jobs) if name == runtime]
        order += [first, *(index for index in same if index != first)]
    qualities_by_index = dict(zip(range(len(timings)), qualities, strict=True))

    def row(index: int) -> Row:
        timing = timings[index]
        baseline = timings[baseline_index(jobs, timing.runtime)]
        dense = dense_index(jobs, timing.runtime, timing.artifact.precision)
        against = (
            Comparison(baseline.artifact.name, 1.0, (1.0, 1.0), "indistinguishable")
            if baseline is timing
            else compare(timing, baseline, floor=floor, seed=seed)
        )
        same = (
            compare(timing, timings[dense], floor=floor, seed=seed)
            if dense is not None and timing.artifact.pattern != "dense"
            else None
        )
        return _row(timing, qualities_by_index[index], against=against, same_precision=same)

    return [row(index) for index in order]


def file_bytes(path: Path) -> int:
    """Size of an artifact on disk: the file, and the weights that some formats keep beside it."""
    return path.stat().st_size + sum(file.stat().st_size for file in needed_beside(path) if file.is_file())


def _row(timing: Timing, quality: Quality | None, *, against: Comparison, same_precision: Comparison | None) -> Row:
    artifact, cost, samples = timing.artifact, timing.artifact.cost, timing.samples_ns
    return Row(
        name=artifact.name,
        format=artifact.format,
        runtime=timing.runtime,
        precision=artifact.precision,
        pattern=artifact.pattern,
        threads=timing.threads,
        accuracy=quality.accuracy if quality else None,
        agreement=quality.agreement if quality else None,
        agreement_kind=quality.agreement_kind if quality else "",
        median_ms=median_ms(samples),
        p95_ms=quantile_ms(samples, 0.95),
        p99_ms=quantile_ms(samples, 0.99),
        samples=samples.size,
        ratio=against.ratio,
        ratio_ci=against.ratio_ci,
        verdict=against.verdict,
        same_precision=same_precision,
        macs=cost.macs if cost else None,
        params=cost.params if cost else None,
        nonzero=cost.nonzero if cost else None,
        bytes=file_bytes(artifact.path),
        peak_rss_bytes=timing.peak_rss_bytes,
        metric=quality.metric if quality else ACCURACY,
        outputs=quality.outputs if quality else (),
        evaluated=quality.samples if quality else 0,
        agreement_ci=quality.agreement_ci if quality else None,
        accuracy_ci=quality.accuracy_ci if quality else None,
        change=quality.change if quality else None,
        file=str(artifact.path),
        histogram=histogram(samples),
        environment=artifact.environment,
    )
