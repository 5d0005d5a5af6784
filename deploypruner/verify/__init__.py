"""Comparing forms of one model on the same inputs; every comparison is one `records.Check`."""

from __future__ import annotations

from deploypruner.verify.compare import compare_outputs, compare_relative, flatten_outputs, relative_error
from deploypruner.verify.exported import verify_exports

__all__ = [
    "compare_outputs",
    "compare_relative",
    "flatten_outputs",
    "relative_error",
    "verify_exports",
]
