"""results/zoo.json as markdown: one line a model, then what stays frozen and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]
_HEADER = (
    "| model | traced by | export s | labels, groups s | prunable outputs | MACs | proof | signal | ONNX Runtime "
    "batch 2 / 1 | own class | torch-pruning: MACs | s |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|",
)


def table(rows: Mapping[str, Mapping[str, Row]]) -> str:
    """Markdown: the table, totals and frozen reasons."""
    lines = [*_HEADER, *(_line(name, row) for name, row in rows.items())]
    return "\n".join(
        [*lines, "", *_totals(rows), "", *_frozen([row.get("deploypruner", {}) for row in rows.values()])]
    )


def _line(name: str, row: Mapping[str, Row]) -> str:
    own, peer = row.get("deploypruner", {}), row.get("torch-pruning", {})
    export, trace = own.get("export_s"), own.get("trace_s")
    cells = [
        name,
        own.get("front_end", "-"),
        _number(export),
        _number(None if trace is None else trace - export),
        f"{own['prunable'] / own['outputs']:.1%}" if own.get("outputs") else "-",
        _number(own.get("macs"), ".3f") + (" (narrowest)" if "out_of_reach" in own else ""),
        _number(own.get("proof"), ".0e") + ("" if own.get("proved", True) else " **FAILED**"),
        _number(own.get("signal"), ".0e"),
        " / ".join(_number(d, ".0e") for d in own.get("onnx", {}).values()) or "-",
        _short(own.get("own_class", "-")),
        _number(peer.get("macs"), ".3f") if "macs" in peer else _short(peer.get("failed", "-")),
        _number(peer.get("seconds", peer.get("process_s")), ".0f"),
    ]
    if "failed" in own:
        cells[6] = f"**{own.get('step') or 'process'}**: {_short(own['failed'])}"
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None, form: str = ".1f") -> str:
    return "-" if value is None else format(value, form)


def _short(text: str, width: int = 60) -> str:
    text = " ".join(text.replace("|", "/").split())
    return text if len(text) <= width else text[: width - 3] + "..."


def passes(row: Row) -> bool:
    """Half the MACs reached, proved, and ONNX Runtime agrees at every batch tried."""
    return (
        "failed" not in row
        and row["proved"]
        and row["macs"] <= 0.5
        and bool(row.get("onnx"))
        and all(d < 1e-4 for d in row["onnx"].values())
    )


def _totals(rows: Mapping[str, Mapping[str, Row]]) -> list[str]:
    own = [row["deploypruner"] for row in rows.values() if "deploypruner" in row]
    peers = [row["torch-pruning"] for row in rows.values() if "torch-pruning" in row]
    prunable, outputs = (sum(row.get(key, 0) for row in own) for key in ("prunable", "outputs"))
    # Less than a hundredth off the MACs is nothing: torch-pruning skips what it does not understand.
    useful = sum(row.get("macs", 1.0) < 0.99 for row in peers)
    return [
        f"DeployPruner: {sum(map(passes, own))} of {len(own)} reach half their MACs, are proved and agree with ONNX "
        f"Runtime; {prunable} of {outputs} output channels can be removed.",
        f"Own class identical: {sum(row.get('own_class') == 'identical' for row in own)} of {len(own)}.",
        f"torch-pruning: {sum('macs' in row for row in peers)} of {len(peers)} run afterwards, {useful} of them are "
        f"smaller.",
    ]


def _frozen(rows: list[Row]) -> list[str]:
    """Channels of weights that stay, by reason and line; the models' own inputs and outputs do not count."""
    found: Counter[tuple[str, str]] = Counter()
    for row in rows:
        for count, reason, where, _ in row.get("frozen", ()):
            if not reason.startswith("model "):
                found[reason, where.partition(" ")[0]] += count
    lines = [f"| {count} | {reason} | {where or '-'} |" for (reason, where), count in found.most_common()]
    return ["| channels | stay because | line |", "|---|---|---|", *lines] if lines else ["Nothing else is frozen."]
