"""What somebody needs who loads the file to ship on the machine it was built for, with nothing of ours: one page."""

from __future__ import annotations

import shlex
from pathlib import Path

from deploypruner.device.described import Address, DescribedTarget
from deploypruner.report.document import Report
from deploypruner.report.ship import classes_sentence, input_sentence, loaded_from, ship_sentence
from deploypruner.runtime import in_float32


def device_text(report: Report, target: DescribedTarget) -> str:
    """The files to copy, what to install, and the lines that load them there; "" where there is none to ship.

    Args:
        report: Of a build that was timed on the machine.
        target: The machine, as the user described it.
    """
    if not report.deploy:
        return ""
    found = loaded_from(Path(), report).deploy
    package = in_float32(found["runtime"])
    inputs = [f"    # {input_sentence(entry)}" for entry in found["inputs"]]
    classes = [f"    # classes: {classes_sentence(found['classes'])}"] if found["classes"] else []
    return "\n".join(
        [
            ship_sentence(found),
            f"timed on {target.name}: {report.target['processor']}",
            "",
            "1. Copy the files into one folder there, from this one (FOLDER has to exist):",
            "",
            f"    {_copy(found['files'], target.address)}",
            "",
            "2. Install what loads them, where it is not installed yet; nothing of DeployPruner, no torch:",
            "",
            f"    {target.python} -m pip install numpy {package}=={found['version']}",
            "",
            "3. There, in that folder, in Python:",
            "",
            *inputs,
            *(f"    {line}" for line in found["load"]),
            *classes,
            "",
        ]
    )


def _copy(files: list[str], address: Address | None) -> str:
    """The command that brings files to a folder there."""
    if address is None:
        return shlex.join(["cp", *files, "FOLDER/"])
    host = f"[{address.host}]" if ":" in address.host else address.host
    port = ["-P", str(address.port)] if address.port else []
    return shlex.join(["scp", *port, *files, f"{address.user}@{host}:FOLDER/" if address.user else f"{host}:FOLDER/"])
