"""The one place that imports openvino, without the message it would send home.

On import, openvino's Python package reports to a web address from a thread that forks. In a build that is somebody
else's affair; in a timing worker the fork competes with what is being timed, and can hang for ever on the lock of
a stream that the main thread is reading.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

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
