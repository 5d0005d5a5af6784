"""What a sweep found, as a page, as JSON and as lines of the terminal."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from deploypruner.report import units
from deploypruner.report.page import style, template
from deploypruner.report.terminal import aligned, ascii_only, painter, wrap
from deploypruner.sweep.pictures import budget_picture, edf_picture, legend
from deploypruner.sweep.records import Bucket, SweepFound, Winner
from deploypruner.terminal import escaped

_HEADS = ("winner of", "points lost", "with new seeds", "MACs", "parameters", "MACs/param", "predicted ms")
_BUCKET_HEADS = ("std of the ratios", "recipes", "best", "median", "worst")
_PHASES = {"space": "the population", "refined": "the refined search"}
_TAGS = {"supported": "good", "contradicted": "bad", "not shown": "unsure", "not tested": "unsure"}


def sweep_json(found: SweepFound) -> dict[str, Any]:
    """Everything, with the numbers as they are; budgets of parameters beside each recipe."""
    document: dict[str, Any] = {"format": 1, **asdict(found)}
    for entry, sample in zip(document["samples"], found.samples, strict=True):
        entry["mcb"] = sample.macs / sample.params
        entry["mcb_relative"] = sample.budget(found.dense)
    for entry, bucket in zip(document["buckets"], found.buckets, strict=True):
        entry["edf"] = bucket.edf
    for entry, winner in zip(document["winners"], found.winners, strict=True):
        entry["expected"] = winner.expected
    return document


def sweep_html(found: SweepFound) -> str:
    """One page that opens offline."""
    return template("sweep.html.j2").render(
        style=style(),
        found=found,
        facts=_facts(found),
        headline=_headline(found),
        heads=_HEADS,
        winners=[_winner_cells(winner, found) for winner in found.winners],
        edf=edf_picture(found),
        legend=legend(found),
        budgets=budget_picture(found),
        tags=_TAGS,
    )


def sweep_text(found: SweepFound, *, colour: bool, width: int | None) -> str:
    """Sub-spaces, optimum, conjectures and winners."""
    paint = painter(colour)
    buckets = aligned([list(_BUCKET_HEADS), *([*_bucket_cells(bucket)] for bucket in found.buckets)], left=(0,))
    winners = aligned([list(_HEADS), *(_winner_cells(winner, found) for winner in found.winners)], left=(0,))
    said = [wrap(f"{c.number} {c.verdict}: ", f"{c.claim}. {c.evidence}", width) for c in found.conjectures]
    blocks = [
        _headline(found),
        "\n".join([paint(buckets[0], "faint"), *buckets[1:]]),
        "\n".join(said),
        "\n".join([paint(winners[0], "faint"), *winners[1:]]),
        "\n".join(wrap("failed: ", f"{name}: {why}", width) for name, why in found.failed),
        "\n".join(wrap("note: ", note, width) for note in found.notes),
    ]
    return "\n\n".join(escaped_block(block) for block in blocks if block) + "\n"


def escaped_block(text: str) -> str:
    """Lines that a terminal shows and does not obey."""
    return "\n".join(escaped(ascii_only(line)) if "\x1b" not in line else line for line in text.split("\n"))


def _headline(found: SweepFound) -> str:
    best = found.best
    new = f"{best.expected:.2f} points lost with new seeds" if best.again else f"{best.drop:.2f} points lost"
    where = _PHASES[best.phase]
    text = f"{found.quality}: best of {len(found.samples)} recipes at {found.budget} and the refined search"
    text = (
        text if len(found.winners) > 1 else f"{found.quality}: best of {len(found.samples)} recipes at {found.budget}"
    )
    return f"{text}: {new} (from {where}); median of the population {_median(found):.2f}"


def _median(found: SweepFound) -> float:
    return float(np.median([sample.drop for sample in found.samples]))


def _facts(found: SweepFound) -> str:
    dense = f"dense {found.dense_quality:.2f} ({found.quality}), {units.scaled(found.dense.macs)} MACs"
    parts = [f"{len(found.samples)} recipes trained", f"{found.looks} looked at", dense]
    if found.speed:
        parts.append(f"{found.speed['dense_ms']:.3g} ms as {found.speed['setting']}")
    return ", ".join([*parts, f"{units.seconds(found.seconds)} of one core"])


def _winner_cells(winner: Winner, found: SweepFound) -> list[str]:
    again = ", ".join(f"{drop:.2f}" for drop in winner.again) or units.UNKNOWN
    relative = winner.macs / winner.params / found.dense.macs_per_param
    return [
        _PHASES[winner.phase],
        f"{winner.drop:.2f}",
        again,
        f"{winner.macs / found.dense.macs:.3f}",
        f"{winner.params / found.dense.params:.3f}",
        f"{relative:.3f}",
        units.UNKNOWN if winner.ms is None else units.significant(winner.ms),
    ]


def _bucket_cells(bucket: Bucket) -> list[str]:
    drops = bucket.drops
    numbers = (drops[0], float(np.median(drops)), drops[-1])
    return [f"{bucket.low:g} to {bucket.high:g}", str(len(drops)), *(f"{value:.2f}" for value in numbers)]
