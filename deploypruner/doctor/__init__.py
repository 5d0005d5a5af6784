"""What a machine has for this tool, and what it lacks: facts, each with what to do where something is missing."""

from __future__ import annotations

from collections.abc import Iterator

from deploypruner.doctor.finding import Finding, State
from deploypruner.doctor.machine import machine_findings
from deploypruner.doctor.software import software_findings
from deploypruner.doctor.storage import storage_findings

__all__ = ["Finding", "State", "examine"]


def examine() -> Iterator[Finding]:
    """Look at this machine; each finding is given as soon as it is known.

    The machine comes first: what loads the libraries later would be seen as its load.
    """
    yield from machine_findings()
    yield from storage_findings()
    yield from software_findings()
