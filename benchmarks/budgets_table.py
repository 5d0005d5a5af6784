"""The tables of `benchmarks.budgets`."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

PLANS = ("solver", "uniform", "MACs")


def tables(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: the requests, then the same latency by three ways of choosing widths."""
    return f"{requests(rows)}\n\n{same_latency(rows)}"


def requests(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """One line per request."""
    lines = [
        "| network | asked | outcome | fresh processes [95 %] | rounds | search s |",
        "|---|--:|---|--:|--:|--:|",
    ]
    asked = {key: row for key, row in rows.items() if "outcome" in row}
    for key, row in asked.items():
        name, precision, speedup = key.split()
        if row["outcome"] == "refused":
            reach = f"narrowest {row['reachable']:.2f}x" if row["reachable"] else ""
            lines.append(f"| {short(name)} {precision} | {speedup}x | refused | {reach} | 0 | {row['seconds']:.0f} |")
            continue
        solver = row["plans"]["solver"]
        low, high = solver["ci"]
        lines.append(
            f"| {short(name)} {precision} | {speedup}x | {row['outcome']} | {solver['ratio']:.2f}x "
            f"[{low:.2f}, {high:.2f}] | {len(row['rounds'])} | {row['seconds']:.0f} |"
        )
    outcomes = [row["outcome"] for row in asked.values()]
    counted = ", ".join(f"{outcomes.count(o)} {o}" for o in ("met", "missed", "refused"))
    return "\n".join([*lines, "", f"{len(asked)} requests: {counted}."])


def same_latency(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """One line per network and precision: importance lost, speed-up and speed-up / MACs reduction of each plan."""
    lines = [
        "| network | solver: importance lost, speed-up, speed-up x MACs | uniform | global MACs |",
        "|---|---|---|---|",
    ]
    done = {key: row for key, row in rows.items() if key.endswith(" same")}
    for key, row in done.items():
        name, precision, _ = key.split()
        cells = " | ".join(_cell(row["plans"][plan]) for plan in PLANS)
        lines.append(f"| {short(name)} {precision} | {cells} |")
    lost = {plan: [1 - row["plans"][plan]["importance"] for row in done.values()] for plan in PLANS}
    less = {plan: sum(a < b for a, b in zip(lost["solver"], lost[plan], strict=True)) for plan in PLANS[1:]}
    summary = [
        f"{plan} loses {100 * median(lost[plan]):.3g} % (median), more than the solver in {less[plan]} of {len(done)}"
        for plan in PLANS[1:]
        if done
    ]
    if done:
        summary.insert(0, f"the solver loses {100 * median(lost['solver']):.3g} % of the importance (median)")
    return "\n".join([*lines, "", "; ".join(summary)])


def short(name: str) -> str:
    """Without the library."""
    return name.partition(":")[2]


def _cell(plan: Mapping[str, Any]) -> str:
    lost = 100 * (1 - plan["importance"])
    return f"{lost:.3g} %, {plan['ratio']:.2f}x, {plan['ratio'] * plan['macs']:.2f}"
