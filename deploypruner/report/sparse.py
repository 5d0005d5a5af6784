"""What sparse kernels did for a build, in one sentence and in a table of layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deploypruner.report import units


@dataclass(frozen=True)
class SparseLine:
    """One layer as text: name, what it is, shares and times, the choice and why."""

    name: str
    kind: str
    density: str
    quads: str
    dense: str
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
    if not found["chosen"]:
        return f"the dense int8 model is the one to deploy: {found['reason']}"
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


def sparse_lines(found: dict[str, Any]) -> list[SparseLine]:
    """Every layer the kernels could compute, then means and scales, then the layers they could not."""
    fitting = [
        SparseLine(
            layer["name"],
            f"{layer['kind']} {'x'.join(map(str, layer['kernel']))}",
            f"{layer['density']:.1%}",
            f"{layer['quads']:.1%}",
            _microseconds(layer["dense_us"]),
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
            "-",
            "-",
            _microseconds(gate["dense_us"]),
            _microseconds(gate["sparse_us"]),
            gate["choice"],
            gate["reason"],
        )
        for gate in found.get("gates", ())
    ]
    others = [
        SparseLine(name, "", "-", "-", "-", "-", "dense", reason) for name, reason in found.get("refused", {}).items()
    ]
    return [*fitting, *others]


def _microseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
