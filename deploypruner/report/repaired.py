"""What the repair of an int8 model did, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Of outputs that are not finite, see `quantize.repair`.
_WORST = 1e30


def repair_sentence(steps: Sequence[Mapping[str, Any]]) -> str:
    """What was kept of the repair, and by how much the error of the outputs fell; "" without steps.

    Args:
        steps: As the report's settings have them under `quantization`.
    """
    if not steps:
        return ""
    kept = [step for step in steps if step["kept"]]
    before = _share((kept or steps)[0]["before"])
    if not kept:
        return f"int8 outputs are {before} off on samples apart, and no repair helps"
    done = "; ".join(f"{step['name']} ({step['done']})" for step in kept)
    return f"{done}: int8 outputs are {_share(kept[-1]['after'])} off on samples apart instead of {before}"


def weights_sentence(bits: int) -> str:
    """How many bits int8 weights have, and on which processors that matters."""
    if bits == 7:
        return (
            "7 bits, from -64 to 64: sums of two products fit into 16 bits, as x86 processors without VNNI want; "
            "others compute the same"
        )
    return (
        "8 bits: exact with VNNI, AMX or dot products, while on x86 processors without VNNI sums of two products "
        "saturate; --weight-bits 7 makes a file for those, too"
    )


def weight_bits(settings: Mapping[str, Any]) -> str:
    """`weights_sentence` of a report's pruned int8 model; "" where the settings do not say."""
    try:
        return weights_sentence(settings["quantization"]["pruned"]["weight_bits"])
    except (LookupError, TypeError):
        return ""


def settings_sentence(settings: Mapping[str, Any]) -> str:
    """`repair_sentence` of a report's pruned int8 model; "" where the settings say nothing that can be read."""
    try:
        return repair_sentence(settings["quantization"]["pruned"]["repair"])
    except (LookupError, TypeError):
        return ""


def _share(error: float | None) -> str:
    """Of the spread of the float outputs."""
    if error is None or not error < _WORST:
        return "without bound"
    return f"{100 * error:.2f} %" if error < 1 else f"{error:.3g} times their spread"
