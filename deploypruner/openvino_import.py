"""The one place that imports openvino, without the message it would send home, and the one `Core` of a process.

On import, openvino's Python package reports to a web address from a thread that forks. In a build that is somebody
else's affair; in a timing worker the fork competes with what is being timed, and can hang for ever on the lock of
a stream that the main thread is reading.
"""

from __future__ import annotations

import importlib
import sys
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import openvino

_TELEMETRY = "openvino_telemetry"


def import_openvino() -> ModuleType:
    """Import openvino; where its telemetry package cannot be imported, it uses an empty one of its own."""
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    modules: dict[str, Any] = sys.modules
    before = {name: module for name, module in modules.items() if name.partition(".")[0] == _TELEMETRY}
    modules.update(dict.fromkeys((_TELEMETRY, *before)))  # None makes an import fail
    try:
        return importlib.import_module("openvino")
    finally:
        modules.pop(_TELEMETRY)
        modules.update(before)


@cache
def openvino_core() -> openvino.Core:
    """The `Core` that reads and compiles every model of this process, and lives as long.

    The CPU plugin of each `Core` gives the thread that loads it a stack for signal handlers, and when it goes puts
    back the one it found there. Of two that do not go in the opposite order of their coming, the second puts back
    memory the first has freed, and the next signal, such as Ctrl-C, kills the process (seen with OpenVINO 2026.4).
    """
    made: openvino.Core = import_openvino().Core()
    return made
