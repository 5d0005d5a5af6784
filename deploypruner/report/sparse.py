"""What sparse kernels did for a build, in sentences and in a table of layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deploypruner.report import units

DENSE = "dense"
_TEXTS = (0, 1, 6)  # columns of the terminal's table that are no numbers


@dataclass(frozen=True)
class SparseLine:
    """One layer as text: name, what it is, its pattern, shares and times, the choice and why."""

    name: str
    kind: str
    pattern: str
    density: str
    quads: str
    dense: str
    predicted: str
    sparse: str
    choice: str
    reason: str


def sparse_sentence(found: dict[str, Any]) -> str:
    """What won and by how much, or why nothing runs sparse; "" for a build without zeros.

    Args:
        found: The report's `sparse` section.
    """
    if not found:
        return ""
    setting = f"; {found['setting']}" if found.get("setting") else ""
    if not found["chosen"]:
        return f"the dense int8 model is the one to deploy: {found['reason']}{setting}"
    return _ran(found) + setting


def _ran(found: dict[str, Any]) -> str:
    """How many layers run sparse, and what that gave."""
    ran = f"{found['chosen']} of {len(found['layers'])} layers run in sparse kernels ({found['target']})"
    against = found.get("against_dense")
    if against is None:
        return f"{ran}; not measured in OpenVINO beside the dense int8 model"
    numbers = units.ratio_with_interval(against["ratio"], tuple(against["ratio_ci"]))
    if against["verdict"] == "faster":
        return f"{ran}: {numbers} faster than {against['against']}, the dense form of the same weights"
    if against["verdict"] == "slower":
        return f"{ran}: {numbers}, slower than {against['against']}, which is the one to deploy"
    return f"{ran}: {numbers}, indistinguishable from {against['against']}, which needs no library"


def assigned_sentence(found: dict[str, Any]) -> str:
    """What was predicted when every layer got its own pattern, beside what was measured; "" where one is for all.

    Args:
        found: The report's `sparse` section.
    """
    assigned = found.get("assigned")
    if not assigned:
        return ""
    predicted, dense = assigned["predicted_ms"], assigned["dense_ms"]
    text = (
        f"every layer has its own pattern; {predicted:.3g} ms predicted, {units.ratio(dense / predicted)} as fast as "
        f"the {dense:.3g} ms of dense int8, with {assigned['budget_ms']:.3g} allowed ({assigned['budget']})"
    )
    if found.get("against_dense"):
        text += f"; {units.ratio(found['against_dense']['ratio'])} measured"
    return text + (
        f"; {100 * assigned['kept']:.0f} % of the saliency stays, "
        f"{100 * assigned['reference_kept']:.0f} % would with "
        f"{assigned['reference']} everywhere"
    )


def assigned_table(found: dict[str, Any]) -> list[str]:
    """Lines of a terminal: the layers with a pattern of their own that was chosen for them."""
    if not found.get("assigned"):
        return []
    head = SparseLine("layer", "", "pattern", "kept", "", "dense us", "predicted", "sparse us", "choice", "")
    lines = [head, *(line for line in sparse_lines(found) if line.pattern not in ("", DENSE))]
    shown = [(x.name, x.pattern, x.density, x.dense, x.predicted, x.sparse, x.choice) for x in lines]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    text = (
        "  ".join(
            cell.ljust(size) if place in _TEXTS else cell.rjust(size)
            for place, (cell, size) in enumerate(zip(row, widths, strict=True))
        )
        for row in shown
    )
    return [f"  {line.rstrip()}" for line in text]


def sparse_lines(found: dict[str, Any]) -> list[SparseLine]:
    """Every layer the kernels could compute, then means and scales, then the layers they could not."""
    fitting = [
        SparseLine(
            layer["name"],
            f"{layer['kind']} {'x'.join(map(str, layer['kernel']))}",
            layer.get("pattern", ""),
            f"{100 * layer['density']:.1f} %",
            f"{100 * layer['quads']:.1f} %",
            _microseconds(layer["dense_us"]),
            _microseconds(layer.get("predicted_us")),
            _microseconds(layer["sparse_us"]),
            layer["choice"],
            layer["reason"],
        )
        for layer in found.get("layers", ())
    ]
    fitting += [
        SparseLine(
            gate["name"],
            gate["kind"],
            "",
            "-",
            "-",
            _microseconds(gate["dense_us"]),
            "-",
            _microseconds(gate["sparse_us"]),
            gate["choice"],
            gate["reason"],
        )
        for gate in found.get("gates", ())
    ]
    others = [
        SparseLine(name, "", "", "-", "-", "-", "-", "-", "dense", reason)
        for name, reason in found.get("refused", {}).items()
    ]
    return [*fitting, *others]


def _microseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
