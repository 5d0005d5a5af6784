"""The file to ship, as lines for a terminal and facts for the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploypruner.device.described import HERE
from deploypruner.report import units
from deploypruner.report.document import Report
from deploypruner.report.terminal import wrap

ON_DEVICE = "device.txt"
"""In a build for another machine: how the file is loaded there, see `on_device`."""

_NAMES = 8


def ship_lines(report: Report, width: int | None) -> list[str]:
    """The file, its inputs, its classes and how it is loaded; nothing where there is none to ship."""
    found = report.deploy
    if not found:
        return []
    lines = [wrap("ship: ", f"{ship_sentence(found)}", width)]
    lines += [wrap("  input: ", input_sentence(entry), width) for entry in found["inputs"]]
    if found["classes"]:
        lines.append(wrap("  classes: ", classes_sentence(found["classes"]), width))
    # Never broken: they are to be pasted.
    lines += [wrap("    ", line, None) for line in found["load"]]
    if (name := report.target.get("name", HERE)) != HERE:
        says = f"{ON_DEVICE} has what to copy to {name}, what to install and these lines"
        lines.append(wrap("  there: ", says, width))
    if pixels := found.get("pixels"):
        lines.append(wrap("  pixels: ", pixels_sentence(pixels), width))
        lines += [wrap("    ", line, None) for line in pixels["load"]]
    return lines


def loaded_from(folder: Path, report: Report) -> Report:
    """The report with lines that load its files from this folder, wherever they were when it was written."""
    found = report.deploy
    if "load" not in found:
        return report
    names = found["files"]

    def here(lines: Sequence[str], names: Sequence[str]) -> list[str]:
        for name in names:
            written = re.compile(
                rf"""(['"])(?:\\.|(?!\1).)*(?<=[/'"]){re.escape(name)}\1(?!:)"""
            )  # no name of an input
            there = repr(str(folder / name)).replace("\\", r"\\")  # as a replacement reads it
            lines = [written.sub(there, line) for line in lines]
        return list(lines)

    deploy = {**found, "load": here(found["load"], names)}
    if pixels := found.get("pixels"):
        deploy["pixels"] = {**pixels, "load": here(pixels["load"], [pixels["file"]])}
    return replace(report, deploy=deploy)


def pixels_sentence(pixels: dict[str, Any]) -> str:
    """ "model.pixels.onnx takes pixels as they are, uint8 [N, 32, 32, 3] NHWC"; what that costs was not timed."""
    shape = f"[{', '.join(map(str, pixels['input']['shape']))}]"
    given = f"{pixels['input']['dtype']} {shape} {pixels['input']['layout']}"
    return f"{pixels['file']} is the same and takes {given}, 0 to 255; its preprocessing is not in the times"


def ship_sentence(found: dict[str, Any]) -> str:
    """ "model.int8.xml with model.int8.bin, 360 kB: pruned int8 for openvino 2026.1, 1 thread"."""
    beside = [name for name in found["files"] if name != found["file"]]
    files = f"{found['file']} with {' and '.join(beside)}" if beside else found["file"]
    threads = f"{found['threads']} thread{'' if found['threads'] == 1 else 's'}"
    size = units.scaled(found["bytes"], "B")
    return f"{files}, {size}: {found['artifact']} for {found['runtime']} {found['version']}, {threads}"


def input_sentence(entry: dict[str, Any]) -> str:
    """ "x, float32 [N, 3, 32, 32] NCHW, -2.1 to 2.6: pixels / 255, less mean 0.485 0.456 0.406, by std ..."."""
    shape = f"[{', '.join(map(str, entry['shape']))}]"
    text = " ".join(filter(None, (f"{entry['name']},", entry["dtype"], shape, entry["layout"])))
    if entry["range"] is not None:
        low, high = (f"{value:.3g}" for value in entry["range"] if value is not None)
        text += f", {low} to {high}"
    if entry["mean"] is None:
        return f"{text} in the data" if entry["range"] is not None else text
    return f"{text}: (pixels / 255 - mean) / std, mean {_numbers(entry['mean'])}, std {_numbers(entry['std'])}"


def classes_sentence(names: Sequence[str]) -> str:
    """The first names in the order of the output, and how many there are."""
    shown = ", ".join(names[:_NAMES])
    return shown if len(names) <= _NAMES else f"{shown} and {len(names) - _NAMES} more (see report.json)"


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
