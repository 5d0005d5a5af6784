"""The tables of `benchmarks.equal_latency`."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

_HEAD = "| net | method | measured [95 %] | int8 | blocks gone | MACs | repaired | short | int8 | long | int8 |"


def markdown(rows: dict[str, Any]) -> str:
    """One line per plan; mean and standard deviation over seeds."""
    lines = [_HEAD, "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"]
    for key, row in rows.items():
        dense = row["dense"]
        lines.append(f"| {key} | dense | 1 | 1 | 0 | 100 % | | {dense['fp32']:.2f} | {dense['int8']:.2f} | | |")
        for name, found in row["plans"].items():
            low, high = found["ci"]
            short = found["runs"].get("short") or found["runs"].get("tiny") or {}
            long = found["runs"].get("long", {})
            before = [run["before"]["fp32"] for run in (short or long).values()]
            int8 = found.get("int8 ratio") or (found["ratio"] if " int8 " in key else None)
            lines.append(
                f"| | {name} | {found['ratio']:.2f}x{'?' if found['doubt'] else ''} [{low:.2f}, {high:.2f}] | "
                f"{'' if int8 is None else f'{int8:.2f}x'} | {len(found['dropped'])} | {found['macs']:.1%} | "
                f"{_spread(before)} | {_of(short, 'fp32')} | {_of(short, 'int8')} | {_of(long, 'fp32')} | "
                f"{_of(long, 'int8')} |"
            )
    return "\n".join(lines)


def _of(runs: dict[str, Any], precision: str) -> str:
    return _spread([run[precision] for run in runs.values()])


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")
