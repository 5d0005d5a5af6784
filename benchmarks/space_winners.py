"""Winners of spaces of equal MACs and of equal milliseconds, with their milliseconds measured in one run.

    python -m benchmarks.space_winners run --net resnet20      # after `pruning_spaces run`; a quiet machine
    python -m benchmarks.space_winners table                   # runs nothing

Of every finished sweep: the recipes that lost least in the population and among the finalists. Of a space of equal
MACs also the one that lost least among those that are predicted to be as fast as a space of equal milliseconds: that
is what choosing by MACs is worth at equal time. Predictions are compared as speed-ups: every sweep timed its own
dense model. Weights do not change the milliseconds, so that channels are cut out of the dense model; one core, batch
1, all files interleaved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click
import numpy as np
import torch

from benchmarks.cifar10 import cifar10
from benchmarks.kept import changing, read
from benchmarks.models import PUBLISHED
from benchmarks.pruning_spaces import FOLDER, REGIMES, RESULTS, TRIALS, dense
from benchmarks.side_by_side import time_networks, write_files
from deploypruner.graph import trace
from deploypruner.measure import environment

MEASURED = RESULTS.with_name("space_winners.json")
DENSE = "dense"

Trial = dict[str, Any]


def finished(net: str) -> dict[str, tuple[float, list[Trial]]]:
    """Finished sweep -> its dense model's milliseconds, and its trials that came to something."""
    kept, found = read(TRIALS), read(RESULTS)
    return {
        name: (
            found[name]["dense"]["ms"],
            [one for one in kept[name]["trials"] if one["result"] and not one["result"]["why"]],
        )
        for name in (f"{net}-{regime}" for regime in REGIMES)
        if name in found
    }


def chosen(sweeps: Mapping[str, tuple[float, list[Trial]]]) -> Iterator[tuple[str, str, Trial]]:
    """Sweep, why, and trial: what is to be timed."""
    wanted = {regime: cost["speedup"] for regime, cost in REGIMES.items() if "speedup" in cost}
    for name, (dense_ms, trials) in sweeps.items():
        space = [one for one in trials if one["trial"]["phase"] == "space"]
        finals = [one for one in trials if one["trial"]["phase"] == "refined"]
        yield name, "best of the population", _best(space)
        if finals:
            yield name, "best finalist", _best(finals)
        for regime, speedup in wanted.items() if "-macs-" in name else ():
            quick = [one for one in (*space, *finals) if dense_ms / one["predicted_ms"] >= speedup]
            if quick:
                yield name, f"best within {regime}", _best(quick)


def _best(trials: list[Trial]) -> Trial:
    return min(trials, key=lambda one: float(one["result"]["drop"]))


def lost_again(sweeps: Mapping[str, tuple[float, list[Trial]]], widths: Mapping[str, int]) -> list[float]:
    """What a recipe lost with new seeds."""
    again = (one for _, trials in sweeps.values() for one in trials if one["trial"]["seed"])
    return sorted({one["result"]["drop"] for one in again if one["trial"]["widths"] == widths})


@click.group()
def main() -> None:
    """Run, table."""
    torch.set_num_threads(1)


@main.command()
@click.option("--net", type=click.Choice(sorted(PUBLISHED)), default="resnet20", show_default=True)
@click.option("--seconds", default=40.0, show_default=True)
def run(net: str, seconds: float) -> None:
    """Cut, quantize and time what did best."""
    graph = trace(dense(net), (torch.zeros(2, 3, 32, 32),))
    sizes = {group.id: group.size for group in graph.groups}
    sweeps = finished(net)
    rows, widths = {}, {DENSE: sizes}
    for name, why, one in chosen(sweeps):
        row = f"{name}, {why}"
        widths[row] = one["trial"]["widths"]
        rows[row] = {
            "drop": one["result"]["drop"],
            "again": lost_again(sweeps, widths[row]),
            "macs": one["result"]["macs"],
            "predicted": sweeps[name][0] / one["predicted_ms"],
        }
    folders = {row: FOLDER / "timed" / row.replace(", ", "-").replace(" ", "-") for row in widths}
    for row, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        keep = {group: np.arange(widths[row].get(group, size)) for group, size in sizes.items()}
        write_files(graph.cut(graph.removed(keep)), cifar10().train, folder, sparse=False)
    times = time_networks(folders, logs=FOLDER / "logs", seconds=seconds)
    with changing(MEASURED) as found:
        found[net] = {"environment": environment(), "rows": rows, "times": times}
    click.echo(markdown(read(MEASURED)))


@main.command()
def table() -> None:
    """What there is."""
    click.echo(markdown(read(MEASURED)))


def markdown(found: Mapping[str, Any]) -> str:
    """Recipes down; what each loses, and its time as predicted and as measured, across."""
    lines = ["| | lost | with new seeds | MACs | predicted int8 | int8 | fp32 |", "|---|--:|--:|--:|--:|--:|--:|"]
    for one in found.values():
        times = one["times"]
        for row, about in one["rows"].items():
            again = ", ".join(f"{drop:.2f}" for drop in about["again"])
            cells = (
                f"{about['drop']:.2f} | {again} | {about['macs'] / 1e6:.1f} M | {about['predicted']:.2f}x",
                *(_faster(times, row, kind) for kind in ("int8", "fp32")),
            )
            lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _faster(times: Mapping[str, Any], row: str, kind: str) -> str:
    """Milliseconds, and how many times faster than the dense model of the same kind."""
    ms, whole = times[f"{row}: {kind}"]["ms"], times[f"{DENSE}: {kind}"]["ms"]
    return f"{ms:.3f} ms, {whole / ms:.2f}x"


if __name__ == "__main__":
    main()
